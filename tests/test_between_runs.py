"""What is made of many cells or requests has what differs between runs in its interval, as every other number has."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.fakes import FakeRunner
from tests.support.roofline import with_floors
from tests.support.tables import table_of_runs
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.by_run import BY_RUN
from vlmeter.analysis.distances import distances_of
from vlmeter.analysis.distribution import explain, sample_of
from vlmeter.analysis.flops import compare_models, equal_flops, points, relations
from vlmeter.analysis.held_out import OF_RUNS
from vlmeter.analysis.prediction import predict
from vlmeter.analysis.prediction_laws import Forecast, total
from vlmeter.analysis.prediction_model import Query, learn
from vlmeter.analysis.reading import Unknown
from vlmeter.figures.held_out import caption as held_out_caption
from vlmeter.numbers.clusters import t_reach
from vlmeter.numbers.medians import Estimate
from vlmeter.table.quantities import DECODE, PLAIN_WALL

FACTORS = (1.0, 1.1, 0.92)
VISION = {"tilings": ["1x1", "1x2", "2x2", "1x5", "2x4", "3x4"]}
OUTPUT = {"output_tokens": [8, 32], "images": 5, "sampling": {"min_samples": 5, "max_samples": 5}}
LATENCY = {"samples": 70, "block_samples": 35, "output_tokens": [2, 4, 8]}


def table_with(results: Path, factors: tuple[float, ...]) -> pd.DataFrame:
    runners = [FakeRunner(slowdown=factor, noise_fraction=0.004, seed=seed) for seed, factor in enumerate(factors)]
    return with_floors(table_of_runs(results, runners, vision=VISION, output=OUTPUT, latency=LATENCY))


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Three runs that lie ten percents apart."""
    return table_with(tmp_path_factory.mktemp("apart"), FACTORS)


def width(found: Estimate) -> float:
    return found.high - found.low


def reach_of(values: list[float]) -> float:
    return t_reach(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))


# --- distances from the limits ----------------------------------------------------------------------


def test_a_distance_from_the_floor_holds_what_differs_between_runs(apart: pd.DataFrame) -> None:
    whole = next(one for one in distances_of(apart) if one.quantity is PLAIN_WALL)
    by_run = [
        next(one for one in distances_of(apart[apart["run"] == run]) if one.quantity is PLAIN_WALL).times.value
        for run in range(3)
    ]
    assert whole.times.value == pytest.approx(np.mean(by_run), rel=0.01)
    assert width(whole.times) > 2 * reach_of(by_run) > 0.2 * whole.times.value


def test_over_few_cells_what_each_is_off_by_is_counted_between_runs_and_no_second_time(tmp_path: Path) -> None:
    runners = [FakeRunner(noise_fraction=0.1, seed=seed) for seed in range(3)]
    output = {"output_tokens": [8], "images": 2, "sampling": {"min_samples": 9, "max_samples": 9}}
    table = with_floors(table_of_runs(tmp_path, runners, vision={"tilings": ["1x1", "2x2"]}, output=output))
    runs = [own for _, own in table.groupby("run")]
    found = {one.quantity: one for one in distances_of(table)}
    for quantity in (PLAIN_WALL, DECODE):
        by_run = [next(one for one in distances_of(own) if one.quantity is quantity) for own in runs]
        assert width(found[quantity].times) == pytest.approx(2 * reach_of([one.times.value for one in by_run]))
        assert found[quantity].interval_of == ""
        assert all("two in the middle" in one.interval_of for one in by_run)
    for name in ("output_token", "first_token"):
        values = [own[name].found for own in map(answers_of, runs)]
        known = [one.value for one in values if isinstance(one, Estimate)]
        whole = answers_of(table)[name]
        assert isinstance(whole.found, Estimate)
        assert width(whole.found) == pytest.approx(2 * reach_of(known))
        assert "in the middle" not in whole.note
        assert "two in the middle" in answers_of(runs[0])[name].note


def test_of_one_run_it_is_that_runs_own(apart: pd.DataFrame) -> None:
    one = apart[apart["run"] == 1]
    assert BY_RUN not in points(one)  # type: ignore[operator]
    (alone, whole) = (distances_of(table)[0].times for table in (one, apart))
    assert width(alone) / alone.value < width(whole) / whole.value


# --- FLOPs ------------------------------------------------------------------------------------------


def test_a_slope_over_flops_counts_how_it_differs_from_run_to_run(apart: pd.DataFrame) -> None:
    changed = apart.copy()
    other = (changed["run"] == 2) & (changed["clock"] == "wall")
    changed.loc[other, "median_ms"] **= 1.2
    found, before = (relations(points(table)).set_index("phase") for table in (changed, apart))  # type: ignore[arg-type]
    widths = (one.loc["prefill", "slope_high"] - one.loc["prefill", "slope_low"] for one in (found, before))
    assert next(widths) > 2 * next(widths)
    for name, least in (("pearson", -1), ("spearman", -1), ("r_squared", 0)):
        assert found[f"{name}_low"].min() >= least
        assert found[f"{name}_high"].max() <= 1


def test_decoding_over_prefill_at_equal_flops_holds_the_runs(apart: pd.DataFrame) -> None:
    changed = apart.copy()
    slow = (changed["run"] == 2) & (changed["phase"] == "decode")
    for name in ("median_ms", "low_ms", "high_ms", "mean_ms"):
        changed.loc[slow, name] *= 1.5
    found, other = equal_flops(points(changed)), equal_flops(points(apart))  # type: ignore[arg-type]
    assert not isinstance(found, Unknown)
    assert not isinstance(other, Unknown)
    assert width(found.times) > 3 * width(other.times)


def test_errors_of_models_over_flops_hold_the_runs(apart: pd.DataFrame) -> None:
    found = points(apart)
    assert not isinstance(found, Unknown)
    whole, alone = compare_models(found), compare_models(found.drop(columns=BY_RUN))
    assert not isinstance(whole, Unknown)
    assert not isinstance(alone, Unknown)
    for model, error in whole.errors.items():
        assert error.value == alone.errors[model].value
        assert width(error) >= width(alone.errors[model])


# --- what makes requests slow -----------------------------------------------------------------------


def test_a_share_of_what_makes_requests_slow_holds_the_runs(apart: pd.DataFrame) -> None:
    found = explain(sample_of(apart))
    assert not isinstance(found, Unknown)
    by_run = [explain(sample_of(apart[apart["run"] == run])) for run in range(3)]
    gaps = [one.gap_ms.value for one in by_run if not isinstance(one, Unknown)]
    assert len(gaps) == 3
    assert width(found.gap_ms) > 2 * 0.99 * reach_of(gaps)
    slopes = [one.fit["generated_tokens"].value for one in by_run if not isinstance(one, Unknown)]
    assert width(found.fit["generated_tokens"]) > 2 * 0.99 * reach_of(slopes)


def test_shares_are_unknown_where_a_run_does_not_tell_them(apart: pd.DataFrame) -> None:
    sample = sample_of(apart)
    few = sample.requests.drop(sample.requests.index[sample.requests["run"] == 2][2:])
    found = explain(type(sample)(few, 0, kept=False, failed=0))
    assert isinstance(found, Unknown)
    assert "one of the runs by itself does not tell it" in found.reason


# --- predictions ------------------------------------------------------------------------------------


def test_a_request_of_another_run_lies_as_far_away_as_runs_do() -> None:
    values = (98.0, 100.0, 105.0)
    found = Forecast(101.0, 0.0, 0.0, by_run_ms=values).interval
    reach = t_reach(2) * float(np.std(values, ddof=1)) * math.sqrt(1 + 1 / 3)
    assert (found.low, found.high) == pytest.approx((101.0 - reach, 101.0 + reach))
    assert Forecast(101.0, 1.0, 0.0, by_run_ms=(101.0,)).interval == Forecast(101.0, 1.0, 0.0).interval


def test_a_run_that_is_slow_is_so_in_all_parts_of_a_request() -> None:
    parts = [Forecast(10.0, by_run_ms=(9.0, 11.0)), Forecast(20.0, by_run_ms=(18.0, 22.0))]
    assert total(parts).by_run_ms == (27.0, 33.0)
    assert total([Forecast(1.0), Forecast(2.0)]).by_run_ms == ()


def test_the_interval_of_a_prediction_holds_a_run_that_was_not_seen(apart: pd.DataFrame) -> None:
    model = learn(apart)
    assert not isinstance(model, Unknown)
    assert len(model.by_run) == 3
    query = Query(5, 600, 16, photograph=False)
    for of in ("inputs_of", "prefill_of", "decode_of", "first_token_of", "total_of"):
        forecast = getattr(model, of)(query)
        by_run = [getattr(one, of)(query).value_ms for one in model.by_run]
        assert forecast.by_run_ms == pytest.approx(by_run)
        assert forecast.value_ms == pytest.approx(np.mean(by_run), rel=0.02)
    whole = model.total_of(query).interval
    assert whole.low < 0.92 * whole.value < 1.1 * whole.value < whole.high


def test_a_prediction_says_when_its_interval_does_not_hold_the_runs(apart: pd.DataFrame) -> None:
    lacking = apart[~((apart["run"] == 1) & (apart["kind"] == "generation"))]
    model = learn(lacking)
    assert not isinstance(model, Unknown)
    assert model.by_run == ()
    notes = predict(lacking, width_px=448, height_px=336, output_tokens=1, question_tokens=20)["notes"]
    assert "a run by itself does not tell all of this: intervals do not hold what differs between runs" in notes


def test_means_over_runs_that_are_held_out_are_judged_as_means(apart: pd.DataFrame) -> None:
    model = learn(apart)
    assert not isinstance(model, Unknown)
    left = model.without(str(model.prefill.seen.groups[0]))
    assert left is not None
    assert left.by_run == ()
    assert OF_RUNS in held_out_caption(apart)
    assert OF_RUNS not in held_out_caption(apart[apart["run"] == 0])
