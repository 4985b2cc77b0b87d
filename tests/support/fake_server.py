"""A server that does what it is told to: each trap that a real one sets now and then, and each fault, on demand.

In a test it is a thread (`FakeServer`), whose answers are scripts. Run as a program it is something to start and end:

    python fake_server.py --port N [--host HOST] [--load-s S] [--fail TEXT] [--child FILE [--near]] [--stubborn]
"""

from __future__ import annotations

import argparse
import json
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self

MODEL = "toy"

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"


def event(content: object) -> bytes:
    """One event of a stream."""
    return f"data: {json.dumps(content)}\n\n".encode()


def chunk(
    text: str | None = None,
    *,
    ids: Sequence[int] | None = None,
    finish: str | None = None,
    usage: dict[str, Any] | None = None,
    role: str | None = None,
    delta: dict[str, Any] | None = None,
    **extra: Any,
) -> bytes:
    """One chunk of an answer, as the API has it."""
    filled: dict[str, Any] = dict(delta or {})
    if role is not None:
        filled |= {"role": role, "content": ""}
    if text is not None:
        filled["content"] = text
    choice: dict[str, Any] = {"index": 0, "delta": filled, "finish_reason": finish}
    if ids is not None:
        choice["token_ids"] = list(ids)
    content = {"id": "1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice], **extra}
    return event(content if usage is None else {**content, "usage": usage})


def usage(prompt: int, completion: int, *, cached: int | None = None, **details: int) -> dict[str, Any]:
    """A usage object."""
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": completion}
    counts["total_tokens"] = prompt + completion
    told = {**({} if cached is None else {"cached_tokens": cached}), **details}
    return {**counts, "prompt_tokens_details": told} if told else counts


def usage_alone(counts: dict[str, Any], **extra: Any) -> bytes:
    """A chunk of usage behind the answer, which belongs to no choice."""
    return event({"id": "1", "model": MODEL, "choices": [], "usage": counts, **extra})


def plain_answer(tokens: int, *, prompt: int = 7, finish: str = "length") -> list[bytes]:
    """An answer of one token per chunk, with usage at its end."""
    middle = [chunk("a", finish=finish if n == tokens - 1 else None) for n in range(tokens)]
    return [chunk(role="assistant"), *middle, usage_alone(usage(prompt, tokens)), DONE]


class Hang:
    """Say nothing more, and leave the connection open."""


class Reset:
    """End the connection as a process does that was killed."""


Step = bytes | float | Hang | Reset


@dataclass
class Script:
    """One response: a status, headers, and steps: bytes (one HTTP chunk each), seconds to wait, Hang or Reset.

    length: send the body as a whole with its length instead of in chunks. closes: say that the connection ends. ends:
    whether the last, empty HTTP chunk is sent.
    """

    steps: Sequence[Step] = ()
    status: int = 200
    content_type: str = "text/event-stream; charset=utf-8"
    headers: dict[str, str] = field(default_factory=dict)
    whole: bool = False
    closes: bool = False
    ends: bool = True

    @classmethod
    def error(cls, status: int, content: object) -> Script:
        """An error as JSON."""
        return cls([json.dumps(content).encode()], status, "application/json", whole=True)


class FakeServer:
    """A server in a thread; use it as a context manager.

    scripts: responses to the next chat requests, the last of them to all that follow; a function makes one of the
    request. paths: responses to other paths. requests: the bodies of the chat requests so far; heads: their headers.
    """

    def __init__(
        self, *scripts: Script | Callable[[dict[str, Any]], Script], paths: dict[str, Script] | None = None
    ) -> None:
        self.scripts = list(scripts) or [lambda body: Script(plain_answer(body.get("max_tokens", 3)))]
        listed = json.dumps({"object": "list", "data": [{"id": MODEL}]}).encode()
        self.paths = {
            "/health": Script([b"{}"], content_type="application/json", whole=True),
            "/v1/models": Script([listed], content_type="application/json", whole=True),
            **(paths or {}),
        }
        self.requests: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self.connections = 0
        self._let_go = threading.Event()
        self._server = _Server(self)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go.set()
        self._server.shutdown()
        self._server.server_close()

    def next_script(self, body: dict[str, Any]) -> Script:
        self.requests.append(body)
        found = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        return found if isinstance(found, Script) else found(body)

    def hang(self) -> None:
        self._let_go.wait()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        self.fake.connections += 1
        return super().get_request()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is none."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        self._play(self.server.fake.paths.get(self.path) or Script.error(404, {"detail": "Not Found"}))

    def do_POST(self) -> None:
        fake = self.server.fake
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path == "/v1/chat/completions":
            fake.heads.append(dict(self.headers.items()))
            self._play(fake.next_script(body))
        else:
            self._play(fake.paths.get(self.path) or Script.error(404, {"detail": "Not Found"}))

    def _play(self, script: Script) -> None:
        if script.steps and isinstance(script.steps[0], Reset | Hang):  # before a word is said
            self._step(script.steps[0])
            return
        self.send_response(script.status)
        self.send_header("Content-Type", script.content_type)
        for name, value in script.headers.items():
            self.send_header(name, value)
        if script.closes:
            self.send_header("Connection", "close")
            self.close_connection = True
        if script.whole:
            body = b"".join(step for step in script.steps if isinstance(step, bytes))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for step in script.steps:
            if not self._step(step):
                return
        if script.ends:
            self.wfile.write(b"0\r\n\r\n")
        else:
            self.close_connection = True

    def _step(self, step: Step) -> bool:
        """Take one step; False if it was the last."""
        match step:
            case bytes():
                self.wfile.write(f"{len(step):x}\r\n".encode() + step + b"\r\n")
                self.wfile.flush()
            case float() | int():
                time.sleep(step)
            case Hang():
                self.server.fake.hang()
                self.close_connection = True
                return False
            case Reset():
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
                self.close_connection = True
                return False
        return True


# --------------------------------------------------------------------------------------------- run as a program

#: A process that a server starts, and that does not go when it is asked to.
_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--load-s", type=float, default=0.0)
    parser.add_argument("--fail")
    parser.add_argument("--child", type=Path, help="start a process in a session of its own; its id goes into a file")
    parser.add_argument("--near", action="store_true", help="in this process's own session")
    parser.add_argument("--stubborn", action="store_true", help="take no notice of being asked to end")
    known = parser.parse_args()
    if known.stubborn:
        import signal

        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if known.child is not None:
        child = subprocess.Popen([sys.executable, "-c", _STUBBORN], start_new_session=not known.near)
        known.child.write_text(str(child.pid))
    if known.fail:
        print(known.fail, flush=True)
        return 1
    print("loading", flush=True)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            loaded = time.monotonic() - began_s >= known.load_s
            self.send_response(200 if loaded and self.path == "/health" else 503 if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    began_s = time.monotonic()
    ThreadingHTTPServer((known.host, known.port), Handler).serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
