"""FLOPs beside latency: what goes together is said to, and what does not is not."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats as reference

from tests.support.fakes import FakeRunner
from tests.support.roofline import with_floors
from tests.support.tables import TILINGS, table_of
from vlmeter.analysis import flops, prefill_cells
from vlmeter.analysis.flops import MODELS, PARTS, compare_models, equal_flops, pace_cost, relations
from vlmeter.analysis.reading import Unknown

#: Photographs of a fake study.
PHOTOGRAPHS = 6

#: A device of 100 GFLOP/s, on which decoding a token takes as long as reading 1e9 bytes at 1e11 bytes/s: 10 ms.
FLOPS_PER_MS, STEP_FLOOR_MS, FLOPS_PER_STEP = 1e8, 10.0, 1e7


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return with_floors(table_of(tmp_path_factory.mktemp("flops"), runner=FakeRunner()))


@pytest.fixture(scope="module")
def points(table: pd.DataFrame) -> pd.DataFrame:
    found = flops.points(table)
    assert isinstance(found, pd.DataFrame)
    return found


def device(*, times_floor: float = 2.0, noise: float = 0.0, times_decode: float = 1.0, cells: int = 12) -> pd.DataFrame:
    """Points of a device that takes `times_floor` times as long as the roofline says, whatever the phase.

    Decoding takes `times_decode` times as long on top of that.
    """
    rng = np.random.default_rng(1)
    rows = []
    for cell in range(cells):
        for phase, count in (("vision_encoder", 2e9 * (cell + 1)), ("llm_blocks", 1e9 * (cell + 2))):
            rows.append((f"cell {cell}", f"cell {cell}", phase, count, count / FLOPS_PER_MS, "arithmetic"))
    for photograph in range(6):
        for steps in (64, 256, 1024):
            group, flops = f"photograph {photograph}", steps * FLOPS_PER_STEP
            rows.append((group, group, "decode", flops, steps * STEP_FLOOR_MS, "traffic"))
    frame = pd.DataFrame(rows, columns=["cell_id", "group", "phase", "flops", "floor_ms", "floor_bound"])
    factor = times_floor * np.where(frame["phase"] == "decode", times_decode, 1.0)
    frame["latency_ms"] = frame["floor_ms"] * factor * np.exp(noise * rng.normal(size=len(frame)))
    return frame.assign(pace="device-bound", output_tokens=1, prompt_tokens=100, crops=2)


# --------------------------------------------------------------------------------------------------------------- points


def test_every_phase_of_every_cell_is_one_point_and_a_photographs_prefill_counts_once(points: pd.DataFrame) -> None:
    counted = points.groupby("phase").size().to_dict()
    prefills = len(TILINGS) + PHOTOGRAPHS
    lengths = PHOTOGRAPHS * 4
    parts = dict.fromkeys(PARTS[:-1], prefills)
    assert counted == {**parts, "decode": lengths, "prefill": len(TILINGS), "request": lengths}


def test_a_points_work_and_time_are_those_of_its_row(table: pd.DataFrame, points: pd.DataFrame) -> None:
    rows = table[(table["arm"] == "hooks") & (table["clock"] == "device") & (table["phase"] == "llm_blocks")]
    rows = rows[rows["experiment"] == "vision_tokens"].set_index("cell_id")
    own = points[(points["phase"] == "llm_blocks") & points["cell_id"].isin(rows.index)].set_index("cell_id")
    assert len(own) == len(TILINGS)
    for mine, theirs in (("flops", "flops"), ("floor_ms", "floor_ms"), ("latency_ms", "median_ms")):
        assert own[mine].to_dict() == rows[theirs].to_dict()


def test_lengths_of_a_photograph_err_together(points: pd.DataFrame) -> None:
    assert points[points["phase"] == "decode"].groupby("group").size().tolist() == [4] * PHOTOGRAPHS


def test_who_sets_the_pace_of_a_cell_is_said_of_its_points(tmp_path: Path) -> None:
    runner = FakeRunner(launch_ms={"llm_blocks": 60.0})
    table = with_floors(table_of(tmp_path, runner=runner, output=None))
    found = flops.points(table)
    assert isinstance(found, pd.DataFrame)
    cells = prefill_cells.vision_cells(table).set_index("cell_id")["bound"].to_dict()
    assert "launch-bound" in set(found["pace"])
    assert found.set_index("cell_id")["pace"].to_dict() == cells


def test_without_ceilings_there_are_no_points(table: pd.DataFrame) -> None:
    found = flops.points(table.drop(columns="floor_ms"))
    assert isinstance(found, Unknown)
    assert "ceilings were not measured" in found.reason


# ------------------------------------------------------------------------------------------------------------ relations


def test_time_that_is_proportional_to_flops_has_slope_one_and_is_explained_whole() -> None:
    found = relations(device()).set_index("phase")
    for phase in ("vision_encoder", "llm_blocks", "decode"):
        assert found.loc[phase, ["slope", "r_squared", "pearson", "spearman"]].tolist() == pytest.approx([1] * 4)
    assert found.loc["parts", "r_squared"] < 0.9


def test_correlations_are_those_of_scipy_ties_included(points: pd.DataFrame) -> None:
    found = relations(points).set_index("phase")
    for phase, phases in (("llm_blocks", ("llm_blocks",)), ("parts", PARTS)):
        own = points[points["phase"].isin(phases)]
        x, y = own["flops"], own["latency_ms"]
        assert found.loc[phase, "pearson"] == pytest.approx(reference.pearsonr(x, y).statistic)
        assert found.loc[phase, "spearman"] == pytest.approx(reference.spearmanr(x, y).statistic)
        line = reference.linregress(np.log(x), np.log(y))
        assert found.loc[phase, "slope"] == pytest.approx(line.slope)
        assert found.loc[phase, "r_squared"] == pytest.approx(line.rvalue**2)


def test_an_interval_over_cells_holds_what_noise_hides_and_grows_with_it() -> None:
    widths = []
    for noise in (0.02, 0.2):
        row = relations(device(noise=noise, cells=30)).set_index("phase").loc["vision_encoder"]
        assert row["slope_low"] < 1 < row["slope_high"]
        assert row["r_squared_low"] <= row["r_squared"] <= row["r_squared_high"]
        widths.append(row["slope_high"] - row["slope_low"])
    assert widths[1] > 3 * widths[0]


def test_flops_that_do_not_vary_correlate_with_nothing() -> None:
    frame = device(noise=0.1)
    frame.loc[frame["phase"] == "decode", "flops"] = 1e9
    row = relations(frame).set_index("phase").loc["decode"]
    assert row[["pearson", "spearman", "slope", "r_squared"]].isna().all()


def test_few_cells_give_no_interval() -> None:
    row = relations(device(noise=0.1, cells=4)).set_index("phase").loc["llm_blocks"]
    assert not math.isnan(row["pearson"])
    assert math.isnan(row["pearson_low"])


# ---------------------------------------------------------------------------------------------------------- equal FLOPs


def test_decoding_takes_as_many_times_as_long_as_was_planted() -> None:
    found = equal_flops(device(times_decode=3.0))
    assert not isinstance(found, Unknown)
    # 1e7 FLOPs take 10 ms as a step and 0.1 ms as arithmetic: 100 times, and three times that were planted.
    assert found.matched
    assert (found.floor_times, found.times.value) == (pytest.approx(100), pytest.approx(300))


def test_ranges_that_do_not_meet_are_compared_flop_by_flop() -> None:
    frame = device()
    frame = frame[~((frame["phase"] == "decode") & (frame["flops"] > 1e9))]
    found = equal_flops(frame)
    assert not isinstance(found, Unknown)
    assert not found.matched
    assert found.times.value == pytest.approx(100)


def test_a_flop_takes_longer_where_the_host_sets_the_pace() -> None:
    frame = device()
    whole = frame[frame["phase"] == "llm_blocks"].assign(phase="prefill")
    slow = whole["flops"] < 7e9
    whole.loc[slow, "latency_ms"] *= 2.5
    whole.loc[slow, "pace"] = "launch-bound"
    found = pace_cost(whole)
    assert not isinstance(found, Unknown)
    assert found.times.value == pytest.approx(2.5)
    assert (found.launch_bound_cells, found.device_bound_cells) == (5, 7)
    assert isinstance(pace_cost(whole[slow]), Unknown)


# --------------------------------------------------------------------------------------------------------------- models


def test_where_the_roofline_is_the_law_it_predicts_left_out_cells_and_flops_do_not() -> None:
    models = compare_models(device(noise=0.03))
    assert not isinstance(models, Unknown)
    assert models.efficiency == pytest.approx(0.5, rel=0.05)
    assert models.errors["roofline"].high < 0.1
    assert models.errors["flops"].low > 1
    assert models.best_roofline.startswith("roofline")
    assert models.gain.low > 0


def test_where_flops_are_the_law_the_roofline_is_not_said_to_be_better() -> None:
    frame = device()
    frame["latency_ms"] = frame["flops"] / FLOPS_PER_MS
    models = compare_models(frame)
    assert not isinstance(models, Unknown)
    assert models.errors["flops"].value == pytest.approx(0, abs=1e-9)
    assert models.gain.value < 0


def test_half_and_double_are_both_called_a_hundred_percent_off() -> None:
    frame = device()
    twice = frame["phase"] == "vision_encoder"
    frame = frame[twice | (frame["phase"] == "llm_blocks")].copy()
    frame.loc[twice, "latency_ms"] *= 4
    models = compare_models(frame)
    assert not isinstance(models, Unknown)
    # One efficiency stands between two phases of which one is 4 times as slow: it is off by 2, up and down.
    assert models.by_phase["vision_encoder"]["roofline"] == pytest.approx(1.0)
    assert models.by_phase["llm_blocks"]["roofline"] == pytest.approx(1.0)


def test_a_left_out_cell_does_not_take_part_in_its_own_prediction() -> None:
    frame = device(noise=0.1)
    one = compare_models(frame)
    frame.loc[frame["group"] == "cell 3", "latency_ms"] *= 1000
    other = compare_models(frame)
    assert not isinstance(one, Unknown)
    assert not isinstance(other, Unknown)
    own = one.frame["group"] == "cell 3"
    for model in MODELS:
        before, after = (models.frame[f"{model}_ms"] for models in (one, other))
        assert before[own].tolist() == pytest.approx(after[own].tolist())
        assert not np.allclose(before[~own], after[~own])
