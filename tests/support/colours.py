"""Colours as readers see them: with either common colour blindness, in grey, and against a ground."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

#: What becomes of linear RGB where red or green cones are absent (Machado, Oliveira and Fernandes 2009, severity 1),
#: and on a printer without colours.
READERS: Mapping[str, np.ndarray] = {
    "all cones": np.eye(3),
    "no red cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no green cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "grey": np.tile([0.2126, 0.7152, 0.0722], (3, 1)),
}

_TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
_WHITE = _TO_XYZ.sum(axis=1)


def linear(colour: Sequence[float]) -> np.ndarray:
    """Light of a colour's three parts, each from 0 to 1."""
    parts = np.asarray(colour[:3], dtype=float)
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """Contrast of two colours as WCAG has it, from 1 to 21."""
    dark, light = sorted(float(linear(colour) @ [0.2126, 0.7152, 0.0722]) for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def lab(colour: Sequence[float], reader: str) -> np.ndarray:
    """A colour in CIELAB, as a reader of READERS sees it."""
    seen = np.clip(READERS[reader] @ linear(colour), 0, 1)
    ratios = (_TO_XYZ @ seen) / _WHITE
    x, y, z = np.where(ratios > (6 / 29) ** 3, np.cbrt(ratios), ratios * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(one: Sequence[float], other: Sequence[float]) -> float:
    """Distance of two colours in CIELAB for the reader to whom they are nearest; 2 to 3 are just seen side by side."""
    return min(float(np.linalg.norm(lab(one, reader) - lab(other, reader))) for reader in READERS)
