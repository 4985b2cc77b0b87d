"""The token geometry of Molmo-1 agrees with the original preprocessing, forwards and backwards."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.molmo1.geometry import Geometry, exact_size, geometry, size_for_tiling, tilings

REFERENCE = Path(__file__).parent / "data" / "molmo1_geometry.csv"
ALL_TILINGS = tilings()


def row_of(result: Geometry) -> dict[str, str]:
    return {
        "width": str(result.width_px),
        "height": str(result.height_px),
        "tiling_h": str(result.tiling_h),
        "tiling_w": str(result.tiling_w),
        "num_crops": str(result.crops),
        "num_image_patch_tokens": str(result.vision_tokens),
        "num_image_special_tokens": str(result.special_tokens),
        "total_image_tokens": str(result.image_tokens),
    }


# --- against the original --------------------------------------------------------------------------


def test_every_row_that_the_original_produced_is_reproduced() -> None:
    with REFERENCE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 218
    differences: list[tuple[dict[str, str], object]] = []
    for row in rows:
        expected = {key: value for key, value in row.items() if key not in ("group", "error")}
        try:
            found = row_of(geometry(int(row["width"]), int(row["height"])))
        except UnsupportedSize as refusal:
            if not row["error"]:
                differences.append((expected, str(refusal)))
            continue
        if row["error"] or found != expected:
            differences.append((row, found))
    assert differences == []


@given(
    st.integers(1, 20_000),
    st.integers(1, 20_000),
    st.sampled_from([1, 5, 12, 24, 36]),
)
def test_the_choice_is_the_one_that_numpy_makes_in_single_precision(width: int, height: int, max_crops: int) -> None:
    # An independent statement of the original's rule in the arithmetic that it used.
    candidates = np.array(tilings(max_crops=max_crops), dtype=np.int32)
    inner = np.array([height - 112, width - 112], dtype=np.float32)
    with np.errstate(divide="ignore"):
        scale = ((candidates * 224).astype(np.float32) / inner).min(axis=1)
    choice = scale.argmax() if (scale < 1).all() else np.where(scale < 1, np.inf, scale).argmin()
    side = np.float32(min(width, height))
    if int(side * min(np.float32(336) / np.float32(width), np.float32(336) / np.float32(height))) == 0:
        with pytest.raises(UnsupportedSize):
            geometry(width, height, max_crops=max_crops)
    else:
        assert geometry(width, height, max_crops=max_crops).tiling == tuple(candidates[choice])


@pytest.mark.parametrize(
    ("width", "height", "tiling"),
    [
        (4000, 112, (1, 12)),  # no height left without the margin: the width alone decides
        (4000, 111, (1, 1)),  # a negative height forces 1x1, however wide the image
        (111, 4000, (1, 1)),
        (112, 112, (1, 1)),
        (337, 336, (1, 2)),  # one pixel more is one crop more
    ],
)
def test_traps_of_the_selection_are_kept(width: int, height: int, tiling: tuple[int, int]) -> None:
    assert geometry(width, height).tiling == tiling


# --- sizes that the original cannot take -----------------------------------------------------------


@pytest.mark.parametrize(("width", "height", "lost"), [(4000, 11, "height"), (11, 4000, "width"), (337, 1, "height")])
def test_an_elongated_image_is_refused_with_the_side_it_loses(width: int, height: int, lost: str) -> None:
    with pytest.raises(UnsupportedSize, match=rf"{width}x{height} is too elongated .* {lost} rounds down to 0 px"):
        geometry(width, height)


def test_forcing_a_tiling_does_not_rescue_an_elongated_image() -> None:
    with pytest.raises(UnsupportedSize, match="4000x11"):
        geometry(4000, 11, force_tiling=(1, 12))


@pytest.mark.parametrize(("width", "height"), [(4000, 12), (336, 1), (1, 336), (1, 1)])
def test_the_least_elongated_refusal_is_not_a_pixel_too_early(width: int, height: int) -> None:
    assert geometry(width, height).crops == 2


def test_single_precision_decides_whether_a_side_survives() -> None:
    # Both are exactly 336:1; 41 * fl(1/41) rounds to below 1, 40 * fl(1/40) to 1.
    assert geometry(40 * 336, 40).tiling == (1, 1)
    with pytest.raises(UnsupportedSize):
        geometry(41 * 336, 41)


@pytest.mark.parametrize(("width", "height"), [(0, 100), (100, 0), (-5, 100)])
def test_a_side_below_one_pixel_is_refused(width: int, height: int) -> None:
    with pytest.raises(UnsupportedSize, match=rf"{width}x{height} .* at least 1 px"):
        geometry(width, height)


def test_an_absurd_number_is_refused_and_does_not_overflow() -> None:
    with pytest.raises(UnsupportedSize, match="larger than any image"):
        geometry(10**400, 10**400)


# --- what is reachable -----------------------------------------------------------------------------


def test_the_1xk_series_rises_by_96_tokens_from_288_to_1344() -> None:
    series = [size_for_tiling(1, k) for k in range(1, 13)]
    assert [(g.width_px, g.height_px) for g in series] == [(224 * k + 112, 336) for k in range(1, 13)]
    assert [g.vision_tokens for g in series] == list(range(288, 1345, 96))


# --- backwards -------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_crops", [1, 12, 24, 36])
def test_every_tiling_has_an_exact_size_that_selects_it(max_crops: int) -> None:
    for i, j in tilings(max_crops=max_crops):
        found = size_for_tiling(i, j, max_crops=max_crops)
        assert (found.width_px, found.height_px) == exact_size(i, j) == (224 * j + 112, 224 * i + 112)
        assert found.tiling == (i, j)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 100))
def test_a_size_for_a_tiling_selects_it_under_any_limit_that_allows_it(i: int, j: int, spare: int) -> None:
    max_crops = i * j + spare
    found = size_for_tiling(i, j, max_crops=max_crops)
    assert found == geometry(found.width_px, found.height_px, max_crops=max_crops)
    assert found.tiling == (i, j)
    assert found.crops == i * j + 1
    assert found.vision_tokens == 144 + (8 * i + 4) * (8 * j + 4)
    assert found.special_tokens == 8 * i + 20


# --- a forced tiling -------------------------------------------------------------------------------


def test_a_forced_tiling_sets_the_counts_whatever_the_size_and_the_limit() -> None:
    forced = geometry(50, 70, max_crops=2, force_tiling=(5, 4))
    assert (forced.width_px, forced.height_px) == (50, 70)
    natural = size_for_tiling(5, 4, max_crops=20)
    assert (forced.tiling, forced.crops, forced.vision_tokens, forced.special_tokens) == (
        natural.tiling,
        natural.crops,
        natural.vision_tokens,
        natural.special_tokens,
    )


def test_a_tiling_without_rows_is_refused() -> None:
    with pytest.raises(UserError, match="tiling 0x3"):
        geometry(640, 480, force_tiling=(0, 3))
    with pytest.raises(UserError, match="tiling 3x0"):
        size_for_tiling(3, 0)


# --- what is not reachable -------------------------------------------------------------------------


def test_a_tiling_beyond_the_limit_names_the_limit() -> None:
    with pytest.raises(UserError, match=r"4x4 takes 16 crops.*max_crops 12: raise it to 16"):
        size_for_tiling(4, 4)


def test_absurd_limits_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="max_crops is 0: it must be between 1 and 4096"):
        tilings(max_crops=0)
    with pytest.raises(UserError, match="between 1 and 4096"):
        geometry(640, 480, max_crops=10**9)
    with pytest.raises(UserError, match="at most 4096 crops"):
        geometry(640, 480, force_tiling=(1, 10**9))


def test_twelve_crops_allow_35_tilings() -> None:
    assert len(ALL_TILINGS) == len(set(ALL_TILINGS)) == 35
    assert ALL_TILINGS[:6] == [(1, 1), (1, 2), (2, 1), (1, 3), (3, 1), (1, 4)]


def test_a_tiling_too_elongated_for_its_own_exact_size_is_refused() -> None:
    assert size_for_tiling(1, 503, max_crops=503).tiling == (1, 503)
    with pytest.raises(UnsupportedSize, match="113008x336"):
        size_for_tiling(1, 504, max_crops=504)
