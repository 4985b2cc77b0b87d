"""Attention of one new token over a cache of fixed length.

The fused kernels that PyTorch offers fit badly here. The flash kernel takes no mask, and a cache of fixed length needs
one; the memory-efficient kernel gives one block of threads to a key head, and so walks through all keys of a head on a
single multiprocessor; and transformers copies grouped keys for each of their query heads before it calls either. On a
GPU this module does what flash decoding does: the keys are cut into pieces, each piece is attended to by itself, with
all query heads that share a key head together, and a second kernel joins the pieces. Elsewhere it packs the query heads
of a group as if they were queries and calls PyTorch.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803 - a kernel's constants are written large

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU's PyTorch
    triton = None

#: Keys per step of the kernel's loop.
_BLOCK = 64
#: Pieces times key heads: about as many as a large GPU has multiprocessors.
_PIECES = 128
#: name by which transformers finds `for_transformers`
NAME = "vlmeter_fixed_cache"


def decode_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float | None = None) -> Tensor:
    """Attend from one token [1, H, 1, W] to keys and values [1, K, S, W] -> [1, H, 1, W].

    mask: true for the keys that are seen, [1, 1, 1, S]. scale: of the scores; W ** -0.5 if absent.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    if triton is not None and query.is_cuda and mask.dtype == torch.bool:
        split: Tensor = torch.ops.vlmeter.decode_attention(query, key, value, mask, scale)
        return split
    batch, heads, _, width = query.shape
    packed = query.reshape(batch, key.shape[1], heads // key.shape[1], width)
    attended = F.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=scale)
    return attended.reshape(batch, heads, 1, width)


def for_transformers(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Attend as transformers' "sdpa" does, but for single tokens under a mask, which go to `decode_attention`."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if query.shape[2] == 1 and query.shape[0] == 1 and attention_mask is not None and attention_mask.shape[1] == 1:
        attended = decode_attention(query, key, value, attention_mask, kwargs.get("scaling"))
        return attended.transpose(1, 2), None
    found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return found


def register() -> None:
    """Make the attention known to transformers under `NAME`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

    AttentionInterface.register(NAME, for_transformers)
    AttentionMaskInterface.register(NAME, sdpa_mask)


if triton is not None:

    @triton.jit
    def _attend_to_pieces(
        query,
        key,
        value,
        mask,
        sums,
        tops,
        weights,
        keys,
        key_head_stride,
        key_stride,
        value_head_stride,
        value_stride,
        SCALE: tl.constexpr,
        GROUP: tl.constexpr,
        GROUP_PADDED: tl.constexpr,
        WIDTH: tl.constexpr,
        WIDTH_PADDED: tl.constexpr,
        PIECE: tl.constexpr,
        PIECES: tl.constexpr,
        BLOCK: tl.constexpr,
    ):
        """One key head and one piece of the keys: unnormalised sums, the highest score, the sum of weights."""
        head, piece = tl.program_id(0), tl.program_id(1)
        g, w = tl.arange(0, GROUP_PADDED), tl.arange(0, WIDTH_PADDED)
        real_g, real_w = g < GROUP, w < WIDTH
        rows = head * GROUP + g
        q = tl.load(query + rows[:, None] * WIDTH + w[None, :], mask=real_g[:, None] & real_w[None, :], other=0.0)
        top = tl.full([GROUP_PADDED], -1e30, tl.float32)
        total = tl.zeros([GROUP_PADDED], tl.float32)
        summed = tl.zeros([GROUP_PADDED, WIDTH_PADDED], tl.float32)
        for begin in range(0, PIECE, BLOCK):
            s = piece * PIECE + begin + tl.arange(0, BLOCK)
            within = s < keys
            seen = tl.load(mask + s, mask=within, other=0) != 0
            places = (within[:, None]) & (real_w[None, :])
            k = tl.load(key + head * key_head_stride + s[:, None] * key_stride + w[None, :], mask=places, other=0.0)
            scores = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE
            scores = tl.where(seen[None, :], scores, -1e30)
            higher = tl.maximum(top, tl.max(scores, 1))
            shares = tl.where(seen[None, :], tl.exp(scores - higher[:, None]), 0.0)
            fade = tl.exp(top - higher)
            total = total * fade + tl.sum(shares, 1)
            v = tl.load(
                value + head * value_head_stride + s[:, None] * value_stride + w[None, :], mask=places, other=0.0
            )
            summed = summed * fade[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
            top = higher
        slots = rows * PIECES + piece
        tl.store(tops + slots, top, mask=real_g)
        tl.store(weights + slots, total, mask=real_g)
        tl.store(sums + slots[:, None] * WIDTH + w[None, :], summed, mask=real_g[:, None] & real_w[None, :])

    @triton.jit
    def _join_pieces(
        sums,
        tops,
        weights,
        output,
        WIDTH: tl.constexpr,
        WIDTH_PADDED: tl.constexpr,
        PIECES: tl.constexpr,
        PIECES_PADDED: tl.constexpr,
    ):
        """One query head: the pieces' sums under a common highest score."""
        head = tl.program_id(0)
        p, w = tl.arange(0, PIECES_PADDED), tl.arange(0, WIDTH_PADDED)
        real_p, real_w = p < PIECES, w < WIDTH
        slots = head * PIECES + p
        top = tl.load(tops + slots, mask=real_p, other=-1e30)
        fade = tl.exp(top - tl.max(top, 0))
        total = tl.sum(tl.load(weights + slots, mask=real_p, other=0.0) * fade, 0)
        parts = tl.load(sums + slots[:, None] * WIDTH + w[None, :], mask=real_p[:, None] & real_w[None, :], other=0.0)
        joined = tl.sum(parts * fade[:, None], 0) / total
        tl.store(output + head * WIDTH + w, joined.to(output.dtype.element_ty), mask=real_w)

    @torch.library.triton_op("vlmeter::decode_attention", mutates_args={})
    def _decode_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
        _, heads, _, width = query.shape
        kv_heads, keys = key.shape[1], key.shape[2]
        blocks = -(-keys // _BLOCK)
        piece = -(-blocks // max(1, min(blocks, _PIECES // kv_heads))) * _BLOCK
        pieces = -(-keys // piece)
        sums = torch.empty((heads, pieces, width), dtype=torch.float32, device=query.device)
        tops = torch.empty((heads, pieces), dtype=torch.float32, device=query.device)
        weights = torch.empty_like(tops)
        output = torch.empty((1, heads, 1, width), dtype=query.dtype, device=query.device)
        group = heads // kv_heads
        width_padded = max(16, triton.next_power_of_2(width))
        torch.library.wrap_triton(_attend_to_pieces)[(kv_heads, pieces)](
            query.contiguous(),
            key,
            value,
            mask.contiguous(),
            sums,
            tops,
            weights,
            keys,
            key.stride(1),
            key.stride(2),
            value.stride(1),
            value.stride(2),
            SCALE=scale,
            GROUP=group,
            GROUP_PADDED=max(16, triton.next_power_of_2(group)),
            WIDTH=width,
            WIDTH_PADDED=width_padded,
            PIECE=piece,
            PIECES=pieces,
            BLOCK=_BLOCK,
        )
        torch.library.wrap_triton(_join_pieces)[(heads,)](
            sums,
            tops,
            weights,
            output,
            WIDTH=width,
            WIDTH_PADDED=width_padded,
            PIECES=pieces,
            PIECES_PADDED=max(2, triton.next_power_of_2(pieces)),
        )
        return output
