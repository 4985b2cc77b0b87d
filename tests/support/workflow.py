"""A copy of the workflow in a folder of its own, run as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.chaos import make_workflow
from tests.support.sessions import heed_interrupts
from vlmeter.records.record import read_record
from vlmeter.study.layout import Layout
from vlmeter.study.loader import parse_study
from vlmeter.study.plan import build_plan

#: A run takes some seconds on a quiet machine, and may take minutes on a busy one.
PATIENCE_S = 900


def fake_study(**changes: Any) -> dict[str, Any]:
    """Four vision cells and four output cells on the fake backend; `changes` replace top-level keys."""
    return {
        "study": "fake",
        "subjects": {"one": {"family": "molmo", "preset": "nano", "dtype": "float32", "backend": "fake"}},
        "dataset": {"source": "embedded", "images": 2},
        "experiments": {
            "vision_tokens": {"tilings": ["1x1", "1x2", "2x2", "3x4"]},
            "output_tokens": {"output_tokens": [4, 8], "sampling": {"min_samples": 3, "max_samples": 3}},
        },
        "sampling": {"min_samples": 5, "max_samples": 5, "min_warmup": 1, "max_warmup": 1},
        **changes,
    }


@dataclass
class Ran:
    """What a run of Snakemake left."""

    code: int
    said: str

    @property
    def nothing_to_do(self) -> bool:
        """Whether no job was run; with `--until` Snakemake does not put it into words."""
        return self.code == 0 and re.search(r"^Job \d+: ", self.said, re.MULTILINE) is None

    def lines(self, start: str) -> list[str]:
        """Lines that begin so."""
        return [line for line in self.said.splitlines() if line.startswith(start)]


class Workflow:
    """A copy of the workflow, with a study in it."""

    def __init__(self, folder: Path, content: dict[str, Any]) -> None:
        self.folder = folder
        make_workflow(folder)
        self.write(content)

    def write(self, content: dict[str, Any]) -> None:
        """Write the study."""
        self.content = content
        (self.folder / "study.yaml").write_text(yaml.safe_dump(content))
        self.study = parse_study(content, source="test")
        self.layout = Layout(self.study.study, self.folder / "results")
        self.cells = build_plan(self.study)

    def environment(self, **more: str) -> dict[str, str]:
        """The environment of a run, whose library is the copy's."""
        locks = {"VLMETER_LOCK_DIR": str(self.folder / "locks")}
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {**own, **locks, **more}

    def command(self, *arguments: str) -> list[str]:
        """The command of a run."""
        own = ["--configfile", "study.yaml"] if "--configfile" not in arguments else []
        cores = ["--cores", "2"] if "--workflow-profile" not in arguments else []
        return [sys.executable, "-m", "snakemake", *arguments, *cores, *own]

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start a run."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**environment),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )

    def run(self, *arguments: str, **environment: str) -> Ran:
        """Run it to its end."""
        done = subprocess.run(
            self.command(*arguments),
            cwd=self.folder,
            env=self.environment(**environment),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        return Ran(done.returncode, done.stderr + done.stdout)

    def measure(self, **environment: str) -> Ran:
        """Run up to the table, which spares the time of the figures."""
        return self.run("--until", "tabulate", **environment)

    def vlmeter(self, *arguments: str) -> Ran:
        """Run the command line."""
        code = "from vlmeter.cli.main import main; main()"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
        )
        return Ran(done.returncode, done.stderr + done.stdout)

    def sessions(self, *, run: int = 0) -> dict[str, str]:
        """The session that measured each cell in a run."""
        paths = {f"{cell.subject}/{cell.cell_id}": self.layout.record(cell, run=run) for cell in self.cells}
        return {name: read_record(path).session.session_id for name, path in paths.items() if path.exists()}

    def status(self) -> list[dict[str, Any]]:
        """What `vlmeter status` says of every cell."""
        rows: list[dict[str, Any]] = json.loads(self.vlmeter("status", "study.yaml", "--format", "json").said)
        return rows

    def states(self) -> dict[str, str]:
        """The state of every cell."""
        return {f"{row['subject']}/{row['cell']}": row["state"] for row in self.status()}
