"""Time to first token by image size, preprocessing included: a bar per size, stacked by phase."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vlmeter.analysis import prefill_cells, reading, waits
from vlmeter.figures import style
from vlmeter.figures.registry import NOT_ASKED
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import FIRST_TOKEN, INPUTS_WALL, QUANTITIES

NAME = "first_token_by_size"
TITLE = "Time to first token (TTFT) by image size"
SECTION = "first_token"

#: Sizes that a figure has room for.
MOST_SIZES = 10


def needs(table: pd.DataFrame) -> str | None:
    """An image size with a time to first token."""
    cells = prefill_cells.vision_cells(table)
    if cells.empty:
        return NOT_ASKED
    return (
        None if len(waits.by_size(cells)) else "no image of an exact size was measured together with its preprocessing"
    )


def draw(table: pd.DataFrame) -> Figure:
    """Draw a row per image size, its parts in their order, and the whole with its interval at the end."""
    cells = prefill_cells.vision_cells(table)
    sizes = waits.spread(waits.by_size(cells), MOST_SIZES)
    parts = [part for part in waits.parts_of(cells) if sizes[part.column].notna().any()]
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=1.75 + 0.36 * len(sizes))
        rows = np.arange(len(sizes))
        end = np.zeros(len(sizes))
        whole, low, high = (sizes[column].to_numpy(dtype=np.float64) for column in FIRST_TOKEN.columns)
        axes.set_xlim(0, 1.02 * float(np.nanmax(np.fmax(whole, high))) * 1.36)
        keys = []
        for part in parts:
            length = sizes[part.column].fillna(0.0).to_numpy(dtype=np.float64)
            bar = style.filled(style.look_of(part), hatch=style.BEFORE if part is INPUTS_WALL else None)
            axes.barh(rows, length, 0.72, left=end, linewidth=0.4, **bar)
            keys.append(Patch(label=part.label, **bar))
            end = end + length
        reach = style.bars(whole, low, high)
        axes.errorbar(whole, rows, xerr=reach, fmt="D", markersize=3.2, color=style.INK, elinewidth=1)
        for row, size in zip(rows, sizes.to_dict("records"), strict=True):
            found = reading.estimate_of(size, FIRST_TOKEN)
            axes.annotate(
                with_interval(found, "ms"),
                (max(end[row], np.nanmax([found.value, found.high])), row),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
            )
        named = [
            f"{int(size['width_px'])} x {int(size['height_px'])}\n{int(size['vision_tokens']):,} vision tokens"
            for size in sizes.to_dict("records")
        ]
        axes.set_yticks(rows, named)
        axes.tick_params(axis="y", labelsize=7)
        axes.set_ylim(len(sizes) - 0.45, -0.55)
        axes.set_ylabel("image (px)")
        axes.set_xlabel("time from the opened picture to the first token (ms)")
        axes.grid(axis="y", visible=False)
        figure.legend(handles=keys, loc="outside lower center", ncols=min(len(keys), 4), handlelength=1.6)
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say how long the smallest and the largest image take, and what takes most of it."""
    cells = prefill_cells.vision_cells(table)
    sizes = waits.by_size(cells)
    parts = [part for part in waits.parts_of(cells) if sizes[part.column].notna().any()]
    ends = [sizes.iloc[0], sizes.iloc[-1]] if len(sizes) > 1 else [sizes.iloc[0]]
    said = "; ".join(
        f"{int(one['width_px'])} x {int(one['height_px'])} px "
        f"{with_interval(reading.estimate_of(one, FIRST_TOKEN), 'ms')}"
        for one in ends
    )
    shares = {part.name: float((sizes[part.column] / sizes[FIRST_TOKEN.column]).median()) for part in parts}
    top = max(shares, key=lambda name: shares[name])
    over = f" in the median over {len(sizes)} sizes" if len(sizes) > 1 else ""
    text = (
        f"Time to first token, from the opened picture on: {said}. The largest part is "
        f"{QUANTITIES[top].noun} ({percent(shares[top])}{over})"
    )
    if top != INPUTS_WALL.name and not np.isnan(shares.get(INPUTS_WALL.name, np.nan)):
        text += f"; preprocessing and copy to the device are {percent(shares[INPUTS_WALL.name])}"
    text += ". The diamond is the whole without marks, with its 95 % interval."
    if len(sizes) > MOST_SIZES:
        text += f" Drawn are {MOST_SIZES} of {len(sizes)} sizes; the table has all."
    return text
