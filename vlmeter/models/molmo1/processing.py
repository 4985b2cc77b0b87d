"""From picture and question to the tensors that Molmo reads.

A picture becomes C crops of 336 px: the whole picture scaled down (the *global* crop, always first), then the
cells of a tiling of the picture, which overlap by 8 patches so that no cell ends in a blind edge. Every crop
yields 12 x 12 features; those in the overlap are dropped, so that the cells' features form one grid of (8i +
4) x (8j + 4). The prompt spells both grids, row by row, and `image_input_idx` says at which position of the
prompt each feature belongs.

Follows `image_preprocessing_molmo.py` and `preprocessing_molmo.py` of the published models (allenai/molmo,
`olmo/data/model_preprocessor.py`), numpy only. Two traps are kept because the model was trained with them:
the mask of the cells is padded with -1 at the *end*, although the global crop comes first, so that it is off
by one crop; and images are padded after scaling, before normalising, with black.

Resizing is Pillow's bilinear filter in float32, which widens with the reduction as the original's torchvision
`antialias=True` does; the two agree to about 1e-5 of the pixel range. Shapes: C crops, T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from vlmeter.models.molmo1.architecture import CROP_PX, PATCH_PX, PATCHES_PER_SIDE, POOLED_PER_SIDE
from vlmeter.models.molmo1.geometry import DEFAULT_MAX_CROPS, Geometry, geometry
from vlmeter.models.molmo1.tokenizer import MolmoTokenizer, SpecialIds

FloatArray: TypeAlias = npt.NDArray[np.float32]
IntArray: TypeAlias = npt.NDArray[np.int64]

CLIP_MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
CLIP_STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)

OVERLAP_PATCHES = 4
"""Patches that a cell gives up on each side where it has a neighbour (`overlap_margins`)."""
STRIDE_PX = CROP_PX - 2 * OVERLAP_PATCHES * PATCH_PX  # 224: from one cell to the next
STRIDE_POOLED = STRIDE_PX // PATCH_PX // 2  # 8, the same in features
OVERLAP_POOLED = OVERLAP_PATCHES // 2  # 2
DROPPED = -100
"""What `image_input_idx` holds for a feature that is dropped; any negative number means the same."""


@dataclass(frozen=True)
class PromptCounts:
    """What was counted in a prompt's real arrays. `text_tokens` includes the beginning-of-sequence token."""

    crops: int
    vision_tokens: int
    special_tokens: int
    text_tokens: int
    prompt_tokens: int


@dataclass(frozen=True)
class MolmoInputs:
    """One prompt as the model reads it."""

    input_ids: IntArray
    """[T]"""
    images: FloatArray
    """[C, 576, 588], normalised pixels; a patch is 14 rows of 14 pixels of 3 channels."""
    image_masks: FloatArray
    """[C, 576], how much of each patch is picture: 1 all, 0 nothing, -1 the original's filling."""
    image_input_idx: IntArray
    """[C, 144], position in the prompt of each feature; negative: dropped."""
    special_ids: SpecialIds

    def counts(self) -> PromptCounts:
        """Count crops and tokens in the arrays themselves."""
        ids, special = self.input_ids, self.special_ids
        vision = int((self.image_input_idx >= 0).sum())
        markers = int(np.isin(ids, (special.im_start, special.im_end, special.im_col)).sum())
        return PromptCounts(
            crops=len(self.images),
            vision_tokens=vision,
            special_tokens=markers,
            text_tokens=len(ids) - vision - markers,
            prompt_tokens=len(ids),
        )


def prepare_prompt(
    image: Image.Image,
    text_ids: list[int],
    *,
    bos_token_id: int,
    special_ids: SpecialIds,
    max_crops: int = DEFAULT_MAX_CROPS,
    force_tiling: tuple[int, int] | None = None,
) -> MolmoInputs:
    """Turn a picture and the ids of the text behind it into the arrays that the model reads.

    `force_tiling` (rows, columns) imposes a tiling past the original's selection. Raises `UnsupportedSize`
    for a picture that the original cannot handle.
    """
    picture = ImageOps.exif_transpose(image.convert("RGB"))
    planned = geometry(picture.width, picture.height, max_crops=max_crops, force_tiling=force_tiling)
    pixels = np.asarray(picture, dtype=np.float32) / np.float32(255)
    images, image_masks = _crops(pixels, planned)
    image_ids = _image_token_ids(planned, special_ids)
    inputs = MolmoInputs(
        input_ids=np.concatenate([[bos_token_id], image_ids, text_ids]).astype(np.int64),
        images=images,
        image_masks=image_masks,
        image_input_idx=_feature_positions(planned, first_position=1),
        special_ids=special_ids,
    )
    counted = inputs.counts()
    if (counted.crops, counted.vision_tokens) != (planned.crops, planned.vision_tokens):
        raise AssertionError(f"preprocessing made {counted} where the geometry says {planned}")
    return inputs


def prepare_question(
    image: Image.Image,
    question: str,
    tokenizer: MolmoTokenizer,
    *,
    max_crops: int = DEFAULT_MAX_CROPS,
    force_tiling: tuple[int, int] | None = None,
) -> MolmoInputs:
    """Turn a picture and a question into the arrays that the model reads; see `prepare_prompt`."""
    return prepare_prompt(
        image,
        tokenizer.prompt_ids(question),
        bos_token_id=tokenizer.bos_token_id,
        special_ids=tokenizer.special_ids,
        max_crops=max_crops,
        force_tiling=force_tiling,
    )


def _resize_and_pad(pixels: FloatArray, *, height_px: int, width_px: int) -> tuple[FloatArray, FloatArray]:
    """Fit the picture into a canvas, centred on black -> (normalised pixels [h, w, 3], picture mask [h, w]).

    The scale is computed in float32 because the training code did so, which very rarely decides a rounding.
    """
    height, width = (np.float32(side) for side in pixels.shape[:2])
    scale = min(np.float32(height_px) / height, np.float32(width_px) / width)
    scaled_height, scaled_width = int(height * scale), int(width * scale)
    top, left = (height_px - scaled_height) // 2, (width_px - scaled_width) // 2
    # Channel constants repeated along a row: numpy is slow at broadcasting over a last axis of three.
    black = np.tile(-CLIP_MEAN / CLIP_STD, width_px)
    mean, std = np.tile(CLIP_MEAN, scaled_width), np.tile(CLIP_STD, scaled_width)
    canvas = np.tile(black, (height_px, 1)).reshape(height_px, width_px, 3)
    mask = np.zeros((height_px, width_px), dtype=np.float32)
    inside = slice(top, top + scaled_height), slice(left, left + scaled_width)
    mask[inside] = 1
    resized = _resize(pixels, height_px=scaled_height, width_px=scaled_width)
    normalised = (resized.reshape(scaled_height, -1) - mean) / std
    canvas[inside] = normalised.reshape(scaled_height, scaled_width, 3)
    return canvas, mask


def _resize(pixels: FloatArray, *, height_px: int, width_px: int) -> FloatArray:
    """Resize a picture [h, w, 3] of values from 0 to 1."""
    if pixels.shape[:2] == (height_px, width_px):
        return pixels
    resized = np.empty((height_px, width_px, 3), dtype=np.float32)
    for channel in range(3):
        plane = Image.fromarray(np.ascontiguousarray(pixels[..., channel]))  # mode F: float32
        resized[..., channel] = np.asarray(plane.resize((width_px, height_px), Image.Resampling.BILINEAR))
    return resized.clip(0, 1)


def _patches(crop: FloatArray) -> FloatArray:
    """Cut a crop [336, 336, ...] into its patches, row by row [576, 196 * channels]."""
    channels = crop.size // CROP_PX**2
    grid = crop.reshape(PATCHES_PER_SIDE, PATCH_PX, PATCHES_PER_SIDE, PATCH_PX * channels)
    return grid.transpose(0, 2, 1, 3).reshape(PATCHES_PER_SIDE**2, -1)


def _crops(pixels: FloatArray, planned: Geometry) -> tuple[FloatArray, FloatArray]:
    """Return the patches [C, 576, 588] and the mask [C, 576] of the global crop and the tiling's cells."""
    rows, columns = planned.tiling
    whole, _ = _resize_and_pad(pixels, height_px=CROP_PX, width_px=CROP_PX)
    tiled, mask = _resize_and_pad(
        pixels,
        height_px=(rows - 1) * STRIDE_PX + CROP_PX,
        width_px=(columns - 1) * STRIDE_PX + CROP_PX,
    )
    cells = [
        (slice(i * STRIDE_PX, i * STRIDE_PX + CROP_PX), slice(j * STRIDE_PX, j * STRIDE_PX + CROP_PX))
        for i in range(rows)
        for j in range(columns)
    ]
    images = np.stack([_patches(whole), *(_patches(tiled[cell]) for cell in cells)])
    masks = np.stack([_patches(mask[cell]).mean(axis=1) for cell in cells])
    filling = np.full_like(masks[:1], -1)  # belongs to the global crop, yet the original appends it
    return images, np.concatenate([masks, filling])


def _grid_token_ids(rows: int, columns: int, special_ids: SpecialIds) -> IntArray:
    """Spell a grid of features: start, each row's patches and an end of row, end."""
    row = [special_ids.im_patch] * columns + [special_ids.im_col]
    return np.array([special_ids.im_start, *row * rows, special_ids.im_end], dtype=np.int64)


def _image_token_ids(planned: Geometry, special_ids: SpecialIds) -> IntArray:
    rows, columns = (STRIDE_POOLED * (n - 1) + POOLED_PER_SIDE for n in planned.tiling)
    return np.concatenate(
        [
            _grid_token_ids(POOLED_PER_SIDE, POOLED_PER_SIDE, special_ids),
            _grid_token_ids(rows, columns, special_ids),
        ]
    )


def _feature_positions(planned: Geometry, *, first_position: int) -> IntArray:
    """Return the prompt position of each feature [C, 144], given where the image's tokens start.

    Feature (y, x) of cell (i, j) is feature (8i + y, 8j + x) of the whole grid, and a cell gives up the two
    outermost rows or columns of features wherever it has a neighbour, so that each place in the grid is
    filled once.
    """
    tiling_h, tiling_w = planned.tiling
    columns = STRIDE_POOLED * (tiling_w - 1) + POOLED_PER_SIDE
    side = np.arange(POOLED_PER_SIDE)
    whole = first_position + 1 + side[:, None] * (POOLED_PER_SIDE + 1) + side  # behind <im_start>; + 1: <im_col>
    second_grid = first_position + 1 + POOLED_PER_SIDE * (POOLED_PER_SIDE + 1) + 2  # behind <im_end> <im_start>
    positions = [whole]
    for i in range(tiling_h):
        kept_rows = _kept(side, index=i, count=tiling_h)
        for j in range(tiling_w):
            kept = kept_rows[:, None] & _kept(side, index=j, count=tiling_w)
            place = second_grid + (STRIDE_POOLED * i + side[:, None]) * (columns + 1) + STRIDE_POOLED * j + side
            positions.append(np.where(kept, place, DROPPED))
    return np.stack(positions).reshape(len(positions), -1)


def _kept(side: IntArray, *, index: int, count: int) -> npt.NDArray[np.bool_]:
    """Tell which of a cell's 12 feature rows (or columns) are kept."""
    from_start = (side >= OVERLAP_POOLED) | (index == 0)
    to_end = (side < POOLED_PER_SIDE - OVERLAP_POOLED) | (index == count - 1)
    return from_start & to_end
