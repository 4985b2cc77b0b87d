"""Do the tests notice when a number goes wrong? Single changes to the code that makes numbers, and which are noticed.

    pip install cosmic-ray                               # which the locks leave out: it is wanted here alone
    python -m benchmarks.mutants --sample 20 --seed 1
    python -m benchmarks.mutants --only numbers          # every mutant of these modules: hours

cosmic-ray changes one operator, number or condition at a time, in a copy of the repository, and runs the tests that are
meant to notice. A mutant that no test notices has survived: it is printed, and either a test is missing or the change
means nothing. Types are left alone (`A | B` in an annotation), since nothing runs them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from vlmeter.common.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent

#: Modules that make numbers, and the tests that are meant to notice a change in them.
TARGETS = {
    "vlmeter/numbers/medians.py": ("tests/test_stats.py",),
    "vlmeter/numbers/intervals.py": ("tests/test_stats.py", "tests/test_uncertainty.py", "tests/test_compare.py"),
    "vlmeter/measure/rounds.py": ("tests/test_measure.py",),
    "vlmeter/measure/measurement.py": ("tests/test_measure.py",),
    "vlmeter/table/build.py": ("tests/test_table.py",),
    "vlmeter/table/columns.py": ("tests/test_table.py",),
    "vlmeter/compare/compare.py": ("tests/test_compare.py",),
    "vlmeter/compare/pairing.py": ("tests/test_compare.py",),
    "vlmeter/claims/decode.py": ("tests/test_claims.py", "tests/test_claim_limits.py"),
    "vlmeter/claims/prefill.py": ("tests/test_claims.py", "tests/test_claim_limits.py"),
}

#: Seconds that the tests of one mutant may take; one that goes round for ever is noticed by that.
TIMEOUT_S = 300

#: What nothing runs: unions of types.
LEFT_ALONE = "BitOr"

_CONFIG = """\
[cosmic-ray]
module-path = "{module}"
timeout = {timeout}
excluded-modules = []
test-command = "{python} -m pytest -x -q -n0 {tests}"

[cosmic-ray.distributor]
name = "local"
"""


@dataclass(frozen=True)
class Outcome:
    """What became of the mutants of one module; survivors: line, operator and change of each."""

    module: str
    mutants: int
    tried: int
    killed: int
    survivors: tuple[str, ...]


def copy_of_repository(folder: Path) -> None:
    """Copy what git knows, and what is new and not ignored: tests run on the copy, which is broken on purpose."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def try_module(module: str, *, folder: Path, sample: int | None, seed: int) -> Outcome:
    """Try mutants of one module in a copy of the repository: a sample of them, or all."""
    config, session = folder / "mutants.toml", folder / "mutants.sqlite"
    session.unlink(missing_ok=True)
    tests = " ".join(TARGETS[module])
    config.write_text(
        _CONFIG.format(module=module, timeout=TIMEOUT_S, python=sys.executable, tests=tests), encoding="utf-8"
    )
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    untouched = [sys.executable, "-m", "pytest", "-x", "-q", "-n0", *TARGETS[module]]
    done = subprocess.run(untouched, cwd=folder, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:  # then every mutant would seem to be noticed
        raise SystemExit(f"the tests of {module} fail without any mutant:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    from cosmic_ray.work_db import WorkDB, use_db
    from cosmic_ray.work_item import WorkerOutcome, WorkResult

    command = [sys.executable, "-m", "cosmic_ray.cli"]
    subprocess.run([*command, "init", str(config), str(session)], cwd=folder, env=environment, check=True)
    with use_db(str(session), WorkDB.Mode.open) as database:
        found = sorted(
            (item for item in database.work_items if LEFT_ALONE not in item.mutations[0].operator_name),
            key=lambda item: (
                item.mutations[0].start_pos,
                item.mutations[0].operator_name,
                item.mutations[0].occurrence,
            ),
        )
        chosen = found if sample is None else random.Random(seed).sample(found, min(sample, len(found)))
        kept = {item.job_id for item in chosen}
        skipped = WorkResult(WorkerOutcome.SKIPPED)
        for item in list(database.work_items):
            if item.job_id not in kept:
                database.set_result(item.job_id, skipped)
    subprocess.run([*command, "exec", str(config), str(session)], cwd=folder, env=environment, check=True)
    with use_db(str(session), WorkDB.Mode.open) as database:
        results = {job: result for job, result in database.results if job in kept}
    survivors = tuple(
        f"line {item.mutations[0].start_pos[0]}: {_change(results[item.job_id].diff)}"
        for item in found
        if item.job_id in results and not results[item.job_id].is_killed
    )
    return Outcome(module, len(found), len(results), len(results) - len(survivors), survivors)


def _change(diff: str | None) -> str:
    """The lines that a mutant takes away and adds, on one line."""
    lines = [line for line in (diff or "").splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    return " -> ".join(" ".join(line[1:].split()) for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try mutants and print what survived; exit code 1 if fewer than nine in ten were noticed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutants", description=__doc__.splitlines()[0])
    parser.add_argument("--sample", type=int, help="so many mutants of each module; all without it")
    parser.add_argument("--seed", type=int, default=1, help="which they are")
    parser.add_argument("--only", nargs="+", default=[], help="modules whose path has one of these words in it")
    parser.add_argument("--output", type=Path, help="write the outcomes as JSON")
    options = parser.parse_args(arguments)
    modules = [module for module in TARGETS if not options.only or any(word in module for word in options.only)]
    if not modules:
        parser.error(f"--only: no module has {' or '.join(options.only)} in its path; legal: {', '.join(TARGETS)}")
    outcomes = []
    with tempfile.TemporaryDirectory() as place:
        copy_of_repository(Path(place))
        for module in modules:
            outcomes.append(try_module(module, folder=Path(place), sample=options.sample, seed=options.seed))
            found = outcomes[-1]
            print(
                f"{found.module}: {found.killed} of {found.tried} noticed, of {found.mutants} that there are",
                flush=True,
            )
            for survivor in found.survivors:
                print(f"  {survivor}", flush=True)
            if options.output:
                data = json.dumps([asdict(each) for each in outcomes], indent=1) + "\n"
                write_atomically(options.output, data.encode())
    tried, killed = sum(each.tried for each in outcomes), sum(each.killed for each in outcomes)
    print(f"{killed} of {tried} mutants noticed ({100 * killed / tried:.0f} %)")
    return 0 if killed >= 0.9 * tried else 1


if __name__ == "__main__":
    sys.exit(main())
