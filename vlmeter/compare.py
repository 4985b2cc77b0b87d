"""Is B faster than A, or is it noise? Cells are paired by name, and every ratio comes with what it could be by chance.

The trap is to take the samples of one session for independent evidence. They share whatever the machine was like that
day: a hundred cells that are all 1 % slower may be one warm afternoon. So the error of a ratio has three parts:

- *sampling*: standard error of the two medians, by the exact bootstrap, made larger where samples in a row resemble
  each other;
- *wander*: how far one cell moves within a session, beyond its sampling error. The sentinel tells, since it is the same
  cell again and again;
- *offset*: how far a session as a whole lies from another one of the same thing. One session on each side cannot tell
  that from a real difference. It is then taken to be `OFFSET_PER_WANDER` times the wander; with several runs of a side
  it is measured.

Where conditions were disturbed, the scatter of the cells' ratios about their mean counts as error too: what moved one
cell and not its neighbour may have been the disturbance. Otherwise it is a finding.

All are variances of the logarithm, so that half as fast and twice as fast are equally far from the same. The more of
the error rests on few looks or few runs, the wider Student's t makes the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy import special

from vlmeter.baseline import CellSamples, Quantity, Run, SubjectRun
from vlmeter.errors import UserError
from vlmeter.stats import CONFIDENCE
from vlmeter.uncertainty import (
    Variance,
    add_variances,
    holm,
    median_inflation,
    median_standard_error,
    pooled_serial_correlation,
)
from vlmeter.wording import plural

Verdict = Literal["slower", "faster", "same", "cannot tell"]
Key = tuple[str, str, str]

#: Chance of a false verdict that is put up with, over all cells of a quantity together.
ALPHA = 1 - CONFIDENCE

#: A difference below this is none, unless told otherwise.
MARGIN_FRACTION = 0.01

#: ASSUME: what a session is believed to err by (standard deviation) before the sentinel is heard, and how many looks
#: that belief is worth. On a quiet H200 the first looks of two sessions, ten minutes apart, differed by 0.15 %
#: (docs/gallery), so 0.1 % each; three times that, since ten minutes are not a week.
PRIOR_NOISE_FRACTION, PRIOR_LOOKS = 0.003, 8

#: ASSUME: variance of the offset over that of the wander within a session. What moves a machine is slow, so that a
#: session sees a part of it, and the next session begins elsewhere.
OFFSET_PER_WANDER = 2.0

#: Runs that the sentinel's word on offsets is worth once a side was run more than once.
PRIOR_RUNS = 2

#: What a cell as a whole takes, best first: without marks, else with.
TOTALS: tuple[Key, ...] = (("plain", "total", "wall"), ("hooks", "total", "wall"))

#: What it takes of the device alone.
BUSY: tuple[Key, ...] = (("busy", "prefill", "busy"), ("busy", "decode_step", "busy"))

#: Scope of what is said of a subject as a whole.
ALL_CELLS = "all cells"

#: Names of the two quantities that are made of the first key that both sides have.
TOTAL_NAME, BUSY_NAME = "total", "busy"

#: Facts that may differ without a word of warning: they are what a comparison is for.
EXPECTED_FACTS = ("commit", "vlmeter")


@dataclass(frozen=True)
class Effect:
    """A ratio B/A with its 95 % interval, and what it amounts to.

    The two chances are corrected for the number of cells: of seeing so large a difference anywhere where there is none,
    and of seeing so small a one where it is as large as the margin. low and high are those of this ratio alone.
    """

    ratio: float
    low: float
    high: float
    verdict: Verdict
    chance_if_equal: float
    chance_if_unlike: float
    log_variance: float
    freedom: float

    def chance_beyond(self, limit_ratio: float) -> float:
        """Chance of seeing a ratio at least as large if the true one were the limit; not corrected."""
        return _tail(math.log(self.ratio) - math.log(limit_ratio), Variance(self.log_variance, self.freedom))


@dataclass(frozen=True)
class CellComparison:
    """One quantity of one cell on both sides."""

    cell_id: str
    experiment: str
    quantity: Key
    a_ms: float
    b_ms: float
    a_samples: int
    b_samples: int
    effect: Effect


@dataclass(frozen=True)
class Overall:
    """Geometric mean of the ratios of several cells; scope is "all cells" or an experiment."""

    scope: str
    cells: int
    effect: Effect


@dataclass(frozen=True)
class QuantityComparison:
    """One quantity, cell by cell and over all of them."""

    name: str
    subject_a: str
    subject_b: str
    cells: tuple[CellComparison, ...]
    overall: tuple[Overall, ...]


@dataclass(frozen=True)
class Lost:
    """A cell of which one side has no time."""

    subject_a: str
    subject_b: str
    cell_id: str
    side: Literal["A", "B", "both"]
    reason: str


@dataclass(frozen=True)
class SessionNoise:
    """How far a session errs as a whole (offset) and from cell to cell (wander), as variances of the logarithm.

    Without an offset of its own, the offset follows from the wander: one estimate, used twice.
    """

    wander: Variance
    offset: Variance | None
    words: str

    def parts(self, *, offset: float, wander: float) -> list[Variance]:
        """Variances of errors that so many offsets and so much wander make (factors of variances)."""
        if self.offset is None:
            return [self.wander.times(OFFSET_PER_WANDER * offset + wander)]
        return [self.offset.times(offset), self.wander.times(wander)]


@dataclass(frozen=True)
class Side:
    """One side: where it came from, and its runs."""

    label: str
    runs: Sequence[Run]


@dataclass(frozen=True)
class Comparison:
    """Everything that two sides say about each other."""

    a: str
    b: str
    pairs: tuple[tuple[str, str], ...]
    margin_fraction: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    lost: tuple[Lost, ...]
    quantities: tuple[QuantityComparison, ...]

    def of(self, name: str) -> list[QuantityComparison]:
        """The comparisons of a quantity, one per pair of subjects."""
        return [found for found in self.quantities if found.name == name]


@dataclass
class _Pair:
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
        return all(run.conditions == "quiet" for runs in self.runs for run in runs)

    @property
    def runs(self) -> tuple[list[SubjectRun], list[SubjectRun]]:
        return self.runs_a, self.runs_b


def compare(
    a: Side,
    b: Side,
    *,
    subjects: Sequence[tuple[str, str]] = (),
    margin_fraction: float = MARGIN_FRACTION,
    session_noise_fraction: float | None = None,
    allow_missing: bool = False,
) -> Comparison:
    """Compare B with A, cell by cell.

    Args:
        a: what is compared with; b: what is compared.
        subjects: pairs (subject of A, subject of B); without any, subjects of the same name.
        margin_fraction: difference below which two times count as the same.
        session_noise_fraction: standard deviation of a whole session, if it is known; else see the module's text.
        allow_missing: compare what both have, instead of refusing where one has more.

    Raises UserError where the two do not hold the same plan: other subjects, other cells, other counts.
    """
    pairs = _pair_up(a, b, subjects, allow_missing=allow_missing)
    warnings = [warning for pair in pairs for warning in _misgivings(pair)]
    notes, lost, quantities = list[str](), list[Lost](), list[QuantityComparison]()
    for pair in pairs:
        _check_sessions(pair)
        warnings += _align(pair, a, b, allow_missing=allow_missing)
        lost += _lost(pair)
        noise = _wander(pair)
        notes.append(f"{pair}: {noise.words}" if len(pairs) > 1 else noise.words)
        notes += _differences(pair)
        quantities += _quantities(pair, noise, margin_fraction, session_noise_fraction)
    if not any(found.name == TOTAL_NAME for found in quantities):
        raise UserError(f"{a.label} and {b.label} have no cell that was timed in both, so there is nothing to compare")
    warnings += _identical(quantities)
    return Comparison(
        a=a.label,
        b=b.label,
        pairs=tuple((pair.name_a, pair.name_b) for pair in pairs),
        margin_fraction=margin_fraction,
        warnings=tuple(dict.fromkeys(warnings)),
        notes=tuple(dict.fromkeys(notes)),
        lost=tuple(lost),
        quantities=tuple(quantities),
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is set beside what


def _pair_up(a: Side, b: Side, subjects: Sequence[tuple[str, str]], *, allow_missing: bool) -> list[_Pair]:
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
        _Pair(
            first,
            second,
            [run.by_name[first] for run in a.runs if first in run.by_name],
            [run.by_name[second] for run in b.runs if second in run.by_name],
        )
        for first, second in subjects
    ]


def _check_sessions(pair: _Pair) -> None:
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


def _align(pair: _Pair, a: Side, b: Side, *, allow_missing: bool) -> list[str]:
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


def _lost(pair: _Pair) -> list[Lost]:
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


def _misgivings(pair: _Pair) -> list[str]:
    """Say what is unlike or was amiss, as far as it makes a difference in time hard to blame on anything."""
    warnings = []
    for name in dict.fromkeys(name for runs in pair.runs for run in runs for name in run.facts):
        sides = [", ".join(sorted({run.facts.get(name, "not told") for run in runs})) for runs in pair.runs]
        if len(set(sides)) > 1 and name not in EXPECTED_FACTS and "not told" not in sides:
            said = name.replace("_", " ")
            warnings.append(f"{pair}: {said} differs: {sides[0]} in A, {sides[1]} in B")
    for letter, runs in zip("AB", pair.runs, strict=True):
        for run in runs:
            if run.conditions != "quiet":
                reasons = "; ".join(run.condition_reasons)
                warnings.append(f"{run.subject} in {letter}: conditions were {run.conditions} ({reasons})")
    return warnings


def _differences(pair: _Pair) -> list[str]:
    found = []
    for name in EXPECTED_FACTS:
        sides = [", ".join(sorted({run.facts[name] for run in runs if name in run.facts})) for runs in pair.runs]
        if all(sides):
            found.append(f"{name}: {sides[0]} in A, {sides[1]} in B")
    return found


def _identical(quantities: Sequence[QuantityComparison]) -> list[str]:
    cells = [cell for found in quantities if found.name == TOTAL_NAME for cell in found.cells]
    if cells and all(cell.effect.log_variance == 0 and cell.effect.ratio == 1 for cell in cells):
        return ["A and B hold the same samples: one measurement was compared with itself"]
    return []


# ---------------------------------------------------------------------------------------------------------------------
# How large an error is


def _wander(pair: _Pair) -> SessionNoise:
    """How far one cell moves within a session, from the sentinel's looks in all sessions of both sides."""
    squares, freedom, noises = 0.0, 0, list[float]()
    for looks in (looks for runs in pair.runs for run in runs for looks in run.looks):
        logs = np.log(np.asarray(looks.medians_ms))
        squares += float(np.sum((logs - logs.mean()) ** 2))
        freedom += len(logs) - 1
        noises += [looks.noise_fraction or 0.0] * (len(logs) - 1)
    prior = PRIOR_NOISE_FRACTION**2
    if not freedom:
        words = f"no sentinel tells how steady a session was; {100 * PRIOR_NOISE_FRACTION:g} % is assumed"
        return SessionNoise(Variance(prior, PRIOR_LOOKS), None, words)
    sampling = float(np.mean(np.square(noises)))
    beyond = max(0.0, squares / freedom - sampling)
    # Looks that scatter by themselves say little of what lies beneath: the less, the less they count.
    worth = freedom * (max(prior, beyond) / (max(prior, beyond) + sampling)) ** 2
    value = (PRIOR_LOOKS * prior + worth * beyond) / (PRIOR_LOOKS + worth)
    words = (
        f"one and the same cell, the sentinel, wandered by {100 * math.sqrt(beyond):.2g} % within a session "
        f"({freedom} steps from look to look, their sampling error taken off)"
    )
    return SessionNoise(Variance(value, PRIOR_LOOKS + worth), None, words)


@dataclass(frozen=True)
class _Level:
    """Mean over runs of the logarithm of a median, with its sampling variance; NaN where it is not known."""

    log_ms: float
    by_run: tuple[float, ...]
    sampling: Variance
    samples: int


def _level(found: Sequence[Quantity], correlation: float) -> _Level:
    logs, parts, samples = [], [], 0
    for quantity in found:
        values = np.asarray(quantity.samples_ms, dtype=np.float64)
        inflation = median_inflation(correlation, quantity.count)
        error = median_standard_error(np.log(values), count=quantity.count)
        logs.append(math.log(quantity.median_ms))
        parts.append(Variance(error**2 * inflation, max(1.0, quantity.count / inflation - 1)))
        samples += quantity.count
    total = add_variances(parts) if not any(math.isnan(p.value) for p in parts) else Variance(math.nan)
    return _Level(math.fsum(logs) / len(logs), tuple(logs), total.times(1 / len(found) ** 2), samples)


@dataclass(frozen=True)
class _Raw:
    """A cell's difference in logarithms, before it is judged."""

    cell: CellSamples
    key: Key
    a: _Level
    b: _Level
    identical: bool

    @property
    def is_uncertain(self) -> bool:
        return not (self.identical or math.isnan(self.a.sampling.value) or math.isnan(self.b.sampling.value))

    @property
    def difference(self) -> float:
        return self.b.log_ms - self.a.log_ms


def _quantities(
    pair: _Pair, noise: SessionNoise, margin_fraction: float, session_noise_fraction: float | None
) -> list[QuantityComparison]:
    """Compare every quantity that is in every run of both sides."""
    by_id = [[run.by_id for run in runs] for runs in pair.runs]
    cells = [by_id[0][0][cell_id] for cell_id in pair.cell_ids]
    keys = dict.fromkeys(quantity.key for cell in cells for quantity in cell.quantities)
    wanted: list[tuple[str, Sequence[Key]]] = [(TOTAL_NAME, TOTALS), (BUSY_NAME, BUSY)]
    wanted += [(" ".join(key), (key,)) for key in keys]
    indexed = [
        [{cell_id: {q.key: q for q in run[cell_id].quantities} for cell_id in pair.cell_ids} for run in runs]
        for runs in by_id
    ]
    correlations = {key: [_correlation(runs, key) for runs in indexed] for key in keys}
    result = []
    for name, choices in wanted:
        raws = [raw for cell in cells if (raw := _raw(cell, indexed, choices, correlations)) is not None]
        if raws:
            own = _offset(raws, noise, session_noise_fraction, pair=pair)
            result.append(_quantity(name, pair, raws, own, margin_fraction))
    return result


_Indexed = list[list[dict[str, dict[Key, Quantity]]]]


def _correlation(runs: Sequence[Mapping[str, Mapping[Key, Quantity]]], key: Key) -> float:
    found = [quantities[key] for run in runs for quantities in run.values() if key in quantities]
    told = [(q.serial_correlation, q.count) for q in found if q.serial_correlation is not None]
    return pooled_serial_correlation([value for value, _ in told], [count for _, count in told])


def _raw(
    cell: CellSamples, indexed: _Indexed, choices: Sequence[Key], correlations: Mapping[Key, Sequence[float]]
) -> _Raw | None:
    """Take the first choice that every run of both sides has."""
    for key in choices:
        sides = [[run[cell.cell_id].get(key) for run in runs] for runs in indexed]
        a, b = ([q for q in side if q is not None and q.median_ms > 0] for side in sides)
        if len(a) == len(sides[0]) and len(b) == len(sides[1]):
            identical = [q.samples_ms for q in a] == [q.samples_ms for q in b]
            level_a, level_b = (_level(found, correlations[key][place]) for place, found in enumerate((a, b)))
            return _Raw(cell, key, level_a, level_b, identical)
    return None


def _offset(
    raws: Sequence[_Raw], noise: SessionNoise, session_noise_fraction: float | None, *, pair: _Pair
) -> SessionNoise:
    """How far whole sessions lie apart: told, measured on several runs of a side, or concluded from the wander."""
    wander = noise.wander
    if all(raw.key[2] == "busy" for raw in raws):
        # ASSUME: the sentinel is timed on the wall, where all of the device's wander shows, and the host's besides
        wander = Variance(min(wander.value, PRIOR_NOISE_FRACTION**2), wander.freedom)
    if session_noise_fraction is not None:
        return SessionNoise(wander, Variance(session_noise_fraction**2), noise.words)
    freedom = len(pair.runs_a) + len(pair.runs_b) - 2
    if not freedom:
        return SessionNoise(wander, None, noise.words)
    squares = 0.0
    for side in ("a", "b"):
        by_run = np.array([getattr(raw, side).by_run for raw in raws])  # [cells, runs]
        squares += float(np.sum((by_run - by_run.mean(axis=1, keepdims=True)).mean(axis=0) ** 2))
    value = (PRIOR_RUNS * OFFSET_PER_WANDER * wander.value + squares) / (PRIOR_RUNS + freedom)
    return SessionNoise(wander, Variance(value, PRIOR_RUNS + freedom), noise.words)


def _quantity(
    name: str, pair: _Pair, raws: Sequence[_Raw], noise: SessionNoise, margin_fraction: float
) -> QuantityComparison:
    runs = 1 / len(pair.runs_a) + 1 / len(pair.runs_b)
    scatter = Variance(0.0) if pair.is_quiet else _scatter(raws)
    effects = []
    for raw in raws:
        parts = [raw.a.sampling, raw.b.sampling, scatter, *noise.parts(offset=runs, wander=runs)]
        variance = Variance(0.0) if raw.identical else add_variances(parts)
        effects.append(_effect(raw.difference, variance, margin_fraction))
    cells = [
        CellComparison(
            cell_id=raw.cell.cell_id,
            experiment=raw.cell.experiment,
            quantity=raw.key,
            a_ms=math.exp(raw.a.log_ms),
            b_ms=math.exp(raw.b.log_ms),
            a_samples=raw.a.samples,
            b_samples=raw.b.samples,
            effect=effect,
        )
        for raw, effect in zip(raws, _judge(effects), strict=True)
    ]
    experiments = sorted({raw.cell.experiment for raw in raws})
    scopes = {ALL_CELLS: list(raws)}
    if len(experiments) > 1:
        scopes |= {name: [raw for raw in raws if raw.cell.experiment == name] for name in experiments}
    overall = [
        Overall(scope, len(chosen), _judge([_overall(chosen, noise, pair, scatter, margin_fraction)])[0])
        for scope, chosen in scopes.items()
    ]
    return QuantityComparison(name, pair.name_a, pair.name_b, tuple(cells), tuple(overall))


def _scatter(raws: Sequence[_Raw]) -> Variance:
    """Variance of the ratios from cell to cell, beyond that of sampling."""
    known = [raw for raw in raws if raw.is_uncertain]
    if len(known) < 2:
        return Variance(0.0)
    differences = np.array([raw.difference for raw in known])
    sampling = math.fsum(raw.a.sampling.value + raw.b.sampling.value for raw in known) / len(known)
    return Variance(max(0.0, float(np.var(differences, ddof=1)) - sampling), len(known) - 1)


def _overall(
    raws: Sequence[_Raw], noise: SessionNoise, pair: _Pair, scatter: Variance, margin_fraction: float
) -> Effect:
    """Geometric mean over cells. The plan chose the cells, so that they differ among themselves is no error."""
    chosen = [raw for raw in raws if raw.identical or raw.is_uncertain] or raws
    difference = math.fsum(raw.difference for raw in chosen) / len(chosen)
    if all(raw.identical for raw in chosen):
        return _effect(difference, Variance(0.0), margin_fraction)
    share = 1 / len(chosen) ** 2
    sampling = [level.sampling.times(share) for raw in chosen for level in (raw.a, raw.b)]
    # Cells that are neighbours in time wander together: from one look to the next is about one independent piece.
    pieces = [
        sum(max(1, len(looks.medians_ms) - 1) for run in runs for looks in run.looks) or len(runs) for runs in pair.runs
    ]
    session = noise.parts(
        offset=sum(1 / len(runs) for runs in pair.runs), wander=sum(1 / min(count, len(chosen)) for count in pieces)
    )
    return _effect(difference, add_variances([*sampling, *session, scatter.times(1 / len(chosen))]), margin_fraction)


# ---------------------------------------------------------------------------------------------------------------------
# Verdicts


def _tail(difference: float, variance: Variance) -> float:
    """Chance that an error alone is at least so large."""
    if math.isnan(variance.value):
        return math.nan
    if variance.value == 0:
        return 0.0 if difference > 0 else 1.0
    score = difference / math.sqrt(variance.value)
    return float(special.ndtr(-score) if math.isinf(variance.freedom) else special.stdtr(variance.freedom, -score))


def _both_sides(chance: float) -> float:
    """A two-sided chance of a one-sided one; NaN stays."""
    return chance if math.isnan(chance) else min(1.0, 2 * chance)


def _effect(difference: float, variance: Variance, margin_fraction: float) -> Effect:
    """An effect that is not judged yet: both chances are its own."""
    reach = math.nan
    if not math.isnan(variance.value):
        known = math.isinf(variance.freedom)
        factor = special.ndtri(1 - ALPHA / 2) if known else special.stdtrit(variance.freedom, 1 - ALPHA / 2)
        reach = float(factor) * math.sqrt(variance.value)
    return Effect(
        ratio=math.exp(difference),
        low=math.exp(difference - reach),
        high=math.exp(difference + reach),
        verdict="cannot tell",
        chance_if_equal=_both_sides(_tail(abs(difference), variance)),
        chance_if_unlike=_tail(math.log1p(margin_fraction) - abs(difference), variance),
        log_variance=variance.value,
        freedom=variance.freedom,
    )


def _judge(effects: Sequence[Effect]) -> list[Effect]:
    """Give verdicts, with both chances corrected for the number of effects.

    What is shown to be within the margin is the same, even if it is shown to differ by a hair as well.
    """
    equal = holm([effect.chance_if_equal for effect in effects])
    unlike = holm([effect.chance_if_unlike for effect in effects])
    judged = []
    for effect, if_equal, if_unlike in zip(effects, equal, unlike, strict=True):
        verdict: Verdict = "cannot tell"
        if if_unlike <= ALPHA:
            verdict = "same"
        elif if_equal <= ALPHA:
            verdict = "slower" if effect.ratio > 1 else "faster"
        judged.append(replace(effect, verdict=verdict, chance_if_equal=if_equal, chance_if_unlike=if_unlike))
    return judged


# ---------------------------------------------------------------------------------------------------------------------
# Limits


@dataclass(frozen=True)
class Limit:
    """What must not be: B slower than A by more than a fraction, as a whole or in any cell."""

    any_cell: bool
    fraction: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read `slower:2%` or `any-slower:5%`; raises UserError on anything else."""
        kind, _, amount = text.partition(":")
        try:
            fraction = float(amount.removesuffix("%")) / 100
        except ValueError:
            fraction = math.nan
        if kind not in ("slower", "any-slower") or not amount.endswith("%") or not 0 <= fraction < math.inf:
            raise UserError(
                f"--fail-on: {text!r} is not known; legal: slower:N% (as a whole) and any-slower:N% (in any cell), "
                "with N from 0, such as slower:2%"
            )
        return cls(kind == "any-slower", fraction)

    def __str__(self) -> str:
        return f"{'any-slower' if self.any_cell else 'slower'}:{100 * self.fraction:g}%"


def beyond(comparison: Comparison, limit: Limit) -> list[str]:
    """Say what is beyond a limit with confidence (95 %, corrected for how many were looked at); empty if nothing is.

    A cell that ran out of memory in B only, or could not be run there, is beyond any limit on cells.
    """
    named: list[tuple[str, Effect]] = []
    for total in comparison.of(TOTAL_NAME):
        who = f"{total.subject_b} " if len(comparison.pairs) > 1 else ""
        if limit.any_cell:
            named += [(f"{who}{cell.cell_id}", cell.effect) for cell in total.cells]
        else:
            named.append((total.subject_b, total.overall[0].effect))
    chances = holm([effect.chance_beyond(1 + limit.fraction) for _, effect in named])
    found = [
        f"{name} is slower by {100 * (effect.ratio - 1):.2f} %, beyond {limit}"
        for (name, effect), chance in zip(named, chances, strict=True)
        if chance <= ALPHA / 2
    ]
    if limit.any_cell:
        found += [
            f"{lost.cell_id} has no time in B only: {lost.reason}" for lost in comparison.lost if lost.side == "B"
        ]
    return found
