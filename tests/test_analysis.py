"""What is planted in a fake subject comes out of the analysis of its table, and nothing else does."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.fakes import FakeRunner, out_of_memory
from tests.support.tables import CpuLikeRunner, records_of, rewrite, table_of
from vlmeter.analysis import conditions, decode_runs, prefill_cells, reading, step_times
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.reading import Unknown
from vlmeter.measure.monitors import Reading
from vlmeter.numbers.medians import Estimate
from vlmeter.table.build import build_table
from vlmeter.table.quantities import BUSY_PREFILL, CLOSURE, DECODE, PLAIN_WALL, SUBTRACTION_WALL, Quantity


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A subject without noise, whose marks cost 1/100 ms each."""
    return table_of(tmp_path_factory.mktemp("exact"), runner=FakeRunner(hook_cost_ms=0.01))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return table_of(tmp_path_factory.mktemp("noisy"), runner=FakeRunner(noise_fraction=0.02))


def only(found: Any) -> Any:
    """The result, which must not be Unknown."""
    assert not isinstance(found, Unknown), found
    return found


def test_phases_of_a_cell_are_those_declared(exact: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(exact)
    assert len(cells) == 12
    runner = FakeRunner()
    for row in cells.to_dict("records"):
        crops, tokens = row["crops"], row["prompt_tokens"]
        expected = {
            phase: runner.duration_ms(phase, crops=crops, tokens=tokens)
            for phase in ("vision_encoder", "projector", "merge", "llm_blocks", "head")
        }
        marks = {"merge": 2}  # it has two spans, and a mark costs 0.01 ms
        for phase, duration_ms in expected.items():
            assert row[f"{phase}_ms"] == pytest.approx(duration_ms + 0.01 * marks.get(phase, 1))
        assert row["plain_wall_ms"] == pytest.approx(sum(expected.values()))
        assert row["vision_alone_wall_ms"] == pytest.approx(expected["vision_encoder"] + expected["projector"])
        assert row["subtraction_wall_ms"] == pytest.approx(
            expected["merge"] + expected["llm_blocks"] + expected["head"]
        )
        assert row["language_ms"] == pytest.approx(row["subtraction_wall_ms"] + 0.04)
        assert row["method_difference_wall_ms"] == pytest.approx(0.04)
        assert row["overhead_fraction"] == pytest.approx(0.06 / row["plain_wall_ms"])
        assert row["closure_fraction"] == pytest.approx(0.06 / row["plain_wall_ms"])
        assert row["busy_prefill_ms"] == pytest.approx(sum(expected.values()))


def test_cells_come_in_the_order_of_their_tokens(exact: pd.DataFrame) -> None:
    assert prefill_cells.vision_cells(exact)["prompt_tokens"].is_monotonic_increasing


def test_subtraction_is_paired_by_round(tmp_path: Path) -> None:
    records = records_of(tmp_path, vision={"tilings": ["2x2"]}, output=None)

    def shared_noise(data: dict[str, Any]) -> None:
        shift = np.linspace(0, 50, 9)
        for series in data["series"]:
            if series["phase"] == "total" and series["arm"] in ("plain", "vision"):
                series["samples_ms"] = (np.array(series["samples_ms"]) + shift).tolist()

    row = prefill_cells.vision_cells(build_table([rewrite(records[0], shared_noise)])).iloc[0]
    assert row["plain_wall_high_ms"] - row["plain_wall_low_ms"] > 20
    assert row["subtraction_wall_high_ms"] - row["subtraction_wall_low_ms"] < 1e-9


def test_two_factors_come_out_as_planted(exact: pd.DataFrame, noisy: pd.DataFrame) -> None:
    fit = only(prefill_cells.two_factor(prefill_cells.vision_cells(exact)))
    assert fit["crop"].value == pytest.approx(2.5)
    assert fit["token"].value == pytest.approx(0.0205)
    assert fit["constant"].value == pytest.approx(3.6)
    fit = only(prefill_cells.two_factor(prefill_cells.vision_cells(noisy)))
    assert fit["crop"].contains(2.5)
    assert fit["token"].contains(0.0205)


def test_two_factors_are_not_told_apart_where_they_do_not_vary_apart(tmp_path: Path) -> None:
    series = {"tilings": ["1x1", "1x2", "1x3", "1x4", "1x5"]}
    found = prefill_cells.two_factor(prefill_cells.vision_cells(table_of(tmp_path, vision=series, output=None)))
    assert isinstance(found, Unknown)
    assert "independently" in found.reason


def test_each_part_of_the_model_has_the_cost_that_was_planted(exact: pd.DataFrame, noisy: pd.DataFrame) -> None:
    costs = prefill_cells.part_costs(prefill_cells.vision_cells(exact))
    assert only(costs.crop).value == pytest.approx(2.5)
    assert only(costs.token).value == pytest.approx(0.0205)
    cells = prefill_cells.vision_cells(noisy)
    costs = prefill_cells.part_costs(cells)
    assert only(costs.crop).value == pytest.approx(2.5, rel=0.03)
    assert only(costs.token).value == pytest.approx(0.0205, rel=0.03)


def test_costs_of_parts_are_told_even_where_crops_and_tokens_grow_together(tmp_path: Path) -> None:
    series = {"tilings": ["1x1", "1x2", "1x3", "1x4", "1x5"]}
    costs = prefill_cells.part_costs(prefill_cells.vision_cells(table_of(tmp_path, vision=series, output=None)))
    assert only(costs.crop).value == pytest.approx(2.5)
    assert only(costs.token).value == pytest.approx(0.0205)


def test_without_a_choice_of_crops_a_token_costs_what_the_whole_prefill_does(exact: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(exact).assign(crops=1)
    costs = prefill_cells.part_costs(cells)
    assert isinstance(costs.crop, Unknown)
    assert costs.token_is_of == "the whole prefill"
    rise = np.polyfit(cells["prompt_tokens"], cells["vision_ms"] + cells["language_ms"], 1)[0]
    assert only(costs.token).value == pytest.approx(rise)


def test_two_sizes_do_not_make_a_cost(exact: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(exact)
    few = cells[cells["crops"].isin(sorted(cells["crops"].unique())[:2])]
    assert isinstance(prefill_cells.part_costs(few).crop, Unknown)


def test_a_host_that_is_slow_to_launch_makes_small_prefills_launch_bound(tmp_path: Path) -> None:
    table = table_of(tmp_path, runner=FakeRunner(launch_ms={"vision_encoder": 3.0}), output=None)
    cells = prefill_cells.vision_cells(table)
    ratio = 1 + 3.0 / cells["busy_prefill_ms"]
    assert cells["wall_over_busy"].to_numpy() == pytest.approx(ratio.to_numpy(), rel=0.01)
    host, device = cells["wall_over_busy"] > 1.1, cells["wall_over_busy"] <= 1.1
    assert (cells.loc[host, "bound"] == "launch-bound").all()
    assert (cells.loc[device, "bound"] == "device-bound").all()
    found = only(prefill_cells.crossover(cells))
    assert found.launch_bound_cells == host.sum() > 0
    assert found.device_bound_cells == device.sum() > 0
    assert found.last_launch_bound_tokens == cells.loc[host, "prompt_tokens"].max()
    assert found.first_device_bound_tokens == cells.loc[device, "prompt_tokens"].min()


def test_who_sets_the_pace_is_not_judged_without_busy_time(tmp_path: Path) -> None:
    cells = prefill_cells.vision_cells(table_of(tmp_path, runner=CpuLikeRunner(), output=None))
    assert set(cells["bound"]) == {"cannot tell"}
    found = prefill_cells.crossover(cells)
    assert isinstance(found, Unknown)
    assert "in step with the host" in found.reason


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Estimate(1.5, 1.4, 1.6), "launch-bound"),
        (Estimate(1.05, 1.0, 1.08), "device-bound"),
        (Estimate(1.1, 1.05, 1.15), "cannot tell"),
        (Estimate(1.5, math.nan, math.nan), "launch-bound"),
        (Estimate(math.nan, math.nan, math.nan), "cannot tell"),
    ],
)
def test_the_verdict_looks_at_the_whole_interval(ratio: Estimate, verdict: str) -> None:
    assert prefill_cells.judge_bound(ratio)[0] == verdict


def cells_of(values: list[float], *, half_width: float = 0.1) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "prompt_tokens": np.arange(len(values)) * 100 + 300,
            "x_ms": values,
            "x_low_ms": np.array(values) - half_width,
            "x_high_ms": np.array(values) + half_width,
        }
    )


X, X_FRACTION = Quantity("x", "x", "x", "x"), Quantity("x", "x", "x", "x", unit="fraction")


def test_a_fall_beyond_noise_is_found_and_the_largest_comes_first() -> None:
    falls = only(prefill_cells.falls(cells_of([10.0, 12.0, 11.0, 9.0, 15.0]), X))
    assert (falls[0].from_tokens, falls[0].to_tokens) == (400, 600)
    assert falls[0].drop_ms == pytest.approx(3.0)
    assert all(fall.from_tokens < fall.to_tokens for fall in falls)


def test_a_fall_that_drift_between_visits_explains_is_none() -> None:
    cells = cells_of([10.0, 12.0, 11.0])
    assert only(prefill_cells.falls(cells, X))
    assert not only(prefill_cells.falls(cells, X, wander_fraction=0.05))


def test_a_flat_quantity_hardly_ever_falls() -> None:
    found = 0
    for seed in range(100):
        values = 10 + np.random.default_rng(seed).normal(size=35) * 0.05
        found += bool(only(prefill_cells.falls(cells_of(values.tolist(), half_width=0.05 * 1.96), X)))
    assert found <= 5


def test_decode_times_are_the_sums_of_the_declared_steps(exact: pd.DataFrame) -> None:
    runs = decode_runs.decode(exact)
    assert len(runs) == 6 * 4
    for row in runs.to_dict("records"):
        contexts = row["prompt_tokens"] + np.arange(1, row["output_tokens"])
        assert row["decode_ms"] == pytest.approx(float(np.sum(3.0 + 0.001 * contexts)))
        assert row["steps"] == row["output_tokens"] - 1
        assert row["total_ms"] == pytest.approx(row["prefill_ms"] + row["decode_ms"])
        assert row["share_fraction"] == pytest.approx(row["prefill_ms"] / row["total_ms"])
        assert row["first_token_ms"] == pytest.approx(row["prefill_ms"] + row["inputs_wall_ms"])
        assert row["vision_ms"] + row["language_ms"] == pytest.approx(row["prefill_ms"])


def test_a_direct_run_goes_before_a_derived_one(exact: pd.DataFrame, tmp_path: Path) -> None:
    assert set(decode_runs.decode(exact)["source"]) == {"measured"}
    output = {"output_tokens": [8, 16, 32, 64], "direct": [16], "sampling": {"min_samples": 5, "max_samples": 5}}
    runs = decode_runs.decode(table_of(tmp_path, vision=None, output=output))
    sources = runs.groupby("output_tokens")["source"].unique()
    assert {int(n): list(kinds) for n, kinds in sources.items()} == {
        8: ["derived"],
        16: ["measured"],
        32: ["derived"],
        64: ["measured"],
    }


def test_natural_ends_count_the_tokens_that_came(tmp_path: Path) -> None:
    output = {"output_tokens": [8, 32], "stop": "eos", "sampling": {"min_samples": 5, "max_samples": 5}}
    runs = decode_runs.decode(table_of(tmp_path, vision=None, output=output, runner=FakeRunner(ends_after=20)))
    assert set(runs["steps"]) == {7, 19}


def test_a_constant_step_gives_a_straight_line_through_zero(tmp_path: Path) -> None:
    runner = FakeRunner(per_token_ms={"llm_blocks": 0.02}, noise_fraction=0.01)
    law = only(decode_runs.decode_law(decode_runs.decode(table_of(tmp_path, vision=None, runner=runner))))
    assert law.line["per_token"].contains(3.0)
    assert law.line["constant"].contains(0.0)
    assert law.power["slope"].contains(1.0)
    assert law.curvature.contains(0.0)
    assert (law.shortest_tokens, law.longest_tokens, law.images) == (8, 64, 6)


def test_a_step_that_grows_with_context_bends_the_line(tmp_path: Path) -> None:
    runner = FakeRunner(per_token_ms={"decode_step": 0.02})
    law = only(decode_runs.decode_law(decode_runs.decode(table_of(tmp_path, vision=None, runner=runner))))
    assert law.curvature.low > 0.01
    steps, prompt = (
        63,
        decode_runs.decode(table_of(tmp_path / "again", vision=None, runner=runner))["prompt_tokens"].median(),
    )
    bend = 0.02 * steps**2 / 2 / (3 * steps + 0.02 * (prompt * steps + steps * (steps + 1) / 2))
    assert law.curvature.value == pytest.approx(bend, rel=0.25)


def runs_of(values: dict[int, dict[int, float]]) -> pd.DataFrame:
    """Rows as of `decode`: image -> output tokens -> decode time."""
    rows = [(image, n, n - 1, ms) for image, lengths in values.items() for n, ms in lengths.items()]
    return pd.DataFrame(rows, columns=["image_index", "output_tokens", "steps", "decode_ms"])


def test_the_longest_run_does_not_decide_about_the_constant() -> None:
    rng = np.random.default_rng(5)
    lengths = [8, 16, 32, 64, 512, 4096]
    noisy = {i: {n: (3 * (n - 1) + 5) * (1 + 0.005 * rng.normal()) for n in lengths} for i in range(10)}
    constant = only(decode_runs.decode_law(runs_of(noisy))).line["constant"]
    assert constant.contains(5.0)
    assert constant.high - constant.low < 1.0, "the noise of the longest run is 60 ms"


def test_photographs_with_steps_of_their_own_make_no_bend() -> None:
    lengths = {0: [8, 16, 32, 64], 1: [8, 16, 32, 64, 512], 2: [8, 64, 512]}
    straight = {i: {n: (3.0 + i) * (n - 1) for n in found} for i, found in lengths.items()}
    curvature = only(decode_runs.decode_law(runs_of(straight))).curvature
    assert curvature.value == pytest.approx(0, abs=1e-6)


def test_the_step_law_separates_constant_and_slope(exact: pd.DataFrame, noisy: pd.DataFrame) -> None:
    law = only(step_times.step_law(exact))
    assert law.fit["constant"].value == pytest.approx(3.0)
    assert law.fit["per_context_token"].value == pytest.approx(0.001)
    law = only(step_times.step_law(noisy))
    assert law.fit["constant"].contains(3.0)
    assert law.fit["per_context_token"].contains(0.001)


def test_doubling_the_tokens_more_than_doubles_the_steps(exact: pd.DataFrame) -> None:
    growth = decode_runs.growth(decode_runs.decode(exact))
    assert growth["from_tokens"].tolist() == [8, 16, 32]
    assert growth["ratio"].iloc[0] == pytest.approx(15 / 7, rel=0.01)
    assert growth["ratio"].iloc[2] == pytest.approx(63 / 31, rel=0.01)
    assert growth["slope_steps"].iloc[0] == pytest.approx(1.0, abs=0.01)
    assert growth["slope_tokens"].iloc[0] == pytest.approx(math.log2(15 / 7), abs=0.01)


def test_direct_and_derived_runs_agree_where_both_are_the_same(exact: pd.DataFrame, tmp_path: Path) -> None:
    found = decode_runs.agreement(exact)
    assert len(found) == 6 * 3
    assert found["difference_fraction"].abs().max() < 1e-9
    assert found["agrees"].all()


def test_a_direct_run_that_took_longer_does_not_agree(tmp_path: Path) -> None:
    records = records_of(tmp_path, vision=None)

    def slower(data: dict[str, Any]) -> None:
        for series in data["series"]:
            series["samples_ms"] = [1.1 * value for value in series["samples_ms"]]

    rewrite(next(path for path in records if path.stem == "output-image0-n16"), slower)
    found = decode_runs.agreement(build_table(records)).set_index(["image_index", "output_tokens"])
    assert not found.loc[(0, 16), "agrees"]
    assert found.loc[(0, 16), "difference_fraction"] == pytest.approx(1 / 1.1 - 1)
    assert found["agrees"].sum() == 6 * 3 - 1


def test_inter_token_latency_is_that_of_the_longest_runs(exact: pd.DataFrame) -> None:
    samples = step_times.inter_token(exact)
    assert len(samples) == 6 * 63 * 5
    found = step_times.inter_token_percentiles(samples)
    assert all(estimate is not None for estimate in found.values())
    assert found[0.5].value == pytest.approx(np.median(samples))  # type: ignore[union-attr]
    assert step_times.inter_token_percentiles(samples[:100])[0.99] is None


def test_the_sentinel_is_seen_once_more_than_there_are_batches(noisy: pd.DataFrame) -> None:
    visits = conditions.sentinel(noisy)
    assert len(visits) == 1 + math.ceil((12 + 24) / 10)
    assert visits["position"].tolist() == [0, 10, 20, 30, 36]
    assert visits["fraction"].iloc[0] == 0
    assert not visits["drifted"].any()
    assert conditions.sentinel_wander(noisy) == pytest.approx(visits["fraction"].std())
    assert 0 < conditions.sentinel_wander(noisy) < 0.02


def test_quiet_conditions_are_called_quiet(exact: pd.DataFrame) -> None:
    assert conditions.trust(exact) == conditions.Trust("quiet", ("no disturbance was seen",))


def test_drifted_cells_and_disturbed_rounds_are_named(exact: pd.DataFrame) -> None:
    table = exact.copy()
    cells = table["cell_id"].unique()
    table.loc[table["cell_id"].isin(cells[:4]), "drifted"] = True
    found = conditions.trust(table)
    assert found.verdict == "disturbed"
    assert "4 of 36 cells" in found.reasons[0]
    table["drifted"] = True
    assert conditions.trust(table).verdict == "unusable"


def test_a_sentinel_that_jumps_about_is_not_called_quiet(exact: pd.DataFrame) -> None:
    table = exact.copy()
    table["drift_after_ms"] *= 1 + 0.4 * (table["session_position"] // 10).to_numpy(dtype=np.float64)
    found = conditions.trust(table)
    assert found.verdict == "unusable"
    assert "varied by" in found.reasons[0]


def with_steps(table: pd.DataFrame, factor: Callable[[Any], Any]) -> pd.DataFrame:
    """Every decode step multiplied by what `factor` gives for its place in the run."""
    changed = table.copy()
    decode = changed["phase"].fillna("") == "inter_token"
    lengths = {
        (row["cell_id"], row["output_tokens"]): len(row["samples_ms"])
        for row in table[(table["phase"] == "decode_step") & (table["arm"] == "hooks")].to_dict("records")
    }
    for place in changed.index[decode]:
        samples = np.asarray(changed.at[place, "samples_ms"])
        steps = lengths[changed.at[place, "cell_id"], changed.at[place, "output_tokens"]]
        changed.at[place, "samples_ms"] = samples * factor(np.arange(len(samples)) % steps)
    return changed


def test_uneven_decode_steps_are_said_and_leave_the_verdict(exact: pd.DataFrame) -> None:
    restless = with_steps(exact, lambda place: np.where(place % 7 == 3, 2.0, 1.0))
    found = conditions.trust(restless)
    assert found.verdict == "quiet"
    (reason,) = found.reasons
    assert "decode steps that do the same work took" in reason
    unevenness = step_times.step_unevenness(restless)
    assert isinstance(unevenness, step_times.StepUnevenness)
    assert unevenness.ratio == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize(("waves", "said"), [(1, True), (8, False)])
def test_rounds_that_resemble_the_ones_before_are_said_and_leave_the_verdict(
    exact: pd.DataFrame, waves: int, said: bool
) -> None:
    """One slow wave through twenty rounds is a correlation; eight waves, rounds that alternate, are none."""
    wave = np.sin(np.linspace(0, 2 * np.pi * waves, 20, endpoint=False) + 0.3)
    series = 10 + 0.1 * np.arcsin(wave)  # a wave of straight lines, whose values have no two modes
    wavy = exact.assign(
        samples_ms=[series if isinstance(own, np.ndarray | list) else own for own in exact["samples_ms"]]
    )
    found = conditions.trust(wavy)
    assert found.verdict == "quiet"
    assert any("rounds resemble the ones before them (correlation 0.9)" in reason for reason in found.reasons) == said


@pytest.mark.parametrize("wandering", [0, 1, 3])
def test_cells_whose_rounds_resemble_each_other_more_than_the_others_are_counted(
    exact: pd.DataFrame, wandering: int
) -> None:
    """One in a hundred goes that far by chance, so that one cell of these is none to speak of."""
    wave = np.arcsin(np.sin(np.linspace(0, 2 * np.pi, 20, endpoint=False) + 0.3))
    chosen = list(exact.loc[exact["kind"] == "prefill", "cell_id"].unique()[:wandering])
    rng = np.random.default_rng(4)
    samples = [
        own
        if not isinstance(own, np.ndarray | list)
        else 10 + 0.1 * (wave if cell in chosen else rng.standard_normal(20))
        for cell, own in zip(exact["cell_id"], exact["samples_ms"], strict=True)
    ]
    found = conditions.trust(exact.assign(samples_ms=samples))
    said = [reason for reason in found.reasons if "resemble the ones before them" in reason]
    assert found.verdict == "quiet"
    assert len(said) == (wandering == 3)
    assert not said or f"rounds of 3 of {exact['cell_id'].nunique()} cells" in said[0]


def test_steps_that_grow_with_the_context_are_not_uneven(exact: pd.DataFrame) -> None:
    growing = with_steps(exact, lambda place: 1 + place / 30)
    assert conditions.trust(growing).reasons == ("no disturbance was seen",)
    unevenness = step_times.step_unevenness(growing)
    assert isinstance(unevenness, step_times.StepUnevenness)
    assert unevenness.ratio < 1.05


def test_few_steps_say_nothing_about_unevenness(tmp_path: Path) -> None:
    output = {"output_tokens": [4], "sampling": {"min_samples": 3, "max_samples": 3}}
    found = step_times.step_unevenness(table_of(tmp_path, vision=None, output=output))
    assert isinstance(found, Unknown)


def test_a_host_under_foreign_load_is_not_called_quiet(tmp_path: Path) -> None:
    class Loaded:
        def read(self) -> Reading:
            return Reading(disturbances=("other processes on the host",))

        def energy_j(self) -> None:
            return None

    found = conditions.trust(table_of(tmp_path, monitor=Loaded(), output=None))
    assert found.verdict == "unusable"
    assert "other processes on the host" in found.reasons[0]


def test_pooled_interval_is_over_cells_or_spans_those_of_few() -> None:
    values = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06]
    frame = pd.DataFrame({"x_fraction": values, "x_low_fraction": np.array(values) - 0.1, "x_high_fraction": 0.2})
    assert only(prefill_cells.pooled(frame, X_FRACTION)).low >= 0.01
    few = only(prefill_cells.pooled(frame.iloc[:2], X_FRACTION))
    assert few == Estimate(pytest.approx(0.015), pytest.approx(-0.09), 0.2)  # type: ignore[arg-type]
    assert isinstance(prefill_cells.pooled(frame.iloc[:0], X_FRACTION), Unknown)


def test_equal_tokens_with_unequal_crops_are_found(exact: pd.DataFrame) -> None:
    assert prefill_cells.repeated_counts(prefill_cells.vision_cells(exact)) == [864, 1152]


def test_shares_of_phases_add_up(exact: pd.DataFrame) -> None:
    assert prefill_cells.phase_shares(prefill_cells.vision_cells(exact))["median_fraction"].sum() == pytest.approx(
        1, abs=0.05
    )


def test_a_cell_without_numbers_is_left_out_and_listed(tmp_path: Path) -> None:
    table = table_of(tmp_path, runner=FakeRunner(fail={"vision": out_of_memory}))
    assert prefill_cells.vision_cells(table).empty
    assert len(decode_runs.decode(table)) == 24
    found = reading.left_out(table)
    assert set(found["status"]) == {"oom"}
    assert len(found) == 12


def test_subjects_are_never_pooled(exact: pd.DataFrame) -> None:
    other = exact.assign(subject="other")
    both = pd.concat([exact, other], ignore_index=True)
    assert reading.subjects_of(both) == ["fake", "other"]
    with pytest.raises(ValueError, match="name one"):
        prefill_cells.vision_cells(both)
    pd.testing.assert_frame_equal(prefill_cells.vision_cells(both, "fake"), prefill_cells.vision_cells(exact))


def everything(table: pd.DataFrame) -> list[object]:
    cells, runs = prefill_cells.vision_cells(table), decode_runs.decode(table)
    return [
        prefill_cells.two_factor(cells),
        prefill_cells.crossover(cells),
        prefill_cells.falls(cells, SUBTRACTION_WALL, wander_fraction=conditions.sentinel_wander(table)),
        prefill_cells.pooled(cells, CLOSURE),
        prefill_cells.phase_shares(cells),
        prefill_cells.repeated_counts(cells),
        decode_runs.decode_law(runs),
        decode_runs.growth(runs),
        decode_runs.by_length(runs, DECODE),
        step_times.step_law(table),
        decode_runs.agreement(table),
        step_times.inter_token_percentiles(step_times.inter_token(table)),
        conditions.sentinel(table),
        conditions.trust(table),
        list(answers_of(table).values()),
        reading.left_out(table),
    ]


def test_nothing_raises_on_an_empty_table() -> None:
    found = everything(build_table([]))
    assert sum(isinstance(one, Unknown) for one in found) == 6


@pytest.mark.parametrize(
    "options",
    [
        {"vision": {"tilings": ["1x1"]}, "output": None},
        {"vision": None, "output": {"output_tokens": [1], "sampling": {"min_samples": 1}}},
        {"vision": None, "output": {"output_tokens": [2], "sampling": {"min_samples": 1}}},
        {
            "vision": {"tilings": ["1x1"]},
            "output": {"output_tokens": [8]},
            "runner": FakeRunner(fail={"prefill": out_of_memory}),
        },
        {"vision": {"image_sizes": ["640x480"]}, "output": None, "runner": CpuLikeRunner()},
    ],
)
def test_nothing_raises_on_a_study_of_almost_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    assert len(everything(table_of(tmp_path, **options))) == 16


def test_steps_that_wait_for_the_host_are_launch_bound_and_others_are_not(tmp_path: Path) -> None:
    slow = step_times.step_bound(table_of(tmp_path / "slow", runner=FakeRunner(launch_ms={"decode_step": 9.0})))
    quick = step_times.step_bound(table_of(tmp_path / "quick", runner=FakeRunner(launch_ms={"decode_step": 0.5})))
    assert not isinstance(slow, Unknown)
    assert not isinstance(quick, Unknown)
    assert (slow.bound, quick.bound) == ("launch-bound", "device-bound")
    assert slow.step.value == pytest.approx(9.0, rel=0.01)
    assert slow.busy.value < 4.5


def test_costs_are_told_in_wall_time_unless_the_host_sets_the_pace_somewhere(tmp_path: Path) -> None:
    quick = prefill_cells.vision_cells(table_of(tmp_path / "quick", output=None))
    runner = FakeRunner(launch_ms={"vision_encoder": 15.0})
    slow = prefill_cells.vision_cells(table_of(tmp_path / "slow", runner=runner, output=None))
    assert prefill_cells.cost_clock(quick).quantity is PLAIN_WALL
    clock = prefill_cells.cost_clock(slow)
    assert clock.quantity is BUSY_PREFILL
    assert only(prefill_cells.two_factor(slow, clock.quantity))["crop"].value == pytest.approx(2.5)
    costs = prefill_cells.part_costs(slow)
    assert costs.clock.quantity is BUSY_PREFILL
    assert only(costs.crop).value == pytest.approx(2.5)
    assert only(costs.token).value == pytest.approx(0.0205)
    unknown = slow.assign(busy_prefill_ms=float("nan"))
    assert prefill_cells.cost_clock(unknown).quantity is PLAIN_WALL
