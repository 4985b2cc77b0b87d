"""The command that writes a study of one's own to begin with."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmeter.cli.app import say
from vlmeter.cli.drafts import fitting_dtype, name_of, subject_keys, write_new
from vlmeter.common.errors import UserError

OPENING = (
    "A study to begin with: change what you like. `vlmeter plan` shows what it would measure, `vlmeter run` measures "
    "it. `vlmeter schema` prints every key that there is."
)


def new(
    study_file: Annotated[Path, typer.Argument(help="file to write", metavar="STUDY.yaml")] = Path("study.yaml"),
    model: Annotated[
        str | None, typer.Option("--model", help="a hub id, or a checkpoint's folder; or take --random")
    ] = None,
    random: Annotated[bool, typer.Option("--random", help="random weights, with --family and --preset")] = False,
    family: Annotated[str | None, typer.Option("--family", help="model family; default: the checkpoint's")] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="architecture of random weights, such as nano")] = None,
    experiments: Annotated[
        list[str] | None,
        typer.Option("--experiment", metavar="NAME", help="what is asked, such as vision_tokens; repeatable"),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, or cuda:0")] = "auto",
) -> None:
    """Write a commented study to begin with; asks for what no option tells.

    Where nobody can be asked (no terminal) the options have to tell it.
    """
    from vlmeter.experiments.registry import EXPERIMENTS, get_experiment
    from vlmeter.study.draft import study_text
    from vlmeter.study.loader import parse_study
    from vlmeter.study.plan import build_plan

    if study_file.exists():
        raise UserError(f"{study_file} is there, and nothing is written over; name a file that is not there")
    if not random and model is None:
        model, random, family, preset = _asked_for_model(family, preset)
    known = {name: found for name in EXPERIMENTS if (found := get_experiment(name)).starter}
    subject = subject_keys(model, random=random, family=family, preset=preset, revision=None)
    subject |= {"dtype": fitting_dtype(device), "device": device}
    chosen = experiments or _asked_for_experiments({name: found.question for name, found in known.items()})
    for name in chosen:
        if name not in known:
            raise UserError(f"--experiment: {name!r} is not known; legal: {', '.join(known)}")
    content: dict[str, Any] = {"study": _study_name(study_file), "subjects": {name_of(subject): subject}}
    if any(known[name].on_photographs for name in chosen):
        content["dataset"] = {"source": "embedded", "images": 10}
    content["experiments"] = {name: dict(known[name].starter) for name in chosen}
    content["sampling"] = {"min_samples": 9, "max_samples": 25, "max_seconds_per_cell": 10}
    cells = build_plan(parse_study(content, source=str(study_file)))
    write_new(study_file, study_text(content, opening=OPENING))
    say(f"{study_file} asks for {len(cells)} cells")
    say(f"`vlmeter plan {study_file}` lists them, `vlmeter run {study_file}` measures them")


def _asked_for_model(family: str | None, preset: str | None) -> tuple[str | None, bool, str | None, str | None]:
    """Ask which model: model, random, family, preset."""
    _need_a_terminal("--model or --random")
    model = typer.prompt("Model: a hub id, a checkpoint's folder, or random (no download)", default="random", err=True)
    if model != "random":
        return model, False, family, preset
    from vlmeter.models.families.registry import DEFAULT, FAMILIES, get_family

    if family is None:
        family = str(typer.prompt(f"Family: {', '.join(FAMILIES)}", default=DEFAULT, err=True))
    presets = get_family(family).presets
    if preset is None:
        preset = str(typer.prompt(f"Preset: {', '.join(presets)}", default=next(iter(presets)), err=True))
    return None, True, family, preset


def _asked_for_experiments(questions: dict[str, str]) -> Sequence[str]:
    """Ask what is to be known; by number or by name."""
    _need_a_terminal("--experiment")
    numbered = dict(enumerate(questions, 1))
    typer.echo("What do you want to know?", err=True)
    for number, name in numbered.items():
        typer.echo(f"  {number}  {questions[name]} ({name})", err=True)
    answer = str(typer.prompt("One or more, such as 1 2", default="1", err=True))
    words = answer.replace(",", " ").split()
    return list(dict.fromkeys(numbered.get(int(word), word) if word.isdigit() else word for word in words))


def _need_a_terminal(options: str) -> None:
    if not sys.stdin.isatty():
        raise UserError(f"{options} is missing, and without a terminal nobody can be asked")


def _study_name(path: Path) -> str:
    """The study is called like its file."""
    return path.name.removesuffix(".yaml").removesuffix(".yml") or "study"
