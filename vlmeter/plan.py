"""The plan: every cell of a study, worked out before anything runs.

A *cell* is the smallest thing that is measured and cached: one subject, one image, one number of output tokens - or a
*block* of requests, each of them measured once. The plan is a pure function of the study (and of the fetched dataset's
manifest, where photographs are concerned), so that the workflow, the command line and the measuring session all see the
same cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmeter.config import LatencyDistribution, OutputTokens, Sampling, Study, Subject, VisionTokens
from vlmeter.errors import UserError
from vlmeter.families.base import Family, ImageGeometry, ImageOptions, ImageTokens, SubjectSpec
from vlmeter.families.registry import get_family
from vlmeter.pairs import parse_pair
from vlmeter.reach import sizes_for, spread


class Frozen(BaseModel):
    """Immutable data that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DummyImage(Frozen):
    """Seeded noise of an exact size."""

    kind: Literal["dummy"] = "dummy"
    width_px: int
    height_px: int
    seed: int

    @property
    def file_name(self) -> str:
        """Name of the image's file; the size and the seed say all about it."""
        return f"{self.width_px}x{self.height_px}-{self.seed}.png"


class DatasetImage(Frozen):
    """The image and question at a place of the dataset's manifest, counted from 0."""

    kind: Literal["dataset"] = "dataset"
    index: int


class Expected(Frozen):
    """What the plan predicts; None where it depends on a picture or a tokenizer that is not at hand yet."""

    crops: int | None = None
    vision_tokens: int | None = None
    special_tokens: int | None = None
    text_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the whole prompt, if all parts are known."""
        parts = (self.vision_tokens, self.special_tokens, self.text_tokens)
        return None if None in parts else sum(part for part in parts if part is not None)


class Request(Frozen):
    """One request of a block: the photograph and question at a place of the manifest, and how long the answer gets."""

    index: int
    output_tokens: int = Field(description="tokens to generate; a limit where the sequence may end by itself")
    expected: Expected = Expected()


class RequestBlock(Frozen):
    """Requests that are measured once each, one after the other."""

    kind: Literal["block"] = "block"
    first: int = Field(description="place of the first request among all of the experiment, from 0")
    requests: tuple[Request, ...]


class Cell(Frozen):
    """One thing to measure. `cell_id` names it within its subject; nothing is ever parsed out of it."""

    cell_id: str
    subject: str
    experiment: Literal["vision_tokens", "output_tokens", "latency_distribution"]
    image: Annotated[DummyImage | DatasetImage | RequestBlock, Field(discriminator="kind")]
    max_crops: int | None = None
    force_tiling: tuple[int, int] | None = None
    text_tokens: int | None = Field(
        None, description="exact length of the prompt's text part; None: the question's own"
    )
    output_tokens: int = Field(description="tokens to generate; the first one comes out of the prefill")
    stop: Literal["length", "eos"] = "length"
    uninstrumented: bool = Field(True, description="whether rounds also run without any mark")
    layout: dict[str, int] = Field(default_factory=dict, description="the family's own columns, such as tiling_h")
    expected: Expected = Expected()
    sampling: Sampling

    @property
    def options(self) -> ImageOptions:
        """How the image is to be cut up."""
        return ImageOptions(max_crops=self.max_crops, force_tiling=self.force_tiling)


def singles(cell: Cell) -> tuple[Cell, ...]:
    """Take a block apart into a cell for each of its requests, in their order; any other cell is by itself already."""
    if not isinstance(cell.image, RequestBlock):
        return (cell,)
    return tuple(
        cell.model_copy(
            update={
                "cell_id": f"{cell.cell_id}, request {place}",
                "image": DatasetImage(index=request.index),
                "output_tokens": request.output_tokens,
                "expected": request.expected,
            }
        )
        for place, request in enumerate(cell.image.requests)
    )


class DatasetItem(Frozen):
    """What the plan needs to know of one photograph of the manifest."""

    width_px: int
    height_px: int
    question: str


def subject_spec(subject: Subject) -> SubjectSpec:
    """What a family is asked to load for a subject."""
    return SubjectSpec(
        preset=subject.preset,
        weights=subject.weights,
        revision=subject.revision,
        dtype=subject.dtype,
        attention=subject.attention,
        seed=subject.seed,
        device_map=subject.device_map,
        quantization=subject.quantization,
        trust_remote_code=subject.trust_remote_code,
    )


def build_plan(
    study: Study, *, subject: str | None = None, dataset: Sequence[DatasetItem] | None = None
) -> tuple[Cell, ...]:
    """Work out every cell of the study, subject by subject, in a fixed order.

    With `subject` only its own cells, which spares the others' families (one of them may have to import much to count).
    With `dataset` (the items of the fetched manifest) the counts of photograph cells are predicted as well. Raises
    UserError when a count cannot be reached, a size cannot be handled or two cells would be the same.
    """
    cells: list[Cell] = []
    for name, own in study.subjects.items():
        if subject not in (None, name):
            continue
        family = get_family(own.family)
        if study.experiments.vision_tokens:
            geometry = family.geometry(subject_spec(own))
            vision = study.experiments.vision_tokens
            cells += _vision_cells(name, geometry, vision, study.sampling_for("vision_tokens"))
        if study.experiments.output_tokens:
            cells += _output_cells(study, name, family, study.experiments.output_tokens, dataset)
        if study.experiments.latency_distribution:
            cells += _block_cells(study, name, family, study.experiments.latency_distribution, dataset)
    return tuple(cells)


@contextmanager
def _at(key: str, subject: str) -> Iterator[None]:
    """Name key and subject in a family's refusal, which knows the value but not where it came from."""
    try:
        yield
    except UserError as error:
        raise UserError(f"experiments.vision_tokens.{key}, subject {subject}: {error}") from None


def _tilings(geometry: ImageGeometry, experiment: VisionTokens) -> list[tuple[int, int]]:
    if not experiment.tilings:
        return []
    known = geometry.tilings(options=ImageOptions(max_crops=experiment.max_crops))
    if not known:
        raise UserError(
            f"{experiment.tilings!r} is given, but the family does not cut images into tilings; legal instead: "
            "vision_tokens, reachable, image_sizes"
        )
    return known if experiment.tilings == "all" else [parse_pair(text) for text in experiment.tilings]


def _vision_cells(
    subject: str, geometry: ImageGeometry, experiment: VisionTokens, sampling: Sampling
) -> Iterable[Cell]:
    options = ImageOptions(max_crops=experiment.max_crops)
    wanted: dict[str, tuple[ImageTokens, tuple[int, int] | None]] = {}

    def add(key: str, image: ImageTokens, forced: tuple[int, int] | None = None) -> None:
        wanted.setdefault(key, (image, forced))

    with _at("tilings", subject):
        for tiling in _tilings(geometry, experiment):
            if experiment.force_tiling:
                forced = ImageOptions(max_crops=experiment.max_crops, force_tiling=tiling)
                image = geometry.size_for_tiling(tiling, options=forced)
                add(f"forced-{tiling[0]}x{tiling[1]}", image, tiling)
            else:
                add(f"tiling-{tiling[0]}x{tiling[1]}", geometry.size_for_tiling(tiling, options=options))
    with _at("crops", subject):
        for crops in experiment.crops or []:
            for image in sizes_for(geometry, crops=crops, nearest=experiment.nearest, options=options):
                add(_key(geometry, image, options), image)
    with _at("vision_tokens", subject):
        for tokens in experiment.vision_tokens or []:
            for image in sizes_for(geometry, vision_tokens=tokens, nearest=experiment.nearest, options=options):
                add(_key(geometry, image, options), image)
    if experiment.reachable is not None:
        for image in spread(geometry, experiment.reachable, options=options):
            add(_key(geometry, image, options), image)
    with _at("image_sizes", subject):
        for text in experiment.image_sizes or []:
            width_px, height_px = parse_pair(text)
            add(f"size-{width_px}x{height_px}", geometry.image_tokens(width_px, height_px, options=options))
    for key, (image, forced_tiling) in wanted.items():
        yield Cell(
            cell_id=f"vision-{key}",
            subject=subject,
            experiment="vision_tokens",
            image=DummyImage(width_px=image.width_px, height_px=image.height_px, seed=experiment.image_seed),
            max_crops=experiment.max_crops,
            force_tiling=forced_tiling,
            text_tokens=experiment.text_tokens,
            output_tokens=1,
            layout=dict(image.layout),
            expected=Expected(
                crops=image.crops,
                vision_tokens=image.vision_tokens,
                special_tokens=image.special_tokens,
                text_tokens=experiment.text_tokens,
            ),
            sampling=sampling,
        )


def _key(geometry: ImageGeometry, image: ImageTokens, options: ImageOptions) -> str:
    """Key of a cell asked for by count: its tiling if this is the tiling's own size, else its size."""
    if {"tiling_h", "tiling_w"} <= set(image.layout):
        tiling = image.layout["tiling_h"], image.layout["tiling_w"]
        try:
            if geometry.size_for_tiling(tiling, options=options) == image:
                return f"tiling-{tiling[0]}x{tiling[1]}"
        except UserError:  # reached in passing, while no size is made for it
            pass
    return f"size-{image.width_px}x{image.height_px}"


def _output_cells(
    study: Study,
    subject: str,
    family: Family,
    experiment: OutputTokens,
    dataset: Sequence[DatasetItem] | None,
) -> Iterable[Cell]:
    images = experiment.images or study.dataset.images
    if images > study.dataset.images:
        raise UserError(
            f"experiments.output_tokens.images: {images} is more than dataset.images, {study.dataset.images}"
        )
    options = ImageOptions(max_crops=experiment.max_crops)
    spec = subject_spec(study.subjects[subject])
    geometry = family.geometry(spec)
    longest = max(experiment.output_tokens)
    direct = experiment.output_tokens if experiment.direct == "all" else sorted({*experiment.direct, longest})
    for index in range(images):
        expected, layout = Expected(), dict[str, int]()
        if dataset is not None:
            expected, layout = _expect(dataset[index], family, geometry, spec, options)
        for output_tokens in direct:
            yield Cell(
                cell_id=f"output-image{index}-n{output_tokens}",
                subject=subject,
                experiment="output_tokens",
                image=DatasetImage(index=index),
                max_crops=experiment.max_crops,
                output_tokens=output_tokens,
                stop=experiment.stop,
                uninstrumented=output_tokens <= experiment.uninstrumented_max_output_tokens,
                layout=layout,
                expected=expected,
                sampling=study.sampling_for("output_tokens"),
            )


def _expect(
    item: DatasetItem, family: Family, geometry: ImageGeometry, spec: SubjectSpec, options: ImageOptions
) -> tuple[Expected, dict[str, int]]:
    """Predict the counts of a photograph with its question, and the family's layout columns."""
    image = geometry.image_tokens(item.width_px, item.height_px, options=options)
    expected = Expected(
        crops=image.crops,
        vision_tokens=image.vision_tokens,
        special_tokens=image.special_tokens,
        text_tokens=family.text_tokens(spec, item.question),
    )
    return expected, dict(image.layout)


def _block_cells(
    study: Study,
    subject: str,
    family: Family,
    experiment: LatencyDistribution,
    dataset: Sequence[DatasetItem] | None,
) -> Iterable[Cell]:
    """Lay the requests out in blocks.

    A request depends on its place alone, not on how many there are: more samples add blocks and leave the others (but
    for a last one that was not full) as they were.
    """
    options = ImageOptions(max_crops=experiment.max_crops)
    spec = subject_spec(study.subjects[subject])
    images = study.dataset.images
    known: dict[int, Expected] = {}
    if dataset is not None:
        wanted = range(min(images, experiment.samples))
        geometry = family.geometry(spec)
        known = {index: _expect(dataset[index], family, geometry, spec, options)[0] for index in wanted}
    sampling = study.sampling_for("latency_distribution")

    def request(place: int) -> Request:
        index = place % images
        return Request(
            index=index,
            output_tokens=_drawn_length(experiment, place),
            expected=known.get(index, Expected()),
        )

    size = experiment.block_samples
    for number, first in enumerate(range(0, experiment.samples, size)):
        requests = tuple(request(place) for place in range(first, min(first + size, experiment.samples)))
        yield Cell(
            cell_id=f"distribution-block{number:03d}",
            subject=subject,
            experiment="latency_distribution",
            image=RequestBlock(first=first, requests=requests),
            max_crops=experiment.max_crops,
            output_tokens=max(request.output_tokens for request in requests),
            stop=experiment.stop,
            uninstrumented=False,
            sampling=sampling,
        )


def _drawn_length(experiment: LatencyDistribution, place: int) -> int:
    """Draw a request's output length by a hash of its place, which gives the same on every platform for ever."""
    lengths = experiment.lengths
    drawn = hashlib.sha256(f"{experiment.seed}/{place}".encode()).digest()
    return lengths[int.from_bytes(drawn[:8], "big") % len(lengths)]


#: A request that stands as sentinel generates so many tokens at most: it is a quick look.
SENTINEL_OUTPUT_TOKENS = 16


def sentinel_of(cells: Sequence[Cell]) -> Cell:
    """Choose the cell that is measured again and again through a session to see drift.

    A vision-token cell of middling size if there is one (short, and busy on every component), else the generation with
    the fewest output tokens. Where there are blocks alone, it is the first request of one, as a cell of its own.
    """
    vision = sorted(
        (cell for cell in cells if cell.experiment == "vision_tokens"),
        key=lambda cell: (cell.expected.vision_tokens or 0, cell.cell_id),
    )
    if vision:
        return vision[len(vision) // 2]
    generations = [cell for cell in cells if not isinstance(cell.image, RequestBlock)]
    if generations:
        return min(generations, key=lambda cell: (cell.output_tokens, cell.cell_id))
    block = min(cells, key=lambda cell: (cell.output_tokens, cell.cell_id))
    assert isinstance(block.image, RequestBlock)
    request = block.image.requests[0]
    return block.model_copy(
        update={
            "experiment": "output_tokens",
            "image": DatasetImage(index=request.index),
            "output_tokens": min(request.output_tokens, SENTINEL_OUTPUT_TOKENS),
            "stop": "length",
            "expected": request.expected,
        }
    )
