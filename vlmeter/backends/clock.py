"""Clocks, and what a duration means.

Three things are called "the latency" of a piece of device work, and they differ whenever the host and the device do
not move in step:

- *host wall time*: from the call until the device has finished, as a user waits for it;
- *device event time*: between two marks that the device itself passes. It includes the gaps in which the device waits
  for the host to launch the next kernel;
- *launch time*: from the call until the host has handed all work over. If it is as long as the wall time, the host
  sets the pace, and the device time says nothing about the device.

(A fourth, the time for which the device is busy, cannot be seen by a clock beside the work; see `Runner.busy_ms`.)
A clock takes *marks*. On a GPU a mark is a CUDA event, resolved to about 0.5 microseconds; without one it is a
reading of the host's clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class ClockError(Exception):
    """A clock gave durations that cannot be: negative, zero for real work, or not a number."""


class Clock(Protocol):
    """Marks on the device's time line, and the host's own time."""

    #: what a mark is: "cuda_event", "host" or "fake"
    mark_kind: str

    def mark(self) -> Any:
        """Place a mark behind all work handed over so far; cheap, and waits for nothing."""
        ...

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Milliseconds of device time between two marks; only after `synchronize`."""
        ...

    def synchronize(self) -> None:
        """Wait until the device has finished everything."""
        ...

    def host_ms(self) -> float:
        """Milliseconds of the host's steady clock, from an arbitrary start."""
        ...


class HostClock:
    """The host's steady clock, for devices that work in step with the host (a CPU)."""

    mark_kind = "host"

    def mark(self) -> float:
        """Read the host's clock; work on a CPU is finished when the call returns."""
        return self.host_ms()

    def elapsed_ms(self, start: float, end: float) -> float:
        """Difference of two readings."""
        return end - start

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def host_ms(self) -> float:
        """Milliseconds of `time.perf_counter`, which no adjustment of the system's clock moves."""
        return time.perf_counter_ns() / 1e6


class CudaClock:
    """CUDA events on the current stream of one device.

    A model that is spread over several devices works on one after the other, and two events can be compared on one
    device alone. There a mark is what the first device sees once all of them have come so far: it waits for the others,
    which have nothing to do meanwhile.
    """

    mark_kind = "cuda_event"

    def __init__(self, device: str, *, beside: Sequence[str] = ()) -> None:
        import torch

        self._torch = torch
        self._device = torch.device(device)
        self._beside = [torch.device(name) for name in beside]

    def mark(self) -> Any:
        """Record an event on the current stream."""
        cuda = self._torch.cuda
        stream = cuda.current_stream(self._device)
        for device in self._beside:
            come_so_far = cuda.Event()
            come_so_far.record(cuda.current_stream(device))
            stream.wait_event(come_so_far)
        event = cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    def elapsed_ms(self, start: Any, end: Any) -> float:
        """Device time between two events."""
        return float(start.elapsed_time(end))

    def synchronize(self) -> None:
        """Wait for all devices."""
        for device in (self._device, *self._beside):
            self._torch.cuda.synchronize(device)

    def host_ms(self) -> float:
        """Milliseconds of `time.perf_counter`."""
        return time.perf_counter_ns() / 1e6


def make_clock(device: str, *, beside: Sequence[str] = ()) -> Clock:
    """Return the clock for a device name: CUDA events for cuda, the host's clock for cpu.

    beside: the other devices of a model that is spread over several.
    """
    return CudaClock(device, beside=beside) if device.startswith("cuda") else HostClock()


@dataclass(frozen=True)
class Timing:
    """One timed call: the three durations, and the spans between the marks taken inside it.

    spans: (phase, milliseconds of device time) in the order of the marks; they add up to device_ms when the first
    and the last mark were taken at the ends.
    """

    wall_ms: float
    device_ms: float
    launch_ms: float
    spans: tuple[tuple[str, float], ...] = ()


class Marks:
    """Collects marks inside a timed call; each closes a phase."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._marks: list[tuple[str | None, Any]] = []

    def __call__(self, closes: str | None) -> None:
        """Place a mark: the span since the previous one belongs to the phase `closes` (None opens the first)."""
        self._marks.append((closes, self._clock.mark()))

    def spans(self) -> tuple[tuple[str, float], ...]:
        """Durations between successive marks; only after the clock was synchronised."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        return tuple(
            (phase, _checked(self._clock.elapsed_ms(start, end), what=f"phase {phase}"))
            for (_, start), (phase, end) in pairs
            if phase is not None
        )


def time_call(clock: Clock, call: Callable[[Marks], object]) -> Timing:
    """Time one call from an idle device until the device is idle again.

    The timed region holds the call alone: the device is synchronised before the first reading, and the result is
    kept alive until after the last, so that freeing it is not timed. Raises ClockError on a duration that cannot be.
    """
    marks = Marks(clock)
    clock.synchronize()
    start_ms, first = clock.host_ms(), clock.mark()
    result = call(marks)
    last, launched_ms = clock.mark(), clock.host_ms()
    clock.synchronize()
    end_ms = clock.host_ms()
    del result
    return Timing(
        wall_ms=_checked(end_ms - start_ms, what="host wall time", positive=True),
        device_ms=_checked(clock.elapsed_ms(first, last), what="device time", positive=True),
        launch_ms=_checked(launched_ms - start_ms, what="launch time"),
        spans=marks.spans(),
    )


def _checked(duration_ms: float, *, what: str, positive: bool = False) -> float:
    if not math.isfinite(duration_ms) or duration_ms < 0 or (positive and duration_ms == 0):
        raise ClockError(f"the clock gave {duration_ms} ms of {what}, which cannot be")
    return duration_ms


def total_by_phase(spans: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Add up the spans of each phase, in order of first appearance."""
    totals: dict[str, float] = {}
    for phase, duration_ms in spans:
        totals[phase] = totals.get(phase, 0.0) + duration_ms
    return totals
