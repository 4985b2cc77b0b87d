"""A run of the workflow: its lock, and its closing words."""

from __future__ import annotations

from collections.abc import Sequence

from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.numbers.words import plural
from vlmeter.study.layout import Layout


def take_run_lock(layout: Layout) -> int:
    """Be the only run of a study; returns a descriptor that holds the lock until it is closed or its process ends."""
    from vlmeter.common.locks import LockUnusable, holder, take

    try:
        descriptor = take(layout.lock, purpose="a run of this study")
    except LockUnusable as error:
        raise UserError(f"the results cannot be written: {error}") from None
    if descriptor is None:
        raise UserError(
            f"study {layout.study} is being run by {holder(layout.lock)}; wait until that run has ended, or end it, "
            "and start this one again: nothing has been changed"
        )
    return descriptor


def closing_words(layout: Layout, cells: Sequence[Cell], *, runs: int = 1) -> str:
    """Say how all cells of a study fared, in all of its runs, at the end."""
    from vlmeter.records.record import read_record

    counted = {"measured": 0, "out of memory": 0, "unsupported": 0, "flagged as drifted": 0, "missing": 0}
    for path in (layout.record(cell, run=run) for run in range(runs) for cell in cells):
        if not path.exists():
            counted["missing"] += 1
            continue
        record = read_record(path)
        counted["measured"] += record.status == "ok"
        counted["out of memory"] += record.status == "oom"
        counted["unsupported"] += record.status == "unsupported"
        counted["flagged as drifted"] += record.drift is not None and record.drift.drifted
    parts = [f"{number} {word}" for word, number in counted.items() if number]
    times = f" in {runs} runs" if runs > 1 else ""
    return f"{plural(len(cells), 'cell')}{times}: {', '.join(parts)}"
