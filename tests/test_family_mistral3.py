"""Mistral3: what is predicted for a size is what transformers' processor makes of it."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from vlmeter.common.errors import UnsupportedSize
from vlmeter.models.families.base import SubjectSpec
from vlmeter.models.families.mistral3 import FAMILY, GEOMETRY
from vlmeter.models.families.processors import processor_class

from .support.processors import FREE, differences, kinds, plain_tokenizer, random_sizes, sane_sizes


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    images = PixtralImageProcessorPil(size={"longest_edge": 1540}, patch_size=14)
    tokenizer = plain_tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    return processor_class("PixtralProcessor")(images, tokenizer, patch_size=14, spatial_merge_size=2)


# --- geometry ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_hundred_sizes_are_predicted_as_the_processor_makes_them(processor: Any) -> None:
    sizes = [size for size in random_sizes(350, seed=31) if max(size) > 28]  # below, it is the model that fails
    assert len(sizes) >= 300
    assert differences(GEOMETRY, processor, sizes, image_token="[IMG]") == []


def test_every_count_of_tokens_has_one_candidate_and_random_sizes_reach_no_other() -> None:
    candidates = list(GEOMETRY.candidates(options=FREE))
    assert len(kinds(GEOMETRY, candidates)) == len(candidates)
    assert max(kinds(GEOMETRY, candidates)) == (55 * 55, 1)
    assert kinds(GEOMETRY, sane_sizes(5000, seed=1)) <= kinds(GEOMETRY, candidates)


def test_a_single_token_is_refused_because_the_model_fails_with_it() -> None:
    spec = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
    loaded = FAMILY.load(spec, device="cpu")
    for size, works in {(28, 28): False, (29, 28): True}.items():
        inputs = loaded.prepare(Image.new("RGB", size), "why?", text_tokens=None, options=FREE)
        if works:
            assert GEOMETRY.image_tokens(*size, options=FREE).vision_tokens == inputs.counts.vision_tokens == 2
            loaded.prefill(inputs.tensors)
        else:
            assert inputs.counts.vision_tokens == 1
            with pytest.raises(RuntimeError, match="split_with_sizes"):
                loaded.prefill(inputs.tensors)
            with pytest.raises(UnsupportedSize, match=r"28x28 becomes 1 vision token.* fails with fewer than 2"):
                GEOMETRY.image_tokens(*size, options=FREE)


def test_four_patches_of_the_encoder_make_one_token() -> None:
    tokens = GEOMETRY.image_tokens(28 * 8, 28 * 4, options=FREE)
    assert (tokens.vision_tokens, tokens.special_tokens) == (32, 4)


def test_the_real_scale_has_the_parameters_that_the_published_checkpoint_has() -> None:
    """As the hub counts them in the safetensors of mistralai/Mistral-Small-3.1-24B-Instruct-2503."""
    assert sum(FAMILY.scales["24b"].parameters.values()) == 24_011_361_280
