"""Claims about prefill and its phases."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd

from vlmeter.analysis import prefill_cells
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.base import Data, Evidence, Finding, cannot_tell, ends_of, within
from vlmeter.models.molmo1 import NAME as MOLMO
from vlmeter.numbers.intervals import rank_correlation
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import duration, percent
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import CLOSURE, HEAD, LANGUAGE, MERGE, METHOD_DIFFERENCE_WALL, OVERHEAD, PREFILL_SUM

#: Phases close if their sum is within 1 % of the total that was measured without marks.
CLOSURE_FRACTION = 0.01


#: Marks must not cost more than 1 % of a prefill.
OVERHEAD_FRACTION = 0.01


def total_is_the_sum(data: Data) -> Finding:
    """T_total = T_vision + T_LLM_prefill: the phases of one marked pass against the total without marks."""
    cells = data.cells
    closure = prefill_cells.pooled(cells, CLOSURE)
    if isinstance(closure, Unknown):
        return cannot_tell(closure.reason)
    worst = float(cells[CLOSURE.column].abs().max())
    between = ((cells[MERGE.column] + cells[HEAD.column]) / cells[PREFILL_SUM.column]).dropna()
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
    """LLM prefill between marks is longer than the whole minus vision run alone."""
    difference = prefill_cells.pooled(data.cells, METHOD_DIFFERENCE_WALL)
    if isinstance(difference, Unknown):
        return cannot_tell(difference.reason)
    values = data.cells[METHOD_DIFFERENCE_WALL.column]
    evidence = (Evidence.of("hooks minus subtraction, wall time", difference, "ms"),)
    low, high = ends_of(difference)
    said = f"{with_interval(difference, 'ms')} {prefill_cells.over_cells(values)}"
    if low > 0:
        return Finding("holds", f"LLM prefill by hooks is above that by subtraction: by {said}.", evidence)
    if high < 0:
        return Finding("does not hold", f"LLM prefill by hooks is below that by subtraction: by {said}.", evidence)
    return Finding("cannot tell", f"Hooks and subtraction do not differ beyond noise: {said}.", evidence)


def subtraction_falls(data: Data) -> Finding:
    """The puzzle of docs/anomaly.md: by subtraction, LLM prefill falls as vision tokens grow."""
    found = data.subtraction_falls
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
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
        return cannot_tell(found.reason)
    if not found:
        return cannot_tell("subtraction falls nowhere beyond noise, so there is nothing to explain")
    bounds = data.cells.groupby("prompt_tokens")["bound"].agg(set)
    kinds = [bounds[fall.from_tokens] | bounds[fall.to_tokens] for fall in found]
    host = sum("launch-bound" in kind for kind in kinds)
    device = sum(kind == {"device-bound"} for kind in kinds)
    evidence = (
        Evidence("falls with a launch-bound cell", host, None, None, ""),
        Evidence("falls among device-bound cells alone", device, None, None, ""),
    )
    if not host and not device:
        return replace(cannot_tell(str(data.cells["bound_reason"].iloc[0])), evidence=evidence)
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
    cells = data.cells.dropna(subset=[LANGUAGE.column])
    found = prefill_cells.falls(cells, LANGUAGE, wander_fraction=data.wander)
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
    tokens = cells["prompt_tokens"].to_numpy(dtype=np.float64)
    rank = rank_correlation(tokens, cells[LANGUAGE.column].to_numpy(dtype=np.float64))
    evidence = (Evidence.of("rank correlation of LLM prefill and tokens", rank, ""),)
    if found:
        worst = found[0]
        return Finding(
            "does not hold",
            f"By hooks the LLM prefill does not rise everywhere: it falls by {duration(worst.drop_ms)} from "
            f"{worst.from_tokens:,} to {worst.to_tokens:,} prompt tokens (rank correlation {with_interval(rank, '')}).",
            evidence,
        )
    if ends_of(rank)[0] > 0:
        return Finding(
            "holds",
            f"By hooks the LLM prefill rises with tokens, from {duration(float(cells[LANGUAGE.column].iloc[0]))} to "
            f"{duration(float(cells[LANGUAGE.column].iloc[-1]))}, and falls nowhere beyond noise (rank correlation "
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
    found = prefill_cells.crossover(data.cells)
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
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
    prices = {name: data.answers[name] for name in ("crop", "vision_token") if name in data.answers}
    if len(prices) < 2:
        return cannot_tell("no image was cut into crops")
    unknown = [answer for answer in prices.values() if isinstance(answer.found, Unknown)]
    if unknown:
        said = "; ".join(f"the cost of {answer.question} is {answer.said()}" for answer in unknown)
        return Finding("cannot tell", f"Whether both cost time of their own cannot be told: {said}.")
    evidence = tuple(
        Evidence.of(answer.question, answer.found, "ms")
        for answer in prices.values()
        if isinstance(answer.found, Estimate)
    )
    said = ", ".join(f"{answer.question} {answer.said()}" for answer in prices.values())
    return Finding("holds", f"Both cost time of their own: {said} of {prices['crop'].clock}.", evidence)


def hook_overhead_within_bound(data: Data) -> Finding:
    """Marks do not change what they measure."""
    overhead = prefill_cells.pooled(data.cells, OVERHEAD)
    if isinstance(overhead, Unknown):
        return cannot_tell(overhead.reason)
    evidence = (Evidence.of(OVERHEAD.words, overhead, "fraction"),)
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
        return cannot_tell("no cell with a tiling of Molmo's was measured")
    rows, columns = (tiled[name].to_numpy(dtype=np.int64) for name in ("tiling_h", "tiling_w"))
    exact = (
        (tiled["crops"].to_numpy(dtype=np.int64) == rows * columns + 1)
        & (tiled["vision_tokens"].to_numpy(dtype=np.int64) == 144 + (8 * rows + 4) * (8 * columns + 4))
        & (tiled["special_tokens"].to_numpy(dtype=np.int64) == 8 * rows + 20)
    )
    evidence = (Evidence("cells that agree", int(exact.sum()), None, None, ""),)
    if exact.all():
        each = "each of " if len(tiled) > 1 else ""
        text = (
            f"What was counted in the model's inputs is i j + 1 crops, 144 + (8 i + 4)(8 j + 4) vision tokens and 8 i "
            f"+ 20 special tokens for tiling i x j, in {each}{plural(len(tiled), 'cell')}."
        )
        return Finding("holds", text, evidence)
    wrong = tiled[~exact].iloc[0]
    return Finding(
        "does not hold",
        f"{int((~exact).sum())} of {plural(len(tiled), 'cell')} hold other counts than their tiling's formula, such as "
        f"{wrong['cell_id']} with {wrong['crops']} crops and {wrong['vision_tokens']:,} vision tokens.",
        evidence,
    )


def has_tilings(data: Data) -> bool:
    """A claim about Molmo's tilings."""
    return _tiled(data) is not None


def _tiled(data: Data) -> pd.DataFrame | None:
    """Vision cells of Molmo with a tiling; None without any."""
    cells = data.cells.dropna(subset=["tiling_h", "tiling_w"])
    is_molmo = not data.table.empty and bool((data.table["family"] == MOLMO).all())
    return cells if is_molmo and len(cells) else None
