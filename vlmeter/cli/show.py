"""The command that prints the summary of a finished study."""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from vlmeter.cli.app import say
from vlmeter.common.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from vlmeter.analysis.summary import Line, Section, Summary

#: Columns of the terminal that the words take, and take at least, and that a number with its interval takes.
WORDS_COLUMNS, FEWEST_WORDS_COLUMNS, NUMBER_COLUMNS = 42, 16, 30

#: Columns between what stands side by side.
GAP_COLUMNS = 2

#: Columns where no terminal says how many it has: a pipe, a log.
PIPE_COLUMNS = 100

#: Set for a run whose summary is printed by the command that started it.
SHOWN_ELSEWHERE = "VLMETER_SHOWN_ELSEWHERE"

#: What the verdict on the conditions means.
TRUST = {
    "quiet": "the machine was quiet",
    "disturbed": "the machine was disturbed: small differences may not be real",
    "unusable": "do not rely on these numbers",
}

AsJson = Annotated[bool, typer.Option("--json", help="every number as JSON")]


def show(
    results: Annotated[
        Path, typer.Argument(help="folder of a finished study, such as results/quickstart", metavar="RESULTS")
    ],
    as_json: AsJson = False,
) -> None:
    """Print the summary of a finished study: phases, costs, distance to the floor, trust, where the report is.

    Several subjects stand side by side where the terminal is wide enough. Each value has its 95 % interval.
    """
    show_results(results, as_json=as_json)


def show_results(results: Path, *, as_json: bool = False, study_file: Path | None = None) -> None:
    """Print the summary of the study in a folder; study_file: what to go on from, where the study was written for this.

    Raises UserError where nothing was measured.
    """
    from vlmeter.analysis.answer_files import answers_beside
    from vlmeter.analysis.summary import as_data, summaries
    from vlmeter.table.files import read_table

    table, report = results / "table.parquet", results / "report.html"
    if not table.exists():
        raise UserError(f"{results} holds no table.parquet; legal: the folder of a study that has run")
    found = summaries(read_table(table), answers_beside(table))
    places = {"report": str(report) if report.exists() else None, "study_file": str(study_file) if study_file else None}
    if as_json:
        say(json.dumps({"results": str(results), **places, "subjects": as_data(found)}, indent=2, allow_nan=False))
        return
    print_summaries(found, file=sys.stdout)
    for what, place in (("Report", places["report"]), ("Study ", places["study_file"])):
        if place:
            say(f"{what}  {place}")


def show_at_the_end(results: Path) -> None:
    """Print the summary at the end of a run, unless whoever started the run does; never fails it."""
    if SHOWN_ELSEWHERE in os.environ:
        return
    try:
        show_results(results)
    except UserError as error:
        print(f"vlmeter: {error}", file=sys.stderr)


def print_summaries(found: Sequence[Summary], *, file: TextIO, width: int | None = None) -> None:
    """Print summaries, as many side by side as there is room for; colours on a terminal alone.

    width: in columns; absent: that of the terminal, or COLUMNS.
    """
    from rich.console import Console

    console = Console(file=file, highlight=False, width=width)
    if width is None and not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(file=file, highlight=False, width=PIPE_COLUMNS)
    room = max(1, (console.width - WORDS_COLUMNS) // NUMBER_COLUMNS)
    with console.capture() as printed:
        for first in range(0, len(found), room):
            _print_group(console, found[first : first + room])
        for summary in found:
            _print_conditions(console, summary, named=len(found) > 1)
    text = printed.get()
    file.write(text if console.is_terminal else "".join(f"{line.rstrip()}\n" for line in text.splitlines()))


def _print_group(console: Console, group: Sequence[Summary]) -> None:
    from rich.table import Table
    from rich.text import Text

    for summary in group:
        console.print(Text(f"{summary.subject}: {summary.model}, on {summary.device}"), style="bold")
    console.print()
    table = Table(box=None, show_header=len(group) > 1, pad_edge=False, padding=(0, GAP_COLUMNS, 0, 0))
    words_columns = _words_columns(console.width)
    number_columns = (console.width - words_columns - GAP_COLUMNS * (1 + len(group))) // len(group)
    table.add_column("", width=words_columns, overflow="fold")
    for summary in group:
        table.add_column(Text(summary.subject), max_width=number_columns, overflow="fold")
    titles = list(dict.fromkeys(section.title for summary in group for section in summary.sections))
    for title in titles:
        sections = [_titled(summary.sections, title) for summary in group]
        table.add_row(
            Text(title, style="bold"), *(Text(section.note if section else "", style="dim") for section in sections)
        )
        names = {line.name: line.words for section in sections if section for line in section.lines}
        for name, words in names.items():
            lines = [_named(section.lines, name) if section else None for section in sections]
            table.add_row(Text(_hanging(words, words_columns)), *(Text(_said(line)) for line in lines))
        table.add_row("")
    console.print(table)


def _words_columns(width: int) -> int:
    """Columns of the words: where there is little room, what a number leaves, since numbers do not break well."""
    return max(FEWEST_WORDS_COLUMNS, min(WORDS_COLUMNS, width - NUMBER_COLUMNS))


def _hanging(words: str, columns: int) -> str:
    """Break what a line is about so that what follows stands below it, indented."""
    return textwrap.fill(words, columns, initial_indent="  ", subsequent_indent="    ")


def _print_conditions(console: Console, summary: Summary, *, named: bool) -> None:
    from rich.text import Text

    colour = {"quiet": "green", "disturbed": "yellow"}.get(summary.trust.verdict, "red")
    who = f" {summary.subject}" if named else ""
    line = Text(f"Trust{who}  ").append(summary.trust.verdict, style=colour)
    line.append(f": {TRUST[summary.trust.verdict]}; {'; '.join(summary.trust.reasons)}")
    console.print(line)
    for said in summary.left_out:
        console.print(Text(f"Left out{who}  {said}"))


def _titled(sections: Sequence[Section], title: str) -> Section | None:
    return next((section for section in sections if section.title == title), None)


def _named(lines: Sequence[Line], name: str) -> Line | None:
    return next((line for line in lines if line.name == name), None)


def _said(line: Line | None) -> str:
    from vlmeter.analysis.reading import Unknown
    from vlmeter.numbers.words import with_interval

    if line is None:
        return "-"
    found: Any = line.found
    if isinstance(found, Unknown):
        return f"not known: {found.reason}{f'; {found.remedy}' if found.remedy else ''}"
    modes = f"; {line.modes}" if line.modes else ""
    return f"{with_interval(found, line.unit)}{', predicted' if line.predicted else ''}{modes}"
