"""What a person sees: where a session is, what went wrong and where to look."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.studies import study_of
from vlmeter.common.errors import UserError
from vlmeter.measure.progress import Progress, Summary
from vlmeter.measure.session import SessionFailed
from vlmeter.measure.supervision import SessionStopped
from vlmeter.numbers.medians import Estimate
from vlmeter.study.plan import build_plan
from vlmeter.workflow.console import job, progress_text, session_progress

CELL = build_plan(study_of())[2]
ESTIMATE = Estimate(value=100.0, low=99.0, high=101.0)


def step(done: int = 3, **changes: object) -> Progress:
    whole = {"total": 8, "cell": CELL, "estimate": ESTIMATE, "note": "precise", "elapsed_s": 30.0, "left_s": 65.0}
    return Progress(done=done, **{**whole, **changes})  # type: ignore[arg-type]


def test_progress_says_cell_experiment_estimate_interval_and_time_left() -> None:
    said = progress_text(step())
    assert said == "cell 3 of 8 | vision_tokens | vision-tiling-2x2 | 100 ms +- 1.0 % | precise | 1 min 05 s left"


def test_progress_leaves_out_what_is_not_known() -> None:
    said = progress_text(step(estimate=None, note="out of memory", left_s=None))
    assert said == "cell 3 of 8 | vision_tokens | vision-tiling-2x2 | out of memory"
    few = Estimate(value=100.0, low=float("-inf"), high=float("inf"))
    assert "100 ms (no interval)" in progress_text(step(estimate=few))
    assert "left" not in progress_text(step(done=8))


def test_every_step_is_in_the_log_and_the_last_one_on_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with job(tmp_path / "log"), session_progress("nano") as progress:
        for done in range(1, 9):
            progress(step(done))
    assert [f"cell {done} of 8" in (tmp_path / "log").read_text() for done in range(1, 9)] == [True] * 8
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2, "without a terminal a line now and then"
    assert said[-1].startswith("nano: cell 8 of 8")


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (UserError("key x is not known"), 2, "vlmeter: key x is not known"),
        (SessionFailed("1 of 8 cells failed", Summary()), 1, "vlmeter: 1 of 8 cells failed; the log is {log}"),
        (SessionStopped("the device was lost"), 1, "vlmeter: the device was lost; the log is {log}"),
    ],
)
def test_what_a_person_can_act_on_is_one_sentence(
    error: Exception, code: int, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "logs" / "job.log"
    with pytest.raises(SystemExit) as left, job(log):
        raise error
    assert left.value.code == code
    assert capsys.readouterr().err.strip() == sentence.format(log=log)
    assert str(error) in log.read_text()


def test_an_interrupt_leaves_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as left, job(tmp_path / "log"):
        raise KeyboardInterrupt
    assert left.value.code == 130
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), job(tmp_path / "log"):
        _ = 1 / 0
    assert "ZeroDivisionError" in (tmp_path / "log").read_text()


def test_a_log_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").write_text("a file where the folder should be")
    with pytest.raises(SystemExit) as left, job(tmp_path / "logs" / "job.log"):
        pass
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith(f"vlmeter: the log {tmp_path / 'logs' / 'job.log'} cannot be written: ")


def test_a_new_job_begins_a_new_log(tmp_path: Path) -> None:
    for message in ("first", "second"):
        with job(tmp_path / "log") as tell:
            tell(message)
    assert "second" in (tmp_path / "log").read_text()
    assert "first" not in (tmp_path / "log").read_text()
