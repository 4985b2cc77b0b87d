"""Histogram of the latency of many requests, with the percentiles that there are enough requests for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import distribution
from vlmeter.figures import style
from vlmeter.numbers.units import duration
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import FIRST_TOKEN, WHOLE_REQUEST

NAME = "latency_histogram"
TITLE = "Latency of many requests"
SECTION = "distribution"

#: Requests that take longer than so many times the last percentile drawn are counted rather than drawn.
DRAWN_UP_TO = 1.6


def needs(table: pd.DataFrame) -> str | None:
    """A handful of requests."""
    return distribution.sample_of(table).too_few


#: Height of the first percentile's line, over the highest bar; each next one is shorter.
FIRST_HEIGHT = 1.5


def _limit(sample: distribution.Sample) -> float:
    """End of the axis."""
    found = distribution.percentiles(*sample.by_run())
    last = [one.high for one in found.values() if one is not None][-1]
    return min(1.03 * float(sample.requests[WHOLE_REQUEST.column].max()), DRAWN_UP_TO * last)


def draw(table: pd.DataFrame) -> Figure:
    """Draw a histogram with percentiles as lines, and below it the time to first token on the same axis."""
    sample = distribution.sample_of(table)
    values = sample.requests[WHOLE_REQUEST.column].to_numpy(dtype=np.float64)
    unit, unit_name = style.time_unit(float(values.max()))
    limit = _limit(sample)
    first = sample.requests[FIRST_TOKEN.column].dropna().to_numpy(dtype=np.float64)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.2)
        bins = np.linspace(0, limit / unit, int(np.clip(np.sqrt(len(values)) * 3, 16, 90)))
        drawn = values[values <= limit] / unit
        look: dict[str, Any] = {"color": style.COLOURS["green"], "alpha": 0.8, "linewidth": 0}
        axes.hist(drawn, bins=bins.tolist(), label=WHOLE_REQUEST.label, **look)
        if len(first):
            axes.hist(
                first[first <= limit] / unit,
                bins=bins.tolist(),
                histtype="step",
                color=style.colour_of(FIRST_TOKEN),
                linewidth=1.4,
                label=FIRST_TOKEN.label,
            )
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top * (FIRST_HEIGHT + 0.04))
        axes.set_xlim(0, limit / unit)
        height = FIRST_HEIGHT
        for fraction, estimate in distribution.percentiles(*sample.by_run()).items():
            if estimate is None:
                continue
            axes.plot([estimate.value / unit] * 2, [0, top * height], color=style.INK, linewidth=1, linestyle="--")
            span = (estimate.low / unit, min(limit, estimate.high) / unit)
            band = axes.axvspan(*span, color=style.INK, alpha=0.08, linewidth=0)
            if height == FIRST_HEIGHT:
                band.set_label("95 % interval of a percentile")
            # a label stands on the side that no later line crosses: lines get shorter to the right
            text = f"P{100 * fraction:.0f} {with_interval(estimate, 'ms')}"
            style.label_line(axes, text, estimate.value / unit, top * height, on_the_left=estimate.value > 0.6 * limit)
            height -= 0.11
        axes.set_xlabel(f"latency ({unit_name})")
        axes.set_ylabel("requests")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center", ncols=3)
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Give the percentiles, why one is missing, and what was left out."""
    sample = distribution.sample_of(table)
    values = sample.requests[WHOLE_REQUEST.column].to_numpy(dtype=np.float64)
    found = distribution.percentiles(*sample.by_run())
    said = ", ".join(f"P{100 * part:.0f} {with_interval(one, 'ms')}" for part, one in found.items() if one is not None)
    text = f"{plural(sample.size, 'request')}, each measured once from the picture to the last token: {said}."
    for fraction, estimate in found.items():
        if estimate is None:
            text += f" {distribution.too_few(fraction, sample.size)}."
    beyond = int((values > _limit(sample)).sum())
    if beyond:
        text += f" {plural(beyond, 'request')}, up to {duration(float(values.max()))}, lie beyond the right edge."
    return text + distribution.conditions(sample)
