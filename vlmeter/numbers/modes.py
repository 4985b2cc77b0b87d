"""Samples that lie about two values, with nothing between them: their median is the time of no run.

A host that sometimes finds its caches warm and sometimes not, a clock with two levels, an allocator with two paths: a
duration then has two modes, and the median is whichever has a few samples more, or lies where no sample is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vlmeter.numbers.intervals import Array
from vlmeter.numbers.units import duration, duration_range

#: Samples below which two modes cannot be told from chance.
LEAST_SAMPLES = 9

#: Part of the samples that a mode has at least: fewer are outliers.
LEAST_SHARE = 0.2

#: How much longer the second mode is than the first, at least: closer ones make no difference to a reader.
LEAST_RATIO = 1.1


@dataclass(frozen=True)
class Modes:
    """The medians of the samples about either value, in the unit of the samples, and how many lie there."""

    low: float
    high: float
    low_count: int
    high_count: int

    @property
    def ratio(self) -> float:
        """The longer over the shorter."""
        return self.high / self.low

    def said(self) -> str:
        """Say both, of samples in ms, such as '146 and 212 ms'."""
        return both_in_words(self.low, self.high)


def both_in_words(low_ms: float, high_ms: float) -> str:
    """Say two modes, such as '146 and 212 ms', or '24.3 µs and 0.363 ms': each stands alone beside a median."""
    low, high = duration(low_ms), duration(high_ms)
    if low.split()[-1] != high.split()[-1]:
        return f"{low} and {high}"
    return duration_range(low_ms, high_ms).replace(" to ", " and ")


def two_modes(samples: Array) -> Modes | None:
    """Find two modes among positive samples; None where there is one, or where chance could have made two.

    The widest gap that leaves LEAST_SHARE of the samples on either side is that between two modes if it takes up
    enough of the way from one side's median to the other's: 0.4 + 3.6 / n, which is 0.8 of nine samples and 0.47 of
    fifty. Of normal, skewed, uniform, drifting or correlated samples, 3 in 100 are taken for two modes at most (of
    those that scatter by more than LEAST_RATIO at all), and of 15 samples about 146 and 212 that scatter by 3 %, 9 in
    10 are found (tests/test_modes.py).
    """
    count = len(samples)
    least = max(3, math.ceil(LEAST_SHARE * count))
    if count < LEAST_SAMPLES or not np.all(samples > 0):
        return None
    ordered = np.sort(samples)
    gaps = np.diff(np.log(ordered))[least - 1 : count - least]
    place = int(np.argmax(gaps)) + least
    low, high = float(np.median(ordered[:place])), float(np.median(ordered[place:]))
    apart = math.log(high / low)
    if apart < math.log(LEAST_RATIO) or gaps[place - least] < (0.4 + 3.6 / count) * apart:
        return None
    return Modes(low, high, place, count - place)
