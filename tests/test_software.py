"""One model run in several ways: found by what backends say, set beside the floor, taken down to it step by step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.fakes import TellingRunner
from tests.support.html import parse
from tests.support.reports import inputs_of
from tests.support.roofline import with_floors
from tests.support.tables import CpuLikeRunner, rewrite
from tests.support.ways import FUSED_STEP_MS, LAUNCH_STEP_MS, STEP_MS, WAYS, runner_of, ways_table
from vlmeter.analysis import software
from vlmeter.analysis.prediction import predict
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.roofline import COLUMNS
from vlmeter.analysis.software import Task, Waterfall, Way
from vlmeter.claims.base import Claim
from vlmeter.claims.subjects import judge_side_by_side
from vlmeter.compare.baseline import run_of_table
from vlmeter.figures import side_by_side, style
from vlmeter.figures.registry import get_figure
from vlmeter.report.page import render
from vlmeter.report.software import preparation_sentence, software_grids
from vlmeter.table.build import build_table
from vlmeter.table.quantities import DECODE_STEP, PHASES, PLAIN_WALL

NAMES = tuple(WAYS)

#: Floor of a decode step in `with_floors`: a gigabyte at a terabyte a second.
FLOOR_MS = 1.0


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return ways_table(tmp_path_factory.mktemp("ways"), *NAMES)


@pytest.fixture(scope="module")
def with_floor(table: pd.DataFrame) -> pd.DataFrame:
    return with_floors(table)


def roofline_of(with_floor: pd.DataFrame) -> pd.DataFrame:
    return with_floor.loc[with_floor["floor_ms"].notna(), [name for name, _, _ in COLUMNS]]


def the_group(table: pd.DataFrame) -> tuple[Way, ...]:
    (found,) = software.groups(table)
    return found


def step_of(table: pd.DataFrame) -> Task:
    return next(task for task in software.tasks(table, the_group(table)) if task.quantity is DECODE_STEP)


def down(table: pd.DataFrame, task: Task) -> Waterfall:
    found = software.waterfall(task, the_group(table))
    assert isinstance(found, Waterfall)
    return found


def judged(table: pd.DataFrame, roofline: pd.DataFrame | None = None) -> dict[str, Claim]:
    return {claim.name: claim for claim in judge_side_by_side(table, roofline=roofline)}


# --- who is set beside whom -------------------------------------------------------------------------


def test_ways_of_running_one_model_stand_in_the_order_of_what_their_backends_say(table: pd.DataFrame) -> None:
    assert [way.subject for way in the_group(table)] == list(NAMES)
    said = [(way.launches, way.kernels) for way in the_group(table)]
    assert said == [("each", "separate"), ("replayed", "separate"), ("replayed", "fused"), ("unseen", "unseen")]
    renamed = table.assign(backend=table["backend"].map({name: f"{name}-2" for name in set(table["backend"])}))
    assert the_group(renamed) == the_group(table), "no name of a backend plays a part"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("dtype", "float32"),
        ("preset", "7b-d"),
        ("weights_seed", 1),
        ("attention", "eager"),
        ("vision_attention_dtype", "weights"),
        ("device_model", "another"),
        ("cpu_threads", 2),
    ],
)
def test_subjects_that_differ_in_more_than_their_backend_are_not_set_beside_each_other(
    table: pd.DataFrame, column: str, value: Any
) -> None:
    other = table.copy()
    other.loc[other["subject"] != "plain", column] = value
    assert [way.subject for way in the_group(other)] == ["graphs", "fused", "served"]


def test_two_subjects_with_one_backend_are_no_ways_of_running(table: pd.DataFrame) -> None:
    one = table[table["subject"] == "plain"]
    assert software.groups(pd.concat([one, one.assign(subject="twin")])) == []
    compiled = table[table["subject"] == "fused"]
    harder = compiled.assign(subject="harder", compile_mode="max-autotune")
    assert [way.subject for way in the_group(pd.concat([compiled, harder]))] == ["fused", "harder"]


def test_a_record_that_does_not_say_how_it_was_run_has_no_part(table: pd.DataFrame) -> None:
    silent = table.copy()
    silent.loc[silent["subject"] == "graphs", ["launches", "kernels"]] = pd.NA
    assert [way.subject for way in the_group(silent)] == ["plain", "fused", "served"]


# --- the same work ----------------------------------------------------------------------------------


def test_each_phase_of_the_smallest_and_largest_image_is_told_in_every_way_beside_its_floor(
    table: pd.DataFrame, with_floor: pd.DataFrame
) -> None:
    found = software.tasks(with_floor, the_group(table))
    assert [task.quantity for task in found] == [*PHASES, PLAIN_WALL, *PHASES, PLAIN_WALL, DECODE_STEP]
    assert {task.cell_id for task in found} == {"vision-tiling-1x1", "vision-tiling-3x4", "output-image0-n32"}
    for task in found:
        assert set(task.times) == set(NAMES)
        assert task.floor_ms is not None
    rows = table[(table["cell_id"] == "vision-tiling-3x4") & (table["phase"] == "llm_blocks")].set_index("subject")
    (blocks,) = (t for t in found if t.cell_id == "vision-tiling-3x4" and t.quantity.name == "llm_blocks")
    for name in NAMES:
        assert blocks.times[name].value == rows.loc[name, "median_ms"]


def test_a_step_is_one_of_the_first_behind_the_prompt_as_its_busy_time_is(table: pd.DataFrame) -> None:
    task = step_of(table)
    row = table[(table["subject"] == "plain") & (table["cell_id"] == task.cell_id)
                & (table["phase"] == "decode_step") & (table["clock"] == "device")].iloc[0]  # fmt: skip
    assert task.times["plain"].value == pytest.approx(float(np.median(np.asarray(row["samples_ms"])[:16])))
    assert task.busy["plain"].value == pytest.approx(STEP_MS)


def test_only_cells_that_the_most_have_measured_are_looked_at(table: pd.DataFrame) -> None:
    largest = (table["cell_id"] == "vision-tiling-3x4") & (table["subject"] == "served")
    found = software.tasks(table[~largest], the_group(table))
    assert {task.cell_id for task in found} == {"vision-tiling-1x1", "vision-tiling-2x2", "output-image0-n32"}


# --- from eager to the floor ------------------------------------------------------------------------


def test_a_step_goes_down_from_eager_to_the_floor_by_launches_and_by_kernels(
    table: pd.DataFrame, with_floor: pd.DataFrame
) -> None:
    fall = down(table, step_of(with_floor))
    assert [rung.subject for rung in fall.rungs] == ["plain", "graphs", "fused", None]
    assert [rung.ms for rung in fall.rungs] == pytest.approx(
        [LAUNCH_STEP_MS, STEP_MS, FUSED_STEP_MS, FLOOR_MS], rel=0.01
    )
    parts = [{part.part: part.ms for part in between} for between in fall.removed]
    expected = [
        {"launches": LAUNCH_STEP_MS - STEP_MS, "kernels": 0.0},
        {"launches": 0.0, "kernels": STEP_MS - FUSED_STEP_MS},
        {"launches": 0.0, "kernels": FUSED_STEP_MS - FLOOR_MS},
    ]
    for found, wanted in zip(parts, expected, strict=True):
        assert found == pytest.approx(wanted, abs=0.05)
    assert fall.is_split


def test_what_is_removed_adds_up_to_what_lies_between_the_rungs(with_floor: pd.DataFrame) -> None:
    for task in software.whole_tasks(software.tasks(with_floor, the_group(with_floor))):
        fall = down(with_floor, task)
        for upper, lower, parts in zip(fall.rungs, fall.rungs[1:], fall.removed, strict=False):
            assert sum(part.ms for part in parts) == pytest.approx(upper.ms - lower.ms)


def test_of_two_ways_of_one_kind_the_faster_one_is_on_the_way_down(table: pd.DataFrame) -> None:
    task = step_of(table)
    slow = Way("a-slow-one", "replayed", "fused")
    twice = {**task.times, "a-slow-one": task.times["plain"]}
    both = Task(task.cell_id, task.cell, task.quantity, twice, task.busy, "", None, None)
    assert [way.subject for way in software.chain(both, [*the_group(table), slow])] == ["plain", "graphs", "fused"]


def test_a_busy_time_that_is_longer_than_the_work_took_leaves_no_launches(with_floor: pd.DataFrame) -> None:
    slow = with_floor.copy()
    replayed = (slow["subject"] == "fused") & (slow["arm"] == "busy")
    slow.loc[replayed, ["median_ms", "low_ms", "high_ms"]] *= 1.1
    for task in software.whole_tasks(software.tasks(slow, the_group(slow))):
        left = {part.part: part.ms for part in down(slow, task).removed[-1]}
        assert left["launches"] == 0
        assert left["kernels"] == pytest.approx(task.times["fused"].value - task.floor_ms)  # type: ignore[operator]


def without_busy(table: pd.DataFrame) -> pd.DataFrame:
    reason = "a CPU works in step with the host"
    return table[table["arm"] != "busy"].assign(busy_reason=pd.array([reason], dtype="string")[0])


def test_without_busy_time_a_step_is_named_by_the_one_thing_in_which_two_ways_differ(with_floor: pd.DataFrame) -> None:
    bare = without_busy(with_floor)
    fall = down(bare, step_of(bare))
    assert [[part.part for part in parts] for parts in fall.removed] == [["launches"], ["kernels"], ["together"]]
    assert not fall.is_split


def test_without_busy_time_two_ways_that_differ_in_both_are_not_told_apart(with_floor: pd.DataFrame) -> None:
    bare = without_busy(with_floor[with_floor["subject"] != "graphs"])
    fall = down(bare, step_of(bare))
    assert [[part.part for part in parts] for parts in fall.removed] == [["together"], ["together"]]
    said = get_figure("side_by_side_software").caption(bare)
    assert "launches, kernels and traffic" in said
    assert "cannot be told apart where it says so: a CPU works in step with the host." in said


def test_without_a_floor_it_ends_with_the_fastest_way(table: pd.DataFrame) -> None:
    assert [rung.subject for rung in down(table, step_of(table)).rungs] == ["plain", "graphs", "fused"]
    served = Task("c", "c", DECODE_STEP, {"served": step_of(table).times["served"]}, {}, "", None, None)
    assert isinstance(software.waterfall(served, the_group(table)), Unknown)


# --- the figure -------------------------------------------------------------------------------------


def test_the_figure_shows_each_phase_in_each_way_and_two_ways_down(with_floor: pd.DataFrame) -> None:
    figure = get_figure("side_by_side_software").draw(with_floor)
    tasks, step, prefill = figure.axes
    looks = side_by_side.looks(with_floor)
    found = software.tasks(with_floor, the_group(with_floor))
    shown = [task for task in found if task.quantity.name != "merge"]
    assert len(tasks.get_yticklabels()) == len(shown)
    for place, task in enumerate(shown):
        for name, estimate in task.times.items():
            assert any(
                list(line.get_xdata()) == [estimate.value]
                and list(line.get_ydata()) == [place]
                and line.get_color() == looks[name].colour
                for line in tasks.lines
            )
        assert any(list(line.get_xdata()) == [task.floor_ms] and line.get_marker() == "|" for line in tasks.lines)
    assert [text.get_text() for text in tasks.get_legend().get_texts()] == [*NAMES, "floor"]
    falls = [down(with_floor, task) for task in software.whole_tasks(found)]
    for axes, fall in zip((step, prefill), falls, strict=True):
        assert "(ms)" in axes.get_xlabel()
        widths = [bar.get_width() for bar in axes.patches]
        labels = [label.get_text() for label in axes.get_yticklabels()]
        assert len(widths) == len(labels)
        for rung in fall.rungs:
            assert widths[labels.index(rung.subject or "floor")] == pytest.approx(rung.ms)


def test_its_caption_names_what_each_step_removes(with_floor: pd.DataFrame) -> None:
    said = get_figure("side_by_side_software").caption(with_floor)
    assert re.search(
        r"Decode step, behind 335 tokens: 15\.\d ms in plain; 6\.\d+ ms in graphs \(9\.\d+ ms less: ", said
    )
    assert "ms less: kernels, and traffic between them); 1.00 ms at the floor (3.00 ms less: kernels below" in said
    assert "How served runs the model is not seen from outside" in said
    assert "nan" not in said
    assert said.endswith(".")


def test_it_is_not_drawn_where_nothing_differs_in_its_backend_alone(table: pd.DataFrame) -> None:
    figure = get_figure("side_by_side_software")
    assert figure.needs(table[table["subject"] == "plain"]) == "no two subjects differ in their backend alone"
    apart = table.copy()
    graphs = apart["subject"] == "graphs"
    apart.loc[graphs, "cell_id"] = "other-" + apart.loc[graphs, "cell_id"]
    two = apart[apart["subject"].isin(["plain", "graphs"])]
    assert figure.needs(two) == "subjects that differ in their backend alone have no cell in common"


def test_more_models_than_a_figure_has_room_for_are_counted(with_floor: pd.DataFrame) -> None:
    many = pd.concat(
        [with_floor.assign(subject=f"model{n}-" + with_floor["subject"], preset=f"preset{n}") for n in range(3)],
        ignore_index=True,
    )
    figure = get_figure("side_by_side_software")
    assert len(figure.draw(many).axes) == 2 * 3
    assert "1 more model that was run in several ways is in the table." in figure.caption(many)


# --- the claims -------------------------------------------------------------------------------------


def test_ways_that_choose_the_same_tokens_are_said_to_cell_by_cell(table: pd.DataFrame) -> None:
    found = judged(table)["ways_same_tokens"]
    assert found.verdict == "holds"
    assert "graphs as plain in 5 cells with 43 tokens" in found.statement


@pytest.mark.parametrize(
    ("dtype", "said"), [("bfloat16", "several logits may be equally high"), ("float32", "look at the model's code")]
)
def test_tokens_that_part_are_counted_from_where_they_do_and_it_is_said_what_that_means(
    tmp_path: Path, dtype: str, said: str
) -> None:
    other = TellingRunner(chosen=[[0, 1, 2, 99]])
    keys = {name: {"dtype": dtype} for name in ("plain", "fused")}
    found = judged(ways_table(tmp_path, "plain", "fused", runners={"fused": other}, keys=keys))["ways_same_tokens"]
    assert found.verdict == "does not hold"
    assert "fused parts from plain in 2 of 5 cells, after 3 tokens at the earliest" in found.statement
    assert said in found.statement
    assert [(item.value, item.unit) for item in found.evidence] == [(2, "of 5")]


def test_a_way_that_does_not_tell_its_tokens_is_named(tmp_path: Path) -> None:
    table = ways_table(tmp_path, "plain", "graphs", "served", runners={"served": CpuLikeRunner()})
    found = judged(table)["ways_same_tokens"]
    assert found.verdict == "holds"
    assert "served does not tell its tokens." in found.statement
    alone = judged(table[table["subject"] != "graphs"])["ways_same_tokens"]
    assert alone.verdict == "cannot tell"


def test_decode_within_its_floor_is_judged_by_the_fastest_way(table: pd.DataFrame, with_floor: pd.DataFrame) -> None:
    roofline = roofline_of(with_floor)
    found = judged(table, roofline)["ways_near_floor"]
    assert found.verdict == "does not hold", f"{FUSED_STEP_MS / FLOOR_MS} times"
    assert {item.name: round(item.value) for item in found.evidence} == {
        "plain: step over its floor": 15,
        "graphs: step over its floor": 6,
        "fused: step over its floor": 4,
        "served: step over its floor": 9,
    }
    near = roofline.assign(floor_ms=roofline["floor_ms"] * 3)
    assert judged(table, near)["ways_near_floor"].verdict == "holds"
    assert judged(table)["ways_near_floor"].verdict == "cannot tell"


def test_what_is_left_is_kernels_where_a_fast_way_waits_for_no_launch(
    tmp_path: Path, table: pd.DataFrame, with_floor: pd.DataFrame
) -> None:
    found = judged(table, roofline_of(with_floor))["ways_left_is_kernels"]
    assert found.verdict == "holds"
    assert "3.00 ms kernels below the device's ceilings" in found.statement
    waits = {"fused": runner_of("fused", launch_ms={"decode_step": LAUNCH_STEP_MS})}
    waiting = ways_table(tmp_path, "plain", "fused", runners=waits)
    left = judged(waiting, roofline_of(with_floors(waiting)))["ways_left_is_kernels"]
    assert left.verdict == "does not hold"


def test_without_busy_time_what_is_left_cannot_be_told(table: pd.DataFrame, with_floor: pd.DataFrame) -> None:
    bare, roofline = without_busy(table), roofline_of(with_floor)
    found = judged(bare, roofline[roofline["arm"] != "busy"])["ways_left_is_kernels"]
    assert found.verdict == "cannot tell"
    assert "a CPU works in step with the host" in found.statement


# --- what else is made of the table -----------------------------------------------------------------


def test_a_baseline_keeps_a_compile_mode_where_something_was_compiled(table: pd.DataFrame) -> None:
    facts = {run.subject: run.facts for run in run_of_table(table).subjects}
    assert facts["fused"]["compile_mode"] == "default"
    assert "compile_mode" not in facts["plain"], "two ways of running differ in their backend, which is said"
    assert facts["plain"]["vision_attention_dtype"] == "as the original"


def test_a_compiled_subject_is_predicted_from_its_own_cells(table: pd.DataFrame) -> None:
    asked: dict[str, Any] = {"width_px": 784, "height_px": 560, "output_tokens": 1, "question_tokens": 32}
    found = {
        name: predict(table[table["subject"] == name], **asked)["predictions"]["prefill"]["predicted_ms"]
        for name in ("graphs", "fused")
    }
    assert found["fused"] == pytest.approx(found["graphs"] * FUSED_STEP_MS / STEP_MS, rel=0.02)


# --- the report -------------------------------------------------------------------------------------


def test_the_report_has_a_table_of_the_ways_and_one_of_the_steps_between_them(
    tmp_path: Path, table: pd.DataFrame, with_floor: pd.DataFrame
) -> None:
    two = ("plain", "graphs")
    study = {"study": "ways", "subjects": {name: {"family": "molmo", "preset": "nano"} for name in two}}
    roofline = roofline_of(with_floor[with_floor["subject"].isin(two)])
    page = parse(render(inputs_of(tmp_path, table[table["subject"].isin(two)], study=study, roofline=roofline)))
    section = page.find("section", id="side-by-side")
    heads = [cell.text for cell in section.find("div", data_grid="software-1").find("thead").find_all("th")]
    assert heads == ["work", *two, "floor", "fastest over floor", "set by"]
    steps = section.find("div", data_grid="software-steps-1").find("tbody").find_all("tr")
    assert [cell.text for cell in steps[0].find_all("td")][1:5] == ["1", "plain", "graphs", "launches"]
    (tasks, _) = software_grids(with_floor)
    row = next(row for row in tasks.rows if row[0].text == "decode step, behind 335 tokens")
    assert row[5].text == "1.00 ms"
    assert row[6].text == "4.00"


def test_what_was_compiled_and_captured_is_told_apart_from_all_samples(tmp_path: Path) -> None:
    table = ways_table(tmp_path, "plain", "fused")
    assert preparation_sentence(table[table["subject"] == "fused"]) == ""
    paths = sorted((tmp_path / "small" / "cells" / "fused").glob("*.json"))
    for path in paths[:2]:
        rewrite(path, lambda data: data["seconds"].update({"compile": 12.0, "capture": 1.5}))
    every = build_table(sorted((tmp_path / "small" / "cells").rglob("*.json")))
    said = preparation_sentence(every[every["subject"] == "fused"])
    assert said == (
        "Before the first sample of 2 cells: 24.0 s of compiling and 3.00 s of capturing. "
        "It is in no other number here."
    )
    assert preparation_sentence(every[every["subject"] == "plain"]) == ""
    (grid, *_) = software_grids(every)
    assert [value.text for value in grid.rows[-2]][:3] == ["compiling, all cells, in no sample", "", "24.0 s"]


def test_colours_of_what_is_removed_follow_the_dark_page() -> None:
    from vlmeter.figures.side_by_side_software import LOOKS
    from vlmeter.report.pictures import DARK_COLOURS

    assert {colour.lower() for colour in (*(own.colour for own in LOOKS.values()), style.INK, style.FAINT)} <= set(
        DARK_COLOURS
    )


def test_the_head_of_a_subject_names_its_compile_mode_and_the_format_of_vision_attention(
    tmp_path: Path, table: pd.DataFrame
) -> None:
    keys = {"family": "molmo", "preset": "7b-d", "backend": "compile", "compile_mode": "max-autotune"}
    narrow = {"fused": {**keys, "vision_attention_dtype": "weights"}}
    rows = table[table["subject"] == "fused"]
    page = parse(render(inputs_of(tmp_path, rows, study={"study": "ways", "subjects": narrow})))
    said = page.find("p", class_="what").text
    assert "backend compile, compile mode max-autotune, vision attention in weights" in said
