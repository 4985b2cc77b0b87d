"""Commands that compare results."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmeter.cli.app import Format, percent_of, say
from vlmeter.common.errors import UserError

if TYPE_CHECKING:
    from vlmeter.compare.comparison import Comparison


def _runs(first: Path, more: list[Path]) -> list[Any]:
    from vlmeter.compare.baseline import read_runs

    return [run for path in (first, *more) for run in read_runs(path)]


def compare(
    a: Annotated[
        Path, typer.Argument(help="what to compare with: results/<study>, table.parquet, baseline", metavar="A")
    ],
    b: Annotated[
        Path | None, typer.Argument(help="what is compared: the same; --plan may do without", metavar="B")
    ] = None,
    more_a: Annotated[list[Path] | None, typer.Option("--more-a", help="a further run of A; repeatable")] = None,
    more_b: Annotated[list[Path] | None, typer.Option("--more-b", help="a further run of B; repeatable")] = None,
    subjects: Annotated[
        list[str] | None,
        typer.Option(help="compare this subject of A with that one of B; repeatable", metavar="NAME_A:NAME_B"),
    ] = None,
    margin: Annotated[str, typer.Option(help="differences below this count as none", metavar="N%")] = "1%",
    session_noise: Annotated[
        str | None,
        typer.Option(
            help="how far a whole session errs (standard deviation), if it is known; else from the sentinel",
            metavar="N%",
        ),
    ] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="compare the cells that both have")] = False,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help="exit 1 if B is slower than that: slower:N% (as a whole), any-slower:N% (in any cell); repeatable",
            metavar="LIMIT",
        ),
    ] = None,
    accept_one_run: Annotated[
        bool, typer.Option("--accept-one-run", help="let --fail-on judge one run a side on what is assumed of it")
    ] = False,
    plan: Annotated[
        str | None,
        typer.Option(help="say how many runs would find a change of that size here, and compare nothing", metavar="N%"),
    ] = None,
    experiments: Annotated[
        list[str] | None,
        typer.Option("--experiment", help="compare the cells of this experiment alone; repeatable", metavar="NAME"),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="list every cell and clock, not only those that changed or are not known")
    ] = False,
    form: Format = "table",
    markdown: Annotated[Path | None, typer.Option(help="write it for a pull request", metavar="FILE.md")] = None,
    as_json: Annotated[Path | None, typer.Option("--json", help="write every number", metavar="FILE.json")] = None,
    figure: Annotated[Path | None, typer.Option(help="draw the cells' ratios", metavar="FILE.svg|png|pdf")] = None,
) -> None:
    """Say whether B is faster or slower than A, cell by cell, or whether it may be noise.

    docs/comparing.md says how to read it. With --fail-on the exit code is 1 if B is slower than allowed, with
    confidence; it wants several runs of a side, or to be told how far sessions lie apart.
    """
    from vlmeter.cli.rows import rows_as
    from vlmeter.common.files import write_atomically
    from vlmeter.compare import rendering
    from vlmeter.compare.answers import side_answers
    from vlmeter.compare.compare import compare as compare_sides
    from vlmeter.compare.comparison import Side
    from vlmeter.compare.limits import Limit, beyond, refuse_assumptions

    noise = None if session_noise is None else percent_of(session_noise, "--session-noise")
    given = [(a, more_a or []), *([] if b is None else [(b, more_b or [])])]
    sides = [Side(str(first), _runs(first, more)) for first, more in given]
    if plan is not None:
        from vlmeter.compare.planning import plan_in_words, run_noise

        change, least = percent_of(plan, "--plan"), percent_of(margin, "--margin")
        for found_noise in run_noise(sides, session_noise_fraction=noise):
            for line in plan_in_words(found_noise, change, margin_fraction=least):
                say(line)
        return
    if len(sides) < 2:
        raise UserError("B is missing: compare wants two sides (A B), unless --plan asks how many runs are needed")
    limits = [Limit.parse(text) for text in fail_on or []]
    pairs = []
    for text in subjects or []:
        first, colon, second = text.partition(":")
        if not (first and colon and second):
            raise UserError(f"--subjects: {text!r} is not of the form NAME_A:NAME_B")
        pairs.append((first, second))
    sides = [
        replace(side, answers=side_answers([first, *more])) for side, (first, more) in zip(sides, given, strict=True)
    ]
    found = compare_sides(
        *sides,
        subjects=pairs,
        margin_fraction=percent_of(margin, "--margin"),
        session_noise_fraction=noise,
        allow_missing=allow_missing,
        experiments=experiments or [],
    )
    if limits and not accept_one_run:
        refuse_assumptions(found)
    failures = [sentence for limit in limits for sentence in beyond(found, limit)]
    if figure is not None:
        from vlmeter.figures.forest import draw as draw_forest
        from vlmeter.figures.style import save_as

        save_as(draw_forest(found), figure)
    if markdown is not None:
        write_atomically(markdown, rendering.as_markdown(found, beyond=failures).encode())
    if as_json is not None:
        write_atomically(as_json, f"{json.dumps(rendering.as_data(found, beyond=failures), indent=1)}\n".encode())
    if form == "table":
        _print_comparison(found, failures, every=every)
    elif form == "json":
        say(json.dumps(rendering.as_data(found, beyond=failures)))
    else:
        say(rows_as(rendering.cell_rows(found), rendering.cell_columns(found), form=form))
    if failures:
        raise typer.Exit(1)


def _print_comparison(found: Comparison, failures: list[str], *, every: bool) -> None:
    """Print the verdict, the answers, what speaks against it, then what changed; every: all cells and clocks."""
    from vlmeter.cli.rows import rows_as
    from vlmeter.compare import rendering
    from vlmeter.numbers.words import plural

    for line in (*rendering.headline(found), *failures):
        say(line)
    if found.answers:
        say("\n" + rows_as(rendering.answer_rows(found), rendering.answer_columns(found), form="table"))
    misgivings = (*found.warnings, *rendering.lost_lines(found))
    lines = [*(f"warning: {line}" for line in misgivings), *(f"note: {line}" for line in found.notes)]
    if lines:
        say("\n" + "\n".join(lines))
    cells, left = rendering.telling_cells(found)
    wholes, hidden = rendering.telling_rows(found)
    if every:
        cells, left, wholes, hidden = rendering.cell_rows(found), {}, rendering.overall_rows(found), 0
    if cells:
        say("\n" + rows_as(cells, rendering.cell_columns(found), form="table"))
    if left:
        said = ", ".join(f"{count} {verdict}" for verdict, count in left.items())
        start = f"and {plural(sum(left.values()), 'more cell')}" if cells else f"\n{plural(sum(left.values()), 'cell')}"
        say(f"{start}: {said}; --all lists them")
    columns = [name for name in rendering.OVERALL_COLUMNS if name != "subject" or len(found.pairs) > 1]
    say("\n" + rows_as(wholes, columns, form="table"))
    if hidden:
        say(f"and {plural(hidden, 'more row')} that did not change, or tell what another clock told; --all lists them")


def baseline(
    results: Annotated[
        list[Path],
        typer.Argument(help="results/<study> or table.parquet; several: runs of one thing", metavar="RESULTS..."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="file to write: .json, or .json.gz", metavar="FILE")],
) -> None:
    """Keep what a later comparison needs of results in one small file, which can be committed."""
    from vlmeter.analysis.answer_files import answers_as_data
    from vlmeter.analysis.reading import Unknown
    from vlmeter.compare.answers import side_answers
    from vlmeter.compare.baseline import write_baseline
    from vlmeter.numbers.units import size as size_in_words
    from vlmeter.numbers.words import plural

    runs = _runs(results[0], results[1:])
    answers = side_answers(results)
    kept = None if isinstance(answers, Unknown) else answers_as_data(answers)
    written = write_baseline(output, runs, answers=kept)
    cells = sum(len(subject.cells) for run in runs for subject in run.subjects)
    say(f"{output}: {plural(cells, 'cell')} of {plural(len(runs), 'run')}, {size_in_words(written)}")
