"""What the documentation tells one to type, works: commands parse, files are there, and what takes seconds is run."""

from __future__ import annotations

import re
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.pages import PAGES, ROOT, Command, blocks, commands, name_of, studies
from tools.reference import command_line

COMMANDS = [command for page in PAGES for command in commands(page)]
OURS = [command for command in COMMANDS if Path(command.words[0]).name == "vlmeter"]
STUDIES = {name: text for page in PAGES for name, text in studies(page).items()}

#: Programs that pages may name; each is looked at below, or is everybody's.
PROGRAMS = {"vlmeter", "make", "snakemake", "python", "pip", "source", "git"}

#: Words in capitals stand for what a reader has.
PLACEHOLDER = re.compile(r"^[A-Z_]+(\.yaml)?$")

#: Commands that are not run here: they load a model, run a study or ask at a terminal, and tests of their own run them.
TRIED_ELSEWHERE = {"verify", "checkpoint", "measure", "run", "new"}


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


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder like a clone's, in which every study that a page speaks of has run: its results are the gallery's."""
    for name in ("config.yaml", "studies", "docs", "tests"):
        (tmp_path / name).symlink_to(ROOT / name)
    for name, text in STUDIES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    results = {word for command in COMMANDS for word in command.words if re.fullmatch(r"results/[\w-]+", word)}
    for folder in results | {"results/mine"}:
        shutil.copytree(ROOT / "docs" / "gallery", tmp_path / folder, ignore=shutil.ignore_patterns("*.png", "*.html"))
    for name in ("baseline", "before", "mine"):
        shutil.copy(ROOT / "docs" / "gallery" / "baseline.json.gz", tmp_path / f"{name}.json.gz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def is_run(command: Command) -> bool:
    """Whether a command takes seconds and wants nothing that is not here: a hub, a model, several subjects."""
    words = command.words[1:]
    wants = any(word in ("--weights", "--subjects", "--subject") or PLACEHOLDER.fullmatch(word) for word in words)
    several = any(word.startswith("base") and word.endswith(("1", "2", "3")) for word in words) or "base" in words
    return words[0] not in TRIED_ELSEWHERE and not wants and not several


RUN = [command for command in OURS if is_run(command)]


def test_most_commands_are_run() -> None:
    assert len(RUN) > 0.7 * len(OURS)


@pytest.mark.parametrize("command", RUN, ids=ids(RUN))
def test_every_command_that_takes_seconds_does_what_it_says(
    command: Command, desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from vlmeter.cli.main import main

    monkeypatch.setattr(sys, "argv", ["vlmeter", *command.words[1:]])
    try:
        main()
        code: object = 0
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    allowed = {0, 1} if command.words[1] == "doctor" else {0}  # the machine of the tests may be a busy one
    assert code in allowed, captured.err
    assert captured.out


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
