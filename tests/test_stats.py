"""The median's interval is the exact bootstrap's, and holds the median as often as it says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from vlmeter.numbers.medians import MIN_SAMPLES_FOR_PERCENTILE, Estimate, median_estimate, median_ranks


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
