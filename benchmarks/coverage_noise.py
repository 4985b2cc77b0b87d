"""Noise that is declared, of which the truth is known, and what is tried on it.

Noise is of the logarithm, and the truth is the median of what a round takes under it:

- independent: samples have nothing to do with one another;
- correlated: each resembles the one before (first order);
- heavy tails: one sample in twenty-five takes much longer, by 15 % in the mean;
- two modes: three rounds in ten take 30 % longer, each by itself, or in stretches of five or so;
- drift: the machine slows down by 1 % while the cell is measured; the truth is the median over that time;
- disturbed: marked rounds are left out; one of fifty that are left takes 30 % longer and was not marked.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import Estimate, median_estimate

Rng = np.random.Generator

#: Rounds of a cell by a study's defaults, and how well the median is to be known.
MIN_ROUNDS, MAX_ROUNDS, HALF_WIDTH = 10, 50, 0.01


@dataclass(frozen=True)
class Noise:
    """Noise of a cell's rounds: draws so many, and says the truth of what it drew (of the first n of them)."""

    name: str
    draw: Callable[[Rng, int], Array]
    truth: Callable[[int], float]


def correlated(rng: Rng, count: int, *, correlation: float, spread: float) -> Array:
    """Logarithms of a first-order process."""
    pushes = rng.standard_normal(count) * math.sqrt(1 - correlation**2)
    found = np.empty(count)
    found[0] = rng.standard_normal()
    for place in range(1, count):
        found[place] = correlation * found[place - 1] + pushes[place]
    return spread * found


def _heavy(rng: Rng, count: int) -> Array:
    late = rng.random(count) < 0.04
    return np.exp(0.012 * rng.standard_normal(count)) * (1 + late * rng.exponential(0.15, count))


def _modes(rng: Rng, count: int, *, stay: float) -> Array:
    """Two modes, 0.7 and 0.3 of the time; `stay` is the chance that a round keeps the one before's, beside chance."""
    slow = np.empty(count, dtype=bool)
    for place in range(count):
        keeps = place > 0 and rng.random() < stay
        slow[place] = slow[place - 1] if keeps else rng.random() < 0.3
    return np.exp(0.01 * rng.standard_normal(count)) * np.where(slow, 1.3, 1.0)


def _drift(rng: Rng, count: int) -> Array:
    return np.exp(0.01 * np.arange(count) / (MAX_ROUNDS - 1) + 0.015 * rng.standard_normal(count))


def _disturbed(rng: Rng, count: int) -> Array:
    """What is left once marked rounds are left out."""
    unmarked = rng.random(count) < 0.02
    return np.exp(0.015 * rng.standard_normal(count)) * np.where(unmarked, 1.3, 1.0)


@cache
def _population_median(name: str) -> float:
    """Median of a great many rounds, for noise whose median has no short formula."""
    rng = np.random.default_rng(99)
    drawn = {
        "heavy": lambda: _heavy(rng, 4_000_000),
        "modes": lambda: _modes(rng, 400_000, stay=0.0),
        "disturbed": lambda: _disturbed(rng, 4_000_000),
    }[name]()
    return float(np.median(drawn))


def _log_normal(correlation: float, spread: float) -> Callable[[Rng, int], Array]:
    return lambda rng, count: np.exp(correlated(rng, count, correlation=correlation, spread=spread))


NOISES = (
    Noise("independent, 1 %", _log_normal(0.0, 0.01), lambda count: 1.0),
    Noise("independent, 2 %", _log_normal(0.0, 0.02), lambda count: 1.0),
    Noise("independent, 4 %", _log_normal(0.0, 0.04), lambda count: 1.0),
    Noise("correlated 0.3, 2 %", _log_normal(0.3, 0.02), lambda count: 1.0),
    Noise("correlated 0.3, 4 %", _log_normal(0.3, 0.04), lambda count: 1.0),
    Noise("correlated 0.6, 2 %", _log_normal(0.6, 0.02), lambda count: 1.0),
    Noise("correlated 0.6, 4 %", _log_normal(0.6, 0.04), lambda count: 1.0),
    Noise("heavy tails", _heavy, lambda count: _population_median("heavy")),
    Noise("two modes, round by round", lambda rng, n: _modes(rng, n, stay=0.0), lambda n: _population_median("modes")),
    Noise("two modes, in stretches", lambda rng, n: _modes(rng, n, stay=0.8), lambda n: _population_median("modes")),
    Noise("drift of 1 %", _drift, lambda count: math.exp(0.005 * (count - 1) / (MAX_ROUNDS - 1))),
    Noise("disturbed", _disturbed, lambda count: _population_median("disturbed")),
)


@dataclass(frozen=True)
class Trial:
    """One interval and the truth; rounds: samples behind it; interval: its kind, where a case has several."""

    found: Estimate
    truth: float
    rounds: int
    interval: str = ""

    @property
    def holds(self) -> bool:
        """Whether the interval holds the truth."""
        return self.found.contains(self.truth)


@dataclass(frozen=True)
class Case:
    """A kind of interval under a kind of noise; or several kinds that one trial gives at once, each of them named."""

    interval: str
    noise: str
    #: one interval, those of all cells of a session, or one of each of several kinds
    trial: Callable[[Rng], Trial | list[Trial]]
    #: simulations of this case over those that were asked for: fits take longer
    share: float = 1.0
    #: the kinds, where a trial gives several
    kinds: tuple[str, ...] = ()

    @property
    def intervals(self) -> tuple[str, ...]:
        """The kinds of interval that it tries."""
        return self.kinds or (self.interval,)


def sampled(series: Array, *, before: bool) -> tuple[Estimate, int]:
    """Sample as a session does: until the median is known within 1 %, at a look when rounds have doubled.

    before: at a look after every round, as if samples were independent.
    """
    count = MIN_ROUNDS
    while True:
        found = median_estimate(series[:count].tolist(), in_order=not before)
        if found.relative_half_width <= HALF_WIDTH or count == MAX_ROUNDS:
            return found, count
        count = min(MAX_ROUNDS, count + 1 if before else 2 * count)
