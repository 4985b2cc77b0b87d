"""The summary of a finished study: what a person at a terminal wants to know of each subject, in few lines.

What is told is found elsewhere: the answers are handed over, as the report has them, and the times of an image are made
of the samples of its cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from vlmeter.analysis import conditions, reading
from vlmeter.analysis.answers import Answer, Answers, Topic
from vlmeter.analysis.reading import Samples, Unknown, median_in_order
from vlmeter.analysis.runs import runs_of
from vlmeter.analysis.spread import first_token_samples
from vlmeter.numbers.clusters import over_runs
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.modes import two_modes
from vlmeter.numbers.resemblance import Resemblance
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    AROUND,
    DECODE,
    FIRST_TOKEN,
    HOOKS_WALL,
    INPUTS_WALL,
    PHASES,
    PLAIN_WALL,
    PREFILL_SUM,
)

#: Titles of what the answers are about.
_TOPICS: Mapping[Topic, str] = {
    "wait": "What a user waits for",
    "cost": "What one more costs",
    "limit": "Over the least time the device could take",
}


@dataclass(frozen=True)
class Line:
    """One number with its words; unit: ms, fraction or times; predicted: told by laws for what was not measured.

    modes: what has two modes behind it, in few words.
    """

    name: str
    words: str
    found: Estimate | Unknown
    unit: str
    note: str = ""
    predicted: bool = False
    modes: str = ""


@dataclass(frozen=True)
class Section:
    """Lines that belong together, under a title that is the same for all subjects, and what is this subject's own."""

    title: str
    lines: tuple[Line, ...]
    note: str = ""


@dataclass(frozen=True)
class Summary:
    """One subject: what it is, where it ran, what was found, whether to believe it, and cells without numbers."""

    subject: str
    model: str
    device: str
    sections: tuple[Section, ...]
    trust: conditions.Trust
    left_out: tuple[str, ...]


def summaries(table: pd.DataFrame, answers: Mapping[str, Answers]) -> list[Summary]:
    """Summarise every subject of a study's table; answers: by subject, as everything that shows one takes them."""
    names = reading.subjects_of(table)
    images = {name: _images(reading.of_subject(table, name)) for name in names}
    chosen = _chosen([*images.values()])
    return [
        _summary(reading.of_subject(table, name), name, images[name], chosen, answers.get(name, {})) for name in names
    ]


def _summary(
    rows: pd.DataFrame,
    name: str,
    images: Mapping[str, Mapping[Any, Any]],
    chosen: Sequence[str],
    answers: Answers,
) -> Summary:
    samples = {kind: [Samples(own, kind) for own in runs_of(rows)] for kind in (kinds.GENERATION, kinds.PREFILL)}
    shown = [_of_image(title, images[title], samples[images[title]["kind"]]) for title in chosen if title in images]
    measured_above = {f"{FIRST_TOKEN.name}_{_size(images[title])}" for title in chosen if title in images}
    doubled = {name for name in measured_above & set(answers) if answers[name].source == "predicted"}
    if set(images) <= set(chosen):  # each stands above, with an interval, which their median has not
        doubled.add(FIRST_TOKEN.name)
    answered = _by_topic([answer for answer in answers.values() if answer.name not in doubled])
    sections = (*shown, *answered)
    empty = reading.left_out(rows)
    reasons = empty["reason"].fillna("no reason is known").value_counts()
    return Summary(
        subject=name,
        model=_model(rows),
        device=", ".join(sorted(set(rows["device_model"].dropna()))) or "device not known",
        sections=tuple(section for section in sections if section.lines),
        trust=conditions.trust(rows),
        left_out=tuple(f"{plural(int(count), 'cell')} without numbers: {reason}" for reason, count in reasons.items()),
    )


def _without(section: Section, name: str) -> Section:
    return replace(section, lines=tuple(line for line in section.lines if line.name != name))


def _beside(section: Section, shown: Mapping[str, Mapping[Any, Any]]) -> Section:
    """The section without what is predicted of an image that was measured and stands above."""
    measured = {f"{FIRST_TOKEN.name}_{_size(cell)}" for cell in shown.values()}
    return replace(
        section, lines=tuple(line for line in section.lines if not (line.predicted and line.name in measured))
    )


def _model(rows: pd.DataFrame) -> str:
    """What was run, in a few words."""
    first = rows.iloc[0]
    weights = f"{first['family']} {first['preset']}, random weights"
    attention = "" if pd.isna(first["attention"]) else f"{first['attention']} attention, "
    what = weights if first["weights"] == "random" else first["weights"]
    return f"{what}, {first['dtype']}, {attention}backend {first['backend']}"


# ---------------------------------------------------------------------------------------------------------------------
# The answers: what one more costs, and how far it is from the least


def _by_topic(answers: Sequence[Answer]) -> list[Section]:
    """The answers of a subject, by topic."""
    return [
        Section(
            title,
            tuple(
                Line(a.name, a.question, a.found, a.unit, _note(a), predicted=a.source == "predicted", modes=a.modes)
                for a in answers
                if a.topic == topic
            ),
        )
        for topic, title in _TOPICS.items()
    ]


def _note(answer: Answer) -> str:
    return "; ".join(part for part in (answer.note, answer.misgivings()) if part)


# ---------------------------------------------------------------------------------------------------------------------
# Where the time of an image goes


def _images(rows: pd.DataFrame) -> dict[str, Mapping[Any, Any]]:
    """A cell of each image, by its title, small images first.

    Of the images that the study names with an output length, else of dummies, else of photographs.
    """
    fine = rows[(rows["status"] == "ok") & (rows["source"] == "measured")].drop_duplicates("cell_id")
    runs, prefills = (fine[fine["kind"] == kind] for kind in (kinds.GENERATION, kinds.PREFILL))
    longest = runs.sort_values("output_tokens").drop_duplicates("image_index", keep="last")
    own = longest[longest["width_px"].notna()]
    cells = next((cells for cells in (own, prefills, longest) if len(cells)), own)
    pixels = (cells["width_px"] * cells["height_px"]).fillna(cells["prompt_tokens"])
    ordered = cells.assign(pixels=pixels).sort_values(["pixels", "cell_id"]).to_dict("records")
    found: dict[str, Mapping[Any, Any]] = {}
    for cell in ordered:
        found.setdefault(_image(cell), cell)
    return found


def _chosen(images: Sequence[Mapping[str, Mapping[Any, Any]]]) -> list[str]:
    """Titles of a few images, small ones first: of those that all subjects saw, if there are any."""
    titles = list(dict.fromkeys(title for own in images for title in own))
    shared = [title for title in titles if all(title in own for own in images)]
    titles = shared or titles
    return [titles[i] for i in sorted({0, (len(titles) - 1) // 2, len(titles) - 1})] if titles else []


def _of_image(title: str, cell: Mapping[Any, Any], by_run: Sequence[Samples]) -> Section:
    """The waits of a cell from the opened picture to the last token, in order; by_run: its samples, run by run."""
    told = [_waits(cell, samples) for samples in by_run]
    names = dict.fromkeys(name for own in told for name in own)
    lines = []
    for name in names:
        found = [own[name] for own in told if name in own]
        line = found[0]
        estimate = over_runs([one.found for one in found if isinstance(one.found, Estimate)])
        if not math.isnan(estimate.value):
            modes = next((own[name].modes for own in told if name in own and own[name].modes), "")
            lines.append(replace(line, found=_known(estimate, line.unit), modes=modes))
    return Section(title, tuple(lines), _counts(cell))


def _known(found: Estimate, unit: str) -> Estimate | Unknown:
    """A time, unless its runs differ so much that its interval reaches below 0, where no time is."""
    if not found.low < 0:
        return found
    return Unknown(f"the runs differ by more than itself, {with_interval(found, unit)}", "measure more runs (runs)")


def _waits(cell: Mapping[Any, Any], samples: Samples) -> dict[str, Line]:
    """The waits of one cell in one run, by name."""
    name = str(cell["cell_id"])
    lines = [
        _line(quantity.name, quantity.label, own, like=samples.resemblance(quantity))
        for quantity in (INPUTS_WALL, *AROUND[:-1], *PHASES, AROUND[-1])
        if (own := samples.get(name, quantity)) is not None
    ]
    is_prefill = cell["kind"] == kinds.PREFILL
    first = first_token_samples(samples, name, cell["kind"])
    steps = None if is_prefill else samples.get(name, DECODE)
    if first is not None:
        like = samples.resemblance(PLAIN_WALL if is_prefill else PREFILL_SUM)
        lines.append(_line(FIRST_TOKEN.name, FIRST_TOKEN.label, first, like=like))
        if steps is not None and len(steps) == len(first):
            tokens = _tokens(cell)
            each, every = steps / max(1, tokens - 1), f"all {plural(tokens, 'token')}"
            lines.append(_line("output_token", "each further token", each, like=samples.resemblance(DECODE)))
            lines.append(_line("request", every, first + steps, like=samples.resemblance(HOOKS_WALL)))
    return {line.name: line for line in lines}


def _line(name: str, words: str, samples: Array, *, like: Resemblance) -> Line:
    """The median of samples of a cell in ms, with both modes where there are two."""
    both = two_modes(samples)
    modes = "" if both is None else f"two modes: {both.said()}"
    return Line(name, words, median_in_order(samples, like=like), "ms", modes=modes)


def _tokens(cell: Mapping[Any, Any]) -> int:
    generated = cell["generated_tokens"]
    return int(cell["output_tokens"] if pd.isna(generated) else generated)


def _image(cell: Mapping[Any, Any]) -> str:
    """What a cell looks at, such as 'photo.jpg (640x480 px)'."""
    sized = not pd.isna(cell["width_px"])
    size = f"{_size(cell)} px" if sized else f"photograph {cell['image_id']}"
    named = cell["image_id"] if sized and not pd.isna(cell["image_id"]) else size
    return str(named) if str(named) == size else f"{named} ({size})"


def _size(cell: Mapping[Any, Any]) -> str:
    return f"{cell['width_px']}x{cell['height_px']}"


def _counts(cell: Mapping[Any, Any]) -> str:
    """What an image becomes, such as '7 crops, 704 vision tokens'; of one that is not cut no crop is said."""
    known = {noun: cell[name] for name, noun in (("crops", "crop"), ("vision_tokens", "vision token"))}
    said = {noun: int(count) for noun, count in known.items() if not pd.isna(count)}
    return ", ".join(plural(count, noun) for noun, count in said.items() if (noun, count) != ("crop", 1))


# ---------------------------------------------------------------------------------------------------------------------
# As data


def as_data(found: Sequence[Summary]) -> dict[str, Any]:
    """Lay summaries out for JSON: by subject; what is not known has no value and a reason."""
    return {summary.subject: _subject_data(summary) for summary in found}


def _subject_data(summary: Summary) -> dict[str, Any]:
    lines = [
        {
            "section": section.title,
            "of": section.note,
            "name": line.name,
            "words": line.words,
            "unit": line.unit,
            "note": line.note,
            "predicted": line.predicted,
            "modes": line.modes,
        }
        | _number_data(line.found)
        for section in summary.sections
        for line in section.lines
    ]
    return {
        "model": summary.model,
        "device": summary.device,
        "trust": {"verdict": summary.trust.verdict, "reasons": list(summary.trust.reasons)},
        "left_out": list(summary.left_out),
        "answers": lines,
    }


def _number_data(found: Estimate | Unknown) -> dict[str, Any]:
    if isinstance(found, Unknown):
        return {"value": None, "low": None, "high": None, "not_known": found.reason, "remedy": found.remedy}
    value, low, high = (float(part) if np.isfinite(part) else None for part in (found.value, found.low, found.high))
    return {"value": value, "low": low, "high": high, "not_known": None, "remedy": None}
