"""What the software costs: one model run in several ways, beside the least time that the device needs for it.

Subjects *differ in their backend alone* if the table says the same of all that is computed and of what computes it
(ALIKE). How each runs the model, its backend has said: how the host hands work over, and what runs on the device. So
they stand in an order, from every operator launched by itself to a whole pass of fused kernels replayed at once.

A duration falls into three parts, where the busy time of the device is known:

    launches = duration - busy    the device waits for the host
    kernels  = busy - floor       it works, at less than its ceilings: small kernels, and traffic between them
    floor                         what has to be read, written and multiplied (`vlmeter.analysis.roofline`)

and between two ways of running the first two change. Where the busy time is not known (a CPU has none of its own),
what changed can be named only as far as the two differ in one thing that their backends say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pandas as pd

from vlmeter.analysis import reading
from vlmeter.analysis.decode_runs import FIRST_STEPS
from vlmeter.analysis.reading import Unknown
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import plural
from vlmeter.table import kinds
from vlmeter.table.kinds import Kind
from vlmeter.table.quantities import (
    BUSY_PREFILL,
    BUSY_STEP,
    DECODE_STEP,
    INTER_TOKEN,
    PHASES,
    PLAIN_WALL,
    Quantity,
)

#: Columns that are the same in subjects which differ in their backend alone.
ALIKE = (
    "family",
    "preset",
    "weights",
    "revision",
    "trust_remote_code",
    "weights_seed",
    "dtype",
    "quantization",
    "attention",
    "vision_attention_dtype",
    "device_model",
    "cpu_threads",
)

#: Columns that say how a model was run, of which at least one differs.
WAYS = ("backend", "compile_mode")

#: What a backend says of itself (`vlmeter.backends.base.Execution`), from the most software to the least.
LAUNCHES = ("each", "fewer", "replayed")
KERNELS = ("separate", "fused")

#: What stands between two ways of running, or between one and the floor.
Part = Literal["launches", "kernels", "together"]

PARTS: Mapping[Part, str] = {
    "launches": "launches",
    "kernels": "kernels, and traffic between them",
    "together": "launches, kernels and traffic",
}

#: The same, of what is left above the floor.
LEFT: Mapping[Part, str] = {
    "launches": "launches that are left",
    "kernels": "kernels below the device's ceilings",
    "together": "launches, kernels and traffic that are left",
}


@dataclass(frozen=True)
class Way:
    """One of several ways of running the same model: a subject, and what its backend says."""

    subject: str
    launches: str
    kernels: str

    @property
    def is_seen(self) -> bool:
        """Whether it is known how it runs the model: of a server it is not."""
        return self.launches in LAUNCHES and self.kernels in KERNELS

    @property
    def rank(self) -> tuple[int, int, str]:
        """Its place among others: first the one with the most software about it, last what is not seen."""
        if not self.is_seen:
            return len(LAUNCHES), len(KERNELS), self.subject
        return LAUNCHES.index(self.launches), KERNELS.index(self.kernels), self.subject


def groups(table: pd.DataFrame) -> list[tuple[Way, ...]]:
    """Subjects that differ in their backend alone, group by group; of each group the ways in their order."""
    known = table[table["launches"].notna() & table["kernels"].notna() & table["arm"].notna()]
    if known.empty:
        return []
    firsts = known.drop_duplicates("subject")
    found = []
    for _, rows in firsts.groupby(list(ALIKE), dropna=False, sort=False):
        if len(rows.drop_duplicates(list(WAYS))) < 2:
            continue
        ways = [Way(*map(str, own)) for own in rows[["subject", "launches", "kernels"]].itertuples(index=False)]
        found.append(tuple(sorted(ways, key=lambda way: way.rank)))
    return sorted(found, key=lambda ways: ways[0].subject)


@dataclass(frozen=True)
class Task:
    """A piece of work that several ways of running were given.

    times: what each took, by subject. busy: for how long the device was busy with it, where that is known, and
    no_busy: why it is not. floor_ms, bound: the least time, and the ceiling that sets it; None where it is not known.
    """

    cell_id: str
    cell: str
    quantity: Quantity
    times: Mapping[str, Estimate]
    busy: Mapping[str, Estimate]
    no_busy: str
    floor_ms: float | None
    bound: str | None

    @property
    def name(self) -> str:
        """What is done, in which cell."""
        return f"{self.quantity.label}, {self.cell}"


def tasks(table: pd.DataFrame, ways: Sequence[Way]) -> list[Task]:
    """What the ways of a group have done in common: the prefills of the smallest and the largest image, a decode step.

    `table` may have floors beside it (`roofline.beside`). A step is one of the first behind the prompt, as its busy
    time is. Only cells that the most of the ways have measured are looked at.
    """
    names = [way.subject for way in ways]
    rows = table[table["subject"].isin(names) & (table["source"] == "measured") & (table["status"] == "ok")]
    found: list[Task] = []
    prefills = _shared(rows, kinds.PREFILL).sort_values(["prompt_tokens", "cell_id"])
    for cell in _ends(prefills).to_dict("records"):
        own, name = rows[rows["cell_id"] == cell["cell_id"]], _picture(cell)
        for quantity in (*PHASES, PLAIN_WALL):
            busy = BUSY_PREFILL if quantity is PLAIN_WALL else None
            found.append(_task(own, quantity, kinds.PREFILL, name, busy=busy))
    steps = _shared(rows[rows["output_tokens"] > 1], kinds.GENERATION)
    steps = steps.sort_values(["output_tokens", "image_index"], ascending=[False, True])
    for cell in steps.head(1).to_dict("records"):
        own = rows[rows["cell_id"] == cell["cell_id"]]
        name = f"behind {plural(int(cell['prompt_tokens']), 'token')}"
        found.append(_task(own, DECODE_STEP, kinds.GENERATION, name, busy=BUSY_STEP))
    return [task for task in found if len(task.times) > 1]


def _shared(rows: pd.DataFrame, kind: Kind) -> pd.DataFrame:
    """Cells of a kind that the most subjects have measured, and two at least: a row of each."""
    cells = rows[(rows["kind"] == kind) & rows["arm"].notna()].drop_duplicates(["subject", "cell_id"])
    counts = cells.groupby("cell_id")["subject"].transform("nunique")
    if cells.empty or counts.max() < 2:
        return cells.head(0)
    most: pd.DataFrame = cells[counts == counts.max()]
    return most.drop_duplicates("cell_id")


def _ends(cells: pd.DataFrame) -> pd.DataFrame:
    """The first and the last of them."""
    return cells.iloc[sorted({0, len(cells) - 1})] if len(cells) else cells


def _picture(cell: Mapping[Any, Any]) -> str:
    size = "" if pd.isna(cell["width_px"]) else f"{cell['width_px']} x {cell['height_px']} px, "
    return f"{size}{plural(int(cell['prompt_tokens']), 'token')}"


def _task(own: pd.DataFrame, quantity: Quantity, kind: Kind, cell: str, *, busy: Quantity | None) -> Task:
    rows = reading.rows_of(own, quantity, kind=kind)
    behind = rows if busy is None else reading.rows_of(own, busy, kind=kind)
    times = {
        str(row["subject"]): _first_steps(row) if quantity is DECODE_STEP else _median(row)
        for row in rows.to_dict("records")
    }
    reasons = own["busy_reason"].dropna()
    floor = _floor(behind)
    if floor[0] is None:
        floor = _floor(reading.rows_of(own, INTER_TOKEN if quantity is DECODE_STEP else quantity, kind=kind))
    return Task(
        cell_id=str(own["cell_id"].iloc[0]),
        cell=cell,
        quantity=quantity,
        times=times,
        busy={}
        if busy is None
        else _within({str(row["subject"]): _median(row) for row in behind.to_dict("records")}, times),
        no_busy=str(reasons.iloc[0]) if len(reasons) else "the busy time of the device was not measured",
        floor_ms=floor[0],
        bound=floor[1],
    )


def _median(row: Mapping[Any, Any]) -> Estimate:
    return Estimate(float(row["median_ms"]), float(row["low_ms"]), float(row["high_ms"]))


def _within(busy: Mapping[str, Estimate], times: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Busy times, of which none is longer than the work took.

    Replayed one behind the other, passes that are bound by arithmetic make a card lower its clock, and take longer than
    a pass between two others: such a pass has waited for no launch.
    """
    return {name: min(found, times[name], key=lambda e: e.value) for name, found in busy.items() if name in times}


def _first_steps(row: Mapping[Any, Any]) -> Estimate:
    return reading.median_in_order(np.asarray(row["samples_ms"], dtype=np.float64)[:FIRST_STEPS])


def _floor(rows: pd.DataFrame) -> tuple[float | None, str | None]:
    """Floor of a piece of work, which is the same however it is run: the median of what is known."""
    if "floor_ms" not in rows:
        return None, None
    known = rows[rows["floor_ms"] > 0]
    return (float(known["floor_ms"].median()), str(known["bound"].iloc[0])) if len(known) else (None, None)


# ---------------------------------------------------------------------------------------------------------------------
# From eager to the floor


@dataclass(frozen=True)
class Rung:
    """A duration on the way down: of a subject, or the floor (no subject)."""

    subject: str | None
    ms: float


@dataclass(frozen=True)
class Removed:
    """What lies between two rungs, in ms; negative where the lower rung has more of it. left: above the floor."""

    part: Part
    ms: float
    left: bool = False

    @property
    def words(self) -> str:
        """What it is."""
        return (LEFT if self.left else PARTS)[self.part]


@dataclass(frozen=True)
class Waterfall:
    """The way down from the most software to the floor: rungs, and what is removed between each two of them."""

    task: Task
    rungs: tuple[Rung, ...]
    removed: tuple[tuple[Removed, ...], ...]

    @property
    def is_split(self) -> bool:
        """Whether launches and kernels are told apart everywhere."""
        return all(part.part != "together" for parts in self.removed for part in parts)


def chain(task: Task, ways: Sequence[Way]) -> list[Way]:
    """The ways by which a task goes down: those that are seen, in their order; of equal ones the fastest."""
    best: dict[tuple[int, int], Way] = {}
    for way in ways:
        if way.is_seen and way.subject in task.times:
            place = way.rank[:2]
            if place not in best or task.times[way.subject].value < task.times[best[place].subject].value:
                best[place] = way
    return [best[place] for place in sorted(best)]


def waterfall(task: Task, ways: Sequence[Way]) -> Waterfall | Unknown:
    """Go down from the way with the most software to the floor, as far as it is known."""
    down = chain(task, ways)
    rungs = [Rung(way.subject, task.times[way.subject].value) for way in down]
    removed = [_between(task, upper, lower) for upper, lower in pairwise(down)]
    if down and task.floor_ms is not None:
        rungs.append(Rung(None, task.floor_ms))
        removed.append(left_of(task, down[-1]))
    if len(rungs) < 2:
        return Unknown("fewer than two ways of running, and no floor, are known of the same work")
    return Waterfall(task, tuple(rungs), tuple(removed))


def _between(task: Task, upper: Way, lower: Way) -> tuple[Removed, ...]:
    whole = task.times[upper.subject].value - task.times[lower.subject].value
    if upper.subject in task.busy and lower.subject in task.busy:
        kernels = task.busy[upper.subject].value - task.busy[lower.subject].value
        return Removed("launches", whole - kernels), Removed("kernels", kernels)
    if upper.kernels == lower.kernels:
        return (Removed("launches", whole),)
    return (Removed("kernels" if upper.launches == lower.launches else "together", whole),)


def left_of(task: Task, way: Way) -> tuple[Removed, ...]:
    """What a way of running leaves above the floor, which is known."""
    assert task.floor_ms is not None
    time = task.times[way.subject].value
    if way.subject not in task.busy:
        return (Removed("together", time - task.floor_ms, left=True),)
    busy = task.busy[way.subject].value
    return Removed("launches", time - busy, left=True), Removed("kernels", busy - task.floor_ms, left=True)


def whole_tasks(found: Sequence[Task]) -> list[Task]:
    """The tasks that are whole passes, which go down to the floor: a decode step first, then the largest prefill."""
    steps = [task for task in found if task.quantity is DECODE_STEP]
    prefills = [task for task in found if task.quantity is PLAIN_WALL]
    return [*steps[:1], *prefills[-1:]]


# ---------------------------------------------------------------------------------------------------------------------
# The same tokens


@dataclass(frozen=True)
class Tokens:
    """What two ways of running chose in the cells that both were asked: equal cells, and where the others part.

    parted: cell -> number of tokens that are equal before the first that is not.
    """

    first: str
    other: str
    cells: int
    tokens: int
    parted: Mapping[str, int]


def same_tokens(table: pd.DataFrame, ways: Sequence[Way]) -> list[Tokens]:
    """Hold the tokens of every way against those of the first that tells them, cell by cell."""
    told = table[table["subject"].isin([way.subject for way in ways]) & table["output"].notna()]
    outputs: dict[str, dict[str, tuple[int, ...]]] = {way.subject: {} for way in ways}
    for row in told.to_dict("records"):
        outputs[row["subject"]][str(row["cell_id"])] = tuple(int(number) for number in row["output"])
    telling = [(way.subject, outputs[way.subject]) for way in ways if outputs[way.subject]]
    found = []
    for name, own in telling[1:]:
        first, wanted = telling[0]
        both = [cell for cell in wanted if cell in own]
        parted = {cell: _alike(wanted[cell], own[cell]) for cell in both if wanted[cell] != own[cell]}
        if both:
            found.append(Tokens(first, name, len(both), sum(len(wanted[cell]) for cell in both), parted))
    return found


def _alike(wanted: Sequence[int], found: Sequence[int]) -> int:
    """How many tokens are equal before the first that is not."""
    pairs = zip(wanted, found, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(wanted), len(found)))
