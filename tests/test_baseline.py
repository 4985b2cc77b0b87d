"""A baseline is one small file that stands for the results that it was made of."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.comparisons import compared, drawn, measured, overall, results_of, verdicts
from tests.support.imports import ROOT
from vlmeter.common.errors import UserError
from vlmeter.compare.baseline import MOST_SAMPLES, read_baseline, read_runs, repeats_of, write_baseline
from vlmeter.numbers.intervals import median_standard_error
from vlmeter.table.quantities import WHOLE_CELL

GALLERY = ROOT / "docs" / "gallery"


def test_the_committed_baseline_compares_equal_to_its_source() -> None:
    comparison = compared(read_runs(GALLERY / "table.parquet"), read_runs(GALLERY / "baseline.json.gz"))
    assert set(verdicts(comparison).values()) == {"same"}
    assert len(verdicts(comparison)) == 48
    assert overall(comparison).ratio == 1
    assert all(cell.effect.ratio == 1 for found in comparison.quantities for cell in found.cells)


def test_the_committed_baseline_is_what_would_be_written_now(tmp_path: Path) -> None:
    write_baseline(tmp_path / "now.json.gz", read_runs(GALLERY / "table.parquet"))
    assert read_baseline(tmp_path / "now.json.gz").runs == read_baseline(GALLERY / "baseline.json.gz").runs


@pytest.mark.parametrize("folder", ["anomaly", "families", "gallery"])
def test_a_committed_table_of_an_older_vlmeter_is_read_and_is_the_same_as_itself(folder: str) -> None:
    path = GALLERY.parent / folder / "table.parquet"
    assert "kind" not in pa.parquet.read_schema(path).names
    comparison = compared(read_runs(path), read_runs(path))
    assert {cell.effect.verdict for found in comparison.quantities for cell in found.cells} == {"same"}


def test_a_baseline_holds_what_its_results_do(tmp_path: Path) -> None:
    folder = results_of(tmp_path / "results")
    runs = read_runs(folder)
    write_baseline(tmp_path / "baseline.json", runs)
    assert read_runs(tmp_path / "baseline.json") == runs
    (cell, *_) = runs[0].subjects[0].cells
    assert {("plain", "total", "wall"), ("hooks", "llm_blocks", "device")} <= {q.key for q in cell.quantities}
    assert cell.counts["prompt_tokens"] > 0
    for quantity in cell.quantities:
        assert quantity.median_ms == np.median(quantity.samples_ms)


def test_rows_that_are_no_repeats_are_left_out(tmp_path: Path) -> None:
    run = measured(tmp_path, output={"output_tokens": [8], "sampling": {"min_samples": 5, "max_samples": 5}})
    phases = {(q.arm, q.phase) for cell in run.subjects[0].cells for q in cell.quantities}
    assert ("hooks", "decode") in phases
    assert not {phase for arm, phase in phases if arm != "busy"} & {"first_call", "inter_token", "decode_step"}


def test_the_same_results_give_the_same_bytes(tmp_path: Path) -> None:
    runs = [drawn(1)]
    for name in ("one.json", "two.json", "one.json.gz", "two.json.gz"):
        write_baseline(tmp_path / name, runs)
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    assert (tmp_path / "one.json.gz").read_bytes() == (tmp_path / "two.json.gz").read_bytes()
    assert gzip.decompress((tmp_path / "one.json.gz").read_bytes()) == (tmp_path / "one.json").read_bytes()


def test_a_baseline_of_several_runs_is_a_side_of_several_runs(tmp_path: Path) -> None:
    write_baseline(tmp_path / "b.json", [drawn(1, name="a"), drawn(2, name="b")])
    assert len(read_runs(tmp_path / "b.json")) == 2


def test_many_samples_become_quantiles_that_say_the_same() -> None:
    samples = np.random.default_rng(0).lognormal(size=5000)
    kept = repeats_of(WHOLE_CELL.keys[0], samples)
    assert len(kept.samples_ms) == MOST_SAMPLES
    assert kept.count == 5000
    assert kept.median_ms == np.median(samples)
    short = median_standard_error(np.log(np.array(kept.samples_ms)), count=kept.count)
    assert short == pytest.approx(median_standard_error(np.log(samples)), rel=0.15)


def test_a_table_with_columns_of_another_version_can_be_compared(tmp_path: Path) -> None:
    folder = results_of(tmp_path / "results")
    table = pa.parquet.read_table(folder / "table.parquet")
    more = table.append_column("a_new_column", pa.array([1] * len(table))).drop_columns(["power_w"])
    pa.parquet.write_table(more, tmp_path / "table.parquet")
    assert read_runs(tmp_path / "table.parquet")[0].subjects[0].cells == read_runs(folder)[0].subjects[0].cells


def test_the_environment_beside_a_table_is_part_of_the_facts(tmp_path: Path) -> None:
    folder = results_of(tmp_path / "results")
    told = {"fake": [{"cells": 6, "environment": {"driver": "580", "versions": {"torch": "2.11.0"}}}]}
    (folder / "environments.json").write_text(json.dumps(told))
    facts = read_runs(folder)[0].subjects[0].facts
    assert (facts["driver"], facts["torch"]) == ("580", "2.11.0")


def spoilt(path: Path, **changes: object) -> Path:
    write_baseline(path, [drawn(1)])
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_what_is_no_baseline_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "cut.json.gz").write_bytes(gzip.compress(b"{}" * 1000)[:20])
    (tmp_path / "text.json").write_text("not json")
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "empty").mkdir()
    cases = {
        tmp_path / "nowhere": "does not exist",
        tmp_path / "cut.json.gz": "cannot be read",
        tmp_path / "text.json": "cannot be read",
        tmp_path / "table.csv": "cannot be compared; legal",
        tmp_path / "empty": "has no table.parquet",
        spoilt(tmp_path / "other.json", format="cake"): "is not a baseline",
        spoilt(tmp_path / "version.json", version=99): "has version 99",
        spoilt(tmp_path / "damaged.json", runs=[{}]): "is damaged at runs.0",
    }
    for path, said in cases.items():
        with pytest.raises(UserError, match=said) as refusal:
            read_runs(path)
        assert "\n" not in str(refusal.value)
    with pytest.raises(UserError, match=r"\.\.\.") as refusal:
        read_runs(spoilt(tmp_path / "long.json", **{"x" * 1000: 1}))
    assert 300 < len(str(refusal.value).replace(str(tmp_path), "")) < 500, "what is wrong is said, and not all of it"
    with pytest.raises(UserError, match=r"ends with \.json or \.json\.gz"):
        write_baseline(tmp_path / "baseline.txt", [drawn(1)])
