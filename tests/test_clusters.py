"""Runs of one thing: every number is told of each by itself, and its interval holds what differs between them."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from scipy import stats as distributions

from tests.support.fakes import FakeRunner
from tests.support.roofline import with_floors
from tests.support.tables import table_of_runs
from vlmeter.analysis import components, conditions, decode_runs, distribution, flops, prefill_cells, step_times
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.by_run import BY_RUN, BetweenRuns, between_runs, frames_by_run, told_by_run
from vlmeter.analysis.conditions import runs_in_words, sentinel, trust
from vlmeter.analysis.reading import Unknown, rows_of, whole_rows
from vlmeter.analysis.runs import pooled_rows, runs_of
from vlmeter.numbers.clusters import added, over_runs, over_runs_of_the_same, percentile_over_runs, share_between
from vlmeter.numbers.medians import Estimate, median_estimate
from vlmeter.table import kinds
from vlmeter.table.quantities import DECODE, DECODE_STEP, GENERATED, PLAIN_WALL

#: How fast the device is in each run.
FACTORS = (1.0, 1.04, 0.97)

LATENCY = {"samples": 60, "block_samples": 30, "output_tokens": [4, 8]}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Three runs that lie percents apart."""
    runners = [FakeRunner(slowdown=factor, noise_fraction=0.004, seed=seed) for seed, factor in enumerate(FACTORS)]
    vision = {"tilings": ["1x1", "1x2", "2x2", "1x5", "2x4", "3x4"]}
    output = {"output_tokens": [8, 32], "sampling": {"min_samples": 5, "max_samples": 5}}
    return table_of_runs(tmp_path_factory.mktemp("runs"), runners, vision=vision, output=output, latency=LATENCY)


def t_interval(values: list[float]) -> tuple[float, float]:
    """Student's interval of a mean, of the textbook."""
    reach = distributions.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values))
    return np.mean(values) - reach, np.mean(values) + reach


# --- the statistics ---------------------------------------------------------------------------------


def exactly(*values: float) -> list[Estimate]:
    return [Estimate(value, value, value) for value in values]


def test_runs_have_the_interval_of_students_t() -> None:
    found = over_runs(exactly(10.0, 11.0, 12.5))
    assert found.value == pytest.approx(33.5 / 3)
    assert (found.low, found.high) == pytest.approx(t_interval([10.0, 11.0, 12.5]))


def test_of_one_run_the_estimate_is_its_own_and_of_none_there_is_none() -> None:
    one, unknown = Estimate(3.0, 2.5, 3.5), Estimate(math.nan, math.nan, math.nan)
    assert over_runs([one, unknown]) == over_runs_of_the_same([one]) == one
    assert math.isnan(over_runs([unknown]).value)
    assert added(one, [one]) == one


def test_runs_that_agree_by_luck_know_no_more_than_their_samples() -> None:
    found = over_runs([Estimate(10.0, 9.0, 11.0)] * 4)
    assert (found.low, found.high) == pytest.approx((9.5, 10.5))
    same = over_runs_of_the_same([Estimate(10.0, 9.0, 11.0)] * 4)
    assert (same.low, same.high) == (9.0, 11.0), "the same cells in each: no run averages them out"


def test_errors_over_cells_and_between_runs_are_added_in_squares() -> None:
    low, high = t_interval([9.0, 10.0, 11.0])
    found = added(Estimate(10.0, 8.0, 13.0), exactly(9.0, 10.0, 11.0))
    below, above = (math.hypot(side, (high - low) / 2) for side in (2, 3))
    assert (found.low, found.high) == pytest.approx((10 - below, 10 + above))


@pytest.mark.parametrize("runs", [2, 3, 5])
@pytest.mark.parametrize("apart", [0.0, 0.01, 0.05])
def test_intervals_of_medians_hold_the_truth_however_far_runs_lie_apart(runs: int, apart: float) -> None:
    """2,000 studies; samples of one run together would hold it in 10 to 40 of 100 at 5 %."""
    rng = np.random.default_rng(runs)
    held = 0
    for _ in range(2000):
        offsets = rng.normal(0, apart, runs)
        found = over_runs([median_estimate((1 + offset + rng.normal(0, 0.02, 9)).tolist()) for offset in offsets])
        held += found.contains(1.0)
    assert held / 2000 > 0.935
    if apart == 0.05:
        assert held / 2000 < 0.965


def test_the_share_between_runs_is_what_sampling_does_not_explain() -> None:
    assert share_between(exactly(1.0, 2.0)) == 1
    assert share_between([Estimate(value, math.nan, math.nan) for value in (1.0, 2.0)]) == 1, "no error is known"
    assert share_between([Estimate(1.0, 0.0, 2.0), Estimate(1.001, 0.0, 2.0)]) == 0
    rng = np.random.default_rng(0)
    found = [median_estimate((offset + rng.normal(0, 1, 25)).tolist()) for offset in rng.normal(0, 0.25, 400)]
    assert 0.3 < share_between(found) < 0.55, "a median of 25 errs by a quarter too, and its interval is a wide one"


def test_a_percentile_wants_enough_samples_in_every_run() -> None:
    samples = np.arange(60.0)
    assert percentile_over_runs([samples, samples[:50]], 0.95) is None
    found = percentile_over_runs([samples, samples + 2], 0.5)
    assert found is not None
    assert found.value == 30.5


# --- cells ------------------------------------------------------------------------------------------


def test_a_cells_time_is_the_mean_of_its_runs_medians_with_their_interval(table: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(table)
    assert cells["cell_id"].is_unique
    for row in cells.to_dict("records"):
        own = table[(table["cell_id"] == row["cell_id"]) & (table["arm"] == "plain") & (table["clock"] == "wall")]
        medians = own.loc[own["phase"] == "total", "median_ms"].to_list()
        assert len(medians) == 3
        assert row["plain_wall_ms"] == pytest.approx(np.mean(medians))
        assert (row["plain_wall_low_ms"], row["plain_wall_high_ms"]) == pytest.approx(t_interval(medians))


def test_shares_and_closures_stay_sharp_where_all_of_a_run_moves_together(table: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(table)
    width = cells["closure_high_fraction"] - cells["closure_low_fraction"]
    whole = (cells["plain_wall_high_ms"] - cells["plain_wall_low_ms"]) / cells["plain_wall_ms"]
    assert width.max() < 0.04 < 0.1 < whole.min()


def test_a_frame_can_be_taken_apart_again_after_it_was_filtered_and_sorted(table: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(table)
    some = cells[cells["crops"] > 3].sort_values("crops", ascending=False)
    for run, frame in enumerate(frames_by_run(some)):
        alone = prefill_cells.vision_cells(table[table["run"] == run]).set_index("cell_id")
        assert frame["cell_id"].to_list() == some["cell_id"].to_list()
        assert frame["llm_blocks_ms"].to_list() == alone.loc[frame["cell_id"], "llm_blocks_ms"].to_list()
        assert BY_RUN not in frame
    assert BY_RUN not in prefill_cells.vision_cells(table[table["run"] == 0])


def crop(own: pd.DataFrame) -> Estimate | Unknown:
    return prefill_cells.part_costs(prefill_cells.vision_cells(own)).crop


def token(own: pd.DataFrame) -> Estimate | Unknown:
    found = prefill_cells.two_factor(prefill_cells.vision_cells(own))
    return found if isinstance(found, Unknown) else found["token"]


def per_token(own: pd.DataFrame) -> Estimate | Unknown:
    law = decode_runs.decode_law(decode_runs.decode(own))
    return law if isinstance(law, Unknown) else law.line["per_token"]


def step(own: pd.DataFrame) -> Estimate | Unknown:
    law = step_times.step_law(own)
    return law if isinstance(law, Unknown) else law.fit["constant"]


def first_token(own: pd.DataFrame) -> Estimate | Unknown:
    return answers_of(own)["first_token"].found


def text_token(own: pd.DataFrame) -> Estimate | Unknown:
    return prefill_cells.text_token_cost(prefill_cells.vision_cells(own))


def middle_request(own: pd.DataFrame) -> Estimate | Unknown:
    return distribution.percentiles(*distribution.sample_of(own).by_run())[0.5] or Unknown("too few")


def at_eight_tokens(own: pd.DataFrame) -> Estimate | Unknown:
    row = decode_runs.by_length(decode_runs.decode(own), DECODE).iloc[0]
    return Estimate(row["value"], row["low"], row["high"])


NUMBERS = (crop, token, per_token, step, first_token, text_token, middle_request, at_eight_tokens)


@pytest.mark.parametrize("of", NUMBERS, ids=lambda of: of.__name__)
def test_a_number_over_cells_holds_what_differs_between_runs_as_well(
    of: Callable[[pd.DataFrame], Estimate | Unknown], table: pd.DataFrame
) -> None:
    whole = of(table)
    by_run = [of(table[table["run"] == run]) for run in range(3)]
    assert isinstance(whole, Estimate)
    values = [one.value for one in by_run if isinstance(one, Estimate)]
    assert whole.value == pytest.approx(np.mean(values), rel=0.01)
    low, high = t_interval(values)
    assert whole.high - whole.low >= 0.999 * (high - low)
    assert all(whole.contains(value) for value in values)


def test_shares_of_components_hold_it_too(table: pd.DataFrame) -> None:
    whole, *alone = (components.profile(own) for own in (table, *runs_of(table)))
    assert isinstance(whole, components.Profile)
    for part, share in whole.time_share.items():
        values = [one.time_share[part].value for one in alone if isinstance(one, components.Profile)]
        assert len(values) == 3
        assert share.low <= min(values) <= share.value <= max(values) <= share.high


# --- rows -------------------------------------------------------------------------------------------


def test_pooled_rows_hold_all_samples_and_sums_of_rounds(table: pd.DataFrame) -> None:
    rows = rows_of(table, PLAIN_WALL, kind=kinds.PREFILL)
    assert rows["cell_id"].is_unique
    raw = table[(table["cell_id"] == rows["cell_id"].iloc[0]) & (table["arm"] == "plain") & (table["clock"] == "wall")]
    raw = raw[raw["phase"] == "total"]
    assert rows["samples_ms"].iloc[0].tolist() == [one for samples in raw["samples_ms"] for one in samples]
    assert rows["rounds"].iloc[0] == raw["rounds"].sum()
    assert rows["max_ms"].iloc[0] == raw["max_ms"].max()
    assert list(rows.dtypes) == list(table.dtypes)
    one = table[table["run"] == 1]
    assert pooled_rows(one) is one


def test_steps_by_context_are_averaged_over_runs_and_not_strung_together(table: pd.DataFrame) -> None:
    pooled = rows_of(table, DECODE_STEP, kind=kinds.GENERATION)
    for row in pooled.to_dict("records"):
        raw = table[(table["cell_id"] == row["cell_id"]) & (table["phase"] == "decode_step")]
        raw = raw[raw["arm"] == "hooks"]
        assert row["samples_ms"] == pytest.approx(np.mean(np.stack(raw["samples_ms"].to_list()), axis=0))


def test_what_happened_in_any_run_is_told_of_the_cell(table: pd.DataFrame) -> None:
    changed = table.copy()
    cell = changed["cell_id"] == "vision-tiling-2x2"
    changed.loc[cell & (changed["run"] == 2), "drifted"] = True
    changed.loc[cell & (changed["run"] == 1), "warmup_settled"] = False
    row = whole_rows(changed).set_index("cell_id").loc["vision-tiling-2x2"]
    assert row["drifted"]
    assert not row["warmup_settled"]
    assert "the sentinel had drifted around 1 of" in trust(changed).reasons[0]


def test_every_sessions_looks_at_the_sentinel_are_seen(table: pd.DataFrame) -> None:
    assert sentinel(table)["session_id"].nunique() == 3


def test_requests_of_every_run_count_as_requests_of_their_own(table: pd.DataFrame) -> None:
    sample = distribution.sample_of(table)
    assert sample.size == 180
    assert [len(values) for values in sample.by_run()] == [60, 60, 60]
    assert sample.distinct < 60


def test_floors_and_flops_stand_beside_the_times_over_all_runs(table: pd.DataFrame) -> None:
    whole = with_floors(table)
    assert len(whole) == len(table)
    key = ["cell_id", "output_tokens", "arm", "phase", "clock", "source"]
    assert whole.groupby(key)["floor_ms"].nunique().max() == 1
    points, *alone = (flops.points(own) for own in (whole, *runs_of(whole)))
    assert isinstance(points, pd.DataFrame)
    assert not points.duplicated(["cell_id", "output_tokens", "phase"]).any()
    for row in points.to_dict("records"):
        same = [own[(own["cell_id"] == row["cell_id"]) & (own["phase"] == row["phase"])] for own in alone]
        values = [float(own.loc[own["output_tokens"] == row["output_tokens"], "latency_ms"].iloc[0]) for own in same]
        assert row["latency_ms"] == pytest.approx(np.mean(values))
        assert row["latency_low_ms"] <= min(values) <= max(values) <= row["latency_high_ms"]


# --- said -------------------------------------------------------------------------------------------


def test_the_report_says_what_part_of_the_uncertainty_is_between_runs(table: pd.DataFrame) -> None:
    found = between_runs(told_by_run(prefill_cells.vision_cells(table), PLAIN_WALL))
    assert found is not None
    assert (found.runs, found.cells) == (3, 6)
    assert found.apart_fraction == pytest.approx(np.std(FACTORS, ddof=1), rel=0.1)
    assert found.share > 0.98
    said = runs_in_words(table)
    assert said.startswith("3 runs, which lie 3.")
    assert "of the variance of a cell's time is between runs" in said
    assert "wider than they need be" not in said


@pytest.mark.parametrize(("apart", "share"), [(0.0, 0.0), (0.004, 0.3)])
def test_the_report_says_that_intervals_over_runs_near_to_each_other_are_wide(
    apart: float, share: float, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = BetweenRuns(runs=3, cells=6, apart_fraction=apart, share=share)
    monkeypatch.setattr(conditions, "between_runs", lambda by_run: near)
    assert runs_in_words(table).endswith("wider than they need be: 99 of 100 hold.")


def test_one_run_says_that_it_cannot_know(table: pd.DataFrame) -> None:
    said = runs_in_words(table[table["run"] == 0])
    assert said.startswith("One run: ")
    assert "cannot be known from one; three runs measure it (runs: 3 in the study)." in said


def test_runs_without_prefills_are_told_by_their_generations(table: pd.DataFrame) -> None:
    generations = table[table["kind"] == kinds.GENERATION]
    found = between_runs(told_by_run(decode_runs.decode(generations), GENERATED))
    assert found is not None
    assert f"median over {found.cells} cells" in runs_in_words(generations)


def test_runs_of_requests_alone_are_told_by_the_middle_request(table: pd.DataFrame) -> None:
    said = runs_in_words(table[table["kind"] == kinds.REQUESTS])
    assert said.startswith("3 runs, whose median requests lie 3.")
    assert said.endswith(" % apart (standard deviation): every interval holds what differs between them.")
