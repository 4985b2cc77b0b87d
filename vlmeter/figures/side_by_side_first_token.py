"""Time to first token against vision tokens, one line per subject."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import subjects
from vlmeter.figures import side_by_side, style
from vlmeter.numbers.units import duration, significant
from vlmeter.table.quantities import FIRST_TOKEN

NAME = "side_by_side_first_token"
TITLE = "Time to first token by vision tokens"
SECTION = "side_by_side"


def lines(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Per subject the median over images with the same vision tokens, in their order, with its interval."""
    frame = subjects.first_tokens(table)
    numbers = list(FIRST_TOKEN.columns)
    dummies = frame[frame["picture"] == "dummy"]
    return {
        str(name): rows.groupby("vision_tokens", as_index=False)[numbers].median().sort_values("vision_tokens")
        for name, rows in dummies.groupby("subject")
    }


def needs(table: pd.DataFrame) -> str | None:
    """Two subjects with a vision-token cell each."""
    measured = lines(table)
    return None if len(measured) > 1 else "fewer than two subjects have a vision-token cell that was measured"


def draw(table: pd.DataFrame) -> Figure:
    """Draw one line per subject over its vision tokens, named at its end; logarithmic where the range asks for it."""
    data, drawn = lines(table), side_by_side.looks(table)
    with style.styled():
        figure, (axes,) = side_by_side.new_panels([4.4 if len(data) < 8 else 5.2])
        for name, rows in data.items():
            look = drawn[name]
            x, y = (rows[column].to_numpy(dtype=np.float64) for column in ("vision_tokens", FIRST_TOKEN.column))
            reach = style.bars(y, rows[FIRST_TOKEN.low], rows[FIRST_TOKEN.high])
            options: dict[str, Any] = {"color": look.colour, "markersize": 4.5, "elinewidth": 1, "markeredgewidth": 0}
            axes.errorbar(x, y, yerr=reach, fmt=look.mark, linestyle=look.dash, linewidth=1.3, **options)
        every = pd.concat(data.values())
        log_y = side_by_side.far_apart(every[FIRST_TOKEN.column])
        if side_by_side.far_apart(every["vision_tokens"]):
            axes.set_xscale("log")
            style.log_axis(axes.xaxis)
            axes.set_xlabel("vision tokens (counted in the model's inputs)")
        else:
            style.token_axis(axes, "vision tokens (counted in the model's inputs)")
        if log_y:
            axes.set_yscale("log")
            style.log_axis(axes.yaxis)
        else:
            style.from_zero(axes)
        axes.set_ylabel(f"{FIRST_TOKEN.label} ({FIRST_TOKEN.unit})")
        side_by_side.title(axes, TITLE, table, list(data))
        figure.draw_without_rendering()  # labels are placed by the limits and the size that it has in the end
        ends = {
            name: (float(r["vision_tokens"].iloc[-1]), float(r[FIRST_TOKEN.column].iloc[-1]))
            for name, r in data.items()
        }
        side_by_side.label_lines(axes, ends, drawn)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say who is first and who is last at a number of tokens that all reach."""
    data = lines(table)
    sentences = [
        "Preprocessing, copy to the device and prefill without marks, as a user waits; a line joins the images that "
        "one subject saw, by the vision tokens that it makes of them."
    ]
    low = max(int(rows["vision_tokens"].min()) for rows in data.values())
    high = min(int(rows["vision_tokens"].max()) for rows in data.values())
    if low > high:
        sentences.append("There is no number of vision tokens that lies within the range of all of them.")
    else:
        at = {
            name: float(np.interp(high, rows["vision_tokens"].astype(float), rows[FIRST_TOKEN.column]))
            for name, rows in data.items()
        }
        least, most = min(at, key=lambda name: at[name]), max(at, key=lambda name: at[name])
        sentences.append(
            f"At {high:,} vision tokens, the most that lie within the range of all, the first token takes from "
            f"{duration(at[least])} ({least}) to {duration(at[most])} ({most}), {significant(at[most] / at[least], 2)} "
            "times as long (between measured counts, read off the line)."
        )
    return " ".join([*sentences, *side_by_side.who_is_missing(table, list(data))])
