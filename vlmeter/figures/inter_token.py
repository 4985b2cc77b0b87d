"""Distribution of the time from one token to the next, with the percentiles that there are enough steps for."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import step_times
from vlmeter.figures import style
from vlmeter.numbers.medians import MIN_SAMPLES_FOR_PERCENTILE
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import INTER_TOKEN

NAME = "inter_token"
TITLE = "Inter-token latency"
SECTION = "output"

#: Steps beyond this percentile are counted rather than drawn, or they would squeeze the rest.
DRAWN_FRACTION = 0.995

#: Height of the first percentile's line, over the highest bar; each next one is shorter.
FIRST_HEIGHT = 1.28


def needs(table: pd.DataFrame) -> str | None:
    """A handful of steps."""
    count, least = len(step_times.inter_token(table)), MIN_SAMPLES_FOR_PERCENTILE[0.5]
    return None if count >= least else f"there are {count} decode steps, and a distribution needs {least}"


def draw(table: pd.DataFrame) -> Figure:
    """Draw a histogram with percentiles as lines."""
    samples = step_times.inter_token(table)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.0)
        limit = float(np.quantile(samples, DRAWN_FRACTION))
        drawn = samples[samples <= limit]
        bins = int(np.clip(np.sqrt(len(drawn)) * 2, 10, 80))
        axes.hist(drawn, bins=bins, color=style.colour_of(INTER_TOKEN), alpha=0.75, linewidth=0)
        top = axes.get_ylim()[1]
        axes.set_ylim(0, top * (FIRST_HEIGHT + 0.02))
        height = FIRST_HEIGHT
        for fraction, estimate in step_times.inter_token_percentiles(*step_times.inter_token_by_run(table)).items():
            if estimate is None:
                continue
            axes.plot([estimate.value] * 2, [0, top * height], color=style.INK, linewidth=1, linestyle="--")
            band = axes.axvspan(estimate.low, estimate.high, color=style.INK, alpha=0.1, linewidth=0)
            if height == FIRST_HEIGHT:
                band.set_label("95 % interval of a percentile")
            right = estimate.value > (drawn.min() + max(limit, estimate.value)) / 2
            text = f"P{fraction * 100:.0f} {with_interval(estimate, 'ms')}"
            style.label_line(axes, text, estimate.value, top * height, on_the_left=right)
            height -= 0.09
        axes.set_xlabel("time from one token to the next (ms)")
        axes.set_ylabel("decode steps")
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower center")
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Give the percentiles, and why one is missing."""
    samples = step_times.inter_token(table)
    found = step_times.inter_token_percentiles(*step_times.inter_token_by_run(table))
    parts = [f"P{fraction * 100:.0f} {with_interval(e, 'ms')}" for fraction, e in found.items() if e is not None]
    text = f"{len(samples):,} decode steps of the longest runs, all rounds: {', '.join(parts)}."
    beyond = int((samples > np.quantile(samples, DRAWN_FRACTION)).sum())
    if beyond:
        text += f" {beyond:,} of them, up to {samples.max():,.3g} ms, lie beyond the figure's right edge."
    for fraction, estimate in found.items():
        if estimate is None:
            text += f" P{fraction * 100:.0f} is left out: it needs {MIN_SAMPLES_FOR_PERCENTILE[fraction]} steps."
    return text + " Neighbouring steps resemble each other, so the intervals are rather too narrow."
