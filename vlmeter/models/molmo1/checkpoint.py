"""Read a Molmo checkpoint in the format in which it was published.

A checkpoint is a folder (or a repository on the hub) with `config.json` and one `model.safetensors`, or
several with `model.safetensors.index.json`. The modules here are arranged by phase and the published tensors
are not, so each published name is mapped to the piece of memory it fills: usually a whole parameter, for an
expert of MolmoE a slice of a stacked one. Tensors go from the file to the device one at a time, so that the
weights are never in memory twice. Nothing in the folder is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmeter.common.errors import UserError
from vlmeter.models import checkpoints
from vlmeter.models.checkpoints import CONFIG_FILE, read_json
from vlmeter.models.molmo1.architecture import Architecture
from vlmeter.models.weights import tensor_files, tensor_shapes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from vlmeter.models.molmo1.modeling import MolmoForCausalLM

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


def open_checkpoint(source: str | Path, *, revision: str | None = None, weights: bool = True) -> Checkpoint:
    """Find a checkpoint and read its configuration, without reading a weight.

    `source` is a folder or a hub id such as "allenai/Molmo-7B-D-0924" (with an optional `revision`: branch,
    tag or commit), which is downloaded into the hub's cache unless it is there; HF_HUB_OFFLINE=1 keeps off
    the network. Raises `UserError` with one sentence for everything that can be wrong with it.
    """
    found = checkpoints.open_checkpoint(source, revision=revision, weights=False)
    architecture = read_architecture(found.folder)
    if weights:  # which are not fetched for a checkpoint of another kind
        found = checkpoints.open_checkpoint(source, revision=revision)
    return Checkpoint(folder=found.folder, architecture=architecture)


def read_architecture(folder: Path) -> Architecture:
    """Read `config.json` of a checkpoint folder; raise `UserError` if it does not describe a Molmo."""
    path = folder / CONFIG_FILE
    return Architecture.from_config(read_json(path), source=str(path))


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
    from vlmeter.models.molmo1.modeling import empty_model

    files = tensor_files(checkpoint.folder)
    for path in sorted(set(files.values())):
        tensor_shapes(path)
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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file; what is wrong with the file becomes a `UserError`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt", device="cpu") as tensors:
            yield tensors
    except SafetensorError as error:
        raise UserError(f"{path}: truncated or not a safetensors file ({error}); download it again") from error


def _check_names(expected: set[str], found: set[str], *, folder: Path) -> None:
    for names, complaint in ((expected - found, "is missing"), (found - expected, "has unknown")):
        if names:
            listed = ", ".join(sorted(names)[:_NAMES_LISTED]) + (", ..." if len(names) > _NAMES_LISTED else "")
            raise UserError(f"{folder}: the checkpoint {complaint} {len(names)} tensors: {listed}")
