"""What the software costs, as tables: one model in several ways of running beside its floor, and the way down to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from vlmeter.analysis import software
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.software import Task, Waterfall, Way
from vlmeter.numbers.units import duration, significant
from vlmeter.numbers.words import plural
from vlmeter.report.grids import Grid, Value, count_value, estimate_value, word_value

#: What was done before any sample of a cell, and may take seconds: columns of the table, and words.
PREPARED = {"compile_s": "compiling", "capture_s": "capturing"}

#: How a model is run, as the table has it, in words.
_LAUNCHES = {
    "each": "every operator is launched by itself",
    "fewer": "several operators in a call",
    "replayed": "whole passes are replayed",
    "unseen": "not seen from outside",
}
_KERNELS = {"separate": "kernels as they are", "fused": "fused kernels", "unseen": ""}


def software_grids(table: pd.DataFrame) -> list[Grid]:
    """Two tables of every model that was run in several ways; `table` may have floors beside it."""
    grids: list[Grid] = []
    for number, ways in enumerate(software.groups(table), start=1):
        tasks = software.tasks(table, ways)
        if not tasks:
            continue
        grids.append(_tasks_grid(table, ways, tasks, f"software-{number}"))
        falls = [software.waterfall(task, ways) for task in software.whole_tasks(tasks)]
        down = [fall for fall in falls if not isinstance(fall, Unknown)]
        if down:
            grids.append(_falls_grid(down, f"software-steps-{number}"))
    return grids


def _tasks_grid(table: pd.DataFrame, ways: Sequence[Way], tasks: Sequence[Task], name: str) -> Grid:
    columns = [("work", "what was timed, in which cell")]
    columns += [
        (way.subject, ", ".join(filter(None, (_LAUNCHES[way.launches], _KERNELS[way.kernels])))) for way in ways
    ]
    columns += [
        ("floor", "least time in which the device could do it, from its measured ceilings"),
        ("fastest over floor", "1 is as fast as can be"),
        ("set by", "the ceiling that makes the floor: arithmetic, or traffic between memory and processors"),
    ]
    rows = []
    for task in tasks:
        times = [
            estimate_value(task.times[w.subject], "ms") if w.subject in task.times else word_value("") for w in ways
        ]
        rows.append([word_value(task.name), *times, *_floor(task)])
        if task.busy:
            busy = [
                estimate_value(task.busy[w.subject], "ms") if w.subject in task.busy else word_value("") for w in ways
            ]
            rows.append([word_value(f"{task.name}: the device is busy"), *busy, *map(word_value, ("", "", ""))])
    for column, doing in PREPARED.items():
        spent = {way.subject: _spent_s(table[table["subject"] == way.subject], column) for way in ways}
        if any(spent.values()):
            seconds = [_seconds(spent[way.subject]) for way in ways]
            rows.append([word_value(f"{doing}, all cells, in no sample"), *seconds, *map(word_value, ("", "", ""))])
    return Grid(name, "The same model, run in several ways: median (95 % interval)", columns, rows)


def _seconds(spent_s: float) -> Value:
    return Value(f"{significant(spent_s)} s", 1000 * spent_s) if spent_s else Value("", math.nan)


def _floor(task: Task) -> tuple[Value, Value, Value]:
    if task.floor_ms is None:
        return Value("", math.nan), Value("", math.nan), word_value("")
    ratio = min(estimate.value for estimate in task.times.values()) / task.floor_ms
    return Value(duration(task.floor_ms), task.floor_ms), Value(significant(ratio), ratio), word_value(task.bound)


def _falls_grid(falls: Sequence[Waterfall], name: str) -> Grid:
    columns = [
        ("work", "what was timed, in which cell"),
        ("step", "from 1, the way of running with the most software about the model"),
        ("from", "the way of running above"),
        ("to", "the one below, or the floor"),
        ("removes", "what lies between the two; launches: duration minus busy time of the device"),
        ("time", "how much; below zero: the lower one has more of it"),
    ]
    rows = [
        [
            word_value(fall.task.name),
            count_value(place + 1),
            word_value(fall.rungs[place].subject or "floor"),
            word_value(fall.rungs[place + 1].subject or "floor"),
            word_value(part.words),
            Value(duration(part.ms), part.ms),
        ]
        for fall in falls
        for place, parts in enumerate(fall.removed)
        for part in parts
    ]
    return Grid(name, "From the most software to the floor: what each step removes", columns, rows)


def _spent_s(rows: pd.DataFrame, column: str) -> float:
    return float(rows.drop_duplicates("cell_id")[column].fillna(0.0).sum())


def preparation_sentence(rows: pd.DataFrame) -> str:
    """Say what a subject took to compile and to capture, apart from all samples; empty where there was nothing."""
    cells = rows.drop_duplicates("cell_id")
    prepared = int(cells[list(PREPARED)].notna().any(axis=1).sum())
    spent = {doing: _spent_s(rows, column) for column, doing in PREPARED.items()}
    parts = [f"{significant(seconds)} s of {doing}" for doing, seconds in spent.items() if seconds]
    if not parts:
        return ""
    return (
        f"Before the first sample of {plural(prepared, 'cell')}: {' and '.join(parts)}. It is in no other number here."
    )
