"""Whether a record still holds is decided by its fingerprint, and the reason has a name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.studies import run_fake, study_of
from vlmeter.cells.cell import Cell
from vlmeter.records.record import Record, read_record, write_record
from vlmeter.records.store import Journal, State, forget, state_of, touch
from vlmeter.study.layout import cell_path
from vlmeter.study.plan import build_plan

STUDY = study_of(experiments={"vision_tokens": {"tilings": ["1x1", "1x2"]}})
CELLS = build_plan(STUDY)
PARTS = ("cell", "protocol", "subject", "code", "versions", "run", "input")


@pytest.fixture
def results(tmp_path: Path) -> Path:
    run_fake(STUDY, tmp_path)
    return tmp_path


def path_of(results: Path, cell: Cell = CELLS[0]) -> Path:
    return cell_path(results, STUDY.study, cell)


def prints_of(record: Record, **changes: str) -> dict[str, str]:
    return {**record.fingerprint, **changes}


def test_a_record_lies_where_study_subject_and_cell_say(tmp_path: Path) -> None:
    assert path_of(tmp_path) == tmp_path / "small" / "cells" / "fake" / "vision-tiling-1x1.json"


def test_a_record_has_every_part_of_a_fingerprint(results: Path) -> None:
    assert tuple(read_record(path_of(results)).fingerprint) == PARTS


def test_no_record_is_missing(results: Path) -> None:
    path = path_of(results)
    current = read_record(path).fingerprint
    path.unlink()
    assert state_of(path, current) == State("missing")


def test_a_record_with_the_fingerprint_of_now_is_fresh(results: Path) -> None:
    record = read_record(path_of(results))
    assert state_of(path_of(results), record.fingerprint) == State("fresh", (), record)


@pytest.mark.parametrize("part", PARTS)
def test_a_record_that_differs_in_one_part_is_stale_for_that_reason(part: str, results: Path) -> None:
    record = read_record(path_of(results))
    found = state_of(path_of(results), prints_of(record, **{part: "other"}))
    assert (found.state, found.reasons, found.record) == ("stale", (part,), record)


def test_all_reasons_are_named(results: Path) -> None:
    record = read_record(path_of(results))
    assert state_of(path_of(results), prints_of(record, code="other", versions="other")).reasons == ("code", "versions")


def test_a_part_that_is_not_known_yet_is_not_compared(results: Path) -> None:
    """Photographs have no input digest before they have been fetched."""
    record = read_record(path_of(results))
    current = {part: value for part, value in record.fingerprint.items() if part != "input"}
    assert state_of(path_of(results), current).state == "fresh"


def test_an_unreadable_record_is_stale_for_what_is_wrong_with_it(results: Path) -> None:
    current = read_record(path_of(results)).fingerprint
    path_of(results).write_text('{"record_version": 1, "stu')
    found = state_of(path_of(results), current)
    assert found.state == "stale"
    assert "cannot be read" in found.reasons[0]
    path_of(results).write_text('{"record_version": 0}')
    assert "has record_version 0" in state_of(path_of(results), current).reasons[0]


def test_a_journal_gives_back_what_is_fresh_and_nothing_else(results: Path) -> None:
    record, journal = read_record(path_of(results)), Journal(results, "small", "fake")
    assert journal.take_back(CELLS[0], record.fingerprint) is None
    journal.keep(record)
    assert journal.take_back(CELLS[0], record.fingerprint) == record
    assert journal.take_back(CELLS[0], prints_of(record, code="other")) is None
    assert journal.take_back(CELLS[1], record.fingerprint) is None
    journal.clear()
    journal.clear()
    assert journal.take_back(CELLS[0], record.fingerprint) is None


def test_two_subjects_have_two_journals(results: Path) -> None:
    record = read_record(path_of(results))
    Journal(results, "small", "fake").keep(record)
    Journal(results, "small", "other").clear()
    assert Journal(results, "small", "fake").take_back(CELLS[0], record.fingerprint) == record
    assert Journal(results, "small", "other").take_back(CELLS[0], record.fingerprint) is None


def test_a_journal_lies_outside_what_the_workflow_owns(results: Path) -> None:
    folder = Journal(results, "small", "fake").path(CELLS[0]).parent
    assert path_of(results).parent not in folder.parents
    assert folder != path_of(results).parent


def test_forgetting_takes_the_record_and_its_copy_of_the_chosen_cells_alone(results: Path) -> None:
    journal = Journal(results, "small", "fake")
    for cell in CELLS:
        journal.keep(read_record(path_of(results, cell)))
    gone = forget(results, "small", CELLS[:1])
    assert gone == [path_of(results), journal.path(CELLS[0])]
    assert not any(path.exists() for path in gone)
    assert path_of(results, CELLS[1]).exists()
    assert journal.path(CELLS[1]).exists()
    assert forget(results, "small", CELLS[:1]) == []


def test_a_session_vouches_for_the_records_that_it_found_fresh(results: Path) -> None:
    """Snakemake compares times: a record must be newer than inputs that were made again and came out equal."""
    os.utime(path_of(results), (1, 1))
    run_fake(STUDY, results)
    assert path_of(results).stat().st_mtime > 1e9
    touch([])


def test_writing_a_record_makes_its_folders(results: Path, tmp_path: Path) -> None:
    write_record(tmp_path / "a" / "b" / "c.json", read_record(path_of(results)))
    assert (tmp_path / "a" / "b" / "c.json").exists()
