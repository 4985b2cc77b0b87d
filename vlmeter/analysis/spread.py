"""Cells whose rounds do not lie about one value: two modes, or a scatter so wide that a median says little."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from vlmeter.analysis.reading import Samples, cells_of, of_subject
from vlmeter.analysis.runs import runs_of
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.modes import Modes, both_in_words, two_modes
from vlmeter.numbers.units import duration
from vlmeter.numbers.words import plural
from vlmeter.table import kinds
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import (
    AROUND,
    DECODE,
    FIRST_TOKEN,
    HOOKS_WALL,
    INPUTS_WALL,
    PHASES,
    PLAIN_WALL,
    PREFILL_SUM,
    VISION,
    Quantity,
)

#: What is looked at in a cell of each kind, the whole first.
LOOKED_AT: dict[Kind, Sequence[Quantity]] = {
    kinds.PREFILL: (PLAIN_WALL, HOOKS_WALL, VISION, *PHASES),
    kinds.GENERATION: (PLAIN_WALL, HOOKS_WALL, DECODE, *PHASES),
}

#: Interquartile range over median above which a cell's rounds scatter widely. # ASSUME: a quiet GPU stays below 1 %,
#: a desktop that others use within some percent; at a fifth the middle half differs by as much as two sizes may.
WIDE_FRACTION = 0.2

#: Cells of two modes that are named before they are only counted.
MIXED_NAMED = 3


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


@dataclass(frozen=True)
class Mixed:
    """A cell whose median, of which something is made, lies between two modes; of several runs those farthest apart.

    The modes are NaN where a file of an older version names the cell alone.
    """

    cell_id: str
    low_ms: float
    high_ms: float

    def __str__(self) -> str:
        return f"{self.cell_id}{self.both and ': '}{self.both}"

    @property
    def both(self) -> str:
        """Both modes, such as '146 and 212 ms'."""
        return "" if math.isnan(self.low_ms) else both_in_words(self.low_ms, self.high_ms)


def mixed_cells(rows: pd.DataFrame, cells: Collection[str], *quantities: Quantity) -> tuple[Mixed, ...]:
    """Find the cells whose median of one of some quantities lies between two modes in a run; rows of one subject."""
    found: dict[str, Modes] = {}
    for own in runs_of(rows) if cells else ():
        for kind in LOOKED_AT:
            samples = Samples(own, kind)
            for cell in cells_of(own, kind)["cell_id"].astype(str):
                taken = [_series(samples, cell, quantity, kind) for quantity in quantities] if cell in cells else []
                modes = [both for series in taken if series is not None and (both := two_modes(series)) is not None]
                if modes:
                    found[cell] = max((*modes, *([found[cell]] if cell in found else [])), key=lambda one: one.ratio)
    return tuple(Mixed(cell, both.low, both.high) for cell, both in found.items())


def first_token_samples(samples: Samples, cell: str, kind: Kind) -> Array | None:
    """Times to first token of a cell in ms, preprocessing included [rounds]; None where a part of them is missing."""
    inputs = samples.get(cell, INPUTS_WALL)
    rest = samples.total(cell, (PLAIN_WALL,) if kind == kinds.PREFILL else (PREFILL_SUM, *AROUND))
    return None if inputs is None or rest is None or len(inputs) != len(rest) else inputs + rest


def _series(samples: Samples, cell: str, quantity: Quantity, kind: Kind) -> Array | None:
    """Samples of a quantity, and of the time to first token, which no arm takes as a whole; None where it has none."""
    if quantity == FIRST_TOKEN:
        return first_token_samples(samples, cell, kind)
    return samples.get(cell, quantity) if all(kind in part.rows for part in quantity.parts or (quantity,)) else None


def with_modes(found: pd.DataFrame, rows: pd.DataFrame, named: Mapping[str, str]) -> pd.DataFrame:
    """A frame of cells and phases with low_mode_ms and high_mode_ms beside each, NaN where it has not two modes.

    named: phases that are called otherwise than their quantity.
    """
    ordered = sorted(cell_modes(rows), key=lambda one: one.modes.ratio)  # of several runs those farthest apart
    known = {(one.cell_id, one.quantity.name): one.modes for one in ordered}
    both = [
        known.get((str(cell), named.get(phase, phase)))
        for cell, phase in zip(found["cell_id"], found["phase"], strict=True)
    ]
    ends = {end: [math.nan if one is None else getattr(one, end) for one in both] for end in ("low", "high")}
    return found.assign(low_mode_ms=ends["low"], high_mode_ms=ends["high"])


def misgivings_in(found: pd.DataFrame) -> str:
    """Say in a sentence which cells of a frame of `with_modes` have two modes; empty if none has."""
    mixed = found.dropna(subset=["low_mode_ms"]).drop_duplicates("cell_id")
    pairs = zip(mixed["cell_id"].astype(str), mixed["low_mode_ms"], mixed["high_mode_ms"], strict=True)
    return misgivings_of([Mixed(*pair) for pair in pairs], found["cell_id"].nunique())


def modes_in_words(mixed: Sequence[Mixed], cells: int) -> str:
    """Say in few words what has two modes among so many cells, to stand behind a number; empty without any."""
    if not mixed:
        return ""
    both = max(mixed, key=lambda one: one.high_ms / one.low_ms).both
    start = "" if cells < 2 else f"{len(mixed)} of {plural(cells, 'cell')} {'has' if len(mixed) == 1 else 'have'} "
    return f"{start}two modes{both and (': ' if len(mixed) == 1 else ', such as ')}{both}"


def misgivings_of(mixed: Sequence[Mixed], cells: int) -> str:
    """Say in a sentence of how many of these cells the median is the time of no run; empty without such cells."""
    if not mixed:
        return ""
    if cells < 2:
        return f"two modes: {mixed[0].both}; the median is the time of no run"
    named = "; ".join(str(one) for one in mixed[:MIXED_NAMED]) + (" and others" if len(mixed) > MIXED_NAMED else "")
    verb, whose = ("has", "its median is") if len(mixed) == 1 else ("have", "their medians are")
    return f"{len(mixed)} of these {cells} cells {verb} two modes ({named}): {whose} the time of no run"


def misgivings_of_requests(rows: pd.DataFrame) -> str:
    """Say in a sentence which of the cells that predictions are learnt from have two modes; rows of one subject."""
    cells = {str(cell) for kind in LOOKED_AT for cell in cells_of(rows, kind)["cell_id"]}
    return misgivings_of(mixed_cells(rows, cells, FIRST_TOKEN, DECODE), len(cells))


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
