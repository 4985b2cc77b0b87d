"""`vlmeter new` writes a study that explains itself; commands help who mistypes, and who reports a defect."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from tests.support.nvml import FakeGpu, fake_nvml, install
from tests.support.studies import study_of
from vlmeter import __version__
from vlmeter.cli.main import main
from vlmeter.common.errors import UserError
from vlmeter.experiments.registry import EXPERIMENTS, get_experiment
from vlmeter.models.served_checkpoint import write_checkpoint
from vlmeter.study.draft import LINE_COLUMNS, study_text
from vlmeter.study.loader import load_study, parse_study
from vlmeter.study.plan import build_plan

ROOT = Path(__file__).resolve().parent.parent
NANO = ("--random", "--family", "molmo", "--preset", "nano", "--device", "cpu")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run the command line in an empty folder; returns exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlmeter", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


# A study of one's own


def test_every_experiment_makes_a_study_to_begin_with(run) -> None:
    options = [word for name in EXPERIMENTS for word in ("--experiment", name)]
    code, out, _ = run("new", "mine.yaml", *NANO, *options)
    study = load_study(Path("mine.yaml"))
    assert code == 0
    assert out.splitlines()[0] == f"mine.yaml asks for {len(build_plan(study))} cells"
    assert study.study == "mine"
    assert list(study.experiments.given) == list(EXPERIMENTS)
    for name in EXPERIMENTS:
        starter = dict(get_experiment(name).starter)
        assert study.experiments.given[name].model_dump(include=set(starter)) == starter


def test_every_key_of_it_is_explained(run) -> None:
    run("new", "mine.yaml", *NANO, "--experiment", "output_tokens")
    lines = Path("mine.yaml").read_text().splitlines()
    keys = [i for i, line in enumerate(lines) if line.partition("#")[0].strip().partition(":")[1]]
    own_names = ("molmo-nano:",)
    for i in keys:
        above = lines[i - 1].lstrip().startswith("#")
        assert "#" in lines[i] or above or lines[i].strip() in own_names, lines[i]
    assert max(map(len, lines)) <= LINE_COLUMNS


def test_a_terminal_is_asked_what_no_option_tells(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "vlmeter", "new", "mine.yaml", "--device", "cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, stdin=child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    os.write(parent, b"random\nqwen2_5_vl\nnano\n1, 3\n")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert b"What do you want to know?" in err
    content = yaml.safe_load((tmp_path / "mine.yaml").read_text())
    assert content["subjects"]["qwen2_5_vl-nano"]["family"] == "qwen2_5_vl"
    assert list(content["experiments"]) == list(EXPERIMENTS)[:3:2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--model or --random is missing, and without a terminal nobody can be asked"),
        (NANO, "--experiment is missing, and without a terminal nobody can be asked"),
        ((*NANO, "--experiment", "speed"), "--experiment: 'speed' is not known; legal: vision_tokens, output_tokens"),
        (("--model", "x", "--preset", "nano", "--experiment", "requests"), "--preset: a checkpoint has its own"),
    ],
)
def test_what_is_missing_or_unknown_is_refused(
    run, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    code, out, err = run("new", "mine.yaml", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"vlmeter: {said}")
    assert not Path("mine.yaml").exists()


def test_a_file_that_is_there_stays_as_it_is(run) -> None:
    Path("mine.yaml").write_text("mine")
    code, _, err = run("new", "mine.yaml", *NANO, "--experiment", "requests")
    assert (code, err.startswith("vlmeter: mine.yaml is there, and nothing is written over")) == (2, True)
    assert Path("mine.yaml").read_text() == "mine"


def test_a_commented_study_reads_back_as_what_it_was_made_of() -> None:
    content: dict[str, Any] = study_of().model_dump(mode="json", exclude_none=True)
    content["subjects"]["fake"]["revision"] = 'a "quoted": # text'
    assert yaml.safe_load(study_text(content, opening="What it is for.")) == content


# How quickly it is there


@pytest.mark.parametrize(
    ("gpus", "torch", "visible", "dtype"),
    [
        (1, "2.13.0", None, "bfloat16"),
        (0, "2.13.0", None, "float32"),
        (1, "2.13.0+cpu", None, "float32"),
        (1, "2.13.0+cu130", "0", "bfloat16"),
        (1, "2.13.0", "", "float32"),
        (1, "2.13.0", "-1", "float32"),
    ],
)
def test_the_number_format_is_that_of_the_device_that_a_session_would_find(
    run, gpus: int, torch: str, visible: str | None, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, fake_nvml(*[FakeGpu()] * gpus))
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: torch if name == "torch" else real(name))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    run("new", "mine.yaml", *NANO[:-2], "--experiment", "vision_tokens")
    (subject,) = load_study(Path("mine.yaml")).subjects.values()
    assert (subject.dtype, subject.device) == (dtype, "auto")


def test_without_nvml_there_is_no_gpu(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    run("new", "mine.yaml", *NANO[:-2], "--experiment", "vision_tokens")
    (subject,) = load_study(Path("mine.yaml")).subjects.values()
    assert subject.dtype == "float32"


@pytest.mark.parametrize(
    "line",
    [
        ["new", "mine.yaml", *NANO[:-2], "--experiment", "vision_tokens"],
        ["measure", *NANO[:-2], "--image", "336x336", "--image", "photo.jpg"],
        ["measure", "checkpoint", "--image", "336x336"],
    ],
    ids=["new", "measure", "a checkpoint"],
)
def test_writing_a_study_loads_no_torch(line: list[str], tmp_path: Path) -> None:
    """It takes seconds to import, and a process that has it may open a context on the device that is measured."""
    Image.new("RGB", (64, 64)).save(tmp_path / "photo.jpg")
    write_checkpoint(tmp_path / "checkpoint", family="llava_next", preset="nano", weights=False)
    program = (
        "import sys\nfrom vlmeter.workflow import start\nfrom vlmeter.cli.main import main\n"
        "start.run = lambda *command, **options: 0\n"
        "try:\n    main()\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *line]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "False\n")
    assert list(tmp_path.rglob("*.yaml"))


# Who mistypes


@pytest.mark.parametrize(
    ("subject", "meant"),
    [
        ({"family": "qwen2.5-vl"}, "qwen2_5_vl"),
        ({"preset": "7B-D"}, "7b-d"),
        ({"dtype": "fp16"}, "float16"),
        ({"backend": "cuda_graph"}, "cudagraph"),
    ],
)
def test_a_name_that_is_nearly_right_is_asked_back(subject: dict[str, str], meant: str) -> None:
    with pytest.raises(UserError, match=rf"did you mean {meant}\?"):
        study_of(subjects={"mine": {"family": "molmo", "preset": "nano", **subject}})


def test_a_preset_of_the_command_line_is_asked_back_too(run) -> None:
    code, _, err = run("tokens", "--family", "molmo", "--preset", "7bd", "640x480")
    assert (code, "(did you mean 7b-d?)" in err) == (2, True)


def test_an_image_size_with_one_number_is_told_what_a_size_looks_like(run) -> None:
    assert "such as 640x480" in run("tokens", "640")[2]


def test_a_folder_in_the_place_of_a_study_is_one_sentence(run) -> None:
    Path("folder").mkdir()
    assert run("plan", "folder") == (2, "", "vlmeter: study file folder cannot be read: it is a folder\n")


def test_all_that_is_wrong_with_a_study_is_said_at_once() -> None:
    wrong = {
        "study": "small",
        "subjects": {"mine": {"family": "molmo", "preset": "nano", "dtype": "fp16", "device": "gpu"}},
        "experiments": {"vision_tokens": {"tilings": "some"}},
        "smapling": {},
    }
    with pytest.raises(UserError) as caught:
        parse_study(wrong, source="mine.yaml")
    first, *others = str(caught.value).splitlines()
    assert first == "mine.yaml: 4 keys are wrong"
    assert [line.partition(":")[0] for line in others[:3]] == [
        "- subjects.mine.dtype",
        "- subjects.mine.device",
        "- experiments.vision_tokens.tilings",
    ]
    assert others[3].startswith("- key smapling is not known (did you mean sampling?)")
    assert len(others) == 4


# Who reports a defect, and who types little


def test_the_version_comes_with_what_a_report_of_a_defect_needs(run) -> None:
    code, out, _ = run("--version")
    first, *others = out.splitlines()
    assert (code, first) == (0, f"vlmeter {__version__}")
    assert {line.split()[0] for line in others} >= {"commit", "python", "platform", "GPUs", "torch", "snakemake"}


def test_doctor_as_json_has_the_environment_beside_the_advice(run) -> None:
    _, out, _ = run("doctor", "--json")
    data = json.loads(out)
    assert data["environment"]["vlmeter"] == __version__
    assert data["environment"]["python"].endswith(sys.executable)
    assert all({"severity", "topic", "finding", "action"} == set(advice) for advice in data["advice"])


def test_the_shell_completes_commands() -> None:
    asked = {"_VLMETER_COMPLETE": "complete_bash", "COMP_WORDS": "vlmeter me", "COMP_CWORD": "1"}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **asked}
    program = "import sys; sys.argv[0] = 'vlmeter'; from vlmeter.cli.main import main; main()"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["measure"]


def test_help_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "pandas", "numpy", "rich", "matplotlib", "pydantic", "yaml", "PIL")
    program = (
        "import sys\nsys.argv = ['vlmeter', '--help']\n"
        "from vlmeter.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print(sorted(set({heavy!r}) & set(sys.modules)), file=sys.stderr)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.stderr.strip() == "[]"


def test_the_package_runs_as_a_module() -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "vlmeter", "--help"], env=environment, capture_output=True, text=True)
    assert (done.returncode, "measure" in done.stdout) == (0, True)
