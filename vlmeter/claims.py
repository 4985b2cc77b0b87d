"""Statements about latency, each judged by the data: holds, does not hold, cannot tell.

A claim is a small function of what was measured. It never raises on a study that is incomplete, and its wording
follows its verdict: what the data do not show is not said. Wherever a statement needs a limit ("about", "constant"),
the limit is a named constant with its reason, and the verdict looks at the whole interval: it holds if the interval
is within the limit, it does not if the interval is outside, and in between it cannot be told.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from vlmeter import analysis, analysis_flops, components, distribution, prediction
from vlmeter.analysis import Unknown
from vlmeter.files import write_atomically
from vlmeter.physics import beside
from vlmeter.stats import Estimate
from vlmeter.uncertainty import Array, correlation
from vlmeter.units import duration, duration_range, percent, significant
from vlmeter.wording import plural, with_interval

Verdict = Literal["holds", "does not hold", "cannot tell"]

#: Phases close if their sum is within 1 % of the total that was measured without marks.
CLOSURE_FRACTION = 0.01

#: Marks must not cost more than 1 % of a prefill.
OVERHEAD_FRACTION = 0.01

#: Decode is called linear, and a step's cost constant, up to 2 % of bend or growth: less than runs differ from day
#: to day.
LINEAR_FRACTION = 0.02

#: "Doubling doubles" and "slope 1" allow 5 %: a reader with a ruler would see more.
DOUBLING_FRACTION = 0.05
SLOPE_TOLERANCE = 0.05

#: A derived decode time stands for a direct one if it is within 1 %.
AGREEMENT_FRACTION = 0.01

#: Decode is near its floor if it takes up to 1.5 times as long: two thirds of the bandwidth are then in use.
NEAR_FLOOR_RATIO = 1.5

#: A model predicts latency if it is off by 20 % in the median, over all phases: good enough to choose a device by.
PREDICTS_FRACTION = 0.2

#: Equal FLOPs take equal time if decoding and prefill differ by less than a tenth.
EQUAL_TIME_FRACTION = 0.1

#: Predictions are good if a held-out cell is off by 10 % in the median.
PREDICTION_FRACTION = 0.1

#: Intervals hold if nine of ten do at least: nominally 95 % do, and the share itself is known from few cells.
COVERED_FRACTION = 0.9

#: A tail is called short up to twice the median: a user who waits for twice as long notices.
TAIL_RATIO = 2.0

#: Most of something is more than half of it.
MOST_OF_IT = 0.5

#: Latency is called explained if nine tenths of its variance are.
EXPLAINED_FRACTION = 0.9

#: Two shares are called the same up to ten points of a hundred.
SHARE_TOLERANCE = 0.1

#: What the lab notes' table says of tilings 1 x k: k -> vision tokens, as far as we have it. They capped k >= 8 at
#: 1344.
NOTES_TABLE_TOKENS = {2: 480, 8: 1344, 9: 1344, 10: 1344, 11: 1344}


@dataclass(frozen=True)
class Evidence:
    """One number behind a verdict; low and high are None where there is no interval."""

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str

    @classmethod
    def of(cls, name: str, estimate: Estimate, unit: str) -> Evidence:
        """Evidence from an estimate."""
        known = not (math.isnan(estimate.low) or math.isnan(estimate.high))
        return cls(name, estimate.value, estimate.low if known else None, estimate.high if known else None, unit)


@dataclass(frozen=True)
class Claim:
    """A judged statement.

    claim is what was to be judged; statement is what the data say, worded by the verdict.
    """

    name: str
    claim: str
    verdict: Verdict
    statement: str
    evidence: tuple[Evidence, ...] = ()
    figures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Finding:
    """What a claim's function returns: verdict, words and numbers."""

    verdict: Verdict
    statement: str
    evidence: tuple[Evidence, ...] = ()


def _unknown(reason: str) -> Finding:
    return Finding("cannot tell", f"Cannot be told: {reason}.")


class Data:
    """One subject's rows, and what several claims want of them."""

    def __init__(self, table: pd.DataFrame, physics: pd.DataFrame | None = None) -> None:
        self.table = table
        self.physics = physics

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Vision-token cells."""
        return analysis.vision_cells(self.table)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Generations by photograph and length."""
        return analysis.decode(self.table)

    @cached_property
    def law(self) -> analysis.DecodeLaw | Unknown:
        """How decode grows."""
        return analysis.decode_law(self.runs)

    @cached_property
    def requests(self) -> distribution.Sample:
        """Requests of the distribution."""
        return distribution.sample_of(self.table)

    @cached_property
    def explanation(self) -> distribution.Explanation | Unknown:
        """What makes requests slow."""
        return distribution.explain(self.requests)

    @cached_property
    def profile(self) -> components.Profile | Unknown:
        """Parts of a mean request, with their work where it is known."""
        table = self.table
        if self.physics is not None and "flops" in self.physics and "flops" not in table:
            table = beside(table, self.physics)
        return components.profile(table)

    @cached_property
    def spread(self) -> float:
        """How much a cell differs from visit to visit."""
        return analysis.sentinel_spread(self.table)

    @cached_property
    def subtraction_falls(self) -> list[analysis.Fall] | Unknown:
        """Where subtraction's LLM prefill falls."""
        return analysis.falls(self.cells, "subtraction_wall", spread_fraction=self.spread)

    @cached_property
    def points(self) -> pd.DataFrame | Unknown:
        """FLOPs and time of every phase of every cell."""
        if self.physics is None or self.physics.empty:
            return Unknown("the device's ceilings were not measured")
        return analysis_flops.points(beside(self.table, self.physics))

    @cached_property
    def models(self) -> analysis_flops.Models | Unknown:
        """How well FLOPs and floors predict latency."""
        return self.points if isinstance(self.points, Unknown) else analysis_flops.compare_models(self.points)

    @cached_property
    def held_out(self) -> pd.DataFrame | Unknown:
        """Every cell, predicted from the others."""
        return prediction.held_out(self.table)


def _ends(estimate: Estimate) -> tuple[float, float]:
    """Ends of the interval; the value twice where there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def within(estimate: Estimate, low: float, high: float) -> Verdict:
    """Judge whether an estimate lies between two limits: all of its interval, none of it, or neither."""
    bottom, top = _ends(estimate)
    if math.isnan(bottom):
        return "cannot tell"
    if low <= bottom and top <= high:
        return "holds"
    return "does not hold" if top < low or bottom > high else "cannot tell"


# ---------------------------------------------------------------------------------------------------------------------
# Vision tokens


def total_is_the_sum(data: Data) -> Finding:
    """T_total = T_vision + T_LLM_prefill: the phases of one marked pass against the total without marks."""
    cells = data.cells
    closure = analysis.pooled(cells, "closure", "_fraction")
    if isinstance(closure, Unknown):
        return _unknown(closure.reason)
    worst = float(cells["closure_fraction"].abs().max())
    between = ((cells["merge_ms"] + cells["head_ms"]) / cells["phases_ms"]).dropna()
    evidence = (
        Evidence.of("sum of phases over the total, minus 1", closure, "fraction"),
        Evidence("farthest cell", worst, None, None, "fraction"),
        Evidence("share of embedding, merge and head", float(between.median()), None, None, "fraction"),
    )
    verdict = within(closure, -CLOSURE_FRACTION, CLOSURE_FRACTION)
    numbers = (
        f"over {plural(len(cells), 'cell')} the phases of a marked pass differ from the total without marks by "
        f"{with_interval(closure, 'fraction')} in the median and by {percent(worst)} at most; embedding, merge and "
        f"head, which the sum of vision and LLM blocks leaves out, are {percent(float(between.median()))} of it"
    )
    start = {
        "holds": "The phases add up to the total",
        "does not hold": f"The phases do not add up to the total within {percent(CLOSURE_FRACTION, 1)}",
        "cannot tell": f"Whether the phases add up within {percent(CLOSURE_FRACTION, 1)} cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {numbers}.", evidence)


def hooks_above_subtraction(data: Data) -> Finding:
    """The notes found hooks 3.31 to 93.13 ms above subtraction."""
    difference = analysis.pooled(data.cells, "method_difference_wall")
    if isinstance(difference, Unknown):
        return _unknown(difference.reason)
    values = data.cells["method_difference_wall_ms"].dropna()
    span = f"from {duration_range(float(values.min()), float(values.max()))} over {plural(len(values), 'cell')}"
    evidence = (Evidence.of("hooks minus subtraction, wall time", difference, "ms"),)
    low, high = _ends(difference)
    said = f"{with_interval(difference, 'ms')} in the median, {span}"
    if low > 0:
        return Finding("holds", f"LLM prefill by hooks is above that by subtraction: by {said}.", evidence)
    if high < 0:
        return Finding("does not hold", f"LLM prefill by hooks is below that by subtraction: by {said}.", evidence)
    return Finding("cannot tell", f"Hooks and subtraction do not differ beyond noise: {said}.", evidence)


def subtraction_falls(data: Data) -> Finding:
    """The notes' puzzle: by subtraction, LLM prefill falls as vision tokens grow."""
    found = data.subtraction_falls
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    if not found:
        return Finding("does not hold", "By subtraction the LLM prefill falls nowhere beyond noise as tokens grow.")
    worst = found[0]
    return Finding(
        "holds",
        f"By subtraction the LLM prefill falls although tokens grow, in {plural(len(found), 'pair')} of cells beyond "
        f"noise; most from {duration(worst.from_ms)} at {worst.from_tokens:,} prompt tokens to {duration(worst.to_ms)} "
        f"at {worst.to_tokens:,}.",
        (Evidence("largest fall", worst.drop_ms, None, None, "ms"),),
    )


def falls_are_the_hosts(data: Data) -> Finding:
    """The explanation offered: subtraction falls where the host sets the pace, and not where the device does."""
    found = data.subtraction_falls
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    if not found:
        return _unknown("subtraction falls nowhere beyond noise, so there is nothing to explain")
    bounds = data.cells.groupby("prompt_tokens")["bound"].agg(set)
    kinds = [bounds[fall.from_tokens] | bounds[fall.to_tokens] for fall in found]
    host = sum("launch-bound" in kind for kind in kinds)
    device = sum(kind == {"device-bound"} for kind in kinds)
    evidence = (
        Evidence("falls with a launch-bound cell", host, None, None, ""),
        Evidence("falls among device-bound cells alone", device, None, None, ""),
    )
    if not host and not device:
        return replace(_unknown(str(data.cells["bound_reason"].iloc[0])), evidence=evidence)
    if device:
        return Finding(
            "does not hold",
            f"Subtraction falls in {plural(device, 'pair')} of cells that are both device-bound: there the host does "
            "not explain it.",
            evidence,
        )
    return Finding(
        "holds" if host == len(found) else "cannot tell",
        f"In {host} of {len(found)} pairs of cells in which subtraction falls, the host sets the pace in one at least.",
        evidence,
    )


def hooks_rise(data: Data) -> Finding:
    """By hooks, LLM prefill rises with vision tokens."""
    cells = data.cells.dropna(subset=["language_ms"])
    found = analysis.falls(cells, "language", spread_fraction=data.spread)
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    tokens = cells["prompt_tokens"].to_numpy(dtype=np.float64)
    rank = correlation(tokens, cells["language_ms"].to_numpy(dtype=np.float64), method="spearman")
    evidence = (Evidence.of("rank correlation of LLM prefill and tokens", rank, ""),)
    if found:
        worst = found[0]
        return Finding(
            "does not hold",
            f"By hooks the LLM prefill does not rise everywhere: it falls by {duration(worst.drop_ms)} from "
            f"{worst.from_tokens:,} to {worst.to_tokens:,} prompt tokens (rank correlation {with_interval(rank, '')}).",
            evidence,
        )
    if _ends(rank)[0] > 0:
        return Finding(
            "holds",
            f"By hooks the LLM prefill rises with tokens, from {duration(float(cells['language_ms'].iloc[0]))} to "
            f"{duration(float(cells['language_ms'].iloc[-1]))}, and falls nowhere beyond noise (rank correlation "
            f"{with_interval(rank, '')}).",
            evidence,
        )
    return Finding(
        "cannot tell",
        f"No rise of LLM prefill with tokens is seen (rank correlation {with_interval(rank, '')}).",
        evidence,
    )


def launch_bound_below(data: Data) -> Finding:
    """At small sizes the host sets the pace."""
    found = analysis.crossover(data.cells)
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    last, first = found.last_launch_bound_tokens, found.first_device_bound_tokens
    evidence: tuple[Evidence, ...] = (
        Evidence("launch-bound cells", found.launch_bound_cells, None, None, ""),
        Evidence("device-bound cells", found.device_bound_cells, None, None, ""),
    )
    if last is None:
        return Finding(
            "does not hold",
            f"No prefill is launch-bound: the device sets the pace from {first:,} prompt tokens on, the least "
            "measured.",
            evidence,
        )
    evidence += (Evidence("last launch-bound cell", last, None, None, "tokens"),)
    if first is None:
        return Finding(
            "holds", f"Every prefill up to {last:,} prompt tokens that can be judged is launch-bound.", evidence
        )
    evidence += (Evidence("first device-bound cell", first, None, None, "tokens"),)
    if found.clean:
        return Finding(
            "holds",
            f"Up to {last:,} prompt tokens a prefill is launch-bound, from {first:,} on it is device-bound.",
            evidence,
        )
    return Finding(
        "cannot tell",
        f"There are launch-bound prefills of up to {last:,} prompt tokens and device-bound ones from {first:,} on: "
        "tokens alone do not decide.",
        evidence,
    )


def crops_and_tokens_cost_apart(data: Data) -> Finding:
    """Crops and tokens are two factors, and each has its cost."""
    clock = analysis.cost_clock(data.cells)
    fit = analysis.two_factor(data.cells, clock.quantity)
    if isinstance(fit, Unknown):
        return _unknown(fit.reason)
    crop, token = fit["crop"], analysis.scaled(fit["token"], 1000)
    evidence = (Evidence.of("one more crop", crop, "ms"), Evidence.of("1,000 more prompt tokens", token, "ms"))
    said = f"one more crop {with_interval(crop, 'ms')}, 1,000 more prompt tokens {with_interval(token, 'ms')}"
    lows = (_ends(crop)[0], _ends(token)[0])
    if min(lows) > 0:
        return Finding("holds", f"Both cost time of their own: {said} of {clock.name}.", evidence)
    if max(_ends(crop)[1], _ends(token)[1]) <= 0:
        return Finding("does not hold", f"Neither is seen to cost time: {said} of {clock.name}.", evidence)
    which = "crops" if lows[0] <= 0 else "tokens"
    return Finding("cannot tell", f"That {which} cost time of their own is not seen: {said} of {clock.name}.", evidence)


def hook_overhead_within_bound(data: Data) -> Finding:
    """Marks do not change what they measure."""
    overhead = analysis.pooled(data.cells, "overhead", "_fraction")
    if isinstance(overhead, Unknown):
        return _unknown(overhead.reason)
    evidence = (Evidence.of("wall time with marks over without, minus 1", overhead, "fraction"),)
    verdict = within(overhead, -math.inf, OVERHEAD_FRACTION)
    said = f"{with_interval(overhead, 'fraction')} over {plural(len(data.cells), 'cell')}"
    limit = percent(OVERHEAD_FRACTION, 1)
    start = {
        "holds": f"Marks cost less than {limit}",
        "does not hold": f"Marks cost more than {limit}",
        "cannot tell": f"Whether marks cost less than {limit} cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def token_table_exact(data: Data) -> Finding:
    """Tiling i x j gives i j + 1 crops, 144 + (8 i + 4)(8 j + 4) vision tokens and 8 i + 20 special ones."""
    tiled = _tiled(data)
    if tiled is None:
        return _unknown("no cell with a tiling of Molmo's was measured")
    rows, columns = (tiled[name].to_numpy(dtype=np.int64) for name in ("tiling_h", "tiling_w"))
    exact = (
        (tiled["crops"].to_numpy(dtype=np.int64) == rows * columns + 1)
        & (tiled["vision_tokens"].to_numpy(dtype=np.int64) == 144 + (8 * rows + 4) * (8 * columns + 4))
        & (tiled["special_tokens"].to_numpy(dtype=np.int64) == 8 * rows + 20)
    )
    evidence = (Evidence("cells that agree", int(exact.sum()), None, None, ""),)
    if exact.all():
        text = (
            f"What was counted in the model's inputs is i j + 1 crops, 144 + (8 i + 4)(8 j + 4) vision tokens and 8 i "
            f"+ 20 special tokens for tiling i x j, in each of {plural(len(tiled), 'cell')}."
        )
        return Finding("holds", text, evidence)
    wrong = tiled[~exact].iloc[0]
    return Finding(
        "does not hold",
        f"{int((~exact).sum())} of {plural(len(tiled), 'cell')} hold other counts than their tiling's formula, such as "
        f"{wrong['cell_id']} with {wrong['crops']} crops and {wrong['vision_tokens']:,} vision tokens.",
        evidence,
    )


def notes_token_table(data: Data) -> Finding:
    """The notes' table: 1 x 2 gives 480 vision tokens, and from 1 x 8 on there are 1344."""
    tiled = _tiled(data)
    if tiled is None:
        return _unknown("no cell with a tiling of Molmo's was measured")
    ones = tiled[(tiled["tiling_h"] == 1) & tiled["tiling_w"].isin(list(NOTES_TABLE_TOKENS))]
    if ones.empty:
        return _unknown("none of the tilings that the notes' table gets wrong was measured")
    counted = {int(row["tiling_w"]): int(row["vision_tokens"]) for row in ones.to_dict("records")}
    unlike = {k: tokens for k, tokens in sorted(counted.items()) if tokens != NOTES_TABLE_TOKENS[k]}
    evidence = tuple(Evidence(f"vision tokens of 1x{k}", tokens, None, None, "tokens") for k, tokens in counted.items())
    if not unlike:
        return Finding("holds", "The counted vision tokens are those of the notes' table.", evidence)
    said = "; ".join(f"1x{k} has {tokens:,}, not {NOTES_TABLE_TOKENS[k]:,}" for k, tokens in unlike.items())
    return Finding("does not hold", f"The notes' token table is not what the model's inputs hold: {said}.", evidence)


def _tiled(data: Data) -> pd.DataFrame | None:
    """Vision cells of Molmo with a tiling; None without any."""
    cells = data.cells.dropna(subset=["tiling_h", "tiling_w"])
    molmo = not data.table.empty and bool((data.table["family"] == "molmo").all())
    return cells if molmo and len(cells) else None


# ---------------------------------------------------------------------------------------------------------------------
# Output tokens


def decode_linear_without_offset(data: Data) -> Finding:
    """T_decode = k (N - 1) + b with b near zero."""
    law = data.law
    if isinstance(law, Unknown):
        return _unknown(law.reason)
    cost, offset = law.line["per_token"], law.line["constant"]
    # An offset smaller than one step is one that no user sees.
    straight = within(law.curvature, -LINEAR_FRACTION, LINEAR_FRACTION)
    small = within(offset, -abs(cost.value), abs(cost.value))
    evidence = (
        Evidence.of("cost of a token", cost, "ms"),
        Evidence.of("constant", offset, "ms"),
        Evidence.of("bend at the longest output", law.curvature, "fraction"),
    )
    parts = f"{with_interval(cost, 'ms')} per token, constant {with_interval(offset, 'ms')}"
    if not math.isnan(law.curvature.value):
        parts += f", bend {with_interval(law.curvature, 'fraction')} at {law.longest_tokens:,} tokens"
    if straight == small == "holds":
        return Finding(
            "holds", f"Decode is linear in the output tokens with a constant below one step: {parts}.", evidence
        )
    if straight == "does not hold":
        return Finding(
            "does not hold", f"Decode is not linear within {percent(LINEAR_FRACTION, 1)}: {parts}.", evidence
        )
    if small == "does not hold":
        return Finding("does not hold", f"The constant of decode is larger than one step: {parts}.", evidence)
    why = "three output lengths are needed to see a bend" if math.isnan(law.curvature.value) else "intervals are wide"
    return Finding("cannot tell", f"Whether decode is linear cannot be told, since {why}: {parts}.", evidence)


def doubling_doubles(data: Data) -> Finding:
    """Twice the output tokens take twice the decode time."""
    growth = analysis.growth(data.runs)
    pairs = growth[growth["to_tokens"] == 2 * growth["from_tokens"]]
    if pairs.empty:
        return _unknown("no output length was measured together with its double")
    low, high = 2 * (1 - DOUBLING_FRACTION), 2 * (1 + DOUBLING_FRACTION)
    ratios = [analysis.estimate_in(row, "ratio", "") for row in pairs.to_dict("records")]
    verdicts = [within(ratio, low, high) for ratio in ratios]
    evidence = tuple(
        Evidence.of(f"T({int(row['to_tokens'])}) / T({int(row['from_tokens'])})", ratio, "")
        for row, ratio in zip(pairs.to_dict("records"), ratios, strict=True)
    )
    limit = percent(DOUBLING_FRACTION, 1)
    if all(verdict == "holds" for verdict in verdicts):
        return Finding("holds", f"Each doubling of the output tokens doubles decode time, within {limit}.", evidence)
    off = [place for place, verdict in enumerate(verdicts) if verdict == "does not hold"]
    if off:
        said = "; ".join(
            f"from {int(pairs['from_tokens'].iloc[place])} to {int(pairs['to_tokens'].iloc[place])} tokens it is "
            f"{with_interval(ratios[place], '')} times"
            for place in off
        )
        fine = [int(pairs["from_tokens"].iloc[place]) for place, verdict in enumerate(verdicts) if verdict == "holds"]
        rest = (
            f" From {min(fine)} tokens on it does."
            if fine and min(fine) > int(pairs["from_tokens"].iloc[max(off)])
            else ""
        )
        first = " (N tokens take N - 1 steps)" if int(pairs["from_tokens"].iloc[off[0]]) < 64 else ""
        return Finding("does not hold", f"Doubling does not double everywhere{first}: {said}.{rest}", evidence)
    return Finding(
        "cannot tell", f"Whether each doubling doubles within {limit} cannot be told from the intervals.", evidence
    )


def log_log_slope_is_one(data: Data) -> Finding:
    """In log-log, decode time over output tokens is a line of slope 1."""
    law = data.law
    if isinstance(law, Unknown):
        return _unknown(law.reason)
    slope, over_tokens = law.power["slope"], law.power_tokens["slope"]
    evidence = (
        Evidence.of("slope over decode steps", slope, ""),
        Evidence.of("slope over output tokens", over_tokens, ""),
    )
    verdict = within(slope, 1 - SLOPE_TOLERANCE, 1 + SLOPE_TOLERANCE)
    growth = analysis.growth(data.runs)
    local = [
        (row, within(analysis.estimate_in(row, "slope_steps", ""), 1 - SLOPE_TOLERANCE, 1 + SLOPE_TOLERANCE))
        for row in growth.to_dict("records")
    ]
    off = [
        f"{int(row['from_tokens'])} to {int(row['to_tokens']):,}" for row, found in local if found == "does not hold"
    ]
    start = {
        "holds": "The slope in log-log is 1",
        "does not hold": "The slope in log-log is not 1",
        "cannot tell": "Whether the slope in log-log is 1 cannot be told",
    }
    text = (
        f"{start[verdict]}: {with_interval(slope, '')} over decode steps, {with_interval(over_tokens, '')} over output "
        "tokens."
    )
    text += f" Piece by piece it is away from 1 between {', '.join(off)} tokens." if off else ""
    return Finding(verdict, text, evidence)


def constant_cost_per_token(data: Data) -> Finding:
    """Every output token costs the same."""
    law = analysis.step_law(data.table)
    if isinstance(law, Unknown):
        return _unknown(law.reason)
    low, high = float(law.contexts.min()), float(law.contexts.max())
    base = law.fit["constant"].value + law.fit["per_context_token"].value * low
    if not base > 0:
        return _unknown("the fitted time of the first step is not positive")
    growth = analysis.scaled(law.fit["per_context_token"], (high - low) / base)
    evidence = (Evidence.of("growth of a step over the measured contexts", growth, "fraction"),)
    verdict = within(growth, -LINEAR_FRACTION, LINEAR_FRACTION)
    said = f"from {low:,.0f} to {high:,.0f} tokens in context a step grows by {with_interval(growth, 'fraction')}"
    limit = percent(LINEAR_FRACTION, 1)
    start = {
        "holds": f"The cost of a token is constant within {limit}",
        "does not hold": f"The cost of a token is not constant within {limit}",
        "cannot tell": f"Whether the cost of a token is constant within {limit} cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def prefill_share_falls(data: Data) -> Finding:
    """The longer the output, the smaller the prefill's share."""
    shares = analysis.by_length(data.runs, "share", "_fraction")
    ratios = analysis.by_length(data.runs, "of_decode", "_fraction")
    if len(shares) < 2:
        return _unknown("two output lengths are needed")
    first, last = shares.iloc[0], shares.iloc[-1]
    ends = [Estimate(float(row["value"]), float(row["low"]), float(row["high"])) for row in (first, last)]
    said = " to ".join(
        f"{with_interval(end, 'fraction')} of prefill and decode ({percent(float(ratio))} of decode) at "
        f"{int(row['output_tokens']):,} tokens"
        for end, row, ratio in zip(
            ends, (first, last), (ratios["value"].iloc[0], ratios["value"].iloc[-1]), strict=True
        )
    )
    evidence = tuple(
        Evidence.of(f"share at {int(row['output_tokens'])} tokens", end, "fraction")
        for end, row in zip(ends, (first, last), strict=True)
    )
    if ends[1].high < ends[0].low:
        return Finding("holds", f"The prefill's share falls from {said}.", evidence)
    verdict: Verdict = "does not hold" if ends[1].low > ends[0].high else "cannot tell"
    return Finding(verdict, f"The prefill's share is not seen to fall: from {said}.", evidence)


def derived_agrees_with_direct(data: Data) -> Finding:
    """One long run holds every shorter one."""
    found = analysis.agreement(data.table)
    if found.empty:
        return _unknown("no output length was both run directly and contained in a longer run of the same photograph")
    difference = analysis.pooled(found, "difference", "_fraction")
    assert isinstance(difference, Estimate)
    judged = found["agrees"].dropna()
    evidence = (
        Evidence.of("derived over direct, minus 1", difference, "fraction"),
        Evidence("runs whose intervals overlap", int(judged.sum()), None, None, f"of {len(judged)}"),
    )
    verdict = within(difference, -AGREEMENT_FRACTION, AGREEMENT_FRACTION)
    said = (
        f"the first steps of long runs differ from {plural(len(found), 'direct run')} by "
        f"{with_interval(difference, 'fraction')} in the median"
    )
    if len(judged):
        said += f", and the intervals of {int(judged.sum())} of {len(judged)} overlap"
    start = {
        "holds": f"A long run holds the shorter ones, within {percent(AGREEMENT_FRACTION, 1)}",
        "does not hold": "A long run does not stand for the shorter ones",
        "cannot tell": "Whether a long run stands for the shorter ones cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def decode_launch_bound(data: Data) -> Finding:
    """The host sets the pace of decoding."""
    found = analysis.step_bound(data.table)
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    evidence = (
        Evidence.of("decode step, device time with gaps", found.step, "ms"),
        Evidence.of("device busy with a step", found.busy, "ms"),
        Evidence.of("step over busy time", found.wall_over_busy, "times"),
    )
    times = (
        f"a step takes {with_interval(found.step, 'ms')}, of which the device is busy for "
        f"{with_interval(found.busy, 'ms')} (replayed as a CUDA graph)"
    )
    if found.bound == "launch-bound":
        return Finding("holds", f"Decode is launch-bound: {times}; the rest it waits for the host.", evidence)
    if found.bound == "device-bound":
        return Finding("does not hold", f"Decode is not launch-bound: {times}.", evidence)
    return Finding("cannot tell", f"What sets the pace of decoding cannot be told: {times}.", evidence)


def decode_near_floor(data: Data) -> Finding:
    """Decode runs near the memory's limit."""
    if data.physics is None or data.physics.empty:
        return _unknown("the device's ceilings were not measured")
    rows = data.physics[(data.physics["phase"] == "inter_token") & (data.physics["arm"] == "hooks")]
    rows = rows[(rows["floor_ms"] > 0) & rows["median_ms"].notna()]
    if rows.empty:
        return _unknown("no decode step has a floor")
    longest = rows[rows["output_tokens"] == rows["output_tokens"].max()]
    values: Array = (longest["median_ms"] / longest["floor_ms"]).to_numpy(dtype=np.float64)
    ratio = analysis.pooled(pd.DataFrame({"ratio": values}), "ratio", "")
    assert isinstance(ratio, Estimate)
    floor = float(longest["floor_ms"].median())
    evidence = (
        Evidence.of("decode step over its floor", ratio, "times"),
        Evidence("floor of a decode step", floor, None, None, "ms"),
    )
    verdict = within(ratio, 0.0, NEAR_FLOOR_RATIO)
    start = {
        "holds": f"Decode runs within {NEAR_FLOOR_RATIO} times its floor",
        "does not hold": f"Decode does not run within {NEAR_FLOOR_RATIO} times its floor",
        "cannot tell": f"Whether decode runs within {NEAR_FLOOR_RATIO} times its floor cannot be told",
    }
    said = (
        f"a step takes {with_interval(ratio, '')} times the {duration(floor)} that reading weights and cache takes at "
        "least"
    )
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


# ---------------------------------------------------------------------------------------------------------------------
# Many requests, and the components


def tail_within_twice_the_middle(data: Data) -> Finding:
    """One request in a hundred may take longer than the median, but not much."""
    ratio = distribution.tail_over_middle(data.requests.requests["total_ms"].to_numpy(dtype=np.float64))
    if isinstance(ratio, Unknown):
        return _unknown(ratio.reason)
    verdict = within(ratio, 0.0, TAIL_RATIO)
    start = {
        "holds": f"P99 is within {TAIL_RATIO:g} times the median",
        "does not hold": f"P99 is more than {TAIL_RATIO:g} times the median",
        "cannot tell": f"Whether P99 is within {TAIL_RATIO:g} times the median cannot be told",
    }
    said = f"{with_interval(ratio, '')} times over {plural(data.requests.size, 'request')}"
    return Finding(verdict, f"{start[verdict]}: {said}.", (Evidence.of("P99 over P50", ratio, "times"),))


def tail_is_output_length(data: Data) -> Finding:
    """Slow requests are slow because they write more."""
    found = data.explanation
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    if "generated_tokens" in found.fixed:
        reason = found.fixed["generated_tokens"]
        return Finding("does not hold", f"The tail is not made by output length, since {reason}.")
    share = found.gap["generated_tokens"]
    evidence = (
        Evidence.of("gap between the slowest requests and the middle", found.gap_ms, "ms"),
        *(
            Evidence.of(f"share of {distribution.FACTORS.get(name, 'nothing known')}", one, "fraction")
            for name, one in found.gap.items()
        ),
    )
    verdict = within(share, MOST_OF_IT, math.inf)
    start = {
        "holds": "Most of the tail is made by output length",
        "does not hold": "Most of the tail is not made by output length",
        "cannot tell": "Whether most of the tail is made by output length cannot be told",
    }
    said = (
        f"it accounts for {with_interval(share, 'fraction')} of the {with_interval(found.gap_ms, 'ms')} by which the "
        f"slowest {percent(found.tail_fraction, 1)} of the requests take longer than those in the middle"
    )
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def requests_explain_their_latency(data: Data) -> Finding:
    """Output tokens, prompt tokens, crops and pixels tell how long a request takes."""
    found = data.explanation
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    rest = found.variance["rest"]
    evidence = tuple(
        Evidence.of(f"share of {distribution.FACTORS.get(name, 'nothing known')}", one, "fraction")
        for name, one in found.variance.items()
    )
    verdict = within(rest, -math.inf, 1 - EXPLAINED_FRACTION)
    limit = percent(EXPLAINED_FRACTION, 2)
    start = {
        "holds": f"What a request is explains {limit} of the variance of its latency or more",
        "does not hold": f"What a request is explains less than {limit} of the variance of its latency",
        "cannot tell": f"Whether what a request is explains {limit} of the variance of its latency cannot be told",
    }
    said = f"{with_interval(rest, 'fraction')} is accounted for by none of {_listed(found.factors)}"
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def _listed(factors: Sequence[str]) -> str:
    words = [distribution.FACTORS[name] for name in factors]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def parameters_are_not_time(data: Data) -> Finding:
    """A component's share of the parameters is not its share of the time."""
    return _shares_differ(data, "parameters", "of the prefill's time")


def flops_are_not_time(data: Data) -> Finding:
    """A component's share of the arithmetic is not its share of the time."""
    return _shares_differ(data, "flops", "of the time")


def _shares_differ(data: Data, quantity: str, whole: str) -> Finding:
    found = data.profile
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    apart = components.disagreement(found, quantity)
    if isinstance(apart, Unknown):
        return _unknown(apart.reason)
    name = components.QUANTITIES[quantity]
    distance = apart.distance
    evidence = (
        Evidence("share of the " + name, apart.share, None, None, "fraction"),
        Evidence.of(f"share {whole}", apart.time_share, "fraction"),
    )
    near = within(distance, -SHARE_TOLERANCE, SHARE_TOLERANCE)
    said = (
        f"{components.NAMES[apart.part]} has {percent(apart.share)} of the {name} and "
        f"{with_interval(apart.time_share, 'fraction')} {whole}"
    )
    if near == "does not hold":
        return Finding("holds", f"Share of {name} is not share of time: {said}.", evidence)
    if near == "holds":
        return Finding("does not hold", f"Share of {name} is share of time, nearly: at most, {said}.", evidence)
    return Finding("cannot tell", f"Whether share of {name} is share of time cannot be told: {said}.", evidence)


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs against latency


def flops_predict_latency(data: Data) -> Finding:
    """FLOPs, at one rate for all phases or to a power, say how long a phase takes."""
    points, models = data.points, data.models
    if isinstance(points, Unknown):
        return _unknown(points.reason)
    if isinstance(models, Unknown):
        return _unknown(models.reason)
    relations = analysis_flops.relations(points).set_index("phase")
    known = {
        label: analysis.estimate_in(relations.loc["parts"], name, "")
        for name, label in (("r_squared", "R² over all phases"), ("spearman", "rank correlation over all phases"))
    }
    known = {label: estimate for label, estimate in known.items() if not math.isnan(estimate.value)}
    error = models.errors[models.best_flops]
    evidence = (
        Evidence.of("error of FLOPs at one rate", models.errors["flops"], "fraction"),
        Evidence.of("error of a power of FLOPs", models.errors["flops_power"], "fraction"),
        *(Evidence.of(label, estimate, "") for label, estimate in known.items()),
    )
    verdict = within(error, 0.0, PREDICTS_FRACTION)
    limit = percent(PREDICTS_FRACTION, 1)
    start = {
        "holds": f"FLOPs predict latency within {limit}",
        "does not hold": f"FLOPs do not predict latency within {limit}",
        "cannot tell": f"Whether FLOPs predict latency within {limit} cannot be told",
    }
    inside = relations.loc[[name for name in analysis_flops.PARTS if name in relations.index], "r_squared"].dropna()
    said = f"a cell that was left out is off by {with_interval(error, 'fraction')} in the median over all phases"
    details = [f"{label} {with_interval(estimate, '')}" for label, estimate in known.items()]
    said += f" ({'; '.join([analysis_flops.MODELS[models.best_flops], *details])})"
    if len(inside):
        said += f", although within a phase R² reaches {significant(float(inside.max()), 3)}"
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def roofline_beats_flops(data: Data) -> Finding:
    """The roofline's floor predicts latency better than FLOPs do, with as many numbers fitted."""
    models = data.models
    if isinstance(models, Unknown):
        return _unknown(models.reason)
    errors = {model: with_interval(error, "fraction") for model, error in models.errors.items()}
    evidence = (
        *(Evidence.of(f"error of {analysis_flops.MODELS[name]}", models.errors[name], "fraction") for name in errors),
        Evidence.of("error of FLOPs less that of the roofline, the better of each", models.gain, "fraction"),
    )
    said = (
        f"{errors[models.best_roofline]} by the roofline and {errors[models.best_flops]} by FLOPs, each at its best; "
        f"with a single number fitted {errors['roofline']} and {errors['flops']}"
    )
    low, high = _ends(models.gain)
    if low > 0:
        return Finding("holds", f"The roofline predicts cells that were left out better: off by {said}.", evidence)
    if high < 0:
        return Finding("does not hold", f"FLOPs predict cells that were left out better: off by {said}.", evidence)
    return Finding("cannot tell", f"Which predicts better cannot be told from these cells: off by {said}.", evidence)


def equal_flops_equal_time(data: Data) -> Finding:
    """A FLOP takes the same time in decoding as in a prefill's LLM blocks."""
    points = data.points
    if isinstance(points, Unknown):
        return _unknown(points.reason)
    found = analysis_flops.equal_flops(points)
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    evidence: tuple[Evidence, ...] = (
        Evidence.of("decoding over LLM blocks of a prefill, same FLOPs", found.times, "times"),
        Evidence("the same of their floors", found.floor_times, None, None, "times"),
    )
    verdict = within(found.times, 1 - EQUAL_TIME_FRACTION, 1 + EQUAL_TIME_FRACTION)
    how = "for the same FLOPs" if found.matched else "FLOP by FLOP (no decode run has as many as a prefill)"
    said = (
        f"decoding takes {with_interval(found.times, '')} times as long as the LLM blocks of a prefill, {how}; "
        f"{significant(found.floor_times, 2)} times would be what memory and arithmetic alone explain, since a step "
        "reads every weight for a single token"
    )
    pace = analysis_flops.pace_cost(points)
    if not isinstance(pace, Unknown):
        evidence += (Evidence.of("prefill: launch-bound over device-bound, per FLOP", pace.times, "times"),)
        said += f". In launch-bound prefills a FLOP takes {with_interval(pace.times, '')} times as long as in others"
    start = {
        "holds": "Equal FLOPs take equal time",
        "does not hold": "Equal FLOPs do not take equal time",
        "cannot tell": "Whether equal FLOPs take equal time cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def output_token_costs_more(data: Data) -> Finding:
    """One more output token costs more than one more vision token."""
    found = analysis_flops.token_costs(data.table)
    if isinstance(found, Unknown):
        return _unknown(found.reason)
    if "vision" not in found or "output" not in found:
        return _unknown("vision tokens and output tokens were not both varied")
    evidence = tuple(Evidence.of(f"{cost.label}, {cost.clock}", cost.cost, "ms") for cost in found.costs)
    times = found.output_over_vision
    vision, output = found["vision"].cost, found["output"].cost
    said = f"{with_interval(output, 'ms')} for an output token, {with_interval(vision, 'ms')} for a vision token"
    if math.isnan(times.value):
        return Finding("cannot tell", f"The cost of a vision token is not told from nothing: {said}.", evidence)
    evidence += (Evidence.of("output token over vision token", times, "times"),)
    low, high = _ends(times)
    if low > 1:
        text = f"An output token costs as much as {with_interval(times, '')} vision tokens: {said}."
        return Finding("holds", text, evidence)
    verdict: Verdict = "does not hold" if high < 1 else "cannot tell"
    text = f"An output token is not seen to cost more: {with_interval(times, '')} vision tokens, {said}."
    return Finding(verdict, text, evidence)


# ---------------------------------------------------------------------------------------------------------------------
# Prediction


def held_out_predicted(data: Data) -> Finding:
    """A request that was not measured is predicted within a tenth."""
    if isinstance(data.held_out, Unknown):
        return _unknown(data.held_out.reason)
    worth = {name: prediction.accuracy(data.held_out, name) for name in prediction.QUANTITIES}
    known = {name: found for name, found in worth.items() if not isinstance(found, Unknown)}
    limit = percent(PREDICTION_FRACTION, 1)
    verdicts = [within(found.error, 0.0, PREDICTION_FRACTION) for found in known.values()]
    verdict: Verdict = "cannot tell"
    if all(found == "holds" for found in verdicts):
        verdict = "holds"
    elif "does not hold" in verdicts:
        verdict = "does not hold"
    evidence = tuple(
        Evidence.of(f"{prediction.QUANTITIES[name]}: median error", found.error, "fraction")
        for name, found in known.items()
    )
    said = "; ".join(
        f"{prediction.QUANTITIES[name]} off by {with_interval(found.error, 'fraction')} in the median of "
        f"{plural(found.count, 'prediction')}"
        for name, found in known.items()
    )
    start = {
        "holds": f"Held-out cells are predicted within {limit}",
        "does not hold": f"Held-out cells are not predicted within {limit}",
        "cannot tell": f"Whether held-out cells are predicted within {limit} cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def prediction_intervals_hold(data: Data) -> Finding:
    """The 95 % intervals of predictions hold what is measured."""
    if isinstance(data.held_out, Unknown):
        return _unknown(data.held_out.reason)
    worth = prediction.accuracy(data.held_out)
    assert not isinstance(worth, Unknown)
    evidence = (Evidence.of("share of intervals that hold", worth.coverage, "fraction"),)
    verdict = within(worth.coverage, COVERED_FRACTION, 1.0)
    limit = percent(COVERED_FRACTION, 2)
    start = {
        "holds": f"At least {limit} of the prediction intervals hold",
        "does not hold": f"Fewer than {limit} of the prediction intervals hold",
        "cannot tell": f"Whether {limit} of the prediction intervals hold cannot be told",
    }
    said = f"{worth.inside} of {worth.count}, {with_interval(worth.coverage, 'fraction')}; nominally 95 %"
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


# ---------------------------------------------------------------------------------------------------------------------
# The registry


@dataclass(frozen=True)
class Entry:
    """A claim before it is judged."""

    claim: str
    judge: Callable[[Data], Finding]
    figures: tuple[str, ...]
    timed: bool = True


#: The claims, in the order of the report: the notes' own, then ours.
CLAIMS: Mapping[str, Entry] = {
    "total_is_the_sum": Entry("T_total = T_vision + T_LLM_prefill", total_is_the_sum, ("vision_by_tokens",)),
    "hooks_above_subtraction": Entry(
        "LLM prefill by hooks is longer than by subtraction", hooks_above_subtraction, ("two_methods",)
    ),
    "subtraction_falls": Entry(
        "LLM prefill by subtraction falls somewhere as tokens grow", subtraction_falls, ("two_methods",)
    ),
    "hooks_rise": Entry("LLM prefill by hooks rises with tokens", hooks_rise, ("two_methods", "vision_by_tokens")),
    "decode_linear_without_offset": Entry(
        "Decode is linear in the output tokens, with a constant near zero",
        decode_linear_without_offset,
        ("decode_linear", "decode_log"),
    ),
    "doubling_doubles": Entry("Doubling the output tokens doubles decode time", doubling_doubles, ("decode_log",)),
    "log_log_slope_is_one": Entry("The slope in log-log is 1", log_log_slope_is_one, ("decode_log",)),
    "constant_cost_per_token": Entry("Every output token costs the same", constant_cost_per_token, ("decode_steps",)),
    "prefill_share_falls": Entry(
        "The prefill's share falls as the output grows", prefill_share_falls, ("prefill_share", "prefill_and_decode")
    ),
    "notes_token_table": Entry(
        "The notes' table of vision tokens is right", notes_token_table, ("notes_series",), timed=False
    ),
    "token_table_exact": Entry(
        "Crops and vision tokens follow exactly from the tiling", token_table_exact, ("notes_series",), timed=False
    ),
    "launch_bound_below": Entry("Short prefills are launch-bound", launch_bound_below, ("three_clocks",)),
    "falls_are_the_hosts": Entry(
        "Subtraction falls where the host sets the pace", falls_are_the_hosts, ("two_methods", "three_clocks")
    ),
    "crops_and_tokens_cost_apart": Entry(
        "Crops and tokens each have a cost of their own", crops_and_tokens_cost_apart, ("two_factors",)
    ),
    "derived_agrees_with_direct": Entry(
        "A long run holds the shorter ones", derived_agrees_with_direct, ("decode_log",)
    ),
    "decode_launch_bound": Entry("The host sets the pace of decoding", decode_launch_bound, ("decode_steps",)),
    "decode_near_floor": Entry("Decode runs near the memory's limit", decode_near_floor, ("decode_steps",)),
    "hook_overhead_within_bound": Entry("Marks cost less than 1 %", hook_overhead_within_bound, ("two_methods",)),
    "tail_within_twice_the_middle": Entry(
        "One request in a hundred takes twice the median at most", tail_within_twice_the_middle, ("latency_cdf",)
    ),
    "tail_is_output_length": Entry("Slow requests are those that write more", tail_is_output_length, ("latency_tail",)),
    "requests_explain_their_latency": Entry(
        "What a request is tells how long it takes", requests_explain_their_latency, ("latency_tail",)
    ),
    "parameters_are_not_time": Entry(
        "Share of parameters is not share of time", parameters_are_not_time, ("component_profile",)
    ),
    "flops_are_not_time": Entry("Share of FLOPs is not share of time", flops_are_not_time, ("component_profile",)),
    "flops_predict_latency": Entry(
        "FLOPs predict latency", flops_predict_latency, ("flops_latency", "flops_or_roofline")
    ),
    "roofline_beats_flops": Entry(
        "The roofline predicts latency better than FLOPs do", roofline_beats_flops, ("flops_or_roofline",)
    ),
    "equal_flops_equal_time": Entry("Equal FLOPs take equal time", equal_flops_equal_time, ("flops_latency",)),
    "output_token_costs_more": Entry(
        "An output token costs more than a vision token", output_token_costs_more, ("token_costs",)
    ),
    "held_out_predicted": Entry(
        "Requests that were not measured are predicted within 10 %", held_out_predicted, ("held_out",)
    ),
    "prediction_intervals_hold": Entry("The intervals of predictions hold", prediction_intervals_hold, ("held_out",)),
}


def judge_all(table: pd.DataFrame, subject: str, *, physics: pd.DataFrame | None = None) -> list[Claim]:
    """Judge every claim for one subject; `physics` is the physics table, for the claims about limits.

    Under unusable conditions (`analysis.trust`) no claim about time is judged: what was measured is said, and why it
    proves nothing.
    """
    rows = analysis.of_subject(table, subject)
    own = None if physics is None else physics[physics["subject"] == subject]
    data = Data(rows, own)
    trust = analysis.trust(rows)
    judged = []
    for name, entry in CLAIMS.items():
        found = entry.judge(data)
        if entry.timed and trust.verdict == "unusable" and found.verdict != "cannot tell":
            why = f"Cannot be told under the conditions of this run ({trust.reasons[0]})"
            found = replace(found, verdict="cannot tell", statement=f"{why}. As measured: {found.statement}")
        judged.append(Claim(name, entry.claim, found.verdict, found.statement, found.evidence, entry.figures))
    return judged


def write_claims(path: Path, claims: Mapping[str, Sequence[Claim]]) -> None:
    """Write judged claims, subject by subject, as JSON."""
    data: dict[str, Any] = {name: [asdict(claim) for claim in judged] for name, judged in claims.items()}
    write_atomically(path, (json.dumps(_without_nan(data), indent=1, ensure_ascii=False) + "\n").encode())


def read_claims(path: Path) -> dict[str, list[Claim]]:
    """Read claims back."""
    return {
        subject: [
            Claim(
                **{
                    **claim,
                    "evidence": tuple(
                        Evidence(**{**item, "value": math.nan if item["value"] is None else item["value"]})
                        for item in claim["evidence"]
                    ),
                    "figures": tuple(claim["figures"]),
                }
            )
            for claim in claims
        ]
        for subject, claims in json.loads(path.read_text(encoding="utf-8")).items()
    }


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: it becomes null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
