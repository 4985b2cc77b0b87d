"""Time to first token of the same image in a server and beside it, part by part."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from vlmeter.analysis import subjects, waits
from vlmeter.figures import side_by_side, style
from vlmeter.numbers.units import duration, significant
from vlmeter.table.quantities import FIRST_TOKEN

NAME = "side_by_side_waits"
TITLE = "The same image, served and beside it"
SECTION = "side_by_side"


def needs(table: pd.DataFrame) -> str | None:
    """An image that a server and another subject were asked for."""
    shown = subjects.parts_of_the_wait(table)
    return None if len(shown) else "no image was measured at a server and in another subject"


def draw(table: pd.DataFrame) -> Figure:
    """Draw for each image a bar per subject, stacked in the order in which the time passes."""
    data = subjects.parts_of_the_wait(table)
    with style.styled():
        figure, (axes,) = side_by_side.new_panels([5.0])
        unit, unit_name = style.time_unit(float(data[FIRST_TOKEN.column].max()))
        new_image = data["image"].ne(data["image"].shift()).to_numpy(dtype=bool)
        places = np.arange(len(data)) + 0.7 * np.cumsum(new_image) - 0.7
        handles: list[Patch] = []
        base = np.zeros(len(data))
        for part in waits.PARTS:
            height = data[part.column].astype("float64").fillna(0.0).to_numpy() / unit
            if not height.any():
                continue
            bar = style.filled(style.look_of(part), hatch=style.BEFORE if part is waits.PARTS[0] else None)
            axes.bar(places, height, 0.85, bottom=base, linewidth=0.4, **bar)
            handles.append(Patch(label=part.label, **bar))
            base = base + height
        axes.set_xticks(places, [str(name) for name in data["subject"]], rotation=30, ha="right")
        for image, rows in data.groupby("image", sort=False):
            middle = float(np.mean(places[rows.index]))
            top = float(base[rows.index].max())
            named = str(image).removesuffix(" px")
            axes.annotate(
                named,
                (middle, top),
                textcoords="offset points",
                xytext=(0, 4),
                ha="center",
                fontsize=8,
                color=style.MUTED,
            )
        style.note(axes, "over the bars: the image in px", color=style.MUTED)
        axes.legend(handles=handles[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
        axes.set_ylim(0, float(base.max()) * 1.15)
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(f"{FIRST_TOKEN.label} ({unit_name})")
        side_by_side.title(axes, TITLE, table, sorted(set(data["subject"])))
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say for the largest image how long the first token takes in each subject."""
    data = subjects.parts_of_the_wait(table)
    rows = data[data["image"] == data["image"].iloc[-1]].sort_values(FIRST_TOKEN.column)
    least, most = rows.iloc[0], rows.iloc[-1]
    said = (
        "Bars are medians of the parts: the picture made ready (hatched), then what the client waits for. "
        f"At {least['image']} the first token takes {duration(least[FIRST_TOKEN.column])} in {least['subject']} and "
        f"{duration(most[FIRST_TOKEN.column])} in {most['subject']}, "
        f"{significant(most[FIRST_TOKEN.column] / least[FIRST_TOKEN.column], 2)} times as long."
    )
    return " ".join([said, *side_by_side.who_is_missing(table, sorted(set(data["subject"])))])
