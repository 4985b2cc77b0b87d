"""Tests of one group run on one worker, so that what a module makes once is made once."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import conftest

GROUPED = """
import pytest

pytestmark = pytest.mark.xdist_group("together")

@pytest.mark.parametrize("n", range(6))
def test_one(n):
    pass
"""


def test_every_test_of_a_group_runs_on_the_same_worker(tmp_path: Path) -> None:
    shutil.copy(conftest.__file__, tmp_path / "conftest.py")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n    needs: needs\n")
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / name).write_text(GROUPED)
    command = [sys.executable, "-m", "pytest", "-v", "-n", "2", "--dist", "loadgroup", "-p", "no:cacheprovider"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120).stdout
    workers = re.findall(r"\[(gw\d)\].*PASSED", said)
    assert len(workers) == 12, said
    assert len(set(workers)) == 1


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.glob("test_*.py")), ids=lambda path: path.stem)
def test_a_group_is_that_of_a_whole_file(path: Path) -> None:
    marked = [line for line in path.read_text(encoding="utf-8").splitlines() if "mark.xdist_group(" in line]
    own = [line for line in marked if line.startswith("pytestmark = ")]
    assert conftest.group_of(path.name) is None or len(own) == 1
