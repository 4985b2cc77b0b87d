"""Image sizes for property tests, and real processors to hold a prediction against, with no model and no video."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from vlmeter.common.errors import UnsupportedSize
from vlmeter.models.families.base import ImageGeometry, ImageOptions


def random_sizes(
    number: int, *, seed: int = 0, largest_px: int = 4000, largest_area: float = 1e7, aspect_ratio: float | None = None
) -> Iterator[tuple[int, int]]:
    """Draw sizes evenly in the logarithm of their sides, from 1 px on; some are squares, some exact multiples of 14."""
    generator = random.Random(seed)
    while number:
        width, height = (int(largest_px ** generator.random()) for _ in range(2))
        kind = generator.random()
        if kind < 0.1:
            width = height
        elif kind < 0.3:
            width, height = (max(1, side // 14) * 14 for side in (width, height))
        if width * height > largest_area:
            continue
        if aspect_ratio is not None and max(width, height) > aspect_ratio * min(width, height):
            continue
        number -= 1
        yield width, height


def predicted(geometry: ImageGeometry, size: tuple[int, int], options: ImageOptions) -> tuple[int, int, int] | None:
    """Predict (crops, vision tokens, special tokens); None for a size that is refused."""
    try:
        tokens = geometry.image_tokens(*size, options=options)
    except UnsupportedSize:
        return None
    return tokens.crops, tokens.vision_tokens, tokens.special_tokens


def blank(size: tuple[int, int]) -> Image.Image:
    """Make a picture of this size; counts do not depend on what is to be seen."""
    return Image.new("RGB", size, (90, 120, 150))


def byte_tokenizer(special: Sequence[str], **named: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer of single bytes that knows these special tokens; `named` become its attributes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(special))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    for name, token in named.items():
        setattr(wrapped, name, token)
        setattr(wrapped, f"{name}_id", wrapped.convert_tokens_to_ids(token))
    return wrapped


def processor_without_video(processor_class: type[Any], image_processor: Any, tokenizer: Any, **arguments: Any) -> Any:
    """Build a processor whose video processor, which would need torchvision, is not there."""

    class WithoutVideo(processor_class):  # type: ignore[misc]
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
            if argument_name == "video_processor":
                return None
            return super().check_argument_for_proper_class(argument_name, argument)

    return WithoutVideo(image_processor, tokenizer, None, **arguments)
