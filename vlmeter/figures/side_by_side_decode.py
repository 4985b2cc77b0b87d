"""What an output token costs in each subject, and how the cost of a step grows with the context."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import step_times, subjects
from vlmeter.analysis.answers import Answers, all_answers, known_of
from vlmeter.analysis.reading import Unknown
from vlmeter.figures import side_by_side, style
from vlmeter.numbers.intervals import Array
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import significant

NAME = "side_by_side_decode"
TITLE = "Decode by output token and by context"
SECTION = "side_by_side"

#: So many times as far apart as most contexts, two are not joined by a line.
WIDE_GAPS = 8.0


def per_token(table: pd.DataFrame, answers: Mapping[str, Answers] | None) -> dict[str, Estimate | Unknown]:
    """Time per output token, of every subject that decoded."""
    known = known_of(answers or all_answers(table), "output_token")
    return {name: known[name] for name in subjects.steps(table)}


def needs(table: pd.DataFrame, answers: Mapping[str, Answers] | None = None) -> str | None:
    """Two subjects that decoded."""
    return None if len(subjects.steps(table)) > 1 else "fewer than two subjects have a decode step that was measured"


def draw(table: pd.DataFrame, answers: Mapping[str, Answers] | None = None) -> Figure:
    """Draw the cost per output token as rows, and below it the duration of a step over the context, a line each."""
    found, drawn, steps = per_token(table, answers), side_by_side.looks(table), subjects.steps(table)
    with style.styled():
        figure, (upper, lower) = side_by_side.new_panels([len(found), 3.2 if len(found) < 8 else 4.2])
        side_by_side.draw_rows(upper, found, drawn)
        upper.set_xlabel("time per output token (ms)")
        for name, (contexts, values) in steps.items():
            look = drawn[name]
            every = max(1, len(values) // 12)
            for part in pieces(contexts):
                line: dict[str, Any] = {"color": look.colour, "linewidth": 1.3, "markersize": 4, "markeredgewidth": 0}
                lower.plot(contexts[part], values[part], linestyle=look.dash, marker=look.mark, markevery=every, **line)
        if side_by_side.far_apart(np.concatenate([values for _, values in steps.values()])):
            lower.set_yscale("log")
            style.log_axis(lower.yaxis)
        else:
            style.from_zero(lower)
        if side_by_side.far_apart(np.concatenate([contexts for contexts, _ in steps.values()])):
            lower.set_xscale("log")
            style.log_axis(lower.xaxis)
            lower.set_xlabel("tokens in context (prompt and output so far)")
        else:
            style.token_axis(lower, "tokens in context (prompt and output so far)")
        lower.set_ylabel("one decode step (ms)")
        side_by_side.title(upper, TITLE, table, list(found))
        figure.draw_without_rendering()
        ends = {name: (float(contexts[-1]), float(values[-1])) for name, (contexts, values) in steps.items()}
        side_by_side.label_lines(lower, ends, drawn)
    return figure


def pieces(contexts: Array) -> list[slice]:
    """Where a line is whole: between the runs of two images lie contexts that nobody measured."""
    gaps = np.diff(contexts)
    cuts = [0, *(np.flatnonzero(gaps > WIDE_GAPS * np.median(gaps)) + 1 if len(gaps) else []), len(contexts)]
    return [slice(start, end) for start, end in pairwise(cuts)]


def caption(table: pd.DataFrame, answers: Mapping[str, Answers] | None = None) -> str:
    """Say who decodes fastest, and whose steps grow with the context."""
    found = per_token(table, answers)
    sentences = ["Above: what one more output token takes. Below: the longest run of each image, step by step."]
    apart = subjects.extremes(found)
    if not isinstance(apart, Unknown):
        sentences.append(
            f"The cost of an output token is least in {apart.least} and largest in {apart.most}, "
            f"{significant(apart.times.value, 2)} times as much."
        )
    grows: list[str] = []
    flat: list[str] = []
    modes: list[str] = []
    for name in found:
        law = step_times.step_law(table, name)
        if not isinstance(law, Unknown):
            (grows if law.fit["per_context_token"].low > 0 else flat).append(name)
            modes += [f"{name}: {law.modes}"] if law.modes else []
    if grows:
        sentences.append(f"A step is seen to grow with the context in {side_by_side.listed(grows, len(found))}.")
    if flat:
        sentences.append(
            f"In {side_by_side.listed(flat, len(found))} no growth beyond noise is seen, over the range measured."
        )
    if modes:
        sentences.append(f"Behind these steps, {'; '.join(modes)}.")
    return " ".join([*sentences, *side_by_side.who_is_missing(table, list(found))])
