"""No question may hold what marks an image in a prompt.

A processor looks for its marks in the finished prompt, so that it cannot tell a question's `<image>` (as data in the
format of LLaVA has it) from the place of the picture itself. It then wants a second picture, or counts tokens that
the picture does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.inputs.pictures import Pictures
from vlmeter.numbers.words import plural
from vlmeter.study.refusals import shown

if TYPE_CHECKING:
    from vlmeter.models.families.base import LoadedModel


def refuse_placeholders(subject_name: str, loaded: LoadedModel, cells: Iterable[Cell], pictures: Pictures) -> None:
    """Raise UserError if a question that the cells ask holds a mark of the subject's model; it names the record.

    cells: of that subject. pictures: as a session has them. Every request of a cell is looked at: of many, most are
    never prepared before they are measured.
    """
    found: dict[str | None, tuple[str, str, str]] = {}
    for request in (request for cell in cells for request in cell.requests):
        mark = _mark_in(pictures.question(request) or "", loaded.placeholders)
        if mark is None:
            continue
        if request.question is not None:
            found.setdefault(request.question, (f"question {shown(request.question)}", "the study's", mark))
        else:
            picture = pictures.of(request)[0]
            where = f"question_id {picture.question_id}, image_id {picture.image_id}"
            found.setdefault(picture.question_id, (where, "the dataset's", mark))
    if not found:
        return
    where, whose, mark = next(iter(found.values()))
    others = f" ({plural(len(found) - 1, 'other question')} of the study likewise)" if len(found) > 1 else ""
    raise UserError(
        f"{where}: the question holds {mark}, which marks an image in a prompt of {subject_name}; take it out of "
        f"{whose} questions, since the picture has its place already{others}"
    )


def _mark_in(question: str, marks: Sequence[str]) -> str | None:
    """The longest mark that a question holds: `[IMG_END]` rather than a part of it."""
    return max((mark for mark in marks if mark in question), key=len, default=None)
