"""The table says what the records say, in one shape, and refuses what it cannot read."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.fakes import FakeRunner, out_of_memory
from tests.support.tables import records_of, rewrite, table_of
from vlmeter.backends.base import Execution
from vlmeter.common.errors import UserError
from vlmeter.measure.monitors import QuietMonitor
from vlmeter.numbers.resemblance import median_in_a_row, resemblance_in
from vlmeter.records.parts import Reading
from vlmeter.records.record import read_record
from vlmeter.table import of_records
from vlmeter.table.build import build_table
from vlmeter.table.columns import COLUMNS, Column, data_dictionary
from vlmeter.table.files import read_table, write_table

KEY = ["subject", "cell_id", "output_tokens", "arm", "phase", "clock", "source"]


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return records_of(tmp_path_factory.mktemp("table"), runner=FakeRunner(noise_fraction=0.02))


@pytest.fixture(scope="module")
def table(records: list[Path]) -> pd.DataFrame:
    return build_table(records)


def named(records: list[Path], name: str) -> Path:
    return next(path for path in records if path.stem == name)


def rows(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    for name, value in values.items():
        table = table[table[name] == value]
    return table


def one(table: pd.DataFrame, **values: Any) -> pd.Series:
    found = rows(table, **values)
    assert len(found) == 1
    return found.iloc[0]


def test_table_has_exactly_the_declared_columns_and_types(table: pd.DataFrame) -> None:
    assert list(table.columns) == [column.name for column in COLUMNS]
    kinds = {"string": "string", "integer": "Int64", "float": "float64", "boolean": "boolean", "list": "object"}
    assert {name: str(kind) for name, kind in table.dtypes.items()} == {c.name: kinds[c.dtype] for c in COLUMNS}


def test_every_column_has_a_description_and_a_number_with_a_unit_says_it_in_its_name() -> None:
    dictionary = data_dictionary().set_index("name")
    assert dictionary.index.is_unique
    assert (dictionary["description"].str.len() > 3).all()
    assert dictionary.loc["median_ms", "unit"] == "ms"
    assert dictionary.loc["peak_allocated_bytes", "unit"] == "bytes"
    assert dictionary.loc["prompt_tokens", "unit"] == "tokens"
    assert dictionary.loc["tiling_w", "unit"] == ""
    assert Column("temperature_c", "float", "x").unit == "°C"


def test_a_row_is_named_by_its_key(table: pd.DataFrame) -> None:
    assert not table.duplicated(KEY).any()


def test_every_series_of_every_record_is_a_row_with_its_samples(records: list[Path], table: pd.DataFrame) -> None:
    measured = rows(table, source="measured").set_index(["cell_id", "arm", "phase", "clock"]).sort_index()
    read = [read_record(path) for path in records]
    of_all: dict[tuple[str, ...], list[Any]] = defaultdict(list)
    for record in read:
        for series in record.series:
            of_all[(record.cell.kind, series.arm, series.phase, series.clock)].append(np.array(series.samples_ms))
    for record in read:
        for series in record.series:
            row = measured.loc[(record.cell.cell_id, series.arm, series.phase, series.clock)]
            assert row["samples_ms"].tolist() == series.samples_ms
            like = resemblance_in(of_all[(record.cell.kind, series.arm, series.phase, series.clock)])
            estimate = median_in_a_row(series.samples_ms, like=like)
            assert (row["median_ms"], row["low_ms"], row["high_ms"]) == (estimate.value, estimate.low, estimate.high)
            assert (row["min_ms"], row["max_ms"]) == (min(series.samples_ms), max(series.samples_ms))
            assert row["samples"] == row["rounds"] == len(series.samples_ms)
            assert row["mean_ms"] == pytest.approx(np.mean(series.samples_ms), rel=1e-12)


def test_a_cells_counts_are_those_counted_in_the_real_inputs(records: list[Path], table: pd.DataFrame) -> None:
    record = read_record(named(records, "vision-tiling-3x4"))
    row = one(table, cell_id="vision-tiling-3x4", arm="plain", phase="total", clock="wall")
    assert record.counted is not None
    for name, value in asdict(record.counted).items():
        assert row[name] == value
    assert (row["tiling_h"], row["tiling_w"]) == (3, 4)
    assert (row["width_px"], row["height_px"]) == (224 * 4 + 112, 224 * 3 + 112)
    assert row["random_weights"]
    assert pd.isna(row["image_id"])


def test_a_photographs_row_carries_its_ids_question_and_answers(table: pd.DataFrame) -> None:
    row = one(table, cell_id="output-image1-n16", arm="hooks", phase="total", clock="wall")
    assert (row["image_id"], row["question_id"], row["answers"]) == ("1001", "10001", '["a cup"]')
    assert row["image_index"] == 1
    assert row[["width_px", "height_px", "image_format", "image_quality", "compile_mode"]].isna().all()
    assert row["generated_tokens"] == 16


def test_a_gauge_is_one_value_of_a_cell_made_of_its_rounds_as_it_says(tmp_path: Path) -> None:
    """The temperature that a device reached is the highest; its clock is the one that it mostly had."""
    shown = iter(
        [{"temperature_c": 40.0 + n % 7, "sm_clock_mhz": 1500.0 + n, "cpu_steal_fraction": n / 999} for n in range(999)]
    )

    class Warming(QuietMonitor):
        def read(self) -> Reading:
            return Reading(readings=next(shown))

    paths = records_of(tmp_path, monitor=Warming(), vision={"tilings": ["1x1", "1x2"]}, output=None)
    table = build_table(paths)
    for path in paths:
        record = read_record(path)
        row = rows(table, cell_id=record.cell.cell_id).iloc[0]
        readings = pd.DataFrame([state.readings for state in record.rounds])
        assert readings["temperature_c"].nunique() > 1
        assert row["temperature_c"] == readings["temperature_c"].max()
        assert row["sm_clock_mhz"] == readings["sm_clock_mhz"].median()
        assert row["cpu_steal_fraction"] == readings["cpu_steal_fraction"].max()
        assert pd.isna(row["power_w"]), "what no round was told is absent"


def test_a_cell_is_a_prefill_a_generation_or_many_requests(tmp_path: Path) -> None:
    latency = {"samples": 6, "block_samples": 3, "output_tokens": 4}
    found = table_of(tmp_path, vision={"tilings": ["1x1"]}, output={"output_tokens": [4]}, latency=latency)
    kinds = found.groupby("experiment")["kind"].unique().map(list).to_dict()
    assert kinds == {
        "vision_tokens": ["prefill"],
        "output_tokens": ["generation"],
        "latency_distribution": ["requests"],
    }


def test_a_table_from_before_it_said_what_its_cells_are_is_told_when_it_is_read(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    write_table(table, tmp_path / "t.parquet", tmp_path / "t.csv")
    pd.read_parquet(tmp_path / "t.parquet").drop(columns="kind").to_parquet(tmp_path / "old.parquet")
    pd.testing.assert_series_equal(read_table(tmp_path / "old.parquet")["kind"], table["kind"])
    assert list(read_table(tmp_path / "old.parquet", columns=["cell_id", "kind"]).columns) == ["cell_id", "kind"]


def test_decode_step_rows_hold_the_median_of_each_step_over_rounds(records: list[Path], table: pd.DataFrame) -> None:
    record = read_record(named(records, "output-image0-n32"))
    row = one(table, cell_id="output-image0-n32", phase="decode_step", arm="hooks")
    assert row["samples_ms"].tolist() == [median(steps) for steps in zip(*record.steps_ms, strict=True)]
    assert row["samples"] == 31
    every = one(table, cell_id="output-image0-n32", phase="inter_token")
    assert every["samples"] == 31 * 5
    assert every["samples_ms"].tolist() == [step for steps in record.steps_ms for step in steps]


@pytest.mark.parametrize("rounds", [7, 8])
def test_a_row_has_the_estimate_of_its_samples_be_they_odd_or_even(tmp_path: Path, rounds: int) -> None:
    vision = {"tilings": ["1x1", "2x2"], "sampling": {"min_samples": rounds, "max_samples": rounds}}
    table = build_table(records_of(tmp_path, vision=vision, output=None, runner=FakeRunner(noise_fraction=0.02)))
    measured = table[table["samples"] == rounds]
    assert len(measured) > 20
    assert measured["median_ms"].tolist() == pytest.approx([np.median(each) for each in measured["samples_ms"]])
    noisy = measured[[np.ptp(each) > 0 for each in measured["samples_ms"]]]
    assert (noisy["low_ms"] < noisy["median_ms"]).all()
    assert (noisy["median_ms"] < noisy["high_ms"]).all()


def test_shorter_outputs_are_derived_from_the_first_steps_of_the_longest_run(
    records: list[Path], table: pd.DataFrame
) -> None:
    record = read_record(named(records, "output-image2-n64"))
    for tokens in (8, 16, 32):
        row = one(table, image_index=2, output_tokens=tokens, phase="decode", source="derived")
        assert row["cell_id"] == "output-image2-n64"
        expected = [sum(steps[: tokens - 1]) for steps in record.steps_ms]
        assert row["samples_ms"] == pytest.approx(expected, rel=1e-12)
        assert row["median_ms"] == pytest.approx(median(expected), rel=1e-12)
        assert not np.isnan(row["low_ms"])
    assert rows(table, image_index=2, output_tokens=64, source="derived").empty


def test_powers_of_two_are_derived_without_being_asked_for(tmp_path: Path) -> None:
    table = build_table(
        records_of(
            tmp_path, vision=None, output={"output_tokens": [100], "sampling": {"min_samples": 3, "max_samples": 3}}
        )
    )
    derived = rows(table, source="derived", image_index=0)
    assert derived["output_tokens"].tolist() == [8, 16, 32, 64]
    assert derived["low_ms"].isna().all(), "three rounds have no interval"


def test_a_length_that_was_measured_is_derived_too_though_it_is_no_power_of_two(tmp_path: Path) -> None:
    output = {"output_tokens": [24, 64], "sampling": {"min_samples": 3, "max_samples": 3}}
    derived = rows(build_table(records_of(tmp_path, vision=None, output=output)), source="derived", image_index=0)
    assert derived["output_tokens"].tolist() == [8, 16, 24, 32]


def test_nothing_is_derived_where_a_sequence_may_end_by_itself(tmp_path: Path) -> None:
    output = {"output_tokens": [8, 32], "stop": "eos", "sampling": {"min_samples": 3, "max_samples": 3}}
    table = build_table(records_of(tmp_path, vision=None, output=output, runner=FakeRunner(ends_after=20)))
    assert rows(table, source="derived").empty
    assert set(rows(table, output_tokens=32)["generated_tokens"]) == {20}


def test_nothing_is_derived_beyond_the_steps_that_every_round_has(tmp_path: Path) -> None:
    output = {"output_tokens": [64], "sampling": {"min_samples": 3, "max_samples": 3}}
    paths = records_of(tmp_path, vision=None, output=output)
    for path in paths:
        rewrite(path, lambda data: data["steps_ms"][1].__delitem__(slice(20, None)))
    derived = rows(build_table(paths), source="derived", image_index=0)
    assert derived["output_tokens"].tolist() == [8, 16], "32 tokens take 31 steps"


def test_the_tokens_of_an_answer_stand_in_the_row_of_the_whole_generation_alone(tmp_path: Path) -> None:
    output = {"output_tokens": [8], "sampling": {"min_samples": 3, "max_samples": 3}}
    path = records_of(tmp_path, vision=None, output=output)[0]
    table = build_table([rewrite(path, lambda data: data.update(output=[5, 6, 7]))])
    holds = table[table["output"].notna()]
    assert holds[["arm", "phase", "clock"]].to_numpy().tolist() == [["hooks", "total", "wall"]]
    assert holds["output"].iloc[0].tolist() == [5, 6, 7]


def test_busy_time_and_the_first_call_have_rows_of_their_own(table: pd.DataFrame) -> None:
    cell = "vision-tiling-2x2"
    busy = one(table, cell_id=cell, arm="busy", phase="prefill", clock="busy")
    assert busy["busy_source"] == "cuda_graph"
    assert busy["samples"] == 10
    firsts = rows(table, cell_id=cell, phase="first_call")
    assert set(firsts["arm"]) == {"inputs", "plain", "hooks", "vision"}
    assert (firsts["samples"] == 1).all()
    assert firsts["low_ms"].isna().all()


def test_memory_energy_and_parameters_stand_in_the_rows_that_they_belong_to(
    records: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "one.json"
    path.write_bytes(named(records, "vision-tiling-2x2").read_bytes())
    rewrite(path, lambda data: data["energy"].append({"what": "prefill", "joules": 30.0, "span_s": 2.0, "repeats": 15}))
    table = build_table([path])
    assert one(table, arm="plain", phase="total", clock="wall")["joules_per_repeat"] == 2.0
    assert table["joules_per_repeat"].notna().sum() == 1
    assert one(table, arm="hooks", phase="llm_blocks")["peak_allocated_bytes"] == 1 << 20
    assert one(table, arm="hooks", phase="llm_blocks")["parameters"] == 4000
    assert one(table, arm="hooks", phase="total", clock="wall")["parameters"] == 6100


def test_percentiles_are_absent_below_the_samples_that_they_want(records: list[Path], tmp_path: Path) -> None:
    def stretch(count: int) -> pd.Series:
        path = tmp_path / f"{count}.json"
        path.write_bytes(named(records, "vision-tiling-2x2").read_bytes())

        def change(data: dict[str, Any]) -> None:
            data["rounds"] = [data["rounds"][0]] * count
            data["series"] = [
                {
                    "arm": "plain",
                    "phase": "total",
                    "clock": "wall",
                    "samples_ms": [float(i) for i in range(1, count + 1)],
                }
            ]

        return one(build_table([rewrite(path, change)]), arm="plain", clock="wall", phase="total")

    assert np.isnan(stretch(58)["p95_ms"])
    assert stretch(59)["p95_ms"] == pytest.approx(np.quantile(np.arange(1.0, 60.0), 0.95))
    assert np.isnan(stretch(298)["p99_ms"])
    assert stretch(299)["p99_ms"] == pytest.approx(np.quantile(np.arange(1.0, 300.0), 0.99))


def disturb(data: dict[str, Any], count: int) -> None:
    for place, state in enumerate(data["rounds"][:count]):
        state["disturbances"] = ["power cap" if place else "thermal slowdown"]


def test_disturbed_rounds_are_left_out_of_every_arm_alike(records: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_bytes(named(records, "output-image0-n16").read_bytes())
    rewrite(path, lambda data: disturb(data, 2))
    record, table = read_record(path), build_table([path])
    row = one(table, arm="plain", phase="total", clock="wall")
    assert (row["rounds"], row["samples"], row["disturbed_samples"]) == (5, 3, 2)
    assert row["samples_ms"].tolist() == record.find("plain", "total", "wall")[2:]  # type: ignore[index]
    assert row["disturbances"] == "thermal slowdown; power cap"
    derived = one(table, source="derived", output_tokens=8)
    assert derived["samples_ms"] == pytest.approx([sum(steps[:7]) for steps in record.steps_ms[2:]])


def test_disturbed_rounds_stay_in_where_they_are_the_majority(records: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_bytes(named(records, "output-image0-n16").read_bytes())
    row = one(build_table([rewrite(path, lambda data: disturb(data, 3))]), arm="plain", phase="total", clock="wall")
    assert (row["rounds"], row["samples"], row["disturbed_samples"]) == (5, 5, 3)


@pytest.mark.parametrize(("disturbed", "kept"), [(4, 4), (5, 8)])
def test_half_of_the_rounds_are_enough_and_fewer_are_not(tmp_path: Path, disturbed: int, kept: int) -> None:
    vision = {"tilings": ["1x1"], "sampling": {"min_samples": 8, "max_samples": 8}}
    (path,) = records_of(tmp_path, vision=vision, output=None)
    row = one(
        build_table([rewrite(path, lambda data: disturb(data, disturbed))]), arm="plain", phase="total", clock="wall"
    )
    assert (row["rounds"], row["samples"]) == (8, kept)


def test_a_cell_that_ran_out_of_memory_is_one_row_without_arm(tmp_path: Path) -> None:
    runner = FakeRunner(fail={"vision": out_of_memory})
    table = build_table(records_of(tmp_path, runner=runner, vision={"tilings": ["1x1"]}, output=None))
    row = one(table, cell_id="vision-tiling-1x1")
    assert row["status"] == "oom"
    assert "2.00 GiB" in row["reason"]
    assert pd.isna(row["arm"])
    assert pd.isna(row["phase"])
    assert pd.isna(row["samples"])
    assert np.isnan(row["median_ms"])
    assert row["vision_tokens"] == 288


def test_no_records_make_an_empty_table_with_all_columns(tmp_path: Path) -> None:
    table = build_table([])
    assert table.empty
    write_table(table, tmp_path / "t.parquet", tmp_path / "t.csv")
    assert list(read_table(tmp_path / "t.parquet").columns) == [column.name for column in COLUMNS]


def test_the_order_of_files_does_not_change_the_table(records: list[Path], table: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(build_table(records[::-1]), table)


def test_what_is_written_reads_back_the_same(table: pd.DataFrame, tmp_path: Path) -> None:
    write_table(table, tmp_path / "a" / "t.parquet", tmp_path / "a" / "t.csv")
    back = read_table(tmp_path / "a" / "t.parquet")
    pd.testing.assert_frame_equal(back.drop(columns="samples_ms"), table.drop(columns="samples_ms"))
    for ours, theirs in zip(table["samples_ms"], back["samples_ms"], strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_csv_has_every_column_but_the_lists_unrounded(table: pd.DataFrame, tmp_path: Path) -> None:
    write_table(table, tmp_path / "t.parquet", tmp_path / "t.csv")
    text = pd.read_csv(tmp_path / "t.csv")
    assert list(text.columns) == [column.name for column in COLUMNS if column.dtype != "list"]
    np.testing.assert_array_equal(text["median_ms"].to_numpy(), table["median_ms"].to_numpy())


def test_the_same_table_gives_the_same_bytes(table: pd.DataFrame, tmp_path: Path) -> None:
    for name in "ab":
        write_table(table, tmp_path / f"{name}.parquet", tmp_path / f"{name}.csv")
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()


def drop_a_sample(data: dict[str, Any]) -> None:
    data["series"][0]["samples_ms"].pop()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(record_version=99), "record_version 99"),
        (lambda data: data.update(record_version=1), "record_version 1, "),
        (lambda data: data.pop("cell"), "damaged at cell"),
        (lambda data: data["series"][0]["samples_ms"].__setitem__(0, float("nan")), "damaged at series"),
        (drop_a_sample, "9 rounds, but 8 samples"),
    ],
)
def test_a_bad_record_is_refused_with_one_sentence(
    records: list[Path], tmp_path: Path, change: Any, words: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(named(records, "vision-tiling-2x2").read_bytes())
    rewrite(path, change)
    with pytest.raises(UserError, match=words) as refused:
        build_table([path])
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_truncated_record_is_refused(records: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(records[0].read_bytes()[:500])
    with pytest.raises(UserError, match="cannot be read"):
        build_table([path])


def test_two_records_of_one_cell_are_refused(records: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy.json"
    copy.write_bytes(records[0].read_bytes())
    with pytest.raises(UserError, match="both of cell"):
        build_table([records[0], copy])


def test_a_file_that_is_no_table_of_this_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_table(tmp_path / "none.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be read"):
        read_table(tmp_path / "bad.parquet")
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(UserError, match="other columns"):
        read_table(tmp_path / "other.parquet")


@pytest.mark.parametrize(("kernels", "said"), [("fused", "max-autotune"), ("separate", None), ("unseen", None)])
def test_only_a_subject_whose_kernels_are_fused_has_a_mode_of_compiling(kernels: Any, said: str | None) -> None:
    record = SimpleNamespace(
        execution=Execution(launches="each", kernels=kernels),
        subject_config=SimpleNamespace(compile_mode="max-autotune"),
    )
    assert of_records.compile_mode(record) == said  # type: ignore[arg-type]


def test_a_block_says_what_each_of_its_samples_was(tmp_path: Path) -> None:
    latency = {"samples": 5, "block_samples": 5, "output_tokens": [1, 4]}
    (path,) = records_of(tmp_path, vision=None, output=None, latency=latency)
    table, record = build_table([path]), read_record(path)
    whole = table[table["requests"].notna()]
    assert list(zip(whole["arm"], whole["phase"], whole["clock"], strict=True)) == [("request", "total", "wall")]
    told = json.loads(whole["requests"].iloc[0])
    assert [one["number"] for one in told] == [request.place for request in record.requests]
    assert [one["generated_tokens"] for one in told] == record.generated_tokens
    assert [one["prompt_tokens"] for one in told] == [request.counted.prompt_tokens for request in record.requests]
    assert list(whole["samples_ms"].iloc[0]) == record.find("request", "total", "wall")
    assert whole[["image_index", "width_px", "height_px", "image_id"]].isna().all(axis=None), "there are five of them"


@pytest.mark.parametrize("short", [["requests"], ["requests", "generated_tokens"]])
def test_a_block_whose_requests_are_not_as_many_as_its_rounds_is_damaged(short: list[str], tmp_path: Path) -> None:
    (path,) = records_of(tmp_path, vision=None, output=None, latency={"samples": 5})
    rewrite(path, lambda data: [data[name].pop() for name in short])
    with pytest.raises(UserError, match="is damaged: 5 rounds, but 4 requests; delete it and it is measured again"):
        build_table([path])


def test_energy_of_repeated_work_is_a_row_of_its_own(tmp_path: Path) -> None:
    (path,) = records_of(tmp_path, vision=None, output=None, latency={"samples": 5})
    use = {"what": "vision", "joules": 30.0, "span_s": 1.5, "repeats": 10}
    rewrite(path, lambda data: data.update(energy=[use]))
    table = build_table([path])
    (row,) = table[table["arm"] == "repeated"].to_dict("records")
    assert (row["phase"], row["median_ms"], row["joules_per_repeat"]) == ("vision", 150.0, 3.0)
