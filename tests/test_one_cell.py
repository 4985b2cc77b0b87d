"""A study of one cell: what is said of it speaks of one thing, and of no range and no median over one."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from tests.support.html import parse
from tests.support.reports import inputs_of, roofline_of
from tests.support.roofline import with_floors
from tests.support.tables import CpuLikeRunner, table_of
from vlmeter.analysis import conditions, held_out, prefill_cells
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.registry import CLAIMS, judge_all
from vlmeter.figures.registry import FIGURES, NOT_ASKED, NOT_DRAWN, draw_or_explain
from vlmeter.report.answers import share_bars
from vlmeter.report.page import render

#: A count of one beside what is counted in several, and what is said of several alone.
OF_SEVERAL = re.compile(r"(?<!\+ )\b1 (?!ms\b|times\b)[a-z]+s\b|in the median over 1\b|there are 1\b|mean over 1\b")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("one")
    return table_of(folder, vision={"tilings": ["2x2"]}, output=None, runner=CpuLikeRunner(noise_fraction=0.2))


def test_what_is_said_of_several_is_found() -> None:
    for wrong in ("warm-up had not settled in 1 of 1 cells", "(36 % in the median over 1 sizes)", "and there are 1"):
        assert OF_SEVERAL.search(wrong)
    assert not OF_SEVERAL.search("1 cell, 1 ms, 1.1 times, 21 cells, i j + 1 crops, each of them")


def test_no_caption_and_no_claim_speaks_of_several(table: pd.DataFrame) -> None:
    whole = with_floors(table)
    said = [draw_or_explain(whole, name)[1] for name in FIGURES]
    said += [claim.statement for claim in judge_all(table, "fake", roofline=roofline_of(table)) if claim.concerns]
    said += conditions.trust(table).reasons
    assert len(said) > 20
    assert [sentence for sentence in said if OF_SEVERAL.search(sentence)] == []


def test_a_difference_of_one_cell_has_no_range(table: pd.DataFrame) -> None:
    _, caption = draw_or_explain(table, "two_methods")
    assert "in the one cell that was measured" in caption
    assert "from" not in caption.split("paired.")[1]


def test_shares_of_one_image_have_no_brackets(table: pd.DataFrame) -> None:
    (bar,) = share_bars(prefill_cells.vision_cells(table), table[:0].assign(direct=False, steps=0))
    assert bar.note == "of the one image size that was measured"
    assert [part.text for part in bar.parts if "(" in part.text] == []


def test_the_prefill_that_there_is_counts(table: pd.DataFrame) -> None:
    found = held_out.held_out(table)
    assert isinstance(found, Unknown)
    assert found.reason == "a law needs 2 prefills of different size at least, and there is 1"


def test_claims_about_decoding_do_not_concern_it(table: pd.DataFrame) -> None:
    judged = {claim.name: claim.concerns for claim in judge_all(table, "fake", roofline=roofline_of(table))}
    assert set(judged) == set(CLAIMS)
    assert not any(judged[name] for name in ("decode_near_floor", "equal_flops_equal_time", "doubling_doubles"))
    assert judged["flops_predict_latency"]


def test_files_of_one_picture_are_not_asked_for(table: pd.DataFrame) -> None:
    assert draw_or_explain(table, "first_token_by_format")[1] == f"{NOT_DRAWN}{NOT_ASKED}."


def test_a_column_that_says_nothing_is_not_shown(table: pd.DataFrame, tmp_path: Path) -> None:
    uncounted = table.assign(peak_allocated_bytes=pd.array([pd.NA] * len(table), dtype="Int64"))
    page = parse(render(inputs_of(tmp_path, uncounted, roofline=roofline_of(table))))
    (grid,) = page.find_all("div", data_grid="components-fake")
    headings = [head.text for head in grid.find_all("th")]
    assert headings[:2] == ["component", "parameters"]
    assert "peak memory" not in headings
    assert [head.text for head in grid.find_all("dt")] == headings
