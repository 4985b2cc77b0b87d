"""What a claim is, and the data that claims are judged by."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import pandas as pd

from vlmeter.analysis import (
    components,
    conditions,
    decode_runs,
    distribution,
    flops,
    held_out,
    prefill_cells,
    reading,
)
from vlmeter.analysis.answers import Answers, all_answers, answers_of, estimate_in
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.roofline import beside
from vlmeter.analysis.spread import misgivings_in, misgivings_of_requests
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import with_interval
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import SUBTRACTION_WALL, RowKey, is_busy

Verdict = Literal["holds", "does not hold", "cannot tell"]


@dataclass(frozen=True)
class Evidence:
    """One number behind a verdict; low and high are None where there is no interval."""

    name: str
    value: float
    low: float | None
    high: float | None
    unit: str

    @classmethod
    def of(cls, name: str, estimate: Estimate, unit: str) -> Evidence:
        """Evidence from an estimate."""
        known = not (math.isnan(estimate.low) or math.isnan(estimate.high))
        return cls(name, estimate.value, estimate.low if known else None, estimate.high if known else None, unit)

    @property
    def said(self) -> str | None:
        """The number in words, a count without what belongs to a measurement; None where there is nothing to say."""
        if math.isnan(self.value) or self.unit == "of 0":
            return None
        counts = self.unit in ("", "tokens") or self.unit.startswith("of ")
        if counts and self.low is None and float(self.value).is_integer():
            return f"{self.value:,.0f} {self.unit}".strip()
        low, high = (math.nan if end is None else end for end in (self.low, self.high))
        return with_interval(Estimate(self.value, low, high), self.unit)


@dataclass(frozen=True)
class Claim:
    """A judged statement.

    claim is what was to be judged; statement is what the data say, worded by the verdict. concerns: whether the subject
    is and has what the claim is about; a page leaves out what does not concern it.
    """

    name: str
    claim: str
    verdict: Verdict
    statement: str
    evidence: tuple[Evidence, ...] = ()
    figures: tuple[str, ...] = ()
    concerns: bool = True


@dataclass(frozen=True)
class Finding:
    """What a claim's function returns: verdict, words and numbers."""

    verdict: Verdict
    statement: str
    evidence: tuple[Evidence, ...] = ()


def cannot_tell(reason: str) -> Finding:
    """A finding that the data cannot give."""
    return Finding("cannot tell", f"Cannot be told: {reason}.")


class Data:
    """One subject's rows, and what several claims want of them."""

    def __init__(
        self,
        table: pd.DataFrame,
        roofline: pd.DataFrame | None = None,
        answers: Answers | None = None,
        by_subject: Mapping[str, Answers] | None = None,
    ) -> None:
        self.table = table
        self.roofline = roofline
        self._answers = answers
        self._by_subject = by_subject

    @cached_property
    def answers(self) -> Answers:
        """The subject's answers: those that were handed over, else made from its rows."""
        return answers_of(self.table, roofline=self.roofline) if self._answers is None else self._answers

    @cached_property
    def by_subject(self) -> Mapping[str, Answers]:
        """Answers of every subject of the table, where it holds several."""
        found = all_answers(self.table) if self._by_subject is None else self._by_subject
        return {name: own for name, own in found.items() if name in reading.subjects_of(self.table)}

    def answer(self, name: str) -> Estimate | Unknown:
        """Value of an answer, or why it is not known."""
        return estimate_in(self.answers, name)

    def has(self, *asked: Kind) -> bool:
        """Whether cells of each of these kinds were asked for."""
        return set(asked) <= set(self.table["kind"].dropna())

    @cached_property
    def timed_busy(self) -> bool:
        """Whether the time was measured for which the device works; a processor is its own host, and has none."""
        return any(is_busy(RowKey("", "", str(clock))) for clock in self.table["clock"].dropna().unique())

    @cached_property
    def cells(self) -> pd.DataFrame:
        """Vision-token cells."""
        return prefill_cells.vision_cells(self.table)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """Generations by photograph and length."""
        return decode_runs.decode(self.table)

    @cached_property
    def law(self) -> decode_runs.DecodeLaw | Unknown:
        """How decode grows."""
        return decode_runs.decode_law(self.runs)

    @cached_property
    def requests(self) -> distribution.Sample:
        """Requests of the distribution."""
        return distribution.sample_of(self.table)

    @cached_property
    def explanation(self) -> distribution.Explanation | Unknown:
        """What makes requests slow."""
        return distribution.explain(self.requests)

    @cached_property
    def profile(self) -> components.Profile | Unknown:
        """Parts of a mean request, with their work where it is known."""
        table = self.table
        if self.roofline is not None and "flops" in self.roofline and "flops" not in table:
            table = beside(table, self.roofline)
        return components.profile(table)

    @cached_property
    def wander(self) -> float:
        """How much a cell differs from visit to visit."""
        return conditions.sentinel_wander(self.table)

    @cached_property
    def subtraction_falls(self) -> list[prefill_cells.Fall] | Unknown:
        """Where subtraction's LLM prefill falls."""
        return prefill_cells.falls(self.cells, SUBTRACTION_WALL, wander_fraction=self.wander)

    @cached_property
    def worked(self) -> pd.DataFrame | Unknown:
        """The subject's rows with work and floors beside them."""
        if self.roofline is None or self.roofline.empty:
            return Unknown("the device's ceilings were not measured")
        return beside(self.table, self.roofline)

    @cached_property
    def points(self) -> pd.DataFrame | Unknown:
        """FLOPs and time of every phase of every cell."""
        return self.worked if isinstance(self.worked, Unknown) else flops.points(self.worked)

    @cached_property
    def modes_over_flops(self) -> str:
        """What has two modes among the cells of `points`, as a sentence; empty if nothing has."""
        return "" if isinstance(self.points, Unknown) else misgivings_in(self.points)

    @cached_property
    def modes_of_requests(self) -> str:
        """What has two modes among the cells that predictions are learnt from, as a sentence; empty if nothing has."""
        return misgivings_of_requests(self.table)

    @cached_property
    def models(self) -> flops.Models | Unknown:
        """How well FLOPs and floors predict latency."""
        return self.points if isinstance(self.points, Unknown) else flops.compare_models(self.points)

    @cached_property
    def held_out(self) -> pd.DataFrame | Unknown:
        """Every cell, predicted from the others."""
        return held_out.held_out(self.table)


def sentence(said: str) -> str:
    """Make what is said a sentence that stands behind another one; empty of nothing."""
    return f" {said}." if said else ""


def ends_of(estimate: Estimate) -> tuple[float, float]:
    """Ends of the interval; the value twice where there is none."""
    if math.isnan(estimate.low) or math.isnan(estimate.high):
        return estimate.value, estimate.value
    return estimate.low, estimate.high


def within(estimate: Estimate, low: float, high: float) -> Verdict:
    """Judge whether an estimate lies between two limits: all of its interval, none of it, or neither."""
    bottom, top = ends_of(estimate)
    if math.isnan(bottom):
        return "cannot tell"
    if low <= bottom and top <= high:
        return "holds"
    return "does not hold" if top < low or bottom > high else "cannot tell"


def listed(factors: Sequence[str]) -> str:
    """Name factors of `distribution.FACTORS` in words."""
    words = [distribution.FACTORS[name] for name in factors]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
