"""One tidy table of everything that was measured: the only thing that figures, claims and the report read.

A row is one measured quantity: a cell, the arm in which it was run, the phase that was timed and the clock
that timed it. `subject, cell_id, output_tokens, arm, phase, clock, source` name a row. What belongs to the
cell (its counts, where it stood in the session) is repeated in each of its rows, so that a row can be
understood by itself.

Statistics are made of the samples of undisturbed rounds, unless most rounds were disturbed; then of all, by
the same rule by which sampling decides when to stop. Samples of two rows of one cell are paired by place.

Some rows are made of others (`source` is "derived"): a long generation holds every shorter one, so the sum
of its first N - 1 decode steps is the decode time of N tokens (the first token comes out of the prefill).
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median, median_low
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
from pydantic import ValidationError

from vlmeter.errors import UserError
from vlmeter.files import write_atomically
from vlmeter.plan import DatasetImage, DummyImage, RequestBlock
from vlmeter.record import RECORD_VERSION, Energy, Record, read_record
from vlmeter.stats import MIN_SAMPLES_FOR_PERCENTILE, median_ranks

Array = npt.NDArray[np.float64]


Dtype = Literal["string", "integer", "float", "boolean", "list"]

#: End of a column's name -> its unit.
UNITS = {
    "_ms": "ms",
    "_s": "s",
    "_seconds": "s",
    "_px": "px",
    "_tokens": "tokens",
    "crops": "crops",
    "_bytes": "bytes",
    "_mhz": "MHz",
    "_c": "°C",
    "_w": "W",
    "joules_per_repeat": "J",
}

#: Columns whose names end like a unit and have none.
_UNITLESS = ("tiling_w",)


@dataclass(frozen=True)
class Column:
    """One column of the table: the report's data dictionary is made of these."""

    name: str
    dtype: Dtype
    description: str

    @property
    def unit(self) -> str:
        """The unit, which stands at the end of the name; empty for what has none."""
        if self.dtype in ("string", "boolean") or self.name in _UNITLESS:
            return ""
        return next((unit for end, unit in UNITS.items() if self.name.endswith(end)), "")


def _columns(*rows: tuple[str, Dtype, str]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


#: What belongs to a cell, and is the same in all of its rows.
CELL_COLUMNS = _columns(
    ("study", "string", "name of the study"),
    ("subject", "string", "name of what was measured: a model, its weights, number format and device"),
    ("family", "string", "model family"),
    ("preset", "string", "architecture, where weights are random"),
    ("weights", "string", "random, a folder or a hub id"),
    ("random_weights", "boolean", "whether weights are random: then generated text means nothing"),
    ("dtype", "string", "number format of the weights"),
    ("attention", "string", "attention implementation"),
    ("backend", "string", "way of running the model"),
    ("device_model", "string", "what the device is"),
    ("device", "string", "the device's name on its machine, such as cuda:0"),
    ("commit", "string", "commit of vlmeter that measured; +changes if files differed from it"),
    ("cell_id", "string", "name of the cell within its subject; of a derived row, of the run it is made of"),
    ("experiment", "string", "vision_tokens, output_tokens or latency_distribution"),
    ("status", "string", "ok, oom (out of device memory) or unsupported; unless ok: one row, no arm"),
    ("reason", "string", "why there are no samples, where there are none"),
    ("stop", "string", "length: forced to output_tokens; eos: natural end, output_tokens is a limit"),
    ("max_crops", "integer", "limit of high-resolution crops in the study; absent: the model's own"),
    ("forced_tiling", "boolean", "whether the tiling was imposed past the preprocessor's selection"),
    ("width_px", "integer", "width of the image; absent for photographs, whose manifest has it"),
    ("height_px", "integer", "height of the image; absent for photographs, whose manifest has it"),
    ("tiling_h", "integer", "rows of high-resolution crops, for families with tilings"),
    ("tiling_w", "integer", "columns of high-resolution crops, for families with tilings"),
    ("crops", "integer", "crops that the vision encoder takes, the global one included; counted"),
    ("vision_tokens", "integer", "prompt tokens that receive vision features; counted"),
    ("special_tokens", "integer", "image tokens that receive none (start, end, rows); counted"),
    ("text_tokens", "integer", "text tokens of the prompt, its first token included; counted"),
    (
        "prompt_tokens",
        "integer",
        "all tokens of the prompt; counted in the model's real inputs, as the others",
    ),
    ("output_tokens", "integer", "tokens to generate (of a block the most); the first one comes out of the prefill"),
    ("generated_tokens", "integer", "tokens that were generated (median over rounds)"),
    ("image_index", "integer", "place of the photograph in the dataset's manifest, from 0"),
    ("image_id", "string", "the dataset's id of the photograph"),
    ("question_id", "string", "the dataset's id of the question"),
    ("question", "string", "the question"),
    ("answers", "string", "the dataset's answers (not the model's), as a JSON list"),
)

#: What belongs to one measured quantity.
QUANTITY_COLUMNS = _columns(
    (
        "arm",
        "string",
        "how it was run: inputs, plain (no marks), hooks (marks between phases), vision, busy; request (inputs and"
        " generation in one call, marks between phases), repeated (again and again, for the energy counter)",
    ),
    (
        "phase",
        "string",
        "what was timed: total; a phase of the inputs or the prefill; decode (all steps); decode_step (each"
        " step, by context); inter_token (all steps of all rounds); first_call (first use of the shape, in"
        " output-token cells with 8 output tokens); of arm busy: prefill, vision,"
        " decode_step (one, right behind the prompt); of arm request: longest_step as well, the longest decode step of"
        " each request; of arm repeated: prefill, vision, of the block's middling request",
    ),
    ("clock", "string", "wall (as a user waits), device (between marks), launch (host hands over), busy"),
    ("source", "string", "measured, or derived from the first steps of a longer run"),
    ("rounds", "integer", "samples taken, disturbed ones included"),
    ("samples", "integer", "samples that the statistics rest on"),
    (
        "disturbed_samples",
        "integer",
        "samples of disturbed rounds; left out, unless they are the majority (of arm request none is left out)",
    ),
    ("median_ms", "float", "median"),
    ("low_ms", "float", "lower end of the median's 95 % bootstrap interval; absent below 5 samples"),
    ("high_ms", "float", "upper end of the median's 95 % bootstrap interval; absent below 5 samples"),
    ("mean_ms", "float", "mean"),
    ("min_ms", "float", "smallest sample"),
    ("max_ms", "float", "largest sample"),
    ("p95_ms", "float", "95th percentile; absent below 59 samples, which cannot bound it"),
    ("p99_ms", "float", "99th percentile; absent below 299 samples, which cannot bound it"),
    ("samples_ms", "list", "samples behind the statistics, in the order of rounds (or steps); parquet only"),
    (
        "requests",
        "string",
        "what each sample of arm request was, as a JSON list in the order of samples_ms: its number among all requests,"
        " photograph and question, counts, tokens generated, disturbances; phase total on the wall clock only",
    ),
    ("failed_requests", "integer", "requests of a block that ran out of device memory, and have no sample"),
    ("busy_source", "string", "how busy time was found: cuda_graph (replay) or profiler (kernel times)"),
    ("peak_allocated_bytes", "integer", "most device memory in use during the phase (arm hooks)"),
    ("reserved_bytes", "integer", "device memory that the allocator held at the end of the phase"),
    (
        "joules_per_repeat",
        "float",
        "energy of a prefill (arm plain), a generation (arm hooks) or a request (arm request) in total rows; of what"
        " arm repeated ran",
    ),
    ("energy_span_s", "float", "time over which the energy counter was read"),
    ("parameters", "integer", "parameters that the phase uses; in total rows those of the model"),
)

#: How the cell was measured; the same in all of its rows.
CONDITION_COLUMNS = _columns(
    ("stop_reason", "string", "why sampling ended: precise, max_samples, time_cap; of a block all_requests"),
    ("warmup_settled", "boolean", "whether warm-up had settled in every arm before sampling began; absent: a block"),
    ("disturbances", "string", "what disturbed rounds of the cell, each reason once"),
    ("busy_reason", "string", "why there is no busy time, where there is none"),
    ("drifted", "boolean", "whether the sentinel was away from its first value when the cell was measured"),
    ("remeasured", "boolean", "whether the cell was measured a second time because of drift"),
    ("drift_before_ms", "float", "the sentinel before the cell's batch (wall time, with marks)"),
    ("drift_after_ms", "float", "the sentinel after the cell's batch"),
    ("drift_reference_ms", "float", "the sentinel at the start of the session"),
    ("drift_noise_fraction", "float", "move of the sentinel that is within its own noise"),
    ("session_id", "string", "the session that measured the cell"),
    ("session_position", "integer", "place in the session's random order, from 0"),
    ("session_started_at", "string", "start of the session, UTC"),
    ("started_s", "float", "start of the cell's first round, since the session began"),
    ("cell_seconds", "float", "time that the cell took, warm-up included"),
    ("sm_clock_mhz", "float", "clock of the device's processors (median over rounds)"),
    ("memory_clock_mhz", "float", "clock of the device's memory (median over rounds)"),
    ("temperature_c", "float", "highest temperature of the device"),
    ("power_w", "float", "power reading of the device (median over rounds)"),
    ("cpu_load_fraction", "float", "share of processor time that other processes took (median over rounds)"),
    ("cpu_steal_fraction", "float", "share of processor time that a hypervisor kept for others (highest)"),
)

COLUMNS = CELL_COLUMNS + QUANTITY_COLUMNS + CONDITION_COLUMNS

_PANDAS = {"string": "string", "integer": "Int64", "float": "float64", "boolean": "boolean", "list": "object"}
_ARROW = {
    "string": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "list": pa.list_(pa.float64()),
}

#: Phase of a prefill -> component whose parameters it uses (`families.base.COMPONENTS`).
_COMPONENT = {
    "vision_encoder": "vision_encoder",
    "projector": "projector",
    "merge": "embedding",
    "llm_blocks": "llm_blocks",
    "head": "head",
}

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
        self.given.append(given if samples is None else {"rounds": len(samples), **given})


#: Quantity columns that are given, not computed from samples.
_QUANTITY_INPUTS = (
    "arm",
    "phase",
    "clock",
    "source",
    "rounds",
    "disturbed_samples",
    "requests",
    "failed_requests",
    "busy_source",
    "peak_allocated_bytes",
    "reserved_bytes",
    "joules_per_repeat",
    "energy_span_s",
    "parameters",
)


def build_table(records: Iterable[Path]) -> pd.DataFrame:
    """Read records and lay them out as the table, sorted by study, subject and cell.

    Raises UserError on a file that is no record of this version, on a record whose parts do not fit together,
    and on two records of one cell.
    """
    rows, cells = _Rows(), list[dict[str, Any]]()
    paths: dict[tuple[str, str, str], Path] = {}
    longest: dict[tuple[str, str, int], _LongRun] = {}
    lengths: dict[tuple[str, str], set[int]] = defaultdict(set)
    # Each record is let go before the next is read: thousands of them at once would keep the garbage
    # collector busy.
    for place, path in enumerate(records):
        record = _read(path)
        key = (record.study, record.subject, record.cell.cell_id)
        if key in paths:
            raise UserError(f"records {paths[key]} and {path} are both of cell {key[2]} of {key[1]}")
        paths[key] = path
        cells.append(_cell_values(record))
        _add_record(rows, place, record, path)
        if record.steps_ms and record.cell.stop == "length" and isinstance(record.cell.image, DatasetImage):
            image, tokens = (*key[:2], record.cell.image.index), record.cell.output_tokens
            if image not in longest or longest[image].output_tokens < tokens:
                longest[image] = _LongRun.of(record, place)
            lengths[key[:2]].add(tokens)
    for image, run in longest.items():
        _add_derived(rows, run, lengths[image[:2]])
    return _assemble(list(paths), cells, rows)


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
    block = isinstance(record.cell.image, RequestBlock)
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
    whole = {"request": "request"} if block else {"plain": "prefill", "hooks": "generation"}
    energy = {arm: uses[what] for arm, what in whole.items() if what in uses}
    for series in record.series:
        if len(series.samples_ms) != rounds:
            raise UserError(
                f"record {path} is damaged: {rounds} rounds, but {len(series.samples_ms)} samples of "
                f"{series.arm} {series.phase} {series.clock}; delete it and it is measured again"
            )
        samples = np.array(series.samples_ms)
        extra: dict[str, Any] = {}
        if series.arm in ("hooks", "request") and (use := memory.get(series.phase)):
            extra |= {"peak_allocated_bytes": use.peak_allocated_bytes, "reserved_bytes": use.reserved_bytes}
        if series.arm in ("hooks", "plain", "request") and record.parameters:
            if series.phase == "total":
                extra["parameters"] = sum(record.parameters.values())
            elif series.phase in _COMPONENT:
                extra["parameters"] = record.parameters.get(_COMPONENT[series.phase])
        if series.phase == "total" and series.clock == "wall" and (of_arm := energy.get(series.arm)):
            extra |= _per_repeat(of_arm)
        if block and (series.phase, series.clock) == ("total", "wall"):
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
        step: dict[str, Any] = {"arm": "hooks", "clock": "device", "source": "measured"}
        rows.add(place, tokens, np.median(steps, axis=0), phase="decode_step", **step)
        rows.add(place, tokens, steps.ravel(), phase="inter_token", **step)
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
        if spent.what in ("prefill", "vision"):
            mean_ms = np.array([1000 * spent.span_s / spent.repeats])
            kind = {"arm": "repeated", "clock": "wall", "source": "measured", **_per_repeat(spent)}
            rows.add(place, tokens, mean_ms, phase=spent.what, **kind)
    for warmup in record.warmups:
        if warmup.wall_ms and not block:
            first = np.array(warmup.wall_ms[:1])
            rows.add(place, tokens, first, arm=warmup.arm, phase="first_call", clock="wall", source="measured")


def _per_repeat(use: Energy) -> dict[str, float]:
    return {"joules_per_repeat": use.joules / use.repeats, "energy_span_s": use.span_s}


def _requests(record: Record) -> str:
    """What each round of a block was, as JSON, in the order of the rounds."""
    block = record.cell.image
    assert isinstance(block, RequestBlock)
    found = [
        {
            "number": block.first + request.place,
            "image_index": block.requests[request.place].index,
            "image_id": request.image_id,
            "question_id": request.question_id,
            "question": request.question,
            "width_px": request.width_px,
            "height_px": request.height_px,
            **request.counted.model_dump(),
            "output_tokens": block.requests[request.place].output_tokens,
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
    kind: dict[str, Any] = {"arm": "hooks", "phase": "decode", "clock": "device", "source": "derived"}
    for tokens in sorted(grid):
        if 2 <= tokens < run.output_tokens and tokens - 2 < sums.shape[1]:
            samples = sums[:, tokens - 2]
            rows.add(run.place, tokens, samples, rounds=run.rounds, disturbed_samples=run.disturbed, **kind)


def _cell_values(record: Record) -> dict[str, Any]:
    """What CELL_COLUMNS and CONDITION_COLUMNS say of a record, output_tokens aside."""
    cell, subject, counted, drift = record.cell, record.subject_config, record.counted, record.drift
    dummy = cell.image if isinstance(cell.image, DummyImage) else None

    def over_rounds(name: str, how: Any) -> float | None:
        values = [value for state in record.rounds if (value := getattr(state, name)) is not None]
        return how(values) if values else None

    judged = [warmup.settled for warmup in record.warmups if warmup.settled is not None]
    reasons = dict.fromkeys(reason for state in record.rounds for reason in state.disturbances)
    return {
        "study": record.study,
        "subject": record.subject,
        "family": subject.family,
        "preset": subject.preset,
        "weights": subject.weights,
        "random_weights": subject.weights == "random",
        "dtype": subject.dtype,
        "attention": subject.attention,
        "backend": subject.backend,
        "device_model": _text(record.environment.get("device_model")),
        "device": _text(record.environment.get("device")),
        "commit": _text(record.environment.get("commit")),
        "cell_id": cell.cell_id,
        "experiment": cell.experiment,
        "status": record.status,
        "reason": record.reason,
        "stop": cell.stop,
        "max_crops": cell.max_crops,
        "forced_tiling": cell.force_tiling is not None,
        "width_px": dummy.width_px if dummy else None,
        "height_px": dummy.height_px if dummy else None,
        "tiling_h": cell.layout.get("tiling_h"),
        "tiling_w": cell.layout.get("tiling_w"),
        "crops": counted.crops if counted else None,
        "vision_tokens": counted.vision_tokens if counted else None,
        "special_tokens": counted.special_tokens if counted else None,
        "text_tokens": counted.text_tokens if counted else None,
        "prompt_tokens": counted.prompt_tokens if counted else None,
        "generated_tokens": median_low(record.generated_tokens) if record.generated_tokens else None,
        "image_index": cell.image.index if isinstance(cell.image, DatasetImage) else None,
        "image_id": record.image_id,
        "question_id": record.question_id,
        "question": record.question,
        "answers": json.dumps(record.answers, ensure_ascii=False) if record.question is not None else None,
        "stop_reason": record.stop_reason,
        "warmup_settled": all(judged) if judged else None,
        "disturbances": "; ".join(reasons) or None,
        "busy_reason": record.busy_reason,
        "drifted": drift.drifted if drift else None,
        "remeasured": drift.remeasured if drift else None,
        "drift_before_ms": drift.before_ms if drift else None,
        "drift_after_ms": drift.after_ms if drift else None,
        "drift_reference_ms": drift.reference_ms if drift else None,
        "drift_noise_fraction": drift.noise_fraction if drift else None,
        "session_id": record.session.session_id,
        "session_position": record.session.position,
        "session_started_at": record.session.started_at,
        "started_s": record.rounds[0].started_s if record.rounds else None,
        "cell_seconds": sum(record.seconds.values()) if record.seconds else None,
        "sm_clock_mhz": over_rounds("sm_clock_mhz", median),
        "memory_clock_mhz": over_rounds("memory_clock_mhz", median),
        "temperature_c": over_rounds("temperature_c", max),
        "power_w": over_rounds("power_w", median),
        "cpu_load_fraction": over_rounds("cpu_load_fraction", median),
        "cpu_steal_fraction": over_rounds("cpu_steal_fraction", max),
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _assemble(keys: Sequence[tuple[str, str, str]], cells: list[dict[str, Any]], rows: _Rows) -> pd.DataFrame:
    """Put the table together: cell columns are made once per cell and taken once per row."""
    rank = np.empty(len(keys), dtype=np.intp)
    rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    order = np.argsort(rank[np.array(rows.cell, dtype=np.intp)], kind="stable")
    place = np.array(rows.cell, dtype=np.intp)[order]
    summaries = _summarise(rows.samples)
    data: dict[str, Any] = {}
    for column in COLUMNS:
        dtype = _PANDAS[column.dtype]
        if column.name == "output_tokens":
            data[column.name] = pd.array(np.array(rows.output_tokens, dtype=np.int64)[order], dtype="Int64")
        elif column.name == "samples_ms":
            data[column.name] = _objects(rows.samples)[order]
        elif column.name in _QUANTITY_INPUTS:
            data[column.name] = _array([given.get(column.name) for given in rows.given], dtype).take(order)
        elif column.name in summaries:
            values = summaries[column.name][order]
            data[column.name] = values if column.dtype == "float" else _array(values.tolist(), dtype)
        else:
            data[column.name] = _array([cell[column.name] for cell in cells], dtype).take(place)
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


def _summarise(samples: Sequence[Array | None]) -> dict[str, npt.NDArray[Any]]:
    """Summarise each list of samples; lists of one length are worked on together.

    Median and interval are those of `stats.median_estimate`.
    """
    floats = ("median_ms", "low_ms", "high_ms", "mean_ms", "min_ms", "max_ms", "p95_ms", "p99_ms")
    result: dict[str, npt.NDArray[Any]] = {name: np.full(len(samples), np.nan) for name in floats}
    counts = np.array([None if values is None else len(values) for values in samples], dtype=object)
    result["samples"] = counts
    by_length: dict[int, list[int]] = defaultdict(list)
    for place, values in enumerate(samples):
        if values is not None and len(values):
            by_length[len(values)].append(place)
    for count, places in by_length.items():
        ordered = np.sort(np.stack([values for place in places if (values := samples[place]) is not None]), axis=1)
        result["median_ms"][places] = (ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2
        result["mean_ms"][places] = ordered.mean(axis=1)
        result["min_ms"][places], result["max_ms"][places] = ordered[:, 0], ordered[:, -1]
        if ranks := median_ranks(count):
            result["low_ms"][places], result["high_ms"][places] = ordered[:, ranks[0]], ordered[:, ranks[1]]
        for name, fraction in (("p95_ms", 0.95), ("p99_ms", 0.99)):
            if count >= MIN_SAMPLES_FOR_PERCENTILE[fraction]:
                result[name][places] = np.quantile(ordered, fraction, axis=1)
    return result


def _to_arrow(table: pd.DataFrame, columns: Sequence[Column]) -> pa.Table:
    arrays = [
        pa.array(
            [None if values is None else values for values in table[column.name]]
            if column.dtype == "list"
            else table[column.name],
            type=_ARROW[column.dtype],
            from_pandas=True,
        )
        for column in columns
    ]
    return pa.table(arrays, schema=pa.schema([(column.name, _ARROW[column.dtype]) for column in columns]))


def write_table(table: pd.DataFrame, parquet_path: Path, csv_path: Path) -> None:
    """Write the table as parquet and, without the lists of samples, as CSV; each is whole or absent."""
    buffer = io.BytesIO()
    pa.parquet.write_table(_to_arrow(table, COLUMNS), buffer, compression="zstd")
    write_atomically(parquet_path, buffer.getvalue())
    buffer = io.BytesIO()
    pa.csv.write_csv(
        _to_arrow(table, [column for column in COLUMNS if column.dtype != "list"]),
        buffer,
        pa.csv.WriteOptions(quoting_style="needed"),
    )
    write_atomically(csv_path, buffer.getvalue())


def read_table(path: Path, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a parquet table back, in the types in which `build_table` makes it.

    With `columns` only those are read, and it does not matter which others the table has: so may one be read that an
    older or a newer vlmeter wrote. Raises UserError on a file that is not a table, or lacks a column that is asked
    for; without `columns` also if it has others than this vlmeter writes.
    """
    wanted = [column.name for column in COLUMNS] if columns is None else list(columns)
    try:
        names = pa.parquet.read_schema(path).names
        if unlike := sorted(set(wanted) - set(names) if columns is not None else set(wanted) ^ set(names)):
            raise UserError(
                f"table {path} has other columns than this vlmeter writes ({unlike[0]}); make it again from the records"
            )
        found = pa.parquet.read_table(path, columns=wanted)
    except FileNotFoundError:
        raise UserError(f"table {path} does not exist") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"table {path} cannot be read ({error}); make it again from the records") from None
    if columns is None and names != wanted:
        raise UserError(
            f"table {path} has other columns than this vlmeter writes (the order of columns); make it again from the "
            "records"
        )
    frame = found.to_pandas()
    kinds: Mapping[str, Any] = {column.name: _PANDAS[column.dtype] for column in COLUMNS if column.name in wanted}
    return pd.DataFrame(frame.astype(kinds))


def data_dictionary() -> pd.DataFrame:
    """The schema as a table: name, dtype, unit, description of each column."""
    return pd.DataFrame(
        [(column.name, column.dtype, column.unit, column.description) for column in COLUMNS],
        columns=["name", "dtype", "unit", "description"],
    )
