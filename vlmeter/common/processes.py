"""No process outlives the one that it works for.

A session whose workflow was killed would go on as an orphan: it would hold the device, and write records beside the
next run. Two things keep it from that. The kernel kills a process whose *parent* dies, where it is asked to. And a
process that works for a more distant ancestor (a shell often stands between a workflow and its jobs) watches that one
through a descriptor that becomes readable when it dies.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

#: Number of the request in Linux's prctl.h.
PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent, whose process id is given, dies.

    Elsewhere than on Linux nothing is asked; there a process notices at its next message that nobody listens.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it died before the kernel was asked
        os._exit(1)


def watch(pid: int | None) -> int | None:
    """Return a descriptor that becomes readable when an ancestor dies; None if `pid` is no ancestor, or unwatchable.

    Only an ancestor is believed: in a container with process ids of its own, the number may mean somebody else.
    """
    if pid is None or pid not in _ancestors():
        return None
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):  # no Linux, or one before 5.3
        return None


def _ancestors() -> list[int]:
    """Process ids of the parent, its parent and so on."""
    import psutil

    with contextlib.suppress(psutil.Error):
        return [process.pid for process in psutil.Process().parents()]
    return []
