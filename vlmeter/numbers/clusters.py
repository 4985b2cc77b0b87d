"""Estimates of several runs made one, with an interval that counts what differs between runs.

Samples of one run err together, so they are no independent witnesses. What was estimated in each run by itself is: one
observation a run. Their mean and Student's t with one degree of freedom less than there are runs hold what they promise
from two runs on, whatever the estimate is (a median, a slope, a percentile), though runs know it unequally well:
Ibragimov and Mueller, J. Bus. Econ. Stat. 28(4), 2010, for clusters in general; Kalibera and Jones, ISMM 2013, for
benchmarks. With few runs such an interval is wide (t is 12.7 of two, 4.3 of three, 2.8 of five), since few runs know
little of how far runs lie apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

from scipy import stats as distributions

from vlmeter.numbers.intervals import NORMAL_REACH, Array, percentile_estimate
from vlmeter.numbers.medians import CONFIDENCE, Estimate


@lru_cache(maxsize=256)
def t_reach(freedom: int) -> float:
    """Standard errors that a 95 % interval of Student's t reaches to each side."""
    return float(distributions.t.ppf((1 + CONFIDENCE) / 2, freedom))


def over_runs(found: Sequence[Estimate]) -> Estimate:
    """Make the estimates of several runs one; of one run it is that run's, NaN among them is left out.

    Each run's own error is one of samples that it alone took. The interval is never narrower than what these errors
    leave of it: runs that agree by luck do not know more than their samples do.
    """
    known = _known(found)
    if len(known) < 2:
        return known[0] if known else Estimate(math.nan, math.nan, math.nan)
    reach = max(reach_between(known), NORMAL_REACH * math.sqrt(variance_within(known) / len(known)))
    return _around(_mean(known), reach, reach)


def over_runs_of_the_same(found: Sequence[Estimate]) -> Estimate:
    """Make the estimates of several runs one, whose own intervals are over the same cells or requests in each.

    What those differ by among themselves no run averages out, so that it is an error beside the one between runs.
    """
    known = _known(found)
    if len(known) < 2:
        return known[0] if known else Estimate(math.nan, math.nan, math.nan)
    sides = [[one.value - one.low for one in known], [one.high - one.value for one in known]]
    below, above = (math.fsum(side) / len(side) for side in sides)
    mean = _mean(known)
    return added(Estimate(mean, mean - below, mean + above), known)


def added(across: Estimate, by_run: Sequence[Estimate]) -> Estimate:
    """Add what differs between runs to an estimate over the cells of all: two independent errors, added in squares.

    An estimate without an interval over cells gets the one between runs; one run adds nothing.
    """
    known = _known(by_run)
    if len(known) < 2 or math.isnan(across.value):
        return across
    sides = [0.0 if math.isnan(side) else side for side in (across.value - across.low, across.high - across.value)]
    return _around(across.value, *(math.hypot(reach_between(known), side) for side in sides))


def reach_between(found: Sequence[Estimate]) -> float:
    """Half width of the 95 % interval of the mean over runs, of two at least."""
    return t_reach(len(found) - 1) * math.sqrt(variance_between(found) / len(found))


def _known(found: Sequence[Estimate]) -> list[Estimate]:
    return [one for one in found if not math.isnan(one.value)]


def _mean(found: Sequence[Estimate]) -> float:
    return math.fsum(one.value for one in found) / len(found)


def _around(value: float, below: float, above: float) -> Estimate:
    return Estimate(value, value - below, value + above)


def percentile_over_runs(by_run: Sequence[Array], fraction: float) -> Estimate | None:
    """Estimate a percentile in each run by itself and make them one; None where a run has too few samples for it."""
    found = [percentile_estimate(samples, fraction) for samples in by_run]
    known = [one for one in found if one is not None]
    return over_runs_of_the_same(known) if known and len(known) == len(found) else None


def variance_between(found: Sequence[Estimate]) -> float:
    """Variance of the runs' values: of what differs between runs, and of their sampling errors."""
    mean = math.fsum(one.value for one in found) / len(found)
    return math.fsum((one.value - mean) ** 2 for one in found) / (len(found) - 1)


def variance_within(found: Sequence[Estimate]) -> float:
    """Mean variance of the runs' sampling errors, of those that have an interval; 0 if none has."""
    widths = [(one.high - one.low) / 2 / NORMAL_REACH for one in found if not math.isnan(one.high - one.low)]
    return math.fsum(width**2 for width in widths) / len(widths) if widths else 0.0


def share_between(found: Sequence[Estimate]) -> float:
    """Part of the variance of the runs' values that their sampling errors do not explain, from 0 to 1."""
    whole = variance_between(found)
    return max(0.0, 1 - variance_within(found) / whole) if whole > 0 else 0.0
