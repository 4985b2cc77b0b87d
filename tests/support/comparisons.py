"""Two sides of a comparison: drawn by the benchmark's noise, or measured on a fake subject."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import Noise, Plan, session
from tests.support.fakes import FakeRunner
from tests.support.tables import table_of
from vlmeter.compare.baseline import Run, run_of_table
from vlmeter.compare.compare import compare
from vlmeter.compare.comparison import TOTAL_NAME, Comparison, Side
from vlmeter.table.files import write_table

#: A device on which hardly anything moves.
QUIET = Noise(offset_fraction=0.0005, wander_fraction=0.0005, scatter_fraction=0.002, tail_share=0.0)

VISION: dict[str, Any] = {"tilings": ["1x1", "1x2", "2x2", "1x5", "2x4", "3x4"]}


def drawn(seed: int, *, cells: int = 12, noise: Noise = QUIET, slower: Any = 0.0, name: str = "s") -> Run:
    """One session, drawn."""
    return session(Plan(cells=cells), noise, np.random.default_rng(seed), slower=slower, name=name)


def compared(a: Run | list[Run], b: Run | list[Run], **options: Any) -> Comparison:
    """Compare runs."""
    return compare(
        Side("A", a if isinstance(a, list) else [a]), Side("B", b if isinstance(b, list) else [b]), **options
    )


def verdicts(comparison: Comparison) -> dict[str, str]:
    """Verdict by cell, of the first subject's total."""
    return {cell.cell_id: cell.effect.verdict for cell in comparison.of(TOTAL_NAME)[0].cells}


def overall(comparison: Comparison) -> Any:
    """The overall effect of the first subject's total."""
    return comparison.of(TOTAL_NAME)[0].overall[0].effect


def changed(run: Run, *, facts: Mapping[str, str] | None = None, **changes: Any) -> Run:
    """The run with other facts, or with the first subject's other fields changed."""
    (subject,) = run.subjects
    facts = {**subject.facts, **(facts or {})}
    return run.model_copy(update={"subjects": [subject.model_copy(update={"facts": facts, **changes})]})


def results_of(folder: Path, *, seed: int = 0, slowdown: float = 1.0, **options: Any) -> Path:
    """Measure a fake study; returns its results folder, with the table in it."""
    runner = FakeRunner(noise_fraction=0.005, seed=seed, slowdown=slowdown)
    table = table_of(folder, runner=runner, **{"vision": VISION, "output": None, **options})
    root = folder / "small"
    write_table(table, root / "table.parquet", root / "table.csv")
    return root


def measured(folder: Path, **options: Any) -> Run:
    """Measure a fake study, as a run."""
    return run_of_table(table_of(folder, **{"vision": VISION, "output": None, **options}))
