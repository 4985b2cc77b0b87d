"""Checkpoints in the published format are read, and what is wrong with one is said in a sentence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmeter.common.errors import UserError
from vlmeter.models.molmo1.checkpoint import load_model, open_checkpoint, published_tensors
from vlmeter.models.molmo1.modeling import empty_model
from vlmeter.models.molmo1.presets import presets

from .support.hub import HubStandIn
from .support.molmo import GOLDEN, TINY, TINY_EXPERTS, tiny_inputs, tiny_model, write_checkpoint

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("flavour", GOLDEN)
def test_published_names_are_exactly_those_in_the_file(flavour: str) -> None:
    checkpoint = open_checkpoint(GOLDEN[flavour])
    model = empty_model(checkpoint.architecture, device="meta", dtype=torch.float32)
    stored = load_file(GOLDEN[flavour] / "model.safetensors")
    assert {n: t.shape for n, t in published_tensors(model).items()} == {n: t.shape for n, t in stored.items()}


def test_molmoe_has_the_published_names_and_shapes() -> None:
    tensors = published_tensors(empty_model(presets()["e-1b"], device="meta", dtype=torch.float32))
    block = "model.transformer.blocks.15."
    names = {name.removeprefix(block) for name in tensors if name.startswith(block)}
    assert names == {
        "attn.att_proj.weight",
        "attn.attn_norm.weight",
        "attn.attn_out.weight",
        "attn.k_norm.weight",
        "attn.q_norm.weight",
        "mlp.ff_norm.weight",
        "mlp.gate.weight",
        *(f"mlp.experts.{i}.{name}_proj.weight" for i in range(64) for name in ("gate", "up", "down")),
    }
    assert tensors[block + "mlp.experts.63.gate_proj.weight"].shape == (1024, 2048)
    assert tensors[block + "mlp.experts.63.down_proj.weight"].shape == (2048, 1024)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("architecture", [TINY, TINY_EXPERTS], ids=["dense", "experts"])
def test_a_checkpoint_of_one_or_several_files_is_read(tmp_path: Path, architecture: object, shards: int) -> None:
    written = tiny_model(architecture)
    folder = write_checkpoint(written, tmp_path, shards=shards)
    read = load_model(open_checkpoint(folder), device="cpu", dtype=torch.float32)
    with torch.inference_mode():
        assert torch.equal(read(**tiny_inputs()).logits, written(**tiny_inputs()).logits)


def test_weights_are_converted_while_they_are_read() -> None:
    model = load_model(open_checkpoint(GOLDEN["7B-D"]), device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary.inv_freq.dtype == torch.float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_checkpoint(tiny_model(), tmp_path / "molmo", shards=2)


def _edit_shard(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    change(tensors)
    save_file(tensors, shard)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    kept = {name: file for name, file in index["weight_map"].items() if file != shard.name}
    index["weight_map"] = {**kept, **dict.fromkeys(tensors, shard.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _load(folder: Path) -> None:
    load_model(open_checkpoint(folder), device="cpu", dtype=torch.float32)


def test_a_truncated_shard_is_named(folder: Path) -> None:
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: truncated or not a safetensors file"):
        _load(folder)


def test_a_missing_shard_is_named(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match=r"model-00002-of-00002\.safetensors: no such file"):
        _load(folder)


def test_a_shard_that_lacks_a_tensor_of_the_index_is_named(folder: Path) -> None:
    shard = folder / "model-00001-of-00002.safetensors"
    tensors = load_file(shard)
    tensors.popitem()
    save_file(tensors, shard)
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors"):
        _load(folder)


def test_missing_tensors_are_named(folder: Path) -> None:
    _edit_shard(folder, lambda tensors: tensors.pop(min(tensors)))
    with pytest.raises(UserError, match=r"is missing 1 tensors: model\.transformer\.blocks\.0\.att_proj\.bias"):
        _load(folder)


def test_unknown_tensors_are_named(folder: Path) -> None:
    _edit_shard(folder, lambda tensors: tensors.update(extra=torch.zeros(1)))
    with pytest.raises(UserError, match="has unknown 1 tensors: extra"):
        _load(folder)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    _edit_shard(folder, lambda tensors: tensors.update({sorted(tensors)[0]: torch.zeros(5)}))
    with pytest.raises(UserError, match=r"att_proj\.bias has shape \[5\], but config.json makes it \[64\]"):
        _load(folder)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY.to_config()))
    with pytest.raises(UserError, match=r"model\.safetensors: no such file"):
        _load(tmp_path)


def test_a_folder_without_or_with_another_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: no such file"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(UserError, match="not JSON"):
        open_checkpoint(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(UserError, match="not a Molmo checkpoint"):
        open_checkpoint(tmp_path)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder, and not a hub id"):
        open_checkpoint(str(tmp_path / "nowhere"))
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UserError, match="is a file"):
        open_checkpoint(file)


def _open_in_a_process(source: str, *, home: Path, endpoint: str, offline: bool = False, revision: str = "") -> str:
    """Open a checkpoint in a process of its own: the hub client reads its environment only once."""
    code = (
        "import sys\n"
        "from vlmeter.common.errors import UserError\n"
        "from vlmeter.models.molmo1.checkpoint import open_checkpoint\n"
        "try:\n    opened = open_checkpoint(sys.argv[1], revision=sys.argv[2] or None)\n"
        "    print('opened', *sorted(f.name for f in opened.folder.iterdir()))\n"
        "except UserError as error:\n    print(error)\n"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "1" if offline else "0",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-c", code, source, revision],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout.strip()


def test_a_hub_id_is_downloaded_once_without_code_and_then_works_offline(tmp_path: Path, folder: Path) -> None:
    (folder / "modeling_molmo.py").write_text("raise SystemExit('remote code was run')")
    files = "opened config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors "
    files += "model.safetensors.index.json"
    with HubStandIn({"models/acme/molmo": folder}) as hub:
        where = {"home": tmp_path / "home", "endpoint": hub.endpoint}
        assert _open_in_a_process("acme/molmo", **where, offline=True).startswith("acme/molmo: not in the local cache")
        assert _open_in_a_process("acme/molmo", **where) == files
        before = hub.bytes_served
        assert _open_in_a_process("acme/molmo", **where, offline=True) == files
        assert hub.bytes_served == before


def test_what_the_hub_refuses_is_said_in_a_sentence(tmp_path: Path, folder: Path) -> None:
    repositories = {"models/acme/molmo": folder, "models/acme/gated": folder, "models/acme/broken": folder}
    with HubStandIn(repositories, gated=["models/acme/gated"]) as hub:
        where = {"home": tmp_path / "home", "endpoint": hub.endpoint}
        assert "not found on the hub" in _open_in_a_process("acme/nothing", **where)
        assert "gated on the hub" in _open_in_a_process("acme/gated", **where)
        assert "no such revision" in _open_in_a_process("acme/molmo", **where, revision="v9")
    assert "the hub is out of reach" in _open_in_a_process("acme/molmo", **where)
