"""Pictures, in the one form in which a model is shown them: 8-bit RGB, upright.

Two kinds are looked at. *Dummy images* have an exact size and seeded content: only the size decides how many
crops and tokens a picture becomes, so the vision-token experiment needs nothing else. *Photographs* come from
files that may be grey, rotated by their EXIF tag, or broken; they come in through `decode_and_settle`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from vlmeter.common.files import write_atomically
from vlmeter.inputs.rows import first_line

if TYPE_CHECKING:
    from PIL.Image import Image

#: Side of the squares of equal colour in a dummy image. Plain noise of 2800 x 336 px makes a PNG of 2.8 MB;
#: squares of 4 px make one of 0.25 MB and still put edges into every 14 px patch of a vision encoder.
SQUARE_PX = 4

#: EXIF tag that says how a camera was held.
_ORIENTATION = 0x0112


def dummy_image(width_px: int, height_px: int, *, seed: int) -> Image:
    """Make an RGB image of exactly this size: a mosaic of seeded colours, the same on every platform.

    The colours are the raw output of the PCG64 bit generator, whose stream numpy keeps fixed across versions
    (the distributions on top of it are not), and no floating-point arithmetic is involved.
    """
    import numpy as np
    from PIL import Image

    if width_px < 1 or height_px < 1:
        raise ValueError(f"a dummy image needs at least 1 x 1 px, not {width_px} x {height_px}")
    columns, rows = -(-width_px // SQUARE_PX), -(-height_px // SQUARE_PX)
    words = np.random.PCG64(seed).random_raw(-(-rows * columns * 3 // 8))
    colours = words.astype("<u8").view(np.uint8)[: rows * columns * 3].reshape(rows, columns, 3)
    pixels = colours.repeat(SQUARE_PX, axis=0).repeat(SQUARE_PX, axis=1)[:height_px, :width_px]
    return Image.fromarray(np.ascontiguousarray(pixels))


def write_dummy_image(path: Path, *, width_px: int, height_px: int, seed: int) -> None:
    """Write a dummy image as PNG, atomically."""
    write_atomically(path, encode_png(dummy_image(width_px, height_px, seed=seed)))


def encode_png(image: Image) -> bytes:
    """Encode as PNG, which holds exactly these pixels (its bytes depend on the zlib in use)."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def read_image(path: Path) -> Image:
    """Read an image file as upright 8-bit RGB; raises ValueError with the reason if it cannot be decoded."""
    return _decode(path.read_bytes())[0]


def decode_and_settle(data: bytes) -> tuple[Image, bytes, str]:
    """Decode an image file, and give the bytes and the suffix under which to keep it.

    A JPEG or PNG that already is upright 8-bit RGB is kept byte for byte: its sha256 is then the same on
    every machine. Anything else becomes a PNG of the decoded pixels, so that whoever opens the kept file sees
    what the model saw.
    """
    image, as_stored = _decode(data)
    if as_stored:
        return image, data, as_stored
    return image, encode_png(image), ".png"


def _decode(data: bytes) -> tuple[Image, str | None]:
    """Decode; the second value is the suffix of the file if it stores the very pixels returned, else None."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            rotated = image.getexif().get(_ORIENTATION, 1) != 1
            suffix = {"JPEG": ".jpg", "PNG": ".png"}.get(image.format or "")
            if image.mode.startswith(("I", "F")):
                raise ValueError(f"its pixels have mode {image.mode}; legal are 8 bits per channel")
            if image.mode == "RGB" and not rotated:
                return image.copy(), suffix
            return ImageOps.exif_transpose(image).convert("RGB"), None
    except UnidentifiedImageError as error:
        raise ValueError("it is not in an image format that Pillow knows") from error
    # damaged bytes make Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and more
    except Exception as error:
        raise ValueError(first_line(error)) from error
