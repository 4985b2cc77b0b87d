"""Shares side by side: of a component's parameters, arithmetic, memory traffic and time; prefill and decode apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlmeter.analysis import components
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import style
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import DECODE, LANGUAGE, QUANTITIES, VISION, Colour

NAME = "component_profile"
TITLE = "Shares of the components"
SECTION = "components"

#: What there are shares of: colour and name.
LOOKS: Mapping[str, tuple[Colour, str]] = {
    "parameters": ("grey", components.SHARES_OF["parameters"]),
    "flops": ("blue", components.SHARES_OF["flops"]),
    "traffic_bytes": ("sky", components.SHARES_OF["traffic_bytes"]),
    "time_ms": ("vermilion", components.SHARES_OF["time_ms"]),
    "joules": ("green", "energy"),
}

#: Parts of a whole request, the prefill in two.
SIDES: Mapping[str, tuple[str, ...]] = {
    **{side.name: tuple(part.name for part in side.parts) for side in (VISION, LANGUAGE)},
    DECODE.name: (DECODE.name,),
}


def needs(table: pd.DataFrame) -> str | None:
    """Phases of a pass."""
    found = components.profile(table)
    return found.reason if isinstance(found, Unknown) else None


def _sides(found: components.Profile) -> dict[str, dict[str, float]]:
    """Shares of vision, LLM prefill and decode in a whole request, by quantity; only what is known."""
    shares: dict[str, dict[str, float]] = {}
    for quantity in ("flops", "traffic_bytes", "time_ms"):
        own = found.share(quantity)
        if own:
            shares[quantity] = {side: sum(own[part] for part in parts) for side, parts in SIDES.items()}
    joules = components.energy_parts(found)
    if joules:
        shares["joules"] = {side: spent / sum(joules.values()) for side, spent in joules.items()}
    return shares


def draw(table: pd.DataFrame) -> Figure:
    """Draw bars: components within the prefill, and below them the sides of a whole request where decode is known."""
    found = components.profile(table)
    assert not isinstance(found, Unknown)
    within = {name: found.share(name, components.IN_PREFILL) for name in components.SHARES_OF}
    with style.styled():
        panels = 2 if found.has_decode else 1
        figure, axes = style.new_figure(panels, height_in=3.4 * panels, share_x=False)
        _bars(
            axes[0],
            {name: shares for name, shares in within.items() if shares},
            components.IN_PREFILL,
            found.prefill_share,
        )
        axes[0].set_ylabel("share of the prefill (%)")
        if found.has_decode:
            _bars(axes[1], _sides(found), tuple(SIDES), {})
            axes[1].set_ylabel("share of a whole request (%)")
        axes[-1].set_xlabel("component")
        style.title(axes[0], TITLE, table)
    return figure


def _bars(
    axes: Axes, shares: Mapping[str, Mapping[str, float]], parts: Sequence[str], intervals: Mapping[str, Estimate]
) -> None:
    places, width = np.arange(len(parts), dtype=np.float64), 0.8 / max(1, len(shares))
    for place, (name, own) in enumerate(shares.items()):
        x = places + width * (place - (len(shares) - 1) / 2)
        values = 100 * np.array([own[part] for part in parts])
        bar = style.filled(style.look(LOOKS[name][0]))
        axes.bar(x, values, 0.92 * width, linewidth=0, label=LOOKS[name][1], **bar)
        top = values
        if name == "time_ms" and intervals:
            low, high = (100 * np.array([getattr(intervals[part], end) for part in parts]) for end in ("low", "high"))
            axes.errorbar(x, values, yerr=style.bars(values, low, high), fmt="none", ecolor=style.INK, elinewidth=1)
            top = np.fmax(values, high)
        for at, value, end in zip(x, values, top, strict=True):
            text = f"{value:.0f}" if value >= 0.95 else f"{value:.1f}" if value >= 0.05 else "<0.1"
            axes.annotate(
                text, (at, end), textcoords="offset points", xytext=(0, 2), ha="center", fontsize=7, color=style.MUTED
            )
    axes.set_xticks(places, [QUANTITIES[part].label for part in parts])
    axes.set_ylim(0, max(axes.get_ylim()[1] * 1.05, 10))
    axes.grid(axis="x", visible=False)
    axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.05), ncols=len(shares), borderaxespad=0)


def caption(table: pd.DataFrame) -> str:
    """Say where shares differ most, of what they are, and what is not known."""
    found = components.profile(table)
    assert not isinstance(found, Unknown)
    text = f"{_begun(found.of_what)}."
    for quantity, whole in (("parameters", "the prefill's time"), ("flops", "the time")):
        apart = components.disagreement(found, quantity)
        if not isinstance(apart, Unknown):
            text += (
                f" {_begun(QUANTITIES[apart.part].label)}: {percent(apart.share)} of the "
                f"{components.SHARES_OF[quantity]}, {with_interval(apart.time_share, 'fraction')} of {whole}."
            )
    if found.has_decode:
        text += " Decode reads the parameters of LLM blocks and head again for every token, and adds none."
    else:
        text += " Decode was not measured."
    missing = [LOOKS[name][1] for name in ("flops", "traffic_bytes") if not found.share(name)]
    if missing:
        text += f" Not drawn, since the work of this subject was not counted: {', '.join(missing)}."
    if not components.energy_parts(found):
        text += " Energy is not drawn: no energy counter of the device was read."
    return text


def _begun(name: str) -> str:
    """A name as a sentence begins with it; abbreviations stay."""
    return name[0].upper() + name[1:]
