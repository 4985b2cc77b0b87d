"""Ask the processor of a checkpoint what it makes of images, and hold it against what its family predicts.

A family's arithmetic follows the published code; the code that a checkpoint's files choose and set up may do otherwise.
No weight is read: inputs take the model's shapes, its tokenizer and its processor.
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import Family, ImageOptions, ImageTokens, SubjectSpec

#: Pixels of all images together that are worth a check without being asked for: a few seconds of preprocessing.
WORTH_CHECKING_PX = 32_000_000

_COUNTS = ("crops", "vision_tokens", "special_tokens")


def check_predictions(
    family: Family, spec: SubjectSpec, predicted: Sequence[ImageTokens], *, options: ImageOptions
) -> None:
    """Put a blank image of every size through the checkpoint's own processor.

    Raises UserError for the first count that it makes otherwise, and for a processor that makes none; Unsupported where
    a library is missing that it takes.
    """
    from PIL import Image

    loaded = family.load(spec, device="meta")
    for image in predicted:
        blank = Image.new("RGB", (image.width_px, image.height_px), (127, 127, 127))
        counts = loaded.prepare(blank, "the", text_tokens=None, options=options).counts
        for name in _COUNTS:
            expected, real = getattr(image, name), getattr(counts, name)
            if expected != real:
                raise UserError(
                    f"{spec.weights}: of an image of {image.width_px}x{image.height_px} px its own processor makes "
                    f"{name} {real}, and family {family.name} expects {expected}; report the difference as a defect of "
                    "the family (--no-check shows what it expects)"
                )
