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
        low, high = float(law.values_ms.min()), float(law.values_ms.max())
        room = 0.25 * (high - low) or 0.05 * high
        axes.set_ylim(max(0.0, low - room), high + 2.2 * room)
        style.token_axis(axes, "tokens in context (prompt and output so far)")
        axes.set_ylabel("one decode step (ms)")
        lines = [
            f"at no context: {with_interval(law.fit['constant'], 'ms')}",
            f"per 1,000 tokens: {with_interval(reading.scaled(law.fit['per_context_token'], 1000), 'ms')}",
        ]
        style.note(axes, "\n".join(lines))
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say what the constant and the slope are, and whether the slope is one."""
    law = step_times.step_law(table)
    assert isinstance(law, step_times.StepLaw)
    slope = reading.scaled(law.fit["per_context_token"], 1000)
    text = (
        f"Longest run of {law.pictures}. A step costs "
        f"{with_interval(law.fit['constant'], 'ms')} whatever the context, for reading the weights or for launching, "
        f"and {with_interval(slope, 'ms')} per 1,000 tokens of context, for reading their keys and values."
    )
    if slope.contains(0):
        text += " The interval of the second holds 0: no growth with the context is seen over this range."
    return text + " The axis does not start at 0."
