"""What the cells of a study look at: pictures made up, photographs fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmeter.cells.cell import Cell, DatasetItem, DummyImage
from vlmeter.common.errors import UserError
from vlmeter.inputs.pictures import Looks, Picture, pictures_for
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.registry import get_family
from vlmeter.study.layout import Layout
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study
from vlmeter.study.subject import subject_spec

if TYPE_CHECKING:
    from vlmeter.inputs.manifest import Manifest


def fetch_dataset(study: Study, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Fetch the study's photographs; every one must have a size that every subject's model can take."""
    from vlmeter.inputs.dataset import fetch

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


def photographs_of(manifest: Manifest, folder: Path) -> list[Picture]:
    """The photographs of a manifest, as pictures that are opened when their turn comes."""
    from vlmeter.inputs.images import read_image

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


def look_at(study: Study, subject_name: str, layout: Layout) -> tuple[tuple[Cell, ...], dict[str, Looks]]:
    """A subject's cells, with all that fetched photographs tell of them, and what each of them looks at."""
    from vlmeter.inputs.dataset import read_manifest
    from vlmeter.inputs.images import read_image

    manifest = read_manifest(layout.manifest, check_files=True) if study.experiments.on_photographs else None
    items = dataset_items(manifest) if manifest else None
    cells = build_plan(study, subject=subject_name, dataset=items)
    photographs = photographs_of(manifest, layout.dataset) if manifest else []

    def dummy(cell: Cell) -> Any:
        if not isinstance(cell.image, DummyImage):
            raise TypeError(f"cell {cell.cell_id} looks at a photograph")
        return read_image(layout.dummies / cell.image.file_name)

    return cells, pictures_for(cells, dummy=dummy, dataset=photographs)


def expected_plan(study: Study, layout: Layout) -> tuple[Cell, ...]:
    """The plan with as many predictions as can be made now: photographs count once they are at hand.

    Embedded photographs always are; others once they have been fetched.
    """
    import tempfile

    from vlmeter.inputs.dataset import read_manifest

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
