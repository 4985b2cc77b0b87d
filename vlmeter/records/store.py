"""Where a study's records lie, which of them still hold, and how none is lost in a crash.

The workflow owns the records as outputs: when a session fails, it puts back the outputs that were there before and
removes the new ones. So a session keeps a second copy of every finished record in a journal that the workflow does not
know; the next session takes fresh ones back from there, and a session that succeeds clears it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.records.installed import changed_files
from vlmeter.records.record import OtherVersion, Record, read_record, write_record
from vlmeter.study.layout import cell_path, installed_folder, journal_folder, run_folder


@dataclass(frozen=True)
class State:
    """Whether a cell's record of a run holds: "fresh", "missing" or "stale", and if stale in which parts.

    files: the installed files that have changed, where `installed` is among the reasons. run: which run, from 0.
    """

    state: str
    reasons: tuple[str, ...] = ()
    record: Record | None = None
    other_version: OtherVersion | None = None
    files: tuple[str, ...] = ()
    run: int = 0

    def words(self) -> list[str]:
        """The reasons for a person: the part `installed` with the files."""
        return [f"{reason} ({some_of(self.files)})" if reason == INSTALLED else reason for reason in self.reasons]


#: The part of a fingerprint that names a listing of installed code.
INSTALLED = "installed"

#: So many files are named.
NAMED_FILES = 3


def some_of(files: Sequence[str]) -> str:
    """Name some files, and say how many there are besides."""
    more = [f"{len(files) - NAMED_FILES} more"] if len(files) > NAMED_FILES else []
    return ", ".join([*files[:NAMED_FILES], *more])


def state_of(path: Path, current: Mapping[str, str], *, listings: Path | None = None) -> State:
    """Compare a record with the fingerprint that it would have now; an unreadable one is stale.

    listings: the folder of the listings of installed code, which are compared with what is installed now; without it
    installed code is not looked at.
    """
    from vlmeter.records.fingerprint import stale_parts

    if not path.exists():
        return State("missing")
    try:
        record = read_record(path)
    except OtherVersion as error:
        return State("stale", (str(error),), other_version=error)
    except UserError as error:
        return State("stale", (str(error),))
    parts = stale_parts(record.fingerprint, current)
    listing = record.fingerprint.get(INSTALLED)
    files = changed_files(listings, listing) if listings is not None and listing is not None else ()
    parts += (INSTALLED,) if files else ()
    return State("stale", parts, record, files=files) if parts else State("fresh", (), record)


class Journal:
    """Copies of a running session's finished records, outside the workflow's outputs."""

    def __init__(self, results: Path, study: str, subject: str, *, run: int = 0) -> None:
        self._folder = journal_folder(results, study, subject, run=run)
        self._listings = installed_folder(results, study)

    def keep(self, record: Record) -> None:
        """Keep a finished record."""
        write_record(self.path(record.cell), record)

    def take_back(self, cell: Cell, current: Mapping[str, str]) -> Record | None:
        """Return the journal's record of a cell if it is still fresh."""
        found = state_of(self.path(cell), current, listings=self._listings)
        return found.record if found.state == "fresh" else None

    def clear(self) -> None:
        """Forget everything, after a session whose outputs are safe."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def path(self, cell: Cell) -> Path:
        """File of a cell's copy."""
        return self._folder / f"{cell.cell_id}.json"


def sweep(results: Path, study: str, subject: str, *, run: int = 0) -> None:
    """Remove what a killed session of the subject had begun to write; only for whoever holds the session's lock."""
    cells = run_folder(results, study, run) / "cells" / subject
    for folder in (cells, journal_folder(results, study, subject, run=run)):
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)


def touch(paths: Iterable[Path]) -> None:
    """Set files' times to now: a session that found them fresh vouches for them against newer inputs."""
    for path in paths:
        os.utime(path)


def forget(results: Path, study: str, cells: Iterable[Cell], *, run: int = 0) -> list[Path]:
    """Delete a run's records of cells and their copies in its journals; return what was deleted."""
    gone = []
    for cell in cells:
        journal = Journal(results, study, cell.subject, run=run)
        for path in (cell_path(results, study, cell, run=run), journal.path(cell)):
            if path.exists():
                path.unlink()
                gone.append(path)
    return gone
