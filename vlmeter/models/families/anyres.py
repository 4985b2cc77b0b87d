"""How LLaVA's "any resolution" turns an image into crops and tokens.

The preprocessor fits the image into the best of a fixed list of canvases (`image_grid_pinpoints`), pads it, and cuts
the canvas into tiles; one more crop is the whole image. The encoder sees every tile. Then the model takes the padding
off again, in whole patches, and puts a learned *newline* feature at the end of each remaining row. So crops follow from
the canvas alone, while vision tokens follow from canvas and aspect ratio: one canvas gives dozens of token counts.
LLaVA-OneVision scales the features down where they exceed its limit of tiles ("anyres_max_9").

Newlines stand at image tokens and take the place of an embedding like any other feature, so they count as vision
tokens; nothing else is put around the image.

This follows transformers 5.24: `select_best_resolution`, `_get_unpadded_features` of both processors, and the models'
`pack_image_features`, in their double-precision arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Self

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import ImageOptions, ImageTokens
from vlmeter.models.families.geometry import (
    Settings,
    edge_px,
    image_settings,
    is_sane,
    mildest_strip,
    positive_integer,
    processor_settings,
    refuse_forced_tiling,
    refuse_max_crops,
    refuse_null,
    require_resizing,
    require_size,
    squarest_of_each_kind,
)

#: Features are scaled down where they exceed the limit of tiles by more than this factor per side (the model's code).
_TOLERATED_EXCESS = 1.1


@dataclass(frozen=True)
class AnyresGeometry:
    """Tiles, canvases and the patches of a tile.

    canvases: (height, width) in px, in the preprocessor's order, which breaks ties.
    tile_patches: patches along a side of a tile; the model drops what is left of it beyond whole patches.
    largest_tiles: how many tiles' worth of features are kept; None where nothing is scaled down.
    """

    family: str
    tile_px: int
    tile_patches: int
    canvases: tuple[tuple[int, int], ...]
    largest_tiles: int | None = None

    layout_columns = ("tiling_h", "tiling_w")

    @classmethod
    def from_config(
        cls, processor_config: Mapping[str, Any], *, default: Self, tile_px: int, crops_to_px: int | None
    ) -> Self:
        """Read the settings of a checkpoint's processor.

        default: what of family, canvases and limit of tiles the published code takes where the settings say nothing;
        tile_px, crops_to_px: sides of its size and its crop_size there, None where it does not crop. How many patches a
        tile has, it has no default for. Raises UserError for settings that make no sense, or with which the model would
        refuse its own inputs.
        """
        image, own = image_settings(processor_config), processor_settings(processor_config)
        require_resizing(image, family=default.family)
        edges = ("height", "shortest_edge")
        tile_px = edge_px(image, "size", tile_px, edges=edges)
        if image.get("crop_size") is not None or crops_to_px is not None:
            tile_px = edge_px(image, "crop_size", crops_to_px or tile_px, edges=edges)
        if default.largest_tiles is not None:
            key, tile_patches = "num_image_tokens", math.isqrt(positive_integer(own, "num_image_tokens", None))
        else:
            key, tile_patches = "patch_size", tile_px // positive_integer(own, "patch_size", None)
        if not 1 <= tile_patches <= tile_px:
            raise UserError(f"{key}: {own[key]!r} in {own.file} does not go into a tile of {tile_px} px")
        additional = own.get("num_additional_image_tokens") or 0
        dropped = 1 if own.get("vision_feature_select_strategy") == "default" else 0
        if additional != dropped:
            raise UserError(
                f"num_additional_image_tokens: {additional!r} in {own.file} does not go with "
                f"vision_feature_select_strategy {own.get('vision_feature_select_strategy')!r}, which drops {dropped} "
                "feature(s) of a tile: the processor would ask for other features than the model makes"
            )
        refuse_null(image, "image_grid_pinpoints")
        canvases = image.get("image_grid_pinpoints")
        limited = default.largest_tiles is not None
        return cls(
            family=default.family,
            tile_px=tile_px,
            tile_patches=tile_patches,
            canvases=_canvases(list(map(list, default.canvases)) if canvases is None else canvases, tile_px, image),
            largest_tiles=(_largest_tiles(own) or default.largest_tiles) if limited else None,
        )

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict crops and tokens; every size that is one will do."""
        self._refuse(options)
        return self._image_tokens(width_px, height_px)

    def candidates(self, *, options: ImageOptions) -> Iterable[tuple[int, int]]:
        """List a size (width, height) for every pair of vision tokens and crops that some image reaches."""
        self._refuse(options)
        return _candidates(self)

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List every tiling (rows, columns) that the preprocessor may choose, fewest tiles first."""
        self._refuse(options)
        found = {(height // self.tile_px, width // self.tile_px) for height, width in self.canvases}
        return sorted(found, key=lambda tiling: (tiling[0] * tiling[1], tiling[0]))

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Return the size that fills exactly this tiling; no smaller canvas can hold it, so it is the one chosen."""
        rows, columns = tiling
        legal = self.tilings(options=options)
        if tiling not in legal:
            raise UserError(
                f"tiling: {rows}x{columns} is not among the image_grid_pinpoints of {self.family}; "
                f"legal: {', '.join(f'{h}x{w}' for h, w in legal)}"
            )
        return self._image_tokens(columns * self.tile_px, rows * self.tile_px)

    def limit(self, *, options: ImageOptions) -> str:
        """Say what keeps larger counts out of reach."""
        self._refuse(options)
        height, width = max(self.canvases, key=lambda canvas: canvas[0] * canvas[1])
        canvas = f"image_grid_pinpoints up to {width:,}x{height:,} px"
        return canvas if self.largest_tiles is None else f"{canvas} and anyres_max_{self.largest_tiles}"

    def strip(self, *, vision_tokens: int | None, crops: int | None) -> ImageTokens | None:
        """Find the mildest image beyond what is proposed that makes these counts; None if none does."""
        images = (self._image_tokens(*size) for size in _all_trials(self) if not is_sane(*size))
        return mildest_strip(images, vision_tokens=vision_tokens, crops=crops)

    def _refuse(self, options: ImageOptions) -> None:
        refuse_max_crops(options, family=self.family, instead="image_grid_pinpoints decide the tilings")
        refuse_forced_tiling(options, family=self.family)

    def _image_tokens(self, width_px: int, height_px: int) -> ImageTokens:
        require_size(width_px, height_px)
        canvas = self._best_canvas(width_px, height_px)
        rows, columns = canvas[0] // self.tile_px, canvas[1] // self.tile_px
        return ImageTokens(
            width_px=width_px,
            height_px=height_px,
            crops=1 + rows * columns,
            vision_tokens=self.tile_patches**2 + self._tiled_tokens(width_px, height_px, rows, columns),
            special_tokens=0,
            layout={"tiling_h": rows, "tiling_w": columns},
        )

    def _best_canvas(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Choose as the preprocessor does: most of the image shown, then least of the canvas wasted, then the first."""
        best, most_shown, least_wasted = self.canvases[0], 0, math.inf
        area = width_px * height_px
        for height, width in self.canvases:
            scale = min(width / width_px, height / height_px)
            shown = min(int(width_px * scale) * int(height_px * scale), area)
            wasted = width * height - shown
            if shown > most_shown or (shown == most_shown and wasted < least_wasted):
                best, most_shown, least_wasted = (height, width), shown, wasted
        return best

    def _tiled_tokens(self, width_px: int, height_px: int, rows: int, columns: int) -> int:
        """Features of the tiles once the padding is off, one newline per row included."""
        height, width = self.tile_patches * rows, self.tile_patches * columns
        if width_px / height_px > width / height:
            kept = int(round(height_px * (width / width_px), 7))
            height -= (height - kept) // 2 * 2
        else:
            kept = int(round(width_px * (height / height_px), 7))
            width -= (width - kept) // 2 * 2
        if self.largest_tiles is not None:
            excess = math.sqrt(height * width / (self.largest_tiles * self.tile_patches**2))
            if excess > _TOLERATED_EXCESS:
                height, width = int(height // excess), int(width // excess)
        return height * (width + 1)


@lru_cache(maxsize=16)
def _candidates(geometry: AnyresGeometry) -> tuple[tuple[int, int], ...]:
    return squarest_of_each_kind(_tokens_of_trials(geometry))


def _tokens_of_trials(geometry: AnyresGeometry) -> Iterator[ImageTokens]:
    """Go through every size that is tried, and leave out what is too elongated to be proposed."""
    return (geometry._image_tokens(*size) for size in _all_trials(geometry) if is_sane(*size))


def _all_trials(geometry: AnyresGeometry) -> Iterator[tuple[int, int]]:
    """Go through every canvas and every number of patch rows, or columns, that padding may leave of it."""
    tried: set[tuple[int, int]] = set()
    for height, width in geometry.canvases:
        for size in (*_trials(geometry, width, height, across=True), *_trials(geometry, height, width, across=False)):
            if size not in tried and min(size) > 0:
                tried.add(size)
                yield size


def _trials(geometry: AnyresGeometry, full_px: int, other_px: int, *, across: bool) -> Iterator[tuple[int, int]]:
    """Sizes that fill one side of a canvas and leave each possible number of patches along the other.

    Larger or smaller images of the same shape reach no canvas that these do not: the preprocessor takes the smallest
    canvas that holds the image, or else the one that shows most of it, and a canvas that is either for some scale is
    also the smallest one to hold the image that just fills it.
    """
    patches = geometry.tile_patches * other_px // geometry.tile_px
    for kept in range(1, patches + 1):
        # In the middle of the interval of aspect ratios that leave `kept` patches; the last one fills the canvas.
        part_px = round(other_px * min((kept + 0.5) / patches, 1.0))
        yield (full_px, part_px) if across else (part_px, full_px)


def _canvases(value: object, tile_px: int, settings: Settings) -> tuple[tuple[int, int], ...]:
    """Check a checkpoint's `image_grid_pinpoints`."""
    if not isinstance(value, (list, tuple)) or not value:
        raise UserError(f"image_grid_pinpoints: {value!r} in {settings.file} must be a list of [height, width] in px")
    canvases = []
    for pair in value:
        legal = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(type(side) is int for side in pair)
        if not legal or min(pair) < tile_px or any(side % tile_px for side in pair):
            raise UserError(
                f"image_grid_pinpoints: {pair!r} in {settings.file} must be [height, width], multiples of {tile_px} px"
            )
        canvases.append((pair[0], pair[1]))
    return tuple(canvases)


def _largest_tiles(settings: Settings) -> int | None:
    """Read the number at the end of "anyres_max_9"; None if there is no such setting."""
    refuse_null(settings, "vision_aspect_ratio")
    value = settings.get("vision_aspect_ratio")
    if value is None:
        return None
    number = str(value).removeprefix("anyres_max_")
    if not number.isdecimal() or int(number) < 1:
        raise UserError(
            f"vision_aspect_ratio: {value!r} in {settings.file} is not understood; legal: anyres_max_N with N from 1 on"
        )
    return int(number)
