"""Does arithmetic tell latency? FLOPs beside measured time, phase by phase, and what tells it better.

Papers count FLOPs because they need no device. Whether they stand for latency is a question to the data: here every
phase of every cell is one point, FLOPs across and time up. Two reasons why points of equal FLOPs lie apart can be
named in advance. A decode step does little arithmetic and reads all weights, so memory sets its pace and not
arithmetic; the roofline's floor (`vlmeter.analysis.roofline`) knows that. And where the host sets the pace, no
property of the work tells the time.

All functions take the table with work and floors beside it (`roofline.beside`). Cells are resampled whole: the phases
of one cell, and the lengths of one photograph, err together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from vlmeter.analysis import prefill_cells, reading, step_times
from vlmeter.analysis.by_run import BY_RUN, frames_by_run
from vlmeter.analysis.reading import NO_ESTIMATE, Unknown, rows_of
from vlmeter.analysis.remembered import remembered
from vlmeter.analysis.runs import runs_of
from vlmeter.analysis.spread import with_modes
from vlmeter.numbers.clusters import added
from vlmeter.numbers.intervals import Array, correlation_estimate, squared
from vlmeter.numbers.medians import CONFIDENCE, MIN_SAMPLES_FOR_PERCENTILE, Estimate, median_estimate
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    DECODE,
    GENERATED,
    HEAD,
    HOOKS_WALL,
    LLM_BLOCKS,
    PLAIN_WALL,
    PROJECTOR,
    VISION_ENCODER,
)

#: Phases that share no time with one another: parts of a prefill, and decoding. Embedding and merge do no arithmetic.
IN_PREFILL = (VISION_ENCODER, PROJECTOR, LLM_BLOCKS, HEAD)
PARTS = tuple(quantity.name for quantity in (*IN_PREFILL, DECODE))

#: What a user waits for, in one piece: a prefill, and a prefill with its decode steps.
WHOLES = ("prefill", "request")

#: What the phases, and groups of them, are called.
NAMES = {
    **{quantity.name: quantity.label for quantity in (*IN_PREFILL, DECODE)},
    "parts": "all of these",
    "prefill": PLAIN_WALL.label,
    "request": GENERATED.words,
    "wholes": "whole prefills and requests",
}

#: Replicates of the bootstrap over cells.
REPLICATES = 2000

_FIELDS = ("cell_id", "crops", "prompt_tokens", "output_tokens", "flops", "floor_ms")

_COLUMNS = (*_FIELDS, "group", "phase", "latency_ms", "latency_low_ms", "latency_high_ms", "floor_bound", "pace")


@remembered
def points(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame | Unknown:
    """List work and time of every phase of every cell: one row is one point of a FLOPs-latency plot.

    Columns: cell_id, group (cells that err together), phase (of PARTS or WHOLES), crops, prompt_tokens, output_tokens,
    flops, floor_ms, latency_ms with its interval, floor_bound (arithmetic or traffic), pace (who sets it: launch-bound,
    device-bound, cannot tell), low_mode_ms and high_mode_ms (of a latency with two modes, else NaN).

    Phases are taken from the pass with marks (device time); a whole prefill is that without (wall time); a request is a
    generation with marks (wall time). A photograph's prefill is the same at every output length and counts once. Of
    several runs the times are means, and BY_RUN is a column more.
    """
    rows = reading.of_subject(table, subject)
    found = _points(rows)
    if not isinstance(found, Unknown):
        found = with_modes(found, rows, {"prefill": PLAIN_WALL.name, "request": HOOKS_WALL.name})
    frames = [own for run in runs_of(rows) if not isinstance(own := _points(run), Unknown)]
    if isinstance(found, Unknown) or len(frames) < 2:
        return found
    key, told = ["cell_id", "phase", "output_tokens"], [name for name in _COLUMNS if name.startswith("latency")]
    by_run: dict[Any, dict[int, dict[Any, Any]]] = {}
    for run, frame in enumerate(frames):
        for *point, values in zip(*(frame[name] for name in key), frame[told].to_dict("records"), strict=True):
            by_run.setdefault(tuple(point), {})[run] = values
    told_of = [by_run.get(tuple(point), {}) for point in zip(*(found[name] for name in key), strict=True)]
    return found.assign(by_run=pd.Series(told_of, index=found.index, dtype=object))


def _points(rows: pd.DataFrame) -> pd.DataFrame | Unknown:
    if "floor_ms" not in rows:
        return Unknown("work and the device's ceilings were not measured")
    rows = rows[rows["flops"].notna() & (rows["flops"] > 0) & (rows["floor_ms"] > 0) & (rows["median_ms"] > 0)]
    dummies = rows_of(rows, *IN_PREFILL, kind=kinds.PREFILL)
    photographs = rows_of(rows, *IN_PREFILL, kind=kinds.GENERATION).sort_values("output_tokens")
    parts = pd.concat([dummies, photographs.drop_duplicates(["image_index", "phase"], keep="last")])
    decodes = rows_of(rows, DECODE, kind=kinds.GENERATION).sort_values("source", ascending=False)
    decodes = decodes.drop_duplicates(["image_index", "output_tokens"])  # measured before derived
    prefills = rows_of(rows, PLAIN_WALL, kind=kinds.PREFILL)
    requests = rows_of(rows, HOOKS_WALL, kind=kinds.GENERATION)
    requests = requests[requests["output_tokens"] > 1]
    found = pd.concat([parts, decodes, prefills.assign(phase="prefill"), requests.assign(phase="request")])
    if found.empty:
        return Unknown("no phase with work and a floor was measured")
    frame = found[list(_FIELDS)].copy()
    frame["group"] = [
        str(cell) if pd.isna(image) else f"photograph {image}"
        for cell, image in zip(found["cell_id"], found["image_index"], strict=True)
    ]
    frame["phase"] = found["phase"].astype(str)
    for mine, theirs in (("latency_ms", "median_ms"), ("latency_low_ms", "low_ms"), ("latency_high_ms", "high_ms")):
        frame[mine] = found[theirs]
    frame["floor_bound"] = found["bound"]
    frame["pace"] = _paces(rows, frame)
    order = [*PARTS, *WHOLES]
    frame["place"] = [order.index(phase) for phase in frame["phase"]]
    return frame.sort_values(["place", "flops", "cell_id", "output_tokens"])[list(_COLUMNS)].reset_index(drop=True)


def _paces(table: pd.DataFrame, frame: pd.DataFrame) -> list[str]:
    cells = prefill_cells.vision_cells(table)
    known = dict(zip(cells["cell_id"], cells["bound"], strict=True))
    step = step_times.step_bound(table)
    decoding = "cannot tell" if isinstance(step, Unknown) else step.bound
    return [
        decoding if phase == DECODE.name else str(known.get(cell, "cannot tell"))
        for cell, phase in zip(frame["cell_id"], frame["phase"], strict=True)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# The bootstrap over cells


class _Bootstrap:
    """How often each point is drawn when its cells are drawn with replacement.

    One row of `draws` per replicate; the first row is the data as they are.
    """

    def __init__(self, groups: pd.Series[str], *, seed: int = 0) -> None:
        labels, codes = np.unique(groups.to_numpy(dtype=str), return_inverse=True)
        self.cells = len(labels)
        drawn = np.random.default_rng(seed).multinomial(
            self.cells, np.full(self.cells, 1 / self.cells), size=REPLICATES
        )
        self.draws: Array = np.vstack([np.ones(len(codes)), drawn[:, codes]]).astype(np.float64)

    def estimate(self, values: Array) -> Estimate:
        """Estimate from the values of all replicates, the data's own first; no interval from few cells."""
        if self.cells < MIN_SAMPLES_FOR_PERCENTILE[0.50] or math.isnan(values[0]):
            return Estimate(float(values[0]), math.nan, math.nan)
        tail = (1 - CONFIDENCE) / 2
        low, high = np.nanquantile(values[1:], [tail, 1 - tail])
        return Estimate(float(values[0]), float(low), float(high))

    def correlation(self, values: Array) -> Estimate:
        """Estimate of a correlation, likewise."""
        few = self.cells < MIN_SAMPLES_FOR_PERCENTILE[0.50] or math.isnan(values[0])
        return self.estimate(values) if few else correlation_estimate(values, self.cells)


def _centred(draws: Array, values: Array) -> Array:
    """Values [n] or [draws, n] less their weighted mean, per draw."""
    values = np.broadcast_to(values, draws.shape)
    return np.asarray(values - (draws * values).sum(axis=1, keepdims=True) / draws.sum(axis=1, keepdims=True))


def _correlate(draws: Array, first: Array, second: Array) -> tuple[Array, Array]:
    """Correlation, and slope of the second over the first, per draw; NaN where one of them does not vary."""
    one, other = _centred(draws, first), _centred(draws, second)
    both, ones, others = ((draws * part).sum(axis=1) for part in (one * other, one * one, other * other))
    # What is left of equal numbers after rounding is no variation.
    size = draws.sum(axis=1)
    vary = (ones > 1e-18 * size * np.square(first).max()) & (others > 1e-18 * size * np.square(second).max())
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.where(vary, both / np.sqrt(ones * others), np.nan)
        return np.asarray(found), np.asarray(np.where(vary, both / ones, np.nan))


def _ranks(draws: Array, values: Array) -> Array:
    """Ranks of the values among what is drawn, ties in the middle, per draw [draws, n]."""
    distinct, codes = np.unique(values, return_inverse=True)
    counts = draws @ (codes[:, None] == np.arange(len(distinct))).astype(np.float64)
    return np.asarray((counts.cumsum(axis=1) - counts / 2)[:, codes])


def _weighted_median(draws: Array, values: Array) -> Array:
    """Median of the values [n] or [draws, n] under the weights of each draw."""
    values = np.broadcast_to(values, draws.shape)
    order = np.argsort(values, axis=1)
    cumulated = np.take_along_axis(draws, order, axis=1).cumsum(axis=1)
    middle = (cumulated >= cumulated[:, -1:] / 2).argmax(axis=1)
    return np.asarray(np.take_along_axis(values, order, axis=1)[np.arange(len(draws)), middle])


# ---------------------------------------------------------------------------------------------------------------------
# How well FLOPs go with latency

RELATION_QUANTITIES = {
    "pearson": "linear correlation of FLOPs and latency",
    "spearman": "correlation of their ranks",
    "slope": "slope of latency over FLOPs in log-log: 1 is proportional, 0 is indifferent",
    "r_squared": "share of the variance of log latency that the line in log-log explains",
}

#: Where some of them end, whatever an interval over few runs says.
_ENDS = {"pearson": (-1.0, 1.0), "spearman": (-1.0, 1.0), "r_squared": (0.0, 1.0)}


def relations(found: pd.DataFrame) -> pd.DataFrame:
    """Say how FLOPs and latency go together among `points`, phase by phase and over several.

    One row per phase of PARTS, over all PARTS ("parts"), per whole, and over all WHOLES ("wholes"). Columns: phase,
    points, cells, smallest_flops, largest_flops, and RELATION_QUANTITIES with their bootstrap intervals over cells, of
    several runs with what differs between them; absent where FLOPs do not vary.
    """
    rows = _relations(found)
    frames = frames_by_run(found) if BY_RUN in found else []
    by_run = [{row["phase"]: row for row in _relations(own)} for own in frames]
    for row in rows:
        for quantity in RELATION_QUANTITIES:
            told = [reading.estimate_in(own[row["phase"]], quantity, "") for own in by_run if row["phase"] in own]
            whole = added(reading.estimate_in(row, quantity, ""), told)
            least, most = _ENDS.get(quantity, (-math.inf, math.inf))
            low, high = np.clip([whole.low, whole.high], least, most).tolist()
            row |= {quantity: whole.value, f"{quantity}_low": low, f"{quantity}_high": high}
    columns = ["phase", "points", "cells", "smallest_flops", "largest_flops"]
    columns += [f"{name}{end}" for name in RELATION_QUANTITIES for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=columns)


def _relations(found: pd.DataFrame) -> list[dict[str, Any]]:
    groups: list[tuple[tuple[str, ...], str]] = [((phase,), phase) for phase in PARTS] + [(PARTS, "parts")]
    groups += [((phase,), phase) for phase in WHOLES] + [(WHOLES, "wholes")]
    rows = []
    for phases, name in groups:
        own = found[found["phase"].isin(phases)]
        if len(own) < 3 or (len(phases) > 1 and own["phase"].nunique() < 2):
            continue
        flops, latency = (own[column].to_numpy(dtype=np.float64) for column in ("flops", "latency_ms"))
        bootstrap = _Bootstrap(own["group"])
        draws = bootstrap.draws
        in_logs, slope = _correlate(draws, np.log(flops), np.log(latency))
        told = {
            "pearson": bootstrap.correlation(_correlate(draws, flops, latency)[0]),
            "spearman": bootstrap.correlation(_correlate(draws, _ranks(draws, flops), _ranks(draws, latency))[0]),
            "slope": bootstrap.estimate(slope),
            "r_squared": squared(bootstrap.correlation(in_logs)),
        }
        row: dict[str, Any] = {"phase": name, "points": len(own), "cells": bootstrap.cells}
        row |= {"smallest_flops": float(flops.min()), "largest_flops": float(flops.max())}
        for quantity, estimate in told.items():
            row |= {quantity: estimate.value, f"{quantity}_low": estimate.low, f"{quantity}_high": estimate.high}
        rows.append(row)
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# Equal FLOPs


@dataclass(frozen=True)
class EqualFlops:
    """How much longer decoding takes than the LLM blocks of a prefill do for the same FLOPs.

    times: of measured time; floor_times: of the floors, which is how much the roofline expects. matched: whether both
    were measured at the same FLOPs (pairs of them, in the range given); if not, the time of one FLOP is compared.
    """

    times: Estimate
    floor_times: float
    matched: bool
    pairs: int
    smallest_flops: float
    largest_flops: float


Told = TypeVar("Told")


def equal_flops(found: pd.DataFrame) -> EqualFlops | Unknown:
    """Compare decoding with the LLM blocks of a prefill at equal FLOPs, among `points`.

    The blocks' time at a decode run's FLOPs is read off between its neighbours, on logarithmic axes. Cells of both are
    drawn for the interval.
    """
    across = _equal_flops(found)
    times = _told_by_runs(found, _equal_flops, lambda one: one.times)
    return across if isinstance(across, Unknown) else replace(across, times=added(across.times, times))


def _told_by_runs(
    found: pd.DataFrame, tell: Callable[[pd.DataFrame], Told | Unknown], of: Callable[[Told], Estimate]
) -> list[Estimate]:
    """What each run by itself says, of `points` of several; empty with one."""
    if BY_RUN not in found:
        return []
    return [of(one) for own in frames_by_run(found) if not isinstance(one := tell(own), Unknown)]


def _equal_flops(found: pd.DataFrame) -> EqualFlops | Unknown:
    decodes, blocks = (found[found["phase"] == phase.name] for phase in (DECODE, LLM_BLOCKS))
    if decodes.empty or blocks.empty:
        return Unknown("prefill and decode were not both measured")
    by_size = blocks.groupby("flops")[["latency_ms", "floor_ms"]].median()
    sizes = by_size.index.to_numpy(dtype=np.float64)
    inside = decodes[decodes["flops"].between(sizes.min(), sizes.max())]
    if len(inside):
        at = np.log(inside["flops"].to_numpy(dtype=np.float64))
        other = {
            name: np.exp(np.interp(at, np.log(sizes), np.log(by_size[name].to_numpy(dtype=np.float64))))
            for name in by_size
        }
        chosen, ends = inside, (float(inside["flops"].min()), float(inside["flops"].max()))
    else:
        other = {
            name: decodes["flops"].to_numpy(dtype=np.float64) * float((blocks[name] / blocks["flops"]).median())
            for name in by_size
        }
        chosen, ends = decodes, (math.nan, math.nan)
    bootstrap = _Bootstrap(pd.concat([chosen["group"], blocks["group"]]))
    of_decodes, of_blocks = np.split(bootstrap.draws, [len(chosen)], axis=1)
    measured = chosen["latency_ms"].to_numpy(dtype=np.float64)
    sides = blocks["flops"].to_numpy(dtype=np.float64), blocks["latency_ms"].to_numpy(dtype=np.float64)
    if len(inside):
        drawn = (of_blocks @ (sides[0][:, None] == sizes)) > 0
        known = np.log(sizes), np.log(by_size["latency_ms"].to_numpy(dtype=np.float64))
        others = np.array(
            [np.interp(at, *(side[one] for side in known)) if one.any() else at * np.nan for one in drawn]
        )
        ratios = measured / np.exp(others)
    else:
        rates = _weighted_median(of_blocks, sides[1] / sides[0])
        ratios = measured / (chosen["flops"].to_numpy(dtype=np.float64) * rates[:, None])
    estimate = bootstrap.estimate(_weighted_median(of_decodes, ratios))
    floors = chosen["floor_ms"].to_numpy(dtype=np.float64) / other["floor_ms"]
    return EqualFlops(estimate, float(np.median(floors)), bool(len(inside)), len(chosen), *ends)


@dataclass(frozen=True)
class PaceCost:
    """Time of one GFLOP of a whole prefill where the host sets the pace and where the device does, in ms."""

    launch_bound: Estimate
    device_bound: Estimate
    times: Estimate
    launch_bound_cells: int
    device_bound_cells: int


def pace_cost(found: pd.DataFrame) -> PaceCost | Unknown:
    """Compare what a FLOP of a prefill takes in launch-bound and in device-bound cells, among `points`."""
    across = _pace_cost(found)
    if isinstance(across, Unknown):
        return across
    return replace(
        across,
        launch_bound=added(across.launch_bound, _told_by_runs(found, _pace_cost, lambda one: one.launch_bound)),
        device_bound=added(across.device_bound, _told_by_runs(found, _pace_cost, lambda one: one.device_bound)),
        times=added(across.times, _told_by_runs(found, _pace_cost, lambda one: one.times)),
    )


def _pace_cost(found: pd.DataFrame) -> PaceCost | Unknown:
    whole = found[found["phase"] == "prefill"]
    costs = {
        pace: (1e9 * own["latency_ms"] / own["flops"]).to_numpy(dtype=np.float64) for pace, own in whole.groupby("pace")
    }
    if "launch-bound" not in costs or "device-bound" not in costs:
        return Unknown("not both launch-bound and device-bound prefills are known")
    one, other = (median_estimate(costs[pace].tolist()) for pace in ("launch-bound", "device-bound"))
    counts = (len(costs["launch-bound"]), len(costs["device-bound"]))
    return PaceCost(one, other, prefill_cells.over(one, other), *counts)


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs or roofline: which predicts a cell that it has not seen?

#: The models, by what they know of the work: at one rate or efficiency, and with a fitted power besides.
MODELS = {
    "flops": "FLOPs at one rate",
    "flops_power": "a power of FLOPs",
    "roofline": "roofline floor at one efficiency",
    "roofline_power": "a power of the roofline floor",
}


@dataclass(frozen=True)
class Models:
    """What each model of MODELS predicts for cells that were left out of its fit.

    frame: the `points` of PARTS, with `<model>_ms` beside them. errors: median relative error by model, every phase
    counting the same, over the smaller of predicted and measured: half and double are both 100 % off (the usual error,
    over the measured, calls whatever is far too low at most 100 % off and so favours low predictions; Tofallis, J.
    Oper. Res. Soc. 66, 2015). by_phase: the same, phase by phase, without intervals. gain: the error of the better
    model that knows FLOPs less that of the better one that knows floors, both over the same draws of cells. efficiency:
    floor over time, as fitted.
    """

    frame: pd.DataFrame
    errors: dict[str, Estimate]
    by_phase: dict[str, dict[str, float]]
    gain: Estimate
    efficiency: float

    def better(self, *models: str) -> str:
        """Return which of some models errs least."""
        return min(models, key=lambda model: self.errors[model].value)

    @property
    def best_flops(self) -> str:
        """The better model that knows only FLOPs."""
        return self.better("flops", "flops_power")

    @property
    def best_roofline(self) -> str:
        """The better model that knows the floor."""
        return self.better("roofline", "roofline_power")


def compare_models(found: pd.DataFrame) -> Models | Unknown:
    """Predict every cell's phases from the other cells, by FLOPs and by the roofline, and compare the errors.

    One number is fitted for all phases together, a rate or an efficiency; two with a power. Least squares on
    logarithms, since an error of half and one of double weigh the same; phases weigh the same however many points they
    have.
    """
    across = _compare_models(found)
    if isinstance(across, Unknown) or BY_RUN not in found:
        return across
    by_run = [one for own in frames_by_run(found) if not isinstance(one := _compare_models(own), Unknown)]
    gains = [one.errors[across.best_flops].value - one.errors[across.best_roofline].value for one in by_run]
    return replace(
        across,
        errors={model: added(error, [one.errors[model] for one in by_run]) for model, error in across.errors.items()},
        gain=added(across.gain, [Estimate(gain, math.nan, math.nan) for gain in gains]),
    )


def _compare_models(found: pd.DataFrame) -> Models | Unknown:
    frame = found[found["phase"].isin(PARTS)].reset_index(drop=True)
    groups = frame["group"].to_numpy(dtype=str)
    if frame["phase"].nunique() < 2 or len(np.unique(groups)) < 3:
        return Unknown("models are compared over two phases and three cells at least")
    weights = 1 / frame.groupby("phase")["flops"].transform("count").to_numpy(dtype=np.float64)
    flops, floors, measured = (
        np.log(frame[name].to_numpy(dtype=np.float64)) for name in ("flops", "floor_ms", "latency_ms")
    )
    sizes = {model: flops if model.startswith("flops") else floors for model in MODELS}
    predicted = {model: np.full(len(frame), np.nan) for model in MODELS}
    for group in np.unique(groups):
        out, kept = groups == group, groups != group
        for model, size in sizes.items():
            free = model.endswith("_power")
            slope, constant = _line(size[kept], measured[kept], weights[kept], free_slope=free)
            predicted[model][out] = slope * size[out] + constant
    wrong = {model: np.expm1(np.abs(predicted[model] - measured)) for model in MODELS}
    bootstrap = _Bootstrap(frame["group"])
    draws = bootstrap.draws * weights
    medians = {model: _weighted_median(draws, wrong[model]) for model in MODELS}
    errors = {model: bootstrap.estimate(medians[model]) for model in MODELS}
    _, constant = _line(floors, measured, weights, free_slope=False)
    found_models = Models(
        frame=frame.assign(**{f"{model}_ms": np.exp(predicted[model]) for model in MODELS}),
        errors=errors,
        by_phase={
            str(phase): {model: float(np.median(wrong[model][rows])) for model in MODELS}
            for phase, rows in frame.groupby("phase", sort=False).indices.items()
        },
        gain=NO_ESTIMATE,
        efficiency=math.exp(-constant),
    )
    gain = medians[found_models.best_flops] - medians[found_models.best_roofline]
    return replace(found_models, gain=bootstrap.estimate(gain))


def _line(size: Array, value: Array, weights: Array, *, free_slope: bool) -> tuple[float, float]:
    """Slope (1 unless it is free) and constant of a line, by least squares."""
    middle, height = float(np.average(size, weights=weights)), float(np.average(value, weights=weights))
    slope, spread = 1.0, float(np.sum(weights * (size - middle) ** 2))
    if free_slope:
        slope = float(np.sum(weights * (size - middle) * (value - height))) / spread if spread > 0 else 0.0
    return slope, height - slope * middle
