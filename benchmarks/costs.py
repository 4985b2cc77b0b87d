"""What vlmeter costs beside the measuring: time to look, to check, to gather, and the gain of one load for all cells.

Each answer has a limit, from the issue that asked for it; 1 is the exit code if one is passed.

    python -m benchmarks.costs            # all of them; some minutes
    python -m benchmarks.costs dry-run    # one of: cli, dry-run, up-to-date, table, sessions
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks.chaos import ROOT, make_workflow
from vlmeter.records.record import read_record, write_record
from vlmeter.records.store import forget
from vlmeter.study.layout import Layout
from vlmeter.study.loader import load_study, parse_study
from vlmeter.study.plan import build_plan

#: Cells that are run in a process each, of which the rest is extrapolated.
SINGLE_CELLS = 6


@dataclass(frozen=True)
class Answer:
    """One measured cost: what, how much, and what it may be (at most, unless `at_least`)."""

    what: str
    value: float
    unit: str
    limit: float | None = None
    at_least: bool = False
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the limit is kept."""
        if self.limit is None:
            return True
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def line(self) -> str:
        """Say it in one line."""
        wanted = "" if self.limit is None else f"  ({'>=' if self.at_least else '<='} {self.limit:g} {self.unit})"
        verdict = "" if self.holds else "  NOT KEPT"
        return f"{self.what}: {self.value:.3g} {self.unit}{wanted}{verdict}{'  ' + self.note if self.note else ''}"


def fake_study(name: str, *, lengths: Sequence[int], images: int = 10) -> dict[str, Any]:
    """A study on the fake backend with `images` times so many cells."""
    return {
        "study": name,
        "subjects": {"fake": {"family": "molmo", "preset": "nano", "dtype": "float32", "backend": "fake"}},
        "dataset": {"source": "embedded", "images": images},
        "experiments": {
            "output_tokens": {"output_tokens": list(lengths), "uninstrumented_max_output_tokens": 0},
        },
        "sampling": {"min_samples": 1, "max_samples": 1, "min_warmup": 1, "max_warmup": 1},
        "sentinel_every_cells": 100,
    }


@contextmanager
def workflow_of(study: Mapping[str, Any]) -> Iterator[Path]:
    """A folder with a copy of the workflow and the study."""
    with tempfile.TemporaryDirectory(prefix="vlmeter-costs-") as name:
        folder = Path(name)
        make_workflow(folder)
        (folder / "study.yaml").write_text(yaml.safe_dump(dict(study)))
        yield folder


def run(command: Sequence[str], folder: Path, **environment: str) -> tuple[float, float]:
    """Run a command; returns seconds, and MiB of memory at its largest, summed over its processes."""
    own = {**os.environ, "VLMETER_LOCK_DIR": str(folder / "locks"), **environment}
    log = folder / "costs.log"
    began_s, peak = time.monotonic(), 0
    with log.open("wb") as file:
        process = subprocess.Popen(command, cwd=folder, env=own, stdout=file, stderr=file)
    whole = psutil.Process(process.pid)
    while process.poll() is None:
        with suppress(psutil.Error):
            peak = max(peak, sum(each.memory_info().rss for each in [whole, *whole.children(recursive=True)]))
        time.sleep(0.02)
    elapsed_s = time.monotonic() - began_s
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {log.read_text()[-2000:]}")
    return elapsed_s, peak / 2**20


def snakemake(*arguments: str) -> list[str]:
    """The command of a run of the workflow."""
    return [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", "study.yaml", *arguments]


def cost_of_cli() -> list[Answer]:
    """Time how long the command line takes to answer: the median of five starts."""
    found = []
    for arguments in (["--help"], ["tokens", "640x480"]):
        code = "from vlmeter.cli.main import main; main()"
        command = [sys.executable, "-c", code, *arguments]
        times_s = []
        for _ in range(6):
            began_s = time.monotonic()
            subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
            times_s.append(time.monotonic() - began_s)
        median_s = statistics.median(times_s[1:])  # the first may find cold files
        found.append(Answer(f"vlmeter {' '.join(arguments)}", median_s, "s", 0.3))
    return found


def cost_of_dry_run() -> list[Answer]:
    """Time a dry run of 10,000 cells of which none has been measured."""
    with workflow_of(fake_study("large", lengths=range(1, 1001))) as folder:
        seconds, mebibytes = run(snakemake("-n", "--quiet", "all"), folder)
    return [
        Answer("dry run of 10,000 cells", seconds, "s", 20),
        Answer("memory of that dry run", mebibytes, "MiB"),
    ]


def cost_of_up_to_date_check() -> list[Answer]:
    """Time a run of 1,000 cells that finds everything up to date."""
    with workflow_of(fake_study("checked", lengths=range(1, 101))) as folder:
        measured_s, _ = run(snakemake("--until", "tabulate"), folder)
        seconds, _ = run(snakemake("--until", "tabulate"), folder)
        status = [sys.executable, "-c", "from vlmeter.cli.main import main; main()", "status", "study.yaml"]
        status_s, _ = run(status, folder)
    return [
        Answer("up-to-date check of 1,000 cells", seconds, "s", 4, note=f"(measuring them took {measured_s:.0f} s)"),
        Answer("vlmeter status of 1,000 cells", status_s, "s"),
    ]


def cost_of_table() -> list[Answer]:
    """Time making a table of 10,000 records."""
    from vlmeter.table.build import build_table
    from vlmeter.table.files import write_table

    with workflow_of(fake_study("rows", lengths=range(1, 11))) as folder:
        run(snakemake("--until", "measure_fake"), folder)
        study = load_study(folder / "study.yaml")
        layout = Layout(study.study, folder / "results")
        records = [read_record(layout.record(cell)) for cell in build_plan(study)]
        paths = []
        for number in range(10_000):
            record = records[number % len(records)]
            cell = record.cell.model_copy(update={"cell_id": f"cell-{number}"})
            paths.append(folder / "many" / f"{number}.json")
            write_record(paths[-1], record.model_copy(update={"cell": cell}))
        began_s = time.monotonic()
        table = build_table(paths)
        write_table(table, folder / "table.parquet", folder / "table.csv")
        seconds = time.monotonic() - began_s
    return [Answer("table of 10,000 records", seconds, "s", 10, note=f"({len(table):,} rows)")]


def cost_of_sessions() -> list[Answer]:
    """Compare the quickstart's session with the same cells in a process each.

    Some cells, chosen at random, are run by themselves as the workflow would; the others are taken to cost as much.
    """
    content = yaml.safe_load((ROOT / "config.yaml").read_text())
    study = parse_study(content, source="config.yaml")
    subject = next(iter(study.subjects))
    with workflow_of(content) as folder:
        rule = f"measure_{subject}"
        run(snakemake("--until", "make_dummy_image", "fetch_dataset"), folder)
        whole_s, _ = run(snakemake("--until", rule), folder)
        layout = Layout(study.study, folder / "results")
        cells = build_plan(study)
        records = {cell.cell_id: read_record(layout.record(cell)) for cell in cells}
        sampled_s = sum(
            record.seconds.get("warmup", 0) + record.seconds.get("rounds", 0) for record in records.values()
        )
        singles_s = []
        for cell in random.Random(1).sample(list(cells), k=SINGLE_CELLS):
            forget(layout.results, study.study, [cell])
            singles_s.append(_one_cell(folder, content, cell.cell_id))
            shutil.rmtree(folder / "single", ignore_errors=True)
    mean_s = statistics.mean(singles_s)
    note = f"({whole_s:.0f} s against {len(cells)} x {mean_s:.1f} s)"
    return [
        Answer("gain of one session over a process per cell", mean_s * len(cells) / whole_s, "x", 5, True, note),
        Answer("share of the session in warm-up and samples", 100 * sampled_s / whole_s, "%"),
    ]


def _one_cell(folder: Path, content: Mapping[str, Any], cell_id: str) -> float:
    """Time one cell in a process of its own: import, load, measure; no sentinel, no workflow around it."""
    code = """
import json, sys
from pathlib import Path
from vlmeter.backends.registry import load_runner
from vlmeter.study.subject import loading
from vlmeter.study.loader import parse_study
from vlmeter.measure.devices import resolve_device
from vlmeter.study.layout import Layout
from vlmeter.measure.rounds import measure_cell
from vlmeter.measure.monitors import make_monitor
from vlmeter.inputs.looks import look_at
import random
study = parse_study(json.loads(sys.argv[1]), source="test")
(name, subject), = study.subjects.items()
cells, pictures = look_at(study, name, Layout(study.study))
cell = next(cell for cell in cells if cell.cell_id == sys.argv[2])
device = resolve_device(subject.device)
runner = load_runner(subject.backend, loading(subject, device=device.name))
opened = pictures.opened(cell, cell.request)
monitor = make_monitor(device=device.name, uuids=[device.uuid])
measure_cell(cell, opened, runner, monitor=monitor, rng=random.Random(1))
"""
    seconds, _ = run([sys.executable, "-c", code, json.dumps(content), cell_id], folder, PYTHONPATH=str(folder))
    return seconds


COSTS: Mapping[str, Callable[[], list[Answer]]] = {
    "cli": cost_of_cli,
    "dry-run": cost_of_dry_run,
    "up-to-date": cost_of_up_to_date_check,
    "table": cost_of_table,
    "sessions": cost_of_sessions,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for, and print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.costs", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"some of {', '.join(COSTS)}; none: all")
    given = parser.parse_args(arguments)
    unknown = set(given.what) - set(COSTS)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not known; legal: {', '.join(COSTS)}")
    held = True
    for name in given.what or COSTS:
        for answer in COSTS[name]():
            held &= answer.holds
            print(answer.line(), flush=True)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
