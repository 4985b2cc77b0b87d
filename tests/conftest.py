"""What every test may rely on."""

from __future__ import annotations

import os
import shutil

import pytest


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose programs are not there; where CI is set they have to be, so there it fails."""
    for marker in item.iter_markers("needs"):
        missing = [program for program in marker.args if shutil.which(program) is None]
        if missing and os.environ.get("CI"):
            pytest.fail(f"needs {', '.join(missing)}, which CI has to install", pytrace=False)
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")
