"""Two numbers in one word: image sizes (width x height) and tilings (rows x columns)."""

from __future__ import annotations

import re

#: Digits of the largest number that is read: no image has a side, and no tiling a row, of ten million.
_DIGITS = 6


def parse_pair(text: str, *, example: str = "2x4") -> tuple[int, int]:
    """Read 'AxB' (two positive whole numbers) as (A, B); raises ValueError otherwise, which shows the example."""
    match = re.fullmatch(r"0*(\d+)x0*(\d+)", text.strip(), flags=re.ASCII)
    if not match or match[1] == "0" or match[2] == "0":
        raise ValueError(f"{text[:60]!r} is not of the form AxB, two positive whole numbers such as {example}")
    if max(len(match[1]), len(match[2])) > _DIGITS:
        raise ValueError(f"{text[:60]!r} is too large: each of the two has at most {_DIGITS} digits")
    return int(match[1]), int(match[2])
