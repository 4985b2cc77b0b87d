"""What the measuring rules do with one subject: check its counts, count its work, measure its cells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

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
    return check_counts(subject_name, lambda: _shapes(study, subject_name, cells, pictures), cells, pictures)


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


def measure_subject(
    study: Study,
    subject_name: str,
    layout: Layout,
    *,
    tell: Callable[[str], None],
    begin: Callable[[Cell], None] = lambda cell: None,
    progress: Callable[[Progress], None],
    given_up: Mapping[str, str] | None = None,
) -> Summary:
    """Measure the stale cells of one subject on a device of this machine; see `vlmeter.measure.session`.

    It runs in this very process; `vlmeter.measure.supervision` runs it in one that is watched over.
    """
    cells, pictures = look_at(study, subject_name, layout)
    from vlmeter.backends.registry import load_runner
    from vlmeter.measure.devices import check_memory, devices_for, refreshed, session_device
    from vlmeter.measure.environment import snapshot
    from vlmeter.measure.monitors import make_monitor
    from vlmeter.records.installed import loaded_files

    subject = study.subjects[subject_name]
    purpose = f"study {study.study}, subject {subject_name}"
    with session_device(devices_for(subject), purpose=purpose, tell=tell) as taken:
        device = refreshed(taken, subject)
        check_memory(subject_name, subject, cells, device)
        tell(f"{subject_name} runs on {device.name}: {device.identity}")
        machine = Machine(
            identity=device.identity,
            load=lambda: load_runner(subject.backend, loading(subject, device=device.name)),
            monitor=make_monitor(device=device.name, uuids=[card.uuid for card in device.cards]),
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
        )
