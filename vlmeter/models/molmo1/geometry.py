"""How many tokens an image costs Molmo-1, and which image costs exactly so many.

The idea: Molmo does not look at an image once. It cuts it into i x j overlapping crops of 336 px, chosen
among the tilings with i*j <= max_crops so that the image is scaled as little as possible, and puts a *global*
crop, the whole image at 336 px, in front. Every crop costs the vision encoder the same, but neighbours
overlap and the language model sees an overlap once. So crops (work for the encoder) and vision tokens (work
for the language model) are two different numbers, both functions of the tiling alone, and the size of the
image matters only in so far as it selects the tiling. Inverting that selection gives an image for every
tiling, hence for every reachable count.

This follows the original preprocessing (allenai/molmo, `olmo/data/model_preprocessor.py`, `select_tiling` and
`resize_and_pad`, crop mode "overlap-and-resize-c2"; the remote code published with the checkpoints computes
the same), with its arithmetic in single precision. No image is touched and nothing beyond the standard
library is needed.

Sizes are written width x height in pixels as image libraries do; tilings are written rows x columns (i x j).
"""

from __future__ import annotations

import math
import struct
from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

from vlmeter.common.errors import UnsupportedSize, UserError

CROP_PX = 336
"""Side of the square the vision encoder takes (CLIP ViT-L/14-336)."""

PATCH_PX = 14
"""Side of one of the encoder's patches."""

POOLING_PATCHES = 2
"""Patches per side that the attention pooling merges into one vision token."""

MARGIN_PX = (4 + 4) * PATCH_PX
"""Pixels per dimension that a crop shares with its neighbours: 4 patches on each side."""

WINDOW_PX = CROP_PX - MARGIN_PX
"""Step from one crop to the next; a tiling of n crops spans n windows and one margin."""

DEFAULT_MAX_CROPS = 12
"""The limit on i*j in the published checkpoints' preprocessor; the global crop is not counted."""

_CROP_TOKENS_PER_SIDE = CROP_PX // PATCH_PX // POOLING_PATCHES
_WINDOW_TOKENS_PER_SIDE = WINDOW_PX // PATCH_PX // POOLING_PATCHES
_MARGIN_TOKENS_PER_SIDE = MARGIN_PX // PATCH_PX // POOLING_PATCHES

LARGEST_MAX_CROPS = 4096
"""The largest limit that is accepted: 64x64 crops are 266,400 vision tokens, past any context length."""

_LARGEST_SIDE_PX = 2**31 - 1  # Pillow, through which the original reads its images, holds a side in a C int.


@dataclass(frozen=True)
class Geometry:
    """What one image becomes: its tiling, its crops and its tokens."""

    width_px: int
    height_px: int
    tiling_h: int
    tiling_w: int
    crops: int
    vision_tokens: int
    special_tokens: int

    @property
    def tiling(self) -> tuple[int, int]:
        """Rows and columns of crops, the global one aside."""
        return self.tiling_h, self.tiling_w

    @property
    def image_tokens(self) -> int:
        """Prompt tokens that the image takes: vision tokens and the special tokens around them."""
        return self.vision_tokens + self.special_tokens


def geometry(
    width_px: int,
    height_px: int,
    *,
    max_crops: int = DEFAULT_MAX_CROPS,
    force_tiling: tuple[int, int] | None = None,
) -> Geometry:
    """Count the crops and tokens that an image of this size becomes.

    `force_tiling` (rows, columns) goes past the preprocessor's own choice: the image is resized and padded to
    that tiling, whatever its size, and rows * columns may exceed `max_crops`.

    Raises `UnsupportedSize` where the original itself fails, forced or not: a side below 1 px, or an image so
    elongated that its shorter side vanishes in the global crop.
    """
    _require_max_crops(max_crops)
    _require_supported_size(width_px, height_px)
    if force_tiling is None:
        tiling_h, tiling_w = select_tiling(width_px, height_px, max_crops=max_crops)
    else:
        tiling_h, tiling_w = force_tiling
        _require_tiling(tiling_h, tiling_w)
    return Geometry(
        width_px=width_px,
        height_px=height_px,
        tiling_h=tiling_h,
        tiling_w=tiling_w,
        crops=_crops(tiling_h, tiling_w),
        vision_tokens=_vision_tokens(tiling_h, tiling_w),
        special_tokens=_special_tokens(tiling_h),
    )


def tilings(*, max_crops: int = DEFAULT_MAX_CROPS) -> list[tuple[int, int]]:
    """List every tiling (rows, columns) with rows * columns <= max_crops, by crop count, then by rows."""
    _require_max_crops(max_crops)
    return list(_candidate_tilings(max_crops))


def exact_size(tiling_h: int, tiling_w: int) -> tuple[int, int]:
    """Return the width and height in px at which this tiling needs no scaling and no padding."""
    _require_tiling(tiling_h, tiling_w)
    return WINDOW_PX * tiling_w + MARGIN_PX, WINDOW_PX * tiling_h + MARGIN_PX


def size_for_tiling(tiling_h: int, tiling_w: int, *, max_crops: int = DEFAULT_MAX_CROPS) -> Geometry:
    """Find an image size for which the preprocessor itself chooses exactly this tiling.

    That is always `exact_size`. There, tiling i x j needs a scale of 1, and any other tiling that does not
    shrink the image has at least i rows and at least j columns; so it scales by as much or more, and among
    equals the preprocessor takes the tiling with fewer crops. The answer is what `geometry` selects, not what
    was asked for.

    Raises `UserError` for a tiling that `max_crops` excludes, and `UnsupportedSize` for one so elongated
    (more than 503 crops to 1) that the preprocessor cannot take its exact size.
    """
    _require_max_crops(max_crops)
    width_px, height_px = exact_size(tiling_h, tiling_w)
    if tiling_h * tiling_w > max_crops:
        raise UserError(
            f"tiling {tiling_h}x{tiling_w} takes {tiling_h * tiling_w} crops, and no image size selects it "
            f"with max_crops {max_crops}: raise it to {tiling_h * tiling_w} or more, or force the tiling"
        )
    return geometry(width_px, height_px, max_crops=max_crops)


def exact_sizes(*, max_crops: int = DEFAULT_MAX_CROPS) -> list[tuple[int, int]]:
    """List `exact_size` of every tiling within max_crops whose exact size the preprocessor can take.

    Counts depend on the tiling alone, so these sizes show every count that can be reached.
    """
    sizes = [exact_size(*tiling) for tiling in tilings(max_crops=max_crops)]
    return [size for size in sizes if _lost_side(*size) is None]


def remedy(*, vision_tokens: int | None = None, crops: int | None = None) -> str:
    """Say which max_crops lets some image reach these counts, or that no legal one does."""
    sufficient = _sufficient_max_crops(vision_tokens, crops)
    if sufficient is None:
        return f"no larger max_crops up to {LARGEST_MAX_CROPS} reaches it either"
    return f"max_crops {sufficient} or more reaches it"


def _crops(tiling_h: int, tiling_w: int) -> int:
    return tiling_h * tiling_w + 1  # The global crop always comes along.


def _tokens_along(tiles: int) -> int:
    """Vision tokens along one dimension of the tiled image, overlaps counted once."""
    return _WINDOW_TOKENS_PER_SIDE * tiles + _MARGIN_TOKENS_PER_SIDE


def _vision_tokens(tiling_h: int, tiling_w: int) -> int:
    # 144 of the global crop, then (8i + 4)(8j + 4) of the tiled image.
    return _CROP_TOKENS_PER_SIDE**2 + _tokens_along(tiling_h) * _tokens_along(tiling_w)


def _special_tokens(tiling_h: int) -> int:
    # Twice, for the global crop and for the tiled image: <im_start>, an <im_col> after each row of vision
    # tokens, <im_end>. The global crop has 12 rows and the tiled image 8i + 4, which makes 8i + 20.
    return (1 + _CROP_TOKENS_PER_SIDE + 1) + (1 + _tokens_along(tiling_h) + 1)


def _float32(value: float) -> float:
    """Round to single precision.

    A quotient or product of two single-precision numbers, taken in double precision and then rounded here, is
    the correctly rounded single-precision result: double has more than twice the bits, so rounding twice does
    no harm.
    """
    rounded: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return rounded


@lru_cache(maxsize=32)
def _candidate_tilings(max_crops: int) -> tuple[tuple[int, int], ...]:
    """Every tiling in the order that breaks the preprocessor's ties: fewer crops first, then fewer rows."""
    pairs = ((i, j) for i in range(1, max_crops + 1) for j in range(1, max_crops // i + 1))
    return tuple(sorted(pairs, key=lambda tiling: (tiling[0] * tiling[1], tiling[0])))


def select_tiling(
    width_px: int, height_px: int, *, max_crops: int, window_px: int = WINDOW_PX, margin_px: int = MARGIN_PX
) -> tuple[int, int]:
    """Choose as the original does: least enlargement or, where every tiling is too small, least reduction.

    Three traps are kept. The margin comes off the image before the comparison, so a side of exactly 112 px
    leaves 0, an infinite scale, and the other side decides. A side below 112 px leaves a negative scale:
    every tiling counts as too small, and the least negative scale is that of 1x1, however long the other side
    is. And scales are compared in single precision, with ties going to the first candidate; with max_crops 12
    that decides nothing until a side passes some 10^6 px, because shorter sides cannot bring two different
    scales within one rounding step of each other.

    Molmo2 chooses by the same rule, with another window.
    """
    inner_h_px, inner_w_px = height_px - margin_px, width_px - margin_px
    rows, columns = (_enlarging_tiles(inner_px, max_crops, window_px) for inner_px in (inner_h_px, inner_w_px))
    # The scale grows with rows and columns, so of all tilings that enlarge, this one does so least, in fewest crops.
    if rows is not None and columns is not None and rows * columns <= max_crops:
        return rows, columns
    candidates = _candidate_tilings(max_crops)
    scales = [
        min(_required_scale(tiling_h * window_px, inner_h_px), _required_scale(tiling_w * window_px, inner_w_px))
        for tiling_h, tiling_w in candidates
    ]
    return candidates[scales.index(max(scales))]


def _enlarging_tiles(inner_px: int, max_crops: int, window_px: int) -> int | None:
    """Return the fewest tiles along a side that enlarge it or leave it as it is; None if max_crops of them do not."""
    tiles = range(1, max_crops + 1)
    place = bisect_left(tiles, 1.0, key=lambda count: _required_scale(count * window_px, inner_px))
    return tiles[place] if place < len(tiles) else None


def _required_scale(windows_px: int, inner_px: int) -> float:
    """The factor that makes a side, less its margin, span so many windows."""
    if inner_px == 0:
        return float("inf")
    return _float32(_float32(windows_px) / _float32(inner_px))


def _side_in_global_crop_px(side_px: int, other_px: int) -> int:
    """Length of a side once the image is fitted into the global crop, truncated as in the original."""
    scale = min(_float32(CROP_PX / _float32(side_px)), _float32(CROP_PX / _float32(other_px)))
    return int(_float32(_float32(side_px) * scale))


def _lost_side(width_px: int, height_px: int) -> str | None:
    """Name the side of which nothing is left in the global crop, if there is one.

    An image is resized twice, to its tiling and to the global crop. The global crop is never the larger of
    the two, so it is there that a side is first lost.
    """
    if _side_in_global_crop_px(width_px, height_px) < 1:
        return "width"
    if _side_in_global_crop_px(height_px, width_px) < 1:
        return "height"
    return None


def _require_supported_size(width_px: int, height_px: int) -> None:
    size = f"{width_px}x{height_px}"
    if min(width_px, height_px) < 1:
        raise UnsupportedSize(f"image size {size} is not a size: width and height must be at least 1 px")
    if max(width_px, height_px) > _LARGEST_SIDE_PX:
        raise UnsupportedSize(
            f"image size {size} is larger than any image: a side can have at most {_LARGEST_SIDE_PX} px"
        )
    lost = _lost_side(width_px, height_px)
    if lost is not None:  # Here the original asks for a resize to 0 px, which torch refuses.
        raise UnsupportedSize(
            f"image size {size} is too elongated for Molmo: fitted into the {CROP_PX} px global crop its "
            f"{lost} rounds down to 0 px; keep the longer side below {CROP_PX} times the shorter one"
        )


def _require_tiling(tiling_h: int, tiling_w: int) -> None:
    if min(tiling_h, tiling_w) < 1 or tiling_h * tiling_w > LARGEST_MAX_CROPS:
        raise UserError(
            f"tiling {tiling_h}x{tiling_w} is out of range: it has at least 1 row and 1 column "
            f"and at most {LARGEST_MAX_CROPS} crops"
        )


def _require_max_crops(max_crops: int) -> None:
    if not 1 <= max_crops <= LARGEST_MAX_CROPS:
        raise UserError(f"max_crops is {max_crops}: it must be between 1 and {LARGEST_MAX_CROPS}")


def _reaches(tiling: tuple[int, int], vision_tokens: int | None, crops: int | None) -> bool:
    """Whether a tiling has these counts; None stands for any."""
    return vision_tokens in (None, _vision_tokens(*tiling)) and crops in (None, _crops(*tiling))


def _factor_pairs(product: int) -> list[tuple[int, int]]:
    return [
        (divisor, product // divisor) for divisor in range(1, math.isqrt(max(product, 0)) + 1) if product % divisor == 0
    ]


def _sufficient_max_crops(vision_tokens: int | None, crops: int | None) -> int | None:
    """The smallest max_crops that lets some image reach these counts, None where no legal one does."""
    if max(vision_tokens or 0, crops or 0) > _vision_tokens(1, LARGEST_MAX_CROPS):
        return None  # 1 x n has the most tokens for its crops, so nothing legal lies beyond.
    candidates: list[tuple[int, int]] = []
    if crops is not None:
        candidates = _factor_pairs(crops - 1)
    elif vision_tokens is not None:
        # 144 + (8i + 4)(8j + 4) = 144 + 16(2i + 1)(2j + 1): a tiling is a pair of odd factors from 3 up.
        product, remainder = divmod(vision_tokens - _CROP_TOKENS_PER_SIDE**2, _tokens_along(0) ** 2)
        if not remainder and product % 2:
            candidates = [((a - 1) // 2, (b - 1) // 2) for a, b in _factor_pairs(product) if a > 1]
    return min(
        (
            i * j
            for i, j in candidates
            if i * j <= LARGEST_MAX_CROPS
            and _reaches((i, j), vision_tokens, crops)
            and _lost_side(*exact_size(i, j)) is None
        ),
        default=None,
    )
