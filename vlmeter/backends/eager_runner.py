"""Plain PyTorch: every operator is launched by the host, one after the other.

The greedy loop is our own rather than `generate`, whose stopping criteria wait for the device in every step and whose
bookkeeping would be timed with the model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import psutil
import torch

from vlmeter.backends.base import (
    BusyTime,
    DeviceLost,
    Loading,
    Mark,
    MemoryUse,
    OpenedRequest,
    OutOfDeviceMemory,
    Prompt,
)
from vlmeter.backends.clock import Clock, make_clock
from vlmeter.models.families.base import LoadedModel, ModelInputs
from vlmeter.models.families.registry import get_family

if TYPE_CHECKING:
    from torch import Tensor


NO_BUSY_TIME = "a CPU works in step with the host, so its busy time is its wall time"

#: The allocator keeps to address ranges whose physical pages grow with need, so that a sweep over many shapes does not
#: fragment the device's memory. torch reads it when it is first asked for device memory.
ALLOCATOR_SETTING = ("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def load_runner(asked: Loading) -> EagerRunner:
    """Load a model on a device."""
    device, loaded = asked.device, load_model(asked)
    beside = devices_beside(loaded.model, device) if asked.spec.device_map else ()
    return EagerRunner(loaded=loaded, device=device, clock=make_clock(device, beside=beside), beside=beside)


def load_model(asked: Loading) -> LoadedModel:
    """Load a model, as many threads and the allocator set as a measurement wants them."""
    os.environ.setdefault(*ALLOCATOR_SETTING)
    if asked.device == "cpu":
        torch.set_num_threads(asked.cpu_threads or physical_cores())
    with memory_errors(asked.device):
        return get_family(asked.family).load(asked.spec, device=asked.device)


def devices_beside(model: torch.nn.Module, device: str) -> tuple[str, ...]:
    """List the devices other than this one on which a model has weights."""
    return tuple(sorted({str(parameter.device) for parameter in model.parameters()} - {device}))


def end_failed_capture(pool: Any, device: str) -> None:
    """Let the allocator go on as before a capture that failed, and give back the graph's memory pool.

    torch ends a capture on the device first, which raises if the capture is broken, and then it neither tells its
    allocator nor goes back to the stream of before: later passes would each find a stream without memory of its own,
    nothing cached could be given back, and a cell would run out of memory that nobody uses.
    """
    index = torch.device(device).index or 0
    try:
        torch._C._cuda_endAllocateToPool(index, pool)
    except RuntimeError:  # the capture ended in good order, and its graph gives the pool back by itself
        return
    torch._C._cuda_releasePool(index, pool)


def physical_cores() -> int:
    """Physical cores that this process may use: a second thread on a core only gets into the first one's way."""
    logical = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(logical, psutil.cpu_count(logical=False) or logical)


@contextmanager
def memory_errors(device: str) -> Iterator[None]:
    """Tell running out of memory and a lost device from other errors."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise OutOfDeviceMemory(str(error).splitlines()[0]) from None
    except torch.AcceleratorError as error:
        raise DeviceLost(str(error).splitlines()[0]) from error
    except RuntimeError as error:
        # The CPU's allocator has no error class of its own.
        if device == "cpu" and "not enough memory" in str(error):
            raise OutOfDeviceMemory(str(error).splitlines()[0]) from None
        raise
    except MemoryError as error:
        raise OutOfDeviceMemory(str(error) or "the host has not enough memory") from None


class _Tokens(list["Tensor"]):
    """Generated tokens; the cache lives as long as they do, so that freeing it is not timed with the pass."""

    def __init__(self, tokens: Sequence[Tensor], *, cache: object) -> None:
        super().__init__(tokens)
        self.cache = cache


@dataclass
class EagerRunner:
    """A subject run operator by operator; see `Runner`."""

    loaded: LoadedModel
    device: str
    clock: Clock
    #: further devices, of a model that is spread over several
    beside: tuple[str, ...] = ()
    _mark: Mark | None = None
    _side: Any = None
    #: ids that end a sequence, on the logits' device
    _ends: Tensor | None = None

    @property
    def parameters(self) -> Mapping[str, int]:
        """Parameters per component."""
        return self.loaded.parameters

    @property
    def notes(self) -> Sequence[str]:
        """What has to be known about the phases, said by families that find them out."""
        return tuple(getattr(self.loaded, "notes", ()))

    @property
    def _on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def prepare(self, opened: OpenedRequest, *, mark: Mark | None = None) -> Prompt:
        """Preprocess on the host, then copy to the device."""
        if mark:
            mark(None)
        inputs = self._inputs(opened)
        if mark:
            mark("preprocess")
        tensors = self._copied(inputs)
        if mark:
            mark("copy")
        return Prompt(tensors=tensors, counts=inputs.counts)

    def _inputs(self, opened: OpenedRequest) -> ModelInputs:
        return self.loaded.prepare(
            opened.picture, opened.question, text_tokens=opened.text_tokens, options=opened.options
        )

    def _copied(self, inputs: ModelInputs) -> dict[str, Tensor]:
        with memory_errors(self.device):
            return {name: tensor.to(self.device) for name, tensor in inputs.tensors.items()}

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Put a hook on every boundary of the family; they are gone on leaving."""
        handles = []
        for boundary in self.loaded.boundaries():
            if boundary.when == "before":
                handles.append(
                    boundary.module.register_forward_pre_hook(self._before(boundary.closes), with_kwargs=True)
                )
            else:
                handles.append(boundary.module.register_forward_hook(self._after(boundary.closes), with_kwargs=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, closes: str | None) -> Any:
        def hook(module: object, args: object, kwargs: object) -> None:
            if self._mark is not None:
                self._mark(closes)

        return hook

    def _after(self, closes: str | None) -> Any:
        def hook(module: object, args: object, kwargs: object, output: object) -> None:
            if self._mark is not None:
                self._mark(closes)

        return hook

    @contextmanager
    def _marked(self, mark: Mark | None) -> Iterator[None]:
        self._mark = mark
        try:
            yield
        finally:
            self._mark = None

    def prefill(self, prompt: Prompt, mark: Mark | None = None) -> object:
        """Run the prompt; the choice of the first token counts as part of the head."""
        return self.generate(prompt, output_tokens=1, stop="length", mark=mark)

    @torch.inference_mode()
    def vision(self, prompt: Prompt) -> object:
        """Run vision encoder and projector."""
        with memory_errors(self.device):
            return self.loaded.vision(prompt.tensors)

    @torch.inference_mode()
    def generate(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], mark: Mark | None = None
    ) -> Sequence[Tensor]:
        """Generate greedily with a growing cache; the choice of the first token counts as part of the head."""
        suppress = stop == "length"
        with memory_errors(self.device):
            with self._marked(mark):
                logits, cache = self.loaded.prefill(prompt.tensors)
            tokens = _Tokens([self._choose(logits, suppress=suppress)], cache=cache)
            if mark:
                mark("head")
            while len(tokens) < output_tokens and not (stop == "eos" and self._ended(tokens[-1])):
                tokens.append(self._choose(self.loaded.decode(tokens[-1], cache), suppress=suppress))
                if mark:
                    mark("decode_step")
            return tokens

    def numbers_of(self, tokens: Sequence[Tensor]) -> list[int]:
        """Ids of generated tokens; waits for the device."""
        with memory_errors(self.device):
            return [int(number) for number in torch.cat([token.reshape(-1) for token in tokens]).tolist()]

    def _choose(self, logits: Tensor, *, suppress: bool) -> Tensor:
        """Choose the likeliest token of logits [1, vocabulary] -> [1, 1]; never an end of sequence if suppressed.

        Keeping the ends out is one small kernel a step, however many there are, and the choice is another.
        """
        if suppress and self.loaded.eos_token_ids:
            logits.index_fill_(-1, self._end_ids(logits.device), -torch.inf)
        return logits.argmax(dim=-1, keepdim=True)

    def _end_ids(self, device: torch.device) -> Tensor:
        """Ids that end a sequence, on the device: sent there once."""
        if self._ends is None or self._ends.device != device:
            self._ends = torch.tensor(list(self.loaded.eos_token_ids), device=device)
        return self._ends

    def _ended(self, token: Tensor) -> bool:
        return int(token) in self.loaded.eos_token_ids

    def busy(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Replay the work as a CUDA graph; where it cannot be captured, add up kernel times of the profiler."""
        if not self._on_gpu:
            return [], NO_BUSY_TIME
        work = {"prefill": self._prefill_plainly, "vision": self.vision}
        with memory_errors(self.device):
            found = []
            for phase, call in work.items():
                if self.beside:  # a graph is one device's
                    found.append(BusyTime("profiler", phase, self._profile(call, prompt, min(repeats, 3))))
                    continue
                try:
                    found.append(BusyTime("cuda_graph", phase, self._replay(call, prompt, repeats)))
                except (OutOfDeviceMemory, torch.OutOfMemoryError):
                    raise
                except RuntimeError:  # something in the pass waits for the device, which a graph cannot
                    self.clock.synchronize()
                    found.append(BusyTime("profiler", phase, self._profile(call, prompt, min(repeats, 3))))
            return found, None

    @torch.inference_mode()
    def busy_step(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Replay one decode step as a CUDA graph: the same step again and again, with the cache as it was before it.

        The profiler is not asked where that fails: once started, it slows every later launch of the process.
        """
        if not self._on_gpu:
            return [], NO_BUSY_TIME
        if self.beside:
            return [], "a decode step on several devices cannot be captured as one CUDA graph"
        with memory_errors(self.device):
            logits, cache = self.loaded.prefill(prompt.tensors)
            token = self._choose(logits, suppress=True)
            held: list[object] = []

            def step(_: Prompt) -> object:
                # A growing cache lets go of the tensors that it was; the graph goes on reading them.
                held.extend((layer.keys, layer.values) for layer in cache.layers)
                return self._choose(self.loaded.decode(token, cache), suppress=True)

            try:
                return [BusyTime("cuda_graph", "decode_step", self._replay(step, prompt, repeats))], None
            except (OutOfDeviceMemory, torch.OutOfMemoryError):
                raise
            except RuntimeError as error:
                torch.cuda.synchronize(self.device)
                return [], f"a decode step cannot be captured as a CUDA graph ({str(error).splitlines()[0]})"

    def _prefill_plainly(self, prompt: Prompt) -> object:
        return self.prefill(prompt)

    @torch.inference_mode()
    def _replay(self, call: Any, prompt: Prompt, repeats: int) -> tuple[float, ...]:
        # Captured work must have run before on the stream of the capture, for libraries to choose their kernels.
        # One stream for all captures: cuBLAS keeps a workspace for each that it has seen.
        stream = self._side = self._side or torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            call(prompt)
        torch.cuda.current_stream(self.device).wait_stream(stream)
        torch.cuda.synchronize(self.device)
        graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
        before = torch.cuda.current_stream(self.device)
        try:
            with torch.cuda.graph(graph, pool=pool, stream=stream):
                kept = call(prompt)
        except RuntimeError:
            torch.cuda.set_stream(before)
            end_failed_capture(pool, self.device)
            raise
        samples = []
        for _ in range(repeats + 2):
            self.clock.synchronize()
            start = self.clock.mark()
            graph.replay()
            end = self.clock.mark()
            self.clock.synchronize()
            samples.append(self.clock.elapsed_ms(start, end))
        del kept
        graph.reset()
        return tuple(samples[2:])  # the first replays upload the graph

    @torch.inference_mode()
    def _profile(self, call: Any, prompt: Prompt, repeats: int) -> tuple[float, ...]:
        from torch.profiler import ProfilerActivity, profile

        samples = []
        for _ in range(repeats):
            self.clock.synchronize()
            with profile(activities=[ProfilerActivity.CUDA]) as profiler:
                call(prompt)
                self.clock.synchronize()
            busy_us = sum(event.self_device_time_total for event in profiler.key_averages())
            samples.append(busy_us / 1000)
        return tuple(samples)

    @torch.inference_mode()
    def memory(self, prompt: Prompt) -> list[MemoryUse]:
        """Read the allocator's peak at every boundary of one prefill; the allocator runs with the host.

        Of a model on several devices it is the sum of their peaks.
        """
        if not self._on_gpu:
            return []
        peaks: dict[str, MemoryUse] = {}
        devices = (self.device, *self.beside)

        def read(closes: str | None) -> None:
            if closes is not None:
                peak = sum(map(torch.cuda.max_memory_allocated, devices))
                if closes not in peaks or peak > peaks[closes].peak_allocated_bytes:
                    peaks[closes] = MemoryUse(closes, peak, sum(map(torch.cuda.memory_reserved, devices)))
            for device in devices:
                torch.cuda.reset_peak_memory_stats(device)

        self.clock.synchronize()
        with self.hooks():
            self.prefill(prompt, read)
        self.clock.synchronize()
        return list(peaks.values())

    def release(self) -> None:
        """Empty the allocator's cache."""
        import gc

        gc.collect()
        if self._on_gpu:
            torch.cuda.empty_cache()
