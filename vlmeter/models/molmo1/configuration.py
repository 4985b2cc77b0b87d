"""`MolmoConfig`: the published `config.json` as transformers wants to see it.

transformers' caches, `generate` and `PreTrainedModel` read a `PreTrainedConfig`; the modules here read the
typed `Architecture` inside it. This class is the bridge between the two and adds nothing of its own.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

from vlmeter.models.molmo1.architecture import Architecture


class MolmoConfig(PreTrainedConfig):
    """A Molmo model of the first generation, described by the keys of the original's `config.json`."""

    model_type = "molmo"
    keys_to_ignore_at_inference = ["past_key_values", "cache"]  # noqa: RUF012 - transformers declares it so

    vocab_size: int = 152064
    embedding_size: int | None = 152064
    hidden_size: int = 3584
    intermediate_size: int | None = 37888
    num_hidden_layers: int = 28
    num_attention_heads: int = 28
    num_key_value_heads: int | None = 4
    rope_theta: float = 1e6
    layer_norm_eps: float = 1e-6
    qkv_bias: bool = True
    attention_layer_norm: bool = False
    norm_after: bool = False
    moe_num_experts: int | None = 0
    moe_top_k: int | None = 0
    additional_vocab_size: int = 128
    max_position_embeddings: int = 4096
    float32_attention: bool = True
    vision: dict[str, Any] | None = None
    layer_norm_type: str = "rms"
    use_position_ids: bool = True
    clip_qkv: float | None = None
    weight_tying: bool = False
    tie_word_embeddings: bool = False
    use_cache: bool = True

    @property
    def architecture(self) -> Architecture:
        """The typed shape that the modules are built from."""
        return Architecture.from_config(self.to_dict(), source="MolmoConfig")

    @classmethod
    def from_architecture(cls, architecture: Architecture) -> MolmoConfig:
        """Return the configuration that describes `architecture`."""
        return cls(**architecture.to_config())
