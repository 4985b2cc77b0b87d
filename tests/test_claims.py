"""Every claim is judged by the data, in words that follow the verdict, and says so where it cannot tell."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.fakes import FakeRunner, out_of_memory
from tests.support.roofline import with_floors
from tests.support.tables import LATENCY, CpuLikeRunner, table_of
from vlmeter.analysis import prefill_cells
from vlmeter.analysis.roofline import COLUMNS
from vlmeter.claims.base import Claim, Data, Evidence, within
from vlmeter.claims.files import read_claims, write_claims
from vlmeter.claims.registry import CLAIMS, judge_all
from vlmeter.figures.registry import FIGURES
from vlmeter.numbers.medians import Estimate
from vlmeter.table.build import build_table
from vlmeter.table.kinds import GENERATION, PREFILL, REQUESTS


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A subject without noise and without launch time: decode slows by 1 µs per token of context."""
    return table_of(tmp_path_factory.mktemp("claims"), runner=FakeRunner(hook_cost_ms=0.001))


def judged(table: pd.DataFrame, name: str, **options: Any) -> Claim:
    return next(claim for claim in judge_all(table, "fake", **options) if claim.name == name)


def with_samples(table: pd.DataFrame, change: Any, **where: Any) -> pd.DataFrame:
    """Change samples of some rows: `change(samples, row)`."""
    changed = table.copy()
    chosen = np.ones(len(changed), dtype=bool)
    for name, value in where.items():
        chosen &= (changed[name] == value).fillna(False).to_numpy(dtype=bool)
    assert chosen.any()
    changed["samples_ms"] = [
        change(row["samples_ms"], row) if hit else row["samples_ms"]
        for hit, row in zip(chosen, table.to_dict("records"), strict=True)
    ]
    return changed


def test_every_claim_is_judged_once_in_the_order_of_the_registry(table: pd.DataFrame) -> None:
    assert [claim.name for claim in judge_all(table, "fake")] == list(CLAIMS)


def test_every_claim_names_figures_that_exist() -> None:
    assert {figure for entry in CLAIMS.values() for figure in entry.figures} <= set(FIGURES)
    assert all(entry.figures for entry in CLAIMS.values())


def test_every_statement_is_a_sentence_with_numbers_or_a_reason(table: pd.DataFrame) -> None:
    for claim in judge_all(table, "fake"):
        assert claim.statement.endswith(".")
        assert "nan" not in claim.statement
        assert claim.verdict in ("holds", "does not hold", "cannot tell")
        if claim.verdict == "cannot tell" and not claim.evidence:
            assert claim.statement.startswith("Cannot be told: ")


@pytest.mark.parametrize(
    ("estimate", "verdict"),
    [
        (Estimate(0.0, -0.5, 0.5), "holds"),
        (Estimate(2.0, 1.5, 2.5), "does not hold"),
        (Estimate(-2.0, -2.5, -1.5), "does not hold"),
        (Estimate(0.9, 0.5, 1.5), "cannot tell"),
        (Estimate(0.0, -1.0, 1.0), "holds"),
        (Estimate(-1.5, -2.0, -1.0), "cannot tell"),
        (Estimate(1.5, 1.0, 2.0), "cannot tell"),
        (Estimate(0.5, math.nan, math.nan), "holds"),
        (Estimate(math.nan, math.nan, math.nan), "cannot tell"),
    ],
)
def test_a_limit_is_compared_with_the_whole_interval(estimate: Estimate, verdict: str) -> None:
    assert within(estimate, -1.0, 1.0) == verdict


def test_a_kind_was_asked_for_though_others_were_too(table: pd.DataFrame) -> None:
    data = Data(table)
    assert data.has(PREFILL)
    assert data.has(GENERATION, PREFILL)
    assert not data.has(PREFILL, REQUESTS)
    assert not Data(table[table["kind"] == GENERATION]).has(PREFILL)


def test_only_answers_of_subjects_in_the_table_count(table: pd.DataFrame) -> None:
    assert Data(table, by_subject={"fake": {}, "without cells": {}}).by_subject == {"fake": {}}


def test_phases_that_close_hold_and_ones_that_do_not_do_not(table: pd.DataFrame) -> None:
    assert judged(table, "total_is_the_sum").verdict == "holds"
    gap = with_samples(table, lambda samples, row: samples * 1.05, arm="plain", phase="total", clock="device")
    found = judged(gap, "total_is_the_sum")
    assert found.verdict == "does not hold"
    assert "do not add up" in found.statement


def test_hooks_above_below_and_beside_subtraction(table: pd.DataFrame) -> None:
    assert judged(table, "hooks_above_subtraction").verdict == "holds"
    below = with_samples(table, lambda samples, row: samples + 1, arm="plain", phase="total", clock="wall")
    found = judged(below, "hooks_above_subtraction")
    assert found.verdict == "does not hold"
    assert "is below" in found.statement

    def scattered(samples: Any, row: dict[str, Any]) -> Any:
        return samples + np.random.default_rng(row["prompt_tokens"]).normal(size=len(samples))

    beside = with_samples(table, scattered, arm="plain", phase="total", clock="wall")
    assert judged(beside, "hooks_above_subtraction").verdict == "cannot tell"


def dip(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    """Make subtraction (or the hooks' LLM blocks) dip by 8 ms at 2x2."""
    if arm == "plain":
        return with_samples(
            table,
            lambda samples, row: samples - 8,
            arm="plain",
            phase="total",
            clock="wall",
            cell_id="vision-tiling-2x2",
        )
    return with_samples(
        table, lambda samples, row: samples - 8, arm="hooks", phase="llm_blocks", cell_id="vision-tiling-2x2"
    )


def test_subtraction_that_falls_is_named_with_its_tokens(table: pd.DataFrame) -> None:
    assert judged(table, "subtraction_falls").verdict == "does not hold"
    found = judged(dip(table, "plain"), "subtraction_falls")
    assert found.verdict == "holds"
    assert "at 612." in found.statement


def test_hooks_that_rise_hold_and_a_dip_breaks_it(table: pd.DataFrame) -> None:
    assert judged(table, "hooks_rise").verdict == "holds"
    assert judged(dip(table, "hooks"), "hooks_rise").verdict == "does not hold"


def test_a_fall_where_the_device_sets_the_pace_is_not_put_on_the_host(table: pd.DataFrame, tmp_path: Path) -> None:
    assert judged(table, "falls_are_the_hosts").verdict == "cannot tell"
    assert judged(dip(table, "plain"), "falls_are_the_hosts").verdict == "does not hold"
    slow_host = table_of(tmp_path, runner=FakeRunner(launch_ms={"vision_encoder": 40.0}), output=None)
    found = judged(dip(slow_host, "plain"), "falls_are_the_hosts")
    assert found.verdict == "holds"


def test_launch_bound_is_claimed_where_wall_time_is_longer_than_busy_time(table: pd.DataFrame, tmp_path: Path) -> None:
    assert judged(table, "launch_bound_below").verdict == "does not hold"
    cells = prefill_cells.vision_cells(table)
    short = set(cells["cell_id"][:4])

    def slower(samples: Any, row: dict[str, Any]) -> Any:
        return samples + 30 if row["cell_id"] in short else samples

    found = judged(with_samples(table, slower, arm="plain", phase="total", clock="wall"), "launch_bound_below")
    assert found.verdict == "holds"
    assert f"Up to {cells['prompt_tokens'].iloc[3]} prompt tokens" in found.statement
    assert (
        judged(table_of(tmp_path, runner=CpuLikeRunner(), output=None), "launch_bound_below").verdict == "cannot tell"
    )


def test_crops_without_a_cost_are_not_said_to_cost(table: pd.DataFrame, tmp_path: Path) -> None:
    assert judged(table, "crops_and_tokens_cost_apart").verdict == "holds"
    free = FakeRunner(per_crop_ms={}, noise_fraction=0.01)
    found = judged(table_of(tmp_path, runner=free, output=None), "crops_and_tokens_cost_apart")
    assert found.verdict == "cannot tell"
    assert "the cost of one more crop is not known: its 95 % interval holds 0" in found.statement


def test_marks_that_cost_too_much_do_not_hold(table: pd.DataFrame, tmp_path: Path) -> None:
    assert judged(table, "hook_overhead_within_bound").verdict == "holds"
    costly = table_of(tmp_path, runner=FakeRunner(hook_cost_ms=0.5), output=None)
    assert judged(costly, "hook_overhead_within_bound").verdict == "does not hold"


def test_counted_tokens_follow_the_tiling(table: pd.DataFrame) -> None:
    assert judged(table, "token_table_exact").verdict == "holds"
    wrong = table.copy()
    wrong.loc[wrong["cell_id"] == "vision-tiling-3x3", "vision_tokens"] = 930
    found = judged(wrong, "token_table_exact")
    assert found.verdict == "does not hold"
    assert "vision-tiling-3x3" in found.statement


def test_constant_steps_are_linear_and_growing_ones_are_not(tmp_path: Path) -> None:
    constant = FakeRunner(per_token_ms={"llm_blocks": 0.02}, noise_fraction=0.003)
    table = table_of(tmp_path / "a", vision=None, runner=constant)
    assert judged(table, "decode_linear_without_offset").verdict == "holds"
    assert judged(table, "constant_cost_per_token").verdict == "holds"
    assert judged(table, "log_log_slope_is_one").verdict == "holds"
    growing = table_of(tmp_path / "b", vision=None, runner=FakeRunner(per_token_ms={"decode_step": 0.05}))
    assert judged(growing, "decode_linear_without_offset").verdict == "does not hold"
    assert judged(growing, "constant_cost_per_token").verdict == "does not hold"


def test_an_offset_of_many_steps_is_no_line_through_zero(table: pd.DataFrame) -> None:
    offset = with_samples(table, lambda samples, row: samples + 20, phase="decode")
    found = judged(offset, "decode_linear_without_offset")
    assert found.verdict == "does not hold"
    assert "constant of decode is larger" in found.statement
    assert judged(offset, "log_log_slope_is_one").verdict == "does not hold"


def test_doubling_tells_short_outputs_from_long_ones(table: pd.DataFrame) -> None:
    found = judged(table, "doubling_doubles")
    assert found.verdict == "does not hold"
    assert "from 8 to 16 tokens" in found.statement
    assert "From 16 tokens on it does." in found.statement


def test_the_prefills_share_falls_with_length(table: pd.DataFrame) -> None:
    found = judged(table, "prefill_share_falls")
    assert found.verdict == "holds"
    assert [evidence.name for evidence in found.evidence] == ["share at 8 tokens", "share at 64 tokens"]
    assert found.evidence[0].value > found.evidence[1].value


def test_a_direct_run_unlike_its_derived_one_is_seen(table: pd.DataFrame) -> None:
    assert judged(table, "derived_agrees_with_direct").verdict == "holds"
    unlike = table.copy()
    derived = unlike["source"] == "derived"
    unlike.loc[derived, ["median_ms", "low_ms", "high_ms"]] *= 0.9
    assert judged(unlike, "derived_agrees_with_direct").verdict == "does not hold"


def roofline(table: pd.DataFrame, floor_ms: float) -> pd.DataFrame:
    """A roofline table in which every decode step has this floor."""
    rows = table[(table["phase"] == "decode") & (table["arm"] == "hooks") & (table["source"] == "measured")]
    floors_ms = floor_ms * (rows["output_tokens"] - 1)
    return rows.reindex(columns=[name for name, _, _ in COLUMNS]).assign(floor_ms=floors_ms, bound="traffic")


def test_distance_to_the_floor_is_judged_with_the_roofline_and_not_without(table: pd.DataFrame) -> None:
    assert judged(table, "decode_near_floor").verdict == "cannot tell"
    assert judged(table, "decode_near_floor", roofline=roofline(table, 3.0)).verdict == "holds"
    far = judged(table, "decode_near_floor", roofline=roofline(table, 1.0))
    assert far.verdict == "does not hold"
    assert "times" in far.statement
    others = pd.concat([roofline(table, 3.0), roofline(table, 1.0).assign(subject="another")])
    assert judged(table, "decode_near_floor", roofline=others).verdict == "holds"


def floors(table: pd.DataFrame, *, decode_times: float = 1.0, noise: float = 0.05) -> pd.DataFrame:
    """A roofline table of a device on which everything takes about twice its floor; FLOPs are those of the tokens."""
    rows = table[table["median_ms"].notna() & table["phase"].ne("first_call") & table["arm"].isin(["hooks", "plain"])]
    rng = np.random.default_rng(3)
    decode = rows["phase"].eq("decode").to_numpy(dtype=bool)
    tokens = np.where(decode, rows["output_tokens"] - 1, rows["prompt_tokens"]).astype(float)
    weights = {"vision_encoder": 2e9, "projector": 3e8, "llm_blocks": 1e10, "head": 1e8}
    per_token = rows["phase"].map(weights).fillna(1e10).to_numpy(dtype=float)
    floor_ms = rows["median_ms"] / 2 * np.exp(noise * rng.normal(size=len(rows)))
    roofline = rows.reindex(columns=[name for name, _, _ in COLUMNS])
    return roofline.assign(flops=per_token * tokens, floor_ms=floor_ms, bound="traffic", mfu_fraction=0.1)


def test_flops_that_do_not_tell_latency_are_said_not_to_and_the_roofline_to_be_better(table: pd.DataFrame) -> None:
    roofline = floors(table)
    found = judged(table, "flops_predict_latency", roofline=roofline)
    assert found.verdict == "does not hold"
    assert "R²" in found.statement
    better = judged(table, "roofline_beats_flops", roofline=roofline)
    assert better.verdict == "holds"
    assert better.evidence[-1].low is not None
    assert better.evidence[-1].low > 0
    assert judged(table, "equal_flops_equal_time", roofline=roofline).verdict == "does not hold"


def test_flops_that_tell_latency_are_said_to(table: pd.DataFrame) -> None:
    rows = floors(table)
    swapped = rows.assign(flops=1e8 * rows["median_ms"], floor_ms=rows["flops"] / 1e9)
    assert judged(table, "flops_predict_latency", roofline=swapped).verdict == "holds"
    assert judged(table, "roofline_beats_flops", roofline=swapped).verdict == "does not hold"
    assert judged(table, "equal_flops_equal_time", roofline=swapped).verdict == "holds"


def test_without_ceilings_nothing_is_said_of_flops(table: pd.DataFrame) -> None:
    for name in ("flops_predict_latency", "roofline_beats_flops", "equal_flops_equal_time"):
        found = judged(table, name)
        assert found.verdict == "cannot tell"
        assert "ceilings were not measured" in found.statement


def test_an_output_token_that_costs_more_than_a_vision_token_is_told_by_how_much(table: pd.DataFrame) -> None:
    found = judged(table, "output_token_costs_more")
    assert found.verdict == "holds"
    assert found.evidence[-1].unit == "times"
    free = with_samples(table, lambda samples, row: samples / 1e4, phase="decode")
    assert judged(free, "output_token_costs_more").verdict == "does not hold"


def test_exact_laws_are_predicted_and_their_intervals_hold(tmp_path: Path) -> None:
    table = table_of(tmp_path, runner=CpuLikeRunner(noise_fraction=0.01))
    assert judged(table, "held_out_predicted").verdict == "holds"
    assert judged(table, "prediction_intervals_hold").verdict in ("holds", "cannot tell")

    def wild(samples: Any, row: dict[str, Any]) -> Any:
        return samples * float(np.exp(np.random.default_rng(row["prompt_tokens"] + row["output_tokens"]).normal()))

    lawless = with_samples(table, wild, arm="plain", phase="total", clock="wall", experiment="vision_tokens")
    assert judged(lawless, "held_out_predicted").verdict == "does not hold"


@pytest.mark.parametrize(
    "options",
    [
        {"vision": {"tilings": ["1x1"]}, "output": None},
        {"vision": None, "output": {"output_tokens": [1], "sampling": {"min_samples": 1}}},
        {"vision": None, "output": {"output_tokens": [2], "sampling": {"min_samples": 1}}},
        {"vision": None, "runner": FakeRunner(fail={"prefill": out_of_memory, "generate": out_of_memory})},
        {"vision": {"tilings": ["1x1", "1x2"]}, "output": {"output_tokens": [8, 9]}, "runner": CpuLikeRunner()},
    ],
)
def test_no_claim_raises_on_a_study_of_almost_nothing(tmp_path: Path, options: dict[str, Any]) -> None:
    for claim in judge_all(table_of(tmp_path, **options), "fake"):
        assert "nan" not in claim.statement
        assert claim.statement.endswith(".")


def test_under_unusable_conditions_no_claim_about_time_is_judged(table: pd.DataFrame) -> None:
    found = {claim.name: claim for claim in judge_all(table.assign(drifted=True), "fake")}
    assert found["total_is_the_sum"].verdict == "cannot tell"
    assert "Cannot be told under the conditions of this run" in found["total_is_the_sum"].statement
    assert "As measured: The phases add up" in found["total_is_the_sum"].statement
    assert found["token_table_exact"].verdict == "holds"
    assert {claim.verdict for claim in found.values() if CLAIMS[claim.name].timed} == {"cannot tell"}


def test_an_empty_table_is_told_nothing_about() -> None:
    assert {claim.verdict for claim in judge_all(build_table([]), "fake")} == {"cannot tell"}


def test_random_weights_are_never_said_to_answer(table: pd.DataFrame) -> None:
    for claim in judge_all(table, "fake"):
        assert "answer" not in claim.statement.lower()


def test_claims_are_written_as_json_without_nan_and_read_back(table: pd.DataFrame, tmp_path: Path) -> None:
    judged_claims = {"fake": judge_all(table, "fake")}
    write_claims(tmp_path / "claims.json", judged_claims)
    text = (tmp_path / "claims.json").read_text(encoding="utf-8")
    assert "NaN" not in text
    assert list(json.loads(text)) == ["fake"]
    assert read_claims(tmp_path / "claims.json") == judged_claims


# --- many requests, and the components ----------------------------------------------------------------


def requests_table(folder: Path, **latency: Any) -> pd.DataFrame:
    return table_of(folder, vision=None, output=None, latency={**LATENCY, **latency})


def test_a_tail_of_long_answers_is_put_down_to_them_and_one_of_equal_answers_is_not(tmp_path: Path) -> None:
    long = judged(requests_table(tmp_path / "long"), "tail_is_output_length")
    assert long.verdict == "holds"
    assert {evidence.name for evidence in long.evidence} >= {"share of output tokens", "share of nothing known"}
    equal = judged(requests_table(tmp_path / "equal", output_tokens=8), "tail_is_output_length")
    assert equal.verdict == "does not hold"
    assert "all requests have 8 output tokens" in equal.statement


def test_a_long_tail_is_told_from_a_short_one(tmp_path: Path) -> None:
    long = judged(requests_table(tmp_path / "long", output_tokens=[2, 2, 2, 2, 64]), "tail_within_twice_the_middle")
    assert long.verdict == "does not hold"
    short = judged(requests_table(tmp_path / "short", output_tokens=64), "tail_within_twice_the_middle")
    assert short.verdict == "holds"
    few = judged(requests_table(tmp_path / "few", samples=100), "tail_within_twice_the_middle")
    assert (few.verdict, few.statement) == ("cannot tell", "Cannot be told: P99 needs 299 requests, and there are 100.")


def test_latency_is_explained_by_what_requests_are_unless_the_machine_is_uneven(tmp_path: Path) -> None:
    even = judged(requests_table(tmp_path / "even"), "requests_explain_their_latency")
    assert even.verdict == "holds"
    uneven = requests_table(tmp_path / "uneven", output_tokens=8)
    rng = np.random.default_rng(0)
    uneven = with_samples(
        uneven, lambda samples, row: samples * np.exp(rng.standard_normal(len(samples))), arm="request", phase="total"
    )
    assert judged(uneven, "requests_explain_their_latency").verdict == "does not hold"


def test_shares_of_parameters_are_compared_with_shares_of_time(tmp_path: Path) -> None:
    table = requests_table(tmp_path / "apart")
    apart = judged(table, "parameters_are_not_time")
    assert apart.verdict == "holds"
    alike = FakeRunner(
        fixed_ms={"vision_encoder": 10, "projector": 1, "merge": 5, "llm_blocks": 40, "head": 5, "decode_step": 1},
        per_crop_ms={},
        per_token_ms={},
    )
    same = table_of(tmp_path / "alike", runner=alike, vision=None, output=None, latency=LATENCY)
    assert judged(same, "parameters_are_not_time").verdict == "does not hold"


def test_shares_of_flops_are_judged_with_the_roofline_and_not_without(tmp_path: Path) -> None:
    table = requests_table(tmp_path)
    assert judged(table, "flops_are_not_time").verdict == "cannot tell"
    beside = with_floors(table)
    roofline = beside.loc[beside["flops"].notna(), [name for name, _, _ in COLUMNS]]
    found = judged(table, "flops_are_not_time", roofline=roofline)
    assert found.verdict == "holds"
    assert "decode has" in found.statement


@pytest.mark.parametrize(
    ("value", "interval", "unit", "said"),
    [
        (39, (None, None), "", "39"),
        (1152.0, (None, None), "tokens", "1,152 tokens"),
        (3.0, (None, None), "of 4", "3 of 4"),
        (0.0, (None, None), "of 0", None),
        (math.nan, (None, None), "ms", None),
        (2.0, (None, None), "ms", "2.00 ms (no interval)"),
        (39.0, (38.0, 40.0), "", "39.0 (38.0 to 40.0)"),
    ],
)
def test_a_count_is_not_said_as_a_measurement_is(
    value: float, interval: tuple[float | None, float | None], unit: str, said: str | None
) -> None:
    assert Evidence("x", value, *interval, unit).said == said
