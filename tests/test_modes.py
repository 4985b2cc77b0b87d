"""Samples about two values are seen and named, and nothing else is taken for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.fakes import FakeRunner
from tests.support.tables import table_of, table_of_runs
from vlmeter.analysis.answer_files import read_answers, write_answers
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.conditions import trust
from vlmeter.analysis.prefill_cells import vision_cells
from vlmeter.analysis.spread import MIXED_NAMED, by_cell, cell_modes, wide_cells
from vlmeter.analysis.summary import summaries
from vlmeter.figures import decode_log, two_factors
from vlmeter.numbers.modes import both_in_words, two_modes
from vlmeter.report.answers import card_of
from vlmeter.report.cells import flags_of, modes_of, vision_grid
from vlmeter.table.quantities import DECODE, PLAIN_WALL, VISION_ENCODER, Quantity

Draw = Callable[[np.random.Generator, int], np.ndarray]


def correlated(rng: np.random.Generator, count: int) -> np.ndarray:
    fresh, series = rng.normal(size=count), np.empty(count)
    series[0] = fresh[0]
    for place in range(1, count):
        series[place] = 0.6 * series[place - 1] + 0.8 * fresh[place]
    return np.asarray(np.exp(0.1 * series))


def tailed(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.asarray(np.exp(rng.normal(0, 0.02, count) + (rng.random(count) < 0.04) * rng.exponential(0.3, count)))


ONE: dict[str, Draw] = {
    "normal": lambda rng, count: np.exp(rng.normal(0, 0.1, count)),
    "skewed": lambda rng, count: np.exp(rng.normal(0, 0.3, count)),
    "exponential": lambda rng, count: 1 + rng.exponential(0.3, count),
    "uniform": lambda rng, count: 1 + rng.random(count),
    "tail": tailed,
    "drift": lambda rng, count: np.exp(np.linspace(0, 0.4, count) + rng.normal(0, 0.03, count)),
    "correlated": correlated,
}


@pytest.mark.parametrize("count", [9, 15, 30, 50])
@pytest.mark.parametrize("name", ONE)
def test_samples_about_one_value_are_hardly_ever_taken_for_two(name: str, count: int) -> None:
    rng = np.random.default_rng(count)
    found = sum(two_modes(ONE[name](rng, count)) is not None for _ in range(1000))
    assert found <= 30


@pytest.mark.parametrize(("count", "least"), [(9, 0.5), (15, 0.9), (30, 0.95), (50, 0.95)])
def test_two_values_are_found_with_both_of_them(count: int, least: float) -> None:
    rng = np.random.default_rng(count)
    found = []
    for _ in range(500):
        first = rng.random(count) < 0.5
        modes = two_modes(np.where(first, 146.0, 212.0) * np.exp(rng.normal(0, 0.03, count)))
        if modes is not None:
            found.append(modes)
            assert (modes.low, modes.high) == pytest.approx((146, 212), rel=0.06)
            assert (modes.low_count, modes.high_count) == (first.sum(), (~first).sum())
            assert modes.ratio == modes.high / modes.low
    assert len(found) >= least * 500


def test_few_samples_outliers_and_values_that_are_hardly_apart_are_no_modes() -> None:
    assert two_modes(np.array([146.0] * 4 + [212.0] * 4)) is None, "eight samples"
    assert two_modes(np.array([146.0] * 18 + [212.0] * 2)) is None, "a tenth of them are outliers"
    assert two_modes(np.array([100.0] * 10 + [105.0] * 10)) is None
    assert two_modes(np.array([0.0] * 10 + [105.0] * 10)) is None, "a duration of nothing"
    assert two_modes(np.full(20, 5.0)) is None
    assert two_modes(np.array([100.0] * 10 + [115.0] * 10)) is not None


# --- cells ------------------------------------------------------------------------------------------


def planted(table: pd.DataFrame, cell: str, quantity: Quantity, times_ms: list[float], *, run: int = 0) -> pd.DataFrame:
    """The table with other samples of a quantity in a cell."""
    changed = table.copy()
    key = next(iter(quantity.rows.values()))
    chosen = (changed["cell_id"] == cell) & (changed["source"] == "measured") & (changed["run"] == run)
    for name, value in key._asdict().items():
        chosen &= changed[name] == value
    (place,) = np.flatnonzero(chosen)
    changed["samples_ms"] = [
        np.array(times_ms) if row == place else samples for row, samples in enumerate(changed["samples_ms"])
    ]
    return changed


#: Nine rounds, five of them fast.
TWO = [146.0, 212.5, 145.2, 211.0, 146.8, 212.0, 146.1, 213.1, 145.9]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A quiet subject of twelve cells."""
    output = {"output_tokens": [8, 16], "sampling": {"min_samples": 9, "max_samples": 9}}
    return table_of(tmp_path_factory.mktemp("modes"), runner=FakeRunner(noise_fraction=0.01), output=output)


def test_a_quiet_subject_has_no_cell_with_two_modes_and_none_that_scatters(table: pd.DataFrame) -> None:
    assert cell_modes(table) == []
    assert wide_cells(table) == {}
    assert trust(table).verdict == "quiet"


def test_a_cell_with_two_modes_is_named_with_both(table: pd.DataFrame) -> None:
    changed = planted(table, "vision-tiling-2x2", VISION_ENCODER, TWO)
    named = {one.quantity.name: str(one) for one in cell_modes(changed)}
    assert named["vision_encoder"] == "146 ms in 5 rounds and 212 ms in 4"
    assert set(named) <= {"vision_encoder", "vision"}
    (reason,) = trust(changed).reasons
    assert reason.startswith(
        "1 of 24 cells has two modes (vision-tiling-2x2, the vision encoder: 146 ms in 5 rounds and"
    )


def test_of_a_cell_the_whole_is_named_before_its_parts(table: pd.DataFrame) -> None:
    changed = planted(planted(table, "vision-tiling-2x2", VISION_ENCODER, TWO), "vision-tiling-2x2", PLAIN_WALL, TWO)
    (one,) = by_cell(cell_modes(changed))
    assert one.quantity is PLAIN_WALL


def test_trust_looks_at_how_many_cells_have_two_modes(table: pd.DataFrame) -> None:
    changed = table
    for cell in ("vision-tiling-1x1", "vision-tiling-2x2"):
        changed = planted(changed, cell, PLAIN_WALL, TWO)
    assert trust(changed).verdict == "disturbed"
    assert trust(planted(table, "vision-tiling-1x1", PLAIN_WALL, TWO)).verdict == "quiet", "1 of 24"


def test_trust_looks_at_how_widely_rounds_scatter(table: pd.DataFrame) -> None:
    wide = [100.0, 108.0, 116.0, 124.0, 132.0, 140.0, 148.0, 156.0, 164.0]
    changed = planted(table, "vision-tiling-2x2", PLAIN_WALL, wide)
    assert wide_cells(changed) == {"vision-tiling-2x2": pytest.approx(32 / 132)}
    (reason,) = trust(changed).reasons
    assert (
        reason
        == "rounds of 1 of 24 cells scatter widely: the middle half of vision-tiling-2x2 spans 24 % of its median"
    )
    assert trust(changed).verdict == "quiet"
    for cell in table.loc[table["kind"] == "prefill", "cell_id"].unique()[:7]:
        changed = planted(changed, str(cell), PLAIN_WALL, wide)
    assert trust(changed).verdict == "disturbed"


def test_runs_that_lie_apart_are_no_modes(tmp_path: Path) -> None:
    vision = {"tilings": ["1x1", "1x2", "2x2"]}
    runners = [FakeRunner(noise_fraction=0.01), FakeRunner(noise_fraction=0.01, slowdown=1.5, seed=1)]
    table = table_of_runs(tmp_path, runners, vision=vision, output=None)
    assert cell_modes(table) == []
    changed = planted(table, "vision-tiling-2x2", PLAIN_WALL, TWO, run=1)
    assert [(one.run, one.cell_id) for one in cell_modes(changed)] == [(1, "vision-tiling-2x2")]


def test_the_report_shows_both_modes_instead_of_a_median_between_them(table: pd.DataFrame) -> None:
    changed = planted(table, "vision-tiling-2x2", PLAIN_WALL, TWO)
    cells, flags = vision_cells(changed), flags_of(changed)
    assert flags["vision-tiling-2x2"] == ["two modes of the whole prefill: 146 ms in 5 rounds and 212 ms in 4"]
    grid = vision_grid(cells, flags, "fake", modes=modes_of(changed))
    (place,) = np.flatnonzero(cells["cell_id"] == "vision-tiling-2x2")
    headings = [heading for heading, _ in grid.columns]
    shown = dict(zip(headings, (value.text for value in grid.rows[place]), strict=True))
    assert shown[PLAIN_WALL.label] == "146 ms or 212 ms"
    assert "two modes" in shown["flags"]
    other = dict(zip(headings, (value.text for value in grid.rows[place - 1]), strict=True))
    assert " or " not in other[PLAIN_WALL.label]


# --- fits through cells -----------------------------------------------------------------------------


def test_a_fit_names_the_cells_of_two_modes_that_it_goes_through(table: pd.DataFrame, tmp_path: Path) -> None:
    """They stay in it: what they are is said wherever the price is."""
    slow = float(vision_cells(table).set_index("cell_id").loc["vision-tiling-2x2", VISION_ENCODER.column])
    changed = planted(table, "vision-tiling-2x2", VISION_ENCODER, [slow * one / TWO[0] for one in TWO])
    found = answers_of(changed)
    assert found["crop"].is_known
    assert [one.cell_id for one in found["crop"].mixed] == ["vision-tiling-2x2"]
    assert found["vision_token"].mixed == found["output_token"].mixed == (), "their own parts have one mode"
    both = found["crop"].mixed[0].both
    said = f"cells has two modes (vision-tiling-2x2: {both}): its median is the time of no run"
    said = f"1 of these {len(found['crop'].cells)} {said}"
    assert found["crop"].misgivings() == said
    assert said in card_of(found["crop"]).note
    assert said in two_factors.caption(changed, found)
    (summary,) = summaries(changed, {"fake": found})
    assert any(said in line.note for section in summary.sections for line in section.lines)
    write_answers(tmp_path / "answers.json", {"fake": found})
    assert read_answers(tmp_path / "answers.json")["fake"]["crop"] == found["crop"]


def test_a_law_of_decode_names_its_cells_of_two_modes(table: pd.DataFrame) -> None:
    cells = [cell for cell in table.loc[table["kind"] == "generation", "cell_id"].unique() if cell.endswith("n16")]
    changed = table
    for cell in cells[:4]:
        changed = planted(changed, cell, DECODE, TWO)
    found = answers_of(changed)["output_token"]
    assert {one.cell_id for one in found.mixed} == set(cells[:4])
    assert "4 of these 12 cells have two modes" in found.misgivings()
    assert found.misgivings().count("output-image") == found.misgivings().count("146 and 212 ms") == MIXED_NAMED
    assert found.misgivings() in decode_log.caption(changed, answers_of(changed))
    assert answers_of(table)["output_token"].misgivings() == ""


@pytest.mark.parametrize(
    ("low_ms", "high_ms", "said"),
    [
        (146.2, 212.4, "146 and 212 ms"),
        (0.0243, 0.363, "24.3 µs and 0.363 ms"),
        (0.021, 0.05, "21.0 and 50.0 µs"),
        (900.0, 12_000.0, "900 ms and 12.0 s"),
    ],
)
def test_two_modes_are_said_in_the_unit_of_each(low_ms: float, high_ms: float, said: str) -> None:
    assert both_in_words(low_ms, high_ms) == said
