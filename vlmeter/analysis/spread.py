"""Cells whose rounds do not lie about one value: two modes, or a scatter so wide that a median says little."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlmeter.analysis.reading import Samples, cells_of, of_subject
from vlmeter.analysis.runs import runs_of
from vlmeter.numbers.modes import Modes, two_modes
from vlmeter.numbers.units import duration
from vlmeter.table import kinds
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import DECODE, HOOKS_WALL, PHASES, PLAIN_WALL, VISION, Quantity

#: What is looked at in a cell of each kind, the whole first.
LOOKED_AT: dict[Kind, Sequence[Quantity]] = {
    kinds.PREFILL: (PLAIN_WALL, HOOKS_WALL, VISION, *PHASES),
    kinds.GENERATION: (PLAIN_WALL, HOOKS_WALL, DECODE, *PHASES),
}

#: Interquartile range over median above which a cell's rounds scatter widely. # ASSUME: a quiet GPU stays below 1 %,
#: a desktop that others use within some percent; at a fifth the middle half differs by as much as two sizes may.
WIDE_FRACTION = 0.2


@dataclass(frozen=True)
class CellModes:
    """Two modes of a quantity of a cell in a run."""

    cell_id: str
    run: int
    quantity: Quantity
    modes: Modes

    def __str__(self) -> str:
        found = self.modes
        return f"{duration(found.low)} in {found.low_count} rounds and {duration(found.high)} in {found.high_count}"


def cell_modes(table: pd.DataFrame, subject: str | None = None) -> list[CellModes]:
    """Find quantities with two modes, in the order of runs and cells; each run is looked at by itself."""
    found = []
    for run, rows in enumerate(runs_of(of_subject(table, subject))):
        for kind, quantities in LOOKED_AT.items():
            samples = Samples(rows, kind)
            for cell in cells_of(rows, kind)["cell_id"].astype(str):
                for quantity in quantities:
                    own = samples.get(cell, quantity)
                    if own is not None and (modes := two_modes(own)) is not None:
                        found.append(CellModes(cell, run, quantity, modes))
    return found


def by_cell(found: Sequence[CellModes]) -> list[CellModes]:
    """One of each cell, in their order: of the whole if that has two modes, else of what has them farthest apart."""
    chosen: dict[str, CellModes] = {}
    for one in sorted(found, key=lambda one: (one.quantity not in (PLAIN_WALL, HOOKS_WALL), -one.modes.ratio)):
        chosen.setdefault(one.cell_id, one)
    return [chosen[cell] for cell in dict.fromkeys(one.cell_id for one in found)]


def mixed_cells(rows: pd.DataFrame, cells: Collection[str], quantity: Quantity) -> tuple[str, ...]:
    """Name the cells whose median of a quantity, a fit's own, lies between two modes in a run; rows of one subject."""
    found: dict[str, None] = {}
    for own in runs_of(rows):
        for kind in LOOKED_AT:
            samples = Samples(own, kind)
            for cell in cells_of(own, kind)["cell_id"].astype(str):
                taken = samples.get(cell, quantity) if cell in cells else None
                if taken is not None and two_modes(taken) is not None:
                    found[cell] = None
    return tuple(found)


def wide_cells(table: pd.DataFrame, subject: str | None = None) -> dict[str, float]:
    """Cells whose whole scatters widely in a run, with the interquartile range over the median; the widest of runs."""
    found: dict[str, float] = {}
    for rows in runs_of(of_subject(table, subject)):
        for kind in LOOKED_AT:
            samples = Samples(rows, kind)
            for cell in cells_of(rows, kind)["cell_id"].astype(str):
                wholes = (samples.get(cell, quantity) for quantity in (PLAIN_WALL, HOOKS_WALL))
                own = next((one for one in wholes if one is not None and len(one) >= 5), None)
                if own is not None:
                    low, middle, high = np.quantile(own, (0.25, 0.5, 0.75))
                    if middle > 0:  # a duration of zero has no ratio
                        found[cell] = max(found.get(cell, 0.0), float((high - low) / middle))
    return {cell: spread for cell, spread in found.items() if spread > WIDE_FRACTION}
