"""Figures show the table's numbers, with units and intervals, or say why there is none."""

from __future__ import annotations

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from tests.support.fakes import FakeRunner, out_of_memory
from tests.support.roofline import with_floors
from tests.support.tables import LATENCY, OF_SERVERS, CpuLikeRunner, records_of, rewrite, table_of
from vlmeter.analysis import (
    components,
    conditions,
    decode_runs,
    distribution,
    flops,
    held_out,
    prefill_cells,
    reading,
    step_times,
    waits,
)
from vlmeter.analysis.answers import answers_of
from vlmeter.common.errors import UserError
from vlmeter.figures import first_token_by_size, flops_latency, notes_series, style
from vlmeter.figures.registry import FIGURES, draw_or_explain, get_figure
from vlmeter.models.families.base import PREFILL_PHASES
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import significant
from vlmeter.table.build import build_table
from vlmeter.table.quantities import GENERATED, QUANTITIES, SHARE

OF_MODELS = [name for name in FIGURES if name not in OF_SERVERS]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    runner = FakeRunner(noise_fraction=0.01, launch_ms={"vision_encoder": 4.0})
    return with_floors(table_of(tmp_path_factory.mktemp("figures"), runner=runner, latency=LATENCY))


def axes_of(table: pd.DataFrame, name: str) -> list[Axes]:
    figure = get_figure(name)
    assert figure.needs(table) is None
    return figure.draw(table).axes


def texts(figure: Figure) -> str:
    return " | ".join(text.get_text() for text in figure.findobj(mpl.text.Text))  # type: ignore[attr-defined]


def points(axes: Axes) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.asarray(line.get_xdata()), np.asarray(line.get_ydata())) for line in axes.lines]


@pytest.mark.parametrize("name", FIGURES)
def test_a_figures_module_says_what_it_is(name: str) -> None:
    figure = get_figure(name)
    assert name == figure.NAME
    assert figure.TITLE
    sections = (
        "first_token",
        "vision",
        "output",
        "distribution",
        "components",
        "flops",
        "prediction",
        "limits",
        "session",
    )
    assert figure.SECTION in sections


@pytest.mark.parametrize("name", OF_MODELS)
def test_every_axis_has_a_label_and_every_time_a_unit(table: pd.DataFrame, name: str) -> None:
    for axes in axes_of(table, name):
        assert axes.get_ylabel()
    last = [axes for axes in axes_of(table, name) if axes.get_xlabel()]
    assert last
    for axes in axes_of(table, name):
        for label in (axes.get_xlabel(), axes.get_ylabel()):
            if "tokens" not in label and any(
                word in label for word in ("latency", "time", "prefill", "decode (", "step (", "hooks -")
            ):
                assert any(unit in label for unit in ("(ms)", "(s)", "(%)"))


@pytest.mark.parametrize("name", OF_MODELS)
def test_a_figure_says_of_whom_it_is_and_that_weights_are_random(table: pd.DataFrame, name: str) -> None:
    assert "fake, fake device, random weights" in texts(get_figure(name).draw(table))


def test_the_stack_adds_up_to_the_phases_and_carries_the_total(table: pd.DataFrame) -> None:
    (axes,) = axes_of(table, "vision_by_tokens")
    cells = prefill_cells.vision_cells(table)
    groups = cells.groupby(["vision_tokens", "crops"])
    bars = [patch for patch in axes.patches if patch.get_transform().contains_branch(axes.transData)]
    assert len(bars) == 5 * len(groups)
    tops: dict[float, float] = {}
    for patch in bars:
        middle = round(patch.get_x() + patch.get_width() / 2, 6)
        tops[middle] = tops.get(middle, 0.0) + patch.get_height()
    assert sorted(tops.values()) == pytest.approx(sorted(groups["prefill_ms"].median()), rel=0.01)
    shown = {text.get_text() for text in axes.texts}
    assert {str(crops) for crops in cells["crops"]} <= shown
    assert {"vision encoder", "projector", "LLM blocks", "head"} <= shown


def test_bars_of_equal_tokens_stand_beside_each_other(table: pd.DataFrame) -> None:
    places, width = style.beside(np.array([288.0, 864.0, 864.0, 1344.0]))
    assert np.diff(places).min() >= width
    assert abs(places[1] - 864) < width
    assert abs(places[2] - 864) < width


def test_the_limits_show_floor_over_measured_time_of_every_phase(table: pd.DataFrame) -> None:
    above, below = axes_of(table, "limits")
    totals = table[(table["experiment"] == "vision_tokens") & (table["arm"] == "plain") & (table["clock"] == "wall")]
    totals = totals[totals["phase"] == "total"]
    by_size = (100 * totals["floor_ms"] / totals["median_ms"]).groupby(totals["prompt_tokens"]).median()
    assert any(len(y) == len(by_size) and np.allclose(y, by_size) for _, y in points(above))
    step = table[(table["phase"] == "inter_token") & (table["output_tokens"] == table["output_tokens"].max())]
    ratio = float(step["median_ms"].median() / step["floor_ms"].median())
    assert any(text.get_text().startswith(f"{significant(ratio, 2)} x the floor, ") for text in below.texts)


def offsets(axes: Axes) -> list[np.ndarray]:
    return [np.asarray(dots.get_offsets()) for dots in axes.collections if len(np.asarray(dots.get_offsets())) > 1]


def test_every_phase_of_every_cell_is_a_dot_at_its_flops_and_its_time(table: pd.DataFrame) -> None:
    upper, lower = axes_of(table, "flops_latency")
    found = flops.points(table)
    assert isinstance(found, pd.DataFrame)
    for phase in flops.PARTS:
        own = found[found["phase"] == phase]
        expected = own[["flops", "latency_ms"]].to_numpy(dtype=float)
        assert any(dots.shape == expected.shape and np.allclose(dots, expected) for dots in offsets(upper))
        rates = 1e-6 * own["flops"] / own["latency_ms"]
        assert any(len(dots) == len(own) and np.allclose(dots[:, 1], rates) for dots in offsets(lower))
    assert "GFLOP/s" in lower.get_ylabel()


def test_dots_of_launch_bound_cells_are_hollow(table: pd.DataFrame) -> None:
    upper, _ = axes_of(table, "flops_latency")
    found = flops.points(table)
    assert isinstance(found, pd.DataFrame)
    launch_bound = (found[found["phase"].isin(flops.PARTS)]["pace"] == "launch-bound").sum()
    faces = [face for dots in upper.collections for face in dots.get_facecolors()]
    assert sum(np.allclose(face[:3], 1.0) for face in faces) == launch_bound > 0


def test_the_ceiling_is_the_one_behind_the_utilisations(table: pd.DataFrame) -> None:
    assert flops_latency.ceiling_flops_per_s(table) == pytest.approx(1e12)


def test_the_wait_of_every_size_is_stacked_from_its_parts(table: pd.DataFrame) -> None:
    (axes,) = axes_of(table, "first_token_by_size")
    sizes = waits.by_size(prefill_cells.vision_cells(table))
    assert len(sizes) > first_token_by_size.MOST_SIZES
    shown = waits.spread(sizes, first_token_by_size.MOST_SIZES)
    labels = [label.get_text().partition("\n")[0] for label in axes.get_yticklabels()]
    assert labels == [f"{w} x {h}" for w, h in zip(shown["width_px"], shown["height_px"], strict=True)]
    ends = np.zeros(len(shown))
    for bars in axes.containers[:2]:
        ends += np.array([bar.get_width() for bar in bars])  # type: ignore[attr-defined]
    assert ends == pytest.approx((shown["inputs_wall_ms"] + shown["vision_encoder_ms"]).to_numpy())


def test_ticks_stand_at_what_was_measured_and_have_room() -> None:
    ticks = style.apart([288, 384, 385, 480, 1344, 1340], (200, 1400))
    assert ticks[0] == 288
    assert ticks[-1] == 1344
    assert set(ticks) <= {288, 384, 385, 480, 1344}
    five_digits = style.TICK_ROOM_FRACTION + 5 * style.TICK_CHARACTER_FRACTION
    assert min(high - low for low, high in pairwise(ticks)) >= five_digits * 1200
    assert style.apart([8, 16, 32, 64, 128], (0, 134)) == [8, 16, 32, 64, 128]
    assert style.apart([7.0], (0, 10)) == [7.0]


def test_few_output_lengths_have_a_colour_each(table: pd.DataFrame) -> None:
    figure = get_figure("latency_tail").draw(table)
    bar = figure.axes[-1]
    assert [label.get_text() for label in bar.get_yticklabels()] == ["4", "8", "16", "64"]


def test_both_models_are_drawn_with_what_they_predict_for_cells_left_out(table: pd.DataFrame) -> None:
    panels = axes_of(table, "flops_or_roofline")
    found = flops.points(table)
    assert isinstance(found, pd.DataFrame)
    models = flops.compare_models(found)
    assert not isinstance(models, reading.Unknown)
    for axes, model in zip(panels, ("flops", "roofline"), strict=True):
        own = models.frame[models.frame["phase"] == "decode"]
        expected = own[["latency_ms", f"{model}_ms"]].to_numpy(dtype=float)
        assert any(dots.shape == expected.shape and np.allclose(dots, expected) for dots in offsets(axes))
        assert flops.MODELS[model] in axes.get_title(loc="left")


def test_costs_of_tokens_stand_at_their_values(table: pd.DataFrame) -> None:
    (axes,) = axes_of(table, "token_costs")
    answers = [answers_of(table)[name].found for name in ("vision_token", "output_token")]
    values = [found.value for found in answers if isinstance(found, Estimate)]
    marks = {
        style.look_of(QUANTITIES[answers_of(table)[name].quantity]).mark for name in ("vision_token", "output_token")
    }
    drawn = {round(float(x[0]), 12) for line in axes.lines if line.get_marker() in marks for x in [line.get_xdata()]}
    assert sorted(drawn) == pytest.approx(sorted(values))
    assert "(ms)" in axes.get_xlabel()


def test_predictions_are_drawn_over_what_was_measured_and_misses_are_circled(table: pd.DataFrame) -> None:
    upper, lower = axes_of(table, "held_out")
    found = held_out.held_out(table)
    assert isinstance(found, pd.DataFrame)
    for (kind, quantity), own in found.groupby(["picture", "quantity"]):
        shown = [(x, y) for x, y in points(upper) if len(x) == len(own)]
        assert any(np.allclose(x, own["measured_ms"]) and np.allclose(y, own["predicted_ms"]) for x, y in shown), kind
        errors = [y for _, y in points(lower) if len(y) == len(own)]
        assert any(np.allclose(y, 100 * own["error_fraction"]) for y in errors), quantity
    circled = sum(len(dots.get_offsets()) for dots in lower.collections if isinstance(dots, PathCollection))
    assert circled == (~found["inside"]).sum()


def test_a_prediction_of_less_than_nothing_is_at_the_edge_of_the_logarithmic_axis_and_is_counted(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = held_out.held_out(table)
    assert isinstance(found, pd.DataFrame)
    found.loc[found.index[:2], "predicted_ms"] *= -1
    monkeypatch.setattr(held_out, "held_out", lambda table: found)
    upper, _ = axes_of(table, "held_out")
    lower_edge = upper.get_ylim()[0]
    marked = [np.asarray(line.get_ydata(), dtype=float) for line in upper.lines if line.get_marker() in ("v", "s", "D")]
    assert sum(int((y <= lower_edge).sum()) for y in marked) == 2
    assert "at the lower edge: 2 predictions of less than zero" in [text.get_text() for text in upper.texts]


def test_what_cannot_be_held_out_is_not_drawn(tmp_path: Path) -> None:
    _, caption = draw_or_explain(table_of(tmp_path, vision={"tilings": ["1x1", "1x2"]}, output=None), "held_out")
    assert caption.startswith("Not drawn: ")


def test_the_limits_have_room_for_the_nearest_to_them_though_it_is_not_the_largest_image(table: pd.DataFrame) -> None:
    largest = table["prompt_tokens"] == table["prompt_tokens"].max()
    slow = table.assign(floor_fraction=table["floor_fraction"].where(~largest, table["floor_fraction"] / 10))
    above, _ = axes_of(slow, "limits")
    lines = [y for _, y in points(above) if len(y) > 2]
    highest = max(np.nanmax(y) for y in lines)
    assert highest > 5 * max(y[-1] for y in lines)
    assert above.get_ylim()[1] > 1.1 * highest


def test_without_ceilings_the_limits_say_why_they_are_not_drawn(table: pd.DataFrame) -> None:
    _, caption = draw_or_explain(table.drop(columns="floor_ms"), "limits")
    assert caption.startswith("Not drawn: there are no floors")


def test_both_methods_are_drawn_where_they_were_measured(table: pd.DataFrame) -> None:
    upper, lower = axes_of(table, "two_methods")
    cells = prefill_cells.vision_cells(table)
    drawn = [y for _, y in points(upper)]
    assert any(np.allclose(y, cells["language_ms"]) for y in drawn)
    assert any(np.allclose(y, cells["subtraction_wall_ms"]) for y in drawn)
    assert any(np.allclose(y, cells["method_difference_wall_ms"]) for _, y in points(lower) if len(y) == len(cells))
    assert upper.get_legend() is not None


def test_four_times_and_the_launch_bound_region_are_drawn(table: pd.DataFrame) -> None:
    upper, lower = axes_of(table, "three_clocks")
    cells = prefill_cells.vision_cells(table)
    drawn = [y for _, y in points(upper)]
    for quantity in ("plain_wall", "plain_device", "plain_launch", "busy_prefill"):
        assert any(np.allclose(y, cells[f"{quantity}_ms"]) for y in drawn)
    assert any(np.allclose(y, cells["wall_over_busy"]) for _, y in points(lower) if len(y) == len(cells))


def test_clocks_are_not_drawn_where_there_is_no_busy_time(tmp_path: Path) -> None:
    reason = get_figure("three_clocks").needs(table_of(tmp_path, runner=CpuLikeRunner(), output=None))
    assert reason is not None
    assert "in step with the host" in reason


def test_residuals_are_what_the_prices_leave(table: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(table)
    fit = prefill_cells.priced_plane(cells, prefill_cells.part_costs(cells))
    assert not isinstance(fit, reading.Unknown)
    axes = axes_of(table, "two_factors")
    offsets = np.asarray(axes[1].collections[-1].get_offsets())
    np.testing.assert_allclose(offsets[:, 1], fit.residuals)
    assert any("one more crop" in text.get_text() for text in axes[0].texts)


def test_the_notes_series_misses_three_six_nine_and_twelve_crops(table: pd.DataFrame) -> None:
    assert notes_series.missed(table) == [3, 6, 9, 12]
    notes, exact = notes_series.series(table)
    assert sorted({image.crops for image in notes}) == [2, 4, 5, 7, 8, 10, 11, 13]
    assert [image.crops for image in exact] == list(range(2, 14))
    assert "never become 3, 6, 9 or 12 crops" in get_figure("notes_series").caption(table)


@pytest.mark.parametrize("max_crops", [4, 12])
def test_what_the_notes_series_misses_is_named_inside_the_axes(table: pd.DataFrame, max_crops: int) -> None:
    limited = table.assign(max_crops=pd.array([max_crops] * len(table), dtype="Int64"))
    figure = get_figure("notes_series").draw(limited)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    frame = axes.get_window_extent()
    named = [Text.get_window_extent(text) for text in axes.texts if "crops," in text.get_text()]
    assert len(named) == len(notes_series.missed(limited)) > 0
    assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 for box in named)


def test_decode_is_drawn_in_log_log_with_the_fit_and_its_slope(table: pd.DataFrame) -> None:
    (axes,) = axes_of(table, "decode_log")
    runs = decode_runs.decode(table)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    drawn = np.concatenate([y for x, y in points(axes) if len(y) == len(runs)])
    np.testing.assert_allclose(np.sort(drawn), np.sort(runs["decode_ms"]))
    assert [tick for tick in axes.get_xticks() if tick] == [8, 16, 32, 64]
    words = " ".join(text.get_text() for text in axes.texts)
    assert "k, time per output token: " in words
    assert "log-log slope" in words


def test_shares_are_parts_of_a_hundred(table: pd.DataFrame) -> None:
    (axes,) = axes_of(table, "prefill_share")
    heights = [bar.get_height() for bars in axes.containers[:2] for bar in bars]  # type: ignore[attr-defined]
    assert np.add(heights[:4], heights[4:]) == pytest.approx([100] * 4)
    shares = decode_runs.by_length(decode_runs.decode(table), SHARE)["value"]
    assert heights[:4] == pytest.approx(list(100 * shares))


def test_total_is_drawn_in_the_unit_that_suits(table: pd.DataFrame) -> None:
    (axes,) = axes_of(table, "total_by_length")
    total = decode_runs.by_length(decode_runs.decode(table), GENERATED)["value"]
    tops = [sum(patch.get_height() for patch in axes.patches[place::4]) for place in range(4)]
    assert tops == pytest.approx(list(total), rel=0.02)
    assert "(ms)" in axes.get_ylabel()


def test_steps_are_drawn_with_their_law(table: pd.DataFrame) -> None:
    (axes,) = axes_of(table, "decode_steps")
    law = step_times.step_law(table)
    assert isinstance(law, step_times.StepLaw)
    drawn = np.concatenate([y for _, y in points(axes)[:-1]])
    np.testing.assert_allclose(np.sort(drawn), np.sort(law.values_ms))


def test_inter_token_percentiles_are_named_as_far_as_there_are_steps(table: pd.DataFrame) -> None:
    words = " ".join(text.get_text() for text in axes_of(table, "inter_token")[0].texts)
    assert all(name in words for name in ("P50", "P95", "P99"))
    few = table.copy()
    few["samples_ms"] = [
        samples[:20] if phase == "inter_token" else samples
        for samples, phase in zip(few["samples_ms"], few["phase"].fillna(""), strict=True)
    ]
    assert "P99 is left out" in get_figure("inter_token").caption(few)


def test_drifted_visits_are_marked_and_counted(table: pd.DataFrame) -> None:
    flagged = table.copy()
    flagged["drifted"] = True
    (axes,) = axes_of(flagged, "sentinel")
    visits = conditions.sentinel(flagged)
    red = [x for x, _ in points(axes) if len(x) == int(visits["drifted"].sum())]
    assert red
    assert "are flagged" in get_figure("sentinel").caption(flagged)


def test_intervals_are_drawn(table: pd.DataFrame) -> None:
    upper = axes_of(table, "two_methods")[0]
    cells = prefill_cells.vision_cells(table)
    ends = [np.asarray(segments) for bar in upper.collections if len(segments := bar.get_segments()) == len(cells)]  # type: ignore[attr-defined]
    lows = [np.sort(segments[:, :, 1].min(axis=1)) for segments in ends]
    assert any(np.allclose(low, np.sort(cells["language_low_ms"])) for low in lows)


NOTHING_MUCH: list[dict[str, Any]] = [
    {"vision": {"tilings": ["1x1"]}, "output": None},
    {"vision": None, "output": {"output_tokens": [1], "sampling": {"min_samples": 1}}},
    {"vision": None, "output": {"output_tokens": [2], "sampling": {"min_samples": 1}}},
    {"vision": None, "runner": FakeRunner(fail={"prefill": out_of_memory, "generate": out_of_memory})},
    {"vision": {"tilings": ["1x1", "1x2"]}, "output": {"output_tokens": [8, 9]}, "runner": CpuLikeRunner()},
]


@pytest.mark.parametrize("options", NOTHING_MUCH)
def test_every_figure_is_drawn_or_says_why_not(tmp_path: Path, options: dict[str, Any]) -> None:
    table = table_of(tmp_path, **options)
    for name in FIGURES:
        figure, caption = draw_or_explain(table, name)
        if figure is not None:
            figure.savefig(io.BytesIO(), format="png", dpi=20)
        assert caption.endswith(".")
        assert "nan" not in caption


def test_an_empty_table_gives_reasons_only() -> None:
    for name in FIGURES:
        figure, caption = draw_or_explain(build_table([]), name)
        assert caption.startswith("Not drawn: ")
        assert figure is None


def test_missing_numbers_do_not_stop_a_figure(table: pd.DataFrame) -> None:
    holes = table.copy()
    gone = (holes["cell_id"] == "vision-tiling-2x2") & (holes["arm"] == "plain")
    holes = holes[~gone & ~((holes["phase"] == "head") & (holes["cell_id"] == "output-image1-n16"))]
    for name in FIGURES:
        assert "nan" not in draw_or_explain(holes, name)[1]


def test_a_figure_is_saved_in_three_formats_the_same_every_time(table: pd.DataFrame, tmp_path: Path) -> None:
    for folder in "ab":
        paths = style.save(get_figure("two_methods").draw(table), tmp_path / folder / "two_methods")
        assert [path.name for path in paths] == ["two_methods.svg", "two_methods.png", "two_methods.pdf"]
    for suffix in ("svg", "png", "pdf"):
        first, second = ((tmp_path / folder / f"two_methods.{suffix}").read_bytes() for folder in "ab")
        assert first == second
    with Image.open(tmp_path / "a" / "two_methods.png") as image:
        assert image.size[0] == round(style.WIDTH_IN * 300)
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    assert not list((tmp_path / "a").glob(".*"))


def test_a_dollar_sign_in_a_name_is_a_dollar_sign(table: pd.DataFrame) -> None:
    odd = table.assign(subject="cheap$model$<script>")
    figure = get_figure("two_methods").draw(odd)
    figure.savefig(io.BytesIO(), format="svg")
    assert "cheap$model$<script>" in texts(figure)


def test_drawing_leaves_matplotlibs_settings_alone(table: pd.DataFrame) -> None:
    before = dict(mpl.rcParams)
    get_figure("decode_log").draw(table)
    assert dict(mpl.rcParams) == before


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_words_in_grey_can_be_read_on_white() -> None:
    for colour in (style.INK, style.MUTED):
        assert 1.05 / (luminance(colour) + 0.05) >= 4.5


def test_an_unknown_figure_is_refused_with_the_legal_names() -> None:
    with pytest.raises(UserError, match="two_methods"):
        get_figure("pie")


def test_axis_ticks_read_as_numbers() -> None:
    assert [style._plain(value) for value in (0.05, 0.5, 1.0, 4096.0, 0.0)] == ["0.05", "0.5", "1", "4,096", "0"]
    assert style.time_unit(9_999) == (1.0, "ms")
    assert style.time_unit(10_000) == (1000.0, "s")


# --- many requests, and the components ------------------------------------------------------------------


def test_the_histogram_counts_every_request_and_marks_the_percentiles(table: pd.DataFrame) -> None:
    (axes,) = axes_of(table, "latency_histogram")
    assert sum(patch.get_height() for patch in axes.containers[0]) == 320
    found = distribution.percentiles(distribution.sample_of(table).requests["whole_request_ms"].to_numpy())
    drawn = {float(np.asarray(line.get_xdata())[0]) for line in axes.lines}
    assert {estimate.value for estimate in found.values() if estimate} <= drawn
    for name in ("P50", "P90", "P95", "P99"):
        assert any(text.get_text().startswith(f"{name} ") for text in axes.texts)


def test_a_percentile_with_too_few_requests_is_not_drawn_and_the_caption_says_why(
    tmp_path: Path,
) -> None:
    few = table_of(tmp_path, vision=None, output=None, latency={"samples": 40, "block_samples": 40})
    axes = axes_of(few, "latency_histogram")[0]
    assert not any(text.get_text().startswith(("P95", "P99")) for text in axes.texts)
    caption = get_figure("latency_histogram").caption(few)
    assert "P95 needs 59 requests, and there are 40." in caption
    assert "P99 needs 299 requests, and there are 40." in caption


def test_the_distribution_function_ends_at_all_and_its_tail_at_one_request(table: pd.DataFrame) -> None:
    upper, lower = axes_of(table, "latency_cdf")
    values = np.sort(distribution.sample_of(table).requests["whole_request_ms"].to_numpy())
    done = np.asarray(upper.lines[0].get_ydata())
    assert np.allclose(np.asarray(upper.lines[0].get_xdata()), values)
    assert (done[-1], len(done)) == (100, 320)
    assert np.asarray(lower.lines[0].get_ydata())[-1] == pytest.approx(100 / 320)
    assert lower.get_yscale() == "log"


def test_the_tail_shows_the_shares_and_the_slowest_requests(table: pd.DataFrame) -> None:
    sample = distribution.sample_of(table)
    found = distribution.explain(sample)
    assert not isinstance(found, reading.Unknown)
    upper, lower, *_ = axes_of(table, "latency_tail")
    gap = [patch.get_width() for patch in upper.containers[0]]
    assert gap == pytest.approx([100 * found.gap[name].value for name in (*found.factors, "rest")])
    circled = np.asarray(lower.collections[1].get_offsets())
    assert sorted(circled[:, 1], reverse=True) == pytest.approx(list(distribution.slowest(sample)["whole_request_ms"]))


def test_components_are_bars_side_by_side_and_no_pie(table: pd.DataFrame) -> None:
    found = components.profile(table)
    assert not isinstance(found, reading.Unknown)
    upper, lower = axes_of(table, "component_profile")
    labels = [text.get_text() for text in upper.get_legend().get_texts()]
    assert labels == ["parameters", "FLOPs", "memory traffic", "time"]
    bars = [container for container in upper.containers if hasattr(container, "patches")]
    for name, container in zip(components.SHARES_OF, bars, strict=True):
        shares = found.share(name, PREFILL_PHASES)
        assert [patch.get_height() for patch in container] == pytest.approx([100 * share for share in shares.values()])
    assert [text.get_text() for text in lower.get_legend().get_texts()] == ["FLOPs", "memory traffic", "time"]


def test_a_share_stands_above_its_interval_and_not_across_it(table: pd.DataFrame) -> None:
    found = components.profile(table)
    assert not isinstance(found, reading.Unknown)
    upper = axes_of(table, "component_profile")[0]
    at = {(round(note.xy[0], 6), note.get_text()): note.xy[1] for note in upper.texts if hasattr(note, "xy")}
    place = len(components.SHARES_OF) - 1  # time is the last of the bars
    for part, patch in zip(PREFILL_PHASES, upper.containers[place].patches, strict=True):
        middle = round(patch.get_x() + patch.get_width() / 2, 6)
        (height,) = [y for (x, _), y in at.items() if x == middle]
        assert height >= 100 * found.prefill_share[part].high - 1e-9


def test_no_error_of_a_prediction_is_drawn_where_none_can_be(
    table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = held_out.held_out(table)
    assert isinstance(found, pd.DataFrame)
    found.loc[found.index[0], ["predicted_high_ms", "error_fraction"]] = [9 * found["measured_ms"].iloc[0], 4.0]
    monkeypatch.setattr(held_out, "held_out", lambda table: found)
    _, lower = axes_of(table, "held_out")
    bottom, top = lower.get_ylim()
    assert top > 400
    assert -120 < bottom < -100, "a prediction is no more than all of the time too short"


@pytest.mark.parametrize(
    ("noise", "growth_ms", "starts_at_0", "unknown"),
    [(0.002, 0.02, False, ()), (0.5, 0.0, True, ("per_context_token",)), (0.9, 0.02, True, ("constant",))],
)
def test_a_decode_step_says_where_its_axis_starts_and_what_is_not_known(
    noise: float, growth_ms: float, starts_at_0: bool, unknown: tuple[str, ...], tmp_path: Path
) -> None:
    runner = FakeRunner(noise_fraction=noise, per_token_ms={"decode_step": growth_ms})
    table = table_of(tmp_path, vision=None, runner=runner)
    law = step_times.step_law(table)
    assert isinstance(law, step_times.StepLaw)
    assert tuple(name for name in ("constant", "per_context_token") if law.fit[name].contains(0)) == unknown
    (axes,) = axes_of(table, "decode_steps")
    assert (axes.get_ylim()[0] == 0) == starts_at_0
    caption = get_figure("decode_steps").caption(table)
    assert ("The axis does not start at 0." in caption) != starts_at_0
    assert ("What a step costs whatever the context is not known" in caption) == ("constant" in unknown)
    assert ("No growth with the context is seen" in caption) == ("per_context_token" in unknown)


def test_what_was_not_counted_or_read_is_said_and_not_drawn_as_nothing(table: pd.DataFrame) -> None:
    plain = table.drop(columns=["flops", "weight_bytes", "cache_bytes"])
    upper = axes_of(plain, "component_profile")[0]
    assert [text.get_text() for text in upper.get_legend().get_texts()] == ["parameters", "time"]
    caption = get_figure("component_profile").caption(plain)
    assert "Not drawn, since the work of this subject was not counted: FLOPs, memory traffic." in caption
    assert "Energy is not drawn: no energy counter of the device was read." in caption


def test_energy_is_drawn_where_a_counter_was_read(tmp_path: Path) -> None:
    (path,) = records_of(tmp_path, vision=None, output=None, latency={"samples": 8})
    spent = [("request", 80.0, 8), ("prefill", 30.0, 10), ("vision", 10.0, 10)]
    uses = [{"what": what, "joules": joules, "span_s": 2.0, "repeats": repeats} for what, joules, repeats in spent]
    rewrite(path, lambda data: data.update(energy=uses))
    lower = axes_of(build_table([path]), "component_profile")[1]
    assert [text.get_text() for text in lower.get_legend().get_texts()] == ["time", "energy"]
    assert [patch.get_height() for patch in lower.containers[-1]] == pytest.approx([10, 20, 70])
