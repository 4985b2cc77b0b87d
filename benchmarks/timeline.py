"""The profiler's kernel timeline, cut at the marks that the clock takes.

CUDA events and the profiler know of the same kernels by different ways: an event is a packet in the stream that the
device stamps as it passes, the profiler reads the start and the end of each kernel from the device's own records. If
the time between two marks is the time from the last kernel before the one to the last kernel before the other, then
marks are where they claim to be and cost nothing that matters.

A kernel belongs to the phase in which the host launched it. Two ways tell which that is: calls of `cudaEventRecord`
among the launches (they are the marks), or named ranges around the phases. The second needs the profiler to watch the
host as well, which slows it to half its speed and makes device-bound work launch-bound; so it is the second choice.
"""

from __future__ import annotations

import json
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from vlmeter.backends.base import Prompt, Runner
from vlmeter.backends.clock import Clock, Marks, total_by_phase

#: Categories of trace events that are work of the device, and of those that are calls of the host.
DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
HOST_CATEGORIES = ("cuda_runtime", "cuda_driver")

#: Share of a phase for which kernels must run for it to count as device-bound: between dependent kernels the device
#: needs about a microsecond, so even work that never waits for the host does not reach 1.
DEVICE_BOUND_FILL = 0.9

RANGE_PREFIX = "vlmeter mark "


@dataclass(frozen=True)
class PhaseTimeline:
    """One phase by three measures, in milliseconds.

    event_ms: between the marks; span_ms: from the last kernel of the phase before to its own last kernel; busy_ms: for
    which any of its kernels ran; kernels: how many they were.
    """

    event_ms: float
    span_ms: float
    busy_ms: float
    kernels: int

    @property
    def is_device_bound(self) -> bool:
        """Whether the device was busy with kernels nearly all the time."""
        return self.span_ms > 0 and self.busy_ms >= DEVICE_BOUND_FILL * self.span_ms


class _RangedMarks(Marks):
    """Marks that also open a named range for the profiler, from each mark to the next."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(clock)
        self.closed: list[str | None] = []
        self._range: Any = None

    def __call__(self, closes: str | None) -> None:
        import torch

        self.end()
        super().__call__(closes)
        self._range = torch.profiler.record_function(f"{RANGE_PREFIX}{len(self.closed)}")
        self._range.__enter__()
        self.closed.append(closes)

    def end(self) -> None:
        """Close the range that is open."""
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None


def profile_prefill(runner: Runner, prompt: Prompt, *, repeats: int) -> dict[str, PhaseTimeline]:
    """Profile a prefill with its marks; per phase the medians over so many repeats.

    Raises ValueError if neither way finds the marks in the profiler's trace.
    """
    from torch.profiler import ProfilerActivity

    runs: list[dict[str, PhaseTimeline]] = []
    activities = [ProfilerActivity.CUDA]
    with runner.hooks():
        _profile_once(runner, prompt, activities)  # the first trace sets the profiler up
        while len(runs) < repeats:
            phases, events_ms, trace = _profile_once(runner, prompt, activities)
            try:
                runs.append(cut(trace, phases, events_ms))
            except ValueError:
                if len(activities) > 1:
                    raise
                activities = [ProfilerActivity.CUDA, ProfilerActivity.CPU]
    return {
        phase: PhaseTimeline(
            event_ms=median(run[phase].event_ms for run in runs),
            span_ms=median(run[phase].span_ms for run in runs),
            busy_ms=median(run[phase].busy_ms for run in runs),
            kernels=runs[0][phase].kernels,
        )
        for phase in runs[0]
    }


def _profile_once(
    runner: Runner, prompt: Prompt, activities: Sequence[Any]
) -> tuple[list[str], dict[str, float], dict[str, Any]]:
    """Run once; returns the phase that each span between marks belongs to, the time between marks, the trace."""
    from torch.profiler import profile

    marks = _RangedMarks(runner.clock)
    runner.clock.synchronize()
    with profile(activities=list(activities)) as profiler:
        kept = runner.generate(prompt, output_tokens=1, stop="length", mark=marks)
        marks.end()
        runner.clock.synchronize()
    del kept
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        trace = json.loads(path.read_bytes())
    return [phase for phase in marks.closed if phase is not None], total_by_phase(marks.spans()), trace


def cut(trace: Mapping[str, Any], phases: Sequence[str], events_ms: Mapping[str, float]) -> dict[str, PhaseTimeline]:
    """Cut a trace (chrome format) at its marks.

    phases: the phase of each span between two marks, in order; events_ms: time between marks, by phase.
    Raises ValueError if the marks cannot be found in it.
    """
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    marks_us = _marks(events, count=len(phases) + 1)
    launched_us = {
        event["args"]["correlation"]: event["ts"]
        for event in events
        if event.get("cat") in HOST_CATEGORIES and "correlation" in event.get("args", {})
    }
    kernels: list[list[tuple[float, float]]] = [[] for _ in phases]
    for event in events:
        if event.get("cat") in DEVICE_CATEGORIES:
            launch_us = launched_us.get(event["args"].get("correlation"))
            place = -1 if launch_us is None else bisect_right(marks_us, launch_us) - 1
            if 0 <= place < len(phases):
                kernels[place].append((event["ts"], event["ts"] + event["dur"]))
    if not any(kernels):
        raise ValueError("the trace holds no kernel that was launched between the marks")

    spans: list[tuple[str, float]] = []
    busies: list[tuple[str, float]] = []
    before_us = min(start for part in kernels for start, _ in part)
    for phase, part in zip(phases, kernels, strict=True):
        end_us = max((end for _, end in part), default=before_us)
        spans.append((phase, max(0.0, end_us - before_us) / 1000))
        busies.append((phase, union_of(part) / 1000))
        before_us = max(before_us, end_us)
    span_ms, busy_ms = total_by_phase(spans), total_by_phase(busies)
    return {
        phase: PhaseTimeline(
            event_ms=events_ms[phase],
            span_ms=span_ms[phase],
            busy_ms=busy_ms[phase],
            kernels=sum(len(part) for name, part in zip(phases, kernels, strict=True) if name == phase),
        )
        for phase in span_ms
    }


def _marks(events: Sequence[Mapping[str, Any]], *, count: int) -> list[float]:
    """Find when the host placed each mark, in microseconds of the trace."""
    ranges = sorted(
        (int(event["name"][len(RANGE_PREFIX) :]), event["ts"])
        for event in events
        if event.get("cat") == "user_annotation" and event["name"].startswith(RANGE_PREFIX)
    )
    if len(ranges) == count:
        return [time_us for _, time_us in ranges]
    records = sorted(event["ts"] for event in events if event["name"].startswith("cudaEventRecord"))
    if len(records) == count:
        return records
    raise ValueError(
        f"the trace holds {len(records)} recorded events and {len(ranges)} ranges, and {count} marks were placed"
    )


def union_of(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals: time in which at least one of them runs."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total
