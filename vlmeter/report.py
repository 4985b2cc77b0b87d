"""The report: everything that a study found on one page, in one file that needs nothing else.

The page reads the table, the figures, the judged claims and a few facts about the run, and computes nothing that
`vlmeter.analysis` does not: a number on the page is the number in a figure and in a claim. It loads nothing over a
network and says so to the browser (a content security policy), so that it can be opened from a mail attachment.

Two things are kept compressed inside the page and unpacked by the browser when they are wanted: the table, for the
downloads and the chart to play with, and plotly.js, which draws that chart. Everything else is plain HTML that works
without scripts. Figures are images whose colours follow the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml
from markupsafe import Markup, escape

from vlmeter import __version__, across, analysis, analysis_flops, components, distribution, prediction
from vlmeter.analysis import Unknown
from vlmeter.claims import Claim, read_claims
from vlmeter.errors import UserError
from vlmeter.families.base import PREFILL_PHASES
from vlmeter.figures.registry import ACROSS as FIGURES_ACROSS
from vlmeter.figures.registry import FIGURES, get_figure
from vlmeter.figures.style import COLOURS, FAINT, INK, LABELS, MUTED
from vlmeter.files import write_atomically
from vlmeter.layout import ACROSS
from vlmeter.physics import beside, read_physics
from vlmeter.stats import Estimate, median_estimate
from vlmeter.table import data_dictionary, read_table
from vlmeter.thumbnails import read_thumbnails
from vlmeter.units import duration, duration_range, metric, percent, size
from vlmeter.wording import plural, with_interval

#: Templates, style and script of the page.
PAGE = Path(__file__).parent / "page"


@dataclass(frozen=True)
class FigureFiles:
    """A drawn figure and what to see in it."""

    svg: Path
    caption: Path


@dataclass(frozen=True)
class Reproduction:
    """How to make the study again: the command, and the lock file that names every version with its checksum."""

    command: str
    lock: str = ""
    lock_sha256: str = ""


@dataclass(frozen=True)
class ReportInputs:
    """All that the report reads.

    study: the study's configuration. figures: subject -> figure's name -> its files, and with ACROSS in the place of a
    subject those that show all. environments: a JSON file, subject
    -> list of {cells: number of cells, environment: where and with what they were measured}. physics: the table of
    `vlmeter.physics`. thumbnails: of `vlmeter.thumbnails`. The last three may be absent; the page then says so, or does
    without.
    """

    study: Mapping[str, Any]
    table: Path
    claims: Path
    figures: Mapping[str, Mapping[str, FigureFiles]]
    reproduction: Reproduction
    environments: Path | None = None
    physics: Path | None = None
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
    claims = _read_claims(inputs.claims)
    environments = {} if inputs.environments is None else _read_json(inputs.environments)
    physics = None if inputs.physics is None else read_physics(inputs.physics)
    thumbnails = {} if inputs.thumbnails is None else read_thumbnails(inputs.thumbnails)
    subjects = [
        _subject(
            config,
            analysis.of_subject(table, name),
            name=name,
            figures=inputs.figures.get(name, {}),
            claims=claims.get(name, []),
            environments=environments.get(name, []),
            physics=None if physics is None else physics[physics["subject"] == name],
            thumbnails=thumbnails.get(name, {}),
        )
        for name, config in inputs.study["subjects"].items()
    ]
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            study=inputs.study,
            study_yaml=yaml.safe_dump(inputs.study, sort_keys=False, allow_unicode=True, width=100),
            subjects=subjects,
            overview=_overview_grid(subjects),
            across=_across(table, subjects, figures=inputs.figures.get(ACROSS, {}), claims=claims.get(ACROSS, []))
            if len(subjects) > 1
            else None,
            commits=sorted(set(table["commit"].dropna())),
            reproduction=inputs.reproduction,
            dictionary=_dictionary_grid(),
            series=SERIES,
            colours=DARK_COLOURS,
            table_rows=len(table),
            table_data=_packed(_columnar(table, physics)),
            plotly=_packed_plotly(),
            version=__version__,
            css=Markup((PAGE / "report.css").read_text(encoding="utf-8")),
            js=Markup((PAGE / "report.js").read_text(encoding="utf-8")),
        )
    )


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


def _templates() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


# ---------------------------------------------------------------------------------------------------------------------
# What is packed into the page


def _packed(text: str) -> str:
    """Compress text into what `unpack` of report.js takes; the same text gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()


@lru_cache(maxsize=1)
def _packed_plotly() -> str:
    from plotly.offline import get_plotlyjs

    return _packed(str(get_plotlyjs()))


def _columnar(table: pd.DataFrame, physics: pd.DataFrame | None) -> str:
    """Lay the table out by column as JSON, without the lists of samples, and beside it the floor of each row.

    What is absent is null.
    """
    columns = {name: _values(table[name]) for name in table.columns.drop("samples_ms")}
    floors = [None] * len(table) if physics is None else _values(beside(table, physics)["floor_ms"])
    return json.dumps({"columns": columns, "floors_ms": floors}, allow_nan=False)


def _values(column: pd.Series[Any]) -> list[Any]:
    objects = column.astype(object)
    return list(objects.where(objects.notna(), None))


# ---------------------------------------------------------------------------------------------------------------------
# Figures


#: Colours of the figures -> what they become where the reader prefers a dark page; all others stay.
DARK_COLOURS: Mapping[str, str] = {
    "#ffffff": "#171b20",
    INK.lower(): "#e6e9ec",
    MUTED.lower(): "#a3abb3",
    FAINT.lower(): "#414950",
    "#ececec": "#2a3037",
    "#999999": "#a3abb3",
    "#0072b2": "#4ba9e6",
    "#56b4e9": "#a5dcff",
    "#e69f00": "#f2b43c",
    "#cc79a7": "#e7a3c8",
    "#009e73": "#37c79b",
    "#d55e00": "#ff8d4d",
}

_COLOUR = re.compile("|".join(DARK_COLOURS), re.IGNORECASE)


def follow_the_reader(svg: str) -> str:
    """Make a figure's colours follow the light or dark setting of the page that shows it.

    Every known colour becomes a variable with the colour itself as fallback; a style at the top sets the variables
    where dark is preferred. Colours on paper, and in a download (where report.js takes the fallbacks), stay as drawn.
    """
    dark = ";".join(f"--c{light[1:]}:{dark}" for light, dark in DARK_COLOURS.items())
    style = f"<style>@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    coloured = _COLOUR.sub(lambda found: f"var(--c{found[0][1:].lower()},{found[0].lower()})", svg)
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + style, coloured, count=1)


def _data_uri(svg: str) -> str:
    """Pack an SVG into an address, as text: shorter than base64, and mail filters can read it."""
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", text).replace("> <", "><").strip().replace('"', "'")
    for character in "%#<>":
        text = text.replace(character, f"%{ord(character):02X}")
    return f"data:image/svg+xml,{text}"


@dataclass(frozen=True)
class FigureView:
    """A figure as the page shows it; without `src` the caption says why there is none."""

    name: str
    title: str
    section: str
    caption: str
    src: Markup | None


#: What `figures.registry.draw_or_explain` starts a caption with where there is nothing to draw.
_NOT_DRAWN = "Not drawn: "


def _figures(files: Mapping[str, FigureFiles], names: Iterable[str] = FIGURES) -> list[FigureView]:
    views = []
    for name in names:
        module = get_figure(name)
        caption, src = "this figure was not made", None
        if name in files and files[name].caption.exists() and files[name].svg.exists():
            caption = files[name].caption.read_text(encoding="utf-8").strip()
            if caption.startswith(_NOT_DRAWN):
                caption = caption.removeprefix(_NOT_DRAWN).removesuffix(".")
            else:
                src = Markup(_data_uri(follow_the_reader(files[name].svg.read_text(encoding="utf-8"))))
        views.append(FigureView(name, module.TITLE, module.SECTION, caption, src))
    return views


# ---------------------------------------------------------------------------------------------------------------------
# Tables


@dataclass(frozen=True)
class Value:
    """A field of a table: what it says, and by what it is sorted."""

    text: str
    key: float | str = ""
    image: Markup | None = None

    @property
    def is_number(self) -> bool:
        """Whether it sorts as a number."""
        return isinstance(self.key, float)


@dataclass(frozen=True)
class Grid:
    """A table of the page: columns as (heading, what it means)."""

    name: str
    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Value]]


def _word(value: Any) -> Value:
    text = "" if value is None or pd.isna(value) else str(value)
    return Value(text, text)


def _count(value: Any) -> Value:
    return Value("", math.nan) if pd.isna(value) else Value(f"{int(value):,}", float(value))


def _measured(row: Any, name: str, unit: str = "_ms") -> Value:
    """A quantity of an analysis frame, with its interval."""
    estimate = analysis.estimate_in(row, name, unit)
    return _estimate(estimate, {"_ms": "ms", "_fraction": "fraction", "": ""}[unit])


def _estimate(estimate: Estimate, unit: str) -> Value:
    return Value("", math.nan) if math.isnan(estimate.value) else Value(with_interval(estimate, unit), estimate.value)


def _flags(table: pd.DataFrame) -> dict[str, list[str]]:
    """Collect what a reader should know before trusting a cell's numbers, by the cell's name."""
    flags: dict[str, list[str]] = {}
    totals = table[table["phase"] == "total"].drop_duplicates("cell_id")
    for row in totals.to_dict("records"):
        disturbed, rounds = _number(row["disturbed_samples"]), _number(row["rounds"])
        found = {
            "sentinel drifted": _true(row["drifted"]),
            "measured a second time because of drift": _true(row["remeasured"]),
            f"{disturbed} of {rounds} rounds disturbed": disturbed > 0,
            "warm-up not settled": not _true(row["warmup_settled"]) and not pd.isna(row["warmup_settled"]),
            "ended by the time cap": row["stop_reason"] == "time_cap",
        }
        flags[str(row["cell_id"])] = [name for name, holds in found.items() if holds]
    return flags


def _true(value: Any) -> bool:
    return not pd.isna(value) and bool(value)


def _number(value: Any) -> int:
    return 0 if pd.isna(value) else int(value)


def _image(row: Any) -> Value:
    """What a dummy image is: its tiling where there is one, and its size."""
    size = "" if pd.isna(row["width_px"]) else f"{row['width_px']} x {row['height_px']} px"
    if pd.isna(row["tiling_h"]):
        return _word(size)
    forced = ", forced" if _true(row["forced_tiling"]) else ""
    return Value(
        f"{row['tiling_h']} x {row['tiling_w']} ({size}{forced})",
        float(row["tiling_h"]) * 1000 + float(row["tiling_w"]),
    )


def _vision_grid(cells: pd.DataFrame, flags: Mapping[str, list[str]], name: str) -> Grid:
    columns = [
        ("tiling", "rows x columns of crops, and the size of the image"),
        ("crops", "pieces of the image that the vision encoder sees, the whole image in small among them"),
        ("vision tokens", "prompt tokens that carry the image; counted in the model's input"),
        ("prompt tokens", "all tokens of the prompt; counted in the model's input"),
        ("whole prefill", "without marks, as a user waits (wall time)"),
        ("device busy", "device time of the same work with no host in the way"),
        ("vision", "vision encoder and projector, by hooks"),
        ("LLM prefill, hooks", "everything behind the vision side, by marks inside one pass"),
        ("LLM prefill, subtraction", "whole prefill minus vision run alone (wall time)"),
        ("closure", "sum of all phases over the whole, minus 1; 0 is perfect"),
        ("who sets the pace", "launch-bound: the host; device-bound: the device"),
        ("flags", "what a reader should know before trusting the row; empty: nothing"),
    ]
    quantities = ("plain_wall", "busy_prefill", "vision", "language", "subtraction_wall")
    rows = [
        [
            _image(row),
            *(_count(row[count]) for count in ("crops", "vision_tokens", "prompt_tokens")),
            *(_measured(row, quantity) for quantity in quantities),
            _measured(row, "closure", "_fraction"),
            _word(row["bound"]),
            _word("; ".join(flags.get(row["cell_id"], []))),
        ]
        for row in cells.to_dict("records")
    ]
    return Grid(f"vision-{name}", "Vision-token cells: median (95 % interval)", columns, rows)


def _output_grid(runs: pd.DataFrame, flags: Mapping[str, list[str]], name: str) -> Grid:
    columns = [
        ("photograph", "the dataset's id of the image"),
        ("question", "the dataset's id of the question"),
        ("crops", "pieces of the image that the vision encoder sees"),
        ("vision tokens", "prompt tokens that carry the image; counted in the model's input"),
        ("prompt tokens", "all tokens of the prompt; counted in the model's input"),
        ("output tokens", "tokens generated; the first comes out of the prefill"),
        ("time to first token", "preprocessing, copy to the device and prefill"),
        ("prefill", "sum of the prefill's phases"),
        ("decode", "all decode steps"),
        ("prefill share", "prefill over prefill and decode"),
        ("how", "run by itself, or read off the first steps of a longer run of the same photograph"),
        ("flags", "what a reader should know before trusting the row; empty: nothing"),
    ]
    rows = [
        [
            _word(row["image_id"]),
            _word(row["question_id"]),
            *(_count(row[count]) for count in ("crops", "vision_tokens", "prompt_tokens")),
            Value(f"{row['steps'] + 1:,}", float(row["steps"] + 1)),
            *(_measured(row, quantity) for quantity in ("first_token", "prefill", "decode")),
            _measured(row, "share", "_fraction"),
            _word("read off a longer run" if row["source"] == "derived" else "run by itself"),
            _word("; ".join(flags.get(row["cell_id"], []))),
        ]
        for row in runs.to_dict("records")
    ]
    return Grid(f"output-{name}", "Output-token cells: median (95 % interval)", columns, rows)


def _photograph_grid(table: pd.DataFrame, name: str) -> Grid:
    seen = table.dropna(subset=["question"]).drop_duplicates(["image_id", "question_id"]).sort_values("image_index")
    columns = [
        ("photograph", "the dataset's id of the image"),
        ("question id", "the dataset's id of the question"),
        ("question", "what the model was asked"),
        ("the dataset's answers", "given by people; none is the model's"),
    ]
    rows = [
        [_word(row["image_id"]), _word(row["question_id"]), _word(row["question"]), _word(_answers(row["answers"]))]
        for row in seen.to_dict("records")
    ]
    return Grid(f"photographs-{name}", "Photographs and questions of the dataset", columns, rows)


def _answers(packed: Any) -> str:
    """The dataset's answers, each once, the most frequent first."""
    answers = [] if pd.isna(packed) else [str(answer) for answer in json.loads(packed)]
    counts = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(answer if count == 1 else f"{answer} ({count} times)" for answer, count in ordered)


def _percentile_grid(sample: distribution.Sample, name: str) -> Grid:
    columns = [
        ("time", "what was timed"),
        ("requests", "requests behind the row"),
        *((f"P{100 * part:.0f}", "with its 95 % interval between order statistics") for part in distribution.FRACTIONS),
        ("longest", "the slowest request"),
        ("absent", "why a percentile is not told"),
    ]
    rows = []
    for column, label in distribution.DURATIONS.items():
        values = sample.requests[column].dropna().to_numpy(dtype=float)
        if not len(values) or values.max() <= 0:
            continue
        found = distribution.percentiles(values)
        missing = [distribution.too_few(part, len(values)) for part, one in found.items() if one is None]
        rows.append(
            [
                _word(label),
                _count(len(values)),
                *(Value("", math.nan) if one is None else _estimate(one, "ms") for one in found.values()),
                Value(duration(float(values.max())), float(values.max())),
                _word("; ".join(missing)),
            ]
        )
    return Grid(f"percentiles-{name}", "Percentiles over requests, each measured once", columns, rows)


def _slowest_grid(sample: distribution.Sample, thumbnails: Mapping[int, str], name: str) -> Grid:
    columns = [
        ("photograph", "in small, and the dataset's id of the image"),
        ("question", "what the model was asked"),
        ("latency", "from the opened picture to the last token"),
        ("expected", "what output tokens, prompt tokens, crops and pixels let one expect (the fit above)"),
        ("to the first token", "preprocessing, copy and prefill"),
        ("decode", "all decode steps"),
        ("longest step", "the longest of the decode steps"),
        ("size", "of the photograph, width x height"),
        ("crops", "pieces of the image that the vision encoder sees"),
        ("prompt tokens", "all tokens of the prompt; counted in the model's input"),
        ("output tokens", "tokens generated"),
        ("disturbed by", "what else went on; empty: nothing that was seen"),
    ]
    rows = [
        [
            Value(str(row["image_id"] or row["image_index"]), str(row["image_id"]), _picture(row, thumbnails)),
            _word(row["question"]),
            *(
                Value("" if pd.isna(row[time]) else duration(row[time]), float(row[time]))
                for time in ("total_ms", "fitted_ms", "first_token_ms", "decode_ms", "longest_step_ms")
            ),
            Value(f"{row['width_px']} x {row['height_px']} px", float(row["image_px"])),
            *(_count(row[count]) for count in ("crops", "prompt_tokens", "generated_tokens")),
            _word(row["disturbances"]),
        ]
        for row in distribution.slowest(sample).to_dict("records")
    ]
    return Grid(f"slowest-{name}", "The slowest requests, the slowest first", columns, rows)


def _picture(row: Any, thumbnails: Mapping[int, str]) -> Markup | None:
    uri = thumbnails.get(int(row["image_index"]), "")
    return Markup(escape(uri)) if uri.startswith("data:image/jpeg;base64,") else None


def _flops(count: Any) -> str:
    """Arithmetic in words: 2.12 TFLOP; empty where it is not known."""
    if pd.isna(count):
        return ""
    said = metric(float(count))
    return f"{said}FLOP" if said[-1].isalpha() else f"{said} FLOP"


def _component_grid(found: components.Profile, name: str) -> Grid:
    columns = [
        ("component", "its phase of the prefill; decode: all steps together"),
        ("parameters", "that it holds; decode uses those of LLM blocks and head again"),
        ("of parameters", "share of all parameters"),
        ("FLOPs", "arithmetic of a mean request"),
        ("of FLOPs", "share of a request's"),
        ("memory traffic", "weights, keys and values that cross the memory bus"),
        ("of traffic", "share of a request's"),
        ("time", "device time of a mean request"),
        ("of time", "share of the time of prefill and decode, with its 95 % interval"),
        ("peak memory", "most device memory in use during the phase; empty: nothing counts it"),
    ]
    shares = {quantity: found.share(quantity) for quantity in components.QUANTITIES}
    rows = [
        [
            _word(LABELS.get(row["part"], row["part"])),
            _count(row["parameters"]),
            _share(shares["parameters"], row["part"]),
            Value(_flops(row["flops"]), float(row["flops"])),
            _share(shares["flops"], row["part"]),
            Value("" if pd.isna(row["traffic_bytes"]) else size(row["traffic_bytes"]), float(row["traffic_bytes"])),
            _share(shares["traffic_bytes"], row["part"]),
            Value(duration(row["time_ms"]), float(row["time_ms"])),
            _estimate(found.time_share[row["part"]], "fraction"),
            Value("" if pd.isna(row["peak_bytes"]) else size(row["peak_bytes"]), float(row["peak_bytes"])),
        ]
        for row in found.parts.to_dict("records")
    ]
    return Grid(f"components-{name}", f"Components, a mean over {found.count:,} {found.source}", columns, rows)


def _share(shares: Mapping[str, float], part: str) -> Value:
    return Value(percent(shares[part]), shares[part]) if part in shares else Value("", math.nan)


#: What was given to the energy counter, in words.
_ENERGY = {
    "request": "a whole request, in the mean",
    "prefill": "one prefill, repeated without a pause",
    "vision": "vision encoder and projector alone, repeated without a pause",
}


def _energy_sentence(found: components.Profile) -> str:
    """Say what each piece of work takes of energy, or that this is not known."""
    if not found.joules:
        return "Energy is not known: no energy counter of the device was read."
    said = [f"{_ENERGY[what]}: {spent:.3g} J" for what, spent in found.joules.items()]
    return "Energy of the device: " + "; ".join(said) + "."


def _left_out_grid(table: pd.DataFrame, name: str) -> Grid:
    words = {"oom": "out of device memory", "unsupported": "not supported"}
    rows = [
        [_word(row["cell_id"]), _word(words.get(row["status"], row["status"])), _word(row["reason"])]
        for row in analysis.left_out(table).to_dict("records")
    ]
    columns = [("cell", "its name"), ("what happened", "why it has no samples"), ("reason", "in the words of the run")]
    return Grid(f"left-out-{name}", "Cells without numbers", columns, rows)


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
        rows.append([_word(subject.name), _word(subject.model), _word(subject.device), *map(_word, said)])
    return Grid("overview", "The first screen's answers, with their 95 % intervals", columns, rows)


def _dictionary_grid() -> Grid:
    rows = [
        [_word(row["name"]), _word(row["dtype"]), _word(row["unit"]), _word(row["description"])]
        for row in data_dictionary().to_dict("records")
    ]
    columns = [
        ("column", "its name in the table"),
        ("type", "of its values"),
        ("unit", "empty: none"),
        ("meaning", "what it says"),
    ]
    return Grid("dictionary", "Columns of the table", columns, rows)


# ---------------------------------------------------------------------------------------------------------------------
# Answers


@dataclass(frozen=True)
class Answer:
    """One answer of the first screen; without a value the note says what is missing."""

    name: str
    question: str
    value: str
    interval: str
    note: str


def _answer(headline: analysis.Headline) -> Answer:
    if isinstance(headline.answer, Unknown):
        return Answer(headline.name, headline.question, "", "", headline.answer.reason)
    value, interval = _in_two(with_interval(headline.answer, headline.unit))
    note = headline.note
    if headline.answer.contains(0):
        note = f"the interval holds 0, so these data cannot tell a cost; {note}"
    return Answer(headline.name, headline.question, value, interval, note)


def _in_two(said: str) -> tuple[str, str]:
    """Part '3.25 ms (3.11 to 3.40)' into value and interval; the interval is empty where there is none."""
    value, _, interval = said.partition(" (")
    unit = value.partition(" ")[2]
    return value, "" if interval == "no interval)" else f"{interval.removesuffix(')')} {unit}".strip()


@dataclass(frozen=True)
class Part:
    """A piece of a bar: its share of the whole, and what the page says of it."""

    label: str
    colour: str
    fraction: float
    text: str


@dataclass(frozen=True)
class Bar:
    """A whole, in parts that fill it."""

    title: str
    note: str
    parts: Sequence[Part]


def _share_bars(cells: pd.DataFrame, runs: pd.DataFrame) -> list[Bar]:
    """Where the time goes: inside a prefill, and in requests with the fewest and the most output tokens."""
    bars = []
    shares = analysis.phase_shares(cells)
    if len(shares):
        parts = [
            Part(
                LABELS[row["phase"]],
                _variable(COLOURS[row["phase"]]),
                row["median_fraction"],
                f"{percent(row['median_fraction'])} ({percent(row['smallest_fraction'])} to "
                f"{percent(row['largest_fraction'])})",
            )
            for row in shares.to_dict("records")
        ]
        note = f"median over {plural(len(cells), 'image size')}, smallest and largest in brackets"
        bars.append(Bar("Inside the prefill", note, parts))
    lengths = sorted({int(steps) + 1 for steps in runs["steps"]})
    shortest_and_longest = dict.fromkeys(lengths[:1] + lengths[-1:])
    return bars + [_request_bar(runs[runs["steps"] == tokens - 1], tokens) for tokens in shortest_and_longest]


def _request_bar(runs: pd.DataFrame, tokens: int) -> Bar:
    found = {
        "preprocessing and copy": ("inputs", analysis.by_length(runs, "inputs_wall")),
        "prefill": ("prefill", analysis.by_length(runs, "prefill")),
        "decode": ("decode", analysis.by_length(runs, "decode")),
    }
    values = {label: (colour, float(frame["value"].iloc[0])) for label, (colour, frame) in found.items() if len(frame)}
    whole = sum(value for _, value in values.values())
    parts = [
        Part(label, _variable(COLOURS[colour]), value / whole, f"{duration(value)}, {percent(value / whole, 3)}")
        for label, (colour, value) in values.items()
    ]
    note = f"medians over {plural(runs['image_index'].nunique(), 'photograph')}, {duration(whole)} in all"
    return Bar(f"A request with {plural(tokens, 'output token')}", note, parts)


def _variable(colour: str) -> str:
    """A figure's colour as the page's style knows it, in light and in dark."""
    return f"var(--c{colour[1:].lower()})"


# ---------------------------------------------------------------------------------------------------------------------
# Limits


@dataclass(frozen=True)
class Limit:
    """How far one kind of work is from the fastest that the device could do it."""

    name: str
    label: str
    cells: int
    times: Estimate
    measured: str
    floor: str
    bound: str
    mfu: float
    mbu: float

    @property
    def answer(self) -> Answer:
        """The distance as an answer of the first screen."""
        value, interval = _in_two(with_interval(self.times, "times"))
        note = (
            f"{self.label}; median over {plural(self.cells, 'cell')}; the floor is the least time the device could take"
        )
        return Answer(f"limit_{self.name}", f"{self.name} over its floor", value, interval, note)


#: What is compared with its floor: name, label, and arm, phase, clock and experiment of its rows.
_LIMITS = (
    ("prefill", "whole prefill, as a user waits", "plain", "total", "wall", "vision_tokens"),
    ("prefill_busy", "whole prefill, device busy", "busy", "prefill", "busy", "vision_tokens"),
    *((phase, LABELS[phase], "hooks", phase, "device", "vision_tokens") for phase in PREFILL_PHASES),
    ("decode", "decode, all steps", "hooks", "decode", "device", "output_tokens"),
)


#: Limits that the first screen names.
ON_FIRST_SCREEN = ("prefill", "decode")


def _limits(physics: pd.DataFrame) -> list[Limit]:
    found = []
    for name, label, arm, phase, clock, experiment in _LIMITS:
        rows = physics[
            (physics["arm"] == arm)
            & (physics["phase"] == phase)
            & (physics["clock"] == clock)
            & (physics["experiment"] == experiment)
            & (physics["source"] == "measured")
            & (physics["floor_ms"] > 0)
        ]
        if rows.empty:
            continue
        found.append(
            Limit(
                name,
                label,
                len(rows),
                median_estimate((rows["median_ms"] / rows["floor_ms"]).tolist()),
                _range(rows["median_ms"]),
                _range(rows["floor_ms"]),
                " or ".join(sorted(set(rows["bound"]))),
                float(rows["mfu_fraction"].median()),
                float(rows["mbu_fraction"].median()),
            )
        )
    return found


def _range(values: pd.Series[float]) -> str:
    return duration_range(float(values.min()), float(values.max()))


def _limits_grid(limits: Sequence[Limit], name: str) -> Grid:
    columns = [
        ("work", "what was timed"),
        ("cells", "cells behind the row"),
        ("measured", "shortest to longest cell"),
        ("floor", "least time in which this device could do it, shortest to longest cell"),
        ("measured over floor", "median over cells and its 95 % interval; 1 is as fast as can be"),
        ("the floor is set by", "arithmetic, or traffic between memory and processors"),
        ("MFU", "share of the device's arithmetic that was used (model FLOPs utilisation), median"),
        ("MBU", "share of its memory bandwidth that was used (model bandwidth utilisation), median"),
    ]
    rows = [
        [
            _word(limit.label),
            _count(limit.cells),
            _word(limit.measured),
            _word(limit.floor),
            _estimate(limit.times, ""),
            _word(limit.bound),
            Value(percent(limit.mfu), limit.mfu),
            Value(percent(limit.mbu), limit.mbu),
        ]
        for limit in limits
    ]
    return Grid(f"limits-{name}", "Measured times and the least that they could be", columns, rows)


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs and latency, prediction


def _flops_grids(table: pd.DataFrame, physics: pd.DataFrame | None, name: str) -> list[Grid]:
    """Tables of the section on FLOPs; empty without counted work and ceilings."""
    points = Unknown("") if physics is None else analysis_flops.points(beside(table, physics))
    if isinstance(points, Unknown):
        return []
    grids = [_relations_grid(analysis_flops.relations(points), name)]
    models = analysis_flops.compare_models(points)
    return grids if isinstance(models, Unknown) else [*grids, _models_grid(models, name)]


def _relations_grid(relations: pd.DataFrame, name: str) -> Grid:
    columns = [
        ("phase", "what was timed; all of these: the phases together, which share no time"),
        ("points", "phases of cells behind the row"),
        ("cells", "cells behind the row; they are resampled whole"),
        ("FLOPs", "smallest to largest"),
        *((_RELATION_HEADINGS[quantity], meaning) for quantity, meaning in analysis_flops.RELATION_QUANTITIES.items()),
    ]
    rows = [
        [
            _word(analysis_flops.NAMES[row["phase"]]),
            _count(row["points"]),
            _count(row["cells"]),
            _word(_flops_range(row["smallest_flops"], row["largest_flops"])),
            *(_measured(row, quantity, "") for quantity in analysis_flops.RELATION_QUANTITIES),
        ]
        for row in relations.to_dict("records")
    ]
    return Grid(f"flops-{name}", "FLOPs and latency, with 95 % intervals over cells", columns, rows)


_RELATION_HEADINGS = {
    "pearson": "linear correlation",
    "spearman": "rank correlation",
    "slope": "slope in log-log",
    "r_squared": "R² in log-log",
}


def _flops_range(low: float, high: float) -> str:
    return metric(low) if low == high else f"{metric(low)} to {metric(high)}"


def _models_grid(models: analysis_flops.Models, name: str) -> Grid:
    columns = [
        ("model", "what log latency is said to be; fitted to all phases together"),
        (
            "all phases",
            "median error for cells that were left out, half and double both 100 %, every phase counting once",
        ),
        *((analysis_flops.NAMES[phase], "median error for cells that were left out") for phase in models.by_phase),
    ]
    rows = [
        [
            _word(label),
            _estimate(models.errors[model], "fraction"),
            *(Value(percent(errors[model]), errors[model]) for errors in models.by_phase.values()),
        ]
        for model, label in analysis_flops.MODELS.items()
    ]
    return Grid(f"models-{name}", "How far predictions of left-out cells are off", columns, rows)


def _held_out_grid(table: pd.DataFrame, name: str) -> Grid:
    columns = [
        ("held out", "what was left out of the study: an image size, or a photograph with all its lengths"),
        ("predicted", "what of it"),
        ("output tokens", "tokens generated; 1 is the prefill alone"),
        ("prediction", "with its 95 % interval"),
        ("measured", "median"),
        ("error", "predicted over measured, minus 1"),
        ("interval holds", "whether the measurement lies within it"),
    ]
    found = prediction.held_out(table)
    rows = (
        []
        if isinstance(found, Unknown)
        else [
            [
                _word(row["group"]),
                _word(prediction.QUANTITIES[row["quantity"]]),
                _count(row["output_tokens"]),
                _measured(row, "predicted"),
                Value(duration(row["measured_ms"]), row["measured_ms"]),
                Value(percent(row["error_fraction"]), row["error_fraction"]),
                _word("yes" if row["inside"] else "no"),
            ]
            for row in found.to_dict("records")
        ]
    )
    return Grid(f"held-out-{name}", "Requests predicted from a study without them", columns, rows)


# ---------------------------------------------------------------------------------------------------------------------
# A subject


#: What a verdict of `analysis.trust` means to a reader.
TRUST = {
    "quiet": "The machine was quiet while this was measured.",
    "disturbed": "The machine was disturbed: small differences may not be real.",
    "unusable": "Do not rely on these numbers.",
}


@dataclass(frozen=True)
class SubjectView:
    """A subject as the page shows it."""

    name: str
    model: str
    device: str
    random_weights: bool
    trust: str
    trust_sentence: str
    trust_reasons: Sequence[str]
    answers: Sequence[Answer]
    bars: Sequence[Bar]
    limits_grid: Grid | None
    flops_grids: Sequence[Grid]
    held_out: Grid
    figures: Sequence[FigureView]
    claims: Sequence[Mapping[str, Any]]
    verdicts: Mapping[str, int]
    vision: Grid
    output: Grid
    percentiles: Grid | None
    slowest: Grid | None
    conditions: str
    components: Grid | None
    energy: str
    photographs: Grid
    left_out: Grid
    missing: Sequence[str]
    environments: Sequence[Mapping[str, Any]]


def _subject(
    config: Mapping[str, Any],
    table: pd.DataFrame,
    *,
    name: str,
    figures: Mapping[str, FigureFiles],
    claims: Sequence[Claim],
    environments: Sequence[Mapping[str, Any]],
    physics: pd.DataFrame | None,
    thumbnails: Mapping[int, str],
) -> SubjectView:
    cells, runs = analysis.vision_cells(table), analysis.decode(table)
    trust, flags = analysis.trust(table), _flags(table)
    limits = [] if physics is None else _limits(physics)
    drawn = _figures(figures)
    left_out = _left_out_grid(table, name)
    sample = distribution.sample_of(table)
    profile = components.profile(table if physics is None else beside(table, physics))
    missing = []
    if cells.empty:
        missing.append("No cell of the vision-token experiment was measured.")
    if runs.empty:
        missing.append("No generation of two tokens or more was measured, so nothing is said about output tokens.")
    if left_out.rows:
        missing.append(f"{plural(len(left_out.rows), 'cell')} could not be measured; they are listed with the reason.")
    if not limits:
        missing.append("The device's limits were not measured, so the distance to them is not known.")
    if not environments:
        missing.append("The environment was not handed to this page.")
    return SubjectView(
        name=name,
        model=_model(config),
        device=", ".join(sorted(set(table["device_model"].dropna()))) or "device not known",
        random_weights=config.get("weights", "random") == "random",
        trust=trust.verdict,
        trust_sentence=TRUST[trust.verdict],
        trust_reasons=trust.reasons,
        answers=[
            *(_answer(headline) for headline in analysis.headlines(table)),
            *(_answer(headline) for headline in distribution.headlines(sample)),
            *(limit.answer for limit in limits if limit.name in ON_FIRST_SCREEN),
        ],
        bars=_share_bars(cells, runs),
        limits_grid=_limits_grid(limits, name) if limits else None,
        flops_grids=_flops_grids(table, physics, name),
        held_out=_held_out_grid(table, name),
        figures=drawn,
        claims=[_claim(claim, drawn) for claim in claims],
        verdicts={verdict: sum(claim.verdict == verdict for claim in claims) for verdict in VERDICTS},
        vision=_vision_grid(cells, flags, name),
        output=_output_grid(runs, flags, name),
        percentiles=_percentile_grid(sample, name) if sample.size else None,
        slowest=_slowest_grid(sample, thumbnails, name) if sample.size else None,
        conditions=distribution.conditions(sample).strip(),
        components=None if isinstance(profile, Unknown) else _component_grid(profile, name),
        energy="" if isinstance(profile, Unknown) else _energy_sentence(profile),
        photographs=_photograph_grid(table, name),
        left_out=left_out,
        missing=missing,
        environments=[{"cells": found["cells"], "facts": list(_facts(found["environment"]))} for found in environments],
    )


VERDICTS = ("holds", "does not hold", "cannot tell")


# ---------------------------------------------------------------------------------------------------------------------
# Several subjects


@dataclass(frozen=True)
class AcrossView:
    """What the page shows of all subjects together."""

    name: str
    figures: Sequence[FigureView]
    images: Grid
    claims: Sequence[Mapping[str, Any]]
    verdicts: Grid
    missing: Mapping[str, str]


def _across(
    table: pd.DataFrame,
    subjects: Sequence[SubjectView],
    *,
    figures: Mapping[str, FigureFiles],
    claims: Sequence[Claim],
) -> AcrossView:
    drawn = _figures(figures, FIGURES_ACROSS)
    measured = set(table.loc[table["arm"].notna(), "subject"])
    return AcrossView(
        name=ACROSS,
        figures=drawn,
        images=_images_grid(across.shared_images(table)),
        claims=[_claim(claim, drawn) for claim in claims],
        verdicts=_verdicts_grid(subjects),
        missing={
            **{subject.name: "it was not measured" for subject in subjects if subject.name not in measured},
            **across.absent(table, measured),
        },
    )


def _images_grid(shared: pd.DataFrame) -> Grid:
    columns = [
        ("image", "its size, or the dataset's id of the photograph"),
        ("subject", "its name in the study"),
        ("crops", "pieces of the image that the vision encoder sees"),
        ("vision tokens", "prompt tokens that carry the image; counted in the model's input"),
        ("prompt tokens", "all tokens of the prompt; counted in the model's input"),
        ("time to first token", "preprocessing, copy to the device and prefill"),
    ]
    rows = [
        [
            Value(row["image"], float(row["pixels"])) if not pd.isna(row["pixels"]) else _word(row["image"]),
            _word(row["subject"]),
            *(_count(row[count]) for count in ("crops", "vision_tokens", "prompt_tokens")),
            _measured(row, "first_token"),
        ]
        for row in shared.to_dict("records")
    ]
    return Grid("images", "The same image in each subject: median (95 % interval)", columns, rows)


def _verdicts_grid(subjects: Sequence[SubjectView]) -> Grid:
    """Every claim that is judged for each subject by itself, and what came out for each."""
    claims = {claim["name"]: claim["claim"] for subject in subjects for claim in subject.claims}
    verdicts = {subject.name: {claim["name"]: claim["verdict"] for claim in subject.claims} for subject in subjects}
    columns = [("claim", "what was to be judged; the statements are below, subject by subject")]
    columns += [(subject.name, "verdict for this subject") for subject in subjects]
    rows = [
        [_word(claim), *(_word(verdicts[subject.name].get(name)) for subject in subjects)]
        for name, claim in claims.items()
    ]
    return Grid("verdicts", "Claims about one subject, side by side", columns, rows)


def _claim(claim: Claim, figures: Sequence[FigureView]) -> dict[str, Any]:
    shown = {figure.name: figure.title for figure in figures if figure.src is not None}
    evidence = [
        (
            item.name,
            with_interval(
                Estimate(
                    item.value,
                    math.nan if item.low is None else item.low,
                    math.nan if item.high is None else item.high,
                ),
                item.unit,
            ),
        )
        for item in claim.evidence
        if not math.isnan(item.value)
    ]
    return {
        "name": claim.name,
        "claim": claim.claim,
        "statement": claim.statement,
        "verdict": claim.verdict,
        "evidence": evidence,
        "figures": [(name, shown[name]) for name in claim.figures if name in shown],
    }


def _model(config: Mapping[str, Any]) -> str:
    """Say what was run, in words that name what each of them is."""
    random = config.get("weights", "random") == "random"
    parts = [
        f"{config['family']}" + (f" ({config['preset']})" if config.get("preset") else ""),
        "random weights" if random else f"weights {config['weights']}",
        str(config.get("dtype", "")),
        f"{config['attention']} attention" if config.get("attention") else "",
        f"backend {config.get('backend', 'eager')}",
    ]
    return ", ".join(part for part in parts if part)


def _facts(found: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Flatten an environment into (name, value); what is absent is left out."""
    for name, value in found.items():
        label = f"{prefix}{name}".replace("_bytes", "").replace("_", " ")
        if isinstance(value, Mapping):
            yield from _facts(value, f"{label}: ")
        elif isinstance(value, list):
            yield label, ", ".join(map(str, value))
        elif value is not None:
            yield label, size(value) if name.endswith("_bytes") else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# The chart to play with


_DRAWN_AT_FIRST = ("vision_encoder", "llm_blocks")

#: What the chart can draw, by experiment: (label, colour, arm, phase, clock, whether it is drawn at first).
SERIES: Mapping[str, Sequence[tuple[str, str, str, str, str, bool]]] = {
    "vision_tokens": (
        ("whole prefill, as a user waits", _variable(COLOURS["total"]), "plain", "total", "wall", True),
        ("whole prefill, device busy", _variable(COLOURS["busy"]), "busy", "prefill", "busy", False),
        ("whole prefill, host hands over", _variable(COLOURS["launch"]), "plain", "total", "launch", False),
        *((LABELS[p], _variable(COLOURS[p]), "hooks", p, "device", p in _DRAWN_AT_FIRST) for p in PREFILL_PHASES),
        ("vision run alone, as a user waits", _variable(COLOURS["subtraction"]), "vision", "total", "wall", False),
        ("preprocessing and copy", _variable(COLOURS["inputs"]), "inputs", "total", "wall", False),
    ),
    "output_tokens": (
        ("decode, all steps", _variable(COLOURS["decode"]), "hooks", "decode", "device", True),
        ("one decode step", _variable(COLOURS["hooks"]), "hooks", "decode_step", "device", False),
        *((LABELS[p], _variable(COLOURS[p]), "hooks", p, "device", p in _DRAWN_AT_FIRST) for p in PREFILL_PHASES),
        ("preprocessing and copy", _variable(COLOURS["inputs"]), "inputs", "total", "wall", False),
    ),
}
