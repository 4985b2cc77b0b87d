"""What makes slow requests slow: shares of what they were, and the requests against what these let one expect."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from vlmeter.analysis import distribution
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import style
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import duration, percent
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import WHOLE_REQUEST

NAME = "latency_tail"
TITLE = "What makes slow requests slow"
SECTION = "distribution"

#: Output lengths that have a colour of their own each; more are a scale.
MOST_STEPS = 8

#: What a bar says, in words that fit beside it.
WORDS: Mapping[str, str] = {**distribution.FACTORS, "rest": "none of these"}


def _explained(table: pd.DataFrame) -> distribution.Explanation | Unknown:
    return distribution.explain(distribution.sample_of(table))


def needs(table: pd.DataFrame) -> str | None:
    """Requests that differ, and enough of them."""
    found = _explained(table)
    return found.reason if isinstance(found, Unknown) else None


def step_colours(count: int) -> ListedColormap:
    """So many colours from dark to light, told apart in grey as well."""
    return ListedColormap(mpl.colormaps["viridis"](np.linspace(0, 0.95, count)))


def draw(table: pd.DataFrame) -> Figure:
    """Draw shares of variance and of the gap as bars; below, measured over expected latency."""
    sample = distribution.sample_of(table)
    found = distribution.explain(sample)
    assert not isinstance(found, Unknown)
    names = [*found.factors, "rest"]
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=7.0, ratios=(2, 3), share_x=False)
        places = np.arange(len(names), dtype=np.float64)
        bars = (
            (
                "gap",
                style.look("vermilion"),
                f"of the gap from the middle to the slowest {percent(found.tail_fraction, 1)}",
            ),
            ("variance", style.look("blue"), "of the variance of latency"),
        )
        for place, (what, look, label) in enumerate(bars):
            shares: Mapping[str, Estimate] = found.gap if what == "gap" else found.variance
            values, low, high = (
                100 * np.array([getattr(shares[name], end) for name in names]) for end in ("value", "low", "high")
            )
            y = places + 0.38 * (place - 0.5)
            upper.barh(y, values, 0.36, label=label, linewidth=0, **style.filled(look))
            upper.errorbar(values, y, xerr=style.bars(values, low, high), fmt="none", ecolor=style.INK, elinewidth=1)
        upper.set_yticks(places, [WORDS[name] for name in names])
        upper.invert_yaxis()
        upper.axvline(0, color=style.MUTED, linewidth=0.8)
        upper.set_xlabel("share accounted for (%)")
        upper.set_ylabel("accounted for by")
        upper.grid(axis="y", visible=False)
        upper.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, borderaxespad=0.4, borderpad=0)
        requests = sample.requests.dropna(subset=[WHOLE_REQUEST.column])
        measured, fitted = requests[WHOLE_REQUEST.column].to_numpy(dtype=np.float64), found.fit.fitted
        unit, unit_name = style.time_unit(float(measured.max()))
        ends = [float(min(fitted.min(), measured.min())) / unit, float(max(fitted.max(), measured.max())) / unit]
        lower.plot(ends, ends, color=style.MUTED, linewidth=1)
        tokens = requests["generated_tokens"].to_numpy(dtype=np.float64)
        lengths = np.unique(tokens)
        # lengths that double would all but one be of nearly one colour: each has a step of its own
        steps = np.searchsorted(lengths, tokens) if len(lengths) <= MOST_STEPS else tokens
        colours = step_colours(len(lengths)) if len(lengths) <= MOST_STEPS else "viridis"
        dots = lower.scatter(fitted / unit, measured / unit, c=steps, cmap=colours, s=14, linewidths=0, zorder=3)
        worst = np.argsort(-measured, kind="stable")[: distribution.SLOWEST]
        lower.scatter(
            fitted[worst] / unit, measured[worst] / unit, s=46, facecolors="none", edgecolors=style.INK, linewidths=0.9
        )
        style.note(lower, f"circled: the {plural(len(worst), 'slowest request').removeprefix('1 ')}")
        lower.set_xlabel(f"expected latency by what the request was ({unit_name})")
        lower.set_ylabel(f"measured latency ({unit_name})")
        bar = figure.colorbar(dots, ax=lower, shrink=0.8, pad=0.02)
        bar.set_label("output tokens")
        bar.ax.yaxis.set_major_locator(style.whole_numbers())
        if len(lengths) <= MOST_STEPS:
            dots.set_clim(-0.5, len(lengths) - 0.5)
            bar.set_ticks(np.arange(len(lengths)).tolist(), labels=[f"{length:,.0f}" for length in lengths])
            bar.ax.minorticks_off()
        style.under_title(upper, TITLE, style.subject_line(table), above_pt=24)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Name the largest share, and what is left over."""
    found = _explained(table)
    assert not isinstance(found, Unknown)
    main = max(found.factors, key=lambda name: found.gap[name].value)
    text = (
        f"The slowest {percent(found.tail_fraction, 1)} of the requests ({found.tail_requests:,}) take "
        f"{with_interval(found.gap_ms, 'ms')} longer than those in the middle. {WORDS[main].capitalize()} account for "
        f"{with_interval(found.gap[main], 'fraction')} of that, and "
        f"{with_interval(found.gap['rest'], 'fraction')} is accounted for by nothing that is known of the requests. "
        f"Together the factors explain {percent(found.fit.r_squared)} of the variance. Intervals of shares are rough: "
        "in simulated studies 91 to 100 of 100 held the truth."
    )
    for reason in found.fixed.values():
        text += f" {reason[0].upper()}{reason[1:]}."
    worst = distribution.slowest(distribution.sample_of(table), 1).iloc[0]
    return f"{text} The slowest request took {duration(float(worst[WHOLE_REQUEST.column]))}."
