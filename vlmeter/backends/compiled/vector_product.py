"""A matrix times one vector, for decode steps: every weight is read once, and nothing else counts.

cuBLAS takes such products for matrix products with one row and chooses kernels for tiles. On an H200, in bfloat16, it
takes 67 us for the 37,888 x 3,584 weights of Qwen2-7B's gate and up projection, which can be read in 61, and 11.6 for
the 3,584 x 3,584 ones of its attention's output, where 8 are enough. Here each program reads one row, in large pieces,
and sums it in float32. Same weights, same number format, same sums in another order.
"""

# mypy: disable-error-code="import-not-found,untyped-decorator,no-untyped-def"
# ruff: noqa: N803 - a kernel's constants are written large

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

try:
    import triton
    import triton.language as tl
except ImportError:  # no GPU's PyTorch
    triton = None


class OneRowLinear(nn.Linear):
    """A linear layer that multiplies a single row by `vector_product`, and more of them as ever."""

    def forward(self, states: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]."""
        if states.numel() == self.in_features:
            product: Tensor = torch.ops.vlmeter.vector_product(states, self.weight, self.bias)
            return product
        return F.linear(states, self.weight, self.bias)


@contextmanager
def one_row_products(model: nn.Module) -> Iterator[None]:
    """Let the linear layers of a model be `OneRowLinear`, if they are plain ones in a 16-bit format on a GPU."""
    if triton is None:
        yield
        return
    with ExitStack() as stack:
        for layer in model.modules():
            if type(layer) is nn.Linear and layer.weight.is_cuda and layer.weight.element_size() == 2:
                _turn(layer, OneRowLinear)
                stack.callback(_turn, layer, nn.Linear)
        yield


def _turn(layer: Any, kind: type) -> None:
    layer.__class__ = kind


def tiles(rows: int, columns: int) -> tuple[int, int, int]:
    """Columns that a program reads at once, its warps and stages: the best of 16 found by trial on an H200."""
    if columns > 8192:
        return 512, 2, 3
    return (1024, 8, 2) if rows * columns < 24_000_000 else (4096, 4, 1)


if triton is not None:

    @triton.jit
    def _multiply(
        vector,
        weight,
        bias,
        product,
        COLUMNS: tl.constexpr,
        HAS_BIAS: tl.constexpr,
        TILE: tl.constexpr,
    ):
        """One row of the matrix."""
        row = tl.program_id(0)
        sums = tl.zeros([TILE], tl.float32)
        at_weight = weight + row.to(tl.int64) * COLUMNS
        for begin in range(0, COLUMNS, TILE):
            c = begin + tl.arange(0, TILE)
            within = c < COLUMNS
            v = tl.load(vector + c, mask=within, other=0.0)
            w = tl.load(at_weight + c, mask=within, other=0.0, eviction_policy="evict_first")
            sums += w.to(tl.float32) * v.to(tl.float32)
        total = tl.sum(sums, 0)
        if HAS_BIAS:
            total += tl.load(bias + row).to(tl.float32)
        tl.store(product + row, total.to(product.dtype.element_ty))

    @torch.library.triton_op("vlmeter::vector_product", mutates_args={})
    def _vector_product(vector: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, columns = weight.shape
        product = torch.empty((*vector.shape[:-1], rows), dtype=vector.dtype, device=vector.device)
        tile, warps, stages = tiles(rows, columns)
        torch.library.wrap_triton(_multiply)[(rows,)](
            vector.contiguous(),
            weight,
            weight if bias is None else bias,
            product,
            COLUMNS=columns,
            HAS_BIAS=bias is not None,
            TILE=tile,
            num_warps=warps,
            num_stages=stages,
        )
        return product
