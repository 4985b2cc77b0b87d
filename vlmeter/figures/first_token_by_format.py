"""Time to first token at a server by the bytes of the picture's file, one line per image."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vlmeter.analysis import encodings, prefill_cells
from vlmeter.analysis.reading import estimate_of
from vlmeter.figures import style
from vlmeter.figures.registry import NOT_ASKED
from vlmeter.figures.side_by_side import MARKS, PALETTE, label_lines
from vlmeter.figures.style import Look
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.units import duration, size
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import PLAIN_WALL, SERVER_INPUTS, UPLOAD

NAME = "first_token_by_format"
TITLE = "Time to first token by the picture's file"
SECTION = "vision"


def needs(table: pd.DataFrame) -> str | None:
    """An image that a server was sent in two formats."""
    return None if len(encodings.sent_files(table)) else NOT_ASKED


def draw(table: pd.DataFrame) -> Figure:
    """Draw one line per image over the bytes of its files, and a mark per format."""
    data = encodings.sent_files(table)
    names = data.sort_values("image_quality", na_position="first")["encoding"].unique()
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.4)
        ends = {}
        for _, rows in data.groupby("image", sort=False):
            x, y = _kib(rows), rows[PLAIN_WALL.column].to_numpy(dtype=np.float64)
            axes.plot(x, y, color=style.MUTED, linewidth=0.9, zorder=1)
            last = rows.iloc[-1]
            ends[f"{last['width_px']} x {last['height_px']} px"] = (float(x[-1]), float(y[-1]))
        handles = []
        for name, colour, mark in zip(names, cycle(PALETTE), cycle(MARKS), strict=False):
            rows = data[data["encoding"] == name]
            style.points(axes, _kib(rows), rows, PLAIN_WALL, fmt=mark, markersize=5, color=colour, zorder=2)
            handles.append(Line2D([], [], linestyle="", marker=mark, color=colour, label=name))
        axes.set_xscale("log")
        style.log_axis(axes.xaxis)
        style.from_zero(axes)
        axes.set_xlabel("the picture's file as it is sent (KiB)")
        axes.set_ylabel("from the first byte sent to the first token (ms)")
        style.title(axes, TITLE, table)
        figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), handletextpad=0.1)
        figure.draw_without_rendering()  # labels are placed by the limits and the size that it has in the end
        label_lines(axes, ends, dict.fromkeys(ends, Look(style.MUTED, "", "-")))
    return figure


def _kib(rows: pd.DataFrame) -> Array:
    return rows["image_bytes"].to_numpy(dtype=np.float64) / 1024


def caption(table: pd.DataFrame) -> str:
    """Say what the largest image costs as its largest file and as its smallest, and what of it the way in is."""
    data = encodings.sent_files(table)
    rows = data[data["image"] == data["image"].iloc[-1]]
    small, large = rows.iloc[0], rows.iloc[-1]
    ratio = prefill_cells.over(estimate_of(large, PLAIN_WALL), estimate_of(small, PLAIN_WALL))
    sentences = [
        "A line joins the files of one image: as many pixels, crops and tokens, other bytes. Making the file is in "
        "none of the times.",
        f"At {large['width_px']:,} x {large['height_px']:,} px ({large['vision_tokens']:,} vision tokens) the largest "
        f"file, {large['encoding']} with {size(large['image_bytes'])}, takes {duration(large[PLAIN_WALL.column])} to "
        f"the first token. That is {with_interval(ratio, '')} times as long as the smallest, {small['encoding']} with "
        f"{size(small['image_bytes'])}, which takes {duration(small[PLAIN_WALL.column])}.",
    ]
    moved = [
        f"{part.noun} takes {duration(float(small[part.column]))} and {duration(float(large[part.column]))}"
        for part in (UPLOAD, SERVER_INPUTS)
        if not (np.isnan(small[part.column]) or np.isnan(large[part.column]))
    ]
    if moved:
        sentences.append(f"In the smallest and in the largest, {'; '.join(moved)}.")
    return " ".join(sentences)
