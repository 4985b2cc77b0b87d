"""How all figures look: one palette, one set of sizes, labels on the things that they name.

Colours are those of Okabe and Ito (https://jfly.uni-koeln.de/color/), which readers with any common colour
vision can tell apart; a quantity has the same colour in every figure. Printed in grey some of them are alike: each
colour has a mark, a line and a hatch of its own. Words are never coloured, since few of the colours can be read on
white: a swatch stands before them. Figures are made without pyplot, so that drawing keeps no state and needs no
display.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import (
    FixedLocator,
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullFormatter,
    NullLocator,
    ScalarFormatter,
)

from vlmeter.analysis.conditions import trust
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.numbers.intervals import Array
from vlmeter.table.quantities import PHASES, PLAIN_WALL, Colour, Quantity

INK = "#222222"
MUTED = "#767676"
FAINT = "#d9d9d9"

#: The palette by name; a quantity says which of them is its own (`vlmeter.table.quantities`).
COLOURS: Mapping[Colour, str] = {
    "ink": INK,
    "grey": "#999999",
    "blue": "#0072B2",
    "sky": "#56B4E9",
    "orange": "#E69F00",
    "purple": "#CC79A7",
    "green": "#009E73",
    "vermilion": "#D55E00",
}


@dataclass(frozen=True)
class Look:
    """How one series is drawn: its colour, and what tells it apart without colours."""

    colour: str
    mark: str
    dash: str
    hatch: str = ""


#: Colours that are told apart in grey are filled plainly: ink, blue, green, orange. The others are hatched.
_LOOKS: Mapping[Colour, tuple[str, str, str]] = {
    "ink": ("o", "-", ""),
    "grey": ("h", ":", "----"),
    "blue": ("s", "-", ""),
    "sky": ("X", "--", "||||"),
    "orange": ("^", "-.", ""),
    "purple": ("P", ":", "xxxx"),
    "green": ("D", "--", ""),
    "vermilion": ("v", "-.", "\\\\\\\\"),
}

#: Hatch of what happens before the model begins.
BEFORE = "////"


def colour_of(quantity: Quantity) -> str:
    """Colour of a quantity, the same in every figure."""
    return COLOURS[quantity.colour]


def look(colour: Colour) -> Look:
    """How what has this colour is drawn."""
    return Look(COLOURS[colour], *_LOOKS[colour])


def look_of(quantity: Quantity) -> Look:
    """How a quantity is drawn, the same in every figure."""
    return look(quantity.colour)


def filled(own: Look, *, hatch: str | None = None) -> dict[str, Any]:
    """Options of a bar that is drawn so; `hatch` instead of its own."""
    return {"facecolor": own.colour, "hatch": own.hatch if hatch is None else hatch, "edgecolor": "white"}


RC: Mapping[str, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib, so that a figure is the same everywhere
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "grid.linewidth": 0.8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.6,
    "errorbar.capsize": 0,
    "hatch.linewidth": 0.7,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "vlmeter",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "path.simplify": True,
    "text.parse_math": False,  # a name may hold a dollar sign
}

WIDTH_IN = 7.2
PNG_DPI = 300


@contextmanager
def styled() -> Iterator[None]:
    """Everything made in here has the style."""
    with mpl.rc_context(cast(Any, RC)):
        yield


def new_figure(
    rows: int = 1, *, height_in: float = 4.0, ratios: Sequence[float] = (), share_x: bool = True
) -> tuple[Figure, list[Axes]]:
    """Make a figure with so many panels, one above the other; returns it and the list of its axes.

    Only inside `styled()`.
    """
    figure = Figure(figsize=(WIDTH_IN, height_in), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(
        rows, 1, squeeze=False, sharex=share_x, gridspec_kw={"height_ratios": list(ratios) or [1] * rows}
    )
    for own in axes[:, 0]:
        own.yaxis.set_major_formatter(Grouped())
    return figure, list(axes[:, 0])


#: File formats of figures, with what would make two files of one figure differ.
_METADATA: Mapping[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
}


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as SVG, PNG and PDF; `stem` has no suffix. The same figure gives the same bytes."""
    return [save_as(figure, stem.with_name(f"{stem.name}.{suffix}")) for suffix in _METADATA]


def save_as(figure: Figure, path: Path) -> Path:
    """Write a figure in the format that the file's name ends with; raises UserError on one that is not known."""
    suffix = path.suffix.removeprefix(".")
    if suffix not in _METADATA:
        raise UserError(f"a figure cannot be written as {path.name!r}; legal: {', '.join(_METADATA)}")
    buffer = io.BytesIO()
    with styled():
        figure.savefig(buffer, format=suffix, dpi=PNG_DPI, metadata=_METADATA[suffix])
    write_atomically(path, buffer.getvalue())
    return path


# ---------------------------------------------------------------------------------------------------------------------
# Axes


def time_unit(largest_ms: float) -> tuple[float, str]:
    """Milliseconds per unit, and the unit, in which an axis up to this value reads well."""
    return (1000.0, "s") if largest_ms >= 10_000 else (1.0, "ms")


def _plain(value: float, _: object = None) -> str:
    if value <= 0:
        return "0"
    return f"{value:,.0f}" if value >= 1 else f"{value:.{max(1, -math.floor(math.log10(value)))}f}"


class Grouped(ScalarFormatter):
    """Numbers of a linear axis, thousands apart by a comma as everywhere else."""

    def __call__(self, value: float, pos: int | None = None) -> str:
        """Return a tick's label."""
        text = super().__call__(value, pos)
        return f"{value:,.0f}" if abs(value) >= 1000 and value == round(value) and text else text


def log_axis(axis: Any, *, at: Iterable[float] | None = None) -> None:
    """Give a logarithmic axis ticks that read as numbers; `at` places them (powers of two, say)."""
    if at is not None:
        axis.set_major_locator(FixedLocator(sorted(at)))
        axis.set_minor_locator(NullLocator())
    else:
        low, high = sorted(axis.get_view_interval())
        decades = math.log10(high / low) if low > 0 else 1.0
        subs = (1.0, 2.0, 5.0) if decades < 3 else (1.0,)
        axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=20))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(_plain))


def whole_numbers() -> MaxNLocator:
    """Ticks at whole numbers only."""
    return MaxNLocator(integer=True)


#: Two ticks are at least so far apart, as a fraction of the axis, by the characters of a label and the room about it.
TICK_CHARACTER_FRACTION, TICK_ROOM_FRACTION = 0.0115, 0.0175


def token_axis(axes: Axes, label: str, *, at: Iterable[float] = ()) -> None:
    """Label the x axis as one of tokens: ticks `at` what was measured, else at whole numbers; room about a single."""
    low, high = axes.get_xlim()
    if high - low < 10:
        axes.set_xlim((low + high) / 2 - 10, (low + high) / 2 + 10)
    measured = list(at)
    axes.xaxis.set_major_locator(FixedLocator(apart(measured, axes.get_xlim())) if measured else whole_numbers())
    axes.xaxis.set_major_formatter(FuncFormatter(_plain))
    axes.set_xlabel(label)


def apart(values: Iterable[float], ends: tuple[float, float]) -> list[float]:
    """Choose of measured values those that have room for a tick each, the last and the first among them."""
    ordered = sorted({float(value) for value in values}, reverse=True)
    longest = max(len(_plain(value)) for value in ordered)
    gap = (TICK_ROOM_FRACTION + TICK_CHARACTER_FRACTION * longest) * abs(ends[1] - ends[0])
    chosen: list[float] = []
    for value in [ordered[0], ordered[-1], *ordered[1:-1]]:
        if all(abs(value - other) >= gap for other in chosen):
            chosen.append(value)
    return sorted(chosen)


def from_zero(axes: Axes) -> None:
    """Let the y axis start at 0: lengths are compared."""
    axes.set_ylim(bottom=0)


def bars(values: Any, low: Any, high: Any) -> Any:
    """Error bars [2, n] from the ends of intervals; nothing where an interval is missing."""
    values, low, high = (np.asarray(part, dtype=np.float64) for part in (values, low, high))
    lengths = np.array([values - low, high - values])
    return np.where(np.isnan(lengths), 0.0, np.maximum(lengths, 0.0))


def points(axes: Axes, x: Any, frame: pd.DataFrame, quantity: Quantity, **options: Any) -> None:
    """Draw a quantity of an analysis frame as points with their intervals, in its colour and unit."""
    values, low, high = (frame[column] for column in quantity.columns)
    style: dict[str, Any] = {
        "fmt": look_of(quantity).mark,
        "markersize": 4,
        "elinewidth": 1,
        "markeredgewidth": 0,
        "color": colour_of(quantity),
        **options,
    }
    axes.errorbar(x, values, yerr=bars(values, low, high), **style)


def label_ends(
    axes: Axes, labels: Sequence[tuple[float, str, Look]], *, bars: bool = False, gap: float = 0.052
) -> None:
    """Write labels (y in data, text, look) at the right edge of the axes, apart from one another, a swatch before each.

    bars: the swatch is a piece of a bar, else a mark. `gap` is the least distance as a fraction of the axes' height.
    Only after the limits are set.
    """
    if not labels:
        return
    to_axes = axes.transData + axes.transAxes.inverted()
    anchor = axes.get_xlim()[1]
    placed = sorted(
        ((float(to_axes.transform((anchor, y))[1]), text, own) for y, text, own in labels), key=lambda one: one[0]
    )
    heights = np.array([height for height, _, _ in placed])
    for place in range(1, len(heights)):
        heights[place] = max(heights[place], heights[place - 1] + gap)
    over = heights[-1] - 1.0
    if over > 0:
        heights[-1] -= over
        for place in range(len(heights) - 2, -1, -1):
            heights[place] = min(heights[place], heights[place + 1] - gap)
    for height, (true, text, own) in zip(heights, placed, strict=True):
        line = [(1.003, true), (1.022, height)]
        axes.plot(*zip(*line, strict=True), color=own.colour, linewidth=0.7, transform=axes.transAxes, clip_on=False)
        if bars:
            piece = Rectangle((1.024, height - 0.4 * gap), 0.022, 0.8 * gap, transform=axes.transAxes, clip_on=False)
            piece.set(**filled(own), linewidth=0.4)
            axes.add_artist(piece)
        else:
            mark: dict[str, Any] = {"color": own.colour, "markersize": 4.5, "markeredgewidth": 0}
            axes.plot([1.034], [height], own.mark, transform=axes.transAxes, clip_on=False, **mark)
        axes.annotate(
            text,
            (1.055, height),
            xycoords="axes fraction",
            fontsize=8,
            va="center",
            ha="left",
            annotation_clip=False,
        )


def note(axes: Axes, text: str, *, x: float = 0.02, y: float = 0.97, **options: Any) -> None:
    """Write a note into the axes, on a white ground."""
    style: dict[str, Any] = {
        "va": "top",
        "ha": "left",
        "fontsize": 8,
        "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
        **options,
    }
    axes.text(x, y, text, transform=axes.transAxes, **style)


def label_line(axes: Axes, text: str, x: float, y: float, *, on_the_left: bool) -> None:
    """Label an upright line at its upper end (x, y in data), on the side where there is room."""
    axes.annotate(
        text,
        (x, y),
        textcoords="offset points",
        xytext=(-4 if on_the_left else 4, -2),
        ha="right" if on_the_left else "left",
        va="top",
        fontsize=8,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
    )


def beside(sizes: Array) -> tuple[Array, float]:
    """Place bars at their sizes, moved apart just so far that none hides another; returns places and a bar's width."""
    reach = float(sizes.max() - sizes.min()) or max(float(sizes.max()), 1.0)
    gaps = np.diff(np.unique(sizes))
    room = 0.8 * float(gaps.min()) if len(gaps) else reach
    width = min(max(reach / 38, min(reach / 12, room)), 0.5 * reach / max(len(sizes) - 1, 1))
    places = sizes.astype(np.float64)
    for _ in range(200):
        close = np.maximum(1.08 * width - np.diff(places), 0.0) / 2
        if not len(close) or close.max() < 1e-3 * width:
            break
        places[:-1] -= close
        places[1:] += close
    return places, width


#: What the marks on top of the bars are.
DIAMONDS = "diamonds: total without marks, wall time, 95 % interval"


def stack(
    axes: Axes,
    data: pd.DataFrame,
    x: Array,
    width: float,
    *,
    crops: list[int] | None = None,
    marks: str = DIAMONDS,
    parts: Sequence[Quantity] = PHASES,
    of: str = "one prefill",
) -> None:
    """Stack phases as bars, the uninstrumented total and crop counts on top, the phases' names at the right."""
    unit, name = time_unit(float(data[PLAIN_WALL.column].max()))
    base = np.zeros(len(data))
    labels = []
    for phase in parts:
        height = data[phase.column].fillna(0.0).to_numpy(dtype=np.float64) / unit
        axes.bar(x, height, width, bottom=base, linewidth=0.4, **filled(look_of(phase)))
        labels.append((float(base[-1] + height[-1] / 2), phase.label, look_of(phase)))
        base = base + height
    plain = data[PLAIN_WALL.column].to_numpy(dtype=np.float64) / unit
    reach = bars(plain, data[PLAIN_WALL.low] / unit, data[PLAIN_WALL.high] / unit)
    axes.errorbar(x, plain, yerr=reach, fmt="D", markersize=3, color=INK, elinewidth=1, markeredgewidth=0)
    top = np.fmax(np.fmax(base, plain), plain + reach[1])
    for place, height, count in zip(x, top, crops or [], strict=False):
        axes.annotate(
            f"{count}",
            (place, height),
            textcoords="offset points",
            xytext=(0, 4),
            ha="center",
            fontsize=7,
            color=MUTED,
        )
    axes.set_ylim(0, float(top.max()) * 1.18)
    axes.set_xlim(float(x.min()) - 1.5 * width, float(x.max()) + 1.5 * width)
    axes.set_ylabel(f"latency of {of} ({name})")
    axes.grid(axis="x", visible=False)
    note(axes, f"{marks}\nnumbers above the bars: crops" if crops else marks)
    label_ends(axes, labels, bars=True)


# ---------------------------------------------------------------------------------------------------------------------
# Words


def subject_line(table: pd.DataFrame) -> str:
    """What was measured: subject, device, random weights and bad conditions said plainly."""
    first = table.iloc[0]
    parts = [str(first["subject"])]
    if isinstance(first["device_model"], str):
        parts.append(first["device_model"])
    if first["random_weights"] is True or first["random_weights"] == np.True_:
        parts.append("random weights")
    if (verdict := trust(table).verdict) != "quiet":
        parts.append(f"conditions: {verdict}")
    return ", ".join(parts)


#: Characters of a line beneath a title that fit over the axes.
LINE_CHARACTERS = 88


def title(axes: Axes, text: str, table: pd.DataFrame, *, characters: int = LINE_CHARACTERS) -> None:
    """Title an axes: what is shown, and beneath it of whom; `characters` fit into a line of that."""
    under_title(axes, text, subject_line(table), characters=characters)


def under_title(axes: Axes, text: str, under: str, *, characters: int = LINE_CHARACTERS, above_pt: float = 3.0) -> None:
    """Title an axes, with a line beneath that is broken where it is too long; `above_pt` lie below it."""
    lines = textwrap.wrap(under, characters)
    axes.set_title(text, pad=above_pt + 5 + 10.5 * len(lines))
    axes.annotate(
        "\n".join(lines),
        (0, 1.0),
        xycoords="axes fraction",
        textcoords="offset points",
        xytext=(0, above_pt),
        fontsize=8,
        color=MUTED,
        va="bottom",
        ha="left",
        annotation_clip=False,
    )
