"""Cells of several runs: what each run says of them by itself, and one estimate of all.

A frame of cells carries what each run says of a cell in its column BY_RUN, so that a fit over cells can be made run by
run as well, however the frame was filtered and sorted meanwhile.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from vlmeter.analysis.reading import Unknown, estimate_of, median_in, put_estimate
from vlmeter.numbers.clusters import added, over_runs, share_between, variance_between, variance_within
from vlmeter.numbers.intervals import Fit
from vlmeter.numbers.medians import Estimate, median_of_estimates
from vlmeter.numbers.words import interval_of_few
from vlmeter.table.quantities import Quantity

#: Column of a frame of cells: run -> the run's own values, by column; absent where there is one run.
BY_RUN = "by_run"


def combined(
    frames: Sequence[pd.DataFrame],
    quantities: Sequence[Quantity],
    *,
    key: Sequence[str],
    how: Callable[[Sequence[Estimate]], Estimate] = over_runs,
) -> pd.DataFrame:
    """Make frames of cells, one of each run, one frame: estimates made one, all else as the first run has it.

    key: the columns that name a cell. how: makes the estimates of all runs one. The column BY_RUN says what each run
    says; one frame alone is returned as it is.
    """
    if len(frames) == 1:
        return frames[0]
    found: dict[tuple[Any, ...], dict[int, dict[Any, Any]]] = {}
    for run, frame in enumerate(frames):
        for row in frame.to_dict("records"):
            found.setdefault(tuple(row[name] for name in key), {})[run] = row
    columns = [column for quantity in quantities for column in quantity.columns]
    made = []
    for by_run in found.values():
        whole: dict[str, Any] = {str(name): value for name, value in next(iter(by_run.values())).items()}
        for quantity in quantities:
            put_estimate(whole, quantity, how([estimate_of(each, quantity) for each in by_run.values()]))
        if "drifted" in whole:
            whole["drifted"] = any(bool(each["drifted"]) for each in by_run.values() if not pd.isna(each["drifted"]))
        whole[BY_RUN] = {run: {column: each[column] for column in columns} for run, each in by_run.items()}
        made.append(whole)
    return pd.DataFrame(made, columns=[*frames[0].columns, BY_RUN])


def frames_by_run(cells: pd.DataFrame) -> list[pd.DataFrame]:
    """A frame of cells as each run alone tells it; the frame itself where there was one run."""
    if BY_RUN not in cells or cells.empty:
        return [cells]
    runs = sorted({run for by_run in cells[BY_RUN] for run in by_run})
    frames = []
    for run in runs:
        own = cells[[run in by_run for by_run in cells[BY_RUN]]]
        values = pd.DataFrame([by_run[run] for by_run in own[BY_RUN]], index=own.index)
        frames.append(own.drop(columns=BY_RUN).assign(**{str(name): values[name] for name in values.columns}))
    return frames


def with_runs(cells: pd.DataFrame, estimate: Callable[[pd.DataFrame], Estimate | Unknown]) -> Estimate | Unknown:
    """Estimate something of a frame of cells; of several runs in each of them as well, for its interval.

    Cells that do not lie on a line do not in any run, so that what differs from cell to cell (in the interval over the
    cells) and what differs from run to run are two errors (`vlmeter.numbers.clusters.added`). Unknown where a run does
    not tell it.
    """
    across = estimate(cells)
    if isinstance(across, Unknown) or BY_RUN not in cells:
        return across
    found = [estimate(frame) for frame in frames_by_run(cells)]
    unknown = next((one for one in found if isinstance(one, Unknown)), None)
    return unknown or added(across, [one for one in found if isinstance(one, Estimate)])


def fit_with_runs(cells: pd.DataFrame, fit: Callable[[pd.DataFrame], Fit | Unknown]) -> Fit | Unknown:
    """Fit a frame of cells; of several runs each as well, for the intervals of the coefficients, as in `with_runs`."""
    across = fit(cells)
    if isinstance(across, Unknown) or BY_RUN not in cells:
        return across
    return added_fits(across, [found for frame in frames_by_run(cells) if not isinstance(found := fit(frame), Unknown)])


def added_fits(across: Fit, by_run: Sequence[Fit]) -> Fit:
    """A fit whose coefficients have the interval between the runs' own fits added to theirs."""
    if len(by_run) < 2:
        return across
    coefficients = {
        name: added(found, [fit[name] for fit in by_run if name in fit.coefficients])
        for name, found in across.coefficients.items()
    }
    return replace(across, coefficients=coefficients)


@dataclass(frozen=True)
class BetweenRuns:
    """How far the runs of a subject lie apart, and what part of its intervals comes from that.

    apart_fraction: standard deviation of a run's time as a part of it, sampling errors taken off; share: part of the
    variance of a cell's time that is between runs. Both are medians over the cells.
    """

    runs: int
    cells: int
    apart_fraction: float
    share: float


def told_by_run(cells: pd.DataFrame, quantity: Quantity) -> list[list[Estimate]]:
    """What each run says of a quantity, cell by cell of a frame; empty with one run."""
    if BY_RUN not in cells:
        return []
    return [[estimate_of(values, quantity) for values in by_run.values()] for by_run in cells[BY_RUN]]


def between_runs(told: Sequence[Sequence[Estimate]]) -> BetweenRuns | None:
    """Say how far runs lie apart from what each of them says of every cell; None where no two say anything."""
    known = [own for each in told if len(own := [one for one in each if one.value > 0]) > 1]
    if not known:
        return None
    apart = [
        math.sqrt(max(0.0, variance_between(own) - variance_within(own))) / (sum(one.value for one in own) / len(own))
        for own in known
    ]
    shares = [share_between(own) for own in known]
    return BetweenRuns(max(map(len, known)), len(known), float(np.median(apart)), float(np.median(shares)))


def median_over(cells: pd.DataFrame, quantity: Quantity, *, per: str | None = None) -> Estimate:
    """Median of a quantity over cells, by a column if one is named; of few cells with an interval of theirs.

    Of several runs what each cell is off by is counted between them, and not once more here.
    """
    several = BY_RUN in cells

    def middle(own: pd.DataFrame) -> Estimate:
        found = own[list(quantity.columns)].div(1 if per is None else own[per], axis=0)
        if several:
            return median_in(found, quantity)
        return median_of_estimates([estimate_of(cell, quantity) for cell in found.to_dict("records")])

    estimate = with_runs(cells, middle)
    assert isinstance(estimate, Estimate)
    return estimate


def of_few(found: Estimate | Unknown, cells: pd.DataFrame) -> str:
    """Say whose interval a median over cells has, where there is none over so few of them; begins with a comma."""
    return "" if isinstance(found, Unknown) or BY_RUN in cells else interval_of_few(found, len(cells))
