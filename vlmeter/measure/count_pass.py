"""Count what one pass asks of a device: FLOPs by operator, weights read, keys and values written, phase by phase."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vlmeter.measure.extend_work import PassWork
from vlmeter.models.families.base import LoadedModel
from vlmeter.models.packing import PACKED
from vlmeter.records.work import PhaseWork, StepWork

_EMBEDDINGS = (torch.ops.aten.embedding.default, torch.ops.aten.index_select.default)


_GROUPED = torch.ops.aten._grouped_mm.default


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class _WeightReads(TorchDispatchMode):
    """Notes how much of which weight the operators read; a weight read twice counts once, as a cache would have it."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._value_bytes = {_storage(p): float(getattr(p, PACKED, p.element_size())) for p in model.parameters()}
        self._owners = {_storage(p): int(p.numel() * self._value_bytes[_storage(p)]) for p in model.parameters()}
        self._parts: dict[tuple[int, int], int] = {}  # by weight and place in it

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # The meta kernel of a grouped product refuses formats other than bfloat16, so its result is made here.
        grouped = func is _GROUPED
        out = args[0].new_empty(args[0].shape[0], args[1].shape[-1]) if grouped else func(*args, **kwargs)
        if not func.is_view:
            for argument in _tensors((*args, *kwargs.values())):
                if (owner := _storage(argument)) in self._owners:
                    part = (owner, int(argument.storage_offset()))
                    read_bytes = self._read_bytes(func, args, argument, out, self._value_bytes[owner])
                    self._parts[part] = max(self._parts.get(part, 0), read_bytes)
        return out

    def _read_bytes(self, func: Any, args: tuple[Any, ...], argument: Tensor, out: Any, value_bytes: float) -> int:
        if func in _EMBEDDINGS:
            return int(out.numel() * out.element_size())
        whole = int(argument.numel() * value_bytes)
        if func is _GROUPED and argument.ndim == 3:
            experts, rows = argument.shape[0], args[0].shape[0]
            return whole // int(experts) * min(int(experts), int(rows))
        return whole

    def drain(self) -> dict[int, int]:
        """Return the bytes read of each weight since the last call, its parts added up."""
        found: dict[int, int] = {}
        for (owner, _), read_bytes in self._parts.items():
            # An expanded view seems larger than its weight, and overlapping parts are read from the cache.
            found[owner] = min(self._owners[owner], found.get(owner, 0) + read_bytes)
        self._parts = {}
        return found


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


class _Attention(TorchFunctionMode):
    """Counts attention by itself and hands out an empty result, so that nobody counts it again."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention:
            return func(*args, **kwargs)
        return self._attend(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        **options: object,
    ) -> Tensor:
        """Two products, query with key and scores with value, over the pairs that may attend."""
        queries, keys = query.shape[-2], key.shape[-2]
        pairs = sum(min(number, keys) for number in range(1, queries + 1)) if is_causal else queries * keys
        heads = query.shape[:-2].numel()
        self.flops += 2 * heads * pairs * (query.shape[-1] + value.shape[-1])
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def _grouped_flops(
    rows: Sequence[int], weights: Sequence[int], *others: object, out_shape: object = None, **options: object
) -> int:
    """FLOPs of a grouped product: every row [K] with one of the matrices [K, N]."""
    return 2 * rows[0] * weights[-2] * weights[-1]


@dataclass
class _Count:
    flops: int = 0
    weights: dict[int, int] = field(default_factory=dict)

    @property
    def weight_bytes(self) -> int:
        return sum(self.weights.values())

    def add(self, flops: int, weights: Mapping[int, int]) -> None:
        self.flops += flops
        for key, read_bytes in weights.items():
            self.weights[key] = max(self.weights.get(key, 0), read_bytes)


class _Tally:
    """Counts between marks, as `vlmeter.backends.clock.Marks` times between them."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.reads = _WeightReads(model)
        self.attention = _Attention()
        self.products = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._grouped_mm: _grouped_flops})
        self.phases: dict[str, _Count] = {}
        self._flops_before = 0

    @contextmanager
    def counting(self) -> Iterator[None]:
        # The counter of products comes last, so that it takes composite operators apart before the reads are noted.
        with torch.inference_mode(), self.attention, self.reads, self.products:
            yield

    def mark(self, closes: str | None) -> None:
        """Book what was counted since the last mark under the phase `closes`."""
        flops, reads = self.products.get_total_flops() + self.attention.flops, self.reads.drain()
        if closes is not None:
            self.phases.setdefault(closes, _Count()).add(flops - self._flops_before, reads)
        self._flops_before = flops


def loaded_by_values(loaded: LoadedModel) -> bool:
    """Whether a model looks at its inputs' content to decide on shapes, so that they have to keep it."""
    return bool(getattr(loaded, "reads_values", False))


def count_pass(loaded: LoadedModel, tensors: Mapping[str, Tensor], *, step: StepWork | None = None) -> PassWork:
    """Count one prefill, phase by phase, and the decode steps after it.

    loaded: a model on meta; tensors: its inputs, on any device (only their shapes and formats matter); step: that of
    another prompt, where it is known: the law of a step knows its context, so it does not depend on the prompt.
    """
    inputs = dict(tensors) if loaded_by_values(loaded) else {name: x.to("meta") for name, x in tensors.items()}
    tally = _Tally(loaded.model)
    with _hooks(loaded, tally.mark), tally.counting():
        _, cache = loaded.prefill(inputs)
        tally.mark("head")
    prefill = [
        PhaseWork(
            phase=phase,
            flops=count.flops,
            weight_bytes=count.weight_bytes,
            cache_bytes=_cache_bytes(cache) if phase == "llm_blocks" else 0,
        )
        for phase, count in tally.phases.items()
    ]
    if step is None:
        step = _count_step(loaded, cache, context_tokens=_cached_tokens(cache))
    return PassWork(tuple(prefill), step)


@contextmanager
def _hooks(loaded: LoadedModel, mark: Callable[[str | None], None]) -> Iterator[None]:
    def marking(closes: str | None) -> Callable[..., None]:
        return lambda *args: mark(closes)

    handles = [
        boundary.module.register_forward_pre_hook(marking(boundary.closes))
        if boundary.when == "before"
        else boundary.module.register_forward_hook(marking(boundary.closes))
        for boundary in loaded.boundaries()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _cache_layers(cache: Any) -> Iterable[Any]:
    # ASSUME: the cache is one of transformers' (its `layers` hold `keys` and `values`), as for every family so far.
    return [layer for layer in cache.layers if layer.keys is not None]


def _cache_bytes(cache: Any) -> int:
    return sum(
        tensor.numel() * tensor.element_size()
        for layer in _cache_layers(cache)
        for tensor in (layer.keys, layer.values)
    )


def _cached_tokens(cache: Any) -> int:
    return max(int(layer.keys.shape[-2]) for layer in _cache_layers(cache))


def _count_step(loaded: LoadedModel, cache: Any, *, context_tokens: int) -> StepWork:
    """Count two successive decode steps: their difference is what one more token of context costs.

    # ASSUME: attention reaches over the whole context; with a sliding window the law would end at its width.
    """
    counts, sizes = [], [_cache_bytes(cache)]
    for _ in range(2):
        tally = _Tally(loaded.model)
        token = torch.zeros(1, 1, dtype=torch.long, device="meta")
        with tally.counting():
            loaded.decode(token, cache)
            tally.mark("decode_step")
        counts.append(tally.phases["decode_step"])
        sizes.append(_cache_bytes(cache))
    per_token = counts[1].flops - counts[0].flops
    return StepWork(
        flops=counts[0].flops - per_token * (context_tokens + 1),
        flops_per_context_token=per_token,
        weight_bytes=counts[0].weight_bytes,
        cache_bytes_per_token=sizes[2] - sizes[1],
    )
