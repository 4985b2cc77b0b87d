"""Intervals of a cell, and of the laws over cells, on noise that is declared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks.coverage_noise import MAX_ROUNDS, NOISES, Case, Noise, Rng, Trial, correlated, sampled
from vlmeter.analysis.decode_runs import decode_law
from vlmeter.analysis.distribution import tail_over_middle
from vlmeter.analysis.prediction_laws import Learnt, Observations, learn_prefill
from vlmeter.analysis.prefill_cells import over, pooled
from vlmeter.analysis.reading import Unknown
from vlmeter.numbers.intervals import (
    Array,
    fit_linear,
    paired_difference,
    paired_ratio,
    percentile_estimate,
    rank_correlation,
)
from vlmeter.numbers.medians import median_estimate, median_of_estimates
from vlmeter.numbers.resemblance import median_in_a_row, resemblance_in
from vlmeter.table.quantities import CLOSURE, DECODE

#: Cells of a session: what their rounds resemble each other by, they say together.
SESSION_CELLS = 12


def session_of(series: Sequence[Array], truths: Sequence[float]) -> list[Trial]:
    """The medians of a session's cells, as the table has them."""
    like = resemblance_in(series)
    return [
        Trial(median_in_a_row(own.tolist(), like=like), truth, len(own))
        for own, truth in zip(series, truths, strict=True)
    ]


def median_cases(*, before: bool) -> Iterator[Case]:
    """The median of a cell: sampled until it is known, and of a fixed number of rounds; in a session, and alone."""

    def until_known(noises: Sequence[Noise], cells: int) -> Callable[[Rng], Trial | list[Trial]]:
        def one(rng: Rng) -> Trial:
            found, count = sampled(noises[0].draw(rng, MAX_ROUNDS), before=True)
            return Trial(found, noises[0].truth(count), count)

        def session(rng: Rng) -> list[Trial]:
            drawn = [noises[place % len(noises)].draw(rng, MAX_ROUNDS) for place in range(cells)]
            taken = [own[: sampled(own, before=False)[1]] for own in drawn]
            return session_of(taken, [noises[place % len(noises)].truth(len(own)) for place, own in enumerate(taken)])

        return one if before else session

    def of_rounds(noise: Noise, count: int) -> Callable[[Rng], Trial | list[Trial]]:
        def one(rng: Rng) -> Trial:
            return Trial(median_estimate(noise.draw(rng, count).tolist()), noise.truth(count), count)

        def session(rng: Rng) -> list[Trial]:
            drawn = [noise.draw(rng, count) for _ in range(SESSION_CELLS)]
            return session_of(drawn, [noise.truth(count)] * SESSION_CELLS)

        return one if before else session

    for noise in NOISES:
        yield Case("median, until known within 1 %", noise.name, until_known([noise], SESSION_CELLS))
    for count in (5, 10, 15, 40):
        for noise in NOISES[1::2][:3]:
            yield Case(f"median of {count} rounds", noise.name, of_rounds(noise, count))
    if before:
        return
    independent, _, correlated_most = NOISES[1::2][:3]
    mixed = "half of the cells independent, half correlated 0.6; 2 %"
    yield Case("median in a session of unlike cells", mixed, until_known([independent, correlated_most], SESSION_CELLS))
    for noise in NOISES[1::2][:3]:
        yield Case("median of a cell alone, until known within 1 %", noise.name, until_known([noise], 1))


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
        one, other = (median_in_a_row(each.tolist()) for each in (2 * wall, busy))
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

    def of_few(cells: int, apart: float) -> Callable[[Rng], Trial]:
        truths = np.exp(apart * np.arange(SESSION_CELLS))

        def trial(rng: Rng) -> Trial:
            series = [truth * np.exp(0.02 * rng.standard_normal(15)) for truth in truths]
            session = session_of(series, truths.tolist())
            return Trial(
                median_of_estimates([own.found for own in session[:cells]]), float(np.median(truths[:cells])), 15
            )

        return trial

    for cells in (6, 9, 39):
        yield Case(f"closure over {cells} cells (median)", "cells differ by 0.5 %", closure(cells))
    for cells, apart in ((2, 0.1), (3, 0.1), (4, 0.1), (3, 0.0)):
        noise = "cells 10 % apart" if apart else "cells alike"
        yield Case(f"time of {cells} cells (interval of the middle)", noise, of_few(cells, apart))


def percentile_cases() -> Iterator[Case]:
    """Percentiles of requests, whose order is random, and the tail over the middle."""

    def of(fraction: float, count: int, correlation: float) -> Callable[[Rng], Trial]:
        truth = math.exp(0.4 * float(normal_quantile(fraction)))

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
        truth = math.exp(0.4 * float(normal_quantile(0.99)))

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


def normal_quantile(fraction: float) -> float:
    """Quantile of the standard normal distribution."""
    return NormalDist().inv_cdf(fraction)


def _wandering(fraction: float, wander: float) -> float:
    return math.exp(math.hypot(0.4, wander) * normal_quantile(fraction))


#: Crops and prompt tokens of Molmo's tilings, and what they cost: the gallery's laws, in ms.
TILINGS = tuple((h, w) for h in range(1, 13) for w in range(1, 13) if h * w <= 12)
CROPS = np.array([h * w + 1 for h, w in TILINGS], dtype=np.float64)
TOKENS = np.array([60 + 144 + (8 * h + 4) * (8 * w + 4) for h, w in TILINGS], dtype=np.float64)
CROP_MS, TOKEN_MS, CONSTANT_MS = 2.09, 0.0263, 4.5


#: Errors of cells as logarithms, and how far the session as a whole lies from others.
Errors = tuple[Array, float]


def slope_cases() -> Iterator[Case]:
    """What a crop and a token cost, alone and in a plane; what an output token costs."""

    def err(rng: Rng, count: int) -> Errors:
        return 0.005 * rng.standard_normal(count), 0.0

    def slow_ones(rng: Rng, count: int) -> Errors:
        return err(rng, count)[0] + 0.05 * (rng.random(count) < 0.1), 0.0

    def wander(rng: Rng, count: int) -> Errors:
        wandered = rng.permutation(correlated(rng, count, correlation=0.8, spread=0.005))
        return err(rng, count)[0] + wandered, float(wandered.mean())

    def wander_from_session_to_session(rng: Rng, count: int) -> Errors:
        return wander(rng, count)[0], 0.0

    wandering = "cells err by 0.5 % and wander by 0.5 %, correlated 0.8, in random order"
    errors: dict[str, Callable[[Rng, int], Errors]] = {
        "cells err by 0.5 %": err,
        "cells err by 0.5 %, one in ten is slow by 5 %": slow_ones,
        f"{wandering}; the truth of this session": wander,
        f"{wandering}; the truth of all sessions": wander_from_session_to_session,
    }

    def alone(draw: Callable[[Rng, int], Errors], chosen: npt.NDArray[np.intp]) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            crops = CROPS[chosen]
            error, session = draw(rng, len(crops))
            times = (CROP_MS * crops + CONSTANT_MS) * np.exp(error)
            found = fit_linear({"slope": crops, "constant": np.ones(len(crops))}, times)["slope"]
            return Trial(found, CROP_MS * math.exp(session), len(crops))

        return trial

    def plane(draw: Callable[[Rng, int], Errors], chosen: npt.NDArray[np.intp], term: str) -> Callable[[Rng], Trial]:
        truth = {"crop": CROP_MS, "token": TOKEN_MS}[term]

        def trial(rng: Rng) -> Trial:
            crops, tokens = CROPS[chosen], TOKENS[chosen]
            error, session = draw(rng, len(crops))
            times = (CROP_MS * crops + TOKEN_MS * tokens + CONSTANT_MS) * np.exp(error)
            columns = {"crop": crops, "token": tokens, "constant": np.ones(len(crops))}
            return Trial(fit_linear(columns, times)[term], truth * math.exp(session), len(crops))

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
    """Rank correlation of latency with vision tokens, over cells that were drawn."""

    def of(correlation: float, count: int) -> Callable[[Rng], Trial]:
        own = math.sqrt(1 - correlation**2)

        def trial(rng: Rng) -> Trial:
            first = rng.standard_normal(count)
            second = correlation * first + own * rng.standard_normal(count)
            return Trial(rank_correlation(first, second), 6 / math.pi * math.asin(correlation / 2), count)

        return trial

    for correlation, count in ((0.8, 39), (0.98, 39), (0.8, 12)):
        yield Case(f"rank correlation over {count} cells", f"correlated {correlation:g}", of(correlation, count), 0.25)
