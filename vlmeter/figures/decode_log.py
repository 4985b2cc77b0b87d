"""Decode latency against output tokens in log-log, where a linear law is a straight line of slope 1."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import decode_runs, reading
from vlmeter.analysis.answers import Answers, answers_of
from vlmeter.figures import style
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import DECODE

NAME = "decode_log"
TITLE = "Decode latency by output tokens, both axes logarithmic"
SECTION = "output"


def needs(table: pd.DataFrame, answers: Answers | None = None) -> str | None:
    """Two output lengths make a line."""
    law = decode_runs.decode_law(decode_runs.decode(table))
    return law.reason if isinstance(law, reading.Unknown) else None


def draw(table: pd.DataFrame, answers: Answers | None = None) -> Figure:
    """Draw every photograph, the median over them, and the fitted line `k * steps + b`."""
    runs = decode_runs.decode(table)
    law = decode_runs.decode_law(runs)
    assert isinstance(law, decode_runs.DecodeLaw)
    lengths = decode_runs.by_length(runs, DECODE)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.4)
        unit, name = style.time_unit(float(runs[DECODE.column].max()))
        green = style.colour_of(DECODE)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        for direct, group in runs.groupby("direct"):
            axes.plot(
                group["output_tokens"],
                group[DECODE.column] / unit,
                "o",
                markersize=3.5,
                alpha=0.45,
                color=green,
                markerfacecolor=green if direct else "white",
                markeredgewidth=0.8,
            )
        steps = np.geomspace(float(runs["steps"].min()), float(runs["steps"].max()), 200)
        fitted = law.line["per_token"].value * steps + law.line["constant"].value
        good = fitted > 0
        axes.plot(steps[good] + 1, fitted[good] / unit, color=style.INK, linewidth=1.2, zorder=1)
        axes.errorbar(
            lengths["output_tokens"],
            lengths["value"] / unit,
            yerr=style.bars(lengths["value"], lengths["low"], lengths["high"]) / unit,
            fmt="_",
            markersize=11,
            markeredgewidth=1.6,
            color=green,
            elinewidth=1.2,
        )
        style.log_axis(axes.xaxis, at=lengths["output_tokens"])
        style.log_axis(axes.yaxis)
        axes.set_xlabel("output tokens N (the first comes out of the prefill)")
        axes.set_ylabel(f"decode latency ({name})")
        b, slope = law.line["constant"], law.power["slope"]
        token = (answers or answers_of(table))["output_token"]
        lines = [
            "T = k (N - 1) + b",
            f"k, {token.question}: {token.said()}",
            f"b = {with_interval(b, 'ms')}",
            f"log-log slope over N - 1: {with_interval(slope, '')}",
        ]
        style.note(axes, "\n".join(lines))
        style.note(axes, marks(runs), x=0.98, y=0.03, ha="right", va="bottom", color=style.MUTED, fontsize=7)
        style.title(axes, TITLE, table)
    return figure


def marks(runs: pd.DataFrame) -> str:
    """Say what the marks are."""
    parts = ["dots: images"]
    if not runs["direct"].all():
        parts.append("hollow: from the first steps of a longer run")
    parts.append("dashes: median with 95 % interval over images")
    return "; ".join(parts)


def caption(table: pd.DataFrame, answers: Answers | None = None) -> str:
    """Give the fit, the slope and the curvature, and what a slope of 1 does not say."""
    runs = decode_runs.decode(table)
    law = decode_runs.decode_law(runs)
    assert isinstance(law, decode_runs.DecodeLaw)
    token = (answers or answers_of(table))["output_token"]
    sentences = [
        f"Over {law.shortest_tokens} to {law.longest_tokens:,} output tokens and "
        f"{decode_runs.pictures_in_words(runs)}, the {token.question} is {token.said()}, with a constant of "
        f"{with_interval(law.line['constant'], 'ms')}.",
        f"The slope of the line in log-log is {with_interval(law.power['slope'], '')} over decode steps and "
        f"{with_interval(law.power_tokens['slope'], '')} over output tokens: a linear law with a constant near zero "
        "is a line of slope 1 there, and more than that the slope does not say.",
    ]
    if not np.isnan(law.curvature.value):
        sentences.append(
            f"What bends away from the straight line (a quadratic term) is "
            f"{with_interval(law.curvature, 'fraction')} of the time at "
            f"{law.longest_tokens:,} tokens."
        )
    if said := token.misgivings():
        sentences.append(f"{said}.")
    return " ".join(sentences)
