"""Check the plan's counts against the model's own preprocessing, before any time on a device is spent.

A family predicts what an image size becomes by arithmetic of its own. What stands is what the real processor makes of
the real picture: so every picture of the plan goes through it once, with the model's shapes and none of its weights,
and a count that differs stops the study here. (A session checks again, on the inputs that it measures.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pydantic import BaseModel, ConfigDict

from vlmeter.cells.cell import Cell, Expected
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.common.files import write_atomically
from vlmeter.models.families.base import Counts, LoadedModel

if TYPE_CHECKING:
    from vlmeter.models.families.base import ModelInputs

COUNTS_VERSION = 1


class Sight(Protocol):
    """What a cell looks at: a picture that can be opened, and its question."""

    @property
    def open(self) -> Callable[[], Any]:
        """Open the picture."""
        ...

    @property
    def question(self) -> str | None:
        """The question, or None where the text's length is given."""
        ...


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CellCounts(_Part):
    """What the real processor makes of one cell's picture and text."""

    crops: int
    vision_tokens: int
    special_tokens: int
    text_tokens: int
    prompt_tokens: int


class SubjectCounts(_Part):
    """The counts of a subject's cells, or the reason why its inputs cannot be made on this machine."""

    counts_version: int = COUNTS_VERSION
    subject: str
    cells: dict[str, CellCounts]
    unsupported: str | None = None


def write_counts(path: Path, counts: SubjectCounts) -> None:
    """Write a subject's counts atomically."""
    write_atomically(path, (json.dumps(counts.model_dump(), indent=1) + "\n").encode())


def check_counts(
    subject_name: str, load: Callable[[], LoadedModel], cells: Iterable[Cell], pictures: Mapping[str, Sight]
) -> SubjectCounts:
    """Put the picture of every cell through the subject's real processor, and compare with the plan.

    Args:
        subject_name: goes into the result and into messages.
        load: gives the model's shapes and its processor; it may raise Unsupported.
        cells: of that subject; cells with the same picture and text are prepared once.
        pictures: by cell id, as a session has them.

    Raises UserError for the first count that is not what the plan says. A processor that is not to be had here is no
    error: the result says so, and so will the records.
    """
    made: dict[object, CellCounts] = {}
    found: dict[str, CellCounts] = {}
    try:
        loaded = load()
        for cell in cells:
            question = pictures[cell.cell_id].question if cell.text_tokens is None else None
            look = (cell.image, cell.options, cell.text_tokens, question)
            if look not in made:
                made[look] = _counts(_prepared(loaded, cell, pictures[cell.cell_id], question).counts)
            found[cell.cell_id] = made[look]
            _compare(subject_name, cell, made[look])
    except Unsupported as reason:
        return SubjectCounts(subject=subject_name, cells={}, unsupported=str(reason))
    return SubjectCounts(subject=subject_name, cells=found)


def _prepared(loaded: LoadedModel, cell: Cell, picture: Sight, question: str | None) -> ModelInputs:
    return loaded.prepare(picture.open(), question, text_tokens=cell.text_tokens, options=cell.options)


def _counts(counts: Counts) -> CellCounts:
    return CellCounts(**{name: getattr(counts, name) for name in CellCounts.model_fields})


def _compare(subject_name: str, cell: Cell, real: CellCounts) -> None:
    for name in Expected.model_fields:
        planned, counted = getattr(cell.expected, name), getattr(real, name)
        if planned is not None and planned != counted:
            raise UserError(
                f"cell {cell.cell_id} of {subject_name}: the plan says {name} {planned}, and the model's own processor "
                f"makes {counted}, so that the cell would be labelled wrongly; leave the size out, and report the "
                "difference as a defect of the family"
            )
