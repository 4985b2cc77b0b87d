"""Answers of the first screen, and bars of shares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vlmeter.analysis import decode_runs, prefill_cells
from vlmeter.analysis.answers import Answer
from vlmeter.analysis.reading import Unknown
from vlmeter.figures.style import colour_of
from vlmeter.numbers.units import duration, percent
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import DECODE, INPUTS_WALL, OUTSIDE, PREFILL_SUM, QUANTITIES, WAIT


@dataclass(frozen=True)
class Card:
    """One answer as the page shows it; without a value the note says what is missing and what would make it known."""

    name: str
    question: str
    topic: str
    value: str
    interval: str
    note: str


def card_of(answer: Answer, *, piece: str = "crop") -> Card:
    """An answer of the analysis as a card; `piece`: what the family's authors call a crop."""
    own = f"its authors call a crop a {piece}" if answer.name == "crop" and piece != "crop" else ""
    if isinstance(answer.found, Unknown):
        why = (
            f"{answer.found.reason}; to know it, {answer.found.remedy}" if answer.found.remedy else answer.found.reason
        )
        return Card(answer.name, answer.question, answer.topic, "", "", _with(own, why, answer.misgivings()))
    value, interval = in_two(with_interval(answer.found, answer.unit))
    return Card(
        answer.name, answer.question, answer.topic, value, interval, _with(own, answer.note, answer.misgivings())
    )


def _with(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def in_two(said: str) -> tuple[str, str]:
    """Segment '3.25 ms (3.11 to 3.40)' into value and interval; the interval is empty where there is none."""
    value, _, interval = said.partition(" (")
    unit = value.partition(" ")[2]
    return value, "" if interval == "no interval)" else f"{interval.removesuffix(')')} {unit}".strip()


@dataclass(frozen=True)
class Segment:
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
    parts: Sequence[Segment]


def share_bars(cells: pd.DataFrame, runs: pd.DataFrame) -> list[Bar]:
    """Where the time goes: inside a prefill, and in requests with the fewest and the most output tokens."""
    bars = []
    for title, shares in (
        ("Up to the first token", prefill_cells.wait_shares(cells)),
        ("Inside the prefill", prefill_cells.phase_shares(cells)),
    ):
        if shares.empty:
            continue
        parts = [
            Segment(
                QUANTITIES[row["phase"]].label,
                css_variable(colour_of(QUANTITIES[row["phase"]])),
                row["median_fraction"],
                percent(row["median_fraction"])
                if len(cells) == 1
                else f"{percent(row['median_fraction'])} ({percent(row['smallest_fraction'])} to "
                f"{percent(row['largest_fraction'])})",
            )
            for row in shares.to_dict("records")
        ]
        note = f"median over {len(cells)} image sizes, smallest and largest in brackets"
        if len(cells) == 1:
            note = "of the one image size that was measured"
        bars.append(Bar(title, note, parts))
    lengths = sorted({int(steps) + 1 for steps in runs.loc[runs["direct"], "steps"]})
    shortest_and_longest = dict.fromkeys(lengths[:1] + lengths[-1:])
    return bars + [_request_bar(runs[runs["steps"] == tokens - 1], tokens) for tokens in shortest_and_longest]


def _request_bar(runs: pd.DataFrame, tokens: int) -> Bar:
    known = runs[PREFILL_SUM.column].notna().any()  # of a server into which nobody looks, no phase is
    waited = (PREFILL_SUM, OUTSIDE) if known else (WAIT,)
    found = {quantity: decode_runs.by_length(runs, quantity) for quantity in (INPUTS_WALL, *waited, DECODE)}
    values = {quantity: float(frame["value"].iloc[0]) for quantity, frame in found.items() if len(frame)}
    whole = sum(values.values())
    parts = [
        Segment(
            quantity.label,
            css_variable(colour_of(quantity)),
            value / whole,
            f"{duration(value)}, {percent(value / whole, 3)}",
        )
        for quantity, value in values.items()
    ]
    note = f"medians over {decode_runs.pictures_in_words(runs)}, {duration(whole)} in all"
    return Bar(f"A request with {plural(tokens, 'output token')}", note, parts)


def css_variable(colour: str) -> str:
    """A figure's colour as the page's style knows it, in light and in dark."""
    return f"var(--c{colour[1:].lower()})"
