"""What a pass reads on the host, remembered: the waits taken out of a pass that is run again with the same shapes.

A CUDA graph holds kernels and nothing of what the host does between them, so a pass that looks at a value on the
device, or sends one there, cannot be captured. Most of what the models' code looks at is the same for every picture of
a size: the grid of patches, the lengths of windows, which tiles are real. `Remembered` watches a first pass and keeps
what came of every such look; in later passes it hands out what it kept, and nothing waits.

That is right as long as what was looked at depends on shapes alone. Who captures must take for one shape only such
prompts as have the same grids and the same places for their images (`vlmeter.backends.compiled.captured.key_of`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

_ATEN = torch.ops.aten

#: Operators whose result, or whose result's shape, depends on values: the host waits for it. In inference mode an
#: operator is seen before it is taken apart, so that both forms stand here.
_LOOKS = {
    _ATEN._local_scalar_dense,
    _ATEN.item,
    _ATEN.nonzero,
    _ATEN.nonzero_numpy,
    _ATEN.argwhere,
    _ATEN.unique_consecutive,
    _ATEN._unique,
    _ATEN._unique2,
    _ATEN.unique_dim,
    _ATEN.equal,
    _ATEN.is_nonzero,
    _ATEN.masked_select,
    _ATEN.bincount,
}
_REPEATS = {_ATEN.repeat_interleave.Tensor: 0, _ATEN.repeat_interleave.self_Tensor: 1}
_COPIES = {_ATEN._to_copy, _ATEN.to}
_INDEXED = {
    _ATEN.index.Tensor: 1,
    _ATEN.index_put.default: 1,
    _ATEN.index_put_.default: 1,
    _ATEN._unsafe_index.Tensor: 1,
    _ATEN._index_put_impl_.default: 1,
}
_MAKERS = (torch.tensor, torch.as_tensor)
_READERS = {
    Tensor.tolist,
    Tensor.item,
    Tensor.__bool__,
    Tensor.__int__,
    Tensor.__float__,
    Tensor.__index__,
    Tensor.__format__,
    Tensor.__repr__,
    Tensor.numpy,
}


class NotTheSame(RuntimeError):
    """A pass looked at other things than the one that was watched."""


class Remembered:
    """Keeps what a first pass looked at, and hands it to later ones; use `watching` or `replaying` around a pass."""

    def __init__(self) -> None:
        self._kept: list[tuple[str, Any]] = []
        self._next = 0
        self._replays = False
        self._looking = False
        self._modes: tuple[Any, ...] = (_Functions(self), _Operators(self))

    @property
    def looks(self) -> Mapping[str, int]:
        """How many looks of each kind there were."""
        found: dict[str, int] = {}
        for name, _ in self._kept:
            found[name] = found.get(name, 0) + 1
        return found

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Run a pass as it is, and keep what it looks at."""
        self._kept.clear()
        self._replays = False
        with self._entered():
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """Run a pass that finds what the watched one found."""
        self._next, self._replays = 0, True
        with self._entered():
            yield

    @contextmanager
    def _entered(self) -> Iterator[None]:
        global _active
        before, _active = _active, self
        try:
            with self._modes[0], self._modes[1]:
                yield
        finally:
            _active = before

    def take(self, name: str, look: Any) -> Any:
        """Look, or return what was seen at this place of the first pass."""
        if self._looking:  # a look within a look
            return look()
        if not self._replays:
            self._looking = True
            try:
                seen = look()
            finally:
                self._looking = False
            self._kept.append((name, seen))
            return seen
        if self._next >= len(self._kept) or self._kept[self._next][0] != name:
            raise NotTheSame(f"the pass comes to {name}, at which place the first one did not")
        self._next += 1
        seen = self._kept[self._next - 1][1]
        # The pass may go on to change a tensor that it made; what is kept must outlast many passes.
        return tree_map_only(Tensor, torch.clone, seen)


_active: Remembered | None = None


def looks_so_far() -> int:
    """How many looks the pass that is being watched has had."""
    return 0 if _active is None else len(_active._kept)


@contextmanager
def unwatched() -> Iterator[None]:
    """Step out of watching or replaying, for code that is compiled: it looks at nothing, and modes keep it out."""
    if _active is None:
        yield
        return
    functions, operators = _active._modes
    operators.__exit__(None, None, None)
    functions.__exit__(None, None, None)
    try:
        yield
    finally:
        functions.__enter__()
        operators.__enter__()


class _Operators(TorchDispatchMode):
    """Sees every operator that is run on tensors."""

    def __init__(self, remembered: Remembered) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._remembered = remembered

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        take, name = self._remembered.take, str(function)
        packet = getattr(function, "overloadpacket", None)
        looks = packet in _LOOKS and _on_device(args[0])
        repeats = function in _REPEATS and _on_device(args[_REPEATS[function]])
        if looks or repeats or (packet in _COPIES and _crosses(args[0], _target(args, kwargs))):
            return take(name, lambda: function(*args, **kwargs))
        if packet is _ATEN.copy_ and _crosses(args[1], args[0].device):
            source, device = args[1], args[0].device
            return function(args[0], take(name, lambda: source.to(device)), *args[2:], **kwargs)
        if function in _INDEXED and _on_device(args[0]):
            args = (args[0], self._indices(name, args[1], args[0].device), *args[2:])
        return function(*args, **kwargs)

    def _indices(self, name: str, indices: Any, device: torch.device) -> list[Tensor | None]:
        """Positions in place of boolean indices, and on the device in place of the host."""
        found: list[Tensor | None] = []
        for index in indices:
            if index is None:
                found.append(None)
            elif index.dtype in (torch.bool, torch.uint8):
                places = self._remembered.take(name, lambda index=index: tuple(index.to(device).nonzero().unbind(1)))
                found.extend(places)
            elif index.device != device:
                found.append(self._remembered.take(name, lambda index=index: index.to(device)))
            else:
                found.append(index)
        return found


class _Functions(TorchFunctionMode):
    """Sees tensors made from numbers, whose way to the device no operator shows."""

    def __init__(self, remembered: Remembered) -> None:
        super().__init__()
        self._remembered = remembered

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in _MAKERS and torch.device(kwargs.get("device") or "cpu").type != "cpu":
            return self._remembered.take(function.__name__, lambda: function(*args, **kwargs))
        if function in _READERS and _on_device(args[0]):
            return self._remembered.take(function.__name__, lambda: function(*args, **kwargs))
        return function(*args, **kwargs)


def _on_device(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and tensor.device.type != "cpu"


def _target(args: Any, kwargs: Any) -> torch.device | None:
    """The device that a copy names, if it does."""
    for value in (kwargs.get("device"), *args[1:]):
        if isinstance(value, (torch.device, str)):
            return torch.device(value)
        if isinstance(value, Tensor):
            return value.device
    return None


def _crosses(source: Any, device: Any) -> bool:
    """Whether a copy goes between host and device."""
    if not isinstance(source, Tensor) or device is None:
        return False
    return (torch.device(device).type == "cpu") != (source.device.type == "cpu")
