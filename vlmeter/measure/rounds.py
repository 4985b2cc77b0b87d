"""Measure one cell: warm up, take rounds of paired samples, know when to stop.

A *round* runs every *arm* once, in random order, so that the arms of a cell are paired: whatever drifts, drifts for
all of them. The arms of a vision-token cell:

- `inputs`: preprocessing on the host, copy to the device;
- `plain`: the whole prefill without any hook - the number that the others must answer to, and the "prefill step" of
  the subtraction method;
- `hooks`: the same prefill with a mark at every phase boundary - the hook method;
- `vision`: vision encoder and projector alone - what the subtraction method subtracts.

An output-token cell has `inputs`, `hooks` (a whole generation with marks at the phase boundaries of its prefill and
after every decode step) and, up to a length, `plain`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from vlmeter.backends.base import BusyTime, MemoryUse, OutOfDeviceMemory, Prompt, Runner
from vlmeter.backends.clock import Marks, Timing, time_call, total_by_phase
from vlmeter.cells.cell import Cell, Expected
from vlmeter.measure.monitors import Monitor, Reading
from vlmeter.models.families.base import Counts
from vlmeter.numbers.medians import Estimate, median_estimate

if TYPE_CHECKING:
    from PIL.Image import Image

#: Tokens generated in a warm-up run of an output-token cell: enough to run the decode path, whose kernels do not
#: depend on how many steps follow.
WARMUP_OUTPUT_TOKENS = 8

#: Replays of a CUDA graph per cell: their spread is that of the device alone, a percent or less.
BUSY_REPEATS = 10

#: A generation must last so long for the energy counter, which is updated every 20 to 100 ms, to resolve it to 5 %.
ENERGY_MIN_SPAN_S = 2.0


class CountMismatch(Exception):
    """The model's real inputs hold other counts than the plan predicted: the cell's numbers would be mislabelled."""


@dataclass(frozen=True)
class Sight:
    """What a cell looks at."""

    image: Image
    question: str | None


@dataclass(frozen=True)
class RoundState:
    """One round: the order of its arms, and what the monitor saw."""

    order: tuple[str, ...]
    started_s: float
    reading: Reading


@dataclass(frozen=True)
class WarmupRuns:
    """Warm-up of one arm: wall times, and whether they had settled when measuring began (None: not looked at)."""

    arm: str
    wall_ms: tuple[float, ...]
    settled: bool | None


@dataclass(frozen=True)
class EnergyUse:
    """Energy of so many repeats of a piece of work."""

    what: Literal["vision", "prefill", "generation", "request"]
    joules: float
    span_s: float
    repeats: int


@dataclass(frozen=True)
class RequestState:
    """One request of a block that was measured: its place in the block, its picture's size, and what was counted."""

    place: int
    width_px: int
    height_px: int
    counts: Counts


@dataclass(frozen=True)
class FailedRequest:
    """One request of a block for which the device had not enough memory."""

    place: int
    reason: str


@dataclass
class Measurement:
    """What was learnt about a cell; samples are kept per arm, one per round."""

    status: Literal["ok", "oom", "unsupported"] = "ok"
    reason: str | None = None
    counts: Counts | None = None
    timings: dict[str, list[Timing]] = field(default_factory=dict)
    generated_tokens: list[int] = field(default_factory=list)
    rounds: list[RoundState] = field(default_factory=list)
    warmups: list[WarmupRuns] = field(default_factory=list)
    busy: list[BusyTime] = field(default_factory=list)
    busy_reason: str | None = None
    memory: list[MemoryUse] = field(default_factory=list)
    energy: list[EnergyUse] = field(default_factory=list)
    requests: list[RequestState] = field(default_factory=list)
    failed: list[FailedRequest] = field(default_factory=list)
    stop_reason: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def estimate(self) -> Estimate | None:
        """Median wall time of the instrumented runs with its interval, undisturbed rounds only if there are any."""
        arm = "request" if self.requests else "hooks"
        if not self.timings.get(arm):
            return None
        return median_estimate([timing.wall_ms for timing in self._trusted(arm)])

    def precision(self) -> float:
        """Largest relative half width among the whole-pass arms: what sampling has to bring down."""
        return max(
            median_estimate([timing.wall_ms for timing in self._trusted(arm)]).relative_half_width
            for arm in ("plain", "hooks")
            if self.timings.get(arm)
        )

    def _trusted(self, arm: str) -> list[Timing]:
        quiet = [
            timing
            for timing, state in zip(self.timings[arm], self.rounds, strict=True)
            if not state.reading.disturbances
        ]
        # A few quiet rounds among many disturbed ones may be no better than chance: then all of them count.
        return quiet if len(quiet) * 2 >= len(self.rounds) else self.timings[arm]


Arm = Callable[[], Timing]


class LookBusy(Protocol):
    """A runner's way of measuring how long the device is busy with something."""

    def __call__(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Return busy times, or none and the reason."""
        ...


class _Arms:
    """The arms of one cell, bound to a runner; holds the prompt that they share."""

    def __init__(self, cell: Cell, sight: Sight, runner: Runner, *, quick: bool) -> None:
        self._cell, self._sight, self._runner, self._quick = cell, sight, runner, quick
        self._output_tokens = cell.output_tokens
        self.generated_tokens = 0
        self.prompt: Prompt = self._prepare(None)

    def _prepare(self, marks: Marks | None) -> Prompt:
        return self._runner.prepare(
            self._sight.image,
            self._sight.question,
            text_tokens=self._cell.text_tokens,
            options=self._cell.options,
            mark=marks,
        )

    def all(self) -> Mapping[str, Arm]:
        if self._quick:
            return {"hooks": self.hooks}
        if self._cell.experiment == "vision_tokens":
            return {"inputs": self.inputs, "plain": self.plain, "hooks": self.hooks, "vision": self.vision}
        arms = {"inputs": self.inputs, "hooks": self.hooks}
        return {**arms, "plain": self.plain} if self._cell.uninstrumented else arms

    def inputs(self) -> Timing:
        def call(marks: Marks) -> None:
            self.prompt = self._prepare(marks)

        return time_call(self._runner.clock, call)

    def plain(self) -> Timing:
        return time_call(self._runner.clock, lambda marks: self._run(None))

    def hooks(self) -> Timing:
        with self._runner.hooks():
            return time_call(self._runner.clock, self._run)

    def vision(self) -> Timing:
        return time_call(self._runner.clock, lambda marks: self._runner.vision(self.prompt))

    def _run(self, marks: Marks | None) -> object:
        if self._cell.experiment == "vision_tokens":
            self.generated_tokens = 1
            return self._runner.prefill(self.prompt, marks)
        tokens = self._runner.generate(self.prompt, output_tokens=self._output_tokens, stop=self._cell.stop, mark=marks)
        self.generated_tokens = len(tokens)
        return tokens

    def shortened(self, arm: Arm) -> Arm:
        """The same arm with few output tokens, for warming up."""

        def run() -> Timing:
            whole, self._output_tokens = self._output_tokens, min(self._output_tokens, WARMUP_OUTPUT_TOKENS)
            try:
                return arm()
            finally:
                self._output_tokens = whole

        return run


def measure_cell(
    cell: Cell,
    sight: Sight,
    runner: Runner,
    *,
    monitor: Monitor,
    rng: random.Random,
    started_ms: float = 0.0,
    quick: bool = False,
) -> Measurement:
    """Measure one cell.

    Args:
        cell: what to measure, with its sampling rules.
        sight: the picture and, for photographs, its question.
        runner: the loaded subject.
        monitor: watched around every round.
        rng: decides the order of the arms in each round.
        started_ms: the session's start on the runner's host clock.
        quick: measure no more than `Measurement.estimate` reads: the instrumented runs, and neither busy time nor
            memory nor energy after them.

    Returns a measurement with status "oom" if the device ran out of memory. Raises CountMismatch if the model's real
    inputs are not what the plan said, ClockError on durations that cannot be, DeviceLost if the device is gone.
    """
    result, arms = Measurement(), None
    try:
        arms = _Arms(cell, sight, runner, quick=quick)
        _warm_up_and_sample(cell, arms, runner, monitor=monitor, rng=rng, started_ms=started_ms, result=result)
        if not quick:
            _look_further(cell, arms.prompt, runner, monitor=monitor, result=result)
    except OutOfDeviceMemory as error:
        reason = str(error)
    else:
        return result
    # Only here, past the handler, does nothing hold the failed pass any more: the error's traceback kept its frames
    # alive, and with them every half-made tensor.
    arms = None
    runner.release()
    return Measurement(status="oom", reason=reason, counts=result.counts, warmups=result.warmups)


def _warm_up_and_sample(
    cell: Cell,
    arms: _Arms,
    runner: Runner,
    *,
    monitor: Monitor,
    rng: random.Random,
    started_ms: float,
    result: Measurement,
) -> None:
    begin_ms = runner.clock.host_ms()
    result.counts = arms.prompt.counts
    check_counts(cell, cell.expected, arms.prompt.counts)
    _warm_up(cell, arms, result)
    warm_ms = runner.clock.host_ms()
    result.seconds["warmup"] = (warm_ms - begin_ms) / 1000
    _take_rounds(cell, arms, runner, monitor=monitor, rng=rng, started_ms=started_ms, result=result)
    result.seconds["rounds"] = (runner.clock.host_ms() - warm_ms) / 1000


def _look_further(cell: Cell, prompt: Prompt, runner: Runner, *, monitor: Monitor, result: Measurement) -> None:
    """Look at busy time, memory and energy of the prefill; of a generation, at the busy time of a step."""
    begin_ms = runner.clock.host_ms()
    if cell.experiment == "vision_tokens":
        _look_at_busy_time(runner.busy, prompt, runner, result)
        result.memory = runner.memory(prompt)
        read_energy(cell, prompt, runner, monitor=monitor, result=result)
    elif cell.output_tokens > 1:
        _look_at_busy_time(runner.busy_step, prompt, runner, result)
    result.seconds["extras"] = (runner.clock.host_ms() - begin_ms) / 1000


def _look_at_busy_time(look: LookBusy, prompt: Prompt, runner: Runner, result: Measurement) -> None:
    """Measure the busy time; a captured graph needs memory of its own, and its lack must not cost the samples."""
    try:
        result.busy, result.busy_reason = look(prompt, repeats=BUSY_REPEATS)
    except OutOfDeviceMemory as error:
        result.busy_reason = f"out of memory: {error}"
    else:
        return
    runner.release()


def check_counts(cell: Cell, expected: Expected, counts: Counts, *, what: str = "") -> None:
    """Raise CountMismatch unless the real inputs hold what was predicted; `what` names a part of the cell."""
    for name in type(expected).model_fields:
        planned, real = getattr(expected, name), getattr(counts, name)
        if planned is not None and planned != real:
            raise CountMismatch(
                f"{what}cell {cell.cell_id} of {cell.subject}: the plan says {name} {planned}, "
                f"the model's real inputs hold {real}"
            )


def _warm_up(cell: Cell, arms: _Arms, result: Measurement) -> None:
    """Run every arm until two successive runs agree: first use of a shape costs extra, in every arm."""
    rules = cell.sampling
    for name, arm in arms.all().items():
        run = arms.shortened(arm)
        wall_ms: list[float] = []
        settled = False
        while len(wall_ms) < rules.max_warmup and not (settled and len(wall_ms) >= rules.min_warmup):
            wall_ms.append(run().wall_ms)
            if len(wall_ms) > 1:
                last, before = wall_ms[-1], wall_ms[-2]
                settled = abs(last - before) <= rules.warmup_tolerance_fraction * min(last, before)
        result.warmups.append(WarmupRuns(name, tuple(wall_ms), settled))


def _take_rounds(
    cell: Cell,
    arms: _Arms,
    runner: Runner,
    *,
    monitor: Monitor,
    rng: random.Random,
    started_ms: float,
    result: Measurement,
) -> None:
    rules = cell.sampling
    by_name = arms.all()
    result.timings = {name: [] for name in by_name}
    generation_j, generation_ms, generations = 0.0, 0.0, 0
    begin_ms = runner.clock.host_ms()
    monitor.read()
    while result.stop_reason is None:
        order = list(by_name)
        rng.shuffle(order)
        round_ms = runner.clock.host_ms()
        for name in order:
            energy_before_j = monitor.energy_j()
            timing = by_name[name]()
            energy_after_j = monitor.energy_j()
            result.timings[name].append(timing)
            if name == "hooks":
                result.generated_tokens.append(arms.generated_tokens)
                if energy_before_j is not None and energy_after_j is not None:
                    generation_j += energy_after_j - energy_before_j
                    generation_ms += timing.wall_ms
                    generations += 1
        result.rounds.append(RoundState(tuple(order), (round_ms - started_ms) / 1000, monitor.read()))
        count, elapsed_s = len(result.rounds), (runner.clock.host_ms() - begin_ms) / 1000
        if count >= rules.min_samples and result.precision() <= rules.relative_half_width_fraction:
            result.stop_reason = "precise"
        elif count >= rules.max_samples:
            result.stop_reason = "max_samples"
        elif elapsed_s >= rules.max_seconds_per_cell:
            result.stop_reason = "time_cap"
    if cell.experiment == "output_tokens" and generation_ms / 1000 >= ENERGY_MIN_SPAN_S:
        result.energy.append(EnergyUse("generation", generation_j, generation_ms / 1000, generations))


def read_energy(
    cell: Cell, prompt: Prompt, runner: Runner, *, monitor: Monitor, result: Measurement, vision: bool = False
) -> None:
    """Repeat the prefill for a span over which the energy counter means something; and vision alone if asked for."""
    if cell.sampling.energy_seconds_per_cell == 0 or monitor.energy_j() is None:
        return
    work: dict[Literal["prefill", "vision"], Callable[[Prompt], object]] = {"prefill": runner.prefill}
    if vision:
        work["vision"] = runner.vision
    for what, call in work.items():
        before_j = monitor.energy_j()
        begin_ms, repeats = runner.clock.host_ms(), 0
        while (runner.clock.host_ms() - begin_ms) / 1000 < cell.sampling.energy_seconds_per_cell:
            call(prompt)
            runner.clock.synchronize()
            repeats += 1
        after_j = monitor.energy_j()
        elapsed_s = (runner.clock.host_ms() - begin_ms) / 1000
        if before_j is not None and after_j is not None:
            result.energy.append(EnergyUse(what, after_j - before_j, elapsed_s, repeats))


def split_spans(timing: Timing) -> tuple[dict[str, float], list[float]]:
    """Split the spans of a timing into totals per phase of inputs or prefill, and the list of decode steps."""
    steps = [duration_ms for phase, duration_ms in timing.spans if phase == "decode_step"]
    return total_by_phase(span for span in timing.spans if span[0] != "decode_step"), steps
