"""Prefill: phases that close or do not, two methods side by side, what a crop and a token cost."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as distributions

from vlmeter.analysis.by_run import combined, fit_with_runs, with_runs
from vlmeter.analysis.reading import (
    NO_ESTIMATE,
    Samples,
    Unknown,
    cells_of,
    estimate_of,
    median_in_order,
    median_of,
    of_subject,
    paired_estimate,
    paired_sum,
    put_estimate,
)
from vlmeter.analysis.remembered import remembered
from vlmeter.analysis.runs import runs_of
from vlmeter.numbers.intervals import Fit, fit_linear, paired_difference, paired_ratio, standard_error
from vlmeter.numbers.medians import CONFIDENCE, Estimate
from vlmeter.numbers.units import duration_range
from vlmeter.numbers.words import plural
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    AROUND,
    BUSY_PREFILL,
    BUSY_VISION,
    CLOSURE,
    CLOSURE_WALL,
    FIRST_TOKEN,
    HOOKS_DEVICE,
    HOOKS_WALL,
    INPUTS_WALL,
    KNOWN_PICTURE_WALL,
    KNOWN_PROMPT_WALL,
    LANGUAGE,
    METHOD_DIFFERENCE_DEVICE,
    METHOD_DIFFERENCE_WALL,
    OUTSIDE,
    OUTSIDE_SHARE,
    OVERHEAD,
    PHASES,
    PICTURE_WALL,
    PLAIN_DEVICE,
    PLAIN_LAUNCH,
    PLAIN_WALL,
    PREFILL_SUM,
    SUBTRACTION_DEVICE,
    SUBTRACTION_WALL,
    VISION,
    VISION_ALONE_DEVICE,
    VISION_ALONE_WALL,
    WAITED,
    WALL_OVER_BUSY,
    Quantity,
)

#: Wall time over busy time up to which a cell counts as device-bound: the device then idles for less than a
#: tenth of the time, so a faster host could gain less than that. (On an H200 the ratio is 1.03 for a
#: 798-token prefill and 1.66 for a 510-token one: there is little between.)
DEVICE_BOUND_RATIO = 1.1


#: Quantities of `vision_cells`, with their intervals.
IN_CELLS = (
    *(PLAIN_WALL, PLAIN_DEVICE, PLAIN_LAUNCH, HOOKS_WALL, HOOKS_DEVICE, INPUTS_WALL, FIRST_TOKEN),
    *(*PHASES, VISION, LANGUAGE, PREFILL_SUM, VISION_ALONE_WALL, VISION_ALONE_DEVICE),
    *(SUBTRACTION_WALL, SUBTRACTION_DEVICE, METHOD_DIFFERENCE_WALL, METHOD_DIFFERENCE_DEVICE),
    *(KNOWN_PICTURE_WALL, KNOWN_PROMPT_WALL, PICTURE_WALL),
    *(BUSY_PREFILL, BUSY_VISION, CLOSURE, CLOSURE_WALL, OVERHEAD, WALL_OVER_BUSY),
    *(*AROUND, OUTSIDE, OUTSIDE_SHARE),
)

#: From what is taken what, what is left, and how far it lies from the hooks: on each clock, and on a server.
_SUBTRACTIONS = (
    (PLAIN_WALL, VISION_ALONE_WALL, SUBTRACTION_WALL, METHOD_DIFFERENCE_WALL),
    (PLAIN_DEVICE, VISION_ALONE_DEVICE, SUBTRACTION_DEVICE, METHOD_DIFFERENCE_DEVICE),
    (KNOWN_PICTURE_WALL, KNOWN_PROMPT_WALL, SUBTRACTION_WALL, METHOD_DIFFERENCE_WALL),
)


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


@remembered
def vision_cells(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame:
    """One row per finished prefill, in the order of prompt tokens and crops.

    Columns: counts; IN_CELLS with their intervals; bound ("launch-bound", "device-bound", "cannot tell") and
    bound_reason. Of several runs each is estimated by itself first, and BY_RUN is a column more.
    """
    rows = of_subject(table, subject)
    frame = combined([_cells_of_run(own) for own in runs_of(rows)], IN_CELLS, key=("cell_id",))
    bounds = [
        judge_bound(estimate_of(row, WALL_OVER_BUSY), busy_reason=row["busy_reason"])
        for row in frame.to_dict("records")
    ]
    frame["bound"], frame["bound_reason"] = ([bound[place] for bound in bounds] for place in (0, 1))
    return frame.sort_values(["prompt_tokens", "crops", "cell_id"]).reset_index(drop=True)


def _cells_of_run(rows: pd.DataFrame) -> pd.DataFrame:
    samples = Samples(rows, kinds.PREFILL)
    found = []
    for cell in cells_of(rows, kinds.PREFILL).to_dict("records"):
        name = str(cell["cell_id"])
        row: dict[str, Any] = {field: cell[field] for field in _CELL_FIELDS}
        taken = {quantity: samples.get(name, quantity) for quantity in IN_CELLS if quantity.rows or quantity.parts}
        values = {quantity: samples.median(name, quantity) for quantity in taken}
        whole_like = samples.resemblance(PLAIN_WALL)
        values[FIRST_TOKEN] = paired_sum(taken[INPUTS_WALL], taken[PLAIN_WALL], like=whole_like)
        for from_, less, left, apart in _SUBTRACTIONS:
            if (whole := taken[from_]) is not None and (part := taken[less]) is not None:
                values[left] = paired_estimate(paired_difference, whole, part)
                values[apart] = paired_estimate(paired_difference, taken[LANGUAGE], whole - part)
        values[PICTURE_WALL] = paired_estimate(paired_difference, taken[PLAIN_WALL], taken[KNOWN_PICTURE_WALL])
        spans = samples.total(name, (PREFILL_SUM, *AROUND))
        for how, of, whole_pass in (
            (CLOSURE, spans, PLAIN_DEVICE),
            (CLOSURE_WALL, spans, PLAIN_WALL),
            (OVERHEAD, taken[HOOKS_WALL], PLAIN_WALL),
        ):
            values[how] = paired_estimate(paired_ratio, of, taken[whole_pass], minus=1)
        if taken[PREFILL_SUM] is not None and (outside := samples.total(name, AROUND)) is not None:
            values[OUTSIDE] = median_in_order(outside, like=samples.resemblance(HOOKS_WALL))
            values[OUTSIDE_SHARE] = paired_estimate(paired_ratio, outside, spans)
        values[WALL_OVER_BUSY] = over(values[PLAIN_WALL], values[BUSY_PREFILL])
        for quantity in IN_CELLS:
            put_estimate(row, quantity, values.get(quantity, NO_ESTIMATE))
        found.append(row)
    columns = [*_CELL_FIELDS, *(column for quantity in IN_CELLS for column in quantity.columns)]
    return pd.DataFrame(found, columns=columns)


def is_served(cells: pd.DataFrame) -> bool:
    """Whether `vision_cells` are of a server: something lies around the phases."""
    return bool(cells[[quantity.column for quantity in AROUND]].notna().any(axis=None))


def outside_share(cells: pd.DataFrame) -> Estimate | Unknown:
    """Part of the time to first token that is outside the model, over `vision_cells` of a server."""
    if not is_served(cells):
        return Unknown("no server was measured")
    known = cells.dropna(subset=[OUTSIDE_SHARE.column])
    return Unknown("nothing inside the server tells its phases") if known.empty else pooled(known, OUTSIDE_SHARE)


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


def pooled(cells: pd.DataFrame, quantity: Quantity) -> Estimate | Unknown:
    """Median of a quantity over cells; its interval counts what differs from cell to cell, and from run to run.

    With fewer than five cells, which have no interval of their own, it spans the intervals of all of them.
    """
    return with_runs(cells, lambda own: _pooled(own, quantity))


def over_cells(values_ms: pd.Series[float]) -> str:
    """Say over what a pooled time is: the median over cells and their range, or the one cell."""
    known = values_ms.dropna()
    if len(known) == 1:
        return "in the one cell that was measured"
    return (
        f"in the median over {plural(len(known), 'cell')}, from "
        f"{duration_range(float(known.min()), float(known.max()))}"
    )


def _pooled(cells: pd.DataFrame, quantity: Quantity) -> Estimate | Unknown:
    column, low, high = quantity.columns
    known = cells.dropna(subset=[column])
    if known.empty:
        return Unknown("no cell was measured in both ways")
    middle = median_of(known[column].to_numpy(dtype=np.float64))
    if math.isnan(middle.low) and low in known and known[low].notna().all():
        return Estimate(middle.value, float(known[low].min()), float(known[high].max()))
    return middle


@dataclass(frozen=True)
class CostClock:
    """The time in which costs of crops and tokens are told: a quantity of `vision_cells`, its name, and why."""

    quantity: Quantity
    name: str
    why: str

    @property
    def parts_name(self) -> str:
        """Name of the time in which a part of the pass is told: wall time has no parts, marks have."""
        return self.name if self.quantity is BUSY_PREFILL else "time between marks"


def cost_clock(cells: pd.DataFrame) -> CostClock:
    """Choose the clock on which crops and tokens have a cost.

    Wall time, as long as the device sets the pace. Where the host does in some cells, a plane through all wall times
    mixes two regimes and its slopes belong to neither: then the time for which the device is busy, if it is known.
    """
    timed = cells[cells[PLAIN_WALL.column].notna()]
    launch_bound = int((timed["bound"] == "launch-bound").sum())
    if launch_bound and timed[BUSY_PREFILL.column].notna().all():
        why = f"{launch_bound} of {len(timed)} cells are launch-bound: there the host sets what a user waits"
        return CostClock(BUSY_PREFILL, "device busy time", why)
    why = (
        ""
        if not launch_bound
        else f"{launch_bound} of {len(timed)} cells are launch-bound, so it mixes host and device"
    )
    return CostClock(PLAIN_WALL, "wall time", why)


def two_factor(cells: pd.DataFrame, quantity: Quantity = PLAIN_WALL) -> Fit | Unknown:
    """Fit `quantity = crop * crops + token * prompt_tokens + constant` over `vision_cells`, in milliseconds.

    Crops are work for the vision encoder, tokens for the language model; a sweep along one of them cannot
    tell them apart. Least squares over the cells' medians, unweighted, since the medians span a small
    factor. Of several runs each is fitted by itself too, for the intervals.
    """
    return fit_with_runs(cells, lambda own: _two_factor(own, quantity))


def _two_factor(cells: pd.DataFrame, quantity: Quantity) -> Fit | Unknown:
    found = cells.dropna(subset=[quantity.column])
    if len(found) < 4:
        return Unknown(f"two factors and a constant need 4 cells at least, and there are {len(found)}")
    columns = {
        "crop": found["crops"].to_numpy(dtype=np.float64),
        "token": found["prompt_tokens"].to_numpy(dtype=np.float64),
        "constant": np.ones(len(found)),
    }
    try:
        return fit_linear(columns, found[quantity.column].to_numpy(dtype=np.float64))
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
    busy = clock.quantity is BUSY_PREFILL

    def slope(side: Callable[[pd.DataFrame], pd.Series[float]], along: str, *, name: str) -> Estimate | Unknown:
        return with_runs(cells, lambda own: _slope(own[along], side(own), name=name))

    if cells["crops"].nunique() > 1:
        crop = slope(lambda own: sides(own, busy=busy)[0], "crops", name="crops")
        token = slope(lambda own: sides(own, busy=busy)[1], "prompt_tokens", name="tokens")
        return PartCosts(crop, token, clock, "the language side")
    counts = sorted({int(count) for count in cells["crops"].dropna()})
    crop = Unknown(f"every image is cut into {plural(counts[0], 'crop')}" if counts else "no image was measured")
    token = slope(lambda own: operator.add(*sides(own, busy=busy)), "prompt_tokens", name="tokens")
    return PartCosts(crop, token, clock, "the whole prefill")


def text_token_cost(cells: pd.DataFrame) -> Estimate | Unknown:
    """Fit the language side of a prefill over its prompt tokens: what a token costs that brings no image along."""
    busy = cost_clock(cells).quantity is BUSY_PREFILL
    return with_runs(cells, lambda own: _slope(own["prompt_tokens"], sides(own, busy=busy)[1], name="tokens"))


def priced_plane(cells: pd.DataFrame, costs: PartCosts) -> Fit | Unknown:
    """Set `crop * crops + token * prompt_tokens + constant` beside the whole prefill, with the prices of `part_costs`.

    Only the constant is fitted, so what is left over tells whether the prices of the parts explain the whole.
    """
    if isinstance(costs.crop, Unknown) or isinstance(costs.token, Unknown):
        return costs.crop if isinstance(costs.crop, Unknown) else Unknown(getattr(costs.token, "reason", ""))
    known = cells.dropna(subset=[costs.clock.quantity.column])
    crops, tokens, values = (
        known[name].to_numpy(dtype=np.float64) for name in ("crops", "prompt_tokens", costs.clock.quantity.column)
    )
    parts = costs.crop.value * crops + costs.token.value * tokens
    if len(values) < 2:
        return Unknown("fewer than two cells were timed as a whole")
    constant = fit_linear({"constant": np.ones(len(values))}, values - parts)["constant"]
    fitted = parts + constant.value
    spread = float(np.square(values - values.mean()).sum())
    r_squared = 1 - float(np.square(values - fitted).sum()) / spread if spread > 0 else math.nan
    coefficients = {"crop": costs.crop, "token": costs.token, "constant": constant}
    return Fit(coefficients, fitted, values - fitted, r_squared, len(values))


def sides(cells: pd.DataFrame, *, busy: bool) -> tuple[pd.Series[float], pd.Series[float]]:
    """Times of the vision side and of the language side of every cell, in ms: of busy time, or between marks."""
    if not busy:
        return cells[VISION.column], cells[LANGUAGE.column]
    return cells[BUSY_VISION.column], cells[BUSY_PREFILL.column] - cells[BUSY_VISION.column]


def _slope(sizes: pd.Series[Any], times_ms: pd.Series[Any], *, name: str) -> Estimate | Unknown:
    known = times_ms.notna()
    found = sizes[known].to_numpy(dtype=np.float64)
    count = len(np.unique(found))
    if count < 3:
        are = "is" if count == 1 else "are"
        return Unknown(f"a cost needs three numbers of {name} at least, and there {are} {count}")
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


def falls(cells: pd.DataFrame, quantity: Quantity, *, wander_fraction: float = 0.0) -> list[Fall] | Unknown:
    """Find where a quantity falls as prompt tokens grow, beyond what noise explains; largest drop first.

    Every pair of cells is compared, so each pair has to convince at 5 % over the number of pairs
    (Bonferroni): a quantity that is flat will hardly ever be said to fall. `wander_fraction` is how much
    one cell differs between two visits (see `sentinel_wander`), which the interval within a visit does not
    know.
    """
    found = cells.dropna(subset=[quantity.column, quantity.low])
    if len(found) < 2:
        return Unknown("fewer than two cells have an interval")
    tokens = found["prompt_tokens"].to_numpy(dtype=np.int64)
    values = found[quantity.column].to_numpy(dtype=np.float64)
    errors = np.array([standard_error(estimate_of(row, quantity)) for _, row in found.iterrows()])
    variances = np.square(errors) + np.square(wander_fraction * values)
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


def phase_shares(cells: pd.DataFrame) -> pd.DataFrame:
    """Share of each phase in the sum of phases, over `vision_cells`: phase, smallest, median, largest."""
    return _shares(cells, PHASES, cells[PREFILL_SUM.column])


def wait_shares(cells: pd.DataFrame) -> pd.DataFrame:
    """Share of everything between the first byte sent and the first token, as `phase_shares`; empty without servers."""
    return _shares(cells, WAITED, cells[PREFILL_SUM.column] + cells[OUTSIDE.column])


def _shares(cells: pd.DataFrame, parts: Sequence[Quantity], whole: pd.Series[float]) -> pd.DataFrame:
    found = []
    for phase in parts:
        shares = (cells[phase.column] / whole).dropna().to_numpy(dtype=np.float64)
        if len(shares):
            found.append(
                {
                    "phase": phase.name,
                    "smallest_fraction": float(shares.min()),
                    "median_fraction": float(np.median(shares)),
                    "largest_fraction": float(shares.max()),
                }
            )
    return pd.DataFrame(found, columns=["phase", "smallest_fraction", "median_fraction", "largest_fraction"])


def repeated_counts(cells: pd.DataFrame) -> Sequence[int]:
    """Vision-token counts that are reached with more than one crop count, among `vision_cells`."""
    groups = cells.groupby("vision_tokens")["crops"].nunique()
    return [int(str(tokens)) for tokens, count in groups.items() if count > 1]
