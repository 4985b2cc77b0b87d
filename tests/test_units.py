"""Numbers are rounded at the edge alone, and read the same everywhere."""

from __future__ import annotations

import math

import pytest

from vlmeter.numbers.units import deviation, duration, duration_range, metric, percent, r_squared, significant, size

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1, "1.00"),
        (12.345, "12.3"),
        (0.0012345, "0.00123"),
        (-12.345, "-12.3"),
        (123456.7, "123,457"),
        (9.999, "10.0"),
        (99.96, "100"),
        (math.inf, "inf"),
        (NAN, "n/a"),
    ],
)
def test_a_number_has_three_significant_digits_even_where_rounding_carries(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value_ms", "text"),
    [(0.05, "50.0 µs"), (0.1, "0.100 ms"), (73.2, "73.2 ms"), (532_000, "532 s"), (-20_000, "-20.0 s"), (0, "0 ms")],
)
def test_a_duration_is_shown_in_the_unit_that_suits(value_ms: float, text: str) -> None:
    assert duration(value_ms) == text


def test_what_is_not_a_number_is_shown_without_a_unit() -> None:
    assert (duration(NAN), percent(NAN), size(NAN)) == ("n/a", "n/a", "n/a")


def test_a_large_deviation_is_said_in_times() -> None:
    said = [deviation(fraction, "its mean") for fraction in (0.034, 0.27, 1.5, 2.0, 13.4)]
    assert said == [
        "3.4 % of its mean",
        "27 % of its mean",
        "150 % of its mean",
        "2.0 times its mean",
        "13 times its mean",
    ]


def test_fractions_and_bytes() -> None:
    assert percent(0.0349) == "3.5 %"
    assert [size(n) for n in (12, 2048, 3 << 20, 16 << 30, 5 << 40)] == [
        "12.0 B", "2.00 KiB", "3.00 MiB", "16.0 GiB", "5.00 TiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "said"),
    [(950, "950"), (65_536, "65.5 k"), (1.25e6, "1.25 M"), (1.41e10, "14.1 G"), (2.5e12, "2.50 T"), (math.nan, "n/a")],
)
def test_large_counts_are_said_in_powers_of_a_thousand(value: float, said: str) -> None:
    assert metric(value) == said


@pytest.mark.parametrize(
    ("low_ms", "high_ms", "text"),
    [
        (-0.0445, 0.823, "-0.0445 to 0.823 ms"),
        (0.02, 0.05, "20.0 to 50.0 µs"),
        (900, 12_000, "0.900 to 12.0 s"),
        (0.02, 900, "20.0 µs to 900 ms"),
        (0, 3, "0 to 3.00 ms"),
        (3.0001, 3.0002, "3.00 ms"),
        (NAN, 3, "n/a to 3.00 ms"),
    ],
)
def test_a_range_has_one_unit_as_long_as_both_ends_can_be_read_in_it(low_ms: float, high_ms: float, text: str) -> None:
    assert duration_range(low_ms, high_ms) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.332, "0.33"), (0.806682, "0.81"), (0.99, "0.990"), (0.99987, "0.99987"), (1.0, "1.000000"), (-0.2, "-0.20")],
)
def test_r_squared_has_two_digits_of_what_is_missing_from_one(value: float, text: str) -> None:
    assert r_squared(value) == text
