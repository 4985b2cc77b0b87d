"""The record: everything that was learnt about one cell, in one JSON file.

A record is complete by itself: it says what was measured (cell, subject), where (device, environment), by what code
(fingerprint), and keeps every sample unrounded. Nothing in it is derived that could be derived later.

History of RECORD_VERSION: 1, the first; 2, blocks of requests (`requests`, `failed_requests`, a cell whose image is a
block, energy of vision and of requests, warm-up that was not judged). Records of version 1 are not converted: the
measuring code changed with the version, so that none of them would be fresh.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.study.subject import Subject

RECORD_VERSION = 2


class OtherVersion(UserError):
    """A record that another version of vlmeter has written, and that this one does not read."""


class Part(BaseModel):
    """Base of everything in a record: immutable, unknown keys refused, NaN kept out."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Counted(Part):
    """Tokens and crops counted in the model's real inputs."""

    crops: int
    vision_tokens: int
    special_tokens: int
    text_tokens: int
    prompt_tokens: int


class Series(Part):
    """Samples of one duration: one value per round, so that series of the same record are paired by place.

    arm: how the work was run (plain, hooks, vision, inputs, request); phase: what span of it; clock: which time.
    """

    arm: str
    phase: str
    clock: Literal["wall", "device", "launch", "busy"]
    samples_ms: list[float]


class Round(Part):
    """What was going on around one round of samples."""

    order: list[str] = Field(description="the arms, in the order in which they ran")
    started_s: float = Field(description="seconds since the session began")
    disturbances: list[str] = Field(default_factory=list, description="reasons to doubt the round; empty: none seen")
    sm_clock_mhz: float | None = None
    memory_clock_mhz: float | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    cpu_load_fraction: float | None = None
    cpu_steal_fraction: float | None = None


class Warmup(Part):
    """Runs of one arm before the rounds; the very first call of a shape is here, and in no sample."""

    arm: str
    wall_ms: list[float]
    settled: bool | None = Field(description="whether successive runs agreed; null: a block, whose shapes all differ")


class Drift(Part):
    """How the sentinel fared around this cell, against its first measurement in the session."""

    before_ms: float
    after_ms: float
    reference_ms: float
    noise_fraction: float | None = Field(
        description="half widths of the two 95 % intervals over their medians, added; null: too few samples to tell"
    )
    drifted: bool
    remeasured: bool = False


class Busy(Part):
    """Time for which the device was busy with the same work, without gaps between kernels."""

    source: Literal["cuda_graph", "profiler"]
    phase: str
    samples_ms: list[float]


class SessionStamp(Part):
    """Which session measured the cell, and when in it."""

    session_id: str
    position: int = Field(description="place in the randomised order, from 0")
    cells: int
    started_at: str = Field(description="UTC, ISO 8601")
    order_seed: str = Field(description="seed of the order of the cells, and of the arms in each round")


class Memory(Part):
    """Device memory of one phase."""

    phase: str
    peak_allocated_bytes: int
    reserved_bytes: int


class Energy(Part):
    """Energy over a span long enough for the counter to mean something."""

    what: Literal["vision", "prefill", "generation", "request"]
    joules: float
    span_s: float
    repeats: int


class MeasuredRequest(Part):
    """What one round of a block was: a request, and what was counted in its inputs."""

    place: int = Field(description="place among the block's requests, from 0; the cell says what it is")
    counted: Counted
    width_px: int = Field(description="width of the picture as it was handed over")
    height_px: int
    image_id: str | None = None
    question_id: str | None = None
    question: str | None = None


class FailedRequest(Part):
    """A request of a block that has no round, since the device had not enough memory for it."""

    place: int
    reason: str


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
    counted: Counted | None = None
    image_id: str | None = None
    question_id: str | None = None
    question: str | None = None
    answers: list[str] = Field(default_factory=list)
    series: list[Series] = Field(default_factory=list)
    steps_ms: list[list[float]] = Field(
        default_factory=list, description="device time of every decode step, round by round"
    )
    generated_tokens: list[int] = Field(default_factory=list, description="tokens generated in each round")
    rounds: list[Round] = Field(default_factory=list)
    requests: list[MeasuredRequest] = Field(
        default_factory=list, description="of a block: what each round was, in the order in which they ran"
    )
    failed_requests: list[FailedRequest] = Field(default_factory=list)
    warmups: list[Warmup] = Field(default_factory=list)
    busy: list[Busy] = Field(default_factory=list)
    busy_reason: str | None = Field(None, description="why there is no busy time, where there is none")
    memory: list[Memory] = Field(default_factory=list)
    energy: list[Energy] = Field(default_factory=list)
    stop_reason: str | None = None
    drift: Drift | None = None
    session: SessionStamp
    seconds: dict[str, float] = Field(default_factory=dict, description="what the cell took: warm-up, rounds, all")
    parameters: dict[str, int] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)

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
    except (OSError, ValueError) as error:
        raise UserError(f"record {path} cannot be read ({error}); delete it and it is measured again") from None
    version = data.get("record_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version != RECORD_VERSION:
        raise OtherVersion(
            f"record {path} has record_version {version}, and this vlmeter reads {RECORD_VERSION}; records of two "
            "versions are never mixed: give its subject another name to keep it, or `vlmeter forget` it to measure it"
        )
    if version != RECORD_VERSION:
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
