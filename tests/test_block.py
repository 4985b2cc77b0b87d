"""A block of requests: each measured once behind a warm-up of its shape, streamed, and resumed block by block."""

from __future__ import annotations

import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.fakes import FakeRunner, ReadyRunner, out_of_memory
from tests.support.studies import machine_of, photographs, run_fake, study_of
from vlmeter.backends.base import OpenedRequest, OutOfDeviceMemory, Prompt
from vlmeter.backends.clock import Timing
from vlmeter.cells.cell import Cell, Expected, Request
from vlmeter.measure.arms import WARMUP_OUTPUT_TOKENS
from vlmeter.measure.measurement import CountMismatch, Measurement
from vlmeter.measure.monitors import QuietMonitor, Reading
from vlmeter.measure.progress import Summary
from vlmeter.measure.requests import _Many, measure_requests
from vlmeter.measure.resources import WARMUP_TOKENS, cell_seconds
from vlmeter.measure.session import SessionFailed
from vlmeter.models.families.base import PREFILL_PHASES, ImageOptions
from vlmeter.records.record import Record, read_record
from vlmeter.study.layout import cell_path
from vlmeter.study.plan import build_plan

PHASES = {"preprocess", "copy", *PREFILL_PHASES, "decode", "longest_step"}


def block_study(**latency: Any) -> Any:
    """A study of requests alone: twelve in three blocks, on two photographs."""
    experiment = {"samples": 12, "block_samples": 4, "output_tokens": [2, 4, 8], **latency}
    return study_of(experiments={"latency_distribution": experiment})


def block_cell(**latency: Any) -> Cell:
    return build_plan(block_study(**latency))[0]


def opened(request: Request) -> OpenedRequest:
    (photograph,) = request.photographs
    picture = Image.new("RGB", (336 + 224 * photograph.index, 336))
    return OpenedRequest(pictures=(picture,), question="What is it?", text_tokens=None, options=ImageOptions())


def measured(
    cell: Cell,
    runner: FakeRunner | None = None,
    *,
    open_request: Callable[[Request], OpenedRequest] = opened,
    monitor: Any = None,
    seed: int = 0,
) -> Measurement:
    return measure_requests(
        cell, open_request, runner or FakeRunner(), monitor=monitor or QuietMonitor(), rng=random.Random(seed)
    )


# --- one block ----------------------------------------------------------------------------------------


def test_every_request_is_measured_exactly_once() -> None:
    result = measured(block_cell(samples=20, block_samples=20))
    assert sorted(state.place for state in result.requests) == list(range(20))
    assert len(result.timings["request"]) == len(result.rounds) == len(result.generated_tokens) == 20
    assert result.stop_reason == "all_requests"


def test_requests_run_in_an_order_that_the_seed_decides() -> None:
    def order(seed: int) -> list[int]:
        return [state.place for state in measured(block_cell(samples=20, block_samples=20), seed=seed).requests]

    assert order(1) == order(1) != order(2)
    assert order(1) != sorted(order(1))


def test_a_request_lasts_from_the_picture_to_the_last_token_and_its_phases_fill_it() -> None:
    result = measured(block_cell())
    for timing in result.timings["request"]:
        spans = dict(timing.spans)
        assert set(spans) == PHASES
        parts = [spans[phase] for phase in PHASES - {"longest_step"}]
        merge = [duration_ms for phase, duration_ms in timing.spans if phase == "merge"]
        assert sum(parts) - spans["merge"] + sum(merge) == pytest.approx(timing.wall_ms)


def test_decode_is_kept_as_a_sum_and_a_longest_step_so_that_long_answers_take_no_more_room() -> None:
    result = measured(block_cell(output_tokens=400, samples=1, block_samples=1))
    (timing,) = result.timings["request"]
    spans = dict(timing.spans)
    assert len(timing.spans) < 12
    assert spans["decode"] == pytest.approx(sum(3.0 + 0.001 * (399 + step) for step in range(1, 400)), rel=0.1)
    assert spans["longest_step"] < 1.2 * spans["decode"] / 399


def test_a_request_of_one_token_has_no_decode() -> None:
    result = measured(block_cell(output_tokens=1))
    assert {dict(timing.spans)["decode"] for timing in result.timings["request"]} == {0.0}


def test_natural_stopping_is_counted() -> None:
    result = measured(block_cell(output_tokens=50, stop="eos"), FakeRunner(ends_after=7))
    assert set(result.generated_tokens) == {7}


# --- warm-up --------------------------------------------------------------------------------------------


def test_every_distinct_shape_is_warmed_up_and_no_shape_twice() -> None:
    runner = FakeRunner()
    result = measured(block_cell(samples=20, block_samples=20), runner)
    (warmup,) = result.warmups
    assert len(warmup.wall_ms) == 2, "two sizes of picture"
    assert warmup.settled is None, "a block does not judge it"
    assert runner.calls.count("generate") == 2 + 20


def test_the_first_use_of_a_shape_is_in_no_sample() -> None:
    seen: set[int] = set()
    runner = FakeRunner()

    def slow_at_first() -> None:
        if len(seen) < 2:
            seen.add(len(seen))
            runner.clock.work(device_ms=5000.0)

    runner.fail["generate"] = slow_at_first
    result = measured(block_cell(), runner)
    assert min(result.warmups[0].wall_ms) > 5000
    assert max(timing.wall_ms for timing in result.timings["request"]) < 1000


def test_every_shape_and_length_is_ready_before_the_requests() -> None:
    runner = ReadyRunner()
    result = measured(block_cell(samples=20, block_samples=20), runner)
    assert len(runner.made) == len(set(runner.made)) == 2 * 3, "two sizes of picture, three lengths"
    assert runner.late == []
    assert result.seconds["compile"] + result.seconds["capture"] == pytest.approx(6 * 4.0)
    assert sum(result.seconds.values()) == pytest.approx(runner.clock.host_ms() / 1000, rel=0.01)
    assert max(timing.wall_ms for timing in result.timings["request"]) < 1000


@pytest.mark.parametrize("kept", [1, 2])
def test_what_a_runner_could_not_keep_is_made_anew_between_requests_and_in_none(kept: int) -> None:
    runner = ReadyRunner(kept=kept)
    result = measured(block_cell(samples=20, block_samples=20), runner)
    assert len(runner.made) > 6
    assert runner.late == []
    assert max(timing.wall_ms for timing in result.timings["request"]) < 1000
    assert sum(result.seconds.values()) == pytest.approx(runner.clock.host_ms() / 1000, rel=0.01)


def test_what_was_given_back_for_want_of_memory_is_made_anew_between_requests() -> None:
    runner, calls = ReadyRunner(), 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 6 + 3:
            out_of_memory()

    runner.fail["generate"] = fail
    result = measured(block_cell(samples=12, block_samples=12), runner)
    assert len(result.failed) == 1
    assert runner.late == []


def test_too_little_memory_to_get_a_shape_ready_is_told_by_its_request() -> None:
    result = measured(block_cell(), ReadyRunner(fail={"ready": out_of_memory}))
    assert (result.status, len(result.failed)) == ("oom", 4)


def test_a_warm_up_may_be_repeated_and_is_short() -> None:
    runner = FakeRunner()
    result = measured(block_cell(warmup_runs=3, output_tokens=200), runner)
    assert len(result.warmups[0].wall_ms) == 6
    assert max(result.warmups[0].wall_ms) < min(timing.wall_ms for timing in result.timings["request"]) / 2


def test_the_budget_counts_the_same_warm_up() -> None:
    assert WARMUP_TOKENS == WARMUP_OUTPUT_TOKENS
    assert cell_seconds(block_cell(block_samples=8)) > cell_seconds(block_cell(block_samples=4))


# --- streaming ------------------------------------------------------------------------------------------


def test_at_most_one_picture_is_alive_however_many_requests_there_are() -> None:
    alive: list[weakref.ref[Image.Image]] = []
    most = 0

    def open_request(request: Request) -> OpenedRequest:
        nonlocal most
        made = opened(request)
        alive.append(weakref.ref(made.picture))
        most = max(most, sum(one() is not None for one in alive))
        return made

    result = measured(block_cell(samples=200, block_samples=200), open_request=open_request)
    assert len(result.requests) == 200
    assert len(alive) > 200
    assert most <= 2, "the one that is opened, and at most the one before it"
    assert not any(one() for one in alive)


def test_what_is_kept_of_a_request_does_not_grow_with_its_answer() -> None:
    def kept(output_tokens: int) -> int:
        return sum(len(timing.spans) for timing in measured(block_cell(output_tokens=output_tokens)).timings["request"])

    assert kept(4) == kept(300)


# --- counts and memory ----------------------------------------------------------------------------------


def test_a_request_whose_inputs_are_not_those_of_the_plan_condemns_the_block() -> None:
    cell = block_cell()
    third = cell.requests[2]
    wrong = third.model_copy(update={"expected": third.expected.model_copy(update={"crops": 77})})
    cell = cell.model_copy(update={"requests": (*cell.requests[:2], wrong, *cell.requests[3:])})
    with pytest.raises(CountMismatch, match=r"request 2 of cell distribution-block000 of fake: the plan says crops 77"):
        measured(cell)


def test_out_of_memory_in_one_request_is_a_result_of_the_block() -> None:
    """The third request that is run; its warm-up had memory enough."""
    runner, calls = FakeRunner(), 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        if calls == 2 + 3:
            out_of_memory()

    runner.fail["generate"] = fail
    result = measured(block_cell(samples=6, block_samples=6), runner)
    assert result.status == "ok"
    assert len(result.requests) == 5
    (failed,) = result.failed
    assert failed.reason == "tried to allocate 2.00 GiB"
    assert failed.place not in {state.place for state in result.requests}
    assert "release" in runner.calls


def test_a_block_for_which_there_is_no_memory_at_all_says_so() -> None:
    runner = FakeRunner(fail={"generate": out_of_memory})
    result = measured(block_cell(), runner)
    assert (result.status, result.reason) == ("oom", "tried to allocate 2.00 GiB")
    assert result.timings == {}
    assert len(result.failed) == 4


def test_a_look_at_memory_that_lacks_memory_costs_no_sample() -> None:
    runner = FakeRunner(fail={"memory": out_of_memory})
    result = measured(block_cell(), runner)
    assert (result.status, len(result.requests), result.memory) == ("ok", 4, [])


def test_a_picture_too_large_to_be_copied_in_the_warm_up_is_told_by_its_request() -> None:
    runner = FakeRunner()

    def fail() -> None:
        raise OutOfDeviceMemory("no room for the picture")

    runner.fail["prepare"] = fail
    assert measured(block_cell(), runner).reason == "no room for the picture"


# --- energy and disturbance -----------------------------------------------------------------------------


class Counter(QuietMonitor):
    """A monitor whose device takes 100 W, and that calls every third request disturbed."""

    def __init__(self, runner: FakeRunner) -> None:
        self._runner, self._reads = runner, 0

    def energy_j(self) -> float | None:
        self._runner.clock.synchronize()
        return 0.1 * self._runner.clock.host_ms()

    def read(self) -> Reading:
        self._reads += 1
        return Reading(disturbances=("other processes on the host",) if self._reads % 3 == 0 else ())


def test_energy_is_read_over_all_requests_and_over_repeated_prefill_and_vision() -> None:
    runner = FakeRunner()
    cell = block_cell(output_tokens=300)
    cell = cell.model_copy(update={"sampling": cell.sampling.model_copy(update={"energy_seconds_per_cell": 1.0})})
    result = measured(cell, runner, monitor=Counter(runner))
    spent = {use.what: use for use in result.energy}
    assert set(spent) == {"request", "prefill", "vision"}
    for use in spent.values():
        assert use.joules / use.span_s == pytest.approx(100, rel=1e-6)
    assert spent["request"].repeats == 4
    assert spent["vision"].joules / spent["vision"].repeats < spent["prefill"].joules / spent["prefill"].repeats


def test_energy_holds_no_compiling_of_a_shape_that_a_runner_no_longer_keeps() -> None:
    runner = ReadyRunner(kept=1)
    cell = block_cell(samples=20, block_samples=20)
    cell = cell.model_copy(update={"sampling": cell.sampling.model_copy(update={"energy_seconds_per_cell": 1.0})})
    result = measured(cell, runner, monitor=Counter(runner))
    assert runner.late == []
    repeated = [use for use in result.energy if use.what in ("prefill", "vision")]
    assert len(repeated) == 2
    assert all(use.span_s / use.repeats < 0.25 * runner.ready_ms / 1000 for use in repeated)


def test_disturbed_requests_are_marked_and_kept() -> None:
    runner = FakeRunner()
    result = measured(block_cell(samples=9, block_samples=9), runner, monitor=Counter(runner))
    assert sum(bool(state.disturbances) for state in result.rounds) == 3
    assert len(result.timings["request"]) == 9


class Since(QuietMonitor):
    """A monitor that calls the time since its last reading disturbed if more than one request was prepared in it."""

    def __init__(self, runner: FakeRunner) -> None:
        self._runner, self._before = runner, 0

    def read(self) -> Reading:
        prepared = self._runner.calls.count("prepare")
        since, self._before = prepared - self._before, prepared
        return Reading(disturbances=("busy",) if since > 1 else ())


def test_what_disturbed_the_warm_up_disturbed_no_request() -> None:
    runner = FakeRunner()
    result = measured(block_cell(), runner, monitor=Since(runner))
    assert result.warmups[0].wall_ms
    assert [state.disturbances for state in result.rounds] == [()] * 4


def test_requests_that_differ_in_their_vision_tokens_alone_are_warmed_up_apart() -> None:
    cell = block_cell(samples=2, block_samples=2)
    first = Expected(crops=2, vision_tokens=288, special_tokens=28, text_tokens=20)
    second = Expected(crops=2, vision_tokens=280, special_tokens=28, text_tokens=28)
    assert first.prompt_tokens == second.prompt_tokens
    requests = [cell.request.model_copy(update={"expected": expected}) for expected in (first, second, first)]
    cell = cell.model_copy(update={"requests": tuple(requests)})
    many = _Many(cell, opened, FakeRunner(), monitor=QuietMonitor(), rng=random.Random(0), started_ms=0.0)
    many.warm_up()
    assert len(many.result.warmups[0].wall_ms) == 2 * cell.sampling.min_warmup


# --- sessions -------------------------------------------------------------------------------------------


def records_of(results: Path, study: Any) -> dict[str, Record]:
    found = {cell.cell_id: cell_path(results, study.study, cell) for cell in build_plan(study)}
    return {name: read_record(path) for name, path in found.items() if path.exists()}


def test_a_record_says_of_every_round_which_request_it_was(tmp_path: Path) -> None:
    study = block_study()
    run_fake(study, tmp_path)
    record = records_of(tmp_path, study)["distribution-block001"]
    assert len(record.requests) == len(record.rounds) == 4
    pictures = photographs(2)
    for request, tokens in zip(record.requests, record.generated_tokens, strict=True):
        planned = record.cell.requests[request.place]
        (photograph,), (seen,) = planned.photographs, request.pictures
        picture = pictures[photograph.index]
        assert tokens == planned.output_tokens
        assert (seen.image_id, request.question) == (picture.image_id, picture.question)
        assert request.answers == list(picture.answers)
        assert request.counted is not None
        assert request.counted.crops == planned.expected.crops
        assert (seen.width_px, seen.height_px) == (336 + 224 * photograph.index, 336)
    assert {len(series.samples_ms) for series in record.series} == {4}
    assert {series.phase for series in record.series if series.clock == "device"} == {*PHASES, "total"}


def test_a_study_of_requests_alone_watches_for_drift_with_its_first_request(tmp_path: Path) -> None:
    runner = FakeRunner()
    run_fake(block_study(), tmp_path, runner=runner)
    drift = records_of(tmp_path, block_study())["distribution-block000"].drift
    assert drift is not None
    assert drift.before_ms == pytest.approx(drift.reference_ms) == drift.after_ms


class Ended(Exception):
    """The session's process was ended."""


def test_an_ended_session_goes_on_with_the_block_in_which_it_was_ended(tmp_path: Path) -> None:
    study, runner = block_study(), FakeRunner()

    def end() -> None:
        if len(list(tmp_path.rglob("cells/fake/*.json"))) == 2:
            raise Ended

    runner.fail["generate"] = end
    with pytest.raises(Ended):
        run_fake(study, tmp_path, runner=runner)
    first = {name: record.session.session_id for name, record in records_of(tmp_path, study).items()}
    assert len(first) == 2
    summary: Summary = run_fake(study, tmp_path)
    assert (summary.fresh, summary.measured) == (2, 1)
    after = {name: record.session.session_id for name, record in records_of(tmp_path, study).items()}
    assert first.items() < after.items()


def test_more_samples_measure_the_new_blocks_and_no_other(tmp_path: Path) -> None:
    run_fake(block_study(), tmp_path)
    assert run_fake(block_study(samples=20), tmp_path).measured == 2
    assert run_fake(block_study(samples=18), tmp_path).measured == 1, "the last block has become shorter"


def test_a_changed_question_makes_its_blocks_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = block_study(samples=4, block_samples=1)
    run_fake(study, tmp_path)
    monkeypatch.setattr("tests.support.studies.QUESTION", "What else is there?")
    assert run_fake(study, tmp_path).measured == 4
    assert run_fake(study, tmp_path).measured == 0


def test_the_rounds_of_other_cells_do_not_make_a_block_stale(tmp_path: Path) -> None:
    run_fake(block_study(), tmp_path)
    experiments = {"latency_distribution": {"samples": 12, "block_samples": 4, "output_tokens": [2, 4, 8]}}
    careful = study_of(experiments=experiments, sampling={"min_samples": 30, "max_samples": 90})
    assert run_fake(careful, tmp_path).measured == 0


def test_a_failed_block_is_named_and_the_others_are_kept(tmp_path: Path) -> None:
    study, runner = block_study(), FakeRunner(extra_vision_tokens=1)
    with pytest.raises(SessionFailed, match=r"3 of 3 cells of fake failed; the first: request \d of cell distribution"):
        run_fake(study, tmp_path, machine=machine_of(runner))


class StampingRunner(FakeRunner):
    """A runner that knows by itself when what happened, as a client of a server does."""

    ANSWER = Timing(wall_ms=50.0, device_ms=40.0, launch_ms=3.0, spans=())

    def run(self, prompt: Prompt, *, output_tokens: int, stop: str, marked: bool) -> tuple[Timing, int]:
        assert marked
        return self.ANSWER, output_tokens


def test_a_request_whose_answer_is_stamped_elsewhere_takes_its_making_and_its_answer() -> None:
    (timing,) = measured(block_cell(samples=1, output_tokens=[2]), StampingRunner()).timings["request"]
    spans = dict(timing.spans)
    made_device_ms = spans["preprocess"] + spans["copy"]
    made_ms = timing.wall_ms - StampingRunner.ANSWER.wall_ms
    assert made_ms > 0
    assert timing.device_ms == pytest.approx(made_device_ms + StampingRunner.ANSWER.device_ms)
    assert timing.launch_ms == pytest.approx(made_ms + StampingRunner.ANSWER.launch_ms)
