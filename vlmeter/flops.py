"""Count the work of a cell: FLOPs and bytes of every phase of its prefill, and of a decode step.

The counting runs the subject's own modules on torch's *meta* device, where a tensor has a shape and no content: a 72 B
model is made in a tenth of a second and passes a prompt in one. Whatever the modules do is counted, at the very
boundaries at which the clock takes its marks, so a new family needs nothing here.

- FLOPs: two per multiply-accumulate of every matrix product (`torch.utils.flop_counter`); norms, activations and other
  element-wise work are not counted, as usual. Attention is counted here instead: torch's counter sees none of it on
  a CPU (a fused kernel without a formula) and twice what is needed under a causal mask, since it counts the half of
  the scores that a fused kernel skips. An `eager` attention computes that half, so there it counts. Grouped products
  (mixtures of experts), for which torch has no formula, have one here.
- Bytes: of every weight that an operator of the phase reads, once, as packed as it is kept; of an embedding the rows
  that it hands out; of stacked experts as many as there are rows to multiply, at most all (for a prompt of more than a
  few tokens all are hit, and a single token chooses distinct ones). Keys and values: what the pass adds to the cache.

A count takes a second, mostly Python's. Since all of it is polynomial in crops and tokens - linear in the crops,
at most quadratic in the tokens - four counts give the law of a subject exactly, in whole numbers; two more have to
agree with it, and if they do not (an architecture with windows, say) every cell is counted by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vlmeter.checkpoints import PACKED
from vlmeter.config import Subject
from vlmeter.families.base import LoadedModel, ModelInputs
from vlmeter.families.registry import get_family
from vlmeter.physics import PhaseWork, ShapeWork, StepWork, SubjectWork, Work
from vlmeter.plan import Cell, RequestBlock, singles, subject_spec
from vlmeter.session import Looks, Picture, pictures_of

_EMBEDDINGS = (torch.ops.aten.embedding.default, torch.ops.aten.index_select.default)
_GROUPED = torch.ops.aten._grouped_mm.default


def shapes_of(subject: Subject) -> LoadedModel:
    """Load a subject's model on the meta device: its modules and shapes, none of its weights."""
    return get_family(subject.family).load(subject_spec(subject), device="meta")


# ------------------------------------------------------------------------------------------------- one pass, counted


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
    """Counts between marks, as `vlmeter.clock.Marks` times between them."""

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


@dataclass(frozen=True)
class PassWork:
    """Work of one prefill and of the decode steps behind it."""

    prefill: tuple[PhaseWork, ...]
    step: StepWork


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


# --------------------------------------------------------------------------------------------- many cells, from few


def _terms(crops: int, tokens: int) -> tuple[int, ...]:
    """What a count may depend on."""
    return (1, crops, tokens, tokens * tokens)


Key = tuple[int, int]  # crops, prompt tokens
Shape = tuple[int, int, int]  # crops, prompt tokens, vision tokens


def independent(keys: Sequence[Key]) -> list[Key]:
    """Choose keys, in the order given, whose terms are linearly independent: four at most."""
    chosen: list[Key] = []
    reduced: list[list[Fraction]] = []
    for key in keys:
        row = [Fraction(term) for term in _terms(*key)]
        for known in reduced:
            pivot = next(i for i, value in enumerate(known) if value)
            factor = row[pivot] / known[pivot]
            row = [a - factor * b for a, b in zip(row, known, strict=True)]
        if any(row):
            chosen.append(key)
            reduced.append(row)
    return chosen


def law_through(points: Mapping[Key, int]) -> tuple[Fraction, ...]:
    """Solve for the coefficients of the terms, exactly, from as many independent points as there are terms."""
    rows = [[Fraction(term) for term in (*_terms(*key), value)] for key, value in points.items()]
    size = len(rows)
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(size):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return tuple(row[-1] for row in rows)


def extend(keys: Sequence[Key], count: Callable[[Key], PassWork]) -> dict[Key, PassWork]:
    """Count every key, most of them by the law through a few; by themselves where that law does not hold."""
    keys = sorted(set(keys), key=lambda key: (key[1], key[0]))
    # Spread out, so that the law is tried inside the range rather than far beyond it: ends, middle, then the others.
    spread = [keys[i] for i in dict.fromkeys([0, len(keys) - 1, len(keys) // 2, len(keys) // 4, *range(len(keys))])]
    basis = independent(spread)
    tests = [key for key in spread if key not in basis][:2]
    counted = {key: count(key) for key in (*basis, *tests)}
    if len(basis) == len(_terms(0, 0)) and len(tests) == 2:
        laws = _laws({key: counted[key] for key in basis})
        sample = counted[basis[0]]
        if all(_predict(laws, sample, key) == counted[key] for key in tests):
            return {key: counted.get(key) or _predict(laws, sample, key) or count(key) for key in keys}
    return {key: counted.get(key) or count(key) for key in keys}


def _numbers(work: PassWork) -> dict[str, int]:
    found = {}
    for phase in work.prefill:
        for name in ("flops", "weight_bytes", "cache_bytes"):
            found[f"{phase.phase}/{name}"] = getattr(phase, name)
    return found


def _laws(points: Mapping[Key, PassWork]) -> dict[str, tuple[Fraction, ...]]:
    numbers = {key: _numbers(work) for key, work in points.items()}
    names = next(iter(numbers.values()))
    return {name: law_through({key: found[name] for key, found in numbers.items()}) for name in names}


def _predict(laws: Mapping[str, tuple[Fraction, ...]], sample: PassWork, key: Key) -> PassWork | None:
    """Work at a key by the laws, in the shape of `sample`; None if a law gives no whole number there."""
    values = {
        name: sum((a * b for a, b in zip(law, _terms(*key), strict=True)), Fraction(0)) for name, law in laws.items()
    }
    if any(value.denominator != 1 for value in values.values()):
        return None
    prefill = tuple(
        PhaseWork(
            phase=phase.phase,
            flops=int(values[f"{phase.phase}/flops"]),
            weight_bytes=int(values[f"{phase.phase}/weight_bytes"]),
            cache_bytes=int(values[f"{phase.phase}/cache_bytes"]),
        )
        for phase in sample.prefill
    )
    return PassWork(prefill, sample.step)


def count_work(
    subject_name: str, loaded: LoadedModel, cells: Iterable[Cell], pictures: Mapping[str, Looks]
) -> SubjectWork:
    """Count the work of a subject's cells.

    Args:
        subject_name: goes into the result.
        loaded: the subject on meta, from `shapes_of`.
        cells: of that subject.
        pictures: by cell id, as a session has them; opened only where the plan does not know the counts.

    Of a block every request counts, by its shape. # ASSUME: passes with as many crops, vision tokens and prompt tokens
    do the same work.
    """
    known: dict[object, Shape] = {}
    examples: dict[Shape, tuple[Cell, Picture]] = {}

    def prepare(cell: Cell, picture: Picture) -> ModelInputs:
        question = picture.question if cell.text_tokens is None else None
        return loaded.prepare(picture.open(), question, text_tokens=cell.text_tokens, options=cell.options)

    def shape_of(cell: Cell, picture: Picture) -> Shape:
        expected = cell.expected
        crops, vision, tokens = expected.crops, expected.vision_tokens, expected.prompt_tokens
        if crops is not None and vision is not None and tokens is not None:
            shape = crops, tokens, vision
        else:
            look = (cell.image, cell.options, cell.text_tokens, picture.question)
            if look not in known:
                counts = prepare(cell, picture).counts
                known[look] = (counts.crops, counts.prompt_tokens, counts.vision_tokens)
            shape = known[look]
        examples.setdefault(shape, (cell, picture))
        return shape

    of_cells: dict[str, Shape] = {}
    of_requests: set[Shape] = set()
    for cell in cells:
        sights = zip(singles(cell), pictures_of(pictures[cell.cell_id]), strict=True)
        shapes = [shape_of(single, picture) for single, picture in sights]
        if isinstance(cell.image, RequestBlock):
            of_requests.update(shapes)
        else:
            (of_cells[cell.cell_id],) = shapes
    step: StepWork | None = None

    def count(shape: Shape) -> PassWork:
        nonlocal step
        found = count_pass(loaded, prepare(*examples[shape]).tensors, step=step)
        step = found.step
        return found

    full = {shape[:2]: shape for shape in examples}
    if len(full) == len(examples):
        by_law = extend(list(full), lambda pair: count(full[pair]))
        counted = {shape: by_law[shape[:2]] for shape in examples}
    else:  # prompts of one length that differ in their vision tokens: no law of crops and prompt tokens holds
        counted = {shape: count(shape) for shape in examples}

    def work_of(shape: Shape) -> dict[str, Any]:
        crops, prompt_tokens, vision_tokens = shape
        return {
            "crops": crops,
            "vision_tokens": vision_tokens,
            "prompt_tokens": prompt_tokens,
            "prefill": counted[shape].prefill,
            "step": counted[shape].step,
        }

    return SubjectWork(
        subject=subject_name,
        cells=tuple(Work(cell_id=cell_id, **work_of(shape)) for cell_id, shape in of_cells.items()),
        shapes=tuple(ShapeWork(**work_of(shape)) for shape in sorted(of_requests)),
    )
