"""What one more token costs, by what kind of token it is."""

from __future__ import annotations

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis.answers import Answer, Answers, answers_of
from vlmeter.figures import style
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import significant
from vlmeter.table.quantities import QUANTITIES

NAME = "token_costs"
TITLE = "What one more token costs"
SECTION = "flops"

#: Answers that are the price of a token.
TOKENS = ("vision_token", "text_token", "output_token")

#: Characters of a line in which a price's clock is named.
CLOCK_CHARACTERS = 30


def needs(table: pd.DataFrame, answers: Answers | None = None) -> str | None:
    """Two kinds of token with a price, to compare."""
    found = _priced(answers or answers_of(table))
    return None if len(found) > 1 else "fewer than two kinds of token have a cost that is known"


def _priced(answers: Answers) -> list[tuple[Answer, Estimate]]:
    found = [answers[name] for name in TOKENS if name in answers]
    return [(answer, answer.found) for answer in found if isinstance(answer.found, Estimate)]


def draw(table: pd.DataFrame, answers: Answers | None = None) -> Figure:
    """Draw every price with its interval on a logarithmic axis, and how many of the cheapest token it buys."""
    priced = _priced(answers or answers_of(table))
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=1.5 + 0.6 * len(priced))
        axes.set_xscale("log")
        values = [cost.value for _, cost in priced]
        ends = [end for _, cost in priced for end in (cost.low, cost.high) if end > 0]
        axes.set_xlim(min([*values, *ends]) / 1.8, max([*values, *ends]) * 1.8)
        axes.set_ylim(-0.6, len(priced) - 0.4)
        places = np.arange(len(priced))[::-1]
        for place, (answer, cost) in zip(places, priced, strict=True):
            look = style.look_of(QUANTITIES[answer.quantity])
            reach = style.bars([cost.value], [cost.low], [cost.high])
            axes.errorbar(
                [cost.value],
                [place],
                xerr=reach,
                fmt=look.mark,
                markersize=7,
                color=look.colour,
                elinewidth=1.6,
                capsize=3,
            )
            times = cost.value / min(values)
            said = answer.said() + (f"  =  {significant(times, 2)} x the cheapest" if times > 1 else "")
            left = place_of(cost.value, axes.get_xlim()) < 0.5
            axes.annotate(
                said,
                (cost.value, place),
                xytext=(0, 9),
                textcoords="offset points",
                fontsize=7.5,
                ha="left" if left else "right",
            )
        clocks = [textwrap.fill(f"({answer.clock})", CLOCK_CHARACTERS) for answer, _ in priced]
        axes.set_yticks(
            places, [f"{answer.question}\n{clock}" for (answer, _), clock in zip(priced, clocks, strict=True)]
        )
        axes.set_ylabel("token")
        axes.set_xlabel("time (ms), logarithmic")
        axes.grid(axis="y", visible=False)
        style.log_axis(axes.xaxis)
        style.title(axes, TITLE, table, characters=style.LINE_CHARACTERS - CLOCK_CHARACTERS // 3)
    return figure


def place_of(value: float, ends: tuple[float, float]) -> float:
    """Where a value lies on a logarithmic axis, from 0 to 1."""
    low, high, own = np.log([*ends, value])
    return float((own - low) / (high - low))


def caption(table: pd.DataFrame, answers: Answers | None = None) -> str:
    """Give every price, and how many vision tokens an output token buys."""
    answers = answers or answers_of(table)
    said = "; ".join(f"{answer.question} {answer.said()}" for answer, _ in _priced(answers))
    text = f"{said[0].upper()}{said[1:]}. "
    if (vision := answers.get("vision_token")) is not None:
        text += f"Of a vision token: {vision.note}. "
    ratio = answers.get("output_over_vision")
    if ratio is not None and ratio.is_known:
        text += f"One output token costs as much as {ratio.said()} vision tokens. "
    return text.strip()
