"""Decode steps one by one: how they grow, what sets their pace, how even they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from vlmeter.analysis.by_run import added_fits, combined
from vlmeter.analysis.decode_runs import FIRST_STEPS, pictures_in_words
from vlmeter.analysis.prefill_cells import judge_bound, over, pooled
from vlmeter.analysis.reading import (
    Samples,
    Unknown,
    cells_of,
    median_in_order,
    median_of,
    of_subject,
    put_estimate,
    rows_of,
)
from vlmeter.analysis.runs import runs_of
from vlmeter.analysis.spread import Mixed, misgivings_of, mixed_cells, modes_in_words
from vlmeter.numbers.clusters import over_runs_of_the_same, percentile_over_runs
from vlmeter.numbers.intervals import Array, Fit, fit_linear
from vlmeter.numbers.medians import MIN_SAMPLES_FOR_PERCENTILE, Estimate
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    BETWEEN_STEPS,
    BUSY_STEP,
    DECODE,
    DECODE_STEP,
    DEVICE_DECODE,
    DEVICE_STEP,
    INTER_TOKEN,
    SERVED_TOKEN,
    TOKEN_OVER_STEP,
)

#: Points into which a photograph's decode steps are gathered before a line is laid through them.
STEP_BINS = 64


@dataclass(frozen=True)
class StepLaw:
    """How long a decode step takes at a context length: step = constant + per_context_token * context, in ms.

    The constant is what every step costs whatever the context: reading the weights, or the host's launches.
    The slope is reading the keys and values of one more token. pictures: what was looked at, in words. cells: how many
    generations are behind it; mixed: those of them whose rounds have two modes, in ms of a step.
    """

    fit: Fit
    contexts: Array
    values_ms: Array
    images: npt.NDArray[np.int64]
    pictures: str
    cells: int = 0
    mixed: tuple[Mixed, ...] = ()

    @property
    def modes(self) -> str:
        """What has two modes behind it, in few words; empty if nothing has."""
        return modes_in_words(self.mixed, self.cells)

    def misgivings(self) -> str:
        """Say of how many generations a median step is the time of no run; empty without such."""
        return misgivings_of(self.mixed, self.cells)


def decode_steps(table: pd.DataFrame, subject: str | None = None) -> dict[int, tuple[Array, Array]]:
    """Context length and duration of every decode step in the longest run of each image, by its index.

    A step's context is the tokens whose keys and values it reads, its own included.
    """
    fine = _longest(of_subject(table, subject))
    found: dict[int, tuple[Array, Array]] = {}
    for row in fine.sort_values("image_index").to_dict("records"):
        steps = np.asarray(row["samples_ms"], dtype=np.float64)
        if len(steps) and not pd.isna(row["prompt_tokens"]):
            context = np.arange(len(steps), dtype=np.float64) + (int(row["prompt_tokens"]) + 1)
            found[int(row["image_index"])] = (context, steps)
    return found


def _longest(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the decode steps of the longest run of each image."""
    fine = rows_of(rows, DECODE_STEP, kind=kinds.GENERATION)
    return fine.sort_values("output_tokens").drop_duplicates("image_index", keep="last")


def _mixed_steps(rows: pd.DataFrame) -> tuple[int, tuple[Mixed, ...]]:
    """How many generations are behind the steps, and those of two modes: all steps of a round, over their number."""
    steps = {str(row["cell_id"]): len(row["samples_ms"]) for row in _longest(rows).to_dict("records")}
    mixed = mixed_cells(rows, [cell for cell, count in steps.items() if count], DECODE)
    return len(steps), tuple(
        Mixed(one.cell_id, one.low_ms / steps[one.cell_id], one.high_ms / steps[one.cell_id]) for one in mixed
    )


def step_law(table: pd.DataFrame, subject: str | None = None) -> StepLaw | Unknown:
    """Fit the duration of a decode step against its context length.

    Steps are gathered into bins (median of neighbours) so that a hiccup does not pull the line; photographs
    are resampled whole, or bins where there is a single photograph. Of several runs each is fitted by itself too, for
    the intervals.
    """
    rows = of_subject(table, subject)
    law = _step_law(rows)
    by_run = [found.fit for own in runs_of(rows) if not isinstance(found := _step_law(own), Unknown)]
    if isinstance(law, Unknown):
        return law
    cells, mixed = _mixed_steps(rows)
    return replace(law, fit=added_fits(law.fit, by_run), cells=cells, mixed=mixed)


def _step_law(rows: pd.DataFrame) -> StepLaw | Unknown:
    contexts, values, images = [], [], []
    for image, (context, steps) in decode_steps(rows).items():
        for part in np.array_split(np.arange(len(steps)), min(STEP_BINS, len(steps))):
            contexts.append(float(context[part].mean()))
            values.append(float(np.median(steps[part])))
            images.append(image)
    if len(contexts) < 3:
        return Unknown("there are fewer than three decode steps")
    columns = {"per_context_token": np.array(contexts), "constant": np.ones(len(contexts))}
    fit = fit_linear(columns, values, clusters=images)
    pictures = pictures_in_words(rows_of(rows, DECODE_STEP, kind=kinds.GENERATION))
    return StepLaw(fit, np.array(contexts), np.array(values), np.array(images, dtype=np.int64), pictures)


@dataclass(frozen=True)
class StepBound:
    """What sets the pace of decoding: measured step and the time for which the device is busy with one, in ms."""

    step: Estimate
    busy: Estimate
    wall_over_busy: Estimate
    bound: str
    reason: str


def step_bound(table: pd.DataFrame, subject: str | None = None) -> StepBound | Unknown:
    """Set the decode steps of all photographs beside the device's busy time for one.

    The first steps of every generation are taken, since the busy step stands right behind the prompt, too.
    """
    rows = of_subject(table, subject)
    found = [_step_bound(own) for own in runs_of(rows)]
    if (unknown := next((one for one in found if isinstance(one, Unknown)), None)) is not None:
        return unknown
    known = [one for one in found if isinstance(one, StepBound)]
    if len(known) < 2:
        return known[0]
    step, busy = (over_runs_of_the_same(own) for own in ([one.step for one in known], [one.busy for one in known]))
    ratio = over(step, busy)
    return StepBound(step, busy, ratio, *judge_bound(ratio))


def _step_bound(rows: pd.DataFrame) -> StepBound | Unknown:
    busy_rows = rows_of(rows[rows["median_ms"].notna()], BUSY_STEP, kind=kinds.GENERATION)
    if busy_rows.empty:
        reasons = rows.loc[rows["kind"] == kinds.GENERATION, "busy_reason"].dropna()
        return Unknown(str(reasons.iloc[0]) if len(reasons) else "the busy time of a decode step was not measured")
    firsts = [float(np.median(steps[:FIRST_STEPS])) for _, steps in decode_steps(rows).values()]
    if not firsts:
        return Unknown("no decode step was measured")
    step, busy = median_of(np.array(firsts)), median_of(busy_rows["median_ms"].to_numpy(dtype=np.float64))
    ratio = over(step, busy)
    return StepBound(step, busy, ratio, *judge_bound(ratio))


@dataclass(frozen=True)
class ServedToken:
    """An output token at a server's client as a sum: the device's step, and what lies between two steps; in ms.

    over: the whole over the device's step, minus 1. cells: of how many generations they are medians.
    """

    token: Estimate
    step: Estimate
    between: Estimate
    over: Estimate
    cells: int


#: Quantities of `served_tokens`, with their intervals.
IN_TOKENS = (SERVED_TOKEN, DEVICE_STEP, BETWEEN_STEPS, TOKEN_OVER_STEP)


def served_tokens(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """One row per generation on a server whose device's steps are known: cell_id, IN_TOKENS with their intervals.

    Whole and part are those of the same answer, round by round, so that the rest is theirs too.
    """
    found = [_served_tokens_of_run(own) for own in runs_of(of_subject(table, subject))]
    return combined(found, IN_TOKENS, key=("cell_id",))


def _served_tokens_of_run(rows: pd.DataFrame) -> pd.DataFrame:
    samples = Samples(rows, kinds.GENERATION)
    found = []
    for cell in cells_of(rows, kinds.GENERATION).to_dict("records"):
        whole, inside = (samples.get(str(cell["cell_id"]), quantity) for quantity in (DECODE, DEVICE_DECODE))
        steps = 0 if pd.isna(cell["generated_tokens"]) else int(cell["generated_tokens"]) - 1
        if whole is None or inside is None or len(whole) != len(inside) or steps < 1:
            continue
        row: dict[str, Any] = {"cell_id": cell["cell_id"]}
        like, inside_like = samples.resemblance(DECODE), samples.resemblance(DEVICE_DECODE)
        put_estimate(row, SERVED_TOKEN, median_in_order(whole / steps, like=like))
        put_estimate(row, DEVICE_STEP, median_in_order(inside / steps, like=inside_like))
        put_estimate(row, BETWEEN_STEPS, median_in_order((whole - inside) / steps, like=like))
        put_estimate(row, TOKEN_OVER_STEP, median_in_order(whole / inside - 1))
        found.append(row)
    return pd.DataFrame(found, columns=["cell_id", *(name for quantity in IN_TOKENS for name in quantity.columns)])


def served_token(table: pd.DataFrame, subject: str | None = None) -> ServedToken | Unknown:
    """What an output token takes at a server's client, and what of it on the device; over all generations."""
    cells = served_tokens(table, subject)
    found = [pooled(cells, quantity) for quantity in IN_TOKENS]
    known = [each for each in found if isinstance(each, Estimate)]
    if len(known) < len(IN_TOKENS):
        return Unknown("nothing inside a server tells its decode steps")
    token, step, between, more = known
    return ServedToken(token, step, between, more, len(cells))


def inter_token(table: pd.DataFrame, subject: str | None = None) -> Array:
    """Every decode step of every round of the longest run of each photograph, in ms."""
    rows = of_subject(table, subject)
    fine = rows_of(rows, INTER_TOKEN, kind=kinds.GENERATION)
    fine = fine.sort_values("output_tokens").drop_duplicates("image_index", keep="last")
    parts = [np.asarray(samples, dtype=np.float64) for samples in fine["samples_ms"]]
    return np.concatenate(parts) if parts else np.array([])


def inter_token_by_run(table: pd.DataFrame, subject: str | None = None) -> list[Array]:
    """The steps of `inter_token` in each run of the study."""
    return [inter_token(own) for own in runs_of(of_subject(table, subject))]


def inter_token_percentiles(*by_run: Array) -> dict[float, Estimate | None]:
    """P50, P95 and P99 of the inter-token latency of each run; None where a run has too few steps for one."""
    return {fraction: percentile_over_runs(by_run, fraction) for fraction in (0.5, 0.95, 0.99)}


#: Slow over fast steps of one run above which they are called uneven: a device that decodes at its own pace stays
#: within some percent, and no law over context or output length can be read off steps that differ by a third.
UNEVEN_RATIO = 1.33


#: Steps that a run needs so that its 95th percentile is one.
_STEPS_FOR_UNEVENNESS = MIN_SAMPLES_FOR_PERCENTILE[0.95]


@dataclass(frozen=True)
class StepUnevenness:
    """How unlike steps of one run are that do the same work: 5th and 95th percentile in ms, median over photographs."""

    fast_ms: float
    slow_ms: float
    runs: int

    @property
    def ratio(self) -> float:
        """Slow over fast."""
        return self.slow_ms / self.fast_ms


def step_unevenness(table: pd.DataFrame, subject: str | None = None) -> StepUnevenness | Unknown:
    """Compare the decode steps inside the longest run of each photograph, with what grows with the context taken off.

    A step does the same work as its neighbour and a little more than one far before it; a straight line over the steps
    takes care of that. What is left is the machine: the sentinel, a prefill, cannot see it.
    """
    rows = of_subject(table, subject)
    contexts = decode_steps(rows)
    every = rows_of(rows, INTER_TOKEN, kind=kinds.GENERATION)
    every = every.sort_values("output_tokens").drop_duplicates("image_index", keep="last")
    ends = []
    for row in every.to_dict("records"):
        steps = np.asarray(row["samples_ms"], dtype=np.float64)
        context = contexts.get(int(row["image_index"]), (np.array([]),))[0]
        if len(steps) < _STEPS_FOR_UNEVENNESS or not len(context) or len(steps) % len(context):
            continue
        place = np.tile(context - context.mean(), len(steps) // len(context))
        slope = float(place @ steps / (place @ place)) if len(context) > 1 else 0.0
        ends.append(np.quantile(steps - slope * place, (0.05, 0.95)))
    if not ends:
        return Unknown(f"no run has {_STEPS_FOR_UNEVENNESS} decode steps")
    fast, slow = np.median(np.array(ends), axis=0)
    return StepUnevenness(float(fast), float(slow), len(ends))
