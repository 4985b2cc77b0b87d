"""Tables of the page: fields that know what they are sorted by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
from markupsafe import Markup

from vlmeter.analysis import reading
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import Quantity


@dataclass(frozen=True)
class Value:
    """A field of a table: what it says, and by what it is sorted."""

    text: str
    key: float | str = ""
    image: Markup | None = None

    @property
    def is_number(self) -> bool:
        """Whether it sorts as a number."""
        return isinstance(self.key, float)


@dataclass(frozen=True)
class Grid:
    """A table of the page: columns as (heading, what it means)."""

    name: str
    caption: str
    columns: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Value]]

    @property
    def filled(self) -> Grid:
        """Leave out columns in which no row says anything: they would only push others off the page."""
        if not self.rows:
            return self
        told = [any(row[place].text or row[place].image for row in self.rows) for place in range(len(self.columns))]
        return replace(
            self,
            columns=[column for column, says in zip(self.columns, told, strict=True) if says],
            rows=[[value for value, says in zip(row, told, strict=True) if says] for row in self.rows],
        )

    def where_cut(self) -> Grid:
        """Leave the column of crops out where no image is cut: of a family that cuts none there is nothing to say."""
        place = self._place("crops")
        is_cut = any(row[place].is_number and float(row[place].key) > 1 for row in self.rows)
        return self if is_cut else self.without("crops")

    def without(self, heading: str) -> Grid:
        """Leave a column out."""
        place = self._place(heading)
        rows = [[*row[:place], *row[place + 1 :]] for row in self.rows]
        return replace(self, columns=[*self.columns[:place], *self.columns[place + 1 :]], rows=rows)

    def _place(self, heading: str) -> int:
        return [name for name, _ in self.columns].index(heading)


def word_value(value: Any) -> Value:
    """A field of text."""
    text = "" if value is None or pd.isna(value) else str(value)
    return Value(text, text)


def count_value(value: Any) -> Value:
    """A field of a count."""
    return Value("", math.nan) if pd.isna(value) else Value(f"{int(value):,}", float(value))


def measured_value(row: Any, quantity: Quantity) -> Value:
    """A quantity of an analysis frame, with its interval."""
    return estimate_value(reading.estimate_of(row, quantity), "" if quantity.unit == "times" else quantity.unit)


def estimate_value(estimate: Estimate, unit: str) -> Value:
    """A field of an estimate, said with its interval."""
    return Value("", math.nan) if math.isnan(estimate.value) else Value(with_interval(estimate, unit), estimate.value)


def is_true(value: Any) -> bool:
    """Whether a value of the table is there and true."""
    return not pd.isna(value) and bool(value)


def whole_number(value: Any) -> int:
    """A count of the table, 0 where it is absent."""
    return 0 if pd.isna(value) else int(value)
