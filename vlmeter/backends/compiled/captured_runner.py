"""The same kernels without their launches: prefill and decode step are captured per shape and replayed.

What eager decoding loses to the host - several hundred launches a step, each a few microseconds - is gone; what the
kernels themselves take stays. The cache has a fixed length, no longer than the prompt and the wanted output need.

A shape is made ready (`CapturedRunner.ready`) before its first sample: buffers, one pass whose looks at the device are
remembered, one that must do without them, then the captures. If a shape's prefill cannot be captured it runs as eager
does, into the same cache, and `notes` says so; the decode step is a graph of its own.
"""

from __future__ import annotations

import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vlmeter.backends.base import (
    BusyTime,
    CellFault,
    Loading,
    Mark,
    MemoryUse,
    OpenedRequest,
    OutOfDeviceMemory,
    Prompt,
)
from vlmeter.backends.clock import make_clock
from vlmeter.backends.compiled import decode_attention
from vlmeter.backends.compiled.captured import Capture, Capturer, Preparation, Shape, Stopwatch, key_of, new_shape
from vlmeter.backends.compiled.constants import Remembered
from vlmeter.backends.compiled.static_cache import rounded
from vlmeter.backends.compiled.windows import given_lengths
from vlmeter.backends.eager_runner import EagerRunner, load_model, memory_errors
from vlmeter.models.families.base import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor

#: The first replays of a graph upload it to the device, which takes longer.
UPLOADS = 2

#: Shapes kept ready; the one that was used longest ago makes room for the next.
SHAPES_KEPT = 64


def load_runner(asked: Loading) -> CapturedRunner:
    """Load a model on a GPU."""
    return CapturedRunner(loaded=load_model(asked), device=asked.device, clock=make_clock(asked.device))


@dataclass
class CapturedRunner(EagerRunner):
    """A subject whose passes are replayed; see `Runner`."""

    #: what every shape took before its first sample
    preparations: list[Preparation] = field(default_factory=list)
    _shapes: OrderedDict[Any, Shape] = field(default_factory=OrderedDict)
    _capturer: Any = None
    _said: dict[str, None] = field(default_factory=dict)
    _hooked: bool = False

    def __post_init__(self) -> None:
        use_fixed_cache_attention(self.loaded)

    @property
    def notes(self) -> Sequence[str]:
        """What has to be known about the phases, and what is not captured."""
        return (*super().notes, *self._said)

    # ---- making ready

    def prepare(self, opened: OpenedRequest, *, mark: Mark | None = None) -> Prompt:
        """Preprocess on the host, and look what the prompt has in common with others; then copy to the device."""
        if mark:
            mark(None)
        inputs = self._inputs(opened)
        key = key_of(inputs.tensors, image_token_id=getattr(self.loaded, "_image_token_id", None))
        if mark:
            mark("preprocess")
        tensors = self._copied(inputs)
        if mark:
            mark("copy")
        return KeyedPrompt(tensors=tensors, counts=inputs.counts, key=key)

    def ready(self, prompt: Prompt, *, output_tokens: int) -> Mapping[str, float]:
        """Make everything that this shape needs, unless it is there already: outside of every sample."""
        known = len(self.preparations)
        self._made_shape(prompt, output_tokens)
        return self.preparations[-1].seconds if len(self.preparations) > known else {}

    @torch.inference_mode()
    def _made_shape(self, prompt: Prompt, output_tokens: int) -> Shape:
        """The shape with the very cache that so many tokens need, made if it is not there."""
        assert isinstance(prompt, KeyedPrompt)
        capacity = rounded(prompt.counts.prompt_tokens + max(output_tokens - 1, 1))  # room for one step at least
        key = (prompt.key, capacity)
        shape = self._shapes.get(key)
        if shape is None:
            while len(self._shapes) >= SHAPES_KEPT:
                self._shapes.popitem(last=False)
            made = Preparation(f"{prompt.counts.prompt_tokens} prompt tokens, cache of {capacity}")
            with memory_errors(self.device):
                shape = new_shape(self.loaded, prompt.tensors, capacity=capacity, device=self.device)
                self._make_ready(shape, prompt, made)
            self.preparations.append(made)
            self._shapes[key] = shape
        self._shapes.move_to_end(key)
        return shape

    def _shape_for(self, prompt: Prompt, output_tokens: int) -> Shape:
        """The ready shape with the shortest cache that is long enough; a warm-up may be shorter than its samples."""
        assert isinstance(prompt, KeyedPrompt)
        needed = prompt.counts.prompt_tokens + output_tokens - 1
        fitting = [capacity for key, capacity in self._shapes if key == prompt.key and capacity >= needed]
        if not fitting:
            return self._made_shape(prompt, output_tokens)
        self._shapes.move_to_end((prompt.key, min(fitting)))
        return self._shapes[prompt.key, min(fitting)]

    def _make_ready(self, shape: Shape, prompt: Prompt, made: Preparation) -> None:
        self._capturer = self._capturer or Capturer(self.device)
        watch = Stopwatch(self.clock.synchronize)
        work: list[tuple[str, Callable[[], object], Callable[[], None]]] = [
            ("prefill", lambda: shape.run_prefill(self.loaded), lambda: None),
            ("vision", lambda: self.loaded.vision(shape.inputs), lambda: None),
            ("step", lambda: shape.run_step(self.loaded), shape.rewind),
        ]
        for name, call, rewind in work:
            capture = self._captured(name, call, rewind, shape, made, watch)
            setattr(shape, name, capture)

    def _captured(
        self,
        name: str,
        call: Callable[[], object],
        rewind: Callable[[], None],
        shape: Shape,
        made: Preparation,
        watch: Stopwatch,
    ) -> Capture | None:
        remembered = Remembered()
        watch.lap_s()
        try:
            with given_lengths(self.loaded), as_if_not_capturing():
                with self._capturer.aside():
                    rewind()
                    call()  # models check more of a shape that they see for the first time
                    rewind()
                    with self._trying(), remembered.watching():
                        call()
                    made.capture_s += watch.lap_s()
                    rewind()
                    with self._compiled(), remembered.replaying():
                        call()
                    made.compile_s += self._compile_share(watch.lap_s(), made)
                    rewind()
                    with self._compiled(), remembered.replaying(), waits_are_errors():
                        call()
                    rewind()
                with self._compiled(), remembered.replaying(), self._cutting() as cutting:
                    capture: Capture = self._capturer.capture(
                        lambda cut: cutting(cut, call), closes="head" if name == "prefill" else None
                    )
        except (OutOfDeviceMemory, torch.OutOfMemoryError, torch.AcceleratorError):
            raise
        except RuntimeError as error:
            self.clock.synchronize()
            if name == "step":  # what a prefill leaves is used by steps alone
                raise CellFault(f"a decode step cannot be captured: {_first_line(error)}{_where(error)}") from error
            self._say(f"{name} is not captured but run as eager does: {_first_line(error)}{_where(error)}")
            return None
        finally:
            made.capture_s += watch.lap_s()
        capture.reads = remembered
        for _ in range(UPLOADS):
            rewind()
            capture.replay()
        rewind()
        made.capture_s += watch.lap_s()
        if remembered.looks:
            self._say(
                f"{name}: what its code looks at on the device ({_counted(remembered.looks)}) is taken from the first "
                "pass of a shape, so that nothing waits"
            )
        return capture

    def _compile_share(self, seconds: float, made: Preparation) -> float:
        """How much of a first pass was compilation; none here."""
        made.capture_s += seconds
        return 0.0

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """Let compiled code stand in for the model's; none here."""
        yield

    @contextmanager
    def _trying(self) -> Iterator[None]:
        """Find out which parts look at the device; there are no parts here."""
        yield

    @contextmanager
    def _cutting(self) -> Iterator[Callable[[Mark, Callable[[], object]], object]]:
        """Cut a capture where a pass would place its marks."""
        with ExitStack() as stack:
            if not self._hooked:
                stack.enter_context(super().hooks())

            def run(cut: Mark, call: Callable[[], object]) -> object:
                with self._marked(cut):
                    return call()

            yield run

    def _say(self, note: str) -> None:
        self._said[note] = None

    # ---- running

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Let passes place their marks."""
        with super().hooks():
            self._hooked = True
            try:
                yield
            finally:
                self._hooked = False

    def _run_prefill(self, shape: Shape, mark: Mark | None) -> None:
        place = mark if self._hooked else None
        if shape.prefill is None:
            with self._eagerly(), self._marked(place):
                shape.run_prefill(self.loaded)
            if mark:
                mark("head")
            return
        if place:
            place(None)
        shape.prefill.replay(place)
        if mark and not place:
            mark("head")

    @contextmanager
    def _eagerly(self) -> Iterator[None]:
        """What stands around a pass that is not replayed."""
        yield

    def _run_step(self, shape: Shape) -> None:
        assert shape.step is not None
        shape.step.replay()

    @torch.inference_mode()
    def vision(self, prompt: Prompt) -> object:
        """Run vision encoder and projector."""
        shape = self._shape_for(prompt, 1)
        with memory_errors(self.device):
            shape.load(prompt.tensors)
            if shape.vision is not None:
                return shape.vision.replay()
            with self._eagerly():
                return self.loaded.vision(shape.inputs)

    @torch.inference_mode()
    def generate(
        self, prompt: Prompt, *, output_tokens: int, stop: Literal["length", "eos"], mark: Mark | None = None
    ) -> Sequence[Tensor]:
        """Generate greedily; the copy of the prompt into its buffers counts to the prefill."""
        shape = self._shape_for(prompt, output_tokens)
        with memory_errors(self.device):
            self._forbid(shape, stop == "length")
            shape.load(prompt.tensors)
            self._run_prefill(shape, mark)
            count = 1
            while count < output_tokens and not (stop == "eos" and self._ended(shape.token)):
                self._run_step(shape)
                count += 1
                if mark:
                    mark("decode_step")
            return list(shape.tokens[:count].clone().view(-1, 1, 1).unbind(0))

    def _forbid(self, shape: Shape, suppress: bool) -> None:
        """Forbid the tokens that end a sequence, or allow them; the graphs read it in every step."""
        if shape.forbidden is not None:
            shape.forbidden.zero_()
            if suppress and self.loaded.eos_token_ids:
                shape.forbidden.index_fill_(-1, self._end_ids(shape.forbidden.device), -torch.inf)

    # ---- looking further

    @torch.inference_mode()
    def busy(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Time replays of what is captured; what is not, as eager does."""
        shape = self._shape_for(prompt, 1)
        if shape.prefill is None or shape.vision is None:
            return super().busy(prompt, repeats=repeats)
        with memory_errors(self.device):
            found = {"prefill": shape.prefill, "vision": shape.vision}
            return [
                BusyTime("cuda_graph", phase, self._time_replays(capture, lambda: None, repeats))
                for phase, capture in found.items()
            ], None

    @torch.inference_mode()
    def busy_step(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Time replays of the step behind the prompt, with the shortest cache that holds it."""
        shape = self._nearest(prompt)
        with memory_errors(self.device):
            shape.load(prompt.tensors)
            self._run_prefill(shape, None)
            assert shape.step is not None
            return [BusyTime("cuda_graph", "decode_step", self._time_replays(shape.step, shape.rewind, repeats))], None

    def _nearest(self, prompt: Prompt) -> Shape:
        """The shape that was used last for prompts like this one, for its cache is the one that was measured."""
        assert isinstance(prompt, KeyedPrompt)
        for (key, capacity), shape in reversed(self._shapes.items()):
            if key == prompt.key and capacity > prompt.counts.prompt_tokens:
                return shape
        return self._made_shape(prompt, 2)

    def _time_replays(self, capture: Capture, before: Callable[[], None], repeats: int) -> tuple[float, ...]:
        samples = []
        for _ in range(repeats + 2):
            before()
            self.clock.synchronize()
            start = self.clock.mark()
            capture.replay()
            end = self.clock.mark()
            self.clock.synchronize()
            samples.append(self.clock.elapsed_ms(start, end))
        return tuple(samples[2:])

    def memory(self, prompt: Prompt) -> list[MemoryUse]:
        """Memory of every phase as it was captured: the graphs hold it from then on."""
        shape = self._shape_for(prompt, 1)
        return super().memory(prompt) if shape.prefill is None else shape.prefill.peaks

    def release(self) -> None:
        """Give back every shape's buffers and graphs."""
        self._shapes.clear()
        super().release()


@dataclass(frozen=True)
class KeyedPrompt(Prompt):
    """A prompt that knows which others can run on the same capture."""

    key: Any = None


def use_fixed_cache_attention(loaded: LoadedModel) -> None:
    """Let the language model attend to a cache of fixed length by `decode_attention`, where it would by SDPA."""
    config: Any = loaded.model.config
    text = config.get_text_config(decoder=True)
    if text._attn_implementation != "sdpa":
        return
    functions = getattr(loaded.model, "attention_functions", None)
    if functions is None:
        decode_attention.register()
    else:
        functions.setdefault(decode_attention.NAME, _for_single_tokens(functions["sdpa"]))
    text._attn_implementation = decode_attention.NAME


def _for_single_tokens(otherwise: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        if query.shape[0] == query.shape[2] == 1 and mask is not None and mask.dtype == torch.bool:
            return decode_attention.decode_attention(query, key, value, mask)
        return otherwise(query, key, value, mask, causal)

    return attend


@contextmanager
def waits_are_errors() -> Iterator[None]:
    """Raise RuntimeError at whatever waits for the device, before a capture would break over it."""
    if not torch.cuda.is_available():
        yield
        return
    with ExitStack() as stack:
        before = torch.cuda.get_sync_debug_mode()
        stack.callback(torch.cuda.set_sync_debug_mode, before)
        torch.cuda.set_sync_debug_mode("error")
        yield


@contextmanager
def as_if_not_capturing() -> Iterator[None]:
    """Let transformers run the very code that it runs otherwise: while capturing it makes masks that it need not."""
    from transformers.utils import import_utils

    before = import_utils.is_cuda_stream_capturing
    import_utils.is_cuda_stream_capturing = lambda: False
    try:
        yield
    finally:
        import_utils.is_cuda_stream_capturing = before


def _where(error: BaseException) -> str:
    """The place in a model's code at which an error arose."""
    models = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if "modeling" in Path(frame.filename).name or "masking" in Path(frame.filename).name
    ]
    if not models:
        return ""
    return f" ({Path(models[-1].filename).name}, {models[-1].name}: {(models[-1].line or '').strip()})"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _counted(looks: Mapping[str, int]) -> str:
    return ", ".join(f"{count} x {name.removeprefix('aten.')}" for name, count in looks.items())
