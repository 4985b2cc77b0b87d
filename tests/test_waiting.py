"""The wait for a report is from the newest record to the report."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import waiting


def test_the_wait_is_from_the_newest_record_to_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], *, cwd: Path, env: dict[str, str], **options: Any) -> Any:
        assert "PYTHONPATH" not in env, "the copy runs its own library"
        results = cwd / "results" / "three"
        for name, at_s in (("cells/nano/a.json", 100), ("cells/nano/b.json", 130), ("report.html", 142)):
            path = results / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            os.utime(path, (at_s, at_s))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    monkeypatch.setattr(waiting.subprocess, "run", run)
    assert waiting.wait_s(waiting.ROOT, waiting.study_named("three")) == pytest.approx(12.0)


def test_a_run_that_fails_is_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    failed = subprocess.CompletedProcess([], 1, "", "no room on the disk")
    monkeypatch.setattr(waiting.subprocess, "run", lambda *arguments, **options: failed)
    with pytest.raises(RuntimeError, match="no room on the disk"):
        waiting.wait_s(waiting.ROOT, waiting.study_named("three"))


def test_every_study_has_a_limit() -> None:
    for name in waiting.LIMITS_S:
        assert waiting.study_named(name)["study"] == name
