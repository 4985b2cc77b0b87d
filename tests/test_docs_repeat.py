"""docs/repeat.md says what its command prints, and the command tells what repeats and what does not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import repeat
from tests.support.imports import ROOT
from vlmeter.table.kinds import PREFILL
from vlmeter.table.quantities import PLAIN_WALL

PAGE = (ROOT / "docs" / "repeat.md").read_text(encoding="utf-8")
CARDS = [ROOT / "docs" / "repeat" / name for name in ("card-1", "card-2")]


def of_runs(*runs: Sequence[float], subject: str = "model") -> pd.DataFrame:
    """A table of prefills: for each run the medians in ms of its cells."""
    key = PLAIN_WALL.rows[PREFILL]
    rows = [
        (subject, run, f"cell-{number}", PREFILL, key.arm, key.phase, key.clock, value_ms, "Card")
        for run, values in enumerate(runs)
        for number, value_ms in enumerate(values)
    ]
    return pd.DataFrame(rows, columns=list(repeat.COLUMNS))


def test_the_cell_that_moves_most_is_told() -> None:
    (found,) = repeat.repeated([of_runs([100, 50], [101, 55], [100, 52])])
    assert found.cells == 2
    assert found.run_to_run == (pytest.approx(0.1),)
    assert found.between is None
    assert found.day is None


def test_cards_are_compared_by_the_means_of_their_runs() -> None:
    (found,) = repeat.repeated([of_runs([100], [102]), of_runs([110], [112])])
    assert found.run_to_run == (pytest.approx(0.02), pytest.approx(2 / 110))
    assert found.between == pytest.approx(1 - 101 / 111)


def test_another_day_is_held_against_the_mean_of_all_runs() -> None:
    day = of_runs([108, 9], subject="then")
    (found,) = repeat.repeated([of_runs([100], [102]), of_runs([110], [112])], day=day, same={"model": "then"})
    assert found.day == pytest.approx(108 / 106 - 1)


def test_a_cell_that_one_run_lacks_is_left_out() -> None:
    (found,) = repeat.repeated([of_runs([100, 50], [101])])
    assert (found.cells, found.run_to_run) == (1, (pytest.approx(0.01),))


def test_one_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_runs([100, 50]).to_parquet(tmp_path / "table.parquet")
    assert repeat.main([str(tmp_path)]) == 2
    assert "has one run" in capsys.readouterr().err


def test_the_page_has_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    command = next(line.split() for line in PAGE.splitlines() if line.strip().startswith("python -m benchmarks.repeat"))
    given = [str(ROOT / word) if word.startswith("docs/") else word for word in command[3:]]
    assert repeat.main(given) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(printed) == 33
    assert [line for line in PAGE.splitlines() if line.startswith("|")] == printed


def test_page_and_cards_name_the_same_device_and_commit() -> None:
    found = [json.loads((card / "environments.json").read_text(encoding="utf-8")) for card in CARDS]
    every = [one["environment"] for card in found for subject in card.values() for one in subject]
    assert {one["commit"] for one in every} == {"8bd5016"}
    assert {one["device_model"] for one in every} == {"NVIDIA H200"}
    uuids = [{one["environment"]["device_uuid"] for subject in card.values() for one in subject} for card in found]
    assert len(uuids[0] | uuids[1]) == 2
    assert "Two NVIDIA H200 (driver 580.159.04" in PAGE
    assert "commit 8bd5016" in PAGE


def test_what_the_page_says_of_single_numbers_is_in_the_tables() -> None:
    table = repeat.table_of(CARDS[0])
    prefill = repeat._by_run(table, "eager", PLAIN_WALL, PREFILL)
    assert [f"{value:.1f}" for value in prefill.loc["vision-tiling-1x1"]] == ["26.5", "37.2", "29.1"]
    answers = json.loads((CARDS[0] / "answers.json").read_text(encoding="utf-8"))["subjects"]
    step = next(one for one in answers["compile"] if one["name"] == "output_token")
    assert f"{step['value']:.3f} ms ({step['low']:.3f} to {step['high']:.3f}) for the compiled one" in PAGE
