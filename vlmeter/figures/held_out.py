"""Requests predicted from a study that had not measured them, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmeter.analysis import held_out, prediction_model
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.runs import runs_of
from vlmeter.analysis.spread import misgivings_of_requests
from vlmeter.figures import style
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import plural
from vlmeter.table.quantities import FIRST_TOKEN, WHOLE_REQUEST, Colour, Quantity

NAME = "held_out"
TITLE = "Predicted and measured, each cell held out"
SECTION = "prediction"

#: Image and quantity of `held_out.held_out`, in the order of the legend: what was held out, colour.
_LOOKS: Mapping[tuple[str, Quantity], tuple[str, Colour]] = {
    ("dummy", FIRST_TOKEN): ("image size", "vermilion"),
    ("photograph", FIRST_TOKEN): ("photograph", "blue"),
    ("photograph", WHOLE_REQUEST): ("photograph", "green"),
}


#: Error in percent of a prediction of no time at all, with a little room: below it, nothing sensible lies.
LOWEST_ERROR = -112.0


def needs(table: pd.DataFrame) -> str | None:
    """Cells enough to hold one of them out."""
    model = prediction_model.learn(table)
    if isinstance(model, Unknown):
        return model.reason
    return None if held_out.can_be_held_out(table, model) else "too few cells were measured to hold one of them out"


def draw(table: pd.DataFrame) -> Figure:
    """Draw predictions with their 95 % intervals over the measured times, and below them their relative errors."""
    found = held_out.held_out(table)
    assert not isinstance(found, Unknown)
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=6.2, ratios=(3, 2))
        unit, name = style.time_unit(float(found["measured_ms"].max()))
        upper.set_xscale("log")
        upper.set_yscale("log")
        measured = found["measured_ms"] / unit
        ends = (float(measured.min()) / 1.5, float(measured.max()) * 1.5)
        upper.plot(ends, ends, color=style.MUTED, linewidth=1, zorder=1)
        lower.axhline(0, color=style.MUTED, linewidth=0.8)
        # a bad fit may predict less than nothing, which a logarithmic axis cannot show
        above_zero = found["predicted_ms"] > 0
        lowest = min(ends[0], float((found.loc[above_zero, "predicted_ms"] / unit).min()) / 1.5)
        for (image, quantity), (left_out, colour) in _LOOKS.items():
            own = found[(found["picture"] == image) & (found["quantity"] == quantity.name)]
            if own.empty:
                continue
            x, own_look = own["measured_ms"] / unit, style.look(colour)
            parts = [own[f"predicted_{part}ms"] / unit for part in ("", "low_", "high_")]
            parts[0] = parts[0].clip(lower=lowest)
            reach = style.bars(parts[0], np.maximum(parts[1], lowest / 10), parts[2])
            look: dict[str, Any] = {
                "fmt": own_look.mark,
                "markersize": 4,
                "color": own_look.colour,
                "elinewidth": 0.9,
                "markeredgewidth": 0,
            }
            drawn = upper.errorbar(
                x, parts[0], yerr=reach, label=f"{quantity.label}, {left_out} held out ({len(own)})", **look
            )
            errors = [100 * (own[f"predicted_{part}ms"] / own["measured_ms"] - 1) for part in ("", "low_", "high_")]
            for bars in (drawn, lower.errorbar(x, errors[0], yerr=style.bars(*errors), **look)):
                for interval in bars.lines[2]:
                    interval.set_alpha(0.35)  # where many lie over one another, the points are still seen
            out = ~own["inside"].to_numpy(dtype=bool)
            lower.scatter(
                x[out], errors[0][out], s=70, facecolors="none", edgecolors=style.INK, linewidths=0.9, zorder=4
            )
        upper.set_xlim(ends)
        upper.set_ylim(lowest, float(max(ends[1], (found["predicted_ms"] / unit).max() * 1.5)))
        _limit_errors(lower, found)
        if not above_zero.all():
            below = plural(int((~above_zero).sum()), "prediction")
            style.note(upper, f"at the lower edge: {below} of less than zero", x=0.98, y=0.05, ha="right", va="bottom")
        for axis in (upper.xaxis, upper.yaxis):
            style.log_axis(axis)
        upper.set_ylabel(f"predicted time ({name})")
        lower.set_ylabel("error of the predicted time (%)")
        lower.set_xlabel(f"measured time ({name})")
        if not found["inside"].all():
            upper.scatter(
                [], [], s=60, facecolors="none", edgecolors=style.INK, linewidths=0.9, label="interval missed"
            )
        upper.legend(
            loc="upper left", title="bars: 95 % intervals of the prediction", alignment="left", title_fontsize=8
        )
        style.title(upper, TITLE, table)
    return figure


def _limit_errors(axes: Axes, found: pd.DataFrame) -> None:
    """Show every error; an interval that reaches far beyond them all is cut off."""
    largest = float((100 * found["error_fraction"].abs()).max())
    reach = 100 * (found["predicted_high_ms"] / found["measured_ms"] - 1).abs()
    top = max(largest, min(float(reach.max()), max(3 * largest, 1.3 * float(reach.median()), 1.0)))
    lowest = float((100 * found["error_fraction"]).min())
    axes.set_ylim(max(-1.15 * top, min(LOWEST_ERROR, 1.15 * lowest)), 1.15 * top)


def caption(table: pd.DataFrame) -> str:
    """Give median error and coverage, quantity by quantity."""
    found = held_out.held_out(table)
    assert not isinstance(found, Unknown)
    sentences = [
        "Every image in turn is left out of the study, predicted from the rest as `vlmeter "
        "predict` does it, and compared with what was measured."
    ]
    for quantity in held_out.PREDICTED:
        worth = held_out.accuracy(found, quantity)
        if isinstance(worth, Unknown):
            continue
        own, name = found[found["quantity"] == quantity.name], quantity.label
        sentences.append(
            f"{name[0].upper()}{name[1:]}: {plural(worth.count, 'prediction')}, {worth.said()} (nominally 95 %); the "
            f"farthest is {percent(float(own['error_fraction'].abs().max()))} off."
        )
    if len(runs_of(table)) > 1:
        sentences.append(f"Both are {held_out.OF_RUNS}.")
    if said := misgivings_of_requests(table):
        sentences.append(f"{said}.")
    return " ".join(sentences)
