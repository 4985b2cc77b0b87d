"""A comparison as rows, as Markdown for a pull request, as JSON, and as the sentence that it comes down to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vlmeter.analysis.answer_files import answer_as_data
from vlmeter.compare.answers import AnswerPair, answer_in_words
from vlmeter.compare.comparison import (
    BUSY_NAME,
    PREFILL_NAME,
    TOTAL_NAME,
    CellComparison,
    Comparison,
    Effect,
    Overall,
    QuantityComparison,
    Verdict,
)
from vlmeter.numbers.modes import Modes
from vlmeter.numbers.units import duration
from vlmeter.numbers.words import plural
from vlmeter.table.quantities import CLOCKS

#: Version of the JSON's form.
COMPARISON_VERSION = 1

#: What a reader wants to see first.
VERDICTS: tuple[Verdict, ...] = ("slower", "faster", "same", "cannot tell")

#: Cells of one verdict that are shown where not all of them are.
SHOWN = 10

#: What is said of the whole cell, whatever the verdict.
_WHOLE = (TOTAL_NAME, BUSY_NAME, PREFILL_NAME)


def change(effect: Effect) -> str:
    """Say a ratio as a change in percent, such as '+3.12 %'."""
    return "n/a" if math.isnan(effect.ratio) else f"{_signed(100 * (effect.ratio - 1))} %"


def interval(effect: Effect) -> str:
    """Say its 95 % interval, such as '+2.40 to +3.85 %'."""
    if math.isnan(effect.low):
        return "no interval"
    return f"{_signed(100 * (effect.low - 1))} to {_signed(100 * (effect.high - 1))} %"


def _signed(value: float) -> str:
    text = f"{value:+.2f}"
    return "0.00" if text in ("+0.00", "-0.00") else text


def pair_name(found: QuantityComparison) -> str:
    """Name what was compared: a subject, or two."""
    return _pair_name(found.subject_a, found.subject_b)


def _pair_name(a: str, b: str) -> str:
    return a if a == b else f"{a} : {b}"


def headline(comparison: Comparison) -> list[str]:
    """Say the verdict on each subject in a sentence, and how many cells have which."""
    sentences = []
    assumed = dict(zip(comparison.pairs, comparison.assumed, strict=True))
    for found in comparison.of(TOTAL_NAME):
        effect = found.overall[0].effect
        who = pair_name(found) if found.subject_a == found.subject_b else f"{found.subject_b} against {found.subject_a}"
        said = {
            "slower": f"slower by {change(effect).lstrip('+')}",
            "faster": f"faster by {change(effect).lstrip('-')}",
            "same": f"the same within {100 * comparison.margin_fraction:g} % ({change(effect)})",
            "cannot tell": f"cannot tell ({change(effect)})",
        }[effect.verdict]
        counted = Counter(cell.effect.verdict for cell in found.cells)
        counts = ", ".join(f"{counted[verdict]} {verdict}" for verdict in VERDICTS if counted[verdict])
        sentences.append(
            f"{who}: {said}, 95 % interval {interval(effect)}; {plural(len(found.cells), 'cell')}: {counts}"
            f"{_assuming(assumed[found.subject_a, found.subject_b])}"
        )
    return sentences


def _assuming(fraction: float | None) -> str:
    """Say what a verdict assumes that was not measured."""
    if fraction is None:
        return ""
    return f"; one run a side, so this assumes that a whole session errs by {100 * fraction:.2g} %"


def answer_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per answer: the two sides in words, each with its interval."""
    return [
        {
            "subject": _pair_name(pair.subject_a, pair.subject_b),
            "answer": pair.told.question,
            "A": answer_in_words(pair.a),
            "B": answer_in_words(pair.b),
        }
        for pair in comparison.answers
    ]


def answer_columns(comparison: Comparison) -> list[str]:
    """Columns of `answer_rows` that say something in this comparison."""
    return [*(["subject"] if len(comparison.pairs) > 1 else []), "answer", "A", "B"]


def overall_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per subject, quantity and scope; phases are there for all cells only."""
    return [
        {
            "subject": pair_name(found),
            "quantity": found.name,
            "scope": part.scope,
            "cells": part.cells,
            "change": change(part.effect),
            "interval": interval(part.effect),
            "verdict": part.effect.verdict,
        }
        for found in comparison.quantities
        for part in (found.overall if found.name in (TOTAL_NAME, BUSY_NAME) else found.overall[:1])
    ]


OVERALL_COLUMNS = ["subject", "quantity", "scope", "cells", "change", "interval", "verdict"]


def telling_rows(comparison: Comparison) -> tuple[list[dict[str, Any]], int]:
    """Rows of `overall_rows` about the whole cell, and of parts that changed or of which that is not known.

    Of clocks that tell the same one is shown. Returns the rows, and how many were left out.
    """
    again = _told_by_another_clock(comparison)
    every = overall_rows(comparison)
    rows = [
        row
        for row in every
        if (row["quantity"] in _WHOLE or row["verdict"] != "same") and (row["subject"], row["quantity"]) not in again
    ]
    return rows, len(every) - len(rows)


def _told_by_another_clock(comparison: Comparison) -> set[tuple[str, str]]:
    """Quantities, by pair and name, whose times are those of another clock of the same span, within the margin."""
    again: set[tuple[str, str]] = set()
    kept: dict[tuple[Any, ...], list[QuantityComparison]] = {}
    for found in sorted(comparison.quantities, key=_clock_order):
        span = (pair_name(found), frozenset((cell.quantity.arm, cell.quantity.phase) for cell in found.cells))
        others = kept.setdefault(span, [])
        if any(_same_times(found, other, comparison.margin_fraction) for other in others):
            again.add((pair_name(found), found.name))
        else:
            others.append(found)
    return again


def _clock_order(found: QuantityComparison) -> tuple[bool, int]:
    """What has a name of its own first, then clocks in their order."""
    clocks = [list(CLOCKS).index(cell.quantity.clock) for cell in found.cells]
    return found.name not in _WHOLE, min(clocks, default=0)


def _same_times(found: QuantityComparison, other: QuantityComparison, margin_fraction: float) -> bool:
    times = {cell.cell_id: (cell.a_ms, cell.b_ms) for cell in other.cells}
    return {cell.cell_id for cell in found.cells} == set(times) and all(
        abs(math.log(mine / theirs)) <= math.log1p(margin_fraction)
        for cell in found.cells
        for mine, theirs in zip((cell.a_ms, cell.b_ms), times[cell.cell_id], strict=True)
    )


def ordered(cells: Sequence[CellComparison]) -> list[CellComparison]:
    """Cells from the one that became slowest to the one that became fastest."""
    return sorted(cells, key=lambda cell: (-cell.effect.ratio, cell.cell_id))


def cell_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row per cell, the slowest first, with busy time beside the total where both sides have it."""
    rows = []
    for found in comparison.of(TOTAL_NAME):
        busy = {
            cell.cell_id: cell
            for other in comparison.of(BUSY_NAME)
            if (other.subject_a, other.subject_b) == (found.subject_a, found.subject_b)
            for cell in other.cells
        }
        for cell in ordered(found.cells):
            beside = busy.get(cell.cell_id)
            rows.append(
                {
                    "subject": pair_name(found),
                    "cell": cell.cell_id,
                    "timed": " ".join(cell.quantity),
                    "a": _median(cell.a_ms, cell.a_modes),
                    "b": _median(cell.b_ms, cell.b_modes),
                    "change": change(cell.effect),
                    "interval": interval(cell.effect),
                    "verdict": cell.effect.verdict,
                    "busy_change": change(beside.effect) if beside else None,
                    "busy_verdict": beside.effect.verdict if beside else None,
                }
            )
    return rows


def _median(value_ms: float, modes: Modes | None) -> str:
    """Say a median, with both modes where it lies between two."""
    return duration(value_ms, 4) if modes is None else f"{duration(value_ms, 4)} (two modes: {modes.said()})"


def cell_columns(comparison: Comparison) -> list[str]:
    """Columns of `cell_rows` that say something in this comparison."""
    columns = ["subject", "cell", "timed", "a", "b", "change", "interval", "verdict"]
    if len(comparison.pairs) < 2:
        columns.remove("subject")
    if len({cell.quantity for found in comparison.of(TOTAL_NAME) for cell in found.cells}) < 2:
        columns.remove("timed")
    return [*columns, "busy_change", "busy_verdict"] if comparison.of(BUSY_NAME) else columns


def telling_cells(comparison: Comparison) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Rows of `cell_rows` that changed, and some of which that is not known.

    Returns the rows, and how many of each verdict were left out.
    """
    rows, left = list[dict[str, Any]](), Counter[str]()
    every = cell_rows(comparison)
    for verdict in VERDICTS:
        own = [row for row in every if row["verdict"] == verdict]
        shown = {"same": 0, "cannot tell": SHOWN}.get(verdict, len(own))
        rows += own[:shown]
        left[verdict] = max(0, len(own) - shown)
    return rows, {verdict: count for verdict, count in left.items() if count}


def lost_lines(comparison: Comparison) -> list[str]:
    """Say which cells have no time, and on which side."""
    return [
        f"{lost.cell_id} has no time in {'A and B' if lost.side == 'both' else lost.side}: {lost.reason}"
        for lost in comparison.lost
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Markdown


def as_markdown(comparison: Comparison, *, beyond: Sequence[str] = ()) -> str:
    """Lay a comparison out for a pull request: the verdict, misgivings, the overall numbers, cells folded away."""
    lines = ["### vlmeter: B against A", ""]
    lines += [f"**{_escape(sentence)}**  " for sentence in headline(comparison)]
    lines += ["", f"A: `{comparison.a}`, B: `{comparison.b}`", ""]
    if comparison.answers:
        lines += [*_table(answer_rows(comparison), answer_columns(comparison)), ""]
    lines += [f"- :x: {_escape(sentence)}" for sentence in beyond]
    lines += [f"- :warning: {_escape(warning)}" for warning in (*comparison.warnings, *lost_lines(comparison))]
    lines += [f"- {_escape(note)}" for note in comparison.notes]
    totals = [row for row in overall_rows(comparison) if row["quantity"] in _WHOLE]
    lines += ["", *_table(totals, OVERALL_COLUMNS)]
    columns, rows = cell_columns(comparison), cell_rows(comparison)
    told = [row for row in rows if row["verdict"] in ("slower", "faster")]
    if told:
        lines += ["", *_table(told[:SHOWN], columns)]
        if len(told) > SHOWN:
            lines += ["", f"and {len(told) - SHOWN} more cells that changed, below"]
    lines += ["", f"<details><summary>All {plural(len(rows), 'cell')}</summary>", "", *_table(rows, columns)]
    phases = [row for row in overall_rows(comparison) if row["quantity"] not in _WHOLE]
    lines += ["", "</details>", "<details><summary>By phase and clock</summary>", "", *_table(phases, OVERALL_COLUMNS)]
    return "\n".join([*lines, "", "</details>", ""])


def _table(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> list[str]:
    """A Markdown table; verdicts that ask for attention are bold."""
    right = {"a", "b", "change", "interval", "cells", "busy_change"}
    lines = [
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---:' if name in right else '---' for name in columns)} |",
    ]
    for row in rows:
        said = ["" if row.get(name) is None else _escape(str(row[name])) for name in columns]
        lines.append(f"| {' | '.join(f'**{text}**' if text in ('slower', 'faster') else text for text in said)} |")
    return lines


def _escape(text: str) -> str:
    """Keep a name from being taken for markup."""
    for mark in ("\\", "|", "<", "*", "_", "`"):
        text = text.replace(mark, f"\\{mark}")
    return text


# ---------------------------------------------------------------------------------------------------------------------
# JSON


def as_data(comparison: Comparison, *, beyond: Sequence[str] = ()) -> dict[str, Any]:
    """A comparison as plain data, unrounded; what is not known is None."""
    return {
        "comparison_version": COMPARISON_VERSION,
        "a": comparison.a,
        "b": comparison.b,
        "margin_fraction": comparison.margin_fraction,
        "beyond_limits": list(beyond),
        "assumed_session_noise": [
            {"subject_a": a, "subject_b": b, "fraction": fraction}
            for (a, b), fraction in zip(comparison.pairs, comparison.assumed, strict=True)
        ],
        "warnings": list(comparison.warnings),
        "notes": list(comparison.notes),
        "not_timed": [vars(lost) for lost in comparison.lost],
        "answers": [_answer_data(pair) for pair in comparison.answers],
        "quantities": [
            {
                "name": found.name,
                "subject_a": found.subject_a,
                "subject_b": found.subject_b,
                "overall": [_overall_data(part) for part in found.overall],
                "cells": [_cell_data(cell) for cell in found.cells],
            }
            for found in comparison.quantities
        ],
    }


def _answer_data(pair: AnswerPair) -> dict[str, Any]:
    sides = {
        side: None if own is None else answer_as_data(own) | {"said": answer_in_words(own)}
        for side, own in (("a", pair.a), ("b", pair.b))
    }
    return {"name": pair.told.name, "subject_a": pair.subject_a, "subject_b": pair.subject_b, **sides}


def _overall_data(part: Overall) -> dict[str, Any]:
    return {"scope": part.scope, "cells": part.cells, **_effect_data(part.effect)}


def _cell_data(cell: CellComparison) -> dict[str, Any]:
    return {
        "cell_id": cell.cell_id,
        "experiment": cell.experiment,
        **cell.quantity._asdict(),
        "a_median_ms": cell.a_ms,
        "b_median_ms": cell.b_ms,
        "a_samples": cell.a_samples,
        "b_samples": cell.b_samples,
        "a_modes_ms": cell.a_modes and [cell.a_modes.low, cell.a_modes.high],
        "b_modes_ms": cell.b_modes and [cell.b_modes.low, cell.b_modes.high],
        **_effect_data(cell.effect),
    }


def _effect_data(effect: Effect) -> dict[str, Any]:
    return {
        "ratio": effect.ratio,
        "low_ratio": _known(effect.low),
        "high_ratio": _known(effect.high),
        "verdict": effect.verdict,
        "chance_if_equal": _known(effect.chance_if_equal),
        "chance_if_unlike": _known(effect.chance_if_unlike),
        "degrees_of_freedom": _known(effect.freedom),
    }


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
