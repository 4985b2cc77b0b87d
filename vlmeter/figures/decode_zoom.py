"""Short outputs on linear axes, where the prefill still counts."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import decode_runs
from vlmeter.figures import style
from vlmeter.numbers.units import duration
from vlmeter.table.quantities import DECODE, GENERATED, PREFILL_SUM

NAME = "decode_zoom"
TITLE = "Short outputs: prefill, decode and both"
SECTION = "output"

#: Longest output of the zoom.
LONGEST_TOKENS = 64


def needs(table: pd.DataFrame) -> str | None:
    """Two short outputs."""
    runs = short(table)
    return (
        None if runs["steps"].nunique() > 1 else f"fewer than two lengths up to {LONGEST_TOKENS} tokens were measured"
    )


def short(table: pd.DataFrame) -> pd.DataFrame:
    """Runs of up to LONGEST_TOKENS tokens."""
    runs = decode_runs.decode(table)
    return runs[runs["steps"] < LONGEST_TOKENS]


def draw(table: pd.DataFrame) -> Figure:
    """Draw medians over photographs with their intervals, joined by lines."""
    runs = short(table)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.0)
        labels = []
        lengths = sorted({int(steps) + 1 for steps in runs["steps"]})
        beside = 0.008 * max(lengths)  # intervals at one length stand side by side
        for place, quantity in enumerate((GENERATED, DECODE, PREFILL_SUM)):
            data, look = decode_runs.by_length(runs, quantity), style.look_of(quantity)
            if data.empty:
                continue
            reach = style.bars(data["value"], data["low"], data["high"])
            axes.errorbar(
                data["output_tokens"] + (place - 1) * beside,
                data["value"],
                yerr=reach,
                fmt=look.mark,
                linestyle=look.dash,
                markersize=4,
                color=look.colour,
                elinewidth=1,
            )
            labels.append((float(data["value"].iloc[-1]), quantity.label, look))
        style.from_zero(axes)
        axes.set_xlim(left=0)
        axes.set_xticks(lengths)
        axes.set_xlabel("output tokens")
        axes.set_ylabel("latency (ms)")
        style.label_ends(axes, labels)
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say where decode overtakes the prefill."""
    runs = short(table)
    decode, prefill = decode_runs.by_length(runs, DECODE), decode_runs.by_length(runs, PREFILL_SUM)
    if prefill.empty:
        return "Medians over images with their 95 % intervals."
    both = decode.merge(prefill, on="output_tokens", suffixes=("_decode", "_prefill"))
    first = both.iloc[0]
    text = (
        f"At {int(first['output_tokens'])} tokens the prefill takes {duration(first['value_prefill'])} and decode "
        f"{duration(first['value_decode'])}. "
    )
    over = both[both["value_decode"] > both["value_prefill"]]
    if over.empty:
        text += "The prefill stays the larger part up to the longest of these outputs."
    elif over.index[0] == 0:
        text += "Decode is the larger part from the shortest output on."
    else:
        text += f"From {int(over.iloc[0]['output_tokens'])} tokens on decode is the larger part."
    return f"{text} Medians over images with their 95 % intervals."
