"""Check the plan's counts against the model's own preprocessing, before any time on a device is spent.

A family predicts what an image size becomes by arithmetic of its own. What stands is what the real processor makes of
the real picture: so every picture of the plan goes through it once, with the model's shapes and none of its weights,
and a count that differs stops the study here. (A session checks again, on the inputs that it measures.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from vlmeter.backends.base import OpenedRequest
from vlmeter.cells.cell import Cell, Expected
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.common.files import write_atomically
from vlmeter.inputs.pictures import Pictures
from vlmeter.models.families.base import Counts, LoadedModel
from vlmeter.models.real_counts import check_pass

if TYPE_CHECKING:
    from vlmeter.models.families.base import ModelInputs

COUNTS_VERSION = 1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SubjectCounts(_Part):
    """The counts of a subject's cells, or the reason why its inputs cannot be made on this machine."""

    counts_version: int = COUNTS_VERSION
    subject: str
    cells: dict[str, Counts]
    unsupported: str | None = None


def write_counts(path: Path, counts: SubjectCounts) -> None:
    """Write a subject's counts atomically."""
    write_atomically(path, (json.dumps(counts.model_dump(), indent=1) + "\n").encode())


def check_counts(
    subject_name: str,
    load: Callable[[], LoadedModel],
    cells: Iterable[Cell],
    pictures: Pictures,
    *,
    checkpoint: str | None = None,
) -> SubjectCounts:
    """Put the pictures of every cell through the subject's real processor, and compare with the plan.

    Of a checkpoint the prompt with the most vision tokens runs through the model's shapes too: its files may be of two
    models.

    Args:
        subject_name: goes into the result and into messages.
        load: gives the model's shapes and its processor; it may raise Unsupported.
        cells: of that subject; requests with the same pictures and text are prepared once. Of a cell of many requests,
            one is prepared for every count that the plan predicts: thousands of photographs would take minutes, and
            every request is counted again when it is measured.
        pictures: as a session has them.
        checkpoint: what the subject's weights are, unless they are random.

    Raises UserError for the first count that is not what the plan says, and for a model that does not take what its
    processor makes. A processor that is not to be had here is no
    error: the result says so, and so will the records.
    """
    made: dict[object, Counts] = {}
    most: tuple[str, ModelInputs] | None = None
    found: dict[str, Counts] = {}
    shapes: set[tuple[int | None, ...]] = set()
    try:
        loaded = load()
        for cell in cells:
            for place, request in enumerate(cell.requests):
                expected = request.expected
                shape = (expected.crops, expected.vision_tokens, expected.prompt_tokens)
                if cell.kind == "requests" and shape in shapes:
                    continue
                if cell.kind == "requests":
                    shapes.add(shape)
                name = cell.cell_id if len(cell.requests) == 1 else f"{cell.cell_id}, request {place}"
                look = (request.pictures, cell.options, request.text_tokens, pictures.question(request))
                if look not in made:
                    inputs = _prepared(loaded, pictures.opened(cell, request))
                    made[look] = inputs.counts
                    if most is None or inputs.counts.vision_tokens > most[1].counts.vision_tokens:
                        most = name, inputs
                found[name] = made[look]
                _compare(subject_name, name, expected, made[look])
        if checkpoint is not None and most is not None:
            check_pass(loaded, most[1], source=checkpoint, what=f"the picture of cell {most[0]} of {subject_name}")
    except Unsupported as reason:
        return SubjectCounts(subject=subject_name, cells={}, unsupported=str(reason))
    return SubjectCounts(subject=subject_name, cells=found)


def _prepared(loaded: LoadedModel, opened: OpenedRequest) -> ModelInputs:
    return loaded.prepare(opened.picture, opened.question, text_tokens=opened.text_tokens, options=opened.options)


def _compare(subject_name: str, cell_name: str, expected: Expected, real: Counts) -> None:
    for name in Expected.model_fields:
        planned, counted = getattr(expected, name), getattr(real, name)
        if planned is not None and planned != counted:
            raise UserError(
                f"cell {cell_name} of {subject_name}: the plan says {name} {planned}, and the model's own processor "
                f"makes {counted}, so that the cell would be labelled wrongly; leave the size out, and report the "
                "difference as a defect of the family"
            )
