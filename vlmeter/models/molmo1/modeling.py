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

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlmeter.common.errors import UserError
from vlmeter.models.attention import without_cudnn_attention
from vlmeter.models.molmo1.architecture import Architecture
from vlmeter.models.molmo1.attention import ATTENTION
from vlmeter.models.molmo1.configuration import MolmoConfig
from vlmeter.models.molmo1.language import (
    DecoderContext,
    MolmoBlock,
    MolmoEmbedding,
    MolmoHead,
    MolmoRMSNorm,
    MolmoRotaryEmbedding,
)
from vlmeter.models.molmo1.vision import MolmoVisionBackbone


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

    #: by the name that the configuration says; a backend may put one of its own there
    attention_functions = ATTENTION

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
