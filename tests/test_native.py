"""What the families of transformers share, on toys of three kinds of architecture."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.native import NATIVE, LlavaLike, spec_of
from vlmeter.common.errors import UserError
from vlmeter.measure.count_pass import count_pass
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.loaded_native import UNCHECKED, LoadedNative
from vlmeter.models.families.made_tokenizer import MadeTokenizer, make_tokenizer, wrapped
from vlmeter.models.families.native import NativeFamily

PLAIN = ImageOptions()
QUESTION = "What colour is the third person's hat?"


@pytest.fixture(scope="module", params=list(NATIVE))
def family(request: pytest.FixtureRequest) -> NativeFamily:
    return NATIVE[request.param]


@pytest.fixture(scope="module")
def loaded(family: NativeFamily) -> LoadedNative:
    return load(family)


def load(family: NativeFamily, *, device: str = "cpu", **changes: Any) -> LoadedNative:
    found = family.load(spec_of(**changes), device=device)
    assert isinstance(found, LoadedNative)
    return found


def picture(width: int = 300, height: int = 200) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def inputs(loaded: LoadedNative, *, text_tokens: int = 40, **size: int) -> dict[str, torch.Tensor]:
    made = loaded.prepare(picture(**size), None, text_tokens=text_tokens, options=PLAIN)
    return dict(made.tensors)


# --- inputs -----------------------------------------------------------------------------------------


def test_the_text_part_has_exactly_the_length_that_is_asked_for(loaded: LoadedNative) -> None:
    for tokens in (24, 25, 26, 27, 31, 64, 100, 257):
        made = loaded.prepare(picture(), None, text_tokens=tokens, options=PLAIN)
        assert made.counts.text_tokens == tokens
        assert made.counts.prompt_tokens == made.tensors["input_ids"].shape[1]


def test_too_few_text_tokens_are_refused_with_the_fewest_that_are_possible(loaded: LoadedNative) -> None:
    with pytest.raises(UserError, match=r"text_tokens: 2 is too few for a prompt of \w+; legal from \d+ on"):
        loaded.prepare(picture(), None, text_tokens=2, options=PLAIN)


def test_counts_add_up_and_are_those_of_the_real_input(loaded: LoadedNative) -> None:
    made = loaded.prepare(picture(), QUESTION, text_tokens=None, options=PLAIN)
    counts, ids = made.counts, made.tensors["input_ids"][0]
    assert counts.vision_tokens == int((ids == loaded.model.config.image_token_id).sum())
    assert counts.vision_tokens + counts.special_tokens + counts.text_tokens == counts.prompt_tokens == len(ids)


def test_as_many_tokens_receive_features_as_are_counted(loaded: LoadedNative) -> None:
    made = loaded.prepare(picture(), QUESTION, text_tokens=None, options=PLAIN)
    with torch.inference_mode():
        features = loaded.vision(made.tensors).pooler_output
    rows = sum(one.reshape(-1, one.shape[-1]).shape[0] for one in features)
    assert made.counts.vision_tokens == rows


def test_text_is_counted_alike_before_and_after_loading(family: NativeFamily, loaded: LoadedNative) -> None:
    made = loaded.prepare(picture(), QUESTION, text_tokens=None, options=PLAIN)
    assert family.text_tokens(spec_of(), QUESTION) == made.counts.text_tokens


def test_qwens_special_tokens_are_those_around_the_image() -> None:
    made = load(NATIVE["qwen"]).prepare(picture(), QUESTION, text_tokens=None, options=PLAIN)
    assert made.counts.special_tokens == 2


def test_nothing_is_masked_in_a_batch_of_one(loaded: LoadedNative) -> None:
    assert "attention_mask" not in inputs(loaded)


def test_pixels_have_the_models_number_format(family: NativeFamily) -> None:
    loaded = load(family, dtype="bfloat16")
    assert inputs(loaded)["pixel_values"].dtype == torch.bfloat16


def test_options_that_a_family_does_not_have_are_refused(loaded: LoadedNative) -> None:
    with pytest.raises(UserError, match="max_crops, force_tiling"):
        loaded.prepare(picture(), QUESTION, text_tokens=None, options=ImageOptions(max_crops=3))


# --- passes -----------------------------------------------------------------------------------------


def greedy(loaded: LoadedNative, tensors: dict[str, torch.Tensor], count: int) -> list[int]:
    with torch.inference_mode():
        logits, cache = loaded.prefill(tensors)
        tokens = [logits.argmax(dim=-1, keepdim=True)]
        while len(tokens) < count:
            tokens.append(loaded.decode(tokens[-1], cache).argmax(dim=-1, keepdim=True))
    return torch.cat(tokens, dim=1)[0].tolist()


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_greedy_steps_choose_what_generate_chooses(family: NativeFamily, attention: str) -> None:
    """Over more steps than the sliding window of one of the toys is wide."""
    loaded = load(family, attention=attention)
    loaded.model.generation_config.eos_token_id = None
    for width, height in ((300, 200), (90, 500)):
        tensors = inputs(loaded, width=width, height=height)
        given = {name: value for name, value in tensors.items() if name not in ("position_ids", "rope_deltas")}
        wanted = loaded.model.generate(**given, max_new_tokens=40, do_sample=False)[0, -40:].tolist()
        assert greedy(loaded, tensors, 40) == wanted


def test_marks_cover_the_whole_forward_in_the_order_of_the_phases(loaded: LoadedNative) -> None:
    fired: list[str | None] = []
    handles = []
    for boundary in loaded.boundaries():

        def note(*_: object, closes: str | None = boundary.closes) -> None:
            fired.append(closes)

        place = boundary.module
        before = boundary.when == "before"
        handles.append(place.register_forward_pre_hook(note) if before else place.register_forward_hook(note))
    with torch.inference_mode():
        loaded.prefill(inputs(loaded))
    for handle in handles:
        handle.remove()
    assert fired == [None, "merge", "vision_encoder", "projector", "merge", "llm_blocks", "head"]
    assert (loaded.boundaries()[0].module, loaded.boundaries()[-1].module) == (loaded.model, loaded.model)


def test_a_prompt_whose_features_do_not_fit_is_refused_at_its_first_pass(loaded: LoadedNative) -> None:
    tensors = inputs(loaded, text_tokens=77)
    ids = tensors["input_ids"]
    ids[ids == loaded.model.config.image_token_id] = 5
    with pytest.raises((ValueError, RuntimeError)), torch.inference_mode():
        loaded.prefill({**tensors, "input_ids": ids})


def test_transformers_checks_a_shape_once(loaded: LoadedNative, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its check waits for the device."""
    seen: list[str | None] = []
    handle = loaded.model.register_forward_hook(lambda *_: seen.append(os.environ.get(UNCHECKED)))
    monkeypatch.delenv(UNCHECKED, raising=False)
    tensors = inputs(loaded, text_tokens=51)
    with torch.inference_mode():
        loaded.vision(tensors)  # which compares nothing
        loaded.prefill(tensors)
        loaded.prefill(tensors)
        loaded.prefill(inputs(loaded, text_tokens=52))
    handle.remove()
    assert seen == [None, "1", None]
    assert UNCHECKED not in os.environ


# --- weights ----------------------------------------------------------------------------------------


def test_parameters_are_counted_whole(loaded: LoadedNative) -> None:
    assert sum(loaded.parameters.values()) == sum(p.numel() for p in loaded.model.parameters())
    assert all(loaded.parameters.values())


@pytest.mark.parametrize("name", ["qwen", "llava"])
def test_a_preset_knows_its_parameters(name: str) -> None:
    family = NATIVE[name]
    assert family.parameters(spec_of()) == load(family, device="meta").parameters
    scale = family.scales["nano"]
    assert family.presets["nano"] == f"{scale.about} ({sum(scale.parameters.values()):,} parameters)"


def test_a_shared_matrix_counts_once() -> None:
    loaded = load(NATIVE["gemma"])
    assert loaded.parameters["head"] == 64, "the final norm alone"
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight


def test_a_token_takes_as_much_cache_as_is_told(family: NativeFamily, loaded: LoadedNative) -> None:
    with torch.inference_mode():
        _, cache = loaded.prefill(inputs(loaded))
    layer = cache.layers[-1]
    keys_and_values = (layer.keys.numel() + layer.values.numel()) * 4 // layer.keys.shape[2]
    assert family.kv_bytes_per_token(spec_of()) == len(cache.layers) * keys_and_values


def test_one_seed_gives_one_model(family: NativeFamily) -> None:
    first, again, other = (load(family, seed=seed).model.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_random_weights_leave_the_generator_of_others_alone(family: NativeFamily) -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    load(family)
    assert torch.equal(torch.rand(4), wanted)


def test_tables_that_are_no_weights_are_those_of_a_model_made_the_usual_way(loaded: LoadedNative) -> None:
    """Rotary frequencies and position numbers are made on meta first, where they have no content."""
    usual = type(loaded.model)(loaded.model.config)
    made = dict(loaded.model.named_buffers())
    assert made.keys() == dict(usual.named_buffers()).keys()
    for name, table in usual.named_buffers():
        assert torch.equal(made[name], table), name


def test_cudnn_attention_is_shunned_in_decode_steps_alone(loaded: LoadedNative) -> None:
    """It plans anew for every length of the cache; a prefill has one length."""
    allowed: list[bool] = []
    block = loaded.model.get_submodule(loaded.parts.blocks)[0]
    hook = block.register_forward_pre_hook(lambda *_: allowed.append(torch.backends.cuda.cudnn_sdp_enabled()))
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        with torch.inference_mode():
            logits, cache = loaded.prefill(inputs(loaded))
            loaded.decode(logits.argmax(dim=-1, keepdim=True), cache)
        assert allowed == [True, False]
        assert torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
        hook.remove()


# --- shapes alone -----------------------------------------------------------------------------------


def test_work_is_counted_on_shapes_alone(family: NativeFamily) -> None:
    shapes = load(family, device="meta")
    assert {p.device.type for p in shapes.model.parameters()} == {"meta"}
    work = count_pass(shapes, inputs(shapes))
    flops = {phase.phase: phase.flops for phase in work.prefill}
    assert set(flops) == {"vision_encoder", "projector", "merge", "llm_blocks", "head"}
    assert all(flops[phase] > 0 for phase in ("vision_encoder", "projector", "llm_blocks", "head"))
    assert work.step.weight_bytes > 0


def test_counting_twice_gives_the_same(family: NativeFamily) -> None:
    shapes = load(family, device="meta")
    assert count_pass(shapes, inputs(shapes)) == count_pass(shapes, inputs(shapes))


# --- made-up tokenizers, and what cannot be made ------------------------------------------------------


def test_special_tokens_have_the_ids_of_the_configuration(family: NativeFamily) -> None:
    made = family.scales["nano"].tokenizer
    tokenizer = wrapped(made)
    for token, number in made.special_tokens.items():
        assert tokenizer(token, add_special_tokens=False)["input_ids"] == [number]


def test_any_text_has_tokens_and_comes_back() -> None:
    tokenizer = make_tokenizer(MadeTokenizer(vocab_size=300, special_tokens={"<eos>": 7}, eos="<eos>"))
    text = "What is this? 漢字 ☃"
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(UserError, match="vocab_size: 200 is too small"):
        make_tokenizer(MadeTokenizer(vocab_size=200, special_tokens={"<eos>": 7}, eos="<eos>"))


def test_an_attention_that_is_not_to_be_had_is_refused() -> None:
    with pytest.raises(UserError, match="attention: flash_attention_2 cannot be used with llava"):
        load(NATIVE["llava"], attention="flash_attention_2")


def test_a_preset_that_is_not_known_is_refused() -> None:
    with pytest.raises(UserError, match="preset: 'mega' is not known; legal for llava: nano"):
        load(NATIVE["llava"], preset="mega")


def test_a_second_scale_is_a_second_preset() -> None:
    class Two(LlavaLike):
        scales = {**LlavaLike.scales, "real": replace(LlavaLike.scales["nano"], about="real")}  # noqa: RUF012

    assert list(Two().presets) == ["nano", "real"]
