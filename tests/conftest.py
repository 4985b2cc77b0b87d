"""What every test may rely on."""

from __future__ import annotations

import ast
import os
import shutil
from functools import cache
from pathlib import Path

import hypothesis
import pytest
from xdist.scheduler import LoadGroupScheduling

# a busy machine takes long for an example now and then, which says nothing of it; the same examples every time
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True)
hypothesis.settings.load_profile("steady")

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


class GroupsOfFiles(LoadGroupScheduling):
    """Gives the files of one `xdist_group` to one worker, test after test.

    xdist tells a group by what it adds to a test's name, and pytest 9.2 keeps no such name: each worker would run its
    part of a group, and make what its module makes once, servers and studies too.
    """

    def _split_scope(self, nodeid: str) -> str:
        return group_of(Path(nodeid.partition("::")[0]).name) or str(nodeid)


@cache
def group_of(file: str) -> str | None:
    """The group that a file of tests marks itself with as a whole."""
    path = Path(__file__).parent / file
    if not path.is_file():
        return None
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "xdist_group":
            return str(ast.literal_eval(node.args[0]))
    return None


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> GroupsOfFiles | None:
    """Use it for `--dist loadgroup`."""
    return GroupsOfFiles(config, log) if config.getvalue("dist") == "loadgroup" else None
