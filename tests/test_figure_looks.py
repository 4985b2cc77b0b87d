"""Every figure can be read: no words over one another, none cut, none too small; series told apart without colours."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from tests.support.colours import apart, contrast
from tests.support.fakes import FakeRunner
from tests.support.roofline import with_floors
from tests.support.tables import (
    LATENCY,
    OF_SERVERS,
    OF_WAYS,
    CpuLikeRunner,
    at_a_server,
    in_formats,
    records_of,
    table_of,
)
from tests.support.ways import WAYS, ways_table
from vlmeter.figures import style
from vlmeter.figures.registry import ALL_FIGURES, FIGURES, NOT_DRAWN, SIDE_BY_SIDE, draw_or_explain
from vlmeter.report.pictures import DARK_COLOURS
from vlmeter.table.build import build_table

#: Letters of this size have 9 CSS px and more where a figure has its real size, as it has on a page of every width.
LEAST_POINTS = 7.0

#: Colours so far apart in CIELAB are told apart at a glance, the one beside the other or not.
FAR_APART = 10.0

#: Tables of a study as the quickstart is, and of studies of one cell each.
STUDIES: dict[str, dict[str, Any]] = {
    "many cells": {"latency": LATENCY, "runner": FakeRunner(noise_fraction=0.01, launch_ms={"vision_encoder": 4.0})},
    "one prefill": {"vision": {"tilings": ["2x2"]}, "output": None, "runner": CpuLikeRunner()},
    "one generation": {"vision": None, "output": {"output_tokens": [64], "sampling": {"min_samples": 3}}},
    "one cell of requests": {"vision": None, "output": None, "latency": {"samples": 80, "block_samples": 80}},
}

Drawn = dict[tuple[str, str], Figure]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pd.DataFrame]:
    return {study: with_floors(table_of(tmp_path_factory.mktemp("study"), **given)) for study, given in STUDIES.items()}


@pytest.fixture(scope="module")
def drawn(tables: dict[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    """Every figure that each of the studies can fill, laid out."""
    found: Drawn = {}
    for study, table in tables.items():
        found |= {(study, name): figure for name, figure in _figures(table, FIGURES)}
    paths = records_of(tmp_path_factory.mktemp("server"), output=None)
    served = build_table([at_a_server(path) for path in paths])
    sent = in_formats(served, [20, 50, 75, 90])
    found |= {("server", name): figure for name, figure in _figures(sent, OF_SERVERS & set(FIGURES))}
    beside = build_table(records_of(tmp_path_factory.mktemp("beside"), latency=None))
    three = [served.assign(subject="served"), beside, beside.assign(subject="other")]
    found |= {
        ("three subjects", name): figure for name, figure in _figures(pd.concat(three, ignore_index=True), SIDE_BY_SIDE)
    }
    ways = with_floors(ways_table(tmp_path_factory.mktemp("ways"), *WAYS))
    models = [ways.assign(subject=f"{preset}-" + ways["subject"], preset=preset) for preset in ("7b-d", "7b-o")]
    for study, table in {"four ways": ways, "two models": pd.concat(models, ignore_index=True)}.items():
        found |= {(study, name): figure for name, figure in _figures(table, OF_WAYS)}
    return found


def _figures(table: pd.DataFrame, names: Any) -> Iterator[tuple[str, Figure]]:
    for name in names:
        figure, caption = draw_or_explain(table, name)
        assert (figure is None) == caption.startswith(NOT_DRAWN)
        if figure is not None:
            with style.styled():
                figure.draw_without_rendering()
            yield name, figure


def words(figure: Figure) -> list[tuple[Text, Bbox]]:
    """Words that are seen, with the boxes that they fill, in the figure's pixels."""
    found: list[Text] = []
    for axes in figure.axes:
        titles = [axes.title, axes._left_title, axes._right_title]  # type: ignore[attr-defined]
        found += [*axes.texts, *titles]
        for axis in (axes.xaxis, axes.yaxis):
            ticks = axis._update_ticks()  # type: ignore[attr-defined]
            found += [axis.label, axis.offsetText, *(tick.label1 for tick in ticks)]
        if (legend := axes.get_legend()) is not None:
            found += [*legend.get_texts(), legend.get_title()]
    for legend in figure.legends:
        found += legend.get_texts()
    found += [*figure.texts, *([figure._suptitle] if figure._suptitle else [])]  # type: ignore[attr-defined]
    shown = [text for text in dict.fromkeys(found) if text.get_visible() and text.get_text().strip()]
    return [(text, Text.get_window_extent(text)) for text in shown]


def test_every_figure_is_among_them(drawn: Drawn) -> None:
    assert {name for _, name in drawn} == set(ALL_FIGURES)
    for study in STUDIES:
        assert len([name for of, name in drawn if of == study]) >= 4


def test_no_words_lie_over_one_another(drawn: Drawn) -> None:
    over = [
        (key, one.get_text(), other.get_text())
        for key, figure in drawn.items()
        for (one, box), (other, its) in combinations(words(figure), 2)
        if not (one.get_rotation() % 90 and other.get_rotation() % 90)  # the boxes of slanted words do overlap
        if min(box.x1, its.x1) - max(box.x0, its.x0) > 1 and min(box.y1, its.y1) - max(box.y0, its.y0) > 1
    ]
    assert over == []


def test_no_words_are_cut_by_the_edge(drawn: Drawn) -> None:
    cut = [
        (key, text.get_text())
        for key, figure in drawn.items()
        for text, box in words(figure)
        if min(box.x0, box.y0, figure.bbox.x1 - box.x1, figure.bbox.y1 - box.y1) < -1
    ]
    assert cut == []


def test_words_are_large_enough_and_stand_out_in_light_and_in_dark(drawn: Drawn) -> None:
    bad = []
    for key, figure in drawn.items():
        for text, _ in words(figure):
            light = to_hex(text.get_color())
            dark = DARK_COLOURS.get(light, light)
            ratios = contrast(to_rgb(light), (1, 1, 1)), contrast(to_rgb(dark), to_rgb(DARK_COLOURS["#ffffff"]))
            if min(ratios) < 4.5 or text.get_fontsize() < LEAST_POINTS:
                bad.append((key, text.get_text(), text.get_fontsize(), ratios))
    assert bad == []


class Seen(NamedTuple):
    """How a series looks: its colour, and what is seen of it without colours."""

    colour: tuple[float, float, float]
    otherwise: tuple[Any, ...]


def bars_of(axes: Axes) -> set[Seen]:
    solid = [patch for patch in axes.patches if isinstance(patch, Patch) and (patch.get_alpha() or 1) > 0.3]
    wide = [
        patch
        for patch in solid
        if isinstance(patch, Rectangle) and patch.get_transform().contains_branch(axes.transData)
    ]
    found = set()
    for bar in wide:
        if bar.get_fill():
            is_open = to_rgb(bar.get_facecolor()) == (1, 1, 1)
            colour = bar.get_edgecolor() if is_open else bar.get_facecolor()
            found.add(Seen(to_rgb(colour), (bar.get_hatch() or "", is_open)))
    return found


def marks_of(axes: Axes) -> set[Seen]:
    """Lines and dots in the data; those of a colour scale, or in a row with a name, are told apart by that."""
    if any(label.get_text().strip("0123456789,.\u2212 kMGT%") for label in axes.get_yticklabels()):
        return set()
    lines = [
        line for line in axes.lines if line.get_transform().contains_branch(axes.transData) and len(line.get_xydata())
    ]
    seen = {
        Seen(to_rgb(line.get_color()), (str(line.get_marker()), str(line.get_linestyle())))
        for line in lines
        if to_hex(line.get_color()) not in (style.MUTED, style.FAINT, style.INK)
    }
    for dots in axes.collections:
        if isinstance(dots, PathCollection) and dots.get_array() is None and len(np.asarray(dots.get_offsets())):
            edges = dots.get_edgecolors() if len(dots.get_edgecolors()) else dots.get_facecolors()
            seen.add(Seen(to_rgb(edges[0]), (dots.get_paths()[0].vertices.tobytes(), "None")))
    return seen


@pytest.mark.parametrize("kind", [bars_of, marks_of])
def test_series_are_told_apart_by_colour_blind_eyes_and_in_grey(drawn: Drawn, kind: Any) -> None:
    """By the colours, or by hatch, mark and line."""
    alike = [
        (key, to_hex(one.colour), to_hex(other.colour), one.otherwise)
        for key, figure in drawn.items()
        for axes in figure.axes
        for one, other in combinations(kind(axes), 2)
        if one.colour != other.colour
        and one.otherwise == other.otherwise
        and apart(one.colour, other.colour) < FAR_APART
    ]
    assert alike == []
    assert sum(len(kind(axes)) > 1 for figure in drawn.values() for axes in figure.axes) > 5, (
        "there was something to see"
    )


def test_no_filled_mark_is_rounded_off_by_a_seam(drawn: Drawn) -> None:
    """Small marks that have an outline of their colour all look alike."""
    seams = [
        width
        for axes in drawn["many cells", "flops_latency"].axes
        for dots in axes.collections
        if isinstance(dots, PathCollection)
        for width, face in zip(dots.get_linewidths(), dots.get_facecolors(), strict=False)
        if to_hex(face) != "#ffffff"
    ]
    assert seams
    assert set(seams) == {0.0}


def test_each_colour_of_the_palette_has_a_mark_of_its_own_and_plain_ones_differ_in_grey() -> None:
    looks = [style.look(name) for name in style.COLOURS]
    assert len({own.mark for own in looks}) == len(looks)
    plain = [own for own in looks if not own.hatch]
    assert len({own.hatch for own in looks if own.hatch}) == len(looks) - len(plain)
    near = [
        (a.colour, b.colour) for a, b in combinations(plain, 2) if apart(to_rgb(a.colour), to_rgb(b.colour)) < FAR_APART
    ]
    assert near == []


@pytest.mark.parametrize("name", ["vision_by_tokens", "two_methods", "three_clocks", "two_factors", "limits"])
def test_ticks_of_tokens_stand_at_counts_that_were_measured(
    drawn: Drawn, tables: dict[str, pd.DataFrame], name: str
) -> None:
    figure = drawn["many cells", name]
    axes = next(axes for axes in figure.axes if "tokens" in axes.get_xlabel() and "a crops" not in axes.get_xlabel())
    column = "vision_tokens" if "vision tokens" in axes.get_xlabel().partition("(")[0] else "prompt_tokens"
    measured = set(tables["many cells"][column].dropna())
    ticks = set(axes.get_xticks())
    assert len(ticks) > 2
    assert ticks <= measured
