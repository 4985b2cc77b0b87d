"""What a cell is, as far as numbers go: a prefill, a generation, or many requests.

A prefill whose picture is sent to a server otherwise than the subject's pictures are is of a kind of its own here: it
is measured as any prefill, and its time is set beside that of the same picture; no law of prefills is made of both.

An experiment is a question, and several questions may be asked of cells of one kind. So whoever reads the table chooses
its rows by their kind and never by the name of an experiment.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from vlmeter.cells.cell import Kind as Kind

if TYPE_CHECKING:
    import pandas as pd

#: One request with one output token, measured in rounds; one with decode steps; many requests, measured once each.
PREFILL: Kind = "prefill"
GENERATION: Kind = "generation"
REQUESTS: Kind = "requests"

#: A prefill whose picture is sent otherwise (`Cell.encoding`).
OTHERWISE = "prefill_otherwise"

#: Kind of the cells that each experiment had before the table said it.
_BEFORE: Mapping[str, Kind] = {
    "vision_tokens": PREFILL,
    "output_tokens": GENERATION,
    "latency_distribution": REQUESTS,
}


def kinds_of_experiments(experiments: pd.Series[str]) -> pd.Series[str]:
    """Say it of a table that was written before it had a column for it."""
    return experiments.map(_BEFORE).astype("string")
