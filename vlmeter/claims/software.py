"""Claims about the ways of running one model: do they choose the same tokens, how near is the floor, what is left."""

from __future__ import annotations

import pandas as pd

from vlmeter.analysis import software
from vlmeter.analysis.prefill_cells import over
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.software import Task, Way
from vlmeter.claims.base import Data, Evidence, Finding, Verdict, cannot_tell, within
from vlmeter.claims.decode import NEAR_FLOOR_RATIO
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import duration, percent, significant
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table.quantities import DECODE_STEP

#: Left above the floor is said to be of one kind from three quarters on.
MOSTLY_FRACTION = 0.75

NO_GROUP = "no two subjects differ in their backend alone"

#: What tokens that part mean, where numbers are rounded as far as this; said after the finding.
_ROUNDED = (
    "In {dtype} several logits may be equally high, or one rounding apart, and another order of adding chooses another "
    "of them: tokens that part say that results are rounded elsewhere, not that they are wrong (docs/compiled.md says "
    "how far the choices lie apart)"
)
_EXACT = "In float32 that asks for a look at the model's code: rounding alone seldom reaches a choice"


def same_tokens(data: Data) -> Finding:
    """Whatever runs the model, it chooses the same tokens."""
    groups = software.groups(data.table)
    if not groups:
        return cannot_tell(NO_GROUP)
    found = [pair for ways in groups for pair in software.same_tokens(data.table, ways)]
    if not found:
        return cannot_tell("fewer than two ways of running tell their tokens in a cell that both were measured in")
    evidence = tuple(
        Evidence(f"cells in which {pair.other} parts from {pair.first}", len(pair.parted), None, None,
                 f"of {pair.cells}")
        for pair in found
    )  # fmt: skip
    silent = _listed([way.subject for ways in groups for way in ways if not _tells(data.table, way)])
    rest = f" {silent} does not tell its tokens." if silent else ""
    parting = [pair for pair in found if pair.parted]
    if not parting:
        said = "; ".join(
            f"{pair.other} as {pair.first} in {plural(pair.cells, 'cell')} with {plural(pair.tokens, 'token')}"
            for pair in found
        )
        return Finding("holds", f"The same tokens are chosen: {said}.{rest}", evidence)
    said = "; ".join(_parting(pair) for pair in parting)
    dtypes = sorted(set(data.table.loc[data.table["subject"].isin([p.other for p in parting]), "dtype"].dropna()))
    meaning = _EXACT if dtypes == ["float32"] else _ROUNDED.format(dtype=" and ".join(dtypes))
    return Finding("does not hold", f"Not all tokens are the same: {said}. {meaning}.{rest}", evidence)


def _tells(table: pd.DataFrame, way: Way) -> bool:
    return bool(table.loc[table["subject"] == way.subject, "output"].notna().any())


def _parting(pair: software.Tokens) -> str:
    earliest = min(pair.parted.values())
    when = "at the first token" if earliest == 0 else f"after {plural(earliest, 'token')} at the earliest"
    return f"{pair.other} parts from {pair.first} in {len(pair.parted)} of {plural(pair.cells, 'cell')}, {when}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}" if names else ""


def _steps(data: Data) -> list[tuple[tuple[Way, ...], Task]] | Unknown:
    """The decode step of every group, with its floor."""
    groups = software.groups(data.table)
    if not groups:
        return Unknown(NO_GROUP)
    if isinstance(data.worked, Unknown):
        return data.worked
    found = [
        (ways, task)
        for ways in groups
        for task in software.tasks(data.worked, ways)
        if task.quantity is DECODE_STEP and task.floor_ms is not None
    ]
    return found or Unknown("no decode step with a floor was measured in two ways of running")


def _fastest(task: Task, ways: tuple[Way, ...]) -> Way:
    return min((way for way in ways if way.subject in task.times), key=lambda way: task.times[way.subject].value)


def decode_within_floor(data: Data) -> Finding:
    """Run as fast as the study has it, decode is near its floor."""
    steps = _steps(data)
    if isinstance(steps, Unknown):
        return cannot_tell(steps.reason)
    evidence, said = [], []
    verdicts: list[Verdict] = []
    for ways, task in steps:
        assert task.floor_ms is not None
        floor = Estimate(task.floor_ms, task.floor_ms, task.floor_ms)
        times = {way.subject: over(task.times[way.subject], floor) for way in ways if way.subject in task.times}
        evidence += [Evidence.of(f"{name}: step over its floor", ratio, "times") for name, ratio in times.items()]
        verdicts.append(within(times[_fastest(task, ways).subject], 0.0, NEAR_FLOOR_RATIO))
        each = ", ".join(f"{with_interval(ratio, '')} times in {name}" for name, ratio in times.items())
        said.append(f"of a floor of {duration(task.floor_ms)}, a step takes {each}")
    verdict: Verdict = (
        "does not hold" if "does not hold" in verdicts else "holds" if set(verdicts) == {"holds"} else "cannot tell"
    )
    limit = significant(NEAR_FLOOR_RATIO, 2)
    start = {
        "holds": f"The fastest way of running decodes within {limit} times the floor",
        "does not hold": f"No way of running decodes within {limit} times the floor",
        "cannot tell": f"Whether any way of running decodes within {limit} times the floor cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {'; '.join(said)}.", tuple(evidence))


def left_is_kernels(data: Data) -> Finding:
    """What the fastest way of running leaves above the floor is in its kernels, and no longer in launches."""
    steps = _steps(data)
    if isinstance(steps, Unknown):
        return cannot_tell(steps.reason)
    evidence, said, unknown = [], [], []
    shares: list[float] = []
    for ways, task in steps:
        assert task.floor_ms is not None
        way = _fastest(task, ways)
        name, time = way.subject, task.times[way.subject].value
        above = time - task.floor_ms
        if above <= 0:
            unknown.append(f"{name} is at its floor")
            continue
        parts = software.left_of(task, way)
        if len(parts) < 2:
            unknown.append(f"of {name} {task.no_busy}")
            continue
        launches, kernels = parts
        shares.append(kernels.ms / above)
        evidence += [
            Evidence(f"{name}: left above the floor", above, None, None, "ms"),
            Evidence(f"{name}: share of kernels in it", kernels.ms / above, None, None, "fraction"),
        ]
        said.append(
            f"of the {duration(above)} by which a step of {name} lies above its floor ({duration(task.floor_ms)}, set "
            f"by {task.bound}), {duration(launches.ms)} are launches and {duration(kernels.ms)} kernels below the "
            "device's ceilings"
        )
    if not shares:
        return cannot_tell("; ".join(unknown))
    limit = percent(MOSTLY_FRACTION)
    if min(shares) >= MOSTLY_FRACTION:
        return Finding("holds", f"What is left is in the kernels: {'; '.join(said)}.", tuple(evidence))
    return Finding(
        "does not hold", f"Less than {limit} of what is left is in the kernels: {'; '.join(said)}.", tuple(evidence)
    )
