"""Crops and tokens as two factors: what the price of each explains of the whole prefill, and what is left over."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import prefill_cells
from vlmeter.analysis.answers import Answers, answers_of, estimate_in
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import style
from vlmeter.numbers.intervals import Fit
from vlmeter.numbers.units import percent, r_squared
from vlmeter.numbers.words import with_interval

NAME = "two_factors"
TITLE = "Prefill = a crops + b tokens + c"
SECTION = "vision"


def needs(table: pd.DataFrame, answers: Answers | None = None) -> str | None:
    """A price of a crop, and one of a token."""
    found = plane(table, answers)
    return found.reason if isinstance(found, Unknown) else None


def plane(table: pd.DataFrame, answers: Answers | None) -> Fit | Unknown:
    """Measured prefills beside what the answers' prices of crops and tokens make of them."""
    answers = answers or answers_of(table)
    costs = prefill_cells.part_costs(prefill_cells.vision_cells(table))
    crop, token = (estimate_in(answers, name) for name in ("crop", "vision_token"))
    return prefill_cells.priced_plane(prefill_cells.vision_cells(table), replace(costs, crop=crop, token=token))


def draw(table: pd.DataFrame, answers: Answers | None = None) -> Figure:
    """Draw measured over priced time, and below it what is left over by prompt tokens, coloured by crops."""
    answers = answers or answers_of(table)
    cells = prefill_cells.vision_cells(table)
    clock = prefill_cells.cost_clock(cells)
    measured, low, high = clock.quantity.columns
    cells = cells.dropna(subset=[measured])
    fit = plane(table, answers)
    assert not isinstance(fit, Unknown)
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
        upper.set_xlabel(f"a crops + b tokens + c, {clock.name} (ms)")
        upper.set_ylabel(f"measured {clock.name} (ms)")
        lines = [
            f"a, {answers['crop'].question}: {answers['crop'].said()}",
            f"b, {answers['vision_token'].question}: {answers['vision_token'].said()}",
            f"c = {with_interval(fit['constant'], 'ms')}",
            f"R² = {r_squared(fit.r_squared)}",
        ]
        style.note(upper, "\n".join(lines))
        tokens = cells["prompt_tokens"].to_numpy(dtype=np.float64)
        lower.axhline(0, color=style.MUTED, linewidth=0.8)
        lower.errorbar(tokens, fit.residuals, yerr=reach, **grey)
        lower.scatter(tokens, fit.residuals, **look)
        style.token_axis(lower, "prompt tokens (vision, special and text tokens)", at=tokens)
        lower.set_ylabel("measured - fitted (ms)")
        bar = figure.colorbar(dots, ax=[upper, lower], shrink=0.6, pad=0.02)
        bar.set_label("crops")
        bar.ax.yaxis.set_major_locator(style.whole_numbers())
        style.title(upper, TITLE, table)
    return figure


def caption(table: pd.DataFrame, answers: Answers | None = None) -> str:
    """Give both prices, and whether they explain the whole."""
    answers = answers or answers_of(table)
    clock = prefill_cells.cost_clock(prefill_cells.vision_cells(table))
    fit = plane(table, answers)
    assert not isinstance(fit, Unknown)
    text = (
        f"{answers['crop'].question.capitalize()} costs {answers['crop'].said()} and "
        f"{answers['vision_token'].question} {answers['vision_token'].said()}, each found on "
        "its own part of the model; with these prices, "
        f"{with_interval(fit['constant'], 'ms')} of a prefill depend on neither ({clock.name}, {fit.count} cells). The "
        f"cell that is farthest from the plane is {percent(fit.largest_residual_fraction)} away."
    )
    told = dict.fromkeys((clock.why, answers["crop"].misgivings(), answers["vision_token"].misgivings()))
    return " ".join([text, *(f"{said[0].upper()}{said[1:]}." for said in told if said)])
