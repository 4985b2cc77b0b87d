"""InternVL: square tiles in the arrangement nearest to the image's shape, and a thumbnail beside them.

Every tile goes through the vision encoder by itself and becomes the same number of tokens, so that crops and vision
tokens are one factor here, not two.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import Family, ImageGeometry, ImageOptions, ImageTokens, LoadedModel
from vlmeter.models.families.geometry import (
    edge_px,
    image_settings,
    positive_integer,
    processor_settings,
    require_resizing,
    require_size,
)
from vlmeter.models.families.loaded_native import LoadedNative, Template
from vlmeter.models.families.native import NativeFamily

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class InternVLGeometry:
    """Tiles of `tile_px`, each of `tile_tokens` tokens; the defaults are those of the published checkpoints.

    min_tiles, max_tiles: how many tiles the processor may choose, the thumbnail not counted.
    """

    tile_px: int = 448
    tile_tokens: int = 256
    min_tiles: int = 1
    max_tiles: int = 12

    layout_columns = ("tiling_h", "tiling_w")

    @classmethod
    def from_config(cls, processor_config: Mapping[str, Any]) -> Self:
        """Read the contents of a preprocessor_config.json or processor_config.json; raises UserError for nonsense.

        `crop_to_patches` is not read: the processor turns it on whatever the file says.
        """
        settings = image_settings(processor_config)
        found = cls(
            tile_px=edge_px(settings, "size", 384, edges=("height",)),
            tile_tokens=positive_integer(processor_settings(processor_config), "image_seq_length", cls.tile_tokens),
            min_tiles=positive_integer(settings, "min_patches", cls.min_tiles),
            max_tiles=positive_integer(settings, "max_patches", cls.max_tiles),
        )
        if found.min_tiles > found.max_tiles:
            raise UserError(
                f"min_patches: {found.min_tiles} in {settings.file} is above max_patches, {found.max_tiles}"
            )
        if found.max_tiles == 1:  # otherwise every tile is scaled, whatever the file says
            require_resizing(settings, family="internvl")
        return found

    def _most(self, options: ImageOptions) -> int:
        if options.max_crops is None:
            return self.max_tiles
        if options.max_crops < self.min_tiles:
            raise UserError(
                f"max_crops: {options.max_crops} is too few for this checkpoint; legal from {self.min_tiles} on"
            )
        return options.max_crops

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict tiles and tokens of an image size."""
        require_size(width_px, height_px)
        rows, columns = options.force_tiling or self._choose(width_px, height_px, self._most(options))
        crops = 1 if rows * columns == 1 else rows * columns + 1
        return ImageTokens(
            width_px=width_px,
            height_px=height_px,
            crops=crops,
            vision_tokens=crops * self.tile_tokens,
            special_tokens=2,  # start and end of the picture
            layout={"tiling_h": rows, "tiling_w": columns},
        )

    def _choose(self, width_px: int, height_px: int, most: int) -> tuple[int, int]:
        """Choose the tiling (rows, columns) of the nearest aspect ratio, as the original does.

        Of tilings of one shape (1x1, 2x2, ...) the largest is taken whose area is less than twice the image's.
        """
        aspect_ratio, area = width_px / height_px, width_px * height_px
        chosen, smallest = (1, 1), float("inf")
        for rows, columns in _tilings(self.min_tiles, most):
            difference = abs(aspect_ratio - columns / rows)
            if difference < smallest:
                chosen, smallest = (rows, columns), difference
            elif difference == smallest and area > 0.5 * self.tile_px**2 * rows * columns:
                chosen = (rows, columns)
        return chosen

    def candidates(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List one size for every tiling, that of the tiles wherever the original leaves it whole."""
        sizes = (self.size_for_tiling(tiling, options=options) for tiling in self.tilings(options=options))
        return [(size.width_px, size.height_px) for size in sizes]

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List every tiling (rows, columns) that the processor may choose."""
        if options.force_tiling is not None:
            return [options.force_tiling]
        return list(_tilings(self.min_tiles, self._most(options)))

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Find the size that the tiles cover without scaling, or else the largest of that shape that selects them."""
        rows, columns = tiling
        if tiling not in self.tilings(options=options):
            raise UserError(f"tiling: {rows}x{columns} is out of reach of {self.limit(options=options)}")
        for side in range(self.tile_px, 0, -1):
            size = self.image_tokens(columns * side, rows * side, options=options)
            if size.layout == {"tiling_h": rows, "tiling_w": columns}:
                return size
        raise UserError(f"tiling: {rows}x{columns} is never chosen by the processor, whatever the size")

    def limit(self, *, options: ImageOptions) -> str:
        """Say what keeps larger counts out of reach."""
        if options.force_tiling is not None:
            return "force_tiling {}x{}".format(*options.force_tiling)
        return f"max_crops {self._most(options)}"


@lru_cache(maxsize=16)
def _tilings(fewest: int, most: int) -> tuple[tuple[int, int], ...]:
    """Return every tiling (rows, columns) of so many tiles, in the order in which the original tries them."""
    tried = [
        (rows, columns)
        for columns in range(1, most + 1)
        for rows in range(1, most // columns + 1)
        if fewest <= rows * columns
    ]
    return tuple(sorted(tried, key=lambda tiling: tiling[0] * tiling[1]))


class InternVLFamily(NativeFamily):
    """InternVL in transformers' own format (the checkpoints whose names end in -hf), with random or real weights."""

    name = "internvl"
    piece = "tile"
    model_types: ClassVar[tuple[str, ...]] = ("internvl",)
    other_formats: ClassVar[Mapping[str, str]] = {"internvl_chat": "OpenGVLab/InternVL3-8B-hf"}
    template: ClassVar[Template] = Template(
        text="<|im_start|>user\n{image}\n{question}<|im_end|>\n<|im_start|>assistant\n", image="<IMG_CONTEXT>"
    )

    def geometry_of(self, settings: Mapping[str, Any]) -> ImageGeometry:
        """Return the subject's own tiles and limits."""
        return InternVLGeometry.from_config(settings)

    def loaded(self, model: Any, processor: Any) -> LoadedModel:
        """Put a model and its processor together."""
        return LoadedInternVL(model=model, processor=processor, parts=self.parts, template=self.template)


class LoadedInternVL(LoadedNative):
    """An InternVL whose tiles can be limited, and forced."""

    def image_arguments(self, options: ImageOptions) -> dict[str, Any]:
        """Give the processor its limits on tiles; a forced tiling leaves it no other number of them."""
        if options.force_tiling is not None:
            rows, columns = options.force_tiling
            return {"min_patches": rows * columns, "max_patches": rows * columns}
        return {} if options.max_crops is None else {"max_patches": options.max_crops}

    def process(self, image: Image, prompt: str, options: ImageOptions) -> dict[str, Any]:
        """Run the processor; a tiling is forced by giving it an image of exactly that shape.

        The processor scales an image to its tiles in any case, so only the thumbnail is scaled twice.
        """
        if options.force_tiling is not None:
            rows, columns = options.force_tiling
            tile_px = int(self.processor.image_processor.size["height"])
            image = image.resize((columns * tile_px, rows * tile_px))
        return super().process(image, prompt, options)


FAMILY: Family = InternVLFamily()
