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
    flattened,
    positive_integer,
    refuse_forced_tiling,
    refuse_max_crops,
    require_size,
)
from vlmeter.models.families.made_tokenizer import MadeTokenizer


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
        """Read the settings of a checkpoint's processor; what it leaves out is as in `default`."""
        config = flattened(processor_config)
        merged = positive_integer(config, "spatial_merge_size", 1)
        patch_px = positive_integer(config, "patch_size", 0)
        return cls(
            family=default.family,
            token_px=patch_px * merged or default.token_px,
            longest_edge_px=edge_px(config, "size", default.longest_edge_px, edges=("longest_edge", "height")),
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


def processor_settings(*, patch_px: int, longest_edge_px: int) -> dict[str, Any]:
    """Return the settings of Pixtral's image processor, as in a checkpoint's preprocessor_config.json."""
    return {
        "image_processor_type": "PixtralImageProcessor",
        "size": {"longest_edge": longest_edge_px},
        "patch_size": {"height": patch_px, "width": patch_px},
    }


def tokenizer(vocab_size: int) -> MadeTokenizer:
    """Describe a tokenizer with Mistral's special tokens at their published ids."""
    return MadeTokenizer(
        vocab_size=vocab_size,
        special_tokens={
            "<unk>": 0,
            "<s>": 1,
            "</s>": 2,
            "[INST]": 3,
            "[/INST]": 4,
            "[IMG]": 10,
            "<pad>": 11,
            "[IMG_BREAK]": 12,
            "[IMG_END]": 13,
        },
        bos="<s>",
        eos="</s>",
        pad="<pad>",
    )
