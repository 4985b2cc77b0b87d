"""Host wall time, device events, launch time and busy time of one prefill, and where the host sets the pace."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmeter.analysis import prefill_cells, reading
from vlmeter.figures import style
from vlmeter.numbers.units import significant
from vlmeter.table.quantities import BUSY_PREFILL, PLAIN_DEVICE, PLAIN_LAUNCH, PLAIN_WALL, WALL_OVER_BUSY

NAME = "three_clocks"
TITLE = "One prefill, by every clock"
SECTION = "vision"

#: What is drawn.
CLOCKS = (PLAIN_WALL, PLAIN_DEVICE, PLAIN_LAUNCH, BUSY_PREFILL)


def needs(table: pd.DataFrame) -> str | None:
    """A device that works beside the host: busy time must have been measured."""
    cells = prefill_cells.vision_cells(table)
    if cells.empty:
        return "no vision-token cell was measured"
    if cells[BUSY_PREFILL.column].notna().any():
        return None
    reason = cells["busy_reason"].dropna()
    return str(reason.iloc[0]) if len(reason) else "busy time was not measured"


def draw(table: pd.DataFrame) -> Figure:
    """Draw four times over prompt tokens; cells whose wall time is well above busy time lie in the shaded region."""
    cells = prefill_cells.vision_cells(table)
    with style.styled():
        figure, (upper, lower) = style.new_figure(2, height_in=5.4, ratios=(3, 2))
        x = cells["prompt_tokens"].to_numpy(dtype=np.float64)
        for quantity in CLOCKS:
            # two clocks may agree: one lies around the other then, and does not hide it
            around = {"markersize": 6, "markerfacecolor": "none", "markeredgewidth": 0.9}
            style.points(
                upper, x, cells, quantity, label=quantity.clock, **(around if quantity is PLAIN_DEVICE else {})
            )
        upper.set_ylabel("time of one prefill (ms)")
        style.from_zero(upper)
        ratio = cells[WALL_OVER_BUSY.column].to_numpy(dtype=np.float64)
        reach = style.bars(ratio, cells[WALL_OVER_BUSY.low], cells[WALL_OVER_BUSY.high])
        lower.errorbar(x, ratio, yerr=reach, fmt="o", markersize=4, color=style.INK, elinewidth=1, markeredgewidth=0)
        limit = prefill_cells.DEVICE_BOUND_RATIO
        lower.axhline(limit, color=style.MUTED, linewidth=1, linestyle="--")
        lower.set_ylim(min(0.95, float(np.nanmin(ratio)) - 0.03), max(float(np.nanmax(ratio + reach[1])) * 1.05, 1.25))
        lower.set_ylabel(WALL_OVER_BUSY.label)
        style.token_axis(lower, "prompt tokens (vision, special and text tokens)", at=x)
        _shade(upper, lower, cells)
        upper.legend(loc="lower right", ncols=2)
        style.note(lower, f"above {limit}: launch-bound", x=0.98, ha="right")
        style.title(upper, TITLE, table)
    return figure


def _shade(upper: Axes, lower: Axes, cells: pd.DataFrame) -> None:
    """Shade the tokens up to the last launch-bound cell, if launch-bound ends cleanly there."""
    found = prefill_cells.crossover(cells)
    if isinstance(found, reading.Unknown) or found.last_launch_bound_tokens is None or not found.clean:
        return
    low, high = lower.get_xlim()
    for axes in (upper, lower):
        axes.axvspan(low, found.last_launch_bound_tokens, color=style.colour_of(PLAIN_LAUNCH), alpha=0.12, linewidth=0)
    lower.set_xlim(low, high)
    style.note(upper, "launch-bound: the device waits for the host")


def caption(table: pd.DataFrame) -> str:
    """Say where the host sets the pace and where the device does."""
    cells = prefill_cells.vision_cells(table)
    found = prefill_cells.crossover(cells)
    sentences = [
        "Wall time is what a user waits; device events lie at both ends of the work and count the gaps in between; "
        "launch time is how long the host needs to hand the work over; busy time has no gaps."
    ]
    if isinstance(found, reading.Unknown):
        return f"{sentences[0]} Who sets the pace cannot be told: {found.reason}."
    counts = (
        f"{found.launch_bound_cells} of {len(cells)} cells are launch-bound and {found.device_bound_cells} device-bound"
    )
    if found.undecided_cells:
        counts += f"; {found.undecided_cells} cannot be told"
    sentences.append(counts + ".")
    last, first = found.last_launch_bound_tokens, found.first_device_bound_tokens
    if last is None:
        sentences.append("The device sets the pace everywhere.")
    elif first is None:
        sentences.append(
            f"Up to {last:,} tokens, the most that were measured, the host sets the pace, and latency says little "
            "about the device."
        )
    elif found.clean:
        sentences.append(
            f"Up to {last:,} prompt tokens the host sets the pace, from {first:,} on the device does; a slope over the "
            f"whole range mixes the two. {_growth(cells[cells['prompt_tokens'] <= last])}"
        )
    else:
        sentences.append(
            f"The two overlap between {first:,} and {last:,} prompt tokens: tokens alone do not decide who sets the "
            "pace."
        )
    return " ".join(sentences).strip()


def _growth(cells: pd.DataFrame) -> str:
    """Say how much less wall time grows than busy time among launch-bound cells."""
    first, last = cells.iloc[0], cells.iloc[-1]
    if first["prompt_tokens"] == last["prompt_tokens"]:
        return ""
    wall, busy = (last[one.column] / first[one.column] for one in (PLAIN_WALL, BUSY_PREFILL))
    return (
        f"From {first['prompt_tokens']:,} to {last['prompt_tokens']:,} tokens wall time becomes {significant(wall)} "
        f"times as long, busy time {significant(busy)} times."
    )
