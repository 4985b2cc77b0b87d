"""Does `vlmeter compare` cry wolf, and does it find what is there? Sessions with declared noise, compared many times.

    python -m benchmarks.compare

makes pairs of sessions of one and the same thing, or of one that is slower by a planted factor, and counts verdicts. No
model runs: what is tested is the judgement, so the durations are drawn. Their noise is like that of a real session, in
all that makes samples of one session alike:

- samples in a row resemble each other (first-order, correlation 0.3), and each cell has a scatter of its own;
- a tail: some samples take much longer, as when something else ran;
- the machine wanders through a session (an Ornstein-Uhlenbeck process in the logarithm), for cells and sentinel alike;
- each session has an offset of its own: the machine is not the same from day to day.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats as distributions

from vlmeter.common.files import write_atomically
from vlmeter.compare.baseline import CellSamples, Looks, Run, SubjectRun, plan_digest, repeats_of
from vlmeter.compare.compare import compare
from vlmeter.compare.comparison import TOTAL_NAME, Comparison, Side
from vlmeter.compare.limits import Limit, beyond
from vlmeter.compare.planning import chance_to_find, run_noise, runs_to_find
from vlmeter.numbers.intervals import Array, median_standard_error
from vlmeter.table.quantities import WHOLE_CELL

#: A cell takes so long beside a look at the sentinel, in units of the wander's time: a session takes several of them.
_STEP = 0.05


@dataclass(frozen=True)
class Noise:
    """Noise of a session; fractions are standard deviations of the logarithm."""

    offset_fraction: float = 0.004
    wander_fraction: float = 0.004
    scatter_fraction: float = 0.012  # of the median cell; cells differ by a factor of about two
    correlation: float = 0.3
    tail_share: float = 0.04
    tail_fraction: float = 0.15  # mean of what a sample in the tail takes longer


@dataclass(frozen=True)
class Plan:
    """Sizes of a session; the defaults are those of a study of 40 cells."""

    cells: int = 40
    samples: int = 10
    cells_between_looks: int = 10
    look_samples: int = 9


def session(plan: Plan, noise: Noise, rng: np.random.Generator, *, slower: Array | float = 0.0, name: str = "s") -> Run:
    """Draw one session; `slower` is a fraction, of all cells or of each."""
    offset = rng.normal(0, noise.offset_fraction)
    sizes = np.linspace(math.log(20.0), math.log(200.0), plan.cells)  # what a cell takes: the same in every session
    scatters = noise.scatter_fraction * np.exp(0.5 * distributions.norm.ppf(_spread(plan.cells)))
    extra = np.log1p(np.broadcast_to(np.asarray(slower, dtype=np.float64), (plan.cells,)))
    wander = _Wander(noise, rng)
    looks, look_errors, cells = [], [], dict[int, CellSamples]()

    def look() -> None:
        drawn = _samples(plan.look_samples, noise, noise.scatter_fraction, rng)
        looks.append(float(np.exp(np.median(sizes[0] + offset + wander.step() + drawn))))
        look_errors.append(median_standard_error(drawn))

    look()
    order = rng.permutation(plan.cells)
    for place, number in enumerate(order):
        level = sizes[number] + offset + wander.step() + extra[number]
        times = np.exp(level + _samples(plan.samples, noise, float(scatters[number]), rng))
        quantity = repeats_of(WHOLE_CELL.keys[0], times)
        cells[int(number)] = CellSamples(
            cell_id=f"cell-{number:03d}",
            experiment="vision_tokens",
            status="ok",
            session_id=name,
            counts={},
            quantities=[quantity],
        )
        if (place + 1) % plan.cells_between_looks == 0 or place + 1 == plan.cells:
            look()
    found = SubjectRun(
        subject="drawn",
        facts={},
        conditions="quiet",
        condition_reasons=[],
        looks=[
            Looks(session_id=name, medians_ms=looks, noise_fraction=float(np.sqrt(np.mean(np.square(look_errors)))))
        ],
        cells=[cells[number] for number in sorted(cells)],
    )
    return Run(study="drawn", plan_digest=plan_digest([found]), subjects=[found])


def _spread(count: int) -> Array:
    """So many shares between 0 and 1, evenly spread and in no order that has to do with size."""
    return (np.argsort(np.argsort(np.sin(np.arange(count) * 12.9898))) + 0.5) / count


class _Wander:
    """A machine that wanders about its level."""

    def __init__(self, noise: Noise, rng: np.random.Generator) -> None:
        self._size, self._rng = noise.wander_fraction, rng
        self._now = rng.normal(0, self._size)

    def step(self) -> float:
        kept = math.exp(-_STEP)
        self._now = kept * self._now + math.sqrt(1 - kept**2) * self._rng.normal(0, self._size)
        return float(self._now)


def _samples(count: int, noise: Noise, scatter: float, rng: np.random.Generator) -> Array:
    """Deviations of samples in a row."""
    fresh = rng.normal(0, 1, count)
    series = np.empty(count)
    series[0] = fresh[0]
    for place in range(1, count):
        series[place] = noise.correlation * series[place - 1] + math.sqrt(1 - noise.correlation**2) * fresh[place]
    tail = rng.random(count) < noise.tail_share
    return np.asarray(scatter * series + tail * rng.exponential(noise.tail_fraction, count))


@dataclass(frozen=True)
class Tally:
    """How many of so many comparisons had an overall verdict, a verdict on any cell, and on each cell."""

    repeats: int
    runs: int
    cells: int
    overall_slower: int
    overall_faster: int
    overall_same: int
    any_cell_told: int
    cells_slower: int
    cells_faster: int
    cells_same: int
    failed_slower_1: int
    half_width_fraction: float


def tally(
    *, repeats: int, plan: Plan, noise: Noise, slower: Array | float = 0.0, runs: int = 1, seed: int = 1
) -> Tally:
    """Compare so many pairs of sessions (or of groups of `runs` sessions), B slower by a planted fraction."""
    rng = np.random.default_rng(seed)
    found: list[Comparison] = []
    for _ in range(repeats):
        a = [session(plan, noise, rng, name=f"a{run}") for run in range(runs)]
        b = [session(plan, noise, rng, name=f"b{run}", slower=slower) for run in range(runs)]
        found.append(compare(Side("A", a), Side("B", b)))
    totals = [comparison.of(TOTAL_NAME)[0] for comparison in found]
    verdicts = [total.overall[0].effect.verdict for total in totals]
    cells = [[cell.effect.verdict for cell in total.cells] for total in totals]
    told = [verdict for each in cells for verdict in each]
    widths = [math.sqrt(total.overall[0].effect.high / total.overall[0].effect.low) - 1 for total in totals]
    return Tally(
        repeats=repeats,
        runs=runs,
        cells=plan.cells,
        overall_slower=verdicts.count("slower"),
        overall_faster=verdicts.count("faster"),
        overall_same=verdicts.count("same"),
        any_cell_told=sum("slower" in each or "faster" in each for each in cells),
        cells_slower=told.count("slower"),
        cells_faster=told.count("faster"),
        cells_same=told.count("same"),
        failed_slower_1=sum(bool(beyond(comparison, Limit(any_cell=False, fraction=0.01))) for comparison in found),
        half_width_fraction=float(np.median(widths)),
    )


def one_in_four(plan: Plan, fraction: float) -> Array:
    """A slowdown of every fourth cell."""
    return np.where(np.arange(plan.cells) % 4 == 0, fraction, 0.0)


def answers(repeats: int, seed: int) -> dict[str, Tally]:
    """All questions with their tallies."""
    plan, noise = Plan(), Noise()
    far = replace(noise, offset_fraction=0.02)
    quiet = Noise(offset_fraction=0.001, wander_fraction=0.001, scatter_fraction=0.003, tail_share=0.01)
    common: dict[str, Any] = {"repeats": repeats, "seed": seed}
    return {
        "the same thing twice": tally(plan=plan, noise=noise, **common),
        "B slower by 3 %": tally(plan=plan, noise=noise, slower=0.03, **common),
        "every fourth cell slower by 10 %": tally(plan=plan, noise=noise, slower=one_in_four(plan, 0.1), **common),
        "six cells, the same twice": tally(plan=replace(plan, cells=6), noise=noise, **common),
        "six cells, slower by 3 %": tally(plan=replace(plan, cells=6), noise=noise, slower=0.03, **common),
        "a quiet device, the same twice": tally(plan=plan, noise=quiet, **common),
        "a quiet device, slower by 3 %": tally(plan=plan, noise=quiet, slower=0.03, **common),
        "three runs a side, the same": tally(plan=plan, noise=noise, runs=3, **common),
        "three runs a side, slower by 3 %": tally(plan=plan, noise=noise, runs=3, slower=0.03, **common),
        "sessions 2 % apart, the same": tally(plan=plan, noise=far, **common),
    }


#: How far sessions lie apart (standard deviations) where three runs a side are judged, and what is planted there.
APART, PLANTED = (0.004, 0.01, 0.02, 0.05), 0.03

#: Runs a side, cells of each, pairs of equal sides (so many that 5 % of false alarms are known to within 1 %) and of
#: unequal ones.
RUNS, RUN_CELLS, RUN_PAIRS, SLOWER_PAIRS = 3, 6, 2000, 400

#: Runs from which `--plan` is told how far runs lie apart: so many that it knows.
KNOWN_RUNS = 200

#: False alarms that are put up with, by the upper end of their 95 % interval.
MOST_FALSE_ALARMS = 0.06


@dataclass(frozen=True)
class Apart:
    """What three runs a side say where sessions lie so far apart: of the same thing, and of a planted slowdown."""

    same: Tally
    slower: Tally
    said_power: float
    said_runs: int | None

    @property
    def false_alarms(self) -> tuple[int, float]:
        """False alarms on the whole, and the upper end of their share's 95 % interval (Clopper and Pearson)."""
        count = self.same.overall_slower + self.same.overall_faster
        return count, float(distributions.binomtest(count, self.same.repeats).proportion_ci(method="exact").high)


def several_runs(pairs: int, seed: int) -> dict[float, Apart]:
    """False alarms and power of three runs a side, by how far sessions lie apart, beside what `--plan` says of it."""
    found = {}
    for apart in APART:
        noise, plan = Noise(offset_fraction=apart), Plan(cells=RUN_CELLS)
        same, slower = (
            tally(repeats=min(pairs, most), plan=plan, noise=noise, slower=planted, runs=RUNS, seed=seed)
            for planted, most in ((0.0, pairs), (PLANTED, SLOWER_PAIRS))
        )
        rng = np.random.default_rng(seed)
        known = [session(plan, noise, rng, name=f"k{run}") for run in range(KNOWN_RUNS)]
        whole = run_noise([Side("known", known)])[0].fraction.value
        found[apart] = Apart(same, slower, chance_to_find(PLANTED, whole, RUNS), runs_to_find(PLANTED, whole))
    return found


def several_as_text(found: dict[float, Apart]) -> str:
    """The tallies of several runs as a table."""
    change = f"{100 * PLANTED:g} %"
    heads = ("false alarms", "at most", "any cell", f"{change} found", "--plan says", "runs for 90 %")
    lines = [f"{'three runs a side':20}" + "".join(f"{head:>15}" for head in heads)]
    for apart, one in found.items():
        count, high = one.false_alarms
        false, any_cell = (number / one.same.repeats for number in (count, one.same.any_cell_told))
        shares = (false, high, any_cell, one.slower.overall_slower / one.slower.repeats, one.said_power)
        said = "".join(f"{100 * share:13.1f} %" for share in shares)
        lines.append(f"sessions {100 * apart:g} % apart".ljust(20) + said + f"{one.said_runs or '-':>15}")
    return "\n".join(lines)


def as_text(found: dict[str, Tally]) -> str:
    """The tallies as a table."""
    lines = [
        f"{'':50} {'slower':>7} {'faster':>7} {'same':>7} {'half width':>11} {'any cell':>9} {'slower:1%':>10}   cells "
        "slower / faster / same"
    ]
    for name, one in found.items():
        number = one.repeats
        shares = "".join(
            f"{100 * count / number:7.1f}%" for count in (one.overall_slower, one.overall_faster, one.overall_same)
        )
        cells = " / ".join(
            f"{100 * count / number / one.cells:.1f}%" for count in (one.cells_slower, one.cells_faster, one.cells_same)
        )
        lines.append(
            f"{name:50}{shares} {100 * one.half_width_fraction:9.2f} % {100 * one.any_cell_told / number:8.1f}% "
            f"{100 * one.failed_slower_1 / number:9.1f}%   {cells}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; 1 if false alarms of several runs are not rare enough."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=400, help="pairs of sessions per question")
    parser.add_argument("--run-pairs", type=int, default=RUN_PAIRS, help="pairs of three runs a side, per distance")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    parser.add_argument("--output", type=Path, help="write the counts as JSON")
    given = parser.parse_args(arguments)
    runs = several_runs(given.run_pairs, given.seed)
    print(several_as_text(runs), end="\n\n")
    found = answers(given.repeats, given.seed)
    print(as_text(found))
    if given.output:
        content = {
            "noise": asdict(Noise()),
            "plan": asdict(Plan()),
            **{name: asdict(one) for name, one in found.items()},
            "three runs a side": {f"sessions {100 * apart:g} % apart": asdict(one) for apart, one in runs.items()},
        }
        write_atomically(given.output, f"{json.dumps(content, indent=1)}\n".encode())
    return int(any(one.false_alarms[1] > MOST_FALSE_ALARMS for one in runs.values()))


if __name__ == "__main__":
    sys.exit(main())
