"""Requests that were not measured are predicted by the laws of those that were, with intervals that hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.fakes import FakeRunner, out_of_memory
from tests.support.tables import TILINGS, CpuLikeRunner, table_of
from vlmeter.analysis import prediction, prediction_laws
from vlmeter.analysis.decode_runs import decode
from vlmeter.analysis.held_out import accuracy, can_be_held_out, held_out
from vlmeter.analysis.prediction import choose_subject, predict
from vlmeter.analysis.prediction_laws import Forecast, Learnt, Observations, learn_decode, learn_inputs, learn_prefill
from vlmeter.analysis.prediction_model import FAR_FACTOR, Model, Query, learn
from vlmeter.analysis.prefill_cells import vision_cells
from vlmeter.analysis.reading import Unknown
from vlmeter.cli.main import main
from vlmeter.common.errors import UserError
from vlmeter.models.families.base import PREFILL_PHASES, ImageOptions, SubjectSpec
from vlmeter.models.families.registry import get_family
from vlmeter.table.columns import COLUMNS
from vlmeter.table.files import read_table, write_table
from vlmeter.table.quantities import FIRST_TOKEN, WHOLE_REQUEST

PHOTOGRAPHS = 6


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """A subject without noise: every law holds exactly."""
    return table_of(tmp_path_factory.mktemp("exact"), runner=CpuLikeRunner())


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return table_of(tmp_path_factory.mktemp("noisy"), runner=CpuLikeRunner(noise_fraction=0.02))


def model_of(table: pd.DataFrame) -> Model:
    found = learn(table)
    assert isinstance(found, Model)
    return found


def declared_ms(runner: FakeRunner, request: Query) -> tuple[float, float]:
    """Time to first token and total that the fake subject takes by its own declaration."""
    inputs = 2 * 0.5 * request.crops
    prefill = sum(runner.duration_ms(p, crops=request.crops, tokens=request.prompt_tokens) for p in PREFILL_PHASES)
    steps = (
        runner.duration_ms("decode_step", crops=request.crops, tokens=request.prompt_tokens + step)
        for step in range(1, request.steps + 1)
    )
    return inputs + prefill, inputs + prefill + sum(steps)


# --------------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("output_tokens", [1, 2, 50, 100])
def test_a_request_that_was_not_measured_takes_what_the_law_says(exact: pd.DataFrame, output_tokens: int) -> None:
    request = Query(crops=8, prompt_tokens=700, output_tokens=output_tokens)
    model = model_of(exact)
    first_token, total = declared_ms(FakeRunner(), request)
    assert model.first_token_of(request).value_ms == pytest.approx(first_token)
    assert model.total_of(request).value_ms == pytest.approx(total)


def test_a_checkpoint_is_asked_in_the_revision_that_was_measured(
    exact: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SubjectSpec] = []

    class Family:
        def geometry(self, spec: SubjectSpec) -> object:
            asked.append(spec)
            return get_family("molmo").geometry(replace(spec, weights="random", revision=None))

    monkeypatch.setattr(prediction, "get_family", lambda name: Family())
    table = exact.assign(weights="owner/name", revision="0123abcd", trust_remote_code=True)
    prediction.image_tokens(table, width_px=336, height_px=336, max_crops=None)
    prediction.image_tokens(exact, width_px=336, height_px=336, max_crops=None)
    assert [(spec.weights, spec.revision, spec.trust_remote_code) for spec in asked] == [
        ("owner/name", "0123abcd", True),
        ("random", None, False),
    ]


def test_an_images_counts_are_the_familys_own(exact: pd.DataFrame) -> None:
    found = predict(exact, width_px=1920, height_px=1080, output_tokens=16, question_tokens=20)
    spec = SubjectSpec(preset="nano", weights="random", revision=None, dtype="float32", attention="sdpa", seed=0)
    image = get_family("molmo").geometry(spec).image_tokens(1920, 1080, options=ImageOptions())
    assert found["image"]["crops"] == image.crops
    assert found["image"]["vision_tokens"] == image.vision_tokens
    assert found["prompt_tokens"] == image.image_tokens + 20
    smaller = predict(exact, width_px=1920, height_px=1080, output_tokens=16, question_tokens=20, max_crops=6)
    assert smaller["image"]["crops"] < found["image"]["crops"]


def test_the_studys_own_limit_of_crops_is_the_default(exact: pd.DataFrame) -> None:
    limited = exact.assign(max_crops=pd.array([6] * len(exact), dtype="Int64"))
    found = predict(limited, width_px=1920, height_px=1080, output_tokens=1, question_tokens=20)
    assert found["image"]["crops"] <= 7


def test_the_parts_add_up(noisy: pd.DataFrame) -> None:
    found = predict(noisy, width_px=1000, height_px=700, output_tokens=32, question_tokens=32)["predictions"]
    values = {name: part["predicted_ms"] for name, part in found.items()}
    assert values["time_to_first_token"] == pytest.approx(values["preprocess_and_copy"] + values["prefill"])
    assert values["total"] == pytest.approx(values["time_to_first_token"] + values["decode"])
    assert all(part["low_ms"] <= part["predicted_ms"] <= part["high_ms"] for part in found.values())


def test_one_output_token_needs_no_decoding(exact: pd.DataFrame) -> None:
    found = predict(exact, width_px=1000, height_px=700, output_tokens=1, question_tokens=32)["predictions"]
    assert found["decode"] == {"predicted_ms": 0.0, "low_ms": 0.0, "high_ms": 0.0}
    assert found["total"] == found["time_to_first_token"]


def test_where_the_host_sets_the_pace_no_prefill_is_shorter_than_its_launches(tmp_path: Path) -> None:
    runner = FakeRunner(launch_ms={"llm_blocks": 40.0})
    model = model_of(table_of(tmp_path, runner=runner))
    cells = vision_cells(table_of(tmp_path / "again", runner=runner))
    host_ms = float(cells.loc[cells["bound"] == "launch-bound", "plain_wall_ms"].median())
    assert set(cells["bound"]) == {"launch-bound", "device-bound"}
    small, large = Query(2, 340, 1), Query(13, 1400, 1)
    assert model.prefill_of(small).value_ms == pytest.approx(host_ms)
    assert model.prefill_of(small).by_host
    assert not model.prefill_of(large).by_host
    assert any("launch-bound" in note for note in model.notes(small))
    assert not any("launch-bound" in note for note in model.notes(large))


def test_resizing_of_photographs_has_a_cost_of_its_own_where_it_has_one() -> None:
    crops = np.array([2.0, 4, 6, 8, 10, 2, 4, 6, 8, 10])
    photograph = np.array([0.0] * 5 + [1.0] * 5)
    groups = np.array([f"group {n}" for n in range(10)])
    for resizing in (0.0, 1.5):
        values = 1 + 2 * crops + resizing * crops * photograph
        part = Learnt(learn_inputs, Observations({"crops": crops, "photograph": photograph}, values, groups))
        assert part.at(crops=5.0, photograph=0.0).value_ms == pytest.approx(11)
        assert part.at(crops=5.0, photograph=1.0).value_ms == pytest.approx(11 + 5 * resizing)


def test_more_work_is_never_said_to_save_time() -> None:
    """Crops and tokens that grow nearly together, and noise that gives one of them a negative cost."""
    crops = np.array([2.0, 3, 5, 7, 9, 11])
    tokens = 100 * crops + np.array([0.0, 1, -1, 1, 0, -1])
    values = 5 + 4 * crops - 0.3 * (tokens - 100 * crops)
    features = {"crops": crops, "tokens": tokens, "busy_ms": np.full(6, math.nan), "bound": np.zeros(6)}
    law = learn_prefill(Observations(features, values, np.array(list("abcdef"))))
    for more in ({"crops": 0.0, "tokens": 100.0}, {"crops": 1.0, "tokens": 0.0}):
        ends = [
            law({"crops": np.array([5.0 + n * more["crops"]]), "tokens": np.array([500.0 + n * more["tokens"]])})[0][0]
            for n in (0, 10)
        ]
        assert ends[1] >= ends[0]


def test_without_vision_cells_the_prefill_is_learnt_from_photographs(tmp_path: Path) -> None:
    table = table_of(tmp_path, runner=CpuLikeRunner(), vision=None)
    (tokens,) = table.loc[table["crops"] == 5, "prompt_tokens"].unique()
    request = Query(5, int(tokens), 20)
    assert model_of(table).total_of(request).value_ms == pytest.approx(declared_ms(FakeRunner(), request)[1])


# ------------------------------------------------------------------------------------------------------------ intervals


def test_an_interval_holds_fit_and_spread() -> None:
    forecast = Forecast(100.0, fit_ms=3.0, spread_ms=4.0, freedom=10)
    assert forecast.error_ms == pytest.approx(5.0)
    assert forecast.interval.high - 100 == pytest.approx(2.228 * 5.0, rel=1e-3)


def test_errors_of_independent_parts_add_in_squares() -> None:
    found = prediction_laws.total([Forecast(10.0, 3.0, 0.0, 5.0), Forecast(20.0, 0.0, 4.0, 50.0), Forecast(0.0)])
    assert (found.value_ms, found.error_ms) == (30.0, pytest.approx(5.0))
    assert 5 < found.freedom < 55


def test_the_interval_widens_away_from_what_was_measured(noisy: pd.DataFrame) -> None:
    model = model_of(noisy)
    middle, edge, beyond = (
        model.prefill.at(crops=crops, tokens=tokens) for crops, tokens in ((7.0, 850.0), (13.0, 1400.0), (25.0, 2700.0))
    )
    assert middle.fit_ms < edge.fit_ms < beyond.fit_ms
    assert middle.error_ms / middle.value_ms < beyond.error_ms / beyond.value_ms


def test_intervals_hold_nineteen_of_twenty_new_requests() -> None:
    """Many studies of a law with noise, and one new request each: nominally 95 % of intervals hold."""
    rng = np.random.default_rng(5)
    inside, studies = 0, 300
    for _ in range(studies):
        steps = np.tile([7.0, 31, 127], 8)
        prompts = np.repeat(rng.integers(300, 900, size=8), 3).astype(float)
        groups = np.repeat([f"photograph {n}" for n in range(8)], 3)
        contexts = steps * prompts + steps * (steps + 1) / 2
        true = 3.0 * steps + 0.002 * contexts
        values = true * (1 + 0.05 * rng.normal(size=24))
        part = Learnt(learn_decode, Observations({"steps": steps, "contexts": contexts}, values, groups))
        new = Query(5, 600, 51)
        truth = 3.0 * new.steps + 0.002 * new.contexts
        found = part.at(steps=float(new.steps), contexts=new.contexts).interval
        inside += found.low <= truth * (1 + 0.05 * rng.normal()) <= found.high
    assert 0.92 <= inside / studies <= 0.995


# ------------------------------------------------------------------------------------------------------------- held out


def test_every_size_and_photograph_is_held_out_and_exact_laws_are_predicted_exactly(exact: pd.DataFrame) -> None:
    found = held_out(exact)
    assert isinstance(found, pd.DataFrame)
    counted = found.groupby(["picture", "quantity"]).size().to_dict()
    assert counted[("dummy", "first_token")] == len(TILINGS)
    assert counted[("photograph", "first_token")] == PHOTOGRAPHS
    assert counted[("photograph", "whole_request")] == PHOTOGRAPHS * 4
    assert found["error_fraction"].abs().max() < 1e-6


def test_what_is_held_out_is_predicted_without_being_seen(noisy: pd.DataFrame) -> None:
    spoilt = noisy.copy()
    own = (spoilt["image_index"] == 3).fillna(False).to_numpy(dtype=bool)
    spoilt["samples_ms"] = [s * 50 if hit else s for hit, s in zip(own, spoilt["samples_ms"], strict=True)]
    before, after = held_out(noisy), held_out(spoilt)
    assert isinstance(before, pd.DataFrame)
    assert isinstance(after, pd.DataFrame)
    mine = before["group"] == "photograph 3"
    for end in ("predicted_ms", "predicted_low_ms", "predicted_high_ms"):
        assert after.loc[mine, end].tolist() == before.loc[mine, end].tolist()
    assert after.loc[mine, "measured_ms"].to_numpy() == pytest.approx(50 * before.loc[mine, "measured_ms"].to_numpy())


def test_accuracy_is_the_median_error_over_groups_and_the_share_of_intervals_that_hold() -> None:
    found = pd.DataFrame(
        {
            "group": ["a", "a", "b", "c", "d", "e"],
            "quantity": ["whole_request"] * 5 + ["first_token"],
            "error_fraction": [0.1, -0.3, 0.05, -0.02, 0.4, 9.0],
            "inside": [True, True, True, False, True, False],
        }
    )
    worth = accuracy(found, WHOLE_REQUEST)
    assert not isinstance(worth, Unknown)
    assert worth.error.value == pytest.approx((0.05 + 0.2) / 2)
    assert (worth.count, worth.inside) == (5, 4)
    assert worth.coverage.value == pytest.approx(0.8)
    assert worth.coverage.low < 0.3
    assert worth.coverage.high > 0.99
    assert worth.said() == "median error 12 %, and 4 of 5 intervals hold"
    assert isinstance(accuracy(found[found["quantity"] == WHOLE_REQUEST.name], FIRST_TOKEN), Unknown)


def test_noise_of_two_percent_gives_errors_of_that_size_and_intervals_that_hold(noisy: pd.DataFrame) -> None:
    found = held_out(noisy)
    assert isinstance(found, pd.DataFrame)
    worth = accuracy(found)
    assert not isinstance(worth, Unknown)
    assert worth.error.value < 0.03
    assert worth.coverage.value > 0.8


@pytest.mark.parametrize(
    "options",
    [
        {"vision": {"tilings": ["1x1"]}, "output": None},
        {"vision": None, "output": {"output_tokens": [1], "sampling": {"min_samples": 1}}},
        {"vision": None, "runner": FakeRunner(fail={"prefill": out_of_memory, "generate": out_of_memory})},
    ],
)
def test_a_study_of_almost_nothing_says_what_is_missing(tmp_path: Path, options: dict[str, Any]) -> None:
    table = table_of(tmp_path, **options)
    assert isinstance(held_out(table), Unknown)
    with pytest.raises(UserError, match="nothing can be predicted"):
        predict(table, width_px=336, height_px=336, output_tokens=1, question_tokens=32)


def test_whether_cells_can_be_held_out_is_known_without_predicting(tmp_path: Path, exact: pd.DataFrame) -> None:
    assert can_be_held_out(exact, model_of(exact))
    two = table_of(tmp_path, vision={"tilings": ["1x1", "1x2"]}, output=None)
    assert not can_be_held_out(two, model_of(two))
    assert isinstance(held_out(two), Unknown)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("request_", "named"),
    [
        (Query(29, 1400, 1), "29 crops"),
        (Query(13, 2900, 1), "2,900 prompt tokens"),
        (Query(5, 600, 200), "200 output tokens"),
        (Query(13, 1404, 64), "1,467 tokens in the last step's context"),
    ],
)
def test_what_is_far_from_anything_measured_is_refused(exact: pd.DataFrame, request_: Query, named: str) -> None:
    shortened = exact[(exact["experiment"] == "vision_tokens") | (exact["prompt_tokens"] < 500)]
    reason = model_of(shortened).refusal(request_)
    assert reason is not None
    assert named in reason
    assert f"no farther than {FAR_FACTOR:g} times beyond" in reason
    assert "experiments." in reason


def test_what_is_near_is_predicted_and_said_to_be_extrapolated(exact: pd.DataFrame) -> None:
    model = model_of(exact)
    inside, beyond = Query(5, 600, 64), Query(5, 600, 128)
    assert model.refusal(inside) is None
    assert model.refusal(beyond) is None
    assert model.notes(inside) == []
    assert any("extrapolated: 128 output tokens" in note for note in model.notes(beyond))


def test_fewer_output_tokens_than_measured_are_no_extrapolation(exact: pd.DataFrame) -> None:
    model = model_of(exact)
    assert model.refusal(Query(5, 600, 2)) is None
    assert model.notes(Query(5, 600, 2)) == []


def test_without_generations_only_the_first_token_is_predicted(tmp_path: Path) -> None:
    model = model_of(table_of(tmp_path, runner=CpuLikeRunner(), output=None))
    assert model.refusal(Query(5, 600, 1)) is None
    reason = model.refusal(Query(5, 600, 2))
    assert reason is not None
    assert "no decode step can be predicted" in reason


def test_a_picture_larger_than_any_is_predicted_with_a_warning(exact: pd.DataFrame) -> None:
    def notes(width_px: int, height_px: int) -> str:
        found = predict(exact, width_px=width_px, height_px=height_px, output_tokens=1, question_tokens=32)
        return " ".join(found["notes"])

    assert "2.1 megapixels take longer" in notes(1920, 1080)
    assert "megapixels" not in notes(640, 480)


def test_a_subject_has_to_be_named_among_several(exact: pd.DataFrame) -> None:
    two = pd.concat([exact, exact.assign(subject="other")])
    with pytest.raises(UserError, match="several subjects; legal: fake, other"):
        choose_subject(two, None)
    with pytest.raises(UserError, match="'none' is not in the study; legal: fake, other"):
        choose_subject(two, "none")
    assert set(choose_subject(two, "other")["subject"]) == {"other"}
    assert set(choose_subject(exact, None)["subject"]) == {"fake"}


# ---------------------------------------------------------------------------------------------------------- the command


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, exact: pd.DataFrame):
    """Run `vlmeter predict` on a study's folder; returns exit code, output, errors."""
    write_table(exact, tmp_path / "table.parquet", tmp_path / "table.csv")

    def call(*arguments: str, study: Path = tmp_path) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["vlmeter", "predict", "--study", str(study), *arguments])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_table_names_counts_predictions_and_what_they_are_worth(run) -> None:
    code, out, _ = run("--image", "640x480", "--output-tokens", "32")
    assert code == 0
    assert "image 640x480: 7 crops, 704 vision tokens; prompt of 772 tokens, 32 output tokens" in out
    for name in ("preprocessing and copy", "prefill", "time to first token", "decode", "whole request"):
        assert f"\n{name} " in out
    assert "held out, time_to_first_token: median error" in out


def test_json_holds_the_same_unrounded(run, exact: pd.DataFrame) -> None:
    code, out, _ = run("--image", "640x480", "--output-tokens", "32", "--question-tokens", "20", "--format", "json")
    assert code == 0
    assert json.loads(out) == predict(exact, width_px=640, height_px=480, output_tokens=32, question_tokens=20)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--image", "640", "--output-tokens", "8"), "--image: '640' is not of the form AxB"),
        (
            ("--image", "640x480", "--output-tokens", "999"),
            "999 output tokens are too far from what the study measured",
        ),
        (("--image", "640x480", "--output-tokens", "8", "--subject", "x"), "legal: fake"),
        (("--image", "640x480", "--output-tokens", "8", "--format", "xml"), "legal: table, csv, json"),
    ],
)
def test_what_cannot_be_predicted_is_one_sentence_and_exit_code_two(run, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert said in err
    assert err.count("\n") == 1


def test_a_folder_without_a_table_is_refused(run, tmp_path: Path) -> None:
    code, _, err = run("--image", "640x480", "--output-tokens", "8", study=tmp_path / "none")
    assert code == 2
    assert "holds no table.parquet" in err


def test_predicted_and_measured_agree_for_every_photograph_of_the_study(exact: pd.DataFrame) -> None:
    """What `predict` says of a request that was measured is what was measured."""
    model = model_of(exact)
    for row in decode(exact).to_dict("records"):
        request = Query(int(row["crops"]), int(row["prompt_tokens"]), int(row["output_tokens"]))
        assert model.first_token_of(request).value_ms == pytest.approx(row["first_token_ms"])
        assert model.decode_of(request).value_ms == pytest.approx(row["decode_ms"])


def test_a_table_of_before_the_revision_was_in_it_still_predicts() -> None:
    gallery = Path(__file__).parent.parent / "docs" / "gallery"
    table = read_table(gallery / "table.parquet")
    assert table["revision"].isna().all()
    assert list(table.columns) == [column.name for column in COLUMNS]
    found = predict(choose_subject(table, None), width_px=1920, height_px=1080, output_tokens=8, question_tokens=32)
    assert found["image"]["crops"] == 13
