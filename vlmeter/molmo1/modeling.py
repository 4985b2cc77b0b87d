"""Molmo, first generation, on today's transformers: the model whose time is measured.

The published remote code (`modeling_molmo.py`, `modeling_molmoe.py`; training code allenai/molmo
`olmo/model.py`) does not run on transformers 5. This is a port with the same arithmetic and another
skeleton:

- **One module per phase, each called once per forward pass**, so that a clock can be hooked to it:
  `vision_backbone.image_vit`, `vision_backbone.projector`, each of `blocks`, `head`. Between projector and
  first block lies the merge (features are *added* to the `<im_patch>` embeddings).
- **No host synchronisation**: nothing in a forward pass waits for a value on the device, so that the host can
  run ahead and the pass can be captured in a CUDA graph. Dropped features go to a slot past the end instead
  of through a boolean index, and a grouped matrix product takes the place of a loop over experts.
- transformers' `Cache`, `generate` and the choice between `eager` and `sdpa` attention.

Numerics that look odd are the original's, and kept: the vision attention and the pooling run in float32
(`float32_attention`) even where the weights are bfloat16, the norm before the first vision block too, rotary
embedding in float32, and the softmax of the router. Vision blocks behind the last feature layer are computed
though nobody reads them.

Three things differ on purpose, none in the numbers: the two embedding tables are read by two look-ups (the
original concatenates them in every pass, 1.1 GB for 7B-D), a whole prompt is attended with SDPA's causal flag
instead of an explicit bias (which would rule out the flash kernel), and rotary angles are computed for the
positions at hand, so that a sequence may grow past `max_position_embeddings`, where the original's table
ends.

Shapes: B sequences, C crops per sequence, T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmeter.errors import UserError
from vlmeter.molmo1.architecture import (
    FEATURES_PER_CROP,
    POOLED_PER_SIDE,
    POSITIONS_PER_CROP,
    VALUES_PER_PATCH,
    VISION_NORM_EPS,
    Architecture,
)
from vlmeter.molmo1.configuration import MolmoConfig
from vlmeter.sdpa import without_cudnn_attention

# -------------------------------------------------------------------------------------------------- attention


def _sdpa_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and query.shape[2] == 1:
        # The query heads that share a key head become its queries, so that no key is copied.
        batch, heads, _, width = query.shape
        packed = query.view(batch, key.shape[1], groups, width)
        return F.scaled_dot_product_attention(packed, key, value, attn_mask=mask).reshape(batch, heads, 1, width)
    if groups > 1 and mask is not None:  # no fused kernel takes both grouped heads and a mask
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
        groups = 1
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal, enable_gqa=groups > 1)


def _eager_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (x.repeat_interleave(groups, dim=1) for x in (key, value))
    scores = (query @ key.transpose(-2, -1)) * query.shape[-1] ** -0.5
    if causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1, dtype=torch.float32).to(value.dtype) @ value


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]] = {
    "sdpa": _sdpa_attention,
    "eager": _eager_attention,
}
"""name -> f(query [B, H, T, W], key, value [B, K, S, W], mask [B, 1, T, S], causal) -> [B, H, T, W]

A boolean mask is true where attention is allowed; any other is added to the scores. `causal` needs T == S."""


# ----------------------------------------------------------------------------------------------------- vision


class MolmoVisionAttention(nn.Module):
    """Attention of the vision transformer and of the pooling (`MultiHeadDotProductAttention`)."""

    def __init__(self, config: MolmoConfig, *, input_dim: int) -> None:
        super().__init__()
        self.config = config
        architecture = config.architecture
        vision = architecture.vision
        self.in_float32 = architecture.float32_attention
        self.heads, self.kv_heads = vision.image_num_heads, vision.image_num_key_value_heads
        self.head_dim = vision.image_head_dim
        self.wq = nn.Linear(input_dim, self.heads * self.head_dim)
        self.wk = nn.Linear(input_dim, self.kv_heads * self.head_dim)
        self.wv = nn.Linear(input_dim, self.kv_heads * self.head_dim)
        self.wo = nn.Linear(self.heads * self.head_dim, vision.image_emb_dim)

    def forward(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Attend from `queries` [N, Q, input_dim] to `keys` [N, K, input_dim] -> [N, Q, image_emb_dim]."""
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for states in (self.wq(queries), self.wk(keys), self.wv(keys))
        )
        dtype = query.dtype
        if self.in_float32:
            query, key, value = query.float(), key.float(), value.float()
        attended = ATTENTION[self.config._attn_implementation](query, key, value, None, False)
        mixed: Tensor = self.wo(attended.to(dtype).transpose(1, 2).flatten(2))
        return mixed


class MolmoVisionMLP(nn.Module):
    """Two linear layers with CLIP's quick GELU (`ViTMLP`)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        vision = architecture.vision
        self.w1 = nn.Linear(vision.image_emb_dim, vision.image_mlp_dim)
        self.w2 = nn.Linear(vision.image_mlp_dim, vision.image_emb_dim)

    def forward(self, states: Tensor) -> Tensor:
        """[..., image_emb_dim] -> [..., image_emb_dim]."""
        states = self.w1(states)
        mixed: Tensor = self.w2(states * torch.sigmoid(1.702 * states))
        return mixed


class MolmoVisionBlock(nn.Module):
    """One block of the vision transformer (`ResidualAttentionBlock`)."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        dim = config.architecture.vision.image_emb_dim
        self.attention = MolmoVisionAttention(config, input_dim=dim)
        self.feed_forward = MolmoVisionMLP(config.architecture)
        self.attention_norm = nn.LayerNorm(dim, eps=VISION_NORM_EPS)
        self.ffn_norm = nn.LayerNorm(dim, eps=VISION_NORM_EPS)

    def forward(self, states: Tensor) -> Tensor:
        """[N, 577, image_emb_dim] -> the same."""
        normed = self.attention_norm(states)
        states = states + self.attention(normed, normed)
        result: Tensor = states + self.feed_forward(self.ffn_norm(states))
        return result


class MolmoLayerNormFp32(nn.LayerNorm):
    """Layer norm computed in float32 whatever the dtype of its input (`LayerNormFp32`)."""

    def forward(self, states: Tensor) -> Tensor:
        """[..., dim] -> the same, in the dtype of the input."""
        normed = F.layer_norm(states.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps)
        return normed.to(states.dtype)


class MolmoVisionBlocks(nn.Module):
    """The stack of vision blocks (`BlockCollection`)."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        layers = config.architecture.vision.image_num_layers
        self.resblocks = nn.ModuleList(MolmoVisionBlock(config) for _ in range(layers))

    def forward(self, states: Tensor) -> list[Tensor]:
        """Return what every block puts out, first to last."""
        outputs = []
        for block in self.resblocks:
            states = block(states)
            outputs.append(states)
        return outputs


class MolmoVisionTransformer(nn.Module):
    """The vision encoder: CLIP's ViT, all crops in one batch (`VisionTransformer`, `encode_image`)."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        vision = config.architecture.vision
        dim = vision.image_emb_dim
        self.feature_layers = vision.image_feature_layers
        self.class_embedding = nn.Parameter(torch.empty(dim))
        self.positional_embedding = nn.Parameter(torch.empty(POSITIONS_PER_CROP, dim))
        self.patch_embedding = nn.Linear(VALUES_PER_PATCH, dim, bias=False)
        self.pre_ln = MolmoLayerNormFp32(dim, eps=VISION_NORM_EPS)
        self.transformer = MolmoVisionBlocks(config)

    def forward(self, images: Tensor) -> Tensor:
        """Encode crops [N, 576, 588] into patch features [N, 576, layers * image_emb_dim].

        A crop that holds nothing but -1 is padding of a batch and comes out as zeros.
        """
        is_crop = ((images.amin(dim=(1, 2)) != -1) | (images.amax(dim=(1, 2)) != -1))[:, None, None]
        patches = self.patch_embedding(images.to(self.patch_embedding.weight.dtype))
        class_token = self.class_embedding.expand(len(images), 1, -1)
        states = self.pre_ln(torch.cat([class_token, patches], dim=1) + self.positional_embedding)
        outputs = self.transformer(states)
        features = torch.cat([outputs[layer] for layer in self.feature_layers], dim=-1)
        return features[:, 1:] * is_crop


class MolmoProjection(nn.Module):
    """SwiGLU from pooled features to the language model's embedding space (`MLP`)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        dim, inner = architecture.vision.image_emb_dim, architecture.feed_forward_size
        self.w1 = nn.Linear(dim, inner, bias=False)
        self.w2 = nn.Linear(inner, architecture.hidden_size, bias=False)
        self.w3 = nn.Linear(dim, inner, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """[..., image_emb_dim] -> [..., D]."""
        projected: Tensor = self.w2(F.silu(self.w1(features)) * self.w3(features))
        return projected


class MolmoProjector(nn.Module):
    """Between vision encoder and language model: padding embedding, 2 x 2 attention pooling, SwiGLU.

    Every crop yields 144 features here; the ones in the overlap of two crops are dropped later, in the merge.
    """

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        vision = config.architecture.vision
        self.pad_embed = nn.Parameter(torch.empty(2, vision.feature_dim))
        self.image_pooling_2d = MolmoVisionAttention(config, input_dim=vision.feature_dim)
        self.image_projector = MolmoProjection(config.architecture)

    def forward(self, features: Tensor, image_masks: Tensor) -> Tensor:
        """Project patch features [N, 576, F] under a mask [N, 576] -> [N, 144, D].

        The mask is 1 for a patch of image, 0 for padding and less than 1 for "partly padded", also the -1
        with which the original fills up the mask (`pad_and_partial_pad`).
        """
        all_padding = image_masks == 0
        part_padding = (image_masks < 1) & ~all_padding
        features = features + self.pad_embed[0] * all_padding.to(features.dtype)[..., None]
        features = features + self.pad_embed[1] * part_padding.to(features.dtype)[..., None]
        crops, _, dim = features.shape
        windows = features.view(crops, POOLED_PER_SIDE, 2, POOLED_PER_SIDE, 2, dim).transpose(2, 3).reshape(-1, 4, dim)
        pooled = self.image_pooling_2d(windows.mean(dim=1, keepdim=True), windows)
        projected: Tensor = self.image_projector(pooled.view(crops, FEATURES_PER_CROP, -1))
        return projected


class MolmoVisionBackbone(nn.Module):
    """Vision encoder and projector; callable alone, which is how the subtraction method times vision."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__()
        self.image_vit = MolmoVisionTransformer(config)
        self.projector = MolmoProjector(config)

    def forward(self, images: Tensor, image_masks: Tensor) -> Tensor:
        """Turn crops [B, C, 576, 588] and masks [B, C, 576] into features [B, C, 144, D]."""
        features = self.image_vit(images.flatten(0, 1))
        projected: Tensor = self.projector(features, image_masks.flatten(0, 1))
        return projected.unflatten(0, images.shape[:2])


# --------------------------------------------------------------------------------------------- language model


class MolmoRMSNorm(nn.Module):
    """Root-mean-square norm in float32, scaled in the dtype of the weights (`RMSLayerNorm`)."""

    def __init__(self, size: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, states: Tensor) -> Tensor:
        """[..., size] -> the same."""
        wide = states.float()
        normed = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(states.dtype)


class MolmoRotaryEmbedding(nn.Module):
    """Angles of the rotary position embedding, in float32 and rotate-half layout (`RotaryEmbedding`)."""

    inv_freq: Tensor

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.theta, self.head_dim = architecture.rope_theta, architecture.head_dim
        self.register_buffer("inv_freq", self._inverse_frequencies(None), persistent=False)

    def _inverse_frequencies(self, device: torch.device | None) -> Tensor:
        exponents = torch.arange(0, self.head_dim, 2, dtype=torch.float32, device=device) / self.head_dim
        return 1.0 / self.theta**exponents

    def reset(self, device: torch.device) -> None:
        """Compute the buffer anew on `device`: it is no weight, so nothing fills it after a start on meta."""
        self.inv_freq = self._inverse_frequencies(device)

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine and sine [B, 1, T, head_dim] for positions [B, T]."""
        angles = position_ids[:, None, :, None].float() * self.inv_freq
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply the rotary embedding to [B, H, T, head_dim] in float32."""
    wide = states.float()
    first, second = wide.chunk(2, dim=-1)
    return (wide * cos + torch.cat([-second, first], dim=-1) * sin).to(states.dtype)


@dataclass(frozen=True)
class DecoderContext:
    """What every block needs besides the hidden states; made once per forward pass."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    causal: bool
    cache: Cache | None
    grows_by_one: bool
    """Whether this is a decode step whose keys are one more than the last step's."""


class MolmoAttention(nn.Module):
    """Attention of one block with its norm; queries, keys and values come from one fused projection."""

    def __init__(self, config: MolmoConfig, *, layer: int) -> None:
        super().__init__()
        self.config, self.layer = config, layer
        a = config.architecture
        self.head_dim, self.norm_after = a.head_dim, a.norm_after
        self.sizes = (a.hidden_size, a.kv_size, a.kv_size)
        self.attn_norm = MolmoRMSNorm(a.hidden_size, eps=a.layer_norm_eps)
        self.att_proj = nn.Linear(a.hidden_size, sum(self.sizes), bias=a.qkv_bias)
        self.attn_out = nn.Linear(a.hidden_size, a.hidden_size, bias=False)
        self.q_norm: MolmoRMSNorm | None = None
        self.k_norm: MolmoRMSNorm | None = None
        if a.attention_layer_norm:  # over the full width, before the heads are split
            self.q_norm = MolmoRMSNorm(a.hidden_size, eps=a.layer_norm_eps)
            self.k_norm = MolmoRMSNorm(a.kv_size, eps=a.layer_norm_eps)

    def forward(self, states: Tensor, context: DecoderContext) -> Tensor:
        """[B, T, D] -> [B, T, D], without the residual."""
        projected = self.att_proj(states if self.norm_after else self.attn_norm(states))
        query, key, value = projected.split(self.sizes, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key, value = (x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2) for x in (query, key, value))
        query = _rotate(query, context.cos, context.sin)
        key = _rotate(key, context.cos, context.sin)
        if context.cache is not None:
            key, value = context.cache.update(key, value, self.layer)
        if context.causal:  # a static cache hands out its whole buffer; only the prompt's part is filled
            key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        attended = ATTENTION[self.config._attn_implementation](query, key, value, context.mask, context.causal)
        mixed: Tensor = self.attn_out(attended.transpose(1, 2).flatten(2))
        return self.attn_norm(mixed) if self.norm_after else mixed


class MolmoMLP(nn.Module):
    """Feed-forward layer of one block with its norm; the rows of `ff_proj` are [up; gate]."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        a = architecture
        self.norm_after = a.norm_after
        self.ff_norm = MolmoRMSNorm(a.hidden_size, eps=a.layer_norm_eps)
        self.ff_proj = nn.Linear(a.hidden_size, a.intermediate_size, bias=False)
        self.ff_out = nn.Linear(a.feed_forward_size, a.hidden_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], without the residual."""
        up, gate = self.ff_proj(states if self.norm_after else self.ff_norm(states)).chunk(2, dim=-1)
        mixed: Tensor = self.ff_out(F.silu(gate) * up)
        return self.ff_norm(mixed) if self.norm_after else mixed


class MolmoExperts(nn.Module):
    """The experts of one block as two stacked matrices, so that one grouped product serves all of them."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        experts, hidden, inner = (
            architecture.moe_num_experts,
            architecture.hidden_size,
            architecture.feed_forward_size,
        )
        self.gate_up_proj = nn.Parameter(torch.empty(experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.empty(experts, hidden, inner))

    def forward(self, tokens: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
        """Send `tokens` [N, D] to their `experts` [N, k] and sum the answers with `weights` [N, k] -> [N, D].

        The (token, expert) pairs are sorted by expert; `ends` says where each expert's rows end. The matrices
        of an expert that no token chose are not read. In bfloat16 on CUDA the device alone knows `ends`;
        torch's stand-in for other dtypes and for the CPU reads them on the host.
        """
        count, top_k = experts.shape
        chosen, order = experts.flatten().sort()
        every_expert = torch.arange(len(self.down_proj), device=tokens.device)
        ends = torch.searchsorted(chosen, every_expert, right=True, out_int32=True)
        gate, up = F.grouped_mm(tokens[order // top_k], self.gate_up_proj.transpose(1, 2), offs=ends).chunk(2, dim=-1)
        answers = F.grouped_mm(F.silu(gate) * up, self.down_proj.transpose(1, 2), offs=ends)
        answers = answers * weights.flatten()[order][:, None]
        unsorted = torch.empty_like(answers).index_copy_(0, order, answers)
        return unsorted.view(count, top_k, -1).sum(dim=1)


class MolmoSparseMLP(nn.Module):
    """Router and experts of MolmoE (`MolmoeMlpExpert`): the top-k weights are not normalised to one."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.top_k = architecture.moe_top_k
        self.ff_norm = MolmoRMSNorm(architecture.hidden_size, eps=architecture.layer_norm_eps)
        self.gate = nn.Linear(architecture.hidden_size, architecture.moe_num_experts, bias=False)
        self.experts = MolmoExperts(architecture)

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, D], without the residual."""
        tokens = self.ff_norm(states).flatten(0, 1)
        weights, experts = self.gate(tokens).softmax(dim=-1, dtype=torch.float32).topk(self.top_k, dim=-1)
        mixed: Tensor = self.experts(tokens, experts, weights.to(tokens.dtype))
        return mixed.view_as(states)


class MolmoBlock(nn.Module):
    """One block of the language model: attention and feed-forward, each with a residual."""

    def __init__(self, config: MolmoConfig, *, layer: int) -> None:
        super().__init__()
        architecture = config.architecture
        self.attn = MolmoAttention(config, layer=layer)
        self.mlp = MolmoSparseMLP(architecture) if architecture.is_mixture_of_experts else MolmoMLP(architecture)

    def forward(self, states: Tensor, context: DecoderContext) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        states = states + self.attn(states, context)
        result: Tensor = states + self.mlp(states)
        return result


class MolmoEmbedding(nn.Module):
    """Token embedding in two tables: the vocabulary and the special tokens behind it (`Embedding`)."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(architecture.embedding_size, architecture.hidden_size))
        self.new_embedding = nn.Parameter(torch.empty(architecture.additional_vocab_size, architecture.hidden_size))

    def forward(self, input_ids: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]."""
        rows = len(self.embedding)
        is_new = input_ids >= rows
        known = F.embedding(torch.where(is_new, 0, input_ids), self.embedding)
        new = F.embedding(torch.where(is_new, input_ids - rows, 0), self.new_embedding)
        return torch.where(is_new[..., None], new, known)


class MolmoHead(nn.Module):
    """Final norm and projection to the vocabulary; it has no rows for the special tokens."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.norm = MolmoRMSNorm(architecture.hidden_size, eps=architecture.layer_norm_eps)
        self.lm_head = nn.Linear(architecture.hidden_size, architecture.embedding_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """[B, T, D] -> logits [B, T, embedding_size]."""
        logits: Tensor = self.lm_head(self.norm(states))
        return logits


def merge_features(embeddings: Tensor, features: Tensor, image_input_idx: Tensor) -> Tensor:
    """Add image features [B, C, 144, D] to the token embeddings [B, T, D] at positions [B, C, 144].

    A negative position drops the feature: it is sent to a slot past the end of the sequence. Turned around
    into "which feature does this token get?", the merge needs neither a boolean index, which would wait for
    the device to count its true entries, nor additions that race for one row.
    """
    batch, tokens, _ = embeddings.shape
    positions = image_input_idx.reshape(batch, -1).long()
    slots = torch.where(positions < 0, tokens, positions)
    numbers = torch.arange(slots.shape[1], device=slots.device).expand_as(slots)
    source = torch.full((batch, tokens + 1), -1, device=slots.device).scatter_(1, slots, numbers)[:, :tokens]
    rows = torch.arange(batch, device=slots.device)[:, None]
    arriving = features.to(embeddings.dtype).flatten(1, 2)[rows, source.clamp(min=0)]
    return embeddings + torch.where((source >= 0)[..., None], arriving, 0)


_CACHE_NAME = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
"""What transformers calls the cache: `past_key_values` until it renamed it (between 5.17 and 5.24)."""


class MolmoPreTrainedModel(PreTrainedModel):
    """What transformers wants to know about the classes below."""

    config_class = MolmoConfig
    base_model_prefix = "model"
    _no_split_modules = ["MolmoBlock", "MolmoVisionBlock"]  # noqa: RUF012 - transformers declares it so
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights alone: `build_random` and the checkpoint reader fill them."""


class MolmoModel(MolmoPreTrainedModel):
    """Vision backbone, merge and blocks: everything before the head."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        architecture = config.architecture
        self.embed_tokens = MolmoEmbedding(architecture)
        self.vision_backbone = MolmoVisionBackbone(config)
        self.rotary = MolmoRotaryEmbedding(architecture)
        self.blocks = nn.ModuleList(MolmoBlock(config, layer=i) for i in range(architecture.num_hidden_layers))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        *,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Return the hidden states [B, T, D] after the last block; see `MolmoForCausalLM.forward`."""
        embeddings = self.embed_tokens(input_ids)
        if images is not None:
            if image_masks is None or image_input_idx is None:
                raise ValueError("images come together with image_masks and image_input_idx")
            features = self.vision_backbone(images, image_masks)
            embeddings = merge_features(embeddings, features, image_input_idx)
        context = self._context(
            embeddings,
            starts_sequence=images is not None,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
        )
        states = embeddings
        with without_cudnn_attention(context.grows_by_one):
            for block in self.blocks:
                states = block(states, context)
        return states

    def _context(
        self,
        embeddings: Tensor,
        *,
        starts_sequence: bool,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        cache: Cache | None,
    ) -> DecoderContext:
        """Decide on positions and mask without looking at a value on the device.

        How much a static cache holds is known to the device only, so an image says it instead: images belong
        to the start of a sequence, hence to an empty cache (the original asserts as much). Then the prompt is
        plainly causal.
        """
        tokens, device = embeddings.shape[1], embeddings.device
        past: int | Tensor = 0 if cache is None or starts_sequence else cache.get_seq_length()
        query_positions = torch.arange(tokens, device=device) + past
        if position_ids is None:
            position_ids = query_positions[None]
        cos, sin = self.rotary(position_ids)

        key_count = tokens if cache is None else cache.get_mask_sizes(tokens, 0)[0]
        grows = cache is None or not cache.is_compileable  # else a static cache: all its slots are handed out
        mask, causal = attention_mask, False
        if attention_mask is None or attention_mask.ndim == 2:
            causal = attention_mask is None and isinstance(past, int) and past == 0 and tokens > 1
            sees_all = causal or (grows and tokens == 1)
            mask = None if sees_all else self._visible(query_positions, key_count=key_count)
            if attention_mask is not None:
                missing = max(0, key_count - attention_mask.shape[1])
                allowed = F.pad(attention_mask.bool(), (0, missing), value=True)[:, None, None, :key_count]
                mask = allowed if mask is None else mask & allowed
        return DecoderContext(
            cos=cos, sin=sin, mask=mask, causal=causal, cache=cache, grows_by_one=grows and tokens == 1
        )

    @staticmethod
    def _visible(query_positions: Tensor, *, key_count: int) -> Tensor:
        """Return the causal mask [1, 1, T, key_count]: true for keys at or before the query."""
        keys = torch.arange(key_count, device=query_positions.device)
        return (keys <= query_positions[:, None])[None, None]


class MolmoForCausalLM(MolmoPreTrainedModel, GenerationMixin):
    """Molmo with its head; `generate` works with dynamic and static caches and without one."""

    def __init__(self, config: MolmoConfig) -> None:
        super().__init__(config)
        self.model = MolmoModel(config)
        self.head = MolmoHead(config.architecture)
        self.post_init()

    @property
    def vision_backbone(self) -> MolmoVisionBackbone:
        """Vision encoder and projector."""
        return self.model.vision_backbone

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the language model."""
        return self.model.blocks

    def get_input_embeddings(self) -> nn.Module:
        """Return the token embedding."""
        return self.model.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """Return the projection to the vocabulary."""
        return self.head.lm_head

    def forward(
        self,
        input_ids: Tensor,
        images: Tensor | None = None,
        image_masks: Tensor | None = None,
        image_input_idx: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = True,
    ) -> CausalLMOutputWithPast:
        """Run one pass: embed, encode images, merge, blocks, head.

        - `input_ids` [B, T].
        - `images` [B, C, 576, 588], `image_masks` [B, C, 576] and `image_input_idx` [B, C, 144] (position of
          each feature, negative: dropped) start a sequence, so a cache given with them must be empty or reset.
        - `attention_mask` is needed only where sequences of a batch are padded: [B, S], or ready-made
          [B, 1, T, S].
        - `cache` goes by either of transformers' names for it.
        - `logits_to_keep`: n for the last n positions only, 0 for all, a tensor for chosen positions.
        - `return_dict` is accepted because `generate` says it; the output always has names.

        Returns logits [B, T or n, embedding_size] and the cache.
        """
        cache = cache if cache is not None else past_key_values
        if cache is None and (self.config.use_cache if use_cache is None else use_cache):
            cache = DynamicCache(config=self.config)
        states = self.model(
            input_ids,
            images=images,
            image_masks=image_masks,
            image_input_idx=image_input_idx,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        states = states[:, logits_to_keep if isinstance(logits_to_keep, Tensor) else kept]
        named_cache: dict[str, Any] = {_CACHE_NAME: cache}
        return CausalLMOutputWithPast(logits=self.head(states), **named_cache)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """Give images to the first step only, and drop an attention mask that masks nothing.

        `generate` invents a mask of ones, which would rule out the causal flag and with it the flash kernel.
        Looking at it waits for the device, which transformers' own models do as well; loops that are measured
        call `forward`.
        """
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 2 and bool(mask.all()):
            kwargs["attention_mask"] = None
        inputs: dict[str, Any] = super().prepare_inputs_for_generation(input_ids, **kwargs)
        if not kwargs.get("is_first_iteration", False) and kwargs.get("use_cache", True):
            for name in ("images", "image_masks", "image_input_idx"):
                inputs.pop(name, None)
        return inputs


# ----------------------------------------------------------------------------------------------------- making


def empty_model(
    architecture: Architecture,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    attn_implementation: str = "sdpa",
) -> MolmoForCausalLM:
    """Make the model on `device` in `dtype` with uninitialised weights: no weight ever exists elsewhere."""
    if attn_implementation not in ATTENTION:
        raise UserError(
            f"attn_implementation: {attn_implementation!r} is not supported; legal are {', '.join(ATTENTION)}"
        )
    config = MolmoConfig.from_architecture(architecture)
    config._attn_implementation = attn_implementation
    config.dtype = dtype
    with torch.device("meta"):
        model = MolmoForCausalLM(config)
    device = torch.device(device)
    nn.Module.to(model, dtype=dtype)
    model.eval().requires_grad_(False)
    if device.type != "meta":
        model.to_empty(device=device)
        model.model.rotary.reset(device)
    return model


def build_random(
    architecture: Architecture,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    seed: int,
    attn_implementation: str = "sdpa",
) -> MolmoForCausalLM:
    """Make a model with random weights on `device`: norms one, biases zero, the rest normal (0, 0.02).

    The same seed gives the same weights on the same kind of device.
    """
    model = empty_model(architecture, device=device, dtype=dtype, attn_implementation=attn_implementation)
    generator = torch.Generator(device=device).manual_seed(seed)
    for module in model.modules():
        is_norm = isinstance(module, (MolmoRMSNorm, nn.LayerNorm))
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias":
                parameter.zero_()
            elif is_norm:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=0.02, generator=generator)  # initializer_range of the original
    return model
