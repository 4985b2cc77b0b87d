"""A number's fingerprint changes with everything that the number depends on, and with nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.studies import dataset_items, run_fake, study_of
from vlmeter.backends.registry import BACKENDS
from vlmeter.cells.cell import Cell, MadePicture, Photograph, Request
from vlmeter.cells.keys import Sampling
from vlmeter.common import code
from vlmeter.models.families.registry import FAMILIES, get_family
from vlmeter.records import fingerprint as fingerprints
from vlmeter.records.fingerprint import (
    fingerprint,
    input_digest,
    measuring_modules,
    stale_parts,
    versions,
)
from vlmeter.records.record import read_record
from vlmeter.records.store import state_of
from vlmeter.study.layout import cell_path
from vlmeter.study.plan import build_plan
from vlmeter.study.subject import Subject, own_keys

CELL = build_plan(study_of())[0]
SUBJECT = Subject(family="molmo", preset="nano", dtype="float32", cpu_threads=1)


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    """Digests are computed once per process, and these tests change what they are computed from."""
    caches = (code.code_digest, fingerprints.versions)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def changed_parts(*, cell: Cell = CELL, subject: Subject = SUBJECT) -> tuple[str, ...]:
    return stale_parts(fingerprint(CELL, SUBJECT), fingerprint(cell, subject))


def other_cell(**changes: Any) -> Cell:
    return CELL.model_copy(update=changes)


def request(**changes: Any) -> Request:
    return CELL.request.model_copy(update=changes)


# --- cell and protocol ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"requests": (request(pictures=(MadePicture(width_px=337, height_px=336, seed=0),)),)},
        {"requests": (request(pictures=(MadePicture(width_px=336, height_px=336, seed=1),)),)},
        {"requests": (request(pictures=(Photograph(index=0),)),)},
        {"requests": (request(pictures=(*CELL.request.pictures, *CELL.request.pictures)),)},
        {"requests": (CELL.request, CELL.request)},
        {"requests": (request(output_tokens=2),)},
        {"requests": (request(text_tokens=33),)},
        {"kind": "generation"},
        {"first": 1},
        {"max_crops": 20},
        {"force_tiling": (1, 1)},
        {"stop": "eos"},
        {"arms": ("inputs", "hooks")},
    ],
)
def test_what_is_measured_is_the_cells_part(changes: dict[str, Any]) -> None:
    assert changed_parts(cell=other_cell(**changes)) == ("cell",)


@pytest.mark.parametrize("name", list(Sampling.model_fields))
def test_how_often_is_the_protocols_part(name: str) -> None:
    sampling = CELL.sampling.model_copy(update={name: getattr(CELL.sampling, name) * 2 + 1})
    assert changed_parts(cell=other_cell(sampling=sampling)) == ("protocol",)


def test_a_prediction_makes_nothing_stale() -> None:
    """Photographs are predicted only once they have been fetched, and the prediction follows from the rest."""
    study = study_of()
    for before, after in zip(build_plan(study), build_plan(study, dataset=dataset_items(2)), strict=True):
        assert fingerprint(before, SUBJECT) == fingerprint(after, SUBJECT)


# --- subject ----------------------------------------------------------------------------------------


OTHER_SUBJECTS: list[dict[str, Any]] = [
    {"preset": "7b-d"},
    {"weights": "allenai/Molmo-7B-D-0924"},
    {"weights": "allenai/Molmo-7B-D-0924", "revision": "main"},
    {"dtype": "bfloat16"},
    {"attention": "eager"},
    {"cpu_threads": 2},
    {"vision_attention_dtype": "weights"},
    {"seed": 1},
]
OTHER_CHECKPOINT_KEYS: list[dict[str, Any]] = [
    {"device_map": "auto"},
    {"quantization": "bitsandbytes-8bit"},
    {"trust_remote_code": True},
]


@pytest.mark.parametrize("changes", OTHER_SUBJECTS)
def test_what_is_run_is_the_subjects_part(changes: dict[str, Any]) -> None:
    assert changed_parts(subject=Subject(**{**SUBJECT.model_dump(), **changes})) == ("subject",)


@pytest.mark.parametrize("changes", OTHER_CHECKPOINT_KEYS)
def test_how_a_checkpoint_is_loaded_is_the_subjects_part(changes: dict[str, Any]) -> None:
    assert changed_parts(subject=SUBJECT.model_copy(update=changes)) == ("subject",)


def test_the_device_that_is_wished_for_makes_nothing_stale() -> None:
    """What came of the wish stands in the record, and a session compares it."""
    assert changed_parts(subject=SUBJECT.model_copy(update={"device": "cuda:1"})) == ()


def test_no_key_of_a_subject_has_been_overlooked() -> None:
    tried = {name for changes in (*OTHER_SUBJECTS, *OTHER_CHECKPOINT_KEYS) for name in changes}
    chosen_among_one = {"family", "backend"}
    own = {name for backend in BACKENDS for name in own_keys(SUBJECT.model_copy(update={"backend": backend}))}
    assert tried | chosen_among_one | {"device"} | own == set(Subject.model_fields)


# --- code -------------------------------------------------------------------------------------------


def edit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a module mean something else."""
    code.code_digest.cache_clear()
    real = code.meaning
    monkeypatch.setattr(code, "meaning", lambda other: "edited" if other == name else real(other))


@pytest.mark.parametrize(
    "name",
    [
        "vlmeter.measure.rounds",
        "vlmeter.measure.requests",
        "vlmeter.backends.clock",
        "vlmeter.backends.eager_runner",
        "vlmeter.models.families.molmo",
        "vlmeter.models.molmo1.modeling",
        "vlmeter.models.molmo1.vision",
        "vlmeter.inputs.images",
    ],
)
def test_an_edit_of_measuring_code_is_the_codes_part(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(CELL, SUBJECT)
    edit(name, monkeypatch)
    assert stale_parts(before, fingerprint(CELL, SUBJECT)) == ("code",)


@pytest.mark.parametrize(
    "name",
    [
        "vlmeter.cli.main",
        "vlmeter.study.study",
        "vlmeter.records.record",
        "vlmeter.backends.fake",
        "vlmeter.models.families.qwen3_vl",
        "vlmeter.table.build",
        "vlmeter.report.page",
    ],
)
def test_an_edit_of_other_code_makes_nothing_stale(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(CELL, SUBJECT)
    edit(name, monkeypatch)
    assert stale_parts(before, fingerprint(CELL, SUBJECT)) == ()


@pytest.mark.parametrize("backend", list(BACKENDS))
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_code_of_a_subject_is_its_family_its_backend_and_what_takes_the_time(family: str, backend: str) -> None:
    preset = next(iter(get_family(family).presets))
    subject = SUBJECT.model_copy(update={"family": family, "preset": preset, "backend": backend})
    measuring = set(measuring_modules(subject))
    assert {FAMILIES[family], BACKENDS[backend], *fingerprints.MEASURING} <= measuring
    assert not measuring & (set(BACKENDS.values()) - {BACKENDS[backend]})


def test_what_draws_and_tells_is_no_measuring_code() -> None:
    rooms = {name.split(".")[1] for name in measuring_modules(SUBJECT)}
    read = {name for name in measuring_modules(SUBJECT) if ".records." in name}
    assert read == {"vlmeter.records.gauges", "vlmeter.records.parts"}
    assert rooms == {"backends", "cells", "common", "inputs", "measure", "models", "numbers", "records"}


# --- versions and input -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["torch", "transformers", "tokenizers", "pillow", "numpy"])
def test_another_version_of_what_runs_the_model_is_the_versions_part(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = fingerprint(CELL, SUBJECT)
    fingerprints.versions.cache_clear()
    real = fingerprints.metadata.version
    monkeypatch.setattr(fingerprints.metadata, "version", lambda other: "0" if other == name else real(other))
    assert stale_parts(before, fingerprint(CELL, SUBJECT)) == ("versions",)


def test_a_distribution_that_is_not_there_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "VERSIONED", ("no-such-distribution",))
    assert versions()["no-such-distribution"] == "absent"


def test_the_versions_are_known_without_importing_anything() -> None:
    assert set(versions()) == {"python", *fingerprints.VERSIONED}


def test_an_input_is_its_picture_and_its_question() -> None:
    assert input_digest("a", "b") == input_digest("a", "b")
    assert len({input_digest("a", "b"), input_digest("a", "c"), input_digest("b", "b"), input_digest("ab", "")}) == 4
    before = fingerprint(CELL, SUBJECT, input_digest="x")
    assert stale_parts(before, fingerprint(CELL, SUBJECT, input_digest="y")) == ("input",)


def test_a_fingerprint_is_the_same_in_every_process() -> None:
    assert fingerprints._digest_of({"b": [1, None, "ä"], "a": 0.1}) == "a734d3d0f1e7c18c"


# --- through a session ------------------------------------------------------------------------------


def test_a_session_measures_again_what_new_code_has_made_stale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of()
    run_fake(study, tmp_path)
    monkeypatch.setattr(fingerprints, "subject_code", lambda subject: "edited")
    cell = build_plan(study)[0]
    path = cell_path(tmp_path, "small", cell)
    assert state_of(path, fingerprint(cell, study.subjects["fake"])).reasons == ("code",)
    assert run_fake(study, tmp_path).measured == len(build_plan(study))
    assert read_record(path).fingerprint["code"] == "edited"
