"""`vlmeter show` says in the terminal what the analysis says, in any width, and as JSON."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.fakes import FakeRunner, out_of_memory
from tests.support.reports import PREFILL_TIMES, roofline_of
from tests.support.studies import run_fake, study_of
from tests.support.tables import TILINGS, table_of
from vlmeter.analysis import decode_runs, prefill_cells
from vlmeter.analysis.answers import all_answers, answers_of
from vlmeter.analysis.reading import Unknown, estimate_of
from vlmeter.analysis.roofline import write_roofline
from vlmeter.analysis.summary import Line, Section, as_data, summaries
from vlmeter.cli.main import main
from vlmeter.cli.show import print_summaries, show_at_the_end
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import with_interval
from vlmeter.table.build import build_table
from vlmeter.table.files import write_table
from vlmeter.table.quantities import FIRST_TOKEN, PLAIN_WALL, VISION_ENCODER


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return table_of(tmp_path_factory.mktemp("records"), runner=FakeRunner(noise_fraction=0.01))


@pytest.fixture(scope="module")
def two(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.assign(subject="other", device_model="another device")])


@pytest.fixture
def results(tmp_path: Path, table: pd.DataFrame) -> Path:
    write_table(table, tmp_path / "table.parquet", tmp_path / "table.csv")
    write_roofline(roofline_of(table), tmp_path / "roofline.parquet")
    (tmp_path / "report.html").touch()
    return tmp_path


def printed(table: pd.DataFrame, *, width: int) -> list[str]:
    file = io.StringIO()
    print_summaries(summaries(table, all_answers(table)), file=file, width=width)
    return file.getvalue().splitlines()


def line_of(lines: list[str], words: str) -> str:
    return next(line for line in lines if line.startswith(f"  {words}  "))


# What it says


def test_every_answer_of_the_analysis_stands_there_with_its_interval(table: pd.DataFrame) -> None:
    lines = printed(table, width=100)
    for told in answers_of(table).values():
        assert isinstance(told.found, Estimate)
        said = with_interval(told.found, told.unit) + (", predicted" if told.source == "predicted" else "")
        begins = f"  {told.question[:30]}"  # a long one goes on in the next line
        assert any(line.startswith(begins) and line.endswith(said) for line in lines), told.name


def test_the_phases_are_those_of_the_smallest_a_middle_and_the_largest_image(table: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(table)
    cells = cells.assign(pixels=cells["width_px"] * cells["height_px"]).sort_values(["pixels", "cell_id"])
    lines = printed(table, width=100)
    titles = [line.partition("  ")[0] for line in lines if " px  " in line and not line.startswith(" ")]
    ends = [f"{cell['width_px']}x{cell['height_px']} px" for cell in (cells.iloc[0], cells.iloc[-1])]
    assert len(titles) == 3
    assert [titles[0], titles[-1]] == ends
    smallest = cells.iloc[0]
    assert line_of(lines, VISION_ENCODER.label).endswith(with_interval(estimate_of(smallest, VISION_ENCODER), "ms"))
    assert line_of(lines, FIRST_TOKEN.label).endswith(with_interval(estimate_of(smallest, FIRST_TOKEN), "ms"))


def test_without_dummy_images_the_phases_are_those_of_photographs(tmp_path: Path) -> None:
    lines = printed(table_of(tmp_path, vision=None), width=100)
    assert any(line.startswith("photograph 1000") for line in lines)
    assert line_of(lines, "all 64 tokens")


def test_of_one_image_the_time_to_first_token_stands_there_once(tmp_path: Path) -> None:
    study = study_of(experiments={"requests": {"image_sizes": ["336x336"], "output_tokens": [4, 8]}})
    run_fake(study, tmp_path)
    lines = printed(build_table(sorted((tmp_path / "small" / "cells").rglob("*.json"))), width=100)
    assert sum(FIRST_TOKEN.label in line for line in lines) == 1


def test_what_is_predicted_says_so_and_stands_not_beside_its_own_measurement(tmp_path: Path) -> None:
    """Sizes that people ask for are predicted from others; one that was measured with answers stands above."""
    experiments = {
        "requests": {"image_sizes": ["336x336"], "output_tokens": [4]},
        "vision_tokens": {"image_sizes": ["224x224", "448x448", "672x672", "896x896", "672x1344"]},
    }
    run_fake(study_of(experiments=experiments), tmp_path)
    table = build_table(sorted((tmp_path / "small" / "cells").rglob("*.json")))
    assert answers_of(table)["first_token_336x336"].source == "predicted"
    lines = printed(table, width=120)
    assert sum(FIRST_TOKEN.label in line for line in lines if "336 x 336" in line) == 0
    assert line_of(lines, f"{FIRST_TOKEN.label}, 1024 x 1024 px").endswith("), predicted")


def test_a_time_whose_runs_differ_by_more_than_itself_is_not_known(tmp_path: Path) -> None:
    study = study_of(experiments={"requests": {"image_sizes": ["336x336"], "output_tokens": [4]}}, runs=2)
    for run, speed in enumerate((1.0, 9.0)):
        run_fake(study, tmp_path, run=run, runner=FakeRunner(slowdown=speed))
    lines = printed(build_table(sorted((tmp_path / "small").rglob("requests-*.json"))), width=120)
    said = line_of(lines, VISION_ENCODER.label)
    assert "not known: the runs differ by more than itself, 25" in said
    assert any("measure more runs (runs)" in line for line in lines)


def test_the_distance_to_the_floor_is_that_of_the_roofline(table: pd.DataFrame) -> None:
    (found,) = summaries(table, all_answers(table, roofline=roofline_of(table)))
    (line,) = (line for section in found.sections for line in section.lines if line.name == f"limit_{PLAIN_WALL}")
    assert not isinstance(line.found, Unknown)
    assert line.found.value == pytest.approx(PREFILL_TIMES)


def test_a_cost_whose_interval_holds_zero_is_not_known(table: pd.DataFrame) -> None:
    flat = table.copy()
    decodes = (flat["phase"] == "decode") & (flat["kind"] == "generation")
    flat.loc[decodes, "samples_ms"] = flat.loc[decodes, "samples_ms"].map(lambda samples: samples * 0 + 50)
    law = decode_runs.decode_law(decode_runs.decode(flat))
    assert not isinstance(law, Unknown)
    assert law.line["per_token"].contains(0)
    said = line_of(printed(flat, width=160), "time per output token")
    assert "not known: its 95 % interval holds 0" in said


def test_conditions_and_cells_without_numbers_are_said(tmp_path: Path) -> None:
    runner = FakeRunner(fail={"vision": out_of_memory})
    lines = printed(table_of(tmp_path, runner=runner), width=200)
    assert any(line.startswith("Trust  quiet: the machine was quiet") for line in lines)
    (left_out,) = (line for line in lines if line.startswith("Left out  "))
    assert left_out.startswith(f"Left out  {len(TILINGS)} cells without numbers: ")
    assert "2.00 GiB" in left_out


# How it is laid out


def test_subjects_stand_side_by_side_where_there_is_room(two: pd.DataFrame) -> None:
    lines = printed(two, width=130)
    assert sum(line.startswith("  one more crop") for line in lines) == 1
    first, second = line_of(lines, "one more crop").removeprefix("  one more crop").strip().split(")", 1)
    assert f"{first})" == second.strip()


@pytest.mark.parametrize("width", [40, 60, 80])
def test_in_a_narrow_terminal_they_stand_below_each_other_and_nothing_is_cut(two: pd.DataFrame, width: int) -> None:
    lines = printed(two, width=width)
    assert sum(line.startswith("  one more crop") for line in lines) == 2
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("width", [40, 50, 80, 100])
def test_a_long_number_is_broken_and_never_cut(two: pd.DataFrame, width: int) -> None:
    (first, *_) = summaries(two, all_answers(two))
    line = Line("long", "something with a name that needs two lines of words", Estimate(0.247, 0.218, 0.282), "ms")
    file = io.StringIO()
    print_summaries([replace(first, sections=(Section("Long", (line,)),))], file=file, width=width)
    lines = file.getvalue().splitlines()
    number = [word for text in lines for word in text.split() if re.fullmatch(r"[\d.()]+", word)]
    assert {"0.247", "(0.218", "0.282)"} <= set(number)
    below = lines[next(i for i, text in enumerate(lines) if text.startswith("  something")) + 1]
    assert below.startswith("    ") or width == 100


def test_nothing_but_text_goes_into_a_pipe(results: Path) -> None:
    command = [sys.executable, "-m", "vlmeter", "show", str(results)]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "\x1b" not in found.stdout
    assert all(line == line.rstrip() for line in found.stdout.splitlines())
    assert found.stdout.splitlines()[-1] == f"Report  {results / 'report.html'}"
    assert found.stderr == ""


# As JSON, and what is refused


def show(results: Path, *options: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["vlmeter", "show", str(results), *options])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_json_has_every_number_unrounded(
    results: Path, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(results, "--json", monkeypatch=monkeypatch) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert data["report"] == str(results / "report.html")
    assert data["subjects"] == json.loads(
        json.dumps(as_data(summaries(table, all_answers(table, roofline=roofline_of(table)))))
    )
    told = {line["name"]: line for line in data["subjects"]["fake"]["answers"]}
    answer = answers_of(table)["crop"].found
    assert not isinstance(answer, Unknown)
    assert (told["crop"]["value"], told["crop"]["low"]) == (answer.value, answer.low)


def test_a_folder_without_a_study_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(tmp_path, monkeypatch=monkeypatch) == 2
    assert capsys.readouterr().err.startswith(f"vlmeter: {tmp_path} holds no table.parquet; legal: the folder")


def test_a_run_ends_with_it_unless_the_command_behind_it_does(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show_at_the_end(results)
    assert "one more crop" in capsys.readouterr().out
    monkeypatch.setenv("VLMETER_SHOWN_ELSEWHERE", "1")
    show_at_the_end(results)
    assert capsys.readouterr().out == ""


def test_a_run_does_not_fail_on_a_table_that_cannot_be_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.parquet").write_text("no table")
    show_at_the_end(tmp_path)
    assert capsys.readouterr().err.startswith("vlmeter: table ")
