"""How Pixtral and Mistral3 turn an image into tokens: one per patch, row by row.

The image keeps its own size unless a side exceeds `longest_edge`; then it is scaled down to fit. Each side is rounded
up to whole patches, and every patch becomes one vision token. (Mistral3 merges 2 x 2 of the encoder's patches, so its
patch, seen from here, has twice the side.) A row ends with a break token, the last one with an end token instead; these
receive no feature. Nothing is cut, so the encoder sees one picture, and a count of tokens is simply a product of two
sides.

This follows `get_resize_output_image_size` and `replace_image_token` of Pixtral in transformers 5.24.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, ImageTokens
from vlmeter.models.families.geometry import (
    LARGEST_ASPECT_RATIO,
    edge_px,
    image_settings,
    mildest_strip,
    positive_integer,
    processor_settings,
    refuse_forced_tiling,
    refuse_max_crops,
    require_resizing,
    require_size,
)


@dataclass(frozen=True)
class PatchRowsGeometry:
    """Side of a vision token in px, merging included, and the longest side that an image keeps.

    fewest_tokens: what the model's own code can work with.
    """

    family: str
    token_px: int
    longest_edge_px: int
    fewest_tokens: int = 1

    layout_columns = ("grid_h", "grid_w")

    @classmethod
    def from_config(cls, processor_config: Mapping[str, Any], *, default: Self) -> Self:
        """Read the settings of a checkpoint's processor; what it leaves out is as in the published code.

        The patch is the processor's, which hands it to its image processor whatever that one's own settings say.
        """
        image, own = image_settings(processor_config), processor_settings(processor_config)
        require_resizing(image, family=default.family)
        return cls(
            family=default.family,
            token_px=positive_integer(own, "patch_size", 16) * positive_integer(own, "spatial_merge_size", 1),
            longest_edge_px=edge_px(image, "size", 1024, edges=("longest_edge", "height")),
            fewest_tokens=default.fewest_tokens,
        )

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict tokens; raises UnsupportedSize where the image is too elongated, or too small for the model."""
        self._refuse(options)
        require_size(width_px, height_px)
        rows, columns = self._grid(width_px, height_px)
        if rows * columns < self.fewest_tokens:
            raise UnsupportedSize(
                f"image size {width_px}x{height_px} becomes {rows * columns} vision token(s), and transformers' "
                f"{self.family} fails with fewer than {self.fewest_tokens}"
            )
        return ImageTokens(
            width_px=width_px,
            height_px=height_px,
            crops=1,
            vision_tokens=rows * columns,
            special_tokens=rows,
            layout={"grid_h": rows, "grid_w": columns},
        )

    def candidates(self, *, options: ImageOptions) -> Iterable[tuple[int, int]]:
        """List, for every count of vision tokens, the most square size whose sides are whole patches."""
        self._refuse(options)
        # A side past the last whole patch is rounded up to one more, as long as it is within the longest edge.
        longest = math.ceil(self.longest_edge_px / self.token_px)
        squarest: dict[int, tuple[int, int]] = {}
        for rows in range(1, longest + 1):
            for columns in range(rows, min(longest, LARGEST_ASPECT_RATIO * rows) + 1):
                count = rows * columns
                if count < self.fewest_tokens:
                    continue
                if count not in squarest or columns < squarest[count][0]:
                    squarest[count] = (columns, rows)
        return tuple((self._side_px(columns), self._side_px(rows)) for _, (columns, rows) in sorted(squarest.items()))

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """Return no tiling: the image is never cut."""
        self._refuse(options)
        return []

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Raise UserError: the image is never cut."""
        self._refuse(options)
        raise UserError(
            f"tiling: {tiling[0]}x{tiling[1]} means nothing to {self.family}, which never cuts an image; "
            "give vision_tokens or image_sizes"
        )

    def limit(self, *, options: ImageOptions) -> str:
        """Say what keeps larger counts out of reach."""
        self._refuse(options)
        return f"longest_edge {self.longest_edge_px:,} px, with {self.token_px} px to a token's side"

    def strip(self, *, vision_tokens: int | None, crops: int | None) -> ImageTokens | None:
        """Find the mildest image beyond what is proposed that makes these counts; None if none does."""
        if vision_tokens is None or crops not in (None, 1) or vision_tokens < self.fewest_tokens:
            return None
        longest = math.ceil(self.longest_edge_px / self.token_px)
        images = (
            self.image_tokens(self._side_px(vision_tokens // rows), self._side_px(rows), options=ImageOptions())
            for rows in range(1, math.isqrt(vision_tokens) + 1)
            if vision_tokens % rows == 0 and vision_tokens // rows <= longest
        )
        return mildest_strip(images, vision_tokens=vision_tokens, crops=crops)

    def _refuse(self, options: ImageOptions) -> None:
        refuse_max_crops(options, family=self.family, instead="an image is never cut")
        refuse_forced_tiling(options, family=self.family)

    def _side_px(self, patches: int) -> int:
        return min(patches * self.token_px, self.longest_edge_px)

    def _grid(self, width_px: int, height_px: int) -> tuple[int, int]:
        ratio = max(height_px / self.longest_edge_px, width_px / self.longest_edge_px)
        height, width = height_px, width_px
        if ratio > 1:
            height, width = math.floor(height_px / ratio), math.floor(width_px / ratio)
        if not min(height, width):  # Here the preprocessor asks for a resize to 0 px, which fails.
            raise UnsupportedSize(
                f"image size {width_px}x{height_px} is too elongated for {self.family}: scaled down to a longest_edge "
                f"of {self.longest_edge_px:,} px its shorter side rounds down to 0 px"
            )
        return (height - 1) // self.token_px + 1, (width - 1) // self.token_px + 1
