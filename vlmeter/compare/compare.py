"""Is B faster than A, or is it noise? Cells are paired by name, and every ratio comes with what it could be by chance.

The trap is to take the samples of one session for independent evidence. They share whatever the machine was like that
day: a hundred cells that are all 1 % slower may be one warm afternoon. So the error of a ratio has three parts:

- *sampling*: standard error of the two medians, by the exact bootstrap, made larger where samples in a row resemble
  each other;
- *wander*: how far one cell moves within a session, beyond its sampling error. The sentinel tells, since it is the same
  cell again and again;
- *offset*: how far a session as a whole lies from another one of the same thing.

Runs measure the offset, whatever it is: each run's mean over cells is one observation, and everything that moved it is
in how the runs of a side differ. Between two sides of several runs each stands Welch's t (Biometrika 34, 1947), which
does not want both to scatter alike and, with few runs, errs on the safe side: of three runs a side it calls 3.5 % of
equal pairs different where 5 % are allowed. A side of one run is taken to scatter like the other one. One session on
each side cannot tell an offset from a real difference. It is then *assumed* to be `OFFSET_PER_WANDER` times the wander
(as variances), and the verdict says so.

Where conditions were disturbed, the scatter of the cells' ratios about their mean counts as error too: what moved one
cell and not its neighbour may have been the disturbance. Otherwise it is a finding.

All are variances of the logarithm, so that half as fast and twice as fast are equally far from the same. The more of
the error rests on few looks or few runs, the wider Student's t makes the interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vlmeter.analysis.reading import Unknown
from vlmeter.common.errors import UserError
from vlmeter.compare.answers import pair_answers
from vlmeter.compare.baseline import CellSamples, Repeats, repeats_of
from vlmeter.compare.comparison import (
    ALL_CELLS,
    MARGIN_FRACTION,
    NOT_ASKED,
    PREFILL_NAME,
    TOTAL_NAME,
    CellComparison,
    Comparison,
    Effect,
    Lost,
    Overall,
    QuantityComparison,
    SessionNoise,
    Side,
    effect_of,
    judge_effects,
)
from vlmeter.compare.pairing import (
    Pair,
    align_cells,
    check_sessions,
    differing_facts,
    identical_results,
    lost_cells,
    misgivings_of,
    of_experiments,
    pair_up,
)
from vlmeter.numbers.intervals import (
    Array,
    Variance,
    add_variances,
    median_standard_error,
    pooled_serial_correlation,
)
from vlmeter.numbers.medians import median_inflation
from vlmeter.numbers.modes import Modes, two_modes
from vlmeter.numbers.words import plural
from vlmeter.table.kinds import PREFILL
from vlmeter.table.quantities import DEVICE_ALONE, PHASES, WHOLE_CELL, RowKey, is_another_at_a_server, is_busy

#: ASSUME: what a session is believed to err by (standard deviation) before the sentinel is heard, and how many looks
#: that belief is worth. On a quiet H200 the first looks of two sessions, ten minutes apart, differed by 0.15 %
#: (docs/gallery), so 0.1 % each; three times that, since ten minutes are not a week.
PRIOR_NOISE_FRACTION, PRIOR_LOOKS = 0.003, 8

#: Where the phases of a prefill are, and what their sum goes by: it has no rows of its own.
_PHASES = tuple(phase.rows[PREFILL] for phase in PHASES)
_PREFILL = _PHASES[0]._replace(phase=PREFILL_NAME)


def compare(
    a: Side,
    b: Side,
    *,
    subjects: Sequence[tuple[str, str]] = (),
    margin_fraction: float = MARGIN_FRACTION,
    session_noise_fraction: float | None = None,
    allow_missing: bool = False,
    experiments: Sequence[str] = (),
) -> Comparison:
    """Compare B with A, cell by cell.

    Args:
        a: what is compared with; b: what is compared.
        subjects: pairs (subject of A, subject of B); without any, subjects of the same name.
        margin_fraction: difference below which two times count as the same.
        session_noise_fraction: standard deviation of a whole session, if it is known; else see the module's text.
        allow_missing: compare what both have, instead of refusing where one has more.
        experiments: names of those whose cells are compared; without any, all.

    Raises UserError where the two do not hold the same plan: other subjects, other cells, other counts.
    """
    if experiments:
        a, b = (of_experiments(side, experiments) for side in (a, b))
    pairs = pair_up(a, b, subjects, allow_missing=allow_missing)
    names = tuple((pair.name_a, pair.name_b) for pair in pairs)
    warnings = [warning for pair in pairs for warning in misgivings_of(pair)]
    notes, lost, quantities, assumed = list[str](), list[Lost](), list[QuantityComparison](), list[float | None]()
    for pair in pairs:
        check_sessions(pair)
        warnings += align_cells(pair, a, b, allow_missing=allow_missing)
        lost += lost_cells(pair)
        noise = wander_of(pair)
        said = [noise.words, *offset_words(pair, noise, session_noise_fraction)]
        notes += [f"{pair}: {words}" if len(pairs) > 1 else words for words in said]
        notes += differing_facts(pair)
        own = _quantities(pair, noise, margin_fraction, session_noise_fraction)
        told = session_noise_fraction is not None or pair.freedom > 0 or bool(identical_results(own))
        assumed.append(None if told else noise.assumed_offset_fraction)
        quantities += own
        warnings += modes_behind(own)
    if not any(found.name == TOTAL_NAME for found in quantities):
        raise UserError(f"{a.label} and {b.label} have no cell that was timed in both, so there is nothing to compare")
    warnings += identical_results(quantities)
    for letter, side in (("A", a), ("B", b)):
        if isinstance(side.answers, Unknown) and side.answers is not NOT_ASKED:
            notes.append(f"no answers are shown, since {letter} has none: {side.answers.reason}")
    return Comparison(
        a=a.label,
        b=b.label,
        pairs=names,
        assumed=tuple(assumed),
        margin_fraction=margin_fraction,
        warnings=tuple(dict.fromkeys(warnings)),
        notes=tuple(dict.fromkeys(notes)),
        lost=tuple(lost),
        quantities=tuple(quantities),
        answers=tuple(
            pair_answers(
                a.answers, b.answers, names, cells={cell for p in pairs for cell in p.cell_ids} if experiments else None
            )
        ),
    )


def offset_words(pair: Pair, noise: SessionNoise, session_noise_fraction: float | None) -> list[str]:
    """Say what is known of how far whole sessions lie apart, and what is not."""
    counts = [len(runs) for runs in pair.runs]
    if session_noise_fraction is not None:
        return [f"whole sessions err by {100 * session_noise_fraction:g} %, as told"]
    if not pair.freedom:
        return [
            "one run a side cannot tell how far two sessions of the same thing lie apart: that a whole session errs by "
            f"{100 * noise.assumed_offset_fraction:.2g} % (standard deviation) is assumed; `runs: 3` in the study "
            "measures it"
        ]
    if min(counts) < 2:
        letter, other = ("A", "B") if counts[0] < 2 else ("B", "A")
        return [f"{letter} has one run, which is taken to err as the {max(counts)} runs of {other} do"]
    return []


def wander_of(pair: Pair) -> SessionNoise:
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
        return SessionNoise(Variance(prior, PRIOR_LOOKS), words)
    sampling = float(np.mean(np.square(noises)))
    beyond = max(0.0, squares / freedom - sampling)
    # Looks that scatter by themselves say little of what lies beneath: the less, the less they count.
    worth = freedom * (max(prior, beyond) / (max(prior, beyond) + sampling)) ** 2
    value = (PRIOR_LOOKS * prior + worth * beyond) / (PRIOR_LOOKS + worth)
    words = (
        f"one and the same cell, the sentinel, wandered by {100 * math.sqrt(beyond):.2g} % within a session "
        f"({freedom} steps from look to look, their sampling error taken off)"
    )
    return SessionNoise(Variance(value, PRIOR_LOOKS + worth), words)


@dataclass(frozen=True)
class _Level:
    """Mean over runs of the logarithm of a median, with its sampling variance; NaN where it is not known."""

    log_ms: float
    by_run: tuple[float, ...]
    sampling: Variance
    samples: int


def _level(found: Sequence[Repeats], correlation: float) -> _Level:
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
    key: RowKey
    a: _Level
    b: _Level
    identical: bool
    modes: tuple[Modes | None, Modes | None]

    @property
    def is_uncertain(self) -> bool:
        return not (self.identical or math.isnan(self.a.sampling.value) or math.isnan(self.b.sampling.value))

    @property
    def difference(self) -> float:
        return self.b.log_ms - self.a.log_ms


def _quantities(
    pair: Pair, noise: SessionNoise, margin_fraction: float, session_noise_fraction: float | None
) -> list[QuantityComparison]:
    """Compare every quantity that is in every run of both sides."""
    by_id = [[run.by_id for run in runs] for runs in pair.runs]
    cells = [by_id[0][0][cell_id] for cell_id in pair.cell_ids]
    keys = dict.fromkeys(quantity.key for cell in cells for quantity in cell.quantities)
    if pair.one_is_served:
        keys = {key: None for key in keys if not is_another_at_a_server(key)}
    wanted: list[tuple[str, Sequence[RowKey]]] = [(one.name, one.keys) for one in (WHOLE_CELL, DEVICE_ALONE)]
    wanted += [(PREFILL_NAME, (_PREFILL,)), *((" ".join(key), (key,)) for key in keys)]
    indexed = [
        [{cell_id: _by_key(run[cell_id].quantities) for cell_id in pair.cell_ids} for run in runs] for runs in by_id
    ]
    correlations = {key: [_correlation(runs, key) for runs in indexed] for key in (*keys, _PREFILL)}
    result = []
    for name, choices in wanted:
        raws = [raw for cell in cells if (raw := _raw(cell, indexed, choices, correlations)) is not None]
        if raws:
            own = _offset(raws, noise, session_noise_fraction, pair=pair)
            result.append(_quantity(name, pair, raws, own, margin_fraction))
    return result


_Indexed = list[list[dict[str, dict[RowKey, Repeats]]]]


def _by_key(quantities: Sequence[Repeats]) -> dict[RowKey, Repeats]:
    """Quantities of a cell by key, and the whole prefill round by round, where all samples of its phases were kept."""
    found = {quantity.key: quantity for quantity in quantities}
    parts = [found[key] for key in _PHASES if key in found]
    if (
        len(parts) == len(_PHASES)
        and len({part.count for part in parts}) == 1
        and len(parts[0].samples_ms) == parts[0].count
    ):
        found[_PREFILL] = repeats_of(_PREFILL, np.sum([part.samples_ms for part in parts], axis=0))
    return found


def _correlation(runs: Sequence[Mapping[str, Mapping[RowKey, Repeats]]], key: RowKey) -> float:
    found = [quantities[key] for run in runs for quantities in run.values() if key in quantities]
    told = [(q.serial_correlation, q.count) for q in found if q.serial_correlation is not None]
    return pooled_serial_correlation([value for value, _ in told], [count for _, count in told])


def _raw(
    cell: CellSamples, indexed: _Indexed, choices: Sequence[RowKey], correlations: Mapping[RowKey, Sequence[float]]
) -> _Raw | None:
    """Take the first choice that every run of both sides has."""
    for key in choices:
        sides = [[run[cell.cell_id].get(key) for run in runs] for runs in indexed]
        a, b = ([q for q in side if q is not None and q.median_ms > 0] for side in sides)
        if len(a) == len(sides[0]) and len(b) == len(sides[1]):
            identical = [q.samples_ms for q in a] == [q.samples_ms for q in b]
            level_a, level_b = (_level(found, correlations[key][place]) for place, found in enumerate((a, b)))
            return _Raw(cell, key, level_a, level_b, identical, (_modes(a), _modes(b)))
    return None


def _modes(found: Sequence[Repeats]) -> Modes | None:
    """The two modes of a side's runs, of several those farthest apart; None where no run has two."""
    known = [modes for one in found if (modes := two_modes(np.asarray(one.samples_ms, dtype=np.float64))) is not None]
    return max(known, key=lambda one: one.ratio, default=None)


def modes_behind(found: Sequence[QuantityComparison]) -> list[str]:
    """Say on which side whole cells have two modes, and both of one of them: their medians are the time of no run."""
    said = []
    for one in (one for one in found if one.name == TOTAL_NAME):
        for letter, subject, side in (("A", one.subject_a, "a_modes"), ("B", one.subject_b, "b_modes")):
            mixed = {cell.cell_id: own for cell in one.cells if (own := getattr(cell, side)) is not None}
            if mixed:
                widest = max(mixed, key=lambda cell: mixed[cell].ratio)
                verb, start = ("has", "") if len(mixed) == 1 else ("have", "such as ")
                said.append(
                    f"{subject}: in {letter} {len(mixed)} of {plural(len(one.cells), 'cell')} {verb} two modes "
                    f"({start}{widest}: {mixed[widest].said()}), so that a median is the time of no run"
                )
    return said


def _offset(
    raws: Sequence[_Raw], noise: SessionNoise, session_noise_fraction: float | None, *, pair: Pair
) -> SessionNoise:
    """How far whole sessions lie apart: told, measured on several runs of a side, or concluded from the wander."""
    wander = noise.wander
    if all(is_busy(raw.key) for raw in raws):
        # ASSUME: the sentinel is timed on the wall, where all of the device's wander shows, and the host's besides
        wander = Variance(min(wander.value, PRIOR_NOISE_FRACTION**2), wander.freedom)
    if session_noise_fraction is not None:
        told = Variance(session_noise_fraction**2)
        return replace(noise, wander=wander, offsets=tuple(told.times(1 / len(runs)) for runs in pair.runs))
    if not pair.freedom:
        return replace(noise, wander=wander)
    by_run = [np.array([getattr(raw, side).by_run for raw in raws]) for side in ("a", "b")]  # [cells, runs] each
    offsets = run_variances(*(of_side.mean(axis=0) for of_side in by_run))
    return replace(noise, wander=_larger(wander, _apart(by_run, raws)), offsets=offsets, measured=True)


def run_variances(a: Array, b: Array) -> tuple[Variance, ...]:
    """Variances of the means over runs of two sides; one that has a single run is taken to scatter like the other."""
    known = [Variance(float(np.var(of_side, ddof=1)), len(of_side) - 1) for of_side in (a, b) if len(of_side) > 1]
    if len(known) == 2:
        return known[0].times(1 / len(a)), known[1].times(1 / len(b))
    return (known[0].times(1 / len(a) + 1 / len(b)),)


def _apart(by_run: Sequence[Array], raws: Sequence[_Raw]) -> Variance:
    """How far cells move apart from run to run, beyond what all of a run share and beyond their sampling error."""
    squares, freedom = 0.0, 0
    for logs in by_run:
        logs = logs - logs.mean(axis=1, keepdims=True)
        squares += float(np.sum((logs - logs.mean(axis=0)) ** 2))
        freedom += (logs.shape[0] - 1) * (logs.shape[1] - 1)
    known = [raw for raw in raws if raw.is_uncertain]
    if not freedom or not known:
        return Variance(0.0)
    runs = [logs.shape[1] for logs in by_run]
    sampling = [
        math.fsum(getattr(raw, side).sampling.value for raw in known) / len(known) * count
        for side, count in zip(("a", "b"), runs, strict=True)
    ]  # of one run
    weights = [max(count - 1, 0) for count in runs]
    return Variance(max(0.0, squares / freedom - float(np.average(sampling, weights=weights))), freedom)


def _larger(one: Variance, other: Variance) -> Variance:
    return other if other.value > one.value else one


def _quantity(
    name: str, pair: Pair, raws: Sequence[_Raw], noise: SessionNoise, margin_fraction: float
) -> QuantityComparison:
    runs = 1 / len(pair.runs_a) + 1 / len(pair.runs_b)
    scatter = Variance(0.0) if pair.is_quiet else _scatter(raws)
    effects = []
    for raw in raws:
        parts = [raw.a.sampling, raw.b.sampling, scatter, *noise.parts(sessions=runs, wander=runs)]
        variance = Variance(0.0) if raw.identical else add_variances(parts)
        effects.append(effect_of(raw.difference, variance, margin_fraction))
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
            a_modes=raw.modes[0],
            b_modes=raw.modes[1],
        )
        for raw, effect in zip(raws, judge_effects(effects), strict=True)
    ]
    experiments = sorted({raw.cell.experiment for raw in raws})
    scopes = {ALL_CELLS: list(raws)}
    if len(experiments) > 1:
        scopes |= {name: [raw for raw in raws if raw.cell.experiment == name] for name in experiments}
    overall = [
        Overall(scope, len(chosen), judge_effects([_overall(chosen, noise, pair, scatter, margin_fraction)])[0])
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
    raws: Sequence[_Raw], noise: SessionNoise, pair: Pair, scatter: Variance, margin_fraction: float
) -> Effect:
    """Geometric mean over cells. The plan chose the cells, so that they differ among themselves is no error."""
    chosen = [raw for raw in raws if raw.identical or raw.is_uncertain] or raws
    difference = math.fsum(raw.difference for raw in chosen) / len(chosen)
    if all(raw.identical for raw in chosen):
        return effect_of(difference, Variance(0.0), margin_fraction)
    scatter = scatter.times(1 / len(chosen))
    if noise.measured:
        by_run = [np.array([getattr(raw, side).by_run for raw in chosen]).mean(axis=0) for side in ("a", "b")]
        return effect_of(difference, add_variances([*run_variances(*by_run), scatter]), margin_fraction)
    share = 1 / len(chosen) ** 2
    sampling = [level.sampling.times(share) for raw in chosen for level in (raw.a, raw.b)]
    # Cells that are neighbours in time wander together: from one look to the next is about one independent piece.
    pieces = [
        sum(max(1, len(looks.medians_ms) - 1) for run in runs for looks in run.looks) or len(runs) for runs in pair.runs
    ]
    session = noise.parts(
        sessions=sum(1 / len(runs) for runs in pair.runs), wander=sum(1 / min(count, len(chosen)) for count in pieces)
    )
    return effect_of(difference, add_variances([*sampling, *session, scatter]), margin_fraction)
