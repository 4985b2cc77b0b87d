"""The same model with its kernels fused: `torch.compile`, replayed as CUDA graphs on a GPU, inductor's code on a CPU.

What is compiled are the parts that hold nearly all of the time, one by one: every block of the language model and of
the vision encoder, the projector, the head. All blocks of a kind share one compiled function, so that compiling takes
seconds instead of the minute that a whole model takes, and the marks stand where they stand in eager. What lies between
the parts (embedding, merge, masks, the choice of the token) runs as it is; on a GPU its launches are gone as well.

Shapes are compiled for, not left open. What inductor made is kept on disk (`CACHE_FOLDER`), so that a second session
compiles in a fraction of the time; seconds are kept per shape in `preparations` and are never part of a sample.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from vlmeter.backends.base import BusyTime, Loading, MemoryUse, Prompt
from vlmeter.backends.clock import make_clock
from vlmeter.backends.compiled.captured import Preparation, Shape, Stopwatch
from vlmeter.backends.compiled.captured_runner import CapturedRunner
from vlmeter.backends.compiled.constants import looks_so_far, unwatched
from vlmeter.backends.compiled.static_cache import FixedCache
from vlmeter.backends.compiled.vector_product import one_row_products
from vlmeter.backends.compiled.wide_attention import wide_vision_attention
from vlmeter.backends.compiled.windows import given_lengths
from vlmeter.backends.eager_runner import NO_BUSY_TIME, load_model
from vlmeter.common.errors import Unsupported

if TYPE_CHECKING:
    from vlmeter.models.families.base import LoadedModel

CompileMode = Literal["default", "max-autotune"]

#: Where compiled code is kept between sessions, unless inductor's own variable says otherwise.
CACHE_FOLDER = ("TORCHINDUCTOR_CACHE_DIR", str(Path.home() / ".cache" / "vlmeter" / "inductor"))

#: inductor's settings by compile_mode. Its own CUDA graphs stay off: ours are cut at the marks.
#: coordinate_descent_tuning also turns a product with one row, which reads a matrix once, into a kernel of its own.
OPTIONS: Mapping[CompileMode, Mapping[str, Any]] = {
    "default": {},
    "max-autotune": {"max_autotune": True, "coordinate_descent_tuning": True},
}

#: Functions of one code that dynamo keeps: shapes x (prefill, step) x kinds of block. Beyond it, it would run a
#: model's own code without a word.
FUNCTIONS_KEPT = 4096


def load_runner(asked: Loading) -> CompiledRunner:
    """Load a model on a device; raises Unsupported where nothing can be compiled for it."""
    os.environ.setdefault(*CACHE_FOLDER)  # before anything of inductor is imported, which chooses a folder for itself
    check_tools(asked.device)
    mode: CompileMode = asked.own.get("compile_mode", "default")
    return CompiledRunner(
        loaded=load_model(asked), device=asked.device, clock=make_clock(asked.device), compile_mode=mode
    )


def check_tools(device: str) -> None:
    """Raise Unsupported if what inductor writes cannot be built here: C++ for a CPU, Triton's code for a GPU."""
    if device != "cpu":
        if find_spec("triton") is None:
            raise Unsupported("backend: compile needs the package triton on a GPU; legal without: eager, cudagraph")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise Unsupported("backend: compile needs a C++ compiler on a CPU (g++ or CXX); legal without: eager") from None


@dataclass
class CompiledRunner(CapturedRunner):
    """A subject whose parts are compiled; see `Runner`."""

    compile_mode: CompileMode = "default"
    #: passes that compiled code runs in; the others run the model's own
    stages: Sequence[Literal["prefill", "step"]] = ("prefill", "step")
    #: whether products with one row, and vision attention in float32, run on kernels of ours; with max-autotune
    #: inductor has its own for the former
    own_kernels: bool | None = None
    _parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.own_kernels is None:
            self.own_kernels = self._on_gpu and self.compile_mode == "default"
        self._parts = parts_of(self.loaded, mode=self.compile_mode, on_gpu=self._on_gpu)

    def _make_ready(self, shape: Shape, prompt: Prompt, made: Preparation) -> None:
        if self._on_gpu:
            super()._make_ready(shape, prompt, made)
            return
        with self._compiled():
            watch = Stopwatch(self.clock.synchronize)
            shape.run_prefill(self.loaded)
            self.loaded.vision(shape.inputs)
            shape.run_step(self.loaded)
            shape.rewind()
            made.compile_s = watch.lap_s()

    def _compile_share(self, seconds: float, made: Preparation) -> float:
        return seconds

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        import torch._dynamo

        with ExitStack() as stack:
            stack.enter_context(torch._dynamo.config.patch(recompile_limit=FUNCTIONS_KEPT))
            stack.enter_context(torch._dynamo.config.patch(accumulated_recompile_limit=4 * FUNCTIONS_KEPT))
            stack.enter_context(torch._dynamo.config.patch(fail_on_recompile_limit_hit=True))
            stack.enter_context(given_lengths(self.loaded))
            if self.own_kernels:
                stack.enter_context(one_row_products(self.loaded.model))
                stack.enter_context(wide_vision_attention(self.loaded.model))
            for part in self._parts:
                part.stages = self.stages
                stack.enter_context(part.standing_in())
            yield

    @contextmanager
    def _trying(self) -> Iterator[None]:
        with self._compiled():
            for part in self._parts:
                part.on_trial = True
            try:
                yield
            finally:
                for part in self._parts:
                    part.on_trial = False
                    if part.looks:
                        self._say(f"{type(part.module).__name__} is not compiled: its code looks at the device")

    # ---- without graphs

    @contextmanager
    def _eagerly(self) -> Iterator[None]:
        with self._compiled():
            yield

    def _run_step(self, shape: Shape) -> None:
        if shape.step is not None:
            super()._run_step(shape)
            return
        shape.run_step(self.loaded)

    @torch.inference_mode()
    def generate(self, prompt: Prompt, **arguments: Any) -> Sequence[torch.Tensor]:
        """Generate greedily, by compiled code."""
        if self._on_gpu:
            return super().generate(prompt, **arguments)
        self._shape_for(prompt, arguments["output_tokens"])
        with self._compiled():
            return super().generate(prompt, **arguments)

    def busy(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Time replays on a GPU."""
        return super().busy(prompt, repeats=repeats) if self._on_gpu else ([], NO_BUSY_TIME)

    def busy_step(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Time replays of a step on a GPU."""
        return super().busy_step(prompt, repeats=repeats) if self._on_gpu else ([], NO_BUSY_TIME)

    def memory(self, prompt: Prompt) -> list[MemoryUse]:
        """Memory of every phase, where something counts it."""
        return super().memory(prompt) if self._on_gpu else []


class Part:
    """One module and the compiled function that can stand in for its forward."""

    def __init__(self, module: Any, *, layer: int | None, options: Mapping[str, Any]) -> None:
        self.module, self.layer = module, layer
        self.stages: Sequence[str] = ("prefill", "step")
        #: whether this is a pass that finds out what may be compiled, and what it found: code that looks at the device
        #: must be watched, which compiled code is not
        self.on_trial, self.looks = False, False
        self._function: Any = torch.compile(module.forward, dynamic=False, options=dict(options) or None)
        self._original = module.forward

    @contextmanager
    def standing_in(self) -> Iterator[None]:
        """Run compiled code whenever the module is called."""
        if "forward" in vars(self.module):  # a pass within a pass
            yield
            return
        self.module.forward = self._run
        try:
            yield
        finally:
            del self.module.forward

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        if self.on_trial:
            before = looks_so_far()
            result = self._original(*args, **kwargs)
            self.looks |= looks_so_far() > before
            return result
        if self.looks or ("step" if _tokens_of(args, kwargs) == 1 else "prefill") not in self.stages:
            return self._original(*args, **kwargs)
        with unwatched():
            return self._function(*map(self._seen, args), **{name: self._seen(value) for name, value in kwargs.items()})

    def _seen(self, value: Any) -> Any:
        """An argument as the compiled function sees it: of a cache, this block's own layer."""
        if self.layer is None:
            return value
        if isinstance(value, FixedCache):
            return value.views[self.layer]
        if is_dataclass(value) and not isinstance(value, type):
            held = {f.name: getattr(value, f.name) for f in fields(value)}
            caches = {name: item.views[self.layer] for name, item in held.items() if isinstance(item, FixedCache)}
            return replace(value, **caches) if caches else value
        return value


def _tokens_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Rows of the states that come first among a module's arguments."""
    first = args[0] if args else next(iter(kwargs.values()))
    return int(first.shape[-2]) if isinstance(first, torch.Tensor) and first.ndim > 1 else 0


def parts_of(loaded: LoadedModel, *, mode: CompileMode, on_gpu: bool) -> list[Part]:
    """The parts of a model that are compiled: every block, projector, head."""
    options = OPTIONS[mode] if on_gpu else {}
    text_blocks = _text_blocks(loaded)
    layers = {id(block): number for number, block in enumerate(text_blocks)}
    modules: list[Any] = []
    for module in _outermost_lists(loaded.model):
        modules += list(module)
    modules += [
        boundary.module
        for boundary in loaded.boundaries()
        if boundary.closes == "projector" and boundary.when == "after"
    ]
    modules += _head_of(loaded)
    seen: set[int] = set()
    parts = []
    for module in modules:
        inside = {id(inner) for inner in module.modules()}
        if not seen & inside and type(module) is not torch.nn.Linear:  # nothing to fuse in a single product
            seen |= inside
            parts.append(Part(module, layer=layers.get(id(module)), options=options))
    return parts


def _text_blocks(loaded: LoadedModel) -> list[Any]:
    """Blocks of the language model: the list that holds the module behind which its phase ends."""
    last = next((boundary.module for boundary in loaded.boundaries() if boundary.closes == "llm_blocks"), None)
    for module in loaded.model.modules():
        if isinstance(module, torch.nn.ModuleList) and any(block is last for block in module):
            return list(module)
    raise Unsupported("backend: compile finds no list of blocks in this model's language model; legal for it: eager")


def _outermost_lists(model: torch.nn.Module) -> Iterator[torch.nn.ModuleList]:
    """Lists of blocks that all run the same code and lie in no other list."""
    inside: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.nn.ModuleList) and id(module) not in inside:
            inside |= {id(inner) for inner in module.modules()}
            if len({type(block) for block in module}) == 1:
                yield module


def _head_of(loaded: LoadedModel) -> list[Any]:
    """Final norm and output matrix."""
    model: Any = loaded.model
    parts = getattr(loaded, "parts", None)
    if parts is None:
        return [model.head]
    return [model.get_submodule(path) for path in (parts.norm, parts.head) if path]
