"""The record: everything that was learnt about one cell, in one JSON file.

A record is complete by itself: it says what was measured (cell, subject), where (device, environment), by what code
(fingerprint), and keeps every sample unrounded. Nothing in it is derived that could be derived later.

History of RECORD_VERSION: 1, the first; 2, blocks of requests (`requests`, `failed_requests`, a cell whose image is a
block, energy of vision and of requests, warm-up that was not judged); 3, a cell holds requests (`requests` says of
each what it was, in cells of one as in cells of many), arms that could not be run are named, records know their run, a
round has its readings by name.
Records of another version are not converted: the measuring code changed with the version, so that none of them would
be fresh.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from vlmeter.backends.base import BusyTime, Execution, MemoryUse
from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.models.families.base import Counts
from vlmeter.records.parts import (
    Drift,
    Energy,
    FailedRequest,
    MeasuredRequest,
    Part,
    Round,
    Series,
    SessionStamp,
    Warmup,
)
from vlmeter.study.subject import Subject

RECORD_VERSION = 3


class OtherVersion(UserError):
    """A record that another version of vlmeter has written, and that this one does not read."""


class Record(Part):
    """One measured cell."""

    record_version: int = RECORD_VERSION
    study: str
    subject: str
    subject_config: Subject
    cell: Cell
    status: Literal["ok", "oom", "unsupported"]
    reason: str | None = Field(None, description="why there are no samples, where there are none")
    fingerprint: dict[str, str]
    run: int = Field(0, description="which run of the study, from 0")
    series: list[Series] = Field(default_factory=list)
    steps_ms: list[list[float]] = Field(
        default_factory=list, description="device time of every decode step, round by round"
    )
    generated_tokens: list[int] = Field(default_factory=list, description="tokens generated in each round")
    output: list[int] = Field(
        default_factory=list, description="ids of the tokens of the last round; empty: many requests, or not told"
    )
    output_digests: list[str] = Field(
        default_factory=list, description="digest of the ids of each round's tokens, each once; two: rounds differed"
    )
    execution: Execution | None = Field(None, description="how the model was run, as its backend says; null: not said")
    rounds: list[Round] = Field(default_factory=list)
    requests: list[MeasuredRequest] = Field(default_factory=list, description="what was run")
    failed_requests: list[FailedRequest] = Field(default_factory=list)
    left_out: dict[str, str] = Field(default_factory=dict, description="arms that could not be run, and why")
    warmups: list[Warmup] = Field(default_factory=list)
    busy: list[BusyTime] = Field(default_factory=list)
    busy_reason: str | None = Field(None, description="why there is no busy time, where there is none")
    memory: list[MemoryUse] = Field(default_factory=list)
    energy: list[Energy] = Field(default_factory=list)
    stop_reason: str | None = None
    drift: Drift | None = None
    session: SessionStamp
    seconds: dict[str, float] = Field(default_factory=dict, description="what the cell took: warm-up, rounds, all")
    parameters: dict[str, int] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)

    @property
    def counted(self) -> Counts | None:
        """Counts of a cell of one request; None of many, which differ, and where nothing was prepared."""
        return self.requests[0].counted if self.requests and self.cell.kind != "requests" else None

    def find(self, arm: str, phase: str, clock: str) -> list[float] | None:
        """Samples of one series, or None."""
        for series in self.series:
            if (series.arm, series.phase, series.clock) == (arm, phase, clock):
                return series.samples_ms
        return None


def write_record(path: Path, record: Record) -> None:
    """Write a record atomically."""
    write_atomically(path, (record.model_dump_json() + "\n").encode())


def read_record(path: Path) -> Record:
    """Read and check a record; raises UserError on a file that is not one, or is one of another version."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"record {path} does not exist") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"record {path} cannot be read ({error}); delete it and it is measured again") from None
    version = data.get("record_version") if isinstance(data, dict) else None
    if type(version) is int and version != RECORD_VERSION:
        raise OtherVersion(
            f"record {path} has record_version {version}, and this vlmeter reads {RECORD_VERSION}; records of two "
            "versions are never mixed: give its subject another name to keep it, or `vlmeter forget` it to measure it"
        )
    if type(version) is not int:
        raise UserError(
            f"record {path} has record_version {version!r}, and this vlmeter reads {RECORD_VERSION}; "
            "delete it and it is measured again"
        )
    try:
        return Record.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise UserError(
            f"record {path} is damaged at {where}: {first['msg']}; delete it and it is measured again"
        ) from None


def gather_environments(records: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    """Collect the distinct environments that each subject's records were made in, with the number of their cells."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for path in records:
        record = read_record(path)
        key = json.dumps(record.environment, sort_keys=True)
        entry = found.setdefault(record.subject, {}).setdefault(key, {"cells": 0, "environment": record.environment})
        entry["cells"] += 1
    return {subject: list(entries.values()) for subject, entries in found.items()}
