"""The language side of a prefill, by hooks and by subtraction, and the difference of the two."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmeter.analysis import conditions, prefill_cells, reading
from vlmeter.figures import style
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import duration
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import (
    LANGUAGE,
    METHOD_DIFFERENCE_DEVICE,
    METHOD_DIFFERENCE_WALL,
    PICTURE_WALL,
    PLAIN_DEVICE,
    PLAIN_WALL,
    SUBTRACTION_DEVICE,
    SUBTRACTION_WALL,
    VISION,
)

NAME = "two_methods"
TITLE = "LLM prefill by hooks and by subtraction"
SECTION = "vision"

#: Subtraction by device events is drawn beside that by wall time if the two differ by more than this
#: fraction: where the device works in step with the host they are one and the same.
SAME_CLOCK_FRACTION = 0.002


def needs(table: pd.DataFrame) -> str | None:
    """A cell that was measured in both ways."""
    cells = prefill_cells.vision_cells(table)
    both = cells[LANGUAGE.column].notna() & cells[SUBTRACTION_WALL.column].notna()
    return None if both.any() else "no cell was measured by hooks and by subtraction"


def clocks_differ(cells: pd.DataFrame) -> bool:
    """Whether wall time and device events of the plain prefill tell different stories."""
    return bool((cells[PLAIN_WALL.column] / cells[PLAIN_DEVICE.column] - 1).abs().median() > SAME_CLOCK_FRACTION)


def draw(table: pd.DataFrame) -> Figure:
    """Draw both methods over prompt tokens, and below them hooks minus subtraction, paired."""
    cells = prefill_cells.vision_cells(table).dropna(subset=[LANGUAGE.column, SUBTRACTION_WALL.column])
    two_clocks = clocks_differ(cells)
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=5.4, ratios=(3, 2))
        x = cells["prompt_tokens"].to_numpy(dtype=np.float64)
        step = max((x.max() - x.min()) / 300, 0.2)
        series = [(SUBTRACTION_WALL, METHOD_DIFFERENCE_WALL, step)]
        if two_clocks:
            series.append((SUBTRACTION_DEVICE, METHOD_DIFFERENCE_DEVICE, 0.0))
        hooks = style.look("blue")
        by_hooks = {"color": hooks.colour, "fmt": hooks.mark, "label": "hooks (device events)"}
        style.points(upper, x - step, cells, LANGUAGE, **by_hooks)
        for left, apart, moved in series:
            style.points(upper, x + moved, cells, left, label=f"subtraction ({left.label})")
            style.points(lower, x + moved, cells, apart, label=f"by {apart.label}")
        _mark_fall(upper, table, cells)
        upper.set_ylabel(f"{LANGUAGE.label} ({LANGUAGE.unit})")
        upper.legend(loc="upper left")
        lower.axhline(0, color=style.MUTED, linewidth=0.8)
        lower.set_ylabel("hooks - subtraction (ms)")
        style.token_axis(lower, "prompt tokens (vision, special and text tokens)", at=x)
        if two_clocks:
            lower.legend(loc="best")
        style.title(upper, TITLE, table)
    return figure


def _mark_fall(axes: Axes, table: pd.DataFrame, cells: pd.DataFrame) -> None:
    """Point at the largest fall of subtraction, if there is one beyond noise."""
    found = prefill_cells.falls(cells, SUBTRACTION_WALL, wander_fraction=conditions.sentinel_wander(table))
    if isinstance(found, reading.Unknown) or not found:
        return
    worst, red = found[0], style.colour_of(SUBTRACTION_WALL)
    axes.annotate(
        "",
        xy=(worst.to_tokens, worst.to_ms),
        xytext=(worst.from_tokens, worst.from_ms),
        arrowprops={"arrowstyle": "->", "color": red, "linewidth": 1.2},
    )
    text = f"arrow: by subtraction the LLM prefill falls by {duration(worst.drop_ms)}"
    style.note(axes, text, x=0.98, y=0.03, ha="right", va="bottom")


#: What the methods do where vision can be run alone.
_IN_PROCESS = (
    "Both methods measure what a prefill does behind the vision side: subtraction takes the time of vision run "
    "alone from the whole, hooks place marks inside one pass. Samples of one round are paired."
)


def _on_a_server(cells: pd.DataFrame) -> str:
    """Say what the methods do on a server, and what its caches save of a picture."""
    said = (
        "Both methods measure what the server's model does behind the vision side. Subtraction works from outside, "
        "with the server's caches on: a request whose picture it knows and whose prompt it does not (the same image, "
        "another cache_salt), minus one of which it knows both; what a step costs however few tokens it runs is in "
        "both and falls out, and so do the tokens that fill no block of the cache. Hooks place marks inside one pass. "
        "Samples of one round are paired."
    )
    picture = prefill_cells.pooled(cells, PICTURE_WALL)
    if isinstance(picture, Estimate):
        said += (
            f" A new picture costs {with_interval(picture, 'ms')} more than a known one in the median over "
            f"{plural(len(cells), 'cell')}: processor, vision encoder and projector."
        )
        vision = prefill_cells.pooled(cells, VISION)
        if isinstance(vision, Estimate):
            said += f" By hooks vision encoder and projector are {with_interval(vision, 'ms')}."
    return said


def caption(table: pd.DataFrame) -> str:
    """Say by how much the methods differ, and where subtraction falls."""
    cells = prefill_cells.vision_cells(table).dropna(subset=[LANGUAGE.column, SUBTRACTION_WALL.column])
    sentences = [_on_a_server(cells) if cells[PICTURE_WALL.column].notna().any() else _IN_PROCESS]
    difference = prefill_cells.pooled(cells, METHOD_DIFFERENCE_WALL)
    if isinstance(difference, Estimate):
        values = cells[METHOD_DIFFERENCE_WALL.column]
        sentences.append(
            f"Hooks minus subtraction (wall time) is {with_interval(difference, 'ms')} "
            f"{prefill_cells.over_cells(values)}."
        )
    wander = conditions.sentinel_wander(table)
    for quantity, name in ((SUBTRACTION_WALL, "By subtraction"), (LANGUAGE, "By hooks")):
        found = prefill_cells.falls(cells, quantity, wander_fraction=wander)
        if isinstance(found, reading.Unknown):
            continue
        if found:
            worst = found[0]
            sentences.append(
                f"{name} the LLM prefill falls somewhere although tokens grow: most from {worst.from_tokens:,} to "
                f"{worst.to_tokens:,} tokens, by {duration(worst.drop_ms)}."
            )
        else:
            sentences.append(f"{name} it falls nowhere beyond noise as tokens grow.")
    return " ".join(sentences)
