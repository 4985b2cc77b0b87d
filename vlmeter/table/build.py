"""One tidy table of everything that was measured: the only thing that figures, claims and the report read.

A row is one measured quantity: a cell, the arm in which it was run, the phase that was timed and the clock
that timed it. `subject, cell_id, run, output_tokens, arm, phase, clock, source` name a row. What belongs to the
cell (its counts, where it stood in the session) is repeated in each of its rows, so that a row can be
understood by itself.

Statistics are made of the samples of undisturbed rounds, unless most rounds were disturbed; then of all, by
the same rule by which sampling decides when to stop. Samples of two rows of one cell are paired by place.

Some rows are made of others (`source` is "derived"): a long generation holds every shorter one, so the sum
of its first N - 1 decode steps is the decode time of N tokens (the first token comes out of the prefill).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pydantic import ValidationError

from vlmeter.common.errors import UserError
from vlmeter.numbers.intervals import serial_correlations
from vlmeter.numbers.resemblance import resemblance_of
from vlmeter.records.parts import Energy
from vlmeter.records.record import RECORD_VERSION, Record, read_record
from vlmeter.table.columns import COLUMNS, PANDAS, STATISTICS
from vlmeter.table.kinds import GENERATION, PREFILL, REQUESTS
from vlmeter.table.of_records import image_index
from vlmeter.table.quantities import (
    DECODE,
    DECODE_STEP,
    INTER_TOKEN,
    MARKED_ARM,
    PLAIN_WALL,
    REPEATED_PREFILL,
    REPEATED_VISION,
    WHOLE_PHASE,
)

Array = npt.NDArray[np.float64]


#: Study, subject, cell and run: what a record is of.
_Key = tuple[str, str, str, int]

#: Phase of a prefill -> component whose parameters it uses (`families.base.COMPONENTS`).
_COMPONENT = {
    "vision_encoder": "vision_encoder",
    "projector": "projector",
    "merge": "embedding",
    "llm_blocks": "llm_blocks",
    "head": "head",
}


#: The arm without marks.
_PLAIN_ARM = PLAIN_WALL.rows[PREFILL].arm

#: Work that was repeated for the energy counter, as a record calls it.
_REPEATED = {"prefill": REPEATED_PREFILL, "vision": REPEATED_VISION}


#: Shortest output length that is derived from a longer run without anyone having asked for it.
SHORTEST_DERIVED_TOKENS = 8


@dataclass
class _Rows:
    """Rows under construction: `cell` is the place of a row's cell, `given` what is not computed."""

    cell: list[int] = field(default_factory=list)
    output_tokens: list[int] = field(default_factory=list)
    samples: list[Array | None] = field(default_factory=list)
    given: list[dict[str, Any]] = field(default_factory=list)

    def add(self, cell: int, output_tokens: int, samples: Array | None, **given: Any) -> None:
        self.cell.append(cell)
        self.output_tokens.append(output_tokens)
        self.samples.append(samples)
        count = None if samples is None else len(samples)
        self.given.append({"rounds": count, "samples": count, **given})


def build_table(records: Iterable[Path]) -> pd.DataFrame:
    """Read records and lay them out as the table, sorted by study, subject, cell and run.

    Raises UserError on a file that is no record of this version, on a record whose parts do not fit together,
    on two records of one cell and run, and on runs of one subject on two devices.
    """
    rows, cells = _Rows(), list[dict[str, Any]]()
    paths: dict[_Key, Path] = {}
    devices: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    longest: dict[tuple[str, str, int | str, int], _LongRun] = {}
    others: dict[tuple[str, str], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    lengths: dict[tuple[str, str], set[int]] = defaultdict(set)
    # Each record is let go before the next is read: thousands of them at once would keep the garbage
    # collector busy.
    for place, path in enumerate(records):
        record = _read(path)
        key = (record.study, record.subject, record.cell.cell_id, record.run)
        if key in paths:
            raise UserError(f"records {paths[key]} and {path} are both of cell {key[2]} of {key[1]}, run {key[3]}")
        paths[key] = path
        _check_device(devices[key[:2]], record)
        cells.append({column.name: column.of(record) for column in COLUMNS if column.path is not None})
        _add_record(rows, place, record, path)
        if record.cell.kind != GENERATION:
            continue
        index = image_index(record)
        if index is None:
            others[key[:2]][record.cell.request.look].append(place)
        if record.steps_ms and record.cell.stop == "length":
            image = (*key[:2], record.cell.request.look if index is None else index, record.run)
            tokens = record.cell.output_tokens
            if image not in longest or longest[image].output_tokens < tokens:
                longest[image] = _LongRun.of(record, place)
            lengths[key[:2]].add(tokens)
    _number_others(cells, others)
    for image, run in longest.items():
        _add_derived(rows, run, lengths[image[:2]])
    return _assemble(list(paths), cells, rows)


def _number_others(
    cells: Sequence[dict[str, Any]], others: Mapping[tuple[str, str], Mapping[str, Sequence[int]]]
) -> None:
    """Number what generations look at beside the dataset's photographs, behind these, in the order of the records.

    others: by study and subject, by what is asked: the places of its cells.
    """
    for (study, subject), looks in others.items():
        own = (cell for cell in cells if (cell["study"], cell["subject"]) == (study, subject))
        first = 1 + max((cell["image_index"] for cell in own if cell["image_index"] is not None), default=-1)
        for number, places in enumerate(looks.values(), first):
            for place in places:
                cells[place]["image_index"] = number


def _check_device(known: dict[int, str], record: Record) -> None:
    """Refuse runs of two devices: what differs between them would pass for what differs from day to day."""
    known.setdefault(record.run, str(record.environment.get("device_identity")))
    other = next((run for run, device in known.items() if device != known[record.run]), None)
    if other is not None:
        raise UserError(
            f"run {record.run} of {record.subject} was measured on {known[record.run]} and run {other} on "
            f"{known[other]}; runs of two devices are never mixed: give each device a subject of its own, or `vlmeter "
            f"forget STUDY.yaml all --run {record.run}` to measure that run again"
        )


@dataclass(frozen=True)
class _LongRun:
    """A generation of which shorter ones are made."""

    place: int
    output_tokens: int
    steps: Array
    rounds: int
    disturbed: int

    @classmethod
    def of(cls, record: Record, place: int) -> _LongRun:
        disturbed = sum(bool(state.disturbances) for state in record.rounds)
        return cls(place, record.cell.output_tokens, _steps(record), len(record.rounds), disturbed)


def _read(path: Path) -> Record:
    """Read a record the fast way; whatever is wrong with it, `read_record` has the sentence."""
    try:
        record = Record.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return read_record(path)
    return record if record.record_version == RECORD_VERSION else read_record(path)


def _trusted(record: Record) -> npt.NDArray[np.bool_] | None:
    """Which rounds count: the undisturbed ones, if they are at least half; None for all."""
    quiet = np.array([not state.disturbances for state in record.rounds], dtype=bool)
    return None if quiet.all() or quiet.sum() * 2 < len(quiet) else quiet


def _add_record(rows: _Rows, place: int, record: Record, path: Path) -> None:
    tokens, rounds = record.cell.output_tokens, len(record.rounds)
    if record.status != "ok" or not record.series:
        rows.add(place, tokens, None)
        return
    block = record.cell.kind == "requests"
    if block and not len(record.requests) == len(record.generated_tokens) == rounds:
        raise UserError(
            f"record {path} is damaged: {rounds} rounds, but {len(record.requests)} requests; delete it and it is "
            "measured again"
        )
    # The disturbed ones among requests may be what a tail is made of; whoever judges a distribution leaves them out.
    trusted = None if block else _trusted(record)
    disturbed = sum(bool(state.disturbances) for state in record.rounds)
    measured: dict[str, Any] = {"source": "measured", "rounds": rounds, "disturbed_samples": disturbed}
    memory = {use.phase: use for use in record.memory}
    uses = {use.what: use for use in record.energy}
    marked_arm = MARKED_ARM[record.cell.kind]
    whole = {marked_arm: "request"} if block else {_PLAIN_ARM: "prefill", marked_arm: "generation"}
    whole_wall = PLAIN_WALL.rows[PREFILL][1:]
    energy = {arm: uses[what] for arm, what in whole.items() if what in uses}
    for series in record.series:
        if len(series.samples_ms) != rounds:
            raise UserError(
                f"record {path} is damaged: {rounds} rounds, but {len(series.samples_ms)} samples of "
                f"{series.arm} {series.phase} {series.clock}; delete it and it is measured again"
            )
        samples = np.array(series.samples_ms)
        extra: dict[str, Any] = {}
        if series.arm == marked_arm and (use := memory.get(series.phase)):
            extra |= {"peak_allocated_bytes": use.peak_allocated_bytes, "reserved_bytes": use.reserved_bytes}
        if series.arm in (_PLAIN_ARM, marked_arm) and record.parameters:
            if series.phase == WHOLE_PHASE:
                extra["parameters"] = sum(record.parameters.values())
            elif series.phase in _COMPONENT:
                extra["parameters"] = record.parameters.get(_COMPONENT[series.phase])
        if (series.phase, series.clock) == whole_wall and (of_arm := energy.get(series.arm)):
            extra |= _per_repeat(of_arm)
        if record.output and (series.arm, series.phase, series.clock) == (marked_arm, *whole_wall):
            extra["output"] = np.array(record.output, dtype=np.float64)
        if block and (series.phase, series.clock) == whole_wall:
            extra |= {"requests": _requests(record), "failed_requests": len(record.failed_requests)}
        rows.add(
            place,
            tokens,
            samples if trusted is None else samples[trusted],
            arm=series.arm,
            phase=series.phase,
            clock=series.clock,
            **measured,
            **extra,
        )
    steps = _steps(record)
    if steps.size:
        for quantity, samples in ((DECODE_STEP, np.median(steps, axis=0)), (INTER_TOKEN, steps.ravel())):
            rows.add(place, tokens, samples, **quantity.rows[GENERATION]._asdict(), source="measured")
    for busy in record.busy:
        samples = np.array(busy.samples_ms)
        kind: dict[str, Any] = {
            "arm": "busy",
            "clock": "busy",
            "source": "measured",
            "busy_source": busy.source,
        }
        rows.add(place, tokens, samples, phase=busy.phase, **kind)
    for spent in record.energy if block else []:
        if (repeated := _REPEATED.get(spent.what)) is not None:
            mean_ms = np.array([1000 * spent.span_s / spent.repeats])
            kind = {**repeated.rows[REQUESTS]._asdict(), "source": "measured", **_per_repeat(spent)}
            rows.add(place, tokens, mean_ms, **kind)
    for warmup in record.warmups:
        if warmup.wall_ms and not block:
            first = np.array(warmup.wall_ms[:1])
            rows.add(place, tokens, first, arm=warmup.arm, phase="first_call", clock="wall", source="measured")


def _per_repeat(use: Energy) -> dict[str, float]:
    return {"joules_per_repeat": use.joules / use.repeats, "energy_span_s": use.span_s}


def _requests(record: Record) -> str:
    """What each round of many requests was, as JSON, in the order of the rounds; pictures by the first of them."""
    cell = record.cell
    found = [
        {
            "number": cell.first + request.place,
            "image_index": next((photo.index for photo in cell.requests[request.place].photographs), None),
            "image_id": request.pictures[0].image_id,
            "question_id": request.question_id,
            "question": request.question,
            "width_px": request.pictures[0].width_px,
            "height_px": request.pictures[0].height_px,
            **(asdict(request.counted) if request.counted else {}),
            "output_tokens": cell.requests[request.place].output_tokens,
            "generated_tokens": generated,
            "disturbances": state.disturbances,
        }
        for request, generated, state in zip(record.requests, record.generated_tokens, record.rounds, strict=True)
    ]
    return json.dumps(found, ensure_ascii=False)


def _steps(record: Record) -> Array:
    """Decode steps of the trusted rounds [rounds, steps]; steps that not every round reached are left out."""
    reached = min((len(steps) for steps in record.steps_ms), default=0)
    steps = np.array([steps[:reached] for steps in record.steps_ms])
    trusted = _trusted(record)
    return steps if trusted is None or len(steps) != len(trusted) else steps[trusted]


def _add_derived(rows: _Rows, run: _LongRun, lengths: set[int]) -> None:
    """Add decode times of shorter outputs from the longest run of an image, those measured directly included.

    Both being there is what lets the two be compared.
    """
    grid, doubled = set(lengths), SHORTEST_DERIVED_TOKENS
    while doubled < run.output_tokens:
        grid.add(doubled)
        doubled *= 2
    sums = np.cumsum(run.steps, axis=1)
    kind: dict[str, Any] = {**DECODE.rows[GENERATION]._asdict(), "source": "derived"}
    for tokens in sorted(grid):
        if 2 <= tokens < run.output_tokens and tokens - 2 < sums.shape[1]:
            samples = sums[:, tokens - 2]
            rows.add(run.place, tokens, samples, rounds=run.rounds, disturbed_samples=run.disturbed, **kind)


def _assemble(keys: Sequence[_Key], cells: list[dict[str, Any]], rows: _Rows) -> pd.DataFrame:
    """Put the table together: cell columns are made once per cell and taken once per row."""
    rank = np.empty(len(keys), dtype=np.intp)
    rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    order = np.argsort(rank[np.array(rows.cell, dtype=np.intp)], kind="stable")
    place = np.array(rows.cell, dtype=np.intp)[order]
    statistics = _summarise(rows.samples, _series_of(keys, cells, rows))
    data: dict[str, Any] = {}
    for column in COLUMNS:
        dtype = PANDAS[column.dtype]
        if column.name == "output_tokens":
            data[column.name] = pd.array(np.array(rows.output_tokens, dtype=np.int64)[order], dtype="Int64")
        elif column.name == "samples_ms":
            data[column.name] = _objects(rows.samples)[order]
        elif column.dtype == "list":
            data[column.name] = _objects([given.get(column.name) for given in rows.given])[order]
        elif column.statistic is not None:
            data[column.name] = statistics[column.name][order]
        elif column.path is not None:
            data[column.name] = _array([cell[column.name] for cell in cells], dtype).take(place)
        else:
            data[column.name] = _array([given.get(column.name) for given in rows.given], dtype).take(order)
    return pd.DataFrame(data, columns=[column.name for column in COLUMNS])


def _array(values: Sequence[Any], dtype: str) -> Any:
    if dtype == "float64":
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
    return pd.array(list(values), dtype=dtype)  # type: ignore[call-overload]


def _objects(values: Sequence[Any]) -> npt.NDArray[np.object_]:
    """An array of objects, even where all of them have one length."""
    result = np.empty(len(values), dtype=object)
    for place, value in enumerate(values):
        result[place] = value
    return result


def _series_of(keys: Sequence[_Key], cells: Sequence[Mapping[str, Any]], rows: _Rows) -> list[tuple[Any, ...]]:
    """Name what a row's rounds are compared with: the same duration of the other cells of its kind, subject and run."""
    found = []
    for cell, given in zip(rows.cell, rows.given, strict=True):
        study, subject, _, run = keys[cell]
        timed = (given.get(name) for name in ("arm", "phase", "clock", "source"))
        found.append((study, subject, run, cells[cell]["kind"], *timed))
    return found


def _summarise(samples: Sequence[Array | None], series: Sequence[tuple[Any, ...]]) -> dict[str, Array]:
    """Work out STATISTICS of each list of samples; lists of one length are worked on together.

    How much rounds resemble the ones before them, all lists of one series say together.
    """
    result = {column.name: np.full(len(samples), np.nan) for column in STATISTICS}
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, values in enumerate(samples):
        if values is not None and len(values):
            by_length[len(values)].append(place)
    stacked = {
        count: np.stack([values for place in places if (values := samples[place]) is not None])
        for count, places in by_length.items()
    }
    found = np.full(len(samples), np.nan)
    for count, places in by_length.items():
        found[places] = serial_correlations(stacked[count])
    correlations = _correlations(found.tolist(), [0 if own is None else len(own) for own in samples], series)
    for count, places in by_length.items():
        ordered = np.sort(stacked[count], axis=1)
        for column in STATISTICS:
            if column.statistic is not None and count >= column.least:
                result[column.name][places] = column.statistic(ordered, correlations[places])
    return result


def _correlations(found: Sequence[float], counts: Sequence[int], series: Sequence[tuple[Any, ...]]) -> Array:
    """How much the rounds of each list resemble the ones before them, given what the others of its series say."""
    by_series: dict[tuple[Any, ...], list[int]] = defaultdict(list)
    for place, name in enumerate(series):
        by_series[name].append(place)
    result = np.zeros(len(found))
    for places in by_series.values():
        like = resemblance_of([found[place] for place in places], [counts[place] for place in places])
        for place in places:
            result[place] = like.of(found[place], counts[place])
    return result
