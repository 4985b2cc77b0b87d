"""Named Molmo architectures, for subjects with random weights.

A latency does not depend on the values of the weights, only on their shapes, so a study of Molmo-7B-D needs
no download. The four published models have their published shapes (`config.json` of allenai/Molmo-7B-D-0924,
-7B-O-0924, -72B-0924 and MolmoE-1B-0924). `nano` is no model that anybody trained: it has Molmo's image
geometry and code path with a network small enough to be measured on two processor cores within minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from vlmeter.common.errors import UserError
from vlmeter.models.molmo1.architecture import Architecture, VisionArchitecture

PRESETS: Mapping[str, Architecture] = MappingProxyType(
    {
        "nano": Architecture(
            vocab_size=512,
            embedding_size=512,
            hidden_size=64,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            rope_theta=1e6,
            layer_norm_eps=1e-6,
            qkv_bias=True,
            eos_token_id=511,
            vision=VisionArchitecture(
                image_emb_dim=16,
                image_num_heads=1,
                image_num_key_value_heads=1,
                image_num_layers=2,
                image_head_dim=16,
                image_mlp_dim=32,
                image_feature_layers=(-1, -2),
            ),
        ),
        "7b-d": Architecture(
            vocab_size=152064,
            embedding_size=152064,
            hidden_size=3584,
            intermediate_size=37888,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            rope_theta=1e6,
            layer_norm_eps=1e-6,
            qkv_bias=True,
            eos_token_id=151643,
        ),
        "7b-o": Architecture(
            vocab_size=100278,
            embedding_size=100352,
            hidden_size=4096,
            intermediate_size=22016,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=32,
            rope_theta=5e5,
            layer_norm_eps=1e-6,
            attention_layer_norm=True,
            norm_after=True,
            eos_token_id=100257,
        ),
        "e-1b": Architecture(
            vocab_size=50280,
            embedding_size=50304,
            hidden_size=2048,
            intermediate_size=2048,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=16,
            rope_theta=1e4,
            layer_norm_eps=1e-5,
            attention_layer_norm=True,
            moe_num_experts=64,
            moe_top_k=8,
            eos_token_id=50279,
        ),
        "72b": Architecture(
            vocab_size=152064,
            embedding_size=152064,
            hidden_size=8192,
            intermediate_size=59136,
            num_hidden_layers=80,
            num_attention_heads=64,
            num_key_value_heads=8,
            rope_theta=1e6,
            layer_norm_eps=1e-5,
            qkv_bias=True,
            eos_token_id=151643,
        ),
    }
)


def preset(name: str) -> Architecture:
    """Return the architecture called `name`; raise `UserError` with the legal names otherwise."""
    if name not in PRESETS:
        raise UserError(f"preset: {name!r} is unknown; legal are {', '.join(PRESETS)}")
    return PRESETS[name]
