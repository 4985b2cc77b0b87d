"""Every family of transformers keeps after loading what it promised before, and runs as the model itself does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.native import write_native_checkpoint
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.measure.count_pass import count_pass
from vlmeter.models.families.base import COMPONENTS, PREFILL_PHASES, ImageOptions, SubjectSpec
from vlmeter.models.families.loaded_native import LoadedNative
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.registry import FAMILIES, get_family
from vlmeter.models.image_sizes import reachable

NAMES = [name for name in FAMILIES if isinstance(get_family(name), NativeFamily) and name != "generic"]
NANO = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
FREE = ImageOptions()
QUESTION = "What is the man holding?"


@pytest.fixture(scope="module", params=NAMES)
def family(request: pytest.FixtureRequest) -> NativeFamily:
    found = get_family(request.param)
    assert isinstance(found, NativeFamily)
    try:
        found.load(NANO, device="meta")
    except Unsupported as reason:
        pytest.skip(str(reason))
    return found


@pytest.fixture(scope="module")
def loaded(family: NativeFamily) -> LoadedNative:
    model = family.load(NANO, device="cpu")
    assert isinstance(model, LoadedNative)
    return model


def picture(width_px: int, height_px: int) -> Image.Image:
    """Make a picture in which no two places look alike, so that features in the wrong place are noticed."""
    generator = torch.Generator().manual_seed(width_px * 10_000 + height_px)
    pixels = torch.randint(0, 256, (height_px, width_px, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def small_sizes(family: NativeFamily, number: int) -> list[tuple[int, int]]:
    """Some sizes that the family can show, spread over its counts up to 1,500 vision tokens."""
    found = [image for image in reachable(family.geometry(NANO), options=FREE) if image.vision_tokens <= 1500]
    step = max(1, len(found) // number)
    return [(image.width_px, image.height_px) for image in found[::step]][:number]


def by_the_processor(loaded: LoadedNative, image: Image.Image, question: str = QUESTION) -> dict[str, Any]:
    """Make a model's inputs with its processor alone, as its own documentation does."""
    inputs = loaded.processor(
        images=[image], text=[loaded.render(question)], return_tensors="pt", add_special_tokens=False
    )
    return dict(inputs)


# --- before loading --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_planning_needs_no_torch(name: str) -> None:
    code = (
        "import sys\n"
        "from vlmeter.models.families.base import ImageOptions, SubjectSpec\n"
        "from vlmeter.models.families.registry import get_family\n"
        f"family = get_family({name!r})\n"
        "for preset in family.presets:\n"
        "    spec = SubjectSpec(preset, 'random', None, 'bfloat16', 'sdpa', 0)\n"
        "    list(family.geometry(spec).candidates(options=ImageOptions()))\n"
        "    family.parameters(spec), family.kv_bytes_per_token(spec), family.text_tokens(spec, 'why?')\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_toy_comes_first_and_then_a_real_scale(family: NativeFamily) -> None:
    nano, *real = family.presets
    assert nano == "nano"
    assert real
    for preset, about in family.presets.items():
        assert f"{sum(family.scales[preset].parameters.values()):,} parameters" in about


def test_an_unknown_preset_is_answered_with_the_known_ones(family: NativeFamily) -> None:
    for preset in ("huge", None):
        with pytest.raises(UserError, match=f"preset: .* not known; legal for {family.name}: nano, "):
            family.load(replace(NANO, preset=preset), device="cpu")


def test_parameters_of_every_preset_are_those_of_its_model(family: NativeFamily) -> None:
    for preset in family.presets:
        spec = replace(NANO, preset=preset, dtype="bfloat16")
        promised, shapes = family.parameters(spec), family.load(spec, device="meta")
        assert promised == shapes.parameters
        assert tuple(promised) == COMPONENTS
        assert sum(promised.values()) == sum(parameter.numel() for parameter in shapes.model.parameters())


def test_the_cache_takes_the_promised_bytes_per_token(family: NativeFamily, loaded: LoadedNative) -> None:
    inputs = loaded.prepare(picture(*small_sizes(family, 1)[0]), None, text_tokens=60, options=FREE)
    with torch.inference_mode():
        _, cache = loaded.prefill(inputs.tensors)
    layer = max(cache.layers, key=lambda layer: layer.keys.shape[2])  # one without a sliding window
    assert layer.keys.shape[2] == inputs.counts.prompt_tokens
    held = len(cache.layers) * (layer.keys.nbytes + layer.values.nbytes)
    assert family.kv_bytes_per_token(NANO) == held / inputs.counts.prompt_tokens
    assert family.kv_bytes_per_token(replace(NANO, dtype="bfloat16")) == held / inputs.counts.prompt_tokens / 2


# --- inputs ----------------------------------------------------------------------------------------


def test_real_inputs_have_the_planned_counts(family: NativeFamily, loaded: LoadedNative) -> None:
    geometry = family.geometry(NANO)
    for size in [*small_sizes(family, 6), (300, 200), (200, 333)]:
        planned = geometry.image_tokens(*size, options=FREE)
        inputs = loaded.prepare(picture(*size), QUESTION, text_tokens=None, options=FREE)
        counts = inputs.counts
        assert (counts.crops, counts.vision_tokens) == (planned.crops, planned.vision_tokens), size
        assert counts.special_tokens == planned.special_tokens, size
        assert counts.text_tokens == family.text_tokens(NANO, QUESTION), size
        assert counts.prompt_tokens == inputs.tensors["input_ids"].shape[1] == planned.image_tokens + counts.text_tokens


def test_as_many_tokens_receive_features_as_there_are_features(family: NativeFamily, loaded: LoadedNative) -> None:
    for size in small_sizes(family, 3):
        inputs = loaded.prepare(picture(*size), QUESTION, text_tokens=None, options=FREE)
        with torch.inference_mode():
            features = loaded.vision(inputs.tensors).pooler_output
        parts = features if isinstance(features, (list, tuple)) else [features]
        assert sum(part.shape[:-1].numel() for part in parts) == inputs.counts.vision_tokens


@pytest.mark.parametrize("text_tokens", [32, 33, 77, 200])
def test_a_prompt_of_an_exact_length_is_prepared(loaded: LoadedNative, text_tokens: int) -> None:
    inputs = loaded.prepare(picture(200, 200), None, text_tokens=text_tokens, options=FREE)
    assert inputs.counts.text_tokens == text_tokens
    assert inputs.counts.prompt_tokens == inputs.tensors["input_ids"].shape[1]


def test_a_prompt_takes_either_a_question_or_a_length(loaded: LoadedNative) -> None:
    with pytest.raises(UserError, match="exactly one"):
        loaded.prepare(picture(50, 50), "why?", text_tokens=40, options=FREE)
    with pytest.raises(UserError, match="text_tokens: 2 is too few"):
        loaded.prepare(picture(50, 50), None, text_tokens=2, options=FREE)


# --- passes ----------------------------------------------------------------------------------------


def test_prefill_gives_the_logits_of_the_models_own_forward(family: NativeFamily, loaded: LoadedNative) -> None:
    for size in small_sizes(family, 2):
        image = picture(*size)
        inputs = loaded.prepare(image, QUESTION, text_tokens=None, options=FREE)
        with torch.inference_mode():
            logits, cache = loaded.prefill(inputs.tensors)
            expected = loaded.model(**by_the_processor(loaded, image)).logits[:, -1]
        assert logits.shape == (1, loaded.model.config.get_text_config().vocab_size)
        assert cache.get_seq_length() == inputs.counts.prompt_tokens
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_the_picture_matters(family: NativeFamily, loaded: LoadedNative) -> None:
    size = small_sizes(family, 1)[0]
    seen = []
    for image in (picture(*size), Image.new("RGB", size, (250, 250, 250))):
        inputs = loaded.prepare(image, QUESTION, text_tokens=None, options=FREE)
        with torch.inference_mode():
            seen.append(loaded.prefill(inputs.tensors)[0])
    assert not torch.allclose(*seen, rtol=1e-4, atol=1e-5)


def test_greedy_tokens_are_those_of_generate(family: NativeFamily, loaded: LoadedNative) -> None:
    """With a window that has slid on, where the model has one: the prompt alone is longer than a toy's window."""
    image = picture(*small_sizes(family, 3)[-1])
    inputs = loaded.prepare(image, QUESTION, text_tokens=None, options=FREE)
    with torch.inference_mode():
        logits, cache = loaded.prefill(inputs.tensors)
        steps = [logits]
        for _ in range(11):
            steps.append(loaded.decode(steps[-1].argmax(-1, keepdim=True), cache))
        theirs = loaded.model.generate(
            **by_the_processor(loaded, image),
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    torch.testing.assert_close(torch.cat(steps), torch.cat(theirs.logits), rtol=1e-3, atol=1e-4)
    assert torch.cat(steps).argmax(-1).tolist() == theirs.sequences[0, -12:].tolist()


def test_vision_alone_gives_the_features_of_the_models_own_function(family: NativeFamily, loaded: LoadedNative) -> None:
    image = picture(*small_sizes(family, 3)[-1])
    inputs = loaded.prepare(image, QUESTION, text_tokens=None, options=FREE)
    theirs = by_the_processor(loaded, image)
    wanted = {name: theirs[name] for name in theirs if name not in ("input_ids", "attention_mask")}
    wanted = {name: value for name, value in wanted.items() if "token_type" not in name}
    with torch.inference_mode():
        ours = loaded.vision(inputs.tensors).pooler_output
        expected = loaded.model.get_image_features(**wanted, return_dict=True).pooler_output
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_marks_fire_in_their_order_and_close_every_phase(family: NativeFamily, loaded: LoadedNative) -> None:
    inputs = loaded.prepare(picture(*small_sizes(family, 2)[-1]), QUESTION, text_tokens=None, options=FREE)
    boundaries = loaded.boundaries()
    fired: list[int] = []
    handles = []
    for place, boundary in enumerate(boundaries):

        def note(*_: object, place: int = place) -> None:
            fired.append(place)

        module, before = boundary.module, boundary.when == "before"
        handles.append((module.register_forward_pre_hook if before else module.register_forward_hook)(note))
    with torch.inference_mode():
        loaded.prefill(inputs.tensors)
    for handle in handles:
        handle.remove()
    assert fired == list(range(len(boundaries)))
    assert boundaries[0] == (type(boundaries[0]))(loaded.model, "before", None)
    assert (boundaries[-1].module, boundaries[-1].when, boundaries[-1].closes) == (loaded.model, "after", "head")
    assert {boundary.closes for boundary in boundaries[1:]} == set(PREFILL_PHASES)


def test_every_weight_runs_inside_the_phase_of_its_component(family: NativeFamily, loaded: LoadedNative) -> None:
    """A module with weights of its own is called between the marks of the component that its weights count for."""
    inputs = loaded.prepare(picture(*small_sizes(family, 2)[-1]), QUESTION, text_tokens=None, options=FREE)
    order: list[tuple[str, object]] = []
    handles = []

    def called(name: str) -> Any:
        return lambda *_: order.append(("module", name))

    def marked(closes: str | None) -> Any:
        return lambda *_: order.append(("mark", closes))

    # A module's own hook goes first, so that one which starts a phase counts to it.
    for boundary in loaded.boundaries():
        register = boundary.module.register_forward_pre_hook
        if boundary.when == "after":
            register = boundary.module.register_forward_hook
        handles.append(register(marked(boundary.closes)))
    for name, module in loaded.model.named_modules():
        if any(True for _ in module.parameters(recurse=False)):
            handles.append(module.register_forward_pre_hook(called(name)))
    with torch.inference_mode():
        loaded.prefill(inputs.tensors)
    for handle in handles:
        handle.remove()
    spent: dict[str, set[str]] = {}
    waiting: list[str] = []
    for kind, value in order:
        if kind == "module":
            waiting.append(str(value))
        else:
            for name in waiting:
                spent.setdefault(str(value), set()).add(name)
            waiting = []
    for phase, component in {"vision_encoder": "vision_encoder", "llm_blocks": "llm_blocks"}.items():
        assert_belongs(loaded, spent[phase], component)
    assert all("embed" in name or name == "model" for name in spent["merge"])  # LLaVA's new-line feature


def assert_belongs(loaded: LoadedNative, names: set[str], component: str) -> None:
    """Assert that these modules hold weights of the component and of no other."""
    parts = loaded.parts
    inside = {"vision_encoder": parts.vision_encoder, "llm_blocks": parts.blocks}[component]
    assert names, component
    assert {name for name in names if not name.startswith(inside)} == set()
    if component == "vision_encoder":
        assert not {name for name in names for part in parts.projector if name.startswith(part)}


def test_the_same_seed_gives_the_same_weights(family: NativeFamily, loaded: LoadedNative) -> None:
    again, other = family.load(NANO, device="cpu"), family.load(replace(NANO, seed=1), device="cpu")
    weights: list[Mapping[str, Any]] = [model.model.state_dict() for model in (loaded, again, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])


# --- other ways of loading -------------------------------------------------------------------------


def test_a_checkpoint_is_planned_and_run_like_the_preset_that_was_saved(
    family: NativeFamily, loaded: LoadedNative, tmp_path: Path
) -> None:
    folder = write_native_checkpoint(family, tmp_path / "checkpoint")
    spec = replace(NANO, preset=None, weights=str(folder))
    assert family.geometry(spec) == family.geometry(NANO)
    read = family.load(spec, device="cpu")
    assert read.parameters == loaded.parameters
    assert set(loaded.eos_token_ids) <= set(read.eos_token_ids)
    image = picture(*small_sizes(family, 2)[-1])
    with torch.inference_mode():
        logits = []
        for model in (loaded, read):
            inputs = model.prepare(image, QUESTION, text_tokens=None, options=FREE)
            logits.append(model.prefill(inputs.tensors)[0])
    torch.testing.assert_close(logits[1], logits[0])


def test_eager_attention_and_bfloat16_give_about_the_same_logits(family: NativeFamily, loaded: LoadedNative) -> None:
    image = picture(*small_sizes(family, 2)[-1])
    found = []
    for model in (
        loaded,
        family.load(replace(NANO, attention="eager"), device="cpu"),
        family.load(replace(NANO, dtype="bfloat16"), device="cpu"),
    ):
        inputs = model.prepare(image, QUESTION, text_tokens=None, options=FREE)
        with torch.inference_mode():
            found.append(model.prefill(inputs.tensors)[0].float())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-4)
    assert torch.nn.functional.cosine_similarity(found[2], found[0]).item() > 0.9


# --- shapes alone ----------------------------------------------------------------------------------


def test_work_is_counted_from_shapes_alone(family: NativeFamily) -> None:
    """Every phase is counted, and each reads the weights that it has; the embedding's rows go with the tokens."""
    spec = replace(NANO, dtype="bfloat16")
    shapes = family.load(spec, device="meta")
    assert isinstance(shapes, LoadedNative)
    size = small_sizes(family, 2)[-1]
    inputs = shapes.prepare(picture(*size), None, text_tokens=40, options=FREE)
    with torch.inference_mode():
        work = count_pass(shapes, inputs.tensors)
    phases = {phase.phase: phase for phase in work.prefill}
    assert set(phases) == set(PREFILL_PHASES)
    for name in ("vision_encoder", "projector", "llm_blocks", "head"):
        assert phases[name].flops > 0
    matrices = sum(weight.numel() for weight in shapes.model.get_submodule(shapes.parts.blocks).parameters())
    assert phases["llm_blocks"].weight_bytes == 2 * matrices
    assert phases["llm_blocks"].flops > 2 * 0.95 * matrices * inputs.counts.prompt_tokens
    assert work.step.flops > 2 * 0.95 * matrices
