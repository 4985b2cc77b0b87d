"""What measuring needs from a way of running a model.

A *runner* is one subject, loaded on one device by one backend. It does the work; `vlmeter.measure.rounds` decides how
often and in what order, and takes the time. The split lets a test replace the runner by one whose durations are
declared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from vlmeter.backends.clock import Clock
from vlmeter.models.families.base import Counts, ImageOptions, SubjectSpec

if TYPE_CHECKING:
    from PIL.Image import Image

#: Placed in a call to mark the end of a phase; None opens the first phase.
Mark = Callable[[str | None], None]


class OutOfDeviceMemory(Exception):
    """The device has not enough memory for this cell: a result, not a fault."""


class DeviceLost(Exception):
    """The device refuses all further work in this process (a CUDA context that an error has poisoned)."""


@dataclass(frozen=True)
class Prompt:
    """One prompt on the device, and what was counted in it."""

    tensors: Mapping[str, Any]
    counts: Counts


@dataclass(frozen=True)
class Loading:
    """What a backend is asked to load: a model of a family, on a device (its name for torch)."""

    family: str
    spec: SubjectSpec
    device: str
    cpu_threads: int | None = None


@dataclass(frozen=True)
class BusyTime:
    """Time for which the device is busy with a piece of work, gaps between kernels left out."""

    source: Literal["cuda_graph", "profiler"]
    phase: str
    samples_ms: tuple[float, ...]


@dataclass(frozen=True)
class MemoryUse:
    """Device memory of one phase of a prefill."""

    phase: str
    peak_allocated_bytes: int
    reserved_bytes: int


class Runner(Protocol):
    """A loaded subject. Calls hand work to the device; none but `generate` with `stop="eos"` waits for it."""

    clock: Clock
    #: parameters per component, counted in the loaded model
    parameters: Mapping[str, int]

    def prepare(
        self,
        image: Image,
        question: str | None,
        *,
        text_tokens: int | None,
        options: ImageOptions,
        mark: Mark | None = None,
    ) -> Prompt:
        """Turn a picture and a question into device tensors; marks close `preprocess` and `copy`."""
        ...

    def hooks(self) -> AbstractContextManager[None]:
        """Let `prefill` and `generate` place their marks at every phase boundary; outside, the model has no hook."""
        ...

    def prefill(self, prompt: Prompt, mark: Mark | None = None) -> object:
        """Run the prompt into a new cache and choose the first token."""
        ...

    def vision(self, prompt: Prompt) -> object:
        """Run vision encoder and projector alone."""
        ...

    def generate(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], mark: Mark | None = None
    ) -> Sequence[Any]:
        """Generate greedily; the first token comes out of the prefill, each further closes a `decode_step`.

        Returns the tokens (on the device): `output_tokens` of them unless `stop` is "eos" and the sequence ended.
        """
        ...

    def busy(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Measure how long the device is busy with a prefill and with vision alone, or say why that cannot be."""
        ...

    def busy_step(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Measure for how long the device is busy with one decode step right behind the prompt; or say why not."""
        ...

    def memory(self, prompt: Prompt) -> list[MemoryUse]:
        """Measure the device memory that each phase of a prefill needs; empty where nothing counts it."""
        ...

    def release(self) -> None:
        """Give back memory that is held for reuse, after a cell that ran out of it."""
        ...
