"""Which cell is set beside which, and what speaks against it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from vlmeter.common.errors import UserError
from vlmeter.compare.baseline import CellSamples, SubjectRun
from vlmeter.compare.comparison import EXPECTED_FACTS, TOTAL_NAME, Lost, QuantityComparison, Side
from vlmeter.numbers.words import plural


@dataclass
class Pair:
    """A subject of A and one of B, with the runs of both and the cells that they share."""

    name_a: str
    name_b: str
    runs_a: list[SubjectRun]
    runs_b: list[SubjectRun]
    cell_ids: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return self.name_a if self.name_a == self.name_b else f"{self.name_a} and {self.name_b}"

    @property
    def is_quiet(self) -> bool:
        """Whether every run of both sides was measured under quiet conditions."""
        return all(run.conditions == "quiet" for runs in self.runs for run in runs)

    @property
    def one_is_served(self) -> bool:
        """Whether one side is a server and the other is none."""
        return len({run.is_served for runs in self.runs for run in runs}) > 1

    @property
    def runs(self) -> tuple[list[SubjectRun], list[SubjectRun]]:
        """The runs of A and of B."""
        return self.runs_a, self.runs_b

    @property
    def freedom(self) -> int:
        """How often a run can be set beside another one of its own side; 0 with one run a side."""
        return sum(max(0, len(runs) - 1) for runs in self.runs)


def pair_up(a: Side, b: Side, subjects: Sequence[tuple[str, str]], *, allow_missing: bool) -> list[Pair]:
    """Set subjects of the two sides beside each other; raises UserError where one has no counterpart."""
    names_a, names_b = _names(a), _names(b)
    for pair in subjects:
        for name, letter, side, names in zip(pair, "AB", (a, b), (names_a, names_b), strict=True):
            if name not in names:
                raise UserError(
                    f"--subjects: {letter} ({side.label}) has no subject {name!r}; it has {', '.join(names)}"
                )
    if not subjects:
        common = [name for name in names_a if name in names_b]
        only = [f"{name} (A only)" for name in names_a if name not in common]
        only += [f"{name} (B only)" for name in names_b if name not in common]
        if not common:
            raise UserError(
                f"A has the subjects {', '.join(names_a)} and B has {', '.join(names_b)}; pair them with --subjects "
                f"{names_a[0]}:{names_b[0]}"
            )
        if only and not allow_missing:
            raise UserError(
                f"the two do not have the same subjects: {', '.join(only)}; --allow-missing compares the others, "
                "--subjects a:b pairs two names"
            )
        subjects = [(name, name) for name in common]
    return [
        Pair(
            first,
            second,
            [run.by_name[first] for run in a.runs if first in run.by_name],
            [run.by_name[second] for run in b.runs if second in run.by_name],
        )
        for first, second in subjects
    ]


def of_experiments(side: Side, names: Sequence[str]) -> Side:
    """Keep the cells of some experiments; raises UserError for one of which no cell is there."""
    cells = [cell for run in side.runs for subject in run.subjects for cell in subject.cells]
    known = sorted({cell.experiment for cell in cells})
    for name in names:
        if name not in known:
            raise UserError(f"--experiment: {side.label} has no cell of {name!r}; legal: {', '.join(known)}")
    runs = []
    for run in side.runs:
        kept = [
            subject.model_copy(update={"cells": own})
            for subject in run.subjects
            if (own := [cell for cell in subject.cells if cell.experiment in names])
        ]
        runs += [run.model_copy(update={"subjects": kept})] if kept else []
    return replace(side, runs=runs)


def check_sessions(pair: Pair) -> None:
    """Refuse one run given twice: it would tell of an offset of zero."""
    for letter, runs in zip("AB", pair.runs, strict=True):
        seen: set[str] = set()
        for run in runs:
            own = {cell.session_id for cell in run.cells}
            if again := sorted(own & seen):
                raise UserError(
                    f"two runs of {run.subject} in {letter} hold the same session, {again[0]}: give each run once"
                )
            seen |= own


def _names(side: Side) -> list[str]:
    return sorted({subject.subject for run in side.runs for subject in run.subjects})


#: Cell ids that an error names before it only counts.
_NAMED = 5


def _named(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def align_cells(pair: Pair, a: Side, b: Side, *, allow_missing: bool) -> list[str]:
    """Find the cells that every run has, and refuse those of one name that are not one thing."""
    everywhere = [set(run.by_id) for runs in pair.runs for run in runs]
    common = set.intersection(*everywhere)
    only_a = sorted(set().union(*(set(run.by_id) for run in pair.runs_a)) - common)
    only_b = sorted(set().union(*(set(run.by_id) for run in pair.runs_b)) - common)
    told = []
    for letter, label, only, other in (("A", a.label, only_a, "B"), ("B", b.label, only_b, "A")):
        lacking = [cell for cell in only if not allow_missing]
        if lacking:
            raise UserError(
                f"the plans differ: {plural(len(lacking), 'cell')} of {pair} in {letter} ({label}) "
                f"{'is' if len(lacking) == 1 else 'are'} not in every run of {other}: {_named(lacking)}; "
                "--allow-missing compares the cells that both have"
            )
        if only:
            told.append(f"{plural(len(only), 'cell')} of {letter} left out, not in every run: {_named(only)}")
    first = pair.runs_a[0].by_id
    for run in (*pair.runs_a[1:], *pair.runs_b):
        for cell_id, other_cell in run.by_id.items():
            if cell_id in common:
                _check_counts(first[cell_id], other_cell)
    pair.cell_ids = [cell for cell in first if cell in common]
    if not common:
        raise UserError(f"{a.label} and {b.label} have no cell of {pair} in common")
    return told


def _check_counts(cell: CellSamples, other: CellSamples) -> None:
    if cell.status != "ok" or other.status != "ok":
        return
    for name in sorted(set(cell.counts) & set(other.counts)):
        if cell.counts[name] != other.counts[name]:
            raise UserError(
                f"the plans differ: cell {cell.cell_id} has {name} {cell.counts[name]} in A and {other.counts[name]} "
                "in another run, so its times are not of the same work"
            )


def lost_cells(pair: Pair) -> list[Lost]:
    """List the cells of which one side has no time, with the reason."""
    found = []
    by_id = [[run.by_id for run in runs] for runs in pair.runs]
    for cell_id in pair.cell_ids:
        reasons = {}
        for letter, runs in zip("AB", by_id, strict=True):
            for run in runs:
                cell = run[cell_id]
                if cell.status != "ok":
                    reasons[letter] = cell.reason or cell.status
        if reasons:
            side: Literal["A", "B", "both"] = "both" if len(reasons) == 2 else "A" if "A" in reasons else "B"
            found.append(Lost(pair.name_a, pair.name_b, cell_id, side, next(iter(reasons.values()))))
    return found


def misgivings_of(pair: Pair) -> list[str]:
    """Say what is unlike or was amiss, as far as it makes a difference in time hard to blame on anything."""
    warnings = []
    for name in dict.fromkeys(name for runs in pair.runs for run in runs for name in run.facts):
        sides = [", ".join(sorted({run.facts.get(name, "not told") for run in runs})) for runs in pair.runs]
        if len(set(sides)) > 1 and name not in EXPECTED_FACTS and "not told" not in sides:
            said = name.replace("_", " ")
            warnings.append(f"{pair}: {said} differs: {sides[0]} in A, {sides[1]} in B")
    if pair.one_is_served:
        warnings.append(
            f"{pair}: one of them is a server, whose total holds its own work on the picture; that of the other begins "
            f"behind its preprocessing. What is not the same thing in the two is left out: inputs, and launching"
        )
    for letter, runs in zip("AB", pair.runs, strict=True):
        for run in runs:
            if run.conditions != "quiet":
                reasons = "; ".join(run.condition_reasons)
                warnings.append(f"{run.subject} in {letter}: conditions were {run.conditions} ({reasons})")
    return warnings


def differing_facts(pair: Pair) -> list[str]:
    """Say which facts differ between the two sides."""
    found = []
    for name in EXPECTED_FACTS:
        sides = [", ".join(sorted({run.facts[name] for run in runs if name in run.facts})) for runs in pair.runs]
        if all(sides) and sides[0] != sides[1]:
            found.append(f"{name}: {sides[0]} in A, {sides[1]} in B")
    return found


def identical_results(quantities: Sequence[QuantityComparison]) -> list[str]:
    """Warn where both sides hold the very same samples."""
    cells = [cell for found in quantities if found.name == TOTAL_NAME for cell in found.cells]
    if cells and all(cell.effect.log_variance == 0 and cell.effect.ratio == 1 for cell in cells):
        return ["A and B hold the same samples: one measurement was compared with itself"]
    return []
