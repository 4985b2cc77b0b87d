"""Numbers as people read them. Values are stored unrounded everywhere else; this is the edge where they are rounded."""

from __future__ import annotations

import math

#: Two durations of which one is a smaller part of the other than this are each said in a unit of their own.
_ONE_UNIT_RATIO = 0.005


def _decimals(value: float, digits: int) -> int:
    """Decimals that show so many significant digits of a number, after it has been rounded to them."""
    if value == 0 or not math.isfinite(value):
        return 0
    exponent = int(f"{abs(value):.{digits - 1}e}".partition("e")[2])  # 9.999 is 10.0 by then, and not 10.00
    return max(0, digits - 1 - exponent)


def significant(value: float, digits: int = 3) -> str:
    """Format with so many significant digits (all those before the point), thousands separated, no exponent."""
    if math.isnan(value):
        return "n/a"
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    return f"{value:,.{_decimals(value, digits)}f}"


def duration(value_ms: float, digits: int = 3) -> str:
    """Format milliseconds in the unit that suits: µs, ms or s."""
    if math.isnan(value_ms):
        return "n/a"
    factor, name = _unit(value_ms)
    return f"{significant(value_ms * factor, digits)} {name}"


def _unit(value_ms: float) -> tuple[float, str]:
    magnitude = abs(value_ms)
    if magnitude >= 10_000:
        return 1e-3, "s"
    return (1e3, "µs") if 0 < magnitude < 0.1 else (1.0, "ms")


def duration_range(low_ms: float, high_ms: float, digits: int = 3) -> str:
    """Format two durations as 'low to high', in the unit that suits the larger, if both can be read so."""
    if duration(low_ms, digits) == duration(high_ms, digits):
        return duration(low_ms, digits)
    larger = max(abs(low_ms), abs(high_ms))
    smaller = min((abs(value) for value in (low_ms, high_ms) if value), default=larger)
    if math.isnan(low_ms + high_ms) or smaller < larger * _ONE_UNIT_RATIO:
        return f"{duration(low_ms, digits)} to {duration(high_ms, digits)}"
    factor, name = _unit(larger)
    return f"{significant(low_ms * factor, digits)} to {significant(high_ms * factor, digits)} {name}"


def percent(fraction: float, digits: int = 2) -> str:
    """Format a fraction as a percentage."""
    return "n/a" if math.isnan(fraction) else f"{significant(100 * fraction, digits)} %"


def r_squared(value: float) -> str:
    """Format R² with two digits of what is missing from 1: 0.81, 0.99987."""
    missing = 1 - value
    return f"{value:.{min(max(1 - math.floor(math.log10(missing)), 2), 6) if missing > 0 else 6}f}"


def metric(value: float, digits: int = 3) -> str:
    """Format a count that may be large in powers of a thousand: 950, 1.25 M, 14.1 G, 2.5 T."""
    if math.isnan(value):
        return "n/a"
    for power, letter in ((12, "T"), (9, "G"), (6, "M"), (3, "k")):
        if abs(value) >= 10**power:
            return f"{significant(value / 10**power, digits)} {letter}"
    return significant(value, digits)


def deviation(fraction: float, of: str) -> str:
    """Say how far something is from `of`: in percent, or, from twice as far as that is large, in times."""
    return f"{significant(fraction, 2)} times {of}" if fraction >= 2 else f"{percent(fraction)} of {of}"


def size(value_bytes: float) -> str:
    """Format bytes in binary units."""
    if math.isnan(value_bytes):
        return "n/a"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value_bytes) < 1024:
            return f"{significant(value_bytes, 3)} {unit}"
        value_bytes /= 1024
    return f"{significant(value_bytes, 3)} TiB"
