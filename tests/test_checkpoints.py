"""A checkpoint is found, looked at and loaded; what is wrong with one is said in a sentence before a weight is read.

The hub's client reads its environment when it is imported, so each test with a hub works in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from tests.support.hub import HubStandIn
from tests.support.native import NATIVE, spec_of, write_native_checkpoint
from tests.support.studies import study_of
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.models import checkpoints, packing, pretrained
from vlmeter.models.checkpoints import checkpoint_digest, open_checkpoint
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.loaded_native import LoadedNative
from vlmeter.models.families.registry import FAMILIES, family_of, get_family
from vlmeter.models.packing import QUANTIZED_BYTES
from vlmeter.models.weights import BYTES_PER_WEIGHT, check_fits, tensor_shapes
from vlmeter.records.fingerprint import fingerprint, stale_parts
from vlmeter.study.plan import build_plan
from vlmeter.study.subject import Subject

ROOT = Path(__file__).parents[1]
FIRST, SECOND = (f"model-0000{number}-of-00002.safetensors" for number in (1, 2))


@pytest.fixture(scope="session", params=["qwen", "llava"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    name = str(request.param)
    return name, write_native_checkpoint(NATIVE[name], tmp_path_factory.mktemp("written") / name)


@pytest.fixture(scope="session")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native_checkpoint(NATIVE["llava"], tmp_path_factory.mktemp("llava") / "llava")


@pytest.fixture
def folder(llava: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(llava, tmp_path / "checkpoint"))


def load(folder: Path, family: str = "llava", **changes: Any) -> LoadedNative:
    device = changes.pop("device", "cpu")
    found = NATIVE[family].load(spec_of(preset=None, weights=str(folder), **changes), device=device)
    assert isinstance(found, LoadedNative)
    return found


# --- a folder ---------------------------------------------------------------------------------------


def test_a_sharded_checkpoint_is_the_model_that_was_written(written: tuple[str, Path]) -> None:
    name, folder = written
    read = load(folder, name)
    original = NATIVE[name].load(spec_of(), device="cpu")
    picture = Image.effect_noise((200, 150), 60).convert("RGB")
    inputs = [m.prepare(picture, None, text_tokens=40, options=ImageOptions()) for m in (read, original)]
    assert inputs[0].counts == inputs[1].counts
    with torch.inference_mode():
        first, second = (m.prefill(i.tensors)[0] for m, i in zip((read, original), inputs, strict=True))
    assert torch.equal(first, second)
    assert read.parameters == original.parameters
    assert list(read.eos_token_ids) == list(original.eos_token_ids)


def test_weights_get_the_number_format_of_the_study(folder: Path) -> None:
    assert {p.dtype for p in load(folder, dtype="bfloat16").model.parameters()} == {torch.bfloat16}


def test_shapes_are_known_without_weights(folder: Path) -> None:
    for shard in (FIRST, SECOND):
        (folder / shard).unlink()
    shapes = load(folder, device="meta")
    assert {p.device.type for p in shapes.model.parameters()} == {"meta"}
    assert shapes.parameters == NATIVE["llava"].scales["nano"].parameters


def test_a_chat_template_goes_before_the_familys_own(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}"
        " Please: {{ c.text }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} So:{% endif %}"
    )
    assert load(folder).render("why?") == "<image> Please: why? So:"


def test_the_processors_settings_are_found_for_the_geometry(folder: Path) -> None:
    settings = NATIVE["llava"].processor_config(spec_of(preset=None, weights=str(folder)))
    assert settings["patch_size"] == 14
    assert settings["image_processor"]["crop_size"] == {"height": 56, "width": 56}


# --- what can be wrong with it ----------------------------------------------------------------------


def shorten(folder: Path) -> None:
    shard = folder / SECOND
    shard.write_bytes(shard.read_bytes()[:-100])


def write_text(folder: Path) -> None:
    (folder / FIRST).write_text("<html>not found</html>")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object], *, indexed: bool) -> None:
    tensors = load_file(folder / FIRST)
    change(tensors)
    save_file(tensors, folder / FIRST, metadata={"format": "pt"})
    if indexed:
        index = json.loads((folder / checkpoints.INDEX_FILE).read_text())
        kept = {name: file for name, file in index["weight_map"].items() if file != FIRST}
        index["weight_map"] = {**kept, **dict.fromkeys(tensors, FIRST)}
        (folder / checkpoints.INDEX_FILE).write_text(json.dumps(index))


def set_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


SPOILED: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (shorten, rf"{SECOND}: truncated or not a safetensors file \(.*\); download it again"),
    "another kind of file": (write_text, rf"{FIRST}: truncated or not a safetensors file"),
    "missing shard": (lambda folder: (folder / SECOND).unlink(), rf"{SECOND}: no such file, though the .* index"),
    "shard without a tensor": (
        lambda folder: rewrite(folder, lambda tensors: tensors.popitem(), indexed=False),
        rf"{FIRST}: does not hold .*, though the checkpoint's index says so",
    ),
    "missing tensor": (
        lambda folder: rewrite(folder, lambda tensors: tensors.pop(min(tensors)), indexed=True),
        r"the checkpoint is missing 1 tensors: \S+",
    ),
    "index without a map": (
        lambda folder: (folder / checkpoints.INDEX_FILE).write_text("{}"),
        r"index\.json: has no weight_map",
    ),
    "no weights": (
        lambda folder: (folder / checkpoints.INDEX_FILE).unlink(),
        r"model\.safetensors: no such file, and no model\.safetensors\.index\.json beside it",
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json: no such file"),
    "config that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), r"config\.json: not JSON"),
    "config that is a list": (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
    "another architecture": (
        lambda folder: set_config(folder, model_type="qwen3_vl"),
        "says model_type 'qwen3_vl', and family llava reads llava; family qwen3_vl reads it",
    ),
    "an unknown architecture": (
        lambda folder: set_config(folder, model_type="spoon"),
        "'spoon', and family llava reads llava; no family of its own reads it; family generic may",
    ),
    "no processor": (
        lambda folder: [path.unlink() for path in folder.glob("*processor_config.json")],
        "has neither preprocessor_config.json nor a processor_config.json with an image_processor in it",
    ),
    "no tokenizer": (
        lambda folder: [path.unlink() for path in folder.glob("tokenizer*")],
        "its processor cannot be made",
    ),
}


@pytest.mark.parametrize("fault", list(SPOILED))
def test_what_is_wrong_with_a_folder_is_said_in_a_sentence(folder: Path, fault: str) -> None:
    spoil, message = SPOILED[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message):
        load(folder)


def test_nothing_is_loaded_of_a_checkpoint_that_is_not_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", lambda *_, **__: pytest.fail("it was loaded"))
    shorten(folder)
    with pytest.raises(UserError, match="truncated"):
        load(folder)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder, and not a hub id"):
        open_checkpoint(str(tmp_path / "nowhere"))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="is a file"):
        open_checkpoint(tmp_path / "file")


def test_headers_tell_shapes_without_reading_weights(llava: Path) -> None:
    assert tensor_shapes(llava / FIRST) == {
        name: tuple(tensor.shape) for name, tensor in load_file(llava / FIRST).items()
    }


def test_a_device_that_is_too_small_is_refused_before_loading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Little:
        available = 1 << 20

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Little)
    with pytest.raises(UserError, match=r"values in float32 need about .* of memory, and cpu has 1\.00 MiB free"):
        load(folder)


def test_a_checkpoint_that_announces_too_much_is_refused_before_its_weights_are_fetched(folder: Path) -> None:
    index = json.loads((folder / checkpoints.INDEX_FILE).read_text())
    index["metadata"] = {"total_size": 2 * 400e9}
    (folder / checkpoints.INDEX_FILE).write_text(json.dumps(index))
    set_config(folder, dtype="bfloat16")
    for shard in (FIRST, SECOND):
        (folder / shard).unlink()
    with pytest.raises(UserError, match="400,000,000,000 values in float32 need about"):
        load(folder)


def test_weights_of_another_architecture_are_not_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_config(folder, model_type="qwen3_vl")
    asked: list[bool] = []
    opened = checkpoints.open_checkpoint

    def note(*args: Any, weights: bool = True, **kwargs: Any) -> checkpoints.Checkpoint:
        asked.append(weights)
        return opened(*args, weights=weights, **kwargs)

    monkeypatch.setattr(pretrained, "open_checkpoint", note)
    with pytest.raises(UserError, match="family qwen3_vl reads it"):
        load(folder)
    assert asked == [False]


@pytest.mark.parametrize(
    ("dtype", "quantization", "fits"),
    [("float32", None, False), ("bfloat16", None, True), ("float32", "bitsandbytes-4bit", True)],
)
def test_the_estimate_knows_the_number_format(
    monkeypatch: pytest.MonkeyPatch, dtype: str, quantization: str | None, fits: bool
) -> None:
    class Some:
        available = 3 << 30

    monkeypatch.setattr(psutil, "virtual_memory", lambda: Some)

    def check() -> None:
        per_value = QUANTIZED_BYTES[quantization] if quantization else BYTES_PER_WEIGHT[dtype]
        check_fits("x", 1 << 30, how=dtype, bytes_per_value=per_value, device="cpu", spread=False)

    if fits:
        check()
    else:
        with pytest.raises(UserError, match="another dtype"):
            check()


@pytest.mark.parametrize("key", ["device_map", "quantization"])
def test_what_needs_a_package_says_which(folder: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"device_map": "auto", "quantization": "bitsandbytes-8bit"}[key]
    monkeypatch.setattr(packing, "find_spec", lambda name: None)
    with pytest.raises(Unsupported, match=rf"{key}: {value} needs accelerate( and bitsandbytes)?, which (is|are) not"):
        load(folder, **{key: value})
    monkeypatch.setattr(packing, "find_spec", lambda name: name == "accelerate" or None)
    with pytest.raises(UserError, match="needs bitsandbytes, which is not installed"):
        load(folder, quantization="bitsandbytes-4bit")


# --- code in a checkpoint ---------------------------------------------------------------------------


def code_in(folder: Path, *, where: str = "evil.Config") -> None:
    (folder / "evil.py").write_text("raise SystemExit('code of the checkpoint was run')")
    set_config(folder, auto_map={"AutoConfig": where, "AutoModelForImageTextToText": where.replace("Config", "Model")})


def test_code_in_a_checkpoint_is_not_run(folder: Path) -> None:
    code_in(folder)
    load(folder)


def test_code_of_another_repository_is_refused_even_where_code_is_trusted(folder: Path) -> None:
    code_in(folder, where="other/repository--evil.Config")
    with pytest.raises(UserError, match="auto_map names code in another repository, which no revision pins"):
        load(folder, trust_remote_code=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"family": "molmo", "weights": "acme/molmo"}, "family molmo reads checkpoints by itself"),
        ({"family": "molmo", "preset": "nano"}, "weights are random; legal only with a checkpoint"),
    ],
)
def test_trust_goes_only_where_it_means_something(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Subject(trust_remote_code=True, **changes)


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_model_that_is_spread_over_all_gpus_is_on_no_particular_device(device: str) -> None:
    with pytest.raises(ValueError, match=f"over all GPUs, but device is {device}; legal with it: auto, cuda"):
        Subject(family="internvl", weights="acme/spoon", device=device, device_map="auto")


# --- which family, which fingerprint ----------------------------------------------------------------


def test_pixtral_is_told_from_other_llavas_by_its_vision_encoder() -> None:
    assert family_of({"model_type": "llava", "vision_config": {"model_type": "pixtral"}}) == "pixtral"
    assert family_of({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}}) is None


def test_a_family_and_the_table_of_model_types_agree() -> None:
    for name in FAMILIES:
        for model_type in getattr(get_family(name), "model_types", ()):
            assert family_of({"model_type": model_type, "vision_config": {"model_type": "pixtral"}}) == name


def test_every_change_of_a_folder_changes_its_digest(folder: Path) -> None:
    seen = [checkpoint_digest(str(folder), None)]
    set_config(folder, extra=1)
    seen.append(checkpoint_digest(str(folder), None))
    shorten(folder)
    seen.append(checkpoint_digest(str(folder), None))
    rewrite(folder, lambda tensors: tensors.update(other=torch.zeros(3)), indexed=False)
    seen.append(checkpoint_digest(str(folder), None))
    assert len(set(seen)) == 4


def test_a_copy_of_a_folder_has_the_same_digest(folder: Path, llava: Path) -> None:
    assert checkpoint_digest(str(folder), None) == checkpoint_digest(str(llava), None)


def test_other_weights_under_the_same_name_make_cells_stale(folder: Path) -> None:
    cell = build_plan(study_of())[0]
    subject = Subject(family="molmo", weights=str(folder), dtype="float32")
    before = fingerprint(cell, subject)
    set_config(folder, extra=1)
    assert stale_parts(before, fingerprint(cell, subject)) == ("checkpoint",)


def test_random_weights_have_no_checkpoint() -> None:
    subject = Subject(family="molmo", preset="nano", dtype="float32")
    assert "checkpoint" not in fingerprint(build_plan(study_of())[0], subject)


# --- the hub ----------------------------------------------------------------------------------------

#: Loads a checkpoint as a session does, and tells of it or of what is wrong; then its digest.
CLIENT = """
import json, sys
from vlmeter.models.checkpoints import checkpoint_digest, open_checkpoint
from vlmeter.common.errors import UserError
wish = json.loads(sys.argv[1])
try:
    if wish["load"]:
        from tests.support.native import NATIVE, spec_of
        spec = spec_of(preset=None, weights=wish["source"], revision=wish["revision"])
        loaded = NATIVE["llava"].load(spec, device="cpu")
        print("loaded", sum(loaded.parameters.values()))
    else:
        found = open_checkpoint(wish["source"], revision=wish["revision"], weights=False)
        print("opened", found.commit, *sorted(f.name for f in found.folder.iterdir()))
except UserError as error:
    print(error)
print(checkpoint_digest(wish["source"], wish["revision"]))
"""


def client(
    source: str, *, home: Path, endpoint: str, load: bool = True, revision: str | None = None, **environment: str
) -> tuple[str, str]:
    """Open a checkpoint in a new process; returns what it said, and the digest."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    run = subprocess.run(
        [sys.executable, "-c", CLIENT, json.dumps({"source": source, "revision": revision, "load": load})],
        env={
            **kept,
            "HF_HOME": str(home),
            "HF_ENDPOINT": endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert "hf_secret" not in run.stdout + run.stderr
    said, digest = run.stdout.strip().splitlines()
    return said, digest


def test_a_hub_id_is_loaded_downloaded_once_and_works_offline(tmp_path: Path, folder: Path) -> None:
    """Configuration first, as planning does; then weights, tokenizer and processor; never code."""
    (folder / "evil.py").write_text("raise SystemExit('code of the checkpoint was run')")
    with HubStandIn({"models/acme/llava": folder}) as hub:
        where: dict[str, Any] = {"home": tmp_path / "home", "endpoint": hub.endpoint}
        commit = hub.commit("models/acme/llava")
        said, digest = client("acme/llava", **where, HF_HUB_OFFLINE="1")
        assert said.startswith("acme/llava: not in the local cache, and the hub is out of reach")
        assert digest == "None"
        said, digest = client("acme/llava", **where, load=False)
        assert said.startswith(f"opened {commit} config.json")
        assert "safetensors " not in said.replace("model.safetensors.index.json", "")
        assert digest == commit[:16]
        parameters = sum(NATIVE["llava"].scales["nano"].parameters.values())
        assert client("acme/llava", **where)[0] == f"loaded {parameters}"
        before = hub.bytes_served
        assert client("acme/llava", **where, HF_HUB_OFFLINE="1")[0] == f"loaded {parameters}"
        assert hub.bytes_served == before
        assert not [request for request in hub.requests if request.path.endswith(".py")]


def test_what_the_hub_refuses_is_said_in_a_sentence(tmp_path: Path, folder: Path) -> None:
    repositories = {"models/acme/llava": folder, "models/acme/gated": folder}
    with HubStandIn(repositories, gated=["models/acme/gated"]) as hub:
        where: dict[str, Any] = {"home": tmp_path / "home", "endpoint": hub.endpoint, "load": False}
        assert "not found on the hub" in client("acme/nothing", **where)[0]
        assert "gated on the hub" in client("acme/gated", **where, HF_TOKEN="hf_secret")[0]
        assert "no such revision" in client("acme/llava", **where, revision="v9")[0]
        commit = hub.commit("models/acme/llava")
        said, digest = client("acme/llava", **where, revision=commit)
        assert (said.split()[1], digest) == (commit, commit[:16])
    assert "the hub is out of reach" in client("acme/other", **where)[0]


def test_a_token_goes_from_the_environment_to_the_hub_and_nowhere_else(tmp_path: Path, folder: Path) -> None:
    with HubStandIn({"models/acme/llava": folder}, tokens={"models/acme/llava": "hf_secret"}) as hub:
        where: dict[str, Any] = {"home": tmp_path / "home", "endpoint": hub.endpoint, "load": False}
        assert "not found on the hub" in client("acme/llava", **where)[0]
        assert client("acme/llava", **where, HF_TOKEN="hf_secret")[0].startswith("opened")
    kept = [path for path in (tmp_path / "home").rglob("*") if path.is_file() and b"hf_secret" in path.read_bytes()]
    assert kept == []
