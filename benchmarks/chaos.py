"""Kill runs at random moments, and count what is lost.

A study on the fake backend is run again and again, in two ways: a session by itself, and the workflow. At a random
moment one of its processes is killed by signal 9 - the one that measures, the one that watches over it, the workflow,
or all at once. After each kill four things must hold: every record that was finished is still there, in its place or
in the journal, and never measured again; no file that claims to be a record is half of one; no process goes on; and in
the end a plain run completes the study. When all cells are done some are forgotten, and it goes on.

    python -m benchmarks.chaos --kills 200 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import yaml

from vlmeter.cells.cell import Cell
from vlmeter.inputs.looks import made_pictures
from vlmeter.measure.supervision import supervise
from vlmeter.records.record import read_record
from vlmeter.records.store import Journal, forget
from vlmeter.study.layout import Layout
from vlmeter.study.loader import load_study
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study
from vlmeter.workflow.console import job, session_progress

ROOT = Path(__file__).resolve().parents[1]
SUBJECT = "fake"

#: What a workflow needs of the repository.
WORKFLOW = ("Snakefile", "rules", "scripts", "profiles", "envs", "report", "vlmeter", "requirements.lock")

#: Which processes are killed, by the kind of run.
VICTIMS = {"session": ("worker", "session", "all"), "workflow": ("worker", "session", "workflow", "all")}

#: How long a killed run's processes may take to be gone, and a run to end by itself.
GONE_WITHIN_S = 20.0
ENDS_WITHIN_S = 300.0


def chaos_study() -> dict[str, object]:
    """A study of 35 cells that take some tens of milliseconds each."""
    return {
        "study": "chaos",
        "subjects": {SUBJECT: {"family": "molmo", "preset": "nano", "dtype": "float32", "backend": "fake"}},
        "experiments": {"vision_tokens": {"tilings": "all"}},
        "sampling": {"min_samples": 8, "max_samples": 8},
    }


def make_workflow(folder: Path) -> None:
    """Copy what the workflow needs into a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in WORKFLOW:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def make_dummies(study: Study, layout: Layout) -> None:
    """Write the study's dummy images, as the workflow would."""
    from vlmeter.inputs.images import write_dummy_image

    for name, image in made_pictures(build_plan(study)).items():
        write_dummy_image(layout.dummies / name, width_px=image.width_px, height_px=image.height_px, seed=image.seed)


def run_one_session(study_file: Path) -> None:
    """Run one session of the study as the workflow's script does, in this process."""
    study = load_study(study_file)
    subject = next(iter(study.subjects))
    layout = Layout(study.study)
    log_file = layout.log(f"measure-{subject}")
    with job(log_file) as tell, session_progress(subject) as progress:
        summary = supervise(study, subject, layout, tell=tell, progress=progress, log_file=log_file)
        tell(f"{subject}: {summary.sentence()}")


def session_command(study_file: Path) -> list[str]:
    """How to run `run_one_session` in a process of its own."""
    return [sys.executable, "-P", "-m", "benchmarks.chaos", "--session", str(study_file)]


def workflow_command(study_file: Path) -> list[str]:
    """How to run the workflow up to the records."""
    targets = ["--until", f"measure_{SUBJECT}", "--quiet", "all"]
    return [sys.executable, "-m", "snakemake", "--cores", "2", "--configfile", str(study_file), *targets]


@dataclass
class Chaos:
    """The state of a series of kills."""

    folder: Path
    study_file: Path
    rng: random.Random
    kills: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    checked: int = 0
    lost: list[str] = field(default_factory=list)
    corrupt: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)
    #: the session that measured each finished cell
    finished: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.study = load_study(self.study_file)
        self.layout = Layout(self.study.study, self.folder / "results")
        self.cells: Sequence[Cell] = build_plan(self.study)

    def command(self, how: str) -> list[str]:
        """The command of one run."""
        return (workflow_command if how == "workflow" else session_command)(self.study_file)

    def environment(self) -> dict[str, str]:
        """The environment of a run: its library lies in its folder, and this module where it is."""
        return {**os.environ, "PYTHONPATH": os.pathsep.join([str(self.folder), str(ROOT)])}

    def run_and_kill(self, how: str) -> None:
        """Start a run, kill one of its processes at a random moment, and look at what is left."""
        self.runs += 1
        victim = self.rng.choice(VICTIMS[how])
        with (self.folder / "chaos.log").open("ab") as log_file:
            run = subprocess.Popen(
                self.command(how), cwd=self.folder, env=self.environment(), stdout=log_file, stderr=log_file
            )
        # a worker or a session is killed within its life, the rest from the very start on
        self._wait_for(run, victim)
        time.sleep(self.rng.uniform(0.0, 1.0 if victim in ("worker", "session") else 3.0))
        family = _family_of(run.pid)
        hit = [_kill(process) for process in family if _is(process, victim, run.pid)]
        self.kills[victim] += any(hit)
        self._wait_for_end(run, family, victim)
        self.look()

    def _wait_for(self, run: subprocess.Popen[bytes], victim: str) -> None:
        until_s = time.monotonic() + ENDS_WITHIN_S
        while run.poll() is None and time.monotonic() < until_s:
            if any(_is(process, victim, run.pid) for process in _family_of(run.pid)):
                return
            time.sleep(0.01)

    def _wait_for_end(self, run: subprocess.Popen[bytes], family: Sequence[psutil.Process], victim: str) -> None:
        """Wait for the end of the run: a killed worker is replaced, anything else ends it."""
        try:
            run.wait(timeout=ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.unfinished.append(f"a run did not end after its {victim} was killed")
            run.kill()
        _, alive = psutil.wait_procs(family, timeout=GONE_WITHIN_S)
        for process in alive:
            if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                self.orphans.append(f"process {process.pid} outlived the {victim}")
                _kill(process)

    def look(self) -> None:
        """Compare what lies on the disk with what was finished before."""
        present: dict[str, str] = {}
        journal = Journal(self.layout.results, self.study.study, SUBJECT)
        for cell in self.cells:
            for path in (self.layout.record(cell), journal.path(cell)):
                if not path.exists():
                    continue
                try:
                    present[cell.cell_id] = read_record(path).session.session_id
                except Exception as error:
                    self.corrupt.append(f"{path}: {error}")
        for cell_id, session_id in self.finished.items():
            self.checked += 1
            if present.get(cell_id) != session_id:
                self.lost.append(f"{cell_id} of session {session_id} is {present.get(cell_id, 'gone')}")
        self.finished = present

    def forget_some(self) -> None:
        """Forget half of the cells once all are done, so that there is something to measure."""
        if len(self.finished) < len(self.cells):
            return
        chosen = self.rng.sample(list(self.cells), k=len(self.cells) // 2 + 1)
        forget(self.layout.results, self.study.study, chosen)
        for cell in chosen:
            del self.finished[cell.cell_id]

    def complete(self) -> None:
        """Run plainly to the end; everything has to be fresh then, and nothing in the way."""
        for how in ("workflow", "session"):
            done = subprocess.run(
                self.command(how),
                cwd=self.folder,
                env=self.environment(),
                capture_output=True,
                text=True,
                timeout=ENDS_WITHIN_S,
            )
            if done.returncode != 0:
                self.unfinished.append(f"a plain run ended with {done.returncode}: {done.stderr[-500:]}")
        self.look()
        # asked of the copy: whoever edits the library meanwhile makes records stale here, and not there
        code = "from vlmeter.cli.main import main; main()"
        status = subprocess.run(
            [sys.executable, "-c", code, "status", str(self.study_file), "--format", "json"],
            cwd=self.folder,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=True,
        )
        for row in json.loads(status.stdout):
            if row["state"] != "fresh":
                self.unfinished.append(f"{row['cell']} is {row['state']} ({row['reason']}) after a plain run")
        self.unfinished += [f"{path} was left" for path in self.layout.root.rglob("*.tmp")]


def _family_of(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def _is(process: psutil.Process, victim: str, run_pid: int) -> bool:
    """Whether a process of a run is what is to be killed."""
    if victim in ("all", "workflow"):
        return victim == "all" or process.pid == run_pid
    try:
        line = process.cmdline()
    except psutil.Error:
        return False
    if victim == "worker":
        return any("vlmeter.measure.worker" in part for part in line)
    # the script of the rule, and not the shell that started it
    return any(part.endswith(".measure.py") or part == "--session" for part in line)


def _kill(process: psutil.Process) -> bool:
    try:
        process.send_signal(signal.SIGKILL)
    except psutil.Error:
        return False
    return True


def run_chaos(*, kills: int, seed: int, folder: Path, workflow_share: float) -> Chaos:
    """Kill so many runs, and complete the study."""
    make_workflow(folder)
    study_file = folder / "chaos.yaml"
    study_file.write_text(yaml.safe_dump(chaos_study()))
    os.environ["VLMETER_LOCK_DIR"] = str(folder / "locks")
    chaos = Chaos(folder, study_file, random.Random(seed))
    make_dummies(chaos.study, chaos.layout)
    while chaos.kills.total() < kills:
        chaos.run_and_kill("workflow" if chaos.rng.random() < workflow_share else "session")
        chaos.forget_some()
    chaos.complete()
    return chaos


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chaos", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="how many processes are killed")
    parser.add_argument("--seed", type=int, default=1, help="of the choice of moments and processes")
    parser.add_argument("--workflow-share", type=float, default=0.25, help="share of runs through Snakemake")
    parser.add_argument("--session", type=Path, metavar="STUDY.yaml", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.session is not None:
        run_one_session(given.session)
        return 0
    with tempfile.TemporaryDirectory(prefix="vlmeter-chaos-") as name:
        began_s = time.monotonic()
        chaos = run_chaos(kills=given.kills, seed=given.seed, folder=Path(name), workflow_share=given.workflow_share)
        found = {
            "kills": chaos.kills.total(),
            "by process": dict(chaos.kills),
            "runs": chaos.runs,
            "looks at a finished record": chaos.checked,
            "lost": len(chaos.lost),
            "corrupt": len(chaos.corrupt),
            "orphans": len(chaos.orphans),
            "in the way of a plain run": len(chaos.unfinished),
            "minutes": round((time.monotonic() - began_s) / 60, 1),
        }
    print(json.dumps(found, indent=2))
    faults = [*chaos.lost, *chaos.corrupt, *chaos.orphans, *chaos.unfinished]
    for fault in faults[:20]:
        print(fault, file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
