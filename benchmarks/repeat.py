"""What repeats, and what does not? One study in several runs, on one card and on another, side by side.

    python -m benchmarks.repeat results/backends-7b-d                       # one card
    python -m benchmarks.repeat docs/repeat/card-1 docs/repeat/card-2       # two cards
    python -m benchmarks.repeat docs/repeat/card-1 docs/repeat/card-2 --day docs/gallery --subjects molmo-7b-d:eager

reads finished studies with `runs: 2` or more, and prints a table for each subject: how far the medians of one cell lie
apart from run to run (the largest over the smallest, less 1) on each card, and how far the means of the cards lie
apart; of several cells the one where it is most. `--day` sets a study of another day beside them, which may have one
run: how far its medians lie from the mean of all runs of the cards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from types import MappingProxyType

import pandas as pd

from vlmeter.common.errors import UserError
from vlmeter.table.files import read_table
from vlmeter.table.kinds import GENERATION, PREFILL, Kind
from vlmeter.table.quantities import (
    BUSY_PREFILL,
    BUSY_STEP,
    BUSY_VISION,
    DECODE_STEP,
    INPUTS_WALL,
    LLM_BLOCKS,
    PLAIN_WALL,
    VISION_ENCODER,
    Quantity,
)

#: What is looked at: its words, the quantity, in which kind of cell.
LOOKED_AT: Sequence[tuple[str, Quantity, Kind]] = (
    ("preprocessing and copy, wall time", INPUTS_WALL, PREFILL),
    ("vision encoder, device time with gaps", VISION_ENCODER, PREFILL),
    ("LLM blocks of a prefill, device time with gaps", LLM_BLOCKS, PREFILL),
    ("prefill, wall time", PLAIN_WALL, PREFILL),
    ("vision side, device busy", BUSY_VISION, PREFILL),
    ("prefill, device busy", BUSY_PREFILL, PREFILL),
    ("decode step, device time with gaps", DECODE_STEP, GENERATION),
    ("decode step, device busy", BUSY_STEP, GENERATION),
    ("whole answer, wall time", PLAIN_WALL, GENERATION),
)

#: Columns of a table that tell whose number a median is.
COLUMNS = ("subject", "run", "cell_id", "kind", "arm", "phase", "clock", "median_ms", "device_model")


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """How well one quantity of one subject repeats.

    run_to_run: for each card the largest over the smallest run's median, minus 1, of the cell where that is most.
    between: how far the means of two cards lie apart, likewise; absent for one card. day: how far another day's median
    lies from the mean of all runs, likewise; absent where that day measured nothing alike.
    """

    subject: str
    words: str
    cells: int
    run_to_run: tuple[float, ...]
    between: float | None
    day: float | None = None


def repeated(
    tables: Sequence[pd.DataFrame],
    *,
    day: pd.DataFrame | None = None,
    same: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Repeated]:
    """Tell how well every quantity of every subject repeats that all tables have.

    tables: of one card each, with the columns COLUMNS. day: the same of another day, whose subjects may have other
    names. same: subject -> its name there. Cells that were not measured in every run are left out.
    """
    for subject in dict.fromkeys(tables[0]["subject"]):
        for words, quantity, kind in LOOKED_AT:
            cards = [_by_run(table, str(subject), quantity, kind) for table in tables]
            shared = set.intersection(*(set(card.index) for card in cards))
            if not shared:
                continue
            own = [card.loc[sorted(shared)] for card in cards]
            means = [card.mean(axis=1) for card in own]
            yield Repeated(
                subject=str(subject),
                words=words,
                cells=len(shared),
                run_to_run=tuple(float((card.max(axis=1) / card.min(axis=1) - 1).max()) for card in own),
                between=max((float((a / b - 1).abs().max()) for a, b in combinations(means, 2)), default=None),
                day=_from_day(day, same.get(str(subject)), pd.concat(own, axis=1).mean(axis=1), quantity, kind),
            )


def _from_day(
    day: pd.DataFrame | None, subject: str | None, means: pd.Series, quantity: Quantity, kind: Kind
) -> float | None:
    if day is None or subject is None:
        return None
    there = _by_run(day, subject, quantity, kind).mean(axis=1)
    apart = (there / means - 1).abs().dropna()
    return None if apart.empty else float(apart.max())


def _by_run(table: pd.DataFrame, subject: str, quantity: Quantity, kind: Kind) -> pd.DataFrame:
    """Medians in ms of a quantity: a row for each cell that every run has, a column for each run."""
    key = quantity.rows[kind]
    rows = table[
        (table["subject"] == subject)
        & (table["kind"] == kind)
        & (table["arm"] == key.arm)
        & (table["phase"] == key.phase)
        & (table["clock"] == key.clock)
    ]
    return rows.pivot_table(index="cell_id", columns="run", values="median_ms", observed=True).dropna()


def as_text(found: Sequence[Repeated], cards: Mapping[str, pd.DataFrame]) -> str:
    """Write a Markdown table for each subject."""
    lines = [f"{name}: {_models(table)}, {table['run'].nunique()} runs" for name, table in cards.items()]
    for subject in dict.fromkeys(one.subject for one in found):
        own = [one for one in found if one.subject == subject]
        with_day = any(one.day is not None for one in own)
        head = ["what", "cells", *(f"runs of {name}" for name in cards)]
        head += ["between cards"] * (len(cards) > 1) + ["another day"] * with_day
        lines += ["", f"| {subject}: " + " | ".join(head) + " |", "|---" * len(head) + "|"]
        for one in own:
            apart = [*one.run_to_run, *[one.between] * (len(cards) > 1), *[one.day] * with_day]
            lines.append(f"| {one.words} | {one.cells} | {' | '.join(map(_in_percent, apart))} |")
    return "\n".join(lines)


def _in_percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{fraction * 100:.1f} %"


def _models(table: pd.DataFrame) -> str:
    return ", ".join(sorted({str(model) for model in table["device_model"].dropna()}))


def table_of(folder: Path, *, fewest_runs: int = 2) -> pd.DataFrame:
    """Read a finished study's table. Raises UserError if it has fewer runs."""
    table = read_table(folder / "table.parquet", columns=COLUMNS)
    if table["run"].nunique() < fewest_runs:
        raise UserError(f"{folder} has one run: what repeats is told by two or more (`runs: 3` in the study)")
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.repeat", description=__doc__.partition("\n\n")[0])
    parser.add_argument("results", nargs="+", type=Path, help="folders of finished studies, one for each card")
    parser.add_argument("--day", type=Path, help="folder of a finished study of another day")
    parser.add_argument("--subjects", default="", metavar="THERE:HERE", help="which subject of that day is which here")
    given = parser.parse_args(arguments)
    there, _, here = given.subjects.partition(":")
    try:
        cards = {folder.name: table_of(folder) for folder in given.results}
        day = table_of(given.day, fewest_runs=1) if given.day else None
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(as_text(list(repeated(list(cards.values()), day=day, same={here: there})), cards))
    return 0


if __name__ == "__main__":
    sys.exit(main())
