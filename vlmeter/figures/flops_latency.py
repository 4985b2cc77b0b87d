"""FLOPs against latency, every phase of every cell a point; and the arithmetic rate that each of them reaches."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmeter.analysis import flops
from vlmeter.analysis.reading import Unknown, estimate_in
from vlmeter.analysis.spread import misgivings_in
from vlmeter.figures import style
from vlmeter.numbers.units import metric, significant
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import QUANTITIES

NAME = "flops_latency"
TITLE = "FLOPs and latency, phase by phase"
SECTION = "flops"


def needs(table: pd.DataFrame) -> str | None:
    """Work beside the measured times."""
    found = flops.points(table)
    return found.reason if isinstance(found, Unknown) else None


def _parts(table: pd.DataFrame) -> pd.DataFrame:
    found = flops.points(table)
    assert not isinstance(found, Unknown)
    return found[found["phase"].isin(flops.PARTS)]


def ceiling_flops_per_s(table: pd.DataFrame) -> float:
    """Matrix rate of the device, as it stands behind every utilisation in the table."""
    rows = table[(table["mfu_fraction"] > 0) & (table["median_ms"] > 0)]
    return float((1000 * rows["flops"] / rows["median_ms"] / rows["mfu_fraction"]).median())


def draw(table: pd.DataFrame) -> Figure:
    """Draw latency over FLOPs, and below it FLOPs per second over FLOPs; launch-bound points are hollow."""
    parts = _parts(table)
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=6.6, ratios=(3, 2))
        upper.set_xscale("log")
        for axes in (upper, lower):
            axes.set_yscale("log")
        ceiling = ceiling_flops_per_s(table)
        scale, unit = (1e12, "TFLOP/s") if ceiling >= 1e13 else (1e9, "GFLOP/s")
        rates = 1000 * parts["flops"] / parts["latency_ms"] / scale
        _scatter(upper, parts, parts["latency_ms"])
        _scatter(lower, parts, rates)
        _lines(upper, parts)
        low, high = float(parts["flops"].min()), float(parts["flops"].max())
        room = max((high / low) ** 0.04, 1.2)
        upper.set_xlim(low / room, high * room)
        x = np.array(upper.get_xlim())
        upper.plot(x, 1000 * x / ceiling, color=style.MUTED, linewidth=0.9, linestyle="--", zorder=1)
        upper.set_ylim(float(parts["latency_ms"].min()) / 2.2, float(parts["latency_ms"].max()) * 2.5)
        lower.axhline(ceiling / scale, color=style.MUTED, linewidth=0.9, linestyle="--", zorder=1)
        lower.set_ylim(float(rates.min()) / 2, max(ceiling / scale, float(rates.max())) * 2)
        for axis in (upper.xaxis, upper.yaxis, lower.yaxis):
            style.log_axis(axis)
        upper.xaxis.set_major_formatter(lambda value, _: metric(value, 1))
        upper.set_ylabel("latency of the phase (ms)")
        lower.set_ylabel(f"arithmetic reached ({unit})")
        lower.set_xlabel("arithmetic of the phase (FLOPs)")
        style.label_ends(upper, _labels(parts, parts["latency_ms"]))
        style.label_ends(lower, _labels(parts, rates), gap=0.075)
        hollow = bool((parts["pace"] == "launch-bound").any())
        said = "dashed: all arithmetic at the device's matrix rate"
        style.note(upper, said + ("\nhollow: launch-bound, the host sets the pace" if hollow else ""))
        style.title(upper, TITLE, table)
    return figure


def _scatter(axes: Axes, parts: pd.DataFrame, values: pd.Series[float]) -> None:
    for phase, own in parts.groupby("phase", sort=False):
        look = style.look_of(QUANTITIES[str(phase)])
        launch = (own["pace"] == "launch-bound").to_numpy(dtype=bool)
        axes.scatter(
            own["flops"],
            values[own.index],
            s=20,
            marker=look.mark,
            facecolors=["white" if hollow else look.colour for hollow in launch],
            edgecolors=look.colour,
            linewidths=[0.9 if hollow else 0.0 for hollow in launch],  # a seam would round off what tells marks apart
            zorder=3,
        )


def _lines(axes: Axes, parts: pd.DataFrame) -> None:
    """Draw each phase's own line in log-log, where its FLOPs vary."""
    for phase, own in parts.groupby("phase", sort=False):
        size, value = np.log(own["flops"].to_numpy(dtype=float)), np.log(own["latency_ms"].to_numpy(dtype=float))
        if np.ptp(size) < 1e-6:
            continue
        slope, constant = np.polyfit(size, value, 1)
        ends = np.array([size.min(), size.max()])
        line = np.exp(slope * ends + constant)
        look = style.look_of(QUANTITIES[str(phase)])
        axes.plot(np.exp(ends), line, look.dash, color=look.colour, linewidth=1, alpha=0.6, zorder=2)


def _labels(parts: pd.DataFrame, values: pd.Series[float]) -> list[tuple[float, str, style.Look]]:
    return [
        (float(values[own.index].iloc[-1]), flops.NAMES[str(phase)], style.look_of(QUANTITIES[str(phase)]))
        for phase, own in parts.groupby("phase", sort=False)
    ]


def caption(table: pd.DataFrame) -> str:
    """Say how FLOPs and latency go together within a phase and over all, and where equal FLOPs differ."""
    found = flops.points(table)
    assert not isinstance(found, Unknown)
    relations = flops.relations(found).set_index("phase")
    sentences = [f"Each point is a phase of one cell ({len(_parts(table))} points)."]
    inside = relations.loc[[phase for phase in flops.PARTS if phase in relations.index], "r_squared"].dropna()
    if len(inside):
        sentences.append(
            f"Within a phase, a line in log-log explains {significant(100 * float(inside.min()), 3)} to "
            f"{significant(100 * float(inside.max()), 3)} % of the variance of (log) latency."
        )
    found_parts = relations.loc["parts"].to_dict() if "parts" in relations.index else {}
    if not math.isnan(float(found_parts.get("r_squared", math.nan))):
        names = ("r_squared", "spearman", "pearson")
        said = {name: with_interval(estimate_in(found_parts, name, ""), "") for name in names}
        sentences.append(
            f"Over all phases R² is {said['r_squared']}, rank correlation {said['spearman']}, linear correlation "
            f"{said['pearson']}."
        )
        if not math.isnan(float(found_parts["pearson_low"])):
            sentences.append("The last interval is a little narrow: in simulated studies 92 of 100 held the truth.")
    sentences += _differences(found)
    if modes := misgivings_in(found):
        sentences.append(f"{modes}.")
    return " ".join(sentences)


def _differences(found: pd.DataFrame) -> list[str]:
    sentences = []
    equal = flops.equal_flops(found)
    if not isinstance(equal, Unknown):
        how = "At equal FLOPs" if equal.matched else "FLOP by FLOP (their ranges do not meet)"
        sentences.append(
            f"{how} decoding takes {with_interval(equal.times, '')} times as long as the LLM blocks of a prefill. It "
            f"reads every weight for each token, which alone would make it {significant(equal.floor_times, 2)} times."
        )
    pace = flops.pace_cost(found)
    if not isinstance(pace, Unknown):
        sentences.append(
            f"A FLOP of a prefill takes {with_interval(pace.times, '')} times as long in launch-bound cells as in "
            "device-bound ones."
        )
    return sentences
