"""Pictures as a server gets them: encoded, and never twice the same.

A server that has seen a picture may answer from a cache: of processed pictures, of the encoder's output, of the
prompt's keys and values. So each sample's picture differs from all before it, by a little in some pixels: nobody would
see it, no crop or token changes, and no digest of the picture is the same.
"""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING, Literal

from vlmeter.backends.endpoint.request import Picture

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pixels that are changed: enough that JPEG's rounding leaves some of the change, few enough to cost nothing.
CHANGED_PX = 64

#: By how much; JPEG would round less than this away.
STEP = {"png": 1, "jpeg": 16}


def unlike(image: Image, *, number: int, image_format: Literal["png", "jpeg"]) -> Image:
    """Return the picture with some pixels changed in a way that belongs to `number` alone."""
    changed = image.convert("RGB").copy()
    rng = random.Random(number)
    width_px, height_px = changed.size
    pixels = changed.load()
    assert pixels is not None
    for _ in range(min(CHANGED_PX, width_px * height_px)):
        place = rng.randrange(width_px), rng.randrange(height_px)
        value = pixels[place]
        assert isinstance(value, tuple)
        step = STEP[image_format]
        pixels[place] = tuple((channel + rng.choice((0, step))) % 256 for channel in value)
    return changed


def encoded(image: Image, *, image_format: Literal["png", "jpeg"], quality: int) -> Picture:
    """Encode a picture as it is sent."""
    buffer = io.BytesIO()
    if image_format == "png":
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=quality)
    return Picture(buffer.getvalue(), f"image/{image_format}")
