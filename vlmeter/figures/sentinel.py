"""The sentinel over the session: one cell, measured again and again, shows what drifts."""

from __future__ import annotations

import math

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import conditions
from vlmeter.figures import style
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import plural

NAME = "sentinel"
TITLE = "Drift of the sentinel cell over the session"
SECTION = "session"


def needs(table: pd.DataFrame) -> str | None:
    """A session in which the sentinel was seen twice."""
    return None if len(conditions.sentinel(table)) > 1 else "the sentinel was not seen twice in any session"


def draw(table: pd.DataFrame) -> Figure:
    """Draw the sentinel's move from its first visit, in percent, session by session; drifted visits in red."""
    visits = conditions.sentinel(table)
    noise = float(table["drift_noise_fraction"].median())
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=3.4)
        axes.axhline(0, color=style.MUTED, linewidth=0.8)
        for session, own in visits.groupby("session_id"):
            axes.plot(
                own["position"], 100 * own["fraction"], "o-", color=style.COLOURS["blue"], markersize=4, linewidth=1
            )
            if visits["session_id"].nunique() > 1:
                last = own.iloc[-1]
                axes.annotate(
                    str(session),
                    (last["position"], 100 * last["fraction"]),
                    textcoords="offset points",
                    xytext=(5, 0),
                    fontsize=7,
                    va="center",
                )
        away = visits[visits["drifted"]]
        axes.plot(away["position"], 100 * away["fraction"], "X", color=style.COLOURS["vermilion"], markersize=8)
        if not math.isnan(noise):
            axes.axhspan(-100 * noise, 100 * noise, color=style.FAINT, alpha=0.5, linewidth=0)
            seen = "; cross: away beyond its noise at that visit" if len(away) else ""
            style.note(axes, f"grey: within the sentinel's own noise (median of its visits){seen}", color=style.MUTED)
        room = 0.0 if math.isnan(noise) else noise
        low, high = min(float(visits["fraction"].min()), -room), max(float(visits["fraction"].max()), room)
        pad = 0.25 * max(high - low, 0.004)
        axes.set_ylim(100 * (low - pad), 100 * (high + pad))
        axes.xaxis.set_major_locator(style.whole_numbers())
        axes.set_xlabel("cells measured before")
        axes.set_ylabel("median latency over the first (%)")
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say how far the sentinel moved, and how many cells are flagged."""
    visits = conditions.sentinel(table)
    flagged = table.loc[table["drifted"].fillna(False).astype(bool), "cell_id"].nunique()
    text = (
        f"{plural(len(visits), 'visit')}; the farthest is {percent(float(visits['fraction'].abs().max()))} away from "
        "the first of its session. "
    )
    if flagged:
        were, are = ("was", "is") if flagged == 1 else ("were", "are")
        return f"{text}{plural(flagged, 'cell')} {were} measured while it was away, and {are} flagged."
    return f"{text}No cell was measured while it was away beyond its noise and the tolerance."
