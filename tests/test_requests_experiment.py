"""The experiment `requests`: this picture, this long an answer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from tests.support.fakes import FakeRunner
from tests.support.html import parse
from tests.support.reports import inputs_of, roofline_of
from tests.support.studies import photographs, pictures_of, run_fake, study_of
from vlmeter.analysis import decode_runs, prediction_model, step_times, subjects
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.roofline import beside
from vlmeter.claims.registry import judge_all
from vlmeter.common.errors import UserError
from vlmeter.figures.registry import FIGURES, draw_or_explain
from vlmeter.inputs.looks import own_pictures
from vlmeter.inputs.pictures import own_picture
from vlmeter.measure.questions import refuse_placeholders
from vlmeter.records.fingerprint import cell_fingerprint
from vlmeter.report.page import render
from vlmeter.study.plan import build_plan
from vlmeter.table.build import build_table
from vlmeter.table.quantities import DECODE

SIZES = ["336x336", "672x448", "1000x700", "1344x1344"]
SAMPLING = {"min_samples": 7, "max_samples": 7, "max_seconds_per_cell": 1000}


def requests(**keys: Any) -> Any:
    """A study that asks this experiment alone."""
    given = {"image_sizes": SIZES, "output_tokens": [4, 16], **keys}
    return study_of(experiments={"requests": given}, sampling=SAMPLING)


@pytest.fixture
def picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A picture of 640 x 480 px that was taken on its side, in the folder where vlmeter runs."""
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (480, 640), "green").save("photo.jpg", exif=exif)
    return Path("photo.jpg")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("records")
    study = requests(output_tokens=[1, 4, 16, 64], questions=["What is it?", "How many are there?"])
    run_fake(study, folder, runner=FakeRunner(noise_fraction=0.01))
    return build_table(sorted((folder / "small" / "cells").rglob("*.json")))


# The plan


def test_every_image_and_every_length_make_a_cell(picture: Path) -> None:
    cells = build_plan(requests(pictures=[str(picture)]))
    asked = [(str(cell.request.pictures[0]), cell.output_tokens) for cell in cells]
    assert asked == [(name, tokens) for name in [*(f"{size} px" for size in SIZES), "photo.jpg"] for tokens in (4, 16)]
    assert len({cell.cell_id for cell in cells}) == 10


def test_a_picture_counts_as_an_image_of_its_size_when_upright(picture: Path) -> None:
    made, own = build_plan(requests(image_sizes=["640x480"], pictures=[str(picture)], output_tokens=[4]))
    assert own.request.size_px == (640, 480)
    assert own.expected == made.expected
    assert own.expected.prompt_tokens is not None


def test_one_output_token_is_a_prefill_and_more_are_a_generation() -> None:
    kinds = {cell.output_tokens: cell.kind for cell in build_plan(requests(output_tokens=[1, 2]))}
    assert kinds == {1: "prefill", 2: "generation"}


def test_every_question_is_asked_of_every_image() -> None:
    cells = build_plan(requests(output_tokens=[4], questions=["What is it?", "Is it red?"]))
    assert [cell.request.question for cell in cells] == ["What is it?", "Is it red?"] * len(SIZES)
    assert all(cell.request.text_tokens is None and cell.expected.text_tokens for cell in cells)


def test_two_pictures_of_one_name_have_cells_of_their_own(picture: Path) -> None:
    Path("other").mkdir()
    picture.with_name("other").joinpath("photo.jpg").write_bytes(picture.read_bytes())
    cells = build_plan(requests(image_sizes=[], pictures=["photo.jpg", "other/photo.jpg"], output_tokens=[4]))
    assert [cell.cell_id for cell in cells] == ["requests-picture-photo-1-n4", "requests-picture-photo-2-n4"]


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image_sizes": []}, "nothing to look at; give at least one of image_sizes, pictures"),
        (
            {"pictures": ["absent.jpg"]},
            r"requests.pictures: absent.jpg does not exist; legal: the path of an image file",
        ),
        ({"pictures": ["words.txt"]}, r"requests.pictures: words.txt is no image file that can be read"),
        ({"questions": ["Why?"], "text_tokens": 20}, "text_tokens is given beside questions"),
        ({"output_tokens": [4, 4]}, "4 stands there more than once"),
        ({"image_sizes": ["640"]}, "'640' is not of the form"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("words.txt").write_text("no picture")
    with pytest.raises(UserError, match=said):
        build_plan(requests(**keys))


# What is looked at


def test_a_picture_is_shown_upright_and_its_content_is_part_of_the_fingerprint(picture: Path) -> None:
    study = requests(image_sizes=[], pictures=[str(picture)], output_tokens=[4])
    (cell,) = build_plan(study)
    pictures = pictures_of()
    assert pictures.opened(cell, cell.request).picture.size == (640, 480)
    assert own_pictures([cell]) == [picture.absolute()]
    before = cell_fingerprint(cell, study.subjects["fake"], pictures)
    Image.new("RGB", (640, 480), "red").save(picture)
    after = cell_fingerprint(cell, study.subjects["fake"], pictures)
    assert {name for name in before if before[name] != after[name]} == {"input"}


def test_a_picture_that_went_away_is_named(picture: Path) -> None:
    (cell,) = build_plan(requests(image_sizes=[], pictures=[str(picture)], output_tokens=[4]))
    picture.unlink()
    with pytest.raises(UserError, match=r"picture photo.jpg cannot be read: No such file"):
        own_picture(cell.request.own_pictures[0])


def test_a_question_of_the_studys_own_goes_before_the_photographs() -> None:
    (cell,) = build_plan(requests(image_sizes=["336x336"], output_tokens=[4], questions=["Is it red?"]))
    assert pictures_of(photographs(1)).question(cell.request) == "Is it red?"


def test_a_question_that_holds_a_mark_is_refused_by_its_words() -> None:
    (cell,) = build_plan(requests(image_sizes=["336x336"], output_tokens=[4], questions=["Is <image> red?"]))

    class Loaded:
        placeholders = ("<image>",)

    with pytest.raises(UserError, match=r'question "Is <image> red\?": the question holds <image>'):
        refuse_placeholders("fake", Loaded(), [cell], pictures_of())  # type: ignore[arg-type]


# The table, and what is made of it


def test_generations_of_made_images_are_told_apart_and_named(table: pd.DataFrame) -> None:
    cells = table[table["kind"] == "generation"].drop_duplicates("cell_id")
    assert cells["image_index"].nunique() == len(SIZES) * 2
    assert set(cells["image_id"]) == {f"{size} px" for size in SIZES}
    assert set(cells["question"]) == {"What is it?", "How many are there?"}
    assert set(zip(cells["width_px"], cells["height_px"], strict=True)) == {
        tuple(map(int, size.split("x"))) for size in SIZES
    }
    assert set(cells["answers"].map(json.loads).map(len)) == {0}


def test_images_are_numbered_behind_the_datasets_photographs(tmp_path: Path) -> None:
    both = {
        "requests": {"image_sizes": SIZES[:2], "output_tokens": [4, 8]},
        "output_tokens": {"output_tokens": [4, 8]},
    }
    run_fake(study_of(experiments=both, sampling=SAMPLING), tmp_path)
    found = build_table(sorted((tmp_path / "small" / "cells").rglob("*.json")))
    runs = decode_runs.decode(found)
    assert sorted(set(zip(runs["image_index"], runs["picture"], strict=True))) == [
        (0, "photograph 0"),
        (1, "photograph 1"),
        (2, "336x336 px"),
        (3, "672x448 px"),
    ]
    assert decode_runs.pictures_in_words(runs) == "4 images"
    assert decode_runs.pictures_in_words(runs[runs["image_index"] < 2]) == "2 photographs"


def test_a_longer_answer_holds_the_shorter_ones_of_its_own_image(table: pd.DataFrame) -> None:
    found = decode_runs.agreement(table)
    assert len(found) == len(SIZES) * 2 * 2
    assert found["difference_fraction"].abs().max() < 0.05


def test_the_answers_know_what_was_looked_at(table: pd.DataFrame) -> None:
    told = answers_of(table)
    assert not isinstance(told["output_token"].found, Unknown)
    assert not isinstance(told["crop"].found, Unknown)
    assert told["first_token"].note == f"median over {len(SIZES) * 2} images; preprocessing, copy and prefill"
    assert told["first_token"].question == "time to first token, images"
    law = step_times.step_law(table)
    assert not isinstance(law, Unknown)
    assert law.pictures == f"{len(SIZES) * 2} images"


def test_first_tokens_are_of_images_by_their_names(table: pd.DataFrame) -> None:
    found = subjects.first_tokens(table)
    assert {f"{size} px" for size in SIZES} <= set(found["image"])


def test_a_law_is_learnt_from_them_and_predicts(table: pd.DataFrame) -> None:
    model = prediction_model.learn(table)
    assert not isinstance(model, Unknown)
    assert not isinstance(model.decode, Unknown)
    query = prediction_model.Query(5, 600, 32)
    predicted = model.decode_of(query)
    measured = decode_runs.by_length(decode_runs.decode(table), DECODE)["value"]
    assert not isinstance(predicted, Unknown)
    assert measured.min() < predicted.value_ms < measured.max()


def test_the_report_shows_them_all(table: pd.DataFrame, tmp_path: Path) -> None:
    page = parse(render(inputs_of(tmp_path, table, roofline=roofline_of(table))))
    rows = page.find("div", data_grid="output-fake").find("tbody").find_all("tr")
    names = {row.find_all("td")[0].text for row in rows}
    assert names == {f"{size} px" for size in SIZES}
    assert "photograph" not in page.find("div", data_grid="output-fake").find("tbody").text


def test_claims_are_judged_on_them(table: pd.DataFrame) -> None:
    claims = judge_all(table, "fake", roofline=roofline_of(table))
    assert {claim.verdict for claim in claims} >= {"holds"}


@pytest.mark.parametrize("figure", FIGURES)
def test_no_figure_breaks_on_them_or_speaks_of_photographs(figure: str, table: pd.DataFrame) -> None:
    with_floors = beside(table, roofline_of(table))
    _, caption = draw_or_explain(with_floors, figure)
    assert "photograph" not in caption
