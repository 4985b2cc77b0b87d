"""A backend says how it runs a model, a record carries it, and which tokens were chosen; the table has both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.fakes import FakeRunner, TellingRunner
from tests.support.tables import records_of, rewrite
from vlmeter.backends.base import Execution
from vlmeter.backends.registry import BACKENDS, get_backend
from vlmeter.records.record import read_record
from vlmeter.table.build import build_table
from vlmeter.table.files import read_table, write_table

VISION, OUTPUT = {"tilings": ["1x1"]}, {"output_tokens": [8]}


def records(folder: Path, runner: FakeRunner, **keys: Any) -> list[Path]:
    subject = {"family": "molmo", "preset": "nano", "dtype": "float32", "device": "cpu", **keys}
    return records_of(folder, runner=runner, vision=VISION, output=OUTPUT, subjects={"fake": subject})


@pytest.mark.parametrize(
    ("name", "device", "said"),
    [
        ("eager", "cuda:0", Execution("each", "separate")),
        ("eager", "cpu", Execution("each", "separate")),
        ("cudagraph", "cuda:0", Execution("replayed", "separate")),
        ("compile", "cuda:0", Execution("replayed", "fused")),
        ("compile", "cpu", Execution("fewer", "fused")),
        ("endpoint", "cuda:0", Execution("unseen", "unseen")),
        ("fake", "fake:0", None),
    ],
)
def test_a_backend_says_how_it_runs_a_model(name: str, device: str, said: Execution | None) -> None:
    assert get_backend(name).execution(device) == said


def test_every_backend_that_runs_a_model_says_how() -> None:
    for name in BACKENDS:
        backend = get_backend(name)
        assert (backend.execution("cpu") is not None) is backend.runs_model


def test_a_record_carries_how_the_model_was_run_and_the_table_says_it(tmp_path: Path) -> None:
    keys = {"backend": "compile", "compile_mode": "max-autotune", "vision_attention_dtype": "weights", "seed": 3}
    paths = records(tmp_path, FakeRunner(), **keys, cpu_threads=2)
    assert read_record(paths[0]).execution == Execution("replayed", "fused"), "the machine of the fake has a GPU"
    row = build_table(paths).iloc[0]
    assert (row["launches"], row["kernels"]) == ("replayed", "fused")
    assert (row["compile_mode"], row["vision_attention_dtype"]) == ("max-autotune", "weights")
    assert (row["weights_seed"], row["cpu_threads"]) == (3, 2)


def test_a_mode_of_compiling_belongs_to_what_was_compiled(tmp_path: Path) -> None:
    row = build_table(records(tmp_path, FakeRunner())).iloc[0]
    assert (row["launches"], row["kernels"]) == ("each", "separate")
    for name in ("compile_mode", "vision_attention_dtype", "cpu_threads"):
        assert pd.isna(row[name])


def test_a_record_of_before_does_not_say_how(tmp_path: Path) -> None:
    paths = records(tmp_path, FakeRunner())
    for path in paths:
        rewrite(path, lambda data: [data.pop(name) for name in ("execution", "output", "output_digests")])
    table = build_table(paths)
    for name in ("launches", "kernels", "output_digest"):
        assert table[name].isna().all()


def test_the_tokens_of_a_cell_are_kept_and_of_all_its_rounds_a_digest(tmp_path: Path) -> None:
    paths = records(tmp_path, TellingRunner(chosen=[[7, 9]]))
    prefill, generation = (read_record(next(p for p in paths if kind in p.stem)) for kind in ("vision", "output"))
    assert prefill.output == [7]
    assert generation.output == [7, 9, 0, 1, 2, 3, 4, 5]
    assert len(generation.output_digests) == 1
    table = build_table(paths)
    rows = table[table["cell_id"] == generation.cell.cell_id]
    assert set(rows["output_digest"]) == set(generation.output_digests)
    held = rows[rows["output"].notna()]
    assert list(zip(held["arm"], held["phase"], held["clock"], strict=True)) == [("hooks", "total", "wall")]
    assert list(held["output"].iloc[0]) == generation.output
    write_table(table, tmp_path / "table.parquet", tmp_path / "table.csv")
    again = read_table(tmp_path / "table.parquet")
    assert list(again["output"].dropna().iloc[0]) == list(table["output"].dropna().iloc[0])
    csv = pd.read_csv(tmp_path / "table.csv", nrows=1)
    assert "output_digest" in csv
    assert "output" not in csv


def test_rounds_that_chose_other_tokens_are_seen(tmp_path: Path) -> None:
    (path,) = records_of(
        tmp_path, runner=TellingRunner(chosen=[[n % 2] for n in range(99)]), vision=None, output={"output_tokens": [1]}
    )[:1]
    assert len(read_record(path).output_digests) == 2
    assert len(set(build_table([path])["output_digest"].iloc[0].split())) == 2


def test_a_runner_that_does_not_tell_leaves_no_digest(tmp_path: Path) -> None:
    record = read_record(records(tmp_path, FakeRunner())[0])
    assert (record.output, record.output_digests) == ([], [])
