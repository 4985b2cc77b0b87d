"""The shape of a Molmo model of the first generation: pure data, known before any weight exists.

Everything that a latency study has to plan (does the model fit the device? how many bytes does a decode step
read?) follows from some twenty integers, so they live here without torch. The field names are the keys of the
published `config.json` (allenai/Molmo-7B-D-0924, -7B-O-0924, -72B-0924, MolmoE-1B-0924). The original
hard-codes its vision transformer (`modeling_molmo.py`, `MolmoForCausalLM.__init__`); here it is `vision`, an
optional key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.models.molmo1 import NAME

CROP_PX = 336
PATCH_PX = 14
PATCHES_PER_SIDE = CROP_PX // PATCH_PX  # 24
PATCHES_PER_CROP = PATCHES_PER_SIDE**2  # 576
VALUES_PER_PATCH = PATCH_PX * PATCH_PX * 3  # 588
POSITIONS_PER_CROP = PATCHES_PER_CROP + 1  # 577: the class token comes first
POOLED_PER_SIDE = PATCHES_PER_SIDE // 2  # 12: the projector pools 2 x 2 patches
FEATURES_PER_CROP = POOLED_PER_SIDE**2  # 144
VISION_NORM_EPS = 1e-5

_LEGAL_LAYOUT: Mapping[str, Any] = {
    "layer_norm_type": "rms",
    "use_position_ids": True,
    "clip_qkv": None,
    "tie_word_embeddings": False,
    "weight_tying": False,
}
"""Keys that could select code paths which no published Molmo takes, and the value that all of them have."""


@dataclass(frozen=True)
class VisionArchitecture:
    """The vision transformer: CLIP ViT-L/14 at 336 px without its last block and its final norm."""

    image_emb_dim: int = 1024
    image_num_heads: int = 16
    image_num_key_value_heads: int = 16
    image_num_layers: int = 23
    image_head_dim: int = 64
    image_mlp_dim: int = 4096
    image_feature_layers: tuple[int, int] = (-2, -9)
    """Blocks whose outputs are concatenated; any behind them run for nothing, as in the original."""

    @property
    def feature_dim(self) -> int:
        """Width of what the encoder hands to the projector."""
        return self.image_emb_dim * len(self.image_feature_layers)


@dataclass(frozen=True)
class ParameterCount:
    """Parameters by component, counted from the architecture alone."""

    vision_encoder: int
    pooling: int
    projection: int
    padding_embedding: int
    token_embedding: int
    blocks: int
    final_norm: int
    lm_head: int

    @property
    def projector(self) -> int:
        """Pooling, projection and padding embedding: what runs between the vision encoder and the merge."""
        return self.pooling + self.projection + self.padding_embedding

    @property
    def llm(self) -> int:
        """Token embedding, blocks, final norm and head."""
        return self.token_embedding + self.blocks + self.final_norm + self.lm_head

    @property
    def total(self) -> int:
        """All parameters."""
        return self.vision_encoder + self.projector + self.llm


@dataclass(frozen=True)
class Architecture:
    """One Molmo model. `intermediate_size` counts up and gate: the feed-forward width is half of it."""

    vocab_size: int
    embedding_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rope_theta: float
    layer_norm_eps: float
    qkv_bias: bool = False
    attention_layer_norm: bool = False
    norm_after: bool = False
    moe_num_experts: int = 0
    moe_top_k: int = 0
    additional_vocab_size: int = 128
    max_position_embeddings: int = 4096
    float32_attention: bool = True
    """The original's vision attention runs in float32 whatever the weights are; see `modeling.py`."""
    eos_token_id: int | None = None
    vision: VisionArchitecture = field(default_factory=VisionArchitecture)

    def __post_init__(self) -> None:
        """Refuse shapes that no forward pass could have."""
        _divides("num_attention_heads", self.num_attention_heads, "hidden_size", self.hidden_size)
        _divides("num_key_value_heads", self.num_key_value_heads, "num_attention_heads", self.num_attention_heads)
        _divides("2", 2, "intermediate_size", self.intermediate_size)
        vision = self.vision
        if not all(-vision.image_num_layers <= layer < 0 for layer in vision.image_feature_layers):
            raise UserError(
                f"vision.image_feature_layers: {list(vision.image_feature_layers)} names a block that is not "
                f"there; each must lie between -{vision.image_num_layers} and -1"
            )
        if self.embedding_size < self.vocab_size:
            raise UserError(
                f"embedding_size: {self.embedding_size} is smaller than vocab_size {self.vocab_size}; "
                "it must be at least as large"
            )
        if not 0 <= self.moe_top_k <= self.moe_num_experts:
            raise UserError(
                f"moe_top_k: {self.moe_top_k} is impossible with moe_num_experts {self.moe_num_experts}; "
                "it must lie between 0 and that"
            )

    @property
    def head_dim(self) -> int:
        """Width of one attention head of the language model."""
        return self.hidden_size // self.num_attention_heads

    @property
    def kv_size(self) -> int:
        """Width of the keys (or values) of one token in one block."""
        return self.num_key_value_heads * self.head_dim

    @property
    def feed_forward_size(self) -> int:
        """Inner width of a feed-forward layer, of one expert, and of the projector's SwiGLU."""
        return self.intermediate_size // 2

    @property
    def is_mixture_of_experts(self) -> bool:
        """Whether the feed-forward layers are experts behind a router."""
        return self.moe_num_experts > 0

    @property
    def first_special_id(self) -> int:
        """Id of `<im_start>`; the special tokens have the embedding rows behind the vocabulary's."""
        return self.embedding_size

    def parameters(self) -> ParameterCount:
        """Count the parameters of every component; equal to those of the module (tests compare them)."""
        vision, hidden, inner = self.vision, self.hidden_size, self.feed_forward_size
        dim, query_dim = vision.image_emb_dim, vision.image_num_heads * vision.image_head_dim
        kv_dim = vision.image_num_key_value_heads * vision.image_head_dim

        def attention(input_dim: int) -> int:
            return _linear(input_dim, query_dim) + 2 * _linear(input_dim, kv_dim) + _linear(query_dim, dim)

        vision_block = (
            attention(dim) + _linear(dim, vision.image_mlp_dim) + _linear(vision.image_mlp_dim, dim) + 4 * dim
        )
        vision_encoder = (
            dim  # class embedding
            + POSITIONS_PER_CROP * dim
            + VALUES_PER_PATCH * dim
            + 2 * dim  # norm before the first block
            + vision.image_num_layers * vision_block
        )
        qkv_size = hidden + 2 * self.kv_size
        attention_block = hidden * qkv_size + (qkv_size if self.qkv_bias else 0) + hidden * hidden
        if self.attention_layer_norm:
            attention_block += hidden + self.kv_size
        feed_forward = 3 * hidden * inner
        if self.is_mixture_of_experts:
            feed_forward = self.moe_num_experts * (feed_forward + hidden)  # and the router's row per expert
        return ParameterCount(
            vision_encoder=vision_encoder,
            pooling=attention(vision.feature_dim),
            projection=2 * dim * inner + inner * hidden,
            padding_embedding=2 * vision.feature_dim,
            token_embedding=(self.embedding_size + self.additional_vocab_size) * hidden,
            blocks=self.num_hidden_layers * (attention_block + feed_forward + 2 * hidden),
            final_norm=hidden,
            lm_head=self.embedding_size * hidden,
        )

    def kv_cache_bytes_per_token(self, *, bytes_per_value: int) -> int:
        """Size of the keys and values that one token leaves in the cache, over all blocks."""
        return 2 * self.num_hidden_layers * self.kv_size * bytes_per_value

    def to_config(self) -> dict[str, Any]:
        """Return the keys and values of a `config.json` that describes this architecture."""
        values = dataclasses.asdict(self)
        values["vision"]["image_feature_layers"] = list(self.vision.image_feature_layers)
        return {"model_type": NAME, "architectures": ["MolmoForCausalLM"], **_LEGAL_LAYOUT, **values}

    @classmethod
    def from_config(cls, values: Mapping[str, Any], *, source: str) -> Architecture:
        """Read a published `config.json`.

        `source` names it in errors. Raise `UserError` for a model that is not a first-generation Molmo, for a
        missing key and for a layout that no published Molmo has. As in the original, a null
        `num_key_value_heads` means one per query head and a null `intermediate_size` means `mlp_ratio *
        hidden_size` (1 with experts, 4 without).
        """
        model_type = values.get("model_type")
        if model_type != NAME:
            raise UserError(f"{source}: model_type is {model_type!r}, not {NAME!r}, so this is not a Molmo checkpoint")
        for key, legal in _LEGAL_LAYOUT.items():
            if values.get(key, legal) != legal:
                raise UserError(f"{source}: {key} is {values[key]!r}; the only supported value is {legal!r}")
        fields = {f.name: f for f in dataclasses.fields(cls)}
        chosen = {name: values[name] for name in fields if values.get(name) is not None}
        if chosen.get("num_attention_heads"):
            chosen.setdefault("num_key_value_heads", chosen["num_attention_heads"])
        if chosen.get("hidden_size"):
            ratio = 1 if chosen.get("moe_num_experts") else 4
            chosen.setdefault("intermediate_size", ratio * chosen["hidden_size"])
        if chosen.get("vocab_size"):
            chosen.setdefault("embedding_size", chosen["vocab_size"])
        required = {f.name for f in fields.values() if f.default is f.default_factory is dataclasses.MISSING}
        if missing := sorted(required - chosen.keys()):
            raise UserError(f"{source}: missing {', '.join(missing)}; a Molmo config.json has them all")
        chosen["vision"] = _vision_from(chosen.get("vision", {}), source=source)
        return cls(**chosen)


def _vision_from(values: Mapping[str, Any] | VisionArchitecture, *, source: str) -> VisionArchitecture:
    if isinstance(values, VisionArchitecture):
        return values
    legal = [f.name for f in dataclasses.fields(VisionArchitecture)]
    if unknown := sorted(set(values) - set(legal)):
        raise UserError(f"{source}: unknown key vision.{unknown[0]}; legal are {', '.join(legal)}")
    chosen = dict(values)
    if "image_feature_layers" in chosen:
        chosen["image_feature_layers"] = tuple(chosen["image_feature_layers"])
    return VisionArchitecture(**chosen)


def _linear(inputs: int, outputs: int) -> int:
    """Parameters of a linear layer with bias."""
    return inputs * outputs + outputs


def _divides(name: str, divisor: int, of: str, number: int) -> None:
    if divisor < 1 or number % divisor:
        raise UserError(f"{of}: {number} is not a multiple of {name} ({divisor})")
