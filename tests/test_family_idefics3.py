"""Idefics3: what is predicted for a size is what transformers' processor makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.idefics3 import FAMILY, GEOMETRY
from vlmeter.models.families.splitting import SplittingGeometry

from .support.processors import FREE, differences, kinds, random_sizes, sane_sizes, splitting_tokenizer


def processor_for(geometry: SplittingGeometry) -> Any:
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    images = Idefics3ImageProcessorPil(
        size={"longest_edge": geometry.longest_edge_px},
        max_image_size={"longest_edge": geometry.tile_px},
        do_image_splitting=geometry.split,
    )
    return Idefics3Processor(images, splitting_tokenizer(), image_seq_len=geometry.tokens_per_tile)


# --- geometry ----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_three_hundred_sizes_are_predicted_as_the_processor_makes_them() -> None:
    assert differences(GEOMETRY, processor_for(GEOMETRY), random_sizes(300, seed=3), image_token="<image>") == []


@pytest.mark.parametrize(
    "changed",
    [
        {"longest_edge_px": 1000},  # no multiple of the tile: the shorter side may round up by one tile more
        {"longest_edge_px": 364},  # nothing to cut
        {"longest_edge_px": 6000},  # past what the preprocessor accepts: scaled back to 4,096 px
        {"split": False},
    ],
)
def test_other_settings_are_predicted_as_the_processor_makes_them(changed: dict[str, Any]) -> None:
    geometry = replace(GEOMETRY, **changed)
    sizes = random_sizes(60, seed=4)
    assert differences(geometry, processor_for(geometry), sizes, image_token="<image>") == []
    assert kinds(geometry, sane_sizes(2000, seed=1)) <= kinds(geometry, geometry.candidates(options=FREE))


def test_only_four_counts_are_reachable_and_only_the_aspect_ratio_matters() -> None:
    candidates = list(GEOMETRY.candidates(options=FREE))
    assert kinds(GEOMETRY, candidates) == {(169 * (4 * n + 1), 4 * n + 1) for n in (1, 2, 3, 4)}
    assert kinds(GEOMETRY, sane_sizes(3000, seed=1)) == kinds(GEOMETRY, candidates)
    small, large = (GEOMETRY.image_tokens(*size, options=FREE) for size in [(16, 9), (3200, 1800)])
    assert (small.crops, small.vision_tokens) == (large.crops, large.vision_tokens)


def test_markers_positions_and_line_breaks_are_special_tokens() -> None:
    tokens = GEOMETRY.image_tokens(1456, 728, options=FREE)
    assert tokens.layout == {"tiling_h": 2, "tiling_w": 4}
    # A marker and a position per tile; a line break after the first row, a double one after the last; and three.
    assert tokens.special_tokens == 2 * 8 + 1 + 1 + 3
    apart = replace(GEOMETRY, line_break_pair_tokens=2).image_tokens(1456, 728, options=FREE)
    assert apart.special_tokens == tokens.special_tokens + 1, "a tokenizer that keeps two line breaks apart"


def test_every_tiling_has_its_exact_size() -> None:
    tilings = GEOMETRY.tilings(options=FREE)
    assert tilings == [(1, 4), (4, 1), (2, 4), (4, 2), (3, 4), (4, 3), (4, 4)]
    for rows, columns in tilings:
        size = GEOMETRY.size_for_tiling((rows, columns), options=FREE)
        assert (size.width_px, size.height_px) == (364 * columns, 364 * rows)
        assert size.layout == {"tiling_h": rows, "tiling_w": columns}


def test_a_tiling_out_of_reach_is_refused_with_the_legal_ones() -> None:
    with pytest.raises(UserError, match=r"2x2 is out of reach for idefics3 with longest_edge 1,456 px.*legal: 1x4, "):
        GEOMETRY.size_for_tiling((2, 2), options=FREE)
    with pytest.raises(UserError, match="never cut"):
        replace(GEOMETRY, split=False).size_for_tiling((1, 4), options=FREE)


def test_an_image_that_loses_a_side_is_refused() -> None:
    thin = replace(GEOMETRY, longest_edge_px=1000)
    lost = [height for height in range(1, 40) if not _takes(thin, 4000, height)]
    assert lost == [], "a longest edge leaves every wide image at least a row"
    assert not _takes(GEOMETRY, 0, 10)


def _takes(geometry: SplittingGeometry, width: int, height: int) -> bool:
    try:
        geometry.image_tokens(width, height, options=FREE)
    except UnsupportedSize:
        return False
    return True


@pytest.mark.parametrize("options", [ImageOptions(max_crops=4), ImageOptions(force_tiling=(2, 2))])
def test_options_that_the_family_does_not_have_are_refused(options: ImageOptions) -> None:
    with pytest.raises(UserError, match=r"(max_crops: 4|force_tiling: 2x2) .* idefics3"):
        GEOMETRY.image_tokens(100, 100, options=options)


# --- what a checkpoint says --------------------------------------------------------------------------


def test_a_checkpoints_own_settings_are_read() -> None:
    settings = {**processor_for(GEOMETRY).image_processor.to_dict(), "image_seq_len": 169}
    other = replace(GEOMETRY, longest_edge_px=1, tile_px=1, tokens_per_tile=1, split=False)
    assert SplittingGeometry.from_config(settings, default=other) == GEOMETRY


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"size: \{'height': 3\} .* expected longest_edge"):
        SplittingGeometry.from_config({"size": {"height": 3}}, default=GEOMETRY)


def test_the_real_scale_is_made_of_the_published_parts() -> None:
    """Llama 3.1 8B, with three more rows in its two tables, and SigLIP SO400M without its pooling head."""
    parameters = FAMILY.scales["8b"].parameters
    language = sum(parameters[name] for name in ("embedding", "llm_blocks", "head"))
    assert language == 8_030_261_248 + 2 * 3 * 4096
    assert round(parameters["vision_encoder"] / 1e6) == 413
