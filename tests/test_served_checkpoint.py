"""A preset as files: what a serving engine reads is what the family says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoTokenizer

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import ImageOptions, SubjectSpec
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.registry import get_family
from vlmeter.models.served_checkpoint import HEAD_VALUES, with_wide_heads, write_checkpoint

FAMILIES = ("llava_next", "qwen2_5_vl", "qwen3_vl", "internvl")

QUESTION = 'What is "this" in {the} picture?\nSay it.'


def native(name: str) -> NativeFamily:
    family = get_family(name)
    assert isinstance(family, NativeFamily)
    return family


@pytest.fixture(scope="module", params=FAMILIES)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, write_checkpoint(tmp_path_factory.mktemp(request.param), family=request.param, preset="nano")


def test_the_chat_template_gives_the_familys_prompt(written: tuple[str, Path]) -> None:
    name, folder = written
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == native(name).template.filled(QUESTION)
    as_urls = [{"type": "image_url", "image_url": {"url": "data:,"}}, {"type": "text", "text": QUESTION}]
    assert rendered == tokenizer.apply_chat_template([{"role": "user", "content": as_urls}], tokenize=False)


def test_a_prompt_without_an_image_has_none(written: tuple[str, Path]) -> None:
    name, folder = written
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "Hm?"}], tokenize=False)
    template = native(name).template
    assert rendered == template.text.replace("{image}", "").replace("{question}", "Hm?")


def test_the_tokenizer_counts_as_the_family_does(written: tuple[str, Path]) -> None:
    name, folder = written
    family, tokenizer = native(name), AutoTokenizer.from_pretrained(folder)
    spec = SubjectSpec(preset="nano", weights="random", revision=None, dtype="bfloat16", attention="sdpa", seed=0)
    prompt = family.template.filled(QUESTION)
    image = set(tokenizer(family.template.image, add_special_tokens=False)["input_ids"])
    counted = [n for n in tokenizer(prompt, add_special_tokens=False)["input_ids"] if n not in image]
    assert len(counted) == family.text_tokens(spec, QUESTION)


def test_every_token_that_a_model_may_choose_has_a_text(written: tuple[str, Path]) -> None:
    name, folder = written
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = AutoConfig.from_pretrained(folder).get_text_config().vocab_size
    special = set(native(name).scales["nano"].tokenizer.special_tokens.values())
    assert [n for n in range(rows) if n not in special and not tokenizer.decode([n])] == []


def test_the_configuration_names_its_class_and_has_heads_that_engines_know(written: tuple[str, Path]) -> None:
    _, folder = written
    config = AutoConfig.from_pretrained(folder)
    made = AutoModelForImageTextToText.from_config(config) if config.model_type == "llava_next" else None
    text = json.loads((folder / "config.json").read_text())["text_config"]
    assert text["hidden_size"] // text["num_attention_heads"] == HEAD_VALUES
    assert made is None or config.architectures == [type(made).__name__]


def test_a_published_model_stays_as_it_is() -> None:
    for name in FAMILIES:
        for preset, scale in native(name).scales.items():
            if preset != "nano":
                assert with_wide_heads(scale.config) == scale.config, (name, preset)


def test_weights_are_written_only_if_asked_for_and_are_the_same_for_the_same_seed(tmp_path: Path) -> None:
    bare = write_checkpoint(tmp_path / "bare", family="llava_next", preset="nano")
    assert not list(bare.glob("*.safetensors"))
    folders = [write_checkpoint(tmp_path / str(n), family="llava_next", preset="nano", weights=True) for n in range(2)]
    first, second = ((folder / "model.safetensors").read_bytes() for folder in folders)
    assert first == second
    model, loading = AutoModelForImageTextToText.from_pretrained(folders[0], output_loading_info=True)
    assert not any(loading[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype.__str__() == "torch.bfloat16"


def test_a_model_with_random_weights_speaks_in_tokens_that_a_server_can_show(tmp_path: Path) -> None:
    import torch

    folder = write_checkpoint(tmp_path, family="llava_next", preset="nano", weights=True)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForImageTextToText.from_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1000, model.config.text_config.hidden_size, generator=generator, dtype=model.dtype)
    chosen = model.get_output_embeddings()(states).argmax(-1).tolist()
    assert len(set(chosen)) > 100
    assert [n for n in chosen if not (text := tokenizer.decode([n])) or "\ufffd" in text] == []


def test_the_processor_that_is_read_back_makes_what_the_geometry_predicts(tmp_path: Path) -> None:
    from transformers import AutoProcessor

    folder = write_checkpoint(tmp_path, family="llava_next", preset="nano")
    processor, family = AutoProcessor.from_pretrained(folder), native("llava_next")
    spec = SubjectSpec(preset="nano", weights="random", revision=None, dtype="bfloat16", attention="sdpa", seed=0)
    made = processor(images=[Image.new("RGB", (500, 333))], text=[family.template.filled("Hm?")])
    predicted = family.geometry(spec).image_tokens(500, 333, options=ImageOptions())
    assert sum(n == processor.image_token_id for n in made["input_ids"][0]) == predicted.vision_tokens


def test_what_cannot_be_written_is_told_with_what_can(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"preset: '70b' is not known; legal for llava_next: nano, 7b"):
        write_checkpoint(tmp_path, family="llava_next", preset="70b")
    with pytest.raises(UserError, match="family: molmo cannot be written as a checkpoint"):
        write_checkpoint(tmp_path, family="molmo", preset="nano")
