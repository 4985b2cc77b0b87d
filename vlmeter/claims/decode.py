"""Claims about decoding."""

from __future__ import annotations

import math

from vlmeter.analysis import decode_runs, prefill_cells, reading, step_times
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.base import Data, Evidence, Finding, Verdict, cannot_tell, within
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import AGREEMENT, DECODE, OF_DECODE, RATIO, SHARE, SLOPE_STEPS

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


def decode_linear_without_offset(data: Data) -> Finding:
    """T_decode = k (N - 1) + b with b near zero."""
    law = data.law
    if isinstance(law, Unknown):
        return cannot_tell(law.reason)
    cost, offset = data.answer("output_token"), law.line["constant"]
    if isinstance(cost, Unknown):
        return cannot_tell(f"the cost of an output token is not known: {cost.reason}")
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
    growth = decode_runs.growth(data.runs)
    pairs = growth[growth["to_tokens"] == 2 * growth["from_tokens"]]
    if pairs.empty:
        return cannot_tell("no output length was measured together with its double")
    low, high = 2 * (1 - DOUBLING_FRACTION), 2 * (1 + DOUBLING_FRACTION)
    ratios = [reading.estimate_of(row, RATIO) for row in pairs.to_dict("records")]
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
        return cannot_tell(law.reason)
    slope, over_tokens = law.power["slope"], law.power_tokens["slope"]
    evidence = (
        Evidence.of("slope over decode steps", slope, ""),
        Evidence.of("slope over output tokens", over_tokens, ""),
    )
    verdict = within(slope, 1 - SLOPE_TOLERANCE, 1 + SLOPE_TOLERANCE)
    growth = decode_runs.growth(data.runs)
    local = [
        (row, within(reading.estimate_of(row, SLOPE_STEPS), 1 - SLOPE_TOLERANCE, 1 + SLOPE_TOLERANCE))
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
    law = step_times.step_law(data.table)
    if isinstance(law, Unknown):
        return cannot_tell(law.reason)
    low, high = float(law.contexts.min()), float(law.contexts.max())
    base = law.fit["constant"].value + law.fit["per_context_token"].value * low
    if not base > 0:
        return cannot_tell("the fitted time of the first step is not positive")
    growth = reading.scaled(law.fit["per_context_token"], (high - low) / base)
    evidence = (Evidence.of("growth of a step over the measured contexts", growth, "fraction"),)
    verdict = within(growth, -LINEAR_FRACTION, LINEAR_FRACTION)
    said = f"from {low:,.0f} to {high:,.0f} tokens in context a step grows by {with_interval(growth, 'fraction')}"
    said += f" ({law.modes})" if law.modes else ""
    limit = percent(LINEAR_FRACTION, 1)
    start = {
        "holds": f"The cost of a token is constant within {limit}",
        "does not hold": f"The cost of a token is not constant within {limit}",
        "cannot tell": f"Whether the cost of a token is constant within {limit} cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def prefill_share_falls(data: Data) -> Finding:
    """The longer the output, the smaller the prefill's share."""
    shares = decode_runs.by_length(data.runs, SHARE)
    ratios = decode_runs.by_length(data.runs, OF_DECODE)
    if len(shares) < 2:
        return cannot_tell("two output lengths are needed")
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
    found = decode_runs.agreement(data.table)
    if found.empty:
        return cannot_tell("no output length was both run directly and contained in a longer run of the same image")
    difference = prefill_cells.pooled(found, AGREEMENT)
    assert isinstance(difference, Estimate)
    judged = found["agrees"].dropna()
    evidence = (
        Evidence.of(AGREEMENT.words, difference, "fraction"),
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
    found = step_times.step_bound(data.table)
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
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
    if isinstance(data.worked, Unknown):
        return cannot_tell(data.worked.reason)
    ratio = data.answer(f"limit_{DECODE}")
    if isinstance(ratio, Unknown):
        return cannot_tell("no decode step has a floor")
    evidence = (Evidence.of(f"{DECODE.label} over its floor", ratio, "times"),)
    verdict = within(ratio, 0.0, NEAR_FLOOR_RATIO)
    start = {
        "holds": f"Decode runs within {NEAR_FLOOR_RATIO} times its floor",
        "does not hold": f"Decode does not run within {NEAR_FLOOR_RATIO} times its floor",
        "cannot tell": f"Whether decode runs within {NEAR_FLOOR_RATIO} times its floor cannot be told",
    }
    said = (
        f"it takes {with_interval(ratio, '')} times what reading weights and cache takes at least, in the median over "
        f"{plural(len(data.answers[f'limit_{DECODE}'].cells), 'run')}"
    )
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)
