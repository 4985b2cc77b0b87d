"""Rows of a table of several runs: run by run, or pooled.

A number with an interval is estimated in each run by itself, and the runs' estimates are made one
(`vlmeter.analysis.by_run`, `vlmeter.numbers.clusters`). What is shown as it was (steps, requests, the longest and the
shortest) is pooled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from vlmeter.numbers.clusters import over_runs
from vlmeter.numbers.medians import Estimate
from vlmeter.table.columns import STATISTICS
from vlmeter.table.quantities import RowKey, is_step_by_context

#: What names a row, but for its run.
_KEY = ("subject", "cell_id", "output_tokens", *RowKey._fields, "source")

#: Columns of a pooled row that are sums over runs, and those that hold if they hold in any run, or in all.
_SUMS = ("rounds", "samples", "disturbed_samples", "failed_requests")
_ANY, _ALL = ("drifted", "remeasured"), ("warmup_settled",)

#: Columns of a pooled row that are means over runs.
_MEANS = ("joules_per_repeat",)


def runs_of(rows: pd.DataFrame) -> list[pd.DataFrame]:
    """The rows of each run, in the order of runs; of a table that does not tell it, all rows."""
    if "run" not in rows or rows["run"].nunique() < 2:
        return [rows]
    return [own for _, own in rows.groupby("run", sort=True)]


def pooled_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for the rows of all runs that are of the same thing, in their order; the table itself with one run.

    Samples stand one run behind the other, but for steps by context, which are averaged. Median and its interval are
    those of the runs made one.
    """
    if "run" not in rows or rows["run"].nunique() < 2:
        return rows
    found = [
        _pooled(own.to_dict("records")) if len(own) > 1 else own.iloc[0].to_dict()
        for _, own in rows.groupby([name for name in _KEY if name in rows], sort=False, dropna=False)
    ]
    frame = pd.DataFrame(found, columns=list(rows.columns))
    return frame.astype({name: dtype for name, dtype in rows.dtypes.items() if name != "samples_ms"})


def _pooled(rows: Sequence[Mapping[Any, Any]]) -> dict[Any, Any]:
    first = dict(rows[0])
    known = [row for row in rows if row.get("samples_ms") is not None]
    for name in _SUMS:
        told = [row[name] for row in rows if name in row and not pd.isna(row[name])]
        first |= {name: sum(told)} if told else {}
    for names, how in ((_ANY, any), (_ALL, all), (_MEANS, np.mean)):
        for name in names:
            told = [row[name] for row in rows if name in row and not pd.isna(row[name])]
            first |= {name: how(told)} if told else {}
    reasons = [row["disturbances"] for row in rows if not pd.isna(row.get("disturbances"))]
    if reasons:
        first["disturbances"] = "; ".join(dict.fromkeys(name for text in reasons for name in text.split("; ")))
    if not known:
        return first
    samples = [np.asarray(row["samples_ms"], dtype=np.float64) for row in known]
    if is_step_by_context(RowKey(first["arm"], first["phase"], first["clock"])):
        reached = min(len(own) for own in samples)
        whole = np.mean([own[:reached] for own in samples], axis=0)
    else:
        whole = np.concatenate(samples)
    middle = over_runs([_median(row) for row in known if len(row["samples_ms"])])
    first["samples_ms"] = whole
    for column in STATISTICS:
        if column.name in first and column.statistic is not None and len(whole) >= column.least:
            first[column.name] = float(column.statistic(np.sort(whole)[None, :], np.zeros(1))[0])
    return first | {"median_ms": middle.value, "low_ms": middle.low, "high_ms": middle.high}


def _median(row: Mapping[Any, Any]) -> Estimate:
    """A row's median with its interval, as the table has it."""
    return Estimate(float(row["median_ms"]), float(row["low_ms"]), float(row["high_ms"]))
