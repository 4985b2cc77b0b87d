"""What the software costs: the same model run in several ways beside its floor, and the way down from eager to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vlmeter.analysis import software
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.software import Part, Task, Waterfall, Way
from vlmeter.figures import side_by_side, style
from vlmeter.figures.style import Look
from vlmeter.numbers.units import duration
from vlmeter.numbers.words import plural
from vlmeter.table.quantities import MERGE

NAME = "side_by_side_software"
TITLE = "What the software costs"
SECTION = "side_by_side"

#: Models that one figure has room for.
MOST_GROUPS = 2

#: How what is removed on the way down is hatched, and in which colour.
LOOKS: Mapping[Part, Look] = {
    "launches": style.look("vermilion"),
    "kernels": style.look("sky"),
    "together": style.look("grey"),
}

#: What is a smaller part of the whole than this is drawn, and not said.
SEEN_FRACTION = 0.005

_FLOOR = "floor"


@dataclass(frozen=True)
class _Shown:
    """What is shown of one model."""

    model: str
    ways: tuple[Way, ...]
    tasks: Sequence[Task]
    waterfalls: Sequence[Waterfall]


def _groups(table: pd.DataFrame) -> list[_Shown]:
    found = []
    for ways in software.groups(table):
        tasks = software.tasks(table, ways)
        falls = [software.waterfall(task, ways) for task in software.whole_tasks(tasks)]
        if tasks:
            found.append(
                _Shown(_model(table, ways), ways, tasks, [fall for fall in falls if not isinstance(fall, Unknown)])
            )
    return found


def _model(table: pd.DataFrame, ways: Sequence[Way]) -> str:
    """Name the model that a group has in common."""
    first = table[table["subject"] == ways[0].subject].iloc[0]
    which = first["weights"] if pd.isna(first["preset"]) else first["preset"]
    return f"{first['family']} {which} in {first['dtype']}"


def needs(table: pd.DataFrame) -> str | None:
    """Two subjects that differ in their backend alone, and work that both have done."""
    if not software.groups(table):
        return "no two subjects differ in their backend alone"
    return None if _groups(table) else "subjects that differ in their backend alone have no cell in common"


def draw(table: pd.DataFrame) -> Figure:
    """Draw each phase in every way of running beside its floor, and below it the ways down, one a panel."""
    shown, drawn = _groups(table)[:MOST_GROUPS], side_by_side.looks(table)
    sizes: list[int | float] = []
    for group in shown:
        sizes += [0.75 + 0.31 * len(_rows(group)), *(0.75 + 0.24 * _lines(fall) for fall in group.waterfalls)]
    with style.styled():
        figure, panels = side_by_side.new_panels(sizes)
        left = iter(panels)
        for place, group in enumerate(shown):
            own = next(left)
            _draw_tasks(own, group, drawn)
            if place == 0:
                side_by_side.title(own, TITLE, table, _subjects(shown))
            for fall in group.waterfalls:
                _draw_fall(next(left), fall, drawn)
    return figure


def _subjects(shown: Sequence[_Shown]) -> list[str]:
    return sorted(way.subject for group in shown for way in group.ways)


def _rows(group: _Shown) -> list[Task]:
    """What the upper panel shows; the merge only moves a few rows."""
    return [task for task in group.tasks if task.quantity is not MERGE]


def _draw_tasks(axes: Axes, group: _Shown, drawn: Mapping[str, Look]) -> None:
    rows = _rows(group)
    for place, task in enumerate(rows):
        values = [estimate.value for estimate in task.times.values()]
        ends = [*values, *([task.floor_ms] if task.floor_ms is not None else [])]
        axes.plot([min(ends), max(ends)], [place, place], color=style.FAINT, linewidth=2, zorder=1)
        if task.floor_ms is not None:
            axes.plot([task.floor_ms], [place], "|", color=style.INK, markersize=11, markeredgewidth=1.8)
        for name, estimate in task.times.items():
            look = drawn[name]
            axes.plot([estimate.value], [place], look.mark, color=look.colour, markersize=5.5, markeredgewidth=0)
    axes.set_xscale("log")
    style.log_axis(axes.xaxis)
    axes.set_yticks(range(len(rows)), [_line(task) for task in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{group.model}: time (ms)")
    handles = [
        Line2D([], [], linestyle="", marker=drawn[way.subject].mark, color=drawn[way.subject].colour, markersize=5.5,
               markeredgewidth=0, label=side_by_side.short(way.subject))
        for way in group.ways
    ]  # fmt: skip
    if any(task.floor_ms is not None for task in rows):
        handles.append(
            Line2D([], [], linestyle="", marker="|", color=style.INK, markersize=11, markeredgewidth=1.8, label=_FLOOR)
        )
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)


def _line(task: Task) -> str:
    return f"{task.quantity.label}\n{task.cell}"


def _lines(fall: Waterfall) -> int:
    return len(fall.rungs) + sum(map(len, fall.removed))


def _draw_fall(axes: Axes, fall: Waterfall, drawn: Mapping[str, Look]) -> None:
    labels: list[str] = []
    most = max(rung.ms for rung in fall.rungs)
    for place, rung in enumerate(fall.rungs):
        look = style.look("ink") if rung.subject is None else drawn[rung.subject]
        _bar(axes, len(labels), 0.0, rung.ms, options=style.filled(look), said=duration(rung.ms), most=most)
        labels.append(_FLOOR if rung.subject is None else side_by_side.short(rung.subject))
        top = rung.ms
        for part in fall.removed[place] if place < len(fall.removed) else ():
            tiny = abs(part.ms) < SEEN_FRACTION * most
            said = "next to nothing" if tiny else f"{'-' if part.ms > 0 else '+'} {duration(abs(part.ms))}"
            own = LOOKS[part.part]
            options = {"facecolor": "white", "hatch": own.hatch, "edgecolor": own.colour}
            _bar(axes, len(labels), top - part.ms, top, options=options, said=said, most=most)
            labels.append(part.words)
            top -= part.ms
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.set_xlim(0, most * 1.16)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"{fall.task.name} (ms)")


def _bar(axes: Axes, row: int, low: float, high: float, *, options: Mapping[str, Any], said: str, most: float) -> None:
    low, high = sorted((low, high))
    axes.barh(row, high - low, 0.62, left=low, linewidth=0.8, **options)
    axes.annotate(
        said, (min(high, most * 1.02), row), xytext=(5, 0), textcoords="offset points", va="center", fontsize=7.5
    )


def caption(table: pd.DataFrame) -> str:
    """Say how many times the floor each way of running takes, what each step removes, and what cannot be told apart."""
    every = _groups(table)
    shown = every[:MOST_GROUPS]
    sentences = ["Each mark is a median of one way of running, the stroke the least time that the device needs."]
    if not any(task.floor_ms is not None for group in shown for task in group.tasks):
        sentences[0] = "Each mark is a median of one way of running; what the device needs at least was not measured."
    for group in shown:
        sentences += [_in_words(fall) for fall in group.waterfalls]
        seen = [way.subject for way in group.ways if not way.is_seen]
        if seen:
            sentences.append(
                f"How {side_by_side.listed(seen, len(group.ways))} runs the model is not seen from outside, so that it "
                "has no place on the way down."
            )
        if group.waterfalls and not all(fall.is_split for fall in group.waterfalls):
            sentences.append(
                f"Launches and kernels cannot be told apart where it says so: {group.tasks[-1].no_busy.rstrip('.')}."
            )
    if left := len(every) - len(shown):
        were, are = ("was", "is") if left == 1 else ("were", "are")
        sentences.append(f"{plural(left, 'more model')} that {were} run in several ways {are} in the table.")
    return " ".join([*sentences, *side_by_side.who_is_missing(table, _subjects(shown))])


def _in_words(fall: Waterfall) -> str:
    """One way down in a sentence; what is next to nothing is left out."""
    first, *rest = fall.rungs
    steps = [f"{duration(first.ms)} in {first.subject}"]
    for rung, parts in zip(rest, fall.removed, strict=True):
        seen = [part for part in parts if abs(part.ms) >= SEEN_FRACTION * first.ms]
        less = " and ".join(
            f"{duration(abs(part.ms))} {'less' if part.ms > 0 else 'more'}: {part.words}" for part in seen
        )
        where = f"in {rung.subject}" if rung.subject else "at the floor"
        steps.append(f"{duration(rung.ms)} {where}{f' ({less})' if less else ''}")
    name = fall.task.name
    return f"{name[0].upper()}{name[1:]}: {'; '.join(steps)}."
