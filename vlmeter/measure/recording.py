"""Turn what was measured of a cell into its record."""

from __future__ import annotations

from vlmeter.backends.base import BusyTime
from vlmeter.inputs.pictures import Album, Looks
from vlmeter.measure.rounds import Measurement, split_spans
from vlmeter.models.families.base import Counts
from vlmeter.records.record import Busy, Counted, MeasuredRequest, Series


def counted_of(counts: Counts) -> Counted:
    """The counts of a model's inputs, as the record keeps them."""
    return Counted(
        crops=counts.crops,
        vision_tokens=counts.vision_tokens,
        special_tokens=counts.special_tokens,
        text_tokens=counts.text_tokens,
        prompt_tokens=counts.prompt_tokens,
    )


def requests_of(measured: Measurement, looks: Looks) -> list[MeasuredRequest]:
    """What each round of a block was, as the record keeps it."""
    if not isinstance(looks, Album):
        return []
    return [
        MeasuredRequest(
            place=state.place,
            counted=counted_of(state.counts),
            width_px=state.width_px,
            height_px=state.height_px,
            image_id=looks.pictures[state.place].image_id,
            question_id=looks.pictures[state.place].question_id,
            question=looks.pictures[state.place].question,
        )
        for state in measured.requests
    ]


def busy_of(found: BusyTime) -> Busy:
    """A busy time, as the record keeps it."""
    return Busy(source=found.source, phase=found.phase, samples_ms=list(found.samples_ms))


def series_of(measured: Measurement) -> list[Series]:
    """Lay the timings out as series: totals on three clocks, phases and the sum of decode steps on the device's."""
    found: dict[tuple[str, str, str], list[float]] = {}
    for arm, timings in measured.timings.items():
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
    return [
        Series.model_validate({"arm": arm, "phase": phase, "clock": clock, "samples_ms": samples_ms})
        for (arm, phase, clock), samples_ms in found.items()
    ]
