"""LLaVA-OneVision: what is predicted for a size is what transformers' processor makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from vlmeter.common.errors import UserError
from vlmeter.models.families.anyres import AnyresGeometry
from vlmeter.models.families.llava_onevision import FAMILY, GEOMETRY
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.pretrained import without_video

from .support.processors import FREE, differences, kinds, plain_tokenizer, random_sizes, sane_sizes


def geometry_of(settings: dict[str, Any]) -> AnyresGeometry:
    assert isinstance(FAMILY, NativeFamily)
    found = FAMILY.geometry_of(settings)
    assert isinstance(found, AnyresGeometry)
    return found


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
    from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor

    return without_video(LlavaOnevisionProcessor)(
        image_processor=LlavaOnevisionImageProcessorPil(),
        video_processor=None,
        tokenizer=plain_tokenizer(["<image>", "<video>"]),
        num_image_tokens=729,
        vision_feature_select_strategy="full",
    )


# --- geometry ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_hundred_sizes_are_predicted_as_the_processor_makes_them(processor: Any) -> None:
    assert differences(GEOMETRY, processor, random_sizes(300, seed=9), image_token="<image>") == []


def test_sizes_at_the_edges_are_predicted_as_the_processor_makes_them(processor: Any) -> None:
    assert differences(GEOMETRY, processor, random_sizes(40, seed=9), image_token="<image>") == []


def test_the_candidates_show_every_count_that_random_sizes_reach() -> None:
    candidates = list(GEOMETRY.candidates(options=FREE))
    assert len(candidates) == len(kinds(GEOMETRY, candidates)) == 712, "each pair of tokens and crops once"
    assert kinds(GEOMETRY, sane_sizes(5000, seed=1)) <= kinds(GEOMETRY, candidates)


def test_features_of_more_than_nine_tiles_are_scaled_down() -> None:
    within = GEOMETRY.size_for_tiling((3, 3), options=FREE)
    assert (within.crops, within.vision_tokens) == (10, 729 + 81 * 82)
    beyond = GEOMETRY.size_for_tiling((6, 6), options=FREE)
    assert (beyond.crops, beyond.vision_tokens) == (37, 729 + 81 * 82), "37 crops for the encoder, ten tiles of tokens"
    assert GEOMETRY.limit(options=FREE) == "image_grid_pinpoints up to 2,304x2,304 px and anyres_max_9"


def test_every_tiling_of_up_to_six_by_six_can_be_had() -> None:
    tilings = GEOMETRY.tilings(options=FREE)
    assert len(tilings) == 36
    for tiling in tilings:
        layout = GEOMETRY.size_for_tiling(tiling, options=FREE).layout
        assert (layout["tiling_h"], layout["tiling_w"]) == tiling


# --- what a checkpoint says --------------------------------------------------------------------------


def test_a_checkpoints_own_settings_are_read(processor: Any) -> None:
    settings = {**processor.image_processor.to_dict(), "num_image_tokens": 729, "vision_aspect_ratio": "anyres_max_9"}
    settings["vision_feature_select_strategy"] = "full"
    assert geometry_of(settings) == GEOMETRY


def test_how_many_patches_a_tile_has_the_settings_have_to_say() -> None:
    with pytest.raises(UserError, match="num_image_tokens: missing"):
        geometry_of({"image_processor": {}})


def test_an_unknown_way_of_keeping_the_aspect_ratio_is_refused() -> None:
    with pytest.raises(UserError, match=r"vision_aspect_ratio: 'square' .* anyres_max_N"):
        geometry_of({"vision_aspect_ratio": "square", "num_image_tokens": 729})


def test_the_real_scale_has_the_parameters_that_the_published_checkpoint_has() -> None:
    """As the hub counts them in the safetensors of llava-hf/llava-onevision-qwen2-7b-ov-hf."""
    assert sum(FAMILY.scales["7b"].parameters.values()) == 8_030_348_832
