"""Tiny Molmo models and checkpoints for tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from vlmeter.models.molmo1.architecture import Architecture, VisionArchitecture
from vlmeter.models.molmo1.checkpoint import published_tensors
from vlmeter.models.molmo1.modeling import MolmoForCausalLM, build_random

DATA = Path(__file__).parents[1] / "data"
GOLDEN = {"7B-D": DATA / "molmo1_golden_d", "7B-O": DATA / "molmo1_golden_o"}

TINY = Architecture(
    vocab_size=300,
    embedding_size=300,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_theta=1e4,
    layer_norm_eps=1e-5,
    qkv_bias=True,
    vision=VisionArchitecture(
        image_emb_dim=16,
        image_num_heads=2,
        image_num_key_value_heads=2,
        image_num_layers=2,
        image_head_dim=8,
        image_mlp_dim=24,
        image_feature_layers=(-1, -2),
    ),
)
TINY_EXPERTS = replace(
    TINY, num_key_value_heads=4, qkv_bias=False, attention_layer_norm=True, moe_num_experts=8, moe_top_k=3
)


def read_per_decode_step(architecture: Architecture) -> int:
    """Parameters that one decode step reads for one sequence; of the token embedding that is one row, left out."""
    counted = architecture.parameters()
    expert = 3 * architecture.hidden_size * architecture.feed_forward_size
    idle_experts = max(0, architecture.moe_num_experts - architecture.moe_top_k)
    return (
        counted.blocks - architecture.num_hidden_layers * idle_experts * expert + counted.final_norm + counted.lm_head
    )


def tiny_model(
    architecture: Architecture = TINY, *, seed: int = 0, attn_implementation: str = "sdpa"
) -> MolmoForCausalLM:
    """Build a model whose norms and biases are random as well, so that none of them goes unnoticed."""
    model = build_random(
        architecture, device="cpu", dtype=torch.float32, seed=seed, attn_implementation=attn_implementation
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.normal_(mean=float("norm" in name and "bias" not in name), std=0.1, generator=generator)
        else:
            parameter.mul_(5)  # so that attention and routing are far from uniform
    return model


def tiny_inputs(
    architecture: Architecture = TINY, *, crops: int = 2, text_tokens: int = 5, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Make inputs of the right shapes: a prompt of image tokens (half of the last crop dropped) and text."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.arange(1, 1 + crops * 144).view(1, crops, 144).clone()
    positions[0, -1, 72:] = -100
    length = int(positions.max()) + 1 + text_tokens
    return {
        "input_ids": torch.randint(0, architecture.vocab_size + 4, (1, length), generator=generator),
        "images": torch.randn(1, crops, 576, 588, generator=generator),
        "image_masks": torch.randint(-1, 2, (1, crops, 576), generator=generator).float(),
        "image_input_idx": positions,
    }


def write_checkpoint(model: MolmoForCausalLM, folder: Path, *, shards: int = 1) -> Path:
    """Write a model in the published format, into one file or into several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.architecture.to_config()))
    tensors = {name: tensor.contiguous() for name, tensor in published_tensors(model).items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        names = sorted(tensors)[shard::shards]
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
