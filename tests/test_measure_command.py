"""`vlmeter measure`: from a model to an answer in one line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.support.studies import run_fake
from vlmeter.cli.main import main
from vlmeter.study.loader import load_study
from vlmeter.study.plan import build_plan
from vlmeter.table.build import build_table
from vlmeter.table.files import write_table
from vlmeter.workflow import start

NANO = ("--random", "--family", "molmo", "--preset", "nano", "--device", "cpu")


@pytest.fixture
def call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command in an empty folder; in the workflow's place a session measures a fake. Returns code, out, err."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (640, 480), "green").save("photo.jpg")

    def workflow(command: list[str], **options: Any) -> int:
        study = load_study(Path(command[command.index("--configfile") + 1]))
        (subject,) = study.subjects
        run_fake(study, Path("results"), subject=subject)
        root = Path("results", study.study)
        table = build_table(sorted((root / "cells").rglob("*.json")))
        write_table(table, root / "table.parquet", root / "table.csv")
        (root / "report.html").touch()
        print("a line of a job", file=sys.stderr if options["output_aside"] else sys.stdout)
        return 0

    monkeypatch.setattr(start, "run", workflow)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlmeter", "measure", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


def written() -> tuple[Path, dict[str, Any]]:
    (path,) = Path("results").glob("*/study.yaml")
    return path, yaml.safe_load(path.read_text())


def refused(result: tuple[int, str, str]) -> str:
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not Path("results").exists()
    return err.removeprefix("vlmeter: ")


def test_one_line_gives_the_answer_the_report_and_the_study_to_go_on_from(call) -> None:
    code, out, _ = call(*NANO, "--image", "1344x1344", "--image", "photo.jpg", "--output-tokens", "16")
    path, content = written()
    assert code == 0
    assert out.splitlines()[-2:] == [f"Report  {path.parent / 'report.html'}", f"Study   {path}"]
    for words in (
        "1344x1344 px",
        "photo.jpg (640x480 px)",
        "LLM blocks",
        "one more crop",
        "each further token",
        "Trust",
    ):
        assert words in out
    assert not re.search(r"one more crop +not known", out)
    assert content["experiments"]["requests"] == {
        "image_sizes": ["1344x1344"],
        "pictures": ["photo.jpg"],
        "output_tokens": [16],
    }


def test_json_is_all_that_goes_to_the_output(call) -> None:
    code, out, err = call(*NANO, "--image", "336x336", "--output-tokens", "8", "--json")
    data = json.loads(out)
    assert (code, "a line of a job" in err) == (0, True)
    assert data["study_file"] == str(written()[0])
    assert {line["name"] for line in data["subjects"]["molmo-nano"]["answers"]} >= {"llm_blocks", "output_token"}


def test_the_study_explains_its_keys_and_is_what_was_asked(call) -> None:
    call(*NANO, "--question", "What is it?", "--output-tokens", "4", "--dtype", "bfloat16", "--backend", "cudagraph")
    path, content = written()
    study = load_study(path)
    assert study.study == path.parent.name
    (subject,) = study.subjects.values()
    assert (subject.backend, subject.dtype, subject.device) == ("cudagraph", "bfloat16", "cpu")
    assert content["experiments"]["requests"]["questions"] == ["What is it?"]
    assert "min_samples: 9 # rounds that are always taken" in path.read_text()


def test_a_served_model_is_measured_at_its_address(call) -> None:
    call(*NANO, "--image", "336x336", "--output-tokens", "4", "--url", "http://127.0.0.1:8000/v1", "--no-costs")
    (subject,) = load_study(written()[0]).subjects.values()
    assert subject.endpoint.url == "http://127.0.0.1:8000/v1"


def test_runs_are_the_studys(call) -> None:
    line = (*NANO, "--image", "336x336", "--output-tokens", "4", "--no-costs")
    call(*line)
    assert "runs" not in written()[1]
    call(*line, "--runs", "2", "--name", "twice")
    assert load_study(Path("results/twice/study.yaml")).runs == 2


def test_the_same_line_again_goes_on_and_another_has_a_study_of_its_own(call) -> None:
    line = (*NANO, "--image", "336x336", "--output-tokens", "4")
    assert [call(*line)[0], call(*line)[0]] == [0, 0]
    assert len(list(Path("results").iterdir())) == 1
    call(*line, "--output-tokens", "8")
    assert len(list(Path("results").iterdir())) == 2


def test_a_study_that_was_edited_is_never_written_over(call) -> None:
    line = (*NANO, "--image", "336x336", "--output-tokens", "4", "--name", "mine")
    call(*line)
    path = Path("results/mine/study.yaml")
    path.write_text(path.read_text().replace("max_samples: 25", "max_samples: 50"))
    code, _, err = call(*line)
    assert code == 2
    assert err.startswith(f"vlmeter: {path} is there and asks for something else; `vlmeter run {path}` goes on from it")
    assert "max_samples: 50" in path.read_text()


@pytest.mark.parametrize("family", ["molmo", "qwen2_5_vl", "internvl", "llava_onevision"])
def test_costs_have_sizes_enough_for_a_law_in_every_family(call, family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "run", lambda *command, **options: 0)
    call("--random", "--family", family, "--preset", "nano", "--device", "cpu", "--output-tokens", "4")
    cells = [cell for cell in build_plan(load_study(written()[0])) if cell.experiment == "vision_tokens"]
    assert len({cell.expected.prompt_tokens for cell in cells}) == len(cells) >= 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give a MODEL (a hub id, or a checkpoint's folder), or --random with --family and --preset; neither is"),
        (("folder", *NANO), "give a MODEL (a hub id, or a checkpoint's folder), or --random"),
        (("--random", "--family", "molmo"), "--preset is missing"),
        (("folder", "--preset", "nano"), "--preset: a checkpoint has its own architecture; legal with --random"),
        ((*NANO, "--revision", "main"), "--revision: random weights have none"),
        ((*NANO, "--image", "absent.jpg"), "experiments.requests.pictures: absent.jpg does not exist"),
        ((*NANO, "--image", "0x5"), "measure: experiments.requests.image_sizes"),
        ((*NANO, "--backend", "eager", "--url", "http://127.0.0.1:1/v1"), "--url: a server runs the model by itself"),
        ((*NANO, "--dtype", "fp16"), "measure: subjects.molmo-nano.dtype: \"fp16\" is not legal (did you mean"),
        ((*NANO, "--name", "a b"), "--name: study: \"a b\" is not legal"),
        (("no/such/folder/here",), "no/such/folder/here"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_anything_is_written(
    call, arguments: tuple[str, ...], said: str
) -> None:
    assert refused(call(*arguments)).startswith(said)
