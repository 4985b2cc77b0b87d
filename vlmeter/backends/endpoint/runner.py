"""Run requests on a server, and read off the wire when what happened.

The client's times are stamps of the reads that brought the tokens, not readings around a call: a sample ends with the
last token, not with the usage and the end of the stream behind it. Every sample sends a picture that no cache has seen,
and counts only if the server's own numbers say that it did what was asked: as many prompt tokens as the family counts,
as many output tokens, none from a cache.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from vlmeter.backends.base import CellFault, DeviceLost, Known, Mark, OpenedRequest, Prompt
from vlmeter.backends.clock import Clock, HostClock, Timing
from vlmeter.backends.endpoint.capabilities import Capabilities
from vlmeter.backends.endpoint.cards import cards_of
from vlmeter.backends.endpoint.client import Client, Exchange
from vlmeter.backends.endpoint.engine import Engine
from vlmeter.backends.endpoint.engine_vllm import call_workers
from vlmeter.backends.endpoint.faults import ConnectionLost, Failed, Refusal, ServerFault, TimedOut, Unreachable
from vlmeter.backends.endpoint.keys import Endpoint
from vlmeter.backends.endpoint.metrics import Metrics, read_metrics
from vlmeter.backends.endpoint.pictures import encoded, unlike
from vlmeter.backends.endpoint.request import Address, Body, Chat, Picture, encode
from vlmeter.backends.endpoint.server import Server, serving
from vlmeter.backends.endpoint.spans import device_decode_ms, first_token_spans, timing_of, token_gaps
from vlmeter.backends.endpoint.validity import check_answer
from vlmeter.common.errors import Unsupported
from vlmeter.models.families.base import ImageOptions, LoadedModel

#: Requests of next to nothing, to know what a round trip costs.
ROUND_TRIPS = 20


#: What a request meets when a process of its server was killed: the last of them may answer before it follows.
_OF_A_DYING_SERVER = (Unreachable, ConnectionLost, Failed, TimedOut)

#: So long is waited for it to follow, before a fault counts as one of the request alone.
ENDING_S = 5.0


def _ends(server: Server) -> bool:
    """Whether a server has ended, or does so now."""
    until_s = time.monotonic() + ENDING_S
    while server.is_running():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.1)
    return True


@dataclass(frozen=True)
class Asked:
    """What makes a request one that the server has met, or has not: its picture, and the salt of its prompt's cache."""

    picture: Picture
    salt: str | None


class EndpointRunner:
    """A served subject; see `Runner` and the capabilities that it has."""

    def __init__(
        self,
        loaded: LoadedModel,
        client: Client,
        model: str,
        taken: Capabilities,
        *,
        endpoint: Endpoint,
        engine: Engine | None,
        server: Server | None,
    ) -> None:
        self.clock: Clock = HostClock()
        self._loaded, self._client, self._model, self._taken = loaded, client, model, taken
        self._endpoint, self._engine, self._server = endpoint, engine, server
        self._numbers = itertools.count(secrets.randbits(32))
        self._counted: dict[object, Any] = {}
        self._said: dict[str, float] = {}
        self._prompt_tokens: int | None = None
        self._disturbed: list[str] = []
        self._marked = False
        # a salt of its own keeps each request from what the server kept of others, such as a system prompt
        self._salted = engine is not None and engine.salts and (endpoint.caches or server is None)
        self._inside: dict[str, Any] | None = self._look_inside()
        self._version = engine.version(client) if engine else None
        self._cards = cards_of(self.processes())
        self._trips = client.round_trips_ms(engine.idle_path if engine else "/v1/models", repeats=ROUND_TRIPS)

    # ---- what it is

    @property
    def about(self) -> Mapping[str, Any]:
        """What runs, for the record: engine, version, options, what it takes, what an empty request costs."""
        engine, server, endpoint = self._engine, self._server, self._endpoint
        return {
            "engine": engine.name if engine else "not known",
            "version": self._version,
            "model": self._model,
            "started": server is not None,
            "options": list(endpoint.options),
            "cards": list(self._cards),
            "dropped": list(server.dropped) if server else [],
            "loading_s": server.loading_s if server else None,
            "caches": "on" if endpoint.caches else ("off" if server else "the server's own"),
            "image_format": endpoint.image_format,
            "image_quality": endpoint.encoding.quality,
            "taken": list(self._taken.taken),
            "refused": dict(self._taken.refused),
            "unseen": list(self._taken.unseen),
            "inside": self._inside,
            "round_trips_ms": list(self._trips),
        }

    @property
    def identity(self) -> tuple[str, ...]:
        """What its numbers depend on, beside the subject's own keys."""
        engine = self._engine
        return (engine.name if engine else "", self._version or "", self._model, *self._taken.taken)

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of its numbers has to know."""
        found = [f"the server does not take {name}: {said}" for name, said in self._taken.refused.items()]
        if self._inside is None and self._endpoint.marks:
            found.append("there is no look inside this server: its part of the first token is told as one")
        elif self._inside:
            found += [f"no {name} inside the server: {reason}" for name, reason in self._inside["missing"].items()]
        if self._endpoint.caches and self._engine is not None and self._engine.picture_hits is None:
            found.append("no subtraction: the server does not say when it knew a picture")
        return found

    def processes(self) -> list[int]:
        """Processes of the server on this machine, whose work is the subject's own."""
        if self._server is not None:
            return self._server.processes()
        return serving(Address.parse(str(self._endpoint.url)))

    def disturbances(self) -> tuple[str, ...]:
        """What disturbed the requests since the last time that this was asked."""
        found, self._disturbed = tuple(dict.fromkeys(self._disturbed)), []
        return found

    def said(self) -> Mapping[str, float]:
        """What the server said of the last request that was looked at, by its own names, in milliseconds."""
        return self._said

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the last prompt, as the server counted them."""
        return self._prompt_tokens

    def close(self) -> None:
        """End the connection, and the server if it was started here."""
        self._client.close()
        if self._server is not None:
            self._server.stop()

    # ---- requests

    def _counts(self, opened: OpenedRequest) -> Any:
        key = (opened.picture.size, opened.question, opened.text_tokens, opened.options)
        if key not in self._counted:
            if opened.options != ImageOptions():
                raise Unsupported(
                    "a server cuts images by its own rules: neither max_crops nor force_tiling reaches it"
                )
            made = self._loaded.prepare(
                opened.picture, opened.question, text_tokens=opened.text_tokens, options=opened.options
            )
            self._counted[key] = (made.counts, made.question)
        return self._counted[key]

    def prepare(self, opened: OpenedRequest, *, mark: Mark | None = None) -> Prompt:
        """Encode the picture, and put the request's bytes together: `preprocess` and `copy` of a client.

        Without marks, which is to say outside of what is timed, the bytes are counted that a sample's picture has.
        """
        counts, question = self._counts(opened)
        if mark:
            mark(None)
        encoding = opened.encoding or self._endpoint.encoding
        picture = encoded(opened.picture, encoding)
        if mark:
            mark("preprocess")
        encode(Chat(self._model, question, picture))
        if mark:
            mark("copy")
        tensors = {"picture": opened.picture, "question": question, "encoding": encoding}
        made = Prompt(tensors=tensors, counts=counts)
        return made if mark else replace(made, picture_bytes=len(self.new(made).picture.data))

    def new(self, prompt: Prompt) -> Asked:
        """Make a picture that was never sent before, and a salt that was not."""
        number = next(self._numbers)
        encoding = prompt.tensors["encoding"]
        sent = encoded(unlike(prompt.tensors["picture"], number=number, encoding=encoding), encoding)
        return Asked(sent, f"{number:x}" if self._salted else None)

    def _body(self, prompt: Prompt, asked: Asked, *, output_tokens: int, forced: bool) -> Body:
        """The bytes of a request."""
        fields = self._taken.fields(output_tokens=output_tokens, forced=forced, cache_salt=asked.salt)
        return encode(Chat(self._model, prompt.tensors["question"], asked.picture, fields))

    def generate(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], mark: Mark | None = None
    ) -> Sequence[Any]:
        """Ask for an answer; `run` tells its times."""
        exchange, _ = self.ask(prompt, output_tokens=output_tokens, stop=stop, marked=False)
        return range(exchange.answer.output_tokens or 0)

    def run(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], marked: bool
    ) -> tuple[Timing, int]:
        """Ask for an answer; returns its times by the stamps of the wire, and its tokens.

        wall_ms ends with the last token; launch_ms is the upload. Raises CellFault for an answer that is no sample.
        """
        exchange, steps = self.ask(prompt, output_tokens=output_tokens, stop=stop, marked=marked)
        try:
            spans = first_token_spans(exchange, steps) if marked else []
        except ServerFault as fault:
            raise CellFault(str(fault)) from None
        gaps = [("decode_step", gap_ms) for gap_ms in token_gaps(exchange)] if marked else []
        decode_ms = device_decode_ms(steps) if marked else None
        inside = [] if decode_ms is None else [("device_decode", decode_ms)]
        return timing_of(exchange, (*spans, *gaps, *inside)), exchange.answer.output_tokens or 0

    def ask(
        self,
        prompt: Prompt,
        *,
        output_tokens: int,
        stop: Literal["length", "eos"],
        marked: bool,
        asked: Asked | None = None,
        known: Known | None = None,
    ) -> tuple[Exchange, list[dict[str, Any]] | None]:
        """Ask for an answer, and require that it is a sample; returns it, and the steps that the marks saw.

        asked: a request that the server has met, of which it has to know what `known` says; else it is a new one.
        """
        forced = stop == "length"
        body = self._body(prompt, asked or self.new(prompt), output_tokens=output_tokens, forced=forced)
        try:
            self._mark(marked)
            before = self._metrics()
            exchange = self._client.ask(body)
            check_answer(
                exchange.answer,
                prompt_tokens=prompt.counts.prompt_tokens,
                output_tokens=output_tokens,
                forced=forced,
                known_prompt=known == "prompt",
            )
            self._look_at(exchange, before, self._metrics(), known=known)
            self._prompt_tokens = exchange.answer.usage.prompt_tokens if exchange.answer.usage else None
            steps = self._steps() if marked and self._inside else None
        except ServerFault as fault:
            if self._server is not None and isinstance(fault, _OF_A_DYING_SERVER) and _ends(self._server):
                raise DeviceLost(f"the server ended: {self._server.why_ended()}") from None
            if isinstance(fault, Refusal):
                raise
            raise CellFault(str(fault)) from None
        return exchange, steps

    def _metrics(self) -> Metrics | None:
        return read_metrics(self._client, self._engine.metrics_path) if self._engine else None

    def _look_at(
        self, exchange: Exchange, before: Metrics | None, after: Metrics | None, *, known: Known | None
    ) -> None:
        """Keep what the server says of a request, and whether it had others at the time; hold its caches to `known`."""
        engine = self._engine
        if engine is None:
            return
        self._said = {said.name: said.value_ms for said in engine.said(exchange.answer, before, after)}
        for metrics in (before, after):
            if metrics is not None and engine.busy(metrics):
                self._disturbed.append("other requests on the server")
        if before is None or after is None:
            return
        hits = {name for name, count in engine.cache_hits(before, after).items() if count}
        if known and engine.picture_hits not in hits:
            raise CellFault(
                f"the server made the picture anew that it was to know ({engine.picture_hits} did not grow)"
            )
        more = hits - {engine.picture_hits if known else None}
        if more and known != "prompt":
            raise CellFault(f"the server answered from a cache ({', '.join(sorted(more))})")

    # ---- inside the server

    def _look_inside(self) -> dict[str, Any] | None:
        if self._server is None or self._engine is None or self._engine.name != "vllm" or not self._endpoint.marks:
            return None
        (about,) = call_workers(self._client, "vlmeter_install_marks")[:1]
        self._marked = True
        return about

    def _mark(self, wanted: bool) -> None:
        """Have the marks inside the server in place, or not."""
        if self._inside is None:
            return
        if wanted != self._marked:
            call_workers(self._client, "vlmeter_install_marks" if wanted else "vlmeter_remove_marks")
            self._marked = wanted
        if wanted:
            call_workers(self._client, "vlmeter_take_marks")

    def _steps(self) -> list[dict[str, Any]]:
        taken = call_workers(self._client, "vlmeter_take_marks")
        steps: list[dict[str, Any]] = taken[0]["steps"]
        return steps
