"""Find out once which fields of a request a server takes, and drop none silently.

The same wish has other names elsewhere, and a field that a server does not know is refused by one and ignored by the
next. So every wish is a *feature*; a server is asked once with a short text, features that it refuses are dropped by
name, and for those that leave a trace in the answer it is looked whether they did. What was dropped, and what was taken
without a trace, belongs into the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.faults import Failed, Rejected
from vlmeter.backends.endpoint.request import Chat, encode
from vlmeter.backends.endpoint.stream import Answer

#: Tokens of the answer to a probe: enough for a running count to be told from a total.
PROBE_TOKENS = 4


@dataclass(frozen=True)
class Feature:
    """Something that a request can ask for.

    fields: what it puts into a request for so many output tokens. keys: names by which a server's refusal would call
    it. shows: whether an answer bears its trace; None for what leaves none.
    """

    fields: Callable[[int], Mapping[str, Any]]
    keys: tuple[str, ...]
    shows: Callable[[Answer], bool] | None = None


def _has_forced_length(answer: Answer) -> bool:
    return answer.finish_reason == "length" and answer.output_tokens == PROBE_TOKENS


#: By name. A length that is forced shows only in an answer that would have ended by itself; every sample is looked at
#: for it.
FEATURES: Mapping[str, Feature] = {
    "usage": Feature(
        lambda n: {"stream_options": {"include_usage": True}},
        ("stream_options", "include_usage"),
        lambda answer: answer.usage is not None,
    ),
    "continuous_usage_stats": Feature(
        lambda n: {"stream_options": {"continuous_usage_stats": True}},
        ("continuous_usage_stats",),
        lambda answer: answer.usage_runs,
    ),
    "return_token_ids": Feature(
        lambda n: {"return_token_ids": True}, ("return_token_ids",), lambda answer: answer.token_ids is not None
    ),
    "timings_per_token": Feature(
        lambda n: {"timings_per_token": True},
        ("timings_per_token",),
        lambda answer: any(piece.counted_by == "timings" for piece in answer.pieces),
    ),
    "max_tokens": Feature(lambda n: {"max_tokens": n}, ("max_tokens",)),
    "max_completion_tokens": Feature(lambda n: {"max_completion_tokens": n}, ("max_completion_tokens",)),
    "greedy": Feature(lambda n: {"temperature": 0}, ("temperature",)),
    "ignore_eos": Feature(lambda n: {"ignore_eos": True}, ("ignore_eos",)),
    "min_tokens": Feature(lambda n: {"min_tokens": n}, ("min_tokens",)),
    "generation_config": Feature(
        lambda n: {"generation_config": f'{{"max_new_tokens": {n}, "min_new_tokens": {n}, "do_sample": false}}'},
        ("generation_config",),
        _has_forced_length,
    ),
    "no_prompt_cache": Feature(lambda n: {"cache_prompt": False}, ("cache_prompt",)),
}

#: What only an answer of a forced length asks for.
FORCING = ("ignore_eos", "min_tokens", "generation_config")

#: What limits an answer, the usual one first; no request goes without one.
LIMITING = ("max_tokens", "max_completion_tokens", "generation_config")

#: What is wished of a server of which nothing is known, and of vLLM and SGLang, which take all of it.
ANY_SERVER = ("usage", "continuous_usage_stats", "return_token_ids", "max_tokens", "greedy", "ignore_eos", "min_tokens")


@dataclass(frozen=True)
class Capabilities:
    """What one server takes.

    taken: features in use. refused: the others that were wished for, each with what the server said. unseen: of those
    taken, the ones that should have left a trace in the answer and did not; they are in no request.
    """

    taken: tuple[str, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()

    def fields(self, *, output_tokens: int, forced: bool = True, cache_salt: str | None = None) -> dict[str, Any]:
        """Fields of a request for so many tokens: exactly so many if `forced`, else at most.

        cache_salt: sent as it is; it parts the caches of vLLM and SGLang. For a server that takes it.
        """
        made: dict[str, Any] = {}
        for name in self.taken:
            if not forced and name in FORCING:
                continue
            merge(made, FEATURES[name].fields(output_tokens))
        if cache_salt is not None:
            made["cache_salt"] = cache_salt
        return made


def merge(fields: dict[str, Any], more: Mapping[str, Any]) -> None:
    """Add fields to a request's; objects such as `stream_options` are joined."""
    for name, value in more.items():
        if isinstance(value, Mapping) and isinstance(fields.get(name), dict):
            fields[name] = {**fields[name], **value}
        else:
            fields[name] = dict(value) if isinstance(value, Mapping) else value


def probe(client: Client, model: str, *, wanted: Sequence[str] = ANY_SERVER) -> Capabilities:
    """Ask a server once with everything that is wanted, and then without what it refuses.

    Raises Rejected if it takes no request of any kind, and whatever else is wrong with the server.
    """
    refused: dict[str, str] = {}
    left = list(wanted)
    while True:
        try:
            answer = _ask(client, model, left)
            break
        except (Rejected, Failed) as error:
            named = _named(str(error), left)
            refused |= dict.fromkeys(named, str(error))
            left = [name for name in left if name not in named]
            if not any(name in LIMITING for name in left):
                left += [name for name in LIMITING if name not in refused][:1]
            if not named or not any(name in LIMITING for name in left):
                answer, left, more = _one_by_one(client, model, left)
                refused |= more
                break
    shown = {name: FEATURES[name].shows for name in left}
    unseen = [name for name, shows in shown.items() if shows is not None and not shows(answer)]
    return Capabilities(tuple(name for name in left if name not in unseen), refused, tuple(unseen))


def _ask(client: Client, model: str, names: Sequence[str]) -> Answer:
    fields = Capabilities(tuple(names)).fields(output_tokens=PROBE_TOKENS)
    return client.ask(encode(Chat(model, "Say something.", fields=fields))).answer


def _named(said: str, names: Sequence[str]) -> list[str]:
    """The features that a refusal calls by name; the longest first, since some names hold others."""
    found, rest = [], said
    keys = sorted(((key, name) for name in names for key in FEATURES[name].keys), key=lambda pair: -len(pair[0]))
    for key, name in keys:
        if key in rest:
            rest = rest.replace(key, "")
            found.append(name)
    return found


def _one_by_one(client: Client, model: str, names: Sequence[str]) -> tuple[Answer, list[str], dict[str, str]]:
    """Add one feature after the other to a request that has a limit alone; what is wrong with that one is raised."""
    limits = [name for name in names if name in LIMITING] or list(LIMITING[:1])
    answer, taken, refused = _ask(client, model, limits[:1]), limits[:1], dict[str, str]()
    for name in names:
        if name in taken:
            continue
        try:
            answer = _ask(client, model, [*taken, name])
            taken.append(name)
        except (Rejected, Failed) as error:
            refused[name] = str(error)
    return answer, taken, refused
