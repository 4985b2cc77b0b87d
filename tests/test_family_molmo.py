"""Molmo as a family: what it promises before loading holds after loading."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import COMPONENTS, PREFILL_PHASES, ImageOptions, LoadedModel, SubjectSpec
from vlmeter.models.families.registry import get_family
from vlmeter.models.molmo1.tokenizer import make_tokenizer

from .support.molmo import TINY, tiny_model, write_checkpoint

NANO = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
FREE = ImageOptions()
FAMILY = get_family("molmo")
GEOMETRY = FAMILY.geometry(NANO)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return FAMILY.load(NANO, device="cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_checkpoint(tiny_model(), tmp_path)
    make_tokenizer(TINY).tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from vlmeter.models.families.base import ImageOptions, SubjectSpec\n"
        "from vlmeter.models.families.registry import get_family\n"
        "family = get_family('molmo')\n"
        "from vlmeter.models.image_sizes import sizes_for\n"
        "spec = SubjectSpec('7b-d', 'random', None, 'bfloat16', 'sdpa', 0)\n"
        "sizes_for(family.geometry(spec), vision_tokens=864, options=ImageOptions())\n"
        "family.parameters(spec), family.text_tokens(spec, 'why?')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_preset_says_what_it_is() -> None:
    assert list(FAMILY.presets) == ["nano", "7b-d", "7b-o", "e-1b", "72b"]
    assert "8,021,025,280" in FAMILY.presets["7b-d"]


def test_an_image_size_becomes_crops_and_tokens() -> None:
    tokens = GEOMETRY.image_tokens(640, 480, options=FREE)
    assert tuple(tokens.layout) == GEOMETRY.layout_columns
    assert tokens.crops == 1 + tokens.layout["tiling_h"] * tokens.layout["tiling_w"]
    with pytest.raises(UnsupportedSize):
        GEOMETRY.image_tokens(4000, 11, options=FREE)


def test_a_size_is_found_for_a_tiling() -> None:
    size = GEOMETRY.size_for_tiling((2, 4), options=FREE)
    assert size.layout == {"tiling_h": 2, "tiling_w": 4}


def test_a_forced_tiling_goes_past_max_crops() -> None:
    with pytest.raises(UserError, match="max_crops"):
        GEOMETRY.size_for_tiling((4, 5), options=FREE)
    size = GEOMETRY.size_for_tiling((4, 5), options=ImageOptions(force_tiling=(4, 5)))
    assert size.crops == 21


def test_there_are_35_tilings_of_up_to_12_crops() -> None:
    assert len(GEOMETRY.tilings(options=FREE)) == 35
    assert len(GEOMETRY.tilings(options=ImageOptions(max_crops=4))) == 8


def test_parameters_are_known_before_loading(loaded: LoadedModel) -> None:
    promised = FAMILY.parameters(NANO)
    assert promised is not None
    assert tuple(promised) == COMPONENTS
    assert promised == loaded.parameters
    assert sum(promised.values()) == sum(parameter.numel() for parameter in loaded.model.parameters())


def test_kv_cache_size_follows_the_dtype() -> None:
    full = replace(NANO, preset="7b-d", dtype="float32")
    assert FAMILY.kv_bytes_per_token(replace(full, dtype="bfloat16")) == 57_344
    assert FAMILY.kv_bytes_per_token(full) == 2 * 57_344


def test_text_tokens_are_known_before_loading(loaded: LoadedModel) -> None:
    question = "What is the man holding?"
    inputs = loaded.prepare(Image.new("RGB", (336, 336)), question, text_tokens=None, options=FREE)
    assert FAMILY.text_tokens(NANO, question) == inputs.counts.text_tokens


@pytest.mark.parametrize("text_tokens", [8, 32, 77])
def test_a_prompt_of_an_exact_length_is_prepared(loaded: LoadedModel, text_tokens: int) -> None:
    image = Image.new("RGB", (560, 560))
    inputs = loaded.prepare(image, None, text_tokens=text_tokens, options=FREE)
    counts, planned = inputs.counts, GEOMETRY.image_tokens(*image.size, options=FREE)
    assert counts.text_tokens == text_tokens
    assert (counts.crops, counts.vision_tokens) == (planned.crops, planned.vision_tokens)
    assert counts.special_tokens == planned.special_tokens
    assert counts.prompt_tokens == planned.image_tokens + text_tokens == inputs.tensors["input_ids"].shape[1]
    assert all(len(tensor) == 1 for tensor in inputs.tensors.values())


def test_options_reach_the_preprocessing(loaded: LoadedModel) -> None:
    image = Image.new("RGB", (100, 100))
    inputs = loaded.prepare(image, "why?", text_tokens=None, options=ImageOptions(force_tiling=(3, 5)))
    assert inputs.counts.crops == 16


def test_a_prompt_takes_either_a_question_or_a_length(loaded: LoadedModel) -> None:
    image = Image.new("RGB", (336, 336))
    with pytest.raises(UserError, match="exactly one"):
        loaded.prepare(image, "why?", text_tokens=8, options=FREE)
    with pytest.raises(UserError, match="text_tokens: 3 is too few"):
        loaded.prepare(image, None, text_tokens=3, options=FREE)


def test_marks_fire_in_their_order_and_close_every_phase(loaded: LoadedModel) -> None:
    inputs = loaded.prepare(Image.new("RGB", (336, 336)), "why?", text_tokens=None, options=FREE)
    closed: list[str | None] = []
    handles = []
    for boundary in loaded.boundaries():

        def note(*_: object, closes: str | None = boundary.closes) -> None:
            closed.append(closes)

        module, before = boundary.module, boundary.when == "before"
        handles.append((module.register_forward_pre_hook if before else module.register_forward_hook)(note))
    with torch.inference_mode():
        loaded.prefill(inputs.tensors)
    for handle in handles:
        handle.remove()
    assert closed == [boundary.closes for boundary in loaded.boundaries()]
    assert closed[0] is None
    assert set(closed[1:]) == set(PREFILL_PHASES)


def test_prefill_and_decode_extend_one_cache(loaded: LoadedModel) -> None:
    inputs = loaded.prepare(Image.new("RGB", (336, 336)), "why?", text_tokens=None, options=FREE)
    with torch.inference_mode():
        logits, cache = loaded.prefill(inputs.tensors)
        token = logits.argmax(-1, keepdim=True)
        following = loaded.decode(token, cache)
        longer = torch.cat([inputs.tensors["input_ids"], token], dim=1)
        expected, _ = loaded.prefill({**inputs.tensors, "input_ids": longer})
    assert logits.shape == following.shape == (1, 512)
    assert cache.get_seq_length() == inputs.counts.prompt_tokens + 1
    torch.testing.assert_close(following, expected, rtol=1e-3, atol=1e-4)


def test_vision_alone_gives_the_features(loaded: LoadedModel) -> None:
    inputs = loaded.prepare(Image.new("RGB", (336, 560)), "why?", text_tokens=None, options=FREE)
    with torch.inference_mode():
        assert loaded.vision(inputs.tensors).shape == (1, 3, 144, 64)


def test_a_checkpoint_folder_is_a_subject(folder: Path) -> None:
    spec = replace(NANO, preset=None, weights=str(folder))
    loaded = FAMILY.load(spec, device="cpu")
    assert FAMILY.parameters(spec) == loaded.parameters
    assert FAMILY.text_tokens(spec, "why?") == len(make_tokenizer(TINY).prompt_ids("why?")) + 1
    assert tuple(loaded.eos_token_ids) == (299,)


def test_a_hub_checkpoint_is_unknown_until_it_is_read() -> None:
    spec = replace(NANO, preset=None, weights="acme/molmo")
    assert FAMILY.parameters(spec) is None
    assert FAMILY.kv_bytes_per_token(spec) is None
    assert FAMILY.text_tokens(spec, "why?") is None


def test_random_weights_need_a_preset() -> None:
    with pytest.raises(UserError, match="preset"):
        FAMILY.load(replace(NANO, preset=None), device="cpu")
