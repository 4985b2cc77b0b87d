"""What is learnt about a cell while it is measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from vlmeter.backends.base import BusyTime, MemoryUse
from vlmeter.backends.clock import Timing, total_by_phase
from vlmeter.cells.cell import Cell, Expected
from vlmeter.models.families.base import Counts
from vlmeter.numbers.medians import Estimate, median_estimate
from vlmeter.records.parts import Energy, FailedRequest, MeasuredRequest, Round, Series, Warmup

#: Keys of `Measurement.seconds` for what a runner does before it can run a shape at its own speed.
GETTING_READY = ("compile", "capture")


class CountMismatch(Exception):
    """The model's real inputs hold other counts than the plan predicted: the cell's numbers would be mislabelled."""


@dataclass
class Measurement:
    """What was learnt about a cell; samples are kept per arm, one per round.

    judged: names of the arms that run the whole request, whose median sampling has to know; the last of them is the one
    by which the cell is told.
    """

    status: Literal["ok", "oom", "unsupported"] = "ok"
    reason: str | None = None
    judged: tuple[str, ...] = ()
    timings: dict[str, list[Timing]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    generated_tokens: list[int] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    warmups: list[Warmup] = field(default_factory=list)
    busy: list[BusyTime] = field(default_factory=list)
    busy_reason: str | None = None
    memory: list[MemoryUse] = field(default_factory=list)
    energy: list[Energy] = field(default_factory=list)
    requests: list[MeasuredRequest] = field(default_factory=list)
    failed: list[FailedRequest] = field(default_factory=list)
    #: ids of the tokens of the last round by which the cell is told, and digests of those of all rounds, each once
    output: list[int] = field(default_factory=list)
    output_digests: list[str] = field(default_factory=list)
    #: what a server said of the requests by which the cell is told, round by round, by its own names
    said: list[dict[str, float]] = field(default_factory=list)
    stop_reason: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def estimate(self) -> Estimate | None:
        """Median wall time of the whole request with its interval, undisturbed rounds only if there are any."""
        arm = self.judged[-1] if self.judged else None
        if arm is None or not self.timings.get(arm):
            return None
        return median_estimate([timing.wall_ms for timing in self._trusted(arm)], in_order=True)

    def precision(self) -> float:
        """Largest relative half width among the arms that are judged: what sampling has to bring down."""
        return max(
            median_estimate([timing.wall_ms for timing in self._trusted(arm)], in_order=True).relative_half_width
            for arm in self.judged
            if self.timings.get(arm)
        )

    def _trusted(self, arm: str) -> list[Timing]:
        quiet = [timing for timing, state in zip(self.timings[arm], self.rounds, strict=True) if not state.disturbances]
        # A few quiet rounds among many disturbed ones may be no better than chance: then all of them count.
        return quiet if len(quiet) * 2 >= len(self.rounds) else self.timings[arm]

    def series(self) -> list[Series]:
        """Lay the timings out as series: totals on three clocks, phases and the sum of decode steps on the device's."""
        found: dict[tuple[str, str, str], list[float]] = {}
        for arm, timings in self.timings.items():
            decodes = any(split_spans(timing)[1] for timing in timings)
            for timing in timings:
                phases, steps = split_spans(timing)
                found.setdefault((arm, "total", "wall"), []).append(timing.wall_ms)
                found.setdefault((arm, "total", "device"), []).append(timing.device_ms)
                found.setdefault((arm, "total", "launch"), []).append(timing.launch_ms)
                for phase, duration_ms in phases.items():
                    found.setdefault((arm, phase, "device"), []).append(duration_ms)
                if decodes:
                    found.setdefault((arm, "decode", "device"), []).append(sum(steps))
        for name in set.intersection(*map(set, self.said)) if self.said else ():
            found[("server", name, "wall")] = [told[name] for told in self.said]
        return [
            Series.model_validate({"arm": arm, "phase": phase, "clock": clock, "samples_ms": samples_ms})
            for (arm, phase, clock), samples_ms in found.items()
        ]

    def steps_ms(self) -> list[list[float]]:
        """Device time of every decode step, round by round."""
        return [
            steps
            for arm, timings in self.timings.items()
            if arm in self.judged
            for timing in timings
            if (steps := split_spans(timing)[1])
        ]


def check_counts(cell: Cell, expected: Expected, counts: Counts, *, what: str = "") -> None:
    """Raise CountMismatch unless the real inputs hold what was predicted; `what` names a part of the cell."""
    for name in type(expected).model_fields:
        planned, real = getattr(expected, name), getattr(counts, name)
        if planned is not None and planned != real:
            raise CountMismatch(
                f"{what}cell {cell.cell_id} of {cell.subject}: the plan says {name} {planned}, "
                f"the model's real inputs hold {real}"
            )


def split_spans(timing: Timing) -> tuple[dict[str, float], list[float]]:
    """Split the spans of a timing into totals per phase of inputs or prefill, and the list of decode steps."""
    steps = [duration_ms for phase, duration_ms in timing.spans if phase == "decode_step"]
    return total_by_phase(span for span in timing.spans if span[0] != "decode_step"), steps
