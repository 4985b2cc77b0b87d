"""Pictures as a server gets them: encoded, and never twice the same.

A server that has seen a picture may answer from a cache: of processed pictures, of the encoder's output, of the
prompt's keys and values. So each sample's picture differs from all before it, by a little in some pixels: nobody would
see it, no crop or token changes, and no digest of the picture is the same.
"""

from __future__ import annotations

import io
import random
from typing import TYPE_CHECKING

from vlmeter.backends.endpoint.request import Picture
from vlmeter.models.encoding import LEAST_QUALITY, Encoding

if TYPE_CHECKING:
    from PIL.Image import Image

#: Pixels that are changed: enough that JPEG's rounding leaves some of the change, few enough to cost nothing.
CHANGED_PX = 64

#: By how much, by the least quality of JPEG that does not round it away; PNG keeps any.
JPEG_STEPS = {75: 16, 40: 64, LEAST_QUALITY: 128}


def unlike(image: Image, *, number: int, encoding: Encoding) -> Image:
    """Return the picture with some pixels changed in a way that belongs to `number` alone."""
    changed = image.convert("RGB").copy()
    step = step_of(encoding)
    rng = random.Random(number)
    width_px, height_px = changed.size
    pixels = changed.load()
    assert pixels is not None
    for _ in range(min(CHANGED_PX, width_px * height_px)):
        place = rng.randrange(width_px), rng.randrange(height_px)
        value = pixels[place]
        assert isinstance(value, tuple)
        pixels[place] = tuple((channel + rng.choice((0, step))) % 256 for channel in value)
    return changed


def step_of(encoding: Encoding) -> int:
    """By how much a pixel is changed for the change to survive."""
    quality = encoding.quality
    return 1 if quality is None else next(step for least, step in JPEG_STEPS.items() if quality >= least)


def encoded(image: Image, encoding: Encoding) -> Picture:
    """Encode a picture as it is sent."""
    buffer = io.BytesIO()
    if encoding.quality is None:
        image.save(buffer, "PNG", compress_level=1)
    else:
        image.convert("RGB").save(buffer, "JPEG", quality=encoding.quality)
    return Picture(buffer.getvalue(), f"image/{encoding.image_format}")
