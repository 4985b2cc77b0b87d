"""Exact control: the size that is found makes exactly the count that was asked for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, ImageTokens, SubjectSpec
from vlmeter.models.families.molmo import MolmoGeometry
from vlmeter.models.families.registry import get_family
from vlmeter.models.image_sizes import evenly_spaced, reachable, sizes_for
from vlmeter.models.molmo1.geometry import exact_size, tilings

MOLMO = MolmoGeometry()
FREE = ImageOptions()


def molmo_sizes(*, max_crops: int | None = None, **wanted: int) -> list[ImageTokens]:
    return sizes_for(MOLMO, options=ImageOptions(max_crops=max_crops), **wanted)  # type: ignore[arg-type]


def tilings_of(images: list[ImageTokens]) -> list[tuple[int, int]]:
    return [(image.layout["tiling_h"], image.layout["tiling_w"]) for image in images]


@dataclass(frozen=True)
class Patches:
    """A family without crops: one token per 10 px square, of which it takes at most 40, and no side beyond 100 px."""

    layout_columns: tuple[str, ...] = ()

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        if max(width_px, height_px) > 100:
            raise UnsupportedSize(f"{width_px}x{height_px} is too long")
        return ImageTokens(width_px, height_px, 1, min(40, (width_px // 10) * (height_px // 10)), 2)

    def candidates(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        return [(10 * a, 10 * b) for a in range(1, 12) for b in range(1, 12)]

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        return []

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        raise UserError("no tilings")

    def limit(self, *, options: ImageOptions) -> str:
        return "at most 40 squares"


def test_molmo_reaches_17_token_counts_with_12_crop_counts() -> None:
    images = reachable(MOLMO, options=FREE)
    counts = sorted({image.vision_tokens for image in images})
    assert (len(images), len(counts), counts[0], counts[-1]) == (35, 17, 288, 1344)
    assert sorted({image.crops for image in images}) == list(range(2, 14))


@pytest.mark.parametrize(("vision_tokens", "crops"), [(864, {8, 9}), (1152, {11, 13})])
def test_some_token_counts_are_reached_with_two_crop_counts(vision_tokens: int, crops: set[int]) -> None:
    assert {image.crops for image in molmo_sizes(vision_tokens=vision_tokens)} == crops


@given(st.integers(1, 40))
def test_sizes_for_a_reachable_count_are_all_the_tilings_with_that_count(max_crops: int) -> None:
    images = reachable(MOLMO, options=ImageOptions(max_crops=max_crops))
    for tokens in {image.vision_tokens for image in images}:
        assert set(tilings_of(molmo_sizes(vision_tokens=tokens, max_crops=max_crops))) == {
            (i, j) for i, j in tilings(max_crops=max_crops) if 144 + (8 * i + 4) * (8 * j + 4) == tokens
        }
    for crops in {image.crops for image in images}:
        assert {image.crops for image in molmo_sizes(crops=crops, max_crops=max_crops)} == {crops}


def test_tokens_and_crops_together_narrow_the_choice() -> None:
    assert tilings_of(molmo_sizes(vision_tokens=864)) == [(1, 7), (7, 1), (2, 4), (4, 2)]
    assert tilings_of(molmo_sizes(vision_tokens=864, crops=9)) == [(2, 4), (4, 2)]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"vision_tokens": 500}, "vision_tokens 500 with max_crops 12.*480 below and 544 above; no larger max_crops"),
        ({"vision_tokens": 10}, "vision_tokens 10 .*nearest is 288 above; no larger"),
        ({"vision_tokens": 1440}, "nearest is 1344 below; max_crops 13 or more"),
        ({"vision_tokens": 1376}, "nearest is 1344 below; max_crops 15 or more"),
        ({"crops": 1}, "crops 1 .*nearest is 2 above; no larger"),
        ({"crops": 20}, "crops 20 with max_crops 12.*nearest is 13 below; max_crops 19 or more"),
        ({"vision_tokens": 864, "crops": 10}, "vision_tokens 864 in crops 10 .*nearest is 9 below; no larger"),
        ({"vision_tokens": 1344, "crops": 15}, "nearest is 13 below; max_crops 14 or more"),
        ({"vision_tokens": 500, "crops": 10}, "480 below and 544 above; no larger"),
        ({"vision_tokens": 10**30 + 57}, "no larger max_crops up to 4096"),
        ({"crops": 10**30 + 57}, "no larger max_crops up to 4096"),
    ],
)
def test_an_unreachable_count_names_the_nearest_the_limit_and_the_remedy(wanted: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        molmo_sizes(**wanted)


@given(st.integers(1, 10_000), st.integers(1, 40))
def test_the_max_crops_that_is_named_is_the_smallest_that_works(vision_tokens: int, max_crops: int) -> None:
    try:
        molmo_sizes(vision_tokens=vision_tokens, max_crops=max_crops)
    except UserError as refusal:
        named = re.search(r"; max_crops (\d+) or more", str(refusal))
        if named:
            assert molmo_sizes(vision_tokens=vision_tokens, max_crops=int(named[1]))
            with pytest.raises(UserError):
                molmo_sizes(vision_tokens=vision_tokens, max_crops=int(named[1]) - 1)


def test_a_tiling_too_elongated_for_its_own_exact_size_is_not_offered() -> None:
    assert {(1, 504), (504, 1)}.isdisjoint(tilings_of(molmo_sizes(crops=505, max_crops=504)))


def test_no_count_is_refused() -> None:
    with pytest.raises(UserError, match="give vision_tokens, crops, or both"):
        molmo_sizes()


def test_the_size_nearest_to_a_square_is_taken_and_landscape_before_upright() -> None:
    (image,) = sizes_for(Patches(), vision_tokens=20, options=FREE)
    assert (image.width_px, image.height_px) == (50, 40)


def test_sizes_that_a_model_cannot_take_are_not_offered() -> None:
    with pytest.raises(UserError, match="vision_tokens 11 with at most 40 squares: nearest are 10 below and 12 above"):
        sizes_for(Patches(), vision_tokens=11, options=FREE)


def test_the_nearest_count_stands_in_on_request_the_lower_of_two() -> None:
    assert {i.vision_tokens for i in sizes_for(Patches(), vision_tokens=11, nearest=True, options=FREE)} == {10}
    assert {i.vision_tokens for i in sizes_for(MOLMO, vision_tokens=5000, nearest=True, options=FREE)} == {1344}
    assert {i.crops for i in sizes_for(MOLMO, crops=99, nearest=True, options=FREE)} == {13}


@given(st.integers(1, 30))
def test_counts_are_spread_over_the_whole_range_without_repeats(number: int) -> None:
    counts = [image.vision_tokens for image in evenly_spaced(MOLMO, number, options=FREE)]
    assert counts == sorted(set(counts))
    assert len(counts) == min(number, 17)
    assert counts[0] == 288
    if number > 1:
        assert counts[-1] == 1344


def test_counts_are_spread_evenly_where_they_lie_close() -> None:
    counts = [image.vision_tokens for image in evenly_spaced(Patches(), 5, options=FREE)]
    assert counts == [1, 10, 20, 30, 40]
    assert max(b - a for a, b in pairwise(counts)) == 10


def test_every_way_is_listed_once_in_order() -> None:
    images = reachable(MOLMO, options=FREE)
    assert [(i.vision_tokens, i.crops) for i in images] == sorted((i.vision_tokens, i.crops) for i in images)
    assert {exact_size(*tiling) for tiling in tilings()} == {(i.width_px, i.height_px) for i in images}


# --- what acts: a limit, or the shapes that are proposed -----------------------------------------------


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl", "pixtral", "mistral3", "llava_next"])
def test_a_count_that_is_not_proposed_is_said_to_take_a_strip_and_which(name: str) -> None:
    """No image within 8:1 makes it: a strip that does is named, or none of any shape does."""
    family = get_family(name)
    preset = next(preset for preset in family.presets if preset != "nano")
    geometry = family.geometry(SubjectSpec(preset, "random", None, "bfloat16", "sdpa", 0))
    known = {image.vision_tokens for image in reachable(geometry, options=FREE)}
    strips = 0
    for count in sorted(set(range(min(known), min(max(known), 3000))) - known)[:400]:
        with pytest.raises(UserError) as refused:
            sizes_for(geometry, vision_tokens=count, options=FREE)
        said = str(refused.value)
        assert "which sets the limit" not in said, "a limit cuts off at an end"
        if found := re.search(r"none such is proposed: (\d+)x(\d+) px makes it", said):
            strips += 1
            size = int(found[1]), int(found[2])
            assert geometry.image_tokens(*size, options=FREE).vision_tokens == count
            assert max(size) > 8 * min(size)
    assert strips > 0


def test_13_tokens_of_qwen_are_a_strip_and_beyond_its_limits_there_is_no_image() -> None:
    geometry = get_family("qwen2_5_vl").geometry(SubjectSpec("7b", "random", None, "bfloat16", "sdpa", 0))
    with pytest.raises(UserError, match=r"vision_tokens 13 takes an image more elongated.* 12 below and 14 above"):
        sizes_for(geometry, vision_tokens=13, options=FREE)
    with pytest.raises(UserError, match=r"min_pixels 3,136 .*: nearest is 4 above"):
        sizes_for(geometry, vision_tokens=3, options=FREE)
    with pytest.raises(UserError, match=r"max_pixels 12,845,056 .*, which sets the limit: nearest is 16384 below"):
        sizes_for(geometry, vision_tokens=16_385, options=FREE)


@pytest.mark.parametrize("name", ["molmo", "llava_next", "internvl", "idefics3"])
def test_what_limits_large_counts_is_not_said_to_limit_small_ones(name: str) -> None:
    family = get_family(name)
    preset = next(preset for preset in family.presets if preset != "nano")
    geometry = family.geometry(SubjectSpec(preset, "random", None, "bfloat16", "sdpa", 0))
    with pytest.raises(UserError, match=r"no image reaches vision_tokens 13 with .*: nearest is \d+ above") as refused:
        sizes_for(geometry, vision_tokens=13, options=FREE)
    assert "which sets the limit" not in str(refused.value)


@pytest.mark.parametrize("name", ["qwen2_5_vl", "pixtral", "gemma3"])
def test_no_limit_is_blamed_where_nothing_is_cut(name: str) -> None:
    family = get_family(name)
    preset = next(preset for preset in family.presets if preset != "nano")
    geometry = family.geometry(SubjectSpec(preset, "random", None, "bfloat16", "sdpa", 0))
    with pytest.raises(UserError, match=r"no image reaches crops 2: every image is 1 there, since none is cut$"):
        sizes_for(geometry, crops=2, options=FREE)
