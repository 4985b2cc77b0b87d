"""How far every phase is from what the device can do at most: measured time beside the roofline floor."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmeter.analysis import reading
from vlmeter.figures import style
from vlmeter.numbers.units import percent, significant
from vlmeter.table import kinds
from vlmeter.table.quantities import HEAD, INTER_TOKEN, LLM_BLOCKS, PLAIN_WALL, PROJECTOR, VISION_ENCODER, Quantity

NAME = "limits"
TITLE = "Measured time and the physical limit"
SECTION = "limits"

#: Phases whose floor means something (the merge only moves a few rows), and the whole of them.
SHOWN = (VISION_ENCODER, PROJECTOR, LLM_BLOCKS, HEAD, PLAIN_WALL)


def _prefills(table: pd.DataFrame) -> dict[Quantity, pd.DataFrame]:
    """Rows of phases (with marks, device time) and of whole prefills (without, wall time) that have a floor."""
    known = table[table["floor_ms"].notna() & (table["floor_ms"] > 0)]
    found = {quantity: reading.rows_of(known, quantity, kind=kinds.PREFILL) for quantity in SHOWN}
    return {quantity: rows for quantity, rows in found.items() if len(rows)}


def _step(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of the mean decode step of the longest runs."""
    rows = reading.rows_of(table[table["floor_ms"].notna()], INTER_TOKEN, kind=kinds.GENERATION)
    return rows[rows["output_tokens"] == rows["output_tokens"].max()] if len(rows) else rows


def needs(table: pd.DataFrame) -> str | None:
    """Floors, which take the device's ceilings and the counted work."""
    if "floor_ms" not in table:
        return "there are no floors: work and ceilings were not joined"
    if not _prefills(table) and _step(table).empty:
        return "no prefill and no decode step with a floor was measured"
    return None


def _middle(prefills: dict[Quantity, pd.DataFrame]) -> str | None:
    """Name of the cell of middling size; None without any."""
    if not prefills:
        return None
    cells = pd.concat(prefills.values()).drop_duplicates("cell_id").sort_values(["prompt_tokens", "cell_id"])
    return str(cells["cell_id"].iloc[len(cells) // 2])


@dataclass(frozen=True)
class _Rung:
    """One line of the lower panel."""

    name: str
    quantity: Quantity
    median_ms: float
    floor_ms: float
    mfu_fraction: float
    mbu_fraction: float

    @property
    def times(self) -> float:
        """Measured time over floor."""
        return self.median_ms / self.floor_ms


def _ladder(table: pd.DataFrame) -> list[_Rung]:
    """What the lower panel shows, top to bottom."""
    rows = []
    prefills, steps = _prefills(table), _step(table)
    middle = _middle(prefills)
    for quantity, known in prefills.items():
        found = known[known["cell_id"] == middle]
        if len(found):
            tokens = f"{found['prompt_tokens'].iloc[0]:,}"
            name = f"{quantity.label},\n{tokens} tokens" if quantity is PLAIN_WALL else quantity.label
            rows.append(_Rung(name, quantity, **{column: float(found[column].iloc[0]) for column in _VALUES}))
    if len(steps):
        name = f"decode step,\nup to {steps['output_tokens'].iloc[0]:,} tokens"
        rows.append(_Rung(name, INTER_TOKEN, **{column: float(steps[column].median()) for column in _VALUES}))
    return rows


_VALUES = ("median_ms", "floor_ms", "mfu_fraction", "mbu_fraction")


def draw(table: pd.DataFrame) -> Figure:
    """Draw the share of the limit by prompt tokens where there are prefills, and times over their floors."""
    prefills, ladder = _prefills(table), _ladder(table)
    heights = [3.4] * bool(prefills) + [0.9 + 0.36 * len(ladder)]
    with style.styled():
        figure, panels = style.new_figure(len(heights), height_in=sum(heights), ratios=heights, share_x=False)
        if prefills:
            _draw_shares(panels[0], prefills)
        _draw_ladder(panels[-1], ladder)
        style.title(panels[0], TITLE, table)
    return figure


#: Share of the limit in percent from which the axis shows all of it; below, that would waste half of the panel.
HALF = 50.0


def _draw_shares(axes: Axes, prefills: dict[Quantity, pd.DataFrame]) -> None:
    labels, top = [], 0.0
    for quantity, rows in prefills.items():
        by_size = rows.groupby("prompt_tokens", sort=True)["floor_fraction"].median()
        look, width = style.look_of(quantity), 2.2 if quantity is PLAIN_WALL else 1.3
        x, y = by_size.index.to_numpy(dtype=float), 100 * by_size.to_numpy(dtype=float)
        axes.plot(x, y, look.mark + "-", color=look.colour, markersize=4, markeredgewidth=0, linewidth=width)
        labels.append((float(y[-1]), quantity.label, look))
        top = max(top, float(np.nanmax(y)))
    axes.set_ylim(0, max(112.0, 1.2 * top) if top > HALF else 1.3 * top)
    sizes = [float(size) for rows in prefills.values() for size in rows["prompt_tokens"]]
    style.token_axis(axes, "prompt tokens", at=sizes)
    axes.set_ylabel("share of the physical limit (%)")
    if top > HALF:
        axes.axhline(100, color=style.MUTED, linewidth=0.8, linestyle="--")
    style.note(axes, "floor over measured time; 100 % is as fast as this device can be")
    style.label_ends(axes, labels)


def _draw_ladder(axes: Axes, ladder: list[_Rung]) -> None:
    places = np.arange(len(ladder))[::-1]
    times = [value for rung in ladder for value in (rung.median_ms, rung.floor_ms)]
    axes.set_xscale("log")
    axes.set_xlim(min(times) / 1.6, max(times) * 1.6)
    axes.set_ylim(-0.6, len(ladder) - 0.4)
    for place, rung in zip(places, ladder, strict=True):
        look = style.look_of(rung.quantity)
        colour = look.colour
        on_the_left = rung.floor_ms * rung.median_ms < min(times) * max(times)
        axes.plot([rung.floor_ms, rung.median_ms], [place, place], color=colour, linewidth=2.5, alpha=0.45)
        axes.plot([rung.floor_ms], [place], "|", color=colour, markersize=13, markeredgewidth=2)
        axes.plot([rung.median_ms], [place], look.mark, color=colour, markersize=6)
        said = axes.annotate(
            f"{significant(rung.times, 2)} x the floor, {percent(1 / rung.times)} of the limit",
            (rung.floor_ms if on_the_left else rung.median_ms, place),
            xytext=(-3 if on_the_left else 3, 8),
            textcoords="offset points",
            ha="left" if on_the_left else "right",
            fontsize=7.5,
        )
        said.set_in_layout(False)  # inside the axes, it takes no room from them
        axes.annotate(
            f"MFU {percent(rung.mfu_fraction)}\nMBU {percent(rung.mbu_fraction)}",
            (1.02, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=7.5,
            annotation_clip=False,
        )
    axes.set_yticks(places, [rung.name for rung in ladder])
    axes.grid(axis="y", visible=False)
    axes.set_ylabel("phase")
    axes.set_xlabel("time (ms): stroke, the least that the device needs; mark, measured")
    style.log_axis(axes.xaxis)


def caption(table: pd.DataFrame) -> str:
    """Say which phase is nearest to its limit and which is farthest."""
    ladder = _ladder(table)
    worst, best = max(ladder, key=lambda rung: rung.times), min(ladder, key=lambda rung: rung.times)
    text = (
        "The floor is the least time in which this device could do the work: arithmetic over its measured matrix rate, "
        "or bytes over its measured copy bandwidth, whichever takes longer. "
        f"{_of_what(table)}nearest to it is {_flat(best.name)}, {significant(best.times, 2)} times the floor"
    )
    if len(ladder) > 1:
        text += f"; farthest is {_flat(worst.name)}, {significant(worst.times, 2)} times"
    return (
        text + ". MFU is the share of the matrix rate that was used (model FLOPs utilisation), MBU the share of the "
        "copy bandwidth (model bandwidth utilisation)."
    )


def _of_what(table: pd.DataFrame) -> str:
    """Begin the sentence about the lower panel with the cell that it shows: other cells are nearer or farther."""
    prefills = _prefills(table)
    middle = _middle(prefills)
    if middle is None:
        return "Below, "
    rows = pd.concat(prefills.values())
    tokens = rows.loc[rows["cell_id"] == middle, "prompt_tokens"].iloc[0]
    return f"Below, at {tokens:,} prompt tokens, "


def _flat(name: str) -> str:
    return name.replace("\n", " ")
