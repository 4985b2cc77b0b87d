"""A quantity is named once: whoever draws, judges, compares or reports asks for it by name."""

from __future__ import annotations

import ast
from collections import Counter
from pathlib import Path

import pandas as pd
import pytest

from tests.support.imports import ROOT
from tests.support.tables import LATENCY, table_of
from vlmeter.analysis.reading import rows_of
from vlmeter.figures.style import COLOURS
from vlmeter.models.families.base import PREFILL_PHASES
from vlmeter.table.kinds import GENERATION, PREFILL, REQUESTS
from vlmeter.table.quantities import (
    AROUND,
    CLOCKS,
    DEVICE_ALONE,
    DEVICE_DECODE,
    KNOWN_PICTURE_WALL,
    KNOWN_PROMPT_WALL,
    PHASES,
    QUANTITIES,
    SUFFIXES,
    WHOLE_CELL,
    RowKey,
    is_repeat,
    quantity_at,
)

#: Packages whose modules ask for quantities.
ASKING = ("compare", "claims", "figures", "report")

KEYS = {key for quantity in QUANTITIES.values() for key in quantity.rows.values()}

#: What they may not say: an arm, a phase, a clock, the name of a duration, a column of a quantity.
NAMES = {name for key in KEYS for name in key} | {"first_call"}
NAMES |= {quantity.name for quantity in QUANTITIES.values() if quantity.unit == "ms"}
COLUMNS = {column for quantity in QUANTITIES.values() for column in quantity.columns if column != quantity.name}

#: Assignments that give a figure its own name and section, and list figures by name.
OF_FIGURES = ("NAME", "SECTION", "FIGURES", "SIDE_BY_SIDE", "_OF_KIND")

#: Literals that are words of the page and name nothing that was measured: a heading, a topic, a section, a key.
WORDS = {("report/page.py", word) for word in ("device", "wait", "vision")}


def named(path: Path) -> list[str]:
    """Literals of a module that are the name of an arm, a phase or a clock, or the column of a quantity."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    free: set[int] = set()
    for node in ast.walk(tree):
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
        own = any(isinstance(target, ast.Name) and target.id in OF_FIGURES for target in targets)
        counted = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "plural"
        if own or counted:  # plural(3, "request") is a word
            free |= {id(part) for part in ast.walk(node)}
    where = path.relative_to(ROOT / "vlmeter").as_posix()
    return [
        f"{where}:{node.lineno} {node.value!r}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value in NAMES | COLUMNS
        and id(node) not in free
        and (where, node.value) not in WORDS
    ]


@pytest.mark.parametrize("package", ASKING)
def test_whoever_reads_the_table_asks_for_quantities_and_names_no_arm_phase_or_clock(package: str) -> None:
    found = [said for path in sorted((ROOT / "vlmeter" / package).glob("*.py")) for said in named(path)]
    assert found == []


def test_the_walk_sees_a_name_wherever_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "vlmeter" / "figures" / "naming.py"
    path.parent.mkdir(parents=True)
    text = 'NAME = "decode"\nrows[rows["arm"] == "plain"]\ncells["plain_wall_low_ms"]\nf"{1} {rows[\'wall\']}"\n'
    path.write_text(text + 'plural(2, "request")\n')
    assert sorted(said.split()[1] for said in named(path)) == ["'plain'", "'plain_wall_low_ms'", "'wall'"]


def test_no_two_quantities_are_the_same_rows() -> None:
    counted = Counter((kind, key) for quantity in QUANTITIES.values() for kind, key in quantity.rows.items())
    assert [where for where, count in counted.items() if count > 1] == []
    for quantity in QUANTITIES.values():
        assert all(quantity_at(kind, key) is quantity for kind, key in quantity.rows.items())


def test_a_quantity_says_what_it_is_in_words_a_unit_and_a_colour() -> None:
    for name, quantity in QUANTITIES.items():
        assert quantity.name == name
        assert quantity.label
        assert quantity.words
        assert quantity.unit in SUFFIXES
        assert quantity.colour in COLOURS
        assert set(quantity.rows) <= {PREFILL, GENERATION, REQUESTS}
        assert all(key.clock in CLOCKS for key in quantity.rows.values())


def test_the_phases_are_those_between_whose_marks_a_family_runs() -> None:
    assert tuple(phase.name for phase in PHASES) == PREFILL_PHASES
    assert {key.phase for phase in PHASES for key in phase.rows.values()} == set(PREFILL_PHASES)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    vision, output = {"tilings": ["1x1", "1x2"]}, {"output_tokens": [4, 8]}
    return table_of(
        tmp_path_factory.mktemp("quantities"), vision=vision, output=output, latency={**LATENCY, "samples": 8}
    )


#: Rows that only a device with an energy counter has, or a server: of those see test_waits.
NOT_OF_A_FAKE = {"repeated_prefill", "repeated_vision", *(quantity.name for quantity in AROUND)} | {
    quantity.name for quantity in (KNOWN_PICTURE_WALL, KNOWN_PROMPT_WALL, DEVICE_DECODE)
}


def test_every_quantity_that_has_rows_has_them_in_the_table_of_a_study(table: pd.DataFrame) -> None:
    missing = {
        (quantity.name, kind)
        for quantity in QUANTITIES.values()
        for kind in quantity.rows
        if rows_of(table, quantity, kind=kind).empty and quantity.name not in NOT_OF_A_FAKE
    }
    assert missing == set()


def test_rows_of_a_quantity_are_of_its_kind_arm_phase_and_clock_alone(table: pd.DataFrame) -> None:
    for quantity in QUANTITIES.values():
        for kind, key in quantity.rows.items():
            found = rows_of(table, quantity, kind=kind)
            assert {RowKey(*parts) for parts in zip(found["arm"], found["phase"], found["clock"], strict=True)} <= {key}
            assert set(found["kind"]) <= {kind}


def test_what_is_compared_is_the_plain_pass_and_where_there_is_none_the_marked_one() -> None:
    assert WHOLE_CELL.keys == (RowKey("plain", "total", "wall"), RowKey("hooks", "total", "wall"))
    assert DEVICE_ALONE.keys == (RowKey("busy", "prefill", "busy"), RowKey("busy", "decode_step", "busy"))


def test_steps_at_growing_context_are_no_repeats_and_one_step_again_and_again_is() -> None:
    repeats = {quantity.name for kind in (PREFILL, GENERATION, REQUESTS) for quantity in QUANTITIES.values()
               if kind in quantity.rows and is_repeat(quantity.rows[kind])}  # fmt: skip
    with_rows = {quantity.name for quantity in QUANTITIES.values() if quantity.rows}
    assert with_rows - repeats == {"decode_step", "inter_token"}
    assert not is_repeat(RowKey("plain", "first_call", "wall"))
