"""Measure one request: warm up, take rounds of paired samples, know when to stop.

A *round* runs every *arm* of the cell once, in random order, so that the arms are paired: whatever drifts, drifts for
all of them. A prefill has

- `inputs`: preprocessing on the host, copy to the device;
- `plain`: the whole prefill without any hook - the number that the others must answer to, and the "prefill step" of
  the subtraction method;
- `hooks`: the same prefill with a mark at every phase boundary - the hook method;
- `vision`: vision encoder and projector alone - what the subtraction method subtracts.

A generation has `inputs`, `hooks` (with a mark after every decode step as well) and, up to a length, `plain`.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from vlmeter.backends.base import (
    BusyTime,
    GetsReady,
    HoldsMemory,
    OpenedRequest,
    OutOfDeviceMemory,
    Prompt,
    Runner,
    RunsElsewhere,
    RunsVisionAlone,
    TellsBusyTime,
    TellsMemory,
    TellsTokens,
)
from vlmeter.cells.cell import Cell
from vlmeter.measure.arms import Arm, Bench, arms_for, whole_arms
from vlmeter.measure.measurement import GETTING_READY, Measurement, check_counts
from vlmeter.measure.monitors import Monitor
from vlmeter.models.families.base import Counts
from vlmeter.records.parts import Energy, MeasuredRequest, Round, SeenPicture, Warmup

#: Replays of a CUDA graph per cell: their spread is that of the device alone, a percent or less.
BUSY_REPEATS = 10

#: A generation must last so long for the energy counter, which is updated every 20 to 100 ms, to resolve it to 5 %.
ENERGY_MIN_SPAN_S = 2.0

#: A runner that cannot tell busy time.
NO_BUSY_TIME = "this way of running cannot tell how long the device is busy"


class LookBusy(Protocol):
    """A runner's way of measuring how long the device is busy with something."""

    def __call__(self, prompt: Prompt, *, repeats: int) -> tuple[list[BusyTime], str | None]:
        """Return busy times, or none and the reason."""
        ...


def measure_cell(
    cell: Cell,
    opened: OpenedRequest,
    runner: Runner,
    *,
    monitor: Monitor,
    rng: random.Random,
    started_ms: float = 0.0,
    quick: bool = False,
) -> Measurement:
    """Measure a cell of one request.

    Args:
        cell: what to measure, with its sampling rules.
        opened: its request, with the pictures opened.
        runner: the loaded subject.
        monitor: watched around every round.
        rng: decides the order of the arms in each round.
        started_ms: the session's start on the runner's host clock.
        quick: measure no more than `Measurement.estimate` reads: the last of the arms that run the whole request, and
            neither busy time nor memory nor energy after it.

    Returns a measurement with status "oom" if the device ran out of memory. Raises CountMismatch if the model's real
    inputs are not what the plan said, ClockError on durations that cannot be, DeviceLost if the device is gone.
    """
    arms, left_out = arms_for(cell, runner)
    whole = whole_arms(arms)
    # told by the marked runs where there are any: they are what phases and steps are read from
    judged = tuple(sorted(whole, key=lambda name: name == "hooks"))
    if quick:
        arms = tuple(arm for arm in arms if arm.name == judged[-1])
        judged = judged[-1:]
    result, bench = Measurement(judged=judged, left_out=left_out), None
    try:
        bench = Bench(cell, opened, runner)
        _warm_up_and_sample(bench, arms, monitor=monitor, rng=rng, started_ms=started_ms, result=result)
        if not quick:
            _look_further(cell, bench.prompt, runner, monitor=monitor, result=result)
    except OutOfDeviceMemory as error:
        reason = str(error)
    else:
        return result
    # Only here, past the handler, does nothing hold the failed pass any more: the error's traceback kept its frames
    # alive, and with them every half-made tensor.
    bench = None
    release(runner)
    return Measurement(status="oom", reason=reason, requests=result.requests, warmups=result.warmups)


def seen(opened: OpenedRequest, counts: Counts, *, place: int = 0, picture_bytes: int | None = None) -> MeasuredRequest:
    """Say what was run: sizes of the pictures, counts of the inputs."""
    pictures = [
        SeenPicture(width_px=picture.size[0], height_px=picture.size[1], file_bytes=picture_bytes)
        for picture in opened.pictures
    ]
    return MeasuredRequest(place=place, counted=counts, pictures=pictures, question=opened.question)


def counted_by(runner: RunsElsewhere, request: MeasuredRequest) -> MeasuredRequest:
    """Put down how many tokens of the prompt the server counted that has just answered."""
    return request.model_copy(update={"server_prompt_tokens": runner.prompt_tokens})


def get_ready(runner: Runner, prompt: Prompt, *, output_tokens: int, result: Measurement) -> bool:
    """Let a runner compile and capture what a request runs on, outside of every sample; whether there was anything."""
    if not isinstance(runner, GetsReady):
        return False
    spent = runner.ready(prompt, output_tokens=output_tokens)
    for name, seconds in spent.items():
        result.seconds[name] = result.seconds.get(name, 0.0) + seconds
    return bool(spent)


def release(runner: Runner) -> None:
    """Let a runner give back what memory it holds for reuse."""
    if isinstance(runner, HoldsMemory):
        runner.release()


def _warm_up_and_sample(
    bench: Bench,
    arms: tuple[Arm, ...],
    *,
    monitor: Monitor,
    rng: random.Random,
    started_ms: float,
    result: Measurement,
) -> None:
    clock = bench.runner.clock
    result.requests.append(seen(bench.opened, bench.prompt.counts, picture_bytes=bench.prompt.picture_bytes))
    check_counts(bench.cell, bench.cell.expected, bench.prompt.counts)
    get_ready(bench.runner, bench.prompt, output_tokens=bench.output_tokens, result=result)
    begin_ms = clock.host_ms()
    _warm_up(bench, arms, result)
    warm_ms = clock.host_ms()
    result.seconds["warmup"] = (warm_ms - begin_ms) / 1000
    _take_rounds(bench, arms, monitor=monitor, rng=rng, started_ms=started_ms, result=result)
    result.seconds["rounds"] = (clock.host_ms() - warm_ms) / 1000


def _look_further(cell: Cell, prompt: Prompt, runner: Runner, *, monitor: Monitor, result: Measurement) -> None:
    """Look at busy time, memory and energy of the prefill; of a generation, at the busy time of a step."""
    begin_ms, again_s = runner.clock.host_ms(), 0.0
    if cell.kind == "prefill":
        _look_at_busy_time(runner.busy if isinstance(runner, TellsBusyTime) else None, prompt, runner, result)
        # what was given back for want of memory is made anew outside of what is looked at
        before_s = _ready_s(result)
        get_ready(runner, prompt, output_tokens=cell.request.output_tokens, result=result)
        again_s = _ready_s(result) - before_s
        if isinstance(runner, TellsMemory):
            result.memory = runner.memory(prompt)
        read_energy(cell, prompt, runner, monitor=monitor, result=result)
    elif cell.output_tokens > 1:
        _look_at_busy_time(runner.busy_step if isinstance(runner, TellsBusyTime) else None, prompt, runner, result)
    result.seconds["extras"] = (runner.clock.host_ms() - begin_ms) / 1000 - again_s


def _ready_s(result: Measurement) -> float:
    """Seconds that have gone into compiling and capturing."""
    return sum(result.seconds.get(name, 0.0) for name in GETTING_READY)


def _look_at_busy_time(look: LookBusy | None, prompt: Prompt, runner: Runner, result: Measurement) -> None:
    """Measure the busy time; a captured graph needs memory of its own, and its lack must not cost the samples."""
    if look is None:
        result.busy_reason = NO_BUSY_TIME
        return
    try:
        result.busy, result.busy_reason = look(prompt, repeats=BUSY_REPEATS)
    except OutOfDeviceMemory as error:
        result.busy_reason = f"out of memory: {error}"
    else:
        return
    release(runner)


def _warm_up(bench: Bench, arms: tuple[Arm, ...], result: Measurement) -> None:
    """Run every arm until two successive runs agree: first use of a shape costs extra, in every arm."""
    rules = bench.cell.sampling
    for arm in arms:
        wall_ms: list[float] = []
        settled = False
        while len(wall_ms) < rules.max_warmup and not (settled and len(wall_ms) >= rules.min_warmup):
            wall_ms.append(bench.shortened(lambda arm=arm: arm.run(bench)).wall_ms)  # type: ignore[misc]
            bench.take_tokens()
            if len(wall_ms) > 1:
                last, before = wall_ms[-1], wall_ms[-2]
                settled = abs(last - before) <= rules.warmup_tolerance_fraction * min(last, before)
        result.warmups.append(Warmup(arm=arm.name, wall_ms=wall_ms, settled=settled))


def _take_rounds(
    bench: Bench,
    arms: tuple[Arm, ...],
    *,
    monitor: Monitor,
    rng: random.Random,
    started_ms: float,
    result: Measurement,
) -> None:
    rules, clock = bench.cell.sampling, bench.runner.clock
    result.timings = {arm.name: [] for arm in arms}
    told_by = result.judged[-1]
    generation_j, generation_ms, generations = 0.0, 0.0, 0
    begin_ms = clock.host_ms()
    next_look = rules.min_samples
    monitor.read()
    while result.stop_reason is None:
        order = list(arms)
        rng.shuffle(order)
        round_ms = clock.host_ms()
        for arm in order:
            energy_before_j = monitor.energy_j()
            timing = arm.run(bench)
            energy_after_j = monitor.energy_j()
            result.timings[arm.name].append(timing)
            tokens = bench.take_tokens()
            if arm.name == told_by:
                result.generated_tokens.append(bench.generated_tokens)
                _keep_tokens(tokens, bench.runner, result)
                if isinstance(bench.runner, RunsElsewhere):
                    result.said.append(dict(bench.runner.said()))
                    result.requests[0] = counted_by(bench.runner, result.requests[0])
                if energy_before_j is not None and energy_after_j is not None:
                    generation_j += energy_after_j - energy_before_j
                    generation_ms += timing.wall_ms
                    generations += 1
            del tokens  # and with them a cache, before the next reading of a clock
        started_s = (round_ms - started_ms) / 1000
        result.rounds.append(Round.of([arm.name for arm in order], started_s, monitor.read()))
        count, elapsed_s = len(result.rounds), (clock.host_ms() - begin_ms) / 1000
        # An interval that is looked at after every round is believed when it happens to be narrow: so it is looked at
        # when there are twice as many rounds as at the last look (benchmarks/coverage.py).
        looks = count >= next_look
        if looks:
            next_look = 2 * count
        if looks and result.precision() <= rules.relative_half_width_fraction:
            result.stop_reason = "precise"
        elif count >= rules.max_samples:
            result.stop_reason = "max_samples"
        elif elapsed_s >= rules.max_seconds_per_cell:
            result.stop_reason = "time_cap"
    if bench.cell.kind == "generation" and generation_ms / 1000 >= ENERGY_MIN_SPAN_S:
        spent = Energy(what="generation", joules=generation_j, span_s=generation_ms / 1000, repeats=generations)
        result.energy.append(spent)


def _keep_tokens(tokens: Sequence[object], runner: Runner, result: Measurement) -> None:
    """Keep which tokens a round chose, if the runner tells: the last ones whole, of all rounds a digest."""
    if not tokens or not isinstance(runner, TellsTokens):
        return
    result.output = runner.numbers_of(tokens)
    digest = hashlib.sha256(json.dumps(result.output).encode()).hexdigest()[:16]
    if digest not in result.output_digests:
        result.output_digests.append(digest)


def read_energy(
    cell: Cell, prompt: Prompt, runner: Runner, *, monitor: Monitor, result: Measurement, vision: bool = False
) -> None:
    """Repeat the prefill for a span over which the energy counter means something; and vision alone if asked for."""
    if cell.sampling.energy_seconds_per_cell == 0 or monitor.energy_j() is None:
        return
    work: dict[Literal["prefill", "vision"], Callable[[Prompt], object]] = {
        "prefill": lambda prompt: runner.generate(prompt, output_tokens=1, stop="length")
    }
    if vision and isinstance(runner, RunsVisionAlone):
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
            result.energy.append(Energy(what=what, joules=after_j - before_j, span_s=elapsed_s, repeats=repeats))
