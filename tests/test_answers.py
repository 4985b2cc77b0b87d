"""Answers: each computed once, with what is behind it, and the same wherever it is shown."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.fakes import FakeRunner
from tests.support.html import Element, parse
from tests.support.reports import PREFILL_TIMES, inputs_of, roofline_of
from tests.support.roofline import with_floors
from tests.support.tables import LATENCY, table_of
from vlmeter.analysis import decode_runs
from vlmeter.analysis.answer_files import read_answers, write_answers
from vlmeter.analysis.answers import Answers, answers_of
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.registry import judge_all
from vlmeter.common.errors import UserError
from vlmeter.figures.registry import FIGURES, WITH_ANSWERS, draw_or_explain, get_figure
from vlmeter.numbers.medians import Estimate
from vlmeter.report.page import render


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    runner = FakeRunner(noise_fraction=0.01, launch_ms={"vision_encoder": 4.0})
    return table_of(tmp_path_factory.mktemp("answers"), runner=runner, latency=LATENCY)


@pytest.fixture(scope="module")
def found(table: pd.DataFrame) -> Answers:
    return answers_of(table, roofline=roofline_of(table))


def value_of(found: Answers, name: str) -> Estimate:
    known = found[name].found
    assert isinstance(known, Estimate)
    return known


def test_answers_are_what_was_planted(tmp_path: Path) -> None:
    """FakeRunner: 2.5 ms a crop, 0.0205 ms a token of the prompt; a step takes 3 ms and 1 µs a token of context."""
    table = table_of(tmp_path, runner=FakeRunner())
    found = answers_of(table)
    assert value_of(found, "crop").value == pytest.approx(2.5)
    assert value_of(found, "vision_token").value == pytest.approx(0.0205)
    law = decode_runs.decode_law(decode_runs.decode(table))
    assert not isinstance(law, Unknown)
    assert value_of(found, "output_token") == law.line["per_token"]
    first = decode_runs.decode(table).drop_duplicates("image_index")["first_token_ms"].median()
    assert value_of(found, "first_token").value == pytest.approx(first)
    ratio = value_of(found, "output_over_vision").value
    assert ratio == pytest.approx(law.line["per_token"].value / 0.0205)


def test_an_answer_names_its_unit_its_clock_and_the_cells_behind_it(found: Answers, table: pd.DataFrame) -> None:
    cells = set(table["cell_id"])
    for answer in found.values():
        assert answer.unit in ("ms", "fraction", "times", "tokens")
        assert answer.clock
        assert set(answer.cells) <= cells
        assert answer.cells, answer.name
    assert value_of(found, "limit_plain_wall").value == pytest.approx(PREFILL_TIMES)


def test_only_what_was_measured_is_answered(tmp_path: Path) -> None:
    images = answers_of(table_of(tmp_path / "a", output=None))
    assert not {"output_token", "first_token", "output_over_vision", "slow_request"} & set(images)
    photographs = answers_of(table_of(tmp_path / "b", vision=None))
    assert not {"crop", "vision_token", "output_over_vision"} & set(photographs)
    assert not any(name.startswith("limit_") for name in {**images, **photographs})


def test_of_one_output_length_the_time_per_token_is_that_of_its_steps(tmp_path: Path) -> None:
    output = {"output_tokens": [8], "sampling": {"min_samples": 5, "max_samples": 5}}
    table = table_of(tmp_path, vision=None, output=output)
    runs = decode_runs.decode(table)
    found = answers_of(table)["output_token"]
    assert isinstance(found.found, Estimate)
    assert found.found.value == pytest.approx((runs["decode_ms"] / 7).median())
    assert "8 output tokens" in found.note


def test_of_one_generation_a_token_a_wait_and_a_distance_have_its_interval(tmp_path: Path) -> None:
    table = table_of(
        tmp_path, vision=None, output={"output_tokens": [8], "images": 1}, runner=FakeRunner(noise_fraction=0.05)
    )
    (run,) = decode_runs.decode(table).to_dict("records")
    floors = roofline_of(table)
    found = answers_of(table, roofline=floors)
    decode = Estimate(run["decode_ms"], run["decode_low_ms"], run["decode_high_ms"])
    token, first, limit = (value_of(found, name) for name in ("output_token", "first_token", "limit_decode"))
    assert token == Estimate(*(end / 7 for end in (decode.value, decode.low, decode.high)))
    assert token.low < token.value < token.high
    assert first == Estimate(run["first_token_ms"], run["first_token_low_ms"], run["first_token_high_ms"])
    assert limit.low / limit.value == pytest.approx(decode.low / decode.value)
    assert limit.high / limit.value == pytest.approx(decode.high / decode.value)


def test_a_price_that_is_not_told_from_nothing_is_not_known_and_says_what_to_measure(tmp_path: Path) -> None:
    per_token_ms = {"llm_blocks": 0.02, "decode_step": 0.001}
    table = table_of(tmp_path, runner=FakeRunner(noise_fraction=0.2, per_crop_ms={}, per_token_ms=per_token_ms))
    found = answers_of(table)
    unknown = found["crop"].found
    assert isinstance(unknown, Unknown)
    assert "interval holds 0 (-" in unknown.reason
    assert "measure more rounds" in unknown.remedy
    whole = answers_of(table.assign(crops=pd.array([1] * len(table), dtype="Int64"), prompt_tokens=700))
    ratio = whole["output_over_vision"].found
    assert isinstance(ratio, Unknown)
    assert ratio.reason == "the cost of one more vision token is not known"


def test_with_too_few_sizes_a_price_is_not_known_and_says_what_to_measure(tmp_path: Path) -> None:
    found = answers_of(table_of(tmp_path, vision={"tilings": ["1x1", "2x2"]}, output=None))
    unknown = found["crop"].found
    assert isinstance(unknown, Unknown)
    assert "there are 2" in unknown.reason
    assert "measure three image sizes or more" in unknown.remedy


def test_where_images_are_not_cut_a_crop_has_no_price_and_a_text_token_has_its_own(table: pd.DataFrame) -> None:
    whole = table.assign(crops=pd.array([1] * len(table), dtype="Int64"))
    found = answers_of(whole)
    assert "crop" not in found
    text, vision = value_of(found, "text_token"), value_of(found, "vision_token")
    assert vision.value > text.value > 0, "a vision token brings its piece of the image along"


def test_sizes_that_people_ask_for_are_measured_or_predicted(found: Answers) -> None:
    sizes = {name: answer for name, answer in found.items() if name.startswith("first_token_")}
    assert sizes["first_token_336x336"].source == "measured"
    assert sizes["first_token_640x480"].source == "predicted"
    assert "predicted, not measured" in sizes["first_token_640x480"].note
    low, middle = (value_of(found, f"first_token_{size}").value for size in ("336x336", "640x480"))
    assert 0 < low < middle


def test_a_size_too_far_from_what_was_measured_is_not_predicted(tmp_path: Path) -> None:
    found = answers_of(table_of(tmp_path, vision={"tilings": ["1x1"]}, output=None))
    assert [name for name in found if name.startswith("first_token_")] == ["first_token_336x336"]


def test_answers_come_back_from_their_file_as_they_were(found: Answers, tmp_path: Path) -> None:
    unknown = replace(found["crop"], found=Unknown("why", "what to do"))
    bare = replace(found["crop"], found=Estimate(1.0, float("nan"), float("nan")))
    written = {"fake": {**found, "crop": unknown}, "other": {"crop": bare}}
    write_answers(tmp_path / "answers.json", written)
    back = read_answers(tmp_path / "answers.json")
    assert back["fake"] == written["fake"]
    assert list(back["fake"]) == list(written["fake"]), "in their order"
    assert repr(back["other"]["crop"]) == repr(bare)
    data = json.loads((tmp_path / "answers.json").read_text())
    (crop,) = [each for each in data["subjects"]["fake"] if each["name"] == "crop"]
    assert (crop["value"], crop["not_known"]) == (None, {"why": "why", "remedy": "what to do"})


@pytest.mark.parametrize("text", ["", "[]", '{"version": 9, "subjects": {}}', '{"version": 1, "subjects": {"a": [1]}}'])
def test_a_file_that_holds_no_answers_is_refused_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "answers.json").write_text(text)
    with pytest.raises(UserError, match=r"answers .* cannot be read"):
        read_answers(tmp_path / "answers.json")


# ---------------------------------------------------------------------------------------------------------------------
# One value for one name


@pytest.fixture(scope="module")
def page(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Element:
    whole = with_floors(table)
    found = answers_of(table, roofline=roofline_of(table))
    captions = {}
    for name in FIGURES:
        figure, own = get_figure(name), {"answers": found} if name in WITH_ANSWERS else {}
        if figure.needs(whole, **own) is None:
            captions[name] = figure.caption(whole, **own)
    inputs = inputs_of(tmp_path_factory.mktemp("page"), table, roofline=roofline_of(table), captions=captions)
    return parse(render(inputs))


def values_beside(text: str, question: str) -> set[str]:
    """Every time or number that the text gives right behind a question."""
    words = rf"{re.escape(question)}(?: costs| is|:)? ([\d.,]*\d(?: (?:µs|ms|s))?)"
    return set(re.findall(words, text, flags=re.IGNORECASE))


def test_the_page_gives_no_two_values_for_one_name(page: Element, found: Answers) -> None:
    text = " ".join(page.find("main").text.split())
    seen = 0
    for answer in found.values():
        card = page.find("li", data_answer=answer.name)
        value = card.find("p", class_="value").text.removesuffix(" times").removesuffix(" tokens")
        shown = values_beside(text, answer.question)
        assert shown <= {value}, answer.name
        seen += len(shown)
    assert seen > 3, "captions and claims name answers"
    for old in ("per 1,000 tokens (", "1,000 more"):
        assert old not in text


def changed(found: Answers) -> Answers:
    """Answers with values that no table gives."""
    return {
        name: replace(answer, found=Estimate(7.77, 7.66, 7.88)) if isinstance(answer.found, Estimate) else answer
        for name, answer in found.items()
    }


@pytest.mark.parametrize("name", sorted(WITH_ANSWERS & set(FIGURES)))
def test_a_figure_takes_its_answers_from_where_they_were_computed(
    name: str, table: pd.DataFrame, found: Answers
) -> None:
    def said(given: Mapping[str, Any]) -> str:
        figure, caption = draw_or_explain(table, name, answers=given)
        assert figure is not None
        return caption + " ".join(text.get_text() for axes in figure.axes for text in axes.texts)

    assert "7.77 ms (7.66 to 7.88)" not in said(found)
    assert "7.77 ms (7.66 to 7.88)" in said(changed(found))


def test_claims_take_their_prices_from_where_they_were_computed(table: pd.DataFrame, found: Answers) -> None:
    judged = {
        claim.name: claim for claim in judge_all(table, "fake", roofline=roofline_of(table), answers=changed(found))
    }
    for name in ("crops_and_tokens_cost_apart", "output_token_costs_more", "decode_linear_without_offset"):
        assert "7.77 ms (7.66 to 7.88)" in judged[name].statement
    assert "7.77 (7.66 to 7.88)" in judged["decode_near_floor"].statement
