"""How far measured times are from what the device can do at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vlmeter.figures.style import LABELS
from vlmeter.models.families.base import PREFILL_PHASES
from vlmeter.numbers.medians import Estimate, median_estimate
from vlmeter.numbers.units import duration_range, percent
from vlmeter.numbers.words import plural, with_interval
from vlmeter.report.answers import Answer, in_two
from vlmeter.report.grids import Grid, Value, count_value, estimate_value, word_value


@dataclass(frozen=True)
class Limit:
    """How far one kind of work is from the fastest that the device could do it."""

    name: str
    label: str
    cells: int
    times: Estimate
    measured: str
    floor: str
    bound: str
    mfu: float
    mbu: float

    @property
    def answer(self) -> Answer:
        """The distance as an answer of the first screen."""
        value, interval = in_two(with_interval(self.times, "times"))
        note = (
            f"{self.label}; median over {plural(self.cells, 'cell')}; the floor is the least time the device could take"
        )
        return Answer(f"limit_{self.name}", f"{self.name} over its floor", value, interval, note)


#: What is compared with its floor: name, label, and arm, phase, clock and experiment of its rows.
_LIMITS = (
    ("prefill", "whole prefill, as a user waits", "plain", "total", "wall", "vision_tokens"),
    ("prefill_busy", "whole prefill, device busy", "busy", "prefill", "busy", "vision_tokens"),
    *((phase, LABELS[phase], "hooks", phase, "device", "vision_tokens") for phase in PREFILL_PHASES),
    ("decode", "decode, all steps", "hooks", "decode", "device", "output_tokens"),
)


#: Limits that the first screen names.
ON_FIRST_SCREEN = ("prefill", "decode")


def limits_of(physics: pd.DataFrame) -> list[Limit]:
    """Set the phases of one subject beside their floors."""
    found = []
    for name, label, arm, phase, clock, experiment in _LIMITS:
        rows = physics[
            (physics["arm"] == arm)
            & (physics["phase"] == phase)
            & (physics["clock"] == clock)
            & (physics["experiment"] == experiment)
            & (physics["source"] == "measured")
            & (physics["floor_ms"] > 0)
        ]
        if rows.empty:
            continue
        found.append(
            Limit(
                name,
                label,
                len(rows),
                median_estimate((rows["median_ms"] / rows["floor_ms"]).tolist()),
                _range(rows["median_ms"]),
                _range(rows["floor_ms"]),
                " or ".join(sorted(set(rows["bound"]))),
                float(rows["mfu_fraction"].median()),
                float(rows["mbu_fraction"].median()),
            )
        )
    return found


def _range(values: pd.Series[float]) -> str:
    return duration_range(float(values.min()), float(values.max()))


def limits_grid(limits: Sequence[Limit], name: str) -> Grid:
    """The table of limits."""
    columns = [
        ("work", "what was timed"),
        ("cells", "cells behind the row"),
        ("measured", "shortest to longest cell"),
        ("floor", "least time in which this device could do it, shortest to longest cell"),
        ("measured over floor", "median over cells and its 95 % interval; 1 is as fast as can be"),
        ("the floor is set by", "arithmetic, or traffic between memory and processors"),
        ("MFU", "share of the device's arithmetic that was used (model FLOPs utilisation), median"),
        ("MBU", "share of its memory bandwidth that was used (model bandwidth utilisation), median"),
    ]
    rows = [
        [
            word_value(limit.label),
            count_value(limit.cells),
            word_value(limit.measured),
            word_value(limit.floor),
            estimate_value(limit.times, ""),
            word_value(limit.bound),
            Value(percent(limit.mfu), limit.mfu),
            Value(percent(limit.mbu), limit.mbu),
        ]
        for limit in limits
    ]
    return Grid(f"limits-{name}", "Measured times and the least that they could be", columns, rows)
