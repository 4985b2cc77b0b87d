"""Checkpoints as they are in the field: what transformers makes of them is what is said of them, or one sentence is."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.chaos import make_dummies
from tests.support.checkpoints import edit, whole
from tests.support.native import spec_of, write_native_checkpoint
from vlmeter.cli.main import app
from vlmeter.common.errors import UserError
from vlmeter.measure.subject import check_subject_counts
from vlmeter.models.checkpoints import PREPROCESSOR_FILE, PROCESSOR_FILE, open_checkpoint
from vlmeter.models.families.base import ImageOptions, ImageTokens
from vlmeter.models.families.loaded_native import LoadedNative
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.registry import family_of_checkpoint, get_family
from vlmeter.models.real_counts import check_predictions, worth_checking
from vlmeter.models.weights import check_weights
from vlmeter.study.layout import Layout
from vlmeter.study.loader import parse_study
from vlmeter.study.plan import build_plan

FREE = ImageOptions()
SIZE = (1000, 700)


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Write a family's toy once."""
    folder, known = tmp_path_factory.mktemp("field"), {}

    def write(name: str) -> Path:
        if name not in known:
            family = get_family(name)
            assert isinstance(family, NativeFamily)
            known[name] = write_native_checkpoint(family, folder / name)
        return known[name]

    return write


@pytest.fixture
def copy(written: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy that a test may change."""
    return lambda name: Path(shutil.copytree(written(name), tmp_path / name))


def predicted(folder: Path, size: tuple[int, int] = SIZE, **changes: Any) -> ImageTokens:
    family = get_family(family_of_checkpoint(open_checkpoint(folder)))
    return family.geometry(spec_of(preset=None, weights=str(folder), **changes)).image_tokens(*size, options=FREE)


def check(folder: Path, images: list[ImageTokens]) -> None:
    family = get_family(family_of_checkpoint(open_checkpoint(folder)))
    check_predictions(family, spec_of(preset=None, weights=str(folder)), images, options=FREE)


def refusal(folder: Path) -> str:
    """The sentence with which a folder is refused, by arithmetic or by its own processor."""
    with pytest.raises(UserError) as refused:
        check(folder, [predicted(folder)])
    said = str(refused.value)
    assert str(folder) in said
    assert "\n" not in said
    return said


# --- 2: which file's settings count ------------------------------------------------------------------


def nest(folder: Path, **changes: Any) -> None:
    """Save the processor as transformers 5 does, in one file, and leave the old one beside it."""
    image = json.loads((folder / PREPROCESSOR_FILE).read_text())
    for key in ("min_pixels", "max_pixels"):
        image.pop(key, None)
    edit(folder / PROCESSOR_FILE, {"image_processor": {**image, **changes}})


def test_nested_settings_win_over_the_older_file_beside_them(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2_5_vl")
    edit(folder / PREPROCESSOR_FILE, {"min_pixels": 3136, "max_pixels": 12_845_056})
    assert predicted(folder).vision_tokens == 900
    nest(folder, size={"shortest_edge": 3136, "longest_edge": 200_704})
    image = predicted(folder)
    assert image.vision_tokens == 247
    check(folder, [image])


def test_nested_settings_need_no_other_file(copy: Callable[[str], Path]) -> None:
    folder = copy("idefics3")
    nest(folder, size={"longest_edge": 728})
    (folder / PREPROCESSOR_FILE).unlink()
    image = predicted(folder)
    assert image.crops == 5
    check(folder, [image])


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [("idefics3", "image_seq_len", 64), ("internvl", "image_seq_length", 64), ("gemma3", "image_seq_length", 64)],
)
def test_the_processor_reads_nothing_out_of_its_image_processors_settings(
    copy: Callable[[str], Path], name: str, key: str, value: int
) -> None:
    folder = copy(name)
    before = predicted(folder)
    edit(folder / PREPROCESSOR_FILE, {key: value})
    assert predicted(folder) == before
    edit(folder / PROCESSOR_FILE, {key: value})
    assert predicted(folder).vision_tokens < before.vision_tokens


def test_an_image_processor_that_is_no_mapping_is_refused(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2_5_vl")
    edit(folder / PROCESSOR_FILE, {"image_processor": "Qwen2VLImageProcessor"})
    assert "image_processor in processor_config.json is 'Qwen2VLImageProcessor', not a mapping" in refusal(folder)


# --- 7, 12, 13: faults of processors and templates that were published ---------------------------------

FAULTS: dict[str, tuple[str, str, dict[str, Any] | None, str]] = {
    "LLaVA-NeXT without patch_size": (
        "llava_next",
        PROCESSOR_FILE,
        {"patch_size": None},
        "patch_size: missing in processor_config.json",
    ),
    "LLaVA-OneVision without num_image_tokens": (
        "llava_onevision",
        PROCESSOR_FILE,
        {"num_image_tokens": None},
        "num_image_tokens: missing in processor_config.json",
    ),
    "a size of pixels alone": (
        "qwen2_5_vl",
        PREPROCESSOR_FILE,
        {"min_pixels": None, "max_pixels": None, "size": {"min_pixels": 3136, "max_pixels": 200_704}},
        "size: {'min_pixels': 3136, 'max_pixels': 200704} in preprocessor_config.json has no shortest_edge",
    ),
    "a size of one limit": (
        "qwen3_vl",
        PREPROCESSOR_FILE,
        {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 65_536}},
        "in preprocessor_config.json has no longest_edge",
    ),
    "an image processor that nobody has": (
        "qwen2_5_vl",
        PREPROCESSOR_FILE,
        {"image_processor_type": "Qwen2_5_VLImageProcessor"},
        "image_processor_type 'Qwen2_5_VLImageProcessor' in preprocessor_config.json is not known to transformers; "
        "Qwen2VLImageProcessor is meant",
    ),
    "no scaling, Idefics3": ("idefics3", PREPROCESSOR_FILE, {"do_resize": False}, "do_resize: false"),
    "no scaling, Qwen": ("qwen2_5_vl", PREPROCESSOR_FILE, {"do_resize": False}, "do_resize: false"),
    "no scaling, LLaVA": ("llava_next", PREPROCESSOR_FILE, {"do_resize": False}, "do_resize: false"),
    "no scaling, Pixtral": ("pixtral", PREPROCESSOR_FILE, {"do_resize": False}, "do_resize: false"),
    "no scaling, Gemma": ("gemma3", PREPROCESSOR_FILE, {"do_resize": False}, "do_resize: false"),
    "null is not scaled either": ("pixtral", PREPROCESSOR_FILE, {"do_resize": None}, "do_resize: null"),
    "null for a number": (
        "internvl",
        PREPROCESSOR_FILE,
        {"max_patches": None},
        "max_patches: null in preprocessor_config.json, which the published code does not take for its default",
    ),
    "null for yes or no": ("smolvlm", PREPROCESSOR_FILE, {"do_image_splitting": None}, "do_image_splitting: null"),
    "null for a size": ("idefics3", PREPROCESSOR_FILE, {"max_image_size": None}, "max_image_size: null in"),
    "null for a list": ("llava_next", PREPROCESSOR_FILE, {"image_grid_pinpoints": None}, "image_grid_pinpoints: null"),
    "null in the processor's own file": ("pixtral", PROCESSOR_FILE, {"patch_size": None}, "patch_size: null in proc"),
    "an image processor that nobody has, of a shared model_type": (
        "pixtral",
        PREPROCESSOR_FILE,
        {"image_processor_type": "PixtralHFImageProcessor"},
        "is not known to transformers; PixtralImageProcessor is meant",
    ),
    "a processor that nobody has": (
        "qwen2_5_vl",
        PROCESSOR_FILE,
        {"processor_class": "Qwen2_5VLProcessor"},
        "processor_class 'Qwen2_5VLProcessor' in processor_config.json is not known to transformers; "
        "Qwen2_5_VLProcessor is meant",
    ),
    "an image processor of another model": (
        "qwen2_5_vl",
        PREPROCESSOR_FILE,
        {"image_processor_type": "SiglipImageProcessor"},
        "its Qwen2_5_VLProcessor, with SiglipImageProcessor",
    ),
    "a configuration that is none": (
        "internvl",
        "config.json",
        {"text_config": []},
        "transformers does not know its configuration, config.json (Validation error for field 'text_config': Type",
    ),
    "an image token that no prompt has": (
        "llava_next",
        "config.json",
        {"image_token_id": 7, "image_token_index": 7},
        "its config.json says that token 7 stands for an image, and its processor puts none such into a prompt",
    ),
    "patches that are not the model's, LLaVA-NeXT": (
        "llava_next",
        PROCESSOR_FILE,
        {"patch_size": 16},
        "its processor makes 1731 vision tokens, which the model of its config.json does not take",
    ),
    "patches that are not the model's, Qwen": (
        "qwen2_5_vl",
        PREPROCESSOR_FILE,
        {"patch_size": 16},
        "its processor makes 682 vision tokens, which the model of its config.json does not take",
    ),
    "pictures that are not the model's, Gemma": (
        "gemma3",
        PREPROCESSOR_FILE,
        {"size": {"height": 448, "width": 448}},
        "its processor makes 256 vision tokens, which the model of its config.json does not take",
    ),
    "tiles that are not the model's, InternVL": (
        "internvl",
        PREPROCESSOR_FILE,
        {"size": {"height": 224, "width": 224}},
        "its processor makes 1792 vision tokens, which the model of its config.json does not take",
    ),
    "a longest edge that is a number": (
        "idefics3",
        PREPROCESSOR_FILE,
        {"size": 1456},
        "size: 1456 in preprocessor_config.json is a square to the published code",
    ),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_published_fault_is_one_sentence_that_names_checkpoint_file_and_key(
    copy: Callable[[str], Path], fault: str
) -> None:
    name, file, changes, sentence = FAULTS[fault]
    folder = copy(name)
    edit(folder / file, changes or {})
    assert sentence in refusal(folder)


def test_an_image_that_is_not_cut_needs_no_scaling(copy: Callable[[str], Path]) -> None:
    folder = copy("idefics3")
    edit(folder / PREPROCESSOR_FILE, {"do_resize": False, "do_image_splitting": False})
    image = predicted(folder)
    assert image.crops == 1
    check(folder, [image])


TEXT_ALONE = {
    "joins text": ("{% for m in messages %}{{ m.role + m.content }}{% endfor %}", r"fails on an image and a question"),
    "knows text": (
        "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}",
        r"leaves no place for an image, <\|image_pad\|>",
    ),
    "is broken": ("{% for m in messages %}", "fails on an image and a question"),
}

OTHER_TEMPLATES = {
    "places for two images": (
        "{% for m in messages %}<|image_pad|><|image_pad|>{{ m.content[1].text }}{% endfor %}",
        r"and at its chat template \(chat_template\.jinja\), which has 2 places for it",
    ),
    "none of what stands around an image": (
        "{% for m in messages %}<|image_pad|>{{ m.content[1].text }}{% endfor %}",
        r"makes special_tokens 0, and family qwen2_5_vl expects 2; its chat template \(chat_template\.jinja\) is not",
    ),
}


@pytest.mark.parametrize("how", list(TEXT_ALONE))
def test_a_chat_template_for_text_alone_is_said_to_be_one(copy: Callable[[str], Path], how: str) -> None:
    folder = copy("qwen2_5_vl")
    template, sentence = TEXT_ALONE[how]
    edit(folder / "chat_template.json", {"chat_template": template})
    with pytest.raises(UserError, match=rf"its chat template \(chat_template\.json\) {sentence}"):
        check(folder, [predicted(folder)])


@pytest.mark.parametrize("how", list(OTHER_TEMPLATES))
def test_another_chat_template_is_named_beside_what_it_does(copy: Callable[[str], Path], how: str) -> None:
    folder = copy("qwen2_5_vl")
    template, sentence = OTHER_TEMPLATES[how]
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=sentence):
        check(folder, [predicted(folder)])


@pytest.mark.parametrize(("name", "keys"), [("qwen2_5_vl", ("size",)), ("qwen3_vl", ("min_pixels", "max_pixels"))])
def test_null_is_taken_for_the_default_where_the_published_code_does(
    copy: Callable[[str], Path], name: str, keys: tuple[str, ...]
) -> None:
    folder = copy(name)
    edit(folder / PREPROCESSOR_FILE, dict.fromkeys(keys))
    check(folder, [predicted(folder)])


def test_a_count_that_the_real_processor_makes_otherwise_is_refused(written: Callable[[str], Path]) -> None:
    folder = written("qwen2_5_vl")
    image = predicted(folder)
    with pytest.raises(UserError, match="of an image of 1000x700 px its own processor makes vision_tokens 900, and"):
        check(folder, [replace(image, vision_tokens=247)])


def test_a_study_of_files_that_do_not_belong_together_ends_before_a_device_is_taken(
    copy: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = copy("llava_next")
    edit(folder / PROCESSOR_FILE, {"patch_size": 16})
    study = parse_study(
        {
            "study": "two-models",
            "subjects": {"mine": {"weights": str(folder), "device": "cpu", "dtype": "float32"}},
            "experiments": {"vision_tokens": {"image_sizes": ["336x336"]}},
        },
        source="here",
    )
    layout = Layout(study.study, tmp_path)
    make_dummies(study, layout)
    with pytest.raises(
        UserError, match=r"of the picture of cell vision-\S+ of mine its processor makes \d+ vision tok"
    ):
        check_subject_counts(study, "mine", layout)


# --- 8: which file of weights counts -----------------------------------------------------------------


def test_a_whole_file_beside_a_stale_index_is_the_one_that_is_looked_at(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2_5_vl")
    values = check_weights(folder)
    whole(folder, keep_index=True)
    assert check_weights(folder) == values
    loaded = get_family("qwen2_5_vl").load(spec_of(preset=None, weights=str(folder)), device="cpu")
    assert sum(loaded.parameters.values()) == values


def test_a_file_that_the_configuration_names_goes_before_all_others(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2_5_vl")
    whole(folder, keep_index=True)
    (folder / "model.safetensors").rename(folder / "ema.safetensors")
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors: no such file"):
        check_weights(folder)
    edit(folder / "config.json", {"transformers_weights": "ema.safetensors"})
    check_weights(folder)
    edit(folder / "config.json", {"transformers_weights": "../ema.safetensors"})
    with pytest.raises(UserError, match=r"transformers_weights '\.\./ema\.safetensors' must be a safetensors file in"):
        check_weights(folder)


# --- what is no whole checkpoint ---------------------------------------------------------------------


def lora(folder: Path) -> None:
    (folder / "config.json").unlink()
    edit(folder / "adapter_config.json", {"base_model_name_or_path": "Qwen/Qwen2.5-VL-7B-Instruct"})


def gguf(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "model-Q4_K_M.gguf").touch()


def makers(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "params.json").write_text("{}")


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "LoRA": (lora, r"holds a LoRA adapter for Qwen/Qwen2\.5-VL-7B-Instruct \(adapter_config\.json\)"),
    "LoRA beside a model": (lambda folder: edit(folder / "adapter_config.json", {}), "holds a LoRA adapter"),
    "GGUF": (gguf, r"is a GGUF model, for llama\.cpp"),
    "Mistral's own format": (makers, "is in the format of the model's makers"),
    "original InternVL": (
        lambda folder: edit(folder / "config.json", {"model_type": "internvl_chat"}),
        r"ends in -hf, such as OpenGVLab/InternVL3-8B-hf",
    ),
    "original LLaVA 1.6": (
        lambda folder: edit(folder / "config.json", {"model_type": "llava_mistral"}),
        r"ends in -hf, such as llava-hf/llava-v1\.6-mistral-7b-hf",
    ),
    "original LLaVA-OneVision": (
        lambda folder: edit(folder / "config.json", {"model_type": "llava_qwen"}),
        r"ends in -hf, such as llava-hf/llava-onevision-qwen2-7b-ov-hf",
    ),
    "original LLaVA 1.5": (
        lambda folder: edit(folder / "config.json", {"model_type": "llava", "mm_vision_tower": "openai/clip"}),
        r"ends in -hf, such as llava-hf/llava-1\.5-7b-hf",
    ),
    "vision_config: null": (
        lambda folder: edit(folder / "config.json", {"vision_config": None}),
        r"vision_config in config\.json is null",
    ),
}


@pytest.mark.parametrize("fault", list(SPOILED))
@pytest.mark.parametrize("family", [None, "generic"])
def test_what_is_no_whole_checkpoint_is_said_for_what_it_is(
    copy: Callable[[str], Path], fault: str, family: str | None
) -> None:
    folder = copy("qwen2_5_vl")
    spoil, sentence = SPOILED[fault]
    spoil(folder)
    spec = spec_of(preset=None, weights=str(folder))

    def look() -> None:
        if family is None:
            check(folder, [predicted(folder)])
        else:
            get_family(family).load(spec, device="meta")

    with pytest.raises(UserError, match=sentence):
        look()


def test_pickled_weights_are_said_to_be_so(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2_5_vl")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").touch()
    with pytest.raises(UserError, match=r"pytorch_model\.bin holds pickled weights, which can run code"):
        check_weights(folder)


@pytest.mark.parametrize(("name", "kind"), [("m.gguf", "GGUF"), ("m.bin", "pickled"), ("m.safetensors", "file of w")])
def test_a_file_given_for_a_folder_is_said_for_what_it_is(tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"is a {kind}|is a file of {kind}"):
        open_checkpoint(tmp_path / name)


def test_a_vision_config_with_keys_missing_is_held_against_the_weights(copy: Callable[[str], Path]) -> None:
    folder = copy("qwen2_5_vl")
    edit(folder / "config.json", lambda config: config["vision_config"].update(depth=3))
    with pytest.raises(UserError, match=r"the checkpoint .* tensors: .*, by what its config\.json says the model is"):
        get_family("qwen2_5_vl").load(spec_of(preset=None, weights=str(folder)), device="cpu")


@pytest.mark.parametrize("part", ["text_config", "vision_config"])
def test_what_a_configuration_leaves_out_is_not_made_up_until_the_memory_is_full(
    copy: Callable[[str], Path], part: str
) -> None:
    folder = copy("llava_next")
    edit(folder / "config.json", {part: {}})
    with pytest.raises(UserError, match=r"describes a model of [\d,]{9,} values, and its weights hold [\d,]+; the two"):
        get_family("llava_next").load(spec_of(preset=None, weights=str(folder)), device="cpu")


# --- the family follows from the checkpoint ------------------------------------------------------------


def run(*arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; a refusal is code 2."""
    import contextlib
    import io

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            app(list(arguments), standalone_mode=False)
        except UserError as error:
            return 2, out.getvalue(), str(error)
    return 0, out.getvalue(), err.getvalue()


def test_the_commands_about_sizes_take_the_checkpoints_family(written: Callable[[str], Path]) -> None:
    folder = str(written("qwen2_5_vl"))
    code, out, err = run("tokens", "--weights", folder, "640x480", "--format", "json")
    assert (code, json.loads(out)[0]["vision_tokens"], err) == (0, 391, "")
    code, out, _ = run("size", "--weights", folder, "--vision-tokens", "12", "--format", "json")
    assert (code, json.loads(out)[0]["vision_tokens"]) == (0, 12)
    code, out, err = run("reachable", "--weights", folder)
    assert "1280" in out.splitlines()[-1]
    assert re.fullmatch(r"vlmeter: \d+ of 697 sizes were checked against .*; --check takes all\n", err)


COMMANDS = [("tokens", "640x480"), ("size", "--vision-tokens", "12"), ("reachable",)]


@pytest.mark.parametrize("command", COMMANDS)
def test_all_commands_about_sizes_ask_the_real_processor(copy: Callable[[str], Path], command: tuple[str, ...]) -> None:
    folder = copy("qwen2_5_vl")
    (folder / "chat_template.jinja").write_text(OTHER_TEMPLATES["none of what stands around an image"][0])
    code, out, said = run(*command, "--weights", str(folder))
    assert (code, out) == (2, "")
    assert "its own processor makes special_tokens 0, and family qwen2_5_vl expects 2" in said
    assert run(*command, "--weights", str(folder), "--no-check")[0] == 0


@given(st.lists(st.integers(1, 9000), max_size=40))
def test_as_many_sizes_are_checked_as_have_few_pixels_together(widths: list[int]) -> None:
    images = [ImageTokens(width, 1000, 1, 1, 0) for width in widths]
    chosen = worth_checking(images, budget_px=20_000_000)
    assert sum(image.width_px for image in chosen) <= 20_000
    assert len(chosen) == len({id(image) for image in chosen})
    if sum(widths) <= 20_000:
        assert chosen == images
    elif widths[0] + widths[-1] <= 20_000:
        assert chosen[0] == images[0]
        assert chosen[-1] == images[-1]


@pytest.mark.parametrize("command", [("tokens", "640x480"), ("size", "--vision-tokens", "12"), ("reachable",)])
def test_a_folder_that_is_not_there_is_refused(tmp_path: Path, command: tuple[str, ...]) -> None:
    code, _, said = run(*command, "--weights", str(tmp_path / "nowhere"))
    assert (code, "no such folder" in said) == (2, True)


@pytest.mark.parametrize("command", [("tokens", "640x480"), ("size", "--vision-tokens", "12"), ("reachable",)])
def test_a_family_that_is_not_the_checkpoints_is_refused(
    written: Callable[[str], Path], command: tuple[str, ...]
) -> None:
    code, _, said = run(*command, "--weights", str(written("qwen2_5_vl")), "--family", "molmo")
    assert (code, said.endswith("family molmo reads molmo; family qwen2_5_vl reads it")) == (2, True)


def study_with(**subject: Any) -> Any:
    given = {
        "study": "field",
        "subjects": {"mine": {"dtype": "float32", **subject}},
        "experiments": {"output_tokens": {"output_tokens": [4, 8]}},
    }
    return parse_study(given, source="field.yaml")


def test_in_a_study_the_family_may_be_left_out_where_the_checkpoint_is_at_hand(written: Callable[[str], Path]) -> None:
    study = study_with(weights=str(written("qwen2_5_vl")))
    assert study.subjects["mine"].family == "qwen2_5_vl"
    with pytest.raises(
        UserError, match=r"subjects\.mine: family is missing, and the checkpoint .* acme/spoon, is not on"
    ):
        study_with(weights="acme/spoon")
    with pytest.raises(UserError, match=r"subjects\.mine: family is missing, and does not follow .*: no such folder"):
        study_with(weights="./nowhere")
    with pytest.raises(UserError, match=r"key subjects\.mine\.family is missing"):
        study_with(preset="nano")


def test_a_plan_refuses_a_family_that_is_not_the_checkpoints(written: Callable[[str], Path]) -> None:
    study = study_with(weights=str(written("qwen2_5_vl")), family="molmo")
    with pytest.raises(UserError, match=r"subjects\.mine: .* family molmo reads molmo; family qwen2_5_vl reads it"):
        build_plan(study)


def test_a_number_format_by_another_name_is_said_to_be_meant() -> None:
    for written, meant in (("fp16", "float16"), ("bf16", "bfloat16"), ("torch.float32", "float32")):
        with pytest.raises(UserError, match=rf'"{written}" is not legal \(did you mean {meant}\?\)'):
            study_with(family="molmo", preset="nano", dtype=written)
    with pytest.raises(UserError, match=r"'bitsandbytes-8bits' is not known \(did you mean bitsandbytes-8bit\?\)"):
        study_with(family="internvl", weights="acme/spoon", quantization="bitsandbytes-8bits")


def test_what_was_loaded_knows_its_checkpoint(written: Callable[[str], Path]) -> None:
    folder = written("qwen2_5_vl")
    loaded = get_family("qwen2_5_vl").load(spec_of(preset=None, weights=str(folder)), device="meta")
    assert isinstance(loaded, LoadedNative)
    assert loaded.source == str(folder)
