"""What the workflow's steps do, for real: the library's parts put together on this machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmeter.config import Study
from vlmeter.errors import Unsupported, UserError
from vlmeter.families.base import ImageOptions
from vlmeter.families.registry import get_family
from vlmeter.files import write_atomically
from vlmeter.fingerprint import fingerprint
from vlmeter.layout import Layout
from vlmeter.plan import Cell, DatasetItem, DummyImage, RequestBlock, build_plan, singles, subject_spec
from vlmeter.session import (
    Album,
    Looks,
    Machine,
    Picture,
    Progress,
    Summary,
    cell_fingerprint,
    pictures_for,
    pictures_of,
    run_session,
)
from vlmeter.store import State, state_of

if TYPE_CHECKING:
    from vlmeter.counts import SubjectCounts
    from vlmeter.dataset import Manifest
    from vlmeter.physics import SubjectWork


def fetch_dataset(study: Study, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Fetch the study's photographs; every one must have a size that every subject's model can take."""
    from vlmeter.dataset import fetch

    geometries = [get_family(subject.family).geometry(subject_spec(subject)) for subject in study.subjects.values()]

    def check_size(width_px: int, height_px: int) -> None:
        for experiment in study.experiments.on_photographs:
            for geometry in geometries:
                geometry.image_tokens(width_px, height_px, options=ImageOptions(max_crops=experiment.max_crops))

    return fetch(study.dataset, folder, check_size=check_size, progress=progress)


def dataset_items(manifest: Manifest) -> list[DatasetItem]:
    """What the plan needs to know of the fetched photographs."""
    return [
        DatasetItem(width_px=image.width_px, height_px=image.height_px, question=image.question)
        for image in manifest.images
    ]


def dummy_images(cells: Sequence[Cell]) -> dict[str, DummyImage]:
    """The dummy images that cells look at, by file name."""
    return {cell.image.file_name: cell.image for cell in cells if isinstance(cell.image, DummyImage)}


def subject_digest(study: Study, subject: str, cells: Sequence[Cell]) -> str:
    """Digest of everything that can make a subject's cells stale and is known before they are measured."""
    import hashlib
    import json

    prints = {cell.cell_id: fingerprint(cell, study.subjects[subject]) for cell in cells if cell.subject == subject}
    for parts in prints.values():
        parts.pop("checkpoint", None)  # known only once it has been fetched; the records' own states tell of a change
    return hashlib.sha256(json.dumps(prints, sort_keys=True).encode()).hexdigest()[:16]


def _photographs(manifest: Manifest, folder: Path) -> list[Picture]:
    from vlmeter.images import read_image

    def picture(index: int) -> Picture:
        image = manifest.images[index]
        return Picture(
            open=lambda: read_image(folder / image.file),
            digest=image.sha256,
            image_id=str(image.image_id),
            question_id=str(image.question_id),
            question=image.question,
            answers=tuple(answer.answer for answer in image.answers),
        )

    return [picture(index) for index in range(len(manifest.images))]


def _look(study: Study, subject_name: str, layout: Layout) -> tuple[tuple[Cell, ...], dict[str, Looks]]:
    """A subject's cells, with all that fetched photographs tell of them, and what each of them looks at."""
    from vlmeter.dataset import read_manifest
    from vlmeter.images import read_image

    manifest = read_manifest(layout.manifest, check_files=True) if study.experiments.on_photographs else None
    items = dataset_items(manifest) if manifest else None
    cells = build_plan(study, subject=subject_name, dataset=items)
    photographs = _photographs(manifest, layout.dataset) if manifest else []

    def dummy(cell: Cell) -> Any:
        if not isinstance(cell.image, DummyImage):
            raise TypeError(f"cell {cell.cell_id} looks at a photograph")
        return read_image(layout.dummies / cell.image.file_name)

    return cells, pictures_for(cells, dummy=dummy, dataset=photographs)


def check_subject_counts(study: Study, subject_name: str, layout: Layout) -> SubjectCounts:
    """Compare the plan's counts with those of a subject's own processor; see `vlmeter.counts`."""
    from vlmeter.counts import check_counts
    from vlmeter.flops import shapes_of

    cells, pictures = single_sights(*_look(study, subject_name, layout))
    return check_counts(subject_name, lambda: shapes_of(study.subjects[subject_name]), cells, pictures)


def single_sights(cells: Sequence[Cell], looks: Mapping[str, Looks]) -> tuple[tuple[Cell, ...], dict[str, Picture]]:
    """Take blocks apart into cells that look at one picture each: one request for every count that the plan predicts.

    Thousands of photographs would take minutes to prepare, and every request is counted again when it is measured.
    """
    chosen: list[Cell] = []
    sights: dict[str, Picture] = {}
    kinds: set[tuple[int | None, ...]] = set()
    for cell in cells:
        is_block = isinstance(cell.image, RequestBlock)
        for single, picture in zip(singles(cell), pictures_of(looks[cell.cell_id]), strict=True):
            expected = single.expected
            kind = (expected.crops, expected.vision_tokens, expected.prompt_tokens)
            if is_block and kind in kinds:
                continue
            if is_block:
                kinds.add(kind)
            chosen.append(single)
            sights[single.cell_id] = picture
    return tuple(chosen), sights


def count_subject_work(study: Study, subject_name: str, layout: Layout) -> SubjectWork:
    """Count FLOPs and bytes of every cell of a subject, on shapes alone; see `vlmeter.flops`."""
    from vlmeter.flops import count_work, shapes_of
    from vlmeter.physics import SubjectWork

    cells, pictures = _look(study, subject_name, layout)
    try:
        return count_work(subject_name, shapes_of(study.subjects[subject_name]), cells, pictures)
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
    """Measure the stale cells of one subject on a device of this machine; see `vlmeter.session`.

    It runs in this very process; `vlmeter.supervise` runs it in one that is watched over.
    """
    cells, pictures = _look(study, subject_name, layout)
    from vlmeter.backends.registry import load_runner
    from vlmeter.device import check_memory, devices_for, refreshed, session_device
    from vlmeter.environment import snapshot
    from vlmeter.monitor import make_monitor

    subject = study.subjects[subject_name]
    purpose = f"study {study.study}, subject {subject_name}"
    with session_device(devices_for(subject), purpose=purpose, tell=tell) as taken:
        device = refreshed(taken, subject)
        check_memory(subject_name, subject, cells, device)
        tell(f"{subject_name} runs on {device.name}: {device.identity}")
        machine = Machine(
            identity=device.identity,
            load=lambda: load_runner(subject, device=device.name),
            monitor=make_monitor(device=device.name, uuids=[card.uuid for card in device.cards]),
            describe=lambda: snapshot(device),
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


def expected_plan(study: Study, layout: Layout) -> tuple[Cell, ...]:
    """The plan with as many predictions as can be made now: photographs count once they are at hand.

    Embedded photographs always are; others once they have been fetched.
    """
    import tempfile

    from vlmeter.dataset import read_manifest

    if not study.experiments.on_photographs:
        return build_plan(study)
    if study.dataset.source == "embedded":
        with tempfile.TemporaryDirectory() as folder:
            return build_plan(study, dataset=dataset_items(fetch_dataset(study, Path(folder))))
    try:
        manifest = read_manifest(layout.manifest)
    except UserError:
        return build_plan(study)
    if manifest.source != study.dataset:
        return build_plan(study)
    return build_plan(study, dataset=dataset_items(manifest))


def cell_states(study: Study, layout: Layout, cells: Sequence[Cell] | None = None) -> list[tuple[Cell, State]]:
    """Compare every cell's record with what it would be now; photographs are compared once they have been fetched.

    `cells` is the study's plan, for those who have it.
    """
    from vlmeter.dataset import read_manifest

    cells = build_plan(study) if cells is None else cells
    try:
        manifest = read_manifest(layout.manifest) if study.experiments.on_photographs else None
    except UserError:
        manifest = None
    photographs = _photographs(manifest, layout.dataset) if manifest else []
    found = []
    for cell in cells:
        looks: Looks | None = None
        if isinstance(cell.image, DummyImage):
            looks = Picture(open=lambda: None, digest="")
        elif isinstance(cell.image, RequestBlock):
            if all(request.index < len(photographs) for request in cell.image.requests):
                looks = Album(tuple(photographs[request.index] for request in cell.image.requests))
        elif cell.image.index < len(photographs):
            looks = photographs[cell.image.index]
        current = cell_fingerprint(cell, study.subjects[cell.subject], looks)
        found.append((cell, state_of(layout.record(cell), current)))
    return found


def stale_digests(layout: Layout, states: Sequence[tuple[Cell, State]]) -> dict[str, str]:
    """Say which subjects have records that are there and do not hold, each with a digest of just these files.

    A workflow sees what is missing and what its own runs were given, but neither a damaged record nor one that somebody
    put there.
    """
    import hashlib

    found: dict[str, list[str]] = {}
    for cell, state in states:
        if state.state == "stale":
            written = layout.record(cell).stat().st_mtime_ns  # so that no digest ever comes again
            found.setdefault(cell.subject, []).append(f"{cell.cell_id} {written}")
    return {subject: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:8] for subject, lines in found.items()}


#: So many missing cells of a subject are asked for by name.
NAMED_MISSING = 20


def some_missing(states: Sequence[tuple[Cell, State]]) -> list[Cell]:
    """List the first missing cells of each subject, which are enough to start its session."""
    missing: dict[str, list[Cell]] = {}
    for cell, state in states:
        if state.state == "missing":
            missing.setdefault(cell.subject, []).append(cell)
    return [cell for cells in missing.values() for cell in cells[:NAMED_MISSING]]


def seal_records(layout: Layout, subject: str, cells: Sequence[Cell]) -> None:
    """Write a digest of the records of a subject's cells, for what is made of them: it changes if any of them does."""
    import hashlib

    digest = hashlib.sha256()
    for cell in cells:
        digest.update(layout.record(cell).read_bytes())
    write_atomically(layout.seal(subject), f"{digest.hexdigest()}  {len(cells)} records of {subject}\n".encode())


def states_in_words(states: Sequence[tuple[Cell, State]], subject: str) -> str:
    """Say how many cells of a subject are to be measured, and why."""
    own = [state for cell, state in states if cell.subject == subject]
    missing = sum(state.state == "missing" for state in own)
    stale = [state for state in own if state.state == "stale"]
    parts = [f"{missing} missing"] if missing else []
    if stale:
        # a reason that is a sentence is about one file, and is for `vlmeter status`
        reasons = sorted({reason if " " not in reason else "unreadable" for state in stale for reason in state.reasons})
        parts.append(f"{len(stale)} stale: {', '.join(reasons)}")
    return f"{missing + len(stale)} of {len(own)} cells" + (f" ({'; '.join(parts)})" if parts else "")


def take_run_lock(layout: Layout) -> int:
    """Be the only run of a study; returns a descriptor that holds the lock until it is closed or its process ends."""
    from vlmeter.locks import LockUnusable, holder, take

    try:
        descriptor = take(layout.lock, purpose="a run of this study")
    except LockUnusable as error:
        raise UserError(f"the results cannot be written: {error}") from None
    if descriptor is None:
        raise UserError(
            f"study {layout.study} is being run by {holder(layout.lock)}; wait until that run has ended, or end it, "
            "and start this one again: nothing has been changed"
        )
    return descriptor


def closing_words(layout: Layout, cells: Sequence[Cell]) -> str:
    """Say how all cells of a study fared, at the end of a run."""
    from vlmeter.record import read_record

    counted = {"measured": 0, "out of memory": 0, "unsupported": 0, "flagged as drifted": 0, "missing": 0}
    for cell in cells:
        path = layout.record(cell)
        if not path.exists():
            counted["missing"] += 1
            continue
        record = read_record(path)
        counted["measured"] += record.status == "ok"
        counted["out of memory"] += record.status == "oom"
        counted["unsupported"] += record.status == "unsupported"
        counted["flagged as drifted"] += record.drift is not None and record.drift.drifted
    parts = [f"{number} {word}" for word, number in counted.items() if number]
    return f"{len(cells)} cells: {', '.join(parts)}"
