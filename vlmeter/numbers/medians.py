"""Statistics of latency: skewed, bounded below, with outliers. Hence medians and order statistics.

The interval of a median is the *exact* bootstrap percentile interval: for the median, the distribution that
resampling would approximate is known in closed form (Efron 1979; Hutson and Ernst, J. R. Stat. Soc. B 62,
2000), so no random number is drawn and the same samples always give the same interval, in microseconds. It holds the
true median with at least 95 % from nine samples on, whatever the distribution; of five to eight, with 88 to 97 %.

That is so for independent samples. Samples in a row resemble each other: a clock wanders, a host stays busy for a
while. Then they are worth fewer, and the interval of samples that are said to be `in_order` is as much wider as their
correlation with the one before asks for. The correlation is estimated from the same few samples, so the mending is not
whole: benchmarks/README.md says how often the interval holds the median, at which correlation.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist, median

CONFIDENCE = 0.95

#: Samples below which a percentile is not reported: with fewer, even the largest sample is not an upper
#: bound of it at 95 % confidence (1 - q**n >= 0.95). https://doi.org/10.1002/9780470316870, order-statistic
#: limits.
MIN_SAMPLES_FOR_PERCENTILE = {0.50: 5, 0.90: 29, 0.95: 59, 0.99: 299}


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval; low and high are NaN where there is none."""

    value: float
    low: float
    high: float

    @property
    def relative_half_width(self) -> float:
        """Half the interval's width over the value: infinite where there is no interval."""
        if math.isnan(self.low) or math.isnan(self.high) or self.value == 0:
            return math.inf
        return (self.high - self.low) / 2 / abs(self.value)

    def contains(self, value: float) -> bool:
        """Whether a value lies in the interval."""
        return self.low <= value <= self.high


def _binomial_tail(trials: int, probability: float, at_least: int) -> float:
    """P(X >= at_least) for X binomial."""
    if probability >= 1:
        return 1.0 if at_least <= trials else 0.0
    return math.fsum(
        math.comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(at_least, trials + 1)
    )


@lru_cache(maxsize=1024)
def _median_ranks(count: int, confidence: float) -> tuple[int, int]:
    """Ranks (from 0) of the samples that bound the exact bootstrap percentile interval of the median.

    With an even count the median is the mean of two order statistics; the lower end is then taken from the
    lower of them and the upper end from the upper, which makes the interval a little wide rather than a
    little narrow.
    """
    tail = (1 - confidence) / 2
    lower_middle, upper_middle = (count + 1) // 2, count // 2 + 1
    # The tail grows with the rank, so the first rank that reaches a level is found by bisection (0 stands for rank 1).
    ranks = range(1, count + 1)
    low = bisect_left(ranks, tail, key=lambda rank: _binomial_tail(count, rank / count, lower_middle))
    high = bisect_left(ranks, 1 - tail, key=lambda rank: _binomial_tail(count, rank / count, upper_middle))
    return low, high


#: Beyond this count the binomial sums lose digits and the normal approximation is exact to a rank.
_EXACT_UP_TO = 400


#: The largest correlation that is believed; a series that wanders more than that has no median worth an interval.
_MOST_CORRELATION = 0.95

#: Correlations are told apart in such steps: ranks are whole numbers, and few of them make few to be worked out.
_CORRELATION_STEP = 0.05


def serial_correlation(samples: Sequence[float]) -> float:
    """Rank correlation of each sample with the one before; NaN below five samples or where they do not vary.

    It errs downwards in short series, since a mean was taken off (see `correlation_in_order`).
    """
    count = len(samples)
    places = sorted(range(count), key=samples.__getitem__)
    ranks, first = [0.0] * count, 0
    while first < count:  # samples that are equal share the mean of their ranks
        last = first
        while last + 1 < count and samples[places[last + 1]] == samples[places[first]]:
            last += 1
        for place in places[first : last + 1]:
            ranks[place] = (first + last) / 2 - (count - 1) / 2
        first = last + 1
    total = math.fsum(rank * rank for rank in ranks)
    if count < MIN_SAMPLES_FOR_PERCENTILE[0.50] or total == 0:
        return math.nan
    return math.fsum(one * other for one, other in pairwise(ranks)) / total


def correlation_in_order(found: float, count: int) -> float:
    """Rid a serial correlation of so many samples of its bias, in steps of 0.05; 0 where there is none, 0.95 at most.

    The bias is -(1 + 4 rho) / n (Marriott and Pope, Biometrika 41, 1954). What seems to alternate counts as
    independent.
    """
    if math.isnan(found):
        return 0.0
    mended = (found + 1 / count) / (1 - 4 / count)
    return round(min(max(mended, 0.0), _MOST_CORRELATION) / _CORRELATION_STEP) * _CORRELATION_STEP


@lru_cache(maxsize=4096)
def median_inflation(correlation: float, count: int) -> float:
    """Variance of a median of so many samples in a row, over that of as many independent ones.

    For a first-order process. A median knows of each sample only on which side of it that lies, and signs correlate
    less than values do: by 2/pi * asin(rho), the arcsine law of clipped noise.
    """
    found, power, lag = 1.0, correlation, 1
    while lag < count and power > 1e-9:
        found += 2 * (1 - lag / count) * 2 / math.pi * math.asin(power)
        power, lag = power * correlation, lag + 1
    return found


@lru_cache(maxsize=4096)
def median_ranks(count: int, *, confidence: float = CONFIDENCE, correlation: float = 0.0) -> tuple[int, int] | None:
    """Ranks (from 0) of the sorted samples that bound the median's interval; None below five samples.

    With a correlation of each sample with the one before they lie further out, at most at the smallest and the largest.
    """
    if count < MIN_SAMPLES_FOR_PERCENTILE[0.50]:
        return None
    reach = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt(median_inflation(correlation, count))
    if count <= _EXACT_UP_TO:
        return _median_ranks(count, confidence if correlation == 0 else 2 * NormalDist().cdf(reach) - 1)
    reach *= math.sqrt(count) / 2
    middle = (count - 1) / 2
    return max(0, math.floor(middle - reach)), min(count - 1, math.ceil(middle + reach))


def median_estimate(samples: Sequence[float], *, confidence: float = CONFIDENCE, in_order: bool = False) -> Estimate:
    """Median with its bootstrap interval; no interval (NaN) from fewer than five samples.

    in_order: the samples stand in the order in which they were taken, and may resemble the one before: then the
    interval is as wide as that asks for. Of values of several cells, whose order means nothing, it would tell nothing.

    Raises ValueError on no samples or on a NaN among them.
    """
    if not samples:
        raise ValueError("the median of no samples is not defined")
    if any(math.isnan(sample) for sample in samples):
        raise ValueError("a sample is not a number")
    value = float(median(samples))
    count = len(samples)
    correlation = correlation_in_order(serial_correlation(samples), count) if in_order else 0.0
    ranks = median_ranks(count, confidence=confidence, correlation=correlation)
    if ranks is None:
        return Estimate(value, math.nan, math.nan)
    ordered = sorted(samples)
    return Estimate(value, float(ordered[ranks[0]]), float(ordered[ranks[1]]))


def median_of_estimates(estimates: Sequence[Estimate]) -> Estimate:
    """Median of the values of several estimates, whose errors are independent, with its interval.

    The interval is the one over the values. Fewer than five have none: then it is that of what stands in the middle, of
    one estimate, or of the mean of two; which is as wide as it should be if they lie apart, and wider if they do not.
    """
    found = median_estimate([each.value for each in estimates])
    if not math.isnan(found.low):
        return found
    ordered = sorted(estimates, key=lambda each: each.value)
    middle = ordered[(len(ordered) - 1) // 2 : len(ordered) // 2 + 1]
    below = math.hypot(*(each.value - each.low for each in middle)) / len(middle)
    above = math.hypot(*(each.high - each.value for each in middle)) / len(middle)
    return Estimate(found.value, found.value - below, found.value + above)
