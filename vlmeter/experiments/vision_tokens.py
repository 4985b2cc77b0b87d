"""Vision tokens against latency, on made images that give exact counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vlmeter.cells.cell import Cell, Expected, MadePicture, Request
from vlmeter.cells.keys import Count, Pair, unique
from vlmeter.common.errors import UserError
from vlmeter.experiments.base import Asked, Repeated
from vlmeter.models.encoding import DEFAULT_QUALITY, Encoding, ImageFormat, Quality
from vlmeter.models.families.base import ImageGeometry, ImageOptions, ImageTokens
from vlmeter.models.image_sizes import evenly_spaced, sizes_for
from vlmeter.numbers.pairs import parse_pair


class VisionTokens(Repeated):
    """Vision tokens against latency, on made images that give exact counts."""

    name = "vision_tokens"
    question = "vision tokens against latency, on dummy images"
    starter: ClassVar[Mapping[str, Any]] = {
        "image_sizes": ["224x224", "336x672", "448x448", "672x672", "672x1344"],
        "text_tokens": 32,
    }

    tilings: Literal["all"] | list[Pair] | None = Field(
        None, description="all, or a list such as [1x1, 2x4] (rows x columns of crops)"
    )
    crops: list[Count] | None = Field(None, description="crop counts (the global crop included); every tiling of each")
    vision_tokens: list[Count] | None = Field(None, description="vision-token counts; every tiling that reaches each")
    reachable: int | None = Field(
        None, ge=1, description="so many vision-token counts, spread evenly over all that the model can reach"
    )
    nearest: bool = Field(
        False, description="take the nearest reachable count for one of crops or vision_tokens that no image reaches"
    )
    image_sizes: list[Pair] | None = Field(None, description="image sizes as width x height in px, such as 640x480")
    force_tiling: bool = Field(
        False, description="impose each tiling, past the preprocessor's own selection and its max_crops"
    )
    text_tokens: int = Field(32, ge=8, description="text tokens of the prompt, the same in every cell")
    image_seed: int = Field(0, ge=0, description="seed of the dummy images' pixels")

    image_format: list[ImageFormat] | None = Field(
        None,
        min_length=1,
        description="send every image as a file of each format, to the subjects that are served; absent: of their own",
    )
    image_quality: list[Quality] | None = Field(
        None,
        min_length=1,
        description=f"with jpeg among image_format: send it in each of these qualities; absent: {DEFAULT_QUALITY}",
    )

    @field_validator("tilings", "crops", "vision_tokens", "image_sizes", "image_format", "image_quality")
    @classmethod
    def _no_repeats(cls, values: Any) -> Any:
        return unique(values) if isinstance(values, list) else values

    @model_validator(mode="after")
    def _something_to_do(self) -> VisionTokens:
        by_count = self.crops or self.vision_tokens
        if not any((self.tilings, by_count, self.reachable, self.image_sizes)):
            raise ValueError(
                "nothing to measure; give at least one of tilings, crops, vision_tokens, reachable, image_sizes"
            )
        if self.force_tiling and (not self.tilings or by_count or self.reachable or self.image_sizes):
            raise ValueError("force_tiling goes with tilings alone")
        if self.nearest and not by_count:
            raise ValueError("nearest goes with crops or vision_tokens, and neither is given")
        if self.image_quality and "jpeg" not in (self.image_format or ()):
            raise ValueError("image_quality goes with image_format, and jpeg is not among it")
        return self

    @property
    def key_of_files(self) -> str | None:
        """The key, if it is given."""
        return "image_format" if self.image_format else None

    def _encodings(self, asked: Asked) -> list[Encoding | None]:
        """How every image is sent, None for the subject's own way; a subject that gets no files has each image once."""
        own = asked.encoding
        if own is None or self.image_format is None:
            return [None]
        qualities = self.image_quality or [DEFAULT_QUALITY]
        wanted = dict.fromkeys(Encoding.of(name, quality) for name in self.image_format for quality in qualities)
        if own not in wanted:
            listed = ", ".join(map(str, wanted))
            raise UserError(f"{own}, the subject's own, is not among {listed}; legal: formats with it among them")
        return [None, *(encoding for encoding in wanted if encoding != own)]

    def cells(self, asked: Asked) -> Iterable[Cell]:
        """Lay out a cell for every image that the keys ask for, each once in every format."""
        geometry = asked.geometry
        options = ImageOptions(max_crops=self.max_crops)
        wanted: dict[str, tuple[ImageTokens, tuple[int, int] | None]] = {}

        def add(key: str, image: ImageTokens, forced: tuple[int, int] | None = None) -> None:
            wanted.setdefault(key, (image, forced))

        with _at("tilings", asked.subject):
            for tiling in _tilings(geometry, self):
                if self.force_tiling:
                    forced = ImageOptions(max_crops=self.max_crops, force_tiling=tiling)
                    image = geometry.size_for_tiling(tiling, options=forced)
                    add(f"forced-{tiling[0]}x{tiling[1]}", image, tiling)
                else:
                    add(f"tiling-{tiling[0]}x{tiling[1]}", geometry.size_for_tiling(tiling, options=options))
        with _at("crops", asked.subject):
            for crops in self.crops or []:
                for image in sizes_for(geometry, crops=crops, nearest=self.nearest, options=options):
                    add(_key(geometry, image, options), image)
        with _at("vision_tokens", asked.subject):
            for tokens in self.vision_tokens or []:
                for image in sizes_for(geometry, vision_tokens=tokens, nearest=self.nearest, options=options):
                    add(_key(geometry, image, options), image)
        if self.reachable is not None:
            for image in evenly_spaced(geometry, self.reachable, options=options):
                add(_key(geometry, image, options), image)
        with _at("image_sizes", asked.subject):
            for text in self.image_sizes or []:
                width_px, height_px = parse_pair(text)
                add(f"size-{width_px}x{height_px}", geometry.image_tokens(width_px, height_px, options=options))
        with _at("image_format", asked.subject):
            encodings = self._encodings(asked)
        for (key, (image, forced_tiling)), encoding in product(wanted.items(), encodings):
            yield Cell(
                cell_id=f"vision-{key}-{encoding.key}" if encoding else f"vision-{key}",
                subject=asked.subject,
                experiment=self.name,
                kind="prefill",
                requests=(
                    Request(
                        pictures=(
                            MadePicture(width_px=image.width_px, height_px=image.height_px, seed=self.image_seed),
                        ),
                        text_tokens=self.text_tokens,
                        output_tokens=1,
                        expected=Expected(
                            crops=image.crops,
                            vision_tokens=image.vision_tokens,
                            special_tokens=image.special_tokens,
                            text_tokens=self.text_tokens,
                        ),
                    ),
                ),
                arms=("inputs", "plain", "hooks", "vision"),
                max_crops=self.max_crops,
                force_tiling=forced_tiling,
                encoding=encoding,
                layout=dict(image.layout),
                sampling=asked.sampling,
            )


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


EXPERIMENT = VisionTokens
