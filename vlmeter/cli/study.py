"""Commands about a study: what it would measure, and what still holds."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmeter.cli.app import Format, MoreFiles, Results, StudyFile, Values, say
from vlmeter.common.errors import UserError
from vlmeter.numbers.words import plural


def plan(
    study_file: StudyFile,
    more: MoreFiles = None,
    values: Values = None,
    form: Format = "table",
    results: Results = Path("results"),
) -> None:
    """List every cell of a study with the crops and tokens that it is expected to have.

    An empty field is not known yet: photographs of a hub dataset count once they have been fetched. The requests of a
    block differ, so a block has no counts.
    """
    from vlmeter.cli.rows import rows_as
    from vlmeter.inputs.looks import expected_plan, fetched_manifest
    from vlmeter.measure.devices import needed_bytes
    from vlmeter.measure.resources import host_memory_mb, session_minutes
    from vlmeter.numbers.units import size
    from vlmeter.study.checkpoint import missing_libraries
    from vlmeter.study.layout import Layout
    from vlmeter.study.loader import load_study
    from vlmeter.study.plan import build_plan

    study = load_study(study_file, *(more or []), values=values or [])
    layout = Layout(study.study, results)
    rows: list[dict[str, Any]] = [
        {
            "subject": cell.subject,
            "experiment": cell.experiment,
            "cell": cell.cell_id,
            "image": str(cell),
            "crops": cell.expected.crops,
            "vision_tokens": cell.expected.vision_tokens,
            "special_tokens": cell.expected.special_tokens,
            "text_tokens": cell.expected.text_tokens,
            "prompt_tokens": cell.expected.prompt_tokens,
            "output_tokens": cell.output_tokens,
        }
        for cell in expected_plan(study, layout)
    ]
    say(rows_as(rows, list(rows[0]), form=form))
    if form == "table":
        counted = Counter((row["subject"], row["experiment"]) for row in rows)
        parts = [f"{number} {experiment} of {subject}" for (subject, experiment), number in counted.items()]
        times = f"; {study.runs} runs of each, {study.runs * len(rows)} records" if study.runs > 1 else ""
        say(f"\n{plural(len(rows), 'cell')}: {', '.join(parts)}{times}")
        manifest = fetched_manifest(study, layout) if study.experiments.on_photographs else None
        if manifest and (passed_over := manifest.skipped_in_words()):
            say(passed_over)
        cells = build_plan(study)
        for name, subject in study.subjects.items():
            own = [cell for cell in cells if cell.subject == name]
            asked = [f"up to {duration_words(session_minutes(study, name, own))}"]
            asked.append(f"{size(host_memory_mb(study, name, own) * 1e6)} of the host's memory")
            if subject.device != "cpu" and (bytes_ := needed_bytes(subject, tuple(own))) is not None:
                asked.append(f"{size(bytes_)} of the device's")
            say(f"{name}: {', '.join(asked)}, as a cluster would be asked for it; most runs take far less")
    for name, subject in study.subjects.items():
        for missing in missing_libraries(name, subject):
            print(f"vlmeter: {missing}", file=sys.stderr)


def duration_words(minutes: int) -> str:
    """Say minutes as a person would: '45 min', '3 h 20 min'."""
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest:02d} min" if hours else f"{rest} min"


def status(
    study_file: StudyFile,
    more: MoreFiles = None,
    values: Values = None,
    form: Format = "table",
    results: Results = Path("results"),
) -> None:
    """Say which cells are fresh, missing or stale in each run, and why, before anything runs.

    A cell is stale when its record was made of another cell, protocol, subject, code, versions, installed code or input
    than it would be now. Whether the device is another one, only a measuring session can tell.
    """
    from vlmeter.cli.rows import rows_as
    from vlmeter.records.states import cell_states
    from vlmeter.study.layout import Layout
    from vlmeter.study.loader import load_study

    study = load_study(study_file, *(more or []), values=values or [])
    rows = [
        {
            "subject": cell.subject,
            "run": found.run,
            "cell": cell.cell_id,
            "state": found.state,
            "reason": ", ".join(found.words()),
            "device": found.record.environment.get("device_model") if found.record else None,
        }
        for cell, found in cell_states(study, Layout(study.study, results))
    ]
    columns = [name for name in rows[0] if name != "run" or study.runs > 1 or form != "table"]
    say(rows_as(rows, columns, form=form))
    if form == "table":
        counted = Counter(row["state"] for row in rows)
        times = f" in {study.runs} runs" if study.runs > 1 else ""
        say(
            f"\n{len(rows) // study.runs} cells{times}: "
            + ", ".join(f"{counted[s]} {s}" for s in ("fresh", "missing", "stale"))
        )


def forget(
    study_file: StudyFile,
    patterns: Annotated[
        list[str], typer.Argument(help="cells, such as 'vision-*'; all for every one", metavar="CELL...")
    ],
    more: MoreFiles = None,
    values: Values = None,
    results: Results = Path("results"),
    run: Annotated[list[int] | None, typer.Option(help="of this run only, from 0; repeatable", metavar="N")] = None,
) -> None:
    """Delete the records of cells, so that they are measured again on purpose."""
    import fnmatch

    from vlmeter.records.store import forget as forget_records
    from vlmeter.study.loader import load_study
    from vlmeter.study.plan import build_plan

    study = load_study(study_file, *(more or []), values=values or [])
    for wanted in run or []:
        if wanted not in range(study.runs):
            raise UserError(f"--run: {wanted} is no run of {study_file}; legal: 0 to {study.runs - 1}")
    cells = build_plan(study)
    chosen = [
        cell
        for cell in cells
        if any(pattern == "all" or fnmatch.fnmatchcase(cell.cell_id, pattern) for pattern in patterns)
    ]
    if not chosen:
        raise UserError(f"no cell of {study_file} matches {' '.join(patterns)}; `vlmeter plan {study_file}` lists them")
    runs = sorted(set(run)) if run else range(study.runs)
    gone = [path for one in runs for path in forget_records(results, study.study, chosen, run=one)]
    say(f"{len(chosen)} cells chosen, {len(gone)} records deleted; the next run measures these cells again")


def schema() -> None:
    """Print the JSON Schema of study files (committed as schemas/study.schema.json, for editors)."""
    from vlmeter.study.study import study_schema

    say(json.dumps(study_schema(), indent=2))
