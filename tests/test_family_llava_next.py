"""LLaVA-NeXT: what is predicted for a size is what transformers' processor makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.anyres import AnyresGeometry
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.llava_next import FAMILY, GEOMETRY
from vlmeter.models.families.native import NativeFamily

from .support.processors import FREE, differences, kinds, plain_tokenizer, random_sizes, sane_sizes


def geometry_of(settings: dict[str, Any]) -> AnyresGeometry:
    assert isinstance(FAMILY, NativeFamily)
    found = FAMILY.geometry_of(settings)
    assert isinstance(found, AnyresGeometry)
    return found


@pytest.fixture(scope="module")
def processor() -> Any:
    from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
    from transformers.models.llava_next.processing_llava_next import LlavaNextProcessor

    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 336},
        crop_size={"height": 336, "width": 336},
        image_grid_pinpoints=[list(canvas) for canvas in GEOMETRY.canvases],
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=plain_tokenizer(["<image>"]),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


# --- geometry ----------------------------------------------------------------------------------------


def test_three_hundred_sizes_are_predicted_as_the_processor_makes_them(processor: Any) -> None:
    assert differences(GEOMETRY, processor, random_sizes(300, seed=16), image_token="<image>") == []


def test_the_candidates_show_every_count_that_random_sizes_reach() -> None:
    candidates = list(GEOMETRY.candidates(options=FREE))
    assert len(candidates) == len(kinds(GEOMETRY, candidates)) == 114, "each pair of tokens and crops once"
    assert kinds(GEOMETRY, sane_sizes(5000, seed=1)) <= kinds(GEOMETRY, candidates)


def test_a_newline_ends_each_row_of_patches_and_counts_as_a_vision_token() -> None:
    # 576 for the whole image; 48 x 48 patches of the tiles and 48 newlines.
    tokens = GEOMETRY.image_tokens(672, 672, options=FREE)
    assert (tokens.crops, tokens.vision_tokens, tokens.special_tokens) == (5, 576 + 48 * 48 + 48, 0)


def test_padding_is_taken_off_in_pairs_of_patch_rows() -> None:
    counts = {GEOMETRY.image_tokens(672, height, options=FREE).vision_tokens for height in range(338, 672)}
    rows = {(count - 576) // 49 for count in counts}
    assert rows == set(range(24, 49, 2))


def test_every_tiling_has_the_size_that_fills_it() -> None:
    tilings = GEOMETRY.tilings(options=FREE)
    assert tilings == [(1, 2), (2, 1), (1, 3), (3, 1), (2, 2)]
    for rows, columns in tilings:
        size = GEOMETRY.size_for_tiling((rows, columns), options=FREE)
        assert (size.width_px, size.height_px) == (336 * columns, 336 * rows)
        assert size.layout == {"tiling_h": rows, "tiling_w": columns}
        assert size.vision_tokens == 576 + 24 * rows * (24 * columns + 1), "nothing is padding"


def test_a_tiling_without_a_canvas_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(UserError, match=r"3x2 .* llava_next; legal: 1x2, 2x1, 1x3, 3x1, 2x2"):
        GEOMETRY.size_for_tiling((3, 2), options=FREE)


def test_an_image_of_which_no_canvas_shows_anything_gets_the_smallest_canvas() -> None:
    tokens = GEOMETRY.image_tokens(1, 4000, options=FREE)
    assert (tokens.layout["tiling_h"], tokens.layout["tiling_w"]) == (1, 2)
    with pytest.raises(UnsupportedSize, match="at least 1 px"):
        GEOMETRY.image_tokens(0, 100, options=FREE)


@pytest.mark.parametrize("options", [ImageOptions(max_crops=4), ImageOptions(force_tiling=(2, 2))])
def test_options_that_the_family_does_not_have_are_refused(options: ImageOptions) -> None:
    for ask in (GEOMETRY.candidates, GEOMETRY.tilings, GEOMETRY.limit):
        with pytest.raises(UserError, match=r"(max_crops: 4|force_tiling: 2x2) .* llava_next"):
            ask(options=options)


# --- what a checkpoint says --------------------------------------------------------------------------


def test_a_checkpoints_own_settings_are_read(processor: Any) -> None:
    settings = {**processor.image_processor.to_dict(), "patch_size": 14, "num_additional_image_tokens": 1}
    settings["vision_feature_select_strategy"] = "default"
    other = replace(GEOMETRY, tile_px=1, tile_patches=1, canvases=((1, 1),))
    code = {"tile_px": 224, "crops_to_px": 224}
    assert type(GEOMETRY).from_config(settings, default=other, **code) == GEOMETRY
    nested = {"image_processor": processor.image_processor.to_dict(), "patch_size": 14}
    assert geometry_of(nested) == GEOMETRY


def test_what_the_settings_leave_out_is_as_in_the_published_code_which_has_no_patch_size() -> None:
    found = geometry_of({"patch_size": 14, "image_grid_pinpoints": [[224, 448]]})
    assert (found.tile_px, found.tile_patches) == (224, 16)
    with pytest.raises(UserError, match="patch_size: missing in the checkpoint's processor settings"):
        geometry_of({"image_processor": {"crop_size": 336, "patch_size": 14}})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_grid_pinpoints": [[336, 500]]}, r"image_grid_pinpoints: \[336, 500\] .* multiples of 336"),
        ({"image_grid_pinpoints": "large"}, "image_grid_pinpoints: 'large'"),
        ({"size": {"longest_edge": 336}}, "size: .* expected height or shortest_edge"),
        ({"patch_size": 0}, "patch_size: 0 .* at least 1"),
        ({"do_resize": False}, "do_resize: false"),
        ({"num_additional_image_tokens": 0, "vision_feature_select_strategy": "default"}, "drops 1 feature"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        geometry_of({"crop_size": 336, "patch_size": 14, **settings})


def test_the_real_scale_has_the_parameters_that_the_published_checkpoint_has() -> None:
    """As the hub counts them in the safetensors of llava-hf/llava-v1.6-mistral-7b-hf."""
    assert sum(FAMILY.scales["7b"].parameters.values()) == 7_566_747_648
