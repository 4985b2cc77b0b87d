"""Keep a server, and see to it that nothing of it is left behind.

A server is several processes, and some of them would go on when the one that was started is killed. So between a
session and its server stands a keeper, a process of a few lines that

- is told by the kernel when the session is gone, however it went, and then ends the server;
- inherits whatever the server leaves behind (a *subreaper*, on Linux), so that it can end that too;
- is itself no reason for a server to stay: if it is killed, the kernel kills the server's first process, and a *guard*,
  a process that does nothing but wait for this, the others (vLLM's engine would go on for ever).

It is run as a file by `server.py`, imports Python's own modules alone, and speaks to the session in lines: `pid N G`
when the server was started, with its process and the guard's, `ended CODE` when it ended by itself. A line from the
session asks it to end the server; the end of the session's pipe without one says that the session is gone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

#: Numbers of the requests in Linux's prctl.h.
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36

#: So long may a server take to end in good order when its session is gone: somebody may want the device already.
GRACE_ORPHANED_S = 2.0

_POLL_S = 0.05


def main(arguments: Sequence[str]) -> int:
    """Run `keeper.py PARENT LOG GRACE_S COMMAND ...` until the server or the parent has ended.

    The server may take GRACE_S seconds to end in good order when its session asks it to.
    """
    parent, log, grace_s, command = int(arguments[0]), Path(arguments[1]), float(arguments[2]), list(arguments[3:])
    _ask_kernel(PR_SET_CHILD_SUBREAPER, 1)
    watched = _watch(parent)
    asked_to_end: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda caught, frame: asked_to_end.append(caught))
    with log.open("ab") as file:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_keeper,  # the keeper has one thread
        )
    _say(f"pid {server.pid} {_start_guard(server.pid)}")
    orphaned = False
    while server.poll() is None and not asked_to_end:
        _reap(server.pid)
        readable = select.select([d for d in (sys.stdin.fileno(), watched) if d is not None], [], [], _POLL_S)[0]
        if sys.stdin.fileno() in readable and os.read(sys.stdin.fileno(), 100):
            break
        if readable or os.getppid() != parent:
            orphaned = True
            break
    if server.poll() is not None:
        _say(f"ended {server.returncode}")
    else:
        _end_politely(server, GRACE_ORPHANED_S if orphaned else grace_s)
    kill_all(server.pid)
    return 0


def _start_guard(server: int) -> int:
    """Start a process that kills the server's group when the keeper is gone; returns its process id."""
    keeper = os.getpid()
    if guard := os.fork():
        return guard
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(nothing, descriptor)
        watched = _watch(keeper)
        while os.getppid() == keeper:
            select.select([] if watched is None else [watched], [], [], None if watched is not None else _POLL_S)
        os.killpg(server, signal.SIGKILL)
    finally:
        os._exit(0)


def kill_all(server: int) -> None:
    """Kill a server's process group and every descendant of this process, until there is none."""
    for _ in range(200):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(server, signal.SIGKILL)
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        left = descendants(os.getpid())
        _reap(None)
        if not left:
            return
        time.sleep(_POLL_S)


def descendants(pid: int) -> list[int]:
    """Processes below one, by what /proc says now; those that have ended and wait to be collected are left out."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # the name, in parentheses, may hold anything
            state, parent = entry.read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state not in "ZX":
                children.setdefault(int(parent), []).append(int(entry.parent.name))
    found, left = list[int](), [pid]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _end_politely(server: subprocess.Popen[bytes], grace_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        server.terminate()
    ends_s = time.monotonic() + grace_s
    while server.poll() is None and time.monotonic() < ends_s:
        _reap(server.pid)
        time.sleep(_POLL_S)


def _reap(server: int | None) -> None:
    """Collect what has ended and was left to this process; the server itself is collected by who started it."""
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is None or found.si_pid == server:
                return
            os.waitpid(found.si_pid, os.WNOHANG)
        except (ChildProcessError, AttributeError):
            return


def _watch(parent: int) -> int | None:
    """A descriptor that becomes readable when the parent dies; None where there is no such thing."""
    try:
        return os.pidfd_open(parent)
    except (AttributeError, OSError):
        return None


def _die_with_keeper() -> None:
    _ask_kernel(PR_SET_PDEATHSIG, signal.SIGKILL)


def _ask_kernel(request: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(request, value, 0, 0, 0)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
