"""The pictures that cells look at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vlmeter.cells.cell import Cell, DatasetImage, RequestBlock


@dataclass(frozen=True)
class Picture:
    """A picture that cells look at: how to open it, and what is known of it."""

    open: Callable[[], Any]
    digest: str
    image_id: str | None = None
    question_id: str | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Album:
    """The pictures of a block of requests, in the order of its requests; each is opened when its turn comes."""

    pictures: tuple[Picture, ...]


#: What a cell looks at.
Looks = Picture | Album


def pictures_of(looks: Looks) -> tuple[Picture, ...]:
    """List the pictures that a cell looks at, in the order of `plan.singles`."""
    return looks.pictures if isinstance(looks, Album) else (looks,)


def pictures_for(
    cells: Sequence[Cell], *, dummy: Callable[[Cell], Any], dataset: Sequence[Picture]
) -> dict[str, Looks]:
    """Say for every cell what it looks at; dummy images need no digest, since the cell says all about them."""
    found: dict[str, Looks] = {}
    for cell in cells:
        if isinstance(cell.image, DatasetImage):
            found[cell.cell_id] = dataset[cell.image.index]
        elif isinstance(cell.image, RequestBlock):
            found[cell.cell_id] = Album(tuple(dataset[request.index] for request in cell.image.requests))
        else:
            found[cell.cell_id] = Picture(open=lambda cell=cell: dummy(cell), digest="")  # type: ignore[misc]
    return found
