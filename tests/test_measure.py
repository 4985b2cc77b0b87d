"""One cell: warm-up, rounds of paired arms, knowing when to stop; played through on a clock that the tests turn."""

from __future__ import annotations

import math
import random
import weakref
from collections.abc import Callable, Iterable
from itertools import chain, repeat
from statistics import median
from typing import Any, NamedTuple

import psutil
import pytest
from PIL import Image

from tests.support.fakes import FakeClock, FakeRunner, ReadyRunner, out_of_memory
from tests.support.studies import pictures_of, study_of
from vlmeter.backends.base import Prompt
from vlmeter.backends.clock import ClockError
from vlmeter.cells.cell import Cell, Expected
from vlmeter.inputs.pictures import Picture
from vlmeter.measure.arms import WARMUP_OUTPUT_TOKENS
from vlmeter.measure.measurement import CountMismatch, Measurement, split_spans
from vlmeter.measure.monitors import HostMonitor, QuietMonitor
from vlmeter.measure.rounds import measure_cell
from vlmeter.models.families.base import PREFILL_PHASES
from vlmeter.numbers.medians import median_estimate
from vlmeter.records.parts import Reading
from vlmeter.study.plan import build_plan

VISION_ARMS = {"inputs", "plain", "hooks", "vision"}


def vision_cell(*, tiling: str = "1x2", **sampling: Any) -> Cell:
    study = study_of(experiments={"vision_tokens": {"tilings": [tiling], "sampling": sampling}})
    return build_plan(study)[0]


def output_cell(output_tokens: int = 16, *, stop: str = "length", marks_only: bool = False, **sampling: Any) -> Cell:
    experiment = {
        "output_tokens": [output_tokens],
        "images": 1,
        "stop": stop,
        "uninstrumented_max_output_tokens": 0 if marks_only else 512,
        "sampling": sampling,
    }
    return build_plan(study_of(experiments={"output_tokens": experiment}))[0]


def measured(
    cell: Cell, runner: FakeRunner | None = None, *, monitor: Any = None, seed: int = 0, **more: Any
) -> Measurement:
    photograph = Picture(open=lambda: Image.new("RGB", (336, 336)), question="What is it?")
    opened = pictures_of([photograph]).opened(cell, cell.request)
    return measure_cell(
        cell, opened, runner or FakeRunner(), monitor=monitor or QuietMonitor(), rng=random.Random(seed), **more
    )


def expecting(cell: Cell, expected: Expected) -> Cell:
    return cell.model_copy(update={"requests": (cell.request.model_copy(update={"expected": expected}),)})


def walls(result: Measurement, arm: str) -> list[float]:
    return [timing.wall_ms for timing in result.timings[arm]]


def extra_work(runner: FakeRunner, call: str, extra_ms: Iterable[float]) -> FakeRunner:
    """Let the first calls of one kind take so much longer."""
    left = chain(extra_ms, repeat(0.0))
    runner.fail[call] = lambda: runner.clock.work(device_ms=next(left))
    return runner


class Each:
    """A monitor that calls a function before every round (with its number) and reports what it returns."""

    def __init__(self, before_round: Callable[[int], tuple[str, ...]]) -> None:
        self._before_round, self._round, self._seen = before_round, 0, ()

    def read(self) -> Reading:
        seen, self._seen = self._seen, self._before_round(self._round)
        self._round += 1
        return Reading(disturbances=seen)

    def energy_j(self) -> float | None:
        return None


# --- warm-up ----------------------------------------------------------------------------------------


def test_warm_up_goes_on_until_two_runs_agree_and_none_of_it_is_in_the_samples() -> None:
    runner = extra_work(FakeRunner(), "prefill", [500.0, 80.0, 20.0])
    result = measured(vision_cell(max_samples=10), runner)
    plain = next(warmup for warmup in result.warmups if warmup.arm == "plain")
    steady = walls(result, "plain")[0]
    assert plain.wall_ms == pytest.approx([500 + steady, 80 + steady, 20 + steady, steady, steady])
    assert plain.settled
    assert max(walls(result, "plain")) == pytest.approx(steady)


def test_the_first_call_is_kept_apart() -> None:
    runner = extra_work(FakeRunner(), "prefill", [500.0])
    result = measured(vision_cell(), runner)
    first = next(warmup for warmup in result.warmups if warmup.arm == "plain").wall_ms[0]
    assert first > 500 > max(walls(result, "plain"))


def test_every_arm_is_warmed_up_for_every_cell() -> None:
    """A cell is a shape: what one cell has warmed up may be cold in the next."""
    runner = FakeRunner()
    for tiling in ("1x1", "3x4"):
        runner.calls.clear()
        result = measured(vision_cell(tiling=tiling, min_warmup=3), runner)
        assert {warmup.arm for warmup in result.warmups} == VISION_ARMS
        assert all(len(warmup.wall_ms) == 3 and warmup.settled for warmup in result.warmups)
        rounds = len(result.rounds)
        assert runner.calls.count("vision") == 3 + rounds
        assert runner.calls.count("prefill") == 2 * (3 + rounds)


def test_a_warm_up_that_never_settles_ends_and_says_so() -> None:
    runner = extra_work(FakeRunner(), "vision", [100.0 * 2**n for n in range(20, 0, -1)])
    result = measured(vision_cell(max_warmup=6, max_seconds_per_cell=1e9), runner)
    by_arm = {warmup.arm: warmup for warmup in result.warmups}
    assert (len(by_arm["vision"].wall_ms), by_arm["vision"].settled) == (6, False)
    assert by_arm["plain"].settled


def test_what_is_compiled_and_captured_is_ready_before_the_warm_up_and_in_no_sample() -> None:
    runner = ReadyRunner()
    result = measured(output_cell(16), runner)
    assert runner.made == [(runner.made[0][0], 16)], "for its own length, not that of the warm-up"
    assert runner.late == []
    assert (result.seconds["compile"], result.seconds["capture"]) == (3.0, 1.0)
    assert result.seconds["warmup"] + result.seconds["rounds"] < 4.0
    assert max(max(warmup.wall_ms) for warmup in result.warmups) < runner.ready_ms


def test_a_runner_that_has_nothing_to_make_ready_says_nothing_of_it() -> None:
    assert {"compile", "capture"}.isdisjoint(measured(vision_cell()).seconds)


def test_too_little_memory_to_get_ready_is_a_result() -> None:
    result = measured(vision_cell(), ReadyRunner(fail={"ready": out_of_memory}))
    assert (result.status, result.reason) == ("oom", "tried to allocate 2.00 GiB")


def test_a_long_generation_is_warmed_up_with_a_short_one() -> None:
    runner = FakeRunner()
    result = measured(output_cell(64, min_samples=2, max_samples=2), runner)
    assert result.generated_tokens == [64, 64]
    warm = next(warmup for warmup in result.warmups if warmup.arm == "hooks")
    whole, steps = walls(result, "hooks")[0], split_spans(result.timings["hooks"][0])[1]
    assert warm.wall_ms[0] == pytest.approx(whole - sum(steps[WARMUP_OUTPUT_TOKENS - 1 :]))


# --- stopping ---------------------------------------------------------------------------------------


def test_a_quiet_cell_stops_as_soon_as_it_is_precise() -> None:
    result = measured(vision_cell(min_samples=12))
    assert (result.stop_reason, len(result.rounds)) == ("precise", 12)


def test_a_noisy_cell_stops_at_max_samples() -> None:
    result = measured(vision_cell(max_samples=15), FakeRunner(noise_fraction=0.2))
    assert (result.stop_reason, len(result.rounds)) == ("max_samples", 15)


def test_sampling_ends_with_the_first_look_at_which_both_whole_passes_are_precise() -> None:
    """A look at 10 rounds, at 20, at 40: one after every round would end with whatever is narrow by chance."""
    cell = vision_cell(max_samples=500, relative_half_width_fraction=0.004)
    result = measured(cell, FakeRunner(noise_fraction=0.02))

    def precise_after(rounds: int) -> bool:
        return all(
            median_estimate(walls(result, arm)[:rounds], in_order=True).relative_half_width <= 0.004
            for arm in ("plain", "hooks")
        )

    assert result.stop_reason == "precise"
    assert 10 < len(result.rounds) == next(n for n in (10, 20, 40, 80, 160, 320) if precise_after(n))
    assert any(precise_after(n) for n in range(10, len(result.rounds))), "an earlier round would have done by chance"


def test_a_slow_cell_stops_at_its_time_cap_even_before_min_samples() -> None:
    runner = FakeRunner(fixed_ms={"llm_blocks": 1000.0})
    result = measured(vision_cell(max_seconds_per_cell=10), runner)
    assert result.stop_reason == "time_cap"
    assert len(result.rounds) == 5, "a round is two passes of a second and a little"
    assert 10 <= result.seconds["rounds"] < 12.5


def test_the_time_cap_does_not_count_the_warm_up() -> None:
    runner = extra_work(FakeRunner(), "prefill", [60_000.0])
    result = measured(vision_cell(max_seconds_per_cell=10), runner)
    assert result.stop_reason == "precise"
    assert result.seconds["warmup"] > 60


# --- rounds -----------------------------------------------------------------------------------------


def test_every_round_runs_every_arm_once_in_an_order_that_the_seed_decides() -> None:
    orders = [tuple(state.order) for state in measured(vision_cell(min_samples=30), seed=5).rounds]
    assert all(set(order) == VISION_ARMS and len(order) == 4 for order in orders)
    assert len(set(orders)) > 5, "of 24 orders, 30 rounds show a good part"
    assert orders == [tuple(state.order) for state in measured(vision_cell(min_samples=30), seed=5).rounds]
    assert orders != [tuple(state.order) for state in measured(vision_cell(min_samples=30), seed=6).rounds]


def test_the_arms_run_in_the_order_that_is_recorded() -> None:
    runner = FakeRunner()
    result = measured(vision_cell(min_warmup=1, max_warmup=1), runner)
    call_of = {"inputs": "prepare", "plain": "prefill", "hooks": "prefill", "vision": "vision"}
    in_rounds = runner.calls[1 + 4 : -2]  # behind the first prompt and the warm-up, before busy time and memory
    assert in_rounds == [call_of[arm] for state in result.rounds for arm in state.order]


def test_samples_are_paired_by_round() -> None:
    """What slows one round down slows it down in every arm, at the same place."""
    runner = FakeRunner()

    def before_round(number: int) -> tuple[str, ...]:
        runner.slowdown = 3.0 if number in (2, 7) else 1.0
        return ()

    result = measured(vision_cell(max_samples=10), runner, monitor=Each(before_round))
    for arm in ("plain", "hooks", "vision"):
        steady = walls(result, arm)[0]
        assert [n for n, wall_ms in enumerate(walls(result, arm)) if wall_ms > 2 * steady] == [2, 7]


def test_a_round_says_when_it_started_in_the_session() -> None:
    runner = FakeRunner()
    runner.clock.host_work(5000.0)
    result = measured(vision_cell(), runner, started_ms=3000.0)
    starts = [state.started_s for state in result.rounds]
    assert starts == sorted(starts)
    assert starts[0] == pytest.approx(2.0 + result.seconds["warmup"], abs=0.1)


# --- phases -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("launch_ms", [{}, {"llm_blocks": 40.0, "vision_encoder": 25.0}])
def test_the_phases_of_a_pass_add_up_to_it(launch_ms: dict[str, float]) -> None:
    result = measured(vision_cell(), FakeRunner(noise_fraction=0.1, launch_ms=launch_ms))
    for timing in result.timings["hooks"]:
        phases, steps = split_spans(timing)
        assert set(phases) == set(PREFILL_PHASES)
        assert steps == []
        assert sum(phases.values()) == pytest.approx(timing.device_ms)


def test_without_noise_the_phases_add_up_to_the_uninstrumented_total() -> None:
    result = measured(vision_cell())
    phases, _ = split_spans(result.timings["hooks"][0])
    assert sum(phases.values()) == pytest.approx(walls(result, "plain")[0])


def test_each_phase_takes_exactly_its_declared_time() -> None:
    runner = FakeRunner()
    result = measured(vision_cell(tiling="2x2"), runner)
    counts = result.requests[0].counted
    assert counts is not None
    phases, _ = split_spans(result.timings["hooks"][0])
    for phase, duration_ms in phases.items():
        declared = runner.duration_ms(phase, crops=counts.crops, tokens=counts.prompt_tokens)
        assert duration_ms == pytest.approx(declared), phase


def test_what_the_marks_cost_is_the_difference_between_the_two_passes() -> None:
    result = measured(vision_cell(), FakeRunner(hook_cost_ms=0.25))
    assert walls(result, "hooks")[0] - walls(result, "plain")[0] == pytest.approx(6 * 0.25)


def test_subtraction_agrees_with_hooks_where_the_host_keeps_ahead() -> None:
    result = measured(vision_cell())
    phases, _ = split_spans(result.timings["hooks"][0])
    subtracted = walls(result, "plain")[0] - walls(result, "vision")[0]
    assert subtracted == pytest.approx(phases["merge"] + phases["llm_blocks"] + phases["head"])


def test_inputs_are_split_into_preprocessing_and_copy() -> None:
    result = measured(vision_cell(tiling="2x2"))
    assert split_spans(result.timings["inputs"][0])[0] == pytest.approx({"preprocess": 2.5, "copy": 2.5})


def test_a_generation_has_a_mark_for_every_token_after_the_first() -> None:
    result = measured(output_cell(16))
    for timing in result.timings["hooks"]:
        phases, steps = split_spans(timing)
        assert len(steps) == 15
        assert steps == sorted(steps), "a declared law: each step reads a longer cache"
        assert sum(phases.values()) + sum(steps) == pytest.approx(timing.device_ms)


# --- clocks -----------------------------------------------------------------------------------------


def test_launch_bound_work_takes_longer_than_the_device_is_busy() -> None:
    runner = FakeRunner(launch_ms={"llm_blocks": 200.0})
    result = measured(vision_cell(max_samples=10), runner)
    busy_ms = next(busy for busy in result.busy if busy.phase == "prefill").samples_ms[0]
    timing = result.timings["plain"][0]
    assert timing.wall_ms > 200 > busy_ms
    assert timing.launch_ms == pytest.approx(200.0)
    assert timing.device_ms > busy_ms, "device events include the gaps"


def test_device_bound_work_takes_as_long_as_the_device_is_busy() -> None:
    runner = FakeRunner(launch_ms={"llm_blocks": 0.01})
    result = measured(vision_cell(), runner)
    busy_ms = next(busy for busy in result.busy if busy.phase == "prefill").samples_ms[0]
    assert walls(result, "plain")[0] == pytest.approx(busy_ms, rel=0.01)


def test_launch_bound_prefill_seems_to_fall_as_vision_grows_and_the_busy_time_shows_that_it_rises() -> None:
    """The notes' puzzle: the longer the vision encoder runs, the more of the LLM's launching hides behind it."""

    def prefill_ms(tiling: str) -> tuple[float, float]:
        result = measured(vision_cell(tiling=tiling), FakeRunner(launch_ms={"llm_blocks": 60.0}))
        busy = {found.phase: found.samples_ms[0] for found in result.busy}
        return walls(result, "plain")[0] - walls(result, "vision")[0], busy["prefill"] - busy["vision"]

    (small_subtracted, small_busy), (large_subtracted, large_busy) = prefill_ms("1x1"), prefill_ms("3x4")
    assert large_subtracted < small_subtracted
    assert large_busy > 2 * small_busy


# --- disturbance ------------------------------------------------------------------------------------


def disturbed_in(rounds: set[int], runner: FakeRunner) -> Each:
    def before_round(number: int) -> tuple[str, ...]:
        runner.slowdown = 2.0 if number in rounds else 1.0
        return ("thermal slowdown",) if number in rounds else ()

    return Each(before_round)


def test_a_disturbed_round_is_marked_and_kept_but_does_not_count() -> None:
    runner = FakeRunner()
    result = measured(vision_cell(max_samples=10), runner, monitor=disturbed_in({1, 2, 3, 4}, runner))
    assert [bool(state.disturbances) for state in result.rounds] == [n in {1, 2, 3, 4} for n in range(10)]
    assert len(walls(result, "hooks")) == 10
    estimate = result.estimate()
    assert estimate is not None
    assert (estimate.low, estimate.high) == pytest.approx((walls(result, "hooks")[0],) * 2)


@pytest.mark.parametrize("disturbed", [range(10), range(9), range(6)])
def test_rounds_are_never_all_dropped(disturbed: Iterable[int]) -> None:
    """Few quiet rounds among many disturbed ones may be no better than chance."""
    runner = FakeRunner()
    result = measured(vision_cell(min_samples=10, max_samples=10), runner, monitor=disturbed_in(set(disturbed), runner))
    estimate = result.estimate()
    assert estimate is not None
    assert estimate.value == pytest.approx(median_estimate(walls(result, "hooks")).value)
    assert all(len(timings) == 10 for timings in result.timings.values())


def test_rounds_too_short_for_the_kernels_clock_are_watched_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processor time is counted in steps of 10 ms: what a short round hides, several of them show."""
    user_s = 0.0
    monkeypatch.setattr(psutil, "cpu_times", lambda: ProcessorTimes(user=user_s))
    monitor = HostMonitor()
    seen = []
    for _ in range(50):
        user_s += 0.01  # somebody else has the processor all the time
        seen.append(bool(monitor.read().disturbances))
    assert 2 <= seen.count(True) <= 5


class ProcessorTimes(NamedTuple):
    user: float
    idle: float = 0.0


# --- what cannot be measured ------------------------------------------------------------------------


def nth_time(count: int, action: Callable[[], None]) -> Callable[[], None]:
    """Do something the nth time that one is called, and every time after."""
    left = iter(range(count))

    def call() -> None:
        if next(left, None) is None:
            action()

    return call


@pytest.mark.parametrize("call", ["prepare", "prefill", "vision"])
@pytest.mark.parametrize("count", [0, 1, 9])
def test_running_out_of_memory_is_a_result(call: str, count: int) -> None:
    runner = FakeRunner(fail={call: nth_time(count, out_of_memory)})
    result = measured(vision_cell(), runner)
    assert (result.status, result.reason) == ("oom", "tried to allocate 2.00 GiB")
    assert result.timings == {}
    assert result.estimate() is None
    assert runner.calls[-1] == "release"
    if (call, count) != ("prepare", 0):
        assert result.requests[0].counted is not None, "what was counted before is kept"


def test_memory_is_given_back_once_nothing_holds_the_failed_pass() -> None:
    class Watched(FakeRunner):
        prompts: list[weakref.ref[Prompt]]

        def prepare(self, *arguments: Any, **named: Any) -> Prompt:
            prompt = super().prepare(*arguments, **named)
            self.prompts = [*getattr(self, "prompts", []), weakref.ref(prompt)]
            return prompt

        def release(self) -> None:
            super().release()
            self.alive_at_release = [prompt for prompt in self.prompts if prompt() is not None]

    runner = Watched(fail={"prefill": nth_time(5, out_of_memory)})
    measured(vision_cell(), runner)
    assert len(runner.prompts) > 1
    assert runner.alive_at_release == []


def test_too_little_memory_for_a_graph_costs_the_busy_time_and_not_the_samples() -> None:
    runner = FakeRunner(fail={"busy": out_of_memory})
    result = measured(vision_cell(), runner)
    assert (result.status, result.stop_reason) == ("ok", "precise")
    assert result.busy == []
    assert result.busy_reason == "out of memory: tried to allocate 2.00 GiB"
    assert "release" in runner.calls
    assert result.memory, "the rest is still looked at"


@pytest.mark.parametrize("name", ["crops", "vision_tokens", "special_tokens", "text_tokens"])
def test_other_counts_than_planned_fail_the_cell_before_it_is_timed(name: str) -> None:
    cell = vision_cell()
    planned = getattr(cell.expected, name)
    runner = FakeRunner()
    wrong = expecting(cell, cell.expected.model_copy(update={name: planned + 1}))
    sentence = (
        f"cell vision-tiling-1x2 of fake: the plan says {name} {planned + 1}, the model's real inputs hold {planned}"
    )
    with pytest.raises(CountMismatch, match=sentence):
        measured(wrong, runner)
    assert runner.calls == ["prepare"]


def test_what_the_plan_could_not_know_is_not_compared() -> None:
    cell = expecting(vision_cell(), Expected())
    assert measured(cell).status == "ok"


@pytest.mark.parametrize("wrong_ms", [math.nan, -1.0, math.inf])
def test_a_clock_that_gives_nonsense_is_an_error_and_never_a_sample(wrong_ms: float) -> None:
    class Broken(FakeClock):
        readings = 0

        def elapsed_ms(self, start: float, end: float) -> float:
            self.readings += 1
            return wrong_ms if self.readings > 100 else super().elapsed_ms(start, end)

    with pytest.raises(ClockError, match="which cannot be"):
        measured(vision_cell(min_samples=50), FakeRunner(clock=Broken()))


def test_an_unknown_error_is_not_swallowed() -> None:
    def bug() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        measured(vision_cell(), FakeRunner(fail={"vision": bug}))


# --- output tokens ----------------------------------------------------------------------------------


def test_a_forced_generation_has_its_length_and_a_natural_one_may_end_before() -> None:
    assert set(measured(output_cell(16), FakeRunner(ends_after=5)).generated_tokens) == {16}
    assert set(measured(output_cell(16, stop="eos"), FakeRunner(ends_after=5)).generated_tokens) == {5}


def test_a_long_generation_is_run_with_marks_alone() -> None:
    assert set(measured(output_cell(16)).timings) == {"inputs", "plain", "hooks"}
    assert set(measured(output_cell(16, marks_only=True)).timings) == {"inputs", "hooks"}


def test_an_output_cell_has_no_busy_time() -> None:
    runner = FakeRunner()
    measured(output_cell(16), runner)
    assert not {"busy", "memory", "vision"} & set(runner.calls)


# --- energy and extras ------------------------------------------------------------------------------


class Metered:
    """A device that draws a steady 100 W."""

    def __init__(self, clock: FakeClock) -> None:
        self._clock = clock

    def read(self) -> Reading:
        return Reading()

    def energy_j(self) -> float | None:
        return 100.0 * self._clock.host_ms() / 1000


def test_the_energy_of_a_prefill_is_read_over_many_of_them() -> None:
    runner = FakeRunner()
    result = measured(vision_cell(energy_seconds_per_cell=3), runner, monitor=Metered(runner.clock))
    (energy,) = result.energy
    assert (energy.what, energy.repeats > 10) == ("prefill", True)
    assert energy.span_s == pytest.approx(3.0, abs=0.1)
    assert energy.joules / energy.span_s == pytest.approx(100.0)
    assert energy.span_s / energy.repeats == pytest.approx(walls(result, "plain")[0] / 1000)


def test_energy_holds_no_compiling_of_what_was_given_back_for_want_of_memory() -> None:
    runner = ReadyRunner(fail={"busy": out_of_memory})
    result = measured(vision_cell(energy_seconds_per_cell=3), runner, monitor=Metered(runner.clock))
    assert result.busy_reason == "out of memory: tried to allocate 2.00 GiB"
    assert runner.late == []
    assert len(runner.made) == 2
    (energy,) = result.energy
    assert energy.span_s / energy.repeats == pytest.approx(walls(result, "plain")[0] / 1000)


def test_energy_is_not_read_unasked_nor_without_a_counter() -> None:
    runner = FakeRunner()
    assert measured(vision_cell(), runner, monitor=Metered(runner.clock)).energy == []
    assert measured(vision_cell(energy_seconds_per_cell=3)).energy == []


def test_the_energy_of_a_generation_needs_a_span_that_the_counter_resolves() -> None:
    def energy_of(output_tokens: int) -> list[Any]:
        runner = FakeRunner()
        cell = output_cell(output_tokens, min_samples=5, max_samples=5)
        return measured(cell, runner, monitor=Metered(runner.clock)).energy

    assert energy_of(16) == []
    (energy,) = energy_of(512)
    assert (energy.what, energy.repeats) == ("generation", 5)
    assert energy.joules / energy.span_s == pytest.approx(100.0)


@pytest.mark.parametrize("cell", [vision_cell(), output_cell(8)], ids=["vision", "output"])
def test_a_quick_look_runs_only_what_its_estimate_reads(cell: Cell) -> None:
    runner = FakeRunner()
    result = measured(cell, runner, quick=True)
    assert set(result.timings) == {warmup.arm for warmup in result.warmups} == {"hooks"}
    assert not {"vision", "busy", "busy_step", "memory"} & set(runner.calls)
    assert "extras" not in result.seconds
    quick, thorough = result.estimate(), measured(cell, FakeRunner()).estimate()
    assert quick is not None
    assert thorough is not None
    assert quick.value == pytest.approx(thorough.value)


def test_a_measurement_keeps_every_sample_of_every_arm() -> None:
    result = measured(vision_cell(max_samples=20), FakeRunner(noise_fraction=0.3))
    lengths = {arm: len(timings) for arm, timings in result.timings.items()}
    assert lengths == dict.fromkeys(VISION_ARMS, len(result.rounds))


def test_a_generation_is_set_beside_the_devices_busy_time_for_one_step() -> None:
    runner = FakeRunner(launch_ms={"decode_step": 9.0})
    result = measured(output_cell(), runner)
    (busy,) = result.busy
    assert busy.phase == "decode_step"
    steps = split_spans(result.timings["hooks"][0])[1]
    assert busy.samples_ms[0] < 0.5 * median(steps)
