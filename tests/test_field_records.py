"""Records as people have them: read as they are meant, or refused in one sentence that names file, line or record.

`tests/data/field/` keeps what once failed; `jsonl.json` there says what each file is read as.
"""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from tests.support import vqa
from vlmeter.common.errors import UserError
from vlmeter.inputs.dataset import fetch, read_manifest
from vlmeter.inputs.images import decode_and_settle, dummy_image
from vlmeter.inputs.manifest import Manifest
from vlmeter.study.dataset_source import EmbeddedSource, LocalSource

FIELD = Path(__file__).parent / "data" / "field"
CASES: dict[str, dict[str, Any]] = json.loads((FIELD / "jsonl.json").read_text(encoding="utf-8"))


def local(path: Path, **values: Any) -> LocalSource:
    return LocalSource(source="local", path=str(path), **values)


def sentence(source: LocalSource | EmbeddedSource, out: Path) -> str:
    """What is said of a source that cannot be used: one sentence, and nothing is left that looks fetched."""
    with pytest.raises(UserError) as caught:
        fetch(source, out)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 1000
    assert not (out / "manifest.json").exists()
    return text


# --- JSON Lines: what once failed ---


def test_every_file_of_the_corpus_has_its_case() -> None:
    assert {file.stem for file in FIELD.glob("*.jsonl")} == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_json_lines_are_read_as_they_are_meant_or_refused_in_a_sentence(name: str, tmp_path: Path) -> None:
    file, case = FIELD / f"{name}.jsonl", CASES[name]
    if "error" in case:
        records = sum(1 for line in file.read_bytes().split(b"\n") if line.strip())
        text = sentence(local(file, images=records), tmp_path)
        assert text.startswith(f"dataset {file}: ")
        assert case["error"] in text
        return
    wanted = case.get("questions") or case["answers"]
    images = fetch(local(file, images=len(wanted)), tmp_path).images
    by_id = sorted(images, key=lambda image: image.question_id)
    if "questions" in case:
        assert [image.question for image in by_id] == wanted
    else:
        assert [[answer.answer for answer in image.answers] for image in by_id] == wanted
    assert read_manifest(tmp_path / "manifest.json", check_files=True).images == images


# --- files that are passed over, and files that are not ---


#: What other programs put into a folder of data, and pass over when they read it.
FOR_NO_READER = ("__MACOSX/a.parquet", "_delta_log/0001.checkpoint.parquet", "_temporary/0/a.parquet", "~$a.jsonl")


def test_hidden_files_and_folders_are_passed_over_as_a_shell_does(tmp_path: Path) -> None:
    data = tmp_path / ".cache" / "data"  # hidden itself, and asked for by name
    vqa.write_parquet(data / "a.parquet", vqa.rows(2))
    for hidden in (
        "._a.parquet",
        ".ipynb_checkpoints/a-checkpoint.parquet",
        "sub/.~b.jsonl",
        "__MACOSX/._a.parquet",
        *FOR_NO_READER,
    ):
        (data / hidden).parent.mkdir(parents=True, exist_ok=True)
        (data / hidden).write_bytes(b"\0\5\x16\7 what macOS leaves beside a file")
    for source in (data, data / "*", data / "**" / "*.parquet"):
        assert len(fetch(local(source, images=2), tmp_path / "out").images) == 2
    text = sentence(local(data / "._a.parquet", images=2), tmp_path / "out")
    assert "._a.parquet is not a whole parquet file" in text


def test_suffixes_are_taken_in_any_case(tmp_path: Path) -> None:
    vqa.write_parquet(tmp_path / "A.PARQUET", vqa.rows(1))
    assert len(fetch(local(tmp_path, images=1), tmp_path / "out").images) == 1


def test_a_home_is_written_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    vqa.write_parquet(tmp_path / "v.parquet", vqa.rows(1))
    source = LocalSource(source="local", path="~/v.parquet", images=1)
    assert len(fetch(source, tmp_path / "out").images) == 1


def test_what_stands_in_for_a_file_that_was_not_downloaded_is_named(tmp_path: Path) -> None:
    vqa.write_parquet(tmp_path / "data" / "a.parquet", vqa.rows(1))
    (tmp_path / "data" / "b.parquet").symlink_to(".git/annex/objects/gone")
    assert "b.parquet is a link to a file that is not there" in sentence(local(tmp_path / "data"), tmp_path / "out")
    (tmp_path / "data" / "b.parquet").unlink()
    (tmp_path / "data" / "c.jsonl").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "c.jsonl is a pointer of Git LFS" in sentence(local(tmp_path / "data"), tmp_path / "out")


@pytest.mark.parametrize("path", ["a\0b.jsonl", "n" * 5000, "~nobody-of-this-name/v.parquet", "[", "**", "a[b"])
def test_a_path_that_is_none_is_one_sentence(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"dataset\.path"):
        fetch(LocalSource(source="local", path=path), tmp_path / "out")


def test_a_column_that_stands_there_twice_is_refused(tmp_path: Path) -> None:
    table = pa.Table.from_pylist(vqa.rows(1))
    pq.write_table(table.append_column("question", table["question"]), tmp_path / "v.parquet")
    assert "has 2 columns question" in sentence(local(tmp_path / "v.parquet"), tmp_path / "out")


def test_ids_that_differ_in_case_alone_have_files_of_their_own(tmp_path: Path) -> None:
    records = [{**row, "question_id": name, "image_id": name} for row, name in zip(vqa.rows(1), "aA", strict=False)]
    vqa.write_parquet(tmp_path / "v.parquet", records)
    images = fetch(local(tmp_path / "v.parquet", images=2), tmp_path / "out").images
    assert len({image.file.lower() for image in images}) == 2


# --- images that cannot be decoded ---


def damaged(tmp_path: Path) -> LocalSource:
    """Six images, five questions on each; those of images 2, 4 and 5 are broken, absent and empty."""
    bad = {2: {"bytes": vqa.jpeg(2)[:-900], "path": None}, 4: None, 5: {"bytes": b"", "path": "5.jpg"}}
    records = [{**row, "image": bad.get(row["image_id"], row["image"])} for row in vqa.rows(6)]
    vqa.write_parquet(tmp_path / "v.parquet", records)
    return local(tmp_path / "v.parquet", images=3, skip_undecodable=True)


def test_records_without_a_usable_image_are_passed_over_and_counted_where_that_is_asked_for(tmp_path: Path) -> None:
    source = damaged(tmp_path)
    manifest = fetch(source, tmp_path / "out")
    assert {image.image_id for image in manifest.images} == {1, 3, 6}
    assert read_manifest(tmp_path / "out" / "manifest.json", check_files=True) == manifest
    more = fetch(source.model_copy(update={"images": 15}), tmp_path / "more")
    assert more.images[:3] == manifest.images
    assert {image.image_id for image in more.images} == {1, 3, 6}
    assert {skipped.image_id: skipped.reason.partition(":")[0] for skipped in more.skipped} == {
        2: "the image cannot be decoded",
        4: "the record has no image",
        5: "the record has no image",
    }
    said = more.skipped_in_words()
    assert said is not None
    assert said.startswith("3 records without an image that can be decoded passed over; the first: question_id ")


def test_without_the_key_the_first_such_record_ends_it_and_the_key_is_named(tmp_path: Path) -> None:
    source = damaged(tmp_path).model_copy(update={"skip_undecodable": False, "images": 6})
    text = sentence(source, tmp_path / "out")
    assert text.endswith("; dataset.skip_undecodable: true passes over such records")


def test_too_few_records_are_refused_with_what_was_passed_over(tmp_path: Path) -> None:
    source = damaged(tmp_path)
    text = sentence(source.model_copy(update={"images": 16}), tmp_path / "out")
    assert "has 15 records, dataset.images asks for 16; legal: 1 to 15 (3 records without an image" in text
    vqa.write_parquet(tmp_path / "v.parquet", [{**vqa.rows(1)[0], "image": b"no"}])
    assert "has no record that can be used (1 record without an image" in sentence(source, tmp_path / "out")


def test_a_file_that_is_not_there_is_a_mistake_and_never_passed_over(tmp_path: Path) -> None:
    vqa.write_parquet(tmp_path / "v.parquet", [{**vqa.rows(1)[0], "image": "gone.jpg"}])
    text = sentence(local(tmp_path / "v.parquet", images=1, skip_undecodable=True), tmp_path / "out")
    assert "image file gone.jpg cannot be read: No such file or directory" in text


def test_nothing_passed_over_is_not_spoken_of(tmp_path: Path) -> None:
    assert fetch(EmbeddedSource(source="embedded", images=1), tmp_path).skipped_in_words() is None


# --- anything at all ---

FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=6)
    | st.sampled_from(["meadow.png", "empty.png", ".", "..", "\ud800", "answer"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["answer", "bytes", "path", "x", ""]), inner, max_size=3)
    ),
    max_leaves=5,
)

#: A good record, of which a few fields are replaced by anything.
RECORDS = st.builds(
    lambda changes, gone: {
        name: value
        for name, value in {
            "image_id": 1,
            "question_id": 2,
            "question": "What is it?",
            "image": "meadow.png",
            **changes,
        }.items()
        if name not in gone
    },
    st.dictionaries(st.sampled_from(["image_id", "question_id", "question", "image", "answers"]), VALUES, max_size=2),
    st.sets(st.sampled_from(["image_id", "answers"]), max_size=1),
)

LINES = st.one_of(
    RECORDS.map(lambda record: json.dumps(record).encode()),
    RECORDS.map(lambda record: json.dumps(record, ensure_ascii=False).encode(errors="surrogatepass")),
    st.binary(max_size=20),
    VALUES.map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"", b"\xef\xbb\xbf", b"\r", b"{", b'{"a": 1},', b"\0"]),
)


def read_or_refused(source: LocalSource, out: Path) -> Manifest | None:
    """Whatever the source holds: a manifest that holds, or one sentence about that source."""
    try:
        manifest = fetch(source, out)
    except UserError as refusal:
        text = str(refusal)
        assert text.startswith(f"dataset {source.path}: ")
        assert "\n" not in text
        assert len(text) < 1000
        assert not (out / "manifest.json").exists()
        return None
    assert read_manifest(out / "manifest.json", check_files=True) == manifest
    return manifest


@FUZZ
@given(lines=st.lists(LINES, min_size=1, max_size=3), ending=st.sampled_from([b"\n", b"\r\n", b",\n", b"\r"]))
def test_any_json_lines_are_read_or_refused_in_a_sentence(lines: list[bytes], ending: bytes, tmp_path: Path) -> None:
    for name in ("meadow.png", "empty.png"):
        shutil.copy(FIELD / name, tmp_path / name)
    (tmp_path / "any.jsonl").write_bytes(ending.join(lines))
    read_or_refused(local(tmp_path / "any.jsonl", images=1, skip_undecodable=len(lines) == 2), tmp_path / "out")


@FUZZ
@given(records=st.lists(RECORDS, min_size=1, max_size=2))
def test_any_parquet_records_are_read_or_refused_in_a_sentence(records: list[dict[str, Any]], tmp_path: Path) -> None:
    shutil.copy(FIELD / "meadow.png", tmp_path / "meadow.png")
    try:
        vqa.write_parquet(tmp_path / "any.parquet", records)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, OSError):
        return  # parquet cannot hold them
    read_or_refused(local(tmp_path / "any.parquet", images=1), tmp_path / "out")


@FUZZ
@given(data=st.data())
def test_a_damaged_parquet_file_is_read_or_refused_in_a_sentence(data: st.DataObject, tmp_path: Path) -> None:
    vqa.write_parquet(tmp_path / "any.parquet", vqa.rows(1, width_px=8, height_px=8))
    whole = bytearray((tmp_path / "any.parquet").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "any.parquet").write_bytes(whole[: data.draw(st.integers(0, len(whole)))] if len(whole) % 2 else whole)
    read_or_refused(local(tmp_path / "any.parquet", images=2, skip_undecodable=True), tmp_path / "out")


def encoded(form: str) -> bytes:
    buffer = io.BytesIO()
    dummy_image(24, 16, seed=0).save(buffer, form)
    return buffer.getvalue()


@FUZZ
@given(form=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]), data=st.data())
def test_damaged_image_bytes_are_decoded_or_refused_in_a_line(form: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(form))
    for _ in range(data.draw(st.integers(0, 5))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        image, kept, _ = decode_and_settle(bytes(whole[: data.draw(st.integers(1, len(whole)))]))
    except ValueError as refusal:
        text = str(refusal)
        assert text.strip()
        assert "\n" not in text
        return
    again, same, _ = decode_and_settle(kept)
    assert (image.mode, again.tobytes(), same) == ("RGB", image.tobytes(), kept)


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fetched")
    fetch(EmbeddedSource(source="embedded", images=2), folder)
    return folder


@FUZZ
@given(data=st.data())
def test_a_manifest_with_anything_in_it_is_read_or_refused_in_a_sentence(data: st.DataObject, fetched: Path) -> None:
    good = json.loads((fetched / "manifest.json").read_bytes())
    place: Any = data.draw(st.sampled_from([good, good["source"], good["images"][0], good["images"][1]["answers"][0]]))
    key = data.draw(st.sampled_from(sorted(place)))
    place[key] = data.draw(VALUES | st.binary(max_size=9).map(lambda raw: raw.decode("latin-1")))
    path = fetched / "changed.json"
    path.write_text(json.dumps(good), encoding="utf-8")
    try:
        read_manifest(path, check_files=True)
    except UserError as refusal:
        text = str(refusal)
        assert text.startswith(f"dataset manifest {path}: ")
        assert "\n" not in text


@FUZZ
@given(raw=st.binary(max_size=60))
def test_any_bytes_for_a_manifest_are_refused_in_a_sentence(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(raw)
    with pytest.raises(UserError, match="dataset manifest"):
        read_manifest(tmp_path / "manifest.json", check_files=True)
