"""Attention in float32 of values that come from bfloat16, on tensor cores.

Molmo's vision attention turns its bfloat16 queries, keys and values into float32 before it attends. PyTorch's kernel
for float32 then multiplies on the ordinary units, at some 26 TFLOP/s on an H200, and takes 16 of the 26 ms of 13 crops.
But a product of two bfloat16 values is exact in float32, so queries and keys can be multiplied as they came, with sums
in float32. Only the weights of the softmax need all of float32's 24 bits: as the sum of three bfloat16 values, each of
8 bits, they have them. Four products instead of two, and the result is float32's but for the order of the sums.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803 - a kernel's constants are written large

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU's PyTorch
    triton = None


@contextmanager
def wide_vision_attention(model: nn.Module) -> Iterator[None]:
    """Let attention in float32 run here wherever a model's layers take it (`wide`), in bfloat16 on a GPU."""
    first = next(model.parameters(), None)
    if triton is None or first is None or not first.is_cuda or first.dtype != torch.bfloat16:
        yield
        return
    with ExitStack() as stack:
        for layer in model.modules():
            if hasattr(layer, "wide"):
                layer.wide = attend_widely  # type: ignore[assignment]
                stack.callback(delattr, layer, "wide")
        yield


def attend_widely(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend from queries to keys and values [N, H, T, W] in bfloat16 -> the same shape and format."""
    turned = (states.transpose(1, 2) for states in (query, key, value))
    attended: Tensor = torch.ops.vlmeter.wide_attention(*turned, query.shape[-1] ** -0.5, query.dtype)
    return attended.transpose(1, 2)


if triton is not None:

    @triton.jit
    def _attend(
        query,
        key,
        value,
        output,
        query_stride,
        query_token_stride,
        key_stride,
        key_token_stride,
        value_stride,
        value_token_stride,
        output_stride,
        output_token_stride,
        queries,
        keys,
        heads,
        SCALE: tl.constexpr,
        WIDTH: tl.constexpr,
        BLOCK_Q: tl.constexpr,
        BLOCK_K: tl.constexpr,
    ):
        row, head = tl.program_id(1) // heads, tl.program_id(1) % heads
        q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        w = tl.arange(0, WIDTH)
        place = row.to(tl.int64)
        at_query = query + place * query_stride + head * WIDTH
        at_key = key + place * key_stride + head * WIDTH
        at_value = value + place * value_stride + head * WIDTH
        states = tl.load(
            at_query + q[:, None] * query_token_stride + w[None, :], mask=(q < queries)[:, None], other=0.0
        )
        top = tl.full([BLOCK_Q], -1e30, tl.float32)
        total = tl.zeros([BLOCK_Q], tl.float32)
        summed = tl.zeros([BLOCK_Q, WIDTH], tl.float32)
        for begin in range(0, keys, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            real = k < keys
            turned = tl.load(at_key + k[None, :] * key_token_stride + w[:, None], mask=real[None, :], other=0.0)
            scores = tl.where(real[None, :], tl.dot(states, turned) * SCALE, -1e30)
            higher = tl.maximum(top, tl.max(scores, 1))
            shares = tl.exp(scores - higher[:, None])
            fade = tl.exp(top - higher)
            total = total * fade + tl.sum(shares, 1)
            summed = summed * fade[:, None]
            v = tl.load(at_value + k[:, None] * value_token_stride + w[None, :], mask=real[:, None], other=0.0)
            first = shares.to(tl.bfloat16)
            rest = shares - first.to(tl.float32)
            second = rest.to(tl.bfloat16)
            third = (rest - second.to(tl.float32)).to(tl.bfloat16)
            summed = tl.dot(third, v, summed)
            summed = tl.dot(second, v, summed)
            summed = tl.dot(first, v, summed)
            top = higher
        at_output = output + place * output_stride + head * WIDTH
        tl.store(
            at_output + q[:, None] * output_token_stride + w[None, :],
            (summed / total[:, None]).to(output.dtype.element_ty),
            mask=(q < queries)[:, None],
        )

    @torch.library.triton_op("vlmeter::wide_attention", mutates_args={})
    def _wide_attention(query: Tensor, key: Tensor, value: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
        """[N, Q, H, W], [N, K, H, W] twice in bfloat16, heads and widths side by side -> [N, Q, H, W] in dtype."""
        rows, queries, heads, width = query.shape
        output = torch.empty((rows, queries, heads, width), dtype=dtype, device=query.device)
        block = 128
        torch.library.wrap_triton(_attend)[(triton.cdiv(queries, block), rows * heads)](
            query,
            key,
            value,
            output,
            query.stride(0),
            query.stride(1),
            key.stride(0),
            key.stride(1),
            value.stride(0),
            value.stride(1),
            output.stride(0),
            output.stride(1),
            queries,
            key.shape[1],
            heads,
            SCALE=scale,
            WIDTH=width,
            BLOCK_Q=block,
            BLOCK_K=64,
            num_warps=8,
            num_stages=3,
        )
        return output
