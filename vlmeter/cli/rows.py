"""Rows of plain values as a table for people, as CSV or as JSON."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from vlmeter.common.errors import UserError


def rows_as(rows: list[dict[str, Any]], columns: list[str], *, form: str, title: str = "") -> str:
    """Lay rows out as json, csv or a table for people; raises UserError on another form."""
    if form == "json":
        return json.dumps(rows, indent=2)
    if form == "csv":
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: row.get(name) for name in columns} for row in rows)
        return buffer.getvalue().rstrip("\n")
    if form == "table":
        import tabulate

        tabulate.MIN_PADDING = 0  # a column is no wider than what stands in it
        cells = [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]
        numeric = [all(_is_number(line[i]) for line in cells if line[i]) for i in range(len(columns))]
        sides = ["right" if right else "left" for right in numeric]
        laid_out = tabulate.tabulate(
            cells, columns, "simple", disable_numparse=True, colalign=sides, headersalign=sides
        )
        lines = [line.rstrip() for line in laid_out.splitlines()]
        return "\n".join([title, *lines] if title else lines)
    raise UserError(f"--format: {form!r} is not known; legal: table, csv, json")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
