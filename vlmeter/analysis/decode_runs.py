"""Decode: what an output token costs, by length."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from vlmeter.analysis.by_run import BY_RUN, added_fits, combined, frames_by_run, with_runs
from vlmeter.analysis.reading import (
    NO_ESTIMATE,
    Samples,
    Unknown,
    median_in,
    median_in_order,
    median_of,
    of_subject,
    paired_estimate,
    put_estimate,
    rows_of,
)
from vlmeter.analysis.remembered import remembered
from vlmeter.analysis.runs import runs_of
from vlmeter.numbers.clusters import added, over_runs_of_the_same
from vlmeter.numbers.intervals import Fit, fit_linear, fit_power, paired_ratio, relative_weights
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import plural
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    AROUND,
    DECODE,
    FIRST_TOKEN,
    GENERATED,
    HOOKS_WALL,
    INPUTS_WALL,
    LANGUAGE,
    OF_DECODE,
    OUTSIDE,
    PREFILL_SUM,
    RATIO,
    SHARE,
    SLOPE_STEPS,
    SLOPE_TOKENS,
    VISION,
    WAIT,
    Quantity,
)

#: Decode steps that stand for "right behind the prompt".
FIRST_STEPS = 16


#: Quantities of `decode`, with their intervals.
IN_RUNS = (
    *(DECODE, PREFILL_SUM, VISION, LANGUAGE, OUTSIDE, WAIT, GENERATED),
    *(INPUTS_WALL, FIRST_TOKEN, SHARE, OF_DECODE),
)


_DECODE_FIELDS = (
    "image_index",
    "image_id",
    "width_px",
    "question_id",
    "cell_id",
    "crops",
    "vision_tokens",
    "prompt_tokens",
    "output_tokens",
    "source",
    "stop",
    "drifted",
)


@remembered
def decode(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """One row per image and number of output tokens, measured directly where it was, derived elsewhere.

    Columns: what was run; picture (in words); steps (decode steps: the output tokens that were generated, less the
    first); IN_RUNS with their intervals, in device time. A derived row takes its prefill from the run that it is made
    of. Of several runs of the study each is estimated by itself first, and BY_RUN is a column more.
    """
    found = [_decode_of_run(own) for own in runs_of(of_subject(table, subject))]
    frame = combined(found, IN_RUNS, key=("image_index", "output_tokens"))
    return frame.sort_values(["image_index", "output_tokens"]).reset_index(drop=True)


def _decode_of_run(rows: pd.DataFrame) -> pd.DataFrame:
    samples = Samples(rows, kinds.GENERATION)
    whole_like = samples.resemblance(HOOKS_WALL)
    fine = rows_of(rows[rows["status"] == "ok"], DECODE, kind=kinds.GENERATION)
    found = []
    for cell in fine.to_dict("records"):
        name = str(cell["cell_id"])
        row: dict[str, Any] = {field: cell[field] for field in _DECODE_FIELDS}
        row["picture"] = _picture(cell)
        generated = cell["output_tokens"]
        if cell["source"] == "measured" and not pd.isna(cell["generated_tokens"]):
            generated = cell["generated_tokens"]
        row["steps"] = int(generated) - 1
        if row["steps"] < 1:
            continue
        steps = np.asarray(cell["samples_ms"], dtype=np.float64)
        prefill, inputs = samples.get(name, PREFILL_SUM), samples.get(name, INPUTS_WALL)
        paired = prefill is not None and len(prefill) == len(steps)
        total = prefill + steps if paired and prefill is not None else None
        waited = samples.total(name, (PREFILL_SUM, *AROUND))
        first = waited + inputs if waited is not None and inputs is not None and len(waited) == len(steps) else None
        estimates = {
            DECODE: median_in_order(steps, like=samples.resemblance(DECODE)),
            **{quantity: samples.median(name, quantity) for quantity in (PREFILL_SUM, VISION, LANGUAGE, INPUTS_WALL)},
            OUTSIDE: median_in_order(None if prefill is None else samples.total(name, AROUND), like=whole_like),
            WAIT: median_in_order(waited, like=samples.resemblance(PREFILL_SUM)),
            GENERATED: median_in_order(total, like=whole_like),
            FIRST_TOKEN: median_in_order(first, like=samples.resemblance(PREFILL_SUM)),
            SHARE: paired_estimate(paired_ratio, prefill, total),
            OF_DECODE: paired_estimate(paired_ratio, prefill, steps),
        }
        for quantity in IN_RUNS:
            put_estimate(row, quantity, estimates[quantity])
        found.append(row)
    columns = [*_DECODE_FIELDS, "picture", "steps", *(column for quantity in IN_RUNS for column in quantity.columns)]
    frame = pd.DataFrame(found, columns=columns)
    frame["direct"] = frame["source"] == "measured"
    frame = frame.sort_values(["image_index", "output_tokens", "direct"], ascending=[True, True, False])
    return frame.drop_duplicates(["image_index", "output_tokens"]).reset_index(drop=True)


def _picture(cell: Mapping[Hashable, Any]) -> str:
    """What a generation looks at: a photograph of the dataset, by its place, or what the study says of it."""
    return f"photograph {cell['image_index']}" if pd.isna(cell["width_px"]) else str(cell["image_id"])


def pictures_in_words(runs: pd.DataFrame) -> str:
    """Say how many images generations look at, such as '10 photographs': they are, if all are of the dataset."""
    of_dataset = runs["width_px"].isna().all()
    return plural(int(runs["image_index"].nunique()), "photograph" if of_dataset else "image")


@dataclass(frozen=True)
class DecodeLaw:
    """How decode time grows with the number of output tokens.

    line: decode = per_token * steps + constant, in ms; power: slope of ln(decode) over ln(steps), and
    power_tokens over ln(output tokens); curvature: what a quadratic term contributes at the longest output,
    as a fraction of it.
    """

    line: Fit
    power: Fit
    power_tokens: Fit
    curvature: Estimate
    shortest_tokens: int
    longest_tokens: int
    images: int


def decode_law(runs: pd.DataFrame) -> DecodeLaw | Unknown:
    """Fit the laws of `decode` rows.

    Errors are weighted as fractions of the value, since lengths span a large factor; photographs are
    resampled whole. Of several runs of the study each is fitted by itself too, for the intervals.
    """
    law = _decode_law(runs)
    if isinstance(law, Unknown) or BY_RUN not in runs:
        return law
    by_run = [found for own in frames_by_run(runs) if not isinstance(found := _decode_law(own), Unknown)]
    return replace(
        law,
        line=added_fits(law.line, [found.line for found in by_run]),
        power=added_fits(law.power, [found.power for found in by_run]),
        power_tokens=added_fits(law.power_tokens, [found.power_tokens for found in by_run]),
        curvature=added(law.curvature, [found.curvature for found in by_run]),
    )


def _decode_law(runs: pd.DataFrame) -> DecodeLaw | Unknown:
    lengths = runs["steps"].nunique() if len(runs) else 0
    if lengths < 2:
        return Unknown(f"a law needs two output lengths at least, and there {'is 1' if lengths == 1 else 'are 0'}")
    steps = runs["steps"].to_numpy(dtype=np.float64)
    values = runs[DECODE.column].to_numpy(dtype=np.float64)
    images, ones = runs["image_index"].to_numpy(dtype=np.int64), np.ones(len(runs))
    weights = relative_weights(values)
    line = fit_linear({"per_token": steps, "constant": ones}, values, weights=weights, clusters=images)
    curvature = NO_ESTIMATE
    if lengths > 2:
        # One slope per photograph: a longer prompt makes every step longer, which is no bend.
        own = {f"linear {image}": np.where(images == image, steps, 0.0) for image in np.unique(images)}
        columns = {**own, "quadratic": steps**2, "constant": ones}
        bent = fit_linear(columns, values, weights=weights, clusters=images)
        longest = float(steps.max())
        share = longest**2 / float(np.median(values[steps == longest]))
        quadratic = bent["quadratic"]
        curvature = Estimate(quadratic.value * share, quadratic.low * share, quadratic.high * share)
    return DecodeLaw(
        line=line,
        power=fit_power(steps, values, clusters=images),
        power_tokens=fit_power(steps + 1, values, clusters=images),
        curvature=curvature,
        shortest_tokens=int(steps.min()) + 1,
        longest_tokens=int(steps.max()) + 1,
        images=len(np.unique(images)),
    )


def growth(runs: pd.DataFrame) -> pd.DataFrame:
    """How decode time grows from each output length to the next, over photographs that have both.

    Columns: from_tokens, to_tokens, images; ratio (T(to) / T(from)), slope_steps (log-log slope over steps)
    and slope_tokens (over output tokens), each with `_low` and `_high`.
    """
    found = [_growth(own) for own in frames_by_run(runs)]
    quantities = (RATIO, SLOPE_STEPS, SLOPE_TOKENS)
    return combined(found, quantities, key=("from_tokens", "to_tokens"), how=over_runs_of_the_same)


def _growth(runs: pd.DataFrame) -> pd.DataFrame:
    wide = runs.pivot_table(index="image_index", columns="steps", values=DECODE.column, aggfunc="first")
    found = []
    for one, other in pairwise(sorted(int(str(steps)) for steps in wide.columns)):
        both = wide[[one, other]].dropna()
        if both.empty:
            continue
        ratios = (both[other] / both[one]).to_numpy(dtype=np.float64)
        row: dict[str, Any] = {"from_tokens": one + 1, "to_tokens": other + 1, "images": len(both)}
        put_estimate(row, RATIO, median_of(ratios))
        put_estimate(row, SLOPE_STEPS, median_of(np.log(ratios) / math.log(other / one)))
        put_estimate(row, SLOPE_TOKENS, median_of(np.log(ratios) / math.log((other + 1) / (one + 1))))
        found.append(row)
    columns = ["from_tokens", "to_tokens", "images"]
    columns += [column for quantity in (RATIO, SLOPE_STEPS, SLOPE_TOKENS) for column in quantity.columns]
    return pd.DataFrame(found, columns=columns)


def by_length(runs: pd.DataFrame, quantity: Quantity) -> pd.DataFrame:
    """Median over photographs of a quantity of `decode`, by output length; the interval is over photographs and runs.

    Columns: output_tokens, steps, images, value, low, high (low and high are the smallest and largest
    photograph where there are too few for an interval), derived (whether any of them is).
    """
    found = []
    for steps, group in runs.groupby("steps"):
        values = group[quantity.column].dropna().to_numpy(dtype=np.float64)
        if not len(values):
            continue
        middle = with_runs(group.dropna(subset=[quantity.column]), lambda own: median_in(own, quantity))
        assert isinstance(middle, Estimate)  # there are values
        exact = not math.isnan(middle.low)
        found.append(
            {
                "output_tokens": int(str(steps)) + 1,
                "steps": int(str(steps)),
                "images": len(values),
                "value": middle.value,
                "low": middle.low if exact else float(values.min()),
                "high": middle.high if exact else float(values.max()),
                "derived": bool((group["source"] == "derived").any()),
            }
        )
    columns = ["output_tokens", "steps", "images", "value", "low", "high", "derived"]
    return pd.DataFrame(found, columns=columns)


def agreement(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """Compare output lengths that were run directly with the first steps of the photograph's longest run.

    Columns: image_index, output_tokens, direct and derived (ms, with intervals), difference_fraction
    (derived over direct, minus 1), agrees (the intervals overlap; absent where one has no interval).
    """
    rows = of_subject(table, subject)
    decodes = rows_of(rows[rows["stop"] == "length"], DECODE, kind=kinds.GENERATION)
    key = ["image_index", "output_tokens"]
    numbers = ["median_ms", "low_ms", "high_ms"]
    direct, derived = (decodes.loc[decodes["source"] == source, key + numbers] for source in ("measured", "derived"))
    both = direct.merge(derived, on=key, suffixes=("_direct", "_derived"))
    frame = both[key].copy()
    for name in ("direct", "derived"):
        frame[f"{name}_ms"] = both[f"median_ms_{name}"]
        frame[f"{name}_low_ms"], frame[f"{name}_high_ms"] = both[f"low_ms_{name}"], both[f"high_ms_{name}"]
    frame["difference_fraction"] = frame["derived_ms"] / frame["direct_ms"] - 1
    slack = 1 + 1e-9  # sums of the same numbers in another order
    overlap = (frame["derived_low_ms"] <= frame["direct_high_ms"] * slack) & (
        frame["direct_low_ms"] <= frame["derived_high_ms"] * slack
    )
    known = frame["derived_low_ms"].notna() & frame["direct_low_ms"].notna()
    frame["agrees"] = overlap.astype("boolean").where(known)
    return frame
