"""Checkpoints that were saved packed: how is read from their configuration, recorded, and counted packed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from tests.support.checkpoints import edit
from tests.support.native import NATIVE, spec_of, write_native_checkpoint
from tests.support.tables import table_of
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.compare.baseline import run_of_table
from vlmeter.measure.count_pass import count_pass
from vlmeter.models import packing
from vlmeter.models.families.base import ImageOptions, LoadedModel
from vlmeter.models.families.registry import get_family
from vlmeter.models.packing import PACKED, Packing, is_way_of_packing, mark_packed, saved_packing
from vlmeter.study.checkpoint import as_run, check_checkpoint, missing_libraries
from vlmeter.study.subject import Subject

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "modules_to_not_convert": ["visual"]}
GPTQ = {"quant_method": "gptq", "bits": 8, "group_size": 64, "sym": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": ["visual", "lm_head"]}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "group_size": 128, "symmetric": True},
        }
    },
    "ignore": ["lm_head", "re:.*visual.*"],
}
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_skip_modules": None}
BNB4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_use_double_quant": True}


def read(found: object, **config: Any) -> Packing | None:
    return saved_packing({"quantization_config": found, **config}, source="x")


@pytest.mark.parametrize(
    ("found", "name", "bytes_per_value", "packages"),
    [
        (AWQ, "awq-4bit", 0.5 + 2.5 / 128, {"gptqmodel", "accelerate"}),
        (GPTQ, "gptq-8bit", 1 + 3 / 64, {"optimum", "gptqmodel"}),
        (FP8, "fp8", 1 + 4 / 128**2, {"accelerate"}),
        (COMPRESSED, "compressed-tensors-int4", 0.5 + 2 / 128, {"compressed_tensors"}),
        (BNB8, "bitsandbytes-8bit", 1.0, {"accelerate", "bitsandbytes"}),
        (BNB4, "bitsandbytes-4bit", 0.5 + 1 / 64 + 4 / (64 * 256), {"accelerate", "bitsandbytes"}),
        ({"quant_method": "hqq"}, "hqq", None, {"hqq"}),
        ({"quant_method": "torchao", "quant_type": {}}, "torchao", None, {"torchao"}),
    ],
)
def test_a_way_of_saving_packed_is_read(
    found: dict[str, Any], name: str, bytes_per_value: float | None, packages: set[str]
) -> None:
    packed = read(found)
    assert packed is not None
    assert packed.name == name
    assert packed.bytes_per_value == pytest.approx(bytes_per_value) if bytes_per_value else packed.uncounted
    assert set(packed.packages) == packages
    assert is_way_of_packing(name)


def test_packing_is_found_where_transformers_looks_for_it() -> None:
    assert saved_packing({}, source="x") is None
    assert saved_packing({"quantization_config": None, "text_config": None}, source="x") is None
    inner = saved_packing({"text_config": {"quantization_config": FP8}}, source="x")
    assert inner is not None
    assert inner.name == "fp8"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"quant_method": "modelopt"}, "x: saved packed by 'modelopt' .* which transformers does not read"),
        ({"bits": 4}, "has no quant_method, so nobody knows how it is packed"),
        (["awq"], "must be a mapping"),
        ({"quant_method": "gptq"}, "is not understood as one of gptq"),
        ({"quant_method": "awq", "bits": "four"}, "is not understood as one of awq"),
        ({"quant_method": "awq", "group_size": 0}, "is not understood as one of awq"),
        ({"quant_method": "fp8", "modules_to_not_convert": "visual"}, "must be a list of names"),
        ({"quant_method": "compressed-tensors", "config_groups": []}, "is not understood as one of compressed-tensors"),
    ],
)
def test_a_way_that_nobody_reads_is_refused_by_name(found: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(found)


def test_number_formats_that_differ_by_layer_are_said_not_to_be_counted() -> None:
    groups = COMPRESSED["config_groups"]
    assert isinstance(groups, dict)
    eight = {"targets": ["re:.*down_proj"], "weights": {"num_bits": 8, "type": "int"}}
    packed = read({**COMPRESSED, "config_groups": {**groups, "group_1": eight}})
    assert packed is not None
    assert packed.uncounted is not None
    assert "whose bytes vlmeter does not know" in packed.uncounted


# --- which weights ------------------------------------------------------------------------------------


def shapes(**changes: Any) -> LoadedModel:
    return get_family("qwen2_5_vl").load(spec_of(**changes), device="meta")


def packed_layers(found: dict[str, Any]) -> set[str]:
    """Names of the layers that are packed, the numbers of blocks left out."""
    model, packed = shapes().model, read(found)
    assert packed is not None
    mark_packed(model, packed)
    names = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {name for name in names if hasattr(model.get_submodule(name).weight, PACKED)}


@pytest.mark.parametrize("found", [AWQ, FP8, COMPRESSED])
def test_what_a_checkpoint_names_is_left_as_it_is(found: dict[str, Any]) -> None:
    layers = packed_layers(found)
    assert layers
    assert all(name.startswith("model.language_model.layers.") for name in layers)


@pytest.mark.parametrize("found", [GPTQ, {"quant_method": "auto-round", "bits": 4, "group_size": 128}])
def test_gptq_and_its_kin_pack_the_language_models_blocks_alone(found: dict[str, Any]) -> None:
    layers = packed_layers(found)
    assert any(name.endswith("mlp.down_proj") for name in layers)
    assert all(name.startswith("model.language_model.layers.") for name in layers)


def test_layers_that_gptq_leaves_out_are_left_out_and_other_formats_are_not_counted() -> None:
    layers = packed_layers({**GPTQ, "dynamic": {r"-:.*\.mlp\.": {}}})
    assert any(name.endswith("q_proj") for name in layers)
    assert not any(".mlp." in name for name in layers)
    packed = read({**GPTQ, "dynamic": {r"+:.*\.mlp\.": {"bits": 8}}})
    assert packed is not None
    assert packed.uncounted


def test_bitsandbytes_packs_every_linear_layer_but_the_head() -> None:
    layers = packed_layers(BNB8)
    assert any("visual" in name for name in layers)
    assert "lm_head" not in layers


# --- a checkpoint that bitsandbytes has saved -----------------------------------------------------------


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native_checkpoint(NATIVE["qwen"], tmp_path_factory.mktemp("plain") / "checkpoint")


@pytest.fixture(scope="module")
def saved(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same checkpoint, packed to eight bits and saved so, by transformers."""
    folder = Path(shutil.copytree(plain, tmp_path_factory.mktemp("saved") / "checkpoint"))
    loaded = load(plain, quantization="bitsandbytes-8bit")
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    loaded.model.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["quantization_config"]["load_in_8bit"] is True
    return folder


def load(folder: Path, *, device: str = "cpu", **changes: Any) -> LoadedModel:
    return NATIVE["qwen"].load(spec_of(preset=None, weights=str(folder), **changes), device=device)


def weight_bytes(loaded: LoadedModel) -> int:
    image = Image.effect_noise((112, 112), 64).convert("RGB")
    prompt = loaded.prepare(image, None, text_tokens=24, options=ImageOptions())
    return sum(phase.weight_bytes for phase in count_pass(loaded, prompt.tensors).prefill)


def test_a_saved_packing_counts_like_the_same_one_while_loading(plain: Path, saved: Path) -> None:
    whole, packed = (weight_bytes(load(folder, device="meta")) for folder in (plain, saved))
    assert packed == weight_bytes(load(plain, device="meta", quantization="bitsandbytes-8bit"))
    layers = [module for module in load(plain).model.modules() if isinstance(module, nn.Linear)]
    values = sum(module.weight.numel() for module in layers) - load(plain).model.lm_head.weight.numel()
    assert whole - packed == 3 * values, "float32 against a byte a value"


def test_a_saved_packing_is_loaded_as_it_was_saved(plain: Path, saved: Path) -> None:
    loaded = load(saved)
    assert loaded.parameters == load(plain).parameters
    assert "Int8Params" in {type(parameter).__name__ for parameter in loaded.model.parameters()}
    image = Image.effect_noise((112, 112), 64).convert("RGB")
    prompt = loaded.prepare(image, None, text_tokens=24, options=ImageOptions())
    with torch.inference_mode():
        assert loaded.prefill(prompt.tensors)[0].isfinite().all()


def test_a_record_says_how_the_weights_were_saved(plain: Path, saved: Path) -> None:
    subjects = [Subject(family="qwen2_5_vl", weights=str(folder), dtype="float32") for folder in (plain, saved)]
    assert [as_run(subject).quantization for subject in subjects] == [None, "bitsandbytes-8bit"]
    assert Subject.model_validate(as_run(subjects[1]).model_dump()) == as_run(subjects[1])


def test_a_checkpoint_that_is_packed_cannot_be_packed_otherwise(saved: Path) -> None:
    subject = Subject(family="qwen2_5_vl", weights=str(saved), quantization="bitsandbytes-4bit")
    with pytest.raises(
        UserError, match=r"subjects\.mine: quantization: bitsandbytes-4bit, but .* saved packed as bits"
    ):
        check_checkpoint("mine", subject)
    with pytest.raises(UserError, match="cannot be packed again"):
        load(saved, device="meta", quantization="bitsandbytes-4bit")


def test_a_way_of_saving_is_no_way_of_packing_while_loading(plain: Path) -> None:
    subject = Subject(family="qwen2_5_vl", weights=str(plain), quantization="awq-4bit")
    with pytest.raises(UserError, match=r"quantization: awq-4bit, and .* is not saved so; legal with it: bitsand"):
        check_checkpoint("mine", subject)


#: One checkpoint for each way: how its quantization_config looks, and what has to be installed for it.
WAYS: dict[str, tuple[dict[str, Any], str]] = {
    "aqlm": ({}, "aqlm and accelerate"),
    "auto-round-4bit": ({"bits": 4}, "auto-round"),
    "awq-4bit": (AWQ, "gptqmodel and accelerate"),
    "bitnet": ({}, "accelerate"),
    "bitsandbytes-4bit": (BNB4, "accelerate and bitsandbytes"),
    "bitsandbytes-8bit": (BNB8, "accelerate and bitsandbytes"),
    "compressed-tensors-int4": (COMPRESSED, "compressed-tensors"),
    "eetq-8bit": ({}, "kernels and accelerate"),
    "fbgemm_fp8": ({}, "fbgemm-gpu and accelerate"),
    "fouroversix": ({}, "fouroversix"),
    "fp8": (FP8, "accelerate"),
    "fp_quant": ({}, "qutlass"),
    "gptq-8bit": (GPTQ, "optimum and gptqmodel"),
    "higgs": ({}, "flute and accelerate"),
    "hqq": ({}, "hqq"),
    "metal": ({}, "kernels"),
    "mxfp4": ({}, "kernels and accelerate"),
    "mxfp8": ({}, "accelerate"),
    "nvfp4": ({}, "kernels"),
    "quanto": ({"weights": "int8"}, "optimum-quanto and accelerate"),
    "quark": ({}, "quark"),
    "sinq": ({}, "sinq"),
    "spqr": ({"bits": 3}, "spqr_quant and accelerate"),
    "torchao": ({"quant_type": {}}, "torchao"),
    "vptq": ({}, "vptq and accelerate"),
}


@pytest.fixture
def packed_as(plain: Path, tmp_path: Path) -> Callable[[Any], Path]:
    """A checkpoint that says of itself how it was packed."""

    def make(found: Any) -> Path:
        folder = Path(shutil.copytree(plain, tmp_path / "packed"))
        edit(folder / "config.json", {"quantization_config": found})
        return folder

    return make


def test_every_way_that_transformers_loads_is_known() -> None:
    from transformers.quantizers import auto

    known = auto.AUTO_QUANTIZATION_CONFIG_MAPPING
    methods = {name.removesuffix("_4bit").removesuffix("_8bit") for name in known} - {"gguf", "gemma"}
    assert methods == {
        found.get("quant_method", name.partition("-4")[0].partition("-8")[0]) for name, (found, _) in WAYS.items()
    }


@pytest.mark.parametrize("name", list(WAYS))
def test_each_way_is_recorded_and_the_plan_names_what_it_takes(
    packed_as: Callable[[Any], Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, packages = WAYS[name]
    folder = packed_as({"quant_method": name.partition("-4")[0].partition("-8")[0], **found})
    subject = Subject(family="qwen2_5_vl", weights=str(folder), dtype="float32")
    check_checkpoint("mine", subject)
    assert as_run(subject).quantization == name
    monkeypatch.setattr(packing, "find_spec", lambda name: None)
    (said,) = missing_libraries("mine", subject)
    assert f"saved packed as {name}, needs {packages}, which " in said
    with pytest.raises(Unsupported, match=f"saved packed as {name}, needs {packages}"):
        load(folder)


@pytest.mark.parametrize("name", list(WAYS))
def test_each_way_is_counted_packed_or_said_not_to_be(packed_as: Callable[[Any], Path], plain: Path, name: str) -> None:
    found, _ = WAYS[name]
    loaded = load(packed_as({"quant_method": name.partition("-4")[0].partition("-8")[0], **found}), device="meta")
    packed, whole = weight_bytes(loaded), weight_bytes(load(plain, device="meta"))
    said = any(f"saved packed as {name}, whose bytes vlmeter does not know" in note for note in loaded.notes)  # type: ignore[attr-defined]
    assert (packed == whole) == said
    assert packed <= whole


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4"},
            "saved packed by 'modelopt' .* does not read; legal: aqlm",
        ),
        ({"quant_method": "AWQ"}, "saved packed by 'AWQ'"),
        ({"bits": 4}, "has no quant_method"),
        ("awq", "must be a mapping"),
    ],
)
def test_a_way_that_nobody_reads_ends_the_plan_and_the_loading(
    packed_as: Callable[[Any], Path], found: Any, message: str
) -> None:
    folder = packed_as(found)
    with pytest.raises(UserError, match=rf"subjects\.mine: .*{message}"):
        check_checkpoint("mine", Subject(family="qwen2_5_vl", weights=str(folder)))
    with pytest.raises(UserError, match=message):
        load(folder, device="meta")


@pytest.mark.parametrize("name", packing.FILES_BESIDE)
def test_a_way_that_only_another_file_names_is_not_taken_for_plain(packed_as: Callable[[Any], Path], name: str) -> None:
    folder = packed_as(None)
    (folder / name).write_text("{}")
    with pytest.raises(
        UserError, match=rf"{name} says that its weights were saved packed, and config\.json has no quant"
    ):
        check_checkpoint("mine", Subject(family="qwen2_5_vl", weights=str(folder)))


@pytest.mark.parametrize(
    ("name", "kind"), [("weight", torch.int8), ("weight", torch.float8_e4m3fn), ("qweight", torch.int32)]
)
def test_packed_weights_that_nothing_calls_packed_are_not_taken_for_plain(
    packed_as: Callable[[Any], Path], name: str, kind: torch.dtype
) -> None:
    folder = packed_as(None)
    path = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(path)
    module = next(key for key in tensors if key.endswith("proj.weight")).removesuffix("weight")
    tensors[module + name] = tensors.pop(module + "weight").to(kind)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        UserError, match=rf"{name} is stored as \w+, packed, and config\.json has no quantization_config"
    ):
        load(folder)


@pytest.mark.parametrize("found", [FP8, {"quant_method": "mxfp8"}])
def test_what_a_device_cannot_run_packed_is_not_measured_under_its_name(
    packed_as: Callable[[Any], Path], found: dict[str, Any]
) -> None:
    with pytest.raises(
        Unsupported, match=rf"saved packed as {found['quant_method']}, was unpacked while loading, since cpu"
    ):
        load(packed_as(found))


def test_a_number_format_that_packing_changes_is_not_measured_under_the_studys(saved: Path) -> None:
    way = read(BNB8)
    assert way is not None
    model = load(saved).model
    packing.require_packed(model, way, spec_of(weights=str(saved), dtype="float32"), device="cpu")
    with pytest.raises(
        UserError, match=r"dtype: bfloat16, and transformers runs .* in float32 on cpu; write dtype: floa"
    ):
        packing.require_packed(model, way, spec_of(weights=str(saved), dtype="bfloat16"), device="cpu")


@pytest.fixture
def awq(plain: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(plain, tmp_path / "awq"))
    edit(folder / "config.json", {"quantization_config": AWQ})
    return folder


def test_the_library_that_is_missing_is_named_by_the_plan_and_when_loading(
    awq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "find_spec", lambda name: name != "gptqmodel" or None)
    subject = Subject(family="qwen2_5_vl", weights=str(awq))
    (said,) = missing_libraries("mine", subject)
    assert said.startswith(
        f"subjects.mine: weights: {awq}, saved packed as awq-4bit, needs gptqmodel, which is not inst"
    )
    with pytest.raises(Unsupported, match="saved packed as awq-4bit, needs gptqmodel, which is not installed"):
        load(awq)


def test_shapes_are_counted_packed_without_the_library_that_unpacks_them(plain: Path, awq: Path) -> None:
    assert weight_bytes(load(awq, device="meta")) < weight_bytes(load(plain, device="meta"))


def test_what_cannot_be_counted_is_said_in_the_notes(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "hqq"))
    edit(folder / "config.json", {"quantization_config": {"quant_method": "hqq"}})
    notes = getattr(load(folder, device="meta"), "notes", ())
    assert any("saved packed as hqq, whose bytes vlmeter does not know" in note for note in notes)


@pytest.mark.parametrize("key", ["quantization", "device_map", "attention"])
def test_other_keys_that_take_a_library_name_it_too(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"quantization": "bitsandbytes-8bit", "device_map": "auto", "attention": "flash_attention_2"}[key]
    monkeypatch.setattr(packing, "find_spec", lambda name: None)
    (said,) = missing_libraries("mine", Subject(family="internvl", weights="acme/spoon", **{key: value}))  # type: ignore[arg-type]
    assert said.startswith(f"subjects.mine: {key}: {value} needs ")


def test_a_comparison_sees_that_one_side_is_packed(tmp_path: Path) -> None:
    table = table_of(tmp_path / "records", vision={"tilings": ["1x1"]}, output=None)
    packed = table.assign(quantization="awq-4bit")
    facts = [run_of_table(found).subjects[0].facts for found in (table, packed, table.drop(columns="quantization"))]
    assert [found.get("quantization") for found in facts] == ["none", "awq-4bit", None]
