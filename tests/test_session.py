"""A session: one load, a random order, a sentinel that sees drift, and nothing finished is ever lost."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.fakes import FakeRunner, ReadyRunner, out_of_memory
from tests.support.studies import QUESTION, machine_of, pictures_of, run_fake, study_of
from vlmeter.backends.base import OpenedRequest, Runner
from vlmeter.cells.cell import Cell
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.measure.measurement import CountMismatch
from vlmeter.measure.progress import Progress, Summary
from vlmeter.measure.session import SessionFailed, _Session
from vlmeter.numbers.medians import Estimate
from vlmeter.records.record import RECORD_VERSION, Record, read_record
from vlmeter.records.store import forget
from vlmeter.study.layout import cell_path
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study

ALL = 8  # cells of `study_of()`: four tilings, two photographs at two lengths

#: The noise of a device that is left alone, as seen on a quiet GPU.
NOISE = 0.005


def test_a_record_says_which_checkpoint_was_read_once_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub id is resolved by loading it, after the session has looked at what is fresh."""
    from vlmeter.records import fingerprint as fingerprints

    known: list[str] = []
    monkeypatch.setattr(fingerprints, "_checkpoint_of", lambda subject: "acme/spoon")
    monkeypatch.setattr(fingerprints, "checkpoint_digest", lambda weights, revision: known[0] if known else None)
    machine = machine_of(FakeRunner())

    def load() -> Runner:
        known.append("commit")
        return machine.load()

    study = study_of()
    assert run_fake(study, tmp_path, machine=replace(machine, load=load)).measured == ALL
    assert {record.fingerprint["checkpoint"] for record in records(tmp_path, study).values()} == {"commit"}
    assert run_fake(study, tmp_path).fresh == ALL
    known[0] = "another commit"
    assert run_fake(study, tmp_path).measured == ALL


def test_what_a_family_says_of_its_phases_stands_in_every_record(tmp_path: Path) -> None:
    class Noting(FakeRunner):
        notes = ("projector: none",)

    study = study_of()
    run_fake(study, tmp_path, runner=Noting())
    assert all(record.environment["notes"] == ["projector: none"] for record in records(tmp_path, study).values())


def test_notes_that_come_with_a_shape_stand_in_the_records_from_then_on(tmp_path: Path) -> None:
    class Learning(ReadyRunner):
        @property
        def notes(self) -> tuple[str, ...]:
            return tuple(f"a shape of {tokens} tokens is captured" for tokens, _ in self.made)

    study = study_of()
    run_fake(study, tmp_path, runner=Learning())
    noted = [len(record.environment["notes"]) for record in records(tmp_path, study).values()]
    assert min(noted) < max(noted) == ALL


def test_what_a_shape_takes_to_be_ready_stands_in_its_record_though_the_sentinel_came_first(tmp_path: Path) -> None:
    study = study_of()
    summary = run_fake(study, tmp_path, runner=ReadyRunner())
    found = list(records(tmp_path, study).values())
    assert [(record.seconds["compile"], record.seconds["capture"]) for record in found] == [(3.0, 1.0)] * ALL
    assert summary.seconds["compile"] == pytest.approx(3.0 * ALL)
    assert "% compiling" in summary.spent()


def vision_study(**changes: Any) -> Study:
    """Eight vision cells, a sentinel look after every two of them."""
    tilings = ["1x1", "1x2", "2x1", "1x3", "3x1", "2x2", "1x4", "3x4"]
    return study_of(experiments={"vision_tokens": {"tilings": tilings}}, **{"sentinel_every_cells": 2, **changes})


def records(results: Path, study: Study) -> dict[str, Record]:
    """Every record of the study's only subject, by cell."""
    found = [read_record(path) for path in sorted((results / study.study / "cells" / "fake").glob("*.json"))]
    return {record.cell.cell_id: record for record in found}


def in_order(found: dict[str, Record]) -> list[str]:
    return sorted(found, key=lambda cell_id: found[cell_id].session.position)


def loads(count: list[int], runner: FakeRunner) -> Callable[[], FakeRunner]:
    def load() -> FakeRunner:
        count.append(1)
        return runner

    return load


def steps_of(study: Study, results: Path, **more: Any) -> list[Progress]:
    steps: list[Progress] = []
    run_fake(study, results, progress=steps.append, **more)
    return steps


class Crash:
    """Progress that raises in the middle of a session, after so many finished cells."""

    def __init__(self, after: int, error: BaseException) -> None:
        self.after, self.error = after, error

    def __call__(self, step: Progress) -> None:
        if step.done == self.after and step.note != "sentinel":
            raise self.error


# --- one session ------------------------------------------------------------------------------------


def test_a_session_loads_once_and_measures_every_cell(tmp_path: Path) -> None:
    count: list[int] = []
    runner = FakeRunner()
    summary = run_fake(study_of(), tmp_path, machine=machine_of(runner, load=loads(count, runner)))
    assert len(count) == 1
    assert (summary.measured, summary.fresh, summary.restored) == (ALL, 0, 0)
    found = records(tmp_path, study_of())
    assert set(found) == {cell.cell_id for cell in build_plan(study_of())}
    assert all(record.status == "ok" and record.stop_reason == "precise" for record in found.values())


def test_a_session_says_what_its_time_went_into(tmp_path: Path) -> None:
    study = study_of()
    summary = run_fake(study, tmp_path)
    parts = ("load", "warmup", "rounds", "sentinel", "extras")
    assert all(summary.seconds[part] >= 0 for part in parts)
    assert min(summary.seconds["warmup"], summary.seconds["rounds"], summary.seconds["sentinel"]) > 0
    assert sum(summary.seconds[part] for part in parts) <= summary.seconds["session"] * (1 + 1e-9)
    assert "% in warm-up and samples" in summary.spent()
    assert run_fake(study, tmp_path).spent() == "", "nothing was measured"


def test_a_second_session_finds_everything_fresh_and_loads_nothing(tmp_path: Path) -> None:
    run_fake(study_of(), tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    count: list[int] = []
    summary = run_fake(study_of(), tmp_path, machine=machine_of(FakeRunner(), load=loads(count, FakeRunner())))
    assert (summary.fresh, summary.measured, count) == (ALL, 0, [])
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.json")} == before


def test_a_record_says_all_about_its_cell(tmp_path: Path) -> None:
    study = study_of()
    run_fake(study, tmp_path)
    found = records(tmp_path, study)
    vision, output = found["vision-tiling-2x2"], found["output-image1-n16"]
    assert (vision.counted.crops, vision.counted.vision_tokens) == (5, 544)  # type: ignore[union-attr]
    (seen,), (asked,) = vision.requests, output.requests
    assert (seen.question, seen.pictures[0].image_id, vision.counted.text_tokens) == (None, None, 32)  # type: ignore[union-attr]
    assert (asked.question, asked.pictures[0].image_id, asked.question_id) == (QUESTION, "1001", "10001")
    assert asked.answers == ["a cup"]
    assert {len(steps) for steps in output.steps_ms} == {15}
    assert set(output.generated_tokens) == {16}
    assert vision.environment["device_identity"] == "fake device"
    assert vision.parameters == FakeRunner().parameters
    assert vision.subject_config == study.subjects["fake"]


def test_every_series_of_a_record_has_one_sample_per_round(tmp_path: Path) -> None:
    study = study_of()
    run_fake(study, tmp_path, runner=FakeRunner(noise_fraction=0.02))
    for record in records(tmp_path, study).values():
        assert {len(series.samples_ms) for series in record.series} == {len(record.rounds)}
        assert record.find("hooks", "llm_blocks", "device") is not None
        assert record.find("hooks", "llm_blocks", "wall") is None
        hooks, total = record.find("hooks", "total", "device"), record.find("hooks", "total", "wall")
        assert hooks == pytest.approx(total), "a fake device starts at once"


def test_only_the_subjects_own_cells_are_measured(tmp_path: Path) -> None:
    one = {"family": "molmo", "preset": "nano", "dtype": "float32"}
    study = study_of(subjects={"fake": one, "other": {**one, "attention": "eager"}})
    run_fake(study, tmp_path, subject="other")
    assert {path.parent.name for path in (tmp_path / "small" / "cells").rglob("*.json")} == {"other"}


# --- order ------------------------------------------------------------------------------------------


def test_the_order_is_random_and_follows_from_the_recorded_seed(tmp_path: Path) -> None:
    orders = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        study = vision_study(seed=seed)
        run_fake(study, tmp_path / name)
        found = records(tmp_path / name, study)
        orders[name] = in_order(found)
        assert {record.session.order_seed for record in found.values()} == {f"{seed}/fake"}
        assert sorted(record.session.position for record in found.values()) == list(range(8))
    assert orders["a"] == orders["b"] != orders["c"]
    assert orders["a"] != [cell.cell_id for cell in build_plan(vision_study())]


def test_the_arms_of_a_record_are_in_the_order_that_the_seed_gives(tmp_path: Path) -> None:
    study = vision_study(sampling={"min_samples": 40, "max_samples": 40})
    for name in ("a", "b"):
        run_fake(study, tmp_path / name)
    first, second = (records(tmp_path / name, study) for name in ("a", "b"))
    rounds = {cell_id: [each.order for each in record.rounds] for cell_id, record in first.items()}
    assert rounds == {cell_id: [each.order for each in record.rounds] for cell_id, record in second.items()}
    assert len({tuple(order) for orders in rounds.values() for order in orders}) == 24, "all orders of four arms"


# --- sentinel and drift -----------------------------------------------------------------------------


def test_the_sentinel_is_looked_at_at_the_start_every_few_cells_and_at_the_end(tmp_path: Path) -> None:
    steps = steps_of(vision_study(sentinel_every_cells=3), tmp_path)
    assert [step.note == "sentinel" for step in steps] == [
        True, False, False, False, True, False, False, False, True, False, False, True,
    ]  # fmt: skip
    assert len({step.cell.cell_id for step in steps if step.note == "sentinel"}) == 1


def test_the_sentinel_is_the_same_cell_when_only_others_have_to_be_measured(tmp_path: Path) -> None:
    sentinel = steps_of(vision_study(), tmp_path)[0].cell
    other = next(cell for cell in build_plan(vision_study()) if cell != sentinel)
    cell_path(tmp_path, "small", other).unlink()
    steps = steps_of(vision_study(), tmp_path)
    assert [step.cell.cell_id for step in steps] == [sentinel.cell_id, other.cell_id, sentinel.cell_id]


def test_a_look_at_the_sentinel_is_a_quick_one(tmp_path: Path) -> None:
    run_fake(vision_study(), tmp_path)
    cell = build_plan(vision_study())[0]
    cell_path(tmp_path, "small", cell).unlink()
    runner = FakeRunner()
    run_fake(vision_study(), tmp_path, runner=runner)
    record = records(tmp_path, vision_study())[cell.cell_id]
    alone = sum(len(warmup.wall_ms) for warmup in record.warmups if warmup.arm == "vision") + len(record.rounds)
    assert runner.calls.count("vision") == alone, "the cell runs vision alone; the looks before and after it do not"
    assert runner.calls.count("memory") == 1


def slow_after(
    runner: FakeRunner, cells: int, factor: float, *, back_after: int | None = None
) -> Callable[[Progress], None]:
    """Progress that changes the device's speed once so many cells have been measured, counting repeats."""
    seen = 0

    def progress(step: Progress) -> None:
        nonlocal seen
        seen += step.note != "sentinel"
        runner.slowdown = factor if seen >= cells and (back_after is None or seen < back_after) else 1.0

    return progress


def test_drift_that_has_gone_is_measured_again_once_and_leaves_no_flag(tmp_path: Path) -> None:
    """Slow from the third cell to the fourth: the sentinel behind them sees it, and the second time they are well."""
    runner = FakeRunner(noise_fraction=NOISE)
    summary = run_fake(vision_study(), tmp_path, runner=runner, progress=slow_after(runner, 3, 1.2, back_after=5))
    found = records(tmp_path, vision_study())
    drifts = [found[cell_id].drift for cell_id in in_order(found)]
    assert all(drift is not None for drift in drifts)
    assert [drift.remeasured for drift in drifts if drift] == [False, False, True, True, False, False, False, False]
    assert not any(drift.drifted for drift in drifts if drift)
    assert (summary.remeasured, summary.drifted, summary.measured) == (2, 0, 8)


def test_a_cell_that_is_measured_again_still_says_what_its_shape_took_to_be_ready(tmp_path: Path) -> None:
    runner = ReadyRunner()
    summary = run_fake(vision_study(), tmp_path, runner=runner, progress=slow_after(runner, 3, 1.2, back_after=5))
    found = records(tmp_path, vision_study())
    assert sum(bool(record.drift and record.drift.remeasured) for record in found.values()) == 2
    assert {(record.seconds["compile"], record.seconds["capture"]) for record in found.values()} == {(3.0, 1.0)}
    assert summary.seconds["compile"] == pytest.approx(3.0 * 8), "nothing is made ready, and counted, twice"


def test_drift_that_stays_is_measured_again_once_and_then_flagged(tmp_path: Path) -> None:
    runner = FakeRunner(noise_fraction=NOISE)
    steps: list[Progress] = []
    slow = slow_after(runner, 5, 1.2)

    def progress(step: Progress) -> None:
        steps.append(step)
        slow(step)

    summary = run_fake(vision_study(), tmp_path, runner=runner, progress=progress)
    found = records(tmp_path, vision_study())
    drifts = [found[cell_id].drift for cell_id in in_order(found)]
    assert [bool(drift and drift.drifted) for drift in drifts] == [False] * 4 + [True] * 4
    assert [bool(drift and drift.remeasured) for drift in drifts] == [False] * 4 + [True] * 4
    assert (summary.remeasured, summary.drifted, summary.measured) == (4, 4, 8)
    measured = [step.cell.cell_id for step in steps if step.note != "sentinel"]
    assert sorted(measured.count(cell_id) for cell_id in found) == [1, 1, 1, 1, 2, 2, 2, 2], "once, and no more"
    last = drifts[-1]
    assert last is not None
    assert last.after_ms / last.reference_ms == pytest.approx(1.2, rel=0.02)
    assert "4 measured twice because of drift, 4 flagged as drifted" in summary.sentence()


def test_a_cell_that_fails_the_second_time_keeps_its_first_record_and_the_flag(tmp_path: Path) -> None:
    study, runner = vision_study(), FakeRunner()
    steps = steps_of(study, tmp_path / "probe")
    unlucky = [step.cell for step in steps if step.note != "sentinel"][2]
    slow, measured = slow_after(runner, 3, 1.5), []

    def progress(step: Progress) -> None:
        measured.append(step.cell.cell_id)
        slow(step)

    def fail_the_second_time() -> None:
        if unlucky.cell_id in measured:
            mismatch()

    fail_on([unlucky.cell_id], study, fail_the_second_time, runner)
    with pytest.raises(SessionFailed, match=f"1 of 8 cells of fake failed; the first: cell {unlucky.cell_id}"):
        run_fake(study, tmp_path, runner=runner, progress=progress)
    drift = records(tmp_path, study)[unlucky.cell_id].drift
    assert drift is not None
    assert (drift.remeasured, drift.drifted) == (True, True)


@pytest.mark.parametrize("seed", range(20))
def test_noise_alone_is_no_drift(seed: int, tmp_path: Path) -> None:
    runner = FakeRunner(noise_fraction=0.01, seed=seed)
    summary = run_fake(vision_study(), tmp_path, runner=runner)
    assert (summary.remeasured, summary.drifted) == (0, 0)
    assert all(record.drift and not record.drift.drifted for record in records(tmp_path, vision_study()).values())


def test_much_noise_hides_a_little_drift_and_the_record_says_how_much(tmp_path: Path) -> None:
    runner = FakeRunner(noise_fraction=0.3)
    summary = run_fake(vision_study(), tmp_path, runner=runner, progress=slow_after(runner, 5, 1.03))
    noises = [record.drift.noise_fraction for record in records(tmp_path, vision_study()).values() if record.drift]
    assert summary.drifted == 0
    assert all(noise and noise > 0.03 for noise in noises)


@pytest.mark.parametrize(
    ("reference", "now", "drifted"),
    [
        (Estimate(100, 99.9, 100.1), Estimate(105, 104.9, 105.1), True),
        (Estimate(100, 92, 108), Estimate(105, 104.9, 105.1), False),
        (Estimate(100, 99.9, 100.1), Estimate(105, 97, 113), False),
        (Estimate(100, 97, 103), Estimate(105, 102, 108), False),
        (Estimate(100, 97.9, 102.1), Estimate(105, 102.9, 107.1), True),
        (Estimate(100, 99.9, 100.1), Estimate(101.9, 101.8, 102), False),
    ],
)
def test_the_noise_of_both_looks_counts(reference: Estimate, now: Estimate, drifted: bool, tmp_path: Path) -> None:
    """A sentinel has moved if it is away by more than the tolerance, 2 %, and than both half widths together."""
    study = vision_study()
    session = _Session(
        study,
        "fake",
        study.subjects["fake"],
        [],
        run=0,
        results=tmp_path,
        pictures=pictures_of(),
        machine=machine_of(FakeRunner()),
    )
    session._reference = reference
    assert session._has_drifted(now) is drifted


def test_drift_within_the_tolerance_is_let_pass(tmp_path: Path) -> None:
    runner = FakeRunner()
    tolerant = vision_study(drift_tolerance_fraction=0.05)
    assert run_fake(tolerant, tmp_path / "a", runner=runner, progress=slow_after(runner, 3, 1.04)).remeasured == 0
    strict = vision_study(drift_tolerance_fraction=0.03)
    assert run_fake(strict, tmp_path / "b", runner=runner, progress=slow_after(runner, 3, 1.04)).remeasured > 0


def test_a_session_gets_faster_or_slower_and_both_are_drift(tmp_path: Path) -> None:
    runner = FakeRunner(slowdown=1.0)
    assert run_fake(vision_study(), tmp_path, runner=runner, progress=slow_after(runner, 3, 0.8)).drifted > 0


# --- cells that fail --------------------------------------------------------------------------------


def mismatch() -> None:
    raise CountMismatch("this test says so")


def fail_on(cells: Iterable[str], study: Study, action: Callable[[], None], runner: FakeRunner) -> None:
    """Break a runner for certain pictures, told by their size (a dummy image's size names its tiling)."""
    sizes = {
        (made.width_px, made.height_px)
        for cell in build_plan(study)
        if cell.cell_id in cells
        for made in cell.request.made_pictures
    }
    prepare = runner.prepare

    def checked(opened: OpenedRequest, **named: Any) -> Any:
        if opened.picture.size in sizes:
            action()
        return prepare(opened, **named)

    runner.prepare = checked  # type: ignore[method-assign]


def test_out_of_memory_in_a_cell_is_a_result_and_the_session_goes_on(tmp_path: Path) -> None:
    study, runner = vision_study(), FakeRunner()
    fail_on(["vision-tiling-3x4"], study, out_of_memory, runner)
    summary = run_fake(study, tmp_path, runner=runner)
    found = records(tmp_path, study)
    assert (summary.measured, summary.oom, summary.failed) == (8, 1, [])
    assert (found["vision-tiling-3x4"].status, found["vision-tiling-3x4"].series) == ("oom", [])
    assert found["vision-tiling-3x4"].reason == "tried to allocate 2.00 GiB"
    assert all(record.status == "ok" for cell_id, record in found.items() if cell_id != "vision-tiling-3x4")
    assert "1 out of memory" in summary.sentence()
    assert run_fake(study, tmp_path, runner=runner).fresh == 8, "a result is not tried again"


def test_a_subject_that_cannot_run_here_is_recorded_as_such_in_every_cell(tmp_path: Path) -> None:
    def load() -> FakeRunner:
        raise Unsupported("the image processor needs torchvision; install it")

    study, runner = vision_study(), FakeRunner()
    machine = machine_of(runner, load=load)
    summary = run_fake(study, tmp_path, machine=machine)
    found = records(tmp_path, study)
    assert (summary.measured, summary.unsupported, summary.failed) == (0, len(found), [])
    assert {record.status for record in found.values()} == {"unsupported"}
    assert {record.reason for record in found.values()} == {"the image processor needs torchvision; install it"}
    assert "unsupported on this machine" in summary.sentence()
    assert run_fake(study, tmp_path, machine=machine).fresh == len(found), "a result is not tried again"


def test_a_count_mismatch_fails_its_cell_alone_and_the_session_says_so(tmp_path: Path) -> None:
    """Predicted counts are wrong for every photograph here; the dummy images are all right."""
    study, runner = study_of(), FakeRunner()
    prepare = runner.prepare

    def miscounting(opened: OpenedRequest, **named: Any) -> Any:
        is_smallest = opened.picture.size == (336, 336) and opened.text_tokens is not None
        runner.extra_vision_tokens = 3 if is_smallest else 0
        return prepare(opened, **named)

    runner.prepare = miscounting  # type: ignore[method-assign]
    sentence = (
        r"1 of 8 cells of fake failed; the first: cell vision-tiling-1x1 of fake: the plan says vision_tokens 288"
    )
    with pytest.raises(SessionFailed, match=sentence):
        run_fake(study, tmp_path, runner=runner)
    assert set(records(tmp_path, study)) == {c.cell_id for c in build_plan(study)} - {"vision-tiling-1x1"}
    runner.prepare = prepare  # type: ignore[method-assign]
    runner.extra_vision_tokens = 0
    summary = run_fake(study, tmp_path, runner=runner)
    assert (summary.fresh, summary.measured) == (7, 1)


def test_a_broken_clock_fails_the_cell_in_which_it_broke(tmp_path: Path) -> None:
    study, runner = vision_study(), FakeRunner()
    elapsed_ms = runner.clock.elapsed_ms

    def break_the_clock() -> None:
        runner.clock.elapsed_ms = lambda start, end: math.nan  # type: ignore[method-assign]

    fail_on(["vision-tiling-1x3"], study, break_the_clock, runner)
    breaking = runner.prepare

    def mend_then_break(*arguments: Any, **named: Any) -> Any:
        runner.clock.elapsed_ms = elapsed_ms  # type: ignore[method-assign]
        return breaking(*arguments, **named)

    runner.prepare = mend_then_break  # type: ignore[method-assign]
    sentence = "1 of 8 cells of fake failed; the first: cell vision-tiling-1x3: the clock gave nan ms"
    with pytest.raises(SessionFailed, match=sentence):
        run_fake(study, tmp_path, runner=runner)
    assert len(records(tmp_path, study)) == 7


@pytest.mark.parametrize("fault", ["mismatch", "memory"])
def test_a_sentinel_that_cannot_be_measured_stops_no_other_cell(fault: str, tmp_path: Path) -> None:
    study, runner = vision_study(), FakeRunner()
    sentinel = steps_of(study, tmp_path / "probe")[0].cell

    fail_on([sentinel.cell_id], study, out_of_memory if fault == "memory" else mismatch, runner)
    if fault == "memory":
        summary = run_fake(study, tmp_path, runner=runner)
        assert (summary.measured, summary.oom) == (8, 1)
    else:
        with pytest.raises(SessionFailed, match=f"1 of 8 cells of fake failed; the first: cell {sentinel.cell_id}"):
            run_fake(study, tmp_path, runner=runner)
    found = records(tmp_path, study)
    assert sum(record.status == "ok" for record in found.values()) == 7
    assert all(record.drift is None for record in found.values()), "no drift is claimed to have been looked for"


# --- crashes ----------------------------------------------------------------------------------------


def lose_outputs(results: Path) -> None:
    """Do what Snakemake does with the new outputs of a job that failed."""
    shutil.rmtree(results / "small" / "cells")


CRASHES = [RuntimeError("a bug"), SystemExit(1), KeyboardInterrupt(), OSError(28, "No space left on device")]


@pytest.mark.parametrize("error", CRASHES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("outputs", ["kept", "lost"])
def test_after_a_crash_only_the_rest_is_measured(error: BaseException, outputs: str, tmp_path: Path) -> None:
    study = study_of()
    with pytest.raises(type(error)):
        run_fake(study, tmp_path, progress=Crash(3, error))
    done = records(tmp_path, study)
    assert len(done) == 3
    if outputs == "lost":
        lose_outputs(tmp_path)
    summary = run_fake(study, tmp_path)
    assert (summary.fresh + summary.restored, summary.measured) == (3, ALL - 3)
    assert summary.restored == (3 if outputs == "lost" else 0)
    after = records(tmp_path, study)
    assert len(after) == ALL
    assert {cell_id: after[cell_id] for cell_id in done} == done, "restored to the letter"


@pytest.mark.parametrize("call", ["prepare", "prefill", "generate", "vision", "busy"])
def test_a_crash_inside_a_cell_loses_that_cell_alone(call: str, tmp_path: Path) -> None:
    study, runner = study_of(), FakeRunner()

    def crash() -> None:
        if len(records(tmp_path, study)) >= 2:
            raise KeyboardInterrupt

    runner.fail[call] = crash
    with pytest.raises(KeyboardInterrupt):
        run_fake(study, tmp_path, runner=runner)
    done = len(records(tmp_path, study))
    assert 2 <= done < ALL
    lose_outputs(tmp_path)
    summary = run_fake(study, tmp_path)
    assert (summary.restored, summary.measured) == (done, ALL - done)


def test_a_crash_while_loading_loses_nothing(tmp_path: Path) -> None:
    study = study_of()
    with pytest.raises(RuntimeError):
        run_fake(study, tmp_path, progress=Crash(3, RuntimeError()))

    def load() -> FakeRunner:
        raise OSError("no weights")

    with pytest.raises(OSError, match="no weights"):
        run_fake(study, tmp_path, machine=machine_of(FakeRunner(), load=load))
    lose_outputs(tmp_path)
    assert run_fake(study, tmp_path).restored == 3


def test_crash_after_crash_the_study_is_completed(tmp_path: Path) -> None:
    study, measured = study_of(), 0
    for _ in range(ALL - 1):
        with pytest.raises(KeyboardInterrupt):
            run_fake(study, tmp_path, progress=Crash(1, KeyboardInterrupt()))
        lose_outputs(tmp_path)
        measured += 1
    summary = run_fake(study, tmp_path)
    assert (summary.restored, summary.measured) == (measured, 1)


def test_a_session_that_succeeds_clears_its_journal(tmp_path: Path) -> None:
    study = study_of()
    with pytest.raises(RuntimeError):
        run_fake(study, tmp_path, progress=Crash(3, RuntimeError()))
    assert any((tmp_path / "small" / ".journal").rglob("*.json"))
    run_fake(study, tmp_path)
    assert not any((tmp_path / "small" / ".journal").rglob("*.json"))


def test_a_session_with_a_failed_cell_keeps_its_journal(tmp_path: Path) -> None:
    study, runner = vision_study(), FakeRunner()
    fail_on(["vision-tiling-3x4"], study, mismatch, runner)
    with pytest.raises(SessionFailed):
        run_fake(study, tmp_path, runner=runner)
    lose_outputs(tmp_path)
    summary = run_fake(study, tmp_path)
    assert (summary.restored, summary.measured) == (7, 1)


def test_what_the_journal_holds_is_not_taken_back_once_it_is_stale(tmp_path: Path) -> None:
    study = study_of()
    with pytest.raises(RuntimeError):
        run_fake(study, tmp_path, progress=Crash(3, RuntimeError()))
    lose_outputs(tmp_path)
    changed = study_of(sampling={"max_samples": 40})
    assert (run_fake(changed, tmp_path).restored, len(records(tmp_path, changed))) == (0, ALL)


def test_what_another_device_left_in_the_journal_is_not_taken_back(tmp_path: Path) -> None:
    study = study_of()
    with pytest.raises(RuntimeError):
        run_fake(study, tmp_path, progress=Crash(3, RuntimeError()))
    lose_outputs(tmp_path)
    summary = run_fake(study, tmp_path, machine=machine_of(FakeRunner(), identity="other device"))
    assert (summary.restored, summary.measured) == (0, ALL)


# --- what has to be measured ------------------------------------------------------------------------


def test_a_deleted_cell_is_measured_again_and_no_other(tmp_path: Path) -> None:
    study = study_of()
    run_fake(study, tmp_path)
    cell_path(tmp_path, "small", build_plan(study)[2]).unlink()
    summary = run_fake(study, tmp_path)
    assert (summary.fresh, summary.measured) == (ALL - 1, 1)


def test_new_cells_are_measured_and_no_other(tmp_path: Path) -> None:
    run_fake(study_of(), tmp_path)
    more = study_of(
        experiments={
            "vision_tokens": {"tilings": ["1x1", "1x2", "2x2", "3x4", "2x3"]},
            "output_tokens": {"output_tokens": [8, 16, 32], "sampling": {"min_samples": 3}},
        }
    )
    summary = run_fake(more, tmp_path)
    assert (summary.fresh, summary.measured) == (ALL, 1 + 2)


def test_another_protocol_of_one_experiment_leaves_the_other_fresh(tmp_path: Path) -> None:
    run_fake(study_of(), tmp_path)
    changed = study_of(
        experiments={
            "vision_tokens": {"tilings": ["1x1", "1x2", "2x2", "3x4"]},
            "output_tokens": {"output_tokens": [8, 16], "sampling": {"min_samples": 4}},
        }
    )
    summary = run_fake(changed, tmp_path)
    assert (summary.fresh, summary.measured) == (4, 4)


def test_the_seed_of_the_order_makes_nothing_stale(tmp_path: Path) -> None:
    run_fake(study_of(seed=1), tmp_path)
    assert run_fake(study_of(seed=2), tmp_path).fresh == ALL


def damaged(path: Path, how: str) -> None:
    text = path.read_text()
    path.write_text(
        {
            "truncated": text[: len(text) // 2],
            "empty": "",
            "no json": "{]",
            "a key missing": text.replace('"series":', '"serious":'),
        }[how]
    )


def test_a_record_of_another_version_is_refused_with_the_choice_and_kept(tmp_path: Path) -> None:
    run_fake(study_of(), tmp_path)
    path = cell_path(tmp_path, "small", build_plan(study_of())[0])
    old = path.read_text().replace(f'"record_version":{RECORD_VERSION}', '"record_version":0')
    path.write_text(old)
    with pytest.raises(UserError, match=r"has record_version 0, and .* reads 3; .* another name .* `vlmeter forget`"):
        run_fake(study_of(), tmp_path)
    assert path.read_text() == old
    forget(tmp_path, "small", build_plan(study_of())[:1])
    assert run_fake(study_of(), tmp_path).measured == 1


@pytest.mark.parametrize("how", ["truncated", "empty", "no json", "a key missing"])
def test_a_damaged_record_is_measured_again_and_no_other(how: str, tmp_path: Path) -> None:
    study = study_of()
    run_fake(study, tmp_path)
    path = cell_path(tmp_path, "small", build_plan(study)[0])
    damaged(path, how)
    summary = run_fake(study, tmp_path)
    assert (summary.fresh, summary.measured) == (ALL - 1, 1)
    read_record(path)


def test_a_damaged_journal_is_no_obstacle(tmp_path: Path) -> None:
    study = study_of()
    with pytest.raises(RuntimeError):
        run_fake(study, tmp_path, progress=Crash(3, RuntimeError()))
    lose_outputs(tmp_path)
    damaged(next((tmp_path / "small" / ".journal" / "fake").glob("*.json")), "truncated")
    summary = run_fake(study, tmp_path)
    assert (summary.restored, summary.measured) == (2, ALL - 2)


def test_records_of_another_device_are_refused_with_the_choice(tmp_path: Path) -> None:
    study = study_of()
    run_fake(study, tmp_path)
    before = records(tmp_path, study)
    with pytest.raises(UserError) as caught:
        run_fake(study, tmp_path, machine=machine_of(FakeRunner(), identity="other device"))
    sentence = str(caught.value)
    assert "was measured on fake device, and this is other device" in sentence
    assert "give subjects.fake another name to keep both" in sentence
    assert "vlmeter forget" in sentence
    assert records(tmp_path, study) == before, "and nothing was touched"


def test_one_new_cell_on_another_device_is_refused_too(tmp_path: Path) -> None:
    run_fake(study_of(), tmp_path)
    more = study_of(experiments={"vision_tokens": {"tilings": ["1x1", "2x3"]}})
    with pytest.raises(UserError, match="records of two devices are never mixed"):
        run_fake(more, tmp_path, machine=machine_of(FakeRunner(), identity="other device"))


def test_forgotten_cells_are_measured_again_and_no_other(tmp_path: Path) -> None:
    study = study_of()
    run_fake(study, tmp_path)
    chosen: list[Cell] = [cell for cell in build_plan(study) if cell.cell_id.startswith("vision-tiling-1")]
    assert len(forget(tmp_path, "small", chosen)) == 2
    summary = run_fake(study, tmp_path)
    assert (summary.fresh, summary.measured) == (ALL - 2, 2)


def test_what_was_forgotten_does_not_come_back_from_a_journal(tmp_path: Path) -> None:
    study = study_of()
    with pytest.raises(RuntimeError):
        run_fake(study, tmp_path, progress=Crash(3, RuntimeError()))
    assert len(forget(tmp_path, "small", build_plan(study))) == 6, "three records and their copies"
    assert run_fake(study, tmp_path).measured == ALL


# --- what a person sees -----------------------------------------------------------------------------


def test_progress_counts_up_to_the_number_of_cells(tmp_path: Path) -> None:
    steps = steps_of(study_of(), tmp_path)
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert (done[0], done[-1], steps[-1].total) == (0, ALL, ALL)
    assert steps[0].left_s is None
    assert steps[-1].left_s == 0
    assert all(step.estimate is not None for step in steps)


def test_progress_says_how_long_it_took_and_how_long_the_rest_takes_at_that_pace(tmp_path: Path) -> None:
    runner, seen = FakeRunner(), []
    run_fake(study_of(), tmp_path, runner=runner, progress=lambda step: seen.append((step, runner.clock.host_ms())))
    for step, now_ms in seen:
        assert step.elapsed_s == pytest.approx(now_ms / 1000)
        if step.done:
            assert step.left_s == pytest.approx(step.elapsed_s / step.done * (ALL - step.done))


def test_a_session_says_how_many_seconds_it_took_from_loading_on(tmp_path: Path) -> None:
    runner = FakeRunner()
    summary = run_fake(study_of(), tmp_path, runner=runner)
    assert summary.seconds["session"] == pytest.approx(summary.seconds["load"] + runner.clock.host_ms() / 1000)


def test_progress_never_passes_the_total_when_cells_are_measured_twice(tmp_path: Path) -> None:
    runner = FakeRunner()
    slow, done = slow_after(runner, 3, 1.5), []

    def progress(step: Progress) -> None:
        done.append(step.done)
        slow(step)

    assert run_fake(vision_study(), tmp_path, runner=runner, progress=progress).remeasured > 0
    assert max(done) == done[-1] == 8


def test_a_summary_says_how_it_went_in_one_line() -> None:
    assert Summary(measured=3, fresh=2).sentence() == "3 measured, 2 fresh, 0 restored"
    assert Summary(oom=1, failed=["x"]).sentence().endswith("1 out of memory, 1 failed")
