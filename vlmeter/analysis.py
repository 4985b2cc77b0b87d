"""What the table says: phases that close or do not, two methods side by side, laws with their intervals.

Every function takes the table (or a frame made of it) and returns a small frame or a few numbers, so that a
figure, a claim and the report can show the same thing without computing it twice in two ways. Nothing
raises on a study that is incomplete: what cannot be said comes back as `Unknown` with the reason in words.

The idea behind most of it: samples of one cell are paired by round. A difference between two ways of
measuring is therefore taken round by round, and its interval is that of the differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as distributions

from vlmeter.families.base import PREFILL_PHASES
from vlmeter.stats import CONFIDENCE, MIN_SAMPLES_FOR_PERCENTILE, Estimate, median_estimate
from vlmeter.uncertainty import (
    Array,
    Fit,
    fit_linear,
    fit_power,
    paired_difference,
    paired_ratio,
    percentile_estimate,
    relative_weights,
    standard_error,
)
from vlmeter.units import deviation, duration_range
from vlmeter.wording import plural

NO_ESTIMATE = Estimate(math.nan, math.nan, math.nan)

#: Wall time over busy time up to which a cell counts as device-bound: the device then idles for less than a
#: tenth of the time, so a faster host could gain less than that. (On an H200 the ratio is 1.03 for a
#: 798-token prefill and 1.66 for a 510-token one: there is little between.)
DEVICE_BOUND_RATIO = 1.1

#: Phases of which the vision side and the language side of a prefill consist.
VISION_PHASES = ("vision_encoder", "projector")
LANGUAGE_PHASES = ("merge", "llm_blocks", "head")


@dataclass(frozen=True)
class Unknown:
    """Something that the data cannot say, and why."""

    reason: str


def subjects_of(table: pd.DataFrame) -> list[str]:
    """Names of the subjects in the table, in alphabetical order."""
    return sorted(table["subject"].dropna().unique())


def of_subject(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """Rows of one subject; without a name the table must hold one subject at most.

    Raises ValueError if it holds several: numbers of two subjects are never pooled.
    """
    if subject is not None:
        return table[table["subject"] == subject]
    names = subjects_of(table)
    if len(names) > 1:
        raise ValueError(f"the table holds several subjects ({', '.join(names)}); name one")
    return table


# ---------------------------------------------------------------------------------------------------------------------
# Reading the table


class _Samples:
    """Samples of measured rows by cell, arm, phase and clock."""

    def __init__(self, rows: pd.DataFrame) -> None:
        measured = rows[rows["source"] == "measured"]
        keys = zip(*(measured[name] for name in ("cell_id", "arm", "phase", "clock")), strict=True)
        self._found: dict[tuple[str, str, str, str], Array] = dict(zip(keys, measured["samples_ms"], strict=True))

    def get(self, cell: str, arm: str, phase: str, clock: str) -> Array | None:
        return self._found.get((cell, arm, phase, clock))

    def phases(self, cell: str, phases: Iterable[str]) -> Array | None:
        """Sum of phases, round by round; None if one is missing."""
        parts = [self.get(cell, "hooks", phase, "device") for phase in phases]
        return None if not parts or any(part is None for part in parts) else np.sum(np.array(parts), axis=0)


def _median(samples: Array | None) -> Estimate:
    return NO_ESTIMATE if samples is None or not len(samples) else median_estimate(samples.tolist())


def _paired(
    how: Callable[[Array, Array], Estimate], samples: Array | None, others: Array | None, *, minus: float = 0.0
) -> Estimate:
    if samples is None or others is None or len(samples) != len(others) or not len(samples):
        return NO_ESTIMATE
    found = how(samples, others)
    return Estimate(found.value - minus, found.low - minus, found.high - minus)


def _paired_sum(samples: Array, others: Array) -> Estimate:
    return _median(samples + others)


def _put(row: dict[str, Any], name: str, unit: str, estimate: Estimate) -> None:
    for part, value in (("", estimate.value), ("_low", estimate.low), ("_high", estimate.high)):
        row[f"{name}{part}{unit}"] = value


def estimate_in(row: Any, name: str, unit: str = "_ms") -> Estimate:
    """Read an estimate back from a row of a frame of this module: `name`, its low and its high end."""
    return Estimate(float(row[f"{name}{unit}"]), float(row[f"{name}_low{unit}"]), float(row[f"{name}_high{unit}"]))


def _cells(rows: pd.DataFrame, experiment: str) -> pd.DataFrame:
    """One row per finished cell of an experiment."""
    fine = rows[(rows["experiment"] == experiment) & (rows["status"] == "ok") & rows["arm"].notna()]
    return fine[fine["source"] == "measured"].drop_duplicates("cell_id")


def _number(value: Any) -> float:
    return math.nan if pd.isna(value) else float(value)


# ---------------------------------------------------------------------------------------------------------------------
# Vision tokens: cells

#: Quantities of `vision_cells` in milliseconds; each has `_low_ms` and `_high_ms` beside it.
VISION_QUANTITIES = {
    "plain_wall": "whole prefill without marks, as a user waits for it",
    "plain_device": "whole prefill without marks, between device events",
    "plain_launch": "time for which the host hands over the whole prefill",
    "hooks_wall": "whole prefill with marks, as a user waits for it",
    "hooks_device": "whole prefill with marks, between device events",
    "inputs_wall": "preprocessing and copy to the device",
    "first_token": "time to first token: preprocessing, copy and prefill without marks, wall, paired",
    **{phase: f"phase {phase} by hooks" for phase in PREFILL_PHASES},
    "vision": "vision encoder and projector, by hooks",
    "language": "all phases behind them (merge, LLM blocks, head), by hooks",
    "phases": "sum of all phases, by hooks",
    "vision_alone_wall": "vision encoder and projector run by themselves, wall",
    "vision_alone_device": "vision encoder and projector run by themselves, device events",
    "subtraction_wall": "language side by subtraction: plain - vision alone, wall, paired",
    "subtraction_device": "language side by subtraction: plain - vision alone, device events, paired",
    "method_difference_wall": "language by hooks - by subtraction (wall), paired",
    "method_difference_device": "language by hooks - by subtraction (device events), paired",
    "busy_prefill": "device busy with the whole prefill",
    "busy_vision": "device busy with vision alone",
}

#: Fractions of `vision_cells`; each has `_low_fraction` and `_high_fraction` beside it.
VISION_FRACTIONS = {
    "closure": "sum of phases over the plain total, both by device events, minus 1",
    "closure_wall": "sum of phases over the plain total's wall time, minus 1",
    "overhead": "wall time with marks over wall time without, minus 1",
}

_CELL_FIELDS = (
    "cell_id",
    "tiling_h",
    "tiling_w",
    "forced_tiling",
    "width_px",
    "height_px",
    "crops",
    "vision_tokens",
    "special_tokens",
    "text_tokens",
    "prompt_tokens",
    "drifted",
    "stop_reason",
    "session_position",
    "busy_reason",
)


def vision_cells(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """One row per finished cell of the vision-token experiment, in the order of prompt tokens and crops.

    Columns: counts; VISION_QUANTITIES and VISION_FRACTIONS with their intervals; wall_over_busy with its
    interval; bound ("launch-bound", "device-bound", "cannot tell") and bound_reason.
    """
    rows = of_subject(table, subject)
    samples = _Samples(rows)
    found = []
    for cell in _cells(rows, "vision_tokens").to_dict("records"):
        name = str(cell["cell_id"])
        row: dict[str, Any] = {field: cell[field] for field in _CELL_FIELDS}
        plain, hooks = (
            {clock: samples.get(name, arm, "total", clock) for clock in ("wall", "device", "launch")}
            for arm in ("plain", "hooks")
        )
        alone = {clock: samples.get(name, "vision", "total", clock) for clock in ("wall", "device")}
        language, phases = samples.phases(name, LANGUAGE_PHASES), samples.phases(name, PREFILL_PHASES)
        busy = samples.get(name, "busy", "prefill", "busy")
        inputs = samples.get(name, "inputs", "total", "wall")
        values = {
            "plain_wall": _median(plain["wall"]),
            "plain_device": _median(plain["device"]),
            "plain_launch": _median(plain["launch"]),
            "hooks_wall": _median(hooks["wall"]),
            "hooks_device": _median(hooks["device"]),
            "inputs_wall": _median(inputs),
            "first_token": _paired(_paired_sum, inputs, plain["wall"]),
            **{phase: _median(samples.get(name, "hooks", phase, "device")) for phase in PREFILL_PHASES},
            "vision": _median(samples.phases(name, VISION_PHASES)),
            "language": _median(language),
            "phases": _median(phases),
            "vision_alone_wall": _median(alone["wall"]),
            "vision_alone_device": _median(alone["device"]),
            "busy_prefill": _median(busy),
            "busy_vision": _median(samples.get(name, "busy", "vision", "busy")),
        }
        for clock in ("wall", "device"):
            values[f"subtraction_{clock}"] = _paired(paired_difference, plain[clock], alone[clock])
            if (whole := plain[clock]) is not None and (part := alone[clock]) is not None:
                difference = _paired(paired_difference, language, whole - part)
                values[f"method_difference_{clock}"] = difference
        for quantity in VISION_QUANTITIES:
            _put(row, quantity, "_ms", values.get(quantity, NO_ESTIMATE))
        _put(row, "closure", "_fraction", _paired(paired_ratio, phases, plain["device"], minus=1))
        _put(row, "closure_wall", "_fraction", _paired(paired_ratio, phases, plain["wall"], minus=1))
        _put(row, "overhead", "_fraction", _paired(paired_ratio, hooks["wall"], plain["wall"], minus=1))
        ratio = over(values["plain_wall"], values["busy_prefill"])
        _put(row, "wall_over_busy", "", ratio)
        row["bound"], row["bound_reason"] = judge_bound(ratio, busy_reason=cell["busy_reason"])
        found.append(row)
    columns = [
        *_CELL_FIELDS,
        *(f"{name}{part}_ms" for name in VISION_QUANTITIES for part in ("", "_low", "_high")),
        *(f"{name}{part}_fraction" for name in VISION_FRACTIONS for part in ("", "_low", "_high")),
        *("wall_over_busy", "wall_over_busy_low", "wall_over_busy_high", "bound", "bound_reason"),
    ]
    frame = pd.DataFrame(found, columns=columns)
    return frame.sort_values(["prompt_tokens", "crops", "cell_id"]).reset_index(drop=True)


#: Decode steps that stand for "right behind the prompt".
FIRST_STEPS = 16


def over(value: Estimate, by: Estimate) -> Estimate:
    """Ratio of two estimates that were not taken in pairs; relative errors add up in squares."""
    if not by.value > 0:
        return NO_ESTIMATE
    ratio = value.value / by.value
    parts = [math.hypot(*sides) for sides in _relative_sides(value, by)]
    return Estimate(ratio, ratio * (1 - parts[0]), ratio * (1 + parts[1]))


def _relative_sides(value: Estimate, by: Estimate) -> tuple[tuple[float, float], tuple[float, float]]:
    below = (1 - value.low / value.value, by.high / by.value - 1)
    above = (value.high / value.value - 1, 1 - by.low / by.value)
    return below, above


def judge_bound(wall_over_busy: Estimate, *, busy_reason: Any = None) -> tuple[str, str]:
    """Judge who sets the pace: ("launch-bound" | "device-bound" | "cannot tell", and why)."""
    if math.isnan(wall_over_busy.value):
        return "cannot tell", busy_reason if isinstance(busy_reason, str) else "busy time was not measured"
    low, high = (
        (wall_over_busy.value, wall_over_busy.value)
        if math.isnan(wall_over_busy.low)
        else (wall_over_busy.low, wall_over_busy.high)
    )
    if low > DEVICE_BOUND_RATIO:
        return "launch-bound", "the device waits for the host"
    if high <= DEVICE_BOUND_RATIO:
        return "device-bound", "the device is busy nearly all the time"
    return "cannot tell", f"the ratio's interval holds the limit of {DEVICE_BOUND_RATIO}"


@dataclass(frozen=True)
class Crossover:
    """Where launch-bound ends, in prompt tokens; None where there is no such cell.

    Between the two lies what the study's sizes do not resolve; if they overlap, tokens alone do not decide.
    """

    last_launch_bound_tokens: int | None
    first_device_bound_tokens: int | None
    launch_bound_cells: int
    device_bound_cells: int
    undecided_cells: int

    @property
    def clean(self) -> bool:
        """Whether every launch-bound cell is shorter than every device-bound one."""
        last, first = self.last_launch_bound_tokens, self.first_device_bound_tokens
        return last is None or first is None or last < first


def crossover(cells: pd.DataFrame) -> Crossover | Unknown:
    """Find where launch-bound ends among `vision_cells`."""
    if cells.empty:
        return Unknown("no vision-token cell was measured")
    launch, device = (cells[cells["bound"] == bound] for bound in ("launch-bound", "device-bound"))
    if launch.empty and device.empty:
        return Unknown(str(cells["bound_reason"].iloc[0]))
    return Crossover(
        None if launch.empty else int(launch["prompt_tokens"].max()),
        None if device.empty else int(device["prompt_tokens"].min()),
        len(launch),
        len(device),
        len(cells) - len(launch) - len(device),
    )


def pooled(cells: pd.DataFrame, quantity: str, unit: str = "_ms") -> Estimate | Unknown:
    """Median of a quantity over cells; its interval counts what differs from cell to cell.

    With fewer than five cells, which have no interval of their own, it spans the intervals of all of them.
    """
    known = cells.dropna(subset=[f"{quantity}{unit}"])
    if known.empty:
        return Unknown("no cell was measured in both ways")
    middle = _median(known[f"{quantity}{unit}"].to_numpy(dtype=np.float64))
    low, high = f"{quantity}_low{unit}", f"{quantity}_high{unit}"
    if math.isnan(middle.low) and low in known and known[low].notna().all():
        return Estimate(middle.value, float(known[low].min()), float(known[high].max()))
    return middle


# ---------------------------------------------------------------------------------------------------------------------
# Vision tokens: laws


@dataclass(frozen=True)
class CostClock:
    """The time in which costs of crops and tokens are told: a quantity of `vision_cells`, its name, and why."""

    quantity: str
    name: str
    why: str


def cost_clock(cells: pd.DataFrame) -> CostClock:
    """Choose the clock on which crops and tokens have a cost.

    Wall time, as long as the device sets the pace. Where the host does in some cells, a plane through all wall times
    mixes two regimes and its slopes belong to neither: then the time for which the device is busy, if it is known.
    """
    timed = cells[cells["plain_wall_ms"].notna()]
    launch_bound = int((timed["bound"] == "launch-bound").sum())
    if launch_bound and timed["busy_prefill_ms"].notna().all():
        why = f"{launch_bound} of {len(timed)} cells are launch-bound: there the host sets what a user waits"
        return CostClock("busy_prefill", "device busy time", why)
    why = (
        ""
        if not launch_bound
        else f"{launch_bound} of {len(timed)} cells are launch-bound, so it mixes host and device"
    )
    return CostClock("plain_wall", "wall time", why)


def two_factor(cells: pd.DataFrame, quantity: str = "plain_wall") -> Fit | Unknown:
    """Fit `quantity = crop * crops + token * prompt_tokens + constant` over `vision_cells`, in milliseconds.

    Crops are work for the vision encoder, tokens for the language model; a sweep along one of them cannot
    tell them apart. Least squares over the cells' medians, unweighted, since the medians span a small
    factor.
    """
    found = cells.dropna(subset=[f"{quantity}_ms"])
    if len(found) < 4:
        return Unknown(f"two factors and a constant need 4 cells at least, and there are {len(found)}")
    columns = {
        "crop": found["crops"].to_numpy(dtype=np.float64),
        "token": found["prompt_tokens"].to_numpy(dtype=np.float64),
        "constant": np.ones(len(found)),
    }
    try:
        return fit_linear(columns, found[f"{quantity}_ms"].to_numpy(dtype=np.float64))
    except ValueError:
        return Unknown("crops and tokens do not vary independently of each other in these cells")


@dataclass(frozen=True)
class PartCosts:
    """What one more crop and one more token cost, each told by the part of the model that it is work for.

    crop: of the vision side, per crop. token: of the language side, per prompt token; where all images have as many
    crops, of the whole prefill, since the vision side then grows with the tokens too. clock: the time they are told in.
    """

    crop: Estimate | Unknown
    token: Estimate | Unknown
    clock: CostClock
    token_is_of: str


def part_costs(cells: pd.DataFrame) -> PartCosts:
    """Fit the vision side of a prefill over its crops, and the language side over its tokens, each by itself.

    The vision encoder sees crops and no prompt, the language model the prompt and no crops. So each slope is found on
    its own part, and stays sharp where crops and tokens grow nearly together, which blurs a plane through their sum
    (`two_factor`). The parts are of the clock that `cost_clock` chooses: of busy time, or between marks.
    """
    clock = cost_clock(cells)
    busy = clock.quantity == "busy_prefill"
    vision = cells["busy_vision_ms"] if busy else cells["vision_ms"]
    language = cells["busy_prefill_ms"] - cells["busy_vision_ms"] if busy else cells["language_ms"]
    if cells["crops"].nunique() > 1:
        crop = _slope(cells["crops"], vision, name="crops")
        return PartCosts(crop, _slope(cells["prompt_tokens"], language, name="tokens"), clock, "the language side")
    counts = sorted({int(count) for count in cells["crops"].dropna()})
    crop = Unknown(f"every image is cut into {plural(counts[0], 'crop')}" if counts else "no image was measured")
    return PartCosts(crop, _slope(cells["prompt_tokens"], vision + language, name="tokens"), clock, "the whole prefill")


def _slope(sizes: pd.Series[Any], times_ms: pd.Series[Any], *, name: str) -> Estimate | Unknown:
    known = times_ms.notna()
    found = sizes[known].to_numpy(dtype=np.float64)
    if len(np.unique(found)) < 3:
        return Unknown(f"a cost needs three numbers of {name} at least, and there are {len(np.unique(found))}")
    columns = {"slope": found, "constant": np.ones(len(found))}
    return fit_linear(columns, times_ms[known].to_numpy(dtype=np.float64))["slope"]


@dataclass(frozen=True)
class Fall:
    """A quantity that is smaller although there are more tokens."""

    from_tokens: int
    to_tokens: int
    from_ms: float
    to_ms: float

    @property
    def drop_ms(self) -> float:
        """By how much it falls."""
        return self.from_ms - self.to_ms


def falls(cells: pd.DataFrame, quantity: str, *, spread_fraction: float = 0.0) -> list[Fall] | Unknown:
    """Find where a quantity falls as prompt tokens grow, beyond what noise explains; largest drop first.

    Every pair of cells is compared, so each pair has to convince at 5 % over the number of pairs
    (Bonferroni): a quantity that is flat will hardly ever be said to fall. `spread_fraction` is how much
    one cell differs between two visits (see `sentinel_spread`), which the interval within a visit does not
    know.
    """
    found = cells.dropna(subset=[f"{quantity}_ms", f"{quantity}_low_ms"])
    if len(found) < 2:
        return Unknown("fewer than two cells have an interval")
    tokens = found["prompt_tokens"].to_numpy(dtype=np.int64)
    values = found[f"{quantity}_ms"].to_numpy(dtype=np.float64)
    errors = np.array([standard_error(estimate_in(row, quantity)) for _, row in found.iterrows()])
    variances = np.square(errors) + np.square(spread_fraction * values)
    first, second = np.nonzero(tokens[:, None] < tokens[None, :])
    if not len(first):
        return Unknown("all cells have the same number of tokens")
    drops = values[first] - values[second]
    limit = float(distributions.norm.ppf(1 - (1 - CONFIDENCE) / len(first)))
    beyond = drops > limit * np.sqrt(variances[first] + variances[second])
    beyond &= drops > 0
    result = [
        Fall(int(tokens[i]), int(tokens[j]), float(values[i]), float(values[j]))
        for i, j in zip(first[beyond], second[beyond], strict=True)
    ]
    return sorted(result, key=lambda fall: -fall.drop_ms)


# ---------------------------------------------------------------------------------------------------------------------
# Output tokens


DECODE_QUANTITIES = {
    "decode": "all decode steps",
    "prefill": "sum of the prefill's phases",
    "vision": "vision encoder and projector",
    "language": "the prefill's other phases",
    "total": "prefill and decode",
    "inputs_wall": "preprocessing and copy to the device",
    "first_token": "time to first token: preprocessing, copy and prefill",
}

_DECODE_FIELDS = (
    "image_index",
    "image_id",
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


def decode(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """One row per photograph and number of output tokens, measured directly where it was, derived elsewhere.

    Columns: what was run; steps (decode steps: the output tokens that were generated, less the first);
    DECODE_QUANTITIES with their intervals in milliseconds of device time; share_fraction (prefill / total)
    and of_decode_fraction (prefill / decode) with theirs. A derived row takes its prefill from the run that
    it is made of.
    """
    rows = of_subject(table, subject)
    samples = _Samples(rows)
    fine = rows[(rows["experiment"] == "output_tokens") & (rows["status"] == "ok")]
    decodes = fine[(fine["arm"] == "hooks") & (fine["phase"] == "decode")]
    found = []
    for cell in decodes.to_dict("records"):
        name = str(cell["cell_id"])
        row: dict[str, Any] = {field: cell[field] for field in _DECODE_FIELDS}
        generated = cell["output_tokens"]
        if cell["source"] == "measured" and not pd.isna(cell["generated_tokens"]):
            generated = cell["generated_tokens"]
        row["steps"] = int(generated) - 1
        if row["steps"] < 1:
            continue
        steps = np.asarray(cell["samples_ms"], dtype=np.float64)
        prefill, inputs = samples.phases(name, PREFILL_PHASES), samples.get(name, "inputs", "total", "wall")
        paired = prefill is not None and len(prefill) == len(steps)
        total = prefill + steps if paired and prefill is not None else None
        first = prefill + inputs if paired and prefill is not None and inputs is not None else None
        _put(row, "decode", "_ms", _median(steps))
        _put(row, "prefill", "_ms", _median(prefill))
        _put(row, "vision", "_ms", _median(samples.phases(name, VISION_PHASES)))
        _put(row, "language", "_ms", _median(samples.phases(name, LANGUAGE_PHASES)))
        _put(row, "total", "_ms", _median(total))
        _put(row, "inputs_wall", "_ms", _median(inputs))
        _put(row, "first_token", "_ms", _median(first))
        _put(row, "share", "_fraction", _paired(paired_ratio, prefill, total))
        _put(row, "of_decode", "_fraction", _paired(paired_ratio, prefill, steps))
        found.append(row)
    columns = [
        *_DECODE_FIELDS,
        "steps",
        *(f"{name}{part}_ms" for name in DECODE_QUANTITIES for part in ("", "_low", "_high")),
        *(f"{name}{part}_fraction" for name in ("share", "of_decode") for part in ("", "_low", "_high")),
    ]
    frame = pd.DataFrame(found, columns=columns)
    frame["direct"] = frame["source"] == "measured"
    frame = frame.sort_values(["image_index", "output_tokens", "direct"], ascending=[True, True, False])
    return frame.drop_duplicates(["image_index", "output_tokens"]).reset_index(drop=True)


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
    resampled whole.
    """
    lengths = runs["steps"].nunique() if len(runs) else 0
    if lengths < 2:
        return Unknown(f"a law needs two output lengths at least, and there {'is 1' if lengths == 1 else 'are 0'}")
    steps = runs["steps"].to_numpy(dtype=np.float64)
    values = runs["decode_ms"].to_numpy(dtype=np.float64)
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
    wide = runs.pivot_table(index="image_index", columns="steps", values="decode_ms", aggfunc="first")
    found = []
    for one, other in pairwise(sorted(int(str(steps)) for steps in wide.columns)):
        both = wide[[one, other]].dropna()
        if both.empty:
            continue
        ratios = (both[other] / both[one]).to_numpy(dtype=np.float64)
        row: dict[str, Any] = {"from_tokens": one + 1, "to_tokens": other + 1, "images": len(both)}
        _put(row, "ratio", "", _median(ratios))
        _put(row, "slope_steps", "", _median(np.log(ratios) / math.log(other / one)))
        _put(row, "slope_tokens", "", _median(np.log(ratios) / math.log((other + 1) / (one + 1))))
        found.append(row)
    columns = ["from_tokens", "to_tokens", "images"]
    columns += [f"{n}{part}" for n in ("ratio", "slope_steps", "slope_tokens") for part in ("", "_low", "_high")]
    return pd.DataFrame(found, columns=columns)


def by_length(runs: pd.DataFrame, quantity: str, unit: str = "_ms") -> pd.DataFrame:
    """Median over photographs of a quantity of `decode`, by output length; the interval is over photographs.

    Columns: output_tokens, steps, images, value, low, high (low and high are the smallest and largest
    photograph where there are too few for an interval), derived (whether any of them is).
    """
    found = []
    for steps, group in runs.groupby("steps"):
        values = group[f"{quantity}{unit}"].dropna().to_numpy(dtype=np.float64)
        if not len(values):
            continue
        middle = _median(values)
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


#: Points into which a photograph's decode steps are gathered before a line is laid through them.
STEP_BINS = 64


@dataclass(frozen=True)
class StepLaw:
    """How long a decode step takes at a context length: step = constant + per_context_token * context, in ms.

    The constant is what every step costs whatever the context: reading the weights, or the host's launches.
    The slope is reading the keys and values of one more token.
    """

    fit: Fit
    contexts: Array
    values_ms: Array
    images: npt.NDArray[np.int64]


def decode_steps(table: pd.DataFrame, subject: str | None = None) -> dict[int, tuple[Array, Array]]:
    """Context length and duration of every decode step in the longest run of each photograph, by its index.

    A step's context is the tokens whose keys and values it reads, its own included.
    """
    rows = of_subject(table, subject)
    fine = rows[(rows["arm"] == "hooks") & (rows["phase"] == "decode_step")]
    fine = fine.sort_values("output_tokens").drop_duplicates("image_index", keep="last")
    found: dict[int, tuple[Array, Array]] = {}
    for row in fine.sort_values("image_index").to_dict("records"):
        steps = np.asarray(row["samples_ms"], dtype=np.float64)
        if len(steps) and not pd.isna(row["prompt_tokens"]):
            context = np.arange(len(steps), dtype=np.float64) + (int(row["prompt_tokens"]) + 1)
            found[int(row["image_index"])] = (context, steps)
    return found


def step_law(table: pd.DataFrame, subject: str | None = None) -> StepLaw | Unknown:
    """Fit the duration of a decode step against its context length.

    Steps are gathered into bins (median of neighbours) so that a hiccup does not pull the line; photographs
    are resampled whole, or bins where there is a single photograph.
    """
    contexts, values, images = [], [], []
    for image, (context, steps) in decode_steps(table, subject).items():
        for part in np.array_split(np.arange(len(steps)), min(STEP_BINS, len(steps))):
            contexts.append(float(context[part].mean()))
            values.append(float(np.median(steps[part])))
            images.append(image)
    if len(contexts) < 3:
        return Unknown("there are fewer than three decode steps")
    columns = {"per_context_token": np.array(contexts), "constant": np.ones(len(contexts))}
    fit = fit_linear(columns, values, clusters=images)
    return StepLaw(fit, np.array(contexts), np.array(values), np.array(images, dtype=np.int64))


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

    The first steps of every run are taken, since the busy step stands right behind the prompt, too.
    """
    rows = of_subject(table, subject)
    busy_rows = rows[(rows["arm"] == "busy") & (rows["phase"] == "decode_step") & rows["median_ms"].notna()]
    if busy_rows.empty:
        reasons = rows.loc[rows["experiment"] == "output_tokens", "busy_reason"].dropna()
        return Unknown(str(reasons.iloc[0]) if len(reasons) else "the busy time of a decode step was not measured")
    firsts = [float(np.median(steps[:FIRST_STEPS])) for _, steps in decode_steps(rows).values()]
    if not firsts:
        return Unknown("no decode step was measured")
    step, busy = _median(np.array(firsts)), _median(busy_rows["median_ms"].to_numpy(dtype=np.float64))
    ratio = over(step, busy)
    return StepBound(step, busy, ratio, *judge_bound(ratio))


def agreement(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """Compare output lengths that were run directly with the first steps of the photograph's longest run.

    Columns: image_index, output_tokens, direct and derived (ms, with intervals), difference_fraction
    (derived over direct, minus 1), agrees (the intervals overlap; absent where one has no interval).
    """
    rows = of_subject(table, subject)
    decodes = rows[(rows["arm"] == "hooks") & (rows["phase"] == "decode") & (rows["stop"] == "length")]
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


def inter_token(table: pd.DataFrame, subject: str | None = None) -> Array:
    """Every decode step of every round of the longest run of each photograph, in ms."""
    rows = of_subject(table, subject)
    fine = rows[(rows["phase"] == "inter_token") & (rows["experiment"] == "output_tokens")]
    fine = fine.sort_values("output_tokens").drop_duplicates("image_index", keep="last")
    parts = [np.asarray(samples, dtype=np.float64) for samples in fine["samples_ms"]]
    return np.concatenate(parts) if parts else np.array([])


def inter_token_percentiles(samples: Array) -> dict[float, Estimate | None]:
    """P50, P95 and P99 of the inter-token latency; None where there are too few steps for one."""
    return {fraction: percentile_estimate(samples, fraction) for fraction in (0.5, 0.95, 0.99)}


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
    every = rows[(rows["phase"] == "inter_token") & (rows["experiment"] == "output_tokens")]
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


# ---------------------------------------------------------------------------------------------------------------------
# The session


def sentinel(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """List the sentinel's visits.

    Columns: session_id, position (cells measured before it), median_ms, fraction (over the first visit, minus
    1), drifted.
    """
    rows = of_subject(table, subject)
    seen = rows.dropna(subset=["drift_reference_ms"]).drop_duplicates("cell_id")
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


def sentinel_spread(table: pd.DataFrame, subject: str | None = None) -> float:
    """Standard deviation of the sentinel from visit to visit, as a fraction; 0 below three visits."""
    visits = sentinel(table, subject)["fraction"].to_numpy(dtype=np.float64)
    return float(np.std(visits, ddof=1)) if len(visits) >= 3 else 0.0


@dataclass(frozen=True)
class Trust:
    """Whether the numbers may be trusted: "quiet", "disturbed" or "unusable", with the reasons."""

    verdict: str
    reasons: tuple[str, ...]


#: Share of cells above which a trouble makes the whole disturbed, and unusable.
DISTURBED_SHARE, UNUSABLE_SHARE = 0.05, 0.5

#: Share of cells with restless warm-up above which the whole is disturbed; of a few, the median takes no notice.
UNSETTLED_SHARE = 0.25

#: Spread of the sentinel from visit to visit above which the whole is disturbed, and unusable: cells that differ by
#: less than this cannot be told apart. (A quiet GPU stays within 1 %, a quiet desktop within some percent.)
DISTURBED_SPREAD, UNUSABLE_SPREAD = 0.05, 0.25


def trust(table: pd.DataFrame, subject: str | None = None) -> Trust:
    """Judge the conditions under which the cells were measured.

    A cell is in trouble if the sentinel around it had drifted, or if most of its rounds were disturbed (a few
    disturbed rounds are left out of its statistics). The whole is, too, if the sentinel varied from visit to visit.
    Uneven decode steps are said and change no verdict: they are in the intervals of what is told about decode, and
    prefills need not be uneven for it.
    """
    rows = of_subject(table, subject)
    totals = rows[(rows["status"] == "ok") & (rows["phase"] == "total")].drop_duplicates("cell_id")
    if totals.empty:
        return Trust("unusable", ("no cell was measured",))
    count = len(totals)
    drifted = totals["drifted"].fillna(False).astype(bool)
    kept = totals["disturbed_samples"] * 2 > totals["rounds"]
    some = (totals["disturbed_samples"] > 0) & ~kept
    unsettled = ~totals["warmup_settled"].fillna(True).astype(bool)
    reasons = []
    if drifted.any():
        reasons.append(f"the sentinel had drifted around {drifted.sum()} of {count} cells")
    if kept.any():
        seen = {name for text in totals.loc[kept, "disturbances"].dropna() for name in text.split("; ")}
        names = "; ".join(sorted(seen))
        reasons.append(f"most rounds of {kept.sum()} of {count} cells were disturbed ({names})")
    if some.any():
        reasons.append(f"single rounds of {some.sum()} of {count} cells were disturbed, and are left out")
    if unsettled.any():
        reasons.append(f"warm-up had not settled in {unsettled.sum()} of {count} cells")
    spread = sentinel_spread(rows)
    if spread > DISTURBED_SPREAD:
        varied = deviation(spread, "its first value")
        reasons.append(f"the sentinel, one and the same cell, varied by {varied} from visit to visit")
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
    if share > DISTURBED_SHARE or unsettled.mean() > UNSETTLED_SHARE or spread > DISTURBED_SPREAD:
        verdict = "disturbed"
    if share > UNUSABLE_SHARE or spread > UNUSABLE_SPREAD:
        verdict = "unusable"
    return Trust(verdict, tuple(reasons) or ("no disturbance was seen",))


# ---------------------------------------------------------------------------------------------------------------------
# Headline


@dataclass(frozen=True)
class Headline:
    """One answer of the first screen."""

    name: str
    question: str
    answer: Estimate | Unknown
    unit: str
    note: str = ""


def headlines(table: pd.DataFrame, subject: str | None = None) -> list[Headline]:
    """What one more crop, 1,000 more tokens, one more output token cost; and the time to first token."""
    rows = of_subject(table, subject)
    cells, runs = vision_cells(rows), decode(rows)
    costs, law = part_costs(cells), decode_law(runs)
    why = f"; {costs.clock.why}" if costs.clock.why else ""
    token = costs.token if isinstance(costs.token, Unknown) else scaled(costs.token, 1000)
    answers = [
        Headline("per_crop", "one more crop", costs.crop, "ms", f"{costs.clock.name} of the vision side{why}"),
        Headline(
            "per_1000_tokens",
            "1,000 more vision tokens",
            token,
            "ms",
            f"{costs.clock.name} of {costs.token_is_of}{why}",
        ),
        Headline(
            "per_output_token",
            "one more output token",
            law if isinstance(law, Unknown) else law.line["per_token"],
            "ms",
            "" if isinstance(law, Unknown) else f"from {law.shortest_tokens} to {law.longest_tokens} output tokens",
        ),
    ]
    first = runs.drop_duplicates("image_index") if len(runs) else runs
    values = first["first_token_ms"].dropna().to_numpy(dtype=np.float64)
    answers.append(
        Headline(
            "first_token",
            "time to first token",
            _median(values) if len(values) else Unknown("no photograph was measured"),
            "ms",
            f"median over {len(values)} photographs; preprocessing, copy and prefill" if len(values) else "",
        )
    )
    return answers


def scaled(estimate: Estimate, factor: float) -> Estimate:
    """An estimate in a unit that is 1 / factor as large; factor is positive."""
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor)


def phase_shares(cells: pd.DataFrame) -> pd.DataFrame:
    """Share of each phase in the sum of phases, over `vision_cells`: phase, smallest, median, largest."""
    found = []
    for phase in PREFILL_PHASES:
        shares = (cells[f"{phase}_ms"] / cells["phases_ms"]).dropna().to_numpy(dtype=np.float64)
        if len(shares):
            found.append(
                {
                    "phase": phase,
                    "smallest_fraction": float(shares.min()),
                    "median_fraction": float(np.median(shares)),
                    "largest_fraction": float(shares.max()),
                }
            )
    return pd.DataFrame(found, columns=["phase", "smallest_fraction", "median_fraction", "largest_fraction"])


def left_out(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """Cells without numbers: cell_id, experiment, status, reason."""
    rows = of_subject(table, subject)
    empty = rows[rows["arm"].isna()]
    return empty[["cell_id", "experiment", "status", "reason"]].reset_index(drop=True)


def repeated_counts(cells: pd.DataFrame) -> Sequence[int]:
    """Vision-token counts that are reached with more than one crop count, among `vision_cells`."""
    groups = cells.groupby("vision_tokens")["crops"].nunique()
    return [int(str(tokens)) for tokens, count in groups.items() if count > 1]
