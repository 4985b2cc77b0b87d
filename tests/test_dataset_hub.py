"""The real `datasets` and `huggingface_hub` clients, over HTTP, against a hub on loopback.

The clients read HF_ENDPOINT and HF_HUB_OFFLINE when they are imported, so each test fetches in a process of
its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support import vqa
from tests.support.hub import HubStandIn
from vlmeter.inputs.dataset import read_manifest

#: Fetches a list of sources one after the other, and prints the manifest or the sentence of each. Waiting
#: between tries is skipped, so that a hub in trouble is given up as soon as the tries are used up.
FETCH = """
import json, sys, time
from pathlib import Path
from pydantic import TypeAdapter
from vlmeter.inputs.dataset import fetch
from vlmeter.study.dataset_source import DatasetSource
from vlmeter.common.errors import UserError
time.sleep = lambda seconds: None
results = []
for index, source in enumerate(json.loads(sys.argv[1])):
    try:
        manifest = fetch(TypeAdapter(DatasetSource).validate_python(source), Path(sys.argv[2]) / str(index))
        results.append(manifest.model_dump(mode="json"))
    except UserError as error:
        results.append(str(error))
print("RESULTS" + json.dumps(results))
"""


def run_client(code: str, *arguments: str, endpoint: str, home: Path, **environment: str) -> str:
    """Run Python code with the hub's clients pointed at `endpoint`; gives what it printed."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={
            **kept,
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(home),
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
            **environment,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def fetch_all(*sources: dict[str, Any], endpoint: str, out: Path, **environment: str) -> list[Any]:
    """Fetch sources in one fresh process; gives a manifest or a sentence for each."""
    complete = [{"source": "hub", "split": "validation", **source} for source in sources]
    printed = run_client(FETCH, json.dumps(complete), str(out), endpoint=endpoint, home=out / "home", **environment)
    results: list[Any] = json.loads(printed.rpartition("RESULTS")[2])
    return results


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4 shards of 4 row groups, 16 photographs of about 37 kB in each, 5 questions to a photograph: 48 MB."""
    folder = tmp_path_factory.mktemp("big")
    for shard in range(4):
        records = vqa.rows(64, first_image_id=1 + 64 * shard, width_px=200, height_px=160)
        vqa.write_parquet(folder / f"data/validation-{shard:05d}-of-00004.parquet", records, row_group_size=80)
    vqa.write_parquet(folder / "data/train-00000-of-00001.parquet", vqa.rows(2))
    return folder


def test_ten_photographs_come_over_http_without_the_rest_of_the_dataset(big: Path, tmp_path: Path) -> None:
    total = sum(file.stat().st_size for file in big.rglob("*.parquet"))
    with HubStandIn({"datasets/acme/vqa": big}) as hub:
        (manifest,) = fetch_all({"name": "acme/vqa", "images": 10}, endpoint=hub.endpoint, out=tmp_path)
        served, requests, commit = hub.bytes_served, hub.requests, hub.commit("datasets/acme/vqa")

    read = read_manifest(tmp_path / "0" / "manifest.json", check_files=True)
    assert read.model_dump(mode="json") == manifest
    assert read.commit == commit
    assert len({image.image_id for image in read.images}) == 10
    for image in read.images:
        assert (tmp_path / "0" / image.file).read_bytes() == vqa.jpeg(int(image.image_id), width_px=200, height_px=160)
        assert len(image.answers) == 10

    # one row group, what the client reads ahead of it (5 MiB), and footers
    shard = pq.ParquetFile(big / "data" / "validation-00000-of-00004.parquet")
    row_group = max(shard.metadata.row_group(group).total_byte_size for group in range(4))
    assert served < 1.1 * row_group + 5 * 2**20 + 500_000
    assert served < 0.2 * total
    bodies = [request for request in requests if request.path.endswith(".parquet") and request.body_bytes > 100_000]
    assert len({request.path for request in bodies}) == 1
    assert all(request.range for request in requests if request.path.endswith(".parquet"))


def test_a_larger_choice_begins_with_the_smaller_and_a_seed_changes_it(big: Path, tmp_path: Path) -> None:
    sources = [{"images": 6}, {"images": 40}, {"images": 6, "seed": 1}, {"images": 6, "revision": "main"}]
    with HubStandIn({"datasets/acme/vqa": big}) as hub:
        results = fetch_all(
            *({"name": "acme/vqa", **source} for source in sources), endpoint=hub.endpoint, out=tmp_path
        )
    few, many, other, named = (result["images"] for result in results)
    assert many[:6] == few == named
    assert len({image["image_id"] for image in many}) == 40
    assert other != few


def test_further_questions_of_a_photograph_come_with_the_photograph_that_was_kept(tmp_path: Path) -> None:
    """They let go of their own copy of it while they wait."""
    vqa.write_parquet(tmp_path / "few/data/validation-00000-of-00001.parquet", vqa.rows(3), row_group_size=4)
    with HubStandIn({"datasets/acme/few": tmp_path / "few"}) as hub:
        (manifest,) = fetch_all({"name": "acme/few", "images": 9}, endpoint=hub.endpoint, out=tmp_path)
    images = manifest["images"]
    assert len({image["question_id"] for image in images}) == 9
    assert len({image["image_id"] for image in images[:3]}) == 3
    for image in images:
        assert (tmp_path / "0" / image["file"]).read_bytes() == vqa.jpeg(image["image_id"])


def test_what_cannot_be_fetched_is_one_sentence_each(tmp_path: Path) -> None:
    good = vqa.rows(3)
    folders = {}
    for name in ("plain", "gated", "script", "text", "columns", "broken", "blank", "down"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
    vqa.write_parquet(folders["plain"] / "data/validation-00000-of-00001.parquet", good)
    vqa.write_parquet(folders["gated"] / "data/validation-00000-of-00001.parquet", good)
    (folders["script"] / "script.py").write_text("raise SystemExit('must not run')")
    (folders["text"] / "README.md").write_text("# nothing here\n")
    lacking = [{key: value for key, value in row.items() if key != "image"} for row in good]
    vqa.write_parquet(folders["columns"] / "data/validation.parquet", lacking)
    cut = {"bytes": vqa.jpeg(1)[:-900], "path": "1.jpg"}
    vqa.write_parquet(folders["broken"] / "data/validation.parquet", [{**good[0], "image": cut}])
    blank = {"bytes": None, "path": "1.jpg"}
    vqa.write_parquet(folders["blank"] / "data/validation.parquet", [{**good[0], "image": blank}])
    vqa.write_parquet(folders["down"] / "data/validation.down.parquet", good)

    cases: list[tuple[dict[str, Any], str]] = [
        ({"name": "acme/absent"}, "does not exist on {hub}, or is private"),
        ({"name": "acme/gated"}, "is gated; ask for access at {hub}/datasets/acme/gated"),
        ({"name": "acme/plain", "revision": "v9"}, "has no revision v9"),
        ({"name": "acme/plain", "split": "test"}, "has no split test; legal: validation"),
        ({"name": "acme/plain", "config": "other"}, "other"),
        ({"name": "acme/plain", "images": 16}, "has 15 records, dataset.images asks for 16; "),
        ({"name": "acme/script"}, "is made by a script, which no longer runs"),
        ({"name": "acme/text"}, "holds no data files"),
        ({"name": "acme/columns"}, "has no column image; it has: question_type, "),
        (
            {"name": "acme/broken", "images": 1},
            "question_id 1000, image_id 1: the image cannot be decoded: image file is truncated",
        ),
        (
            {"name": "acme/blank", "images": 1},
            "question_id 1000, image_id 1: the record has no image, only the file name 1.jpg",
        ),
        ({"name": "acme/down"}, "cannot be read from {hub}: HfHubHTTPError: "),
    ]
    served = {f"datasets/acme/{name}": folder for name, folder in folders.items()}
    with HubStandIn(served, gated=["datasets/acme/gated"], unavailable=(".down.parquet",)) as hub:
        results = fetch_all(*(source for source, _ in cases), endpoint=hub.endpoint, out=tmp_path / "out")
        endpoint = hub.endpoint
    for (source, expected), sentence in zip(cases, results, strict=True):
        assert isinstance(sentence, str), source
        assert sentence.startswith(f"dataset {source['name']} ({source.get('split', 'validation')}): ")
        assert expected.format(hub=endpoint) in sentence
        assert "\n" not in sentence
    assert not list((tmp_path / "out").glob("*/manifest.json"))


def test_offline_nothing_is_asked_and_the_way_out_is_named(big: Path, tmp_path: Path) -> None:
    with HubStandIn({"datasets/acme/vqa": big}) as hub:
        (sentence,) = fetch_all({"name": "acme/vqa"}, endpoint=hub.endpoint, out=tmp_path, HF_HUB_OFFLINE="1")
        assert hub.requests == []
    assert sentence == (
        "dataset acme/vqa (validation): must be read from the hub, but HF_HUB_OFFLINE is set; unset it, or "
        "set dataset.source to embedded or local"
    )


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path: Path) -> None:
    with HubStandIn({}) as hub:
        endpoint = hub.endpoint  # nobody listens there once it is closed
    (sentence,) = fetch_all({"name": "acme/vqa"}, endpoint=endpoint, out=tmp_path)
    assert sentence.startswith(f"dataset acme/vqa (validation): cannot be read from {endpoint}: ConnectError: ")
    assert "\n" not in sentence


def test_the_stand_in_serves_model_repositories_to_the_real_client(tmp_path: Path) -> None:
    folder = tmp_path / "molmo"
    (folder / "nested").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "molmo"}')
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 1000)
    (folder / "nested" / "notes.md").write_text("left out")
    code = """
import sys
from pathlib import Path
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
got = Path(snapshot_download("acme/molmo", allow_patterns=["*.json", "*.safetensors"]))
print(got.name, sorted(file.name for file in got.iterdir()), len((got / "model.safetensors").read_bytes()))
print(Path(hf_hub_download("acme/molmo", "nested/notes.md", revision=got.name)).read_text())
for name, error in (("acme/absent", RepositoryNotFoundError), ("acme/gated", GatedRepoError)):
    try:
        snapshot_download(name)
    except error:
        print("refused", name)
"""
    repositories = {"models/acme/molmo": folder, "models/acme/gated": folder}
    with HubStandIn(repositories, gated=["models/acme/gated"]) as hub:
        printed = run_client(code, endpoint=hub.endpoint, home=tmp_path / "home")
        commit = hub.commit("models/acme/molmo")
    assert printed.splitlines() == [
        f"{commit} ['config.json', 'model.safetensors'] 256000",
        "left out",
        "refused acme/absent",
        "refused acme/gated",
    ]
