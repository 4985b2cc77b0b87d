"""Fits, percentiles and comparisons agree with closed forms, and their intervals hold the truth."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats
from scipy.stats import binom

from vlmeter.numbers.intervals import (
    Variance,
    add_variances,
    correlation_estimate,
    fit_linear,
    fit_power,
    holm,
    median_standard_error,
    paired_difference,
    paired_ratio,
    percentile_estimate,
    pooled_serial_correlation,
    rank_correlation,
    relative_weights,
    squared,
    standard_error,
)
from vlmeter.numbers.medians import Estimate

X = np.arange(1.0, 21.0)
ONES = np.ones(20)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_fit_is_that_of_least_squares() -> None:
    values = 3 * X + 2 + rng().normal(size=20)
    fit = fit_linear({"slope": X, "constant": ONES}, values)
    theirs = scipy_stats.linregress(X, values)
    assert fit["slope"].value == pytest.approx(theirs.slope)
    assert fit["constant"].value == pytest.approx(theirs.intercept)
    assert fit.r_squared == pytest.approx(theirs.rvalue**2)
    np.testing.assert_allclose(fit.fitted + fit.residuals, values)


def test_interval_of_even_noise_is_near_the_textbooks() -> None:
    values = 3 * X + 2 + rng().normal(size=20)
    fit = fit_linear({"slope": X, "constant": ONES}, values)
    theirs = scipy_stats.linregress(X, values)
    reach = scipy_stats.t.ppf(0.975, 18) * theirs.stderr
    assert (fit["slope"].high - fit["slope"].low) / 2 == pytest.approx(reach, rel=0.35)


def test_weighted_fit_is_that_of_numpys_polyfit() -> None:
    values = 3 * X + 2 + rng().normal(size=20) * X
    fit = fit_linear({"slope": X, "constant": ONES}, values, weights=relative_weights(X))
    np.testing.assert_allclose(
        [fit["slope"].value, fit["constant"].value], np.polyfit(X, values, 1, w=1 / X), rtol=1e-9
    )


def test_two_factors_are_told_apart() -> None:
    crops, tokens = rng(1).integers(2, 14, 35).astype(float), rng(2).integers(300, 1500, 35).astype(float)
    values = 2.5 * crops + 0.02 * tokens + 4 + rng(3).normal(size=35) * 0.1
    fit = fit_linear({"crop": crops, "token": tokens, "constant": np.ones(35)}, values)
    assert fit["crop"].contains(2.5)
    assert fit["token"].contains(0.02)
    assert fit["constant"].contains(4.0)
    assert fit["crop"].value == pytest.approx(2.5, rel=0.02)


@pytest.mark.parametrize("method", ["wild", "pairs"])
def test_interval_holds_the_slope_under_noise_that_grows_with_the_value(method: str) -> None:
    hits = []
    for seed in range(300):
        values = 2 * X + 5 + rng(seed).normal(size=20) * 0.3 * X
        fit = fit_linear({"slope": X, "constant": ONES}, values, method=method, replicates=400, seed=seed)  # type: ignore[arg-type]
        hits.append(fit["slope"].contains(2.0))
    assert 0.90 < np.mean(hits) < 0.995


def test_interval_holds_the_slope_when_whole_clusters_err_together() -> None:
    labels, x = np.repeat(np.arange(10), 5), np.tile(np.array([8.0, 16, 32, 64, 128]), 10)
    hits, naive = [], []
    for seed in range(200):
        values = x * (3 + np.repeat(rng(seed).normal(size=10) * 0.2, 5))
        columns, weights = {"slope": x, "constant": np.ones(50)}, relative_weights(values)
        hits.append(
            fit_linear(columns, values, weights=weights, clusters=labels, replicates=400)["slope"].contains(3.0)
        )
        naive.append(fit_linear(columns, values, weights=weights, replicates=400)["slope"].contains(3.0))
    assert np.mean(hits) > 0.88
    assert np.mean(naive) < np.mean(hits)


def test_an_exact_law_has_an_interval_of_no_width() -> None:
    fit = fit_linear({"slope": X, "constant": ONES}, 3 * X + 2)
    assert fit["slope"].low == pytest.approx(3)
    assert fit["slope"].high == pytest.approx(3)
    assert fit.r_squared == pytest.approx(1)


def test_as_many_cells_as_coefficients_have_a_fit_and_no_interval() -> None:
    fit = fit_linear({"slope": X[:2], "constant": ONES[:2]}, [1.0, 2.0])
    assert fit["slope"].value == pytest.approx(1)
    assert math.isnan(fit["slope"].low)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot determine"):
        fit_linear({"slope": X[:1], "constant": ONES[:1]}, [1.0])
    with pytest.raises(ValueError, match="do not vary independently"):
        fit_linear({"one": X, "same": 2 * X, "constant": ONES}, X)
    with pytest.raises(ValueError, match="not a finite number"):
        fit_linear({"slope": X, "constant": ONES}, np.where(X == 3, np.nan, X))


def test_columns_of_very_unlike_size_are_still_told_apart() -> None:
    fit = fit_linear({"linear": X, "quadratic": (1000 * X) ** 2, "constant": ONES}, 3 * X + 1e-9 * (1000 * X) ** 2 + 1)
    assert fit["quadratic"].value == pytest.approx(1e-9, rel=1e-6)


def test_the_same_seed_gives_the_same_interval() -> None:
    values = 3 * X + rng().normal(size=20)
    first, again = (fit_linear({"slope": X, "constant": ONES}, values, seed=4) for _ in range(2))
    assert first.coefficients == again.coefficients
    assert fit_linear({"slope": X, "constant": ONES}, values, seed=5)["slope"].low != first["slope"].low


def test_a_power_law_has_its_exponent_as_slope() -> None:
    fit = fit_power(X, 5 * X**1.5)
    assert fit["slope"].value == pytest.approx(1.5)
    assert math.exp(fit["constant"].value) == pytest.approx(5)
    with pytest.raises(ValueError, match="logarithm"):
        fit_power(X, X - 1)


def test_percentile_is_absent_below_the_samples_that_it_wants() -> None:
    assert percentile_estimate(np.arange(58.0), 0.95) is None
    assert percentile_estimate(np.arange(59.0), 0.95) is not None
    assert percentile_estimate(np.arange(298.0), 0.99) is None
    assert percentile_estimate(np.arange(299.0), 0.99) is not None


def test_percentiles_upper_end_is_the_largest_sample_where_no_rank_is_left() -> None:
    found = percentile_estimate(np.arange(59.0), 0.95)
    assert found is not None
    assert found.high == 58.0


@pytest.mark.parametrize(("fraction", "least"), [(0.9, 29), (0.95, 59), (0.99, 299)])
def test_the_interval_of_a_percentile_holds_95_percent_from_the_fewest_samples_on(fraction: float, least: int) -> None:
    """Ranks in place of samples tell which two samples the ends are; how often they hold is exact."""
    for count in range(least, 2 * least):
        found = percentile_estimate(np.arange(float(count)), fraction)
        assert found is not None
        low, high = int(found.low), int(found.high)  # at least low + 1 samples lie below it, and at most high
        holds = binom.cdf(high, count, fraction) - binom.cdf(low, count, fraction)
        assert holds > 0.95 - 1e-9, count


@pytest.mark.parametrize(("fraction", "count"), [(0.5, 40), (0.9, 100), (0.95, 200), (0.99, 1000)])
def test_percentiles_interval_holds_it_at_least_95_times_in_100(fraction: float, count: int) -> None:
    truth = scipy_stats.lognorm.ppf(fraction, 0.5)
    draws = rng(7).lognormal(0.0, 0.5, size=(500, count))
    found = [percentile_estimate(draw, fraction) for draw in draws]
    assert np.mean([estimate is not None and estimate.contains(truth) for estimate in found]) > 0.93


def test_pairing_removes_what_both_arms_share() -> None:
    shared = rng(1).normal(100, 20, size=30)
    found = paired_difference(shared + 5, shared)
    assert found == Estimate(pytest.approx(5.0), pytest.approx(5.0), pytest.approx(5.0))  # type: ignore[arg-type]
    assert paired_ratio(shared * 1.03, shared).low == pytest.approx(1.03)


def test_unlike_numbers_of_samples_are_not_paired() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(X, X[:-1])


def test_standard_error_is_what_a_normal_interval_stands_for() -> None:
    assert standard_error(Estimate(0.0, -1.959964, 1.959964)) == pytest.approx(1, rel=1e-5)


def test_a_medians_standard_error_is_that_of_all_its_resamples() -> None:
    """Of three samples there are 27 resamples: 7 have the first as their median, 13 the middle one, 7 the last."""
    assert median_standard_error(np.array([2.0, 1.0, 3.0])) == pytest.approx(math.sqrt(14 / 27))
    assert math.isnan(median_standard_error(np.array([1.0, 2.0])))


def test_a_pooled_correlation_is_rid_of_the_bias_of_short_series() -> None:
    """A series of n samples correlates by rho - (1 + 4 rho) / n in the mean (Marriott and Pope)."""
    short, long, longest = (0.3 - (1 + 4 * 0.3) / count for count in (20, 50, 200))
    assert pooled_serial_correlation([short], [20]) == pytest.approx(0.3)
    assert pooled_serial_correlation([short, math.nan], [20, 30]) == pytest.approx(0.3)
    assert pooled_serial_correlation([long, longest], [50, 200]) == pytest.approx(0.3, abs=0.01)
    assert pooled_serial_correlation([0.9], [40]) == 0.95
    assert pooled_serial_correlation([-0.5], [40]) == 0, "what seems to alternate is taken as independent"
    assert pooled_serial_correlation([], []) == 0
    assert pooled_serial_correlation([0.5], [4]) == 0, "four samples tell nothing"


def test_chances_are_corrected_for_their_number_as_holm_does() -> None:
    assert holm([0.01, 0.04, math.nan, 0.03]) == pytest.approx([0.03, 0.06, math.nan, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_variances_are_added_with_the_degrees_of_freedom_of_welch() -> None:
    assert add_variances([Variance(1.0, 5.0), Variance(1.0, 5.0)]) == Variance(2.0, 10.0)
    assert add_variances([Variance(2.0, 4.0), Variance(3.0)]) == Variance(5.0, 25.0), "what is known costs no freedom"
    assert add_variances([Variance(1.0), Variance(0.0, 3.0)]) == Variance(1.0, math.inf)
    assert Variance(2.0, 4.0).times(3.0) == Variance(6.0, 4.0)


def test_the_largest_residual_is_told_over_the_value_that_was_measured() -> None:
    fit = fit_linear({"constant": ONES[:3]}, [1.0, 2.0, 6.0])
    assert fit.largest_residual_fraction == pytest.approx(2.0), "fitted 3, measured 1"


def test_a_cell_with_a_coefficient_of_its_own_leaves_nothing_over() -> None:
    fit = fit_linear({"others": np.where(X < 20, 1.0, 0.0), "last": np.where(X < 20, 0.0, 1.0)}, X)
    assert (fit["last"].low, fit["last"].high) == pytest.approx((20.0, 20.0))
    assert fit["others"].low < 10 < fit["others"].high


def test_rank_correlation_is_scipys_and_its_interval_holds_it() -> None:
    values = X + rng(3).normal(size=20) * 4
    found = rank_correlation(X, values)
    assert found.value == pytest.approx(scipy_stats.spearmanr(X, values).statistic)
    assert found.low < found.value < found.high <= 1


def test_rank_correlation_of_ties_is_scipys() -> None:
    first, second = np.round(X / 3), np.round(X / 4)
    assert rank_correlation(first, second).value == pytest.approx(scipy_stats.spearmanr(first, second).statistic)


def test_a_correlation_has_fishers_interval_with_the_scatter_of_its_draws() -> None:
    """Draws that scatter by 0.1 on Fisher's scale, and lie too low as draws do: the value stays in the middle."""
    draws = np.tanh(1.3 + 0.1 * rng().normal(size=20_000))
    found = correlation_estimate(np.concatenate([[math.tanh(1.5)], draws]), 22)
    reach = float(scipy_stats.t.ppf(0.975, 20)) * math.sqrt(22 / 20) * 0.1
    assert (found.low, found.high) == pytest.approx((math.tanh(1.5 - reach), math.tanh(1.5 + reach)), rel=2e-3)
    assert found.value - found.low > found.high - found.value, "there is less room above"


def test_draws_of_two_cells_tell_nothing_of_a_correlation() -> None:
    draws = np.tanh(1.3 + 0.1 * rng().normal(size=2000))
    values = np.concatenate([[math.tanh(1.3)], draws])
    assert correlation_estimate(np.concatenate([values, np.ones(300)]), 8) == correlation_estimate(values, 8)


def test_an_order_without_exception_has_a_correlation_of_one() -> None:
    found = rank_correlation(X, X**2)
    assert (found.value, found.low, found.high) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("count", [12, 39])
def test_the_interval_of_a_rank_correlation_holds_it_near_one(count: int) -> None:
    held = 0
    for seed in range(200):
        first, second = rng(seed).standard_normal((2, count))
        found = rank_correlation(first, 0.98 * first + math.sqrt(1 - 0.98**2) * second, replicates=400)
        held += found.contains(6 / math.pi * math.asin(0.98 / 2))
    assert held / 200 > 0.92, "percentiles of the draws held 92 % of 39 cells"


def test_a_square_begins_at_zero_where_its_root_may_be_zero() -> None:
    assert squared(Estimate(-0.5, -0.8, 0.2)) == Estimate(0.25, 0.0, pytest.approx(0.64))
    assert squared(Estimate(-0.5, -0.8, -0.2)) == Estimate(0.25, pytest.approx(0.04), pytest.approx(0.64))
    assert math.isnan(squared(Estimate(0.5, math.nan, math.nan)).low)


def test_what_does_not_vary_has_no_correlation() -> None:
    assert math.isnan(rank_correlation(X, ONES).value)
    assert math.isnan(rank_correlation(X[:1], X[:1]).value)
    assert math.isnan(rank_correlation(X[:3], X[:3]).low)


def test_few_clusters_have_an_interval_that_holds_the_slope() -> None:
    """Photographs that err by 5 %: the residual of one that pulls the fit to itself understates its error."""
    sizes, photographs = np.tile([1.0, 2.0, 4.0, 8.0], 5), np.repeat(np.arange(5), 4)
    held = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        own = 1 + 0.05 * rng.standard_normal(5)[photographs]
        values = 3 * sizes * own + 0.05 * rng.standard_normal(20)
        columns = {"slope": sizes, "constant": np.ones(20)}
        held += fit_linear(columns, values, clusters=photographs, replicates=400)["slope"].contains(3.0)
    assert held / 200 > 0.92
