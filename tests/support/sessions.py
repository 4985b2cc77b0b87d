"""Sessions on the fake backend, watched over as in the workflow, with faults planted in them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from benchmarks.chaos import make_dummies, session_command
from tests.support.imports import ROOT
from vlmeter.cells.cell import Cell
from vlmeter.measure.progress import Progress, Summary
from vlmeter.measure.supervision import supervise
from vlmeter.records.record import Record, read_record
from vlmeter.records.states import cell_states
from vlmeter.records.store import Journal
from vlmeter.study.layout import Layout
from vlmeter.study.loader import parse_study
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study

#: Nothing here takes longer than some seconds; a test that waits for longer has found a fault.
PATIENCE_S = 60.0


def fake_study(**changes: Any) -> dict[str, Any]:
    """Six cells of some milliseconds, without photographs; `changes` replace top-level keys."""
    return {
        "study": "faulty",
        "subjects": {"fake": {"family": "molmo", "preset": "nano", "dtype": "float32", "backend": "fake"}},
        "experiments": {"vision_tokens": {"tilings": ["1x1", "1x2", "2x1", "2x2", "1x3", "3x4"]}},
        "sampling": {"min_samples": 5, "max_samples": 5, "min_warmup": 1, "max_warmup": 1},
        **changes,
    }


#: The picture of a cell in the middle, whose cell is `CELL`.
IMAGE, CELL = "560x560", "vision-tiling-2x2"


def heed_interrupts() -> None:
    """Undo what a shell does to processes in its background, as the tests may be: they, and theirs, ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@dataclass
class Bench:
    """A folder with a study and its dummy images, and sessions in it."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    content: dict[str, Any] = field(default_factory=fake_study)
    told: list[str] = field(default_factory=list)
    steps: list[Progress] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.study: Study = parse_study(self.content, source="test")
        self.layout = Layout(self.study.study, self.folder / "results")
        self.cells: tuple[Cell, ...] = build_plan(self.study)
        self.file = self.folder / "study.yaml"
        self.file.write_text(yaml.safe_dump(self.content))
        make_dummies(self.study, self.layout)

    @property
    def log_file(self) -> Path:
        path = self.layout.log("measure-fake")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    def plant(self, **fault: Any) -> None:
        """Plant a fault, once."""
        once = {} if fault.pop("always", False) else {"once": str(self.folder / "happened")}
        self.monkeypatch.setenv("VLMETER_FAKE_FAULTS", json.dumps([{**once, **fault}]))

    def heal(self) -> None:
        self.monkeypatch.delenv("VLMETER_FAKE_FAULTS", raising=False)

    def run(self, *, log_file: Path | None = None) -> Summary:
        """Run a session, watched over by this process."""
        return supervise(
            self.study,
            next(iter(self.study.subjects)),
            self.layout,
            tell=self.told.append,
            progress=self.steps.append,
            log_file=log_file or self.log_file,
        )

    def start(self, *, owned_by: list[str] | None = None) -> subprocess.Popen[str]:
        """Start a session, watched over by a process of its own."""
        return subprocess.Popen(
            [*(owned_by or []), *session_command(self.file)],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )

    def environment(self) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(ROOT)}

    def record(self, cell: Cell) -> Record:
        return read_record(self.layout.record(cell))

    def kept(self) -> dict[str, str]:
        """Every finished cell, in its place or in the journal, with the session that measured it."""
        journal = Journal(self.layout.results, self.study.study, "fake")
        found = {}
        for cell in self.cells:
            for path in (journal.path(cell), self.layout.record(cell)):
                if path.exists():
                    found[cell.cell_id] = read_record(path).session.session_id
        return found

    def states(self) -> dict[str, str]:
        return {cell.cell_id: state.state for cell, state in cell_states(self.study, self.layout)}

    def is_complete(self) -> bool:
        return set(self.states().values()) == {"fresh"}


def wait_until(what: Callable[[], object], *, patience_s: float = PATIENCE_S) -> None:
    """Wait until something is the case."""
    until_s = time.monotonic() + patience_s
    while not what():
        assert time.monotonic() < until_s, "it did not come to that"
        time.sleep(0.01)


def workers_of(pid: int) -> list[psutil.Process]:
    """The measuring processes below a process."""

    def is_worker(process: psutil.Process) -> bool:
        try:
            return any("vlmeter.measure.worker" in part for part in process.cmdline())
        except psutil.Error:
            return False

    try:
        return [process for process in psutil.Process(pid).children(recursive=True) if is_worker(process)]
    except psutil.Error:
        return []


def wait_until_gone(processes: list[psutil.Process]) -> None:
    """See that none of the processes goes on."""
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    running = [process for process in alive if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    for process in running:
        process.kill()
    assert running == []
