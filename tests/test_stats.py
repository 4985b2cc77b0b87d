"""The median's interval is the exact bootstrap's, and holds the median as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from vlmeter.numbers.intervals import serial_correlations
from vlmeter.numbers.medians import (
    MIN_SAMPLES_FOR_PERCENTILE,
    Estimate,
    correlation_in_order,
    median_estimate,
    median_inflation,
    median_of_estimates,
    median_ranks,
    serial_correlation,
)


def test_interval_is_where_a_bootstrap_of_many_draws_ends_up() -> None:
    samples = np.random.default_rng(1).lognormal(size=21)
    found = median_estimate(samples.tolist())
    drawn = scipy_stats.bootstrap(
        (samples,), np.median, n_resamples=40_000, method="percentile", rng=np.random.default_rng(2)
    )
    ordered = np.sort(samples)
    ranks = [int(np.searchsorted(ordered, value)) for value in (found.low, found.high)]
    drawn_ranks = [int(np.searchsorted(ordered, value)) for value in drawn.confidence_interval]
    assert found.value == np.median(samples)
    assert all(abs(ours - theirs) <= 1 for ours, theirs in zip(ranks, drawn_ranks, strict=True))


@pytest.mark.parametrize("count", [9, 10, 12, 15, 20, 30, 50, 100, 400, 401])
def test_interval_holds_the_true_median_with_95_percent_from_nine_samples_on(count: int) -> None:
    assert coverage(count) >= 0.95


@pytest.mark.parametrize("count", [5, 6, 7, 8])
def test_interval_of_fewer_samples_is_somewhat_narrow(count: int) -> None:
    assert 0.87 < coverage(count) < 0.97


def coverage(count: int) -> float:
    """Probability that the interval holds the median, whatever the distribution: that its ranks bound a fair coin."""
    ranks = median_ranks(count)
    assert ranks is not None
    low, high = ranks
    return float(scipy_stats.binom.cdf(high, count, 0.5) - scipy_stats.binom.cdf(low, count, 0.5))


def test_ranks_are_symmetric_and_narrow_with_more_samples() -> None:
    widths = []
    for count in (5, 11, 51, 201, 399, 401, 2001):
        ranks = median_ranks(count)
        assert ranks is not None
        low, high = ranks
        assert 0 <= low < high <= count - 1
        assert abs(low - (count - 1 - high)) <= 1
        widths.append((high - low) / count)
    assert widths == sorted(widths, reverse=True)


def test_the_normal_approximation_takes_over_without_a_jump() -> None:
    exact, normal = median_ranks(400), median_ranks(402)
    assert exact is not None
    assert normal is not None
    assert abs(normal[0] - exact[0]) <= 3


def test_too_few_samples_have_a_median_and_no_interval() -> None:
    found = median_estimate([1.0, 2.0, 3.0, 10.0])
    assert found.value == 2.5
    assert math.isnan(found.low)
    assert found.relative_half_width == math.inf
    assert median_ranks(4) is None
    assert median_ranks(5) is not None


def test_over_few_estimates_the_interval_is_that_of_what_stands_in_the_middle() -> None:
    low, middle, high = Estimate(1.0, 0.0, 9.0), Estimate(2.0, 1.9, 2.2), Estimate(30.0, 10.0, 40.0)
    assert median_of_estimates([middle]) == middle
    assert median_of_estimates([high, low, middle]) == middle
    assert median_of_estimates([Estimate(14.0, 11.0, 20.0), Estimate(10.0, 6.0, 18.0), low, high]) == Estimate(
        12.0, 9.5, 17.0
    ), "half of two errors that add up in squares: 3 and 4, 6 and 8"
    assert math.isnan(median_of_estimates([Estimate(5.0, math.nan, math.nan)]).low)
    many = [Estimate(float(value), 0.0, 99.0) for value in range(1, 8)]
    assert median_of_estimates(many) == median_estimate([each.value for each in many])


def test_no_samples_and_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        median_estimate([])
    with pytest.raises(ValueError, match="not a number"):
        median_estimate([1.0, math.nan, 2.0])


def test_half_width_is_relative_to_the_value() -> None:
    assert Estimate(10.0, 9.0, 11.0).relative_half_width == 0.1
    assert Estimate(0.0, -1.0, 1.0).relative_half_width == math.inf


@pytest.mark.parametrize("fraction", sorted(MIN_SAMPLES_FOR_PERCENTILE)[1:])
def test_least_samples_for_a_percentile_are_those_with_a_95_percent_upper_bound(fraction: float) -> None:
    count = MIN_SAMPLES_FOR_PERCENTILE[fraction]
    assert 1 - fraction**count >= 0.95
    assert 1 - fraction ** (count - 1) < 0.95


# --- samples in a row ---------------------------------------------------------------------------------------


def in_a_row(count: int, *, correlation: float, seed: int) -> list[float]:
    rng = np.random.default_rng(seed)
    found = [rng.standard_normal()]
    for _ in range(count - 1):
        found.append(correlation * found[-1] + math.sqrt(1 - correlation**2) * rng.standard_normal())
    return found


@pytest.mark.parametrize(
    ("correlation", "least", "as_independent"), [(0.0, 0.95, 0.98), (0.3, 0.93, 0.92), (0.6, 0.9, 0.82)]
)
def test_samples_that_resemble_each_other_have_a_wider_interval(
    correlation: float, least: float, as_independent: float
) -> None:
    series = [in_a_row(40, correlation=correlation, seed=seed) for seed in range(600)]
    held = [median_estimate(one, in_order=True).contains(0.0) for one in series]
    assert np.mean(held) > least
    assert np.mean([median_estimate(one).contains(0.0) for one in series]) < as_independent


def test_the_order_of_samples_counts_only_where_it_is_said_to_mean_something() -> None:
    rising = [float(value) for value in range(30)]
    shuffled = np.random.default_rng(1).permutation(rising).tolist()
    assert median_estimate(rising) == median_estimate(shuffled)
    assert median_estimate(rising, in_order=True).high > median_estimate(shuffled, in_order=True).high


def test_an_interval_never_reaches_beyond_the_samples() -> None:
    for count in (5, 10, 50, 401, 2000):
        ranks = median_ranks(count, correlation=0.95)
        assert ranks is not None
        assert 0 <= ranks[0] < ranks[1] <= count - 1


def test_a_correlation_is_rid_of_its_bias_and_never_below_zero() -> None:
    assert correlation_in_order(-0.5, 20) == 0
    assert correlation_in_order(math.nan, 20) == 0
    assert correlation_in_order(0.99, 20) == pytest.approx(0.95)
    found = [correlation_in_order(serial_correlation(in_a_row(40, correlation=0.6, seed=n)), 40) for n in range(400)]
    assert np.mean(found) == pytest.approx(0.58, abs=0.03), "ranks of normal values correlate a little less than these"


@pytest.mark.parametrize("values", [[3.0, 1.0, 2.0, 5.0, 4.0], [1.0, 1.0, 2.0, 2.0, 1.0, 3.0], [1.0] * 6, [1.0, 2.0]])
def test_one_series_and_many_have_the_same_serial_correlation(values: list[float]) -> None:
    many = serial_correlations(np.array([values, values[::-1]]))
    assert many == pytest.approx([serial_correlation(values), serial_correlation(values[::-1])], nan_ok=True)


def test_independent_samples_are_worth_what_they_are() -> None:
    assert median_inflation(0.0, 40) == 1
    assert median_inflation(0.6, 40) == pytest.approx(2.86, abs=0.01)
