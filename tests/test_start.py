"""A run is started from any folder, passes on what ends it, and ends with the summary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.sessions import heed_interrupts, wait_until, wait_until_gone
from tests.support.tables import table_of
from tests.support.workflow import fake_study
from vlmeter.cli.main import main
from vlmeter.common.errors import UserError
from vlmeter.table.files import write_table
from vlmeter.workflow import start

ROOT = Path(__file__).resolve().parent.parent


def test_a_clone_has_its_workflow_beside_the_package_and_a_wheel_inside_it(tmp_path: Path) -> None:
    assert start.workflow_folder() == ROOT
    inside = tmp_path / "vlmeter" / "workflow_files"
    (inside / "rules").mkdir(parents=True)
    with pytest.raises(UserError, match="has no workflow with it"):
        start.workflow_folder(tmp_path / "vlmeter")
    (inside / "Snakefile").touch()
    assert start.workflow_folder(tmp_path / "vlmeter") == inside


def test_options_of_ones_own_come_last_and_so_win() -> None:
    base = Path("/base")
    command = start.command_of_run([Path("a.yaml"), Path("b.yaml")], ["seed=1"], ["--cores", "2"], base=base)
    assert command[:3] == [sys.executable, "-m", "snakemake"]
    assert command[-2:] == ["--cores", "2"]
    said = " ".join(command)
    assert "--snakefile /base/Snakefile --profile /base/profiles/default" in said
    assert "--configfile a.yaml b.yaml --config seed=1 --quiet rules" in said
    for option in ("--quiet=all", "-n"):
        assert "--quiet rules" not in " ".join(start.command_of_run([], options=[option], base=base))


def test_the_exit_code_of_a_run_is_that_of_the_command(tmp_path: Path) -> None:
    assert start.run([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    assert start.run([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]) == 137


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_run_which_is_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    child = (
        "import signal, sys, time\n"
        "def end(number, frame):\n"
        "    open('ended', 'w').write(str(number)); sys.exit(7)\n"
        f"signal.signal({int(number)}, end)\n"
        "open('ready', 'w').close()\n"
        "time.sleep(60)\n"
    )
    parent = f"import sys\nfrom vlmeter.workflow import start\nsys.exit(start.run([sys.executable, '-c', {child!r}]))\n"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=tmp_path, env=environment)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    assert process.wait(timeout=60) == 7
    assert (tmp_path / "ended").read_text() == str(int(number))


#: A run and one of its jobs, each of which notes every signal that it gets; both end with the first.
RUN_WITH_A_JOB = """
import os, signal, subprocess, sys, time
name, *others = sys.argv[1:]
def noted(number, frame):
    with open(name, 'a') as file:
        file.write(signal.Signals(number).name + ' ')
    if number == signal.SIGINT:
        time.sleep(0.5)
        sys.exit(1)
for number in (signal.SIGINT, signal.SIGCONT):
    signal.signal(number, noted)
job = subprocess.Popen([sys.executable, __file__, *others]) if others else None
open(name + '-ready', 'w').close()
if job:
    job.wait()
parent = os.getppid()
while os.getppid() == parent:
    time.sleep(0.05)
"""


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a run with a job, in a session of its own, and wait until both can hear."""
    started: list[subprocess.Popen[bytes]] = []
    (tmp_path / "run.py").write_text(RUN_WITH_A_JOB)

    def begin(heed: Callable[[], None] = heed_interrupts) -> subprocess.Popen[bytes]:
        command = [sys.executable, "run.py", "run", "job"]
        parent = f"import sys\nfrom vlmeter.workflow import start\nsys.exit(start.run({command!r}))\n"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen(
            [sys.executable, "-c", parent], cwd=tmp_path, env=environment, start_new_session=True, preexec_fn=heed
        )
        started.append(process)
        wait_until(lambda: all((tmp_path / f"{name}-ready").exists() for name in ("run", "job")))
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize("to", ["the command alone", "everybody at the terminal"])
def test_an_interrupt_reaches_a_run_and_its_jobs_once_whoever_got_it(running: Any, tmp_path: Path, to: str) -> None:
    process = running()
    if to == "the command alone":
        process.send_signal(signal.SIGINT)
    else:
        os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=60) == 130
    assert [(tmp_path / name).read_text() for name in ("run", "job")] == ["SIGINT ", "SIGINT "]


def test_ctrl_z_stops_a_run_and_its_jobs_and_fg_goes_on(running: Any, tmp_path: Path) -> None:
    process = running()
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTSTP)
    wait_until(lambda: all(one.status() == psutil.STATUS_STOPPED for one in family))
    assert len(family) == 3
    process.send_signal(signal.SIGCONT)
    wait_until(lambda: all((tmp_path / name).exists() for name in ("run", "job")))
    assert {(tmp_path / name).read_text() for name in ("run", "job")} == {"SIGCONT "}


def test_what_a_shell_lets_its_background_ignore_is_ignored(running: Any, tmp_path: Path) -> None:
    """As `nohup` and a script's `&` do; a run goes on when its terminal is closed."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = running(ignore)
    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    process.send_signal(signal.SIGCONT)  # heard behind them
    wait_until(lambda: (tmp_path / "run").exists())
    assert process.poll() is None
    assert (tmp_path / "run").read_text() == "SIGCONT "


def test_a_run_does_not_outlive_the_command_that_started_it(running: Any) -> None:
    process = running()
    run, *_ = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    wait_until_gone([run])


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Run `vlmeter run` on a study whose results are there; the workflow itself is not started. Returns its calls."""
    monkeypatch.chdir(tmp_path)
    table = table_of(tmp_path / "records")
    Path("results/fake").mkdir(parents=True)
    write_table(table, Path("results/fake/table.parquet"), Path("results/fake/table.csv"))
    Path("study.yaml").write_text(yaml.safe_dump(fake_study()))
    calls: list[list[str]] = []
    codes = [0]

    def run(command: list[str], **options: object) -> int:
        calls.append(command)
        return codes[0]

    monkeypatch.setattr(start, "run", run)

    def call(*arguments: str, code: int = 0) -> int:
        codes[0] = code
        monkeypatch.setattr(sys, "argv", ["vlmeter", "run", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    call.calls = calls  # type: ignore[attr-defined]
    return call


def test_a_run_ends_with_the_summary(called, capsys: pytest.CaptureFixture[str]) -> None:
    assert called("study.yaml", "--", "--cores", "2") == 0
    assert called.calls[0][-2:] == ["--cores", "2"]
    assert "time per output token" in capsys.readouterr().out


def test_a_dry_run_and_a_failed_one_show_nothing(called, capsys: pytest.CaptureFixture[str]) -> None:
    assert called("study.yaml", "--", "-n") == 0
    assert called("study.yaml", code=1) == 1
    assert capsys.readouterr().out == ""
