"""Crops and tokens as two factors: a plane through all cells, and what it leaves over."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import prefill_cells, reading
from vlmeter.figures import style
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import with_interval

NAME = "two_factors"
TITLE = "Prefill = a crops + b tokens + c"
SECTION = "vision"


def needs(table: pd.DataFrame) -> str | None:
    """Cells in which crops and tokens vary independently."""
    cells = prefill_cells.vision_cells(table)
    fit = prefill_cells.two_factor(cells, prefill_cells.cost_clock(cells).quantity)
    return fit.reason if isinstance(fit, reading.Unknown) else None


def draw(table: pd.DataFrame) -> Figure:
    """Draw measured over fitted time, and below it residuals over prompt tokens, coloured by crops."""
    cells = prefill_cells.vision_cells(table)
    clock = prefill_cells.cost_clock(cells)
    measured, low, high = clock.quantity.columns
    cells = cells.dropna(subset=[measured])
    fit = prefill_cells.two_factor(cells, clock.quantity)
    assert not isinstance(fit, reading.Unknown)
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=6.0, ratios=(3, 2), share_x=False)
        crops = cells["crops"].to_numpy(dtype=np.float64)
        look: dict[str, Any] = {"c": crops, "cmap": "viridis", "s": 22, "zorder": 3, "linewidths": 0}
        ends = [float(min(fit.fitted.min(), cells[measured].min())), float(fit.fitted.max())]
        upper.plot(ends, ends, color=style.MUTED, linewidth=1)
        reach = style.bars(cells[measured], cells[low], cells[high])
        grey: dict[str, Any] = {"fmt": "none", "ecolor": style.MUTED, "elinewidth": 0.8}
        upper.errorbar(fit.fitted, cells[measured], yerr=reach, **grey)
        dots = upper.scatter(fit.fitted, cells[measured], **look)
        upper.set_xlabel(f"fitted {clock.name} (ms)")
        upper.set_ylabel(f"measured {clock.name} (ms)")
        lines = [
            f"a = {with_interval(fit['crop'], 'ms')} per crop",
            f"b = {with_interval(reading.scaled(fit['token'], 1000), 'ms')} per 1,000 tokens",
            f"c = {with_interval(fit['constant'], 'ms')}",
            f"R² = {fit.r_squared:.4f}",
        ]
        style.note(upper, "\n".join(lines))
        tokens = cells["prompt_tokens"].to_numpy(dtype=np.float64)
        lower.axhline(0, color=style.MUTED, linewidth=0.8)
        lower.errorbar(tokens, fit.residuals, yerr=reach, **grey)
        lower.scatter(tokens, fit.residuals, **look)
        style.token_axis(lower, "prompt tokens (vision, special and text tokens)")
        lower.set_ylabel("measured - fitted (ms)")
        bar = figure.colorbar(dots, ax=[upper, lower], shrink=0.6, pad=0.02)
        bar.set_label("crops")
        bar.ax.yaxis.set_major_locator(style.whole_numbers())
        style.title(upper, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Give both costs, and whether the plane is a good description."""
    cells = prefill_cells.vision_cells(table)
    clock = prefill_cells.cost_clock(cells)
    fit = prefill_cells.two_factor(cells, clock.quantity)
    assert not isinstance(fit, reading.Unknown)
    text = (
        f"With crops and tokens varied independently over {fit.count} cells, one more crop costs "
        f"{with_interval(fit['crop'], 'ms')} and 1,000 more prompt tokens cost "
        f"{with_interval(reading.scaled(fit['token'], 1000), 'ms')} of {clock.name}; "
        f"{with_interval(fit['constant'], 'ms')} do not depend on either. The cell that is farthest from the plane is "
        f"{percent(fit.largest_residual_fraction)} away."
    )
    costs = prefill_cells.part_costs(cells)
    if not isinstance(costs.crop, reading.Unknown) and not isinstance(costs.token, reading.Unknown):
        text += (
            f" Each part of the model fitted by itself says {with_interval(costs.crop, 'ms')} per crop (vision side) "
            f"and {with_interval(reading.scaled(costs.token, 1000), 'ms')} per 1,000 tokens (language side); that is "
            "sharper, since crops and tokens grow nearly together."
        )
    return f"{text} {clock.why}." if clock.why else text
