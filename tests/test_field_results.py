"""Baselines and tables that were damaged, edited or made by another program: refused in one sentence, or compared."""

from __future__ import annotations

import copy
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support.comparisons import compared, drawn, results_of
from tests.support.fuzz import anything
from vlmeter.common.errors import UserError
from vlmeter.compare.baseline import Run, read_runs, write_baseline
from vlmeter.table.files import read_table

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

VALUES = anything(longest_text=4, also=["ok", "a\nb", "\ud800", 0.0, -1.0])


@pytest.fixture(scope="module")
def baseline(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("baseline") / "b.json"
    write_baseline(path, [drawn(1, cells=3)])
    content: dict[str, Any] = json.loads(path.read_bytes())
    return content


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return results_of(tmp_path_factory.mktemp("results"))


@pytest.fixture(scope="module")
def whole_run(results: Path) -> list[Run]:
    return read_runs(results)


def compared_or_refused(path: Path, other: list[Run]) -> None:
    """One sentence about the file, or a comparison without an invalid number on the way."""
    try:
        runs = read_runs(path)
    except UserError as refusal:
        text = str(refusal)
        assert path.name in text
        assert "\n" not in text
        assert len(text) < 1000
        return
    try:
        with np.errstate(invalid="raise", divide="raise"):
            compared(other, runs)
    except UserError as refusal:  # two studies that have nothing in common
        text = str(refusal)
        assert "\n" not in text


def places(data: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield place
    items = data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*place, key))


@FUZZ
@given(data=st.data())
def test_a_baseline_with_anything_in_it_is_compared_or_refused(
    data: st.DataObject, baseline: dict[str, Any], tmp_path: Path
) -> None:
    changed = copy.deepcopy(baseline)
    *above, last = data.draw(st.sampled_from([place for place in places(changed) if place]))
    holder: Any = changed
    for key in above:
        holder = holder[key]
    if isinstance(holder, dict) and data.draw(st.booleans()):
        del holder[last]
    else:
        holder[last] = data.draw(VALUES)
    (tmp_path / "any.json").write_text(json.dumps(changed))
    compared_or_refused(tmp_path / "any.json", [drawn(2, cells=3)])


@FUZZ
@given(raw=st.binary(max_size=40), name=st.sampled_from(["any.json", "any.json.gz", "any.parquet"]))
def test_any_bytes_for_results_are_refused(raw: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=name):
        read_runs(tmp_path / name)


@FUZZ
@given(data=st.data())
def test_a_damaged_table_is_compared_or_refused(
    data: st.DataObject, results: Path, whole_run: list[Run], tmp_path: Path
) -> None:
    whole = bytearray((results / "table.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "any.parquet").write_bytes(whole)
    compared_or_refused(tmp_path / "any.parquet", whole_run)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("samples_ms", [-1.0] * 9),
        ("samples_ms", [float("nan")] * 9),
        ("samples_ms", "text"),
        ("status", None),
        ("status", "fine"),
        ("rounds", "many"),
        ("width_px", "wide"),
        ("drift_reference_ms", 0.0),
        ("warmup_settled", 2.5),
    ],
)
def test_a_table_whose_column_holds_something_else_is_refused(
    column: str, value: Any, results: Path, tmp_path: Path
) -> None:
    table = pq.read_table(results / "table.parquet")
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array([value] * table.num_rows)), tmp_path / "any.parquet")
    with pytest.raises(UserError, match=r"any\.parquet .*; make it again from the records$"):
        read_runs(tmp_path / "any.parquet")


def test_a_duration_of_zero_has_no_ratio_and_is_left_out(results: Path, tmp_path: Path) -> None:
    table = pq.read_table(results / "table.parquet")
    zeros = pa.array([[0.0] * 9] * table.num_rows)
    place = table.column_names.index("samples_ms")
    pq.write_table(table.set_column(place, "samples_ms", zeros), tmp_path / "any.parquet")
    (run,) = read_runs(tmp_path / "any.parquet")
    assert [cell.quantities for subject in run.subjects for cell in subject.cells if cell.quantities] == []


def test_a_whole_table_with_text_for_numbers_is_refused(results: Path, tmp_path: Path) -> None:
    table = pq.read_table(results / "table.parquet")
    place = table.column_names.index("crops")
    pq.write_table(table.set_column(place, "crops", pa.array(["x"] * table.num_rows)), tmp_path / "any.parquet")
    with pytest.raises(UserError, match="is damaged"):
        read_table(tmp_path / "any.parquet")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": True}, "has version true, and this vlmeter reads 1"),
        ({"version": "1" * 500}, "has version"),
        ({"runs": []}, "is damaged at runs: "),
    ],
)
def test_a_baseline_of_no_version_or_no_run_is_refused(
    change: dict[str, Any], said: str, baseline: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "b.json").write_text(json.dumps({**baseline, **change}))
    with pytest.raises(UserError, match=said):
        read_runs(tmp_path / "b.json")


def test_two_cells_by_one_name_are_refused_and_not_one_of_them_taken(baseline: dict[str, Any], tmp_path: Path) -> None:
    changed = copy.deepcopy(baseline)
    cells = changed["runs"][0]["subjects"][0]["cells"]
    cells.append(cells[0])
    (tmp_path / "b.json").write_text(json.dumps(changed))
    with pytest.raises(
        UserError, match=rf"is damaged at runs\.0\.subjects\.0: {cells[0]['cell_id']} stands there more"
    ):
        read_runs(tmp_path / "b.json")


def test_what_is_nested_without_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "b.json.gz").write_bytes(gzip.compress(b"[" * 100_000))
    with pytest.raises(UserError, match="cannot be read"):
        read_runs(tmp_path / "b.json.gz")


def test_a_name_that_is_too_long_is_refused() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_runs(Path("n" * 5000))
