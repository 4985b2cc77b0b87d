"""The command line: look before you measure, start a run, look at what came of it. The workflow measures.

Everything heavy is imported inside the commands, so that `vlmeter --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vlmeter.common.errors import UserError

if TYPE_CHECKING:
    from vlmeter.models.families.base import ImageOptions


app = typer.Typer(
    help=(
        "Measure where the latency of a vision-language model goes.\n\n"
        "A study is a YAML file (config.yaml is the quickstart). `vlmeter plan` shows what it would measure, "
        "`vlmeter run` measures it, prints the answers and writes results/<study>/report.html, `vlmeter show` prints "
        "them again, and `vlmeter status` says which cells still hold."
    ),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


StudyFile = Annotated[Path, typer.Argument(help="study file", metavar="STUDY.yaml")]


MoreFiles = Annotated[
    list[Path] | None,
    typer.Option("--configfile", help="a further file, laid over the study; may be repeated", metavar="FILE"),
]


Values = Annotated[
    list[str] | None,
    typer.Option("--config", help="a value laid over the study, such as seed=1; may be repeated", metavar="KEY=VALUE"),
]


FamilyName = Annotated[
    str | None, typer.Option("--family", help="model family; default: that of the checkpoint, else Molmo's first")
]


Preset = Annotated[
    str | None, typer.Option("--preset", help="whose preprocessing; default: the family's first real one")
]


Weights = Annotated[
    str | None, typer.Option("--weights", help="a checkpoint's own preprocessing instead: a local folder or a hub id")
]


Revision = Annotated[str | None, typer.Option("--revision", help="branch, tag or commit of a hub id")]


Format = Annotated[str, typer.Option("--format", help="table, csv or json")]


MaxCrops = Annotated[
    int | None, typer.Option("--max-crops", min=1, help="limit of high-resolution crops; default: the family's own")
]


Results = Annotated[Path, typer.Option("--results", help="folder that holds the studies' folders")]


def say(text: str) -> None:
    """Print a line of the answer."""
    sys.stdout.write(text + "\n")


def options_of(max_crops: int | None, force_tiling: str | None = None) -> ImageOptions:
    """Read the options that say how an image is cut up."""
    from vlmeter.models.families.base import ImageOptions

    return ImageOptions(
        max_crops=max_crops, force_tiling=pair_of(force_tiling, "--force-tiling") if force_tiling else None
    )


def pair_of(text: str, what: str, *, example: str = "2x4") -> tuple[int, int]:
    """Read 'AxB'; `what` names the option in the refusal, `example` what it might have been."""
    from vlmeter.numbers.pairs import parse_pair

    try:
        return parse_pair(text, example=example)
    except ValueError as error:
        raise UserError(f"{what}: {error}") from None


def percent_of(text: str, what: str) -> float:
    """Read '1%' as 0.01."""
    try:
        value = float(text.removesuffix("%")) / 100
    except ValueError:
        value = -1.0
    if not text.endswith("%") or not 0 < value < 1:
        raise UserError(f"{what}: {text!r} is not a percentage between 0% and 100%, such as 1%")
    return value
