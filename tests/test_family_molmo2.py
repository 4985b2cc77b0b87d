"""Molmo2: predictions are those of transformers' own code, and the model runs as that code runs it.

Its image processor wants torchvision for resampling and for reading pixels. Here both are done in torch, so that
everything else (the choice of a tiling, the crops, what is pooled with what, the tokens) is the real code, everywhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image

from vlmeter.common.errors import Unsupported, UnsupportedSize, UserError
from vlmeter.measure.count_pass import count_pass
from vlmeter.models.families import molmo2
from vlmeter.models.families.base import COMPONENTS, PREFILL_PHASES, ImageOptions, SubjectSpec
from vlmeter.models.families.made_tokenizer import wrapped
from vlmeter.models.families.molmo2 import FAMILY, LoadedMolmo2, Molmo2Family, Molmo2Geometry
from vlmeter.models.families.random_weights import random_model

from .support.processors import FREE, kinds, random_sizes, sane_sizes

GEOMETRY = Molmo2Geometry()
NANO = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
QUESTION = "What is the man holding?"

pytest.importorskip("transformers.models.molmo2", reason="transformers knows Molmo2 from 5.20 on")


def image_processor() -> Any:
    """Transformers' image processor with torch in place of torchvision."""
    from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor

    class WithoutTorchvision(Molmo2ImageProcessor):  # type: ignore[misc, no-untyped-call]
        def process_image(self, image: Any, **_: Any) -> Any:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1)

        def resize(self, image: Any, size: Any, **_: Any) -> Any:
            assert min(size.height, size.width) > 0
            return torch.nn.functional.interpolate(image, (size.height, size.width), mode="bilinear")

        def rescale_and_normalize(self, images: Any, *_: Any) -> Any:
            return images / 127.5 - 1.0

    return WithoutTorchvision()


def processor() -> Any:
    from transformers.models.molmo2.processing_molmo2 import Molmo2Processor

    from vlmeter.models.pretrained import without_video

    tokenizer = wrapped(FAMILY.scales["nano"].tokenizer)
    return without_video(Molmo2Processor)(image_processor=image_processor(), video_processor=None, tokenizer=tokenizer)


@pytest.fixture(scope="module")
def original() -> Any:
    return processor()


def load(*, device: str = "cpu") -> LoadedMolmo2:
    config = FAMILY.scales["nano"].config
    model = random_model(config, device=device, dtype="float32", attention="sdpa", seed=0)
    loaded = Molmo2Family().loaded(model, processor())
    assert isinstance(loaded, LoadedMolmo2)
    return loaded


@pytest.fixture(scope="module")
def loaded() -> LoadedMolmo2:
    return load()


def picture(width: int = 300, height: int = 700) -> Image.Image:
    return Image.effect_noise((width, height), 80).convert("RGB")


def original_counts(original: Any, size: tuple[int, int], **settings: Any) -> tuple[int, int, int]:
    """Crops, vision tokens and special tokens by the functions of the original that know them without pixels."""
    grid, crops = original.image_processor.get_image_grid_and_crops(size[1], size[0], settings)
    text = original.replace_image_token({"image_grids": [grid]}, 0)
    ids = original.tokenizer(text, add_special_tokens=False)["input_ids"]
    vision = ids.count(original.tokenizer.convert_tokens_to_ids("<im_patch>"))
    return crops, vision, len(ids) - vision


def predicted(size: tuple[int, int], options: ImageOptions = FREE) -> tuple[int, int, int]:
    tokens = GEOMETRY.image_tokens(*size, options=options)
    return tokens.crops, tokens.vision_tokens, tokens.special_tokens


# --- geometry ----------------------------------------------------------------------------------------


def test_a_thousand_sizes_are_predicted_as_the_original_counts_them(original: Any) -> None:
    for size in random_sizes(1000, seed=8):
        assert predicted(size) == original_counts(original, size), size


def test_other_limits_are_predicted_as_the_original_counts_them(original: Any) -> None:
    for max_crops in (1, 2, 5, 24):
        for size in random_sizes(150, seed=max_crops):
            expected = original_counts(original, size, max_crops=max_crops)
            assert predicted(size, ImageOptions(max_crops=max_crops)) == expected, (max_crops, size)


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (640, 480), (112, 900), (1000, 1000), (378, 378)])
def test_pixels_are_cut_as_counted(original: Any, size: tuple[int, int]) -> None:
    inputs = original(images=Image.new("RGB", size), text="<|image|>", return_tensors="pt")
    crops, vision_tokens, special_tokens = predicted(size)
    assert inputs["pixel_values"].shape == (crops, 729, 588)
    assert inputs["image_token_pooling"].shape == (vision_tokens, 4)
    assert inputs["input_ids"].shape == (1, 1 + vision_tokens + special_tokens), "and the beginning of the sequence"


def test_the_counts_follow_a_closed_form_in_the_tiling() -> None:
    for rows, columns in GEOMETRY.tilings(options=FREE):
        size = GEOMETRY.size_for_tiling((rows, columns), options=FREE)
        assert (size.width_px, size.height_px) == (266 * columns + 112, 266 * rows + 112)
        assert size.layout == {"tiling_h": rows, "tiling_w": columns}
        assert size.vision_tokens == 196 + -(-(19 * rows + 8) // 2) * -(-(19 * columns + 8) // 2)
        assert size.crops == rows * columns + 1


def test_eleven_counts_are_reachable_with_eight_crops() -> None:
    candidates = list(GEOMETRY.candidates(options=FREE))
    counts = sorted({tokens for tokens, _ in kinds(GEOMETRY, candidates)})
    assert (len(counts), counts[0], counts[-1]) == (11, 392, 1316)
    assert kinds(GEOMETRY, sane_sizes(3000, seed=1)) == kinds(GEOMETRY, candidates)
    assert GEOMETRY.limit(options=FREE) == "max_crops 8"
    assert GEOMETRY.limit(options=ImageOptions(max_crops=24)) == "max_crops 24"


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="3x3 takes 9 crops, out of reach with max_crops 8"):
        GEOMETRY.size_for_tiling((3, 3), options=FREE)
    assert GEOMETRY.size_for_tiling((3, 3), options=ImageOptions(max_crops=9)).crops == 10
    with pytest.raises(UserError, match="force_tiling: 2x2 cannot be imposed on molmo2"):
        GEOMETRY.image_tokens(100, 100, options=ImageOptions(force_tiling=(2, 2)))
    with pytest.raises(UserError, match="max_crops: 0 is too few"):
        GEOMETRY.tilings(options=ImageOptions(max_crops=0))
    with pytest.raises(UnsupportedSize, match="at least 1 px"):
        GEOMETRY.image_tokens(0, 100, options=FREE)


def test_a_checkpoints_own_settings_are_read(original: Any) -> None:
    assert Molmo2Geometry.from_config(original.image_processor.to_dict()) == GEOMETRY
    changed = Molmo2Geometry.from_config({"use_single_crop_col_tokens": False, "max_crops": 24})
    assert changed == replace(GEOMETRY, global_column_tokens=False, max_crops=24)
    other = processor()
    other.use_single_crop_col_tokens = False
    tokens = changed.image_tokens(800, 600, options=FREE)
    assert original_counts(other, (800, 600), max_crops=24)[1:] == (tokens.vision_tokens, tokens.special_tokens)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"overlap_margins": [14, 13]}, r"overlap_margins: \[14, 13\] leave no room"),
        ({"overlap_margins": 4}, "overlap_margins: 4 .* must be two numbers"),
        ({"max_crops": 0}, "max_crops: 0 .* at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Molmo2Geometry.from_config(settings)


# --- what is missing ---------------------------------------------------------------------------------


def test_without_torchvision_the_family_is_unsupported_and_says_what_to_install() -> None:
    with (
        mock.patch.object(molmo2, "find_spec", return_value=None),
        pytest.raises(Unsupported, match=r"molmo2: its image processor .* needs torchvision, .* install the version"),
    ):
        FAMILY.load(NANO, device="meta")


def test_an_older_transformers_is_unsupported_too() -> None:
    import transformers

    class Older:
        def __getattr__(self, name: str) -> Any:
            if name == "Molmo2ForConditionalGeneration":
                raise AttributeError(name)
            return getattr(transformers, name)

    with (
        mock.patch.dict("sys.modules", {"transformers": Older()}),
        pytest.raises(Unsupported, match=r"molmo2: transformers [\d.]+ does not know it; install 5.20 or newer"),
    ):
        FAMILY.load(NANO, device="meta")


# --- the model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("preset", list(FAMILY.scales))
def test_parameters_are_known_before_loading(preset: str) -> None:
    scale = FAMILY.scales[preset]
    model = random_model(scale.config, device="meta", dtype="bfloat16", attention="sdpa", seed=0)
    promised = FAMILY.parameters(replace(NANO, preset=preset))
    assert promised == Molmo2Family().loaded(model, processor()).parameters
    assert tuple(promised) == COMPONENTS


def test_the_4b_has_as_many_parameters_as_are_published() -> None:
    assert "(4,850,869,200 parameters)" in FAMILY.presets["4b"]


def test_real_inputs_have_the_planned_counts(loaded: LoadedMolmo2) -> None:
    for size, options in {(300, 700): FREE, (900, 200): FREE, (1200, 1100): ImageOptions(max_crops=3)}.items():
        inputs = loaded.prepare(picture(*size), QUESTION, text_tokens=None, options=options)
        planned, counts = GEOMETRY.image_tokens(*size, options=options), inputs.counts
        assert (counts.crops, counts.vision_tokens) == (planned.crops, planned.vision_tokens)
        assert counts.special_tokens == planned.special_tokens
        assert counts.text_tokens == FAMILY.text_tokens(NANO, QUESTION)
        assert counts.prompt_tokens == planned.image_tokens + counts.text_tokens


def test_a_prompt_of_an_exact_length_is_prepared(loaded: LoadedMolmo2) -> None:
    for text_tokens in (24, 33, 100):
        inputs = loaded.prepare(picture(), None, text_tokens=text_tokens, options=FREE)
        assert inputs.counts.text_tokens == text_tokens


def test_prefill_and_greedy_steps_are_those_of_the_model_itself(loaded: LoadedMolmo2) -> None:
    """Image tokens attend to each other in the prefill, and new tokens to what is before them."""
    inputs = loaded.prepare(picture(), QUESTION, text_tokens=None, options=FREE)
    given = dict(loaded.processor(images=[picture()], text=[loaded.render(QUESTION)], return_tensors="pt"))
    assert given["input_ids"].tolist() == inputs.tensors["input_ids"].tolist()
    given["pixel_values"] = inputs.tensors["pixel_values"]  # noise is never twice the same
    with torch.inference_mode():
        logits, cache = loaded.prefill(inputs.tensors)
        steps = [logits]
        for _ in range(11):
            steps.append(loaded.decode(steps[-1].argmax(-1, keepdim=True), cache))
        own = loaded.model(**given).logits[:, -1]
        theirs = loaded.model.generate(
            **given,
            max_new_tokens=12,
            min_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    torch.testing.assert_close(logits, own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.cat(steps), torch.cat(theirs.logits), rtol=1e-3, atol=1e-4)
    assert torch.cat(steps).argmax(-1).tolist() == theirs.sequences[0, -12:].tolist()


def test_vision_alone_gives_the_features_of_the_models_own_function(loaded: LoadedMolmo2) -> None:
    inputs = loaded.prepare(picture(), QUESTION, text_tokens=None, options=FREE)
    own = {name: inputs.tensors[name] for name in ("pixel_values", "image_token_pooling", "image_grids")}
    with torch.inference_mode():
        features = loaded.vision(inputs.tensors).pooler_output
        expected = loaded.model.get_image_features(**own).pooler_output
    assert sum(len(part) for part in features) == inputs.counts.vision_tokens
    torch.testing.assert_close(features, expected)


def test_marks_fire_in_their_order_and_close_every_phase(loaded: LoadedMolmo2) -> None:
    inputs = loaded.prepare(picture(), QUESTION, text_tokens=None, options=FREE)
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
    assert closed == [None, "merge", "vision_encoder", "projector", "merge", "llm_blocks", "head"]


def test_the_cache_takes_the_promised_bytes_per_token(loaded: LoadedMolmo2) -> None:
    inputs = loaded.prepare(picture(), QUESTION, text_tokens=None, options=FREE)
    with torch.inference_mode():
        _, cache = loaded.prefill(inputs.tensors)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert FAMILY.kv_bytes_per_token(NANO) == held / inputs.counts.prompt_tokens


def test_work_is_counted_from_shapes_alone() -> None:
    shapes = load(device="meta")
    inputs = shapes.prepare(picture(), None, text_tokens=40, options=FREE)
    work = count_pass(shapes, inputs.tensors)
    flops = {phase.phase: phase.flops for phase in work.prefill}
    assert set(flops) == set(PREFILL_PHASES)
    assert all(flops[phase] > 0 for phase in ("vision_encoder", "projector", "llm_blocks", "head"))
