"""What would a request cost that was not measured? Laws learnt from a study's cells, and what they are worth.

A request is an image (crops and tokens, by the family's own geometry), a question and a number of output tokens. Its
time is the sum of three parts, each with a law of its own:

- inputs: preprocessing and copy, a cost per crop; photographs are resized first, dummy images of exact sizes are not,
  so that the two have their own cost;
- prefill: a cost per crop and one per prompt token (two factors). Where some cells are launch-bound, the plane is that
  of the device's busy time, and no prefill, however small, takes less time than the host needs for its launches;
- decode: a constant per step (weights read, or launches) and a cost per token of context (keys and values read).

Every law is fitted by relative least squares, and again with each cell left out (of many, several at once). How much
those fits differ at the request is the error of the fit (the jackknife; Efron and Stein, Ann. Stat. 9(3), 1981); how
far a left-out cell lies from what the others predict is the spread of a single request. The interval of a prediction
holds both, so it widens away from what was measured. The same leaving out says what the predictions are worth:
`held_out`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats as distributions

from vlmeter import analysis
from vlmeter.analysis import Unknown
from vlmeter.errors import UserError
from vlmeter.families.base import ImageOptions, ImageTokens, SubjectSpec
from vlmeter.families.registry import get_family
from vlmeter.stats import CONFIDENCE, Estimate, median_estimate
from vlmeter.uncertainty import Array
from vlmeter.units import duration, percent
from vlmeter.wording import plural

#: How far beyond the measured range a prediction may go, as a factor: a law that was seen to hold up to some size is
#: trusted up to twice that size (attention's quadratic term, caches and other kernels wait beyond), and down to half.
FAR_FACTOR = 2.0

#: Most cells that are left out one by one; of more, several are left out together. With twelve fits, Student's t is 6 %
#: wider than with forty, and testing the predictions takes a third of the time.
MAX_FOLDS = 12

#: Cells needed on one side (the host sets the pace, or the device does) for a spread of its own.
FEWEST_OF_A_REGIME = 5

#: Groups of cells without which a law is not learnt: of a single one nothing can be left out.
FEWEST_GROUPS = 2

Features = Mapping[str, Array]
Booleans = npt.NDArray[np.bool_]

#: A law: features -> times in ms, and whether it is the host that sets them.
Law = Callable[[Features], tuple[Array, Booleans]]


@dataclass(frozen=True)
class Observations:
    """What a law is learnt from: features and times, row by row; rows of one group err together."""

    features: Features
    values_ms: Array
    groups: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.values_ms)

    def only(self, chosen: Booleans) -> Observations:
        """Return the chosen rows."""
        features = {name: values[chosen] for name, values in self.features.items()}
        return Observations(features, self.values_ms[chosen], self.groups[chosen])


# ---------------------------------------------------------------------------------------------------------------------
# Laws


def _fit(columns: Array, values: Array) -> Array | None:
    """Coefficients by least squares on relative errors; None if the columns do not vary independently."""
    scale = np.abs(columns).max(axis=0)
    if not (scale > 0).all() or len(values) < columns.shape[1]:
        return None
    weighed = columns / scale / values[:, None]
    solution, _, rank, _ = np.linalg.lstsq(weighed, np.ones(len(values)), rcond=1e-9)
    return np.asarray(solution / scale, dtype=np.float64) if rank == columns.shape[1] else None


def _left_out_error(columns: Array, values: Array) -> float:
    """Sum of squared relative errors of rows that are left out one by one, from the leverages of a single fit."""
    basis = np.linalg.qr(columns / values[:, None])[0]
    leverage = np.minimum(np.square(basis).sum(axis=1), 1 - 1e-9)
    return float(np.sum(((1 - basis @ basis.sum(axis=0)) / (1 - leverage)) ** 2))


_COLUMN: Mapping[str, Callable[[Features], Array]] = {
    "constant": lambda features: np.ones(len(next(iter(features.values())))),
    "resized_crops": lambda features: features["crops"] * features["photograph"],
}


def _design(names: Sequence[str], features: Features) -> Array:
    return np.array([_COLUMN[name](features) if name in _COLUMN else features[name] for name in names]).T


def _linear(candidates: Sequence[Sequence[str]], features: Features, values: Array) -> Law:
    """Learn a sum of costs: the first candidate, if its columns vary independently and no cost is negative.

    More work never saves time, so a negative cost is noise (or two columns that hardly differ), and would be carried
    far beyond the measured range. Then that of the others which predicts rows that were left out best. The last
    candidate has a single column and always does.
    """
    if not len(values):
        raise ValueError("there is no row to learn from")
    valid: list[tuple[float, Sequence[str], Array]] = []
    for names in candidates:
        design = _design(names, features)
        solution = _fit(design, values)
        if solution is None or any(cost < 0 for name, cost in zip(names, solution, strict=True) if name != "constant"):
            continue
        first = names is candidates[0]
        valid.append((0.0 if first else _left_out_error(design, values), names, solution))
        if first:
            break
    _, chosen, found = min(valid, key=lambda one: one[0])
    return lambda new: (_design(chosen, new) @ found, np.zeros(len(new[next(iter(new))]), dtype=bool))


def learn_inputs(seen: Observations) -> Law:
    """Learn preprocessing and copy: `crop * crops + constant`, and a further cost per crop where it is resized.

    The further cost is kept if it predicts rows that were left out better than the plain law does.
    """
    plain, resized = ("crops", "constant"), ("crops", "resized_crops", "constant")
    photographs = seen.features["photograph"] > 0
    if photographs.sum() > 1 and (~photographs).sum() > 1:
        error, other = (_left_out_error(_design(names, seen.features), seen.values_ms) for names in (resized, plain))
        if error < other:
            return _linear([resized, plain, ("constant",)], seen.features, seen.values_ms)
    return _linear([plain, ("constant",)], seen.features, seen.values_ms)


_PLANE = (("crops", "tokens", "constant"), ("tokens", "constant"), ("crops", "constant"), ("constant",))


def learn_prefill(seen: Observations) -> Law:
    """Learn a prefill: `crop * crops + token * tokens + constant`, or where the host needs longer, its time.

    Where cells are launch-bound and busy times known, the plane is that of the busy time, times what the device-bound
    cells take over it, and the host's time is the median of launch-bound cells. Otherwise a plane through all.
    """
    busy, bound = seen.features["busy_ms"], seen.features["bound"]
    host_bound, device_bound = bound > 0, bound < 0
    if not host_bound.any() or not np.isfinite(busy).all():
        return _linear(_PLANE, seen.features, seen.values_ms)
    plane = _linear(_PLANE, seen.features, busy)
    factor = float(np.median(seen.values_ms[device_bound] / busy[device_bound])) if device_bound.any() else 1.0
    host_ms = float(np.median(seen.values_ms[host_bound]))

    def law(new: Features) -> tuple[Array, Booleans]:
        device = factor * plane(new)[0]
        return np.maximum(device, host_ms), host_ms > device

    return law


def learn_decode(seen: Observations) -> Law:
    """Learn decoding: `step * steps + per_context_token * sum of the steps' contexts`."""
    return _linear([("steps", "contexts"), ("steps",)], seen.features, seen.values_ms)


# ---------------------------------------------------------------------------------------------------------------------
# A law with its error


@dataclass(frozen=True)
class Forecast:
    """A predicted time and its errors, in ms: of the fit, and the spread of a single request about it."""

    value_ms: float
    fit_ms: float = 0.0
    spread_ms: float = 0.0
    freedom: float = math.inf
    by_host: bool = False

    @property
    def error_ms(self) -> float:
        """Standard error of the prediction."""
        return math.hypot(self.fit_ms, self.spread_ms)

    @property
    def interval(self) -> Estimate:
        """Prediction with its 95 % interval, by Student's t; no time is negative."""
        reach = float(distributions.t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.error_ms
        return Estimate(self.value_ms, max(0.0, self.value_ms - reach), self.value_ms + reach)


def total(parts: Sequence[Forecast]) -> Forecast:
    """Sum of parts that err independently; its degrees of freedom as of Welch and Satterthwaite."""
    variances = [part.error_ms**2 for part in parts]
    weighed = sum(variance**2 / part.freedom for variance, part in zip(variances, parts, strict=True))
    return Forecast(
        sum(part.value_ms for part in parts),
        math.hypot(*(part.fit_ms for part in parts)),
        math.hypot(*(part.spread_ms for part in parts)),
        sum(variances) ** 2 / weighed if weighed > 0 else math.inf,
        any(part.by_host for part in parts),
    )


@dataclass(frozen=True)
class Part:
    """A part of a request: what was seen of it, and the law that is learnt from that."""

    learn: Callable[[Observations], Law]
    seen: Observations

    @cached_property
    def law(self) -> Law:
        """The law from all that was seen."""
        return self.learn(self.seen)

    @cached_property
    def _folds(self) -> list[Booleans]:
        labels, codes = np.unique(self.seen.groups, return_inverse=True)
        folds = codes % MAX_FOLDS
        return [folds == fold for fold in range(min(len(labels), MAX_FOLDS))]

    @cached_property
    def _without(self) -> list[Law]:
        return [self.learn(self.seen.only(~fold)) for fold in self._folds]

    @cached_property
    def _residuals(self) -> tuple[Array, Booleans]:
        """Relative error of every row by the law that did not see it, and whether the host sets the pace there."""
        errors, by_host = np.empty(len(self.seen)), np.empty(len(self.seen), dtype=bool)
        for fold, law in zip(self._folds, self._without, strict=True):
            own = self.seen.only(fold)
            values, by_host[fold] = law(own.features)
            errors[fold] = own.values_ms / values - 1
        return errors, by_host

    def without(self, group: str) -> Part:
        """Return the part as it would be known if a group had not been measured."""
        return Part(self.learn, self.seen.only(self.seen.groups != group))

    @property
    def group_count(self) -> int:
        """Groups of cells behind the law."""
        return len(np.unique(self.seen.groups))

    def at(self, **features: float) -> Forecast:
        """Predict one request."""
        new = {name: np.array([value]) for name, value in features.items()}
        values, hosts = self.law(new)
        value, by_host = float(values[0]), bool(hosts[0])
        others = np.array([float(law(new)[0][0]) for law in self._without])
        count = len(others)
        fit = math.sqrt((count - 1) / count * float(np.sum((others - value) ** 2)))
        errors, errors_by_host = self._residuals
        own = errors[errors_by_host == by_host]
        errors = own if len(own) >= FEWEST_OF_A_REGIME else errors
        return Forecast(value, fit, abs(value) * float(np.sqrt(np.mean(errors**2))), max(1, count - 1), by_host)


# ---------------------------------------------------------------------------------------------------------------------
# A study


@dataclass(frozen=True)
class Request:
    """What is asked for; photograph: whether the image is resized first, as one of no exact size is."""

    crops: int
    prompt_tokens: int
    output_tokens: int
    photograph: bool = True

    @property
    def steps(self) -> int:
        """Decode steps: the first token comes out of the prefill."""
        return self.output_tokens - 1

    @property
    def contexts(self) -> float:
        """Sum of the steps' contexts: step s of n reads the prompt's keys and values, and those of s tokens."""
        return self.steps * self.prompt_tokens + self.steps * (self.steps + 1) / 2


@dataclass(frozen=True)
class Range:
    """What of a count was measured, and where predictions refuse; to_zero: whether any smaller count is known, too."""

    name: str
    unit: str
    key: str
    low: float
    high: float
    to_zero: bool = False

    def beyond(self, value: float, factor: float = 1.0) -> bool:
        """Whether a value lies outside of what was measured, by more than a factor."""
        return value > self.high * factor or (value < self.low / factor and not self.to_zero)

    def said(self) -> str:
        """The range in words."""
        if self.low == self.high:
            return f"{self.low:,.0f} {self.unit}"
        return f"{self.low:,.0f} to {self.high:,.0f} {self.unit}"


@dataclass(frozen=True)
class Model:
    """All that a study says about requests of one subject; decode is unknown where nothing was generated."""

    inputs: Part
    prefill: Part
    decode: Part | Unknown

    @cached_property
    def ranges(self) -> dict[str, Range]:
        """Measured ranges of crops, prompt tokens, contexts and output tokens."""
        crops, tokens = (self.prefill.seen.features[name] for name in ("crops", "tokens"))
        images = "experiments.vision_tokens"
        found = {
            "crops": Range("crops", "crops", images, crops.min(), crops.max()),
            "prompt_tokens": Range("prompt tokens", "tokens", images, tokens.min(), tokens.max()),
        }
        if isinstance(self.decode, Part):
            steps, prompts = (self.decode.seen.features[name] for name in ("steps", "prompt_tokens"))
            key = "experiments.output_tokens"
            # A shorter output than any measured one is between them and none at all, where decoding takes no time.
            found["output_tokens"] = Range(
                "output tokens", "tokens", key, steps.min() + 1, steps.max() + 1, to_zero=True
            )
            contexts = (prompts.min() + 1, (prompts + steps).max())
            found["context"] = Range("tokens in the last step's context", "tokens", key, *contexts)
        return found

    def refusal(self, request: Request) -> str | None:
        """Say why a request is too far from what was measured to be predicted; None if it is not."""
        if request.steps and isinstance(self.decode, Unknown):
            return f"no decode step can be predicted: {self.decode.reason}; one output token asks for the prefill alone"
        for name, value in self._values(request):
            limits = self.ranges[name]
            if limits.beyond(value, FAR_FACTOR):
                return (
                    f"{value:,} {limits.name} are too far from what the study measured, {limits.said()}: a prediction "
                    f"goes no farther than {FAR_FACTOR:g} times beyond; measure nearer to it ({limits.key})"
                )
        return None

    def notes(self, request: Request) -> list[str]:
        """Say what a reader of the prediction should know: where it leaves what was measured, and who sets the pace."""
        said = [
            f"extrapolated: {value:,} {self.ranges[name].name}, and the study measured {self.ranges[name].said()}"
            for name, value in self._values(request)
            if self.ranges[name].beyond(value)
        ]
        if self.prefill_of(request).by_host:
            said.append("the prefill is launch-bound: its time is what the host needs, whatever the image")
        return said

    def _values(self, request: Request) -> list[tuple[str, int]]:
        found = [("crops", request.crops), ("prompt_tokens", request.prompt_tokens)]
        if request.steps:
            found += [
                ("output_tokens", request.output_tokens),
                ("context", request.prompt_tokens + request.steps),
            ]
        return found

    def inputs_of(self, request: Request) -> Forecast:
        """Predict preprocessing and copy."""
        return self.inputs.at(crops=float(request.crops), photograph=float(request.photograph))

    def prefill_of(self, request: Request) -> Forecast:
        """Predict the prefill."""
        return self.prefill.at(crops=float(request.crops), tokens=float(request.prompt_tokens))

    def decode_of(self, request: Request) -> Forecast:
        """Predict all decode steps; no time for none."""
        if not request.steps:
            return Forecast(0.0)
        assert isinstance(self.decode, Part)
        return self.decode.at(steps=float(request.steps), contexts=request.contexts)

    def first_token_of(self, request: Request) -> Forecast:
        """Predict the time to first token."""
        return total([self.inputs_of(request), self.prefill_of(request)])

    def total_of(self, request: Request) -> Forecast:
        """Predict the whole request."""
        return total([self.inputs_of(request), self.prefill_of(request), self.decode_of(request)])

    def without(self, group: str) -> Model | None:
        """Return the model of a study in which a group was not measured; None if too little is left."""
        parts = {name: part.without(group) for name, part in self.__dict__.items() if isinstance(part, Part)}
        if any(parts[name].group_count < FEWEST_GROUPS for name in ("inputs", "prefill")):
            return None
        decode = parts.get("decode", self.decode)
        if isinstance(decode, Part) and decode.group_count < FEWEST_GROUPS:
            decode = Unknown("too few photographs are left")
        return Model(parts["inputs"], parts["prefill"], decode)


def learn(table: pd.DataFrame, subject: str | None = None) -> Model | Unknown:
    """Learn the laws of one subject from its table.

    The prefill is learnt from the vision-token cells if there are enough (photographs then test it), else from the
    photographs; inputs are learnt from both.
    """
    rows = analysis.of_subject(table, subject)
    cells, runs = analysis.vision_cells(rows), analysis.decode(rows)
    inputs = Part(learn_inputs, _inputs_seen(cells, runs))
    prefill = Part(learn_prefill, _prefill_seen(cells))
    if prefill.group_count < FEWEST_GROUPS:
        prefill = Part(learn_prefill, _prefill_of_photographs(runs))
    for name, part in (("prefills", prefill), ("images", inputs)):
        if part.group_count < FEWEST_GROUPS:
            return Unknown(
                f"a law needs {FEWEST_GROUPS} {name} of different size at least, and there are {part.group_count}"
            )
    decode = Part(learn_decode, _decode_seen(runs))
    if decode.group_count < FEWEST_GROUPS:
        why = (
            f"{FEWEST_GROUPS} photographs with two output tokens or more are needed, and there are {decode.group_count}"
        )
        return Model(inputs, prefill, Unknown(why))
    return Model(inputs, prefill, decode)


def _size_group(cells: pd.DataFrame) -> npt.NDArray[np.str_]:
    """Dummy images that become the same crops and tokens are one size, and are held out together."""
    pairs = zip(cells["crops"], cells["prompt_tokens"], strict=True)
    return np.array([f"{crops} crops, {tokens:,} tokens" for crops, tokens in pairs], dtype=str)


def _photograph_group(runs: pd.DataFrame) -> npt.NDArray[np.str_]:
    return np.array([f"photograph {index}" for index in runs["image_index"]], dtype=str)


def _numbers(frame: pd.DataFrame, name: str) -> Array:
    return frame[name].to_numpy(dtype=np.float64, na_value=np.nan)


def _photographs(runs: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """One row per photograph: its counts, and the median over its runs of a quantity of the prefill or before."""
    direct = runs[runs["direct"]].dropna(subset=[f"{quantity}_ms"])
    names = ["image_index", "crops", "prompt_tokens"]
    return direct.groupby(names, sort=True)[[f"{quantity}_ms"]].median().reset_index()


def _inputs_seen(cells: pd.DataFrame, runs: pd.DataFrame) -> Observations:
    dummies, photographs = cells.dropna(subset=["inputs_wall_ms"]), _photographs(runs, "inputs_wall")
    kinds = np.concatenate([np.zeros(len(dummies)), np.ones(len(photographs))])
    crops, values = (
        np.concatenate([_numbers(dummies, name), _numbers(photographs, name)]) for name in ("crops", "inputs_wall_ms")
    )
    groups = np.concatenate([_size_group(dummies), _photograph_group(photographs)])
    return Observations({"crops": crops, "photograph": kinds}, values, groups)


def _prefill_seen(cells: pd.DataFrame) -> Observations:
    known = cells.dropna(subset=["plain_wall_ms"])
    signs = {"launch-bound": 1.0, "device-bound": -1.0}
    bound: Array = np.array([signs.get(bound, 0.0) for bound in known["bound"]], dtype=np.float64)
    return _prefills(known, "plain_wall_ms", _numbers(known, "busy_prefill_ms"), bound, _size_group(known))


def _prefill_of_photographs(runs: pd.DataFrame) -> Observations:
    known = _photographs(runs, "prefill")
    nothing: Array = np.zeros(len(known), dtype=np.float64)
    unknown: Array = np.full(len(known), math.nan, dtype=np.float64)
    return _prefills(known, "prefill_ms", unknown, nothing, _photograph_group(known))


def _prefills(
    known: pd.DataFrame, quantity: str, busy_ms: Array, bound: Array, groups: npt.NDArray[np.str_]
) -> Observations:
    """Observations of prefills; bound is 1 where the host sets the pace, -1 where the device does, else 0."""
    features = {"crops": _numbers(known, "crops"), "tokens": _numbers(known, "prompt_tokens")}
    return Observations({**features, "busy_ms": busy_ms, "bound": bound}, _numbers(known, quantity), groups)


def _decode_seen(runs: pd.DataFrame) -> Observations:
    known = runs.dropna(subset=["decode_ms", "prompt_tokens"])
    steps, prompts = _numbers(known, "steps"), _numbers(known, "prompt_tokens")
    features = {"steps": steps, "contexts": steps * prompts + steps * (steps + 1) / 2, "prompt_tokens": prompts}
    return Observations(features, _numbers(known, "decode_ms"), _photograph_group(known))


# ---------------------------------------------------------------------------------------------------------------------
# What the predictions are worth

#: What is predicted for cells that were held out.
QUANTITIES = {"first_token": "time to first token", "total": "whole request"}


def held_out(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame | Unknown:
    """Predict every image size and every photograph from a study without it, and set the measurement beside.

    Columns: group (what was held out), kind (dummy or photograph), quantity (of QUANTITIES), crops, prompt_tokens,
    output_tokens, predicted_ms with its interval (predicted_low_ms, predicted_high_ms), measured_ms, error_fraction
    (predicted over measured, minus 1) and inside (whether the interval holds the measurement).
    """
    rows = analysis.of_subject(table, subject)
    model = learn(rows)
    if isinstance(model, Unknown):
        return model
    found = []
    kept: dict[str, Model | None] = {}
    for group, kind, quantity, request, measured_ms in _measured(rows, model):
        if group not in kept:
            kept[group] = model.without(group)
        own = kept[group]
        if own is None or not _enough(own, quantity):
            continue
        forecast = own.first_token_of(request) if quantity == "first_token" else own.total_of(request)
        predicted = forecast.interval
        found.append(
            {
                "group": group,
                "kind": kind,
                "quantity": quantity,
                "crops": request.crops,
                "prompt_tokens": request.prompt_tokens,
                "output_tokens": request.output_tokens,
                "predicted_ms": predicted.value,
                "predicted_low_ms": predicted.low,
                "predicted_high_ms": predicted.high,
                "measured_ms": measured_ms,
                "error_fraction": predicted.value / measured_ms - 1,
                "inside": predicted.low <= measured_ms <= predicted.high,
            }
        )
    if not found:
        return Unknown("too few cells were measured to hold one of them out")
    return pd.DataFrame(found)


def can_be_held_out(table: pd.DataFrame, model: Model) -> bool:
    """Whether `held_out` has anything to say of the table that a model was learnt from, without predicting."""
    return any(_enough(model.without(group), quantity) for group, _, quantity, _, _ in _measured(table, model))


def _enough(model: Model | None, quantity: str) -> bool:
    return model is not None and not (quantity == "total" and isinstance(model.decode, Unknown))


def _measured(rows: pd.DataFrame, model: Model) -> list[tuple[str, str, str, Request, float]]:
    """What held-out predictions are compared with: group, kind, quantity, request, time in ms."""
    cells, runs = analysis.vision_cells(rows), analysis.decode(rows)
    found: list[tuple[str, str, str, Request, float]] = []
    dummies = cells.dropna(subset=["inputs_wall_ms", "plain_wall_ms"])
    for group, row in zip(_size_group(dummies), dummies.to_dict("records"), strict=True):
        request = Request(int(row["crops"]), int(row["prompt_tokens"]), 1, photograph=False)
        found.append((str(group), "dummy", "first_token", request, float(row["inputs_wall_ms"] + row["plain_wall_ms"])))
    photographs = _photographs(runs, "first_token")
    for group, row in zip(_photograph_group(photographs), photographs.to_dict("records"), strict=True):
        request = Request(int(row["crops"]), int(row["prompt_tokens"]), 1)
        found.append((str(group), "photograph", "first_token", request, float(row["first_token_ms"])))
    direct = runs[runs["direct"]].dropna(subset=["first_token_ms", "decode_ms"])
    if isinstance(model.decode, Part):
        for group, row in zip(_photograph_group(direct), direct.to_dict("records"), strict=True):
            request = Request(int(row["crops"]), int(row["prompt_tokens"]), int(row["steps"]) + 1)
            found.append((str(group), "photograph", "total", request, float(row["first_token_ms"] + row["decode_ms"])))
    return found


@dataclass(frozen=True)
class Accuracy:
    """How good held-out predictions were: median absolute relative error, and how many intervals held."""

    error: Estimate
    coverage: Estimate
    count: int
    inside: int

    def said(self) -> str:
        """In words, such as 'median error 2.1 %, and 37 of 39 intervals hold'."""
        return f"median error {percent(self.error.value)}, and {self.inside} of {self.count} intervals hold"


def accuracy(found: pd.DataFrame, quantity: str | None = None) -> Accuracy | Unknown:
    """Summarise `held_out`, all of it or one quantity.

    The error's interval is over groups (lengths of one photograph err together); that of the coverage is the exact
    binomial one (Clopper and Pearson, Biometrika 26, 1934).
    """
    own = found if quantity is None else found[found["quantity"] == quantity]
    if own.empty:
        return Unknown(f"no {QUANTITIES[quantity] if quantity else 'cell'} was held out")
    errors = own["error_fraction"].abs()
    by_group = median_estimate(errors.groupby(own["group"]).median().tolist())
    count, inside = len(own), int(own["inside"].sum())
    tail = (1 - CONFIDENCE) / 2
    low = float(distributions.beta.ppf(tail, inside, count - inside + 1)) if inside else 0.0
    high = float(distributions.beta.ppf(1 - tail, inside + 1, count - inside)) if inside < count else 1.0
    error = Estimate(by_group.value, by_group.low, by_group.high)
    return Accuracy(error, Estimate(inside / count, low, high), count, inside)


# ---------------------------------------------------------------------------------------------------------------------
# The command


def image_tokens(table: pd.DataFrame, *, width_px: int, height_px: int, max_crops: int | None) -> ImageTokens:
    """Ask the subject's family what an image becomes; `table` holds the subject's rows.

    The table knows no revision: a hub checkpoint is taken as it is in the cache.
    """
    first = table.iloc[0]
    spec = SubjectSpec(
        preset=None if pd.isna(first["preset"]) else str(first["preset"]),
        weights=str(first["weights"]),
        revision=None,
        dtype=str(first["dtype"]),
        attention=str(first["attention"]),
        seed=0,
    )
    geometry = get_family(str(first["family"])).geometry(spec)
    return geometry.image_tokens(width_px, height_px, options=ImageOptions(max_crops=max_crops))


def choose_subject(table: pd.DataFrame, subject: str | None) -> pd.DataFrame:
    """Return the rows of a subject; without a name, of the only one. Raises UserError."""
    names = analysis.subjects_of(table)
    if subject is None and len(names) != 1:
        raise UserError(f"--subject: the study has several subjects; legal: {', '.join(names)}")
    if subject is not None and subject not in names:
        raise UserError(f"--subject: {subject!r} is not in the study; legal: {', '.join(names)}")
    return analysis.of_subject(table, subject or names[0])


def predict(
    table: pd.DataFrame,
    *,
    width_px: int,
    height_px: int,
    output_tokens: int,
    question_tokens: int,
    max_crops: int | None = None,
) -> dict[str, Any]:
    """Predict one request from a subject's rows.

    question_tokens: all text tokens of the prompt. max_crops: None is the study's own limit. Returns what is to be
    shown: subject, device, the image's counts, predictions with their 95 % intervals in ms, notes, and how well
    held-out cells of the study were predicted. Raises UserError where the study says too little, or the request is too
    far from it.
    """
    model = learn(table)
    if isinstance(model, Unknown):
        raise UserError(f"--study: nothing can be predicted from this table: {model.reason}")
    if max_crops is None:
        limits = table["max_crops"].dropna().unique()
        max_crops = int(limits[0]) if len(limits) == 1 else None
    image = image_tokens(table, width_px=width_px, height_px=height_px, max_crops=max_crops)
    sizes = set(zip(table["width_px"].dropna(), table["height_px"].dropna(), strict=True))
    prompt = image.image_tokens + question_tokens
    request = Request(image.crops, prompt, output_tokens, photograph=(width_px, height_px) not in sizes)
    if (reason := model.refusal(request)) is not None:
        raise UserError(f"--image {width_px}x{height_px}, --output-tokens {output_tokens}: {reason}")
    notes = model.notes(request)
    if request.photograph and not (model.inputs.seen.features["photograph"] > 0).any():
        notes.append("the study's images needed no resizing, so preprocessing will take longer than predicted")
    pixels = (table["width_px"] * table["height_px"]).dropna()
    if request.photograph and len(pixels) and width_px * height_px > int(pixels.max()):
        notes.append(
            f"preprocessing is predicted from crops, and {width_px * height_px / 1e6:.1f} megapixels take longer to "
            f"read than the study's dummy images, which have up to {int(pixels.max()) / 1e6:.1f}"
        )
    if (conditions := analysis.trust(table)).verdict != "quiet":
        notes.append(f"conditions of the study were {conditions.verdict}: {conditions.reasons[0]}")
    forecasts = {
        "preprocess_and_copy": model.inputs_of(request),
        "prefill": model.prefill_of(request),
        "time_to_first_token": model.first_token_of(request),
        "decode": model.decode_of(request),
        "total": model.total_of(request),
    }
    tested = held_out(table)
    worth = {} if isinstance(tested, Unknown) else {name: accuracy(tested, name) for name in QUANTITIES}
    first = table.iloc[0]
    return {
        "study": str(first["study"]),
        "subject": str(first["subject"]),
        "device": None if pd.isna(first["device_model"]) else str(first["device_model"]),
        "random_weights": bool(first["random_weights"]),
        "image": {
            "width_px": width_px,
            "height_px": height_px,
            "crops": image.crops,
            "vision_tokens": image.vision_tokens,
            "special_tokens": image.special_tokens,
        },
        "question_tokens": question_tokens,
        "prompt_tokens": prompt,
        "output_tokens": output_tokens,
        "predictions": {
            name: {"predicted_ms": found.value, "low_ms": found.low, "high_ms": found.high}
            for name, found in ((name, forecast.interval) for name, forecast in forecasts.items())
        },
        "notes": notes,
        "held_out": {
            ("time_to_first_token" if name == "first_token" else name): {
                "predictions": found.count,
                "median_error_fraction": found.error.value,
                "inside_fraction": found.coverage.value,
                "said": found.said(),
            }
            for name, found in worth.items()
            if isinstance(found, Accuracy)
        },
    }


#: What the predicted quantities are called.
LABELS = {
    "preprocess_and_copy": "preprocessing and copy",
    "prefill": "prefill",
    "time_to_first_token": "time to first token",
    "decode": "decode",
    "total": "total",
}


def prediction_rows(found: Mapping[str, Any], *, form: str) -> list[dict[str, Any]]:
    """Lay the predictions of `predict` out as rows: in ms for a program, rounded in the unit that suits for people."""
    rows = []
    for name, values in found["predictions"].items():
        if form == "table":
            said = {key.removesuffix("_ms"): duration(value) for key, value in values.items()}
            rows.append({"quantity": LABELS[name], **said})
        else:
            rows.append({"quantity": name, **values})
    return rows


def in_words(found: Mapping[str, Any]) -> str:
    """Say for what the predictions of `predict` are made."""
    image = found["image"]
    device = f" on {found['device']}" if found["device"] else ""
    weights = ", random weights" if found["random_weights"] else ""
    return (
        f"{found['subject']}{device}{weights} (study {found['study']})\n"
        f"image {image['width_px']}x{image['height_px']}: {plural(image['crops'], 'crop')}, "
        f"{plural(image['vision_tokens'], 'vision token')}; prompt of {found['prompt_tokens']:,} tokens, "
        f"{plural(found['output_tokens'], 'output token')}\n"
    )
