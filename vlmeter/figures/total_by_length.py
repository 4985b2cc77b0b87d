"""The whole of a generation, stacked: what a user waits for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import decode_runs
from vlmeter.figures import style
from vlmeter.numbers.units import duration
from vlmeter.table.quantities import DECODE, GENERATED, LANGUAGE, VISION

NAME = "total_by_length"
TITLE = "Prefill and decode, stacked, by output tokens"
SECTION = "output"

PARTS = (VISION, LANGUAGE, DECODE)


def needs(table: pd.DataFrame) -> str | None:
    """A generation with its phases."""
    runs = decode_runs.decode(table)
    return None if runs[GENERATED.column].notna().any() else "no generation of two tokens or more was measured"


def draw(table: pd.DataFrame) -> Figure:
    """Draw one bar per output length; the interval is that of the total over photographs."""
    runs = decode_runs.decode(table).dropna(subset=[GENERATED.column])
    total = decode_runs.by_length(runs, GENERATED)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.2)
        unit, unit_name = style.time_unit(float(total["value"].max()))
        x = np.arange(len(total))
        base = np.zeros(len(total))
        labels = []
        for quantity in PARTS:
            height = decode_runs.by_length(runs, quantity)["value"].to_numpy(dtype=np.float64) / unit
            look = style.look_of(quantity)
            axes.bar(x, height, 0.72, bottom=base, linewidth=0.4, **style.filled(look))
            labels.append((float(base[-1] + height[-1] / 2), quantity.label, look))
            base = base + height
        value = total["value"].to_numpy(dtype=np.float64) / unit
        reach = style.bars(value, total["low"] / unit, total["high"] / unit)
        axes.errorbar(x, value, yerr=reach, fmt="D", markersize=3, color=style.INK, elinewidth=1, markeredgewidth=0)
        for place, height_of, above in zip(x.tolist(), value, reach[1], strict=True):
            axes.annotate(
                duration(unit * height_of),
                (place, height_of + above),
                textcoords="offset points",
                xytext=(0, 5),
                ha="center",
                fontsize=7.5,
            )
        axes.set_xticks(x, [f"{tokens:,}" for tokens in total["output_tokens"]])
        axes.set_ylim(0, float((value + reach[1]).max()) * 1.2)
        axes.set_xlim(-0.6, len(x) - 0.4)
        axes.set_xlabel("output tokens")
        axes.set_ylabel(f"{GENERATED.label} ({unit_name})")
        axes.grid(axis="x", visible=False)
        style.note(axes, "diamonds: median of the whole with 95 % interval;\nparts of a bar: medians of their own")
        style.label_ends(axes, labels, bars=True)
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say what a user waits at both ends."""
    total = decode_runs.by_length(decode_runs.decode(table).dropna(subset=[GENERATED.column]), GENERATED)
    first, last = total.iloc[0], total.iloc[-1]
    text = f"{int(first['output_tokens'])} output tokens take {duration(first['value'])} from prefill to last token"
    if len(total) > 1:
        text += f", {int(last['output_tokens']):,} take {duration(last['value'])}"
    return text + ". Device time, medians over images; preprocessing is not in it."
