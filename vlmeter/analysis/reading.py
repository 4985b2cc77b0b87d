"""Reading the table: one subject's rows, samples paired by round, estimates in frames."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlmeter.analysis.runs import pooled_rows
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import Estimate, median_estimate
from vlmeter.numbers.resemblance import ALONE, Resemblance, median_in_a_row, resemblance_in
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import UPLOAD, WHOLE_PHASE, Quantity

NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan)


@dataclass(frozen=True)
class Unknown:
    """Something that the data cannot say, why, and what would make it known (empty: nothing that a study can do)."""

    reason: str
    remedy: str = ""


def subjects_of(table: pd.DataFrame) -> list[str]:
    """Names of the subjects in the table, in alphabetical order."""
    return sorted(table["subject"].dropna().unique())


def of_subject(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """Rows of one subject; without a name the table must hold one subject at most.

    Raises ValueError if it holds several: numbers of two subjects are never pooled.
    """
    if subject is not None:
        return table[table["subject"] == subject]
    names = subjects_of(table)
    if len(names) > 1:
        raise ValueError(f"the table holds several subjects ({', '.join(names)}); name one")
    return table


def rows_of(rows: pd.DataFrame, *quantities: Quantity, kind: Kind) -> pd.DataFrame:
    """Rows of some quantities in cells of a kind, measured and derived ones, in the order of the table.

    Of several runs they are pooled (`vlmeter.analysis.runs`).
    """
    chosen = np.zeros(len(rows), dtype=bool)
    for key in {quantity.rows[kind] for quantity in quantities}:
        chosen |= np.logical_and.reduce([_equal(rows[name], value) for name, value in key._asdict().items()])
    return pooled_rows(rows[chosen & _equal(rows["kind"], kind)])


def _equal(column: pd.Series[Any], value: str) -> npt.NDArray[np.bool_]:
    return np.asarray((column == value).to_numpy(dtype=bool, na_value=False))


def whole_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """One row of each cell that was measured: of the whole of one of its arms, over all runs."""
    return pooled_rows(rows[_equal(rows["phase"], WHOLE_PHASE)]).drop_duplicates("cell_id")


class Samples:
    """Samples of the measured rows of cells of a kind, in one run."""

    def __init__(self, rows: pd.DataFrame, kind: Kind) -> None:
        self._kind = kind
        measured = rows[(rows["source"] == "measured") & (rows["kind"] == kind)]
        keys = zip(*(measured[name] for name in ("cell_id", "arm", "phase", "clock")), strict=True)
        self._found: dict[tuple[str, str, str, str], Array] = dict(zip(keys, measured["samples_ms"], strict=True))
        self._cells = list(dict.fromkeys(cell for cell, *_ in self._found))
        self._resemblances: dict[Quantity, Resemblance] = {}

    def get(self, cell: str, quantity: Quantity) -> Array | None:
        """Samples of a quantity in milliseconds, round by round; None where there are none, or a part is missing."""
        if not quantity.parts:
            return self._found.get((cell, *quantity.rows[self._kind]))
        parts = [self.get(cell, part) for part in quantity.parts]
        return None if any(part is None for part in parts) else np.sum(np.array(parts), axis=0)

    def total(self, cell: str, quantities: Sequence[Quantity]) -> Array | None:
        """Samples of the sum of those quantities that are there; None where none is."""
        found = [own for quantity in quantities if (own := self.get(cell, quantity)) is not None]
        return np.sum(np.array(found), axis=0) if found else None

    def resemblance(self, quantity: Quantity) -> Resemblance:
        """How much rounds of a quantity resemble the ones before them, by what all cells say."""
        if quantity not in self._resemblances:
            known = [own for cell in self._cells if (own := self.get(cell, quantity)) is not None]
            self._resemblances[quantity] = resemblance_in(known)
        return self._resemblances[quantity]

    def median(self, cell: str, quantity: Quantity) -> Estimate:
        """Median of a quantity; no estimate without samples."""
        return median_in_order(self.get(cell, quantity), like=self.resemblance(quantity))


def median_of(values: Array | None) -> Estimate:
    """Median of values that stand in no order, such as one of each cell; no estimate without any."""
    return NO_ESTIMATE if values is None or not len(values) else median_estimate(values.tolist())


def median_in_order(samples: Array | None, *, like: Resemblance = ALONE) -> Estimate:
    """Median of one cell's samples, in the order of its rounds; no estimate without samples.

    like: how much the rounds of all cells resemble the ones before them (`Samples.resemblance`).
    """
    return NO_ESTIMATE if samples is None or not len(samples) else median_in_a_row(samples.tolist(), like=like)


def median_in(frame: pd.DataFrame, quantity: Quantity) -> Estimate:
    """Median of a quantity over the rows of a frame that have it, with its interval over them."""
    return median_of(frame[quantity.column].dropna().to_numpy(dtype=np.float64))


def paired_estimate(
    how: Callable[[Array, Array], Estimate], samples: Array | None, others: Array | None, *, minus: float = 0.0
) -> Estimate:
    """Estimate from two series that are paired by round; no estimate where they do not pair."""
    if samples is None or others is None or len(samples) != len(others) or not len(samples):
        return NO_ESTIMATE
    found = how(samples, others)
    return Estimate(found.value - minus, found.low - minus, found.high - minus)


def paired_sum(samples: Array | None, others: Array | None, *, like: Resemblance) -> Estimate:
    """Median of the sums of two series, round by round; no estimate where they do not pair."""
    return paired_estimate(lambda one, other: median_in_order(one + other, like=like), samples, others)


def put_estimate(row: dict[str, Any], quantity: Quantity, estimate: Estimate) -> None:
    """Write an estimate of a quantity into a row of a frame."""
    row |= dict(zip(quantity.columns, (estimate.value, estimate.low, estimate.high), strict=True))


def estimate_of(row: Any, quantity: Quantity) -> Estimate:
    """Read an estimate of a quantity back from a row of a frame."""
    value, low, high = (float(row[column]) for column in quantity.columns)
    return Estimate(value, low, high)


def estimate_in(row: Any, name: str, unit: str = "_ms") -> Estimate:
    """Read an estimate that is no quantity's, such as a slope, from a row: `name`, its low and its high end."""
    return Estimate(float(row[f"{name}{unit}"]), float(row[f"{name}_low{unit}"]), float(row[f"{name}_high{unit}"]))


def cells_of(rows: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """One row per finished cell of a kind."""
    fine = rows[(rows["kind"] == kind) & (rows["status"] == "ok") & rows["arm"].notna()]
    return fine[fine["source"] == "measured"].drop_duplicates("cell_id")


def _number(value: Any) -> float:
    return math.nan if pd.isna(value) else float(value)


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """An estimate in a unit that is 1 / factor as large; factor is positive."""
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor)


def is_served(rows: pd.DataFrame) -> bool:
    """Whether rows of one subject are of a server: in its marked passes something is uploaded."""
    key = next(iter(UPLOAD.rows.values()))
    return bool(((rows["phase"] == key.phase) & (rows["clock"] == key.clock)).any())


def left_out(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """Cells without numbers, in any run: cell_id, experiment, status, reason."""
    rows = of_subject(table, subject)
    empty = rows[rows["arm"].isna()].drop_duplicates("cell_id")
    return empty[["cell_id", "experiment", "status", "reason"]].reset_index(drop=True)
