"""How Idefics3 and SmolVLM turn an image into crops and tokens.

Whatever its size, an image is first scaled, up or down, so that its longer side has `longest_edge` px, then each side
to the next multiple of a tile. So only the aspect ratio matters: with tiles of a quarter of the longest edge there are
four crop counts and four token counts, and a thumbnail costs as much as a photograph. Every tile, and the whole image
squeezed into one tile, becomes the same number of tokens.

Around them stand special tokens: a marker and a position (`<row_1_col_2>`) before each tile, a line break after each
row of tiles, one more before the global image, and a closing marker. The last two line breaks are one token in the
published tokenizers.

This follows `_preprocess` of transformers 5.24's Idefics3 and SmolVLM image processors, which are the same code; its
rounding to even lengths and its two ways of rounding the shorter side are kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, ImageTokens
from vlmeter.models.families.geometry import (
    edge_px,
    image_settings,
    is_sane,
    positive_integer,
    processor_settings,
    refuse_forced_tiling,
    refuse_max_crops,
    require_resizing,
    require_size,
    squarest_of_each_kind,
    truth,
)

_ABSOLUTE_LONGEST_PX = 4096  # `MAX_IMAGE_SIZE` of the preprocessor: no image is scaled beyond it.

_GLOBAL_SPECIAL_TOKENS = 3  # <fake_token_around_image>, <global-img>, and the closing <fake_token_around_image>
_TILE_SPECIAL_TOKENS = 2  # <fake_token_around_image>, <row_i_col_j>


@dataclass(frozen=True)
class SplittingGeometry:
    """The length to which images are scaled, the tile, and its tokens.

    split: False leaves out the tiles, so that every image is one crop.
    line_break_pair_tokens: how many tokens the tokenizer makes of two line breaks.
    """

    family: str
    longest_edge_px: int
    tile_px: int
    tokens_per_tile: int
    split: bool = True
    line_break_pair_tokens: int = 1

    layout_columns = ("tiling_h", "tiling_w")

    @classmethod
    def from_config(cls, processor_config: Mapping[str, Any], *, default: Self) -> Self:
        """Read the settings of a checkpoint's processor; what it leaves out is as in the published code."""
        image, own = image_settings(processor_config), processor_settings(processor_config)
        split = truth(image, "do_image_splitting", True)
        if split:  # otherwise every image becomes one tile in any case
            require_resizing(image, family=default.family)
        return cls(
            family=default.family,
            longest_edge_px=edge_px(image, "size", 4 * 364, edges=("longest_edge",)),
            tile_px=edge_px(image, "max_image_size", 364, edges=("longest_edge",)),
            tokens_per_tile=positive_integer(own, "image_seq_len", 169),
            split=split,
            line_break_pair_tokens=default.line_break_pair_tokens,
        )

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict crops and tokens; raises UnsupportedSize where the preprocessor rounds a side down to 0 px."""
        self._refuse(options)
        require_size(width_px, height_px)
        rows, columns = self._tiling(width_px, height_px)
        special_tokens = _GLOBAL_SPECIAL_TOKENS
        if rows:
            line_breaks = rows - 1 + self.line_break_pair_tokens
            special_tokens += _TILE_SPECIAL_TOKENS * rows * columns + line_breaks
        crops = 1 + rows * columns
        return ImageTokens(
            width_px=width_px,
            height_px=height_px,
            crops=crops,
            vision_tokens=crops * self.tokens_per_tile,
            special_tokens=special_tokens,
            layout={"tiling_h": rows, "tiling_w": columns},
        )

    def candidates(self, *, options: ImageOptions) -> Iterable[tuple[int, int]]:
        """List a size (width, height) for every pair of vision tokens and crops."""
        self._refuse(options)
        sizes = (size for tiling in self._possible_tilings() for size in self._trials(tiling) if is_sane(*size))
        return squarest_of_each_kind(self.image_tokens(*size, options=options) for size in sizes)

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List every tiling (rows, columns) that the preprocessor may choose, fewest tiles first.

        Empty where the image is never cut.
        """
        self._refuse(options)
        reachable = [tiling for tiling in self._possible_tilings() if tiling != (0, 0) and self._size_for(tiling)]
        return sorted(reachable, key=lambda tiling: (tiling[0] * tiling[1], tiling[0]))

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Return a size for which the preprocessor chooses this tiling: the exact one, unless rounding spoils it."""
        legal = self.tilings(options=options)
        size = self._size_for(tiling) if tiling in legal else None
        if size is None:
            names = ", ".join(f"{rows}x{columns}" for rows, columns in legal) or "none, the image is never cut"
            raise UserError(
                f"tiling: {tiling[0]}x{tiling[1]} is out of reach for {self.family} with "
                f"{self.limit(options=options)}; legal: {names}"
            )
        return self.image_tokens(*size, options=options)

    def limit(self, *, options: ImageOptions) -> str:
        """Say what keeps larger counts out of reach."""
        self._refuse(options)
        if not self.split:
            return "do_image_splitting off"
        return f"longest_edge {self.longest_edge_px:,} px and tiles of {self.tile_px} px"

    def _refuse(self, options: ImageOptions) -> None:
        refuse_max_crops(options, family=self.family, instead="every image is scaled to the same longest_edge")
        refuse_forced_tiling(options, family=self.family)

    def _tiling(self, width_px: int, height_px: int) -> tuple[int, int]:
        """Rows and columns of tiles; 0 and 0 where there is the global crop alone."""
        if not self.split:
            return 0, 0
        width, height = _scaled(width_px, height_px, self.longest_edge_px)
        ratio = width / height
        if width >= height:
            width = self._rounded_up(width)
            height = self._rounded_up(int(width / ratio))
        else:
            height = self._rounded_up(height)
            width = self._rounded_up(int(height * ratio))
        if not min(width, height):  # Here the preprocessor asks for a resize to 0 px, which fails.
            raise UnsupportedSize(
                f"image size {width_px}x{height_px} is too elongated for {self.family}: with its longer side at "
                f"{self.longest_edge_px:,} px its shorter side rounds down to 0 px"
            )
        if max(width, height) <= self.tile_px:
            return 0, 0
        return height // self.tile_px, width // self.tile_px

    def _rounded_up(self, side_px: int) -> int:
        return math.ceil(side_px / self.tile_px) * self.tile_px

    def _possible_tilings(self) -> list[tuple[int, int]]:
        """Tilings whose longer side is that of the longest edge; with no tile beside the global crop, (0, 0) alone."""
        longest = math.ceil(min(self.longest_edge_px, _ABSOLUTE_LONGEST_PX) / self.tile_px)
        if not self.split or longest == 1:
            return [(0, 0)]
        return [*((short, longest) for short in range(1, longest + 1)), *((longest, s) for s in range(1, longest))]

    def _trials(self, tiling: tuple[int, int]) -> list[tuple[int, int]]:
        """The exact size of a tiling, and the same with half a tile less along the shorter side."""
        rows, columns = tiling[0] or 1, tiling[1] or 1
        width, height, half = columns * self.tile_px, rows * self.tile_px, self.tile_px // 2
        return [(width, height), (width, height - half) if width >= height else (width - half, height)]

    def _size_for(self, tiling: tuple[int, int]) -> tuple[int, int] | None:
        return next((size for size in self._trials(tiling) if self._tiling(*size) == tiling), None)


def _scaled(width_px: int, height_px: int, longest_px: int) -> tuple[int, int]:
    """Scale the longer side to a length; the shorter follows, is made even, and has at least 1 px."""
    ratio = width_px / height_px
    if width_px >= height_px:
        width = longest_px
        height = int(width / ratio)
        height += height % 2
    else:
        height = longest_px
        width = int(height * ratio)
        width += width % 2
    width, height = max(width, 1), max(height, 1)
    ratio = width / height
    if width >= height and width > _ABSOLUTE_LONGEST_PX:
        width, height = _ABSOLUTE_LONGEST_PX, int(_ABSOLUTE_LONGEST_PX / ratio)
    elif height > width and height > _ABSOLUTE_LONGEST_PX:
        width, height = int(_ABSOLUTE_LONGEST_PX * ratio), _ABSOLUTE_LONGEST_PX
    return max(width, 1), max(height, 1)
