"""Faults that a session survives: after each nothing finished is lost, and a plain rerun completes the study."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from benchmarks.chaos import run_chaos
from tests.support.sessions import CELL, IMAGE, PATIENCE_S, Bench, fake_study, wait_until, wait_until_gone, workers_of
from vlmeter.cells.cell import sentinel_of
from vlmeter.common.errors import UserError
from vlmeter.measure.session import SessionFailed
from vlmeter.measure.supervision import SessionStopped
from vlmeter.records.store import forget

pytestmark = pytest.mark.xdist_group("supervise")


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(tmp_path / "locks"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


@pytest.fixture
def start(bench: Bench) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts sessions in processes of their own, and sees that none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def run(**more: list[str]) -> subprocess.Popen[str]:
        started.append(bench.start(**more))
        return started[-1]

    yield run
    for each in started:
        for process in [each.pid, *(worker.pid for worker in workers_of(each.pid))]:
            if psutil.pid_exists(process):
                os.kill(process, signal.SIGKILL)
        each.wait()
        assert each.stderr is not None
        each.stderr.close()


def rerun_completes(bench: Bench, kept: dict[str, str]) -> None:
    """A plain rerun measures what was not finished, and that alone."""
    bench.heal()
    summary = bench.run()
    assert bench.is_complete()
    assert summary.measured == len(bench.cells) - len(kept)
    assert {cell_id: session for cell_id, session in bench.kept().items() if cell_id in kept} == kept
    assert not list(bench.layout.root.rglob("*.tmp"))
    assert not list(bench.layout.root.glob(".journal/*/*")), "what is safe in its place is in the journal no longer"


# --- an ordinary session ----------------------------------------------------------------------------


def test_a_session_in_a_process_of_its_own_measures_every_cell(bench: Bench) -> None:
    summary = bench.run()
    assert (summary.measured, summary.failed) == (6, [])
    assert bench.is_complete()
    assert bench.told == ["fake runs on fake:0: fake device"]
    assert [step.done for step in bench.steps if step.note != "sentinel"] == [1, 2, 3, 4, 5, 6]
    assert "cell 1 of 6" not in bench.log_file.read_text(), "progress is logged by whoever shows it"
    record = bench.record(bench.cells[0])
    assert record.environment["device_model"] == "fake device"
    assert record.environment["torch_threads"] is None, "the fake backend needs no torch"
    assert (record.subject_config.backend, record.subject_config.weights) == ("fake", "random")
    assert bench.run().fresh == 6


def test_a_mistake_of_the_user_is_passed_on_as_one(bench: Bench) -> None:
    bench.run()
    path = bench.layout.record(bench.cells[0])
    path.write_text(path.read_text().replace('"device_identity":"fake device"', '"device_identity":"another"'))
    with pytest.raises(UserError, match="was measured on another, and this is fake device; records of two devices"):
        bench.run()


# --- faults of a device -----------------------------------------------------------------------------


def test_out_of_memory_in_a_cell_is_a_result_and_the_session_goes_on(bench: Bench) -> None:
    bench.plant(what="oom", image=IMAGE, always=True)
    summary = bench.run()
    assert (summary.measured, summary.oom) == (6, 1)
    records = {cell.cell_id: bench.record(cell).status for cell in bench.cells}
    assert records.pop(CELL) == "oom"
    assert set(records.values()) == {"ok"}


def test_a_lost_device_restarts_the_session_once_and_keeps_what_it_has(bench: Bench) -> None:
    bench.plant(what="device-lost", call=75)
    summary = bench.run()
    assert (summary.measured, summary.fresh) == (6, 0), "cells of the first process count as measured"
    assert bench.is_complete()
    assert len(set(bench.kept().values())) == 2, "the second process measured only the rest"
    (told,) = [message for message in bench.told if "ended" in message]
    assert told.startswith("the session of fake ended in cell vision-tiling-")
    assert told.endswith(": a planted loss of the device; it goes on in a new process")


def test_a_device_that_is_lost_again_ends_the_session_and_a_rerun_completes(bench: Bench) -> None:
    bench.plant(what="device-lost", image=IMAGE, always=True)
    with pytest.raises(SessionStopped, match=r"ended again in cell vision-tiling-2x2: .*finished cells are kept"):
        bench.run()
    kept = bench.kept()
    rerun_completes(bench, kept)


def test_a_crash_of_the_measuring_process_is_survived_too(bench: Bench) -> None:
    bench.plant(what="crash", call=75)
    summary = bench.run()
    assert summary.measured == 6
    assert bench.is_complete()
    assert any("its process died (SIGKILL); it goes on in a new process" in message for message in bench.told)


def test_a_hung_cell_is_given_up_and_the_others_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tilings = ["1x1", "1x2", "2x1", "2x2", "1x3", "3x4", "1x5"]
    content = fake_study(cell_time_limit_seconds=1.0, experiments={"vision_tokens": {"tilings": tilings}})
    bench = Bench(tmp_path, monkeypatch, content)
    bench.plant(what="hang", image="336x560", always=True)  # 2x1, which is not the sentinel
    with pytest.raises(SessionFailed) as failed:
        bench.run()
    assert failed.value.summary.measured == 6
    reason = "cell vision-tiling-2x1 of fake had not ended after 1 s (cell_time_limit_seconds) and was given up"
    assert failed.value.summary.failed == [reason]
    assert f"{reason}; the session goes on without it, in a new process" in bench.told
    assert [cell_id for cell_id, state in bench.states().items() if state != "fresh"] == ["vision-tiling-2x1"]
    rerun_completes(bench, bench.kept())


def test_a_sentinel_that_hangs_is_replaced_by_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch, fake_study(cell_time_limit_seconds=1.0))
    sentinel = sentinel_of(bench.cells)
    (made,) = sentinel.request.made_pictures
    bench.plant(what="hang", image=f"{made.width_px}x{made.height_px}", always=True)
    with pytest.raises(SessionFailed):
        bench.run()
    assert bench.states()[sentinel.cell_id] == "missing"
    assert sum(state == "fresh" for state in bench.states().values()) == 5


def test_a_device_on_which_everything_hangs_is_not_waited_for_cell_by_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, monkeypatch, fake_study(cell_time_limit_seconds=0.5))
    bench.plant(what="hang", call=1, always=True)
    with pytest.raises(SessionStopped, match="as was the one before: the device seems to hang; 0 finished cells"):
        bench.run()
    rerun_completes(bench, {})


def test_an_error_of_no_known_kind_keeps_its_traceback_in_the_log_and_is_not_tried_again(bench: Bench) -> None:
    bench.plant(what="bug", call=75)
    with pytest.raises(SessionStopped, match="stopped on an error: RuntimeError: a planted bug; what was"):
        bench.run()
    assert "Traceback" in bench.log_file.read_text()
    rerun_completes(bench, bench.kept())


# --- killed -----------------------------------------------------------------------------------------

#: Makes a session stop in the middle until it is killed.
HANG = {"what": "hang", "call": 75}


def in_the_middle(bench: Bench, process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until the session hangs in the middle; returns its processes."""
    wait_until(lambda: (bench.folder / "happened").exists() or process.poll() is not None)
    assert process.poll() is None
    return [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]


@pytest.mark.parametrize("how", ["kill", "terminate"])
def test_a_killed_session_leaves_nothing_running_and_loses_nothing(
    how: str, bench: Bench, start: Callable[..., subprocess.Popen[str]]
) -> None:
    bench.plant(**HANG)
    process = start()
    family = in_the_middle(bench, process)
    assert len(family) == 2
    getattr(process, how)()
    wait_until_gone(family)
    kept = bench.kept()
    assert 0 < len(kept) < 6
    rerun_completes(bench, kept)


def test_ctrl_c_ends_all_of_a_session_in_good_order(bench: Bench, start: Callable[..., subprocess.Popen[str]]) -> None:
    bench.plant(**HANG)
    process = start()
    family = in_the_middle(bench, process)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=PATIENCE_S) == 130
    wait_until_gone(family)
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()
    assert bench.log_file.read_text().rstrip().endswith("interrupted; what was finished is kept")
    rerun_completes(bench, bench.kept())


def test_a_session_does_not_outlive_the_workflow_that_wants_it(
    bench: Bench, start: Callable[..., subprocess.Popen[str]]
) -> None:
    """A shell stands between the two, as it does in Snakemake's jobs."""
    bench.plant(**HANG)
    owner = [sys.executable, "-c", OWNER]
    process = start(owned_by=owner)
    family = in_the_middle(bench, process)
    assert len(family) == 4
    process.kill()
    wait_until_gone(family)
    assert "the workflow has gone" in bench.log_file.read_text()
    rerun_completes(bench, bench.kept())


#: Stands for the workflow: has a shell run the session.
OWNER = """
import os, shlex, subprocess, sys
os.environ["VLMETER_OWNER_PID"] = str(os.getpid())
subprocess.run(["bash", "-c", shlex.join(sys.argv[1:]) + "; true"])
"""


def test_a_process_that_is_no_ancestor_is_not_watched(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container with process ids of its own the number may mean somebody else."""
    other = subprocess.Popen(["true"])
    monkeypatch.setenv("VLMETER_OWNER_PID", str(other.pid))
    other.wait()
    assert bench.run().measured == 6


def test_what_a_killed_session_had_begun_to_write_is_swept_away(bench: Bench) -> None:
    bench.run()
    for folder in (bench.layout.record(bench.cells[0]).parent, bench.layout.root / ".journal" / "fake"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".vision-tiling-1x1.json.1-abcd.tmp").write_text('{"half')
    bench.run()
    assert not list(bench.layout.root.rglob("*.tmp"))


# --- two at a time ----------------------------------------------------------------------------------


def test_a_second_session_of_a_subject_waits_for_the_first_and_finds_its_cells(
    bench: Bench, start: Callable[..., subprocess.Popen[str]]
) -> None:
    bench.plant(**HANG)
    first = start()
    in_the_middle(bench, first)
    second = start()
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line.startswith(
        f"vlmeter: waiting for subject fake of study faulty, which is held by process {first.pid} of"
    )
    kept = bench.kept()
    first.kill()
    second.communicate(timeout=60)
    assert second.returncode == 0
    assert bench.is_complete()
    assert {cell_id: session for cell_id, session in bench.kept().items() if cell_id in kept} == kept


def test_two_studies_on_one_device_queue_and_the_second_is_told_for_whom(
    bench: Bench, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench.plant(**HANG)
    first = start()
    (worker,) = in_the_middle(bench, first)[1:]
    (tmp_path / "other").mkdir()
    other = Bench(tmp_path / "other", monkeypatch, fake_study(study="other"))
    process = other.start()
    try:
        assert process.stderr is not None
        assert process.stderr.readline().startswith(
            f"vlmeter: waiting for fake:0, which is held by process {worker.pid} of"
        )
        first.kill()
        process.communicate(timeout=60)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
    assert other.is_complete()


def test_two_subjects_run_at_once_on_two_devices_and_records_say_on_which(
    bench: Bench, start: Callable[..., subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("VLMETER_FAKE_DEVICES", "2")
    bench.plant(**HANG)
    first = start()
    in_the_middle(bench, first)
    (tmp_path / "other").mkdir()
    bench.heal()
    other = Bench(tmp_path / "other", monkeypatch, fake_study(study="other"))
    assert other.run().measured == 6
    assert other.told == ["fake runs on fake:1: fake device"]
    assert {other.record(cell).environment["device"] for cell in other.cells} == {"fake:1"}
    assert first.poll() is None, "the other session was beside it all the time"


# --- the disk ---------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m", "vlmeter-test", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"mounting a file system is not allowed here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_ends_the_session_with_one_sentence_and_a_rerun_completes(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(small_disk, monkeypatch)
    _ = bench.log_file
    filler = small_disk / "filler"
    with filler.open("wb") as file:
        free = os.statvfs(small_disk)
        file.write(b"\0" * (free.f_bavail * free.f_bsize - 40_000))
    with pytest.raises(UserError, match=r"results/faulty.* cannot be written: No space left on device; what"):
        bench.run()
    kept = bench.kept()
    assert len(kept) < 6
    filler.unlink()
    rerun_completes(bench, kept)


def test_results_that_cannot_be_written_are_refused_with_one_sentence(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bench = Bench(small_disk, monkeypatch)
    bench.run()
    forget(bench.layout.results, "faulty", bench.cells[:1])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    process = bench.start()
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.count("\n")) == (2, 1)
    assert said.startswith(
        "vlmeter: the log results/faulty/logs/measure-fake.log cannot be written: Read-only file system"
    )
    with pytest.raises(UserError, match=r"the results cannot be written: .*Read-only file system"):
        bench.run(log_file=tmp_path / "elsewhere.log")
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert bench.run().measured == 1


# --- chance -----------------------------------------------------------------------------------------


def test_random_kills_lose_nothing_and_leave_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short version of `python -m benchmarks.chaos`."""
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(tmp_path / "locks"))
    chaos = run_chaos(kills=8, seed=7, folder=tmp_path / "chaos", workflow_share=0.25)
    assert chaos.kills.total() == 8
    assert chaos.checked > 0
    assert (chaos.lost, chaos.corrupt, chaos.orphans, chaos.unfinished) == ([], [], [], [])


def test_a_planted_fault_has_to_be_understood(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMETER_FAKE_FAULTS", json.dumps([{"what": "oom", "picture": IMAGE}]))
    with pytest.raises(SessionStopped, match="unexpected keyword argument 'picture'"):
        bench.run()
