"""Pixtral: what is predicted for a size is what transformers' processor makes of it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, SubjectSpec
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.patch_rows import PatchRowsGeometry
from vlmeter.models.families.pixtral import FAMILY, GEOMETRY
from vlmeter.models.families.processors import processor_class

from .support.native import write_native_checkpoint
from .support.processors import FREE, differences, kinds, plain_tokenizer, random_sizes, sane_sizes


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

    tokenizer = plain_tokenizer(["[IMG]", "[IMG_BREAK]", "[IMG_END]"])
    return processor_class("PixtralProcessor")(PixtralImageProcessorPil(), tokenizer, patch_size=16)


def test_the_processor_is_transformers_own_and_the_stand_in_is_gone(processor: Any) -> None:
    assert type(processor).__module__ == "transformers.models.pixtral.processing_pixtral"
    stands_in = sys.modules.get("transformers.models.pixtral.image_processing_pixtral")
    assert stands_in is None or stands_in.__name__.endswith(".image_processing_pixtral")


# --- geometry ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_hundred_sizes_are_predicted_as_the_processor_makes_them(processor: Any) -> None:
    assert differences(GEOMETRY, processor, random_sizes(300, seed=12), image_token="[IMG]") == []


def test_every_count_of_tokens_has_one_candidate_and_random_sizes_reach_no_other() -> None:
    candidates = list(GEOMETRY.candidates(options=FREE))
    counts = [GEOMETRY.image_tokens(*size, options=FREE).vision_tokens for size in candidates]
    assert counts == sorted(set(counts))
    assert (counts[0], counts[-1]) == (1, 64 * 64)
    assert kinds(GEOMETRY, sane_sizes(5000, seed=1)) <= kinds(GEOMETRY, candidates)


def test_a_candidate_is_the_most_square_size_of_whole_patches() -> None:
    by_count = {
        GEOMETRY.image_tokens(*size, options=FREE).vision_tokens: size for size in GEOMETRY.candidates(options=FREE)
    }
    assert by_count[1024] == (512, 512)
    assert by_count[48] == (8 * 16, 6 * 16)
    assert 67 not in by_count, "a prime above 64 is one row of more patches than the longest edge has"


def test_a_token_ends_each_row_and_receives_no_feature() -> None:
    tokens = GEOMETRY.image_tokens(640, 480, options=FREE)
    assert (tokens.crops, tokens.vision_tokens, tokens.special_tokens) == (1, 40 * 30, 30)
    assert tokens.layout == {"grid_h": 30, "grid_w": 40}


def test_an_image_that_loses_a_side_is_refused() -> None:
    with pytest.raises(UnsupportedSize, match="4000x3 is too elongated for pixtral"):
        GEOMETRY.image_tokens(4000, 3, options=FREE)


def test_there_is_nothing_to_tile() -> None:
    assert GEOMETRY.tilings(options=FREE) == []
    with pytest.raises(UserError, match="2x2 means nothing to pixtral"):
        GEOMETRY.size_for_tiling((2, 2), options=FREE)
    for options in (ImageOptions(max_crops=4), ImageOptions(force_tiling=(2, 2))):
        with pytest.raises(UserError, match="pixtral"):
            GEOMETRY.image_tokens(100, 100, options=options)


def test_an_odd_longest_edge_leaves_a_last_patch_that_is_rounded_up() -> None:
    geometry = replace(GEOMETRY, longest_edge_px=1000)
    largest = list(geometry.candidates(options=FREE))[-1]
    assert largest == (1000, 1000)
    assert geometry.image_tokens(*largest, options=FREE).vision_tokens == 63 * 63
    assert geometry.limit(options=FREE) == "longest_edge 1,000 px, with 16 px to a token's side"


# --- what a checkpoint says --------------------------------------------------------------------------


def test_a_checkpoints_own_settings_are_read(processor: Any) -> None:
    settings = {**processor.image_processor.to_dict(), "patch_size": 16, "spatial_merge_size": 1}
    other = replace(GEOMETRY, token_px=1, longest_edge_px=1)
    assert PatchRowsGeometry.from_config(settings, default=other) == GEOMETRY
    nested = {"image_processor": {"patch_size": {"height": 14, "width": 14}}, "spatial_merge_size": 2}
    assert PatchRowsGeometry.from_config(nested, default=other).token_px == 32, "the processor's own patch of 16 px"
    own = {**nested, "patch_size": 14}
    assert PatchRowsGeometry.from_config(own, default=other).token_px == 28


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match="patch_size: 'large'"):
        PatchRowsGeometry.from_config({"patch_size": "large"}, default=GEOMETRY)


def test_another_llava_than_pixtrals_is_refused(tmp_path: Path) -> None:
    nano = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
    assert isinstance(FAMILY, NativeFamily)
    folder = write_native_checkpoint(FAMILY, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["model_type"] = "clip_vision_model"
    (folder / "config.json").write_text(json.dumps(config))
    spec = replace(nano, preset=None, weights=str(folder))
    with pytest.raises(
        UserError, match=r"vision encoder 'clip_vision_model', .* with 'pixtral'; .* family generic may"
    ):
        FAMILY.geometry(spec)
    with pytest.raises(UserError, match="'clip_vision_model'"):
        FAMILY.load(spec, device="cpu")


def test_the_real_scale_is_made_of_the_published_parts() -> None:
    """Mistral NeMo, whose checkpoint has 12,247,782,400 parameters, and an encoder of 400 million."""
    parameters = FAMILY.scales["12b"].parameters
    assert sum(parameters[name] for name in ("embedding", "llm_blocks", "head")) == 12_247_782_400
    assert round(parameters["vision_encoder"] / 1e8) == 4
