"""Decode latency against output tokens with both axes linear: where a law is a straight line because it is one."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmeter.analysis import decode_runs, reading
from vlmeter.analysis.answers import Answers, answers_of
from vlmeter.figures import style
from vlmeter.numbers.units import percent, r_squared
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import DECODE

NAME = "decode_linear"
TITLE = "Decode latency by output tokens, both axes linear"
SECTION = "output"


def needs(table: pd.DataFrame, answers: Answers | None = None) -> str | None:
    """Two output lengths make a line."""
    law = decode_runs.decode_law(decode_runs.decode(table))
    return law.reason if isinstance(law, reading.Unknown) else None


def draw(table: pd.DataFrame, answers: Answers | None = None) -> Figure:
    """Draw decode time and the fitted line; below, what the line leaves over in percent."""
    runs = decode_runs.decode(table)
    law = decode_runs.decode_law(runs)
    assert isinstance(law, decode_runs.DecodeLaw)
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=5.2, ratios=(3, 2))
        unit, name = style.time_unit(float(runs[DECODE.column].max()))
        green = style.colour_of(DECODE)
        upper.plot(runs["output_tokens"], runs[DECODE.column] / unit, "o", markersize=3.5, alpha=0.5, color=green)
        ends = np.array([float(runs["steps"].min()), float(runs["steps"].max())])
        line = law.line["per_token"].value * ends + law.line["constant"].value
        upper.plot(ends + 1, line / unit, color=style.INK, linewidth=1.2, zorder=1)
        upper.set_ylabel(f"decode latency ({name})")
        style.from_zero(upper)
        upper.set_xlim(left=0)
        token = (answers or answers_of(table))["output_token"]
        style.note(upper, f"k, {token.question}: {token.said()}\nR² = {r_squared(law.line.r_squared)}")
        residuals(lower, runs, law)
        style.token_axis(lower, "output tokens N (the first comes out of the prefill)", at=runs["output_tokens"])
        style.title(upper, TITLE, table)
    return figure


def residuals(axes: Axes, runs: pd.DataFrame, law: decode_runs.DecodeLaw) -> None:
    """Draw what the line leaves over, in percent of the measured time."""
    left = 100 * law.line.residuals / runs[DECODE.column].to_numpy(dtype=np.float64)
    axes.axhline(0, color=style.MUTED, linewidth=0.8)
    axes.plot(runs["output_tokens"], left, "o", markersize=3.5, alpha=0.5, color=style.colour_of(DECODE))
    axes.set_ylabel("measured - fitted (%)")


def caption(table: pd.DataFrame, answers: Answers | None = None) -> str:
    """Say how far the measured times are from the line, and that R² does not tell."""
    law = decode_runs.decode_law(decode_runs.decode(table))
    assert isinstance(law, decode_runs.DecodeLaw)
    text = (
        f"The line through all lengths leaves at most {percent(law.line.largest_residual_fraction)} of a measured "
        f"time. R² is {r_squared(law.line.r_squared)}, as it would be for many a bent curve"
    )
    if np.isnan(law.curvature.value):
        return text + "."
    return f"{text}: at {law.longest_tokens:,} tokens the bend is {with_interval(law.curvature, 'fraction')}."
