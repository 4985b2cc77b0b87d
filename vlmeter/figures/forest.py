"""The ratios of a comparison, cell by cell with their intervals, the slowest on top, and beside them their mean.

Not one of the registry's figures: those are of one table, this is of two.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from vlmeter.compare.comparison import TOTAL_NAME, Comparison, Effect, QuantityComparison
from vlmeter.compare.rendering import VERDICTS, change, interval, ordered, pair_name
from vlmeter.figures import style
from vlmeter.numbers.words import plural

#: Verdict -> colour and mark: told apart without colours as well.
MARKS = {
    "slower": ("#D55E00", ">"),
    "faster": ("#0072B2", "<"),
    "same": ("#009E73", "s"),
    "cannot tell": ("#999999", "o"),
}

#: Rows of one panel; more cells go into a panel beside it.
ROWS = 70

#: Inches that a row takes, by the number of rows of the tallest panel.
_ROW_IN = ((15, 0.24), (30, 0.19), (ROWS, 0.145))

_PANEL_WIDTH_IN = 4.4


def draw(comparison: Comparison) -> Figure:
    """Draw the total of every pair of subjects, one below the other."""
    totals = comparison.of(TOTAL_NAME)
    heights, columns = [], 1
    for found in totals:
        panels = math.ceil(len(found.cells) / ROWS)
        columns = max(columns, panels)
        rows = math.ceil(len(found.cells) / panels)
        heights.append(rows * next(height for most, height in _ROW_IN if rows <= most) + 1.5)
    with style.styled():
        width = max(style.WIDTH_IN, _PANEL_WIDTH_IN * columns)
        figure = Figure(figsize=(width, sum(heights)), layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(len(totals), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
        for row, found in zip(grid, totals, strict=True):
            _draw_pair(list(row), found, comparison)
        _legend(figure, {cell.effect.verdict for found in totals for cell in found.cells})
    return figure


def _draw_pair(panels: Sequence[Axes], found: QuantityComparison, comparison: Comparison) -> None:
    cells = ordered(found.cells)
    count = math.ceil(len(cells) / ROWS)
    rows = math.ceil(len(cells) / count)
    chunks = [cells[start : start + rows] for start in range(0, len(cells), rows)]
    overall = found.overall[0].effect
    ends = _ends([cell.effect for cell in cells], overall, comparison.margin_fraction)
    for axes, chunk in zip_longest(panels, chunks):
        if chunk is None:
            axes.set_axis_off()
            continue
        axes.axvspan(-100 * comparison.margin_fraction, 100 * comparison.margin_fraction, color="#f1f1f1", linewidth=0)
        axes.axvline(0, color=style.MUTED, linewidth=0.8)
        _overall(axes, overall)
        for place, cell in enumerate(chunk):
            _point(axes, place, cell.effect, size=4.5 if rows <= 30 else 3.5)
        axes.set_yticks(range(len(chunk)), [cell.cell_id for cell in chunk])
        axes.tick_params(axis="y", labelsize=8 if rows <= 15 else 6.5, length=0)
        axes.set_ylim(rows - 0.4, -0.6)
        axes.set_xlim(*ends)
        axes.xaxis.set_major_locator(MaxNLocator(7))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:+g} %" if value else "0"))
        axes.set_xlabel("change of latency from A to B")
        axes.grid(axis="y", visible=False)
    title = panels[0]
    said = f"{pair_name(found)}, {plural(len(cells), 'cell')}, mean {change(overall)} ({interval(overall)})"
    style.under_title(title, f"B against A: {overall.verdict}", said)


def _ends(effects: Sequence[Effect], overall: Effect, margin_fraction: float) -> tuple[float, float]:
    """Ends of the x axis, in percent: every ratio, nearly all intervals whole, and the margin."""
    ratios = [effect.ratio - 1 for effect in (*effects, overall)]
    low, high = min(*ratios, -1.2 * margin_fraction), max(*ratios, 1.2 * margin_fraction)
    known = [effect for effect in (*effects, overall) if not math.isnan(effect.low)]
    if known:
        low = min(low, float(np.quantile([effect.low - 1 for effect in known], 0.05)))
        high = max(high, float(np.quantile([effect.high - 1 for effect in known], 0.95)))
    room = 0.04 * (high - low)
    return 100 * (low - room), 100 * (high + room)


def _overall(axes: Axes, overall: Effect) -> None:
    """The mean as a line, its interval as a band, behind the cells."""
    colour = MARKS[overall.verdict][0]
    axes.axvline(100 * (overall.ratio - 1), color=colour, linewidth=1, linestyle="--")
    if not math.isnan(overall.low):
        axes.axvspan(100 * (overall.low - 1), 100 * (overall.high - 1), color=colour, alpha=0.14, linewidth=0)


def _point(axes: Axes, place: int, effect: Effect, *, size: float) -> None:
    colour, mark = MARKS[effect.verdict]
    value = 100 * (effect.ratio - 1)
    if not math.isnan(effect.low):
        axes.plot([100 * (effect.low - 1), 100 * (effect.high - 1)], [place, place], color=colour, linewidth=1.1)
    face = "white" if effect.verdict == "cannot tell" else colour
    axes.plot([value], [place], mark, color=colour, markersize=size, markerfacecolor=face, markeredgewidth=0.9)


def _legend(figure: Figure, seen: set[str]) -> None:
    handles = [
        Line2D(
            [], [], color=MARKS[verdict][0], marker=MARKS[verdict][1], linewidth=1.1, markersize=5, label=verdict,
            markerfacecolor="white" if verdict == "cannot tell" else MARKS[verdict][0],
        )
        for verdict in VERDICTS
        if verdict in seen
    ]  # fmt: skip
    handles.append(Line2D([], [], color=style.MUTED, linestyle="--", linewidth=1, label="mean, its interval shaded"))
    handles.append(Line2D([], [], color="#e3e3e3", linewidth=6, label="margin of the same"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), columnspacing=1.4, handletextpad=0.7)
