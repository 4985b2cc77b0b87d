"""The table of components."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from vlmeter.analysis import components
from vlmeter.numbers.units import duration, metric, percent, size
from vlmeter.report.grids import Grid, Value, count_value, estimate_value, word_value
from vlmeter.table.quantities import PREFILL_SUM, QUANTITIES, REPEATED_PREFILL, REPEATED_VISION, VISION, WHOLE_REQUEST


def _flops(count: Any) -> str:
    """Arithmetic in words: 2.12 TFLOP; empty where it is not known."""
    if pd.isna(count):
        return ""
    said = metric(float(count))
    return f"{said}FLOP" if said[-1].isalpha() else f"{said} FLOP"


def component_grid(found: components.Profile, name: str) -> Grid:
    """The table of components: shares of parameters, FLOPs, traffic, time."""
    columns = [
        ("component", "its phase of the prefill; decode: all steps together"),
        ("parameters", "that it holds; decode uses those of LLM blocks and head again"),
        ("of parameters", "share of all parameters"),
        ("FLOPs", "arithmetic of a mean request"),
        ("of FLOPs", "share of a request's"),
        ("memory traffic", "weights, keys and values that cross the memory bus"),
        ("of traffic", "share of a request's"),
        ("time", "device time of a mean request"),
        ("of time", "share of the time of prefill and decode, with its 95 % interval"),
        ("peak memory", "most device memory in use during the phase; empty: nothing counts it"),
    ]
    shares = {quantity: found.share(quantity) for quantity in components.SHARES_OF}
    rows = [
        [
            word_value(QUANTITIES[row["part"]].label),
            count_value(row["parameters"]),
            _share(shares["parameters"], row["part"]),
            Value(_flops(row["flops"]), float(row["flops"])),
            _share(shares["flops"], row["part"]),
            Value("" if pd.isna(row["traffic_bytes"]) else size(row["traffic_bytes"]), float(row["traffic_bytes"])),
            _share(shares["traffic_bytes"], row["part"]),
            Value(duration(row["time_ms"]), float(row["time_ms"])),
            estimate_value(found.time_share[row["part"]], "fraction"),
            Value("" if pd.isna(row["peak_bytes"]) else size(row["peak_bytes"]), float(row["peak_bytes"])),
        ]
        for row in found.parts.to_dict("records")
    ]
    return Grid(f"components-{name}", f"Components, {found.of_what}", columns, rows)


def _share(shares: Mapping[str, float], part: str) -> Value:
    return Value(percent(shares[part]), shares[part]) if part in shares else Value("", math.nan)


#: What was given to the energy counter, in words.
_ENERGY = {
    WHOLE_REQUEST.name: "a whole request, in the mean",
    PREFILL_SUM.name: REPEATED_PREFILL.words,
    VISION.name: REPEATED_VISION.words,
}


def energy_sentence(found: components.Profile) -> str:
    """Say what each piece of work takes of energy, or that this is not known."""
    if not found.joules:
        return "Energy is not known: no energy counter of the device was read."
    said = [f"{_ENERGY[what]}: {spent:.3g} J" for what, spent in found.joules.items()]
    return "Energy of the device: " + "; ".join(said) + "."
