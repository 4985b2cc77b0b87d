"""Share of requests that are done within a time; and, on a logarithmic scale, of those that are not."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmeter.analysis import distribution
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import style
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import MIN_SAMPLES_FOR_PERCENTILE, Estimate
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import DECODE, FIRST_TOKEN, WHOLE_REQUEST

NAME = "latency_cdf"
TITLE = "Requests done within a time"
SECTION = "distribution"

#: What is drawn.
CURVES = (WHOLE_REQUEST, FIRST_TOKEN, DECODE)


def needs(table: pd.DataFrame) -> str | None:
    """As a histogram."""
    return distribution.sample_of(table).too_few


def _curves(requests: pd.DataFrame) -> list[tuple[str, style.Look, Array]]:
    found = []
    for quantity in CURVES:
        values = np.sort(requests[quantity.column].dropna().to_numpy(dtype=np.float64))
        if len(values) >= MIN_SAMPLES_FOR_PERCENTILE[0.5] and values[-1] > 0:
            found.append((quantity.label, style.look_of(quantity), values))
    return found


def draw(table: pd.DataFrame) -> Figure:
    """Draw the distribution function with its percentiles, and below it the share that takes longer."""
    sample = distribution.sample_of(table)
    curves = _curves(sample.requests)
    unit, unit_name = style.time_unit(max(float(values[-1]) for _, _, values in curves))
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=6.2, ratios=(3, 2))
        for name, look, values in curves:
            done = np.arange(1, len(values) + 1) / len(values)
            upper.step(values / unit, 100 * done, where="post", color=look.colour, linestyle=look.dash, label=name)
            longer = 100 * (1 - done + 1 / len(values))
            lower.step(values / unit, longer, where="pre", color=look.colour, linestyle=look.dash)
        totals = curves[0][2]
        lower.set_xlim(0, 1.05 * max(float(values[-1]) for _, _, values in curves) / unit)
        for fraction, estimate in distribution.percentiles(*sample.by_run()).items():
            if estimate is not None:
                _mark(upper, 100 * fraction, estimate, unit)
        upper.set_ylim(0, 108)  # a label may stand above the last percentile
        upper.set_yticks(range(0, 101, 20))
        upper.set_ylabel("requests done (%)")
        upper.legend(loc="lower right")
        lower.set_yscale("log")
        lower.set_ylim(100 / len(totals) * 0.8, 120)
        style.log_axis(lower.yaxis)
        lower.set_ylabel("requests that take longer (%)")
        lower.set_xlabel(f"latency ({unit_name})")
        style.title(upper, TITLE, table)
    return figure


def _mark(axes: Axes, percent_done: float, estimate: Estimate, unit: float) -> None:
    reach = style.bars([estimate.value / unit], [estimate.low / unit], [estimate.high / unit])
    axes.errorbar(
        [estimate.value / unit], [percent_done], xerr=reach, fmt="o", markersize=4, color=style.INK, elinewidth=1.6
    )
    # beside the interval's end, and not across it; where the axis ends there, above it, where no curve runs
    high = float(np.nan_to_num(estimate.high, nan=estimate.value)) / unit
    above = high > 0.93 * axes.get_xlim()[1]
    axes.annotate(
        f"P{percent_done:.0f}",
        (high, percent_done),
        textcoords="offset points",
        xytext=(0, 3) if above else (5, 0),
        ha="right" if above else "left",
        va="bottom" if above else "center",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )


def caption(table: pd.DataFrame) -> str:
    """Say how far apart middle and tail are."""
    sample = distribution.sample_of(table)
    ratio = distribution.tail_over_middle(*sample.by_run())
    text = f"{plural(sample.size, 'request')}; points are percentiles of the whole request with their 95 % intervals."
    if isinstance(ratio, Unknown):
        return f"{text} {ratio.reason}."
    return f"{text} One in a hundred takes {with_interval(ratio, '')} times as long as the middle one, or longer."
