"""Read the stream of an answer: what came when, and how many tokens it was.

A server sends an answer as *events*, lines that begin with `data:`, each a JSON object. Three things stand between
them and a latency, and each has fooled a benchmark:

- *when*: an event counts as received when the socket gave its last byte, stamped before anything is parsed. Several
  events in one read arrived together, and share a stamp.
- *which*: the first event says no more than "assistant" and is sent before the model has run; the last ones hold usage
  and `[DONE]`. A token is received with the first event that has text, or that grows the count of tokens.
- *how many*: an event is not a token. Halves of a character and special tokens have no text, speculative decoding sends
  several at once. Where the server says (token ids, a running count), an event's tokens are known; nowhere are they
  guessed.

A stream that breaks off is a fault, however much of it was read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vlmeter.backends.endpoint.faults import MOST_QUOTED, ConnectionLost, Failed, Unreadable, quoted

#: Ends a stream; transformers' server ends without it.
DONE = "[DONE]"

#: Fields of a delta that hold text of one sort or another; servers disagree on the name of the reasoning.
TEXT_FIELDS = ("content", "reasoning_content", "reasoning", "refusal")

#: Fields of a chunk that are the protocol's; all others are what a server adds of its own.
PROTOCOL_FIELDS = (
    "id",
    "object",
    "created",
    "model",
    "choices",
    "usage",
    "system_fingerprint",
    "service_tier",
    "error",
)

#: How an event's tokens are known: by their ids; by the count of tokens so far, in `usage` or in llama.cpp's `timings`;
#: or since the whole answer leaves only one number for it.
CountedBy = Literal["token_ids", "usage", "timings", "whole"]


@dataclass(frozen=True)
class Event:
    """One event of a stream; kind is "message" unless the server names another."""

    data: str
    received_ms: float
    kind: str = "message"


class EventParser:
    """Cut raw bytes into events, in whatever pieces they come."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[str] = []
        self._kind = "message"
        self._received_ms = 0.0

    def feed(self, raw: bytes, *, received_ms: float) -> Iterator[Event]:
        """Yield the events that these bytes complete, stamped with the time at which the socket gave them.

        Lines that begin with a colon keep the connection alive and are skipped.
        """
        *lines, self._rest = (self._rest + raw).split(b"\n")
        for line in lines:
            yield from self._line(line.removesuffix(b"\r"), received_ms)

    def _line(self, line: bytes, received_ms: float) -> Iterator[Event]:
        if not line:
            if self._data:
                yield Event("\n".join(self._data), self._received_ms, self._kind)
            self._data, self._kind = [], "message"
            return
        try:
            name, _, value = line.decode().partition(":")
        except UnicodeDecodeError:
            raise Unreadable("the stream holds bytes that are no text") from None
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
            self._received_ms = received_ms
        elif name == "event":
            self._kind = value
        elif name == "error":  # as llama.cpp has it
            self._data.append(value)
            self._kind = "error"
            self._received_ms = received_ms

    @property
    def unfinished(self) -> bool:
        """Whether a part of an event was received and the rest was not."""
        return bool(self._rest.strip() or self._data)


@dataclass(frozen=True)
class Piece:
    """An event with at least one token.

    tokens: how many, where that is known, by what is told in `counted_by`. characters: of text, 0 for tokens that have
    none.
    """

    received_ms: float
    characters: int
    tokens: int | None = None
    counted_by: CountedBy | None = None


@dataclass(frozen=True)
class Arrival:
    """What one read brought: its time, and its tokens where their number is known."""

    received_ms: float
    tokens: int | None


@dataclass(frozen=True)
class Usage:
    """What the server counted.

    cached_tokens: of the prompt's tokens, those that were not computed; image_tokens: those of the image, as the server
    counts them. None where it says nothing. reported: the whole of what it said.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    image_tokens: int | None = None
    reported: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, reported: Mapping[str, Any]) -> Usage:
        """Read a usage object; raises Unreadable if it lacks the two counts."""
        details = reported.get("prompt_tokens_details") or {}
        prompt, completion = _count(reported.get("prompt_tokens")), _count(reported.get("completion_tokens"))
        if prompt is None or completion is None or not isinstance(details, dict):
            raise Unreadable(f"the server's usage holds no counts: {json.dumps(reported)[:MOST_QUOTED]}")
        image = next((details[n] for n in ("image_tokens", "multimodal_tokens") if details.get(n) is not None), None)
        return cls(prompt, completion, _count(details.get("cached_tokens")), _total(image), dict(reported))


@dataclass(frozen=True)
class Answer:
    """One answer, read to its end. All stamps are milliseconds of the client's steady clock.

    opened_ms: the first event of any kind, which is before the model has run. ended_ms: the last event of any kind.
    token_ids: of the whole answer, where the server sent them. usage_runs: whether usage came with the answer's chunks
    and not at its end alone. extras: what the server says beyond the protocol
    (`timings`, `metrics`), by name, the last of each.
    """

    pieces: tuple[Piece, ...]
    opened_ms: float
    ended_ms: float
    finish_reason: str
    usage: Usage | None = None
    token_ids: tuple[int, ...] | None = None
    model: str | None = None
    usage_runs: bool = False
    extras: Mapping[str, Any] = field(default_factory=dict)

    @property
    def first_token_ms(self) -> float | None:
        """When the first token was received; its event may hold further ones (`Piece.tokens`)."""
        return self.pieces[0].received_ms if self.pieces else None

    @property
    def last_token_ms(self) -> float | None:
        """When the last token was received; usage and the end of the stream come later and do not count."""
        return self.pieces[-1].received_ms if self.pieces else None

    @property
    def output_tokens(self) -> int | None:
        """Tokens of the answer, as the server counts them; else those that were received, if all are known."""
        if self.usage is not None:
            return self.usage.completion_tokens
        known = [piece.tokens for piece in self.pieces if piece.tokens is not None]
        return sum(known) if len(known) == len(self.pieces) else None

    @property
    def arrivals(self) -> tuple[Arrival, ...]:
        """The tokens as they arrived: events that one read brought are one arrival."""
        found: list[Arrival] = []
        for piece in self.pieces:
            if found and found[-1].received_ms == piece.received_ms:
                known = found[-1].tokens is not None and piece.tokens is not None
                found[-1] = Arrival(piece.received_ms, (found[-1].tokens or 0) + (piece.tokens or 0) if known else None)
            else:
                found.append(Arrival(piece.received_ms, piece.tokens))
        return tuple(found)


def read_answer(parts: Iterable[tuple[bytes, float]], *, key: str | None = None) -> Answer:
    """Read an answer to its end; nothing is asked for behind it.

    Args:
        parts: raw bytes of the body as the socket gave them, each with the time of that read.
        key: the API key, which no error message may hold.

    Raises Failed for an error that the server reports inside the stream, ConnectionLost for a stream that ends early,
    Unreadable for one that is no stream of this API.
    """
    parser, reading = EventParser(), _Reading(key)
    for raw, received_ms in parts:
        for event in parser.feed(raw, received_ms=received_ms):
            reading.take(event)
        if reading.done:
            break
    if parser.unfinished and not reading.done:
        raise ConnectionLost(f"the stream ends within an event, after {len(reading.pieces)} events with tokens")
    return reading.answer()


class _Reading:
    """An answer that is being read."""

    def __init__(self, key: str | None) -> None:
        self._key = key
        self.done = False
        self.pieces: list[Piece] = []
        self._opened_ms: float | None = None
        self._ended_ms = 0.0
        self._finish_reason: str | None = None
        self._usage: Usage | None = None
        self._token_ids: list[int] | None = None
        self._counts_run = self._usage_runs = False
        self._counted = 0
        self._model: str | None = None
        self._extras: dict[str, Any] = {}

    def take(self, event: Event) -> None:
        if self.done:  # nothing is expected here, and nothing here can belong to the answer
            return
        if self._opened_ms is None:
            self._opened_ms = event.received_ms
        self._ended_ms = event.received_ms
        if event.data.strip() == DONE:
            self.done = True
            return
        try:
            chunk = json.loads(event.data)
        except (ValueError, RecursionError):
            raise Unreadable(f"an event of the stream is not JSON: {quoted(event.data, key=self._key)}") from None
        if not isinstance(chunk, dict):
            raise Unreadable(f"an event of the stream is no object: {quoted(event.data, key=self._key)}")
        self._raise_error(chunk, event)
        model = chunk.get("model")
        self._model = model if model and isinstance(model, str) else self._model
        self._extras |= {n: value for n, value in chunk.items() if n not in PROTOCOL_FIELDS and isinstance(value, dict)}
        if isinstance(chunk.get("usage"), dict):
            self._usage = Usage.read(chunk["usage"])
        choices = chunk.get("choices") or [{}]
        choice = choices[0] if isinstance(choices, list) else None
        if not isinstance(choice, dict) or not isinstance(choice.get("delta") or {}, dict):
            raise Unreadable(f"an event of the stream holds no choice: {quoted(event.data, key=self._key)}")
        self._take_choice(choice, chunk, event.received_ms)

    def _raise_error(self, chunk: Mapping[str, Any], event: Event) -> None:
        error = chunk.get("error")
        if event.kind == "error" or chunk.get("object") == "error":
            error = error or chunk
        if not error:
            return
        message = error.get("message") if isinstance(error, dict) else error
        said = quoted(str(message or json.dumps(error)), key=self._key)
        raise Failed(f"the server failed within its answer, after {len(self.pieces)} events with tokens: {said}")

    def _take_choice(self, choice: Mapping[str, Any], chunk: Mapping[str, Any], received_ms: float) -> None:
        if not choice:  # usage in a chunk of its own
            return
        delta = choice.get("delta") or {}
        characters = sum(len(delta[name]) for name in TEXT_FIELDS if isinstance(delta.get(name), str))
        tokens, counted_by = self._tokens(choice, chunk)
        # Text without a token to it is text that was held back, of tokens that were counted before.
        if tokens or (tokens is None and (characters or delta.get("tool_calls"))):
            self.pieces.append(Piece(received_ms, characters, tokens, counted_by))
        if choice.get("finish_reason"):
            self._finish_reason = str(choice["finish_reason"])
        self._usage_runs |= isinstance(chunk.get("usage"), dict) and not choice.get("finish_reason")

    def _tokens(self, choice: Mapping[str, Any], chunk: Mapping[str, Any]) -> tuple[int | None, CountedBy | None]:
        """Tokens that came with a chunk, and how that is known."""
        ids = choice.get("token_ids")
        if isinstance(ids, list) or self._token_ids is not None:
            new_ids = ids or []
            if not isinstance(new_ids, list) or not all(_count(number) is not None for number in new_ids):
                raise Unreadable(f"the server's token_ids are no numbers: {json.dumps(ids)[:MOST_QUOTED]}")
            self._token_ids = [*(self._token_ids or []), *new_ids]
            return len(new_ids), "token_ids"
        total, counted_by = _running_count(chunk)
        if total is None or any(piece.tokens is None for piece in self.pieces):
            return None, None
        if not self._counts_run and choice.get("finish_reason"):
            return None, None  # the total of the whole answer, said once
        self._counts_run = True
        new, self._counted = total - self._counted, max(total, self._counted)
        return max(new, 0), counted_by

    def answer(self) -> Answer:
        if self._opened_ms is None:
            raise ConnectionLost("the connection ended before the first event of the stream")
        if self._finish_reason is None:
            raise ConnectionLost(
                f"the stream ends after {len(self.pieces)} events with tokens, without saying that the answer is over"
            )
        return Answer(
            pieces=_with_counts(self.pieces, self._usage),
            opened_ms=self._opened_ms,
            ended_ms=self._ended_ms,
            finish_reason=self._finish_reason,
            usage=self._usage,
            token_ids=None if self._token_ids is None else tuple(self._token_ids),
            model=self._model,
            usage_runs=self._usage_runs,
            extras=self._extras,
        )


def _running_count(chunk: Mapping[str, Any]) -> tuple[int | None, CountedBy | None]:
    """Tokens of the answer up to and with a chunk, where it says so."""
    usage, timings = chunk.get("usage"), chunk.get("timings")
    if isinstance(usage, dict) and (counted := _count(usage.get("completion_tokens"))) is not None:
        return counted, "usage"
    if isinstance(timings, dict) and (counted := _count(timings.get("predicted_n"))) is not None:
        return counted, "timings"
    return None, None


def _count(value: object) -> int | None:
    """A number of tokens; None for what is none."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _with_counts(pieces: Sequence[Piece], usage: Usage | None) -> tuple[Piece, ...]:
    """Fill in the counts that the whole answer leaves no choice about.

    That is one event of which alone nothing is known, or as many events as tokens, since each holds at least one.
    """
    unknown = [n for n, piece in enumerate(pieces) if piece.tokens is None]
    if usage is None:
        return tuple(pieces)
    left = usage.completion_tokens - sum(piece.tokens or 0 for piece in pieces)
    if left < len(unknown) or (left and pieces and not unknown):
        raise Unreadable(
            f"the server counted {usage.completion_tokens} tokens in all, and its stream holds "
            f"{usage.completion_tokens - left + len(unknown)}{' or more' if unknown else ''}"
        )
    if not unknown or (len(unknown) != 1 and left != len(unknown)):
        return tuple(pieces)
    each = left if len(unknown) == 1 else 1
    filled = list(pieces)
    for n in unknown:
        filled[n] = Piece(pieces[n].received_ms, pieces[n].characters, each, "whole")
    return tuple(filled)


def _total(counted: object) -> int | None:
    """Tokens of all images; vLLM counts them by kind of input."""
    if isinstance(counted, Mapping):
        return sum(value for value in counted.values() if isinstance(value, int))
    return counted if isinstance(counted, int) else None
