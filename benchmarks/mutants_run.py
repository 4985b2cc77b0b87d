"""Run tests on changed modules, each in a process forked from one in which every library is loaded already.

    python -m benchmarks.mutants_run JOBS.json       # started by benchmarks.mutants, in a copy of the repository

Starting pytest and importing torch takes longer than the tests that notice a change. So one process imports the
libraries, and next to nothing of vlmeter; a process forked from it imports what the changed module needs; and one that
is forked from that runs the tests, with the module's changed source in place of the file's. No file is changed.

Two jobs there are. *Trace* runs a file of tests once as it is, and tells for every test which lines of vlmeter it ran
and how long it took. *Try* runs, for each change of a module, the tests that are named for it. Answers go to the
standard output, one line of JSON each.
"""

from __future__ import annotations

import gc
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

import pytest

from vlmeter.common.processes import die_with_parent

#: Libraries that tests use, loaded once.
LIBRARIES = (
    "numpy",
    "scipy.stats",
    "scipy.optimize",
    "pandas",
    "pyarrow.parquet",
    "pyarrow.csv",
    "pydantic",
    "yaml",
    "sympy",
    "torch",
    "torch.utils.flop_counter",
    "transformers",
    "rich.console",
    "rich.progress",
    "typer",
    "PIL.Image",
    "hypothesis",
    "xdist.plugin",
    "pytest",
    "pytest_timeout",
)

#: What makes pytest start in a third of the time: no rewriting of assertions, and no plugins but those that are used.
QUICK = ("--assert=plain", "-p", "xdist.plugin", "-p", "pytest_timeout")

#: Packages whose lines are told.
TOLD = ("numbers", "measure", "table", "compare", "claims")

#: Seconds of the clock after which a process of tests is ended: for one that waits for ever.
TIMEOUT_S = 300


class Changed(importlib.machinery.SourceFileLoader):
    """Loads a module from a source that is not what its file holds."""

    def __init__(self, name: str, path: str, source: str) -> None:
        super().__init__(name, path)
        self.source = source

    def get_code(self, fullname: str) -> CodeType:
        """Compile the changed source, whatever lies on disk."""
        return compile(self.source, self.path, "exec", dont_inherit=True)


class Finder(importlib.abc.MetaPathFinder):
    """Finds one module in a changed source, and leaves all others to whoever finds them."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self.name, self.loader = name, Changed(name, str(path), source)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Say where the changed module is."""
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.loader.path, loader=self.loader)


class Tracer:
    """A plugin of pytest that tells which test ran which lines; what a file's tests share is told of the whole file."""

    def __init__(self, measured: Any) -> None:
        self.measured, self.shared_s, self.began = measured, 0.0, 0.0
        self.took_s: dict[str, float] = {}
        self.passed: dict[str, bool] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins: lines are its own from here."""
        self.measured.switch_context(nodeid)
        self.began = _cpu_s()

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any) -> Generator[None, Any, Any]:
        """What a fixture of a module or a session runs, and the time that it takes, is every test's of the file."""
        if fixturedef.scope == "function":
            return (yield)
        self.measured.switch_context("shared")
        began = _cpu_s()
        try:
            return (yield)
        finally:
            self.shared_s += _cpu_s() - began
            self.began += _cpu_s() - began

    def pytest_runtest_call(self, item: Any) -> None:
        """Fixtures are there: lines are the test's own again."""
        self.measured.switch_context(item.nodeid)

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Remember whether it passed."""
        if report.when == "call" or not report.passed:
            self.passed[report.nodeid] = report.outcome == "passed"

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended."""
        self.took_s[nodeid] = _cpu_s() - self.began
        self.measured.switch_context("shared")


def _cpu_s() -> float:
    return sum(os.times()[:4])


def forked(work: Callable[[Any], None], *, cpu_s: int | None = None) -> tuple[int | None, list[Any]]:
    """Do work in a forked process; its exit code, None if it had to be ended, and what it told."""
    with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile("w+") as said:
        here = os.getpid()
        process = os.fork()
        if process == 0:
            code = 70
            try:
                os.setsid()
                die_with_parent(here)
                if cpu_s is not None:
                    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
                for stream in (1, 2):
                    os.dup2(said.fileno(), stream)
                work(told)
                told.flush()
                code = 0
            except SystemExit as stop:
                code = int(stop.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        deadline = time.monotonic() + (TIMEOUT_S if cpu_s is not None else 3600)
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.killpg(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return None, []
            time.sleep(0.01)
        told.seek(0)
        answers = [json.loads(line) for line in told]
        code = os.waitstatus_to_exitcode(status)
        if code == 70:  # not the tests, but this program
            said.seek(0)
            raise RuntimeError(said.read()[-4000:])
        return (None if code < 0 else code), answers


def run_tests(names: Sequence[str], *, plugins: Sequence[object] = ()) -> int:
    """Run tests in this process; pytest's exit code."""
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    with tempfile.TemporaryDirectory() as cache:
        options = ["-x", "-q", "-n0", "-m", "not slow", "-o", f"cache_dir={cache}", "--no-header", "--tb=no", *QUICK]
        return int(pytest.main([*options, *names], plugins=list(plugins)))


def trace(file: str, told: Any) -> None:
    """Tell of every test of a file what it ran and how long it took."""
    import coverage

    measured = coverage.Coverage(
        data_file=None, include=[f"vlmeter/{package}/*" for package in TOLD], config_file=False, messages=False
    )
    tracer = Tracer(measured)
    measured.start()
    measured.switch_context("shared")
    code = run_tests([file], plugins=[tracer])
    measured.stop()
    if code not in (0, 5):
        raise RuntimeError(f"the tests of {file} fail without any change: {tracer.passed}")
    data, here = measured.get_data(), Path.cwd()
    lines: dict[str, dict[str, list[int]]] = {}
    for path in data.measured_files():
        module = Path(path).relative_to(here).as_posix()
        for line, contexts in data.contexts_by_lineno(path).items():
            for context in contexts:
                lines.setdefault(context, {}).setdefault(module, []).append(line)
    tests = {name: {"took_s": took, "lines": lines.get(name, {})} for name, took in tracer.took_s.items()}
    shared = {"took_s": tracer.shared_s, "lines": lines.get("shared", {})}
    json.dump({"file": file, "tests": tests, "shared": shared}, told)


def try_changes(module: str, changes: Sequence[dict[str, Any]], told: Any, tell: Callable[[Any], None]) -> None:
    """Run the tests of each change of a module: (None) first, then each."""
    name = module.removesuffix(".py").replace("/", ".")
    for needed in _needed(name):
        importlib.import_module(needed)
    gc.freeze()
    for change in changes:
        code: int | None = 0
        for tests in change["stages"]:

            def work(_: Any, change: dict[str, Any] = change, tests: Sequence[str] = tests) -> None:
                if change["source"] is not None:
                    sys.meta_path.insert(0, Finder(name, Path.cwd() / module, change["source"]))
                sys.exit(run_tests(tests))

            while os.getloadavg()[0] > change["load"]:
                time.sleep(5)
            code, _ = forked(work, cpu_s=change["cpu_s"])
            if code != 0:
                break
        tell({"module": module, "change": change["key"], "code": code})


def _needed(name: str) -> list[str]:
    """Modules of vlmeter that a module imports, by others too: they do not import it, so they may be loaded before."""

    def work(told: Any) -> None:
        importlib.import_module(name)
        json.dump([other for other in sys.modules if other.startswith("vlmeter") and other != name], told)

    return forked(work)[1][0]


def jobs_of(path: Path) -> Iterator[dict[str, Any]]:
    """Read what there is to do."""
    yield from json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    """Do the jobs of a file, in order."""
    die_with_parent(os.getppid())
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    sys.path.insert(0, str(Path.cwd()))
    for library in LIBRARIES:
        importlib.import_module(library)
    gc.freeze()  # what is loaded stays: no collection in a forked process looks through it

    def tell(answer: Any) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    for job in jobs_of(Path(sys.argv[1])):
        if "trace" in job:
            tell(forked(lambda told, job=job: trace(job["trace"], told))[1][0])
        else:
            forked(lambda told, job=job: try_changes(job["module"], job["changes"], told, tell))


if __name__ == "__main__":
    main()
