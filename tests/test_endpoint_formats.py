"""The format of a picture's file as an axis: cells, what travels, what the table and the figure make of it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from PIL import Image

from tests.support.fake_server import FakeServer
from tests.support.studies import study_of
from tests.test_endpoint_runner import NATIVE, counting, run_served, served_study
from vlmeter.analysis import encodings, prefill_cells, subjects
from vlmeter.analysis.prediction import predict
from vlmeter.cells.cell import MadePicture, sentinel_of
from vlmeter.claims.registry import judge_all
from vlmeter.common.errors import UserError
from vlmeter.figures.registry import FIGURES, NOT_ASKED, draw_or_explain, get_figure
from vlmeter.inputs.images import dummy_image
from vlmeter.inputs.pictures import Pictures
from vlmeter.models.encoding import Encoding
from vlmeter.models.families.base import LoadedModel
from vlmeter.models.families.registry import get_family
from vlmeter.records.record import Record
from vlmeter.study.layout import cell_path
from vlmeter.study.loader import parse_study
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study
from vlmeter.study.subject import Subject, subject_spec
from vlmeter.table.build import build_table
from vlmeter.table.quantities import PLAIN_WALL

URL = "http://127.0.0.1:9/v1"
SIZES = {"image_sizes": ["120x80", "400x300"], "text_tokens": 40}
FORMATS = {"image_format": ["png", "jpeg"], "image_quality": [20, 90]}


def asking(url: str = URL, *, endpoint: dict[str, Any] | None = None, **keys: Any) -> Study:
    return served_study(url, endpoint=endpoint, experiments={"vision_tokens": {**SIZES, **keys}})


def ids(study: Study, subject: str = "served") -> list[str]:
    return [cell.cell_id for cell in build_plan(study, subject=subject)]


# --- the plan -----------------------------------------------------------------------------------------


def test_each_image_has_a_cell_in_each_format_and_the_subjects_own_keeps_its_name() -> None:
    plain = ["vision-size-120x80", "vision-size-400x300"]
    assert ids(asking()) == plain
    assert ids(asking(image_format=["png"])) == plain
    assert ids(asking(image_format=["jpeg", "png"])) == [
        *("vision-size-120x80", "vision-size-120x80-jpeg90"),
        *("vision-size-400x300", "vision-size-400x300-jpeg90"),
    ]
    assert [name.removeprefix("vision-size-120x80") for name in ids(asking(**FORMATS))[:3]] == [
        "",
        "-jpeg20",
        "-jpeg90",
    ]


def test_a_subject_whose_own_format_is_jpeg_has_png_as_the_other() -> None:
    own = {"image_format": "jpeg", "image_quality": 60}
    names = ids(asking(endpoint=own, image_format=["png", "jpeg"], image_quality=[60, 90]))
    assert names[:3] == ["vision-size-120x80", "vision-size-120x80-png", "vision-size-120x80-jpeg90"]


def test_the_same_tokens_are_expected_of_every_format() -> None:
    found: dict[object, set[object]] = {}
    for cell in build_plan(asking(**FORMATS)):
        (made,) = cell.request.made_pictures
        found.setdefault((made.width_px, made.height_px), set()).add(cell.expected)
    assert [len(expected) for expected in found.values()] == [1, 1]


def test_a_sentinel_is_sent_as_the_subject_says() -> None:
    cells = build_plan(asking(**FORMATS))
    assert sentinel_of(cells).encoding is None
    assert str(cells[1]) == "120x80 px, as JPEG of quality 20"


def test_a_subject_in_this_process_has_each_image_once() -> None:
    study = asking(**FORMATS)
    both = {**study.model_dump(), "subjects": {"eager": {**NATIVE, "backend": "eager"}, "served": _served()}}
    assert ids(study_of(**both), "eager") == ["vision-size-120x80", "vision-size-400x300"]
    assert len(ids(study_of(**both))) == 6


def _served() -> dict[str, Any]:
    return {**NATIVE, "endpoint": {"url": URL}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"image_format": []}, r"experiments.vision_tokens.image_format: \[\] is not legal; legal: at least 1 of them"),
        ({"image_format": ["webp"]}, "image_format.0: \"webp\" is not legal; legal: 'png' or 'jpeg'"),
        ({"image_format": ["png", "png"]}, "png stands there more than once"),
        ({"image_quality": [50]}, "image_quality goes with image_format, and jpeg is not among it"),
        ({"image_format": ["png"], "image_quality": [50]}, "image_quality goes with image_format, and jpeg is not"),
        (
            {"image_format": ["png", "jpeg"], "image_quality": [19]},
            "image_quality.0: 19 is not legal; legal: 20 or",
        ),
    ],
)
def test_what_is_no_format_is_refused_in_a_sentence(keys: dict[str, Any], said: str) -> None:
    content = {
        "study": "formats",
        "subjects": {"served": _served()},
        "experiments": {"vision_tokens": {**SIZES, **keys}},
    }
    with pytest.raises(UserError, match=said):
        parse_study(content, source="study.yaml")


def test_formats_without_the_subjects_own_are_refused() -> None:
    with pytest.raises(UserError) as refused:
        build_plan(asking(image_format=["jpeg"]))
    assert str(refused.value) == (
        "experiments.vision_tokens.image_format, subject served: PNG, the subject's own, is not among "
        "JPEG of quality 90; legal: formats with it among them"
    )


def test_formats_are_refused_where_nothing_is_served() -> None:
    study = asking(**FORMATS)
    alone = study_of(**{**study.model_dump(), "subjects": {"eager": {**NATIVE, "backend": "eager"}}})
    with pytest.raises(UserError) as refused:
        build_plan(alone)
    assert str(refused.value) == (
        "experiments.vision_tokens.image_format: pictures are files only where they are sent to a server, and each "
        "subject runs in this process; legal with a subject whose backend is one of: endpoint"
    )


# --- a session ----------------------------------------------------------------------------------------


def noise(picture: MadePicture) -> Image.Image:
    return dummy_image(picture.width_px, picture.height_px, seed=picture.seed)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Record], list[Any], pd.DataFrame]]:
    subject = Subject(**{**NATIVE, "backend": "eager"})
    loaded: LoadedModel = get_family("llava_next").load(subject_spec(subject), device="meta")
    results = tmp_path_factory.mktemp("formats")
    with FakeServer(counting(loaded)) as server:
        study = asking(server.url, **FORMATS)
        found = run_served(study, results, pictures=Pictures(made=noise))
        table = build_table([cell_path(results, study.study, cell) for cell in build_plan(study)])
        yield found, server.requests, table


def sent_pictures(requests: list[Any]) -> list[tuple[str, str | None, tuple[int, int], int]]:
    """Media type, format, size and bytes of every picture that was sent."""
    found = []
    for request in requests:
        for part in request["messages"][0]["content"]:
            if part["type"] == "image_url":
                kind, _, data = part["image_url"]["url"].partition(",")
                raw = base64.b64decode(data)
                opened = Image.open(io.BytesIO(raw))
                found.append((kind, opened.format, opened.size, len(raw)))
    return found


def test_every_format_is_measured_and_counted_exactly(ran: Any) -> None:
    records, _, _ = ran
    assert len(records) == 6
    for record in records.values():
        assert record.status == "ok"
        assert record.counted is not None
        assert record.counted.prompt_tokens == record.cell.expected.prompt_tokens


def test_what_travels_is_in_the_format_of_the_cell(ran: Any) -> None:
    records, requests, _ = ran
    sent = sent_pictures(requests)
    assert {(media, name) for media, name, _, _ in sent} == {
        ("data:image/png;base64", "PNG"),
        ("data:image/jpeg;base64", "JPEG"),
    }
    for name, record in records.items():
        (picture,) = record.requests[0].pictures
        size_px, wanted = (picture.width_px, picture.height_px), "PNG" if record.cell.encoding is None else "JPEG"
        alike = [size for _, form, px, size in sent if (form, px) == (wanted, size_px)]
        near = [size for size in alike if abs(size - picture.file_bytes) < 0.05 * picture.file_bytes]
        assert len(near) >= 10, f"{name}: five rounds of two arms"


def test_the_table_says_how_each_picture_was_sent(ran: Any) -> None:
    _, _, table = ran
    cells = table.drop_duplicates("cell_id").set_index("cell_id")
    told = cells.loc[["vision-size-400x300", "vision-size-400x300-jpeg20", "vision-size-400x300-jpeg90"]]
    assert told["image_format"].tolist() == ["png", "jpeg", "jpeg"]
    assert told["image_quality"].isna().tolist() == [True, False, False]
    assert told["image_quality"].tolist()[1:] == [20, 90]
    png, low, high = told["image_bytes"]
    assert low < png < high, "squares of one colour: PNG packs them well"
    assert told["kind"].tolist() == ["prefill", "prefill_otherwise", "prefill_otherwise"]


def test_no_number_of_prefills_is_made_of_two_formats(ran: Any) -> None:
    _, _, table = ran
    assert set(prefill_cells.vision_cells(table)["cell_id"]) == {"vision-size-120x80", "vision-size-400x300"}
    assert set(subjects.first_tokens(table)["cell_id"]) == {"vision-size-120x80", "vision-size-400x300"}
    own = table[table["kind"] == "prefill"].reset_index(drop=True)
    query = {"width_px": 200, "height_px": 200, "question_tokens": 20, "output_tokens": 1}
    assert predict(table, **query)["predictions"] == predict(own, **query)["predictions"]
    judged = [{claim.name: claim.statement for claim in judge_all(rows, "served")} for rows in (table, own)]
    unlike = {name for name in judged[0] if judged[0][name] != judged[1][name]}
    assert unlike == {"server_counts_are_the_plans"}, "counts are held to the plan in every format"
    moved = {name for name in FIGURES if draw_or_explain(table, name)[1] != draw_or_explain(own, name)[1]}
    assert moved - {"sentinel"} == {"first_token_by_format"}, "the sentinel is of the session, which had all cells"


def test_files_of_one_image_stand_together_in_the_order_of_their_bytes(ran: Any) -> None:
    data = encodings.sent_files(ran[2])
    assert data["encoding"].tolist() == ["JPEG of quality 20", "PNG", "JPEG of quality 90"] * 2
    assert data["width_px"].tolist() in ([120] * 3 + [400] * 3, [400] * 3 + [120] * 3)
    assert data["image"].nunique() == 2
    assert data.groupby("image")["image_bytes"].apply(lambda sizes: sizes.is_monotonic_increasing).all()


def test_the_figure_shows_every_file_at_its_bytes_and_its_first_token(ran: Any) -> None:
    _, _, table = ran
    module = get_figure("first_token_by_format")
    assert module.needs(table) is None
    figure = module.draw(table)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    data = encodings.sent_files(table)
    lines = [line for line in axes.lines if len(line.get_xdata()) == 3]
    drawn = [(float(x), float(y)) for line in lines for x, y in zip(*line.get_data(), strict=True)]
    meant = [(row["image_bytes"] / 1024, row[PLAIN_WALL.column]) for row in data.to_dict("records")]
    assert np.allclose(drawn, meant)
    assert axes.get_xlabel() == "the picture's file as it is sent (KiB)"
    assert "(ms)" in axes.get_ylabel()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["PNG", "JPEG of quality 20", "JPEG of quality 90"]
    said = module.caption(table)
    assert "the largest file, JPEG of quality 90 with" in said
    assert "the smallest, JPEG of quality 20 with" in said


def test_without_a_second_format_there_is_no_such_figure(ran: Any) -> None:
    _, _, table = ran
    own = table[table["kind"] == "prefill"].reset_index(drop=True)
    assert get_figure("first_token_by_format").needs(own) == NOT_ASKED


def test_an_encoding_is_named_in_a_key_and_in_words() -> None:
    assert [Encoding("png").key, Encoding("jpeg", 75).key] == ["png", "jpeg75"]
    assert [str(Encoding("png")), str(Encoding("jpeg", 75))] == ["PNG", "JPEG of quality 75"]
    assert Encoding.of("png", 50) == Encoding("png")
