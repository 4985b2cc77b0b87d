"""Locks that die with their holder, and say who holds them.

The operating system releases a `flock` when its holder dies, however that happens, so none is ever stale and nobody
has to remove one by hand. A lock's file stays behind, since removing it would let two processes lock two files of the
same name; what is written in it are words for whoever waits.
"""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

#: How often a waiting process looks whether the lock is free.
POLL_S = 0.5


class LockUnusable(Exception):
    """A lock's file cannot be opened or made."""


def take(path: Path, *, purpose: str, shared: bool = False) -> int | None:
    """Try to take a lock; returns a descriptor that holds it until it is closed, or None if somebody else has it.

    Several processes may hold a lock together if each takes it `shared`. Raises LockUnusable if its file cannot be
    opened.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = _open(path)
    except OSError as error:
        raise LockUnusable(str(error)) from None
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    owner = {"pid": os.getpid(), "user": _user(), "host": platform.node(), "purpose": purpose}
    # Only words for whoever waits: a full disk must not keep anybody from the lock.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(owner).encode(), 0)
    return descriptor


@contextlib.contextmanager
def held(
    paths: Sequence[Path],
    *,
    what: str,
    purpose: str,
    tell: Callable[[str], None],
    shared: bool = False,
    poll_s: float = POLL_S,
) -> Iterator[int]:
    """Hold the first of several locks that is free, and wait while none is, with a message that names the holders.

    Yields the place of the lock that was taken in `paths`.
    """
    told = False
    while True:
        for place, path in enumerate(paths):
            descriptor = take(path, purpose=purpose, shared=shared)
            if descriptor is None:
                continue
            try:
                yield place
            finally:
                os.close(descriptor)
            return
        if not told:
            tell(f"waiting for {what}, which is held by {' and by '.join(map(holder, paths))}")
            told = True
        time.sleep(poll_s)


def holder(path: Path) -> str:
    """Say who holds a lock."""
    try:
        owner = json.loads(path.read_text())
        where = "" if owner["host"] == platform.node() else f" on {owner['host']}"
        return f"process {owner['pid']} of {owner['user']}{where} ({owner['purpose']})"
    except (OSError, ValueError, LookupError, TypeError):  # it has the lock, and has not written its name yet
        return "another process"


def _open(path: Path) -> int:
    """Open a lock's file so that every user of the machine can lock it; no link is followed."""
    flags = os.O_RDWR | os.O_NOFOLLOW
    # Linux refuses O_CREAT on another user's file in a folder such as /tmp, so creating is tried second.
    with contextlib.suppress(FileNotFoundError):
        return os.open(path, flags)
    descriptor = os.open(path, flags | os.O_CREAT, 0o666)
    with contextlib.suppress(PermissionError):
        os.fchmod(descriptor, 0o666)  # the umask must not keep other users from locking the same thing
    return descriptor


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return f"user {os.getuid()}"
