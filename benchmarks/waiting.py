"""How long does a person wait for the report, once the last measurement has been taken?

A study runs in a folder of its own, from nothing; the wait is from the newest record to the report's file. A machine
that others use makes the same run several times as long, so the wait is also told as a ratio: over the time for which
the same machine, right before and after, imports what every job of the workflow imports. `--against` runs another
checkout of vlmeter in turns with this one.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.chaos import WORKFLOW

ROOT = Path(__file__).resolve().parents[1]

#: Three image sizes of the toy model on the processor: nothing to measure, everything to draw.
THREE_CELLS: Mapping[str, Any] = {
    "study": "three",
    "subjects": {"nano": {"family": "molmo", "preset": "nano", "dtype": "float32", "device": "cpu"}},
    "experiments": {"vision_tokens": {"tilings": ["1x1", "1x2", "2x2"]}},
    "sampling": {"min_samples": 5, "max_samples": 5, "min_warmup": 1, "max_warmup": 1},
}

#: What every job imports before it does anything; its time tells how fast the machine is right now.
YARDSTICK = "import pandas, matplotlib.figure, scipy.stats, pydantic"

#: Seconds that the report may take after the last measurement, on two quiet cores.
LIMITS_S = {"three": 15.0, "quickstart": 30.0, "families-nano": 120.0}

#: Files of the studies that are kept as such.
FILES = {"quickstart": "config.yaml", "families-nano": "studies/families-nano.yaml"}


def yardstick_s(times: int = 3) -> float:
    """Seconds that an interpreter takes to import YARDSTICK, median of some times."""
    found = []
    for _ in range(times):
        start = time.monotonic()
        subprocess.run([sys.executable, "-c", YARDSTICK], check=True)
        found.append(time.monotonic() - start)
    return median(found)


def copy_of(checkout: Path, folder: Path) -> None:
    """Copy what the workflow of a checkout needs."""
    folder.mkdir(parents=True)
    for name in WORKFLOW:
        source = checkout / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, folder / name)


def wait_s(checkout: Path, content: Mapping[str, Any], *, cores: int = 2) -> float:
    """Run a study from nothing; seconds from its newest record to its report. Raises if the run fails."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "copy"
        copy_of(checkout, folder)
        (folder / "study.yaml").write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
        command = [sys.executable, "-m", "snakemake", "--cores", str(cores), "--configfile", "study.yaml"]
        # the library is the copy's own
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr[-2000:])
        results = folder / "results" / content["study"]
        last = max(path.stat().st_mtime for path in (results / "cells").rglob("*.json"))
        return (results / "report.html").stat().st_mtime - last


def study_named(name: str) -> dict[str, Any]:
    """The study of three cells, the quickstart, or every family at toy size."""
    if name == THREE_CELLS["study"]:
        return dict(THREE_CELLS)
    found: dict[str, Any] = yaml.safe_load((ROOT / FILES[name]).read_text(encoding="utf-8"))
    return found


def measure(name: str, checkouts: Mapping[str, Path], *, times: int) -> dict[str, dict[str, float]]:
    """Run a study of every checkout in turns; medians of the wait, of the yardstick, and of their ratio."""
    seen: dict[str, list[tuple[float, float]]] = {label: [] for label in checkouts}
    for _ in range(times):
        for label, checkout in checkouts.items():
            before = yardstick_s()
            wait = wait_s(checkout, study_named(name))
            seen[label].append((wait, (before + yardstick_s()) / 2))
    return {
        label: {
            "wait_s": median(wait for wait, _ in runs),
            "yardstick_s": median(yard for _, yard in runs),
            "wait_over_yardstick": median(wait / yard for wait, yard in runs),
        }
        for label, runs in seen.items()
    }


def main(arguments: list[str] | None = None) -> None:
    """Print the waits, and say whether they are within the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", choices=sorted(LIMITS_S), default="three")
    parser.add_argument("--times", type=int, default=1, help="runs of each checkout")
    parser.add_argument("--against", type=Path, help="another checkout of vlmeter, run in turns with this one")
    given = parser.parse_args(arguments)
    checkouts = {"this": ROOT, **({"other": given.against} if given.against else {})}
    found = measure(given.study, checkouts, times=given.times)
    print(json.dumps(found, indent=1))
    own, limit_s = found["this"]["wait_s"], LIMITS_S[given.study]
    print(f"{given.study}: {own:.1f} s after the last measurement; limit on two quiet cores {limit_s:.0f} s")
    if "other" in found:
        ratio = found["this"]["wait_over_yardstick"] / found["other"]["wait_over_yardstick"]
        print(f"{ratio:.2f} times the other's wait")


if __name__ == "__main__":
    main()
