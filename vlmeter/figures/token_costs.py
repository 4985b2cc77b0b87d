"""What one more token costs, by what kind of token it is."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import flops, prefill_cells
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import style
from vlmeter.numbers.units import significant
from vlmeter.numbers.words import with_interval

NAME = "token_costs"
TITLE = "What one more token costs"
SECTION = "flops"


def needs(table: pd.DataFrame) -> str | None:
    """A cost that is positive: two kinds of token, to compare."""
    found = flops.token_costs(table)
    if isinstance(found, Unknown):
        return found.reason
    if sum(cost.cost.value > 0 for cost in found.costs) < 2:
        return "fewer than two kinds of token have a cost that is seen"
    return None


def _shown(table: pd.DataFrame) -> list[flops.TokenCost]:
    found = flops.token_costs(table)
    assert not isinstance(found, Unknown)
    return [cost for cost in found.costs if cost.cost.value > 0]


def draw(table: pd.DataFrame) -> Figure:
    """Draw every cost with its interval on a logarithmic axis, and how many of the cheapest token it buys."""
    costs = _shown(table)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=1.5 + 0.45 * len(costs))
        axes.set_xscale("log")
        values = [cost.cost.value for cost in costs]
        ends = [end for cost in costs for end in (cost.cost.low, cost.cost.high) if end > 0]
        low, high = min([*values, *(end for end in ends if end > min(values) / 10)]), max([*values, *ends])
        axes.set_xlim(low / 1.8, high * 1.8)
        axes.set_ylim(-0.6, len(costs) - 0.4)
        places = np.arange(len(costs))[::-1]
        cheapest = min(values)
        for place, cost in zip(places, costs, strict=True):
            colour = style.colour_of(cost.quantity)
            reach = style.bars([cost.cost.value], [max(cost.cost.low, low / 10)], [cost.cost.high])
            axes.plot([axes.get_xlim()[0], cost.cost.value], [place, place], color=colour, linewidth=6, alpha=0.25)
            axes.errorbar(
                [cost.cost.value], [place], xerr=reach, fmt="o", markersize=6, color=colour, elinewidth=1.4, capsize=3
            )
            times = cost.cost.value / cheapest
            said = with_interval(cost.cost, "ms") + (
                f"  =  {significant(times, 2)} x the cheapest" if times > 1 else ""
            )
            left = math.log(cost.cost.value) < sum(map(math.log, axes.get_xlim())) / 2
            axes.annotate(
                said,
                (cost.cost.value, place),
                xytext=(0, 9),
                textcoords="offset points",
                fontsize=7.5,
                ha="left" if left else "right",
            )
        axes.set_yticks(places, [f"{cost.label}\n({cost.clock})" for cost in costs])
        axes.set_ylabel("one more token")
        axes.set_xlabel("time that it costs (ms)")
        axes.grid(axis="y", visible=False)
        style.log_axis(axes.xaxis)
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Give every cost, and how many vision tokens an output token buys."""
    found = flops.token_costs(table)
    assert not isinstance(found, Unknown)
    sentences = []
    for cost in found.costs:
        seen = "" if not cost.cost.low <= 0 else ", which is not told from nothing"
        sentences.append(f"{cost.label} {with_interval(cost.cost, 'ms')} of {cost.clock}{seen}")
    said = "; ".join(sentences)
    text = f"{said[0].upper()}{said[1:]}. A vision token brings its share of the crops along; a text token does not."
    if not math.isnan(found.output_over_vision.value):
        text += f" One output token costs as much as {with_interval(found.output_over_vision, '')} vision tokens."
    if (why := prefill_cells.cost_clock(prefill_cells.vision_cells(table)).why) and "vision_token" in found:
        text += f" {why[0].upper()}{why[1:]}."
    return text
