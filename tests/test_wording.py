"""An estimate is said with its interval, and with as many digits as that bears."""

from __future__ import annotations

import math

import pytest

from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import plural, with_interval


@pytest.mark.parametrize(
    ("estimate", "unit", "said"),
    [
        (Estimate(3.2519, 3.1, 3.4), "ms", "3.25 ms (3.10 to 3.40)"),
        (Estimate(13_012.3, 12_990.0, 13_030.0), "ms", "13.012 s (12.990 to 13.030)"),
        (Estimate(0.0213, 0.020, 0.0226), "ms", "21.3 µs (20.0 to 22.6)"),
        (Estimate(0.0123, -0.001, 0.02), "fraction", "1.2 % (-0.1 to 2.0)"),
        (Estimate(0.9998, 0.9951, 1.0044), "", "0.9998 (0.9951 to 1.0044)"),
        (Estimate(12.3456, math.nan, math.nan), "ms", "12.3 ms (no interval)"),
        (Estimate(5.0, 5.0, 5.0), "", "5.00 (5.00 to 5.00)"),
        (Estimate(-0.0001, -1.0, 1.0), "", "0.0 (-1.0 to 1.0)"),
        (Estimate(12_345.678, 12_345.677, 12_345.679), "", "12,346 (12,346 to 12,346)"),  # never more than five digits
        (Estimate(0.0123456, 0.0123455, 0.0123457), "", "0.012346 (0.012346 to 0.012346)"),
        (Estimate(2.0, 1.0, 3.0), "times", "2.0 times (1.0 to 3.0)"),
    ],
)
def test_value_and_interval_have_the_same_decimals(estimate: Estimate, unit: str, said: str) -> None:
    assert with_interval(estimate, unit) == said


def test_one_thing_is_not_many() -> None:
    assert [plural(count, "cell") for count in (0, 1, 2, 1200)] == ["0 cells", "1 cell", "2 cells", "1,200 cells"]
