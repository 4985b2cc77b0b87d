"""Latency of cells that were left out, as FLOPs predict it and as the roofline does."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from vlmeter.analysis import flops
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.spread import misgivings_in
from vlmeter.figures import style
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import QUANTITIES

NAME = "flops_or_roofline"
TITLE = "Latency as FLOPs predict it, and as the roofline does"
SECTION = "flops"

#: Range of times on which every second power of ten has a tick.
MANY_TIMES = 1e5

#: What is drawn: one fitted number each.
SHOWN = ("flops", "roofline")


def _models(table: pd.DataFrame) -> flops.Models | Unknown:
    found = flops.points(table)
    return found if isinstance(found, Unknown) else flops.compare_models(found)


def needs(table: pd.DataFrame) -> str | None:
    """Phases of several cells with work and floor."""
    found = _models(table)
    return found.reason if isinstance(found, Unknown) else None


def draw(table: pd.DataFrame) -> Figure:
    """Draw predicted over measured time of every phase of every cell, side by side for both models."""
    models = _models(table)
    assert not isinstance(models, Unknown)
    frame = models.frame
    with style.styled():
        figure = Figure(figsize=(style.WIDTH_IN, 4.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2, sharex=True, sharey=True)
        columns = [f"{model}_ms" for model in SHOWN]
        everything = np.concatenate([frame[name].to_numpy(dtype=float) for name in ("latency_ms", *columns)])
        ends = np.array([everything.min() / 1.6, everything.max() * 1.6])
        for axes, model in zip(panels, SHOWN, strict=True):
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.plot(ends, ends, color=style.MUTED, linewidth=1)
            axes.fill_between(ends, ends / 2, ends * 2, color=style.FAINT, alpha=0.45, linewidth=0, zorder=0)
            for phase, own in frame.groupby("phase", sort=False):
                name = flops.NAMES[str(phase)]
                look = style.look_of(QUANTITIES[str(phase)])
                dots = {"s": 17, "color": look.colour, "marker": look.mark, "linewidths": 0}
                axes.scatter(own["latency_ms"], own[f"{model}_ms"], label=name, zorder=3, **dots)
            axes.set_xlim(ends)
            axes.set_ylim(ends)
            style.log_axis(axes.xaxis)
            style.log_axis(axes.yaxis)
            if ends[1] / ends[0] > MANY_TIMES:
                axes.xaxis.set_major_locator(LogLocator(base=100))
            axes.set_xlabel("measured time of the phase (ms)")
            name = flops.MODELS[model]
            said = f"{name}\nmedian error {with_interval(models.errors[model], 'fraction')}"
            axes.set_title(said, fontsize=8.5, fontweight="normal")
        panels[0].set_ylabel("predicted time, cell left out (ms)")
        panels[1].set_ylabel("predicted time, cell left out (ms)")
        panels[1].yaxis.label.set_visible(False)
        panels[1].legend(loc="lower right", handletextpad=0.1)
        style.note(panels[0], "grey: within a factor of 2", x=0.98, y=0.03, ha="right", va="bottom", color=style.MUTED)
        figure.suptitle(TITLE, x=0.01, ha="left", fontsize=10, fontweight="bold")
        figure.text(0.01, 0.945, style.subject_line(table), fontsize=8, color=style.MUTED, va="top")
        figure.get_layout_engine().set(rect=(0, 0, 1, 0.955))  # type: ignore[union-attr, call-arg]
    return figure


def caption(table: pd.DataFrame) -> str:
    """Give the errors of all models, and where each is farthest off."""
    models = _models(table)
    assert not isinstance(models, Unknown)
    errors, modes = models.errors, misgivings_in(models.frame)
    return (
        "Every cell is predicted from all the others; one number is fitted for all phases, a rate for FLOPs and an "
        f"efficiency for the floor ({percent(models.efficiency)}). The median error, every phase counting the same and "
        f"half and double both counting as 100 %, is {with_interval(errors['flops'], 'fraction')} by FLOPs and "
        f"{with_interval(errors['roofline'], 'fraction')} by the roofline; with a fitted power it is "
        f"{with_interval(errors['flops_power'], 'fraction')} and "
        f"{with_interval(errors['roofline_power'], 'fraction')}. "
        f"FLOPs are farthest off for {_worst(models, 'flops')}, the roofline for {_worst(models, 'roofline')}."
        f"{modes and f' {modes}.'}"
    )


def _worst(models: flops.Models, model: str) -> str:
    phase = max(models.by_phase, key=lambda name: models.by_phase[name][model])
    return f"{flops.NAMES[phase]} ({percent(models.by_phase[phase][model])})"
