"""Marks inside a vLLM server: where the time of a request goes on the device.

vLLM loads a class of ours into each of its workers (`--worker-extension-cls`, an extension point of its own) and lets
its methods be called over HTTP (`/collective_rpc`). They wrap what a worker calls for every step: the vision encoder,
the forward of the model, its head, the sampler, and the step as a whole, which is all that can be seen of a step whose
kernels are replayed as one CUDA graph.

This file runs in the server's environment, which does not have vlmeter: the folder that holds it is put on the server's
PYTHONPATH and the class is named by the bare module, so that nothing of vlmeter is imported. It needs Python alone, and
torch only where marks are CUDA events. A mark is such an event on a GPU and a reading of the host's steady clock
elsewhere; it waits for nothing, and durations are worked out when they are asked for.

What a version of vLLM does not have is told by name (`missing`), never guessed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from typing import Any

with contextlib.suppress(ImportError):  # it lies beside this file, and is wanted in every worker
    import_module("vlmeter_vllm_loopback")

#: Steps that are kept until they are taken; a server that nobody asks does not fill its memory.
MOST_STEPS = 20_000

#: The spans, from the outside in. A step is `execute` and then `after`; the others lie inside one of these.
#:   execute   the runner's execute_model: bookkeeping, copies, vision, forward (and, in the older runner, the head)
#:   encode    copying the pixels to the device, and the vision encoder, however it is run (a CUDA graph too)
#:   vision    the model's embed_multimodal: vision encoder and projector
#:   projector a module of its own between vision encoder and language model, as the model itself names it
#:   forward   the language model's blocks; a step that replays a full CUDA graph does not call it
#:   logits    the output matrix
#:   sample    choosing the token (the newer runner's holds `logits`)
#:   after     the runner's sample_tokens: sampling and handing over the tokens


class PhaseMarks:
    """Methods that a vLLM worker gains; each returns a mapping, as the RPC wants it.

    All names begin with `vlmeter_`, since vLLM refuses an extension that has a name of its worker's.
    """

    #: the worker's own
    model_runner: Any

    def vlmeter_install_marks(self) -> dict[str, Any]:
        """Put the marks in place, unless they are; say which, which not and why, and what is run.

        Returns {"clock", "device", "runner", "vllm", "marks": [names], "missing": {name: reason}}.
        """
        marks = _marks_of(self)
        if marks is None:
            marks = _Marks(self.model_runner)
            _HELD[id(self)] = marks
            marks.install()
        return marks.about()

    def vlmeter_take_marks(self) -> dict[str, Any]:
        """Return the steps since the last call, oldest first, once the device has passed their marks.

        Returns {"steps": [...], "dropped": how many were not kept}. A step is {"number", "began_ms": on the host's
        steady clock, which all processes of a machine share, "requests": [{"id", "tokens": scheduled in this step,
        "start": tokens before them, "prompt_tokens"}], "spans": [{"name", "start_ms": since the step's first mark,
        "ms", "inside": place of the span around it, or None}]}.
        """
        marks = _marks_of(self)
        return {"steps": [], "dropped": 0} if marks is None else marks.take()

    def vlmeter_remove_marks(self) -> dict[str, Any]:
        """Take the marks away; the server runs as if they had never been there."""
        marks = _HELD.pop(id(self), None)
        if marks is not None:
            marks.remove()
        return {"removed": marks is not None}


#: A worker's marks: no attribute of the worker, so that nothing of its own can be in the way.
_HELD: dict[int, _Marks] = {}


def _marks_of(worker: object) -> _Marks | None:
    return _HELD.get(id(worker))


class _HostClock:
    """For devices that work in step with the host."""

    kind = "host"

    def mark(self) -> float:
        return time.perf_counter()

    def give_back(self, mark: float) -> None:
        pass

    def elapsed_ms(self, start: float, end: float) -> float:
        return 1000 * (end - start)

    def synchronize(self) -> None:
        pass


class _CudaClock:
    """CUDA events on the stream on which the worker runs; used ones are kept, since making one costs more."""

    kind = "cuda_event"

    def __init__(self, device: Any) -> None:
        import torch

        self._cuda, self._device = torch.cuda, device
        self._free: list[Any] = []

    def mark(self) -> Any:
        event = self._free.pop() if self._free else self._cuda.Event(enable_timing=True)
        event.record()
        return event

    def give_back(self, mark: Any) -> None:
        self._free.append(mark)

    def elapsed_ms(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end))

    def synchronize(self) -> None:
        self._cuda.synchronize(self._device)


class _Step:
    """One step: its requests, and its spans as [name, start, end, place of the span around it]."""

    def __init__(self, number: int, requests: list[dict[str, Any]]) -> None:
        self.number, self.requests = number, requests
        self.began_ms = 1000 * time.perf_counter()
        self.spans: list[list[Any]] = []
        self.open: list[int] = []


Call = Callable[..., Any]
Around = Callable[[str, Call], Call]


class _Marks:
    """The wrappers in one worker, and what they saw."""

    def __init__(self, runner: Any) -> None:
        self.runner = runner
        self.model = runner.get_model()
        self.device = getattr(runner, "device", None)
        on_gpu = getattr(self.device, "type", str(self.device)) == "cuda"
        self.clock: Any = _CudaClock(self.device) if on_gpu else _HostClock()
        self.installed: list[str] = []
        self.missing: dict[str, str] = {}
        self._undo: list[tuple[Any, str, Any]] = []
        self._steps: list[_Step] = []
        self._step: _Step | None = None
        self._dropped, self._number = 0, 0
        #: request -> [tokens of its prompt, tokens that have been run], each None where unknown
        self._prompts: dict[str, list[int | None]] = {}

    # ---- wrapping

    def install(self) -> None:
        self._wrap("execute", self.runner, "execute_model", self._around_execute)
        self._wrap("after", self.runner, "sample_tokens", partial(self._around, ends_step=True))
        holder, name = self._encoder()
        self._wrap("encode", holder, name)
        self._wrap("vision", self.model, "embed_multimodal")
        self._projectors()
        self._wrap("forward", self.model, "forward")
        self._wrap("logits", self.model, "compute_logits")
        holder, name = self._sampler()
        self._wrap("sample", holder, name)

    def _encoder(self) -> tuple[Any, str]:
        """Whatever runs the vision encoder for a step: a method of the older runner, an object of the newer."""
        if callable(getattr(self.runner, "_execute_mm_encoder", None)):
            return self.runner, "_execute_mm_encoder"
        for holder in (getattr(self.runner, "model_state", None), self.runner):
            found = getattr(holder, "encoder_runner", None)
            if found is not None:
                return found, "execute_mm_encoder"
        return None, "_execute_mm_encoder"

    def _sampler(self) -> tuple[Any, str]:
        for name in ("_sample", "sample"):
            if callable(getattr(self.runner, name, None)):
                return self.runner, name
        return None, "sample"

    def _projectors(self) -> None:
        """The modules that the model itself names as its connector; their spans lie inside `vision`."""
        try:
            named = self.model.get_mm_mapping().connector
        except Exception as error:
            self.missing["projector"] = f"the model names no connector ({type(error).__name__})"
            return
        named = [named] if isinstance(named, str) else list(named or [])
        found: list[Any] = []
        for path in (name.rstrip(".") for name in named):
            try:
                module = self.model.get_submodule(path)
            except AttributeError:
                continue
            # a list of modules is none that runs; Qwen3-VL has one for its deeper features
            found += list(module) if type(module).__name__ == "ModuleList" else [module]
        if not found:
            self.missing["projector"] = "the model has no module of its own for it"
        for module in found:
            self._wrap("projector", module, "forward")

    def _wrap(self, span: str, holder: Any, name: str, around: Around | None = None) -> None:
        call = getattr(holder, name, None) if holder is not None else None
        if not callable(call):
            owner = type(holder if holder is not None else self.runner).__name__
            self.missing.setdefault(span, f"{owner} has no {name}")
            return
        own = vars(holder).get(name)
        make = around or self._around
        object.__setattr__(holder, name, make(span, call))
        self._undo.append((holder, name, own))
        if span not in self.installed:
            self.installed.append(span)

    def remove(self) -> None:
        for holder, name, own in reversed(self._undo):
            if own is None:
                object.__delattr__(holder, name)
            else:
                object.__setattr__(holder, name, own)
        self._undo, self._steps, self._step = [], [], None

    # ---- while the server runs

    def _around(self, span: str, call: Call, *, ends_step: bool = False) -> Call:
        def marked(*args: Any, **kwargs: Any) -> Any:
            step = self._step
            if step is None:  # outside of a step: a warm-up of the server's own
                return call(*args, **kwargs)
            place = self._begin(step, span)
            try:
                return call(*args, **kwargs)
            finally:
                self._end(step, place)
                if ends_step:
                    self._step = None

        return marked

    def _around_execute(self, span: str, call: Call) -> Call:
        def marked(scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
            scheduled = getattr(scheduler_output, "num_scheduled_tokens", None)
            if not scheduled or kwargs.get("dummy_run"):
                self._forget(scheduler_output)
                return call(scheduler_output, *args, **kwargs)
            step = self._step = _Step(self._number, self._requests(scheduler_output, scheduled))
            self._number += 1
            self._keep(step)
            place, result = self._begin(step, span), None
            try:
                result = call(scheduler_output, *args, **kwargs)
                return result
            finally:
                self._end(step, place)
                if result is not None:  # nothing is left for sample_tokens
                    self._step = None

        return marked

    def _begin(self, step: _Step, span: str) -> int:
        place = len(step.spans)
        step.spans.append([span, self.clock.mark(), None, step.open[-1] if step.open else None])
        step.open.append(place)
        return place

    def _end(self, step: _Step, place: int) -> None:
        step.spans[place][2] = self.clock.mark()
        step.open.remove(place)

    def _keep(self, step: _Step) -> None:
        self._steps.append(step)
        if len(self._steps) > MOST_STEPS:
            self._give_back(self._steps.pop(0))
            self._dropped += 1

    def _requests(self, scheduler_output: Any, scheduled: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Which requests a step runs, and where in each; vLLM tells a prompt's length once, with its first step."""
        self._forget(scheduler_output)
        for new in getattr(scheduler_output, "scheduled_new_reqs", ()):
            ids = getattr(new, "prompt_token_ids", None)
            self._prompts[new.req_id] = [None if ids is None else len(ids), new.num_computed_tokens]
        cached = getattr(scheduler_output, "scheduled_cached_reqs", None)
        names, computed = getattr(cached, "req_ids", ()), getattr(cached, "num_computed_tokens", ())
        if len(names) == len(computed):
            for name, tokens in zip(names, computed, strict=True):
                self._prompts.setdefault(name, [None, None])[1] = int(tokens)
        found = []
        for name, tokens in scheduled.items():
            known = self._prompts.setdefault(name, [None, None])
            found.append({"id": name, "tokens": int(tokens), "start": known[1], "prompt_tokens": known[0]})
            if known[1] is not None:
                known[1] += int(tokens)
        return found

    def _forget(self, scheduler_output: Any) -> None:
        for name in getattr(scheduler_output, "finished_req_ids", ()) or ():
            self._prompts.pop(name, None)

    # ---- afterwards

    def about(self) -> dict[str, Any]:
        try:
            version = import_module("vllm.version").__version__
        except Exception:
            version = None
        runner = type(self.runner)
        return {
            "clock": self.clock.kind,
            "device": str(self.device),
            "runner": f"{runner.__module__}.{runner.__qualname__}",
            "model": type(self.model).__name__,
            "vllm": version,
            "marks": list(self.installed),
            "missing": dict(self.missing),
        }

    def take(self) -> dict[str, Any]:
        """Work out and forget what was seen; a step that has not ended yet stays for the next time."""
        self.clock.synchronize()
        done = [step for step in self._steps if not step.open and step is not self._step]
        self._steps = [step for step in self._steps if step.open or step is self._step]
        taken = {"steps": [self._read(step) for step in done], "dropped": self._dropped}
        for step in done:
            self._give_back(step)
        self._dropped = 0
        return taken

    def _read(self, step: _Step) -> dict[str, Any]:
        first = step.spans[0][1]
        spans = [
            {
                "name": name,
                "start_ms": self.clock.elapsed_ms(first, start),
                "ms": self.clock.elapsed_ms(start, end),
                "inside": inside,
            }
            for name, start, end, inside in step.spans
        ]
        return {"number": step.number, "began_ms": step.began_ms, "requests": step.requests, "spans": spans}

    def _give_back(self, step: _Step) -> None:
        for _, start, end, _ in step.spans:
            for mark in (start, end):
                if mark is not None:
                    self.clock.give_back(mark)
