"""What the cells of a study look at: pictures made up, photographs fetched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vlmeter.cells.cell import Cell, MadePicture
from vlmeter.common.errors import UserError
from vlmeter.inputs.pictures import Picture, Pictures
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.registry import get_family
from vlmeter.study.layout import Layout
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study
from vlmeter.study.subject import subject_spec

if TYPE_CHECKING:
    from vlmeter.inputs.manifest import Manifest, ManifestImage


def fetch_dataset(study: Study, folder: Path, *, progress: Callable[[int, int], None] | None = None) -> Manifest:
    """Fetch the study's photographs; every one must have a size that every subject's model can take."""
    from vlmeter.inputs.dataset import fetch

    geometries = [get_family(subject.family).geometry(subject_spec(subject)) for subject in study.subjects.values()]

    def check_size(width_px: int, height_px: int) -> None:
        for experiment in study.experiments.on_photographs:
            for geometry in geometries:
                geometry.image_tokens(width_px, height_px, options=ImageOptions(max_crops=experiment.max_crops))

    return fetch(study.dataset, folder, check_size=check_size, progress=progress)


def made_pictures(cells: Sequence[Cell]) -> dict[str, MadePicture]:
    """The pictures to be made up for cells, by file name."""
    found = (picture for cell in cells for request in cell.requests for picture in request.made_pictures)
    return {picture.file_name: picture for picture in found}


def own_pictures(cells: Sequence[Cell]) -> list[Path]:
    """The files that cells look at where they lie, each once, by their full paths."""
    found = (picture for cell in cells for request in cell.requests for picture in request.own_pictures)
    return sorted({Path(picture.path).expanduser().absolute() for picture in found})


def pictures_at_hand(layout: Layout, manifest: Manifest | None) -> Pictures:
    """The pictures of a study: those made up, and the photographs of a manifest if there is one.

    Each is opened when its turn comes.
    """
    from vlmeter.inputs.images import read_image

    def photograph(image: ManifestImage) -> Picture:
        return Picture(
            open=lambda: read_image(layout.dataset / image.file),
            digest=image.sha256,
            image_id=str(image.image_id),
            question_id=str(image.question_id),
            question=image.question,
            answers=tuple(answer.answer for answer in image.answers),
        )

    return Pictures(
        made=lambda picture: read_image(layout.dummies / picture.file_name),
        photographs=[photograph(image) for image in manifest.images] if manifest else [],
    )


def look_at(study: Study, subject_name: str, layout: Layout) -> tuple[tuple[Cell, ...], Pictures]:
    """A subject's cells, with all that fetched photographs tell of them, and the pictures that they look at."""
    from vlmeter.inputs.dataset import read_manifest

    manifest = read_manifest(layout.manifest, check_files=True) if study.experiments.on_photographs else None
    cells = build_plan(study, subject=subject_name, dataset=manifest.images if manifest else None)
    return cells, pictures_at_hand(layout, manifest)


def expected_plan(study: Study, layout: Layout) -> tuple[Cell, ...]:
    """The plan with as many predictions as can be made now: photographs count once they are at hand.

    Embedded photographs always are; others once they have been fetched.
    """
    import tempfile

    if not study.experiments.on_photographs:
        return build_plan(study)
    if study.dataset.source == "embedded":
        with tempfile.TemporaryDirectory() as folder:
            return build_plan(study, dataset=fetch_dataset(study, Path(folder)).images)
    manifest = fetched_manifest(study, layout)
    return build_plan(study, dataset=manifest.images if manifest else None)


def fetched_manifest(study: Study, layout: Layout) -> Manifest | None:
    """The manifest of the study's photographs; None while none was fetched, or others were."""
    from vlmeter.inputs.dataset import read_manifest

    try:
        manifest = read_manifest(layout.manifest)
    except UserError:
        return None
    return manifest if manifest.source == study.dataset else None
