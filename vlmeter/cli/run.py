"""The command that runs a study."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vlmeter.cli.app import MoreFiles, StudyFile, Values
from vlmeter.cli.show import SHOWN_ELSEWHERE, show_results


def run(
    study_file: StudyFile,
    options: Annotated[
        list[str] | None,
        typer.Argument(help="behind --: options of Snakemake, such as --cores 2 or -n", metavar="-- OPTION"),
    ] = None,
    more: MoreFiles = None,
    values: Values = None,
) -> None:
    """Measure a study and write its report, in results/<study>/ of this folder; ends with the summary.

    What is measured already and still holds is not measured again, and a run that was interrupted goes on.
    """
    run_study(study_file, more or [], values=values or [], options=options or [])


def run_study(
    study_file: Path,
    more: Sequence[Path] = (),
    *,
    values: Sequence[str] = (),
    options: Sequence[str] = (),
    written_for_this: bool = False,
    as_json: bool = False,
) -> None:
    """Run a study to its end and show what was found; leaves with the exit code of the run.

    written_for_this: the study file is new to the person, who is told of it.
    """
    from vlmeter.study.layout import Layout
    from vlmeter.study.loader import load_study
    from vlmeter.workflow import start

    study = load_study(study_file, *more, values=values)  # one sentence, before anything starts
    command = start.command_of_run([study_file, *more], values, options, base=start.workflow_folder())
    code = start.run(command, environment={SHOWN_ELSEWHERE: "1"}, output_aside=as_json)
    if code:
        raise typer.Exit(code)
    root = Layout(study.study).root
    if not start.DRY & set(options) and (root / "table.parquet").exists():
        show_results(root, as_json=as_json, study_file=study_file if written_for_this else None)
