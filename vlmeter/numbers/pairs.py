"""Two numbers in one word: image sizes (width x height) and tilings (rows x columns)."""

from __future__ import annotations

import re


def parse_pair(text: str) -> tuple[int, int]:
    """Read 'AxB' (two positive whole numbers) as (A, B); raises ValueError otherwise."""
    match = re.fullmatch(r"([1-9]\d{0,5})x([1-9]\d{0,5})", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not of the form AxB, two positive whole numbers such as 2x4")
    return int(match[1]), int(match[2])
