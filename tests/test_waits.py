"""The time to first token at a server is taken apart: around the model, and inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.text import Text

from tests.support.comparisons import compared
from tests.support.fakes import FakeRunner
from tests.support.tables import AROUND_MS, LATENCY, at_a_server, records_of, rewrite
from vlmeter.analysis import decode_runs, distribution, prefill_cells, step_times, subjects
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.prediction import predict, prediction_rows
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.registry import judge_all
from vlmeter.compare.baseline import run_of_table
from vlmeter.figures.registry import NOT_ASKED, get_figure
from vlmeter.numbers.words import with_interval
from vlmeter.report.answers import share_bars
from vlmeter.table.build import build_table
from vlmeter.table.quantities import (
    BETWEEN_STEPS,
    CLOSURE,
    DECODE,
    DEVICE_STEP,
    FIRST_TOKEN,
    INPUTS,
    INPUTS_WALL,
    LANGUAGE,
    METHOD_DIFFERENCE_WALL,
    OUTSIDE,
    OUTSIDE_SHARE,
    PICTURE_WALL,
    PLAIN_WALL,
    PREFILL_SUM,
    SERVED_TOKEN,
    SERVER_INPUTS,
    SUBTRACTION_WALL,
)

WHOLE_MS = sum(AROUND_MS.values())
PICTURES = {"image_sizes": ["336x336", "672x336", "672x672"]}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A model by itself, and the same at a server."""
    tables = []
    for subject, change in (("eager", lambda path: path), ("served", at_a_server)):
        runner = FakeRunner(noise_fraction=0.01)
        results = tmp_path_factory.mktemp(subject)
        found = records_of(results, runner=runner, vision=PICTURES, latency=LATENCY)
        tables.append(build_table([change(path) for path in found]).assign(subject=subject))
    return pd.concat(tables, ignore_index=True)


#: What a server of `at_a_server` takes for a request of which it knows picture, or prompt, too.
KNOWN_MS = {"known_picture": 17.0, "known_prompt": 4.0}


def with_caches(path: Path) -> Path:
    """Turn a record of a fake into that of a server with caches: vision is not run alone, and requests are known."""

    def change(data: dict[str, Any]) -> None:
        plain = next(s for s in data["series"] if (s["arm"], s["phase"], s["clock"]) == ("plain", "total", "wall"))
        data["series"] = [series for series in data["series"] if series["arm"] != "vision"]
        for arm, ms in KNOWN_MS.items():
            data["series"].append({**plain, "arm": arm, "samples_ms": [ms + n / 10 for n in range(9)]})

    return rewrite(at_a_server(path), change)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    found = records_of(tmp_path_factory.mktemp("kept"), runner=FakeRunner(), vision=PICTURES, output=None)
    return build_table([with_caches(path) for path in found])


def test_subtraction_at_a_server_is_a_known_picture_minus_a_known_prompt(kept: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(kept)
    left = KNOWN_MS["known_picture"] - KNOWN_MS["known_prompt"]
    assert cells[SUBTRACTION_WALL.column].tolist() == pytest.approx([left] * 3)
    assert cells[METHOD_DIFFERENCE_WALL.column].tolist() == pytest.approx(cells[LANGUAGE.column] - left)
    whole = cells[PLAIN_WALL.column] - KNOWN_MS["known_picture"] - 0.4  # of 9 samples that grow by 0.1
    assert cells[PICTURE_WALL.column].tolist() == pytest.approx(whole)


def test_hooks_and_subtraction_at_a_server_stand_in_the_same_figure_as_ever(kept: pd.DataFrame) -> None:
    figure = get_figure("two_methods")
    assert figure.needs(kept) is None
    drawn = figure.draw(kept)
    try:
        labels = [text.get_text() for text in drawn.axes[0].get_legend().get_texts()]
        assert labels == ["hooks (device events)", "subtraction (wall time)"]
    finally:
        pyplot.close(drawn)
    said = figure.caption(kept)
    assert "vision run alone" not in said
    assert "the same image, another cache_salt" in said
    cells = prefill_cells.vision_cells(kept)
    picture = prefill_cells.pooled(cells, PICTURE_WALL)
    assert f"A new picture costs {with_interval(picture, 'ms')} more than a known one" in said


def test_a_prediction_holds_what_lies_around_the_model(tmp_path: Path) -> None:
    """From photographs alone, whose passes all carry marks: the sum of the phases is not what a client waits for."""
    runner = FakeRunner()
    output = {"output_tokens": [4, 16], "sampling": {"min_samples": 5, "max_samples": 5}}
    found = [at_a_server(path) for path in records_of(tmp_path, runner=runner, vision=None, output=output)]
    table = build_table(found)
    told = predict(table, width_px=640, height_px=480, output_tokens=8, question_tokens=12)
    image = told["image"]
    work = [
        runner.duration_ms(phase, crops=image["crops"], tokens=told["prompt_tokens"])
        for phase in ("vision_encoder", "projector", "merge", "llm_blocks", "head")
    ]
    wait_ms = told["predictions"]["prefill"]["predicted_ms"]
    assert wait_ms == pytest.approx(sum(work) + WHOLE_MS, rel=0.05)
    assert wait_ms > sum(work) + WHOLE_MS / 2
    labels = [row["quantity"] for row in prediction_rows(told, form="table")]
    assert "request to first token" in labels
    assert "prefill" not in labels
    assert any("the server's own work on the inputs" in note for note in told["notes"])


def test_a_request_at_a_server_is_all_that_its_client_waits_for(stepping: pd.DataFrame) -> None:
    cells, runs = prefill_cells.vision_cells(stepping), decode_runs.decode(stepping)
    tokens = int(runs["output_tokens"].max())
    (bar,) = [bar for bar in share_bars(cells, runs) if bar.title == f"A request with {tokens} output tokens"]
    assert [part.label for part in bar.parts] == ["preprocessing and copy", "prefill", "outside the model", "decode"]
    assert sum(part.fraction for part in bar.parts) == pytest.approx(1)
    own = runs[runs["output_tokens"] == tokens]
    whole_ms = (own[FIRST_TOKEN.column] + own[DECODE.column]).median()
    outside = next(part for part in bar.parts if part.label == "outside the model")
    assert outside.fraction == pytest.approx(WHOLE_MS / whole_ms, rel=0.01)
    first = answers_of(stepping)[FIRST_TOKEN.name]
    assert "encoding the picture at the client" in first.note


def test_a_request_of_a_model_alone_has_nothing_outside(table: pd.DataFrame) -> None:
    alone = of(table, "eager")
    bars = share_bars(prefill_cells.vision_cells(alone), decode_runs.decode(alone))
    assert bars
    assert all("outside the model" not in {part.label for part in bar.parts} for bar in bars)


def test_a_server_is_compared_with_a_model_alone_in_what_is_the_same_thing_in_both(table: pd.DataFrame) -> None:
    run = run_of_table(table)
    other = compared(run, run, subjects=[("eager", "served")])
    names = {found.name for found in other.quantities}
    assert {"total", "hooks llm_blocks device"} <= names
    assert not any(name.startswith("inputs ") or name.endswith(" launch") for name in names)
    assert any("one of them is a server, whose total holds its own work" in warning for warning in other.warnings)
    for name in ("eager", "served"):
        same = compared(run, run, subjects=[(name, name)])
        assert any(found.name.startswith("inputs ") for found in same.quantities)
        assert not any("is a server" in warning for warning in same.warnings)


#: Of a step of the fake, which takes 3 ms and something for its context: what the device takes, on a server.
STEP_MS = 2.5


def with_device_steps(path: Path, *, counted: int = 0) -> Path:
    """Turn a record of a fake into that of a server that tells its device's steps and counts prompts, and miscounts."""

    def change(data: dict[str, Any]) -> None:
        (request,) = data["requests"]
        request["server_prompt_tokens"] = request["counted"]["prompt_tokens"] + counted
        for series in [series for series in data["series"] if series["phase"] == "decode"]:
            steps = data["cell"]["requests"][0]["output_tokens"] - 1
            samples = [steps * (STEP_MS + n / 1000) for n in range(len(series["samples_ms"]))]
            data["series"].append({**series, "phase": "device_decode", "samples_ms": samples})

    return rewrite(at_a_server(path), change)


@pytest.fixture(scope="module")
def stepping(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    found = records_of(tmp_path_factory.mktemp("stepping"), runner=FakeRunner(), vision=PICTURES)
    return build_table([with_device_steps(path) for path in found])


def test_an_output_token_is_the_devices_step_and_what_lies_between_two(stepping: pd.DataFrame) -> None:
    cells = step_times.served_tokens(stepping)
    assert len(cells) == len(stepping.loc[stepping["kind"] == "generation", "cell_id"].unique()) > 3
    assert np.allclose(cells[DEVICE_STEP.column], STEP_MS + 0.002, atol=0.003)
    assert np.allclose(cells[SERVED_TOKEN.column], cells[DEVICE_STEP.column] + cells[BETWEEN_STEPS.column], atol=0.01)
    whole = stepping[(stepping["phase"] == "decode") & (stepping["source"] == "measured")]
    per_token = dict(zip(whole["cell_id"], whole["median_ms"] / (whole["generated_tokens"] - 1), strict=True))
    assert cells[SERVED_TOKEN.column].tolist() == pytest.approx([per_token[name] for name in cells["cell_id"]])


def test_the_claim_and_the_first_screen_say_what_of_a_token_is_the_devices(stepping: pd.DataFrame) -> None:
    found = step_times.served_token(stepping)
    assert not isinstance(found, Unknown)
    claim = next(claim for claim in judge_all(stepping, "fake") if claim.name == "token_is_the_devices")
    assert claim.verdict == "does not hold", "3.5 ms at the client are no 2.5"
    assert (
        f"{with_interval(found.token, 'ms')} at the client, of which {with_interval(found.step, 'ms')}"
        in claim.statement
    )
    answer = answers_of(stepping)[DEVICE_STEP.name]
    assert answer.found == found.step
    assert f"{with_interval(found.between, 'ms')} lie between two steps" in answer.note


def test_tokens_of_what_tells_no_steps_are_not_judged(table: pd.DataFrame) -> None:
    for subject in ("eager", "served"):
        claims = {claim.name: claim for claim in judge_all(table, subject)}
        assert claims["token_is_the_devices"].verdict == "cannot tell"
        assert claims["server_counts_are_the_plans"].verdict == "cannot tell"
    assert DEVICE_STEP.name not in answers_of(of(table, "served"))


def test_the_servers_counts_are_held_against_the_plans(stepping: pd.DataFrame, tmp_path: Path) -> None:
    claim = next(claim for claim in judge_all(stepping, "fake") if claim.name == "server_counts_are_the_plans")
    assert claim.verdict == "holds"
    assert f"in each of {stepping['cell_id'].nunique()} cells" in claim.statement
    paths = records_of(tmp_path, runner=FakeRunner(), vision=PICTURES, output=None)
    wrong = build_table([with_device_steps(path, counted=int(n == 0)) for n, path in enumerate(paths)])
    claim = next(claim for claim in judge_all(wrong, "fake") if claim.name == "server_counts_are_the_plans")
    assert claim.verdict == "does not hold"
    assert "in 1 of 3 cells" in claim.statement


def of(table: pd.DataFrame, subject: str) -> pd.DataFrame:
    return table[table["subject"] == subject].reset_index(drop=True)


def test_what_is_outside_the_model_is_the_sum_of_what_lies_around_it(table: pd.DataFrame) -> None:
    cells = prefill_cells.vision_cells(table, "served")
    assert cells[OUTSIDE.column].tolist() == pytest.approx([WHOLE_MS] * len(cells))
    expected = WHOLE_MS / (WHOLE_MS + cells[PREFILL_SUM.column])
    assert np.allclose(cells[OUTSIDE_SHARE.column], expected, rtol=0.02)
    assert prefill_cells.vision_cells(table, "eager")[OUTSIDE.column].isna().all(), "nothing lies around a model alone"


def test_the_sum_closes_with_what_lies_around_it(table: pd.DataFrame) -> None:
    for subject in ("eager", "served"):
        assert prefill_cells.vision_cells(table, subject)[CLOSURE.column].abs().max() < 0.03


def test_the_first_token_waits_for_the_server_in_every_kind_of_cell(table: pd.DataFrame) -> None:
    runs = decode_runs.decode(of(table, "served"))
    direct = runs[runs["direct"]]
    waited = direct[FIRST_TOKEN.column] - direct[INPUTS_WALL.column] - direct[PREFILL_SUM.column]
    assert np.allclose(waited, WHOLE_MS, atol=1.5)
    requests = distribution.requests(table, "served")
    waited = requests[FIRST_TOKEN.column] - requests[INPUTS.column] - requests[PREFILL_SUM.column]
    assert np.allclose(waited, WHOLE_MS)


def test_a_server_that_tells_nothing_of_its_phases_has_a_first_token_all_the_same(table: pd.DataFrame) -> None:
    rows = of(table, "served")
    inside = {"vision_encoder", "projector", "merge", "llm_blocks", "head", "return"}
    dumb = rows[~rows["phase"].isin(inside)].copy()
    dumb.loc[dumb["phase"] == SERVER_INPUTS.name, "phase"] = "server"
    cells = prefill_cells.vision_cells(dumb)
    assert cells[FIRST_TOKEN.column].notna().all()
    assert cells[OUTSIDE_SHARE.column].isna().all(), "what is outside cannot be told"
    share = prefill_cells.outside_share(cells)
    assert isinstance(share, Unknown)
    assert share.reason == "nothing inside the server tells its phases"
    assert distribution.requests(dumb)[FIRST_TOKEN.column].notna().all()
    assert "What of it is the model cannot be told" in get_figure("first_token_by_tokens").caption(dumb)


def test_the_first_screen_says_what_part_is_outside(table: pd.DataFrame) -> None:
    served, eager = (answers_of(table, subject) for subject in ("served", "eager"))
    own, other = ({name for name in found if not name.startswith(f"{FIRST_TOKEN}_")} for found in (served, eager))
    assert own == {*other, "outside"}, "the sizes of images apart, which a few cells predict or not"
    assert served["outside"].unit == "fraction"
    cells, runs = prefill_cells.vision_cells(table, "served"), decode_runs.decode(of(table, "served"))
    bar = share_bars(cells, runs)[0]
    assert bar.title == "Up to the first token"
    assert sum(part.fraction for part in bar.parts) == pytest.approx(1.0, abs=0.05)
    assert "server's inputs" in [part.label for part in bar.parts]
    alone = prefill_cells.vision_cells(table, "eager")
    assert share_bars(alone, decode_runs.decode(of(table, "eager")))[0].title == "Inside the prefill"


@pytest.mark.parametrize(("factor", "verdict"), [(0.001, "does not hold"), (1000.0, "holds")])
def test_whether_most_is_outside_the_model_is_judged(factor: float, verdict: str, tmp_path: Path) -> None:
    found = records_of(tmp_path, runner=FakeRunner(noise_fraction=0.01), vision=PICTURES, output=None)
    rows = build_table([at_a_server(path, factor=factor) for path in found])
    claims = {claim.name: claim for claim in judge_all(rows, str(rows["subject"].iloc[0]))}
    assert claims["first_token_is_outside"].verdict == verdict


def test_without_a_server_the_claim_cannot_be_told(table: pd.DataFrame) -> None:
    claims = {claim.name: claim for claim in judge_all(table, "eager")}
    assert claims["first_token_is_outside"].verdict == "cannot tell"
    assert claims["first_token_is_outside"].statement == "Cannot be told: no server was measured."


def test_the_stack_of_a_server_is_as_high_as_its_first_token(table: pd.DataFrame) -> None:
    module = get_figure("first_token_by_tokens")
    rows = of(table, "served")
    assert module.needs(rows) is None
    share = prefill_cells.outside_share(prefill_cells.vision_cells(rows))
    assert not isinstance(share, Unknown)
    assert f"{with_interval(share, 'fraction')} is outside the model" in module.caption(rows)
    assert "The largest part is the server's preprocessing and queue" in module.caption(rows)
    figure = module.draw(rows)
    axes = figure.axes[0]
    tops = sorted({round(patch.get_y() + patch.get_height(), 6) for patch in axes.patches})
    cells = prefill_cells.vision_cells(rows)
    highest = (cells[PREFILL_SUM.column] + cells[OUTSIDE.column]).max()
    assert tops[-1] == pytest.approx(highest, rel=0.02)
    assert "(ms)" in axes.get_ylabel()
    assert axes.get_xlabel() == "vision tokens (counted by the server)"
    words = [text.get_text() for text in figure.findobj(Text)]
    assert any("served, fake device, random weights" in text for text in words)
    pyplot.close(figure)
    assert module.needs(of(table, "eager")) == NOT_ASKED


def test_an_image_stands_in_a_server_beside_the_model_by_itself(table: pd.DataFrame) -> None:
    module = get_figure("side_by_side_waits")
    assert module.needs(table) is None
    data = subjects.parts_of_the_wait(table)
    assert data.groupby("image")["subject"].apply(list).tolist() == [["eager", "served"]] * 3
    assert "672 x 672 px" in module.caption(table)
    figure = module.draw(table)
    assert "(ms)" in figure.axes[0].get_ylabel()
    assert any("2 subjects, fake device, random weights" in text.get_text() for text in figure.findobj(Text))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["eager", "served"] * 3
    pyplot.close(figure)
    assert module.needs(of(table, "eager")) == "no image was measured at a server and in another subject"
