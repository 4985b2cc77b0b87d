"""Time to first token at a server by vision tokens, a stack of everything that a client waits for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import prefill_cells
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import style
from vlmeter.figures.registry import NOT_ASKED
from vlmeter.numbers.units import duration, percent
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import OUTSIDE, PLAIN_WALL, QUANTITIES, WAITED

NAME = "first_token_by_tokens"
TITLE = "What a client waits for until the first token"
SECTION = "vision"


def cells_of(table: pd.DataFrame) -> pd.DataFrame:
    """Cells of a server, the median over images with as many vision tokens and crops."""
    cells = prefill_cells.vision_cells(table)
    if not prefill_cells.is_served(cells):
        return cells.iloc[:0]
    numbers = [*(quantity.column for quantity in WAITED), *PLAIN_WALL.columns]
    return cells.groupby(["vision_tokens", "crops"], as_index=False)[numbers].median()


def needs(table: pd.DataFrame) -> str | None:
    """A cell that a server was asked for."""
    return None if len(cells_of(table)) else NOT_ASKED


def draw(table: pd.DataFrame) -> Figure:
    """Draw a bar per number of vision tokens, stacked in the order in which a client prefill_cells."""
    data = cells_of(table)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.4)
        x, width = style.beside(data["vision_tokens"].to_numpy(dtype=np.float64))
        parts = [quantity for quantity in WAITED if data[quantity.column].notna().any()]
        style.stack(axes, data, x, width, parts=parts, of="one first token")
        style.token_axis(axes, "vision tokens (counted by the server)", at=data["vision_tokens"])
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say what the longest wait is made of, and what part of all is outside the model."""
    cells = prefill_cells.vision_cells(table)
    last = cells.dropna(subset=[PLAIN_WALL.column]).iloc[-1]
    sentences = [
        "From the first byte sent to the first token, as the client sees it.",
        f"At {last['vision_tokens']:,} vision tokens it takes {duration(last[PLAIN_WALL.column])}.",
    ]
    share = prefill_cells.outside_share(cells)
    if isinstance(share, Unknown):
        return " ".join([*sentences, f"What of it is the model cannot be told: {share.reason}."])
    shares = prefill_cells.wait_shares(cells).sort_values("median_fraction", ascending=False)
    top = shares.iloc[0]
    sentences.append(
        f"{with_interval(share, 'fraction')} is {OUTSIDE.label}: {OUTSIDE.words}. The largest part is "
        f"{QUANTITIES[str(top['phase'])].noun}, with {percent(top['median_fraction'])} (median over the image sizes)."
    )
    return " ".join(sentences)
