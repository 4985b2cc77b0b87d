"""How often does a 95 % interval hold the truth? Every kind of interval that is printed, under noise that is declared.

    python -m benchmarks.coverage                     # a table; two thousand cells for each line
    python -m benchmarks.coverage --only median slope --repeats 500

No model runs: durations are drawn, from noise like that of real machines, and go through the very functions that the
report goes through. The truth is known, so it can be counted how often an interval holds it. `--before` judges the
median as it was before: looked at after every round, and taken as if samples were independent.

Noise is of the logarithm, and the truth is the median of what a round takes under it:

- independent: samples have nothing to do with one another;
- correlated: each resembles the one before (first order);
- heavy tails: one sample in twenty-five takes much longer, by 15 % in the mean;
- two modes: three rounds in ten take 30 % longer, each by itself, or in stretches of five or so;
- drift: the machine slows down by 1 % while the cell is measured; the truth is the median over that time;
- disturbed: marked rounds are left out; one of fifty that are left takes 30 % longer and was not marked.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from vlmeter.analysis.decode_runs import decode_law
from vlmeter.analysis.distribution import tail_over_middle
from vlmeter.analysis.prediction_laws import Learnt, Observations, learn_prefill
from vlmeter.analysis.prefill_cells import over, pooled
from vlmeter.analysis.reading import Unknown
from vlmeter.common.files import write_atomically
from vlmeter.numbers.intervals import (
    Array,
    fit_linear,
    paired_difference,
    paired_ratio,
    percentile_estimate,
    rank_correlation,
)
from vlmeter.numbers.medians import Estimate, median_estimate
from vlmeter.table.quantities import CLOSURE, DECODE

Rng = np.random.Generator

#: Rounds of a cell by a study's defaults, and how well the median is to be known.
MIN_ROUNDS, MAX_ROUNDS, HALF_WIDTH = 10, 50, 0.01

#: What coverage is called right.
RIGHT = (0.93, 0.97)


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
    """One interval and the truth; rounds: samples behind it."""

    found: Estimate
    truth: float
    rounds: int

    @property
    def holds(self) -> bool:
        """Whether the interval holds the truth."""
        return self.found.contains(self.truth)


@dataclass(frozen=True)
class Case:
    """A kind of interval under a kind of noise."""

    interval: str
    noise: str
    trial: Callable[[Rng], Trial]
    #: simulations of this case over those that were asked for: fits take longer
    share: float = 1.0


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


def median_cases(*, before: bool) -> Iterator[Case]:
    """The median of a cell: sampled until it is known, and of a fixed number of rounds."""

    def until_known(noise: Noise) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            found, count = sampled(noise.draw(rng, MAX_ROUNDS), before=before)
            return Trial(found, noise.truth(count), count)

        return trial

    def of_rounds(noise: Noise, count: int) -> Callable[[Rng], Trial]:
        return lambda rng: Trial(
            median_estimate(noise.draw(rng, count).tolist(), in_order=not before), noise.truth(count), count
        )

    for noise in NOISES:
        yield Case("median, until known within 1 %", noise.name, until_known(noise))
    for count in (10, 15, 40):
        for noise in NOISES[1::2][:3]:
            yield Case(f"median of {count} rounds", noise.name, of_rounds(noise, count))


def paired_cases() -> Iterator[Case]:
    """Difference, ratio (closure, overhead, a share) and unpaired ratio of two arms of the same rounds."""

    def arms(rng: Rng, count: int, correlation: float) -> tuple[Array, Array]:
        together = correlated(rng, count, correlation=correlation, spread=0.02)
        own = 0.005 * rng.standard_normal((2, count))
        return 1.01 * np.exp(together + own[0]), np.exp(together + own[1])

    def ratio(correlation: float) -> Callable[[Rng], Trial]:
        return lambda rng: Trial(paired_ratio(*arms(rng, 15, correlation)), 1.01, 15)

    @cache
    def true_difference(correlation: float) -> float:
        rng = np.random.default_rng(7)
        together, own = 0.02 * rng.standard_normal(2_000_000), 0.005 * rng.standard_normal((2, 2_000_000))
        return float(np.median(1.01 * np.exp(together + own[0]) - np.exp(together + own[1])))

    def difference(correlation: float) -> Callable[[Rng], Trial]:
        return lambda rng: Trial(paired_difference(*arms(rng, 15, correlation)), true_difference(correlation), 15)

    def unpaired(rng: Rng) -> Trial:
        wall, busy = (np.exp(correlated(rng, 15, correlation=0.3, spread=spread)) for spread in (0.02, 0.003))
        one, other = (median_estimate(each.tolist(), in_order=True) for each in (2 * wall, busy))
        return Trial(over(one, other), 2.0, 15)

    for correlation in (0.0, 0.6):
        name = "independent" if correlation == 0 else f"correlated {correlation}"
        yield Case("share, closure, overhead of a cell (paired ratio)", name, ratio(correlation))
        yield Case("difference of methods (paired)", name, difference(correlation))
    yield Case("wall over busy (unpaired ratio)", "correlated 0.3", unpaired)


def pooled_cases() -> Iterator[Case]:
    """The median over cells of what each of them shows."""

    def closure(cells: int) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            found = pd.DataFrame({CLOSURE.column: -0.0085 + 0.005 * rng.standard_normal(cells)})
            estimate = pooled(found, CLOSURE)
            assert not isinstance(estimate, Unknown)
            return Trial(estimate, -0.0085, cells)

        return trial

    for cells in (6, 9, 39):
        yield Case(f"closure over {cells} cells (median)", "cells differ by 0.5 %", closure(cells))


def percentile_cases() -> Iterator[Case]:
    """Percentiles of requests, whose order is random, and the tail over the middle."""

    def of(fraction: float, count: int, correlation: float) -> Callable[[Rng], Trial]:
        truth = math.exp(0.4 * float(_normal_quantile(fraction)))

        def trial(rng: Rng) -> Trial:
            # what requests ask for is independent of when they come; the machine's own wander is not
            values = np.exp(
                0.4 * rng.standard_normal(count) + correlated(rng, count, correlation=0.9, spread=correlation)
            )
            estimate = percentile_estimate(values, fraction)
            assert estimate is not None
            return Trial(estimate, truth if correlation == 0 else _wandering(fraction, correlation), count)

        return trial

    def tail(count: int) -> Callable[[Rng], Trial]:
        truth = math.exp(0.4 * float(_normal_quantile(0.99)))

        def trial(rng: Rng) -> Trial:
            estimate = tail_over_middle(np.exp(0.4 * rng.standard_normal(count)))
            assert not isinstance(estimate, Unknown)
            return Trial(estimate, truth, count)

        return trial

    for fraction, counts in ((0.5, (30, 300)), (0.9, (29, 300)), (0.95, (59, 300)), (0.99, (299, 1000))):
        for count in counts:
            yield Case(f"P{fraction * 100:.0f} of {count} requests", "independent", of(fraction, count, 0.0))
    yield Case("P95 of 300 requests", "and a wander of 5 %, correlated 0.9", of(0.95, 300, 0.05))
    for count in (299, 1000):
        yield Case(f"P99 over P50 of {count} requests", "independent", tail(count), 0.25)


def _normal_quantile(fraction: float) -> float:
    from statistics import NormalDist

    return NormalDist().inv_cdf(fraction)


def _wandering(fraction: float, wander: float) -> float:
    return math.exp(math.hypot(0.4, wander) * _normal_quantile(fraction))


#: Crops and prompt tokens of Molmo's tilings, and what they cost: the gallery's laws, in ms.
TILINGS = tuple((h, w) for h in range(1, 13) for w in range(1, 13) if h * w <= 12)
CROPS = np.array([h * w + 1 for h, w in TILINGS], dtype=np.float64)
TOKENS = np.array([60 + 144 + (8 * h + 4) * (8 * w + 4) for h, w in TILINGS], dtype=np.float64)
CROP_MS, TOKEN_MS, CONSTANT_MS = 2.09, 0.0263, 4.5


def slope_cases() -> Iterator[Case]:
    """What a crop and a token cost, alone and in a plane; what an output token costs."""
    errors: dict[str, Callable[[Rng, int], Array]] = {
        "cells err by 0.5 %": lambda rng, count: 0.005 * rng.standard_normal(count),
        "cells err by 0.5 %, one in ten is slow by 5 %": lambda rng, count: (
            0.005 * rng.standard_normal(count) + 0.05 * (rng.random(count) < 0.1)
        ),
        "cells err by 0.5 % and wander by 0.5 %, correlated 0.8, in random order": lambda rng, count: (
            0.005 * rng.standard_normal(count) + rng.permutation(correlated(rng, count, correlation=0.8, spread=0.005))
        ),
    }

    def alone(draw: Callable[[Rng, int], Array], chosen: Array) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            crops = CROPS[chosen]
            times = (CROP_MS * crops + CONSTANT_MS) * np.exp(draw(rng, len(crops)))
            return Trial(
                fit_linear({"slope": crops, "constant": np.ones(len(crops))}, times)["slope"], CROP_MS, len(crops)
            )

        return trial

    def plane(draw: Callable[[Rng, int], Array], chosen: Array, term: str) -> Callable[[Rng], Trial]:
        truth = {"crop": CROP_MS, "token": TOKEN_MS}[term]

        def trial(rng: Rng) -> Trial:
            crops, tokens = CROPS[chosen], TOKENS[chosen]
            times = (CROP_MS * crops + TOKEN_MS * tokens + CONSTANT_MS) * np.exp(draw(rng, len(crops)))
            columns = {"crop": crops, "token": tokens, "constant": np.ones(len(crops))}
            return Trial(fit_linear(columns, times)[term], truth, len(crops))

        return trial

    every, few = np.arange(len(TILINGS)), np.linspace(0, len(TILINGS) - 1, 6).astype(int)
    for name, draw in errors.items():
        yield Case("cost of a crop (slope), 35 cells", name, alone(draw, every), 0.5)
        yield Case("cost of a token in a plane, 35 cells", name, plane(draw, every, "token"), 0.5)
    name, draw = next(iter(errors.items()))
    yield Case("cost of a crop (slope), 6 cells", name, alone(draw, few), 0.5)
    yield Case("cost of a token in a plane, 6 cells", name, plane(draw, few, "token"), 0.5)

    def output_token(images: int) -> Callable[[Rng], Trial]:
        lengths = np.array([8, 16, 32, 64, 128])

        def trial(rng: Rng) -> Trial:
            steps = np.tile(lengths - 1, images).astype(float)
            image = np.repeat(np.arange(images), len(lengths))
            own = 0.01 * rng.standard_normal(images)[image]
            times = 15.8 * steps * np.exp(own + 0.005 * rng.standard_normal(len(steps)))
            law = decode_law(pd.DataFrame({"steps": steps, "image_index": image, DECODE.column: times}))
            assert not isinstance(law, Unknown)
            return Trial(law.line["per_token"], 15.8, images)

        return trial

    for images in (3, 10):
        yield Case(
            f"cost of an output token, {images} photographs", "photographs 1 %, runs 0.5 %", output_token(images), 0.15
        )


def prediction_cases() -> Iterator[Case]:
    """A prefill that was not measured; the interval is that of a single request."""

    def trial_of(cells: int) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            chosen = np.sort(rng.permutation(len(TILINGS))[: cells + 1])
            out = int(rng.integers(len(chosen)))
            crops, tokens = CROPS[chosen], TOKENS[chosen]
            times = (CROP_MS * crops + TOKEN_MS * tokens + CONSTANT_MS) * np.exp(
                0.02 * rng.standard_normal(len(chosen))
            )
            kept = np.arange(len(chosen)) != out
            none = np.zeros(int(kept.sum()))
            features = {"crops": crops[kept], "tokens": tokens[kept], "busy_ms": none + math.nan, "bound": none}
            names = np.array([str(place) for place in range(int(kept.sum()))])
            learnt = Learnt(learn_prefill, Observations(features, times[kept], names))
            found = learnt.at(crops=float(crops[out]), tokens=float(tokens[out]), busy_ms=math.nan, bound=0.0)
            return Trial(found.interval, float(times[out]), cells)

        return trial

    for cells in (8, 30):
        yield Case(f"prediction of a prefill, from {cells} cells", "requests differ by 2 %", trial_of(cells))


def correlation_cases() -> Iterator[Case]:
    """Rank correlation of latency with FLOPs, over cells that were drawn."""

    def trial(rng: Rng) -> Trial:
        first = rng.standard_normal(39)
        second = 0.8 * first + 0.6 * rng.standard_normal(39)
        return Trial(rank_correlation(first, second), 6 / math.pi * math.asin(0.8 / 2), 39)

    yield Case("rank correlation over 39 cells", "correlated 0.8", trial, 0.25)


def every_case(*, before: bool = False) -> list[Case]:
    """All cases, in the order of the table; before: those of the median alone, as it was."""
    medians = list(median_cases(before=before))
    if before:
        return medians
    others = (
        paired_cases(),
        pooled_cases(),
        percentile_cases(),
        slope_cases(),
        prediction_cases(),
        correlation_cases(),
    )
    return [*medians, *(case for cases in others for case in cases)]


@dataclass(frozen=True)
class Answer:
    """How often one kind of interval held the truth."""

    interval: str
    noise: str
    trials: int
    held: int
    rounds: float

    @property
    def coverage(self) -> float:
        """Share of the intervals that held the truth."""
        return self.held / self.trials

    @property
    def uncertain(self) -> float:
        """Standard error of the coverage."""
        return math.sqrt(self.coverage * (1 - self.coverage) / self.trials)

    @property
    def verdict(self) -> str:
        """Right, or on which side it is wrong by more than the simulation's own error."""
        if self.coverage + 2 * self.uncertain < RIGHT[0]:
            return "too narrow"
        return "wide" if self.coverage - 2 * self.uncertain > RIGHT[1] else "right"


def answer(case: Case, *, repeats: int, seed: int) -> Answer:
    """Try a case so many times; each has random numbers of its own, whichever others are tried."""
    name = f"{case.interval}|{case.noise}".encode()
    rng = np.random.default_rng([seed, *name])
    trials = [case.trial(rng) for _ in range(max(1, round(repeats * case.share)))]
    held = sum(trial.holds for trial in trials)
    return Answer(case.interval, case.noise, len(trials), held, sum(trial.rounds for trial in trials) / len(trials))


def as_table(answers: Sequence[Answer]) -> str:
    """The answers in Markdown."""
    lines = ["| interval | noise | holds the truth | samples or cells | |", "|---|---|---|---|---|"]
    for each in answers:
        held = f"{each.coverage * 100:.1f} % (+-{2 * each.uncertain * 100:.1f})"
        lines.append(f"| {each.interval} | {each.noise} | {held} | {each.rounds:.0f} | {each.verdict} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whatever it finds: it is read, not passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000, help="simulations of a case; slopes take a part of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose interval has one of these words in its name")
    parser.add_argument("--before", action="store_true", help="the median as it was: a look after every round")
    parser.add_argument("--output", type=Path, help="write the counts as JSON")
    options = parser.parse_args(arguments)
    cases = [
        case
        for case in every_case(before=options.before)
        if not options.only or any(word in case.interval for word in options.only)
    ]
    if not cases:
        parser.error(f"--only: no interval has {' or '.join(options.only)} in its name")
    answers = []
    for case in cases:
        answers.append(answer(case, repeats=options.repeats, seed=options.seed))
        sys.stderr.write(f"{case.interval}, {case.noise}\n")
    sys.stdout.write(as_table(answers) + "\n")
    if options.output:
        write_atomically(options.output, (json.dumps([asdict(each) for each in answers], indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
