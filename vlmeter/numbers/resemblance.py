"""Rounds that resemble the ones before them: what one cell cannot tell of it, all cells of a session can.

Rounds in a row are worth fewer than independent ones, and by how much is for their correlation to say. Ten rounds tell
it to +-0.3, and a cell that happens to look independent gets an interval that is too narrow. The cells of a session ran
on one machine within hours, so that they tell the correlation together. A cell is taken to be as correlated as they are
in the mean, and more than that as far as its own rounds go beyond what chance leaves: what the cells' correlations
differ by among themselves says how much of that is to be believed (empirical Bayes; Morris, JASA 78, 1983).

Few correlated rounds also scatter by less than the machine does, for all of them lie on one stretch of its wander, and
know little of how far it goes. Both are the matter of `widening`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats as distributions

from vlmeter.numbers.intervals import Array, pooled_serial_correlation
from vlmeter.numbers.medians import (
    CONFIDENCE,
    Estimate,
    correlation_in_order,
    median_estimate,
    median_ranks,
    serial_correlation,
)

#: Rounds below which a cell says nothing of how much its rounds resemble each other, with others beside it and alone.
LEAST_ROUNDS, LEAST_ALONE = 5, 9

#: The largest correlation that is believed, and steps in which they are told apart: as in `medians`.
_MOST, _STEP = 0.95, 0.05

#: Degrees of freedom that an interval has at least: with one, it would reach thirteen standard errors.
_LEAST_FREEDOM = 2.0


@dataclass(frozen=True)
class Resemblance:
    """How much the rounds of several cells resemble the ones before them.

    pooled: correlation of a round with the one before, in the mean; between: variance of the cells' correlations about
    it, chance taken off. A cell alone has nothing to be set beside: then all is its own.
    """

    pooled: float = 0.0
    between: float = math.inf

    def of(self, found: float, count: int) -> float:
        """Correlation of a cell with this serial correlation of so many rounds, in steps of 0.05."""
        if math.isinf(self.between):
            return correlation_in_order(found, count) if count >= LEAST_ALONE else 0.0
        if math.isnan(found) or count < LEAST_ROUNDS:
            return 0.0
        believed = self.between / (self.between + _chance(self.pooled, count))
        return _in_steps(self.pooled + believed * max(0.0, _unbiased(found, count) - self.pooled))

    def beyond(self, found: float, count: int) -> float:
        """By how many standard deviations of chance a cell's own correlation exceeds that of all; 0 where unknown."""
        if math.isnan(found) or count < LEAST_ALONE:
            return 0.0
        return (_unbiased(found, count) - self.pooled) / math.sqrt(_chance(self.pooled, count))


#: Of a cell with nothing beside it.
ALONE = Resemblance()


def _in_steps(correlation: float) -> float:
    return round(min(max(correlation, 0.0), _MOST) / _STEP) * _STEP


def _unbiased(found: float, count: int) -> float:
    """A serial correlation without its bias of -(1 + 4 rho) / n (Marriott and Pope, Biometrika 41, 1954)."""
    return (found + 1 / count) / (1 - 4 / count)


def _chance(correlation: float, count: int) -> float:
    """Variance by chance of the unbiased correlation of so many rounds (Bartlett, J. R. Stat. Soc. 8, 1946)."""
    return (1 - correlation**2) / count / (1 - 4 / count) ** 2


def resemblance_of(found: Sequence[float], counts: Sequence[int]) -> Resemblance:
    """Pool the serial correlations of cells with so many rounds; `ALONE` where there are not two that tell."""
    known = [(one, count) for one, count in zip(found, counts, strict=True) if count >= LEAST_ROUNDS]
    known = [(one, count) for one, count in known if not math.isnan(one)]
    if len(known) < 2:
        return ALONE
    pooled = pooled_serial_correlation([one for one, _ in known], [count for _, count in known])
    apart = [(_unbiased(one, count) - pooled) ** 2 - _chance(pooled, count) for one, count in known]
    return Resemblance(pooled, max(0.0, math.fsum(apart) / len(apart)))


def resemblance_in(series: Sequence[Array]) -> Resemblance:
    """Pool the serial correlations of samples of several cells, each in the order of its rounds."""
    told = [own for own in series if len(own) >= LEAST_ROUNDS]
    return resemblance_of([serial_correlation(own.tolist()) for own in told], [len(own) for own in told])


@lru_cache(maxsize=4096)
def widening(correlation: float, count: int) -> float:
    """Factor of a median's interval of so many rounds, beyond what their correlation widens it by already.

    Rounds about their own mean scatter by 1 - v / n of the machine's variance, where the variance of the mean is v / n
    of it; and they are n / v independent ones, of which Student's t has one degree of freedom less. Both over what
    independent rounds have: 1 without correlation, and 1 below LEAST_ROUNDS, which do not tell it.
    """
    if correlation <= 0 or count < LEAST_ROUNDS:
        return 1.0
    rho = correlation
    inflation = (1 + rho) / (1 - rho) - 2 * rho * (1 - rho**count) / (count * (1 - rho) ** 2)
    spread = math.sqrt((1 - 1 / count) / (1 - inflation / count))
    level = (1 + CONFIDENCE) / 2
    few = float(distributions.t.ppf(level, max(_LEAST_FREEDOM, count / inflation - 1)))
    return spread * few / float(distributions.t.ppf(level, count - 1))


def median_ends(ordered: Array, correlation: float) -> tuple[Array, Array]:
    """Ends of the median's 95 % interval of every row of [series, samples], sorted; NaN below five samples.

    No duration is negative, so neither is an end of the interval where no sample is.
    """
    count = ordered.shape[1]
    ranks = median_ranks(count, correlation=correlation)
    if ranks is None:
        return np.full(len(ordered), np.nan), np.full(len(ordered), np.nan)
    low, high = ordered[:, ranks[0]], ordered[:, ranks[1]]
    factor = widening(correlation, count)
    if factor == 1.0:
        return low, high
    middle = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
    wider = middle - factor * (middle - low)
    return np.where(ordered[:, 0] < 0, wider, np.maximum(wider, 0.0)), middle + factor * (high - middle)


def median_in_a_row(samples: Sequence[float], *, like: Resemblance = ALONE) -> Estimate:
    """Median of samples in the order of their rounds, with an interval as wide as their correlation asks for.

    like: what the rounds of the session's other cells say of that. Raises ValueError on no samples or on a NaN.
    """
    value = median_estimate(samples).value
    correlation = like.of(serial_correlation(samples), len(samples))
    low, high = median_ends(np.sort(np.asarray(samples, dtype=np.float64))[None, :], correlation)
    return Estimate(value, float(low[0]), float(high[0]))
