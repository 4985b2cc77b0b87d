"""Pictures and questions become the arrays that the original would have made of them."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from vlmeter.common.errors import UnsupportedSize
from vlmeter.models.molmo1.geometry import exact_size, geometry, tilings
from vlmeter.models.molmo1.processing import CLIP_MEAN, CLIP_STD, MolmoInputs, prepare_prompt
from vlmeter.models.molmo1.tokenizer import SpecialIds

from .support.molmo import GOLDEN

SPECIAL = SpecialIds(im_start=320, im_end=321, im_patch=322, im_col=323)


def _prepared(width_px: int, height_px: int, **options: object) -> MolmoInputs:
    image = Image.new("RGB", (width_px, height_px), (255, 0, 0))
    return prepare_prompt(image, [7, 8, 9], bos_token_id=2, special_ids=SPECIAL, **options)


@pytest.mark.parametrize("case", ["case_1x1", "case_1x2", "case_2x1"])
@pytest.mark.parametrize("flavour", GOLDEN)
def test_ids_masks_and_positions_are_those_of_the_original(flavour: str, case: str) -> None:
    golden = np.load(GOLDEN[flavour] / f"{case}.npz")
    width_px, height_px = golden["image_size_wh"].tolist()
    text = golden["input_ids"][-8:].tolist()
    image = Image.new("RGB", (width_px, height_px))
    inputs = prepare_prompt(image, text, bos_token_id=int(golden["input_ids"][0]), special_ids=SPECIAL)
    assert np.array_equal(inputs.input_ids, golden["input_ids"])
    assert np.array_equal(inputs.image_masks, golden["image_masks"])
    assert np.array_equal(inputs.image_input_idx, golden["image_input_idx"])
    assert inputs.images.shape == golden["images"].shape


@pytest.mark.parametrize("tiling", tilings(max_crops=12))
def test_counts_in_the_arrays_are_those_of_the_geometry(tiling: tuple[int, int]) -> None:
    size = exact_size(*tiling)
    counts, planned = _prepared(*size).counts(), geometry(*size)
    assert (counts.crops, counts.vision_tokens) == (planned.crops, planned.vision_tokens)
    assert counts.special_tokens == planned.special_tokens
    assert counts.text_tokens == 4  # three and the beginning of the sequence
    assert counts.prompt_tokens == planned.image_tokens + 4


def _positions_as_the_original_finds_them(tiling: tuple[int, int], ids: np.ndarray) -> np.ndarray:
    """Follow image_preprocessing_molmo.py: number kept features by cell, reorder them by row, look up."""
    rows, columns = tiling
    orders, on = [], 0
    for i in range(rows):
        for j in range(columns):
            y0, x0 = (0 if i == 0 else 2), (0 if j == 0 else 2)
            height = 8 + 2 * (i == 0) + 2 * (i == rows - 1)
            width = 8 + 2 * (j == 0) + 2 * (j == columns - 1)
            numbers = np.arange(on, on + height * width).reshape(height, width)
            orders.append(np.pad(numbers, [[y0, 12 - height - y0], [x0, 12 - width - x0]], constant_values=-1))
            on += height * width
    order = np.stack(orders).reshape(-1)
    by_row = np.stack(orders).reshape(rows, columns, 12, 12).transpose(0, 2, 1, 3).reshape(-1)
    kept = order >= 0
    order[kept] = by_row[by_row >= 0]
    order = np.concatenate([np.arange(144), np.where(order >= 0, order + 144, -1)])
    kept = order >= 0
    inverse = np.zeros(kept.sum(), dtype=int)
    inverse[order[kept]] = np.arange(kept.sum())
    patches = np.nonzero(ids == SPECIAL.im_patch)[0]
    positions = np.full(order.shape, -100)
    positions[kept] = patches[inverse]
    return positions.reshape(-1, 144)


@pytest.mark.parametrize("tiling", [(1, 1), (1, 3), (3, 1), (2, 2), (3, 4), (2, 5), (12, 1)])
def test_positions_in_closed_form_are_those_of_the_originals_bookkeeping(tiling: tuple[int, int]) -> None:
    inputs = _prepared(*exact_size(*tiling))
    expected = _positions_as_the_original_finds_them(tiling, inputs.input_ids)
    assert np.array_equal(inputs.image_input_idx, expected)


def test_a_tiling_can_be_forced_past_max_crops() -> None:
    counts = _prepared(100, 50, force_tiling=(4, 5)).counts()
    assert counts.crops == 21
    assert counts.vision_tokens == 144 + 36 * 44


def test_max_crops_limits_the_tiling() -> None:
    assert _prepared(1456, 1456, max_crops=4).counts().crops == 5
    assert _prepared(1456, 1456, max_crops=36).counts().crops == 37


def test_an_unscaled_picture_arrives_pixel_by_pixel() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (336, 560, 3), dtype=np.uint8)
    inputs = prepare_prompt(Image.fromarray(pixels), [], bos_token_id=2, special_ids=SPECIAL)
    expected = (pixels.astype(np.float32) / 255 - CLIP_MEAN) / CLIP_STD
    for crop, x0 in ((1, 0), (2, 224)):
        for patch in (0, 23, 24, 575):
            y, x = divmod(patch, 24)
            block = expected[14 * y : 14 * y + 14, x0 + 14 * x : x0 + 14 * x + 14]
            np.testing.assert_allclose(inputs.images[crop, patch], block.reshape(-1), atol=1e-5)
    assert inputs.image_masks[:2].min() == 1
    assert inputs.image_masks[2].max() == -1


def test_resizing_is_the_originals_antialiased_bilinear_filter() -> None:
    torch = pytest.importorskip("torch")
    pixels = np.random.default_rng(0).integers(0, 256, (500, 700, 3), dtype=np.uint8)
    inputs = prepare_prompt(Image.fromarray(pixels), [], bos_token_id=2, special_ids=SPECIAL, force_tiling=(1, 1))
    planes = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    resized = torch.nn.functional.interpolate(planes, (240, 336), mode="bilinear", antialias=True)[0]
    canvas = np.zeros((336, 336, 3), dtype=np.float32)
    canvas[48:288] = resized.permute(1, 2, 0).numpy()
    expected = ((canvas - CLIP_MEAN) / CLIP_STD).reshape(24, 14, 24, 14, 3).transpose(0, 2, 1, 3, 4)
    np.testing.assert_allclose(inputs.images[0], expected.reshape(576, 588), atol=1e-4)


def test_padding_shows_in_the_mask_of_the_crop_before() -> None:
    """The original appends the filling for the global crop, so that masks are off by one crop."""
    masks = _prepared(336, 168).image_masks
    assert masks[0].reshape(24, 24)[:, 0].tolist() == [0] * 6 + [1] * 12 + [0] * 6
    assert set(masks[1].tolist()) == {-1}


def test_a_turned_picture_is_set_upright_first() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: rotated by 90 degrees
    file = BytesIO()
    Image.new("RGB", (336, 560)).save(file, format="JPEG", exif=exif)
    inputs = prepare_prompt(Image.open(file), [], bos_token_id=2, special_ids=SPECIAL)
    upright = prepare_prompt(Image.new("RGB", (560, 336)), [], bos_token_id=2, special_ids=SPECIAL)
    assert np.array_equal(inputs.input_ids, upright.input_ids)


def test_grey_and_transparent_pictures_are_read_as_rgb() -> None:
    for mode in ("L", "RGBA", "P"):
        inputs = prepare_prompt(Image.new(mode, (336, 336)), [], bos_token_id=2, special_ids=SPECIAL)
        assert inputs.counts().crops == 2


def test_a_size_that_the_original_cannot_handle_is_refused() -> None:
    with pytest.raises(UnsupportedSize, match="4000x11"):
        _prepared(4000, 11)
