"""A study's results as pandas frames, for notebooks: the table, the fits behind the report's answers, the claims."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from vlmeter.analysis.by_run import BY_RUN
from vlmeter.analysis.decode_runs import DecodeLaw, decode, decode_law
from vlmeter.analysis.prefill_cells import PartCosts, cost_clock, part_costs, two_factor, vision_cells
from vlmeter.analysis.reading import Unknown, of_subject, subjects_of
from vlmeter.analysis.roofline import read_roofline
from vlmeter.analysis.spread import cell_modes, misgivings_of, mixed_cells
from vlmeter.analysis.step_times import StepLaw, step_law
from vlmeter.claims.files import read_claims
from vlmeter.common.errors import UserError
from vlmeter.numbers.intervals import Fit
from vlmeter.numbers.medians import Estimate
from vlmeter.table.files import read_table
from vlmeter.table.quantities import DECODE, LANGUAGE, PREFILL_SUM, VISION, Quantity

#: What names a row of `Results.fits`, the number with its interval, and what it is made of.
FIT_COLUMNS = (
    *("subject", "law", "term", "unit", "value", "low", "high"),
    *("time", "points", "r_squared", "unknown", "modes"),
)


@dataclass(frozen=True)
class Results:
    """The results of a study.

    table: all that was measured, one row per cell, run, arm, phase and clock, with every sample; times in ms.
    folder: where it was read from; None if a table alone was named.
    """

    table: pd.DataFrame
    folder: Path | None = None

    @property
    def subjects(self) -> list[str]:
        """Names of the subjects, in alphabetical order."""
        return subjects_of(self.table)

    @cached_property
    def prefills(self) -> pd.DataFrame:
        """One row per finished prefill: counts, quantities with their 95 % intervals, and who sets the pace.

        modes: what of it has two modes, whose median is the time of no run; empty if nothing has.
        """
        return self._of_each(vision_cells, with_modes=True)

    @cached_property
    def generations(self) -> pd.DataFrame:
        """One row per photograph and output length: decode, prefill, their sum, each in ms with its 95 % interval.

        modes: as of `prefills`.
        """
        return self._of_each(decode, with_modes=True)

    @cached_property
    def modes(self) -> pd.DataFrame:
        """One row per subject, run, cell and quantity with two modes: both in ms, and the rounds at each."""
        rows = [
            (
                *(name, one.run, one.cell_id, one.quantity.name),
                *(one.modes.low, one.modes.low_count, one.modes.high, one.modes.high_count),
            )
            for name in self.subjects
            for one in cell_modes(self.table, name)
        ]
        counted = ["low_ms", "low_rounds", "high_ms", "high_rounds"]
        return pd.DataFrame(rows, columns=["subject", "run", "cell_id", "quantity", *counted])

    @cached_property
    def fits(self) -> pd.DataFrame:
        """One row per subject, law and term: the number with its 95 % interval, and what it is made of.

        law: "costs" (of a crop and a token, each told by its part of the model), "prefill_plane" (over crops and
        prompt tokens), "decode_line" (over steps, relative least squares), "decode_log_log" (its slope over steps),
        "step_line" (over the context); time: which time it is about; points: how many cells it has; unknown: why
        there is no number, where there is none; modes: which of these cells have two modes, both of them said.
        """
        rows = [row for name in self.subjects for row in _fits_of(self.table, name)]
        return pd.DataFrame(rows, columns=list(FIT_COLUMNS))

    @cached_property
    def claims(self) -> pd.DataFrame:
        """One row per subject and claim: verdict and statement. Raises UserError without claims.json."""
        found = read_claims(self._file("claims.json"))
        rows = [
            (subject, claim.name, claim.verdict, claim.statement) for subject, own in found.items() for claim in own
        ]
        return pd.DataFrame(rows, columns=["subject", "claim", "verdict", "statement"])

    @cached_property
    def roofline(self) -> pd.DataFrame:
        """Measured times beside the floor of each phase. Raises UserError without roofline.parquet."""
        return read_roofline(self._file("roofline.parquet"))

    def _file(self, name: str) -> Path:
        path = None if self.folder is None else self.folder / name
        if path is None or not path.is_file():
            where = "a table alone was loaded" if self.folder is None else f"{self.folder} holds no {name}"
            raise UserError(f"{where}; legal: the folder of a study that has run, with {name} in it")
        return path

    def _of_each(self, make: Callable[[pd.DataFrame, str], pd.DataFrame], *, with_modes: bool = False) -> pd.DataFrame:
        frames = []
        for name in self.subjects:
            frame = make(self.table, name).drop(columns=BY_RUN, errors="ignore")
            frame.insert(0, "subject", name)
            if with_modes:
                said: dict[str, list[str]] = {}
                for one in cell_modes(self.table, name):
                    said.setdefault(one.cell_id, []).append(f"{one.quantity.noun}: {one.modes.said()}")
                frame["modes"] = [
                    "" if is_derived else "; ".join(dict.fromkeys(said.get(str(cell), [])))
                    for cell, is_derived in zip(frame["cell_id"], _derived(frame), strict=True)
                ]
            frames.append(frame)
        kept = [frame for frame in frames if len(frame)] or frames[:1]
        return pd.concat(kept, ignore_index=True) if kept else pd.DataFrame()


def _derived(frame: pd.DataFrame) -> list[bool]:
    """Which rows are sums of the first steps of a longer run of the same cell, whose modes are not theirs."""
    return [source == "derived" for source in frame["source"]] if "source" in frame else [False] * len(frame)


def load(place: str | Path) -> Results:
    """Read the results of a study: its folder, such as results/quickstart, or a table.parquet.

    Raises UserError where there is no table, or it is damaged or of another version.
    """
    path = Path(place)
    if path.is_dir():
        if not (path / "table.parquet").is_file():
            raise UserError(f"{path} holds no table.parquet; legal: the folder of a study that has run")
        return Results(read_table(path / "table.parquet"), path)
    return Results(read_table(path))


def _fits_of(table: pd.DataFrame, subject: str) -> Iterator[dict[str, Any]]:
    """Rows of one subject, law after law."""
    cells, runs = vision_cells(table, subject), decode(table, subject)
    clock, table_of_subject = cost_clock(cells), of_subject(table, subject)

    def modes(quantity: Quantity, frame: pd.DataFrame) -> str:
        own = set(frame["cell_id"].astype(str)) if len(frame) else set()
        return misgivings_of(mixed_cells(table_of_subject, own, quantity), len(own))

    def row(
        law: str, term: str, unit: str, estimate: Estimate | Unknown, time: str, fit: Fit | None, mixed: str
    ) -> dict[str, Any]:
        known = Estimate(math.nan, math.nan, math.nan) if isinstance(estimate, Unknown) else estimate
        reason = estimate.reason if isinstance(estimate, Unknown) else ""
        rests = (fit.count, fit.r_squared) if fit else (pd.NA, math.nan)
        values = (subject, law, term, unit, known.value, known.low, known.high, time, *rests, reason, mixed)
        return dict(zip(FIT_COLUMNS, values, strict=True))

    def rows(law: str, terms: dict[str, str], fit: Fit | Unknown, time: str, mixed: str) -> Iterator[dict[str, Any]]:
        for term, unit in terms.items():
            own = fit if isinstance(fit, Unknown) else fit[term]
            yield row(law, term, unit, own, time, None if isinstance(fit, Unknown) else fit, mixed)

    costs: PartCosts = part_costs(cells)
    told_by = LANGUAGE if len(cells) and cells["crops"].nunique() > 1 else PREFILL_SUM
    yield row("costs", "crop", "ms", costs.crop, f"{clock.name} of the vision side", None, modes(VISION, cells))
    yield row("costs", "token", "ms", costs.token, f"{clock.name} of {costs.token_is_of}", None, modes(told_by, cells))
    plane = two_factor(cells, clock.quantity)
    terms = {"crop": "ms", "token": "ms", "constant": "ms"}
    yield from rows("prefill_plane", terms, plane, clock.name, modes(clock.quantity, cells))
    law: DecodeLaw | Unknown = decode_law(runs)
    line, power = (law, law) if isinstance(law, Unknown) else (law.line, law.power)
    gaps, of_decode = "device time with gaps", modes(DECODE, runs)
    yield from rows("decode_line", {"per_token": "ms", "constant": "ms"}, line, gaps, of_decode)
    yield from rows("decode_log_log", {"slope": "times"}, power, gaps, of_decode)
    steps: StepLaw | Unknown = step_law(table, subject)
    step, of_steps = (steps, "") if isinstance(steps, Unknown) else (steps.fit, steps.misgivings())
    yield from rows("step_line", {"per_context_token": "ms", "constant": "ms"}, step, gaps, of_steps)
