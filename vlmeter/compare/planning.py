"""How many runs would find a change of such a size here? Asked before anything is changed.

What decides is how far whole runs of one thing lie apart, here, on this machine. Results of two runs or more tell it;
of one run it is assumed, as a comparison does. The answer is about what a comparison says of a subject as a whole, of
so many runs a side, by the test that it uses (Welch's t).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import special
from scipy import stats as distributions

from vlmeter.common.errors import UserError
from vlmeter.compare.baseline import SubjectRun
from vlmeter.compare.compare import wander_of
from vlmeter.compare.comparison import ALPHA, MARGIN_FRACTION, Side
from vlmeter.compare.pairing import Pair
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import CONFIDENCE, Estimate
from vlmeter.table.quantities import WHOLE_CELL

#: Chance with which a change is to be found.
POWER = 0.90

#: More runs a side than anybody takes.
MOST_RUNS = 200

#: Steps of the grid over which the scatter of few runs is averaged; twice as many move no chance by 0.001.
_STEPS = 200


@dataclass(frozen=True)
class RunNoise:
    """How far whole runs of a subject err: a standard deviation as a fraction.

    Its interval is that of the chi-square distribution, and NaN where the noise was told or is assumed.
    """

    subject: str
    fraction: Estimate
    runs: int
    how: str


def run_noise(sides: Sequence[Side], *, session_noise_fraction: float | None = None) -> list[RunNoise]:
    """Find how far whole runs of every subject err, from all runs of one side or of two."""
    found = []
    for name in dict.fromkeys(subject.subject for side in sides for run in side.runs for subject in run.subjects):
        groups = [[run.by_name[name] for run in side.runs if name in run.by_name] for side in sides]
        found.append(_noise_of(name, groups, session_noise_fraction))
    return found


def _noise_of(name: str, groups: Sequence[list[SubjectRun]], told: float | None) -> RunNoise:
    runs = sum(len(group) for group in groups)
    if told is not None:
        return RunNoise(name, Estimate(told, math.nan, math.nan), runs, "as told")
    levels = [_levels(group) for group in groups if len(group) > 1]
    freedom = sum(len(level) - 1 for level in levels)
    if not freedom:
        assumed = wander_of(Pair(name, name, groups[0], groups[1] if len(groups) > 1 else [])).assumed_offset_fraction
        return RunNoise(name, Estimate(assumed, math.nan, math.nan), runs, "assumed: one run cannot tell")
    squares = math.fsum(float(np.sum((level - level.mean()) ** 2)) for level in levels)
    tail = (1 - CONFIDENCE) / 2
    ends = [math.sqrt(squares / float(distributions.chi2.ppf(part, freedom))) for part in (1 - tail, tail)]
    return RunNoise(name, Estimate(math.sqrt(squares / freedom), *ends), runs, f"from {runs} runs")


def _levels(runs: Sequence[SubjectRun]) -> Array:
    """Mean of the logarithms of the cells' totals in every run, over the cells that all runs have."""
    found: list[list[float]] = []
    for cell_id in set.intersection(*(set(run.by_id) for run in runs)):
        cells = [{quantity.key: quantity.median_ms for quantity in run.by_id[cell_id].quantities} for run in runs]
        key = next((key for key in WHOLE_CELL.keys if all(key in cell for cell in cells)), None)
        if key is not None:
            found.append([math.log(cell[key]) for cell in cells])
    if not found:
        raise UserError(f"no cell of {runs[0].subject} was timed in every run, so nothing tells how far they lie apart")
    return np.asarray(np.mean(np.array(found), axis=0))


@lru_cache(maxsize=MOST_RUNS)
def _scatter(runs: int) -> tuple[Array, Array]:
    """Estimated over true variance of a difference between two sides, and the limit in standard errors: two grids."""
    shares = (np.arange(_STEPS) + 0.5) / _STEPS
    own = distributions.chi2.ppf(shares, runs - 1) / (runs - 1)
    a, b = own[:, None], own[None, :]
    freedom = (a + b) ** 2 * (runs - 1) / (a**2 + b**2)
    return (a + b) / 2, np.asarray(special.stdtrit(freedom, 1 - ALPHA / 2))


def chance_to_find(change_fraction: float, noise_fraction: float, runs: int) -> float:
    """Chance that so many runs a side show a change with confidence; runs is 2 or more."""
    error = noise_fraction * math.sqrt(2 / runs)
    if error == 0:
        return 1.0
    variance, limit = _scatter(runs)
    reach = limit * np.sqrt(variance)
    away = abs(math.log1p(change_fraction)) / error
    return float(np.mean(special.ndtr(away - reach)))


def runs_to_find(change_fraction: float, noise_fraction: float, *, power: float = POWER) -> int | None:
    """Least number of runs a side that find a change with this chance; None where even MOST_RUNS do not."""
    return next(
        (runs for runs in range(2, MOST_RUNS + 1) if chance_to_find(change_fraction, noise_fraction, runs) >= power),
        None,
    )


def plan_in_words(noise: RunNoise, change_fraction: float, *, margin_fraction: float = MARGIN_FRACTION) -> list[str]:
    """Say how many runs a side find a change; raises UserError for one that counts as none."""
    if change_fraction <= margin_fraction:
        raise UserError(
            f"--plan: a change of {100 * change_fraction:g} % counts as none, since the margin is "
            f"{100 * margin_fraction:g} %; legal: more than that, or a smaller --margin"
        )
    known = not math.isnan(noise.fraction.low)
    between = f", {_said(noise.fraction.low)} to {_said(noise.fraction.high)}" if known else ""
    change = f"{100 * change_fraction:g} %"
    lines = [
        f"{noise.subject}: whole runs err by {_said(noise.fraction.value)} (standard deviation; {noise.how}{between})",
        f"{noise.subject}: {_runs(runs_to_find(change_fraction, noise.fraction.value))} a side find a change of "
        f"{change} with {100 * POWER:.0f} % power",
    ]
    if known and (more := runs_to_find(change_fraction, noise.fraction.high)) != runs_to_find(
        change_fraction, noise.fraction.value
    ):
        lines.append(f"{noise.subject}: {_runs(more)} a side if they err by {_said(noise.fraction.high)}")
    chances = {runs: chance_to_find(change_fraction, noise.fraction.value, runs) for runs in (2, 3, 5)}
    found = ", ".join(f"{runs} runs {100 * chance:.0f} %" for runs, chance in chances.items())
    return [*lines, f"{noise.subject}: chance to find it with {found}"]


def _said(fraction: float) -> str:
    return f"{100 * fraction:.2g} %"


def _runs(count: int | None) -> str:
    return f"more than {MOST_RUNS} runs" if count is None else f"{count} runs"
