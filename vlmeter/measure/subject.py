"""What the measuring rules do with one subject: check its counts, count its work, measure its cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlmeter.backends.base import Runner, RunsElsewhere
from vlmeter.cells.cell import Cell
from vlmeter.common.errors import Unsupported
from vlmeter.inputs.looks import look_at
from vlmeter.measure.progress import Progress, Summary
from vlmeter.measure.session import Machine, run_session
from vlmeter.study.layout import Layout
from vlmeter.study.study import Study
from vlmeter.study.subject import loading

if TYPE_CHECKING:
    from vlmeter.inputs.pictures import Pictures
    from vlmeter.measure.check_counts import SubjectCounts
    from vlmeter.models.families.base import LoadedModel
    from vlmeter.records.work import SubjectWork


def check_subject_counts(study: Study, subject_name: str, layout: Layout) -> SubjectCounts:
    """Compare the plan's counts with those of a subject's own processor; see `vlmeter.measure.check_counts`."""
    from vlmeter.measure.check_counts import check_counts

    cells, pictures = look_at(study, subject_name, layout)
    weights = study.subjects[subject_name].weights
    return check_counts(
        subject_name,
        lambda: _shapes(study, subject_name, cells, pictures),
        cells,
        pictures,
        checkpoint=None if weights == "random" else weights,
    )


def _shapes(study: Study, subject_name: str, cells: Sequence[Cell], pictures: Pictures) -> LoadedModel:
    """Give a subject's shapes, once it is known that they can be asked every question of the study."""
    from vlmeter.measure.count_work import shapes_of
    from vlmeter.measure.questions import refuse_placeholders

    loaded = shapes_of(study.subjects[subject_name])
    refuse_placeholders(subject_name, loaded, cells, pictures)
    return loaded


def count_subject_work(study: Study, subject_name: str, layout: Layout) -> SubjectWork:
    """Count FLOPs and bytes of every cell of a subject, on shapes alone; see `vlmeter.measure.count_work`."""
    from vlmeter.measure.count_work import count_work
    from vlmeter.records.work import SubjectWork

    cells, pictures = look_at(study, subject_name, layout)
    try:
        return count_work(subject_name, _shapes(study, subject_name, cells, pictures), cells, pictures)
    except Unsupported:  # so are the cells, whose records say why
        return SubjectWork(subject=subject_name, cells=())


@dataclass
class _Held:
    """A runner that is loaded once; what it is beside itself is known from then on."""

    _load: Callable[[], Runner]
    _elsewhere: RunsElsewhere | None = None

    def load(self) -> Runner:
        """Load it."""
        runner = self._load()
        if isinstance(runner, RunsElsewhere):
            self._elsewhere = runner
        return runner

    def processes(self) -> Sequence[int]:
        """Its processes, if it runs elsewhere."""
        return self._elsewhere.processes() if self._elsewhere else ()

    def disturbances(self) -> tuple[str, ...]:
        """What disturbed it, if it runs elsewhere."""
        return self._elsewhere.disturbances() if self._elsewhere else ()

    def close(self) -> None:
        """End it, if it runs elsewhere."""
        if self._elsewhere:
            self._elsewhere.close()


def measure_subject(
    study: Study,
    subject_name: str,
    layout: Layout,
    *,
    tell: Callable[[str], None],
    begin: Callable[[Cell], None] = lambda cell: None,
    progress: Callable[[Progress], None],
    given_up: Mapping[str, str] | None = None,
    run: int = 0,
) -> Summary:
    """Measure a run's stale cells of one subject on a device of this machine; see `vlmeter.measure.session`.

    It runs in this very process; `vlmeter.measure.supervision` runs it in one that is watched over.
    """
    cells, pictures = look_at(study, subject_name, layout)
    from vlmeter.backends.registry import get_backend
    from vlmeter.measure.devices import check_memory, devices_for, refreshed, session_device
    from vlmeter.measure.environment import snapshot
    from vlmeter.measure.monitors import ServedMonitor, make_monitor
    from vlmeter.records.installed import loaded_files

    subject = study.subjects[subject_name]
    purpose = f"study {study.study}, subject {subject_name}"
    backend = get_backend(subject.backend)
    with ExitStack() as stack:
        taken = stack.enter_context(session_device(devices_for(subject), purpose=purpose, tell=tell))
        device = refreshed(taken, subject)
        if backend.in_process:
            check_memory(subject_name, subject, cells, device)
        tell(f"{subject_name} runs on {device.name}: {device.identity}")
        asked = loading(
            subject,
            device=device.name,
            beside=tuple(card.name for card in device.beside),
            folder=layout.backend_files(subject_name, run=run),
            tell=tell,
        )
        held = _Held(lambda: backend.load(asked))
        stack.callback(held.close)
        uuids = [card.uuid for card in device.cards]
        monitor = make_monitor(device=device.name, uuids=uuids, beside=held.processes)
        machine = Machine(
            identity=device.identity,
            load=held.load,
            monitor=ServedMonitor(monitor, held.disturbances),
            describe=lambda: snapshot(device),
            installed=loaded_files,
        )
        return run_session(
            study,
            subject_name,
            cells,
            results=layout.results,
            pictures=pictures,
            machine=machine,
            begin=begin,
            progress=progress,
            given_up=given_up,
            run=run,
        )
