"""The attention of the Molmo port."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


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
