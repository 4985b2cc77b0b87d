"""Read a Molmo checkpoint in the format in which it was published.

A checkpoint is a folder (or a repository on the hub) with `config.json` and one `model.safetensors`, or
several with `model.safetensors.index.json`. The modules here are arranged by phase and the published tensors
are not, so each published name is mapped to the piece of memory it fills: usually a whole parameter, for an
expert of MolmoE a slice of a stacked one. Tensors go from the file to the device one at a time, so that the
weights are never in memory twice. Nothing in the folder is executed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmeter.errors import UserError
from vlmeter.molmo1.architecture import Architecture

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vlmeter.molmo1.modeling import MolmoForCausalLM

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WANTED_FILES = ("*.json", "*.safetensors")
"""What is fetched from the hub: configuration, tokenizer, weights; no code."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_PUBLISHED_PREFIXES = (
    ("model.embed_tokens.", "model.transformer.wte."),
    ("model.blocks.", "model.transformer.blocks."),
    ("model.vision_backbone.projector.", "model.vision_backbone."),
    ("head.norm.", "model.transformer.ln_f."),
    ("head.lm_head.", "model.transformer.ff_out."),
)
_NAMES_LISTED = 3


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine and the architecture that its configuration describes."""

    folder: Path
    architecture: Architecture


def open_checkpoint(source: str | Path, *, revision: str | None = None) -> Checkpoint:
    """Find a checkpoint and read its configuration, without reading a weight.

    `source` is a folder or a hub id such as "allenai/Molmo-7B-D-0924" (with an optional `revision`: branch,
    tag or commit), which is downloaded into the hub's cache unless it is there; HF_HUB_OFFLINE=1 keeps off
    the network. Raises `UserError` with one sentence for everything that can be wrong with it.
    """
    folder = Path(source)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"{source}: is a file; a checkpoint is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
        if isinstance(source, Path) or not _HUB_ID.fullmatch(source):
            raise UserError(f"{source}: no such folder, and not a hub id such as allenai/Molmo-7B-D-0924 either")
        folder = _snapshot(source, revision)
    return Checkpoint(folder=folder, architecture=read_architecture(folder))


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json` of a checkpoint folder; raise `UserError` if it does not describe a Molmo."""
    path = folder / CONFIG_FILE
    return Architecture.from_config(_read_json(path), source=str(path))


def load_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    attn_implementation: str = "sdpa",
) -> MolmoForCausalLM:
    """Read the weights straight to `device`, converted to `dtype`.

    Raises `UserError` for files that are missing, truncated or not safetensors, and for tensors that are
    missing, not part of the architecture, or of another shape than it says.
    """
    from vlmeter.molmo1.modeling import empty_model

    files = _tensor_files(checkpoint.folder)
    meta = empty_model(checkpoint.architecture, device="meta", dtype=dtype, attn_implementation=attn_implementation)
    _check_names(set(published_tensors(meta)), set(files), folder=checkpoint.folder)
    model = empty_model(checkpoint.architecture, device=device, dtype=dtype, attn_implementation=attn_implementation)
    targets = published_tensors(model)
    for path in sorted(set(files.values())):
        with _opened(path) as tensors:
            for name in (name for name, file in files.items() if file == path):
                tensor = tensors.get_tensor(name)
                if tensor.shape != targets[name].shape:
                    raise UserError(
                        f"{path}: {name} has shape {list(tensor.shape)}, but {CONFIG_FILE} makes it "
                        f"{list(targets[name].shape)}"
                    )
                targets[name].copy_(tensor)
    return model


def published_tensors(model: MolmoForCausalLM) -> dict[str, Tensor]:
    """Map every published tensor name to its memory in `model`: write there to load, read there to export."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for own, published in _PUBLISHED_PREFIXES:
            if name.startswith(own):
                name = published + name.removeprefix(own)
        if name.endswith("mlp.experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            for number, expert in enumerate(parameter.data):
                gate, up = expert.chunk(2)
                tensors[f"{stem}{number}.gate_proj.weight"] = gate
                tensors[f"{stem}{number}.up_proj.weight"] = up
        elif name.endswith("mlp.experts.down_proj"):
            stem = name.removesuffix("down_proj")
            for number, expert in enumerate(parameter.data):
                tensors[f"{stem}{number}.down_proj.weight"] = expert
        elif model.config.architecture.is_mixture_of_experts:
            tensors[name] = parameter.data
        else:  # the dense models have attention and feed-forward side by side in the block
            tensors[re.sub(r"(\.blocks\.\d+)\.(?:attn|mlp)\.", r"\1.", name)] = parameter.data
    return tensors


def _snapshot(hub_id: str, revision: str | None) -> Path:
    """Return the folder of a hub repository in the local cache, downloading what is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named = hub_id if revision is None else f"{hub_id} at revision {revision}"
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(WANTED_FILES)))
    except GatedRepoError as error:
        raise UserError(
            f"{named}: gated on the hub; ask for access on its page, then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{named}: the hub has no such revision; legal are its branches, tags and commits") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{named}: not found on the hub (misspelt, private, or not a model)") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{named}: not in the local cache, and the hub is out of reach (no network, or HF_HUB_OFFLINE); "
            "download it first or give a folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{named}: the download failed: {str(error).splitlines()[0]}") from error


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Map every tensor name of a checkpoint to the file that holds it."""
    index = folder / INDEX_FILE
    if index.is_file():
        weight_map = _read_json(index).get("weight_map")
        if not isinstance(weight_map, dict):
            raise UserError(f"{index}: has no weight_map")
        return {name: folder / file for name, file in weight_map.items()}
    path = folder / WEIGHTS_FILE
    if not path.is_file():
        raise UserError(f"{path}: no such file, and no {INDEX_FILE} beside it")
    with _opened(path) as tensors:
        return dict.fromkeys(tensors.keys(), path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; what is wrong with the file becomes a `UserError`."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise UserError(f"{path}: no such file, though the checkpoint's index names it")
    try:
        with safe_open(path, framework="pt", device="cpu") as tensors:
            yield tensors
    except SafetensorError as error:
        raise UserError(f"{path}: truncated or not a safetensors file ({error}); download it again") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; a Molmo checkpoint has one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
    return content


def _check_names(expected: set[str], found: set[str], *, folder: Path) -> None:
    for names, complaint in ((expected - found, "is missing"), (found - expected, "has unknown")):
        if names:
            listed = ", ".join(sorted(names)[:_NAMES_LISTED]) + (", ..." if len(names) > _NAMES_LISTED else "")
            raise UserError(f"{folder}: the checkpoint {complaint} {len(names)} tensors: {listed}")
