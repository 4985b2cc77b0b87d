"""Floors and utilisations are the closed forms, and belong to the rows that they stand beside."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from vlmeter.analysis.distribution import requests
from vlmeter.analysis.roofline import (
    COLUMNS,
    floor_of,
    floor_of_all,
    mbu_fraction,
    mfu_fraction,
    roofline_table,
    write_roofline,
)
from vlmeter.common.errors import UserError
from vlmeter.records.ceilings import Ceilings
from vlmeter.records.work import PhaseWork, ShapeWork, StepWork, SubjectWork, Work, read_work, write_work
from vlmeter.table.build import build_table

from .support.fakes import FakeRunner
from .support.roofline import A100, H200, ceilings_of
from .support.studies import run_fake, study_of
from .support.tables import table_of

#: Molmo-7B-D: what `vlmeter.measure.count_work` counts (tests/test_flops.py says so).
SEVEN_STEP = StepWork(
    flops=14_140_571_648,
    flops_per_context_token=28 * 4 * 3584,
    weight_bytes=14_141_238_272,
    cache_bytes_per_token=57_344,
)

ONE_TERA = ceilings_of(copy_bytes_per_s=1e12, matrix_flops_per_s=100e12)


def phase(name: str = "a", *, flops: int = 0, weight_bytes: int = 0, cache_bytes: int = 0) -> PhaseWork:
    return PhaseWork(phase=name, flops=flops, weight_bytes=weight_bytes, cache_bytes=cache_bytes)


# ------------------------------------------------------------------------------------------------------------- floors


def test_arithmetic_is_the_floor_where_there_is_more_of_it() -> None:
    floor = floor_of(phase(flops=10**12, weight_bytes=10**9), ONE_TERA)
    assert (floor.floor_ms, floor.bound) == (pytest.approx(10.0), "arithmetic")


def test_traffic_is_the_floor_where_there_is_more_of_it() -> None:
    floor = floor_of(phase(flops=10**10, weight_bytes=10**9, cache_bytes=10**9), ONE_TERA)
    assert (floor.floor_ms, floor.bound) == (pytest.approx(2.0), "traffic")


def test_phases_that_follow_each_other_add_their_floors() -> None:
    both = [phase(flops=10**12), phase(weight_bytes=10**9)]
    floor = floor_of_all(both, ONE_TERA)
    assert (floor.floor_ms, floor.bound) == (pytest.approx(11.0), "arithmetic")
    # One kernel that did both could overlap them; two phases, of which one needs the other's result, cannot.
    together = floor_of(phase(flops=10**12, weight_bytes=10**9), ONE_TERA)
    assert floor.floor_ms > together.floor_ms


def test_doing_nothing_takes_no_time() -> None:
    assert floor_of_all([], ONE_TERA).floor_ms == 0


@pytest.mark.parametrize(
    ("bandwidth", "floor_ms"),
    [(4.8e12, 2.95), (4.25e12, 3.33), (2.039e12, 6.94), (1.008e12, 14.03), (0.205e12, 69.0)],
)
def test_the_decode_floor_of_molmo_7b_d(bandwidth: float, floor_ms: float) -> None:
    device = ceilings_of(copy_bytes_per_s=bandwidth, matrix_flops_per_s=1e15)
    floor = floor_of(SEVEN_STEP.at(1), device)
    assert floor.floor_ms == pytest.approx(floor_ms, rel=2e-3)
    assert floor.bound == "traffic"


def test_a_step_reads_the_keys_and_values_of_its_context_and_writes_its_own() -> None:
    near, far = SEVEN_STEP.at(1000), SEVEN_STEP.at(1001)
    assert near.cache_bytes == 1001 * 57_344
    assert far.cache_bytes - near.cache_bytes == 57_344
    assert far.flops - near.flops == 401_408


def test_reading_keys_and_values_bends_decoding_by_under_a_percent() -> None:
    work = Work(cell_id="a", crops=2, vision_tokens=0, prompt_tokens=0, prefill=(), step=SEVEN_STEP)
    whole = floor_of_all(work.decode(4096), H200).floor_ms
    straight = 4096 * floor_of(SEVEN_STEP.at(0), H200).floor_ms
    assert whole / straight - 1 == pytest.approx(0.0083, abs=1e-4)


def test_the_first_step_attends_to_the_prompt_and_to_its_own_token() -> None:
    work = Work(cell_id="a", crops=2, vision_tokens=0, prompt_tokens=100, prefill=(), step=SEVEN_STEP)
    first, second = work.decode(2)
    assert (first, second) == (SEVEN_STEP.at(101), SEVEN_STEP.at(102))
    assert work.decode(0) == []


def test_below_some_tokens_a_prefill_is_bound_by_its_weights() -> None:
    parameters = 6_525_618_176
    below, above = (floor_of(phase(flops=2 * parameters * n, weight_bytes=2 * parameters), H200) for n in (205, 207))
    assert (below.bound, above.bound) == ("traffic", "arithmetic")


# ------------------------------------------------------------------------------------------------------- utilisation


def test_work_at_its_floor_uses_one_ceiling_wholly() -> None:
    for work in (phase(flops=10**13, weight_bytes=10**6), phase(flops=10**6, weight_bytes=10**9)):
        floor = floor_of(work, A100)
        mfu = mfu_fraction(work.flops, floor.floor_ms, A100)
        mbu = mbu_fraction(work.traffic_bytes, floor.floor_ms, A100)
        assert max(mfu, mbu) == pytest.approx(1.0)
        assert (mfu > mbu) == (floor.bound == "arithmetic")


def test_half_the_speed_is_half_the_utilisation() -> None:
    assert mfu_fraction(10**12, 20.0, ONE_TERA) == pytest.approx(0.5)
    assert mbu_fraction(10**9, 2.0, ONE_TERA) == pytest.approx(0.5)


# -------------------------------------------------------------------------------------------------------------- table

PHASES = ("vision_encoder", "projector", "merge", "llm_blocks", "head")
STEP = StepWork(flops=10**9, flops_per_context_token=10**6, weight_bytes=10**8, cache_bytes_per_token=10**4)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    results = tmp_path_factory.mktemp("results")
    assert run_fake(study_of(), results, runner=FakeRunner()).measured
    return build_table(sorted((results / "small" / "cells" / "fake").glob("*.json")))


@pytest.fixture(scope="module")
def works(table: pd.DataFrame) -> dict[str, SubjectWork]:
    cells = table.drop_duplicates("cell_id")
    found = [
        Work(
            cell_id=row["cell_id"],
            crops=row["crops"],
            vision_tokens=row["vision_tokens"],
            prompt_tokens=row["prompt_tokens"],
            prefill=tuple(phase(name, flops=10**9 * (i + 1), weight_bytes=10**7) for i, name in enumerate(PHASES)),
            step=STEP,
        )
        for row in cells.to_dict("records")
    ]
    return {"fake": SubjectWork(subject="fake", cells=tuple(found))}


@pytest.fixture(scope="module")
def roofline(table: pd.DataFrame, works: dict[str, SubjectWork]) -> pd.DataFrame:
    return roofline_table(table, works, {"fake": ONE_TERA})


KEY = [name for name, _, _ in COLUMNS[:7]]


def test_every_row_is_one_of_the_table(table: pd.DataFrame, roofline: pd.DataFrame) -> None:
    assert not roofline.duplicated(KEY).any()
    joined = roofline.merge(table, on=KEY, how="left", suffixes=("", "_in_table"), validate="one_to_one")
    assert (joined["median_ms"] == joined["median_ms_in_table"]).all()


def test_every_phase_of_every_prefill_has_work(table: pd.DataFrame, roofline: pd.DataFrame) -> None:
    for cell_id in table["cell_id"].unique():
        found = roofline[(roofline["cell_id"] == cell_id) & (roofline["arm"] == "hooks")]
        assert set(PHASES) <= set(found["phase"])


def test_what_the_host_does_has_none(roofline: pd.DataFrame) -> None:
    assert not set(roofline["phase"]) & {"preprocess", "copy", "first_call"}
    assert not set(roofline["clock"]) & {"launch"}
    assert "inputs" not in set(roofline["arm"])


def one(roofline: pd.DataFrame, **key: object) -> pd.Series:
    for name, value in key.items():
        roofline = roofline[roofline[name] == value]
    assert len(roofline) == 1
    return roofline.iloc[0]


def test_a_phase_is_set_beside_its_own_work(roofline: pd.DataFrame) -> None:
    row = one(roofline, cell_id="vision-tiling-2x2", arm="hooks", phase="llm_blocks")
    assert (row["flops"], row["weight_bytes"], row["cache_bytes"]) == (4e9, 1e7, 0)
    assert row["floor_ms"] == pytest.approx(4e9 / 100e12 * 1000)
    assert row["bound"] == "arithmetic"
    assert row["mfu_fraction"] == pytest.approx(row["floor_ms"] / row["median_ms"])
    assert row["floor_fraction"] == pytest.approx(row["mfu_fraction"])
    assert row["mbu_fraction"] == pytest.approx(1e7 / 1e12 * 1000 / row["median_ms"])


@pytest.mark.parametrize("clock", ["wall", "device"])
def test_a_whole_prefill_is_the_sum_of_its_phases(roofline: pd.DataFrame, clock: str) -> None:
    row = one(roofline, cell_id="vision-tiling-2x2", arm="plain", phase="total", clock=clock)
    assert row["flops"] == 15e9
    assert row["floor_ms"] == pytest.approx(15e9 / 100e12 * 1000)


def test_vision_alone_is_encoder_and_projector(roofline: pd.DataFrame) -> None:
    timed = one(roofline, cell_id="vision-tiling-2x2", arm="vision", phase="total", clock="device")
    busy = one(roofline, cell_id="vision-tiling-2x2", arm="busy", phase="vision")
    assert timed["flops"] == busy["flops"] == 3e9


def test_a_generation_is_its_prefill_and_all_its_steps(roofline: pd.DataFrame) -> None:
    cell = roofline[roofline["cell_id"] == "output-image0-n16"]
    prompt = cell["prompt_tokens"].iloc[0]
    contexts = [prompt + number for number in range(1, 16)]
    decode = one(cell, phase="decode", source="measured")
    assert decode["flops"] == sum(10**9 + 10**6 * context for context in contexts)
    assert decode["weight_bytes"] == 15 * 10**8
    assert decode["cache_bytes"] == sum(10**4 * (context + 1) for context in contexts)
    assert decode["floor_ms"] == pytest.approx((decode["weight_bytes"] + decode["cache_bytes"]) / 1e12 * 1000)
    assert decode["bound"] == "traffic"
    total = one(cell, phase="total", arm="hooks", clock="wall")
    assert total["flops"] == decode["flops"] + 15e9


def test_a_step_is_set_beside_the_mean_step(roofline: pd.DataFrame) -> None:
    cell = roofline[roofline["cell_id"] == "output-image0-n16"]
    decode, step = one(cell, phase="decode", source="measured"), one(cell, phase="inter_token")
    assert step["flops"] == pytest.approx(decode["flops"] / 15)
    assert step["floor_ms"] == pytest.approx(decode["floor_ms"] / 15)


def test_a_derived_decode_has_the_work_of_its_own_length(roofline: pd.DataFrame) -> None:
    derived = one(roofline[roofline["cell_id"] == "output-image0-n16"], source="derived", output_tokens=8)
    assert derived["weight_bytes"] == 7 * 10**8


def test_the_roofline_table_can_be_written_and_read(roofline: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "roofline.parquet"
    write_roofline(roofline, path)
    assert list(pd.read_parquet(path).columns) == [name for name, _, _ in COLUMNS]


def test_a_study_without_samples_gives_an_empty_table(table: pd.DataFrame) -> None:
    empty = roofline_table(table[table["status"] == "oom"], {}, {})
    assert list(empty.columns) == [name for name, _, _ in COLUMNS]
    assert empty.empty


@pytest.mark.parametrize(
    ("ceilings", "words"),
    [
        ({}, "none were measured for subject fake"),
        ({"fake": A100}, "belong to A100 in bfloat16, and cell"),
        ({"fake": ceilings_of(copy_bytes_per_s=1, matrix_flops_per_s=1, dtype="bfloat16")}, "in bfloat16"),
    ],
)
def test_ceilings_of_another_device_are_refused(
    table: pd.DataFrame, works: dict[str, SubjectWork], ceilings: dict[str, Ceilings], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        roofline_table(table, works, ceilings)


def test_a_model_on_several_cards_has_the_floor_of_one(table: pd.DataFrame, works: dict[str, SubjectWork]) -> None:
    """They work one after the other."""
    spread = table.assign(device_model="3 x " + table["device_model"])
    one, three = (roofline_table(rows, works, {"fake": ONE_TERA}) for rows in (table, spread))
    assert three["floor_ms"].tolist() == pytest.approx(one["floor_ms"].tolist(), nan_ok=True)
    assert three["floor_ms"].notna().any()


def test_work_that_was_not_counted_is_refused(table: pd.DataFrame, works: dict[str, SubjectWork]) -> None:
    fewer = {"fake": works["fake"].model_copy(update={"cells": works["fake"].cells[1:]})}
    for wrong in ({}, fewer):
        with pytest.raises(UserError, match="none was counted"):
            roofline_table(table, wrong, {"fake": ONE_TERA})


def test_work_of_other_inputs_is_refused(table: pd.DataFrame, works: dict[str, SubjectWork]) -> None:
    cells = tuple(work.model_copy(update={"crops": work.crops + 1}) for work in works["fake"].cells)
    wrong = {"fake": works["fake"].model_copy(update={"cells": cells})}
    with pytest.raises(UserError, match="was counted for"):
        roofline_table(table, wrong, {"fake": ONE_TERA})


def test_work_survives_its_file(works: dict[str, SubjectWork], tmp_path: Path) -> None:
    path = tmp_path / "work.json"
    write_work(path, works["fake"])
    assert read_work(path) == works["fake"]


@pytest.mark.parametrize("content", ["", "[]", '{"work_version": 1}', '{"work_version": 0}', '{"a": 1}'])
def test_a_file_that_is_no_work_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "work.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"work\.json"):
        read_work(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_work(tmp_path / "work.json")


def test_the_roofline_needs_no_torch() -> None:
    names = "vlmeter.analysis.roofline, vlmeter.measure.ceilings, vlmeter.measure.doctor"
    code = f"import sys; sys.modules['torch'] = None; import {names}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


# --- blocks of requests -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def requests_table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    latency = {"samples": 12, "block_samples": 6, "output_tokens": [1, 5]}
    return table_of(tmp_path_factory.mktemp("requests"), vision=None, output=None, latency=latency)


def shapes_of(table: pd.DataFrame) -> SubjectWork:
    """Work of every shape: as many FLOPs as crops in the vision encoder, as many as tokens in the LLM blocks."""
    shapes = requests(table).drop_duplicates(["crops", "vision_tokens", "prompt_tokens"])
    step = StepWork(flops=10, flops_per_context_token=1, weight_bytes=100, cache_bytes_per_token=2)
    return SubjectWork(
        subject="fake",
        cells=(),
        shapes=tuple(
            ShapeWork(
                crops=row["crops"],
                vision_tokens=row["vision_tokens"],
                prompt_tokens=row["prompt_tokens"],
                prefill=(
                    PhaseWork(phase="vision_encoder", flops=row["crops"], weight_bytes=7),
                    PhaseWork(phase="llm_blocks", flops=row["prompt_tokens"], weight_bytes=70),
                ),
                step=step,
            )
            for row in shapes.to_dict("records")
        ),
    )


def test_a_block_has_the_work_of_a_mean_request(requests_table: pd.DataFrame) -> None:
    limits = ceilings_of(copy_bytes_per_s=1e6, matrix_flops_per_s=1e6)
    works = {"fake": shapes_of(requests_table)}
    found = roofline_table(requests_table, works, {"fake": limits})
    one = found[(found["cell_id"] == "distribution-block000") & (found["clock"] == "device")].set_index("phase")
    own = requests(requests_table).head(6)
    assert one.loc["vision_encoder", "flops"] == pytest.approx(own["crops"].mean())
    assert one.loc["llm_blocks", "flops"] == pytest.approx(own["prompt_tokens"].mean())
    steps = own["generated_tokens"] - 1
    decode = sum(
        10 + context
        for prompt, count in zip(own["prompt_tokens"], steps, strict=True)
        for context in range(prompt + 1, prompt + count + 1)
    )
    assert one.loc["decode", "flops"] == pytest.approx(decode / 6)
    assert one.loc["decode", "weight_bytes"] == pytest.approx(100 * steps.mean())
    whole = one.loc[["vision_encoder", "llm_blocks", "decode"], "flops"].sum()
    assert one.loc["total", "flops"] == pytest.approx(whole)
    mean_ms = own["llm_blocks_ms"].mean()
    assert one.loc["llm_blocks", "mfu_fraction"] == pytest.approx(own["prompt_tokens"].mean() / (mean_ms / 1000) / 1e6)
    assert set(found["phase"]) == {"total", "vision_encoder", "llm_blocks", "decode"}, "nothing of host and marks"


def test_a_request_whose_work_was_not_counted_is_refused(requests_table: pd.DataFrame) -> None:
    limits = ceilings_of(copy_bytes_per_s=1e6, matrix_flops_per_s=1e6)
    with pytest.raises(UserError, match="none was counted for a request of cell distribution-block000 of fake"):
        roofline_table(requests_table, {"fake": SubjectWork(subject="fake", cells=())}, {"fake": limits})


def test_work_of_shapes_survives_its_file(requests_table: pd.DataFrame, tmp_path: Path) -> None:
    write_work(tmp_path / "work.json", shapes_of(requests_table))
    assert read_work(tmp_path / "work.json") == shapes_of(requests_table)
