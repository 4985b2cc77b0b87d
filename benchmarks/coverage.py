"""How often does a 95 % interval hold the truth? Every kind of interval that is printed, under noise that is declared.

    python -m benchmarks.coverage                     # a table; two thousand cells for each line
    python -m benchmarks.coverage --only median slope --repeats 500

No model runs: durations are drawn, from noise like that of real machines, and go through the very functions that the
report goes through. The truth is known, so it can be counted how often an interval holds it. `--before` judges besides
the median as it was before: looked at after every round, and taken as if samples were independent.
`benchmarks/coverage_noise.py` says what the noise is.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.coverage_cells import (
    correlation_cases,
    median_cases,
    paired_cases,
    percentile_cases,
    pooled_cases,
    prediction_cases,
    slope_cases,
)
from benchmarks.coverage_noise import Case, Trial
from benchmarks.coverage_whole import cause_cases, flops_cases, law_cases, run_cases, share_cases
from vlmeter.common.files import write_atomically

ROOT = Path(__file__).resolve().parents[1]

#: What coverage is called right.
RIGHT = (0.93, 0.97)


def every_case(*, before: bool = False) -> list[Case]:
    """All cases, in the order of the table; before: those of the median alone, as it was."""
    medians = list(median_cases(before=before))
    if before:
        return medians
    others = (
        paired_cases(),
        pooled_cases(),
        percentile_cases(),
        slope_cases(),
        prediction_cases(),
        correlation_cases(),
        law_cases(),
        share_cases(),
        cause_cases(),
        flops_cases(),
        run_cases(),
    )
    return [*medians, *(case for cases in others for case in cases)]


@dataclass(frozen=True)
class Answer:
    """How often one kind of interval held the truth."""

    interval: str
    noise: str
    trials: int
    held: int
    rounds: float

    @property
    def coverage(self) -> float:
        """Share of the intervals that held the truth."""
        return self.held / self.trials

    @property
    def uncertain(self) -> float:
        """Standard error of the coverage."""
        return math.sqrt(self.coverage * (1 - self.coverage) / self.trials)

    @property
    def verdict(self) -> str:
        """Right, or on which side it is wrong by more than the simulation's own error."""
        if self.coverage + 2 * self.uncertain < RIGHT[0]:
            return "too narrow"
        return "wide" if self.coverage - 2 * self.uncertain > RIGHT[1] else "right"


def answers_of(case: Case, *, repeats: int, seed: int) -> list[Answer]:
    """Try a case so many times; each has random numbers of its own, whichever others are tried."""
    name = f"{case.interval}|{case.noise}".encode()
    rng = np.random.default_rng([seed, *name])
    trials: dict[str, list[Trial]] = {interval: [] for interval in case.intervals}
    while min(len(own) for own in trials.values()) < max(1, round(repeats * case.share)):
        found = case.trial(rng)
        for trial in found if isinstance(found, list) else [found]:
            trials[trial.interval or case.interval].append(trial)
    return [
        Answer(
            interval,
            case.noise,
            len(own),
            sum(trial.holds for trial in own),
            sum(trial.rounds for trial in own) / len(own),
        )
        for interval, own in trials.items()
    ]


def as_table(answers: Sequence[Answer]) -> str:
    """The answers in Markdown."""
    lines = ["| interval | noise | holds the truth | samples or cells | |", "|---|---|---|---|---|"]
    for each in answers:
        held = f"{each.coverage * 100:.1f} % (+-{2 * each.uncertain * 100:.1f})"
        lines.append(f"| {each.interval} | {each.noise} | {held} | {each.rounds:.0f} | {each.verdict} |")
    return "\n".join(lines)


def commit() -> str:
    """The commit of the working copy, short, with its title; it says so where tracked files were changed since."""

    def said(*words: str) -> str:
        return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    changed = " with changes" if said("status", "--porcelain", "--untracked-files=no") else ""
    return f"{said('log', '-1', '--format=%h %s')}{changed}"


def command_of(arguments: Sequence[str]) -> str:
    """The command with these arguments, whatever file it writes."""
    words = list(arguments)
    if "--output" in words:
        del words[(place := words.index("--output")) : place + 2]
    return " ".join(["python -m benchmarks.coverage", *words])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whatever it finds: it is read, not passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000, help="simulations of a case; slopes take a part of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose interval has one of these words in its name")
    parser.add_argument("--before", action="store_true", help="the median as it was, too: a look after every round")
    parser.add_argument("--output", type=Path, help="write the counts as JSON, with commit and command")
    options = parser.parse_args(arguments)
    chosen = {
        when: [
            case
            for case in every_case(before=when == "before")
            if not options.only or any(word in interval for word in options.only for interval in case.intervals)
        ]
        for when in (("before", "now") if options.before else ("now",))
    }
    if not any(chosen.values()):
        parser.error(f"--only: no interval has {' or '.join(options.only)} in its name")
    found: dict[str, list[Answer]] = {}
    measured = commit() if options.output else ""  # at the start: the code that was loaded
    for when, cases in chosen.items():
        found[when] = []
        for case in cases:
            found[when] += answers_of(case, repeats=options.repeats, seed=options.seed)
            sys.stderr.write(f"{when}: {case.interval}, {case.noise}\n")
        sys.stdout.write((f"{when}\n\n" if options.before else "") + as_table(found[when]) + "\n")
    if options.output:
        command = command_of(sys.argv[1:] if arguments is None else arguments)
        made = {"commit": measured, "command": command, "repeats": options.repeats, "seed": options.seed}
        counts = {when: [asdict(each) for each in own] for when, own in found.items()}
        write_atomically(options.output, (json.dumps({**made, **counts}, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
