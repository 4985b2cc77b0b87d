"""The process in which a session runs, and what it tells the one that watches over it.

A device that is lost, a kernel that never returns and a library that crashes take their whole process with them. So
the model runs in a process of its own (see `vlmeter.measure.supervision`), which reports through a pipe and may die at
any moment: what it finished is in the records and the journal.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from vlmeter.backends.base import DeviceLost
from vlmeter.common.errors import UserError
from vlmeter.common.processes import die_with_parent
from vlmeter.measure.progress import Progress, Summary
from vlmeter.measure.session import SessionFailed
from vlmeter.measure.subject import measure_subject
from vlmeter.study.layout import Layout
from vlmeter.study.study import Study

LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

#: Errors of a file system that a person can mend, and that say nothing about what was measured.
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG)


@dataclass(frozen=True)
class Task:
    """What a session's process is asked to do."""

    study: Study
    subject: str
    layout: Layout
    log_file: Path
    given_up: Mapping[str, str] = field(default_factory=dict)
    run: int = 0


@dataclass(frozen=True)
class Began:
    """A cell, or a look at the sentinel, has begun."""

    cell_id: str


@dataclass(frozen=True)
class Told:
    """Words for the person."""

    message: str


@dataclass(frozen=True)
class Ended:
    """The session has ended: well, by a user's mistake, with failed cells, by a lost device, or by a bug."""

    how: Literal["well", "mistake", "failed", "lost", "bug"]
    message: str = ""
    summary: Summary = field(default_factory=Summary)


Event = Began | Told | Progress | Ended


def main() -> None:
    """Run the session that the parent process sends; the arguments are a pipe's descriptor and the parent's id."""
    descriptor, parent = map(int, sys.argv[1:])
    die_with_parent(parent)
    # Ctrl-C reaches every process of a terminal; the parent decides what becomes of this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(descriptor)
    task: Task = connection.recv()
    handler = logging.FileHandler(task.log_file, mode="a", encoding="utf-8")
    handler.setFormatter(logging.Formatter(LOG_FORMAT))
    logging.getLogger().addHandler(handler)
    logging.getLogger("vlmeter").setLevel(logging.INFO)
    ended = _run(task, connection)
    connection.send(ended)
    handler.close()
    if ended.how == "lost":
        os._exit(1)  # the usual farewell to a lost device may wait for it for ever


def _run(task: Task, connection: Connection) -> Ended:
    try:
        summary = measure_subject(
            task.study,
            task.subject,
            task.layout,
            tell=lambda message: connection.send(Told(message)),
            begin=lambda cell: connection.send(Began(cell.cell_id)),
            progress=connection.send,
            given_up=task.given_up,
            run=task.run,
        )
    except UserError as error:
        return Ended("mistake", str(error))
    except SessionFailed as error:
        return Ended("failed", str(error), error.summary)
    except OSError as error:
        if error.errno in STORAGE_ERRORS:
            where = error.filename or task.layout.root
            return Ended("mistake", f"{where} cannot be written: {error.strerror}; what was finished is kept")
        return _bug()
    except Exception as error:
        if is_device_loss(error):
            return Ended("lost", str(error).strip().splitlines()[0])
        return _bug()
    return Ended("well", summary=summary)


def _bug() -> Ended:
    logging.getLogger(__name__).error("%s", traceback.format_exc())
    return Ended("bug", traceback.format_exc(limit=0).strip().splitlines()[-1])


def is_device_loss(error: Exception) -> bool:
    """Whether an error says that the device will do nothing more for this process.

    A kernel's error may surface at any later call, wherever the host happens to wait for the device.
    """
    torch = sys.modules.get("torch")
    return isinstance(error, DeviceLost) or (torch is not None and isinstance(error, torch.AcceleratorError))
