"""What the chart to play with can draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmeter.figures.style import COLOURS, LABELS
from vlmeter.models.families.base import PREFILL_PHASES
from vlmeter.report.answers import css_variable

_DRAWN_AT_FIRST = ("vision_encoder", "llm_blocks")


#: What the chart can draw, by experiment: (label, colour, arm, phase, clock, whether it is drawn at first).
SERIES: Mapping[str, Sequence[tuple[str, str, str, str, str, bool]]] = {
    "vision_tokens": (
        ("whole prefill, as a user waits", css_variable(COLOURS["total"]), "plain", "total", "wall", True),
        ("whole prefill, device busy", css_variable(COLOURS["busy"]), "busy", "prefill", "busy", False),
        ("whole prefill, host hands over", css_variable(COLOURS["launch"]), "plain", "total", "launch", False),
        *((LABELS[p], css_variable(COLOURS[p]), "hooks", p, "device", p in _DRAWN_AT_FIRST) for p in PREFILL_PHASES),
        ("vision run alone, as a user waits", css_variable(COLOURS["subtraction"]), "vision", "total", "wall", False),
        ("preprocessing and copy", css_variable(COLOURS["inputs"]), "inputs", "total", "wall", False),
    ),
    "output_tokens": (
        ("decode, all steps", css_variable(COLOURS["decode"]), "hooks", "decode", "device", True),
        ("one decode step", css_variable(COLOURS["hooks"]), "hooks", "decode_step", "device", False),
        *((LABELS[p], css_variable(COLOURS[p]), "hooks", p, "device", p in _DRAWN_AT_FIRST) for p in PREFILL_PHASES),
        ("preprocessing and copy", css_variable(COLOURS["inputs"]), "inputs", "total", "wall", False),
    ),
}
