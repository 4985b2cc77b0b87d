"""What transformers' own processors make of an image size, with no pixel worked on.

Which size an image is scaled to, how it is cut and which tokens stand for it is decided by the real code; only
resampling gives blank pixels at once, so that hundreds of sizes up to 4,000 px take seconds.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image

from vlmeter.common.errors import UnsupportedSize
from vlmeter.models.families.base import ImageOptions, ImageTokens

FREE = ImageOptions()

#: Sizes at the edges: tiny, thin, round numbers, common screens.
EDGES = (
    (1, 1),
    (2, 3),
    (3, 2),
    (1, 3),
    (3, 1),
    (1, 4000),
    (4000, 1),
    (3, 4000),
    (4000, 7),
    (13, 1999),
    (111, 113),
    (224, 224),
    (336, 336),
    (337, 336),
    (384, 384),
    (385, 384),
    (640, 480),
    (672, 672),
    (1008, 336),
    (1920, 1080),
    (1080, 1920),
    (2304, 2304),
    (3840, 2160),
    (4000, 4000),
)


def random_sizes(count: int, *, seed: int) -> list[tuple[int, int]]:
    """Sizes from 1 to 4,000 px a side: the edges, then half spread evenly, half over the orders of magnitude."""
    rng = random.Random(seed)
    sizes = list(EDGES)
    while len(sizes) < count:
        if rng.random() < 0.5:
            sizes.append((rng.randint(1, 4000), rng.randint(1, 4000)))
        else:
            sizes.append((round(4000 ** rng.random()), round(4000 ** rng.random())))
    return sizes


def sane_sizes(count: int, *, seed: int) -> list[tuple[int, int]]:
    """Sizes within an aspect ratio of 1:8, over the orders of magnitude."""
    rng = random.Random(seed)
    sizes: list[tuple[int, int]] = []
    while len(sizes) < count:
        width = round(6000 ** rng.random())
        height = max(1, round(width * 2 ** rng.uniform(-3, 3)))
        if max(width, height) <= 8 * min(width, height):
            sizes.append((width, height))
    return sizes


@contextmanager
def blank_pixels() -> Iterator[None]:
    """Let the Pillow image processors resample to blanks."""

    def blank(image: Any, *, size: tuple[int, int], **_: Any) -> Any:
        assert min(size) > 0, "Pillow cannot resize to nothing"
        return np.zeros((image.shape[0], *size), dtype=image.dtype)

    with mock.patch("transformers.image_processing_backends.np_resize", blank):
        yield


def seen_by(processor: Any, size: tuple[int, int], *, image_token: str) -> tuple[int, int, int] | None:
    """Crops, vision tokens and special tokens of an image of this size, as processed; None where that fails."""
    text = processor.tokenizer.convert_ids_to_tokens(processor.tokenizer(image_token)["input_ids"])
    assert text == [image_token], "the prompt is the image and nothing else"
    try:
        inputs = processor(
            images=Image.new("RGB", size), text=image_token, return_tensors="pt", do_rescale=False, do_normalize=False
        )
    except Exception:
        return None
    ids = inputs["input_ids"][0]
    vision_tokens = int((ids == processor.tokenizer.convert_tokens_to_ids(image_token)).sum())
    return inputs["pixel_values"].shape[:-3].numel(), vision_tokens, len(ids) - vision_tokens


def differences(
    geometry: Any, processor: Any, sizes: Iterable[tuple[int, int]], *, image_token: str
) -> list[tuple[tuple[int, int], object, object]]:
    """Sizes at which prediction and processor disagree, refusals included, with what each says."""
    found = []
    with blank_pixels():
        for size in sizes:
            seen = seen_by(processor, size, image_token=image_token)
            try:
                tokens = geometry.image_tokens(*size, options=FREE)
            except UnsupportedSize:
                predicted = None
            else:
                predicted = (tokens.crops, tokens.vision_tokens, tokens.special_tokens)
            if seen != predicted:
                found.append((size, predicted, seen))
    return found


def kinds(geometry: Any, sizes: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """The pairs of vision tokens and crops that these sizes reach."""
    found: set[tuple[int, int]] = set()
    for size in sizes:
        try:
            tokens: ImageTokens = geometry.image_tokens(*size, options=FREE)
        except UnsupportedSize:
            continue
        found.add((tokens.vision_tokens, tokens.crops))
    return found


def plain_tokenizer(special_tokens: Iterable[str]) -> Any:
    """A tokenizer that knows these special tokens and line breaks, and one word for everything else."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "\n", "\n\n", *special_tokens]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n+"), "isolated")
    tokenizer.add_special_tokens(list(special_tokens))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<unk>")


def splitting_tokenizer() -> Any:
    """A tokenizer with the special tokens of Idefics3 and SmolVLM."""
    positions = [f"<row_{row}_col_{column}>" for row in range(1, 13) for column in range(1, 13)]
    return plain_tokenizer(["<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *positions])
