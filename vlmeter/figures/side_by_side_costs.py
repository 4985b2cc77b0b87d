"""What one more crop, one more vision token and one more output token cost, subject by subject."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import subjects
from vlmeter.analysis.answers import Answers, all_answers, estimate_in, known_of
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import side_by_side, style
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import significant
from vlmeter.numbers.words import plural

NAME = "side_by_side_costs"
TITLE = "Costs side by side"
SECTION = "side_by_side"

#: Answers of the first screen that are costs.
PANELS: Mapping[str, str] = {
    "vision_token": "one more vision token",
    "crop": "one more crop",
    "output_token": "time per output token",
}


def rows(table: pd.DataFrame, answers: Mapping[str, Answers] | None = None) -> dict[str, Answers]:
    """Answers of every subject that has one cost at least."""
    return {
        name: found
        for name, found in (answers or all_answers(table)).items()
        if any(isinstance(estimate_in(found, panel), Estimate) for panel in PANELS)
    }


def needs(table: pd.DataFrame, answers: Mapping[str, Answers] | None = None) -> str | None:
    """Two subjects with a cost each."""
    return None if len(rows(table, answers)) > 1 else "fewer than two subjects have a cost that could be told"


def draw(table: pd.DataFrame, answers: Mapping[str, Answers] | None = None) -> Figure:
    """Draw a panel per cost and in each a row per subject, its estimate and 95 % interval."""
    found, drawn = rows(table, answers), side_by_side.looks(table)
    with style.styled():
        figure, axes = side_by_side.new_panels([len(found)] * len(PANELS))
        for place, (panel, own) in enumerate(zip(PANELS, axes, strict=True)):
            side_by_side.draw_rows(own, known_of(found, panel), drawn)
            own.set_xlabel(f"{PANELS[panel]} (ms)")
            if place == 0:
                side_by_side.title(own, TITLE, table, list(found))
    return figure


def caption(table: pd.DataFrame, answers: Mapping[str, Answers] | None = None) -> str:
    """Say how far apart the costs are, and in which time they are told."""
    found = rows(table, answers)
    sentences = ["Each number is of one subject's cells alone; a cost whose interval holds 0 is not known."]
    for panel in PANELS:
        known, question = known_of(found, panel), PANELS[panel]
        apart = subjects.extremes(known)
        if isinstance(apart, Unknown):
            count = sum(isinstance(one, Estimate) for one in known.values())
            sentences.append(f"{question.capitalize()}: known of {plural(count, 'subject')} only.")
            continue
        sentences.append(
            f"{question.capitalize()}: least in {apart.least} and largest in {apart.most}, "
            f"{significant(apart.times.value, 2)} times as much."
        )
    clocks: dict[str, list[str]] = {}
    for name, costs in found.items():
        if "vision_token" in costs and costs["vision_token"].is_known:
            clocks.setdefault(costs["vision_token"].clock, []).append(name)
    if len(clocks) == 1:
        sentences.append(f"Vision tokens are told in {next(iter(clocks))}.")
    elif clocks:
        told = "; ".join(f"{side_by_side.listed(names, len(found))}: {clock}" for clock, names in clocks.items())
        sentences.append(f"Vision tokens are not told in the same time everywhere ({told}).")
    return " ".join([*sentences, *side_by_side.who_is_missing(table, list(found))])
