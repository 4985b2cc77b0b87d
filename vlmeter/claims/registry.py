"""Statements about latency, each judged by the data: holds, does not hold, cannot tell.

A claim is a small function of what was measured. It never raises on a study that is incomplete, and its wording
follows its verdict: what the data do not show is not said. Wherever a statement needs a limit ("about", "constant"),
the limit is a named constant with its reason, and the verdict looks at the whole interval: it holds if the interval
is within the limit, it does not if the interval is outside, and in between it cannot be told.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from vlmeter.analysis import conditions, reading
from vlmeter.analysis.answers import Answers
from vlmeter.claims.base import Claim, Data, Finding
from vlmeter.claims.decode import (
    constant_cost_per_token,
    decode_launch_bound,
    decode_linear_without_offset,
    decode_near_floor,
    derived_agrees_with_direct,
    doubling_doubles,
    log_log_slope_is_one,
    prefill_share_falls,
)
from vlmeter.claims.flops import (
    equal_flops_equal_time,
    flops_are_not_time,
    flops_predict_latency,
    output_token_costs_more,
    parameters_are_not_time,
    roofline_beats_flops,
)
from vlmeter.claims.prediction import held_out_predicted, prediction_intervals_hold
from vlmeter.claims.prefill import (
    crops_and_tokens_cost_apart,
    falls_are_the_hosts,
    has_tilings,
    hook_overhead_within_bound,
    hooks_above_subtraction,
    hooks_rise,
    launch_bound_below,
    subtraction_falls,
    token_table_exact,
    total_is_the_sum,
)
from vlmeter.claims.requests import requests_explain_their_latency, tail_is_output_length, tail_within_twice_the_middle
from vlmeter.claims.served import first_token_is_outside, server_counts_are_the_plans, token_is_the_devices
from vlmeter.table.kinds import GENERATION, PREFILL, REQUESTS


def of_anything(data: Data) -> bool:
    """A claim about every subject."""
    return True


def of_images(data: Data) -> bool:
    """A claim about images of exact sizes."""
    return data.has(PREFILL)


def of_cut_images(data: Data) -> bool:
    """A claim about crops."""
    return "crop" in data.answers


def of_pace_of_images(data: Data) -> bool:
    """A claim about who sets the pace of a prefill: on a device that can be told apart from its host."""
    return data.has(PREFILL) and data.timed_busy


def of_pace_of_generations(data: Data) -> bool:
    """A claim about who sets the pace of decoding."""
    return data.has(GENERATION) and data.timed_busy


def of_generations(data: Data) -> bool:
    """A claim about output tokens."""
    return data.has(GENERATION)


def of_images_and_generations(data: Data) -> bool:
    """A claim about both."""
    return data.has(PREFILL, GENERATION)


def of_requests(data: Data) -> bool:
    """A claim about the latency of many requests."""
    return data.has(REQUESTS)


def of_a_server(data: Data) -> bool:
    """A claim about a served model."""
    return data.has(PREFILL) and reading.is_served(data.table)


def of_served_generations(data: Data) -> bool:
    """A claim about output tokens of a served model."""
    return data.has(GENERATION) and reading.is_served(data.table)


def of_limits_of_generations(data: Data) -> bool:
    """A claim about work and floors of decoding."""
    return of_limits(data) and data.has(GENERATION)


def of_limits(data: Data) -> bool:
    """A claim about work and floors, on a device whose limits are known."""
    return data.roofline is not None and not data.roofline.empty


@dataclass(frozen=True)
class Entry:
    """A claim before it is judged; concerns: whether a subject is and has what the claim is about."""

    claim: str
    judge: Callable[[Data], Finding]
    figures: tuple[str, ...]
    timed: bool = True
    concerns: Callable[[Data], bool] = of_anything


#: The claims, in the order of the report.
CLAIMS: Mapping[str, Entry] = {
    "total_is_the_sum": Entry(
        "T_total = T_vision + T_LLM_prefill", total_is_the_sum, ("vision_by_tokens",), concerns=of_images
    ),
    "hooks_above_subtraction": Entry(
        "LLM prefill by hooks is longer than by subtraction",
        hooks_above_subtraction,
        ("two_methods",),
        concerns=of_images,
    ),
    "subtraction_falls": Entry(
        "LLM prefill by subtraction falls somewhere as tokens grow",
        subtraction_falls,
        ("two_methods",),
        concerns=of_images,
    ),
    "hooks_rise": Entry(
        "LLM prefill by hooks rises with tokens", hooks_rise, ("two_methods", "vision_by_tokens"), concerns=of_images
    ),
    "decode_linear_without_offset": Entry(
        "Decode is linear in the output tokens, with a constant near zero",
        decode_linear_without_offset,
        ("decode_linear", "decode_log"),
        concerns=of_generations,
    ),
    "doubling_doubles": Entry(
        "Doubling the output tokens doubles decode time", doubling_doubles, ("decode_log",), concerns=of_generations
    ),
    "log_log_slope_is_one": Entry(
        "The slope in log-log is 1", log_log_slope_is_one, ("decode_log",), concerns=of_generations
    ),
    "constant_cost_per_token": Entry(
        "Every output token costs the same", constant_cost_per_token, ("decode_steps",), concerns=of_generations
    ),
    "prefill_share_falls": Entry(
        "The prefill's share falls as the output grows",
        prefill_share_falls,
        ("prefill_share", "prefill_and_decode"),
        concerns=of_generations,
    ),
    "token_table_exact": Entry(
        "Crops and vision tokens follow exactly from the tiling",
        token_table_exact,
        ("notes_series",),
        timed=False,
        concerns=has_tilings,
    ),
    "launch_bound_below": Entry(
        "Short prefills are launch-bound", launch_bound_below, ("three_clocks",), concerns=of_pace_of_images
    ),
    "falls_are_the_hosts": Entry(
        "Subtraction falls where the host sets the pace",
        falls_are_the_hosts,
        ("two_methods", "three_clocks"),
        concerns=of_pace_of_images,
    ),
    "crops_and_tokens_cost_apart": Entry(
        "Crops and tokens each have a cost of their own",
        crops_and_tokens_cost_apart,
        ("two_factors",),
        concerns=of_cut_images,
    ),
    "derived_agrees_with_direct": Entry(
        "A long run holds the shorter ones", derived_agrees_with_direct, ("decode_log",), concerns=of_generations
    ),
    "decode_launch_bound": Entry(
        "The host sets the pace of decoding", decode_launch_bound, ("decode_steps",), concerns=of_pace_of_generations
    ),
    "decode_near_floor": Entry(
        "Decode runs near the memory's limit", decode_near_floor, ("decode_steps",), concerns=of_limits_of_generations
    ),
    "hook_overhead_within_bound": Entry(
        "Marks cost less than 1 %", hook_overhead_within_bound, ("two_methods",), concerns=of_images
    ),
    "first_token_is_outside": Entry(
        "More than half of the time to first token is outside the model",
        first_token_is_outside,
        ("first_token_by_tokens",),
        concerns=of_a_server,
    ),
    "token_is_the_devices": Entry(
        "An output token at the client is the device's decode step",
        token_is_the_devices,
        ("decode_steps",),
        concerns=of_served_generations,
    ),
    "server_counts_are_the_plans": Entry(
        "The server's counts are the plan's",
        server_counts_are_the_plans,
        ("first_token_by_tokens",),
        timed=False,
        concerns=of_a_server,
    ),
    "tail_within_twice_the_middle": Entry(
        "One request in a hundred takes twice the median at most",
        tail_within_twice_the_middle,
        ("latency_cdf",),
        concerns=of_requests,
    ),
    "tail_is_output_length": Entry(
        "Slow requests are those that write more", tail_is_output_length, ("latency_tail",), concerns=of_requests
    ),
    "requests_explain_their_latency": Entry(
        "What a request is tells how long it takes",
        requests_explain_their_latency,
        ("latency_tail",),
        concerns=of_requests,
    ),
    "parameters_are_not_time": Entry(
        "Share of parameters is not share of time", parameters_are_not_time, ("component_profile",)
    ),
    "flops_are_not_time": Entry(
        "Share of FLOPs is not share of time", flops_are_not_time, ("component_profile",), concerns=of_limits
    ),
    "flops_predict_latency": Entry(
        "FLOPs predict latency", flops_predict_latency, ("flops_latency", "flops_or_roofline"), concerns=of_limits
    ),
    "roofline_beats_flops": Entry(
        "The roofline predicts latency better than FLOPs do",
        roofline_beats_flops,
        ("flops_or_roofline",),
        concerns=of_limits,
    ),
    "equal_flops_equal_time": Entry(
        "Equal FLOPs take equal time", equal_flops_equal_time, ("flops_latency",), concerns=of_limits_of_generations
    ),
    "output_token_costs_more": Entry(
        "An output token costs more than a vision token",
        output_token_costs_more,
        ("token_costs",),
        concerns=of_images_and_generations,
    ),
    "held_out_predicted": Entry(
        "Requests that were not measured are predicted within 10 %", held_out_predicted, ("held_out",)
    ),
    "prediction_intervals_hold": Entry("The intervals of predictions hold", prediction_intervals_hold, ("held_out",)),
}


def judge_all(
    table: pd.DataFrame, subject: str, *, roofline: pd.DataFrame | None = None, answers: Answers | None = None
) -> list[Claim]:
    """Judge every claim for one subject; `roofline` is the roofline table, for the claims about limits.

    answers: the subject's own, which claims about prices take; made from the table where they are not given.

    Under unusable conditions (`analysis.trust`) no claim about time is judged: what was measured is said, and why it
    proves nothing.
    """
    rows = reading.of_subject(table, subject)
    own = None if roofline is None else roofline[roofline["subject"] == subject]
    data = Data(rows, own, answers)
    trust = conditions.trust(rows)
    judged = []
    for name, entry in CLAIMS.items():
        found = entry.judge(data)
        if entry.timed and trust.verdict == "unusable" and found.verdict != "cannot tell":
            why = f"Cannot be told under the conditions of this run ({trust.reasons[0]})"
            found = replace(found, verdict="cannot tell", statement=f"{why}. As measured: {found.statement}")
        judged.append(
            Claim(
                name,
                entry.claim,
                found.verdict,
                found.statement,
                found.evidence,
                entry.figures,
                entry.concerns(data),
            )
        )
    return judged
