"""What Qwen's vision-language models have in common: their way with an image's size, their tokens, their prompt.

They cut nothing. Both sides of an image are rounded to multiples of `patch_px * merge`, and only if that gives too many
or too few pixels is the image scaled as a whole; every square of merge x merge patches then becomes one token. An image
whose sides are such multiples already is taken as it is, which makes every count a x b a question of multiplying.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Self

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, ImageTokens
from vlmeter.models.families.geometry import (
    LARGEST_ASPECT_RATIO,
    Settings,
    image_settings,
    mildest_strip,
    positive_integer,
    refuse_forced_tiling,
    refuse_max_crops,
    require_resizing,
    require_size,
    without_null,
)
from vlmeter.models.families.loaded_native import Parts, Template

#: The merger, which makes one token of each square of patches, runs inside the vision encoder.
PARTS = Parts(vision_encoder="model.visual", projector=("model.visual.merger",))

TEMPLATE = Template(
    text="<|im_start|>user\n{image}{question}<|im_end|>\n<|im_start|>assistant\n",
    image="<|vision_start|><|image_pad|><|vision_end|>",
)


#: The preprocessing refuses a longer strip than this.
_LONGEST_STRIP = 200

#: Start and end of the picture in the prompt.
_SPECIAL_TOKENS = 2


@dataclass(frozen=True)
class PatchGrid:
    """A geometry of this kind; the defaults are those of transformers' image processor.

    patch_px: side of one patch of the vision encoder; merge: side, in patches, of the square that becomes one token.
    min_pixels, max_pixels: area of the resized image.
    """

    patch_px: int = 14
    merge: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280

    #: the name of the family, for messages
    family = "qwen"
    #: rows and columns of patches (`image_grid_thw`), of which merge x merge make one token
    layout_columns = ("grid_h", "grid_w")

    @classmethod
    def from_config(cls, processor_config: Mapping[str, Any]) -> Self:
        """Read the contents of a preprocessor_config.json or processor_config.json; raises UserError for nonsense."""
        settings = without_null(image_settings(processor_config), "size", "min_pixels", "max_pixels")
        require_resizing(settings, family=cls.family)
        # As in transformers: where the file has no size at all, it is the class's default, not the family's; a size
        # that is there is taken as it is; and the older pair of keys goes before the newer.
        size = settings.get("size")
        if size is None:
            size = {"shortest_edge": PatchGrid.min_pixels, "longest_edge": PatchGrid.max_pixels}
        if not isinstance(size, Mapping):
            raise UserError(f"size: {size!r} in {settings.file} must be a mapping")
        limits = []
        for older, newer in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
            if settings.get(older) is None and size.get(newer) is None:
                raise UserError(
                    f"size: {dict(size)!r} in {settings.file} has no {newer}, without which the published code takes "
                    f"no image; give it beside the other, or {older} outside of size"
                )
            inside = positive_integer(without_null(Settings(size, settings.file), newer), newer, 1)
            limits.append(positive_integer(settings, older, inside))
        found = cls(
            patch_px=positive_integer(settings, "patch_size", PatchGrid.patch_px),
            merge=positive_integer(settings, "merge_size", PatchGrid.merge),
            min_pixels=limits[0],
            max_pixels=limits[1],
        )
        if found.min_pixels > found.max_pixels:
            raise UserError(
                f"min_pixels: {found.min_pixels:,} in {settings.file} is above max_pixels, {found.max_pixels:,}"
            )
        return found

    @property
    def token_px(self) -> int:
        """Side of the square of pixels that becomes one token."""
        return self.patch_px * self.merge

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict the tokens of an image size; raises UnsupportedSize for a strip that the preprocessing refuses."""
        self._require_uncut(options)
        require_size(width_px, height_px)
        if max(width_px, height_px) / min(width_px, height_px) > _LONGEST_STRIP:
            raise UnsupportedSize(
                f"image size {width_px}x{height_px} is too elongated for {self.family}: its preprocessing refuses an "
                f"aspect ratio above {_LONGEST_STRIP}"
            )
        rows, columns = self._grid(width_px, height_px)
        return ImageTokens(
            width_px=width_px,
            height_px=height_px,
            crops=1,
            vision_tokens=rows * columns,
            special_tokens=_SPECIAL_TOKENS,
            layout={"grid_h": rows * self.merge, "grid_w": columns * self.merge},
        )

    def _grid(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Rows and columns of tokens, in the order and arithmetic of the original's `smart_resize`."""
        side = self.token_px
        rows, columns = round(height_px / side), round(width_px / side)
        if rows * columns * side**2 > self.max_pixels:
            shrink = math.sqrt((height_px * width_px) / self.max_pixels)
            return max(1, math.floor(height_px / shrink / side)), max(1, math.floor(width_px / shrink / side))
        if rows * columns * side**2 < self.min_pixels:
            grow = math.sqrt(self.min_pixels / (height_px * width_px))
            return math.ceil(height_px * grow / side), math.ceil(width_px * grow / side)
        return rows, columns

    def _require_uncut(self, options: ImageOptions) -> None:
        refuse_max_crops(options, family=self.family, instead="no image is cut")
        refuse_forced_tiling(options, family=self.family)

    def candidates(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List one size per reachable token count, the squarest first asked, landscape, no scaling where possible."""
        self._require_uncut(options)
        return list(_candidates(self))

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """Return no tiling: nothing is cut."""
        self._require_uncut(options)
        return []

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Refuse: nothing is cut."""
        self._require_uncut(options)
        rows, columns = tiling
        raise UserError(f"tiling: {rows}x{columns} is out of reach of {self.family}, which cuts no image; legal: none")

    def limit(self, *, options: ImageOptions) -> str:
        """Say what keeps larger and smaller counts out of reach."""
        return f"max_pixels {self.max_pixels:,} and min_pixels {self.min_pixels:,} of the image processor"

    def strip(self, *, vision_tokens: int | None, crops: int | None) -> ImageTokens | None:
        """Find the mildest image beyond what is proposed that makes these counts; None if none does."""
        if vision_tokens is None or crops not in (None, 1):
            return None
        side, spare = self.token_px, (self.token_px - 1) // 2
        sizes = [
            size
            for rows in range(1, math.isqrt(vision_tokens) + 1)
            if vision_tokens % rows == 0
            for columns in [vision_tokens // rows]
            for size in (
                (columns * side, rows * side),
                (columns * side - spare, rows * side + spare),
            )
            if size[0] <= _LONGEST_STRIP * size[1]
        ]
        images = (self.image_tokens(*size, options=ImageOptions()) for size in sizes)
        return mildest_strip(images, vision_tokens=vision_tokens, crops=crops)

    def _proposals(self) -> Iterator[tuple[int, int]]:
        """Propose sizes (width, height) in the order of preference; several may give the same count."""
        side, most = self.token_px, self.max_pixels // self.token_px**2
        grids = [
            (rows, columns)
            for rows in range(1, math.isqrt(most) + 1)
            for columns in range(rows, min(most // rows, LARGEST_ASPECT_RATIO * (rows + 1)) + 1)
            if rows * columns * side**2 >= self.min_pixels
        ]
        grids.sort(key=lambda grid: (grid[1] / grid[0], grid[0]))
        yield from ((columns * side, rows * side) for rows, columns in grids if columns <= LARGEST_ASPECT_RATIO * rows)
        # The mildest shape that is still rounded to a grid which itself is too long.
        spare = (side - 1) // 2
        for rows, columns in grids:
            if columns > LARGEST_ASPECT_RATIO * rows:
                yield columns * side - spare, rows * side + spare
        # An image that is scaled as a whole comes out with an area of max_pixels or min_pixels, so that its grid is a
        # matter of its aspect ratio alone, and changes where a scaled side becomes a whole number of tokens.
        for pixels, scale in ((self.max_pixels, 3.0), (self.min_pixels, 0.4)):
            longest = math.ceil(math.sqrt(pixels * LARGEST_ASPECT_RATIO) / side) + 1
            sides = [(n * side) ** 2 / pixels for n in range(1, longest + 1)]
            ratios = sorted(
                {ratio for n in sides for ratio in (n, 1 / n) if 1 < ratio < LARGEST_ASPECT_RATIO}
                | {1, LARGEST_ASPECT_RATIO}
            )
            for low, high in pairwise(ratios):
                ratio = math.sqrt(low * high)
                height = max(1, round(scale * math.sqrt(pixels / ratio)))
                yield round(height * ratio), height


@lru_cache(maxsize=16)
def _candidates(geometry: PatchGrid) -> tuple[tuple[int, int], ...]:
    found: dict[int, tuple[int, int]] = {}
    for width, height in geometry._proposals():
        if height <= width <= LARGEST_ASPECT_RATIO * height:
            rows, columns = geometry._grid(width, height)
            found.setdefault(rows * columns, (width, height))
    return tuple(found[tokens] for tokens in sorted(found))
