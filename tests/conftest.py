"""What every test may rely on."""

from __future__ import annotations

import os
import shutil

import hypothesis
import pytest

# a busy machine takes long for an example now and then, which says nothing of it
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

#: Seconds that a slow test may take: some run a whole study, on machines that others use.
SLOW_TIMEOUT_S = 1800


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give slow tests more time than the others, unless they say themselves how much they need."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT_S))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose programs are not there; where CI is set they have to be, so there it fails."""
    for marker in item.iter_markers("needs"):
        missing = [program for program in marker.args if shutil.which(program) is None]
        if missing and os.environ.get("CI"):
            pytest.fail(f"needs {', '.join(missing)}, which CI has to install", pytrace=False)
        if missing:
            pytest.skip(f"needs {', '.join(missing)}")
