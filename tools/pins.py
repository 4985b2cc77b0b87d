"""From the ranges of pyproject.toml to exact pins: the lock files, and the conda environments made from them.

A lock file is two things at once, what pip installs and a record of the dependency graph: under each pin
stands, as `# via`, what asked for it. The second is why an environment of a few packages can be cut out of
the lock with no network and nothing installed, and why a test can tell that files in envs/ are stale.

    python tools/pins.py lock             resolve again, keeping the pins that still fit, and rewrite envs/
    python tools/pins.py lock --upgrade   the newest versions that fit
    python tools/pins.py envs             rewrite envs/ from the lock
    python tools/pins.py envs --check     exit 1 and name the files that differ from the lock
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = "requirements.lock"
DEV_LOCK = "requirements-dev.lock"

# The interpreters and machines that the locks are written for. A pin that none of them takes is left out, a
# condition that all of them meet is not written down.
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = (("linux", "Linux", "x86_64"), ("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"))

# Conda takes Python from conda-forge and everything else from the lock.
CONDA_PYTHON = "3.12"

_LOCK_HEADER = """\
# Exact versions of everything that {what}, on CPython {oldest} to {newest}, Linux and macOS.
# Made from pyproject.toml by `make lock`; do not edit. Change a range there, then run it again.
#
# The CUDA libraries (nvidia-*, cuda-*, triton) are left out on purpose: torch pins its own exactly and brings
# them along where it is the CUDA build, and a machine that is given a CPU build of torch needs none of them.
"""

_ENVIRONMENT_HEADER = """\
# For {purpose}.
# Made from {lock} and pyproject.toml by `make lock`; do not edit.
"""


@dataclass(frozen=True)
class Pin:
    """One line of a lock: a package, its only version, where it applies, and which packages asked for it."""

    name: str
    version: str
    marker: str
    via: tuple[str, ...]

    @property
    def requirement(self) -> str:
        """The pin as pip reads it."""
        return f"{self.name}=={self.version}" + (f" ; {self.marker}" if self.marker else "")


def read_project(root: Path = ROOT) -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def parse_lock(text: str) -> dict[str, Pin]:
    """Read a lock, as uv writes it or as this module does, as {canonical name: Pin}."""
    pins: dict[str, Pin] = {}
    current = ""
    for line in text.splitlines():
        if comment := re.match(r" +#(?: +via)?(.*)", line):
            askers = (re.match(r"\s*([A-Za-z0-9][\w.-]*)", part) for part in comment[1].split(","))
            named = tuple(canonicalize_name(asker[1]) for asker in askers if asker)
            pins[current] = replace(pins[current], via=pins[current].via + named)
        elif line and not line.startswith("#"):
            requirement = Requirement(line)
            (specifier,) = requirement.specifier
            current = canonicalize_name(requirement.name)
            pins[current] = Pin(current, specifier.version, str(requirement.marker or ""), ())
    return pins


def read_lock(path: Path) -> dict[str, Pin]:
    """Read a lock file."""
    return parse_lock(path.read_text(encoding="utf-8"))


def is_cuda_library(name: str) -> bool:
    """Tell whether a package is, by its name, one of those that a CUDA build of torch brings along."""
    return re.match(r"(nvidia|cuda|triton)(-|$)", name) is not None


def without_cuda(pins: Mapping[str, Pin], *, project: str) -> dict[str, Pin]:
    """Leave out torch's CUDA libraries and what only they asked for; the project's own dependencies stay."""
    kept = {name: pin for name, pin in pins.items() if project in pin.via or not is_cuda_library(name)}
    while True:
        trimmed = {
            name: replace(pin, via=tuple(asker for asker in pin.via if asker == project or asker in kept))
            for name, pin in kept.items()
        }
        remaining = {name: pin for name, pin in trimmed.items() if pin.via}
        if len(remaining) == len(kept):
            return remaining
        kept = remaining


def for_supported_machines(pins: Mapping[str, Pin]) -> dict[str, Pin]:
    """Leave out pins that no supported machine takes, and drop conditions that every one of them meets."""
    kept = {}
    for name, pin in pins.items():
        holds = {_holds(pin.marker, python, machine) for python in PYTHONS for machine in MACHINES}
        if True in holds:
            kept[name] = replace(pin, marker="") if holds == {True} else pin
    return kept


def _holds(marker: str, python: str, machine: tuple[str, str, str]) -> bool:
    sys_platform, platform_system, platform_machine = machine
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": sys_platform,
        "platform_system": platform_system,
        "platform_machine": platform_machine,
        "os_name": "posix",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
    }
    return not marker or Marker(marker).evaluate(environment)


def lock_text(pins: Mapping[str, Pin], *, what: str) -> str:
    """Render a lock: one pin a line, sorted, each followed by what asked for it."""
    lines = [_LOCK_HEADER.format(what=what, oldest=PYTHONS[0], newest=PYTHONS[-1])]
    for _, pin in sorted(pins.items()):
        lines.append(f"{pin.requirement}\n    # via {', '.join(sorted(pin.via))}\n")
    return "".join(lines)


def closure(pins: Mapping[str, Pin], names: Iterable[str]) -> dict[str, Pin]:
    """Pick the named packages and all that they need in turn; raises KeyError for one that is not locked."""
    needs: dict[str, set[str]] = {name: set() for name in pins}
    for pin in pins.values():
        for asker in pin.via:
            needs.setdefault(asker, set()).add(pin.name)
    wanted: set[str] = set()
    open_names: set[str] = {canonicalize_name(name) for name in names}
    while open_names:
        name = open_names.pop()
        wanted.add(pins[name].name)
        open_names |= needs[name] - wanted
    return {name: pins[name] for name in sorted(wanted)}


def environment_texts(project: Mapping[str, Any], pins: Mapping[str, Pin]) -> dict[str, str]:
    """Render every conda environment that pyproject.toml describes, as {file name: content}."""
    texts = {}
    for name, wanted in project["tool"]["vlmeter"]["environments"].items():
        lines = [
            _ENVIRONMENT_HEADER.format(purpose=wanted["purpose"], lock=LOCK).rstrip(),
            "channels:",
            "  - conda-forge",
            "  - nodefaults",
            "dependencies:",
            f"  - python ={CONDA_PYTHON}",
            "  - pip",
            "  - pip:",
            *(f'      - "{pin.requirement}"' for pin in closure(pins, wanted["packages"]).values()),
        ]
        texts[f"{name}.yaml"] = "\n".join(lines) + "\n"
    return texts


def stale_environments(root: Path = ROOT) -> list[str]:
    """Name the files in envs/ that differ from what the lock gives: changed, missing, or not described."""
    wanted = environment_texts(read_project(root), read_lock(root / LOCK))
    there = {path.name: path.read_text(encoding="utf-8") for path in (root / "envs").glob("*.yaml")}
    return sorted(name for name in wanted.keys() | there.keys() if wanted.get(name) != there.get(name))


def write_environments(root: Path = ROOT) -> None:
    """Make envs/ what the lock gives."""
    wanted = environment_texts(read_project(root), read_lock(root / LOCK))
    (root / "envs").mkdir(exist_ok=True)
    for path in (root / "envs").glob("*.yaml"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (root / "envs" / name).write_text(text, encoding="utf-8")


def write_locks(root: Path = ROOT, *, upgrade: bool) -> None:
    """Resolve both locks with uv, the second within the first, so that what is tested is what is run."""
    extras = read_project(root)["project"]["optional-dependencies"]
    _write_lock(root, LOCK, what="vlmeter needs", upgrade=upgrade)
    _write_lock(
        root,
        DEV_LOCK,
        what="vlmeter and its tests need",
        upgrade=upgrade,
        options=("--constraints", LOCK, *(f"--extra={name}" for name in extras)),
    )


def _write_lock(root: Path, name: str, *, what: str, upgrade: bool, options: tuple[str, ...] = ()) -> None:
    project = read_project(root)["project"]
    lock = root / name
    with tempfile.TemporaryDirectory() as folder:
        resolved = Path(folder) / name
        if lock.exists() and not upgrade:  # uv keeps the pins that it finds in its output file
            resolved.write_text(lock.read_text(encoding="utf-8"), encoding="utf-8")
        command = [sys.executable, "-m", "uv", "pip", "compile", "pyproject.toml", "--quiet", "--no-header"]
        command += ["--universal", f"--python-version={PYTHONS[0]}", f"--output-file={resolved}", *options]
        subprocess.run(command, cwd=root, check=True)
        pins = without_cuda(for_supported_machines(read_lock(resolved)), project=project["name"])
    lock.write_text(lock_text(pins, what=what), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Run one of the commands in the module's docstring; returns the exit code."""
    parser = argparse.ArgumentParser(prog="pins.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    lock = commands.add_parser("lock", help="resolve the locks, then rewrite envs/")
    lock.add_argument("--upgrade", action="store_true", help="take the newest versions that fit")
    envs = commands.add_parser("envs", help="rewrite envs/ from the lock")
    envs.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file differs")
    options = parser.parse_args(arguments)

    if options.command == "envs" and options.check:
        stale = stale_environments()
        if stale:
            print(f"envs/ differs from {LOCK}: {', '.join(stale)}; run `make lock`", file=sys.stderr)
        return 1 if stale else 0
    if options.command == "lock":
        write_locks(upgrade=options.upgrade)
    write_environments()
    return 0


if __name__ == "__main__":
    sys.exit(main())
