"""The benchmark of the measuring: what it reads out of a trace, how it judges, and that it runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity

from benchmarks import timeline
from benchmarks.core import _parser as parser
from benchmarks.core import as_text, paired_overhead, pooled_interval, repeatability, study_of, summarise
from benchmarks.timeline import PhaseTimeline, cut, profile_prefill, union_of
from vlmeter.backends.base import Prompt, Runner
from vlmeter.backends.clock import HostClock
from vlmeter.models.families.base import Counts
from vlmeter.study.plan import build_plan
from vlmeter.table.build import build_table

from .support.fakes import FakeRunner
from .support.studies import run_fake
from .support.studies import study_of as small_study

# ----------------------------------------------------------------------------------------------------------- timeline


class Trace:
    """A trace as the profiler exports it, written by hand; all times in microseconds."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._number = 0

    def host(self, name: str, at: float, **arguments: Any) -> None:
        event = {"ph": "X", "cat": "cuda_runtime", "name": name, "ts": at, "dur": 2.0, "args": arguments}
        self.events.append(event)

    def mark(self, at: float) -> None:
        self.host("cudaEventRecordWithFlags", at)

    def range(self, number: int, at: float) -> None:
        name = f"{timeline.RANGE_PREFIX}{number}"
        self.events.append({"ph": "X", "cat": "user_annotation", "name": name, "ts": at, "dur": 1.0, "args": {}})

    def kernel(self, launched: float, start: float, end: float, category: str = "kernel") -> None:
        self._number += 1
        self.host("cudaLaunchKernel", launched, correlation=self._number)
        arguments = {"correlation": self._number, "stream": 7}
        duration = end - start
        self.events.append({"ph": "X", "cat": category, "name": "k", "ts": start, "dur": duration, "args": arguments})

    def cut(self, phases: list[str], events_ms: dict[str, float]) -> dict[str, PhaseTimeline]:
        other = [{"ph": "M", "name": "process_name"}, {"ph": "i", "name": "x", "ts": 1}]
        return cut({"traceEvents": [*other, *self.events]}, phases, events_ms)


def two_phases(*, ranges: bool = False) -> Trace:
    """Encode: two kernels back to back. Decode: one, launched while the first still runs."""
    trace = Trace()
    for number, at in enumerate((10.0, 30.0, 40.0)):
        if ranges:
            trace.range(number, at)
        else:
            trace.mark(at)
    trace.kernel(launched=12, start=100, end=200)
    trace.kernel(launched=20, start=201, end=300, category="gpu_memcpy")
    trace.kernel(launched=35, start=310, end=500)
    return trace


@pytest.mark.parametrize("ranges", [False, True], ids=["recorded events", "named ranges"])
def test_kernels_belong_to_the_phase_in_which_they_were_launched(ranges: bool) -> None:
    found = two_phases(ranges=ranges).cut(["encode", "decode"], {"encode": 0.2, "decode": 0.2})
    assert found["encode"] == PhaseTimeline(event_ms=0.2, span_ms=0.2, busy_ms=pytest.approx(0.199), kernels=2)
    # From the last kernel of the phase before: the gap belongs to the phase that it delays.
    assert found["decode"] == PhaseTimeline(event_ms=0.2, span_ms=0.2, busy_ms=pytest.approx(0.19), kernels=1)


def test_a_phase_in_several_pieces_is_one() -> None:
    trace = Trace()
    for at in (0.0, 10.0, 20.0, 30.0):
        trace.mark(at)
    trace.kernel(launched=1, start=100, end=110)
    trace.kernel(launched=11, start=110, end=150)
    trace.kernel(launched=21, start=150, end=155)
    found = trace.cut(["merge", "encode", "merge"], {"merge": 0.015, "encode": 0.04})
    assert found["merge"].kernels == 2
    assert found["merge"].span_ms == pytest.approx(0.015)
    assert found["encode"].span_ms == pytest.approx(0.04)


def test_kernels_before_the_first_mark_belong_to_nobody() -> None:
    trace = two_phases()
    trace.kernel(launched=5, start=60, end=90)
    assert sum(p.kernels for p in trace.cut(["encode", "decode"], {"encode": 1, "decode": 1}).values()) == 3


def test_a_phase_without_kernels_takes_no_time() -> None:
    trace = two_phases()
    trace.mark(50.0)
    found = trace.cut(["encode", "decode", "nothing"], {"encode": 1, "decode": 1, "nothing": 0.001})
    assert found["nothing"] == PhaseTimeline(event_ms=0.001, span_ms=0.0, busy_ms=0.0, kernels=0)
    assert not found["nothing"].is_device_bound


def test_marks_that_are_not_in_the_trace_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 recorded events and 0 ranges, and 4 marks"):
        two_phases().cut(["a", "b", "c"], {"a": 1, "b": 1, "c": 1})


def test_a_trace_without_kernels_is_an_error() -> None:
    trace = Trace()
    for at in (1.0, 2.0):
        trace.mark(at)
    with pytest.raises(ValueError, match="no kernel"):
        trace.cut(["a"], {"a": 1})


def test_a_phase_is_device_bound_if_kernels_fill_it() -> None:
    assert PhaseTimeline(event_ms=1, span_ms=1, busy_ms=0.95, kernels=9).is_device_bound
    assert not PhaseTimeline(event_ms=1, span_ms=1, busy_ms=0.5, kernels=9).is_device_bound


def test_time_in_which_two_kernels_run_counts_once() -> None:
    assert union_of([(0, 10), (5, 8), (9, 12), (20, 21)]) == 13
    assert union_of([]) == 0


class MarkedRunner:
    """Marks two phases around a little real work, as a runner does."""

    clock = HostClock()

    def hooks(self) -> Any:
        return torch.inference_mode()

    def generate(self, prompt: Prompt, *, output_tokens: int, stop: str, mark: Any = None) -> object:
        value = torch.ones(64, 64)
        for phase in (None, "encode", "decode"):
            if phase:
                value = value @ value
            mark(phase)
        return value


def test_ranges_are_found_in_a_real_trace() -> None:
    runner: Any = MarkedRunner()
    prompt = Prompt(tensors={}, counts=Counts(1, 1, 0, 1, 2))
    phases, events_ms, trace = timeline._profile_once(runner, prompt, [ProfilerActivity.CPU])
    assert phases == ["encode", "decode"]
    assert events_ms.keys() == {"encode", "decode"}
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X"]
    marks_us = timeline._marks(events, count=3)
    assert marks_us == sorted(marks_us)


def test_named_ranges_are_tried_where_events_are_not_in_the_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def once(runner: Runner, prompt: Prompt, activities: list[Any]) -> Any:
        tried.append(len(activities))
        trace = two_phases(ranges=True) if len(activities) > 1 else Trace()
        return ["encode", "decode"], {"encode": 0.2, "decode": 0.2}, {"traceEvents": trace.events}

    monkeypatch.setattr(timeline, "_profile_once", once)
    runner: Any = MarkedRunner()
    found = profile_prefill(runner, Prompt(tensors={}, counts=Counts(1, 1, 0, 1, 2)), repeats=2)
    assert tried == [1, 1, 2, 2]
    assert found["encode"].kernels == 2


# ------------------------------------------------------------------------------------------------------------ verdicts


def test_the_tilings_tell_crops_and_tokens_apart() -> None:
    cells = build_plan(study_of(parser().parse_args([])))
    vision = [cell.expected for cell in cells if cell.experiment == "vision_tokens"]
    crops = torch.tensor([float(expected.crops or 0) for expected in vision])
    tokens = torch.tensor([float(expected.prompt_tokens or 0) for expected in vision])
    design = torch.stack([crops / crops.max(), tokens / tokens.max(), torch.ones(len(vision))], dim=1)
    assert float(torch.linalg.cond(design)) < 100


def test_overhead_is_paired_by_round(tmp_path: Path) -> None:
    runner = FakeRunner(hook_cost_ms=0.1, noise_fraction=0.0)
    run_fake(small_study(), tmp_path, runner=runner)
    table = build_table(sorted((tmp_path / "small" / "cells" / "fake").glob("*.json")))
    fractions = paired_overhead(table, "device")
    assert len(fractions) == sum(table[(table["arm"] == "plain") & (table["phase"] == "total")
                                       & (table["clock"] == "device")
                                       & (table["experiment"] == "vision_tokens")]["samples"])  # fmt: skip
    assert all(0 < fraction < 0.2 for fraction in fractions)


def test_a_hiccup_does_not_decide_the_overhead() -> None:
    fractions = [0.002] * 200 + [5.0] * 3
    estimate = pooled_interval(fractions)
    assert estimate.value == pytest.approx(0.002)
    assert estimate.high < 0.01


def test_a_cost_that_every_round_pays_is_seen() -> None:
    estimate = pooled_interval([0.03 + 0.001 * (i % 7 - 3) for i in range(200)])
    assert 0.029 < estimate.low < estimate.value < estimate.high < 0.031


def session(*, device: str, scale: float = 1.0, closure: float = 0.004) -> dict[str, Any]:
    cell = {"cell_id": "vision-tiling-1x1", "crops": 2, "prompt_tokens": 348, "bound": "device-bound",
            "closure_fraction": closure, "closure_low_fraction": None, "closure_high_fraction": None,
            **{f"{n}_ms": 1.0 for n in ("plain_wall", "plain_device", "plain_launch", "busy_prefill")}}  # fmt: skip
    row = {"cell_id": "vision-tiling-1x1", "prompt_tokens": 348, "unprofiled_ms": 1.0}
    timelines = [
        {"phase": "llm_blocks", "event_ms": 1.01, "span_ms": 1.0, "busy_ms": 0.97, "kernels": 9, "device_bound": True},
        {"phase": "merge", "event_ms": 2.0, "span_ms": 1.0, "busy_ms": 0.1, "kernels": 2, "device_bound": False},
    ]
    return {
        "environment": {"device": device, "device_identity": "GPU", "vlmeter": "0", "commit": None,
                        "versions": {"torch": "2", "transformers": "5"}},
        "subject": {"family": "molmo", "preset": "nano", "dtype": "float32"},
        "cells": [cell],
        "overhead": {"wall": [0.001] * 50, "device": [0.001] * 50},
        "slopes": {"busy per crop": 0.8 * scale, "device per crop": 0.8 * scale**9},
        "decode": {"per step": 18.0, "per token of context": 1e-5 * scale**20},
        "profiler": [{**row, **one} for one in timelines],
        "seconds": 60.0,
    }  # fmt: skip


def verdicts(*sessions: dict[str, Any]) -> dict[str, bool | None]:
    return {one["name"]: one["passed"] for one in summarise(sessions)["verdicts"]}


def test_what_holds_is_said_to_hold() -> None:
    found = verdicts(session(device="cuda:0"), session(device="cuda:0", scale=1.005))
    assert found == {"overhead": True, "closure": True, "profiler": True, "repeatability": True}


def test_what_does_not_hold_is_said_not_to() -> None:
    found = verdicts(session(device="cuda:0", closure=-0.02), session(device="cuda:0", scale=1.02, closure=-0.02))
    assert found == {"overhead": True, "closure": False, "profiler": True, "repeatability": False}


def test_limits_are_not_judged_on_a_cpu() -> None:
    assert set(verdicts(session(device="cpu"), session(device="cpu")).values()) == {None}


def test_only_slopes_of_the_device_alone_are_judged() -> None:
    rows = {row["slope"]: row for row in repeatability([session(device="cpu"), session(device="cpu", scale=1.005)])}
    assert {name: row["clock"] for name, row in rows.items()} == {
        "busy per crop": "busy",
        "device per crop": "device",
        "decode per step": "decode",
        "decode per token of context": "context",
    }
    assert rows["busy per crop"]["difference_fraction"] == pytest.approx(0.005)


def test_the_answers_can_be_printed() -> None:
    result = summarise([session(device="cuda:0"), session(device="cuda:0")])
    text = as_text({**result, "seconds": 120.0})
    for words in ("overhead", "Closure", "llm_blocks", "busy per crop", "Took 120 s"):
        assert words in text


@pytest.mark.slow
def test_one_command_runs_everything(tmp_path: Path) -> None:
    output = tmp_path / "core.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks.core",
        "--device",
        "cpu",
        "--cpu-threads",
        "1",
        "--rounds",
        "5",
        "--output-tokens",
        "12",
    ]
    command += ["--tilings", "1x1", "1x2", "2x2", "1x4", "--output", str(output)]
    environment = {**os.environ, "VLMETER_LOCK_DIR": str(tmp_path)}
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(output.read_text())
    assert len(result["sessions"]) == 2
    assert {cell["cell_id"] for cell in result["sessions"][1]["cells"]} == {
        f"vision-tiling-{tiling}" for tiling in ("1x1", "1x2", "2x2", "1x4")
    }
    assert {"device per crop", "device per token", "decode per step"} <= {r["slope"] for r in result["repeatability"]}
    assert "Closure of each cell" in done.stdout


def test_a_wrong_preset_is_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.core import main

    assert main(["--preset", "8b"]) == 2
    assert "'8b' is not known" in capsys.readouterr().err
