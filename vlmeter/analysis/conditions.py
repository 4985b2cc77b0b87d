"""Under what conditions a subject was measured, and whether its numbers may be believed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import binom, norm

from vlmeter.analysis.by_run import between_runs, told_by_run
from vlmeter.analysis.decode_runs import decode
from vlmeter.analysis.distribution import sample_of
from vlmeter.analysis.prefill_cells import vision_cells
from vlmeter.analysis.reading import of_subject, whole_rows
from vlmeter.analysis.remembered import remembered
from vlmeter.analysis.runs import runs_of
from vlmeter.analysis.spread import by_cell, cell_modes, wide_cells
from vlmeter.analysis.step_times import UNEVEN_RATIO, StepBound, StepUnevenness, step_bound, step_unevenness
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import serial_correlation
from vlmeter.numbers.resemblance import ALONE, resemblance_of
from vlmeter.numbers.units import deviation, duration_range, percent
from vlmeter.numbers.words import plural
from vlmeter.table import kinds
from vlmeter.table.quantities import GENERATED, PLAIN_WALL


def sentinel(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """List the sentinel's visits.

    Columns: session_id, position (cells measured before it), median_ms, fraction (over the first visit, minus
    1), drifted.
    """
    rows = of_subject(table, subject)
    seen = rows.dropna(subset=["drift_reference_ms"]).drop_duplicates(["session_id", "cell_id"])
    found = []
    for session, cells in seen.groupby("session_id"):
        reference = float(cells["drift_reference_ms"].iloc[0])
        visits = {0: (reference, False)}
        for (_, _, drifted), batch in cells.groupby(["drift_before_ms", "drift_after_ms", "drifted"]):
            position = int(batch["session_position"].max()) + 1
            visits[position] = (float(batch["drift_after_ms"].iloc[0]), bool(drifted))
        found += [
            {
                "session_id": str(session),
                "position": position,
                "median_ms": value,
                "fraction": value / reference - 1,
                "drifted": drifted,
            }
            for position, (value, drifted) in sorted(visits.items())
        ]
    return pd.DataFrame(found, columns=["session_id", "position", "median_ms", "fraction", "drifted"])


def sentinel_wander(table: pd.DataFrame, subject: str | None = None) -> float:
    """Standard deviation of the sentinel from visit to visit, as a fraction; 0 below three visits."""
    visits = sentinel(table, subject)["fraction"].to_numpy(dtype=np.float64)
    return float(np.std(visits, ddof=1)) if len(visits) >= 3 else 0.0


def runs_in_words(table: pd.DataFrame, subject: str | None = None) -> str:
    """Say what part of the uncertainty is between runs, or why that cannot be known."""
    rows = of_subject(table, subject)
    count = len(runs_of(rows))
    if count < 2:
        return (
            "One run: intervals hold what differed within it. How far another run would lie from it cannot be known "
            "from one; three runs measure it (runs: 3 in the study)."
        )
    found = between_runs(told_by_run(vision_cells(rows), PLAIN_WALL) or told_by_run(decode(rows), GENERATED))
    if found is None:
        # the same requests in each, so that what these differ by is no error of a run
        middles = np.array([np.median(values) for values in sample_of(rows).by_run()])
        if len(middles) < 2:
            return f"{count} runs: every interval holds what differs between them."
        apart = percent(float(np.std(middles, ddof=1) / middles.mean()))
        return (
            f"{count} runs, whose median requests lie {apart} apart (standard deviation): every interval holds what "
            "differs between them."
        )
    over = f"median over {plural(found.cells, 'cell')}"
    if not found.apart_fraction:
        return f"{count} runs, which lie no further apart than their samples scatter ({over}). {_WIDE}"
    said = (
        f"{count} runs, which lie {percent(found.apart_fraction)} apart (standard deviation, {over}); "
        f"{percent(found.share)} of the variance of a cell's time is between runs, the rest is scatter within them."
    )
    return f"{said} {_WIDE}" if found.share < _NEAR_SHARE else said


#: Below this share of the variance runs lie nearer to each other than what their samples leave open; see
#: benchmarks/README.md, where three runs 0.4 % apart have medians whose intervals hold 99.3 % of the time.
_NEAR_SHARE = 0.5
_WIDE = "Intervals over runs so near to each other are wider than they need be: 99 of 100 hold."


def _resembling(rows: pd.DataFrame, cells: int) -> str:
    """Say in which cells rounds resemble the ones before them by more than intervals know of; empty if in none.

    Intervals know what the cells of a run say together (`numbers.resemblance`). A cell that goes beyond that by more
    than chance would in one of a hundred is said if there are more of them than chance leaves.
    """
    beyond: dict[str, float] = {}
    high: list[float] = []
    for run in runs_of(rows):
        fine = run[run["status"] == "ok"]
        for kind in (kinds.PREFILL, kinds.GENERATION):
            totals = whole_rows(fine[fine["kind"] == kind])
            told = [(cell, serial_correlation(list(own)), len(own)) for cell, own in _rounds(totals)]
            like = resemblance_of([value for _, value, _ in told], [number for _, _, number in told])
            if like is ALONE:
                high += [own for _, value, number in told if (own := like.of(value, number)) > RESEMBLING_ALONE]
                continue
            high += [like.pooled] if like.pooled > RESEMBLING else []
            for cell, value, number in told:
                if like.beyond(value, number) > norm.ppf(1 - _TAKEN_FOR):
                    beyond[cell] = max(value, beyond.get(cell, value))
    if high:
        return (
            f"rounds resemble the ones before them (correlation {max(high):.1f}) by more than so few can tell, so that "
            "intervals of medians may be too narrow"
        )
    if len(beyond) > binom.ppf(1 - _SAID, cells * len(runs_of(rows)), _TAKEN_FOR):
        most = max(beyond, key=beyond.__getitem__)
        return (
            f"rounds of {len(beyond)} of {plural(cells, 'cell')} resemble the ones before them more than those of the "
            f"other cells do (most in {most}), so that the intervals of their medians may be too narrow"
        )
    return ""


def _rounds(totals: pd.DataFrame) -> Iterator[tuple[str, Array]]:
    return zip(totals["cell_id"].astype(str), totals["samples_ms"], strict=True)


@dataclass(frozen=True)
class Trust:
    """Whether the numbers may be trusted: "quiet", "disturbed" or "unusable", with the reasons."""

    verdict: str
    reasons: tuple[str, ...]


#: Share of cells above which a trouble makes the whole disturbed, and unusable.
DISTURBED_SHARE, UNUSABLE_SHARE = 0.05, 0.5


#: Share of cells with restless warm-up above which the whole is disturbed; of a few, the median takes no notice.
UNSETTLED_SHARE = 0.25


#: Wander of the sentinel from visit to visit above which the whole is disturbed, and unusable: cells that differ by
#: less than this cannot be told apart. (A quiet GPU stays within 1 %, a quiet desktop within some percent.)
DISTURBED_WANDER, UNUSABLE_WANDER = 0.05, 0.25


#: Share of cells that scatter widely above which the whole is disturbed.
WIDE_SHARE = 0.25


#: Cells with two modes that are named.
NAMED_MODES = 3

#: Correlation of a round with the one before above which intervals of medians hold less than 93 % of the time, though
#: they are widened for it: of a cell alone, and of a session whose cells tell it together (benchmarks/coverage.py).
RESEMBLING_ALONE, RESEMBLING = 0.45, 0.85

#: Chance of a cell to be taken for one whose rounds resemble each other more than the other cells' do, and chance to
#: say so of a subject without any such cell.
_TAKEN_FOR, _SAID = 0.01, 0.05


@remembered
def trust(table: pd.DataFrame, subject: str | None = None) -> Trust:
    """Judge the conditions under which the cells were measured.

    A cell is in trouble if the sentinel around it had drifted, or if most of its rounds were disturbed (a few
    disturbed rounds are left out of its statistics). The whole is, too, if the sentinel varied from visit to visit.
    So it is if cells have two modes, whose median is the time of no run, or if many scatter widely.
    Uneven decode steps are said and change no verdict: they are in the intervals of what is told about decode, and
    prefills need not be uneven for it. So are rounds that resemble the ones before them by more than the interval of
    a cell can be widened for.
    """
    rows = of_subject(table, subject)
    totals = whole_rows(rows[rows["status"] == "ok"])
    if totals.empty:
        return Trust("unusable", ("no cell was measured",))
    count = len(totals)
    drifted = totals["drifted"].fillna(False).astype(bool)
    kept = totals["disturbed_samples"] * 2 > totals["rounds"]
    some = (totals["disturbed_samples"] > 0) & ~kept
    unsettled = ~totals["warmup_settled"].fillna(True).astype(bool)
    reasons = []
    if drifted.any():
        reasons.append(f"the sentinel had drifted around {drifted.sum()} of {plural(count, 'cell')}")
    if kept.any():
        seen = {name for text in totals.loc[kept, "disturbances"].dropna() for name in text.split("; ")}
        names = "; ".join(sorted(seen))
        reasons.append(f"most rounds of {kept.sum()} of {plural(count, 'cell')} were disturbed ({names})")
    if some.any():
        reasons.append(f"single rounds of {some.sum()} of {plural(count, 'cell')} were disturbed, and are left out")
    if unsettled.any():
        reasons.append(f"warm-up had not settled in {unsettled.sum()} of {plural(count, 'cell')}")
    wander = sentinel_wander(rows)
    if wander > DISTURBED_WANDER:
        varied = deviation(wander, "its first value")
        reasons.append(f"the sentinel, one and the same cell, varied by {varied} from visit to visit")
    modes = by_cell(cell_modes(rows))
    if modes:
        named = "; ".join(f"{one.cell_id}, {one.quantity.noun}: {one}" for one in modes[:NAMED_MODES])
        more = f"; and {len(modes) - NAMED_MODES} more" if len(modes) > NAMED_MODES else ""
        have = "has" if len(modes) == 1 else "have"
        reasons.append(
            f"{len(modes)} of {plural(count, 'cell')} {have} two modes ({named}{more}); "
            "other cells may have met one of two only, which no interval of theirs can know"
        )
    wide = {cell: part for cell, part in wide_cells(rows).items() if cell not in {one.cell_id for one in modes}}
    if wide:
        widest = max(wide, key=wide.__getitem__)
        reasons.append(
            f"rounds of {len(wide)} of {plural(count, 'cell')} scatter widely: the middle half of {widest} spans "
            f"{percent(wide[widest])} of its median"
        )
    if resembling := _resembling(rows, count):
        reasons.append(resembling)
    steps = step_unevenness(rows)
    if isinstance(steps, StepUnevenness) and steps.ratio > UNEVEN_RATIO:
        pace = step_bound(rows)
        host = isinstance(pace, StepBound) and pace.bound == "launch-bound"
        reasons.append(
            f"decode steps that do the same work took {duration_range(steps.fast_ms, steps.slow_ms)} (5th to 95th "
            f"percentile): the {'host, which sets their pace,' if host else 'machine'} is uneven"
        )
    share = float((drifted | kept).mean())
    verdict = "quiet"
    spread = len(modes) / count > DISTURBED_SHARE or len(wide) / count > WIDE_SHARE
    if share > DISTURBED_SHARE or unsettled.mean() > UNSETTLED_SHARE or wander > DISTURBED_WANDER or spread:
        verdict = "disturbed"
    if share > UNUSABLE_SHARE or wander > UNUSABLE_WANDER:
        verdict = "unusable"
    return Trust(verdict, tuple(reasons) or ("no disturbance was seen",))
