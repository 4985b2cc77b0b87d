"""What the documentation tells one to type, works: commands parse, files are there, and what takes seconds is run."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.support.pages import PAGES, ROOT, Command, blocks, commands, name_of, studies
from tools.reference import command_line
from vlmeter.models.served_checkpoint import write_checkpoint
from vlmeter.study.loader import load_study
from vlmeter.study.plan import build_plan
from vlmeter.table.files import read_table, write_table
from vlmeter.workflow import start

COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in COMMANDS if Path(command.words[0]).name == "vlmeter"]
STUDIES = {name: text for page in PAGES for name, text in studies(page).items()}

#: Programs that pages may name; each is looked at below, or is everybody's.
PROGRAMS = {"vlmeter", "make", "snakemake", "python", "pip", "source", "git"}

#: Words in capitals stand for what a reader has.
PLACEHOLDER = re.compile(r"^[A-Z_]+(\.yaml)?$")

#: Commands that are not run here, by how they begin, and why not; a reason that fits none is an error.
NOT_RUN = {
    "git": "changes and publishes a history",
    "make test": "is what runs this test",
    "python -m venv": "begins an environment that the next command fills from a package index",
    ".venv-vllm/bin/pip": "installs from a package index; `make servers` does it where CI runs",
    "pip": "installs from a package index; what it installs is locked, and in the environment of the tests",
    "source": "is the shell's own",
    "vlmeter new": "asks at a terminal; tests/test_new.py gives it one",
    "vlmeter checkpoint --family qwen2_5_vl --preset 7b FOLDER --weights": "writes 15 GB; "
    "tests/test_cli_checkpoint.py writes the weights of a toy",
}

#: What a run in a clone reads beside the study.
WORKFLOW = ("Snakefile", "rules", "scripts", "profiles", "envs", "report")

#: What a word in capitals is here.
FOR_EXAMPLE = {"STUDY.yaml": "config.yaml", "NODE.yaml": "node.yaml", "FOLDER": "folder"}


def ids(found: list[Command]) -> list[str]:
    return [str(command) for command in found]


def test_pages_are_found_and_say_something() -> None:
    assert len(PAGES) > 25
    assert len(OURS) > 40


@pytest.mark.parametrize("command", COMMANDS, ids=ids(COMMANDS))
def test_every_program_of_a_page_is_one_that_the_tests_know(command: Command) -> None:
    assert Path(command.words[0]).name in PROGRAMS


@pytest.mark.parametrize("command", OURS, ids=ids(OURS))
def test_every_command_of_a_page_parses(command: Command) -> None:
    root = command_line()
    _, name, *rest = command.words
    assert name in root.commands, f"there is no `vlmeter {name}`"
    found = root.commands[name]
    found.make_context(f"vlmeter {name}", list(rest))  # raises what a user would be told


def parse(*words: str) -> None:
    command_line().commands[words[0]].make_context(words[0], list(words[1:]))


def test_a_wrong_option_and_a_missing_one_do_not_parse() -> None:
    parse("predict", "--study", "x", "--image", "1x1", "--output-tokens", "4")
    with pytest.raises(Exception, match="No such option"):
        parse("plan", "config.yaml", "--sudy")
    with pytest.raises(Exception, match="Missing parameter: image"):
        parse("predict", "--study", "x")


@pytest.mark.parametrize("name", sorted({name_of(page) for page in PAGES}))
def test_every_command_that_a_page_names_in_passing_is_there(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    named = set(re.findall(r"`vlmeter ([a-z]+)", text)) - {"needs"}  # a message: vlmeter needs Python 3.11
    assert named <= set(command_line().commands)


@pytest.mark.parametrize("name", sorted({name_of(page) for page in PAGES} - {"CHANGELOG.md"}))
def test_every_file_of_the_repository_that_a_page_names_is_there(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    named = set(
        re.findall(r"(?<![\w/.-])((?:studies|profiles|scripts|rules|tests|tools|vlmeter)/[\w/.-]*\w\.\w+)", text)
    )
    assert sorted(path for path in named if not (ROOT / path).exists()) == []


def named_files(command: Command) -> list[str]:
    """Words of a command that name a file of the repository, or a study that a page shows."""
    words = [word.partition("STUDY=")[2] or word for word in command.words[1:]]
    return [word for word in words if re.fullmatch(r"(studies|profiles|docs|tests)/\S+|[\w-]+\.yaml", word)]


@pytest.mark.parametrize("command", COMMANDS, ids=ids(COMMANDS))
def test_every_file_that_a_command_names_is_there(command: Command) -> None:
    for word in named_files(command):
        known = PLACEHOLDER.fullmatch(word) or word in STUDIES
        assert known or list(ROOT.glob(word)), f"there is no {word}"


MAKE = [command for command in COMMANDS if command.words[0] == "make"]


@pytest.mark.parametrize("command", MAKE, ids=ids(MAKE))
def test_every_make_command_has_a_target_and_known_variables(command: Command) -> None:
    text = (ROOT / "Makefile").read_text("utf-8")
    for word in command.words[1:]:
        variable, equals, _ = word.partition("=")
        assert re.search(rf"^{variable} \?=" if equals else rf"^{word}:", text, re.MULTILINE), word


MODULES = [command for command in COMMANDS if command.words[:2] == ("python", "-m")]


@pytest.mark.parametrize("command", MODULES, ids=ids(MODULES))
def test_every_module_that_is_run_is_there(command: Command) -> None:
    assert find_spec(command.words[2])


def why_not(command: Command) -> str | None:
    """Why a command is not run; None if it is."""
    line = shlex.join(command.words)
    return next((NOT_RUN[begins] for begins in NOT_RUN if f"{line} ".startswith(f"{begins} ")), None)


def test_what_is_not_run_has_a_reason_and_no_reason_is_left_over() -> None:
    lines = [f"{shlex.join(command.words)} " for command in COMMANDS]
    assert [begins for begins in NOT_RUN if not any(line.startswith(f"{begins} ") for line in lines)] == []
    assert sum(why_not(command) is None for command in OURS) > 0.9 * len(OURS)


def example(command: Command) -> list[str]:
    """Its words with something in the place of what a reader has."""
    return [FOR_EXAMPLE.get(word, word) for word in command.words]


#: Folders of results that commands of pages name, as the results of one study, or of several with one subject.
RESULTS = {word for command in OURS for word in command.words if re.fullmatch(r"results/[\w-]+|(base|new)\d?", word)}


def subjects_of(folder: str) -> set[str]:
    """Subjects that commands expect in the results of a study; none: they name none."""
    found: set[str] = set()
    for command in OURS:
        words = command.words
        if folder in words:
            found |= {words[i + 1] for i, word in enumerate(words) if word == "--subject"}
            pairs = [words[i + 1] for i, word in enumerate(words) if word == "--subjects"]
            found |= {name for pair in pairs for name in pair.split(":")}
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of every study that a page speaks of: the gallery's, under the names of the subjects."""
    root = tmp_path_factory.mktemp("finished")
    gallery = ROOT / "docs" / "gallery"
    table = read_table(gallery / "table.parquet")
    for folder in RESULTS | {"results/mine"}:
        shutil.copytree(gallery, root / folder, ignore=shutil.ignore_patterns("*.png", "*.html"))
        own = table.assign(session_id=table["session_id"] + folder)  # no two measured at one time
        if names := subjects_of(folder):
            own = pd.concat([own.assign(subject=name) for name in sorted(names)])
            (root / folder / "roofline.parquet").unlink()
        write_table(own, root / folder / "table.parquet", root / folder / "table.csv")
    return root


@pytest.fixture
def desk(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone's, in which every study that a page speaks of has run: its results are the gallery's."""
    for name in ("config.yaml", "studies", "docs", "tests", "requirements.lock", *WORKFLOW):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, text in STUDIES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    for name in ("baseline", "before", "mine"):
        shutil.copy(ROOT / "docs" / "gallery" / "baseline.json.gz", tmp_path / f"{name}.json.gz")
    (tmp_path / "node.yaml").write_text("cell_time_limit_seconds: 100\n", encoding="utf-8")
    Image.effect_noise((640, 480), 90).convert("RGB").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workflow(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Notes how the workflow is started, in the place of starting it."""
    started: list[list[str]] = []

    def run(command: list[str], **options: object) -> int:
        started.append(command)
        return 0

    monkeypatch.setattr(start, "run", run)
    return started


def call(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> object:
    """Run the command line in this process; returns the exit code."""
    from vlmeter.cli.main import main

    monkeypatch.setattr(sys, "argv", ["vlmeter", *words])
    try:
        main()
    except SystemExit as stop:
        return stop.code or 0
    return 0


RUN = [command for command in OURS if why_not(command) is None]


@pytest.mark.parametrize("command", RUN, ids=ids(RUN))
def test_every_command_that_takes_seconds_does_what_it_says(
    command: Command,
    desk: Path,
    workflow: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A run and a measurement go as far as the workflow, which tests/test_one_line.py starts."""
    words = example(command)
    if words[1] == "measure" and not words[2].startswith("-"):  # a folder of that name, since there is no hub
        write_checkpoint(desk / words[2], family="qwen2_5_vl", preset="7b", weights=False)
    code = call(words[1:], monkeypatch)
    captured = capsys.readouterr()
    allowed = {0, 1} if words[1] == "doctor" else {0}  # the machine of the tests may be a busy one
    assert code in allowed, captured.err
    if words[1] in ("measure", "run"):
        (started,) = workflow
        study = load_study(Path(started[started.index("--configfile") + 1]))
        assert build_plan(study)
    else:
        assert captured.out


STUDIES_THAT_ARE_RUN = sorted({word[6:] for command in MAKE for word in command.words if word.startswith("STUDY=")})


@pytest.mark.parametrize("study", ["config.yaml", *STUDIES_THAT_ARE_RUN])
def test_make_run_starts_the_study(
    study: str, desk: Path, workflow: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `make run` does with it; tests/test_one_line.py runs make."""
    text = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^run:.*\n(\t.*\n)*?\t@\$\(IN_VENV\) vlmeter run \"\$\(STUDY\)\"", text, re.MULTILINE)
    assert call(["run", study], monkeypatch) == 0
    (started,) = workflow
    assert started[started.index("--configfile") + 1] == study


SNAKEMAKE = {shlex.join(example(c)): c for c in COMMANDS if c.words[0] == "snakemake"}


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted(SNAKEMAKE))
def test_every_snakemake_command_plans_its_study(line: str, desk: Path) -> None:
    """As a dry run: the profile, the executor that it names and the study are all read."""
    command = [sys.executable, "-m", *shlex.split(line)]
    command += [] if "--dry-run" in command else ["--dry-run"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=desk, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "render_report" in done.stdout + done.stderr


PROGRAMS_OF_PAGES = [
    pytest.param(code, id=f"{name_of(page)}-{place}")
    for page in PAGES
    if page.name != "datasets.md"  # tests/test_docs_datasets.py runs that page's
    for place, (_, code) in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("code", PROGRAMS_OF_PAGES)
def test_every_program_of_a_page_runs(code: str, desk: Path) -> None:
    exec(compile(code, "page", "exec"), {})


@pytest.mark.parametrize("name", sorted(STUDIES))
def test_every_study_that_a_page_shows_is_a_study(name: str) -> None:
    import yaml

    from vlmeter.study.study import Study

    assert Study(**yaml.safe_load(STUDIES[name])).study == name.removesuffix(".yaml")
