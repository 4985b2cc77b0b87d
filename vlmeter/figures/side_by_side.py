"""How several subjects look in one figure: a colour and a mark for each, the same in every figure of a study.

There are fewer colours that everybody can tell apart than there may be subjects, so a colour comes back with another
mark and a broken line. Names stand where the eye is, at the end of a line or the start of a row: no legend is needed.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import count

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from vlmeter.analysis import conditions, reading, subjects
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import style
from vlmeter.figures.style import Look
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import Colour

#: Colours of the palette in the order of subjects; its grey is of what is not known, and none of a subject.
_NAMES: tuple[Colour, ...] = ("blue", "vermilion", "green", "purple", "orange", "sky", "ink")
PALETTE = tuple(style.COLOURS[name] for name in _NAMES)
HATCHES = tuple(style.look(name).hatch for name in _NAMES)
MARKS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*")
DASHES = ("-", "--", ":")

#: Largest over smallest value from which an axis is logarithmic: on a linear one the smallest could not be read.
LOG_FROM = 12.0

#: Names that a sentence lists before it counts them instead.
LISTED = 4

#: Height of one subject's row, and of what stands about the rows of a panel, in inches.
ROW_IN, PANEL_IN = 0.2, 0.75


def looks(table: pd.DataFrame) -> dict[str, Look]:
    """A look for every subject of the table, in alphabetical order, those without numbers included."""
    names = reading.subjects_of(table)
    return {
        name: Look(
            PALETTE[place % len(PALETTE)],
            MARKS[place % len(MARKS)],
            DASHES[place // len(PALETTE) % len(DASHES)],
            HATCHES[place % len(HATCHES)],
        )
        for place, name in zip(count(), names, strict=False)
    }


def short(name: str, longest: int = 26) -> str:
    """Shorten a name in the middle: names often begin alike and end alike, and seldom both."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}\u2026{name[-half:]}"


def new_panels(rows: Sequence[int | float]) -> tuple[Figure, list[Axes]]:
    """Make a figure with one panel above the other: of so many rows, or, if a fraction, so many inches.

    Only inside `style.styled()`.
    """
    heights = [PANEL_IN + ROW_IN * part if isinstance(part, int) else part for part in rows]
    figure = Figure(figsize=(style.WIDTH_IN, sum(heights) + 0.25), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    return figure, list(axes[:, 0])


def draw_rows(
    axes: Axes,
    estimates: Mapping[str, Estimate | Unknown],
    drawn: Mapping[str, Look],
    *,
    remarks: Mapping[str, str] | None = None,
    beside: Iterable[Estimate] = (),
) -> None:
    """Draw a row per subject: its estimate in ms with the interval, in words at the right, `remarks` at the point.

    The axis has room for the estimates of other panels, given as `beside`, so that panels can be compared. A point
    whose interval holds 0 is hollow. What is not known is said with its reason.
    """
    known = {name: found for name, found in estimates.items() if isinstance(found, Estimate)}
    low, high = _reach([*known.values(), *beside])
    logarithmic = low > 0 and high / low >= LOG_FROM
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * 1.5 if not remarks else high * (high / low) ** 0.42)
        style.log_axis(axes.xaxis)
    else:
        room = (high - min(low, 0.0)) or 1.0
        axes.set_xlim(min(low, 0.0) - (0.03 * room if low < 0 else 0.0), high + (0.36 if remarks else 0.06) * room)
    if low < 0:
        axes.axvline(0, color=style.MUTED, linewidth=0.8)
    for row, (name, found) in enumerate(estimates.items()):
        look = drawn[name]
        if isinstance(found, Unknown):
            reason = textwrap.shorten(f"not known: {found.reason}", 92, placeholder="\u2026")
            axes.text(
                0.01, row, reason, transform=axes.get_yaxis_transform(), va="center", fontsize=7.5, color=style.MUTED
            )
            continue
        axes.errorbar(
            found.value,
            row,
            xerr=style.bars([found.value], [found.low], [found.high]),
            fmt=look.mark,
            color=look.colour,
            markersize=5.5,
            elinewidth=1.4,
            markerfacecolor="white" if found.contains(0) else look.colour,
            markeredgewidth=1,
        )
        end = found.high if not math.isnan(found.high) else found.value
        if remarks and name in remarks:
            axes.annotate(
                remarks[name],
                (min(max(end, found.value), axes.get_xlim()[1]), row),
                xytext=(7, 0),
                textcoords="offset points",
                va="center",
                fontsize=7.5,
                color=style.MUTED,
            )
        axes.annotate(
            with_interval(found, "ms"),
            (1.0, row),
            xycoords=axes.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
            annotation_clip=False,
        )
    axes.set_yticks(range(len(estimates)), [short(name) for name in estimates])
    axes.set_ylim(len(estimates) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)


def _reach(known: Iterable[Estimate]) -> tuple[float, float]:
    """Where an axis begins and ends: an interval that is far wider than all values do is cut off."""
    found = list(known)
    if not found:
        return 0.0, 1.0
    values = np.array([estimate.value for estimate in found])
    lows = np.array([value if math.isnan(e.low) else e.low for e, value in zip(found, values, strict=True)])
    highs = np.array([value if math.isnan(e.high) else e.high for e, value in zip(found, values, strict=True)])
    size = float(np.abs(values).max())
    return float(max(lows.min(), values.min() - size)), float(min(highs.max(), values.max() + size))


def far_apart(values: Iterable[float]) -> bool:
    """Whether values are so far apart that they want a logarithmic axis."""
    found = [value for value in values if value > 0]
    return bool(found) and max(found) / min(found) >= LOG_FROM


def label_lines(axes: Axes, ends: Mapping[str, tuple[float, float]], drawn: Mapping[str, Look]) -> None:
    """Name lines at their ends (x, y in data): at the right, apart from one another, with a thin line to each.

    Only after the limits are set.
    """
    if not ends:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    height_in = axes.get_figure().get_size_inches()[1] * axes.get_position().height  # type: ignore[union-attr]
    gap = min(0.16 / max(height_in, 0.5), 1.0 / len(ends))
    placed = sorted(((float(to_axes.transform(end)[1]), name) for name, end in ends.items()), key=lambda item: item[0])
    heights = [height for height, _ in placed]
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + gap)
    heights[-1] = min(heights[-1], 1.0)
    for place in range(len(heights) - 2, -1, -1):
        heights[place] = min(heights[place], heights[place + 1] - gap)
    for height, (_, name) in zip(heights, placed, strict=True):
        look = drawn[name]
        line = {
            "arrowstyle": "-",
            "color": look.colour,
            "linewidth": 0.6,
            "shrinkA": 0,
            "shrinkB": 3,
            "relpos": (0, 0.5),
        }
        axes.annotate(
            short(name),
            xy=ends[name],
            xytext=(1.045, height),
            textcoords="axes fraction",
            fontsize=8,
            va="center",
            ha="left",
            color=style.INK,
            arrowprops={**line, "alpha": 0.7},
            annotation_clip=False,
        )
        axes.plot(
            [1.03], [height], look.mark, color=look.colour, markersize=4.5, transform=axes.transAxes, clip_on=False
        )


def title(axes: Axes, text: str, table: pd.DataFrame, shown: Sequence[str]) -> None:
    """Title an axes: what is shown, beneath it of whom, and who is missing."""
    style.under_title(axes, text, _of_whom(table, shown))


def _of_whom(table: pd.DataFrame, shown: Sequence[str]) -> str:
    rows = table[table["subject"].isin(list(shown))]
    devices = sorted(set(rows["device_model"].dropna()))
    parts = [
        f"{len(shown)} subjects",
        *([devices[0]] if len(devices) == 1 else [f"{len(devices)} devices"] if devices else []),
    ]
    random = rows.groupby("subject")["random_weights"].first().fillna(False).astype(bool)
    if random.any():
        parts.append("random weights" if random.all() else f"random weights in {int(random.sum())}")
    unquiet = [name for name in shown if conditions.trust(table, name).verdict != "quiet"]
    if unquiet:
        parts.append(f"conditions not quiet in {len(unquiet)}")
    if missing := subjects.absent(table, shown):
        parts.append(textwrap.shorten(f"no numbers of {', '.join(map(short, missing))}", 60, placeholder="\u2026"))
    return ", ".join(parts)


def listed(names: Sequence[str], of: int) -> str:
    """Say which of so many subjects: by name, or, where that would be a long list, by number."""
    if len(names) <= LISTED:
        return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return f"all {of} subjects" if len(names) == of else f"{len(names)} of {of} subjects"


def who_is_missing(table: pd.DataFrame, shown: Sequence[str]) -> list[str]:
    """Sentences for a caption: who has no numbers here and why, and whose conditions were bad."""
    said = [
        f"Nothing is shown of {name}: {textwrap.shorten(reason, 160, placeholder='...').rstrip('.')}."
        for name, reason in subjects.absent(table, shown).items()
    ]
    for verdict, words in (("disturbed", "the machine was disturbed"), ("unusable", "conditions were unusable")):
        names = [name for name in shown if conditions.trust(table, name).verdict == verdict]
        if names:
            be = "was" if len(names) == 1 else "were"
            said.append(f"While {listed(names, len(shown))} {be} measured, {words}.")
    return said
