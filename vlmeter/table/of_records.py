"""What a column of a cell says, read off its record."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from statistics import median_low
from typing import TYPE_CHECKING, Any

from vlmeter.table.kinds import OTHERWISE

if TYPE_CHECKING:  # what reads the table reads its columns, and has nothing to do with records
    from vlmeter.records.parts import MeasuredRequest
    from vlmeter.records.record import Record

#: Reads one value off a record.
Reader = Callable[["Record"], Any]


def at_path(record: Record, path: str) -> Any:
    """Follow a dotted path; None where it leads nowhere."""
    found: Any = record
    for part in path.split("."):
        if found is None:
            return None
        found = found.get(part) if isinstance(found, Mapping) else getattr(found, part)
    return found


def size_px(side: int) -> Reader:
    """Size of the picture that a cell looks at (0: width, 1: height), where the plan knows it."""

    def size(record: Record) -> int | None:
        if record.cell.kind == "requests":
            return None
        known = record.cell.request.size_px
        return None if known is None else known[side]

    return size


def image_index(record: Record) -> int | None:
    """Place of the photograph in the manifest, of a cell that looks at one."""
    if record.cell.kind == "requests":
        return None
    return next((photograph.index for photograph in record.cell.request.photographs), None)


def own_request(record: Record) -> MeasuredRequest | None:
    """What was run in a cell of one request."""
    return record.requests[0] if record.requests and record.cell.kind != "requests" else None


def image_id(record: Record) -> str | None:
    """The dataset's id of the photograph; else what a generation looks at, in words."""
    own = own_request(record)
    if own and own.pictures[0].image_id is not None:
        return own.pictures[0].image_id
    cell = record.cell
    return str(cell.request.pictures[0]) if cell.kind == "generation" and cell.request.size_px else None


def of_request(name: str) -> Reader:
    """Read a field of the request, in a cell of one."""
    return lambda record: getattr(own_request(record), name, None)


def kind(record: Record) -> str:
    """The cell's kind, or that its picture is sent otherwise."""
    return OTHERWISE if record.cell.encoding is not None else record.cell.kind


def image_format(record: Record) -> str | None:
    """Format in which the picture was sent to a server."""
    own = record.cell.encoding
    return own.image_format if own else record.environment.get("server", {}).get("image_format")


def image_quality(record: Record) -> int | None:
    """Quality of a JPEG that was sent to a server."""
    own = record.cell.encoding
    return own.quality if own else record.environment.get("server", {}).get("image_quality")


def image_bytes(record: Record) -> int | None:
    """Size of the picture as it was sent."""
    own = own_request(record)
    return own.pictures[0].file_bytes if own else None


def generated_tokens(record: Record) -> int | None:
    """Tokens that were generated: the median over rounds."""
    return median_low(record.generated_tokens) if record.generated_tokens else None


def answers(record: Record) -> str | None:
    """The dataset's answers as a JSON list."""
    own = own_request(record)
    return json.dumps(own.answers, ensure_ascii=False) if own and own.question is not None else None


def compile_mode(record: Record) -> str | None:
    """The mode of a subject whose kernels are fused; the key is there, with its default, whatever the backend."""
    fused = record.execution is not None and record.execution.kernels == "fused"
    return getattr(record.subject_config, "compile_mode", None) if fused else None


def seconds_of(name: str) -> Reader:
    """Read what a part of the session took for this cell."""
    return lambda record: record.seconds.get(name)


def warmup_settled(record: Record) -> bool | None:
    """Whether every warm-up that could be judged settled."""
    judged = [warmup.settled for warmup in record.warmups if warmup.settled is not None]
    return all(judged) if judged else None


def disturbances(record: Record) -> str | None:
    """All that disturbed a round, each once."""
    return "; ".join(dict.fromkeys(reason for state in record.rounds for reason in state.disturbances)) or None
