"""A key-value cache of fixed length, in the interface that transformers' attention and the Molmo port's use.

A growing cache makes a new tensor in every step, so that no step is like the last and none can be captured. Here keys
and values lie in buffers that never move, and how far they are filled is a number *on the device*, which a captured
step reads and which the step itself moves on.

transformers has a `StaticCache` too. It hands out its whole buffer during a prefill, under a mask that rules out the
flash kernel; keeps one length per layer; and rolls the buffers of layers with a window in every step, by a length that
lives on the host and so cannot be captured. This one hands a prefill its own keys and values, which is what a growing
cache does, has one length for all layers, and leaves a window to the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

#: Lengths are rounded up to it: `decode_attention` reads keys in such blocks, and cells of nearly one length share
#: what was compiled.
BLOCK_TOKENS = 64


@dataclass
class Fill:
    """How far all layers are filled: `tokens` is a number on the device, read only once `decoding` has begun."""

    tokens: Tensor
    decoding: bool = False


class FixedLayer(CacheLayerMixin):
    """Keys and values of one layer, [1, K, capacity, W] each; they are made when the first prompt shows their shape."""

    is_compileable = True
    is_sliding = False

    def __init__(self, fill: Fill, *, capacity: int, is_sliding: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fill, self.capacity, self.is_sliding = fill, capacity, is_sliding

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Make the buffers; zeros, since a masked value that is not a number would still poison the sum."""
        self.keys, self.values = (
            states.new_zeros(*states.shape[:2], self.capacity, states.shape[3]) for states in (key_states, value_states)
        )
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Lay down new keys and values; a prefill gets back its own, a step the whole buffers."""
        if self.keys is None:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        if not self.fill.decoding:
            tokens = key_states.shape[2]
            self.keys[:, :, :tokens].copy_(key_states)
            self.values[:, :, :tokens].copy_(value_states)
            return key_states, value_states
        place = self.fill.tokens.view(1)
        self.keys.index_copy_(2, place, key_states)
        self.values.index_copy_(2, place, value_states)
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Number of keys that attention will see, and the position of the first."""
        return (self.capacity if self.fill.decoding else query_length), 0

    def get_seq_length(self) -> Any:
        """Tokens held: none before a prefill; in a step a number on the device."""
        return self.fill.tokens if self.fill.decoding else 0

    def get_max_length(self) -> int:
        """Tokens that fit."""
        return self.capacity


class OneLayer:
    """A cache as one block sees it: without the block's number, by which compiled code would be made for each anew."""

    def __init__(self, layer: FixedLayer) -> None:
        self.layer = layer

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Lay down new keys and values of this layer, whichever is named."""
        return self.layer.update(key_states, value_states)


class FixedCache(Cache):
    """A cache of `capacity` tokens for all layers of a language model."""

    #: what a model that places images in space adds to its positions (`rope_deltas`)
    position_delta: Tensor | None = None

    def __init__(self, config: Any, *, capacity: int, device: torch.device | str) -> None:
        text = config.get_text_config(decoder=True)
        self.fill = Fill(torch.zeros((), dtype=torch.long, device=device))
        kinds: Sequence[str] = getattr(text, "layer_types", None) or ["full_attention"] * text.num_hidden_layers
        layers = [FixedLayer(self.fill, capacity=capacity, is_sliding="sliding" in kind) for kind in kinds]
        super().__init__(layers=[*layers])
        self.capacity, self._fixed = capacity, layers
        self.views = [OneLayer(layer) for layer in layers]

    def begin(self) -> None:
        """Take the next pass for a prefill."""
        self.fill.decoding = False

    def prefilled(self, tokens: int) -> None:
        """Say that a prompt of so many tokens has been laid down: what comes now are steps."""
        self.fill.tokens.fill_(tokens)
        self.fill.decoding = True

    def advance(self) -> None:
        """Move on by one token, on the device."""
        self.fill.tokens.add_(1)

    @property
    def bytes(self) -> int:
        """Device memory of the buffers."""
        return sum(
            int(tensor.numel() * tensor.element_size())
            for layer in self._fixed
            for tensor in (layer.keys, layer.values)
            if tensor is not None
        )


def rounded(tokens: int) -> int:
    """Round a number of tokens up to whole blocks."""
    return -(-tokens // BLOCK_TOKENS) * BLOCK_TOKENS
