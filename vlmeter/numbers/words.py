"""Estimates in words: a value is never said without its interval, nor with more digits than the interval bears."""

from __future__ import annotations

import math

from vlmeter.numbers.medians import MIN_SAMPLES_FOR_PERCENTILE, Estimate
from vlmeter.numbers.units import duration

#: Significant digits of an estimate without an interval, and the most of one with an interval.
PLAIN_DIGITS, MOST_DIGITS = 3, 5


def with_interval(estimate: Estimate, unit: str) -> str:
    """Say an estimate and its 95 % interval, such as '3.25 ms (3.11 to 3.40)'.

    `unit` is "ms" (said in the unit that suits), "fraction" (said in percent), "" or any other name. All three
    numbers have the same decimals: so many that the interval's half width keeps one or two digits.
    """
    factor, name = 1.0, unit
    if unit == "ms":
        name = duration(estimate.value).split()[-1]
        factor = {"s": 1e-3, "ms": 1.0, "µs": 1e3}[name]
    elif unit == "fraction":
        factor, name = 100.0, "%"
    value, low, high = (factor * part for part in (estimate.value, estimate.low, estimate.high))
    known = not (math.isnan(low) or math.isnan(high))
    decimals = _decimals(value, (high - low) / 2 if known else math.nan)
    said = f"{_fixed(value, decimals)} {name}".strip()
    return f"{said} ({_fixed(low, decimals)} to {_fixed(high, decimals)})" if known else f"{said} (no interval)"


def _decimals(value: float, half_width: float) -> int:
    """Decimals that show the half width with one or two digits, or the value with three where there is no width."""
    size = math.floor(math.log10(abs(value))) if value and math.isfinite(value) else 0
    if not half_width > 0:
        return max(0, PLAIN_DIGITS - 1 - size)
    return max(0, min(1 - math.floor(math.log10(half_width) + 0.3), MOST_DIGITS - 1 - size))


def _fixed(value: float, decimals: int) -> str:
    text = f"{value:,.{decimals}f}"
    return text.removeprefix("-") if not any(digit in text for digit in "123456789") else text


def plural(count: int, noun: str) -> str:
    """Say a count of things: '1 cell', '35 cells'."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


#: How often the interval of the mean of two medians holds (`benchmarks/coverage.py`).
WIDE_OF_TWO = "a little wide: 98 of 100 hold the truth"


def interval_of_few(found: Estimate, count: int) -> str:
    """Say whose interval a median over so many has (`median_of_estimates`): nothing of one, and of five or more."""
    if math.isnan(found.low) or not 1 < count < MIN_SAMPLES_FOR_PERCENTILE[0.50]:
        return ""
    return ", with the interval of the " + ("middle one" if count % 2 else f"two in the middle ({WIDE_OF_TWO})")
