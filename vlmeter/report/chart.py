"""What the chart to play with can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmeter.experiments.registry import EXPERIMENTS, get_experiment
from vlmeter.figures.style import colour_of
from vlmeter.report.answers import css_variable
from vlmeter.table import kinds
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import (
    BUSY_PREFILL,
    DECODE,
    DECODE_STEP,
    INPUTS_WALL,
    LLM_BLOCKS,
    PHASES,
    PLAIN_LAUNCH,
    PLAIN_WALL,
    VISION_ALONE_WALL,
    VISION_ENCODER,
    Quantity,
)

#: What the chart can draw of cells of each kind.
DRAWN: Mapping[Kind, Sequence[Quantity]] = {
    kinds.PREFILL: (PLAIN_WALL, BUSY_PREFILL, PLAIN_LAUNCH, *PHASES, VISION_ALONE_WALL, INPUTS_WALL),
    kinds.GENERATION: (DECODE, DECODE_STEP, *PHASES, INPUTS_WALL),
}

#: Marks in the order of DRAWN, as plotly calls them and as letters: more of them than quantities of a kind, so that two
#: of one colour, or of colours that a reader sees alike, are told apart.
SYMBOLS = (
    ("circle", "\u25cf"),
    ("square", "\u25a0"),
    ("diamond", "\u25c6"),
    ("triangle-up", "\u25b2"),
    ("triangle-down", "\u25bc"),
    ("cross", "\u271a"),
    ("x", "\u2716"),
    ("hexagon", "\u2b22"),
    ("star", "\u2605"),
    ("pentagon", "\u2b1f"),
    ("triangle-left", "\u25c0"),
    ("triangle-right", "\u25b6"),
)

_DRAWN_AT_FIRST = (PLAIN_WALL, VISION_ENCODER, LLM_BLOCKS, DECODE)


def series() -> dict[str, list[dict[str, Any]]]:
    """What the page's script needs of each quantity: words, colour and mark, its rows, whether it is shown at first."""
    return {
        kind: [
            {
                "label": quantity.words,
                "colour": css_variable(colour_of(quantity)),
                "symbol": symbol,
                "glyph": glyph,
                **quantity.rows[kind]._asdict(),
                "shown": quantity in _DRAWN_AT_FIRST,
            }
            for quantity, (symbol, glyph) in zip(quantities, SYMBOLS, strict=False)
        ]
        for kind, quantities in DRAWN.items()
    }


def questions() -> list[tuple[str, str]]:
    """Each experiment's name and what it asks, in the registry's order: keys of an object are sorted on their way."""
    return [(name, get_experiment(name).question) for name in EXPERIMENTS]
