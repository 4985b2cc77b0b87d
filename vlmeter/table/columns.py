"""The columns of the table: name, type, unit, words. The report's data dictionary is made of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pandas as pd
import pyarrow as pa

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


#: Columns that tables of before did not have; of such a table they are read as empty.
ADDED_LATER = frozenset({"revision", "trust_remote_code"})

#: What belongs to a cell, and is the same in all of its rows.
CELL_COLUMNS = _columns(
    ("study", "string", "name of the study"),
    ("subject", "string", "name of what was measured: a model, its weights, number format and device"),
    ("family", "string", "model family"),
    ("preset", "string", "architecture, where weights are random"),
    ("weights", "string", "random, a folder or a hub id"),
    ("revision", "string", "branch, tag or commit of a hub id, where the study names one"),
    ("trust_remote_code", "boolean", "whether Python code of the checkpoint was run"),
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
