"""Intervals of what is made of many cells, of generations and of runs, on noise that is declared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats as distributions

from benchmarks.coverage_cells import CONSTANT_MS, CROP_MS, CROPS, normal_quantile
from benchmarks.coverage_noise import Case, Rng, Trial
from vlmeter.analysis.by_run import combined, with_runs
from vlmeter.analysis.components import shares_of
from vlmeter.analysis.decode_runs import DecodeLaw, decode_law
from vlmeter.analysis.distribution import FACTORS, TAIL_FRACTIONS, Sample, explain, gap_shares, variance_shares
from vlmeter.analysis.flops import equal_flops, relations
from vlmeter.analysis.prediction_laws import Forecast
from vlmeter.analysis.reading import Unknown, estimate_in
from vlmeter.numbers.clusters import over_runs, percentile_over_runs
from vlmeter.numbers.intervals import Array, fit_linear
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.resemblance import median_in_a_row
from vlmeter.table.quantities import DECODE, LLM_BLOCKS, PLAIN_WALL, WHOLE_REQUEST


def law_cases() -> Iterator[Case]:
    """Log-log slope and bend of decoding over output tokens."""
    lengths = np.array([8, 16, 32, 64, 128])

    def law(rng: Rng, images: int) -> DecodeLaw:
        steps, image = np.tile(lengths - 1, images).astype(float), np.repeat(np.arange(images), len(lengths))
        own = 0.01 * rng.standard_normal(images)[image]
        times = 15.8 * steps * np.exp(own + 0.005 * rng.standard_normal(len(steps)))
        found = decode_law(pd.DataFrame({"steps": steps, "image_index": image, DECODE.column: times}))
        assert not isinstance(found, Unknown)
        return found

    def slope(images: int) -> Callable[[Rng], Trial]:
        return lambda rng: Trial(law(rng, images).power["slope"], 1.0, images)

    def bend(images: int) -> Callable[[Rng], Trial]:
        return lambda rng: Trial(law(rng, images).curvature, 0.0, images)

    for images in (3, 10):
        for what, trial in (("log-log slope", slope), ("bend", bend)):
            name = f"{what} of decoding, {images} photographs"
            yield Case(name, "photographs 1 %, runs 0.5 %", trial(images), 0.15)


def share_cases() -> Iterator[Case]:
    """Share of a component over what was run."""

    def component(count: int) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            size = np.exp(0.3 * rng.standard_normal(count))  # long and short together
            parts = {
                part: ms * size * np.exp(0.05 * rng.standard_normal(count)) for part, ms in (("a", 3.0), ("b", 7.0))
            }
            return Trial(shares_of(parts)["a"], 0.3, count)

        return trial

    for count in (10, 300):
        noise = "they differ by 30 %, parts by 5 %"
        yield Case(f"share of a component, {count} generations", noise, component(count), 0.25)


#: What tells why requests are slow: the case's intervals, of which one trial gives all.
CAUSES = (
    "share of output tokens in the variance of latency",
    "rest of the variance of latency",
    "share of output tokens in the gap of slow requests",
    "gap of slow requests",
)


def cause_cases() -> Iterator[Case]:
    """What makes requests slow: shares of output tokens, what no factor explains, and the gap in ms."""

    def drawn(rng: Rng, count: int, *, lengths: tuple[int, ...], rest_ms: float) -> pd.DataFrame:
        outputs, crops = rng.choice(lengths, size=count), rng.integers(2, 14, size=count)
        prompt = 144 * crops + rng.integers(10, 200, size=count)
        pixels = crops * 112_896.0 * np.exp(0.2 * rng.standard_normal(count))
        rest = rest_ms * np.exp(0.3 * rng.standard_normal(count))
        names = [str(place) for place in range(count)]
        factors = {"generated_tokens": outputs, "prompt_tokens": prompt, "crops": crops, "image_px": pixels}
        times = 16.0 * outputs + 20.0 * crops + 0.026 * prompt + rest
        return pd.DataFrame({"image_id": names, "image_index": names, **factors, WHOLE_REQUEST.column: times})

    def of(count: int, lengths: tuple[int, ...], rest_ms: float) -> Callable[[Rng], list[Trial]]:
        @cache
        def truths() -> tuple[float, ...]:
            found = drawn(np.random.default_rng(7), 400_000, lengths=lengths, rest_ms=rest_ms)
            design, values = found[list(FACTORS)].to_numpy(np.float64), found[WHOLE_REQUEST.column].to_numpy(np.float64)
            gap_ms, gap = gap_shares(design, values, TAIL_FRACTIONS[-1])
            variance = variance_shares(design, values)
            return float(variance[1]), float(variance[0]), float(gap[1]), gap_ms

        def trial(rng: Rng) -> list[Trial]:
            requests = drawn(rng, count, lengths=lengths, rest_ms=rest_ms)
            found = explain(Sample(requests, disturbed=0, kept=False, failed=0))
            assert not isinstance(found, Unknown)
            output = "generated_tokens"
            told = (found.variance[output], found.variance["rest"], found.gap[output], found.gap_ms)
            return [Trial(one, true, count, name) for name, one, true in zip(CAUSES, told, truths(), strict=True)]

        return trial

    for count, lengths, rest_ms in (
        (300, (8, 16, 32, 64, 128), 100.0),
        (300, (8, 16, 24, 32), 400.0),
        (80, (8, 16, 24, 32), 400.0),
    ):
        noise = f"{count} requests of {lengths[0]} to {lengths[-1]} tokens, {rest_ms:g} ms of each by chance +-30 %"
        yield Case("why requests are slow", noise, of(count, lengths, rest_ms), 0.1, kinds=CAUSES)


def flops_cases() -> Iterator[Case]:
    """How FLOPs and latency go together over cells, and equal FLOPs in decode and prefill."""
    noise = "cells drawn, 10 % off the line"

    def drawn(rng: Rng, count: int) -> tuple[Array, Array]:
        flops = np.exp(rng.uniform(0, 3, count))
        return flops, flops**0.9 * np.exp(0.1 * rng.standard_normal(count))

    def cells(rng: Rng, phase: str, *, factor: float, count: int = 35) -> pd.DataFrame:
        gflops, each = drawn(rng, count)
        flops, times = 1e9 * gflops, factor * each
        groups = [f"{phase} {place}" for place in range(count)]
        told = {"flops": flops, "latency_ms": times, "floor_ms": flops / 1e10, "phase": phase, "group": groups}
        return pd.DataFrame(told)

    def relation(name: str, truth: Callable[[], float], count: int = 35) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            row = relations(cells(rng, LLM_BLOCKS.name, factor=1.0, count=count)).iloc[0]
            return Trial(estimate_in(row, name, ""), truth(), count)

        return trial

    @cache
    def many() -> tuple[Array, Array]:
        return drawn(np.random.default_rng(7), 1_000_000)

    @cache
    def linear() -> float:
        return float(np.corrcoef(*many())[0, 1])

    @cache
    def of_ranks() -> float:
        return float(np.corrcoef(*(distributions.rankdata(each) for each in many()))[0, 1])

    def explained() -> float:
        return 0.9**2 * 9 / 12 / (0.9**2 * 9 / 12 + 0.1**2)

    yield Case("slope over FLOPs in log-log, 35 cells", noise, relation("slope", lambda: 0.9), 0.15)
    for count in (35, 12):
        name = f"R squared over FLOPs in log-log, {count} cells"
        yield Case(name, noise, relation("r_squared", explained, count), 0.25)
    yield Case("linear correlation with FLOPs, 35 cells", noise, relation("pearson", linear), 0.25)
    yield Case("rank correlation with FLOPs, 35 cells", noise, relation("spearman", of_ranks), 0.25)

    def equal(rng: Rng) -> Trial:
        both = pd.concat([cells(rng, LLM_BLOCKS.name, factor=1.0), cells(rng, DECODE.name, factor=4.0)])
        found = equal_flops(both)
        assert not isinstance(found, Unknown)
        return Trial(found.times, 4.0, 35)

    yield Case("decode over prefill at equal FLOPs, 35 cells each", noise, equal, 0.15)


def run_cases() -> Iterator[Case]:
    """Several runs: what each of them says by itself, made one."""

    def offsets(rng: Rng, runs: int, apart: float) -> Array:
        return np.asarray(np.exp(apart * rng.standard_normal(runs)))

    def median_over(runs: int, apart: float) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            series = [own * np.exp(0.02 * rng.standard_normal(15)) for own in offsets(rng, runs, apart)]
            return Trial(over_runs([median_in_a_row(own.tolist()) for own in series]), 1.0, 15 * runs)

        return trial

    def percentile_over(rng: Rng) -> Trial:
        asked = np.exp(0.4 * rng.standard_normal(300))  # each run has the same requests
        found = percentile_over_runs([own * asked for own in offsets(rng, 3, 0.02)], 0.9)
        assert found is not None
        return Trial(found, math.exp(0.4 * normal_quantile(0.9)), 300)

    def frame(rng: Rng, runs: int, apart: float) -> pd.DataFrame:
        own = 0.005 * rng.standard_normal(len(CROPS))
        value, low, high = PLAIN_WALL.columns
        names, frames = [str(place) for place in range(len(CROPS))], []
        for offset in offsets(rng, runs, apart):
            times = offset * (CROP_MS * CROPS + CONSTANT_MS) * np.exp(own + 0.003 * rng.standard_normal(len(CROPS)))
            ends = {low: 0.995 * times, high: 1.005 * times}
            frames.append(pd.DataFrame({"cell_id": names, "crops": CROPS, value: times, **ends}))
        return combined(frames, [PLAIN_WALL], key=("cell_id",))

    def slope(own: pd.DataFrame) -> Estimate:
        columns = {"slope": own["crops"].to_numpy(np.float64), "constant": np.ones(len(own))}
        return fit_linear(columns, own[PLAIN_WALL.column].to_numpy(np.float64))["slope"]

    def slope_over(runs: int, apart: float) -> Callable[[Rng], Trial]:
        def trial(rng: Rng) -> Trial:
            found = with_runs(frame(rng, runs, apart), slope)
            assert not isinstance(found, Unknown)
            return Trial(found, CROP_MS, runs)

        return trial

    def prediction(rng: Rng) -> Trial:
        seen = offsets(rng, 4, 0.02).tolist()
        return Trial(Forecast(sum(seen[:3]) / 3, by_run_ms=tuple(seen[:3])).interval, seen[3], 3)

    for runs, apart in ((2, 0.02), (3, 0.004), (3, 0.02), (5, 0.02)):
        yield Case(f"median over {runs} runs", f"runs {apart * 100:g} % apart", median_over(runs, apart))
    yield Case("P90 of 300 requests, 3 runs", "runs 2 % apart, the same requests", percentile_over)
    for runs, apart in ((3, 0.004), (3, 0.02)):
        noise = f"runs {apart * 100:g} % apart, cells err by 0.5 % in all of them"
        yield Case(f"cost of a crop (slope), 35 cells, {runs} runs", noise, slope_over(runs, apart), 0.15)
    yield Case("prediction for a run that was not measured, 3 runs", "runs 2 % apart", prediction)
