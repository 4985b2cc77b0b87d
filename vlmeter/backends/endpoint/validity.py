"""Whether an answer is what was asked for; one that is not becomes no sample.

A server's latency of another prompt, another length or a prompt that it had seen before is easily taken for the one
that was meant: nothing in a stream looks wrong. So each answer is held against the request.
"""

from __future__ import annotations

from vlmeter.backends.endpoint.faults import InvalidSample
from vlmeter.backends.endpoint.stream import Answer


def check_answer(
    answer: Answer, *, prompt_tokens: int | None, output_tokens: int, forced: bool = True, known_prompt: bool = False
) -> None:
    """Raise InvalidSample with the first thing that is not as asked for.

    prompt_tokens: what the model family counts; None where it cannot. output_tokens: the exact length if `forced`, else
    the longest. known_prompt: whether tokens of the prompt have to come from a cache; else none may, and a server that
    does not say is believed.
    """
    usage = answer.usage
    if usage is None:
        raise InvalidSample("the server sent no usage, so that neither prompt nor answer can be counted")
    if prompt_tokens is not None and usage.prompt_tokens != prompt_tokens:
        raise InvalidSample(
            f"the server counts {usage.prompt_tokens} prompt tokens and the family {prompt_tokens}: it resizes the "
            f"image or writes the prompt otherwise"
        )
    if usage.cached_tokens and not known_prompt:
        raise InvalidSample(
            f"{usage.cached_tokens} of {usage.prompt_tokens} prompt tokens came from the server's cache"
        )
    if known_prompt and not usage.cached_tokens:
        raise InvalidSample("no prompt token came from the server's cache, though it had the same request just before")
    if not answer.pieces:
        raise InvalidSample("no event of the stream held a token")
    if forced and (usage.completion_tokens != output_tokens or answer.finish_reason != "length"):
        raise InvalidSample(
            f"the answer has {usage.completion_tokens} tokens and ended by {answer.finish_reason}, "
            f"not {output_tokens} by length: the server does not force a length"
        )
    if usage.completion_tokens > output_tokens:
        raise InvalidSample(f"the answer has {usage.completion_tokens} tokens, more than the {output_tokens} asked for")
