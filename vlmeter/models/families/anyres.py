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
    edge_px,
    flattened,
    is_sane,
    positive_integer,
    refuse_forced_tiling,
    refuse_max_crops,
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
    def from_config(cls, processor_config: Mapping[str, Any], *, default: Self) -> Self:
        """Read the settings of a checkpoint's processor; what it leaves out is as in `default`.

        Raises UserError for settings that make no sense, or with which the model would refuse its own inputs.
        """
        config = flattened(processor_config)
        edges = ("height", "shortest_edge")
        tile_px = edge_px(config, "size", default.tile_px, edges=edges)
        if config.get("crop_size") is not None:
            tile_px = edge_px(config, "crop_size", tile_px, edges=edges)
        if config.get("num_image_tokens") is not None:
            tile_patches = math.isqrt(positive_integer(config, "num_image_tokens", 1))
        elif config.get("patch_size") is not None:
            tile_patches = tile_px // positive_integer(config, "patch_size", 1)
        else:
            tile_patches = default.tile_patches
        if not 1 <= tile_patches <= tile_px:
            raise UserError(f"patch_size: {config.get('patch_size')!r} does not go into a tile of {tile_px} px")
        additional = config.get("num_additional_image_tokens") or 0
        dropped = 1 if config.get("vision_feature_select_strategy") == "default" else 0
        if additional != dropped:
            raise UserError(
                f"num_additional_image_tokens: {additional} does not go with vision_feature_select_strategy "
                f"{config.get('vision_feature_select_strategy')!r}, which drops {dropped} feature(s) of a tile: "
                "the processor would ask for other features than the model makes"
            )
        return cls(
            family=default.family,
            tile_px=tile_px,
            tile_patches=tile_patches,
            canvases=_canvases(config.get("image_grid_pinpoints"), tile_px) or default.canvases,
            largest_tiles=_largest_tiles(config.get("vision_aspect_ratio")) or default.largest_tiles,
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
    """Go through every canvas and every number of patch rows, or columns, that padding may leave of it."""
    tried: set[tuple[int, int]] = set()
    for height, width in geometry.canvases:
        for size in (*_trials(geometry, width, height, across=True), *_trials(geometry, height, width, across=False)):
            if size not in tried and is_sane(*size):
                tried.add(size)
                yield geometry._image_tokens(*size)


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


def _canvases(value: object, tile_px: int) -> tuple[tuple[int, int], ...]:
    """Check a checkpoint's `image_grid_pinpoints`; empty if it has none."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not value:
        raise UserError(f"image_grid_pinpoints: {value!r} must be a list of [height, width] in px")
    canvases = []
    for pair in value:
        legal = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(side, int) for side in pair)
        if not legal or min(pair) < tile_px or any(side % tile_px for side in pair):
            raise UserError(f"image_grid_pinpoints: {pair!r} must be [height, width] in multiples of {tile_px} px")
        canvases.append((pair[0], pair[1]))
    return tuple(canvases)


def _largest_tiles(value: object) -> int | None:
    """Read the number at the end of "anyres_max_9"."""
    if value is None:
        return None
    number = str(value).removeprefix("anyres_max_")
    if not number.isdecimal() or int(number) < 1:
        raise UserError(f"vision_aspect_ratio: {value!r} is not understood; legal: anyres_max_N with N from 1 on")
    return int(number)
