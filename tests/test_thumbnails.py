"""Thumbnails: small, of the slowest requests only, and nothing else is taken for one."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from tests.support.tables import table_of
from vlmeter.analysis.distribution import sample_of, slowest
from vlmeter.common.errors import UserError
from vlmeter.inputs.dataset import fetch
from vlmeter.report.thumbnails import read_thumbnails
from vlmeter.study.dataset_source import EmbeddedSource
from vlmeter.table.build import build_table
from vlmeter.workflow.thumbnails import SIDE_PX, make_thumbnails, write_thumbnails


def test_every_photograph_among_the_slowest_has_a_small_picture(tmp_path: Path) -> None:
    fetch(EmbeddedSource(source="embedded", images=6), tmp_path / "dataset")
    latency = {"samples": 40, "block_samples": 40, "output_tokens": [4, 64]}
    table = table_of(tmp_path, vision=None, output=None, latency=latency)
    made = make_thumbnails(table, tmp_path / "dataset" / "manifest.json")
    assert {int(index) for index in made["fake"]} == set(slowest(sample_of(table))["image_index"])
    for uri in made["fake"].values():
        kind, data = uri.split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert max(image.size) == SIDE_PX
        assert len(uri) < 12_000
    write_thumbnails(tmp_path / "thumbnails.json", made)
    read = read_thumbnails(tmp_path / "thumbnails.json")
    assert read == {"fake": {int(index): uri for index, uri in made["fake"].items()}}


def test_a_study_without_requests_has_no_thumbnails(tmp_path: Path) -> None:
    fetch(EmbeddedSource(source="embedded", images=1), tmp_path)
    assert make_thumbnails(build_table([]), tmp_path / "manifest.json") == {}


@pytest.mark.parametrize("content", ["", "[1]", '{"fake": 3}', '{"fake": {"one": "data:"}}'])
def test_a_file_that_holds_no_thumbnails_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match=r"thumbnails .*t.json cannot be read"):
        read_thumbnails(tmp_path / "t.json")
