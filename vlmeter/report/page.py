"""The report: everything that a study found on one page, in one file that needs nothing else.

The page reads the table, the answers, the figures, the judged claims and a few facts about the run, and computes
nothing that `vlmeter.analysis` does not: a number on the page is the number in a figure and in a claim.
It loads nothing over a network and says so to the browser (a content security policy), so that it can be opened from a
mail attachment.

Two things are kept compressed inside the page and unpacked by the browser when they are wanted: the table, for the
downloads and the chart to play with, and plotly.js, which draws that chart. Everything else is plain HTML that works
without scripts. Figures are images whose colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import gzip
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup, escape

from vlmeter import __version__
from vlmeter.analysis import reading
from vlmeter.analysis.answer_files import read_answers
from vlmeter.analysis.answers import ASKED_SIZES_PX
from vlmeter.analysis.prediction import example_of
from vlmeter.analysis.remembered import remembering
from vlmeter.analysis.roofline import beside, read_roofline
from vlmeter.claims.base import Claim
from vlmeter.claims.files import read_claims
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.report.chart import questions, series
from vlmeter.report.grids import Grid, word_value
from vlmeter.report.pictures import DARK_COLOURS, FigureFiles
from vlmeter.report.side_by_side import side_by_side_view
from vlmeter.report.subjects import SubjectView, subject_view
from vlmeter.report.thumbnails import read_thumbnails
from vlmeter.study.layout import ALL_SUBJECTS
from vlmeter.table.columns import COLUMNS, data_dictionary
from vlmeter.table.files import read_table

#: Templates, style and script of the page.
PAGE = Path(__file__).parent / "template"


#: Topics of the answers, in the order of the first screen, and what they are called there.
TOPICS = {
    "wait": "What a user waits for",
    "cost": "What one more costs",
    "limit": "How far it is from the limit",
}

#: Sections that a page has if the study has something for them, and what the menu calls them.
MENU = {
    "vision": "Vision tokens",
    "output": "Output tokens",
    "distribution": "Many requests",
    "components": "Components",
    "flops": "FLOPs",
    "prediction": "Prediction",
    "limits": "Limits",
}


@dataclass(frozen=True)
class Reproduction:
    """How to make the study again: the command, and the lock file that names every version with its checksum."""

    command: str
    lock: str = ""
    lock_sha256: str = ""


@dataclass(frozen=True)
class ReportInputs:
    """All that the report reads.

    study: the study's configuration. figures: subject -> figure's name -> its files, and with ALL_SUBJECTS in the place
    of a subject those that show all. environments: a JSON file, subject -> list of {cells: number of cells,
    environment: where and with what they were measured}. roofline: the table of `vlmeter.analysis.roofline`.
    thumbnails: of `vlmeter.workflow.thumbnails`. The last three may be absent; the page then says so, or does without.
    """

    study: Mapping[str, Any]
    table: Path
    answers: Path
    claims: Path
    figures: Mapping[str, Mapping[str, FigureFiles]]
    reproduction: Reproduction
    environments: Path | None = None
    roofline: Path | None = None
    thumbnails: Path | None = None


def write(inputs: ReportInputs, path: Path) -> None:
    """Write the report to `path`, whole or not at all."""
    write_atomically(path, render(inputs).encode())


def render(inputs: ReportInputs) -> str:
    """Make the page, as HTML.

    Raises UserError if a file that is given cannot be read. What a study lacks is no error: the page says what is
    missing.
    """
    table = read_table(inputs.table)
    answers, claims = read_answers(inputs.answers), _read_claims(inputs.claims)
    environments = {} if inputs.environments is None else _read_json(inputs.environments)
    roofline = None if inputs.roofline is None else read_roofline(inputs.roofline)
    thumbnails = {} if inputs.thumbnails is None else read_thumbnails(inputs.thumbnails)
    with remembering():
        subjects = [
            subject_view(
                config,
                reading.of_subject(table, name),
                name=name,
                answers=answers.get(name, {}),
                figures=inputs.figures.get(name, {}),
                claims=claims.get(name, []),
                environments=environments.get(name, []),
                roofline=None if roofline is None else roofline[roofline["subject"] == name],
                thumbnails=thumbnails.get(name, {}),
            )
            for name, config in inputs.study["subjects"].items()
        ]
    shown = _shown_sections(subjects)
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            study=inputs.study,
            study_yaml=yaml.safe_dump(inputs.study, sort_keys=False, allow_unicode=True, width=100),
            subjects=subjects,
            overview=_overview_grid(subjects),
            side_by_side=side_by_side_view(
                table,
                subjects,
                figures=inputs.figures.get(ALL_SUBJECTS, {}),
                claims=claims.get(ALL_SUBJECTS, []),
                roofline=roofline,
            )
            if len(subjects) > 1
            else None,
            commits=sorted(set(table["commit"].dropna())),
            reproduction=inputs.reproduction,
            pieces=sorted({(one.family, one.piece) for one in subjects if one.piece != "crop"}),
            dictionary=_dictionary_grid(),
            topics=TOPICS,
            prediction=_prediction_command(table, inputs.study),
            shown=shown,
            menu=[(section, name) for section, name in MENU.items() if section in shown],
            series=series(),
            questions=questions(),
            colours=DARK_COLOURS,
            table_rows=len(table),
            table_data=_packed(_columnar(table, roofline)),
            plotly=_packed_plotly(),
            version=__version__,
            css=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
            js=Markup((PAGE / "report.js").read_text(encoding="utf-8")),
        )
    )


def _prediction_command(table: pd.DataFrame, study: Mapping[str, Any]) -> str:
    """A prediction that this study grants, as a command; empty where it grants none."""
    names = list(study["subjects"])
    for name in names:
        found = example_of(reading.of_subject(table, name), ASKED_SIZES_PX)
        if found is not None:
            which = f" --subject {name}" if len(names) > 1 else ""
            return (
                f"vlmeter predict --study results/{study['study']}{which} --image {found.width_px}x{found.height_px} "
                f"--output-tokens {found.output_tokens}"
            )
    return ""


def _shown_sections(subjects: Sequence[SubjectView]) -> set[str]:
    """Sections of MENU that any subject has something for: a figure, a table, or what the study asked for in vain."""
    shown = set()
    for subject in subjects:
        shown |= {figure.section for figure in subject.figures if figure.src is not None}
        tables = {
            "vision": subject.vision.rows,
            "output": subject.output.rows,
            "distribution": subject.percentiles,
            "components": subject.components,
            "flops": subject.flops_grids,
            "prediction": subject.held_out.rows,
            "limits": subject.limits_grid,
        }
        shown |= {section for section, found in tables.items() if found}
    return shown & set(MENU)


def _read_claims(path: Path) -> dict[str, list[Claim]]:
    try:
        return read_claims(path)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"claims {path} cannot be read ({error}); the workflow makes them again") from None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); the workflow makes it again") from None
    if not isinstance(found, dict):
        raise UserError(f"{path} is not a mapping of subjects; the workflow makes it again")
    return found


#: What a sentence of the analysis marks as code, an image's size, and the space between a number and its unit.
_CODE, _SIZE = re.compile(r"`([^`]+)`"), re.compile(r"\b\d+ x \d+(?:[ \u00a0]px)?\b")
_BEFORE_UNIT = re.compile(r"(`[^`]+`)|(?<=\d) (?=%|(?:ms|µs|s|px|times|KiB|MiB|GiB)\b)")


def said(sentence: str) -> Markup:
    """A sentence of the analysis as HTML: `code` as such; a size, and a number with its unit, in one line."""
    text = _BEFORE_UNIT.sub(lambda found: found[1] or "\u00a0", str(escape(sentence)))
    text = _SIZE.sub(r'<span class="size">\g<0></span>', text)
    return Markup(_CODE.sub(r"<code>\1</code>", text))


def _templates() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["said"] = said
    return environment


def _packed(text: str) -> str:
    """Compress text into what `unpack` of report.js takes; the same text gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@lru_cache(maxsize=1)
def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _packed(str(get_plotlyjs()))


def _columnar(table: pd.DataFrame, roofline: pd.DataFrame | None) -> str:
    """Lay the table out by column as JSON, without its lists (samples, tokens), and beside it the floor of each row.

    What is absent is null.
    """
    lists = [column.name for column in COLUMNS if column.dtype == "list"]
    columns = {name: _values(table[name]) for name in table.columns.drop(lists)}
    floors = [None] * len(table) if roofline is None else _values(beside(table, roofline)["floor_ms"])
    return json.dumps({"columns": columns, "floors_ms": floors}, allow_nan=False)


def _values(column: pd.Series[Any]) -> list[Any]:
    objects = column.astype(object)
    return list(objects.where(objects.notna(), None))


def _overview_grid(subjects: Sequence[SubjectView]) -> Grid:
    """Subjects side by side, by the answers of the first screen."""
    questions = {answer.name: answer.question for subject in subjects for answer in subject.answers}
    columns = [("subject", "its name in the study"), ("model", "what was run"), ("device", "on which")]
    columns += [(question, "with its 95 % interval; empty: not known") for question in questions.values()]
    rows = []
    for subject in subjects:
        answers = {answer.name: answer for answer in subject.answers}
        found = [answers.get(name) for name in questions]
        said = ["" if a is None else f"{a.value} ({a.interval})" if a.interval else a.value for a in found]
        rows.append(
            [word_value(subject.name), word_value(subject.model), word_value(subject.device), *map(word_value, said)]
        )
    return Grid("overview", "The first screen's answers, with their 95 % intervals", columns, rows)


def _dictionary_grid() -> Grid:
    rows = [
        [word_value(row["name"]), word_value(row["dtype"]), word_value(row["unit"]), word_value(row["description"])]
        for row in data_dictionary().to_dict("records")
    ]
    columns = [
        ("column", "its name in the table"),
        ("type", "of its values"),
        ("unit", "empty: none"),
        ("meaning", "what it says"),
    ]
    return Grid("dictionary", "Columns of the table", columns, rows)
