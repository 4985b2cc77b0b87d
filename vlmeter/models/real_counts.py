"""Ask the processor of a checkpoint what it makes of images, and hold it against what its family predicts.

A family's arithmetic follows the published code; the code that a checkpoint's files choose and set up may do otherwise.
And the model that its `config.json` describes has to take what the processor makes: a whole prompt runs through its
shapes. No weight is read.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import Family, ImageOptions, ImageTokens, LoadedModel, ModelInputs, SubjectSpec

#: Pixels of all images together that are worth a check without being asked for: a few seconds of preprocessing.
WORTH_CHECKING_PX = 32_000_000

_COUNTS = ("crops", "vision_tokens", "special_tokens")


def worth_checking(images: Sequence[ImageTokens], *, budget_px: int = WORTH_CHECKING_PX) -> list[ImageTokens]:
    """Choose of some images as many as have no more pixels together than that, evenly over their order.

    The first and the last are among them, if they fit; none may fit.
    """
    number = len(images)
    while number:
        last = max(1, number - 1)
        places = sorted({round(place * (len(images) - 1) / last) for place in range(number)})
        chosen = [images[place] for place in places]
        if sum(image.width_px * image.height_px for image in chosen) <= budget_px:
            return chosen
        number = min(number - 1, int(number * 0.8))
    return []


def check_predictions(
    family: Family, spec: SubjectSpec, predicted: Sequence[ImageTokens], *, options: ImageOptions
) -> None:
    """Put a blank image of every size through the checkpoint's own processor, and one through its model's shapes.

    Raises UserError for the first count that it makes otherwise, for a processor that makes none, and for a model that
    does not take what it makes; Unsupported where a library is missing that it takes.
    """
    from PIL import Image

    with _nothing_collected():
        loaded = family.load(spec, device="meta")
    most: tuple[ImageTokens, ModelInputs] | None = None
    for image in predicted:
        blank = Image.new("RGB", (image.width_px, image.height_px), (127, 127, 127))
        made = loaded.prepare(blank, "the", text_tokens=None, options=options)
        for name in _COUNTS:
            expected, real = getattr(image, name), getattr(made.counts, name)
            if expected != real:
                raise UserError(
                    f"{spec.weights}: of an image of {image.width_px}x{image.height_px} px its own processor makes "
                    f"{name} {real}, and family {family.name} expects {expected}; {_suspect(name, loaded)} (--no-check "
                    "shows what it expects)"
                )
        if most is None or image.vision_tokens > most[0].vision_tokens:
            most = image, made
    if most is not None:
        size = f"{most[0].width_px}x{most[0].height_px} px"
        check_pass(loaded, most[1], source=spec.weights, what=f"an image of {size}")


def _suspect(name: str, loaded: LoadedModel) -> str:
    """Say where a count is made that is not the family's."""
    template = getattr(loaded, "template_file", None)
    if name == "special_tokens" and template and getattr(getattr(loaded, "processor", None), "chat_template", None):
        return f"its chat template ({template}) is not the published model's, or that is a defect of the family"
    return "report the difference as a defect of the family"


def check_pass(loaded: LoadedModel, made: ModelInputs, *, source: str, what: str) -> None:
    """Run a prompt through the shapes of a checkpoint's model, which must take what its processor makes.

    Args:
        loaded: the checkpoint's model on meta. made: the prompt's inputs, on the CPU.
        source: the checkpoint; what: whose prompt it is. Both for the message.

    Raises UserError where the model refuses the prompt: the checkpoint's files do not belong together.
    """
    import torch

    keep = bool(getattr(loaded, "reads_values", False))
    tensors: dict[str, Any] = {name: x if keep else x.to("meta") for name, x in made.tensors.items()}
    try:
        with torch.inference_mode():
            loaded.prefill(tensors)
    except UserError:
        raise
    except Exception as error:  # the published code, on what the checkpoint's files make of a picture
        told = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise UserError(
            f"{source}: of {what} its processor makes {made.counts.vision_tokens} vision tokens, which the model of "
            f"its config.json does not take ({type(error).__name__}: {told}); config.json, preprocessor_config.json "
            "and processor_config.json do not belong together"
        ) from error


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Import without looking for garbage: libraries make objects that stay, and each look at them takes longer."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
