"""Prefill latency against crops, stacked by phase: the other of the two axes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import prefill_cells
from vlmeter.figures import style
from vlmeter.numbers.units import duration
from vlmeter.numbers.words import plural
from vlmeter.table.quantities import PHASES, PLAIN_WALL, PREFILL_SUM, VISION

NAME = "vision_by_crops"
TITLE = "Prefill latency by crops and phase"
SECTION = "vision"


def needs(table: pd.DataFrame) -> str | None:
    """A finished vision-token cell whose image was cut."""
    cells = prefill_cells.vision_cells(table).dropna(subset=[PREFILL_SUM.column])
    if cells.empty:
        return "no vision-token cell was measured"
    return None if cells["crops"].max() > 1 else "no image was cut into crops"


def groups(table: pd.DataFrame) -> pd.DataFrame:
    """Median phases of all cells with the same crops; the ends of plain are its smallest and largest cell."""
    cells = prefill_cells.vision_cells(table).dropna(subset=[PREFILL_SUM.column])
    by_crops = cells.groupby("crops", as_index=False)
    numbers = [phase.column for phase in PHASES] + [PLAIN_WALL.column]
    data = by_crops[numbers].median()
    data[PLAIN_WALL.low] = by_crops[PLAIN_WALL.column].min()[PLAIN_WALL.column]
    data[PLAIN_WALL.high] = by_crops[PLAIN_WALL.column].max()[PLAIN_WALL.column]
    return data


def draw(table: pd.DataFrame) -> Figure:
    """Draw one bar per crop count."""
    data = groups(table)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.2)
        x = data["crops"].to_numpy(dtype=np.float64)
        marks = "diamonds: total without marks, wall time"
        spread = (data[PLAIN_WALL.high] > data[PLAIN_WALL.low]).any()
        style.stack(axes, data, x, 0.72, marks=f"{marks}, shortest to longest cell" if spread else marks)
        axes.set_xticks(x, [f"{count:.0f}" for count in x])
        axes.set_xlabel("crops that the vision encoder takes (the global one included)")
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say how far the vision side grows, and how far cells of one crop count are apart."""
    data = groups(table)
    first, last = data.iloc[0], data.iloc[-1]
    vision = data[[part.column for part in VISION.parts]].sum(axis=1, skipna=False)
    if len(data) == 1:
        return f"One crop count, {int(first['crops'])}: the vision side takes {duration(float(vision.iloc[0]))}."
    apart = (data[PLAIN_WALL.high] - data[PLAIN_WALL.low]).to_numpy(dtype=np.float64)
    widest = int(apart.argmax())
    return (
        f"From {plural(int(first['crops']), 'crop')} to {int(last['crops'])} the vision side (encoder and projector) "
        f"takes {duration(float(vision.iloc[0]))} to {duration(float(vision.iloc[-1]))}. Whole prefills with the same "
        f"crops and other tokens are up to {duration(float(apart[widest]))} apart (at "
        f"{int(data['crops'].iloc[widest])} crops)."
    )
