"""Watch over a session: start its process, pass on what it tells, and know what to do when it goes wrong.

The watching process loads no model, so nothing that happens on a device can hurt it. It ends a cell that hangs, starts
the session again when the device was lost, and sees to it that nothing goes on when the workflow has gone: its own
death, however it comes, is the session's. Finished cells are kept by the session itself, so a new process measures only
what is left.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path

import vlmeter
from vlmeter.common.errors import UserError
from vlmeter.common.locks import LockUnusable, held
from vlmeter.common.processes import watch
from vlmeter.measure.progress import Progress, Summary
from vlmeter.measure.session import SessionFailed
from vlmeter.measure.worker import Began, Ended, Event, Task, Told
from vlmeter.records.store import sweep
from vlmeter.study.layout import Layout
from vlmeter.study.study import Study

log = logging.getLogger(__name__)

#: A variable of the environment that names the process for which all of this is done: the workflow's.
OWNER_VARIABLE = "VLMETER_OWNER_PID"

#: A device that was lost once is given another chance, in a new process.
MAX_RESTARTS = 1

#: So many cells in a row that hang, with none finished between them, are the device's fault.
MAX_HUNG_IN_A_ROW = 2

_START = "from vlmeter.measure.worker import main; main()"


class SessionStopped(Exception):
    """The session could not go on; what it finished is kept. The message is one sentence."""


def supervise(
    study: Study,
    subject: str,
    layout: Layout,
    *,
    tell: Callable[[str], None],
    progress: Callable[[Progress], None],
    log_file: Path,
    run: int = 0,
) -> Summary:
    """Measure a run's stale cells of a subject in a process that is watched over.

    Raises UserError for what a user can mend, SessionFailed when cells failed, SessionStopped when the session could
    not be brought to its end; finished cells are kept in every case.
    """
    owner = os.environ.get(OWNER_VARIABLE)
    with _only_session(study, subject, layout, tell=tell, run=run), _ends_on_sigterm():
        sweep(layout.results, study.study, subject, run=run)
        return _Supervisor(
            Task(study, subject, layout, log_file, run=run),
            tell=tell,
            progress=progress,
            owner=int(owner) if owner else None,
        ).run()


@contextlib.contextmanager
def _only_session(
    study: Study, subject: str, layout: Layout, *, tell: Callable[[str], None], run: int
) -> Iterator[None]:
    """Be the only session of the subject's run, on whichever machine others of the study may run."""
    path = layout.session_lock(subject, run=run)
    with contextlib.ExitStack() as stack:
        try:
            what = f"subject {subject} of study {study.study}" + (f", run {run}" if run else "")
            stack.enter_context(held([path], what=what, purpose="its session", tell=tell))
        except LockUnusable as error:
            raise UserError(f"the results cannot be written: {error}") from None
        yield


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """Leave in good order when asked to by a signal, as cluster schedulers do."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: object) -> None:
        sys.exit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Supervisor:
    """The state of one session over all of its processes."""

    def __init__(
        self,
        task: Task,
        *,
        tell: Callable[[str], None],
        progress: Callable[[Progress], None],
        owner: int | None,
    ) -> None:
        self.task, self.study, self.subject = task, task.study, task.subject
        self.tell, self.progress, self.owner = tell, progress, owner
        self.given_up: dict[str, str] = {}
        #: cells that earlier processes of this session finished; to the present one they are fresh
        self.finished_before: set[str] = set()

    def run(self) -> Summary:
        """Run processes until one ends the session."""
        restarts, hung_in_a_row = 0, 0
        while True:
            process = _Process(self)
            ended = process.run()
            if isinstance(ended, Ended) and ended.how not in ("lost",):
                return self._conclude(ended)
            self.finished_before |= process.finished
            if isinstance(ended, _Hung):
                hung_in_a_row = 1 if process.finished else hung_in_a_row + 1
                reason = self._give_up(ended.cell_id)
                if hung_in_a_row >= MAX_HUNG_IN_A_ROW:
                    raise SessionStopped(f"{reason}, as was the one before: the device seems to hang; {self._kept()}")
                self.tell(f"{reason}; the session goes on without it, in a new process")
                continue
            what = ended.message if isinstance(ended, Ended) else f"its process died ({ended.how})"
            where = f" in cell {process.cell_id}" if process.cell_id else ""
            if restarts >= MAX_RESTARTS:
                raise SessionStopped(f"the session of {self.subject} ended again{where}: {what}; {self._kept()}")
            restarts += 1
            self.tell(f"the session of {self.subject} ended{where}: {what}; it goes on in a new process")

    def _give_up(self, cell_id: str) -> str:
        reason = (
            f"cell {cell_id} of {self.subject} had not ended after {self.study.cell_time_limit_seconds:g} s "
            "(cell_time_limit_seconds) and was given up"
        )
        self.given_up[cell_id] = reason
        return reason

    def _kept(self) -> str:
        return f"{len(self.finished_before)} finished cells are kept, and the next run measures the rest"

    def _conclude(self, ended: Ended) -> Summary:
        summary, before = ended.summary, len(self.finished_before)
        summary.measured += before
        summary.fresh -= min(before, summary.fresh)
        if ended.how == "mistake":
            raise UserError(ended.message)
        if ended.how == "failed":
            raise SessionFailed(ended.message, summary)
        if ended.how == "bug":
            raise SessionStopped(
                f"the session of {self.subject} stopped on an error: {ended.message}; what was finished is kept"
            )
        return summary


class _Hung:
    def __init__(self, cell_id: str) -> None:
        self.cell_id = cell_id


class _Died:
    def __init__(self, how: str) -> None:
        self.how = how


class _Process:
    """One process of a session."""

    def __init__(self, supervisor: _Supervisor) -> None:
        self._supervisor = supervisor
        self.cell_id: str | None = None
        self.finished: set[str] = set()
        self._deadline_s: float | None = None

    def run(self) -> Ended | _Hung | _Died:
        """Start the process and listen to it until it ends; it never outlives this call."""
        of = self._supervisor
        task = replace(of.task, given_up=dict(of.given_up))
        ours, theirs = Pipe()
        with ours, _started(theirs) as process, _watched(of.owner) as owner:
            try:
                ours.send(task)
                return self._listen(ours, owner)
            except (EOFError, ConnectionError):
                code = process.wait()
                if code > 0:  # its interpreter did not come to the point where it reports
                    raise SessionStopped(f"the session of {of.subject} could not start (exit code {code})") from None
                return _Died(signal.Signals(-code).name if code else "exit code 0")

    def _listen(self, pipe: Connection, owner: int | None) -> Ended | _Hung:
        sources: list[Connection | int] = [pipe] if owner is None else [pipe, owner]
        while True:
            left_s = None if self._deadline_s is None else max(0.0, self._deadline_s - time.monotonic())
            ready = wait(sources, timeout=left_s)
            if owner in ready:
                log.error("the workflow has gone, so the session ends; what was finished is kept")
                sys.exit(1)
            if not ready and self.cell_id is not None:
                return _Hung(self.cell_id)
            event: Event = pipe.recv()
            if isinstance(event, Ended):
                return event
            self._hear(event)

    def _hear(self, event: Began | Told | Progress) -> None:
        of = self._supervisor
        if isinstance(event, Told):
            of.tell(event.message)
        elif isinstance(event, Began):
            self.cell_id = event.cell_id
            self._deadline_s = time.monotonic() + of.study.cell_time_limit_seconds
        else:
            self._deadline_s = None
            if event.note != "sentinel":
                self.finished.add(event.cell.cell_id)
            of.progress(event)


@contextlib.contextmanager
def _started(pipe: Connection) -> Iterator[subprocess.Popen[bytes]]:
    """A session's process, which is killed on leaving."""
    with pipe:
        process = subprocess.Popen(
            # -P: whatever lies in the working directory is not imported
            [sys.executable, "-P", "-c", _START, str(pipe.fileno()), str(os.getpid())],
            pass_fds=[pipe.fileno()],
            stdin=subprocess.DEVNULL,
            env=_environment(os.environ),
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _watched(owner: int | None) -> Iterator[int | None]:
    descriptor = watch(owner)
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _environment(own: Mapping[str, str]) -> dict[str, str]:
    """The environment of a session's process, which finds vlmeter where this one did."""
    root = str(Path(vlmeter.__file__).parents[1])
    paths = [root, *filter(None, [own.get("PYTHONPATH")])]
    return {**own, "PYTHONPATH": os.pathsep.join(paths)}
