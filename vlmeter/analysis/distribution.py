"""What the latencies of many requests say: percentiles, what makes the tail, and the slowest ones by name.

A percentile of latency belongs to a population of requests as much as to a machine: a few large pictures or long
answers make a tail without anything being slow. So the tail is taken apart by what is known of every request (output
tokens, prompt tokens, crops, pixels) in two ways: how much of the variance of latency each accounts for, and how much
of the gap between the slowest requests and the middle ones. What none accounts for is the machine's own unevenness, and
what is not linear.

Everything takes the tidy table, as `vlmeter.analysis.prefill_cells` does, and says `Unknown` with the reason where
there is too little.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as distributions

from vlmeter.analysis.by_run import added_fits
from vlmeter.analysis.prefill_cells import over
from vlmeter.analysis.reading import Unknown, of_subject, rows_of
from vlmeter.analysis.runs import runs_of
from vlmeter.numbers.clusters import added, over_runs_of_the_same, percentile_over_runs, t_reach
from vlmeter.numbers.intervals import NORMAL_REACH, Array, Fit, fit_linear, percentile_estimate
from vlmeter.numbers.medians import CONFIDENCE, MIN_SAMPLES_FOR_PERCENTILE, Estimate
from vlmeter.numbers.words import plural
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    AROUND,
    COPY,
    DECODE,
    FIRST_TOKEN,
    INPUTS,
    LONGEST_STEP,
    PHASES,
    PREFILL_SUM,
    PREPROCESS,
    WHOLE_REQUEST,
    Quantity,
    RowKey,
)

#: Percentiles that are told, as fractions.
FRACTIONS = (0.50, 0.90, 0.95, 0.99)

#: What may make one request slower than another: column of `requests` -> its name in words.
FACTORS: Mapping[str, str] = {
    "generated_tokens": "output tokens",
    "prompt_tokens": "prompt tokens",
    "crops": "crops",
    "image_px": "pixels of the image",
}

#: Requests that the tail is taken to be: the slowest 1 % where these are TAIL_REQUESTS at least, else the slowest 5 %,
#: which `MIN_SAMPLES_FOR_PERCENTILE` lets one speak of from 59 requests on.
TAIL_FRACTIONS, TAIL_REQUESTS = (0.01, 0.05), 30

#: Requests with which the tail is compared: those around the median.
MIDDLE = (0.40, 0.60)

#: Bootstrap replicates of what takes a sort and a fit each: ends of intervals move by a twentieth of their width.
REPLICATES = 400

_MEASURED = (WHOLE_REQUEST, PREPROCESS, COPY, *PHASES, *AROUND, DECODE, LONGEST_STEP)

#: Durations of `requests`: device time but for the first, which is wall time.
DURATIONS = (WHOLE_REQUEST, FIRST_TOKEN, INPUTS, PREFILL_SUM, DECODE, LONGEST_STEP)

_FIELDS = (
    "number",
    "image_index",
    "image_id",
    "question_id",
    "question",
    "width_px",
    "height_px",
    "crops",
    "vision_tokens",
    "special_tokens",
    "text_tokens",
    "prompt_tokens",
    "output_tokens",
    "generated_tokens",
)


def requests(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """One row per measured request, in the order of their numbers; in each run of the study every one is another.

    Columns: run, number (place among all requests), what it was, DURATIONS, every phase of the prefill, disturbances
    (reasons to doubt it, joined; empty: none seen), disturbed, cell_id.
    """
    frames = []
    blocks = [
        (run, cell_id, block)
        for run, rows in enumerate(runs_of(of_subject(table, subject)))
        for cell_id, block in rows_of(rows, *_MEASURED, kind=kinds.REQUESTS).groupby("cell_id", sort=True)
    ]
    for run, cell_id, block in blocks:
        by_key = {RowKey(*(row[name] for name in RowKey._fields)): row for row in block.to_dict("records")}
        frame = pd.DataFrame(json.loads(by_key[WHOLE_REQUEST.rows[kinds.REQUESTS]]["requests"]))
        for quantity in _MEASURED:
            found = by_key.get(quantity.rows[kinds.REQUESTS])
            samples = np.nan if found is None else np.asarray(found["samples_ms"], dtype=np.float64)
            frame[quantity.column] = samples
        frame["cell_id"], frame["run"] = str(cell_id), run
        frames.append(frame)
    columns = [*_FIELDS, *(quantity.column for quantity in _MEASURED), "disturbances", "cell_id", "run"]
    result = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=columns)
    for total in (PREFILL_SUM, INPUTS):
        result[total.column] = result[[part.column for part in total.parts]].sum(axis=1, skipna=False)
    around = result[[quantity.column for quantity in AROUND]].astype("float64").sum(axis=1, min_count=1)
    waited = result[PREFILL_SUM.column].astype("float64").add(around, fill_value=0.0)  # unknown where both are
    result[FIRST_TOKEN.column] = waited + result[INPUTS.column]
    result["image_px"] = result["width_px"].astype("float64") * result["height_px"].astype("float64")
    result["disturbances"] = ["; ".join(reasons) for reasons in result["disturbances"]]
    result["disturbed"] = result["disturbances"] != ""
    return result.sort_values(["run", "number"]).reset_index(drop=True)


@dataclass(frozen=True)
class Sample:
    """The requests that statistics rest on, and how many others there were.

    disturbed: requests that were left out because the machine was disturbed; kept: whether most were, so that all count
    (a few quiet ones may be no better than chance); failed: requests for which the memory did not suffice.
    """

    requests: pd.DataFrame
    disturbed: int
    kept: bool
    failed: int

    @property
    def size(self) -> int:
        """How many requests count."""
        return len(self.requests)

    def by_run(self, quantity: Quantity = WHOLE_REQUEST) -> list[Array]:
        """A duration of the requests in ms, run by run."""
        own = runs_of(self.requests.dropna(subset=[quantity.column]))
        return [part[quantity.column].to_numpy(dtype=np.float64) for part in own]

    @property
    def distinct(self) -> int:
        """How many of them are different pairs of photograph and question."""
        return len(self.requests.drop_duplicates(["image_id", "question_id", "image_index"]))

    @property
    def too_few(self) -> str | None:
        """Why nothing can be said of a distribution; None if something can."""
        least = MIN_SAMPLES_FOR_PERCENTILE[0.50]
        if not self.size:
            return "no request was measured"
        return None if self.size >= least else f"a distribution needs {least} requests, and there are {self.size}"


def sample_of(table: pd.DataFrame, subject: str | None = None) -> Sample:
    """The requests of a subject that count, by the same rule by which rounds of a cell do."""
    rows = of_subject(table, subject)
    found = requests(rows)
    failed = int(rows.loc[rows["kind"] == kinds.REQUESTS, "failed_requests"].fillna(0).sum())
    quiet = found[~found["disturbed"].astype(bool)]
    disturbed = len(found) - len(quiet)
    if len(quiet) * 2 < len(found):
        return Sample(found, disturbed, kept=True, failed=failed)
    return Sample(quiet.reset_index(drop=True), disturbed, kept=False, failed=failed)


def percentiles(*by_run: Array) -> dict[float, Estimate | None]:
    """P50, P90, P95 and P99 of the requests of each run, with their intervals; None where a run has too few for one."""
    return {fraction: percentile_over_runs(by_run, fraction) for fraction in FRACTIONS}


def too_few(fraction: float, count: int) -> str:
    """Say why a percentile is absent."""
    return f"P{100 * fraction:.0f} needs {MIN_SAMPLES_FOR_PERCENTILE[fraction]} requests, and there are {count}"


def conditions(sample: Sample) -> str:
    """Say what the requests were and what is not among them, in sentences that begin with a space."""
    text = ""
    if sample.distinct < sample.size:
        text += (
            f" The dataset has {plural(sample.distinct, 'pair')} of photograph and question for them, so that each is "
            "asked several times: the intervals say what these requests do, and not what other photographs would."
        )
    if sample.kept:
        text += f" The machine was disturbed during {sample.disturbed:,} of them; since these are the most, all count."
    elif sample.disturbed:
        text += f" {plural(sample.disturbed, 'request')} during which the machine was disturbed are left out."
    if sample.failed:
        text += f" {plural(sample.failed, 'request')} ran out of device memory and took no time that could be told."
    return text


def tail_over_middle(*by_run: Array) -> Estimate | Unknown:
    """P99 over P50 of the requests of each run, with the intervals of both; below 299 requests there is no P99.

    A bootstrap over so few requests hardly ever draws a P99 above the largest: its intervals held 91 % of the time.
    """
    found = [_tail_over_middle(np.asarray(values, dtype=np.float64)) for values in by_run]
    unknown = next((one for one in found if isinstance(one, Unknown)), None)
    return unknown or over_runs_of_the_same([one for one in found if isinstance(one, Estimate)])


def _tail_over_middle(data: Array) -> Estimate | Unknown:
    if len(data) < MIN_SAMPLES_FOR_PERCENTILE[0.99]:
        return Unknown(too_few(0.99, len(data)))
    middle, tail = percentile_estimate(data, 0.5), percentile_estimate(data, 0.99)
    assert middle is not None
    assert tail is not None
    return over(tail, middle)


def _about(value: float, draws: Array, *, freedom: int, ends: tuple[float, float] = (-math.inf, math.inf)) -> Estimate:
    """A value with the distance on both sides within which 95 % of the bootstrap's draws lie of it.

    Percentiles of the draws are off: a resample has more chance correlations than the requests, as these have more than
    all requests there could be, so that shares near 0 and 1 move away from there twice. As much lies in the few slowest
    requests, of which Student's t takes account.
    """
    reach = float(np.nanquantile(np.abs(draws - value), CONFIDENCE)) * t_reach(freedom) / NORMAL_REACH
    return Estimate(value, max(value - reach, ends[0]), min(value + reach, ends[1]))


# ---------------------------------------------------------------------------------------------------------------------
# What makes the tail


@dataclass(frozen=True)
class Explanation:
    """Latency of requests by what they were.

    fit: latency over the factors that vary, in ms; fixed: factors that are the same in all requests (or follow from the
    others), with the reason. variance: share of each factor in the variance of latency, `rest` what none accounts for.
    gap: share of each factor in the gap between the slowest requests and the middle ones, which is gap_ms long.
    """

    fit: Fit
    fixed: Mapping[str, str]
    variance: Mapping[str, Estimate]
    gap: Mapping[str, Estimate]
    gap_ms: Estimate
    tail_fraction: float
    tail_requests: int

    @property
    def factors(self) -> list[str]:
        """Factors that vary."""
        return [name for name in FACTORS if name in self.fit.coefficients]


def explain(sample: Sample) -> Explanation | Unknown:
    """Fit total latency on the factors and share variance and gap out among them.

    The share of variance is what a factor adds to R squared, averaged over all orders in which the factors may come in
    (Lindeman, Merenda and Gold 1980, section 4.4), since large pictures have many crops and many tokens. Its share of
    the gap is found in the same way: a fit on some factors expects so much of it, from what they are on the average in
    the tail and in the middle. Requests of one photograph are resampled together, where some come more than once. Of
    several runs all is told of each by itself too, for the intervals; unknown where a run does not tell it.
    """
    found = sample.requests.dropna(subset=[WHOLE_REQUEST.column])
    across = _explain(found)
    frames = runs_of(found)
    if isinstance(across, Unknown) or len(frames) < 2:
        return across
    by_run = [_in_run(own, across) for own in frames]
    told = [one for one in by_run if not isinstance(one, Unknown)]
    if len(told) < len(by_run):
        return next(one for one in by_run if isinstance(one, Unknown))
    return replace(
        across,
        fit=added_fits(across.fit, [one.fit for one in told]),
        variance={name: added(share, [one.variance[name] for one in told]) for name, share in across.variance.items()},
        gap={name: added(share, [one.gap[name] for one in told]) for name, share in across.gap.items()},
        gap_ms=added(across.gap_ms, [one.gap_ms for one in told]),
    )


def _in_run(found: pd.DataFrame, across: Explanation) -> Explanation | Unknown:
    """What one of several runs says by itself of the factors of all, without intervals."""
    names = across.factors
    values = found[WHOLE_REQUEST.column].to_numpy(dtype=np.float64)
    design = found[names].to_numpy(dtype=np.float64)
    columns = {**{name: design[:, place] for place, name in enumerate(names)}, "constant": np.ones(len(found))}
    try:
        fit = fit_linear(columns, values, replicates=2)
    except ValueError as error:
        return Unknown(f"one of the runs by itself does not tell it: {error}")
    gap_ms, gap = gap_shares(design, values, across.tail_fraction)
    variance = variance_shares(design, values)
    parts = ("rest", *names)
    return replace(
        across,
        fit=fit,
        variance={name: Estimate(float(variance[place]), math.nan, math.nan) for place, name in enumerate(parts)},
        gap={name: Estimate(float(gap[place]), math.nan, math.nan) for place, name in enumerate(parts)},
        gap_ms=Estimate(gap_ms, math.nan, math.nan),
    )


def _explain(found: pd.DataFrame) -> Explanation | Unknown:
    least = MIN_SAMPLES_FOR_PERCENTILE[0.95]
    if len(found) < least:
        return Unknown(f"to take a tail apart needs {least} requests, and there are {len(found)}")
    values = found[WHOLE_REQUEST.column].to_numpy(dtype=np.float64)
    names, fixed = _independent(found)
    if not names:
        return Unknown("all requests are of one kind, so nothing can explain how they differ")
    design = found[names].to_numpy(dtype=np.float64)
    clusters = found["image_id"].fillna(found["image_index"].astype(str)).astype(str).to_numpy()
    columns = {**{name: design[:, place] for place, name in enumerate(names)}, "constant": np.ones(len(found))}
    try:
        fit = fit_linear(columns, values, clusters=clusters, method="pairs", replicates=REPLICATES)
    except ValueError as error:
        return Unknown(str(error))
    tail_fraction = next((part for part in TAIL_FRACTIONS if part * len(found) >= TAIL_REQUESTS), TAIL_FRACTIONS[-1])
    parts = ("rest", *names)
    draws: dict[str, list[Array]] = {"variance": [], "gap": []}
    gaps: list[float] = []
    for rows in _resamples(clusters):
        if np.linalg.matrix_rank(_centred(design[rows])) < len(names):
            continue
        draws["variance"].append(variance_shares(design[rows], values[rows]))
        gap_ms, gap = gap_shares(design[rows], values[rows], tail_fraction)
        draws["gap"].append(gap)
        gaps.append(gap_ms)
    gap_ms, gap = gap_shares(design, values, tail_fraction)
    tail_requests = int((values >= np.quantile(values, 1 - tail_fraction)).sum())
    freedom = max(1, tail_requests - 1)
    shares = {"variance": (variance_shares(design, values), (0.0, 1.0)), "gap": (gap, (-math.inf, math.inf))}
    estimates = {
        what: {
            name: _about(float(own[place]), np.array(draws[what])[:, place], freedom=freedom, ends=ends)
            for place, name in enumerate(parts)
        }
        for what, (own, ends) in shares.items()
    }
    return Explanation(
        fit=fit,
        fixed=fixed,
        variance=estimates["variance"],
        gap=estimates["gap"],
        gap_ms=_about(gap_ms, np.array(gaps), freedom=freedom),
        tail_fraction=tail_fraction,
        tail_requests=tail_requests,
    )


def _independent(found: pd.DataFrame) -> tuple[list[str], dict[str, str]]:
    """Factors that vary by themselves, in the order of FACTORS, and why the others are left out."""
    names: list[str] = []
    fixed: dict[str, str] = {}
    for name, word in FACTORS.items():
        column = found[name].to_numpy(dtype=np.float64)
        if np.ptp(column) == 0:
            fixed[name] = f"all requests have {int(column[0]):,} {word}"
            continue
        design = _centred(found[[*names, name]].to_numpy(dtype=np.float64))
        scaled = design / np.abs(design).max(axis=0)
        if np.linalg.matrix_rank(scaled, tol=1e-6 * math.sqrt(len(found))) < len(names) + 1:
            alone = next((other for other in names if _follows(column, found[other])), None)
            others = FACTORS[alone] if alone else "the other factors together"
            fixed[name] = f"{word} cannot be told apart from {others} in these requests"
        else:
            names.append(name)
    return names, fixed


def _follows(column: Array, other: pd.Series[Any]) -> bool:
    """Whether a factor is a straight line of another one."""
    return abs(float(np.corrcoef(column, other.to_numpy(dtype=np.float64))[0, 1])) > 1 - 1e-9


def _centred(design: Array) -> Array:
    return np.asarray(design - design.mean(axis=0))


def _resamples(clusters: npt.NDArray[Any]) -> list[npt.NDArray[np.intp]]:
    """Places of the requests in each bootstrap replicate: clusters drawn with replacement."""
    rng = np.random.default_rng(0)
    labels, codes = np.unique(clusters, return_inverse=True)
    if len(labels) == len(clusters) or len(labels) == 1:
        return list(rng.integers(0, len(clusters), size=(REPLICATES, len(clusters))))
    members = [np.flatnonzero(codes == label) for label in range(len(labels))]
    drawn = rng.integers(0, len(labels), size=(REPLICATES, len(labels)))
    return [np.concatenate([members[label] for label in chosen]) for chosen in drawn]


def variance_shares(design: Array, values: Array) -> Array:
    """Shares of variance: what is left, then each factor's."""
    joint = np.cov(np.column_stack([design, values]), rowvar=False)
    total = float(joint[-1, -1])
    if total <= 0:
        return np.full(design.shape[1] + 1, np.nan)
    return _shared_out(lambda chosen: float(joint[chosen, -1] @ _slopes(joint, chosen)) / total, design.shape[1])


def gap_shares(design: Array, values: Array, tail_fraction: float) -> tuple[float, Array]:
    """Gap between the means of tail and middle in ms, and the shares: what is left, then each factor's."""
    ranks = distributions.rankdata(values, method="ordinal") / len(values)
    tail, middle = ranks > 1 - tail_fraction, (ranks > MIDDLE[0]) & (ranks <= MIDDLE[1])
    gap_ms = float(values[tail].mean() - values[middle].mean())
    if gap_ms <= 0:
        return gap_ms, np.full(design.shape[1] + 1, np.nan)
    joint = np.cov(np.column_stack([design, values]), rowvar=False)
    apart = design[tail].mean(axis=0) - design[middle].mean(axis=0)
    return gap_ms, _shared_out(lambda chosen: float(apart[chosen] @ _slopes(joint, chosen)) / gap_ms, design.shape[1])


def _slopes(joint: Array, chosen: list[int]) -> Array:
    """Slopes of a fit on some of the factors, from the covariances of all of them and the values."""
    return np.asarray(np.linalg.lstsq(joint[np.ix_(chosen, chosen)], joint[chosen, -1], rcond=None)[0])


def _shared_out(explained: Callable[[list[int]], float], factors: int) -> Array:
    """What no factor explains, then what each adds to the others, averaged over all orders of coming in."""
    known: dict[tuple[int, ...], float] = {(): 0.0}
    for mask in range(1, 2**factors):
        chosen = [place for place in range(factors) if mask >> place & 1]
        known[tuple(chosen)] = explained(chosen)
    shares = np.zeros(factors)
    orders = list(permutations(range(factors)))
    for order in orders:
        for place, factor in enumerate(order):
            before = tuple(sorted(order[:place]))
            after = tuple(sorted(order[: place + 1]))
            shares[factor] += (known[after] - known[before]) / len(orders)
    return np.concatenate([[1 - known[tuple(range(factors))]], shares])


# ---------------------------------------------------------------------------------------------------------------------
# The slowest

SLOWEST = 10


def slowest(sample: Sample, count: int = SLOWEST) -> pd.DataFrame:
    """The slowest requests, slowest first, with `fitted_ms`: what their crops and tokens let one expect.

    fitted_ms is NaN where the factors could not be fitted.
    """
    found = sample.requests.dropna(subset=[WHOLE_REQUEST.column])
    explained = explain(sample)
    fitted = math.nan if isinstance(explained, Unknown) else explained.fit.fitted
    return found.assign(fitted_ms=fitted).sort_values(WHOLE_REQUEST.column, ascending=False, kind="stable").head(count)
