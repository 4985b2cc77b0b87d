"""The prefill's relative share of a generation, which a logarithmic axis hides."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import decode_runs
from vlmeter.figures import style
from vlmeter.numbers.units import percent, significant
from vlmeter.table.quantities import DECODE, OF_DECODE, PREFILL_SUM, SHARE

NAME = "prefill_share"
TITLE = "Share of the prefill by output tokens"
SECTION = "output"


def needs(table: pd.DataFrame) -> str | None:
    """A generation with its phases."""
    runs = decode_runs.decode(table)
    return None if runs[SHARE.column].notna().any() else "no generation of two tokens or more was measured"


def draw(table: pd.DataFrame) -> Figure:
    """Draw prefill and decode as parts of 100 %, with the interval over photographs at their border."""
    shares = decode_runs.by_length(decode_runs.decode(table), SHARE)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=3.8)
        x = np.arange(len(shares))
        value = 100 * shares["value"].to_numpy(dtype=np.float64)
        prefill, decode = style.look_of(PREFILL_SUM), style.look_of(DECODE)
        axes.bar(x, value, 0.72, linewidth=0, **style.filled(prefill))
        axes.bar(x, 100 - value, 0.72, bottom=value, linewidth=0, **style.filled(decode))
        reach = style.bars(value, 100 * shares["low"], 100 * shares["high"])
        axes.errorbar(x, value, yerr=reach, fmt="none", ecolor=style.INK, elinewidth=1)
        for place, share, above in zip(x.tolist(), value, reach[1], strict=True):
            axes.text(
                place,
                min(share + above + 2.5, 92),
                f"{significant(share, 2)} %",
                ha="center",
                va="bottom",
                fontsize=7.5,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.9, "pad": 1},
            )
        axes.set_xticks(x, [f"{tokens:,}" for tokens in shares["output_tokens"]])
        axes.set_xlim(-0.6, len(x) - 0.4)
        axes.set_ylim(0, 100)
        axes.set_xlabel("output tokens")
        axes.set_ylabel("share of prefill + decode (%)")
        axes.grid(visible=False)
        last = float(value[-1])
        parts = [(last / 2, PREFILL_SUM.label, prefill), (50 + last / 2, DECODE.label, decode)]
        style.label_ends(axes, parts, bars=True)
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say from what to what the share falls."""
    runs = decode_runs.decode(table)
    shares = decode_runs.by_length(runs, SHARE)
    ratio = decode_runs.by_length(runs, OF_DECODE)
    first, last = shares.iloc[0], shares.iloc[-1]
    text = (
        f"At {first['output_tokens']} output tokens the prefill is {percent(first['value'])} of the time "
        f"({percent(ratio.iloc[0]['value'])} of the decode time)"
    )
    if len(shares) > 1:
        text += (
            f", at {last['output_tokens']:,} it is {percent(last['value'])} "
            f"({percent(ratio.iloc[-1]['value'])} of the decode time)"
        )
    return text + ". Medians over images; bars at the border are their 95 % intervals."
