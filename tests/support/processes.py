"""Waiting for processes that others start and end."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

#: No test waits for a duration: this is how long something that has to happen may take.
PATIENCE_S = 20.0


def runs(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not collected does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def gone(*pids: int, patience_s: float = PATIENCE_S) -> bool:
    """Whether processes end, within reason."""
    ends_s = time.monotonic() + patience_s
    while any(runs(pid) for pid in pids):
        if time.monotonic() > ends_s:
            return False
        time.sleep(0.02)
    return True


def written(path: Path, *, patience_s: float = PATIENCE_S) -> str:
    """What somebody writes into a file, as soon as it is there."""
    ends_s = time.monotonic() + patience_s
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < ends_s, f"{path} was never written"
        time.sleep(0.02)
    return path.read_text()
