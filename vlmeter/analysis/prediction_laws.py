"""Laws of inputs, prefill and decode, learnt from measured cells, with the error of what was left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy import stats as distributions

from vlmeter.numbers.clusters import reach_between
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import CONFIDENCE, Estimate

#: Most cells that are left out one by one; of more, several are left out together. With twelve fits, Student's t is 6 %
#: wider than with forty, and testing the predictions takes a third of the time.
MAX_FOLDS = 12


#: Cells needed on one side (the host sets the pace, or the device does) for a spread of its own.
FEWEST_OF_A_REGIME = 5


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


@dataclass(frozen=True)
class Forecast:
    """A predicted time and its errors, in ms: of the fit, and the spread of a single request about it.

    by_run_ms: what each of several runs predicts by itself. A request comes in a run of its own, so that how far runs
    lie apart is an error of it, however many runs there were.
    """

    value_ms: float
    fit_ms: float = 0.0
    spread_ms: float = 0.0
    freedom: float = math.inf
    by_host: bool = False
    by_run_ms: tuple[float, ...] = ()

    @property
    def error_ms(self) -> float:
        """Standard error of the prediction."""
        return math.hypot(self.fit_ms, self.spread_ms)

    @property
    def interval(self) -> Estimate:
        """Prediction with its 95 % interval, by Student's t; no time is negative."""
        reach = float(distributions.t.ppf((1 + CONFIDENCE) / 2, self.freedom)) * self.error_ms
        if len(self.by_run_ms) > 1:
            runs = [Estimate(value, math.nan, math.nan) for value in self.by_run_ms]
            reach = math.hypot(reach, reach_between(runs) * math.sqrt(len(runs) + 1))
        return Estimate(self.value_ms, max(0.0, self.value_ms - reach), self.value_ms + reach)


def total(parts: Sequence[Forecast]) -> Forecast:
    """Sum of parts that err independently; its degrees of freedom as of Welch and Satterthwaite.

    A run that is slow is so in all of them: what each run says is added up run by run.
    """
    variances = [part.error_ms**2 for part in parts]
    weighed = sum(variance**2 / part.freedom for variance, part in zip(variances, parts, strict=True))
    return Forecast(
        sum(part.value_ms for part in parts),
        math.hypot(*(part.fit_ms for part in parts)),
        math.hypot(*(part.spread_ms for part in parts)),
        sum(variances) ** 2 / weighed if weighed > 0 else math.inf,
        any(part.by_host for part in parts),
        tuple(map(sum, zip(*(part.by_run_ms for part in parts), strict=True))),
    )


@dataclass(frozen=True)
class Learnt:
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

    def without(self, group: str) -> Learnt:
        """Return the part as it would be known if a group had not been measured."""
        return Learnt(self.learn, self.seen.only(self.seen.groups != group))

    @property
    def group_count(self) -> int:
        """Groups of cells behind the law."""
        return len(np.unique(self.seen.groups))

    def value_at(self, **features: float) -> float:
        """Predict one request, without its errors."""
        return float(self.law({name: np.array([value]) for name, value in features.items()})[0][0])

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
