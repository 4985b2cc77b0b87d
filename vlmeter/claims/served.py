"""Statements about what a server adds to the model that it runs."""

from __future__ import annotations

import math

from vlmeter.analysis import reading, step_times
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.base import Data, Evidence, Finding, cannot_tell, within
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import BETWEEN_STEPS, DEVICE_STEP, OUTSIDE, OUTSIDE_SHARE, SERVED_TOKEN, TOKEN_OVER_STEP

#: What is outside the model is most of the wait where it is more than this part of it.
MOST_FRACTION = 0.5

#: An output token at the client is the device's step up to 5 %: a reader with a ruler would see more.
SAME_STEP_FRACTION = 0.05


def first_token_is_outside(data: Data) -> Finding:
    """More than half of the time to first token is no model: upload, the server's preprocessing, the way back."""
    if OUTSIDE.name not in data.answers:
        return cannot_tell("no server was measured")
    share = data.answer(OUTSIDE.name)
    if isinstance(share, Unknown):
        return cannot_tell(share.reason)
    verdict = within(share, MOST_FRACTION, math.inf)
    start = {
        "holds": "Most of the time to first token is outside the model",
        "does not hold": "Most of the time to first token is inside the model",
        "cannot tell": "Whether more of the time to first token is outside the model or inside cannot be told",
    }
    said = f"{start[verdict]}: outside is {with_interval(share, 'fraction')}."
    return Finding(verdict, said, (Evidence.of(OUTSIDE_SHARE.words, share, "fraction"),))


def token_is_the_devices(data: Data) -> Finding:
    """What a client waits for each further token is the device's decode step, and hardly anything else."""
    found = step_times.served_token(data.table)
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
    limit = percent(SAME_STEP_FRACTION, 1)
    verdict = within(found.over, -SAME_STEP_FRACTION, SAME_STEP_FRACTION)
    start = {
        "holds": f"An output token at the client is within {limit} of the device's decode step",
        "does not hold": f"An output token at the client is not within {limit} of the device's decode step",
        "cannot tell": f"Whether an output token is within {limit} of the device's decode step cannot be told",
    }
    said = (
        f"{with_interval(found.token, 'ms')} at the client, of which {with_interval(found.step, 'ms')} are the step "
        f"and {with_interval(found.between, 'ms')} lie between two steps ({with_interval(found.over, 'fraction')} more "
        f"than the step), over {plural(found.cells, 'generation')}"
    )
    evidence = (
        Evidence.of(SERVED_TOKEN.words, found.token, "ms"),
        Evidence.of(DEVICE_STEP.words, found.step, "ms"),
        Evidence.of(BETWEEN_STEPS.words, found.between, "ms"),
        Evidence.of(TOKEN_OVER_STEP.words, found.over, "fraction"),
    )
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def server_counts_are_the_plans(data: Data) -> Finding:
    """The server counts as many tokens in each prompt as the model family predicts for it."""
    cells = reading.whole_rows(data.table)
    told = cells.dropna(subset=["server_prompt_tokens", "prompt_tokens"])
    if told.empty:
        return cannot_tell("no server was measured that counts its prompts")
    unlike = told[told["server_prompt_tokens"] != told["prompt_tokens"]]
    evidence = (Evidence("cells that agree", len(told) - len(unlike), None, None, f"of {len(told)}"),)
    if unlike.empty:
        span = sorted({int(tokens) for tokens in told["prompt_tokens"]})
        said = f"{span[0]:,}" if len(span) == 1 else f"{span[0]:,} to {span[-1]:,}"
        return Finding(
            "holds",
            f"The server counts as many prompt tokens as the plan, {said}, in each of {plural(len(told), 'cell')}.",
            evidence,
        )
    worst = unlike.iloc[0]
    return Finding(
        "does not hold",
        f"The server counts other prompt tokens than the plan in {len(unlike)} of {plural(len(told), 'cell')}, such as "
        f"{int(worst['server_prompt_tokens']):,} for {int(worst['prompt_tokens']):,} in {worst['cell_id']}.",
        evidence,
    )
