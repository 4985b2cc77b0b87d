"""Wherever a number of a cell with two modes is printed, or of a fit through one, both modes are said beside it."""

from __future__ import annotations

import io
import json

import pandas as pd
import pytest

from tests.support.comparisons import compared
from tests.support.fakes import FakeRunner
from tests.support.roofline import with_floors
from tests.support.tables import table_of
from tests.test_modes import TWO, planted
from vlmeter.analysis import flops
from vlmeter.analysis.answer_files import answers_as_data, answers_from_data
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.prediction import predict
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.step_times import step_law
from vlmeter.analysis.summary import as_data, summaries
from vlmeter.claims.base import Data
from vlmeter.claims.decode import constant_cost_per_token
from vlmeter.claims.flops import equal_flops_equal_time, flops_predict_latency, roofline_beats_flops
from vlmeter.claims.prediction import held_out_predicted, prediction_intervals_hold
from vlmeter.cli.show import print_summaries
from vlmeter.compare.answers import answer_in_words
from vlmeter.compare.baseline import run_of_table
from vlmeter.compare.comparison import TOTAL_NAME
from vlmeter.compare.rendering import as_data as comparison_data
from vlmeter.compare.rendering import as_markdown, cell_rows
from vlmeter.figures import decode_steps, flops_latency, flops_or_roofline, held_out, side_by_side_decode
from vlmeter.report.models import held_out_grid
from vlmeter.report.notebook import Results
from vlmeter.table.quantities import DECODE, LLM_BLOCKS, PLAIN_WALL, VISION_ENCODER

BOTH, CELL, SMALLEST = "146 and 212 ms", "vision-tiling-2x2", "vision-tiling-1x1"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A quiet subject: prefills, and generations of 8 and 16 tokens."""
    output = {"output_tokens": [8, 16], "sampling": {"min_samples": 9, "max_samples": 9}}
    return table_of(tmp_path_factory.mktemp("told"), runner=FakeRunner(noise_fraction=0.01), output=output)


@pytest.fixture(scope="module")
def prefill(table: pd.DataFrame) -> pd.DataFrame:
    """One whole prefill has two modes, as a user waits."""
    return planted(table, CELL, PLAIN_WALL, TWO)


@pytest.fixture(scope="module")
def longest(table: pd.DataFrame) -> str:
    """A generation of the most tokens."""
    return next(c for c in table.loc[table["kind"] == "generation", "cell_id"].unique() if c.endswith("n16"))


@pytest.fixture(scope="module")
def decode(table: pd.DataFrame, longest: str) -> pd.DataFrame:
    """All decode steps of a generation of 16 tokens have two modes, of 15 times 146 and 212 ms."""
    return planted(table, longest, DECODE, [15 * one for one in TWO])


def test_the_step_law_says_both_modes_of_a_step(table: pd.DataFrame, decode: pd.DataFrame, longest: str) -> None:
    law = step_law(decode)
    assert not isinstance(law, Unknown)
    said = f"1 of these {law.cells} cells has two modes ({longest}: {BOTH}): its median is the time of no run"
    assert law.misgivings() == said
    assert f"{said}." in decode_steps.caption(decode)
    notes = [text.get_text() for axes in decode_steps.draw(decode).axes for text in axes.texts]
    assert any(law.modes in note for note in notes)
    assert law.modes == f"1 of {law.cells} cells has two modes: {BOTH}"
    assert f"Behind these steps, fake: {law.modes}." in side_by_side_decode.caption(decode, {"fake": {}})
    assert f"({law.modes})" in constant_cost_per_token(Data(decode)).statement
    quiet = step_law(table)
    assert not isinstance(quiet, Unknown)
    assert (quiet.mixed, quiet.modes, quiet.misgivings()) == ((), "", "")
    assert "modes" not in decode_steps.caption(table) + constant_cost_per_token(Data(table)).statement


def test_fits_over_flops_say_both_modes(table: pd.DataFrame) -> None:
    floors = with_floors(planted(table, CELL, LLM_BLOCKS, TWO))
    points = flops.points(floors)
    assert isinstance(points, pd.DataFrame)
    (row,) = points.dropna(subset=["low_mode_ms"]).to_dict("records")
    assert (row["cell_id"], row["phase"]) == (CELL, LLM_BLOCKS.name)
    assert (row["low_mode_ms"], row["high_mode_ms"]) == pytest.approx((146, 212), rel=0.01)
    said = f"cells has two modes ({CELL}: {BOTH}): its median is the time of no run."
    assert said in flops_latency.caption(floors)
    assert said in flops_or_roofline.caption(floors)
    told = Data(floors)
    told.points = points
    for claim in (flops_predict_latency, roofline_beats_flops, equal_flops_equal_time):
        assert claim(told).statement.count(said) == 1, claim.__name__
    assert "modes" not in flops_latency.caption(with_floors(table)) + flops_or_roofline.caption(with_floors(table))


def test_a_prediction_says_both_modes_of_what_it_is_learnt_from(table: pd.DataFrame, prefill: pd.DataFrame) -> None:
    asked = {"width_px": 640, "height_px": 480, "output_tokens": 8, "question_tokens": 8}
    said = f"cells has two modes ({CELL}: "
    (note,) = (note for note in predict(prefill, **asked)["notes"] if said in note)
    assert note.endswith("its median is the time of no run")
    assert said in held_out.caption(prefill)
    assert said in held_out_grid(prefill, "fake").caption
    assert said in held_out_predicted(Data(prefill)).statement
    assert said in prediction_intervals_hold(Data(prefill)).statement
    assert not any("modes" in note for note in predict(table, **asked)["notes"])


def test_a_notebook_is_told_in_the_frames_and_beside_the_fits(
    table: pd.DataFrame, prefill: pd.DataFrame, decode: pd.DataFrame, longest: str
) -> None:
    found = Results(prefill)
    told = found.prefills.set_index("cell_id")["modes"]
    assert told[CELL] == f"the whole prefill: {BOTH}"
    assert (told.drop(CELL) == "").all()
    (one,) = found.modes.to_dict("records")
    assert (one["cell_id"], one["quantity"], one["low_rounds"], one["high_rounds"]) == (CELL, PLAIN_WALL.name, 5, 4)
    assert (one["low_ms"], one["high_ms"]) == pytest.approx((146, 212), rel=0.01)
    fits = Results(decode).fits.set_index(["law", "term"])["modes"]
    for place in (("decode_line", "per_token"), ("decode_log_log", "slope"), ("step_line", "constant")):
        assert f"has two modes ({longest}: " in fits[place], place
    assert fits["prefill_plane", "crop"] == fits["costs", "crop"] == ""
    crops = Results(planted(table, CELL, VISION_ENCODER, TWO)).fits.set_index(["law", "term"])["modes"]
    assert f"has two modes ({CELL}: " in crops["costs", "crop"]
    assert len(Results(table).modes) == 0
    assert (Results(table).fits["modes"] == "").all()


def shown(table: pd.DataFrame) -> str:
    text = io.StringIO()
    print_summaries(summaries(table, {"fake": answers_of(table)}), file=text, width=200)
    return text.getvalue()


def test_show_says_both_modes_behind_the_number(table: pd.DataFrame, decode: pd.DataFrame) -> None:
    changed = planted(table, SMALLEST, VISION_ENCODER, TWO)
    lines = [line for line in shown(changed).splitlines() if "two modes: " in line]
    assert any("vision encoder" in line and BOTH in line for line in lines)
    (line,) = (line for line in shown(decode).splitlines() if line.strip().startswith("time per output token"))
    assert line.rstrip().endswith("cells has two modes: 2,190 and 3,184 ms")
    data = json.dumps(as_data(summaries(changed, {"fake": answers_of(changed)})))
    assert f"two modes: {BOTH}" in data
    assert "two modes" not in shown(table)


def test_an_answer_says_both_modes_wherever_it_is_said(table: pd.DataFrame, decode: pd.DataFrame) -> None:
    answer = answers_of(decode)["output_token"]
    assert answer.said().endswith(f"({answer.modes})")
    assert answer_in_words(answer).endswith(f"; {answer.modes}")
    kept = json.loads(json.dumps(answers_as_data({"fake": {"output_token": answer}})))
    assert answers_from_data(kept)["fake"]["output_token"] == answer
    kept["subjects"]["fake"][0]["mixed"] = ["a", "b"]  # as an older file has them
    old = answers_from_data(kept)["fake"]["output_token"]
    assert old.modes == f"2 of {len(old.cells)} cells have two modes"
    assert "have two modes (a; b): their medians are" in old.misgivings()
    json.dumps(answers_as_data({"fake": {"output_token": old}}), allow_nan=False)
    assert "modes" not in answers_of(table)["output_token"].said()


def test_a_measured_time_to_first_token_says_both_modes(table: pd.DataFrame) -> None:
    found = answers_of(planted(table, SMALLEST, PLAIN_WALL, TWO))
    timed = [own for name, own in found.items() if name.startswith("first_token_") and own.cells == (SMALLEST,)]
    assert timed
    for own in timed:
        assert own.modes.startswith("two modes: ")
        assert own.misgivings().endswith("; the median is the time of no run")


def test_a_comparison_says_both_modes_of_a_cell(table: pd.DataFrame, prefill: pd.DataFrame) -> None:
    before, after = run_of_table(table), run_of_table(prefill)
    found = compared(before, after)
    (warning,) = (line for line in found.warnings if "two modes" in line)
    assert warning.startswith("fake: in B 1 of ")
    assert f"has two modes ({CELL}: {BOTH}), so that a median is the time of no run" in warning
    rows = {row["cell"]: row for row in cell_rows(found)}
    assert rows[CELL]["b"] == f"146.8 ms (two modes: {BOTH})"
    assert "modes" not in rows[CELL]["a"] + rows["vision-tiling-1x1"]["b"]
    assert BOTH in as_markdown(found)
    total = next(one for one in comparison_data(found)["quantities"] if one["name"] == TOTAL_NAME)
    modes = {cell["cell_id"]: (cell["a_modes_ms"], cell["b_modes_ms"]) for cell in total["cells"]}
    assert modes[CELL] == (None, pytest.approx([146, 212], rel=0.01))
    assert modes["vision-tiling-1x1"] == (None, None)
    assert not any("modes" in line for line in compared(before, before.model_copy(deep=True)).warnings)
