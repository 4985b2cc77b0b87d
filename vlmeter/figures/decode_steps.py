"""How long one decode step takes as the context grows: a constant for the weights, a slope for keys and values."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import reading, step_times
from vlmeter.figures import style
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import DECODE

NAME = "decode_steps"
TITLE = "Time of one decode step by context length"
SECTION = "output"


def needs(table: pd.DataFrame) -> str | None:
    """A few decode steps."""
    law = step_times.step_law(table)
    return law.reason if isinstance(law, reading.Unknown) else None


def draw(table: pd.DataFrame) -> Figure:
    """Draw steps (median of neighbours) of every photograph's longest run, and the fitted line."""
    law = step_times.step_law(table)
    assert isinstance(law, step_times.StepLaw)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.2)
        green = style.colour_of(DECODE)
        for image in np.unique(law.images):
            own = law.images == image
            axes.plot(law.contexts[own], law.values_ms[own], "o", markersize=2.5, alpha=0.4, color=green)
        ends = np.array([law.contexts.min(), law.contexts.max()])
        line = law.fit["per_context_token"].value * ends + law.fit["constant"].value
        axes.plot(ends, line, color=style.INK, linewidth=1.4)
        axes.set_ylim(*_reach_ms(law))
        style.token_axis(axes, "tokens in context (prompt and output so far)")
        axes.set_ylabel("one decode step (ms)")
        lines = [
            f"at no context: {with_interval(law.fit['constant'], 'ms')}",
            f"per 1,000 tokens: {with_interval(reading.scaled(law.fit['per_context_token'], 1000), 'ms')}",
        ]
        style.note(axes, "\n".join([*lines, *([law.modes] if law.modes else [])]))
        style.title(axes, TITLE, table)
    return figure


def _reach_ms(law: step_times.StepLaw) -> tuple[float, float]:
    """Ends of the vertical axis: with room above for what is written there."""
    low, high = float(law.values_ms.min()), float(law.values_ms.max())
    room = 0.25 * (high - low) or 0.05 * high
    return max(0.0, low - room), high + 2.2 * room


def caption(table: pd.DataFrame) -> str:
    """Say what the constant and the slope are, where they are known, and where the axis starts."""
    law = step_times.step_law(table)
    assert isinstance(law, step_times.StepLaw)
    slope = reading.scaled(law.fit["per_context_token"], 1000)
    constant = law.fit["constant"]
    text = f"Longest run of {law.pictures}."
    if constant.contains(0):
        text += f" What a step costs whatever the context is not known: {with_interval(constant, 'ms')} holds 0."
    else:
        text += (
            f" A step costs {with_interval(constant, 'ms')} whatever the context, for reading the weights or for "
            "launching."
        )
    if slope.contains(0):
        text += (
            " No growth with the context is seen over this range: per 1,000 tokens of it the line gives "
            f"{with_interval(slope, 'ms')}, which holds 0."
        )
    else:
        text += (
            f" It grows by {with_interval(slope, 'ms')} per 1,000 tokens of context, for reading their keys and values."
        )
    if said := law.misgivings():
        text += f" {said[0].upper()}{said[1:]}."
    return text if _reach_ms(law)[0] == 0 else f"{text} The axis does not start at 0."
