"""Speak to one server, over one connection that is kept, and stamp every read.

The socket is our own rather than an HTTP library's: the time of a token is the time of the read that brought it, which
a library hides behind its own parsing and buffers. What is spoken is plain HTTP/1.1, and only to the address that the
study names: no redirect is followed, no proxy of the environment is used, and nothing else is looked up.

A request is bytes in hand before its clock starts; encoding the picture into it is timed apart (`Body.encode_ms`).
Before a request the connection is looked at, and made anew if the server has closed it meanwhile, so that no request
pays for a handshake.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

from vlmeter.backends.clock import HostClock
from vlmeter.backends.endpoint.faults import (
    Busy,
    ConnectionLost,
    Failed,
    KeyRefused,
    NotAnEndpoint,
    Refusal,
    Rejected,
    ServerFault,
    TimedOut,
    Unreachable,
    Unreadable,
    WrongModel,
    quoted,
)
from vlmeter.backends.endpoint.request import API, Address, Body
from vlmeter.backends.endpoint.stream import Answer, read_answer
from vlmeter.common.errors import UserError

#: Bytes asked of the socket at once: more than a server sends between two tokens.
READ_BYTES = 65_536

#: For a server on another continent; one that takes longer to accept is not there.
CONNECT_S = 10.0

#: How long a connection may take to end a stream whose last event has come; one that takes longer is not used again.
DRAIN_S = 1.0

_Connection = Literal["kept", "new"]


@dataclass(frozen=True)
class Exchange:
    """One request and its answer, in milliseconds of the client's steady clock.

    began_ms: before the first byte is handed to the socket. sent_ms: before the last one is. responded_ms: the first
    byte of the response, before its headers are parsed. connection: whether it was there already.
    """

    began_ms: float
    sent_ms: float
    responded_ms: float
    answer: Answer
    connection: _Connection

    @property
    def time_to_first_token_ms(self) -> float | None:
        """From the first byte sent to the first token received."""
        first = self.answer.first_token_ms
        return None if first is None else first - self.began_ms

    @property
    def total_ms(self) -> float | None:
        """From the first byte sent to the last token received."""
        last = self.answer.last_token_ms
        return None if last is None else last - self.began_ms


@dataclass(frozen=True)
class Response:
    """A response that is not a stream."""

    status: int
    body: bytes = field(repr=False)
    elapsed_ms: float

    def json(self) -> Any:
        """Read the body; raises Unreadable if it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            raise Unreadable("the server's response is not JSON") from None


def read_key(variable: str | None) -> str | None:
    """Read an API key from the environment variable that a study names; raises UserError if it is empty or missing."""
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise UserError(f"api_key_env: the environment variable {variable} is not set, or empty")
    if not key.isascii() or any(character.isspace() for character in key):
        raise UserError(f"api_key_env: the environment variable {variable} holds what cannot be a key")
    return key


class Client:
    """A connection to one server; use it as a context manager, and from one thread."""

    def __init__(
        self,
        url: str,
        *,
        api_key_env: str | None = None,
        timeout_s: float = 600.0,
        host_ms: Callable[[], float] | None = None,
    ) -> None:
        self.address = Address.parse(url)
        self.timeout_s = timeout_s
        self._key, self._variable = read_key(api_key_env), api_key_env
        self._now = host_ms or HostClock().host_ms
        self._socket: socket.socket | None = None

    def __repr__(self) -> str:
        return f"Client({str(self.address)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._socket is not None:
            with suppress(OSError):
                self._socket.close()
            self._socket = None

    # ---- requests

    def ask(self, body: Body) -> Exchange:
        """Send a chat request and read the stream of its answer to the end.

        The timed region starts with the first byte handed to the socket of a connection that stands. Raises a
        ServerFault for whatever comes instead of a whole answer; the connection is made anew for the next request.
        """
        head = self._head(
            "POST", f"{self.address.path}/chat/completions", length=len(body.payload), accept="text/event-stream"
        )
        with self._faults("answer"):
            connection = self._connect()
            reads, began_ms, sent_ms = self._send(head, body.payload)
            response = self._respond("POST", reads)
            responded_ms = reads.first_ms
            if response.status != http.HTTPStatus.OK:
                raise self._refusal(response.status, response.read(), response.getheader("Location"))
            kind = response.getheader("Content-Type", "")
            if not kind.startswith("text/event-stream"):
                raise self._no_stream(kind, response.read())
            answer = read_answer(_parts(response, reads), key=self._key)
        self._drain(response, reads)
        return Exchange(began_ms, sent_ms, responded_ms, answer, connection)

    def call(self, method: Literal["GET", "POST"], path: str, content: object = None) -> Response:
        """Send a request that is not a chat, to a path beside the API's or (`/v1/...`) in it; any status is returned.

        elapsed_ms is from the first byte sent to the last byte received.
        """
        payload = b"" if content is None else json.dumps(content).encode()
        inside = path.startswith(f"{API}/")
        full = (self.address.path + path.removeprefix(API)) if inside else (self.address.root + path)
        head = self._head(method, full, length=None if method == "GET" else len(payload), accept="*/*")
        with self._faults(f"response to {method} {path}"):
            response, reads, began_ms = self._called(method, head, payload)
            body = response.read()
        self._keep(response)
        return Response(response.status, body, elapsed_ms=reads.received_ms - began_ms)

    def get(self, path: str) -> Response:
        """GET a path and return what was found; raises the fault that any other status than 200 stands for."""
        return self._good(self.call("GET", path))

    def post(self, path: str, content: object) -> Response:
        """POST a JSON object and return the response; raises the fault that any other status than 200 stands for."""
        return self._good(self.call("POST", path, content))

    def round_trips_ms(self, path: str, *, repeats: int) -> tuple[float, ...]:
        """Time requests that ask for next to nothing, one after the other over the connection that stands.

        path must not be one that makes the server work (SGLang's `/health` generates a token). The first, which may
        have to connect, is not among the results.
        """
        self.get(path)
        return tuple(self.get(path).elapsed_ms for _ in range(repeats))

    def models(self) -> list[str]:
        """List the models that the server names."""
        found = self.get(f"{API}/models").json()
        entries = found.get("data") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise NotAnEndpoint(f"url: {self.address}/models lists no models; is this the API's address?")
        return [str(entry["id"]) for entry in entries if isinstance(entry, dict) and "id" in entry]

    def require_model(self, model: str) -> None:
        """Raise WrongModel unless the server names this model."""
        if model not in (known := self.models()):
            raise WrongModel(f"model: {model} is not served at {self.address}; there is {', '.join(known) or 'none'}")

    # ---- the wire

    def _connect(self) -> _Connection:
        """Have a connection on which nothing is pending."""
        if self._socket is not None:
            if not select.select([self._socket], [], [], 0)[0]:
                return "kept"
            self.close()  # the server has closed it, or said what nobody asked
        address = self.address
        try:
            plain = socket.create_connection((address.host, address.port), timeout=CONNECT_S)
        except TimeoutError:
            raise Unreachable(f"url: nobody accepts a connection at {address} within {CONNECT_S:.0f} s") from None
        except OSError as error:
            raise Unreachable(f"url: nobody answers at {address} ({error.strerror or error})") from None
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.scheme == "https":
                plain = ssl.create_default_context().wrap_socket(plain, server_hostname=address.host)
        except OSError as error:
            plain.close()
            raise Unreachable(f"url: no secure connection to {address} ({getattr(error, 'reason', error)})") from None
        self._socket = plain
        return "new"

    def _head(self, method: str, path: str, *, length: int | None, accept: str) -> bytes:
        lines = [f"{method} {path or '/'} HTTP/1.1", f"Host: {self.address.netloc}", f"Accept: {accept}"]
        lines += ["Accept-Encoding: identity", "User-Agent: vlmeter"]
        if length is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {length}"]
        if self._key is not None:
            lines.append(f"Authorization: Bearer {self._key}")
        return "\r\n".join((*lines, "", "")).encode("ascii")

    def _send(self, head: bytes, payload: bytes) -> tuple[_Reads, float, float]:
        """Send a request; returns the reader of its response and the times at which sending began and ended.

        The end is stamped before the last byte, without which no server can begin. Behind it the stamp would hold a
        part of the server's work: on a machine of few cores what wakes up runs in the place of what woke it.
        """
        assert self._socket is not None
        reads = _Reads(self._socket, now=self._now, limit_s=self.timeout_s)
        self._socket.settimeout(self.timeout_s)
        request = memoryview(head + payload)
        began_ms, sent_ms = self._now(), None
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have answered what it did not want to read
            self._socket.sendall(request[:-1])
            sent_ms = self._now()
            self._socket.sendall(request[-1:])
        return reads, began_ms, self._now() if sent_ms is None else sent_ms

    def _called(self, method: str, head: bytes, payload: bytes) -> tuple[http.client.HTTPResponse, _Reads, float]:
        """Send a request that is not a chat; returns the head of its response, its reader, and when sending began.

        A server may close a connection that was kept just as it is used again: llama.cpp does behind each stream, and
        says that it keeps it. A GET changes nothing, so that it is sent once more over a new connection.
        """
        kept = self._connect() == "kept"
        reads, began_ms, _ = self._send(head, payload)
        try:
            return self._respond(method, reads), reads, began_ms
        except ConnectionError:  # http.client.RemoteDisconnected is one
            if not kept or method != "GET":
                raise
        self.close()
        return self._called(method, head, payload)

    def _respond(self, method: str, reads: _Reads) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(reads, method=method)  # type: ignore[arg-type]  # wants makefile alone
        response.begin()
        return response

    def _drain(self, response: http.client.HTTPResponse, reads: _Reads) -> None:
        """Read what stands behind the end of a stream, so that the connection can be used again; it is soon there."""
        reads.limit(DRAIN_S)
        try:
            response.read()
        except (OSError, http.client.HTTPException):
            self.close()
        else:
            self._keep(response)

    def _keep(self, response: http.client.HTTPResponse) -> None:
        """Keep the connection, unless the server says that it closes it."""
        closes = response.will_close
        response.close()
        if closes:
            self.close()

    # ---- faults

    def _faults(self, what: str) -> _Faults:
        return _Faults(self, what)

    def _good(self, response: Response) -> Response:
        if response.status != http.HTTPStatus.OK:
            raise self._refusal(response.status, response.body, None)
        return response

    def _refusal(self, status: int, body: bytes, location: str | None) -> ServerFault:
        """The fault that a status stands for."""
        address = self.address
        if status in (401, 403):
            if self._variable is None:
                return KeyRefused(f"url: {address} wants a key ({status}); name its variable in api_key_env")
            return KeyRefused(f"api_key_env: {address} refuses the key in {self._variable} ({status})")
        said = quoted(said_in(body), key=self._key)
        if 300 <= status < 400:
            where = quoted(location or "elsewhere", key=self._key)
            return NotAnEndpoint(f"url: {address} sends on to {where} ({status}), which is not followed; name that one")
        if status in (400, 404) and any(re.search(words, said, re.IGNORECASE) for words in _NO_MODEL):
            return WrongModel(f"model: not served at {address}: {said}")
        if status in (404, 405):
            return NotAnEndpoint(f"url: {address} has no chat API ({status}): {said}")
        if status in (429, 503):
            return Busy(f"{address} turns the request away ({status}): {said}")
        if status >= 500:
            return Failed(f"{address} failed at the request ({status}): {said}")
        return Rejected(f"{address} rejects the request ({status}): {said}")

    def _no_stream(self, kind: str, body: bytes) -> ServerFault:
        said = quoted(said_in(body), key=self._key)
        if "json" in kind and b'"error"' in body:
            return Failed(f"{self.address} reports an error instead of an answer: {said}")
        return NotAnEndpoint(f"url: {self.address} answers with {kind or 'no type'} instead of a stream: {said}")


#: How servers say that they have no model of a name: vLLM, SGLang and OpenAI; transformers.
_NO_MODEL = (r"model.*(not exist|not.found)", r"^Server is pinned to")


def said_in(body: bytes) -> str:
    """Return the message in an error's body, in any of the forms that servers give it."""
    text = body.decode(errors="replace")
    try:
        found = json.loads(text)
    except ValueError:
        return text or "nothing"
    while isinstance(found, dict):
        inner = next((found[name] for name in ("error", "message", "detail", "msg") if found.get(name)), None)
        if inner is None:
            break
        found = inner
    return found if isinstance(found, str) else json.dumps(found)


class _Reads(io.RawIOBase):
    """The socket's bytes of one response, each read stamped as it returns; `http.client` takes it for a socket."""

    def __init__(self, source: socket.socket, *, now: Callable[[], float], limit_s: float) -> None:
        self._source, self._now = source, now
        self.first_ms = self.received_ms = 0.0
        self.limit(limit_s)

    def limit(self, limit_s: float) -> None:
        """Give up at so many seconds from now."""
        self._ends_s = time.monotonic() + limit_s

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a reader that asks the socket only when it holds nothing more."""
        return io.BufferedReader(self, READ_BYTES)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is, waiting for it until the time limit."""
        left_s = self._ends_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._source.settimeout(left_s)
        count = self._source.recv_into(buffer)
        self.received_ms = self._now()
        self.first_ms = self.first_ms or self.received_ms
        return count


def _parts(response: http.client.HTTPResponse, reads: _Reads) -> Iterator[tuple[bytes, float]]:
    """Pieces of a response's body, each with the time of the read that brought it.

    The buffer is read to its end before the socket is asked again, so that what is handed out came with the last read.
    """
    while part := response.read1(READ_BYTES):
        yield part, reads.received_ms


class _Faults:
    """Turns whatever goes wrong on the wire into the fault that it is, and drops the connection."""

    def __init__(self, client: Client, what: str) -> None:
        self._client, self._what = client, what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        client = self._client
        client.close()
        if isinstance(error, (ServerFault, Refusal)):
            return
        where = f"{client.address}"
        if isinstance(error, TimeoutError):
            raise TimedOut(f"no whole {self._what} from {where} within {client.timeout_s:g} s") from None
        if isinstance(error, (http.client.RemoteDisconnected, http.client.IncompleteRead, ConnectionError)):
            raise ConnectionLost(f"{where} closed the connection before the {self._what} was whole") from None
        if isinstance(error, (http.client.HTTPException, ValueError)):
            raise Unreadable(f"what comes from {where} is not HTTP ({type(error).__name__})") from None
        if isinstance(error, OSError):
            raise ConnectionLost(f"the connection to {where} failed ({error.strerror or error})") from None
