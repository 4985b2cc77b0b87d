"""What measuring needs from a way of running a model.

A *runner* is one subject, loaded on one device by one backend. It does the work; `vlmeter.measure` decides how
often and in what order, and takes the time. The split lets a test replace the runner by one whose durations are
declared. It must prepare a request and generate; what else it can do are *capabilities*, which it has or has not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import BaseModel

from vlmeter.backends.clock import Clock, Timing
from vlmeter.backends.device import Device
from vlmeter.common.errors import Unsupported
from vlmeter.models.encoding import Encoding
from vlmeter.models.families.base import Counts, ImageOptions, SubjectSpec

if TYPE_CHECKING:
    from PIL.Image import Image

#: Placed in a call to mark the end of a phase; None opens the first phase.
Mark = Callable[[str | None], None]

#: What is at hand of a request before it runs: what was made of its picture, or of its whole prompt.
Known = Literal["picture", "prompt"]


class OutOfDeviceMemory(Exception):
    """The device has not enough memory for this cell: a result, not a fault."""


class DeviceLost(Exception):
    """The device refuses all further work in this process (a CUDA context that an error has poisoned)."""


class CellFault(Exception):
    """What was measured of a cell is not what it should be; the message is one sentence, and the other cells go on."""


@dataclass(frozen=True)
class OpenedRequest:
    """A request with its pictures opened.

    Exactly one of question and text_tokens is given: with text_tokens the prompt's text part is filled to exactly that
    many tokens. encoding: how its pictures are sent as files, where they are; None: as the subject says.
    """

    pictures: tuple[Image, ...]
    question: str | None
    text_tokens: int | None
    options: ImageOptions
    encoding: Encoding | None = None

    @property
    def picture(self) -> Image:
        """Its only picture; raises Unsupported if there are several."""
        if len(self.pictures) != 1:
            raise Unsupported(f"a request with {len(self.pictures)} pictures, where one is taken")
        return self.pictures[0]


@dataclass(frozen=True)
class Prompt:
    """One prompt on the device, and what was counted in it; picture_bytes: the size of a file that is sent."""

    tensors: Mapping[str, Any]
    counts: Counts
    picture_bytes: int | None = None


@dataclass(frozen=True)
class Loading:
    """What a backend is asked to load: a model of a family, on a device (its name for torch)."""

    family: str
    spec: SubjectSpec
    device: str
    cpu_threads: int | None = None
    #: the backend's own keys, by name
    own: Mapping[str, Any] = field(default_factory=dict)
    #: further cards, by their names for torch, if the session holds several
    beside: tuple[str, ...] = ()
    #: where the backend may keep files of its own, such as a server's log
    folder: Path | None = None
    #: hears of what takes long
    tell: Callable[[str], None] = lambda message: None


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
    """A loaded subject. Calls hand work over; none but `generate` with `stop="eos"` waits for the device.

    This is all that a way of running must do. What else one can do are the capabilities below; an arm says which of
    them it needs.
    """

    clock: Clock

    def prepare(self, opened: OpenedRequest, *, mark: Mark | None = None) -> Prompt:
        """Make a request ready to be run; marks close `preprocess` and `copy`.

        Raises Unsupported for a request that this way of running, or the model, cannot take.
        """
        ...

    def generate(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], mark: Mark | None = None
    ) -> Sequence[Any]:
        """Generate greedily; the first token comes out of the prefill, each further closes a `decode_step`.

        One output token is the prefill alone. Returns the tokens (on the device): `output_tokens` of them unless `stop`
        is "eos" and the sequence ended.
        """
        ...


@runtime_checkable
class MarksPhases(Protocol):
    """It can place marks at the boundaries of the phases of a prefill."""

    def hooks(self) -> AbstractContextManager[None]:
        """Let `generate` place its marks at every phase boundary; outside, the model has no hook."""
        ...


@runtime_checkable
class RunsVisionAlone(Protocol):
    """It can run vision encoder and projector without what follows."""

    def vision(self, prompt: Prompt) -> object:
        """Run vision encoder and projector alone."""
        ...


@runtime_checkable
class TellsBusyTime(Protocol):
    """It can tell for how long the device is busy with a piece of work."""

    def busy(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Measure how long the device is busy with a prefill and with vision alone, or say why that cannot be."""
        ...

    def busy_step(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Measure for how long the device is busy with one decode step right behind the prompt; or say why not."""
        ...


@runtime_checkable
class TellsMemory(Protocol):
    """It can tell how much device memory each phase needs."""

    def memory(self, prompt: Prompt) -> list[MemoryUse]:
        """Measure the device memory that each phase of a prefill needs; empty where nothing counts it."""
        ...


@runtime_checkable
class CountsParameters(Protocol):
    """It can count the parameters of the loaded model."""

    @property
    def parameters(self) -> Mapping[str, int]:
        """Parameters per component."""
        ...


@runtime_checkable
class HoldsMemory(Protocol):
    """It holds memory for reuse that can be given back."""

    def release(self) -> None:
        """Give back memory that is held for reuse, after a cell that ran out of it."""
        ...


@runtime_checkable
class StampsItself(Protocol):
    """It knows better than readings around a call when what happened, as a client of a server does."""

    def run(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], marked: bool
    ) -> tuple[Timing, int]:
        """Run a request; returns its times and the number of its tokens. marked: with spans between its marks."""
        ...


@runtime_checkable
class RunsKnown(Protocol):
    """It keeps what it made of a request, and can run one of which it knows the picture, or all of the prompt."""

    def run_known(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], known: Known
    ) -> tuple[Timing, int]:
        """Let it meet a new request, and then run one of the same picture; returns as `StampsItself.run`, unmarked.

        known: "picture": what was made of the picture is at hand, and nothing of the prompt; "prompt": that too.
        """
        ...


@runtime_checkable
class GetsReady(Protocol):
    """It compiles or captures what a shape of request runs on, which must happen in no sample."""

    def ready(self, prompt: Prompt, *, output_tokens: int) -> Mapping[str, float]:
        """Make everything that such a request runs on, unless it is there already.

        Returns the seconds that it took, by what they were for (`compile`, `capture`); none if all was there.
        """
        ...


@runtime_checkable
class RunsElsewhere(Protocol):
    """It runs in processes of its own, which are ended with it."""

    @property
    def about(self) -> Mapping[str, Any]:
        """What runs, for the record."""
        ...

    @property
    def identity(self) -> Sequence[str]:
        """What its numbers depend on, beside the subject's own keys."""
        ...

    def processes(self) -> Sequence[int]:
        """Its processes on this machine."""
        ...

    def disturbances(self) -> tuple[str, ...]:
        """What disturbed it since the last time that this was asked."""
        ...

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the last prompt, by its own count; None where it does not say."""
        ...

    def said(self) -> Mapping[str, float]:
        """What it said of the last request, by its own names, in milliseconds."""
        ...

    def close(self) -> None:
        """End it."""
        ...


@runtime_checkable
class HasNotes(Protocol):
    """It has something to say that a reader of its numbers has to know."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the record and the report."""
        ...


@runtime_checkable
class TellsTokens(Protocol):
    """It can tell which tokens it generated, so that two ways of running can be held against each other."""

    def numbers_of(self, tokens: Sequence[Any]) -> list[int]:
        """Ids of tokens that `generate` has returned; waits for the device."""
        ...


@dataclass(frozen=True)
class Execution:
    """What lies between a model's operators and the device in a way of running, as the backend says it.

    launches: how the host hands the work over: "each" operator by itself; "fewer", since one call runs several of them;
    "replayed", a whole pass at once. kernels: what runs on the device: "separate" ones, about one an operator; or
    "fused". "unseen": another program does it, and does not tell.
    """

    launches: Literal["each", "fewer", "replayed", "unseen"]
    kernels: Literal["separate", "fused", "unseen"]


@dataclass(frozen=True)
class Needs:
    """What a session asks of its machine beside what every session does.

    gpus: equal cards that it holds on a machine with GPUs; 0: none. processes: further ones that are as large as the
    session's. loading_s: how long it may take to start them. ready_s: how long to get a shape ready (`GetsReady`).
    weights_pass: whether the host's memory or its files hold random weights on their way to a device.
    """

    gpus: int = 1
    processes: int = 0
    loading_s: float = 0.0
    ready_s: float = 0.0
    weights_pass: bool = False


@dataclass(frozen=True)
class Backend:
    """What a way of running says of itself.

    name: as a study calls it. about: one line for people. takes: keys of a subject that it knows, beside family,
    preset, weights, dtype, device, backend and seed, which all do. keys: its own keys, as a pydantic model whose fields
    have defaults. runs_model: whether a model runs at all; if not, its numbers mean nothing and nothing has limits.
    in_process: whether it runs in the session's own process, on a device that is found and held there. has_limits:
    whether a subject's model (family, preset, own keys) runs on one device of the session's, whose limits are its own.
    reads_weights:
    whether it can read a checkpoint.
    execution: says how a model is run on a device (its name for torch); None: no model is.
    check: says what is wrong with a subject's own keys, if anything. devices: finds the devices that a wish of a study
    and the own keys stand for; None: those of torch. needs: says what a session with the own keys asks of its machine.
    encoding: how a subject with the own keys is sent its pictures as files; None where they are no files.
    """

    name: str
    about: str
    load: Callable[[Loading], Runner]
    takes: frozenset[str] = frozenset()
    keys: type[BaseModel] | None = None
    runs_model: bool = True
    in_process: bool = True
    has_limits: Callable[[str | None, str | None, Mapping[str, Any]], bool] = lambda family, preset, own: True
    reads_weights: bool = True
    check: Callable[[Mapping[str, Any]], str | None] = lambda own: None
    devices: Callable[[str, Mapping[str, Any]], tuple[Device, ...] | None] = lambda wish, own: None
    needs: Callable[[Mapping[str, Any]], Needs] = lambda own: Needs()
    execution: Callable[[str], Execution | None] = lambda device: None
    encoding: Callable[[Mapping[str, Any]], Encoding | None] = lambda own: None
