"""A run is started from any folder, passes on what ends it, and ends with the summary."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

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
