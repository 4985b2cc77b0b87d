"""What each component of the model is, does and takes: parameters, arithmetic, traffic, time, memory, energy.

A component's share of the parameters says little about its share of the time: an embedding table has hundreds of
millions of parameters and hands out a few rows, a decode step reads all weights to make one token. So the shares stand
beside each other. All numbers are of a mean request: of the blocks of requests where these were measured, else of the
generations, else (without decode) of the prefills.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from vlmeter.analysis.reading import NO_ESTIMATE, Unknown, of_subject, rows_of
from vlmeter.analysis.runs import runs_of
from vlmeter.numbers.clusters import added, t_reach
from vlmeter.numbers.intervals import NORMAL_REACH, Array
from vlmeter.numbers.medians import CONFIDENCE, Estimate
from vlmeter.table import kinds
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import (
    DECODE,
    HOOKS_WALL,
    LANGUAGE,
    PHASES,
    PLAIN_WALL,
    PREFILL_SUM,
    REPEATED_PREFILL,
    REPEATED_VISION,
    VISION,
    WHOLE_REQUEST,
    Quantity,
)

#: The components, as spans of a pass: the phases of the prefill, and all decode steps together.
IN_PREFILL = tuple(phase.name for phase in PHASES)
PARTS = (*IN_PREFILL, DECODE.name)

#: What a part may have a share of: column of a profile's parts -> its name.
SHARES_OF: Mapping[str, str] = {
    "parameters": "parameters",
    "flops": "FLOPs",
    "traffic_bytes": "memory traffic",
    "time_ms": "time",
}

REPLICATES = 2000

#: Kinds of cells that may be profiled, the best first, and what they are.
_SOURCES: Mapping[Kind, str] = {
    kinds.REQUESTS: "requests",
    kinds.GENERATION: "generations",
    kinds.PREFILL: "prefills of dummy images",
}

#: The same where there was a single one.
_ONE = {"requests": "one request", "generations": "one generation", "prefills of dummy images": "one prefill"}


#: What energy is told of, and whose rows tell it, by kind of cell.
_SPENT: Mapping[Kind, Mapping[Quantity, Quantity]] = {
    kinds.REQUESTS: {WHOLE_REQUEST: WHOLE_REQUEST, PREFILL_SUM: REPEATED_PREFILL, VISION: REPEATED_VISION},
    kinds.GENERATION: {WHOLE_REQUEST: HOOKS_WALL},
    kinds.PREFILL: {PREFILL_SUM: PLAIN_WALL},
}


@dataclass(frozen=True)
class Profile:
    """Parts of a mean request.

    parts: a row per part of PARTS that was measured: part, parameters (absent for decode, which uses those of blocks
    and head again), flops, traffic_bytes (both absent without the roofline), time_ms, peak_bytes (absent where nothing
    counts memory). time_share, prefill_share: of the time of all parts, and of those of the prefill, with intervals
    over what was run. joules: of a mean request, and of a middling request's prefill and vision, by quantity; empty
    where the device has no energy counter that was read.
    """

    parts: pd.DataFrame
    time_share: Mapping[str, Estimate]
    prefill_share: Mapping[str, Estimate]
    joules: Mapping[str, float]
    source: str
    count: int

    def share(self, quantity: str, parts: tuple[str, ...] = PARTS) -> dict[str, float]:
        """Share of each of the parts in their sum; empty if the quantity is not known of one of them."""
        own = self.parts[self.parts["part"].isin(parts)]
        if quantity == "parameters":
            own = own[own["part"] != DECODE.name]
        values = own[quantity].astype("Float64").to_numpy(dtype=np.float64, na_value=math.nan)
        if not len(values) or np.isnan(values).any() or values.sum() <= 0:
            return {}
        return dict(zip(own["part"], (values / values.sum()).tolist(), strict=True))

    @property
    def of_what(self) -> str:
        """What was averaged over, in words."""
        return _ONE[self.source] if self.count == 1 else f"a mean over {self.count:,} {self.source}"

    @property
    def has_decode(self) -> bool:
        """Whether decode was measured as well."""
        return DECODE.name in set(self.parts["part"])


def profile(table: pd.DataFrame, subject: str | None = None) -> Profile | Unknown:
    """Profile a subject's components; the table may have work beside it (`roofline.beside`).

    Disturbed samples count as in the rows that they are in: in blocks all do. Of several runs shares are told of each
    by itself too, for the intervals.
    """
    rows = of_subject(table, subject)
    found = _profile_of(rows)
    by_run = [one for own in runs_of(rows) if not isinstance(one := _profile_of(own), Unknown)]
    if isinstance(found, Unknown) or len(by_run) < 2:
        return found

    def shares(of: Callable[[Profile], Mapping[str, Estimate]]) -> dict[str, Estimate]:
        return {
            part: added(share, [of(one)[part] for one in by_run if part in of(one)])
            for part, share in of(found).items()
        }

    return replace(
        found, time_share=shares(lambda one: one.time_share), prefill_share=shares(lambda one: one.prefill_share)
    )


def _profile_of(rows: pd.DataFrame) -> Profile | Unknown:
    fine = rows[(rows["status"] == "ok") & (rows["source"] == "measured") & rows["mean_ms"].notna()]
    for kind, name in _SOURCES.items():
        known = [part for part in (*PHASES, DECODE) if kind in part.rows]
        own = rows_of(fine, *known, kind=kind)
        seen_in = {str(cell): set(group) for cell, group in own.groupby("cell_id")["phase"]}
        cells = [cell for cell, seen in seen_in.items() if set(IN_PREFILL) <= seen]
        if cells:
            generations = [cell for cell in cells if DECODE.name in seen_in[cell]]
            return _profile(rows, own, generations or cells, kind=kind, name=name)
    return Unknown("no pass was measured phase by phase")


def _profile(rows: pd.DataFrame, own: pd.DataFrame, cells: Sequence[str], *, kind: Kind, name: str) -> Profile:
    # A block stands for its requests, one by one; a cell stands for itself, whatever the number of its rounds.
    block = kind == kinds.REQUESTS
    by_key = {(row["cell_id"], row["phase"]): row for row in own.to_dict("records")}
    parts = [part for part in PARTS if all((cell, part) in by_key for cell in cells)]
    samples: dict[str, Array] = {}
    for part in parts:
        found = [np.asarray(by_key[(cell, part)]["samples_ms"], dtype=np.float64) for cell in cells]
        samples[part] = np.concatenate(found) if block else np.array([np.median(values) for values in found])
    if DECODE.name in parts and samples[DECODE.name].sum() <= 0:
        parts.remove(DECODE.name)
    run = [len(by_key[(cell, parts[0])]["samples_ms"]) if block else 1 for cell in cells]
    found_rows = []
    for part in parts:
        of_part = [by_key[(cell, part)] for cell in cells]

        parameters = [_number(row["parameters"]) for row in of_part]
        peaks = [_number(row["peak_allocated_bytes"]) for row in of_part]
        found_rows.append(
            {
                "part": part,
                "parameters": parameters[0] if part != DECODE.name else math.nan,
                "flops": _mean(of_part, "flops", weights=run),
                "traffic_bytes": _mean(of_part, "weight_bytes", "cache_bytes", weights=run),
                "time_ms": float(samples[part].mean()),
                "peak_bytes": float(np.nanmax(peaks)) if not np.isnan(peaks).all() else math.nan,
            }
        )
    prefill = [part for part in parts if part != DECODE.name]
    return Profile(
        parts=pd.DataFrame(found_rows),
        time_share=shares_of({part: samples[part] for part in parts}),
        prefill_share=shares_of({part: samples[part] for part in prefill}),
        joules=_joules(rows, kind),
        source=name,
        count=len(samples[parts[0]]),
    )


def _mean(rows: list[dict[Hashable, Any]], *columns: str, weights: Sequence[int]) -> float:
    """Weighted mean of a sum of columns; NaN where a column is not there."""
    values = np.array([sum(_number(row.get(column)) for column in columns) for row in rows])
    return float(np.average(values, weights=weights))


def _number(value: Any) -> float:
    return math.nan if value is None or pd.isna(value) else float(value)


def shares_of(samples: Mapping[str, Array]) -> dict[str, Estimate]:
    """Share of each part's mean in the sum of means; the interval is a bootstrap over what was run.

    Draws from few scatter by less than the few do about their truth: the interval is as much wider as Student's t is.
    """
    values = np.array(list(samples.values()))
    whole = values.mean(axis=1)
    count = values.shape[1]
    if count < 5:
        return {
            part: Estimate(float(share), math.nan, math.nan)
            for part, share in zip(samples, whole / whole.sum(), strict=True)
        }
    rng = np.random.default_rng(0)
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=REPLICATES).astype(np.float64) / count
    means = drawn @ values.T
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means / means.sum(axis=1, keepdims=True), [tail, 1 - tail], axis=0)
    found = whole / whole.sum()
    widen = t_reach(count - 1) / NORMAL_REACH * math.sqrt(count / (count - 1))
    low, high = (np.clip(found + widen * (end - found), 0.0, 1.0) for end in (low, high))
    return {
        part: Estimate(float(found[place]), float(low[place]), float(high[place])) for place, part in enumerate(samples)
    }


def _joules(rows: pd.DataFrame, kind: Kind) -> dict[str, float]:
    """Joules of a request or generation, of a prefill and of vision alone, as far as a counter was read."""
    own = rows[rows["joules_per_repeat"].notna()]
    found = {meant.name: rows_of(own, asked, kind=kind) for meant, asked in _SPENT[kind].items()}
    return {name: float(part["joules_per_repeat"].mean()) for name, part in found.items() if len(part)}


def energy_parts(found: Profile) -> dict[str, float]:
    """Joules of vision, of the prefill's rest and of the rest of a request; {} unless all of them are known.

    A prefill and vision alone were repeated without a pause on one middling request, and a request runs once among
    many, pauses in which the device waits for the host included: the last part holds these.
    """
    joules = found.joules
    if not {WHOLE_REQUEST.name, PREFILL_SUM.name, VISION.name} <= set(joules):
        return {}
    request, prefill, vision = (joules[quantity.name] for quantity in (WHOLE_REQUEST, PREFILL_SUM, VISION))
    return {
        VISION.name: vision,
        LANGUAGE.name: max(0.0, prefill - vision),
        DECODE.name: max(0.0, request - prefill),
    }


@dataclass(frozen=True)
class Disagreement:
    """The part whose share of a quantity is farthest from its share of the time: how far, with the time's interval."""

    part: str
    share: float
    time_share: Estimate

    @property
    def distance(self) -> Estimate:
        """Share of the time minus share of the quantity."""
        time = self.time_share
        return Estimate(time.value - self.share, time.low - self.share, time.high - self.share)


def disagreement(found: Profile, quantity: str) -> Disagreement | Unknown:
    """Find where the shares of a quantity and of the time differ most; of parameters within the prefill."""
    within = IN_PREFILL if quantity == "parameters" else PARTS
    times = found.prefill_share if quantity == "parameters" else found.time_share
    shares = found.share(quantity, within)
    if not shares:
        return Unknown(f"{SHARES_OF[quantity]} of the components are not known")
    part = max(shares, key=lambda name: abs(times.get(name, NO_ESTIMATE).value - shares[name]))
    return Disagreement(part, shares[part], times[part])
