"""The table of how far measured times are from what the device can do at most."""

from __future__ import annotations

from collections.abc import Sequence

from vlmeter.analysis.distances import Distance
from vlmeter.numbers.units import duration_range, percent
from vlmeter.report.grids import Grid, Value, count_value, estimate_value, word_value


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
            count_value(len(distance.cells)),
            word_value(duration_range(*distance.measured_ms)),
            word_value(duration_range(*distance.floor_ms)),
            estimate_value(distance.times, ""),
            word_value(distance.bound),
            Value(percent(distance.mfu_fraction), distance.mfu_fraction),
            Value(percent(distance.mbu_fraction), distance.mbu_fraction),
        ]
        for distance in distances
    ]
    return Grid(f"limits-{name}", "Measured times and the least that they could be", columns, rows)
