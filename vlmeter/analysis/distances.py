"""How far measured times are from the least that the device could take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from vlmeter.analysis.reading import rows_of
from vlmeter.analysis.runs import runs_of
from vlmeter.numbers.clusters import added
from vlmeter.numbers.medians import Estimate, median_estimate, median_of_estimates
from vlmeter.numbers.words import interval_of_few
from vlmeter.table import kinds
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import BUSY_PREFILL, DECODE, PHASES, PLAIN_WALL, Quantity


@dataclass(frozen=True)
class Distance:
    """How far one kind of work is from the fastest that the device could do it.

    times: measured over floor, median over cells (`median_of_estimates`); measured_ms, floor_ms: shortest and longest
    cell; bound: what sets the floor; mfu_fraction, mbu_fraction: medians; interval_of: whose interval it is, in words.
    """

    quantity: Quantity
    cells: tuple[str, ...]
    times: Estimate
    measured_ms: tuple[float, float]
    floor_ms: tuple[float, float]
    bound: str
    mfu_fraction: float
    mbu_fraction: float
    interval_of: str = ""


#: What is compared with its floor, and in cells of which kind.
_WITH_FLOOR: Sequence[tuple[Quantity, Kind]] = (
    *((quantity, kinds.PREFILL) for quantity in (PLAIN_WALL, BUSY_PREFILL, *PHASES)),
    (DECODE, kinds.GENERATION),
)


def distances_of(table: pd.DataFrame) -> list[Distance]:
    """Set the phases of one subject beside their floors; the table has work beside it (`roofline.beside`).

    Of several runs distances are told of each by itself too, for the intervals.
    """
    runs = [_distances_of(own, median_of_estimates) for own in runs_of(table)]
    if len(runs) < 2:
        return [replace(one, interval_of=interval_of_few(one.times, len(one.cells))) for own in runs for one in own]
    by_run = [{one.quantity: one.times for one in own} for own in runs]
    return [
        replace(one, times=added(one.times, [own[one.quantity] for own in by_run if one.quantity in own]))
        for one in _distances_of(table, _over_values)
    ]


def _over_values(cells: Sequence[Estimate]) -> Estimate:
    """Median over cells; what each cell is off by differs from run to run, and is counted there."""
    return median_estimate([each.value for each in cells])


def _distances_of(table: pd.DataFrame, middle: Callable[[Sequence[Estimate]], Estimate]) -> list[Distance]:
    found = []
    known = table[(table["source"] == "measured") & (table["floor_ms"] > 0)]
    for quantity, kind in _WITH_FLOOR:
        rows = rows_of(known, quantity, kind=kind)
        if rows.empty:
            continue
        found.append(
            Distance(
                quantity,
                tuple(rows["cell_id"]),
                middle(
                    [
                        Estimate(*(row[end] / row["floor_ms"] for end in ("median_ms", "low_ms", "high_ms")))
                        for row in rows.to_dict("records")
                    ]
                ),
                (float(rows["median_ms"].min()), float(rows["median_ms"].max())),
                (float(rows["floor_ms"].min()), float(rows["floor_ms"].max())),
                " or ".join(sorted(set(rows["bound"]))),
                float(rows["mfu_fraction"].median()),
                float(rows["mbu_fraction"].median()),
            )
        )
    return found
