"""Run a model for its shapes alone, where its own code looks at values.

On torch's meta device a tensor has a shape and no content. Models of transformers look at the content of their inputs
to decide on shapes (how many patches an image has, which crops are padding), so the inputs stay on the CPU, with their
values, and only what meets a weight becomes a shape: a mixed operation is done on meta.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

_ATEN = torch.ops.aten

#: How a model asks a tensor of one value for it.
_YES_OR_NO = (_ATEN.item.default, _ATEN.is_nonzero.default, _ATEN._local_scalar_dense.default)


class ShapesOnly(TorchDispatchMode):
    """While entered, an operation on tensors of both kinds sees shapes only."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket in (_ATEN.to, _ATEN.expand_as):
            with self:
                return func.decompose(*args, **kwargs)  # into `_to_copy`, and into `expand` to a size
        if not any(isinstance(value, Tensor) and value.is_meta for value in tree_iter((args, kwargs))):
            if func is _ATEN._to_copy.default and not args[0].is_floating_point():
                kwargs = {**kwargs, "device": torch.device("cpu")}  # sizes and masks: a model may still look at them
            return func(*args, **kwargs)
        if func in _YES_OR_NO and args[0].dtype == torch.bool:
            return True  # whether a mask hides nothing, whether counts agree: with one picture in one prompt so it is
        if func in (_ATEN.index.Tensor, _ATEN.index_put.default, _ATEN.index_put_.default):
            args = (args[0], [place for index in args[1] for place in self._positions(index)], *args[2:])
        args, kwargs = tree_map(self._shape, (args, kwargs))
        if func is _ATEN._to_copy.default:
            kwargs["device"] = torch.device("meta")  # what has no content cannot be copied off
        return func(*args, **kwargs)

    @staticmethod
    def _shape(value: Any) -> Any:
        return value.to("meta") if isinstance(value, Tensor) and not value.is_meta else value

    @staticmethod
    def _positions(index: Any) -> Sequence[Any]:
        """Turn a mask whose content is known into positions: how many there are decides on a shape."""
        if isinstance(index, Tensor) and index.dtype == torch.bool and not index.is_meta:
            return index.nonzero().unbind(1)
        return [index]
