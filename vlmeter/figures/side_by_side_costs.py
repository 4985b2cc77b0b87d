"""What one more crop, 1,000 more vision tokens and one more output token cost, subject by subject."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import subjects
from vlmeter.analysis.headlines import Headline
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import side_by_side, style
from vlmeter.numbers.units import significant
from vlmeter.numbers.words import plural

NAME = "side_by_side_costs"
TITLE = "Costs side by side"
SECTION = "side_by_side"

#: Answers of the first screen that are costs.
PANELS = ("per_1000_tokens", "per_crop", "per_output_token")


def rows(table: pd.DataFrame) -> dict[str, dict[str, Headline]]:
    """Costs of every subject that has one at least."""
    return {
        name: found
        for name, found in subjects.costs(table).items()
        if not all(isinstance(found[panel].answer, Unknown) for panel in PANELS)
    }


def needs(table: pd.DataFrame) -> str | None:
    """Two subjects with a cost each."""
    return None if len(rows(table)) > 1 else "fewer than two subjects have a cost that could be told"


def draw(table: pd.DataFrame) -> Figure:
    """Draw a panel per cost and in each a row per subject, its estimate and 95 % interval."""
    found, drawn = rows(table), side_by_side.looks(table)
    with style.styled():
        figure, axes = side_by_side.new_panels([len(found)] * len(PANELS))
        for place, (panel, own) in enumerate(zip(PANELS, axes, strict=True)):
            answers = {name: costs[panel].answer for name, costs in found.items()}
            side_by_side.draw_rows(own, answers, drawn)
            question = next(iter(found.values()))[panel].question
            own.set_xlabel(f"{question} (ms)")
            if place == 0:
                side_by_side.title(own, TITLE, table, list(found))
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say how far apart the costs are, and in which time they are told."""
    found = rows(table)
    sentences = ["Each number is fitted to one subject's cells alone; a hollow point is a cost whose interval holds 0."]
    for panel in PANELS:
        answers = {name: costs[panel].answer for name, costs in found.items()}
        question = next(iter(found.values()))[panel].question
        seen = {name: answer for name, answer in answers.items() if isinstance(answer, Unknown) or answer.low > 0}
        apart = subjects.extremes(seen)
        if isinstance(apart, Unknown):
            unknown = sum(isinstance(answer, Unknown) for answer in answers.values())
            sentences.append(f"The cost of {question} is known of {plural(len(answers) - unknown, 'subject')} only.")
            continue
        sentences.append(
            f"The cost of {question} is least in {apart.least} and largest in {apart.most}, "
            f"{significant(apart.times.value, 2)} times as much."
        )
    clocks: dict[str, list[str]] = {}
    for name, costs in found.items():
        if not isinstance(costs["per_1000_tokens"].answer, Unknown):
            clocks.setdefault(costs["per_1000_tokens"].note.partition(";")[0], []).append(name)
    if len(clocks) == 1:
        sentences.append(f"Vision tokens are told in {next(iter(clocks))}.")
    elif clocks:
        told = "; ".join(f"{side_by_side.listed(names, len(found))}: {clock}" for clock, names in clocks.items())
        sentences.append(f"Vision tokens are not told in the same time everywhere ({told}).")
    return " ".join([*sentences, *side_by_side.who_is_missing(table, list(found))])
