"""The command line answers at once, in the form asked for, and refuses with one sentence."""

from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vlmeter.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "data" / "molmo1_golden_d"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in this process; returns exit code, output, errors."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlmeter", *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def refused(result: tuple[int, str, str]) -> str:
    """The one sentence of a refusal."""
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("vlmeter: ")
    assert err.count("\n") == 1
    return err


def test_tokens_as_csv_has_the_documented_columns_and_counts(run) -> None:
    code, out, _ = run("tokens", "--family", "molmo", "640x480", "336x336", "--format", "csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert code == 0
    assert list(rows[0]) == [
        "width", "height", "tiling_h", "tiling_w", "crops", "vision_tokens", "special_tokens", "image_tokens",
    ]  # fmt: skip
    assert [row["vision_tokens"] for row in rows] == ["704", "288"]


def test_tokens_as_json_and_table_say_the_same(run) -> None:
    _, as_json, _ = run("tokens", "1008x784", "--format", "json")
    _, as_table, _ = run("tokens", "1008x784")
    (row,) = json.loads(as_json)
    assert as_table.splitlines()[2].split() == [str(value) for value in row.values()]


def test_size_lists_every_tiling_that_reaches_a_count(run) -> None:
    _, out, _ = run("size", "--vision-tokens", "864", "--format", "json")
    assert {(row["tiling_h"], row["tiling_w"]) for row in json.loads(out)} == {(1, 7), (7, 1), (2, 4), (4, 2)}


def test_max_crops_reaches_what_the_default_cannot(run) -> None:
    refused(run("size", "--crops", "17"))
    code, out, _ = run("size", "--crops", "17", "--max-crops", "16", "--format", "json")
    assert code == 0
    assert all(row["crops"] == 17 for row in json.loads(out))


def test_a_forced_tiling_goes_past_the_selection(run) -> None:
    _, out, _ = run("tokens", "640x480", "--force-tiling", "2x7", "--format", "json")
    assert json.loads(out)[0]["crops"] == 15


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("size", "--vision-tokens", "865"), "nearest are 864 below and 928 above"),
        (("tokens", "4000x11"), "4000x11"),
        (("tokens", "640by480"), "640by480"),
        (("tokens", "640x480", "--format", "xml"), "legal: table, csv, json"),
        (("tokens", "640x480", "--family", "mulmo"), "legal: gemma3"),
        (("size",), "exactly one"),
        (("size", "--crops", "3", "--tiling", "1x2"), "exactly one"),
        (("plan", "nowhere.yaml"), "nowhere.yaml"),
        (("verify", "nowhere", str(GOLDEN / "case_1x1.npz")), "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, arguments: tuple[str, ...], named: str) -> None:
    assert named in refused(run(*arguments))


def test_plan_lists_every_cell_of_the_quickstart_with_its_counts(run) -> None:
    code, out, _ = run("plan", str(ROOT / "config.yaml"), "--format", "json")
    rows = json.loads(out)
    assert code == 0
    assert len(rows) == 88
    blocks = [row for row in rows if row["experiment"] == "latency_distribution"]
    assert [row["image"] for row in blocks] == ["requests 0 to 99", "requests 100 to 199", "requests 200 to 299"]
    assert all(isinstance(row["prompt_tokens"], int) for row in rows if row not in blocks)
    assert {row["output_tokens"] for row in rows if row["experiment"] == "output_tokens"} == {8, 16, 32, 64, 128}


def test_status_of_a_study_that_never_ran_is_missing_throughout(run, tmp_path: Path) -> None:
    _, out, _ = run("status", str(ROOT / "config.yaml"), "--results", str(tmp_path), "--format", "json")
    assert {row["state"] for row in json.loads(out)} == {"missing"}


def test_forget_refuses_a_pattern_that_matches_nothing(run, tmp_path: Path) -> None:
    message = refused(run("forget", str(ROOT / "config.yaml"), "visoin-*", "--results", str(tmp_path)))
    assert "visoin-*" in message


def test_the_committed_schema_is_the_one_that_is_printed(run) -> None:
    _, out, _ = run("schema")
    assert json.loads(out) == json.loads((ROOT / "schemas" / "study.schema.json").read_text())


def test_plan_tells_minutes_and_memory_of_every_subject(run) -> None:
    code, out, _ = run("plan", str(ROOT / "studies" / "molmo-7b-d-short.yaml"))
    assert code == 0
    last = out.strip().splitlines()[-1]
    assert re.match(
        r"molmo-7b-d: up to \d+ h \d\d min, [\d.]+ GiB of the host's memory, [\d.]+ GiB of the device's", last
    )


def test_every_committed_study_can_be_planned(run) -> None:
    for study in sorted((ROOT / "studies").glob("*.yaml")):
        code, out, err = run("plan", str(study), "--format", "json")
        assert code == 0, err
        assert json.loads(out)


def test_verify_passes_the_golden_cases_and_fails_past_tolerance(run) -> None:
    case = str(GOLDEN / "case_1x1.npz")
    code, out, _ = run("verify", str(GOLDEN), case)
    assert code == 0
    assert "pass" in out
    code, out, _ = run("verify", str(GOLDEN), case, "--tolerance", "1e-9")
    assert code == 1
    assert "FAIL" in out


def test_doctor_answers_on_a_machine_without_a_gpu(run) -> None:
    code, out, _ = run("doctor", "--format", "json")
    assert code in (0, 1)
    assert {row["severity"] for row in json.loads(out)} <= {"problem", "warning", "note", "good"}


@pytest.mark.parametrize("arguments", [["--help"], ["tokens", "640x480"], ["plan", "config.yaml"]])
def test_looking_imports_neither_torch_nor_transformers_nor_pandas(arguments: list[str]) -> None:
    code = (
        "import sys\n"
        "from vlmeter.cli.main import main\n"
        f"sys.argv = ['vlmeter', *{arguments!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'pandas', 'snakemake') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_reachable_lists_every_count_and_says_what_sets_the_limit(run) -> None:
    code, out, _ = run("reachable", "--family", "molmo", "--format", "csv")
    assert code == 0
    assert len({row["vision_tokens"] for row in csv.DictReader(io.StringIO(out))}) == 17
    assert "17 counts of vision tokens, 288 to 1344; the limit: max_crops 12" in run("reachable")[1]
    assert "5 counts" in run("reachable", "--spread", "5", "--max-crops", "4")[1]


def test_size_takes_the_nearest_count_on_request(run) -> None:
    assert "865" in refused(run("size", "--vision-tokens", "865"))
    _, out, _ = run("size", "--vision-tokens", "865", "--nearest", "--format", "json")
    assert {row["vision_tokens"] for row in json.loads(out)} == {864}


def test_a_preset_that_is_not_there_is_refused_with_the_legal_ones(run) -> None:
    assert "legal: nano, 7b-d" in refused(run("tokens", "640x480", "--preset", "8b"))
