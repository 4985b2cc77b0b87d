"""A record is one JSON file: whole or absent, complete by itself, refused by name if it is not what it should be."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.support.studies import run_fake, study_of
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.records.record import RECORD_VERSION, Record, Series, read_record, write_record
from vlmeter.study.layout import cell_path
from vlmeter.study.plan import build_plan


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A record as a session writes it."""
    study = study_of(experiments={"vision_tokens": {"tilings": ["1x2"]}})
    run_fake(study, tmp_path)
    return cell_path(tmp_path, study.study, build_plan(study)[0])


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_record(path)
    return str(caught.value)


def rewrite(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_written_is_read_back_to_the_last_bit(path: Path) -> None:
    record = read_record(path)
    awkward = record.model_copy(
        update={"series": [Series(arm="plain", phase="total", clock="wall", samples_ms=[0.1 + 0.2, 1 / 3, 1e-9])]}
    )
    write_record(path, awkward)
    assert read_record(path) == awkward


def test_a_record_says_its_version(path: Path) -> None:
    assert json.loads(path.read_text())["record_version"] == RECORD_VERSION


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_no_sample_is_ever_not_a_number(wrong: float, path: Path) -> None:
    with pytest.raises(ValidationError, match="finite"):
        Series(arm="plain", phase="total", clock="wall", samples_ms=[1.0, wrong])
    text = path.read_text()
    path.write_text(text.replace('"samples_ms":[', f'"samples_ms":[{"NaN" if wrong != wrong else "Infinity"},', 1))
    assert "is damaged at series.0.samples_ms.0" in refusal(path)


# --- what is no record ------------------------------------------------------------------------------


def test_an_absent_record_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent.json") == f"record {tmp_path / 'absent.json'} does not exist"


@pytest.mark.parametrize(
    "content", [b"", b'{"record_version": 1, "stu', b"\xff\xfe\x00", b"\x00" * 100, b"[" * 100_000]
)
def test_a_truncated_or_corrupt_file_is_named_with_the_remedy(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    assert refusal(path).startswith(f"record {path} cannot be read (")
    assert refusal(path).endswith("delete it and it is measured again")


@pytest.mark.parametrize("content", ["[1, 2]", '"text"', "null", "{}"])
def test_a_file_that_is_json_and_no_record_has_no_version(content: str, path: Path) -> None:
    path.write_text(content)
    assert refusal(path).startswith(f"record {path} has record_version None, and this vlmeter reads {RECORD_VERSION}")


@pytest.mark.parametrize("version", [0, RECORD_VERSION + 1, "1", None, True, float(RECORD_VERSION)])
def test_another_version_is_refused_by_name(version: object, path: Path) -> None:
    rewrite(path, record_version=version)
    assert f"has record_version {version!r}, and this vlmeter reads {RECORD_VERSION}" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"status": "fine"}, "status"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"session": {}}, "session.session_id"),
        ({"series": [{"arm": "plain", "phase": "total", "clock": "sundial", "samples_ms": []}]}, "series.0.clock"),
    ],
)
def test_damage_is_named_with_its_place(changes: dict[str, Any], where: str, path: Path) -> None:
    rewrite(path, **changes)
    assert f"is damaged at {where}: " in refusal(path)


# --- written whole or not at all --------------------------------------------------------------------


def disk_full(*arguments: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_in_the_middle_of_writing_leaves_the_old_record(
    call: str, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()
    record = read_record(path).model_copy(update={"stop_reason": "time_cap"})
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", disk_full)
    else:
        monkeypatch.setattr(Path, "replace", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_record(path, record)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path], "and nothing beside it"


def test_a_failure_in_the_middle_of_a_first_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "new" / "file.json", b"{}")
    assert list((tmp_path / "new").iterdir()) == []


def test_an_interruption_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "file.json", b"{}")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_a_session_and_loses_nothing_that_was_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, fsync, writes = study_of(), os.fsync, 0

    def full_after_a_while(descriptor: int) -> None:
        nonlocal writes
        writes += 1
        if writes > 7:  # each record is written twice: to the journal and to its place
            disk_full()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full_after_a_while)
    with pytest.raises(OSError, match="No space left"):
        run_fake(study, tmp_path)
    monkeypatch.undo()
    written = list((tmp_path / "small" / "cells" / "fake").iterdir())
    assert len(written) == 3
    assert all(isinstance(read_record(path), Record) for path in written)
    summary = run_fake(study, tmp_path)
    assert (summary.fresh, summary.restored, summary.measured) == (3, 1, 4), "the fourth was in the journal"


def test_records_can_be_read_by_everyone_whom_the_umask_lets(path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
