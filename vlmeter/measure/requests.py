"""Measure a block of requests: each once, from the picture to the last token, as a server would meet them.

A distribution wants many different requests rather than many rounds of one. So a request is *one* timed call - inputs
prepared and copied, prefill, decode, with a mark at every boundary of a phase - and is not repeated. What a server that
has run for a while does not see is kept out of it: before the requests, every distinct shape among them (crops and
prompt tokens) is run `min_warmup` times, with few output tokens; those runs stand in the record as warm-up and in no
sample. The order of the requests within the block is random.

A block may have any number of requests of any size: pictures are opened one at a time and let go, and of each request
only a few numbers are kept. A request for which the device has not enough memory is listed with its reason, and the
others go on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from vlmeter.backends.base import OutOfDeviceMemory, Prompt, Runner
from vlmeter.backends.clock import Marks, Timing, time_call
from vlmeter.cells.cell import Cell, Request, RequestBlock
from vlmeter.measure.monitors import Monitor
from vlmeter.measure.rounds import (
    ENERGY_MIN_SPAN_S,
    WARMUP_OUTPUT_TOKENS,
    EnergyUse,
    FailedRequest,
    Measurement,
    RequestState,
    RoundState,
    Sight,
    WarmupRuns,
    check_counts,
    read_energy,
)
from vlmeter.models.families.base import Counts

#: How a request is run: with a mark at every boundary. There is no unmarked twin, since nothing is run twice.
ARM = "request"

#: Crops, vision tokens and prompt tokens, on which the choice of kernels depends.
Shape = tuple[int, int, int]


def measure_block(
    cell: Cell,
    open_sight: Callable[[int], Sight],
    runner: Runner,
    *,
    monitor: Monitor,
    rng: random.Random,
    started_ms: float = 0.0,
) -> Measurement:
    """Measure every request of a block once.

    Args:
        cell: the block; of its sampling rules only warm-up and energy apply.
        open_sight: opens picture and question of the request at a place in the block.
        runner: the loaded subject.
        monitor: watched around every request.
        rng: decides the order of the requests.
        started_ms: the session's start on the runner's host clock.

    The timed region starts with the opened picture and ends when the device has finished the last token. Returns a
    measurement with one timing of arm "request" and one round for each request; with status "oom" if the memory
    sufficed for none of them. Raises CountMismatch if a request's real inputs are not what the plan said, ClockError on
    durations that cannot be, DeviceLost if the device is gone.
    """
    if not isinstance(cell.image, RequestBlock):
        raise TypeError(f"cell {cell.cell_id} is no block of requests")
    block = _Block(cell, cell.image.requests, open_sight, runner, monitor=monitor, rng=rng, started_ms=started_ms)
    begin_ms = runner.clock.host_ms()
    block.warm_up()
    warm_ms = runner.clock.host_ms()
    block.take_requests()
    rounds_ms = runner.clock.host_ms()
    if block.result.timings[ARM]:
        block.look_further()
    else:
        block.result.status, block.result.reason = "oom", block.result.failed[0].reason
        block.result.timings = {}
    seconds = {"warmup": warm_ms - begin_ms, "rounds": rounds_ms - warm_ms}
    block.result.seconds = {
        **{name: spent_ms / 1000 for name, spent_ms in seconds.items()},
        "extras": (runner.clock.host_ms() - rounds_ms) / 1000,
    }
    return block.result


@dataclass(frozen=True)
class _Run:
    """One run of a request: its timing, with the decode steps gathered; what it was; how many tokens it made."""

    timing: Timing
    state: RequestState
    generated: int


class _Block:
    """A block while it is measured; holds no picture and no prompt between two requests."""

    def __init__(
        self,
        cell: Cell,
        requests: tuple[Request, ...],
        open_sight: Callable[[int], Sight],
        runner: Runner,
        *,
        monitor: Monitor,
        rng: random.Random,
        started_ms: float,
    ) -> None:
        self._cell, self._requests, self._open_sight, self._runner = cell, requests, open_sight, runner
        self._monitor, self._rng, self._started_ms = monitor, rng, started_ms
        self.result = Measurement(timings={ARM: []})

    def _prepare(self, sight: Sight, marks: Marks | None = None) -> Prompt:
        return self._runner.prepare(
            sight.image, sight.question, text_tokens=None, options=self._cell.options, mark=marks
        )

    def _shape(self, place: int) -> Shape:
        """Shape of a request: from the plan where it knows, else counted in its inputs."""
        expected = self._requests[place].expected
        crops, vision_tokens, prompt_tokens = expected.crops, expected.vision_tokens, expected.prompt_tokens
        if crops is not None and vision_tokens is not None and prompt_tokens is not None:
            return crops, vision_tokens, prompt_tokens
        counts = self._prepare(self._open_sight(place)).counts
        return counts.crops, counts.vision_tokens, counts.prompt_tokens

    def warm_up(self) -> None:
        """Run every distinct shape of the block with few output tokens."""
        wall_ms: list[float] = []
        seen: set[Shape] = set()
        for place, request in enumerate(self._requests):
            enough = True
            try:
                if (shape := self._shape(place)) in seen:
                    continue
                seen.add(shape)
                for _ in range(self._cell.sampling.min_warmup):
                    tokens = min(request.output_tokens, WARMUP_OUTPUT_TOKENS)
                    wall_ms.append(self._run(place, output_tokens=tokens).timing.wall_ms)
            except OutOfDeviceMemory:
                enough = False  # the request itself will say so
            if not enough:
                self._runner.release()
        self.result.warmups.append(WarmupRuns(ARM, tuple(wall_ms), settled=None))

    def _run(self, place: int, *, output_tokens: int) -> _Run:
        """Run a request."""
        sight = self._open_sight(place)
        counts: list[Counts] = []
        generated = 0

        def call(marks: Marks) -> object:
            nonlocal generated
            prompt = self._prepare(sight, marks)
            counts.append(prompt.counts)
            tokens = self._runner.generate(prompt, output_tokens=output_tokens, stop=self._cell.stop, mark=marks)
            generated = len(tokens)
            return prompt, tokens  # freed after the last reading of the clock

        with self._runner.hooks():
            timing = time_call(self._runner.clock, call)
        width_px, height_px = sight.image.size
        return _Run(_gathered(timing), RequestState(place, width_px, height_px, counts[0]), generated)

    def take_requests(self) -> None:
        """Run every request once, in random order."""
        order = list(range(len(self._requests)))
        self._rng.shuffle(order)
        self._monitor.read()
        joules, span_ms, counted = 0.0, 0.0, 0
        for place in order:
            round_ms = self._runner.clock.host_ms()
            reason, before_j = None, self._monitor.energy_j()
            try:
                run = self._run(place, output_tokens=self._requests[place].output_tokens)
            except OutOfDeviceMemory as error:
                reason = str(error)
            if reason is not None:
                # Here, past the handler, nothing holds the failed pass any more.
                self._runner.release()
                self.result.failed.append(FailedRequest(place, reason))
                self._monitor.read()
                continue
            after_j = self._monitor.energy_j()
            check_counts(self._cell, self._requests[place].expected, run.state.counts, what=f"request {place} of ")
            if before_j is not None and after_j is not None:
                joules, span_ms, counted = joules + after_j - before_j, span_ms + run.timing.wall_ms, counted + 1
            self.result.timings[ARM].append(run.timing)
            self.result.generated_tokens.append(run.generated)
            self.result.requests.append(run.state)
            self.result.rounds.append(RoundState((ARM,), (round_ms - self._started_ms) / 1000, self._monitor.read()))
        self.result.stop_reason = "all_requests"
        if span_ms / 1000 >= ENERGY_MIN_SPAN_S:
            self.result.energy.append(EnergyUse("request", joules, span_ms / 1000, counted))

    def look_further(self) -> None:
        """Look at memory and energy by phase in one request: the one with the middle number of prompt tokens."""
        ranked = sorted(self.result.requests, key=lambda state: (state.counts.prompt_tokens, state.place))
        place = ranked[len(ranked) // 2].place
        try:
            prompt = self._prepare(self._open_sight(place))
            self.result.memory = self._runner.memory(prompt)
            read_energy(self._cell, prompt, self._runner, monitor=self._monitor, result=self.result, vision=True)
        except OutOfDeviceMemory:
            lacking = True  # the samples stand; only this look is missing
        else:
            lacking = False
        if lacking:
            self._runner.release()


def _gathered(timing: Timing) -> Timing:
    """The same timing with its decode steps as one span, and the longest of them beside it."""
    steps = [duration_ms for phase, duration_ms in timing.spans if phase == "decode_step"]
    spans = [span for span in timing.spans if span[0] != "decode_step"]
    return replace(timing, spans=(*spans, ("decode", sum(steps)), ("longest_step", max(steps, default=0.0))))
