"""A session: one subject, loaded once, and all of its cells that have to be measured.

Loading a model takes longer than measuring a cell, so the unit of measuring is the session while the unit of caching
stays the cell. It is the better experiment too: order effects and drift belong to a session, and can be seen there. The
cells are measured in a random order, and a *sentinel* - always the same cell - is measured at the start, after every
few cells and at the end. If the sentinel has moved beyond its own noise, the cells since the last one are measured
again, once; if it is still away, they are flagged.
"""

from __future__ import annotations

import logging
import math
import random
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlmeter.backends.base import CellFault, CountsParameters, HasNotes, Runner, RunsElsewhere
from vlmeter.backends.clock import ClockError
from vlmeter.backends.registry import get_backend
from vlmeter.cells.cell import Cell, sentinel_of
from vlmeter.cells.keys import Sampling
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.inputs.pictures import Pictures
from vlmeter.measure.measurement import GETTING_READY, CountMismatch, Measurement
from vlmeter.measure.monitors import Monitor
from vlmeter.measure.progress import Progress, Summary
from vlmeter.measure.recording import named
from vlmeter.measure.requests import measure_requests
from vlmeter.measure.rounds import measure_cell
from vlmeter.numbers.medians import Estimate
from vlmeter.records.fingerprint import RUN, cell_fingerprint, input_digest
from vlmeter.records.installed import keep_listing, packages_here
from vlmeter.records.parts import Drift, SessionStamp
from vlmeter.records.record import Record, write_record
from vlmeter.records.store import INSTALLED, Journal, state_of, touch
from vlmeter.study.checkpoint import as_run
from vlmeter.study.layout import cell_path, installed_folder
from vlmeter.study.study import Study
from vlmeter.study.subject import Subject

log = logging.getLogger(__name__)


#: A sentinel is a quick look, one arm, on a shape that has been warmed up before. Nine is the smallest number of rounds
#: whose median has an interval that covers 95 % (with seven it is 87.5 %).
SENTINEL_SAMPLING = Sampling(min_samples=9, max_samples=9, max_seconds_per_cell=10.0, min_warmup=1, max_warmup=2)


#: What condemns one cell and says nothing about the others.
CELL_FAULTS = (CountMismatch, ClockError, CellFault)


class SessionFailed(Exception):
    """Some cells failed; the others are kept. The message says how many, and the first reason."""

    def __init__(self, message: str, summary: Summary) -> None:
        super().__init__(message)
        self.summary = summary


@dataclass(frozen=True)
class Machine:
    """What a session runs on: a loader for the subject, the monitor, and the words for the record."""

    identity: str
    load: Callable[[], Runner]
    monitor: Monitor
    describe: Callable[[], Mapping[str, Any]]
    #: the installed code that runs the model, once it has run (see `vlmeter.records.installed`)
    installed: Callable[[], Mapping[str, str]] = dict


def run_session(
    study: Study,
    subject_name: str,
    cells: Sequence[Cell],
    *,
    results: Path,
    pictures: Pictures,
    machine: Machine,
    begin: Callable[[Cell], None] = lambda cell: None,
    progress: Callable[[Progress], None] = lambda step: None,
    given_up: Mapping[str, str] | None = None,
    run: int = 0,
) -> Summary:
    """Measure every cell of the subject whose record of this run is missing or stale.

    Args:
        study: the study; cells: its cells of this subject, in the plan's order.
        results: folder that holds the study's folder.
        pictures: the study's, as far as they are at hand: all that the cells look at.
        machine: what to run on.
        begin: told before every cell and sentinel.
        progress: told after every cell and sentinel.
        given_up: cells that are not to be tried, by cell id, with the reason; they count as failed.
        run: which run of the study, from 0; each has an order of its own.

    Records are written as soon as they are finished, and kept in a journal until the session succeeds. Raises
    SessionFailed at the end if a cell failed, and UserError if records, of this run or of another one, come from
    another device or are of another version.
    """
    subject = study.subjects[subject_name]
    session = _Session(
        study, subject_name, subject, list(cells), results=results, pictures=pictures, machine=machine, run=run
    )
    session.begin, session.progress, session.given_up = begin, progress, given_up or {}
    session.sort()
    if session.todo:
        session.measure()
    touch(session.path(cell) for cell in cells if session.path(cell).exists())
    if session.summary.failed:
        raise SessionFailed(
            f"{len(session.summary.failed)} of {len(cells)} cells of {subject_name} failed; the first: "
            f"{session.summary.failed[0]}",
            session.summary,
        )
    session.journal.clear()
    return session.summary


def parameters_of(runner: Runner) -> Mapping[str, int]:
    """Parameters per component of a loaded model; none where they cannot be counted."""
    return runner.parameters if isinstance(runner, CountsParameters) else {}


class _Session:
    """The state of one session."""

    def __init__(
        self,
        study: Study,
        subject_name: str,
        subject: Subject,
        cells: list[Cell],
        *,
        results: Path,
        pictures: Pictures,
        machine: Machine,
        run: int,
    ) -> None:
        self.run = run
        self.study, self.subject_name, self.subject, self.cells = study, subject_name, subject, cells
        self.results, self.pictures, self.machine = results, pictures, machine
        self.journal = Journal(results, study.study, subject_name, run=run)
        self.summary = Summary()
        self.todo: list[Cell] = []
        self.begin: Callable[[Cell], None] = lambda cell: None
        self.progress: Callable[[Progress], None] = lambda step: None
        self.given_up: Mapping[str, str] = {}
        self.session_id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self.prints = {cell.cell_id: cell_fingerprint(cell, subject, pictures, run=run) for cell in cells}
        #: of the order of cells and arms; subject and run are in it, so that no two sessions share an order
        self.order_seed = f"{study.seed}/{subject_name}" + (f"/{run}" if run else "")
        #: records that hold, with their files: all of this run, one of every other one
        self._fresh: list[tuple[Record, Path]] = []
        self._listings = installed_folder(results, study.study)
        self._done = 0
        #: seconds that getting a cell's shape ready took before: as the sentinel, or measured the first time; by cell
        self._ready_early: dict[str, dict[str, float]] = {}
        self._measured = 0  # counts a cell that is measured twice twice
        self._reference: Estimate | None = None
        self._installed: Mapping[str, str] = {}

    def path(self, cell: Cell) -> Path:
        return cell_path(self.results, self.study.study, cell, run=self.run)

    def _other_runs(self) -> Iterator[tuple[Record, Path]]:
        """A record that holds of every other run, with its file: all of a run are of one device and one server."""
        for run in range(self.study.runs):
            for cell in self.cells if run != self.run else ():
                path = cell_path(self.results, self.study.study, cell, run=run)
                found = state_of(path, {**self.prints[cell.cell_id], RUN: str(run)}, listings=self._listings)
                if found.state == "fresh" and found.record is not None:
                    yield found.record, path
                    break

    def sort(self) -> None:
        """Tell which cells have to be measured; take back what the journal of a crashed session holds."""
        for record, path in self._other_runs():
            self._check_device(record, path)
            self._fresh.append((record, path))
        for cell in self.cells:
            current = self.prints[cell.cell_id]
            found = state_of(self.path(cell), current, listings=self._listings)
            if found.other_version is not None:
                raise found.other_version
            if found.state == "fresh" and found.record is not None:
                self._check_device(found.record, self.path(cell))
                self.summary.fresh += 1
                self._fresh.append((found.record, self.path(cell)))
                continue
            kept = self.journal.take_back(cell, current)
            if kept is not None and kept.environment.get("device_identity") == self.machine.identity:
                write_record(self.path(cell), kept)
                self.summary.restored += 1
                continue
            if cell.cell_id in self.given_up:
                self.summary.failed.append(self.given_up[cell.cell_id])
                continue
            log.info("%s is to be measured: %s", cell.cell_id, ", ".join((found.state, *found.reasons)))
            self.todo.append(cell)

    def _check_device(self, record: Record, path: Path) -> None:
        made_on = record.environment.get("device_identity")
        if made_on != self.machine.identity:
            raise UserError(
                f"record {path} was measured on {made_on}, and this is {self.machine.identity}; records of two devices "
                f"are never mixed in one subject: give subjects.{self.subject_name} another name to keep both, or "
                "`vlmeter forget` the old ones to measure everything again"
            )

    def measure(self) -> None:
        """Load the subject and measure what is to be measured."""
        rng = random.Random(self.order_seed)
        rng.shuffle(self.todo)
        begin_s = time.monotonic()
        try:
            runner = self.machine.load()
        except Unsupported as reason:
            self._record_unsupported(str(reason))
            return
        # what a checkpoint on the hub is is known for certain once it has been read
        for cell in self.cells:
            self.prints[cell.cell_id] = cell_fingerprint(cell, self.subject, self.pictures, run=self.run)
        if isinstance(runner, RunsElsewhere):
            self._know_server(runner)
        clock = runner.clock
        self._begin_ms = clock.host_ms()
        self._spend("load", time.monotonic() - begin_s)
        self._environment = {"device_identity": self.machine.identity, **self.machine.describe()}
        if isinstance(runner, RunsElsewhere):
            self._environment["server"] = dict(runner.about)
        sentinel = sentinel_of([cell for cell in self.cells if cell.cell_id not in self.given_up])
        self._look_at_sentinel(sentinel, runner, rng)
        every = self.study.sentinel_every_cells
        for start in range(0, len(self.todo), every):
            batch = self.todo[start : start + every]
            before = self._last_sentinel
            records = self._measure_batch(batch, runner, rng, position=start)
            after = self._look_at_sentinel(sentinel, runner, rng)
            drifted = self._has_drifted(after)
            if drifted and records:
                log.warning("the sentinel has drifted; %d cells are measured again", len(records))
                self.summary.remeasured += len(records)
                self._done -= len(records)
                again = self._measure_batch([r.cell for r in records], runner, rng, position=start, again=True)
                # A cell that fails the second time keeps its first record, and the flag.
                records = list({record.cell.cell_id: record for record in [*records, *again]}.values())
                before, after = after, self._look_at_sentinel(sentinel, runner, rng)
            self._settle(records, before=before, after=after, remeasured=drifted)
        self._spend("session", self.summary.seconds["load"] + (clock.host_ms() - self._begin_ms) / 1000)

    def _know_server(self, runner: RunsElsewhere) -> None:
        """Let the server be a part of each fingerprint; one that changed meanwhile is never mixed with what it was."""
        server = input_digest(*runner.identity)
        for record, path in self._fresh:
            if record.fingerprint.get("server", server) != server:
                raise UserError(
                    f"subjects.{self.subject_name}: record {path} was measured on another server "
                    "(engine, version, model or what it takes have changed), and records of two are never mixed: give "
                    "the subject another name to keep both, or `vlmeter forget` the old ones to measure all again"
                )
        for parts in self.prints.values():
            parts["server"] = server

    def _record_unsupported(self, reason: str) -> None:
        """Say in every cell's record why it cannot be measured on this machine."""
        log.warning("%s cannot be measured here: %s", self.subject_name, reason)
        self._environment = {"device_identity": self.machine.identity, **self.machine.describe()}
        self._note_installed(packages_here())
        for position, cell in enumerate(self.todo):
            measured = Measurement(status="unsupported", reason=reason)
            self._keep(self._record(cell, measured, parameters={}, position=position))
            self.summary.unsupported += 1

    def _note_words(self, runner: Runner) -> None:
        """Let what a runner has to say of its numbers stand in what follows; it may say more with every new shape."""
        if isinstance(runner, HasNotes) and runner.notes:
            self._environment = {**self._environment, "notes": list(runner.notes)}

    def _note_installed(self, listing: Mapping[str, str]) -> None:
        """Let a listing of installed code, if it is a new one, be a part of every record that follows."""
        if listing and listing != self._installed:
            self._installed = listing
            digest = keep_listing(self._listings, listing)
            self.prints = {cell_id: {**parts, INSTALLED: digest} for cell_id, parts in self.prints.items()}

    def _look_at_sentinel(self, sentinel: Cell, runner: Runner, rng: random.Random) -> Estimate | None:
        short = sentinel.model_copy(update={"sampling": SENTINEL_SAMPLING})
        estimate = None
        try:
            measured = self._measure_one(short, runner, rng, quick=True)
            estimate = measured.estimate()
            for name, seconds in measured.seconds.items():
                self._spend(name if name in GETTING_READY else "sentinel", seconds)
                if name in GETTING_READY:
                    self._ready_early.setdefault(sentinel.cell_id, {})[name] = seconds
        except CELL_FAULTS as error:  # if it is among the cells to measure, it fails there, with its name
            log.warning("the sentinel cannot be measured: %s", error)
        if estimate is None:
            log.warning("without a sentinel, drift around this moment goes unseen")
        if self._reference is None:
            self._reference = estimate
        self._last_sentinel = estimate
        self._tell(sentinel, estimate, note="sentinel", runner=runner)
        return estimate

    def _spend(self, name: str, seconds: float) -> None:
        self.summary.seconds[name] = self.summary.seconds.get(name, 0.0) + seconds

    def _has_drifted(self, now: Estimate | None) -> bool:
        """Whether the sentinel is away from its reference by more than the tolerance and the noise of both."""
        reference = self._reference
        if reference is None or now is None:
            return False
        moved = abs(now.value / reference.value - 1)
        noise = now.relative_half_width + reference.relative_half_width
        return moved > max(self.study.drift_tolerance_fraction, noise)

    def _settle(
        self, records: Sequence[Record], *, before: Estimate | None, after: Estimate | None, remeasured: bool
    ) -> None:
        """Write what the sentinels around a batch say into its records."""
        if before is None or after is None or self._reference is None:
            return
        drifted = self._has_drifted(after)
        noise = after.relative_half_width + self._reference.relative_half_width
        for record in records:
            drift = Drift(
                before_ms=before.value,
                after_ms=after.value,
                reference_ms=self._reference.value,
                noise_fraction=noise if math.isfinite(noise) else None,
                drifted=drifted,
                remeasured=remeasured,
            )
            self._keep(record.model_copy(update={"drift": drift}))
        self.summary.drifted += len(records) if drifted else 0

    def _measure_batch(
        self, batch: Sequence[Cell], runner: Runner, rng: random.Random, *, position: int, again: bool = False
    ) -> list[Record]:
        records = []
        for offset, cell in enumerate(batch):
            try:
                measured = self._measure_one(cell, runner, rng)
            except CELL_FAULTS as error:
                # This cell's numbers cannot be trusted, the others' can: they are measured, and the session fails at
                # its end.
                reason = str(error) if cell.cell_id in str(error) else f"cell {cell.cell_id}: {error}"
                log.error("%s", reason)
                self.summary.failed.append(reason)
                self._done += 1
                continue
            self._note_installed(self.machine.installed())
            self._note_words(runner)
            for name, seconds in measured.seconds.items():
                self._spend(name, seconds)
            for name, seconds in self._ready_early.pop(cell.cell_id, {}).items():
                measured.seconds[name] = measured.seconds.get(name, 0.0) + seconds
            # measured again, the cell finds its shapes ready: the record still says what they took
            self._ready_early[cell.cell_id] = {n: s for n, s in measured.seconds.items() if n in GETTING_READY}
            record = self._record(cell, measured, parameters=parameters_of(runner), position=position + offset)
            self._keep(record)
            records.append(record)
            self._done += 1
            self._measured += 1
            if not again:
                self.summary.measured += 1
                self.summary.oom += measured.status == "oom"
            note = "out of memory" if measured.status == "oom" else measured.stop_reason or ""
            self._tell(cell, measured.estimate(), note=note, runner=runner)
        return records

    def _measure_one(self, cell: Cell, runner: Runner, rng: random.Random, *, quick: bool = False) -> Measurement:
        self.begin(cell)
        rules: Any = {"monitor": self.machine.monitor, "rng": rng, "started_ms": self._begin_ms}
        if cell.kind == "requests":
            return measure_requests(cell, lambda request: self.pictures.opened(cell, request), runner, **rules)
        return measure_cell(cell, self.pictures.opened(cell, cell.request), runner, quick=quick, **rules)

    def _keep(self, record: Record) -> None:
        self.journal.keep(record)
        write_record(self.path(record.cell), record)

    def _tell(self, cell: Cell, estimate: Estimate | None, *, note: str, runner: Runner) -> None:
        elapsed_s = (runner.clock.host_ms() - self._begin_ms) / 1000
        total = len(self.todo)
        left_s = elapsed_s / self._measured * (total - self._done) if self._measured else None
        self.progress(Progress(self._done, total, cell, estimate, note, elapsed_s, left_s))

    def _record(self, cell: Cell, measured: Measurement, *, parameters: Mapping[str, int], position: int) -> Record:
        return Record(
            study=self.study.study,
            subject=self.subject_name,
            subject_config=as_run(self.subject),
            cell=cell,
            status=measured.status,
            reason=measured.reason,
            fingerprint=self.prints[cell.cell_id],
            run=self.run,
            series=measured.series(),
            steps_ms=measured.steps_ms(),
            generated_tokens=measured.generated_tokens,
            output=measured.output,
            output_digests=measured.output_digests,
            execution=get_backend(self.subject.backend).execution(str(self._environment.get("device"))),
            rounds=measured.rounds,
            requests=named(cell, measured.requests, self.pictures),
            failed_requests=measured.failed,
            left_out=measured.left_out,
            warmups=measured.warmups,
            busy=measured.busy,
            busy_reason=measured.busy_reason,
            memory=measured.memory,
            energy=measured.energy,
            stop_reason=measured.stop_reason,
            session=SessionStamp(
                session_id=self.session_id,
                position=position,
                cells=len(self.todo),
                started_at=self.started_at,
                order_seed=self.order_seed,
            ),
            seconds=measured.seconds,
            parameters=dict(parameters),
            environment=self._environment,
        )
