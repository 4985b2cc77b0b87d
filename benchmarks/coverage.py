"""How often does a 95 % interval hold the truth? Every kind of interval that is printed, under noise that is declared.

    python -m benchmarks.coverage                     # a table; two thousand cells for each line
    python -m benchmarks.coverage --only median slope --repeats 500

No model runs: durations are drawn, from noise like that of real machines, and go through the very functions that the
report goes through. The truth is known, so it can be counted how often an interval holds it. `--before` judges the
median as it was before: looked at after every round, and taken as if samples were independent.
`benchmarks/coverage_noise.py` says what the noise is.
"""

from __future__ import annotations

import argparse
import json
import math
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
from benchmarks.coverage_whole import flops_cases, law_cases, run_cases, share_cases
from vlmeter.common.files import write_atomically

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


def answer(case: Case, *, repeats: int, seed: int) -> Answer:
    """Try a case so many times; each has random numbers of its own, whichever others are tried."""
    name = f"{case.interval}|{case.noise}".encode()
    rng = np.random.default_rng([seed, *name])
    trials: list[Trial] = []
    while len(trials) < max(1, round(repeats * case.share)):
        found = case.trial(rng)
        trials += found if isinstance(found, list) else [found]
    held = sum(trial.holds for trial in trials)
    return Answer(case.interval, case.noise, len(trials), held, sum(trial.rounds for trial in trials) / len(trials))


def as_table(answers: Sequence[Answer]) -> str:
    """The answers in Markdown."""
    lines = ["| interval | noise | holds the truth | samples or cells | |", "|---|---|---|---|---|"]
    for each in answers:
        held = f"{each.coverage * 100:.1f} % (+-{2 * each.uncertain * 100:.1f})"
        lines.append(f"| {each.interval} | {each.noise} | {held} | {each.rounds:.0f} | {each.verdict} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; the exit code is 0 whatever it finds: it is read, not passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=2000, help="simulations of a case; slopes take a part of it")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[], help="cases whose interval has one of these words in its name")
    parser.add_argument("--before", action="store_true", help="the median as it was: a look after every round")
    parser.add_argument("--output", type=Path, help="write the counts as JSON")
    options = parser.parse_args(arguments)
    cases = [
        case
        for case in every_case(before=options.before)
        if not options.only or any(word in case.interval for word in options.only)
    ]
    if not cases:
        parser.error(f"--only: no interval has {' or '.join(options.only)} in its name")
    answers = []
    for case in cases:
        answers.append(answer(case, repeats=options.repeats, seed=options.seed))
        sys.stderr.write(f"{case.interval}, {case.noise}\n")
    sys.stdout.write(as_table(answers) + "\n")
    if options.output:
        write_atomically(options.output, (json.dumps([asdict(each) for each in answers], indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
