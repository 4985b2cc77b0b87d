"""Inside a block what is asked of one table twice is worked out once; outside of it always."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from tests.support.tables import table_of
from vlmeter.analysis import prefill_cells
from vlmeter.analysis.prefill_cells import vision_cells
from vlmeter.analysis.remembered import remembered, remembering
from vlmeter.figures.files import subject_tables, write_figures


def counted() -> tuple[list[str], object]:
    asked: list[str] = []

    @remembered
    def first(table: pd.DataFrame, name: str) -> pd.DataFrame:
        asked.append(name)
        return table[[name]].head(1)

    return asked, first


def test_a_result_is_kept_for_a_table_and_its_arguments_and_only_inside_the_block() -> None:
    asked, first = counted()
    assert callable(first)
    table, other = (pd.DataFrame({"a": [one], "b": [2]}) for one in (1, 5))
    with remembering():
        for _ in range(3):
            assert first(table, "a")["a"].tolist() == [1]
        assert first(other, "a")["a"].tolist() == [5], "another table, whatever is equal in it"
        with remembering():
            first(table, "a")
        first(table, "b")
        assert asked == ["a", "a", "b"]
    table.loc[0, "a"] = 7
    assert first(table, "a")["a"].tolist() == [7], "outside nothing is kept"
    assert len(asked) == 4


def test_what_is_changed_in_a_result_is_not_changed_for_the_next() -> None:
    _, first = counted()
    assert callable(first)
    table = pd.DataFrame({"a": [1]})
    with remembering():
        found = first(table, "a")
        found.loc[0, "a"] = 99
        assert first(table, "a")["a"].tolist() == [1]


def test_the_figures_of_a_subject_work_its_cells_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = table_of(tmp_path / "records", output=None)
    own = prefill_cells._cells_of_run
    asked = []
    monkeypatch.setattr(prefill_cells, "_cells_of_run", lambda rows: asked.append(1) or own(rows))
    folders = dict.fromkeys(("vision_by_tokens", "vision_by_crops"), tmp_path / "figures")
    write_figures(folders, subject_tables(table, None, "fake"), answers=None, forms=["svg"])
    together = len(asked)
    vision_cells(table)
    assert len(asked) == together + 1
    assert together <= 2, "of the table, and of no copy of it"
