"""Passes recorded as CUDA graphs, one per phase, so that marks can stand between them.

A graph holds the kernels of a pass with the addresses they work on, and is replayed by a single call: what the host
took to launch them is gone. One graph over a whole prefill would leave no place for a mark inside. The capture is cut
at every boundary of the family, by the same hooks that place the marks of an eager pass: the graph of one phase ends
there, that of the next begins, and tensors that live across the cut stay where they are, since all of them draw on one
memory pool and are always replayed in one order.

What is captured works on buffers of its own: a prompt is copied into them, tokens are copied out of them.
"""

from __future__ import annotations

import gc
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vlmeter.backends.base import Mark, MemoryUse
from vlmeter.backends.compiled.static_cache import FixedCache

if TYPE_CHECKING:
    from vlmeter.models.families.base import LoadedModel

#: Integer inputs of no more values than this (grids, sizes) may be looked at by a model's code, so that prompts of one
#: key agree in them.
_FEW_VALUES = 64

Key = tuple[Any, ...]


def key_of(tensors: Mapping[str, Any], *, image_token_id: int | None) -> Key:
    """What two prompts have in common that can run on one capture; reads the tensors, which are on the host.

    Shapes, the values of small integer inputs, and where the image's tokens stand.
    """
    parts: list[Any] = []
    for name, tensor in sorted(tensors.items()):
        parts.append((name, tuple(tensor.shape), str(tensor.dtype)))
        if name == "input_ids":
            if image_token_id is not None:
                parts.append(hashlib.sha256((tensor == image_token_id).numpy().tobytes()).hexdigest())
        elif not tensor.is_floating_point() and tensor.numel() <= _FEW_VALUES:
            parts.append(tuple(tensor.flatten().tolist()))
    return tuple(parts)


@dataclass
class Preparation:
    """What a shape took before its first sample: compilation and capture, apart."""

    what: str
    compile_s: float = 0.0
    capture_s: float = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by what they were for, as `GetsReady` has it."""
        spent = {"compile": self.compile_s, "capture": self.capture_s}
        return {name: seconds for name, seconds in spent.items() if seconds}


class Capture:
    """The graphs of one piece of work, in order, each with the phase that it closes (None: none)."""

    def __init__(self, graphs: list[tuple[str | None, Any]], peaks: list[MemoryUse], kept: object) -> None:
        self.graphs, self.peaks, self._kept = graphs, peaks, kept
        #: tensors made outside of the capture that the graphs read
        self.reads: object = None

    def replay(self, mark: Mark | None = None) -> Any:
        """Run the work again; marks close the phases. Returns what it returned when it was captured."""
        for closes, graph in self.graphs:
            graph.replay()
            if mark is not None and closes is not None:
                mark(closes)
        return self._kept


class Capturer:
    """Captures work on one device: one side stream and one memory pool for everything."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Run on the stream of the captures, as work must have before it is captured."""
        here = torch.cuda.current_stream(self.device)
        self._stream.wait_stream(here)
        with torch.cuda.stream(self._stream):
            yield
        here.wait_stream(self._stream)
        torch.cuda.synchronize(self.device)

    def capture(self, work: Callable[[Mark], object], *, closes: str | None = None) -> Capture:
        """Capture a piece of work, which calls the given mark wherever a phase ends; it runs nothing.

        closes: the phase that the work's end closes. Raises RuntimeError if the work waits for the device.
        """
        from vlmeter.backends.eager_runner import end_failed_capture

        graphs: list[tuple[str | None, Any]] = []
        peaks: dict[str, MemoryUse] = {}
        graph = torch.cuda.CUDAGraph()

        def begin() -> None:
            nonlocal graph
            graph = torch.cuda.CUDAGraph()
            graph.capture_begin(pool=self._pool)

        def end(closes: str | None) -> None:
            graph.capture_end()
            graphs.append((closes, graph))

        def cut(phase: str | None) -> None:
            if phase is None:  # the first mark of a pass: nothing lies before it
                return
            end(phase)
            _note_peak(peaks, phase, self.device)
            begin()

        torch.cuda.synchronize(self.device)
        gc.collect()
        torch.cuda.empty_cache()
        before, collects = torch.cuda.current_stream(self.device), gc.isenabled()
        gc.disable()
        torch.cuda.reset_peak_memory_stats(self.device)
        try:
            with _quiet_about_empty_graphs(), torch.cuda.stream(self._stream):
                begin()
                kept = work(cut)
                end(closes)
        except BaseException:
            torch.cuda.set_stream(self._stream)
            try:
                graph.capture_end()
            except RuntimeError:  # what broke it is being raised
                end_failed_capture(self._pool, self.device)
            torch.cuda.set_stream(before)
            self._pool = torch.cuda.graph_pool_handle()
            raise
        finally:
            if collects:
                gc.enable()
        return Capture(graphs, list(peaks.values()), kept)


def _note_peak(peaks: dict[str, MemoryUse], phase: str, device: str) -> None:
    """Note the most memory that a phase needed; the allocator works while capturing as in a pass."""
    peak = torch.cuda.max_memory_allocated(device)
    if phase not in peaks or peak > peaks[phase].peak_allocated_bytes:
        peaks[phase] = MemoryUse(phase, peak, torch.cuda.memory_reserved(device))
    torch.cuda.reset_peak_memory_stats(device)


@contextmanager
def _quiet_about_empty_graphs() -> Iterator[None]:
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The CUDA Graph is empty")
        yield


@dataclass
class Shape:
    """Everything that one shape of prompt runs on: buffers, cache, graphs where there are any."""

    inputs: dict[str, Tensor]
    cache: FixedCache
    prompt_tokens: int
    #: the token to run next [1, 1], and all that were chosen [n]
    token: Tensor
    tokens: Tensor
    #: added to the logits before choosing: nothing, or minus infinity for what ends a sequence; made with the logits
    forbidden: Tensor | None = None
    prefill: Capture | None = None
    step: Capture | None = None
    vision: Capture | None = None
    #: in words: what runs uncaptured, and why
    left_out: list[str] = field(default_factory=list)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy a prompt into the buffers."""
        for name, buffer in self.inputs.items():
            if tensors[name] is not buffer:
                buffer.copy_(tensors[name])

    def choose(self, logits: Tensor) -> None:
        """Choose the likeliest token of logits [1, vocabulary], and lay it down behind those before."""
        if self.forbidden is None:
            self.forbidden = torch.zeros_like(logits)
        chosen = (logits + self.forbidden).argmax(dim=-1, keepdim=True)
        self.token.copy_(chosen)
        self.tokens.index_copy_(0, (self.cache.fill.tokens - self.prompt_tokens).view(1), chosen.view(1))

    def run_prefill(self, loaded: LoadedModel) -> None:
        """Run the prompt that is in the buffers, and choose the first token."""
        self.cache.begin()
        logits, _ = loaded.prefill(self.inputs, cache=self.cache)
        self.cache.prefilled(self.prompt_tokens)
        self.choose(logits)

    def run_step(self, loaded: LoadedModel) -> None:
        """Run the token in its buffer, and choose the next."""
        logits = loaded.decode(self.token, self.cache)
        self.cache.advance()
        self.choose(logits)

    def rewind(self) -> None:
        """Go back to the end of the prompt."""
        self.cache.prefilled(self.prompt_tokens)


def new_shape(loaded: LoadedModel, tensors: Mapping[str, Tensor], *, capacity: int, device: str) -> Shape:
    """Make the buffers for prompts like this one."""
    prompt_tokens = tensors["input_ids"].shape[1]
    return Shape(
        inputs={name: tensor.clone() for name, tensor in tensors.items()},
        cache=FixedCache(loaded.model.config, capacity=capacity, device=device),
        prompt_tokens=prompt_tokens,
        token=torch.zeros((1, 1), dtype=torch.long, device=device),
        tokens=torch.zeros(capacity - prompt_tokens + 2, dtype=torch.long, device=device),
    )


class Stopwatch:
    """Seconds of the host's clock since the last reading, the device finished."""

    def __init__(self, synchronize: Callable[[], None]) -> None:
        self._synchronize = synchronize
        self._last_s = time.perf_counter()

    def lap_s(self) -> float:
        """Seconds since the last lap."""
        self._synchronize()
        now_s, last_s = time.perf_counter(), self._last_s
        self._last_s = now_s
        return now_s - last_s
