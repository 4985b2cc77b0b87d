"""Prefill and decode in panels of their own, so that neither hides the other."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import decode_runs
from vlmeter.figures import style
from vlmeter.numbers.units import duration
from vlmeter.table.quantities import DECODE, PREFILL_SUM

NAME = "prefill_and_decode"
TITLE = "Prefill and decode apart"
SECTION = "output"


def needs(table: pd.DataFrame) -> str | None:
    """A generation with its phases."""
    runs = decode_runs.decode(table)
    return None if runs[PREFILL_SUM.column].notna().any() else "no generation of two tokens or more was measured"


def draw(table: pd.DataFrame) -> Figure:
    """Draw the prefill of the generations that were run (linear, from zero), and below it decode (logarithmic)."""
    runs = decode_runs.decode(table)
    direct = runs[runs["direct"]]
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=5.2, ratios=(1, 1))
        upper.set_xscale("log", base=2)
        lower.set_yscale("log")
        for axes, data, quantity in ((upper, direct, PREFILL_SUM), (lower, runs, DECODE)):
            middle, colour = decode_runs.by_length(data, quantity), style.colour_of(quantity)
            unit, name = style.time_unit(float(data[quantity.column].max()))
            axes.plot(
                data["output_tokens"], data[quantity.column] / unit, "o", markersize=3.5, alpha=0.35, color=colour
            )
            axes.errorbar(
                middle["output_tokens"],
                middle["value"] / unit,
                yerr=style.bars(middle["value"], middle["low"], middle["high"]) / unit,
                fmt="_-",
                markersize=11,
                markeredgewidth=1.6,
                color=colour,
                linewidth=1,
                elinewidth=1.2,
            )
            scale = "linear, from 0" if quantity is PREFILL_SUM else "logarithmic"
            axes.set_ylabel(f"{quantity.label} ({name})\n{scale}")
        style.from_zero(upper)
        style.log_axis(lower.xaxis, at={int(steps) + 1 for steps in runs["steps"]})
        style.log_axis(lower.yaxis)
        lower.set_xlabel("output tokens")
        style.note(lower, "dots: images; dashes: median with 95 % interval over images", color=style.MUTED)
        style.title(upper, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say what varies with what: the prefill with the photograph, decode with the length."""
    runs = decode_runs.decode(table)
    direct = runs[runs["direct"]]
    prefill = direct[PREFILL_SUM.column].dropna()
    decode = decode_runs.by_length(runs, DECODE)
    return (
        f"The prefill does not know how many tokens will follow: it takes {duration(float(prefill.min()))} to "
        f"{duration(float(prefill.max()))} depending on the image. Decode takes "
        f"{duration(float(decode['value'].iloc[0]))} at {int(decode['output_tokens'].iloc[0])} and "
        f"{duration(float(decode['value'].iloc[-1]))} at {int(decode['output_tokens'].iloc[-1]):,} output tokens."
    )
