"""How far measured times are from what the device can do at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from vlmeter.analysis.reading import rows_of
from vlmeter.numbers.medians import Estimate, median_estimate
from vlmeter.numbers.units import duration_range, percent
from vlmeter.numbers.words import plural, with_interval
from vlmeter.report.answers import Answer, in_two
from vlmeter.report.grids import Grid, Value, count_value, estimate_value, word_value
from vlmeter.table import kinds
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import BUSY_PREFILL, DECODE, PHASES, PLAIN_WALL, Quantity


@dataclass(frozen=True)
class Distance:
    """How far one kind of work is from the fastest that the device could do it."""

    quantity: Quantity
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
        cells = plural(self.cells, "cell")
        note = f"{self.quantity.words}; median over {cells}; the floor is the least time the device could take"
        return Answer(f"limit_{self.quantity}", f"{self.quantity.label} over its floor", value, interval, note)


#: What is compared with its floor, and in cells of which kind.
_WITH_FLOOR: Sequence[tuple[Quantity, Kind]] = (
    *((quantity, kinds.PREFILL) for quantity in (PLAIN_WALL, BUSY_PREFILL, *PHASES)),
    (DECODE, kinds.GENERATION),
)


#: Distances that the first screen names.
ON_FIRST_SCREEN = (PLAIN_WALL, DECODE)


def distances_of(table: pd.DataFrame) -> list[Distance]:
    """Set the phases of one subject beside their floors; the table has work beside it (`roofline.beside`)."""
    found = []
    known = table[(table["source"] == "measured") & (table["floor_ms"] > 0)]
    for quantity, kind in _WITH_FLOOR:
        rows = rows_of(known, quantity, kind=kind)
        if rows.empty:
            continue
        found.append(
            Distance(
                quantity,
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


def distances_grid(distances: Sequence[Distance], name: str) -> Grid:
    """The table of distances to the limit."""
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
            word_value(distance.quantity.words),
            count_value(distance.cells),
            word_value(distance.measured),
            word_value(distance.floor),
            estimate_value(distance.times, ""),
            word_value(distance.bound),
            Value(percent(distance.mfu), distance.mfu),
            Value(percent(distance.mbu), distance.mbu),
        ]
        for distance in distances
    ]
    return Grid(f"limits-{name}", "Measured times and the least that they could be", columns, rows)
