"""Run a model for its shapes alone, where its own code looks at values.

On torch's meta device a tensor has a shape and no content. Models of transformers look at the content of their inputs
to decide on shapes (how many patches an image has, which crops are padding), so the inputs stay on the CPU, with their
values, and only what meets a weight becomes a shape: a mixed operation is done on meta.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

_ATEN = torch.ops.aten


class ShapesOnly(TorchDispatchMode):
    """While entered, an operation on tensors of both kinds sees shapes only."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not any(isinstance(value, Tensor) and value.is_meta for value in tree_iter((args, kwargs))):
            return func(*args, **kwargs)
        if func in (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default):
            args = (args[0], [self._positions(index) for index in args[1]], *args[2:])
        args, kwargs = tree_map(self._shape, (args, kwargs))
        if func is _ATEN._to_copy.default:
            kwargs["device"] = torch.device("meta")  # what has no content cannot be copied off
        return func(*args, **kwargs)

    @staticmethod
    def _shape(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) and not value.is_meta else value

    @staticmethod
    def _positions(index: Any) -> Any:
        """Turn a mask whose content is known into positions: how many there are decides on a shape."""
        if isinstance(index, Tensor) and index.dtype == torch.bool and not index.is_meta and index.ndim == 1:
            return index.nonzero().squeeze(1)
        return index
