"""Percentiles, paired comparisons, straight lines and correlations, each with its interval.

Two ideas carry everything here. *Pairing*: samples of one round met the same machine, so their difference
is known far better than either of them, and the interval belongs to the differences. *Fixed design, uneven
noise*: the sizes in a study are chosen, not drawn, and a long run scatters by more milliseconds than a
short one. So fits are bootstrapped by the wild bootstrap, which keeps every cell at its place and flips the
sign of its own residual.

Measuring itself needs none of this and must not change when an analysis does; therefore it is not in
`stats`, whose source is part of every record's fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy import special
from scipy import stats as distributions

from vlmeter.numbers.medians import CONFIDENCE, MIN_SAMPLES_FOR_PERCENTILE, Estimate, median_estimate

Array = npt.NDArray[np.float64]

#: Bootstrap replicates: enough for the ends of a 95 % interval to move by a hundredth of its width between
#: seeds.
REPLICATES = 4000

#: Standard deviations that a 95 % interval of a normal error reaches to each side.
NORMAL_REACH = float(distributions.norm.ppf((1 + CONFIDENCE) / 2))


def percentile_estimate(samples: Sequence[float] | Array, fraction: float) -> Estimate | None:
    """Estimate a percentile with the interval between two order statistics; None with too few samples for it.

    The value interpolates linearly. The interval's ends are the samples whose ranks bound a binomial count
    with 2.5 % to either side, whatever the distribution (David and Nagaraja, Order Statistics, 7.1).
    Between the smallest legal number of samples (59 for 95 %) and the one at which the upper rank exists
    for 2.5 % (72), the upper end is the largest sample, which the percentile exceeds with up to 5 %; the
    lower end then lies so much further down that it is 5 % for both sides together.
    `fraction` is one of `stats.MIN_SAMPLES_FOR_PERCENTILE`.
    """
    ordered = np.sort(np.asarray(samples, dtype=np.float64))
    count = len(ordered)
    if count < MIN_SAMPLES_FOR_PERCENTILE[fraction]:
        return None
    tail = (1 - CONFIDENCE) / 2
    above_all = fraction**count
    below = tail if above_all <= tail else max(1 - CONFIDENCE - above_all, 0.0)
    # binom.ppf(p) is the smallest k with P(X <= k) >= p; ranks here count from 0.
    low = max(0, int(distributions.binom.ppf(below, count, fraction)) - 1)
    high = min(count - 1, int(distributions.binom.ppf(1 - tail, count, fraction)))
    return Estimate(float(np.quantile(ordered, fraction)), float(ordered[low]), float(ordered[high]))


def paired_difference(samples: Array, others: Array) -> Estimate:
    """Median of `samples - others`, round by round; raises ValueError on unlike lengths."""
    return median_estimate((_as_pairs(samples, others)[0] - others).tolist(), in_order=True)


def paired_ratio(samples: Array, others: Array) -> Estimate:
    """Median of `samples / others`, round by round; raises ValueError on unlike lengths."""
    return median_estimate((_as_pairs(samples, others)[0] / others).tolist(), in_order=True)


def _as_pairs(samples: Array, others: Array) -> tuple[Array, Array]:
    if len(samples) != len(others):
        raise ValueError(f"{len(samples)} samples cannot be paired with {len(others)}")
    return samples, others


def standard_error(estimate: Estimate) -> float:
    """Standard error that a 95 % interval stands for, if the error is normal; NaN without an interval."""
    return (estimate.high - estimate.low) / (2 * NORMAL_REACH)


@lru_cache(maxsize=1024)
def _median_weights(kept: int, count: int) -> Array:
    """Probability of each of `kept` ordered values to be the median of a resample of `count` samples."""
    half = (count + 1) / 2
    reached: Array = np.asarray(special.betainc(half, half, np.arange(kept + 1) / kept), dtype=np.float64)
    return np.diff(reached)


def median_standard_error(samples: Array, *, count: int | None = None) -> float:
    """Bootstrap standard error of a median in closed form (Maritz and Jarrett, JASA 73, 1978): no random number.

    `samples` may be evenly spaced quantiles of `count` samples. NaN for fewer than three samples, which cannot tell
    scatter from chance.
    """
    ordered = np.sort(samples)
    count = len(ordered) if count is None else count
    if count < 3:
        return math.nan
    weights = _median_weights(len(ordered), count)
    centre = float(weights @ ordered)
    return math.sqrt(float(weights @ (ordered - centre) ** 2))


def serial_correlations(series: Array) -> Array:
    """Serial correlation of every row of [series, samples]: `medians.serial_correlation` of many series at once."""
    ranks = distributions.rankdata(series, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    totals = np.sum(ranks**2, axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = np.sum(ranks[:, 1:] * ranks[:, :-1], axis=1) / np.where(totals > 0, totals, np.nan)
    return np.asarray(found if series.shape[1] >= MIN_SAMPLES_FOR_PERCENTILE[0.50] else np.full(len(series), np.nan))


def pooled_serial_correlation(found: Sequence[float], counts: Sequence[int]) -> float:
    """Pool serial correlations of series of so many samples, rid of their bias; 0 with none, never below 0.

    One series of ten samples knows its correlation to +-0.3 only. The bias of -(1 + 4 rho) / n is Marriott and Pope's
    (Biometrika 41, 1954). What seems to alternate is taken as independent.
    """
    pairs = [(value, count) for value, count in zip(found, counts, strict=True) if not math.isnan(value)]
    if not pairs:
        return 0.0
    weights = np.array([count - 1.0 for _, count in pairs])
    mean = float(np.average([value for value, _ in pairs], weights=weights))
    shortness = float(np.average([1 / count for _, count in pairs], weights=weights))
    return min(max((mean + shortness) / (1 - 4 * shortness), 0.0), 0.95) if shortness < 0.25 else 0.0


@dataclass(frozen=True)
class Variance:
    """A variance that was estimated, with its degrees of freedom (infinite: known)."""

    value: float
    freedom: float = math.inf

    def times(self, factor: float) -> Variance:
        """The variance of something that this factor scales, given as a factor of variances."""
        return Variance(self.value * factor, self.freedom)


def add_variances(parts: Sequence[Variance]) -> Variance:
    """Add variances of independent errors; degrees of freedom by Welch and Satterthwaite."""
    total = math.fsum(part.value for part in parts)
    below = math.fsum(part.value**2 / part.freedom for part in parts if part.value > 0)
    return Variance(total, total**2 / below if below > 0 else math.inf)


def holm(chances: Sequence[float]) -> list[float]:
    """Correct p-values for their number (Holm, Scand. J. Stat. 6, 1979); NaN stays, and counts for nothing.

    If those at most 0.05 are taken as found, the chance of even one false find is at most 5 %, however the tests hang
    together.
    """
    known = sorted((value, place) for place, value in enumerate(chances) if not math.isnan(value))
    corrected, largest = [math.nan] * len(chances), 0.0
    for rank, (value, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * value))
        corrected[place] = largest
    return corrected


@dataclass(frozen=True)
class Fit:
    """A linear model fitted to data: coefficients by name, with what is left over.

    residuals are observed minus fitted, in the unit of the data; r_squared weighs as the fit did.
    """

    coefficients: Mapping[str, Estimate]
    fitted: Array
    residuals: Array
    r_squared: float
    count: int

    def __getitem__(self, name: str) -> Estimate:
        return self.coefficients[name]

    @property
    def largest_residual_fraction(self) -> float:
        """Largest residual over the value it belongs to."""
        return float(np.max(np.abs(self.residuals) / np.abs(self.fitted + self.residuals)))


def fit_linear(
    columns: Mapping[str, Sequence[float] | Array],
    values: Sequence[float] | Array,
    *,
    weights: Array | None = None,
    clusters: Sequence[Any] | npt.NDArray[Any] | None = None,
    method: Literal["wild", "pairs"] = "wild",
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Fit:
    """Fit `values = sum of coefficient * column` by least squares, with bootstrap intervals.

    Args:
        columns: name -> one number per cell; a constant is a column of ones.
        values: what is fitted.
        weights: of the squared residuals; `relative_weights` where the noise grows with the value. Least squares
            and not a robust fit, because the values are medians already: what could be an outlier was a sample.
        clusters: one label per cell; cells of one label err together (one photograph at several lengths) and
            are resampled together.
        method: "wild" keeps the cells and flips the signs of their residuals (scaled by 1 / (1 - leverage), as
            in HC3 and CR3, since a residual understates the error of a cell that pulls the fit to itself);
            "pairs" draws cells with replacement, for cells that were drawn rather than chosen.
        replicates: bootstrap replicates.
        seed: of the bootstrap's random numbers.

    Intervals are widened by Student's t over the normal for few cells or clusters; with no cell more than
    coefficients they are NaN. Raises ValueError if there are fewer cells than coefficients, if columns
    depend on one another, or on numbers that are not finite.
    """
    names = list(columns)
    design = np.column_stack([np.asarray(columns[name], dtype=np.float64) for name in names])
    observed = np.asarray(values, dtype=np.float64)
    count, unknowns = design.shape
    root = np.sqrt(np.ones(count) if weights is None else np.asarray(weights, dtype=np.float64))
    if count < unknowns:
        raise ValueError(f"{count} cells cannot determine {unknowns} coefficients")
    if not (np.isfinite(design).all() and np.isfinite(observed).all() and np.isfinite(root).all()):
        raise ValueError("a value to fit is not a finite number")
    scale = np.abs(design).max(axis=0)
    scaled: Array = design * root[:, None] / np.where(scale > 0, scale, 1.0)
    target: Array = observed * root
    if np.linalg.matrix_rank(scaled, tol=1e-9 * math.sqrt(count) * float(root.max())) < unknowns:
        raise ValueError(f"{', '.join(names)} do not vary independently in these cells")
    inverse: Array = np.asarray(np.linalg.pinv(scaled), dtype=np.float64)
    solution = inverse @ target
    left: Array = target - scaled @ solution
    groups = _codes(clusters, count)
    freedom = min(count - unknowns, int(groups.max()) if clusters is not None and groups.max() > 0 else count)
    if freedom < 1:
        spread = np.full((2, unknowns), np.nan)
    else:
        rng = np.random.default_rng(seed)
        draws = (
            _wild(scaled, inverse, left, groups, rng, replicates)
            if method == "wild"
            else _pairs(scaled, target, solution, groups, rng, replicates)
        )
        tail = (1 - CONFIDENCE) / 2
        widen = float(distributions.t.ppf(1 - tail, freedom)) / NORMAL_REACH
        spread = widen * np.quantile(draws, [tail, 1 - tail], axis=0)
    found = {
        name: Estimate(float(value), float(value + low), float(value + high))
        for name, value, low, high in zip(names, solution / scale, spread[0] / scale, spread[1] / scale, strict=True)
    }
    fitted: Array = design @ (solution / scale)
    weight = root**2
    centre = float(np.average(observed, weights=weight))
    total = float(np.sum(weight * (observed - centre) ** 2))
    r_squared = 1 - float(np.sum(left**2)) / total if total > 0 else math.nan
    return Fit(found, fitted, observed - fitted, r_squared, count)


def _codes(clusters: Sequence[Any] | npt.NDArray[Any] | None, count: int) -> npt.NDArray[np.intp]:
    """Number the clusters from 0; without any, or with a single one, every cell is its own."""
    if clusters is not None:
        labels, codes = np.unique(np.asarray(clusters), return_inverse=True)
        if len(labels) > 1:
            return codes.astype(np.intp)
    return np.arange(count, dtype=np.intp)


def _wild(
    scaled: Array,
    inverse: Array,
    left: Array,
    groups: npt.NDArray[np.intp],
    rng: np.random.Generator,
    replicates: int,
) -> Array:
    """Deviations of the coefficients when residuals change their signs, cluster by cluster.

    A fit is linear in its data, so each replicate is a signed sum of the clusters' contributions.
    """
    number = int(groups.max()) + 1
    if number == len(left):
        leverage = np.clip(np.einsum("nk,kn->n", scaled, inverse), 0.0, 1 - 1e-9)
        by_group = (inverse * (left / (1 - leverage))).T
    else:
        by_group = np.zeros((number, scaled.shape[1]))
        for group in range(number):
            own = groups == group
            kept = np.eye(int(own.sum())) - scaled[own] @ inverse[:, own]
            # pinv: a cluster with a coefficient of its own has directions that the fit takes up whole
            by_group[group] = inverse[:, own] @ np.linalg.pinv(kept, rcond=1e-9, hermitian=True) @ left[own]
    signs = rng.choice(np.array([-1.0, 1.0]), size=(replicates, number))
    return np.asarray(signs @ by_group)


def _pairs(
    scaled: Array,
    target: Array,
    solution: Array,
    groups: npt.NDArray[np.intp],
    rng: np.random.Generator,
    replicates: int,
) -> Array:
    """Deviations of the coefficients when clusters are drawn with replacement.

    Draws that determine nothing are left out.
    """
    number = int(groups.max()) + 1
    drawn = rng.multinomial(number, np.full(number, 1 / number), size=replicates).astype(np.float64)[:, groups]
    grams = np.einsum("bn,ni,nj->bij", drawn, scaled, scaled)
    moments = np.einsum("bn,ni,n->bi", drawn, scaled, target)
    good = np.linalg.cond(grams) < 1e12
    result: Array = np.linalg.solve(grams[good], moments[good][..., None])[..., 0] - solution
    return result


def relative_weights(values: Sequence[float] | Array) -> Array:
    """Weights for noise that is a fixed share of the value, as that of latencies over a wide range is.

    Without them the longest run alone decides, and what a fit says about the short ones (its intercept
    above all) is the long run's noise.
    """
    return np.asarray(1.0 / np.square(np.asarray(values, dtype=np.float64)))


def fit_power(
    sizes: Sequence[float] | Array,
    values: Sequence[float] | Array,
    *,
    clusters: Sequence[Any] | npt.NDArray[Any] | None = None,
    seed: int = 0,
) -> Fit:
    """Fit `ln(value) = slope * ln(size) + constant`: the straight line of a log-log plot.

    Coefficients are named slope and constant. Raises ValueError on anything that has no logarithm.
    """
    sizes, values = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if not ((sizes > 0).all() and (values > 0).all()):
        raise ValueError("only positive numbers have a logarithm")
    columns = {"slope": np.log(sizes), "constant": np.ones(len(sizes))}
    return fit_linear(columns, np.log(values), clusters=clusters, seed=seed)


#: A correlation nearer to 1 than this is that of a line without noise, or of two cells.
_NO_NOISE = 1e-12


def correlation_estimate(values: Array, count: int) -> Estimate:
    """Interval of a correlation over `count` cells, from its value [0] and its values in bootstrap draws of them [1:].

    On Fisher's scale (artanh) the scatter of a correlation hardly depends on where it lies, so that half the width of
    the draws stands on both sides of the value, made wider for few cells by Student's t and by count / (count - 2) of
    the variance. The percentiles of the draws as they are lie too high or too low, since draws repeat cells.
    Of an order without any exception they are all there is.
    """
    scaled = np.arctanh(np.where(np.abs(values) < 1 - _NO_NOISE, values, np.nan))
    tail = (1 - CONFIDENCE) / 2
    if math.isnan(scaled[0]):
        low, high = np.nanquantile(values[1:], [tail, 1 - tail])
    else:
        below, above = np.nanquantile(scaled[1:], [tail, 1 - tail])
        wider = float(distributions.t.ppf(1 - tail, count - 2)) / NORMAL_REACH * math.sqrt(count / (count - 2))
        reach = wider * (above - below) / 2
        low, high = np.tanh([scaled[0] - reach, scaled[0] + reach])
    return Estimate(float(values[0]), float(low), float(high))


def squared(found: Estimate) -> Estimate:
    """The square of an estimate; an interval that holds 0 begins at 0."""
    ends = sorted((found.low**2, found.high**2))
    return Estimate(found.value**2, 0.0 if found.low < 0 < found.high else ends[0], ends[1])


def rank_correlation(
    sizes: Sequence[float] | Array, values: Sequence[float] | Array, *, replicates: int = REPLICATES, seed: int = 0
) -> Estimate:
    """Spearman's correlation of ranks with a bootstrap interval over cells; NaN where one of the two does not vary.

    Draws in which all cells are one and the same say nothing and are left out. Raises ValueError on unlike lengths.
    """
    first, second = np.asarray(sizes, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if len(first) != len(second):
        raise ValueError(f"{len(first)} sizes cannot be correlated with {len(second)} values")

    def of(one: Array, other: Array) -> Array:
        one, other = distributions.rankdata(one, axis=-1), distributions.rankdata(other, axis=-1)
        one = one - one.mean(axis=-1, keepdims=True)
        other = other - other.mean(axis=-1, keepdims=True)
        scale = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray((one * other).sum(axis=-1) / np.where(scale > 0, scale, np.nan))

    if len(first) < 2:
        return Estimate(math.nan, math.nan, math.nan)
    value = float(of(first[None, :], second[None, :])[0])
    if len(first) < MIN_SAMPLES_FOR_PERCENTILE[0.50] or math.isnan(value):
        return Estimate(value, math.nan, math.nan)
    drawn = np.random.default_rng(seed).integers(0, len(first), size=(replicates, len(first)))
    return correlation_estimate(np.concatenate([[value], of(first[drawn], second[drawn])]), len(first))
