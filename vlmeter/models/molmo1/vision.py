"""Vision encoder, pooling and projector of Molmo, first generation."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmeter.models.molmo1.architecture import (
    FEATURES_PER_CROP,
    POOLED_PER_SIDE,
    POSITIONS_PER_CROP,
    VALUES_PER_PATCH,
    VISION_NORM_EPS,
    Architecture,
)
from vlmeter.models.molmo1.attention import ATTENTION
from vlmeter.models.molmo1.configuration import MolmoConfig


class MolmoVisionAttention(nn.Module):
    """Attention of the vision transformer and of the pooling (`MultiHeadDotProductAttention`).

    `wide`, where a backend sets it, stands in for attention in float32 of many queries: it takes queries, keys and
    values [N, H, T, W] as they are, and returns what they attend to in the same number format.
    """

    wide: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

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
        if self.in_float32 and self.wide is not None and queries.shape[1] > 1:
            narrow: Tensor = self.wo(self.wide(query, key, value).transpose(1, 2).flatten(2))
            return narrow
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
