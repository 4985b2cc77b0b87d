"""Qwen2.5-VL (and the arithmetic that it shares with Qwen3-VL): the plan's counts are those of the real processor."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from transformers.models.qwen2_5_vl.processing_qwen2_5_vl import Qwen2_5_VLProcessor

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, SubjectSpec
from vlmeter.models.families.geometry import LONGEST_SIDE_PX
from vlmeter.models.families.qwen2_5_vl import FAMILY, Qwen25VLGeometry
from vlmeter.models.pretrained import image_processor_class

from .support.geometry import blank, byte_tokenizer, predicted, processor_without_video, random_sizes

IMAGE_PROCESSOR = image_processor_class("Qwen2VLImageProcessor")  # with torchvision or without
NANO = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
FREE = ImageOptions()
PUBLISHED = Qwen25VLGeometry()
#: The same rules at a sixtieth of the pixels, so that hundreds of images are really resized in seconds.
SMALL = Qwen25VLGeometry(max_pixels=256 * 28 * 28)
DEFAULT_SIZE = dict(IMAGE_PROCESSOR.size)
SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
PROMPT = "<|vision_start|><|image_pad|><|vision_end|>What is this?"


@pytest.fixture(scope="module")
def processor() -> Any:
    image_processor = IMAGE_PROCESSOR(size={"shortest_edge": 56 * 56, "longest_edge": 256 * 28 * 28})
    return processor_without_video(Qwen2_5_VLProcessor, image_processor, byte_tokenizer(SPECIAL))


def real(processor: Any, size: tuple[int, int]) -> tuple[int, int, int] | None:
    """Count (pictures, vision tokens, special tokens) in the real inputs; None where the processor refuses."""
    try:
        inputs = processor(images=[blank(size)], text=[PROMPT])
    except ValueError:
        return None
    tokenizer, ids = processor.tokenizer, list(inputs["input_ids"][0])
    vision, start, end = (ids.count(tokenizer.convert_tokens_to_ids(SPECIAL[n])) for n in (0, 2, 3))
    assert len(inputs["pixel_values"]) == 4 * vision
    return len(inputs["image_grid_thw"]), vision, start + end


def test_300_random_sizes_give_the_tokens_that_the_real_processor_puts_into_the_prompt(processor: Any) -> None:
    sizes = list(random_sizes(300, largest_area=2e6))
    assert {size: predicted(SMALL, size, FREE) for size in sizes} == {size: real(processor, size) for size in sizes}


def test_the_published_limits_give_the_patches_that_the_real_image_processor_announces() -> None:
    image_processor = IMAGE_PROCESSOR(
        size={"shortest_edge": PUBLISHED.min_pixels, "longest_edge": PUBLISHED.max_pixels}
    )
    for width, height in random_sizes(1000, largest_area=4000**2, aspect_ratio=200):
        grid = PUBLISHED.image_tokens(width, height, options=FREE).layout
        patches = image_processor.get_number_of_image_patches(height, width)
        assert grid["grid_h"] * grid["grid_w"] == patches, (width, height)


def test_a_whole_grid_of_28_px_squares_is_taken_as_it_is(processor: Any) -> None:
    for rows, columns in [(2, 2), (3, 7), (16, 16), (1, 8), (13, 2)]:
        size = (28 * columns, 28 * rows)
        assert predicted(SMALL, size, FREE) == real(processor, size) == (1, rows * columns, 2)


def test_a_strip_longer_than_200_to_1_is_refused_as_by_the_original(processor: Any) -> None:
    assert predicted(SMALL, (2000, 10), FREE) == real(processor, (2000, 10)) is not None
    assert real(processor, (2001, 10)) is None
    with pytest.raises(UnsupportedSize, match=r"2001x10 is too elongated for qwen2_5_vl.* above 200"):
        SMALL.image_tokens(2001, 10, options=FREE)


@pytest.mark.parametrize("size", [(0, 10), (10, -1), (LONGEST_SIDE_PX + 1, 10)])
def test_what_is_no_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(UnsupportedSize, match=f"{size[0]}x{size[1]} is"):
        SMALL.image_tokens(*size, options=FREE)


@pytest.mark.parametrize(
    "geometry",
    [PUBLISHED, SMALL, Qwen25VLGeometry(max_pixels=1280 * 28 * 28), Qwen25VLGeometry(28, 1, 200_000, 230_000)],
)
def test_every_count_that_a_sane_image_can_have_is_among_the_candidates(geometry: Qwen25VLGeometry) -> None:
    candidates = geometry.candidates(options=FREE)
    reachable = {geometry.image_tokens(*size, options=FREE).vision_tokens for size in candidates}
    assert len(reachable) == len(candidates) < 10_000
    sizes = random_sizes(20_000, seed=1, largest_px=8000, largest_area=6e7, aspect_ratio=8)
    assert {geometry.image_tokens(*size, options=FREE).vision_tokens for size in sizes} <= reachable


def test_candidates_are_the_squarest_sizes_that_need_no_scaling() -> None:
    by_tokens = {
        PUBLISHED.image_tokens(*size, options=FREE).vision_tokens: size for size in PUBLISHED.candidates(options=FREE)
    }
    assert list(by_tokens) == sorted(by_tokens)
    assert (len(by_tokens), min(by_tokens), max(by_tokens)) == (7654, 4, 16_384)
    assert by_tokens[256] == (16 * 28, 16 * 28)
    assert by_tokens[1000] == (40 * 28, 25 * 28)
    assert all(height <= width <= 8 * height for width, height in by_tokens.values())


def test_eleven_tokens_are_reached_by_an_image_that_is_rounded_to_a_strip(processor: Any) -> None:
    """11 is prime, and 11 to 1 is no sane image; one of 7.1 to 1 is rounded to it."""
    (size,) = (
        size for size in SMALL.candidates(options=FREE) if SMALL.image_tokens(*size, options=FREE).vision_tokens == 11
    )
    assert size == (295, 41)
    assert real(processor, size) == (1, 11, 2)


def test_nothing_is_cut() -> None:
    assert PUBLISHED.tilings(options=FREE) == []
    with pytest.raises(UserError, match="tiling: 2x3 is out of reach of qwen2_5_vl, which cuts no image"):
        PUBLISHED.size_for_tiling((2, 3), options=FREE)
    with pytest.raises(UserError, match="max_crops: 4 means nothing to qwen2_5_vl"):
        PUBLISHED.image_tokens(28, 28, options=ImageOptions(max_crops=4))
    with pytest.raises(UserError, match="force_tiling: 1x2 cannot be imposed on qwen2_5_vl"):
        PUBLISHED.candidates(options=ImageOptions(force_tiling=(1, 2)))


def test_the_limit_names_the_key_that_sets_it() -> None:
    assert "max_pixels 12,845,056" in PUBLISHED.limit(options=FREE)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, Qwen25VLGeometry(14, 2, 3136, 1_003_520)),
        ({"min_pixels": 3136, "max_pixels": 12_845_056, "patch_size": 14, "merge_size": 2}, PUBLISHED),
        ({"size": {"shortest_edge": 65_536, "longest_edge": 131_072}}, Qwen25VLGeometry(14, 2, 65_536, 131_072)),
        ({"size": {"shortest_edge": 1, "longest_edge": 9_999}, "max_pixels": 5000}, Qwen25VLGeometry(14, 2, 1, 5000)),
        ({"image_processor": {"patch_size": 16, "max_pixels": None}}, Qwen25VLGeometry(16, 2, 3136, 1_003_520)),
    ],
)
def test_a_checkpoints_file_is_read_as_transformers_reads_it(
    config: dict[str, Any], expected: Qwen25VLGeometry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Some versions of transformers write an instance's limits into the class.
    monkeypatch.setattr(IMAGE_PROCESSOR, "size", dict(DEFAULT_SIZE))
    assert Qwen25VLGeometry.from_config(config) == expected
    settings = {key: value for key, value in config.get("image_processor", config).items() if value is not None}
    theirs = IMAGE_PROCESSOR(**settings)
    assert (theirs.patch_size, theirs.merge_size) == (expected.patch_px, expected.merge)
    assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == (expected.min_pixels, expected.max_pixels)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"max_pixels": -5}, "max_pixels: -5 .* must be a whole number of at least 1"),
        ({"patch_size": True}, "patch_size: True"),
        ({"size": 7}, "size: 7 .* must be a mapping"),
        ({"min_pixels": 10, "max_pixels": 9}, "min_pixels: 10 .* above max_pixels"),
        ({"do_resize": False}, "do_resize: false"),
    ],
)
def test_nonsense_in_a_checkpoints_file_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Qwen25VLGeometry.from_config(config)


def test_the_first_candidates_are_these_in_every_run() -> None:
    assert list(islice(PUBLISHED.candidates(options=FREE), 5)) == [(56, 56), (140, 28), (84, 56), (196, 28), (112, 56)]


def test_a_block_with_windows_attends_to_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why its vision encoder takes the time it takes; docs/families.md says so."""
    loaded = FAMILY.load(NANO, device="cpu")
    inputs = loaded.prepare(blank((896, 896)), "why?", text_tokens=None, options=FREE)
    calls: list[int] = []
    attend = torch.nn.functional.scaled_dot_product_attention

    def counted(query: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        calls.append(query.shape[2])
        return attend(query, *arguments, **named)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    with torch.inference_mode():
        loaded.vision(inputs.tensors)
    assert calls == [8 * 8] * 64 + [64 * 64], "a block with windows of 8 x 8 patches, and one without"


def test_the_real_scale_has_the_parameters_that_the_published_checkpoint_has() -> None:
    """As the hub counts them in the safetensors of Qwen/Qwen2.5-VL-7B-Instruct."""
    assert sum(FAMILY.scales["7b"].parameters.values()) == 8_292_166_656
