"""Start a run of the workflow from any folder, wherever the workflow lies.

In a clone the workflow lies beside the package; the wheel has it inside.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

from vlmeter.common.errors import UserError
from vlmeter.common.processes import die_with_parent

PACKAGE = Path(__file__).parents[1]

#: Options of Snakemake with which nothing is measured, so that there is nothing to show in the end.
DRY = frozenset({"-n", "--dry-run", "--dryrun", "--lint", "--unlock", "--list", "-l", "--summary", "-S", "--dag"})

#: Options that say how much is printed; without one a job's sentence stands for it, and its files do not.
LOUDNESS = ("-q", "--quiet", "--verbose", "--print-compilation")

#: Signals that a terminal sends to a whole process group, jobs included; the others are for a run to pass on itself.
TO_THE_GROUP = (signal.SIGINT, signal.SIGTSTP, signal.SIGCONT)


def workflow_folder(package: Path = PACKAGE) -> Path:
    """Folder of the workflow that belongs to this package; raises UserError if there is none."""
    for folder in (package.parent, package / "workflow_files"):
        if (folder / "Snakefile").is_file() and (folder / "rules").is_dir():
            return folder
    raise UserError(
        f"the package in {package} has no workflow with it; install a wheel of vlmeter, or run from a clone"
    )


def command_of_run(
    files: Sequence[Path], values: Sequence[str] = (), options: Sequence[str] = (), *, base: Path
) -> list[str]:
    """Say how Snakemake is called for a study.

    files, values: of the study, as for the loader. options: further ones for Snakemake, which win over the profile's.
    base: folder of the workflow.
    """
    words = [sys.executable, "-m", "snakemake", "--snakefile", str(base / "Snakefile")]
    words += ["--profile", str(base / "profiles" / "default")]
    words += ["--configfile", *map(str, files)] if files else []
    words += ["--config", *values] if values else []
    if not DRY & set(options) and not any(option.split("=")[0] in LOUDNESS for option in options):
        words += ["--quiet", "rules"]
    return [*words, *options]


def run(command: Sequence[str], *, environment: Mapping[str, str] | None = None, output_aside: bool = False) -> int:
    """Run a command to its end and return its exit code, which is 130 where it was interrupted before.

    output_aside: what it prints goes to stderr, since stdout is for something else.

    It is waited for in any case: a run that is interrupted keeps what it has measured, and says so. It has a process
    group of its own, which hears of an interrupt from here: once, with all of its jobs, whoever sent it. A terminal
    would send it to everybody, and `kill` to this process alone.
    """
    parent = os.getpid()
    with _passed_on() as passed:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(environment or {})},
            stdin=subprocess.DEVNULL,  # in the background of a terminal nobody may read from it
            stdout=sys.stderr if output_aside else None,
            process_group=0,
            preexec_fn=lambda: die_with_parent(parent),
        )
        passed.to(process)
        code = process.wait()
    if code and signal.SIGINT in passed.numbers:
        return 128 + signal.SIGINT
    return 128 - code if code < 0 else code


class _Passed:
    """Signals that came here, on their way to a process and its group."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._process: subprocess.Popen[bytes] | None = None

    def to(self, process: subprocess.Popen[bytes]) -> None:
        """Say whom they are for; what came before is passed on now."""
        self._process = process
        for number in self.numbers:
            self._send(number)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.numbers.append(number)
        if self._process is not None:
            self._send(number)
        if number == signal.SIGTSTP:  # Ctrl-Z: the group stops, and this process with it
            os.kill(os.getpid(), signal.SIGSTOP)

    def _send(self, number: int) -> None:
        assert self._process is not None
        if self._process.poll() is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            if number in TO_THE_GROUP:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)


@contextlib.contextmanager
def _passed_on() -> Iterator[_Passed]:
    """Take the signals for a process that is to be started; those that are ignored here (`nohup`, `&`) stay so."""
    passed = _Passed()
    before = {}
    for number in (*TO_THE_GROUP, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            before[number] = signal.signal(number, passed)
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
