"""Nothing is said of crops, pace, output tokens or predictions where a subject has none of them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.support.fakes import FakeRunner
from tests.support.html import parse
from tests.support.reports import STUDY, inputs_of
from tests.support.tables import CpuLikeRunner, table_of
from vlmeter.analysis.answers import ASKED_SIZES_PX, answers_of
from vlmeter.analysis.held_out import held_out
from vlmeter.analysis.prediction import example_of, predict
from vlmeter.analysis.summary import summaries
from vlmeter.claims.registry import judge_all
from vlmeter.common.errors import UserError
from vlmeter.figures import vision_by_crops
from vlmeter.numbers.medians import Estimate
from vlmeter.report.page import render
from vlmeter.table.quantities import FIRST_TOKEN

PACE = {"launch_bound_below", "falls_are_the_hosts", "decode_launch_bound"}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return table_of(tmp_path_factory.mktemp("asked"), runner=FakeRunner(noise_fraction=0.01))


@pytest.fixture(scope="module")
def whole(table: pd.DataFrame) -> pd.DataFrame:
    """The same cells as a family would have them that cuts no image."""
    return table.assign(crops=pd.array([1] * len(table), dtype="Int64"), tiling_h=pd.NA, tiling_w=pd.NA)


def concerning(table: pd.DataFrame) -> set[str]:
    return {claim.name for claim in judge_all(table, "fake") if claim.concerns}


def test_of_images_that_are_not_cut_nothing_is_said_of_crops(
    table: pd.DataFrame, whole: pd.DataFrame, tmp_path: Path
) -> None:
    assert "crops_and_tokens_cost_apart" in concerning(table)
    assert "crops_and_tokens_cost_apart" not in concerning(whole)
    assert vision_by_crops.needs(table) is None
    assert vision_by_crops.needs(whole) == "no image was cut into crops"
    assert any("crops" in section.note for section in summaries(table, {})[0].sections)
    assert not any("crop" in section.note for section in summaries(whole, {})[0].sections)
    assert held_out(table)["group"].str.contains("crops").any()
    assert not held_out(whole)["group"].str.contains("crop").any()
    for name, rows, is_cut in (("cut", table, True), ("whole", whole, False)):
        (tmp_path / name).mkdir()
        page = parse(render(inputs_of(tmp_path / name, rows)))
        for grid in ("vision-fake", "output-fake"):
            heads = [head.text for head in page.find("div", data_grid=grid).find_all("th")]
            assert ("crops" in heads) is is_cut, grid
        (first, *_) = page.find("div", data_grid="vision-fake").find_all("th")
        assert first.text == ("tiling" if is_cut else "image")


def test_a_processor_has_no_pace_apart_from_its_hosts(table: pd.DataFrame, tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    on_a_processor = table_of(tmp_path / "records", runner=CpuLikeRunner())
    assert concerning(table) >= PACE
    assert not PACE & concerning(on_a_processor)
    page = parse(render(inputs_of(tmp_path / "page", on_a_processor)))
    heads = {head.text for head in page.find("div", data_grid="vision-fake").find_all("th")}
    assert not {"device busy", "who sets the pace"} & heads


def test_the_prediction_that_a_report_proposes_is_granted(tmp_path: Path) -> None:
    """Also by a study without output tokens, of which one with 32 of them would be refused."""
    images = table_of(tmp_path / "images", output=None)
    found = example_of(images, ASKED_SIZES_PX)
    assert found is not None
    assert found.output_tokens == 1
    both = table_of(tmp_path / "both", output={"output_tokens": [8, 16]})
    longer = example_of(both, ASKED_SIZES_PX)
    assert longer is not None
    assert longer.output_tokens == 16
    for rows, one in ((images, found), (both, longer)):
        predict(rows, **vars(one), question_tokens=32)
    with pytest.raises(UserError, match="no decode step can be predicted"):
        predict(images, **{**vars(found), "output_tokens": 32}, question_tokens=32)
    (tmp_path / "page").mkdir()
    text = parse(render(inputs_of(tmp_path / "page", images))).find("section", id="prediction").text
    said = f"--study results/{STUDY['study']} --image {found.width_px}x{found.height_px} --output-tokens 1"
    assert said in text


def test_a_study_that_predicts_nothing_proposes_no_prediction(tmp_path: Path) -> None:
    assert example_of(table_of(tmp_path, vision={"tilings": ["1x1"]}, output=None), ASKED_SIZES_PX) is None


def test_a_prediction_that_may_be_anything_is_no_answer(tmp_path: Path) -> None:
    """Of three cells that scatter widely the interval begins at 0; what was measured then stands there."""
    runner = FakeRunner(noise_fraction=0.5, seed=3)
    found = answers_of(table_of(tmp_path, runner=runner, vision={"tilings": ["1x1", "1x2", "2x2"]}, output=None))
    sizes = [answer for name, answer in found.items() if name.startswith(f"{FIRST_TOKEN}_")]
    assert sizes
    assert {answer.source for answer in sizes} == {"measured"}


@pytest.mark.parametrize("noise_fraction", [0.05, 0.1, 0.15, 0.2, 0.3])
def test_a_prediction_that_is_an_answer_is_known_to_within_half_of_itself(
    tmp_path: Path, noise_fraction: float
) -> None:
    runner = FakeRunner(noise_fraction=noise_fraction, seed=3)
    found = answers_of(table_of(tmp_path, runner=runner, vision={"tilings": ["1x1", "1x2", "2x2", "1x4"]}, output=None))
    predicted = [a.found for a in found.values() if a.source == "predicted"]
    assert predicted or noise_fraction > 0.1
    assert all(isinstance(one, Estimate) and one.low > one.value / 2 for one in predicted)
