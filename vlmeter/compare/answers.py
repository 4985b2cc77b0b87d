"""The answers of both sides, set beside each other as they are: no price is computed here a second time."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmeter.analysis.answer_files import answers_beside, answers_from_data
from vlmeter.analysis.answers import Answer, Answers
from vlmeter.analysis.reading import Unknown
from vlmeter.common.errors import UserError
from vlmeter.compare.baseline import read_baseline
from vlmeter.numbers.words import with_interval

#: Answers of a side by subject, or why there are none.
SideAnswers = Mapping[str, Answers] | Unknown

#: Shown though one side alone was asked: what one more of something costs is what two sides are compared for.
_ALWAYS = frozenset({"crop", "vision_token", "text_token", "output_token"})


@dataclass(frozen=True)
class AnswerPair:
    """One answer of two subjects; None: that side was not asked."""

    subject_a: str
    subject_b: str
    a: Answer | None
    b: Answer | None

    @property
    def told(self) -> Answer:
        """The answer of the side that has one, for what both have in common."""
        told = self.a or self.b
        assert told is not None  # a pair is made of one answer at least
        return told


def side_answers(results: Sequence[Path]) -> SideAnswers:
    """Read the answers of a side: of a results folder, a table, or a baseline that holds them.

    A side of several results has answers of each, and none of all.
    """
    if len(results) > 1:
        return Unknown(f"it is {len(results)} results, each with answers of its own")
    (path,) = results
    try:
        if path.name.endswith((".json", ".json.gz")):
            kept = read_baseline(path).answers
            reason = "its baseline holds none; an older vlmeter wrote it, or it is of several results"
            return Unknown(reason) if kept is None else answers_from_data(kept)
        return answers_beside(path / "table.parquet" if path.is_dir() else path)
    except (UserError, ValueError) as error:
        return Unknown(str(error))


def pair_answers(
    a: SideAnswers, b: SideAnswers, subjects: Sequence[tuple[str, str]], *, cells: Collection[str] | None = None
) -> list[AnswerPair]:
    """Set the answers of each pair of subjects beside each other: what both were asked, and every price.

    cells: leave out what other cells tell; None: of all cells.
    """
    if isinstance(a, Unknown) or isinstance(b, Unknown):
        return []
    found = []
    for name_a, name_b in subjects:
        own, other = a.get(name_a, {}), b.get(name_b, {})
        for name in dict.fromkeys((*own, *other)):
            pair = AnswerPair(name_a, name_b, own.get(name), other.get(name))
            inside = cells is None or set(pair.told.cells) <= set(cells)
            if inside and ((pair.a and pair.b) or name in _ALWAYS):
                found.append(pair)
    return found


def answer_in_words(answer: Answer | None) -> str:
    """Say an answer with its interval; that it is not known and why; or that nobody asked."""
    if answer is None:
        return "not measured"
    predicted = ", predicted" if answer.source == "predicted" else ""
    if isinstance(answer.found, Unknown):
        return answer.said()
    modes = f"; {answer.modes}" if answer.modes else ""
    return f"{with_interval(answer.found, answer.unit)}{predicted}{modes}"
