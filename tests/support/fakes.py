"""A subject whose durations are declared: a fake clock, and a runner that turns it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from vlmeter.backends.base import BusyTime, MemoryUse, OpenedRequest, OutOfDeviceMemory, Prompt
from vlmeter.models.families.base import PREFILL_PHASES, Counts, SubjectSpec
from vlmeter.models.families.registry import get_family
from vlmeter.models.molmo1.geometry import geometry

HOOK_ORDER = ("merge", "vision_encoder", "projector", "merge", "llm_blocks", "head")


class FakeClock:
    """A clock that a test turns by hand: a host that launches, a device that works behind it.

    `work` advances the host by the launch time and lets the device start at the later of "launched" and "free", as a
    stream does, so that launch-bound and device-bound work can be played through without timing anything.
    """

    mark_kind = "fake"

    def __init__(self) -> None:
        self._host_ms = 0.0
        self._device_free_ms = 0.0

    def work(self, *, device_ms: float, launch_ms: float = 0.0) -> None:
        """Launch one piece of work."""
        self._host_ms += launch_ms
        self._device_free_ms = max(self._device_free_ms, self._host_ms) + device_ms

    def host_work(self, duration_ms: float) -> None:
        """Spend time on the host alone."""
        self._host_ms += duration_ms

    def mark(self) -> float:
        """The moment at which the device passes this mark."""
        return max(self._device_free_ms, self._host_ms)

    def elapsed_ms(self, start: float, end: float) -> float:
        """Difference of two moments."""
        return end - start

    def synchronize(self) -> None:
        """Move the host to the end of the device's work."""
        self._host_ms = max(self._host_ms, self._device_free_ms)

    def host_ms(self) -> float:
        """The host's time."""
        return self._host_ms


@dataclass
class FakeRunner:
    """A runner with laws: every phase takes `fixed + per_crop * crops + per_token * tokens` ms of device time.

    noise_fraction multiplies every duration by a random factor around 1; slowdown is a further factor that a test may
    change in the middle (drift); fail maps a call ("prefill", "vision", ...) to a function that may raise.
    """

    fixed_ms: Mapping[str, float] = field(
        default_factory=lambda: {
            "vision_encoder": 1.0,
            "projector": 0.3,
            "merge": 0.1,
            "llm_blocks": 2.0,
            "head": 0.2,
            "decode_step": 3.0,
        }
    )
    per_crop_ms: Mapping[str, float] = field(default_factory=lambda: {"vision_encoder": 2.0, "projector": 0.5})
    per_token_ms: Mapping[str, float] = field(
        default_factory=lambda: {"llm_blocks": 0.02, "merge": 0.0005, "decode_step": 0.001}
    )
    launch_ms: Mapping[str, float] = field(default_factory=dict)
    hook_cost_ms: float = 0.0
    noise_fraction: float = 0.0
    seed: int = 0
    clock: FakeClock = field(default_factory=FakeClock)
    parameters: Mapping[str, int] = field(
        default_factory=lambda: {
            "vision_encoder": 1000,
            "projector": 100,
            "embedding": 500,
            "llm_blocks": 4000,
            "head": 500,
        }
    )
    slowdown: float = 1.0
    fail: dict[str, Callable[[], None]] = field(default_factory=dict)
    text_tokens_of_question: int | None = None  # None: as many as the plan says for random weights
    extra_vision_tokens: int = 0
    ends_after: int | None = None
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._hooked = False

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if name in self.fail:
            self.fail[name]()

    def duration_ms(self, phase: str, *, crops: int, tokens: int) -> float:
        """Declared device time of a phase, before noise."""
        return (
            self.fixed_ms.get(phase, 0.0)
            + self.per_crop_ms.get(phase, 0.0) * crops
            + self.per_token_ms.get(phase, 0.0) * tokens
        )

    def _work(self, phase: str, counts: Counts, *, tokens: int | None = None) -> None:
        factor = self.slowdown * (1 + self.noise_fraction * self._rng.gauss(0, 1))
        declared = self.duration_ms(
            phase, crops=counts.crops, tokens=counts.prompt_tokens if tokens is None else tokens
        )
        self.clock.work(device_ms=max(1e-3, declared * factor), launch_ms=self.launch_ms.get(phase, 0.0))

    def prepare(self, opened: OpenedRequest, *, mark: Any = None) -> Prompt:
        self._call("prepare")
        width_px, height_px = opened.picture.size
        options, question, text_tokens = opened.options, opened.question, opened.text_tokens
        found = geometry(width_px, height_px, max_crops=options.max_crops or 12, force_tiling=options.force_tiling)
        text = text_tokens or self.text_tokens_of_question or _planned_text_tokens(question or "")
        vision_tokens = found.vision_tokens + self.extra_vision_tokens
        counts = Counts(
            crops=found.crops,
            vision_tokens=vision_tokens,
            special_tokens=found.special_tokens,
            text_tokens=text,
            prompt_tokens=vision_tokens + found.special_tokens + text,
        )
        for phase in (None, "preprocess", "copy"):
            if phase:
                self.clock.host_work(0.5 * found.crops)
            if mark:
                mark(phase)
        return Prompt(tensors={}, counts=counts)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        self._hooked = True
        try:
            yield
        finally:
            self._hooked = False

    def _pass(self, counts: Counts, mark: Any) -> None:
        merge_parts = HOOK_ORDER.count("merge")
        if mark and self._hooked:
            mark(None)
        for phase in HOOK_ORDER:
            share = 1 / merge_parts if phase == "merge" else 1.0
            factor = self.slowdown * (1 + self.noise_fraction * self._rng.gauss(0, 1))
            declared = share * self.duration_ms(phase, crops=counts.crops, tokens=counts.prompt_tokens)
            self.clock.work(
                device_ms=max(1e-3, declared * factor) + (self.hook_cost_ms if self._hooked else 0.0),
                launch_ms=share * self.launch_ms.get(phase, 0.0),
            )
            if mark and self._hooked:
                mark(phase)

    def vision(self, prompt: Prompt) -> object:
        self._call("vision")
        for phase in ("vision_encoder", "projector"):
            self._work(phase, prompt.counts)
        return None

    def generate(self, prompt: Prompt, *, output_tokens: int, stop: str, mark: Any = None) -> list[int]:
        self._call("generate" if output_tokens > 1 else "prefill")
        self._pass(prompt.counts, mark)
        length = output_tokens if stop == "length" or self.ends_after is None else min(output_tokens, self.ends_after)
        for step in range(1, length):
            self._work("decode_step", prompt.counts, tokens=prompt.counts.prompt_tokens + step)
            if mark:
                mark("decode_step")
        return list(range(length))

    def busy(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        self._call("busy")

        def total(phases: tuple[str, ...]) -> float:
            counts = prompt.counts
            return sum(self.duration_ms(phase, crops=counts.crops, tokens=counts.prompt_tokens) for phase in phases)

        whole = BusyTime("cuda_graph", "prefill", (total(PREFILL_PHASES),) * repeats)
        return [whole, BusyTime("cuda_graph", "vision", (total(PREFILL_PHASES[:2]),) * repeats)], None

    def busy_step(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        self._call("busy_step")
        tokens = prompt.counts.prompt_tokens + 1
        step_ms = self.duration_ms("decode_step", crops=prompt.counts.crops, tokens=tokens)
        return [BusyTime("cuda_graph", "decode_step", (step_ms,) * repeats)], None

    def memory(self, prompt: Prompt) -> list[MemoryUse]:
        self._call("memory")
        return [MemoryUse(phase, 1 << 20, 1 << 21) for phase in PREFILL_PHASES]

    def release(self) -> None:
        self._call("release")


@lru_cache
def _planned_text_tokens(question: str) -> int:
    spec = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
    return get_family("molmo").text_tokens(spec, question) or 0


def out_of_memory() -> None:
    """Raise what a runner raises when its device is full."""
    raise OutOfDeviceMemory("tried to allocate 2.00 GiB")


@dataclass
class ReadyRunner(FakeRunner):
    """A fake that captures every length of a prompt before it can run it, keeps so many, and says what was late."""

    ready_ms: float = 4000.0
    kept: int = 64
    made: list[tuple[int, int]] = field(default_factory=list)
    late: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._held: list[tuple[int, int]] = []

    def ready(self, prompt: Prompt, *, output_tokens: int) -> dict[str, float]:
        self._call("ready")
        key = (prompt.counts.prompt_tokens, output_tokens)
        if key in self._held:
            return {}
        self._held = [*self._held, key][-self.kept :]
        self.made.append(key)
        self.clock.work(device_ms=self.ready_ms)
        self.clock.synchronize()
        return {"compile": 0.75 * self.ready_ms / 1000, "capture": 0.25 * self.ready_ms / 1000}

    def generate(self, prompt: Prompt, *, output_tokens: int, stop: str, mark: Any = None) -> list[int]:
        if not any(tokens == prompt.counts.prompt_tokens and most >= output_tokens for tokens, most in self._held):
            self.late.append((prompt.counts.prompt_tokens, output_tokens))
        return super().generate(prompt, output_tokens=output_tokens, stop=stop, mark=mark)

    def release(self) -> None:
        self._held.clear()
        super().release()


@dataclass
class TellingRunner(FakeRunner):
    """A fake that says which tokens it chose: those of `chosen`, and 0, 1, 2 and so on behind them.

    Every generation chooses the next of `chosen`, the last one again and again.
    """

    chosen: list[list[int]] = field(default_factory=lambda: [[]])

    def generate(self, prompt: Prompt, *, output_tokens: int, stop: str, mark: Any = None) -> list[int]:
        tokens = super().generate(prompt, output_tokens=output_tokens, stop=stop, mark=mark)
        begin = self.chosen[0] if len(self.chosen) == 1 else self.chosen.pop(0)
        return [*begin, *tokens][: len(tokens)]

    def numbers_of(self, tokens: list[int]) -> list[int]:
        return list(tokens)
