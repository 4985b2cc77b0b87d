"""Three durations that differ whenever host and device do not move in step, and durations that cannot be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.support.fakes import FakeClock
from vlmeter.backends.clock import ClockError, HostClock, Marks, make_clock, time_call, total_by_phase


def test_work_that_the_host_launches_slowly_is_launch_bound() -> None:
    clock = FakeClock()

    def call(marks: Marks) -> None:
        for _ in range(10):
            clock.work(device_ms=0.1, launch_ms=1.0)

    timing = time_call(clock, call)
    assert timing.launch_ms == pytest.approx(10.0)
    assert timing.wall_ms == pytest.approx(10.1)
    assert timing.device_ms == pytest.approx(10.1), "events include the gaps in which the device waits"


def test_work_that_the_device_does_slowly_is_device_bound() -> None:
    clock = FakeClock()

    def call(marks: Marks) -> None:
        for _ in range(10):
            clock.work(device_ms=1.0, launch_ms=0.1)

    timing = time_call(clock, call)
    assert timing.launch_ms == pytest.approx(1.0), "the host is free long before the device"
    assert timing.wall_ms == pytest.approx(10.1)
    assert timing.device_ms == pytest.approx(10.1)


def test_work_left_over_from_before_is_not_timed() -> None:
    clock = FakeClock()
    clock.work(device_ms=500.0)
    assert time_call(clock, lambda marks: clock.work(device_ms=2.0)).wall_ms == pytest.approx(2.0)


def test_spans_between_marks_add_up_to_the_device_time() -> None:
    clock = FakeClock()

    def call(marks: Marks) -> None:
        marks(None)
        for phase, device_ms in [("a", 1.0), ("b", 2.5), ("a", 0.5)]:
            clock.work(device_ms=device_ms, launch_ms=0.2)
            marks(phase)

    timing = time_call(clock, call)
    assert [phase for phase, _ in timing.spans] == ["a", "b", "a"]
    assert total_by_phase(timing.spans) == pytest.approx({"a": 1.7, "b": 2.5})
    assert sum(duration_ms for _, duration_ms in timing.spans) == pytest.approx(timing.device_ms)


def test_a_mark_that_opens_closes_nothing() -> None:
    clock = FakeClock()

    def call(marks: Marks) -> None:
        clock.work(device_ms=3.0)
        marks(None)
        clock.work(device_ms=1.0)
        marks("a")
        clock.work(device_ms=5.0)
        marks(None)
        clock.work(device_ms=1.0)
        marks("b")

    assert time_call(clock, call).spans == (("a", 1.0), ("b", 1.0))


class Scripted(FakeClock):
    """A clock whose host time or device time is dictated."""

    def __init__(self, *, host: Callable[[], float] | None = None, device_ms: float | None = None) -> None:
        super().__init__()
        self._host, self._device_ms = host, device_ms

    def host_ms(self) -> float:
        return self._host() if self._host else super().host_ms()

    def elapsed_ms(self, start: float, end: float) -> float:
        return super().elapsed_ms(start, end) if self._device_ms is None else self._device_ms


def some_work(clock: FakeClock) -> Callable[[Marks], None]:
    def call(marks: Marks) -> None:
        marks(None)
        clock.work(device_ms=1.0, launch_ms=1.0)
        marks("a")

    return call


@pytest.mark.parametrize("device_ms", [math.nan, -1.0, 0.0, math.inf])
def test_a_device_time_that_cannot_be_is_an_error(device_ms: float) -> None:
    clock = Scripted(device_ms=device_ms)
    with pytest.raises(ClockError, match="device time, which cannot be"):
        time_call(clock, some_work(clock))


@pytest.mark.parametrize(
    ("name", "readings"),
    [
        ("backwards", count(100, -1)),
        ("standing still", iter(lambda: 5.0, None)),
        ("lost", iter(lambda: math.nan, None)),
    ],
)
def test_a_host_clock_that_cannot_be_is_an_error(name: str, readings: Iterator[float]) -> None:
    clock = Scripted(host=lambda: float(next(readings)))
    with pytest.raises(ClockError, match="host wall time, which cannot be"):
        time_call(clock, some_work(clock))


def test_a_mark_that_lies_before_the_one_it_follows_is_an_error() -> None:
    clock = FakeClock()
    moments = iter([0.0, 1.0, 0.5, 2.0])
    clock.mark = lambda: next(moments)  # type: ignore[method-assign]
    with pytest.raises(ClockError, match="phase a, which cannot be"):
        time_call(clock, some_work(clock))


def test_an_empty_phase_is_no_error() -> None:
    clock = FakeClock()

    def call(marks: Marks) -> None:
        marks(None)
        marks("nothing")
        clock.work(device_ms=1.0)
        marks("a")

    assert time_call(clock, call).spans == (("nothing", 0.0), ("a", 1.0))


def test_the_result_of_a_call_is_kept_alive_until_the_last_reading() -> None:
    """Freeing a result takes time that is not the call's."""
    clock = FakeClock()

    class Costly:
        def __del__(self) -> None:
            clock.host_work(100.0)

    def call(marks: Marks) -> Costly:
        clock.work(device_ms=1.0)
        return Costly()

    assert time_call(clock, call).wall_ms == pytest.approx(1.0)


def test_the_host_clock_never_goes_back() -> None:
    clock = HostClock()
    readings = [clock.host_ms() for _ in range(1000)]
    assert readings == sorted(readings)
    assert clock.elapsed_ms(clock.mark(), clock.mark()) >= 0


def test_a_cpu_is_timed_by_the_host() -> None:
    assert isinstance(make_clock("cpu"), HostClock)


# --- several devices --------------------------------------------------------------------------------


class Stream:
    """A device's stream, which is free again at some moment."""

    def __init__(self) -> None:
        self.free_ms = 0.0

    def work(self, duration_ms: float, *, after: Stream | None = None) -> None:
        self.free_ms = max(self.free_ms, after.free_ms if after else 0.0) + duration_ms

    def wait_event(self, event: Event) -> None:
        assert event.at_ms is not None
        self.free_ms = max(self.free_ms, event.at_ms)


class Event:
    """A CUDA event: comparable on its own device only."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.timed = enable_timing
        self.at_ms: float | None = None
        self.on: Stream | None = None

    def record(self, stream: Stream) -> None:
        self.at_ms, self.on = stream.free_ms, stream

    def elapsed_time(self, end: Event) -> float:
        assert self.on is end.on, "events of two devices cannot be compared"
        assert self.timed
        assert self.at_ms is not None
        assert end.at_ms is not None
        return end.at_ms - self.at_ms


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> tuple[Stream, Stream]:
    """The streams of a machine with two devices."""
    import torch

    both = (Stream(), Stream())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: both[device.index])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    return both


def test_the_phases_of_a_model_on_two_devices_are_where_the_work_was(streams: tuple[Stream, Stream]) -> None:
    """Vision on the first, half of the blocks on each, the head on the second, the logits copied back."""
    first, second = streams

    def call(marks: Marks) -> None:
        marks(None)
        first.work(5)
        marks("vision_encoder")
        first.work(20)
        second.work(30, after=first)
        marks("llm_blocks")
        second.work(4)
        marks("head")
        first.work(1, after=second)

    timing = time_call(make_clock("cuda:0", beside=["cuda:1"]), call)
    assert dict(timing.spans) == {"vision_encoder": 5, "llm_blocks": 50, "head": 4}
    assert timing.device_ms == 60


def test_a_clock_of_several_devices_waits_for_all_of_them(
    streams: tuple[Stream, Stream], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(str(device)))
    make_clock("cuda:0", beside=["cuda:1"]).synchronize()
    assert waited == ["cuda:0", "cuda:1"]
