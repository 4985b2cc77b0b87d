"""Start a server, wait until it is ready, and end it - with the session, however that ends.

A server listens on a free port of the loopback address and writes its log beside the session's. Between it and the
session stands a keeper (see `keeper`), so that none of a server's processes outlives the session. That the port is free
is found out by asking, and somebody else may be quicker: then another port is tried, and whoever answers on it is
believed only if it is a process of this server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from vlmeter.backends.endpoint import keeper
from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.engine import Launch
from vlmeter.backends.endpoint.faults import ServerFault
from vlmeter.backends.endpoint.request import Address
from vlmeter.backends.endpoint.whereabouts import is_here
from vlmeter.common.errors import UserError

#: Ports that are tried, should others be quicker.
ATTEMPTS = 3

#: How often a server that loads is asked whether it is ready, and how often the user hears of it.
POLL_S, TELL_S = 0.25, 10.0

#: How long a server may take to end in good order.
GRACE_S = 10.0

#: Of a server's environment, what belongs to the session's own Python.
_NOT_HANDED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")

#: How servers say in their logs that somebody has the port: Python and uvicorn; llama.cpp.
_PORT_TAKEN = ("address already in use", "errno 98", "couldn't bind", "port is already in use")

#: How argument parsers say that they do not know an option: Python's; click's; llama.cpp's.
_UNKNOWN_OPTION = ("unrecognized arguments", "no such option", "invalid argument", "unexpected keyword")

#: The lines of a log in which a reason for a server's end is looked for.
_LAST_LINES = 60


class ServerEnded(UserError):
    """A server ended before it was ready; the message says why as far as its log does, and where that is."""


class NotReady(UserError):
    """A server was not ready within its time."""


class _PortTaken(Exception):
    """Somebody else has the port."""


@dataclass
class Server:
    """A server that runs; use it as a context manager, or call `stop`.

    dropped: options that its version does not know and that it runs without. loading_s: how long it took to be ready.
    """

    url: str
    pid: int
    log: Path
    argv: tuple[str, ...]
    dropped: tuple[str, ...]
    loading_s: float
    _keeper: subprocess.Popen[bytes] = field(repr=False)
    _guard: int = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def is_running(self) -> bool:
        """Whether its first process runs."""
        return self._keeper.poll() is None and _runs(self.pid)

    def processes(self) -> list[int]:
        """List its processes, the first one first."""
        return [pid for pid in keeper.descendants(self._keeper.pid) if pid != self._guard and _runs(pid)]

    def listens_beyond(self) -> list[str]:
        """List the addresses on which one of its processes listens and which are not the loopback's."""
        found = (f"{host}:{port}" for host, port in listening(self.processes()) if not _is_loopback(host))
        return sorted(set(found))

    def why_ended(self) -> str:
        """Say what its log says at the end."""
        return reason_in(tail(self.log))

    def stop(self) -> None:
        """End it, and wait until none of its processes is left."""
        _stop(self._keeper, self.pid)


def start(
    launch: Callable[[int], Launch],
    *,
    ready_paths: Sequence[str],
    log: Path,
    limit_s: float,
    tell: Callable[[str], None],
    what: str = "the server",
) -> Server:
    """Start a server and wait until it is ready.

    Args:
        launch: gives the command for a port.
        ready_paths: paths that are found once it is ready; where the first is unknown, the next is asked.
        log: file that gains what the server prints.
        limit_s: how long it may load.
        tell: hears that it loads, every so often.
        what: its name in messages.

    Raises ServerEnded or NotReady, and leaves no process behind.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    dropped: tuple[str, ...] = ()
    taken = 0
    while True:
        port = free_port()
        made = launch(port)
        argv = tuple(part for part in made.argv if part not in dropped)
        try:
            return _start_once(
                argv, made.env, port, ready_paths, log=log, limit_s=limit_s, tell=tell, what=what, dropped=dropped
            )
        except _PortTaken:
            taken += 1
            if taken == ATTEMPTS:
                raise ServerEnded(f"{what} found each of {ATTEMPTS} ports taken; its log is {log}") from None
        except ServerEnded:
            unknown = tuple(option for option in made.optional if _is_refused(option, tail(log)))
            if not set(unknown) - set(dropped):
                raise
            dropped += unknown


def _start_once(
    argv: Sequence[str],
    env: Mapping[str, str],
    port: int,
    ready_paths: Sequence[str],
    *,
    log: Path,
    limit_s: float,
    tell: Callable[[str], None],
    what: str,
    dropped: tuple[str, ...],
) -> Server:
    began_s = time.monotonic()
    kept = _start_keeper(argv, env, log)
    pid = 0
    try:
        pid, guard = _read_pids(kept, argv[0])
        url = f"http://127.0.0.1:{port}"
        _wait(kept, pid, url, port, ready_paths, log=log, limit_s=limit_s, tell=tell, what=what)
    except BaseException:
        _stop(kept, pid)
        raise
    return Server(f"{url}/v1", pid, log, tuple(argv), dropped, time.monotonic() - began_s, kept, guard)


def _start_keeper(argv: Sequence[str], env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    handed_on = {name: value for name, value in os.environ.items() if name not in _NOT_HANDED_ON}
    # -I: no path and no variable of the session's reaches the keeper, which needs nothing but Python
    command = [sys.executable, "-I", keeper.__file__, str(os.getpid()), str(log.resolve()), str(GRACE_S), *argv]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**handed_on, **env}, start_new_session=True
    )


def _read_pids(kept: subprocess.Popen[bytes], program: str) -> tuple[int, int]:
    """Process ids of the server and of its guard."""
    assert kept.stdout is not None
    word, *numbers = kept.stdout.readline().decode().split() or [""]
    if word != "pid":
        raise ServerEnded(f"python: {program} could not be started")
    server, guard = map(int, numbers)
    return server, guard


def _wait(
    kept: subprocess.Popen[bytes],
    pid: int,
    url: str,
    port: int,
    ready_paths: Sequence[str],
    *,
    log: Path,
    limit_s: float,
    tell: Callable[[str], None],
    what: str,
) -> None:
    """Wait until the server is ready."""
    began_s = told_s = time.monotonic()
    with Client(url, timeout_s=2.0) as client:
        while not _is_ready(client, ready_paths):
            now_s = time.monotonic()
            if kept.poll() is not None or not _runs(pid):
                lines = tail(log)
                if any(sign in line.lower() for sign in _PORT_TAKEN for line in lines):
                    raise _PortTaken
                raise ServerEnded(f"{what} ended before it was ready: {reason_in(lines)}; its log is {log}")
            if now_s - began_s > limit_s:
                raise NotReady(f"{what} was not ready within {limit_s:.0f} s; its log is {log}")
            if now_s - told_s >= TELL_S:
                told_s = now_s
                tell(f"{what} is loading, for {now_s - began_s:.0f} s now: {_last(log)}")
            time.sleep(POLL_S)
    if port not in {found for _, found in listening([pid, *keeper.descendants(kept.pid)])}:
        raise _PortTaken  # it is somebody else who answers


def _is_ready(client: Client, ready_paths: Sequence[str]) -> bool:
    for path in ready_paths:
        try:
            status = client.call("GET", path).status
        except ServerFault:
            return False
        if status != 404:
            return status == 200
    return False


def _stop(kept: subprocess.Popen[bytes], pid: int) -> None:
    """Ask the keeper to end the server; do its work if it is gone."""
    with contextlib.suppress(OSError, ValueError):
        if kept.stdin is not None:
            kept.stdin.write(b"end\n")
            kept.stdin.close()
    try:
        kept.wait(GRACE_S + 20)
    except subprocess.TimeoutExpired:
        kept.kill()
        kept.wait()
    if pid and kept.returncode != 0:  # killed: what was in the server's group is nobody's now
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    if kept.stdout is not None:
        kept.stdout.close()


def free_port() -> int:
    """Find a port of the loopback address on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listening(pids: Iterable[int]) -> set[tuple[str, int]]:
    """Addresses and ports on which processes listen; empty for those of other users."""
    found = set()
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            for connection in psutil.Process(pid).net_connections(kind="tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port))
    return found


def serving(address: Address) -> list[int]:
    """List the processes of a server that somebody else started on this machine, by the port on which it listens.

    Those that listen, and those below them. Empty for a server on another machine, and for one of another user.
    """
    if not is_here(address.host):
        return []
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.Error:  # a system that shows them to nobody
        return []
    ports = ((found.pid, found.status, found.laddr.port) for found in connections if found.laddr)
    first = {pid for pid, status, port in ports if pid and status == psutil.CONN_LISTEN and port == address.port}
    below = {child for pid in first for child in keeper.descendants(pid)}
    return sorted((first | below) - {os.getpid()})


def tail(log: Path, *, lines: int = _LAST_LINES) -> list[str]:
    """Return the last lines of a log that hold anything."""
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 200 * lines))
        text = file.read().decode(errors="replace")
        return [line.strip() for line in text.splitlines() if line.strip()][-lines:]
    return []


def reason_in(lines: Sequence[str]) -> str:
    """The line of a log that is likeliest to say why a program ended: its last error, else its last line.

    Of vLLM's processes the last to speak says no more than that another one failed.
    """
    errors = [line for line in lines if "Error" in line or "error:" in line]
    errors = [line for line in errors if "root cause above" not in line] or errors
    return (errors or list(lines) or ["its log is empty"])[-1][-300:]


def _last(log: Path) -> str:
    return (tail(log) or ["nothing in its log yet"])[-1][-120:]


def _is_refused(option: str, lines: Sequence[str]) -> bool:
    return any(option in line and sign in line.lower() for sign in _UNKNOWN_OPTION for line in lines)


def _is_loopback(host: str) -> bool:
    return host.startswith("127.") or host in ("::1", "::ffff:127.0.0.1")


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
