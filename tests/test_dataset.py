from __future__ import annotations

import hashlib
import json
import shutil
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tests.support import vqa
from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.inputs.dataset import choose, fetch, read_manifest
from vlmeter.inputs.images import read_image
from vlmeter.inputs.manifest import Manifest
from vlmeter.inputs.rows import SourceRow
from vlmeter.study.dataset_source import DatasetSource, EmbeddedSource, HubSource, LocalSource


def embedded(**values: int) -> EmbeddedSource:
    return EmbeddedSource(source="embedded", **values)


def local(path: Path, **values: int) -> LocalSource:
    return LocalSource(source="local", path=str(path), **values)


def question_ids(manifest: Manifest) -> list[int | str]:
    return [image.question_id for image in manifest.images]


SEED_0: list[int | str] = [10000, 4000, 6000, 11000]  # the embedded sample, 4 images
SAMPLE = resources.files("vlmeter") / "data" / "sample"


# --- the embedded sample ---


def test_the_sample_gives_ten_photographs_each_once(tmp_path: Path) -> None:
    manifest = fetch(embedded(), tmp_path)
    assert len(manifest.images) == 10
    assert len({image.image_id for image in manifest.images}) == 10


def test_the_manifest_tells_what_the_files_hold(tmp_path: Path) -> None:
    written = fetch(embedded(images=12), tmp_path)
    manifest = read_manifest(tmp_path / "manifest.json", check_files=True)
    assert manifest == written
    for image in manifest.images:
        file = tmp_path / image.file
        assert read_image(file).size == (image.width_px, image.height_px)
        assert hashlib.sha256(file.read_bytes()).hexdigest() == image.sha256
        assert image.question.endswith("?")
        assert len(image.answers) == 10
    names = {image.file for image in manifest.images} | {"manifest.json"}
    assert {file.name for file in tmp_path.iterdir()} == names


def test_the_sample_records_follow_the_schema_of_vqa_v2() -> None:
    rows = [json.loads(line) for line in (SAMPLE / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    by_image: dict[int, set[str]] = {}
    for row in rows:
        assert set(row) == set(vqa.row(1, 0, None))
        assert [set(answer) for answer in row["answers"]] == [{"answer", "answer_confidence", "answer_id"}] * 10
        answers = [answer["answer"] for answer in row["answers"]]
        assert row["multiple_choice_answer"] == max(answers, key=answers.count)
        assert row["answer_type"] in ("yes/no", "number", "other")
        assert row["question_type"] == "none of the above" or row["question"].lower().startswith(row["question_type"])
        by_image.setdefault(row["image_id"], set()).add(row["question"])
    assert len(by_image) >= 10
    assert all(len(questions) >= 2 for questions in by_image.values())
    assert len({row["question_id"] for row in rows}) == len(rows)


def test_every_sample_picture_is_attributed_and_the_sample_is_small() -> None:
    attribution = (SAMPLE / "ATTRIBUTION.md").read_text(encoding="utf-8")
    pictures = [entry for entry in SAMPLE.iterdir() if entry.name.endswith(".jpg")]
    assert all(f"| {picture.name} |" in attribution for picture in pictures)
    assert sum(len(entry.read_bytes()) for entry in SAMPLE.iterdir()) < 3_000_000


def test_more_questions_on_the_same_photographs_come_once_every_photograph_was_used(tmp_path: Path) -> None:
    twelve = fetch(embedded(images=12), tmp_path / "12")
    fifteen = fetch(embedded(images=15), tmp_path / "15")
    assert question_ids(fifteen)[:12] == question_ids(twelve)
    assert len(set(question_ids(fifteen))) == 15


def test_more_photographs_than_there_are_records_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"embedded sample: has 27 records, dataset.images asks for 28; legal: 1 to 27"):
        fetch(embedded(images=28), tmp_path)
    assert not (tmp_path / "manifest.json").exists()


def test_a_record_that_waits_for_its_turn_holds_no_image(tmp_path: Path) -> None:
    """A hub dataset of 5,000 photographs has some 20,000 further questions, each with the bytes of its image."""
    waiting: list[SourceRow] = []

    def record(row: dict[str, Any]) -> SourceRow:
        made = SourceRow(row["image_id"], row["question_id"], lambda: row, holds_image=True)
        waiting.append(made.without_image())
        return made

    chosen = islice(choose([[record(row) for row in vqa.rows(3)]], images=5, seed=0), 5)
    assert [("image" in one.read_row()) for one in chosen] == [True] * 3 + [False] * 2
    assert all("image" not in one.read_row() and one.read_row()["question"] for one in waiting)


# --- the choice ---


def test_a_seed_chooses_the_same_photographs_everywhere(tmp_path: Path) -> None:
    assert question_ids(fetch(embedded(images=4, seed=0), tmp_path / "a")) == SEED_0
    assert question_ids(fetch(embedded(images=4, seed=1), tmp_path / "b")) != SEED_0


def test_asking_for_more_keeps_those_that_fewer_gave(tmp_path: Path) -> None:
    few = fetch(embedded(images=3), tmp_path / "few")
    many = fetch(embedded(images=9), tmp_path / "many")
    assert many.images[:3] == few.images


def test_progress_is_told_image_by_image(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    fetch(embedded(images=3), tmp_path, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


# --- local files ---


def test_parquet_jsonl_folders_and_patterns_are_read_alike(tmp_path: Path) -> None:
    vqa.write_parquet(tmp_path / "set" / "validation-0.parquet", vqa.rows(4), row_group_size=7)
    vqa.write_parquet(tmp_path / "set" / "validation-1.parquet", vqa.rows(4, first_image_id=5))
    vqa.write_parquet(tmp_path / "set" / "train-0.parquet", vqa.rows(2, first_image_id=100))
    lines = []
    for row in vqa.rows(8):
        (tmp_path / row["image"]["path"]).write_bytes(row["image"]["bytes"])
        lines.append(json.dumps({**row, "image": row["image"]["path"]}) + "\n")
    (tmp_path / "records.jsonl").write_text("".join(lines), encoding="utf-8")

    from_pattern = fetch(local(tmp_path / "set" / "validation-*.parquet", images=8), tmp_path / "a")
    from_jsonl = fetch(local(tmp_path / "records.jsonl", images=8), tmp_path / "b")
    assert from_pattern.images == from_jsonl.images
    from_folder = fetch(local(tmp_path / "set", images=10), tmp_path / "c")
    assert {image.image_id for image in from_folder.images} == {*range(1, 9), 100, 101}
    from_file = fetch(local(tmp_path / "set" / "train-0.parquet", images=2), tmp_path / "d")
    assert {image.image_id for image in from_file.images} == {100, 101}


def test_a_column_of_plain_bytes_and_records_without_answers_are_taken(tmp_path: Path) -> None:
    records = [{**row, "image": row["image"]["bytes"], "answers": None} for row in vqa.rows(2)]
    vqa.write_parquet(tmp_path / "v.parquet", records)
    manifest = fetch(local(tmp_path / "v.parquet", images=2), tmp_path / "out")
    assert [image.answers for image in manifest.images] == [(), ()]


def test_ids_that_are_no_file_names_make_safe_and_distinct_files(tmp_path: Path) -> None:
    records = [
        {**row, "question_id": question_id, "image_id": question_id}
        for row, question_id in zip(vqa.rows(1), ("../a", ".._a", "a/b", "ü", "x" * 300), strict=True)
    ]
    vqa.write_parquet(tmp_path / "v.parquet", records)
    manifest = fetch(local(tmp_path / "v.parquet", images=5), tmp_path / "out")
    files = {image.file for image in manifest.images}
    assert len(files) == 5
    assert {file.name for file in (tmp_path / "out").iterdir()} == files | {"manifest.json"}


# --- what can be wrong, each time one sentence that names the record ---


def broken(tmp_path: Path, **changes: object) -> LocalSource:
    """One record, changed."""
    vqa.write_parquet(tmp_path / "v.parquet", [{**vqa.rows(1)[0], **changes}])
    return local(tmp_path / "v.parquet", images=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "question_id 1000, image_id 1: the record has no image"),
        ({"image": {"bytes": b"", "path": None}}, "question_id 1000, image_id 1: the record has no image"),
        (
            {"image": {"bytes": None, "path": "no.jpg"}},
            "image_id 1: image file no.jpg cannot be read: No such file",
        ),
        (
            {"image": {"bytes": b"GIF", "path": None}},
            "image_id 1: the image cannot be decoded: it is not in an",
        ),
        (
            {"image": {"bytes": vqa.jpeg(1)[:-900], "path": None}},
            "question_id 1000, image_id 1: the image cannot be decoded: image file is truncated",
        ),
        ({"image": 5}, "question_id 1000, image_id 1: the image is a int"),
        ({"question": None}, "question_id 1000, image_id 1: the record has no question"),
        ({"answers": [{"text": "yes"}]}, "question_id 1000, image_id 1: answers are not a list of"),
        ({"answers": [True]}, "question_id 1000, image_id 1: answers are not a list of text, or of {answer,"),
        ({"image_id": None}, "question_id 1000, image_id None: image_id is not legal"),
        ({"question_id": 1.5}, "question_id 1.5, image_id 1: question_id is not legal"),
    ],
)
def test_a_record_that_cannot_be_used_is_named(changes: dict[str, object], message: str, tmp_path: Path) -> None:
    source = broken(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        fetch(source, tmp_path / "out")
    text = str(caught.value)
    assert message in text
    assert text.startswith(f"dataset {tmp_path / 'v.parquet'}: ")
    assert "\n" not in text
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_size_that_the_model_cannot_take_names_the_record(tmp_path: Path) -> None:
    def check_size(width_px: int, height_px: int) -> None:
        raise UnsupportedSize(f"{width_px} x {height_px} px is too long and thin")

    with pytest.raises(UserError, match=r"question_id 1000, image_id 1: 96 x 64 px is too long and thin$"):
        fetch(broken(tmp_path), tmp_path / "out", check_size=check_size)


def test_a_broken_record_that_is_not_chosen_does_no_harm(tmp_path: Path) -> None:
    source = local(tmp_path / "v.parquet", images=1)
    vqa.write_parquet(tmp_path / "v.parquet", vqa.rows(2))
    (chosen,) = fetch(source, tmp_path / "a").images
    records = [row if row["image_id"] == chosen.image_id else {**row, "image": None} for row in vqa.rows(2)]
    vqa.write_parquet(tmp_path / "v.parquet", records)
    assert fetch(source, tmp_path / "b").images == (chosen,)


def test_a_question_id_given_twice_is_refused(tmp_path: Path) -> None:
    vqa.write_parquet(tmp_path / "v.parquet", [{**row, "question_id": 7} for row in vqa.rows(2)])
    with pytest.raises(UserError, match="question_id 7 stands there more than once"):
        fetch(local(tmp_path / "v.parquet", images=2), tmp_path / "out")


def test_a_source_that_is_not_there_or_not_a_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dataset.path .*nowhere does not exist"):
        fetch(local(tmp_path / "nowhere"), tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty holds no .parquet or .jsonl file"):
        fetch(local(tmp_path / "empty"), tmp_path / "out")
    with pytest.raises(UserError, match=r"val-\*.parquet matches no .parquet or .jsonl file"):
        fetch(local(tmp_path / "val-*.parquet"), tmp_path / "out")
    (tmp_path / "notes.txt").write_text("text")
    with pytest.raises(UserError, match=r"notes.txt is not a .parquet or .jsonl file"):
        fetch(local(tmp_path / "notes.txt"), tmp_path / "out")
    vqa.write_parquet(tmp_path / "cut.parquet", vqa.rows(2))
    whole = (tmp_path / "cut.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut.parquet is not a whole parquet file"):
        fetch(local(tmp_path / "cut.parquet"), tmp_path / "out")
    vqa.write_parquet(tmp_path / "columns.parquet", [{"image_id": 1, "question": "?"}])
    with pytest.raises(UserError, match="has no column question_id; it has: image_id, question"):
        fetch(local(tmp_path / "columns.parquet"), tmp_path / "out")
    (tmp_path / "half.jsonl").write_text('{"image_id": 1, "question')
    with pytest.raises(UserError, match=r"half.jsonl line 1 is not JSON"):
        fetch(local(tmp_path / "half.jsonl"), tmp_path / "out")
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match="has no records"):
        fetch(local(tmp_path / "none.jsonl"), tmp_path / "out")


def test_a_failed_fetch_leaves_no_manifest_of_an_earlier_one(tmp_path: Path) -> None:
    fetch(embedded(images=2), tmp_path / "out")
    with pytest.raises(UserError):
        fetch(broken(tmp_path, image=None), tmp_path / "out")
    with pytest.raises(UserError, match=r"manifest.json does not exist"):
        read_manifest(tmp_path / "out" / "manifest.json")


# --- reading a manifest ---


def test_a_changed_or_missing_image_file_is_noticed_on_request(tmp_path: Path) -> None:
    manifest = fetch(embedded(images=2), tmp_path)
    file = tmp_path / manifest.images[0].file
    shutil.copy(tmp_path / manifest.images[1].file, file)
    assert read_manifest(tmp_path / "manifest.json") == manifest
    with pytest.raises(UserError, match=f"{manifest.images[0].file} has changed since it was fetched"):
        read_manifest(tmp_path / "manifest.json", check_files=True)
    file.unlink()
    with pytest.raises(UserError, match=f"{manifest.images[0].file} does not exist"):
        read_manifest(tmp_path / "manifest.json", check_files=True)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', "\xff"])
def test_a_file_that_is_no_manifest_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=r"^dataset manifest .*manifest.json: ") as caught:
        read_manifest(tmp_path / "manifest.json")
    assert "\n" not in str(caught.value)


# --- the section of the study ---


def test_each_source_takes_its_own_keys_only() -> None:
    parse = TypeAdapter(DatasetSource).validate_python
    hub = {"source": "hub", "name": "lmms-lab/VQAv2", "split": "validation", "images": 10, "seed": 3}
    assert parse(hub) == HubSource(**hub)
    for wrong in (
        {"source": "web"},
        {"source": "embedded", "path": "x"},
        {"source": "hub", "name": "VQAv2", "split": "validation"},
        {"source": "hub", "name": "../x/y", "split": "validation"},
        {"source": "hub", "name": "lmms-lab/VQAv2"},
        {"source": "local"},
        {"source": "embedded", "images": 0},
    ):
        with pytest.raises(ValidationError):
            parse(wrong)


def test_every_key_of_a_source_is_described() -> None:
    for model in (EmbeddedSource, HubSource, LocalSource):
        assert all(field.description for field in model.model_fields.values())
