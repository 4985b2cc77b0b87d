"""The columns of the table: name, type, words, and where the value comes from. The data dictionary is made of them.

A column that belongs to a cell carries its path into the record, such as `environment.device_model`, or a function of
the record, which says how rounds become one value. A statistic carries what it makes of the samples. What is left is a
row's own, and `vlmeter.table.build` hands it over under the column's name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from vlmeter.numbers.medians import MIN_SAMPLES_FOR_PERCENTILE
from vlmeter.numbers.resemblance import median_ends
from vlmeter.records.gauges import Gauge, every_gauge
from vlmeter.table import of_records as read

if TYPE_CHECKING:  # what reads the table reads its columns, and has nothing to do with records
    from vlmeter.records.record import Record

Array = npt.NDArray[np.float64]

Dtype = Literal["string", "integer", "float", "boolean", "list"]

#: Where a cell's value stands in its record: a dotted path, or a function of the record.
Path = str | Callable[["Record"], Any]

#: What is made of sorted samples [rows, samples] and of each row's correlation in order: one value for each row.
Statistic = Callable[[Array, Array], Array]


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
    """One column of the table.

    path: where a cell's value stands in the record. statistic: what is made of a row's samples, of which there have to
    be `least`. Without either, the value is the row's own.
    """

    name: str
    dtype: Dtype
    description: str
    path: Path | None = None
    statistic: Statistic | None = None
    least: int = 1

    @property
    def unit(self) -> str:
        """The unit, which stands at the end of the name; empty for what has none."""
        if self.dtype in ("string", "boolean") or self.name in _UNITLESS:
            return ""
        return next((unit for end, unit in UNITS.items() if self.name.endswith(end)), "")

    def of(self, record: Record) -> Any:
        """The value of a record's cell; None where the record has none."""
        assert self.path is not None
        found = read.at_path(record, self.path) if isinstance(self.path, str) else self.path(record)
        return str(found) if self.dtype == "string" and found is not None else found


def _columns(*rows: tuple[str, Dtype, str] | tuple[str, Dtype, str, Path]) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


def _of_gauge(gauge: Gauge[Any]) -> Column:
    """Make the column of a gauge: its readings, made one value over the rounds."""

    def over_rounds(record: Record) -> float | None:
        shown = [state.readings[gauge.name] for state in record.rounds if gauge.name in state.readings]
        return gauge.over_rounds.of(shown) if shown else None

    return Column(gauge.name, "float", f"{gauge.words} ({gauge.over_rounds.name} over rounds)", over_rounds)


def _median(ordered: Array, _: Array) -> Array:
    count = ordered.shape[1]
    return np.asarray((ordered[:, (count - 1) // 2] + ordered[:, count // 2]) / 2)


def _end(which: int) -> Statistic:
    """Make the statistic that is one end of the median's interval (`numbers.resemblance.median_ends`)."""

    def end(ordered: Array, correlations: Array) -> Array:
        found = np.full(len(ordered), np.nan)
        for correlation in np.unique(correlations):
            rows = correlations == correlation
            found[rows] = median_ends(ordered[rows], float(correlation))[which]
        return found

    return end


def _quantile(fraction: float) -> Statistic:
    return lambda ordered, _: np.asarray(np.quantile(ordered, fraction, axis=1))


#: Columns that tables of before did not have; `vlmeter.table.files` says what they are in such a table.
ADDED_LATER = frozenset(
    {
        *("quantization", "revision", "trust_remote_code", "kind"),
        *("weights_seed", "vision_attention_dtype", "compile_mode", "launches", "kernels", "cpu_threads"),
        *("output", "output_digest", "compile_s", "capture_s"),
        *("image_format", "image_quality", "image_bytes", "server_prompt_tokens", "run", "requests", "failed_requests"),
    }
)

#: What belongs to a cell, and is the same in all of its rows; `output_tokens` alone is a row's own, since a row that is
#: derived from a longer run has fewer.
CELL_COLUMNS = _columns(
    ("study", "string", "name of the study", "study"),
    ("subject", "string", "name of what was measured: a model, its weights, number format and device", "subject"),
    ("run", "integer", "which run of the study, from 0: each is a session of its own, or several", "run"),
    ("family", "string", "model family", "subject_config.family"),
    ("preset", "string", "architecture, where weights are random", "subject_config.preset"),
    ("weights", "string", "random, a folder or a hub id", "subject_config.weights"),
    ("revision", "string", "branch, tag or commit of a hub id, where the study names one", "subject_config.revision"),
    (
        "trust_remote_code",
        "boolean",
        "whether Python code of the checkpoint was run",
        "subject_config.trust_remote_code",
    ),
    (
        "random_weights",
        "boolean",
        "whether weights are random: then generated text means nothing",
        lambda record: record.subject_config.weights == "random",
    ),
    (
        "weights_seed",
        "integer",
        "seed of random weights; absent: a checkpoint's",
        lambda record: record.subject_config.seed if record.subject_config.weights == "random" else None,
    ),
    ("dtype", "string", "number format of the weights", "subject_config.dtype"),
    (
        "quantization",
        "string",
        "how the weights are packed, while loading or as they were saved; empty: not at all",
        "subject_config.quantization",
    ),
    ("attention", "string", "attention implementation", "subject_config.attention"),
    (
        "vision_attention_dtype",
        "string",
        "number format of the vision side's attention, where the study chose one: float32, weights (theirs)",
        "subject_config.vision_attention_dtype",
    ),
    ("backend", "string", "way of running the model", "subject_config.backend"),
    (
        "compile_mode",
        "string",
        "how hard fast kernels were looked for; absent: nothing was compiled",
        read.compile_mode,
    ),
    (
        "launches",
        "string",
        "how the host hands work over: each operator, fewer (several in a call), replayed (a whole pass), unseen",
        "execution.launches",
    ),
    ("kernels", "string", "what runs on the device: separate kernels, fused ones, or unseen", "execution.kernels"),
    ("cpu_threads", "integer", "threads of PyTorch, where the study says so", "subject_config.cpu_threads"),
    ("device_model", "string", "what the device is", "environment.device_model"),
    ("device", "string", "the device's name on its machine, such as cuda:0", "environment.device"),
    ("commit", "string", "commit of vlmeter that measured; +changes if files differed from it", "environment.commit"),
    (
        "cell_id",
        "string",
        "name of the cell within its subject; of a derived row, of the run it is made of",
        "cell.cell_id",
    ),
    ("experiment", "string", "the question that the cell is of, such as vision_tokens", "cell.experiment"),
    (
        "kind",
        "string",
        "what the cell is: prefill (one output token), generation, requests (many); prefill_otherwise: a prefill whose"
        " picture is sent in another format than the subject's own",
        read.kind,
    ),
    ("status", "string", "ok, oom (out of device memory) or unsupported; unless ok: one row, no arm", "status"),
    ("reason", "string", "why there are no samples, where there are none", "reason"),
    ("stop", "string", "length: forced to output_tokens; eos: natural end, output_tokens is a limit", "cell.stop"),
    ("max_crops", "integer", "limit of high-resolution crops in the study; absent: the model's own", "cell.max_crops"),
    (
        "forced_tiling",
        "boolean",
        "whether the tiling was imposed past the preprocessor's selection",
        lambda record: record.cell.force_tiling is not None,
    ),
    ("width_px", "integer", "width of the image; absent for photographs, whose manifest has it", read.size_px(0)),
    (
        "height_px",
        "integer",
        "height of the image; absent for photographs, whose manifest has it",
        read.size_px(1),
    ),
    ("tiling_h", "integer", "rows of high-resolution crops, for families with tilings", "cell.layout.tiling_h"),
    ("tiling_w", "integer", "columns of high-resolution crops, for families with tilings", "cell.layout.tiling_w"),
    ("crops", "integer", "crops that the vision encoder takes, the global one included; counted", "counted.crops"),
    ("vision_tokens", "integer", "prompt tokens that receive vision features; counted", "counted.vision_tokens"),
    (
        "special_tokens",
        "integer",
        "image tokens that receive none (start, end, rows); counted",
        "counted.special_tokens",
    ),
    ("text_tokens", "integer", "text tokens of the prompt, its first token included; counted", "counted.text_tokens"),
    (
        "prompt_tokens",
        "integer",
        "all tokens of the prompt; counted in the model's real inputs, as the others",
        "counted.prompt_tokens",
    ),
    (
        "server_prompt_tokens",
        "integer",
        "tokens of the prompt by a server's own count; empty without a server",
        read.of_request("server_prompt_tokens"),
    ),
    ("output_tokens", "integer", "tokens to generate (of a block the most); the first one comes out of the prefill"),
    ("generated_tokens", "integer", "tokens that were generated (median over rounds)", read.generated_tokens),
    (
        "output_digest",
        "string",
        "digest of the ids of the generated tokens; several, with a space between: rounds differed; absent: not told",
        lambda record: " ".join(record.output_digests) or None,
    ),
    (
        "image_index",
        "integer",
        "place of the photograph in the dataset's manifest, from 0; what else generations look at is numbered behind",
        read.image_index,
    ),
    (
        "image_id",
        "string",
        "the dataset's id of the photograph; else its path, or a made one's size",
        read.image_id,
    ),
    ("image_format", "string", "format in which the picture is sent to a server: png, jpeg", read.image_format),
    ("image_quality", "integer", "quality of a JPEG that is sent, 1 to 100", read.image_quality),
    ("image_bytes", "integer", "size of the picture as it is sent", read.image_bytes),
    ("question_id", "string", "the dataset's id of the question", read.of_request("question_id")),
    ("question", "string", "the question", read.of_request("question")),
    ("answers", "string", "the dataset's answers (not the model's), as a JSON list", read.answers),
)


#: What belongs to one row, and is handed over with it.
_ROW = _columns(
    (
        "arm",
        "string",
        "how it was run: inputs, plain (no marks), hooks (marks between phases), vision, busy; known_picture,"
        " known_prompt (by a server that has what was made of it); request (inputs and"
        " generation in one call, marks between phases), repeated (again and again, for the energy counter)",
    ),
    (
        "phase",
        "string",
        "what was timed: total; a phase of the inputs or the prefill; decode (all steps); decode_step (each"
        " step, by context); inter_token (all steps of all rounds); first_call (first use of the shape, in"
        " output-token cells with 8 output tokens); of arm busy: prefill, vision,"
        " decode_step (one, right behind the prompt); of a server with marks: device_decode (the steps of decode, by"
        " themselves); of arm request: longest_step as well, the longest decode step of"
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
)


#: What is made of a row's samples.
STATISTICS = (
    Column("median_ms", "float", "median", statistic=_median),
    Column(
        "low_ms",
        "float",
        "lower end of the median's 95 % interval, for samples in a row; absent below 5 samples",
        statistic=_end(0),
        least=MIN_SAMPLES_FOR_PERCENTILE[0.50],
    ),
    Column(
        "high_ms",
        "float",
        "upper end of the median's 95 % interval, for samples in a row; absent below 5 samples",
        statistic=_end(1),
        least=MIN_SAMPLES_FOR_PERCENTILE[0.50],
    ),
    Column("mean_ms", "float", "mean", statistic=lambda ordered, _: ordered.mean(axis=1)),
    Column("min_ms", "float", "smallest sample", statistic=lambda ordered, _: ordered[:, 0]),
    Column("max_ms", "float", "largest sample", statistic=lambda ordered, _: ordered[:, -1]),
    Column(
        "p95_ms",
        "float",
        "95th percentile; absent below 59 samples, which cannot bound it",
        statistic=_quantile(0.95),
        least=MIN_SAMPLES_FOR_PERCENTILE[0.95],
    ),
    Column(
        "p99_ms",
        "float",
        "99th percentile; absent below 299 samples, which cannot bound it",
        statistic=_quantile(0.99),
        least=MIN_SAMPLES_FOR_PERCENTILE[0.99],
    ),
)


_MORE = _columns(
    ("samples_ms", "list", "samples behind the statistics, in the order of rounds (or steps); parquet only"),
    (
        "output",
        "list",
        "ids of the generated tokens, of the last round; in the row of the whole pass with marks on the wall clock, "
        "parquet only",
    ),
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
    (
        "stop_reason",
        "string",
        "why sampling ended: precise, max_samples, time_cap; of a block all_requests",
        "stop_reason",
    ),
    (
        "warmup_settled",
        "boolean",
        "whether warm-up had settled in every arm before sampling began; absent: a block",
        read.warmup_settled,
    ),
    ("disturbances", "string", "what disturbed rounds of the cell, each reason once", read.disturbances),
    ("busy_reason", "string", "why there is no busy time, where there is none", "busy_reason"),
    (
        "drifted",
        "boolean",
        "whether the sentinel was away from its first value when the cell was measured",
        "drift.drifted",
    ),
    ("remeasured", "boolean", "whether the cell was measured a second time because of drift", "drift.remeasured"),
    ("drift_before_ms", "float", "the sentinel before the cell's batch (wall time, with marks)", "drift.before_ms"),
    ("drift_after_ms", "float", "the sentinel after the cell's batch", "drift.after_ms"),
    ("drift_reference_ms", "float", "the sentinel at the start of the session", "drift.reference_ms"),
    ("drift_noise_fraction", "float", "move of the sentinel that is within its own noise", "drift.noise_fraction"),
    ("session_id", "string", "the session that measured the cell", "session.session_id"),
    ("session_position", "integer", "place in the session's random order, from 0", "session.position"),
    ("session_started_at", "string", "start of the session, UTC", "session.started_at"),
    (
        "started_s",
        "float",
        "start of the cell's first round, since the session began",
        lambda record: record.rounds[0].started_s if record.rounds else None,
    ),
    (
        "cell_seconds",
        "float",
        "time that the cell took, warm-up included",
        lambda record: sum(record.seconds.values()) if record.seconds else None,
    ),
    (
        "compile_s",
        "float",
        "compiling before the first sample; absent: nothing was",
        read.seconds_of("compile"),
    ),
    ("capture_s", "float", "capturing graphs before the first sample; absent: none was", read.seconds_of("capture")),
) + tuple(map(_of_gauge, every_gauge()))


#: What belongs to one measured quantity.
QUANTITY_COLUMNS = _ROW + STATISTICS + _MORE


COLUMNS = CELL_COLUMNS + QUANTITY_COLUMNS + CONDITION_COLUMNS


PANDAS = {"string": "string", "integer": "Int64", "float": "float64", "boolean": "boolean", "list": "object"}


ARROW = {
    "string": pa.string(),
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "list": pa.list_(pa.float64()),
}


def data_dictionary() -> pd.DataFrame:
    """The schema as a table: name, dtype, unit, description of each column."""
    return pd.DataFrame(
        [(column.name, column.dtype, column.unit, column.description) for column in COLUMNS],
        columns=["name", "dtype", "unit", "description"],
    )
