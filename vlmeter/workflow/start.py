"""Start a run of the workflow from any folder, wherever the workflow lies.

In a clone the workflow lies beside the package; the wheel has it inside.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from vlmeter.common.errors import UserError

PACKAGE = Path(__file__).parents[1]

#: Options of Snakemake with which nothing is measured, so that there is nothing to show in the end.
DRY = frozenset({"-n", "--dry-run", "--dryrun", "--lint", "--unlock", "--list", "-l", "--summary", "-S", "--dag"})

#: Options that say how much is printed; without one a job's sentence stands for it, and its files do not.
LOUDNESS = ("-q", "--quiet", "--verbose", "--print-compilation")


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
    """Run a command to its end and return its exit code; SIGTERM and SIGHUP are passed on to it.

    An interrupt at a terminal reaches it by itself.

    output_aside: what it prints goes to stderr, since stdout is for something else.

    It is waited for in any case: a run that is interrupted keeps what it has measured, and says so.
    """
    aside = sys.stderr if output_aside else None
    process = subprocess.Popen(command, env={**os.environ, **(environment or {})}, stdout=aside)
    with _passed_on(process):
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:  # a terminal sends it to both of them
                continue
    return 128 - code if code < 0 else code


@contextmanager
def _passed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    def pass_on(number: int, frame: FrameType | None) -> None:
        process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
