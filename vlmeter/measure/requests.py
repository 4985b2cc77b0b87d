"""Measure many requests: each once, from the picture to the last token, as a server would meet them.

A distribution wants many different requests rather than many rounds of one. So a request is *one* timed call - inputs
prepared and copied, prefill, decode, with a mark at every boundary of a phase - and is not repeated. What a server that
has run for a while does not see is kept out of it: before the requests, every distinct shape among them (crops and
prompt tokens) is run `min_warmup` times, with few output tokens; those runs stand in the record as warm-up and in no
sample. A runner that compiles or captures does so before them, for every shape and output length. The order of the
requests within the cell is random.

A cell may have any number of requests of any size: pictures are opened one at a time and let go, and of each request
only a few numbers are kept. A request for which the device has not enough memory is listed with its reason, and the
others go on.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

from vlmeter.backends.base import (
    GetsReady,
    MarksPhases,
    OpenedRequest,
    OutOfDeviceMemory,
    Prompt,
    Runner,
    RunsElsewhere,
    StampsItself,
    TellsMemory,
)
from vlmeter.backends.clock import Marks, Timing, time_call
from vlmeter.cells.cell import Cell, Request
from vlmeter.measure.arms import WARMUP_OUTPUT_TOKENS
from vlmeter.measure.measurement import GETTING_READY, Measurement, check_counts
from vlmeter.measure.monitors import Monitor
from vlmeter.measure.rounds import ENERGY_MIN_SPAN_S, counted_by, get_ready, read_energy, release, seen
from vlmeter.models.families.base import Counts
from vlmeter.records.parts import Energy, FailedRequest, MeasuredRequest, Round, Warmup

#: How a request is run: with a mark at every boundary. There is no unmarked twin, since nothing is run twice.
ARM = "request"

#: Crops, vision tokens and prompt tokens, on which the choice of kernels depends.
Shape = tuple[int, int, int]


def measure_requests(
    cell: Cell,
    open_request: Callable[[Request], OpenedRequest],
    runner: Runner,
    *,
    monitor: Monitor,
    rng: random.Random,
    started_ms: float = 0.0,
) -> Measurement:
    """Measure every request of a cell once.

    Args:
        cell: its requests; of its sampling rules only warm-up and energy apply.
        open_request: opens the pictures of a request.
        runner: the loaded subject.
        monitor: watched around every request.
        rng: decides the order of the requests.
        started_ms: the session's start on the runner's host clock.

    The timed region starts with the opened pictures and ends when the device has finished the last token. Returns a
    measurement with one timing of arm "request" and one round for each request; with status "oom" if the memory
    sufficed for none of them. Raises CountMismatch if a request's real inputs are not what the plan said, ClockError on
    durations that cannot be, DeviceLost if the device is gone.
    """
    if cell.kind != "requests":
        raise TypeError(f"cell {cell.cell_id} is of one request")
    many = _Many(cell, open_request, runner, monitor=monitor, rng=rng, started_ms=started_ms)
    begin_ms = runner.clock.host_ms()
    many.warm_up()
    warm_ms, warm_ready_s = runner.clock.host_ms(), many.ready_s
    many.take_requests()
    rounds_ms, ready_s = runner.clock.host_ms(), many.ready_s
    if many.result.timings[ARM]:
        many.look_further()
    else:
        many.result.status, many.result.reason = "oom", many.result.failed[0].reason
        many.result.timings = {}
    many.result.seconds = {
        **many.result.seconds,
        "warmup": (warm_ms - begin_ms) / 1000 - warm_ready_s,
        "rounds": (rounds_ms - warm_ms) / 1000 - (ready_s - warm_ready_s),
        "extras": (runner.clock.host_ms() - rounds_ms) / 1000 - (many.ready_s - ready_s),
    }
    return many.result


@dataclass(frozen=True)
class _Run:
    """One run of a request: its timing, with the decode steps gathered; what it was; counts; tokens that it made."""

    timing: Timing
    request: MeasuredRequest
    counts: Counts
    generated: int


class _Many:
    """Many requests while they are measured; holds no picture and no prompt between two of them."""

    def __init__(
        self,
        cell: Cell,
        open_request: Callable[[Request], OpenedRequest],
        runner: Runner,
        *,
        monitor: Monitor,
        rng: random.Random,
        started_ms: float,
    ) -> None:
        self._cell, self._open_request, self._runner = cell, open_request, runner
        self._monitor, self._rng, self._started_ms = monitor, rng, started_ms
        self.result = Measurement(judged=(ARM,), timings={ARM: []})

    def _opened(self, place: int) -> OpenedRequest:
        return self._open_request(self._cell.requests[place])

    def _shape(self, place: int) -> Shape:
        """Shape of a request: from the plan where it knows, else counted in its inputs."""
        expected = self._cell.requests[place].expected
        crops, vision_tokens, prompt_tokens = expected.crops, expected.vision_tokens, expected.prompt_tokens
        if crops is not None and vision_tokens is not None and prompt_tokens is not None:
            return crops, vision_tokens, prompt_tokens
        counts = self._runner.prepare(self._opened(place)).counts
        return counts.crops, counts.vision_tokens, counts.prompt_tokens

    @property
    def ready_s(self) -> float:
        """Seconds that have gone into compiling and capturing."""
        return sum(self.result.seconds.get(name, 0.0) for name in GETTING_READY)

    def _get_ready(self, place: int) -> bool:
        """Make ready what a request runs on; whether there was anything to be made."""
        if not isinstance(self._runner, GetsReady):
            return False
        prompt = self._runner.prepare(self._opened(place))
        tokens = self._cell.requests[place].output_tokens
        return get_ready(self._runner, prompt, output_tokens=tokens, result=self.result)

    def warm_up(self) -> None:
        """Run every distinct shape of the cell with few output tokens; get ready what has to be, for every length."""
        wall_ms: list[float] = []
        known: set[Shape] = set()
        for place, request in enumerate(self._cell.requests):
            enough = True
            try:
                made = self._get_ready(place)
                if (shape := self._shape(place)) in known and not made:
                    continue
                known.add(shape)
                for _ in range(self._cell.sampling.min_warmup):
                    tokens = min(request.output_tokens, WARMUP_OUTPUT_TOKENS)
                    wall_ms.append(self._run(place, output_tokens=tokens).timing.wall_ms)
            except OutOfDeviceMemory:
                enough = False  # the request itself will say so
            if not enough:
                release(self._runner)
        self.result.warmups.append(Warmup(arm=ARM, wall_ms=wall_ms, settled=None))

    def _run(self, place: int, *, output_tokens: int) -> _Run:
        """Run a request."""
        opened = self._opened(place)
        if isinstance(self._runner, StampsItself):
            return self._run_stamped(self._runner, place, opened, output_tokens=output_tokens)
        counts: list[Counts] = []
        generated = 0

        def call(marks: Marks) -> object:
            nonlocal generated
            prompt: Prompt = self._runner.prepare(opened, mark=marks)
            counts.append(prompt.counts)
            tokens = self._runner.generate(prompt, output_tokens=output_tokens, stop=self._cell.stop, mark=marks)
            generated = len(tokens)
            return prompt, tokens  # freed after the last reading of the clock

        with self._runner.hooks() if isinstance(self._runner, MarksPhases) else nullcontext():
            timing = time_call(self._runner.clock, call)
        return _Run(_gathered(timing), seen(opened, counts[0], place=place), counts[0], generated)

    def _run_stamped(self, runner: StampsItself, place: int, opened: OpenedRequest, *, output_tokens: int) -> _Run:
        """Run a request on what knows its own times: making it ready, and then the answer."""
        counted = self._runner.prepare(opened)  # once, outside of what is timed
        prompts: list[Prompt] = []
        made = time_call(self._runner.clock, lambda marks: prompts.append(self._runner.prepare(opened, mark=marks)))
        answer, generated = runner.run(prompts[0], output_tokens=output_tokens, stop=self._cell.stop, marked=True)
        timing = Timing(
            wall_ms=made.wall_ms + answer.wall_ms,
            device_ms=made.device_ms + answer.device_ms,
            launch_ms=made.wall_ms + answer.launch_ms,
            spans=(*made.spans, *answer.spans),
        )
        counts = prompts[0].counts
        request = seen(opened, counts, place=place, picture_bytes=counted.picture_bytes)
        if isinstance(runner, RunsElsewhere):
            request = counted_by(runner, request)
        return _Run(_gathered(timing), request, counts, generated)

    def take_requests(self) -> None:
        """Run every request once, in random order."""
        order = list(range(len(self._cell.requests)))
        self._rng.shuffle(order)
        self._monitor.read()
        joules, span_ms, counted = 0.0, 0.0, 0
        for place in order:
            request = self._cell.requests[place]
            round_ms = self._runner.clock.host_ms()
            reason, before_j = None, None
            try:
                if self._get_ready(place):  # more shapes than a runner keeps, or given back for want of memory
                    self._run(place, output_tokens=min(request.output_tokens, WARMUP_OUTPUT_TOKENS))
                before_j = self._monitor.energy_j()
                run = self._run(place, output_tokens=request.output_tokens)
            except OutOfDeviceMemory as error:
                reason = str(error)
            if reason is not None:
                # Here, past the handler, nothing holds the failed pass any more.
                release(self._runner)
                self.result.failed.append(FailedRequest(place=place, reason=reason))
                self._monitor.read()
                continue
            after_j = self._monitor.energy_j()
            check_counts(self._cell, request.expected, run.counts, what=f"request {place} of ")
            if before_j is not None and after_j is not None:
                joules, span_ms, counted = joules + after_j - before_j, span_ms + run.timing.wall_ms, counted + 1
            self.result.timings[ARM].append(run.timing)
            self.result.generated_tokens.append(run.generated)
            self.result.requests.append(run.request)
            started_s = (round_ms - self._started_ms) / 1000
            self.result.rounds.append(Round.of((ARM,), started_s, self._monitor.read()))
        self.result.stop_reason = "all_requests"
        if span_ms / 1000 >= ENERGY_MIN_SPAN_S:
            self.result.energy.append(Energy(what="request", joules=joules, span_s=span_ms / 1000, repeats=counted))

    def look_further(self) -> None:
        """Look at memory and energy by phase in one request: the one with the middle number of prompt tokens."""
        lengths = [(found.counted.prompt_tokens, found.place) for found in self.result.requests if found.counted]
        place = sorted(lengths)[len(lengths) // 2][1]
        try:
            self._get_ready(place)  # a runner may keep fewer shapes than there were, or have given this one back
            prompt = self._runner.prepare(self._opened(place))
            if isinstance(self._runner, TellsMemory):
                self.result.memory = self._runner.memory(prompt)
            read_energy(self._cell, prompt, self._runner, monitor=self._monitor, result=self.result, vision=True)
        except OutOfDeviceMemory:
            lacking = True  # the samples stand; only this look is missing
        else:
            lacking = False
        if lacking:
            release(self._runner)


def _gathered(timing: Timing) -> Timing:
    """The same timing with its decode steps as one span, and the longest of them beside it."""
    steps = [duration_ms for phase, duration_ms in timing.spans if phase == "decode_step"]
    spans = [span for span in timing.spans if span[0] != "decode_step"]
    return replace(timing, spans=(*spans, ("decode", sum(steps)), ("longest_step", max(steps, default=0.0))))
