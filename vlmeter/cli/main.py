"""Run the command line."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vlmeter import __version__
from vlmeter.cli import checkpoint, compare, machine, measure, new, predict, run, show, sizes, study
from vlmeter.cli.app import app, say
from vlmeter.common.errors import UserError

#: The commands, in the order in which `--help` lists them.
COMMANDS = (
    *(measure.measure, new.new),
    *(sizes.tokens, sizes.size, sizes.reachable),
    *(study.plan, run.run, study.status, study.forget),
    *(show.show, predict.predict),
    *(checkpoint.checkpoint, machine.doctor),
    study.schema,
    machine.verify,
    *(compare.compare, compare.baseline),
)

for command in COMMANDS:
    app.command()(command)


def _version(asked: bool) -> None:
    if asked:
        from vlmeter.measure.environment import essentials

        say(f"vlmeter {__version__}")
        for name, value in essentials().items():
            if name != "vlmeter":
                say(f"{name:13} {value}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="print the version, and what a report of a defect needs"
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake is one sentence and exit code 2."""
    try:
        app()
    except UserError as error:
        print(f"vlmeter: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
