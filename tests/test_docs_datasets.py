"""What docs/datasets.md shows is what is read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from tests.support.studies import study_of
from vlmeter.inputs.dataset import fetch
from vlmeter.inputs.images import dummy_image
from vlmeter.inputs.rows import USED_COLUMNS
from vlmeter.study.dataset_source import DatasetSource, LocalSource
from vlmeter.study.plan import build_plan

PAGE = (Path(__file__).parent.parent / "docs" / "datasets.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)


DATASETS = [text for text in blocks("yaml") if "dataset" in yaml.safe_load(text)]


@pytest.fixture
def meadow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "data" / "meadow"
    folder.mkdir(parents=True)
    for seed, name in enumerate(("barn.jpg", "pond.png")):
        dummy_image(40, 30, seed=seed).save(folder / name)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize("text", DATASETS)
def test_the_json_lines_of_the_page_are_a_dataset_for_each_study_of_the_page(text: str, meadow: Path) -> None:
    (meadow / "records.jsonl").write_text(blocks("json")[0], encoding="utf-8")
    source = LocalSource(**yaml.safe_load(text)["dataset"])
    images = {image.image_id: image for image in fetch(source, Path("out")).images}
    assert set(images) == {1, 2}
    assert images[2].answers == ()
    three = {image.question_id: image for image in fetch(source.model_copy(update={"images": 3}), Path("out")).images}
    assert [answer.answer for answer in three[10].answers] == ["red", "dark red"]
    assert [answer.answer for answer in three[11].answers] == ["2"]


def test_the_program_of_the_page_writes_a_dataset(meadow: Path) -> None:
    (program,) = blocks("python")
    subprocess.run([sys.executable, "-c", program], cwd=meadow, check=True)
    manifest = fetch(LocalSource(source="local", path="data/meadow", images=2), Path("out"))
    assert {image.question_id for image in manifest.images} == {"barn-1", "pond-1"}


def test_the_page_has_every_field_that_is_read_and_every_source() -> None:
    assert re.findall(r"^\| `(\w+)` \|", PAGE, flags=re.MULTILINE) == list(USED_COLUMNS)
    sources = [kind.model_fields["source"].annotation for kind in get_args(get_args(DatasetSource)[0])]
    for name in [name for literal in sources for name in get_args(literal)]:
        assert re.search(rf"\b{name}\b", DATASETS[0]), name


def test_the_pictures_of_the_page_make_the_eight_cells_that_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("photo.jpg", "receipt.png"):
        dummy_image(40, 30, seed=0).save(name)
    (text,) = (text for text in blocks("yaml") if "experiments" in yaml.safe_load(text))
    cells = build_plan(study_of(**yaml.safe_load(text)))
    assert len(cells) == 8
    assert {cell.request.question for cell in cells} == {"What is on the table?"}
