"""InternVL: tiles, tokens and sizes agree with the real processor, forwards and backwards."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image
from transformers.models.internvl.processing_internvl import InternVLProcessor

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, LoadedModel, SubjectSpec
from vlmeter.models.families.internvl import FAMILY, InternVLGeometry
from vlmeter.models.pretrained import image_processor_class

from .support.geometry import blank, byte_tokenizer, predicted, processor_without_video, random_sizes

IMAGE_PROCESSOR = image_processor_class("GotOcr2ImageProcessor")  # with torchvision or without
NANO = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
FREE = ImageOptions()
PUBLISHED = InternVLGeometry()
#: Tiles of 28 px in place of 448, so that hundreds of images are really cut in seconds.
SMALL = InternVLGeometry(tile_px=28)
NAMED = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


def processor_of(geometry: InternVLGeometry) -> Any:
    image_processor = IMAGE_PROCESSOR(
        size={"height": geometry.tile_px, "width": geometry.tile_px},
        min_patches=geometry.min_tiles,
        max_patches=geometry.max_tiles,
    )
    tokenizer = byte_tokenizer(tuple(NAMED.values()), **NAMED)
    return processor_without_video(InternVLProcessor, image_processor, tokenizer, image_seq_length=geometry.tile_tokens)


@pytest.fixture(scope="module")
def processor() -> Any:
    return processor_of(SMALL)


def real(processor: Any, size: tuple[int, int], **options: int) -> tuple[int, int, int]:
    """Count (pictures, vision tokens, special tokens) in the real inputs."""
    inputs = processor(images=[blank(size)], text=["<IMG_CONTEXT>\nWhat is this?"], **options)
    tokenizer, ids = processor.tokenizer, list(inputs["input_ids"][0])
    vision, start, end = (
        ids.count(tokenizer.convert_tokens_to_ids(token)) for token in ("<IMG_CONTEXT>", "<img>", "</img>")
    )
    return len(inputs["pixel_values"]), vision, start + end


def test_300_random_sizes_are_cut_as_by_the_real_processor(processor: Any) -> None:
    sizes = list(random_sizes(300, largest_area=2e6))
    assert {size: predicted(SMALL, size, FREE) for size in sizes} == {size: real(processor, size) for size in sizes}


@pytest.mark.parametrize("geometry", [PUBLISHED, InternVLGeometry(max_tiles=6), InternVLGeometry(384, 144, 3, 20)])
def test_tiles_of_the_published_size_are_those_that_the_real_image_processor_announces(
    geometry: InternVLGeometry,
) -> None:
    processor = processor_of(geometry)
    for width, height in random_sizes(1000, largest_area=4000**2):
        announced = processor.image_processor.get_number_of_image_patches(height, width, {"crop_to_patches": True})
        assert geometry.image_tokens(width, height, options=FREE).crops == announced, (width, height)


@pytest.mark.parametrize("max_crops", [1, 2, 5, 24])
def test_max_crops_is_the_processors_max_patches(processor: Any, max_crops: int) -> None:
    options = ImageOptions(max_crops=max_crops)
    for size in random_sizes(40, seed=max_crops, largest_area=1e6):
        assert predicted(SMALL, size, options) == real(processor, size, max_patches=max_crops), size


@pytest.mark.parametrize("max_crops", [1, 4, 12, 24])
def test_every_tiling_has_a_size_that_selects_it(processor: Any, max_crops: int) -> None:
    options = ImageOptions(max_crops=max_crops)
    for rows, columns in SMALL.tilings(options=options):
        found = SMALL.size_for_tiling((rows, columns), options=options)
        assert found.layout == {"tiling_h": rows, "tiling_w": columns}
        assert found == SMALL.image_tokens(found.width_px, found.height_px, options=options)
        assert found.crops == (rows * columns + 1 if rows * columns > 1 else 1)
        assert found.vision_tokens == 256 * found.crops
        size = (found.width_px, found.height_px)
        assert real(processor, size, max_patches=max_crops) == (found.crops, found.vision_tokens, 2)


def test_twelve_tiles_allow_35_tilings_whose_sizes_are_whole_tiles() -> None:
    tilings = PUBLISHED.tilings(options=FREE)
    assert len(tilings) == len(set(tilings)) == 35
    for rows, columns in tilings:
        found = PUBLISHED.size_for_tiling((rows, columns), options=FREE)
        assert (found.width_px, found.height_px) == (448 * columns, 448 * rows)


def test_a_size_of_whole_tiles_that_the_original_cuts_finer_is_made_smaller() -> None:
    """3x3 tiles fill more than half of 4x4, which the original prefers where it may."""
    options = ImageOptions(max_crops=16)
    assert PUBLISHED.image_tokens(3 * 448, 3 * 448, options=options).crops == 17
    found = PUBLISHED.size_for_tiling((3, 3), options=options)
    assert (found.crops, found.width_px, found.height_px) == (10, 1266, 1266)


def test_every_pair_of_tokens_and_crops_is_among_the_candidates() -> None:
    for max_crops in (1, 6, 12, 30):
        options = ImageOptions(max_crops=max_crops)
        candidates = PUBLISHED.candidates(options=options)
        reachable = {predicted(PUBLISHED, size, options) for size in candidates}
        assert len(candidates) == len(PUBLISHED.tilings(options=options))
        assert {predicted(PUBLISHED, size, options) for size in random_sizes(3000, seed=max_crops)} <= reachable


def test_a_tiling_out_of_reach_names_the_limit() -> None:
    with pytest.raises(UserError, match="tiling: 4x4 is out of reach of max_crops 12"):
        PUBLISHED.size_for_tiling((4, 4), options=FREE)
    with pytest.raises(UserError, match="max_crops: 2 is too few for this checkpoint; legal from 4 on"):
        InternVLGeometry(min_tiles=4).tilings(options=ImageOptions(max_crops=2))


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(UnsupportedSize, match="0x5 is not a size"):
        PUBLISHED.image_tokens(0, 5, options=FREE)


def test_the_published_files_are_read() -> None:
    published = {
        "crop_to_patches": False,
        "min_patches": 1,
        "max_patches": 12,
        "size": {"height": 448, "width": 448},
        "image_seq_length": 256,
    }
    assert InternVLGeometry.from_config(published) == PUBLISHED
    nested = {"image_seq_length": 64, "image_processor": {"size": {"height": 224, "width": 224}, "max_patches": 6}}
    assert InternVLGeometry.from_config(nested) == InternVLGeometry(224, 64, 1, 6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": {"height": 448, "width": 224}}, "size: .* is not understood"),
        ({"size": {"shortest_edge": 448}}, "size: .* is not understood"),
        ({"max_patches": 0}, "max_patches: 0"),
        ({"min_patches": 5, "max_patches": 3}, "min_patches: 5 .* above max_patches, 3"),
        ({"image_seq_length": "many"}, "image_seq_length: 'many'"),
    ],
)
def test_nonsense_in_a_checkpoints_file_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        InternVLGeometry.from_config(config)


# --- options reach the processor -------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return FAMILY.load(NANO, device="cpu")


@pytest.mark.parametrize("max_crops", [1, 3, 20])
def test_max_crops_limits_the_tiles_of_the_real_inputs(loaded: LoadedModel, max_crops: int) -> None:
    options = ImageOptions(max_crops=max_crops)
    planned = FAMILY.geometry(NANO).image_tokens(1000, 300, options=options)
    counts = loaded.prepare(blank((1000, 300)), "why?", text_tokens=None, options=options).counts
    assert (counts.crops, counts.vision_tokens) == (planned.crops, planned.vision_tokens)
    assert counts.crops <= max_crops + 1


@pytest.mark.parametrize("tiling", [(1, 1), (1, 2), (2, 2), (3, 1), (4, 5)])
def test_a_forced_tiling_is_imposed_on_any_image(loaded: LoadedModel, tiling: tuple[int, int]) -> None:
    options = ImageOptions(force_tiling=tiling)
    planned = FAMILY.geometry(NANO).image_tokens(640, 480, options=options)
    inputs = loaded.prepare(blank((640, 480)), "why?", text_tokens=None, options=options)
    rows, columns = tiling
    assert planned.layout == {"tiling_h": rows, "tiling_w": columns}
    assert inputs.counts.crops == planned.crops == (rows * columns + 1 if rows * columns > 1 else 1)
    assert inputs.counts.vision_tokens == planned.vision_tokens
    assert FAMILY.geometry(NANO).tilings(options=options) == [tiling]
    assert FAMILY.geometry(NANO).size_for_tiling(tiling, options=options).layout == planned.layout


def test_a_forced_tiling_shows_the_tiles_in_reading_order(loaded: LoadedModel) -> None:
    """Left half black, right half white, forced into one row of two: a black tile, a white one, and both small."""
    image = Image.new("RGB", (500, 100), "black")
    image.paste("white", (250, 0, 500, 100))
    inputs = loaded.prepare(image, "why?", text_tokens=None, options=ImageOptions(force_tiling=(1, 2)))
    left, right, thumbnail = (tile.mean().item() for tile in inputs.tensors["pixel_values"])
    assert left < thumbnail < right


def test_the_real_scale_is_made_of_the_published_parts() -> None:
    """Qwen2.5-7B, with another number of rows in its two tables, and InternViT-300M."""
    parameters = FAMILY.scales["8b"].parameters
    language = sum(parameters[name] for name in ("embedding", "llm_blocks", "head"))
    assert language == 7_615_616_512 - 2 * (152_064 - 151_674) * 3584
    assert round(parameters["vision_encoder"] / 1e6) == 304
