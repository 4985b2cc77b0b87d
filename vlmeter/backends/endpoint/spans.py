"""Where the time of one answer went: the client's stamps, and between them what the server's own marks say.

The time to the first token is a sum that closes. From outside it has two parts, *upload* and *server*; with marks
inside the server the second falls apart:

    upload          from the first byte sent to the last
    server_inputs   from there to the first step of the model: HTTP, decoding the picture, the processor, the queue
    vision_encoder, projector, llm_blocks, head, merge
                    the steps of the prompt, on the device's clock; merge is what of a step is none of the others
    return          from the end of the last of these steps to the read that brought the first token

Each further token is a *gap* at the client. By the marks the device takes a step for it; what is left of the gaps lies
between steps: scheduling, messages between processes, the way back.

The parts are cut at one another, so that they add up whatever a busy machine does to a stamp. A client that was not
let run stamps its last byte late: the upload ended before the model's first step at the latest. A worker that was not
let run marks the end of a step late: what lies behind the token's arrival is no part of it. Marks that no delay
explains are no sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from vlmeter.backends.clock import Timing
from vlmeter.backends.endpoint.client import Exchange
from vlmeter.backends.endpoint.faults import InvalidSample

#: Span inside a step -> the phase that its own time (without the spans inside it) belongs to.
PHASE_OF: Mapping[str, str] = {
    "execute": "merge",
    "encode": "merge",
    "vision": "vision_encoder",
    "projector": "projector",
    "forward": "llm_blocks",
    "logits": "head",
    "sample": "head",
    "after": "head",
}

#: The phases of steps, in the order in which they are told.
STEP_PHASES = ("vision_encoder", "projector", "merge", "llm_blocks", "head")

#: Where a step hands over its token, the last first: their marks alone may end after it has come.
AROUND_THE_TOKEN = ("head", "merge")

#: What sums of a hundred readings differ by.
CLOCKS_AGREE_MS = 1e-3


def own_times(step: Mapping[str, Any]) -> dict[str, float]:
    """Milliseconds of a step by phase; they add up to the step."""
    spans = step["spans"]
    own = [span["ms"] for span in spans]
    for span in spans:
        if span["inside"] is not None:
            own[span["inside"]] -= span["ms"]
    found: dict[str, float] = {}
    for span, ms in zip(spans, own, strict=True):
        phase = PHASE_OF[span["name"]]
        found[phase] = found.get(phase, 0.0) + max(0.0, ms)
    return found


def step_ms(step: Mapping[str, Any]) -> float:
    """Milliseconds of a whole step."""
    return float(sum(span["ms"] for span in step["spans"] if span["inside"] is None))


def is_prompt(step: Mapping[str, Any]) -> bool:
    """Whether a step runs a part of a prompt."""
    return any(request["start"] < (request["prompt_tokens"] or 0) for request in step["requests"])


def first_token_spans(exchange: Exchange, steps: Sequence[Mapping[str, Any]] | None) -> list[tuple[str, float]]:
    """Split the time to the first token; steps: of the server's marks, None where there are none.

    Returns the phases in their order; none is negative, and they add up to the time to the first token. Raises
    InvalidSample if the marks hold no step of a prompt, or steps that began before the request or ran behind its token.
    """
    first_ms = exchange.answer.first_token_ms
    assert first_ms is not None
    if steps is None:
        return [("upload", exchange.sent_ms - exchange.began_ms), ("server", first_ms - exchange.sent_ms)]
    prompt = [step for step in steps if is_prompt(step)]
    if not prompt:
        raise InvalidSample(
            "the server's marks hold no step of the prompt: it was answered from a cache, or is another's"
        )
    began_ms, last = prompt[0]["began_ms"], prompt[-1]
    if began_ms < exchange.began_ms:
        raise InvalidSample(
            f"by the server's marks the prompt's first step began {exchange.began_ms - began_ms:.1f} ms before its"
            " request was sent: it is another's, or the server's clock is not this machine's"
        )
    phases = dict.fromkeys(STEP_PHASES, 0.0)
    for step in prompt:
        for phase, ms in own_times(step).items():
            phases[phase] += ms
    ended_ms = last["began_ms"] + step_ms(last)
    phases["merge"] += max(0.0, ended_ms - began_ms - sum(phases.values()))
    back_ms = first_ms - began_ms - sum(phases.values())
    for phase in AROUND_THE_TOKEN:
        late_ms = min(phases[phase], max(0.0, -back_ms))
        phases[phase] -= late_ms
        back_ms += late_ms
    if back_ms < -CLOCKS_AGREE_MS:
        raise InvalidSample(
            f"by the server's marks the model's layers ended {-back_ms:.1f} ms after the first token had come: the"
            " server's clock is not this machine's"
        )
    sent_ms = min(exchange.sent_ms, began_ms)
    before = [("upload", sent_ms - exchange.began_ms), ("server_inputs", began_ms - sent_ms)]
    return [*before, *phases.items(), ("return", max(0.0, back_ms))]


def device_decode_ms(steps: Sequence[Mapping[str, Any]] | None) -> float | None:
    """Milliseconds of all steps behind the prompt by the server's marks; None where there are none."""
    found = [step_ms(step) for step in steps or () if not is_prompt(step)]
    return sum(found) if found else None


def token_gaps(exchange: Exchange) -> list[float]:
    """Milliseconds to each token after the first, as the client sees them.

    Tokens that arrived together share the time since the arrival before: their sum is (last - first), and no more is
    known of them. Those that came with the first token took no time of their own.
    """
    answer = exchange.answer
    arrivals = answer.arrivals
    if any(arrival.tokens is None for arrival in arrivals):
        if answer.output_tokens is None or not arrivals:
            return []
        left = answer.output_tokens - 1
        whole_ms = arrivals[-1].received_ms - arrivals[0].received_ms
        return [whole_ms / left] * left if left > 0 else []
    gaps: list[float] = [0.0] * ((arrivals[0].tokens or 1) - 1)
    for before, arrival in pairwise(arrivals):
        count = arrival.tokens or 0
        gaps += [(arrival.received_ms - before.received_ms) / count] * count if count else []
    return gaps


def timing_of(exchange: Exchange, spans: Sequence[tuple[str, float]]) -> Timing:
    """Times of an answer by the stamps of the wire."""
    last_ms = exchange.answer.last_token_ms
    assert last_ms is not None
    wall_ms = last_ms - exchange.began_ms
    launch_ms = exchange.sent_ms - exchange.began_ms
    return Timing(wall_ms=wall_ms, device_ms=wall_ms, launch_ms=launch_ms, spans=tuple(spans))
