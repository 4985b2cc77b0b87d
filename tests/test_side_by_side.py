"""Subjects side by side: what is compared is what one image and one output token cost, and who is missing is named."""

from __future__ import annotations

import io
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from tests.support.fakes import FakeRunner
from tests.support.html import parse
from tests.support.reports import inputs_of
from tests.support.roofline import with_floors
from tests.support.subjects import MODELS, as_model, several, unsupported
from tests.support.tables import OF_SERVERS, OF_WAYS, CpuLikeRunner, table_of
from vlmeter.analysis import decode_runs, prefill_cells, reading, subjects
from vlmeter.analysis.answers import answers_of
from vlmeter.claims.registry import judge_all
from vlmeter.claims.subjects import SIDE_BY_SIDE_CLAIMS, judge_side_by_side
from vlmeter.figures import side_by_side, side_by_side_decode
from vlmeter.figures.registry import FIGURES, SIDE_BY_SIDE, draw_or_explain, get_figure
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import with_interval
from vlmeter.report.page import render
from vlmeter.report.pictures import DARK_COLOURS
from vlmeter.table.build import build_table

OF_MODELS = [name for name in SIDE_BY_SIDE if name not in OF_SERVERS | OF_WAYS]

THREE = ("internvl", "molmo", "qwen2_5_vl")
NAMES = ["internvl-nano", "molmo-nano", "qwen2-5-vl-nano"]
NO_TORCHVISION = "the processor of Molmo2 needs torchvision, which is not installed"


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return table_of(tmp_path_factory.mktemp("side_by_side"), runner=FakeRunner(noise_fraction=0.01))


@pytest.fixture(scope="module")
def table(one: pd.DataFrame) -> pd.DataFrame:
    return several(one, THREE)


@pytest.fixture(scope="module")
def with_missing(one: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, unsupported(one, "molmo2-nano", "molmo2", NO_TORCHVISION)], ignore_index=True)


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def has_nan(text: str) -> bool:
    return re.search(r"\bnan\b", text) is not None


def drawn(table: pd.DataFrame, name: str) -> Figure:
    figure = get_figure(name)
    assert figure.needs(table) is None
    return figure.draw(table)


# --- what is compared -------------------------------------------------------------------------------


def test_time_to_first_token_is_preprocessing_copy_and_prefill_of_the_same_round(one: pd.DataFrame) -> None:
    cell = prefill_cells.vision_cells(one).iloc[3]
    rows = one[(one["cell_id"] == cell["cell_id"]) & (one["phase"] == "total") & (one["clock"] == "wall")]
    inputs, plain = (rows.loc[rows["arm"] == arm, "samples_ms"].iloc[0] for arm in ("inputs", "plain"))
    assert cell["first_token_ms"] == pytest.approx(np.median(np.asarray(inputs) + np.asarray(plain)))
    found = subjects.first_tokens(one)
    assert cell["first_token_ms"] in list(found["first_token_ms"])
    photographs = found[found["picture"] == "photograph"]
    runs = decode_runs.decode(one).drop_duplicates("image_index")
    assert sorted(photographs["first_token_ms"]) == sorted(runs["first_token_ms"])


def test_only_images_of_two_subjects_are_shared_and_photographs_stand_in_where_no_dummy_is(
    one: pd.DataFrame, table: pd.DataFrame
) -> None:
    assert subjects.shared_images(one).empty
    shared = subjects.shared_images(table)
    assert set(shared["picture"]) == {"dummy"}
    assert (shared.groupby("image")["subject"].nunique() == 3).all()
    sizes = {"molmo-nano": 0, "qwen2-5-vl-nano": 8, "internvl-nano": 16}
    apart = table.copy()
    apart["width_px"] = apart["width_px"] + apart["subject"].map(sizes).astype("Int64")
    assert set(subjects.shared_images(apart)["picture"]) == {"photograph"}


def test_a_figure_shows_the_images_of_most_subjects_and_of_sizes_far_apart(one: pd.DataFrame) -> None:
    cells = sorted(set(one.loc[one["experiment"] == "vision_tokens", "cell_id"]))
    other = as_model(one[one["cell_id"].isin([*cells[:2], "output-image0-n8"])], "b", "b", slower=1, tokens=1)
    third = as_model(one[one["cell_id"] == cells[0]], "c", "c", slower=1, tokens=1)
    shared = subjects.shared_images(pd.concat([one, other, third], ignore_index=True))
    counts = shared.groupby("image")["subject"].nunique()
    assert sorted(counts) == [2, 3]
    assert set(subjects.shown_images(shared)) == set(counts.index)
    many = subjects.shared_images(pd.concat([one, as_model(one, "b", "b", slower=1, tokens=1)], ignore_index=True))
    shown = subjects.shown_images(many)
    order = list(dict.fromkeys(many["image"]))
    assert len(shown) == subjects.MOST_IMAGES < len(order)
    assert shown[0] == order[0]
    assert shown[-1] == order[-1]


def test_twelve_subjects_show_fewer_images_so_that_the_figure_fits_a_page(one: pd.DataFrame) -> None:
    shared = subjects.shared_images(several(one, list(MODELS)))
    assert len(subjects.shown_images(shared)) * 12 <= subjects.MOST_ROWS


def test_a_subject_without_numbers_is_missing_with_the_reason_of_its_records(with_missing: pd.DataFrame) -> None:
    assert subjects.absent(with_missing, NAMES) == {"molmo2-nano": NO_TORCHVISION}


def test_the_factor_between_least_and_most_has_an_interval_that_is_no_narrower_than_theirs() -> None:
    found = subjects.extremes({"a": Estimate(2.0, 1.9, 2.1), "b": Estimate(6.0, 5.7, 6.3), "c": reading.Unknown("no")})
    assert not isinstance(found, reading.Unknown)
    assert (found.least, found.most) == ("a", "b")
    assert (found.times.value, found.times.low, found.times.high) == pytest.approx((3.0, 5.7 / 2.1, 6.3 / 1.9))
    assert isinstance(subjects.extremes({"a": Estimate(2.0, 1.9, 2.1)}), reading.Unknown)


# --- figures ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_figure_of_several_subjects_says_what_it_is_with_units_and_numbers(table: pd.DataFrame, name: str) -> None:
    figure = get_figure(name)
    assert (name, "side_by_side") == (figure.NAME, figure.SECTION)
    assert name not in FIGURES
    labels = [label for axes in drawn(table, name).axes for label in (axes.get_xlabel(), axes.get_ylabel()) if label]
    assert all("(ms)" in label or "tokens" in label for label in labels)
    assert any("(ms)" in label for label in labels)
    caption = figure.caption(table)
    assert caption.endswith(".")
    assert any(letter.isdigit() for letter in caption)
    assert not has_nan(caption)


@pytest.mark.parametrize("name", OF_MODELS)
def test_with_one_subject_there_is_nothing_to_compare(one: pd.DataFrame, name: str) -> None:
    _, caption = draw_or_explain(one, name)
    assert caption.startswith("Not drawn: ")
    assert draw_or_explain(build_table([]), name)[1].startswith("Not drawn: ")


@pytest.mark.parametrize("name", OF_MODELS)
def test_who_is_missing_is_named_in_figure_and_caption(with_missing: pd.DataFrame, name: str) -> None:
    figure = drawn(with_missing, name)
    assert "no numbers of molmo2-nano" in " ".join(texts(figure.axes[0]))
    assert f"Nothing is shown of molmo2-nano: {NO_TORCHVISION}." in get_figure(name).caption(with_missing)


def test_every_subject_has_a_line_of_its_own_named_at_its_end(table: pd.DataFrame) -> None:
    (axes,) = drawn(table, "side_by_side_first_token").axes
    found = subjects.first_tokens(table)
    for name in NAMES:
        own = found[(found["subject"] == name) & (found["picture"] == "dummy")]
        medians = own.groupby("vision_tokens")["first_token_ms"].median()
        assert any(
            len(line.get_ydata()) == len(medians) and np.allclose(line.get_ydata(), medians) for line in axes.lines
        )
        assert name in texts(axes)
    assert axes.get_legend() is None


def test_axes_are_logarithmic_only_where_the_range_asks_for_it(one: pd.DataFrame) -> None:
    near = pd.concat([one, as_model(one, "near", "near", slower=1.1, tokens=1)], ignore_index=True)
    (axes,) = drawn(near, "side_by_side_first_token").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "linear")
    assert axes.get_ylim()[0] == 0
    far = pd.concat([one, as_model(one, "slow", "slow", slower=50, tokens=20)], ignore_index=True)
    (axes,) = drawn(far, "side_by_side_first_token").axes
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_costs_are_the_answers_of_the_first_screen_in_words_beside_their_points(table: pd.DataFrame) -> None:
    panels = drawn(table, "side_by_side_costs").axes
    for axes, cost in zip(panels, ("vision_token", "crop", "output_token"), strict=True):
        assert [label.get_text() for label in axes.get_yticklabels()] == NAMES
        for name in NAMES:
            answer = answers_of(table, name)[cost].found
            assert isinstance(answer, Estimate)
            assert with_interval(answer, "ms") in texts(axes)
            assert any(answer.value in line.get_xdata() for line in axes.lines)


def test_costs_say_on_which_clock_a_vision_token_is_told(table: pd.DataFrame) -> None:
    assert "Vision tokens are told in time between marks." in get_figure("side_by_side_costs").caption(table)


def test_a_cost_that_is_not_known_is_said_with_its_reason(one: pd.DataFrame) -> None:
    whole = as_model(one, "whole", "qwen2_5_vl", slower=1, tokens=1).assign(
        crops=pd.array([1] * len(one), dtype="Int64")
    )
    silent = as_model(one[one["experiment"] == "vision_tokens"], "silent", "internvl", slower=2, tokens=1)
    _, crop, output = drawn(pd.concat([one, whole, silent], ignore_index=True), "side_by_side_costs").axes
    assert "not known: nothing that was measured tells it" in texts(crop)
    assert "not known: nothing that was measured tells it" in texts(output)


def test_the_same_image_carries_the_vision_tokens_that_it_becomes_in_each(table: pd.DataFrame) -> None:
    figure = drawn(table, "side_by_side_images")
    shared = subjects.shared_images(table)
    shown = subjects.shown_images(shared)
    assert [axes.get_xlabel() for axes in figure.axes] == [f"{image}: time to first token (ms)" for image in shown]
    for axes, image in zip(figure.axes, shown, strict=True):
        for row in shared[shared["image"] == image].to_dict("records"):
            assert f"{row['vision_tokens']:,} vision tokens" in texts(axes)
            assert with_interval(reading.estimate_in(row, "first_token"), "ms") in texts(axes)
    assert len({axes.get_xlim() for axes in figure.axes}) == 1, "images can be compared"


def test_steps_are_drawn_over_their_context_one_line_per_subject(table: pd.DataFrame) -> None:
    """The line is broken where no context was measured: between the runs of two images."""
    _, lower = drawn(table, "side_by_side_decode").axes
    looks = side_by_side.looks(table)
    for name, (contexts, values) in subjects.steps(table).items():
        own = [
            line.get_xydata()
            for line in lower.lines
            if line.get_color() == looks[name].colour and line.get_transform().contains_branch(lower.transData)
        ]
        np.testing.assert_allclose(np.concatenate(own), np.column_stack([contexts, values]))
        assert name in texts(lower)


def test_a_line_over_contexts_is_broken_between_the_runs_of_two_images() -> None:
    found = side_by_side_decode.pieces(np.array([100.0, 101, 102, 103, 900, 901, 902]))
    assert found == [slice(0, 4), slice(4, 7)]
    assert side_by_side_decode.pieces(np.array([5.0])) == [slice(0, 1)]


def test_twelve_subjects_look_unlike_each_other_and_follow_the_dark_page(one: pd.DataFrame) -> None:
    twelve = several(one, list(MODELS))
    looks = side_by_side.looks(twelve)
    assert len({(look.colour, look.mark) for look in looks.values()}) == 12
    assert len({look.mark for look in looks.values()}) == 12
    assert {colour.lower() for colour in side_by_side.PALETTE} <= set(DARK_COLOURS)
    for name in OF_MODELS:
        figure, caption = draw_or_explain(twelve, name)
        assert figure is not None
        figure.savefig(io.BytesIO(), format="svg")
        assert not caption.startswith("Not drawn")


def test_names_at_the_ends_of_lines_do_not_touch(one: pd.DataFrame) -> None:
    twelve = pd.concat([as_model(one, f"model-{n}", "molmo", slower=1 + n / 1e4, tokens=1) for n in range(12)])
    figure = drawn(twelve.reset_index(drop=True), "side_by_side_first_token")
    figure.draw_without_rendering()
    boxes = sorted(
        (Text.get_window_extent(text) for text in figure.axes[0].texts if text.get_text().startswith("model-")),
        key=lambda box: box.y0,
    )
    assert len(boxes) == 12
    assert all(low.y1 <= high.y0 + 1 for low, high in pairwise(boxes))


def test_a_long_name_is_shortened_in_the_middle_and_a_dollar_sign_is_one(one: pd.DataFrame) -> None:
    assert side_by_side.short("a" * 30 + "-sdpa") == "a" * 12 + "\u2026" + "a" * 7 + "-sdpa"
    odd = pd.concat([one, as_model(one, "cheap$model$<script>", "molmo", slower=2, tokens=1)], ignore_index=True)
    for name in OF_MODELS:
        drawn(odd, name).savefig(io.BytesIO(), format="svg")


def test_a_table_with_gaps_still_gives_figures_and_captions(tmp_path: Path, with_missing: pd.DataFrame) -> None:
    cpu = table_of(tmp_path, runner=CpuLikeRunner(), output={"output_tokens": [1], "sampling": {"min_samples": 1}})
    holes = with_missing[~((with_missing["subject"] == "molmo-nano") & (with_missing["arm"] == "inputs"))]
    for odd in (several(cpu, THREE), holes):
        for name in SIDE_BY_SIDE:
            assert not has_nan(draw_or_explain(odd, name)[1])


# --- claims -----------------------------------------------------------------------------------------


def verdicts(table: pd.DataFrame) -> dict[str, str]:
    return {claim.name: claim.verdict for claim in judge_side_by_side(table)}


def test_equal_models_cost_the_same_and_unlike_ones_do_not(one: pd.DataFrame, table: pd.DataFrame) -> None:
    alike = pd.concat([one, as_model(one, "twin", "molmo", slower=1.0, tokens=1)], ignore_index=True)
    assert verdicts(alike)["same_image_same_tokens"] == "holds"
    assert verdicts(alike)["fewer_tokens_sooner"] == "cannot tell"
    assert set(verdicts(alike)) == set(SIDE_BY_SIDE_CLAIMS)
    found = verdicts(table)
    assert found["same_image_same_tokens"] == "does not hold"
    assert found["same_image_same_cost"] == "does not hold"
    assert found["same_cost_per_output_token"] == "does not hold"
    assert found["fewer_tokens_sooner"] == "holds"


def test_a_factor_is_said_with_who_and_how_much(table: pd.DataFrame) -> None:
    (claim,) = (claim for claim in judge_side_by_side(table) if claim.name == "same_image_same_cost")
    assert "internvl-nano" in claim.statement
    assert "qwen2-5-vl-nano" in claim.statement
    assert claim.evidence[0].value == pytest.approx(1.9 / 0.6)
    assert claim.evidence[0].low is not None


def test_fewer_tokens_that_answer_later_are_found(one: pd.DataFrame) -> None:
    crossed = pd.concat([one, as_model(one, "small-but-slow", "x", slower=3, tokens=0.5)], ignore_index=True)
    (claim,) = (claim for claim in judge_side_by_side(crossed) if claim.name == "fewer_tokens_sooner")
    assert claim.verdict == "does not hold"
    assert "small-but-slow" in claim.statement


def test_a_subject_under_unusable_conditions_has_no_part_in_claims_about_time(one: pd.DataFrame) -> None:
    drifted = as_model(one, "drifted", "x", slower=3, tokens=1).assign(drifted=True)
    found = {claim.name: claim for claim in judge_side_by_side(pd.concat([one, drifted], ignore_index=True))}
    assert found["same_image_same_tokens"].verdict == "holds"
    assert found["same_image_same_cost"].verdict == "cannot tell"
    assert "cannot be relied on: drifted" in found["same_image_same_cost"].statement


def test_one_subject_has_nothing_beside_it_to_claim(one: pd.DataFrame) -> None:
    assert judge_side_by_side(one) == []


# --- the report -------------------------------------------------------------------------------------


def study_of_families(names: list[str]) -> dict[str, object]:
    return {"study": "families", "subjects": {name: {"family": "molmo", "preset": "nano"} for name in names}}


def test_the_report_sets_subjects_side_by_side(with_missing: pd.DataFrame, tmp_path: Path) -> None:
    study = study_of_families([*NAMES, "molmo2-nano"])
    section = parse(render(inputs_of(tmp_path, with_missing, study=study))).find("section", id="side-by-side")
    assert {figure.attributes["id"] for figure in section.find_all("figure")} == {
        f"_side_by_side-{name}" for name in SIDE_BY_SIDE
    }
    assert f"molmo2-nano: {NO_TORCHVISION}" in section.find("div", class_="missing").text
    images = section.find("div", data_grid="images").find("tbody").find_all("tr")
    assert len(images) == len(subjects.shared_images(with_missing))
    claims = {
        item.find("h4").text for item in section.find("ul", class_="claims").find_all("li") if item.find_all("h4")
    }
    assert all(any(entry.claim in claim for claim in claims) for entry in SIDE_BY_SIDE_CLAIMS.values())
    rows = section.find("div", data_grid="verdicts").find("tbody").find_all("tr")
    judged = {
        name: {claim.claim: claim.verdict for claim in judge_all(with_missing, name) if claim.concerns}
        for name in (*NAMES, "molmo2-nano")
    }
    claims = list(dict.fromkeys(claim for own in judged.values() for claim in own))
    assert set(judged["molmo2-nano"].values()) == {"cannot tell"}, "nothing is claimed of what could not run"
    for row, claim in zip(rows, claims, strict=True):
        found = [own.get(claim, "") for own in judged.values()]
        assert [cell.text for cell in row.find_all("td")] == [claim, *found]


def test_with_one_subject_nothing_is_set_side_by_side(one: pd.DataFrame, tmp_path: Path) -> None:
    page = parse(render(inputs_of(tmp_path, with_floors(one))))
    assert not page.find_all("section", id="side-by-side")
    assert not page.find_all("a", href="#side-by-side")


def test_a_subject_that_was_never_measured_is_named_as_missing(table: pd.DataFrame, tmp_path: Path) -> None:
    page = parse(render(inputs_of(tmp_path, table, study=study_of_families([*NAMES, "never"]))))
    assert "never: it was not measured" in page.find("section", id="side-by-side").find("div", class_="missing").text
