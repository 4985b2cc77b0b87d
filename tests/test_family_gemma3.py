"""Gemma 3: always one picture and 256 tokens, as from the real processor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, SubjectSpec
from vlmeter.models.families.gemma3 import FAMILY, Gemma3Geometry
from vlmeter.models.pretrained import image_processor_class

from .support.geometry import blank, byte_tokenizer, predicted, random_sizes

IMAGE_PROCESSOR = image_processor_class("Gemma3ImageProcessor")  # with torchvision or without
NANO = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
FREE = ImageOptions()
PUBLISHED = Gemma3Geometry()
NAMED = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


@pytest.fixture(scope="module")
def processor() -> Any:
    # 28 px in place of 896, so that hundreds of images are really resized in seconds; and a file that asks for crops.
    image_processor = IMAGE_PROCESSOR(size={"height": 28, "width": 28}, do_pan_and_scan=True)
    return Gemma3Processor(image_processor, byte_tokenizer(tuple(NAMED.values()), **NAMED))


def test_300_random_sizes_give_one_picture_and_256_tokens_in_the_real_processor(processor: Any) -> None:
    tokenizer = processor.tokenizer
    for size in random_sizes(300, largest_area=2e6):
        inputs = processor(images=[blank(size)], text=["<start_of_image>What is this?"])
        ids = list(inputs["input_ids"][0])
        vision, start, end = (
            ids.count(tokenizer.convert_tokens_to_ids(token))
            for token in ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
        )
        assert predicted(PUBLISHED, size, FREE) == (len(inputs["pixel_values"]), vision, start + end), size


def test_the_one_candidate_is_the_square_that_is_not_scaled() -> None:
    assert PUBLISHED.candidates(options=FREE) == [(896, 896)]
    assert PUBLISHED.limit(options=FREE) == "the 256 tokens that gemma3 makes of every image"


def test_nothing_is_cut() -> None:
    assert PUBLISHED.tilings(options=FREE) == []
    with pytest.raises(UserError, match="tiling: 1x2 is out of reach of gemma3"):
        PUBLISHED.size_for_tiling((1, 2), options=FREE)
    with pytest.raises(UserError, match="max_crops: 4 means nothing to gemma3"):
        PUBLISHED.image_tokens(896, 896, options=ImageOptions(max_crops=4))
    with pytest.raises(UnsupportedSize, match="896x0 is not a size"):
        PUBLISHED.image_tokens(896, 0, options=FREE)


def test_the_published_files_are_read() -> None:
    published = {"do_pan_and_scan": None, "size": {"height": 896, "width": 896}, "image_seq_length": 256}
    assert Gemma3Geometry.from_config(published) == PUBLISHED
    assert Gemma3Geometry.from_config({"image_seq_length": 64}) == Gemma3Geometry(224, 64)
    with pytest.raises(UserError, match="image_seq_length: 0"):
        Gemma3Geometry.from_config({"image_seq_length": 0})


def test_line_breaks_around_the_image_are_text_under_any_tokenizer() -> None:
    """The processor writes two before and two behind; the published tokenizer makes one token of three."""
    loaded = FAMILY.load(NANO, device="cpu")
    size = (896, 896)
    planned = PUBLISHED.image_tokens(*size, options=FREE)
    ids = {}
    for runs in ((), ("\n\n", "\n\n\n")):
        loaded.processor.tokenizer.add_tokens(list(runs))
        inputs = loaded.prepare(blank(size), "What is this?", text_tokens=None, options=FREE)
        counts = inputs.counts
        assert (counts.vision_tokens, counts.special_tokens) == (planned.vision_tokens, planned.special_tokens)
        assert loaded.prepare(blank(size), None, text_tokens=40, options=FREE).counts.text_tokens == 40
        ids[runs] = counts.text_tokens
    assert list(ids.values()) == [FAMILY.text_tokens(NANO, "What is this?"), ids[()] - 3]


def test_a_chat_template_counts_like_the_familys_own_prompt() -> None:
    loaded = FAMILY.load(NANO, device="cpu")
    own = loaded.prepare(blank((100, 100)), "What is this?", text_tokens=None, options=FREE).counts
    loaded.processor.chat_template = (
        "{{ bos_token }}{% for message in messages %}<start_of_turn>user\n{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
        "<end_of_turn>\n{% endfor %}{{ '<start_of_turn>model\n' }}"
    )
    assert loaded.prepare(blank((100, 100)), "What is this?", text_tokens=None, options=FREE).counts == own


def test_five_of_six_blocks_look_back_on_a_window_only() -> None:
    shapes = FAMILY.load(replace(NANO, preset="4b", dtype="bfloat16"), device="meta")
    kinds = shapes.model.config.text_config.layer_types
    assert (len(kinds), kinds.count("full_attention")) == (34, 5)
    assert kinds[:6] == ["sliding_attention"] * 5 + ["full_attention"]


def test_the_real_scale_has_the_parameters_that_the_published_checkpoint_has() -> None:
    """As the hub counts them in the safetensors of google/gemma-3-4b-it."""
    assert sum(FAMILY.scales["4b"].parameters.values()) == 4_300_079_472
