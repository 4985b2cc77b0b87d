"""Prefill latency against vision tokens, stacked by phase.

Tokens are not the only thing that varies: cells with the same tokens and unlike crops stand side by side.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import prefill_cells
from vlmeter.figures import style
from vlmeter.numbers.units import duration, duration_range, percent
from vlmeter.table.quantities import PHASES, PLAIN_WALL, PREFILL_SUM, QUANTITIES

NAME = "vision_by_tokens"
TITLE = "Prefill latency by vision tokens and phase"
SECTION = "vision"


def needs(table: pd.DataFrame) -> str | None:
    """Any finished vision-token cell will do."""
    cells = prefill_cells.vision_cells(table)
    return None if cells[PREFILL_SUM.column].notna().any() else "no vision-token cell was measured"


def groups(table: pd.DataFrame) -> pd.DataFrame:
    """Median phases of all cells with the same vision tokens and crops, in that order."""
    cells = prefill_cells.vision_cells(table).dropna(subset=[PREFILL_SUM.column])
    numbers = [*(phase.column for phase in PHASES), *PLAIN_WALL.columns]
    return cells.groupby(["vision_tokens", "crops"], as_index=False)[numbers].median()


def draw(table: pd.DataFrame) -> Figure:
    """Draw one bar per token and crop count; bars of one token count stand side by side."""
    data = groups(table)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.4)
        tokens = data["vision_tokens"].to_numpy(dtype=np.float64)
        x, width = style.beside(tokens)
        style.stack(axes, data, x, width, crops=data["crops"].tolist())
        label = "vision tokens (counted in the model's inputs)"
        repeats = len(np.unique(tokens)) < len(tokens)
        style.token_axis(axes, f"{label}; bars of one count stand side by side" if repeats else label, at=tokens)
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say how far latency grows, what dominates, and what equal tokens with unequal crops show."""
    cells = prefill_cells.vision_cells(table).dropna(subset=[PREFILL_SUM.column])
    first, last = cells.iloc[0], cells.iloc[-1]
    shares = prefill_cells.phase_shares(cells).sort_values("median_fraction", ascending=False)
    top = shares.iloc[0]
    sentences = []
    if len(cells) > 1:
        sentences.append(
            f"From {first['vision_tokens']:,} to {last['vision_tokens']:,} vision tokens the prefill takes "
            f"{duration_range(first[PLAIN_WALL.column], last[PLAIN_WALL.column])} of wall time."
        )
    else:
        sentences.append(
            f"One cell: {first['vision_tokens']:,} vision tokens, {duration(first[PLAIN_WALL.column])} of wall time."
        )
    least, most = percent(top["smallest_fraction"]), percent(top["largest_fraction"])
    share = least if least == most else f"{least} to {most}"
    sentences.append(f"The largest phase is {QUANTITIES[str(top['phase'])].label}, with {share} of the sum of phases.")
    repeated = prefill_cells.repeated_counts(cells)
    if repeated:
        counts = " and ".join(f"{tokens:,}" for tokens in repeated)
        sentences.append(
            f"{counts} vision tokens are each reached with more than one number of crops: where those bars differ, it "
            "is not for their vision tokens."
        )
    return " ".join(sentences)
