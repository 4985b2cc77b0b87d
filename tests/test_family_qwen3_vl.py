"""Qwen3-VL: patches of 16 px, and limits of its own; tests/test_family_qwen2_5_vl.py has the arithmetic."""

from __future__ import annotations

from typing import Any

import pytest
from transformers.models.qwen3_vl.processing_qwen3_vl import Qwen3VLProcessor

from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.qwen3_vl import FAMILY, Qwen3VLGeometry
from vlmeter.models.pretrained import image_processor_class

from .support.geometry import blank, byte_tokenizer, predicted, processor_without_video, random_sizes

IMAGE_PROCESSOR = image_processor_class("Qwen2VLImageProcessor")  # with torchvision or without
FREE = ImageOptions()
PUBLISHED = Qwen3VLGeometry()
SMALL = Qwen3VLGeometry(max_pixels=256 * 32 * 32)
SPECIAL = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
PROMPT = "<|vision_start|><|image_pad|><|vision_end|>What is this?"


@pytest.fixture(scope="module")
def processor() -> Any:
    size = {"shortest_edge": SMALL.min_pixels, "longest_edge": SMALL.max_pixels}
    image_processor = IMAGE_PROCESSOR(size=size, patch_size=16)
    return processor_without_video(Qwen3VLProcessor, image_processor, byte_tokenizer(SPECIAL))


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
    size = {"shortest_edge": PUBLISHED.min_pixels, "longest_edge": PUBLISHED.max_pixels}
    image_processor = IMAGE_PROCESSOR(size=size, patch_size=16)
    for width, height in random_sizes(1000, largest_area=4000**2, aspect_ratio=200):
        grid = PUBLISHED.image_tokens(width, height, options=FREE).layout
        patches = image_processor.get_number_of_image_patches(height, width)
        assert grid["grid_h"] * grid["grid_w"] == patches, (width, height)


@pytest.mark.parametrize("geometry", [PUBLISHED, SMALL])
def test_every_count_that_a_sane_image_can_have_is_among_the_candidates(geometry: Qwen3VLGeometry) -> None:
    candidates = geometry.candidates(options=FREE)
    reachable = {geometry.image_tokens(*size, options=FREE).vision_tokens for size in candidates}
    assert len(reachable) == len(candidates) < 10_000
    sizes = random_sizes(20_000, seed=1, largest_px=8000, largest_area=6e7, aspect_ratio=8)
    assert {geometry.image_tokens(*size, options=FREE).vision_tokens for size in sizes} <= reachable


def test_64_to_16384_tokens_are_within_the_published_limits() -> None:
    counts = [PUBLISHED.image_tokens(*size, options=FREE).vision_tokens for size in PUBLISHED.candidates(options=FREE)]
    assert (counts[0], counts[-1]) == (64, 16_384)
    assert PUBLISHED.image_tokens(1920, 1080, options=FREE).vision_tokens == 60 * 34


def test_the_published_file_is_read() -> None:
    published = {
        "size": {"longest_edge": 16_777_216, "shortest_edge": 65_536},
        "patch_size": 16,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    assert Qwen3VLGeometry.from_config(published) == PUBLISHED
    # What the file leaves out is Qwen2-VL's, because that is the class of its image processor.
    assert Qwen3VLGeometry.from_config({}) == Qwen3VLGeometry(14, 2, 3136, 1_003_520)


def test_the_real_scale_has_the_parameters_that_the_published_checkpoint_has() -> None:
    """As the hub counts them in the safetensors of Qwen/Qwen3-VL-8B-Instruct."""
    assert sum(FAMILY.scales["8b"].parameters.values()) == 8_767_123_696
