"""One side of a comparison: what a study's table says of its cells, and the one small file that keeps it.

A *run* is a study measured once: one session per subject, or several if it was interrupted. Results of a study with
`runs: 3` are three of them. A baseline holds one run or more, complete enough to be compared with what is measured
later, by another vlmeter, on another machine: samples of every quantity, what was measured, on what and with what, and
how far the sentinel moved meanwhile. So a baseline can be committed, and the results that it was made of may go.

Samples are kept unrounded and in their order. Of more than `MOST_SAMPLES` as many evenly spaced quantiles are kept,
with the number of samples behind them and how much each resembled the one before; median and standard error come out
the same.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlmeter import __version__
from vlmeter.analysis.conditions import sentinel, trust
from vlmeter.analysis.reading import subjects_of
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.numbers.intervals import NORMAL_REACH, Array
from vlmeter.numbers.medians import median_estimate, serial_correlation
from vlmeter.table.files import has_column, read_table
from vlmeter.table.kinds import REQUESTS
from vlmeter.table.quantities import RowKey, is_of_a_server, is_repeat

BASELINE_FORMAT: Literal["vlmeter-baseline"] = "vlmeter-baseline"

#: History: 1, the first; 2, with the answers of the study.
BASELINE_VERSION = 2

#: Versions that are read.
_READ_VERSIONS = (1, BASELINE_VERSION)

#: Samples of one quantity that are kept as they are; of more, so many quantiles.
MOST_SAMPLES = 400

#: Characters of what is wrong with a file that a message passes on.
_SAID_CHARACTERS = 300

#: What is read of a table: few columns, so that tables of other versions of vlmeter can be compared.
FACTS = (
    "family",
    "preset",
    "weights",
    "random_weights",
    "dtype",
    "attention",
    "backend",
    "device_model",
    "commit",
)
COUNTS = (
    "stop",
    "max_crops",
    "forced_tiling",
    "width_px",
    "height_px",
    "crops",
    "vision_tokens",
    "special_tokens",
    "text_tokens",
    "prompt_tokens",
    "output_tokens",
    "image_id",
    "question_id",
)
#: Facts that older tables do not have, and what stands for an empty one; nothing: what a subject without it has not.
LATER_FACTS = {"quantization": "none", "compile_mode": "", "vision_attention_dtype": "as the original"}
_COLUMNS = (
    *("study", "subject", "run", *FACTS, "cell_id", "experiment", "kind", "status", "reason", *COUNTS),
    *("arm", "phase", "clock", "source", "rounds", "samples", "disturbed_samples", "samples_ms"),
    *("warmup_settled", "disturbances", "drifted", "drift_before_ms", "drift_after_ms", "drift_reference_ms"),
    *("drift_noise_fraction", "session_id", "session_position"),
    *("image_index", "busy_reason", "median_ms", "low_ms", "high_ms", "mean_ms"),  # for the verdict on conditions
)


class _Kept(BaseModel):
    """Immutable data; unknown keys are refused, NaN is kept out."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


#: A duration: durations are compared by their ratio, so that none may be zero.
_Ms = Annotated[float, Field(gt=0)]


_Named = TypeVar("_Named", bound=_Kept)


def _with_names(part: _Named, names: Sequence[str]) -> _Named:
    """Give a part back if the names in it differ: of two by one name, the first would be lost without a word."""
    if len(set(names)) < len(names):
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)} stands there more than once")
    return part


class Repeats(_Kept):
    """Repeats of one duration of a cell."""

    arm: str
    phase: str
    clock: str
    median_ms: _Ms
    low_ms: _Ms | None = Field(None, description="of the median's 95 % interval; null below five samples")
    high_ms: _Ms | None = None
    count: int = Field(ge=1, description="samples taken, of which the statistics are made")
    serial_correlation: float | None = Field(
        None, description="rank correlation of each sample with the one before; null below five samples"
    )
    samples_ms: list[_Ms] = Field(
        min_length=1, description=f"in their order; of more than {MOST_SAMPLES}, as many evenly spaced quantiles"
    )

    @property
    def key(self) -> RowKey:
        """Arm, phase and clock."""
        return RowKey(self.arm, self.phase, self.clock)

    @model_validator(mode="after")
    def _count_is_that_of_the_samples(self) -> Self:
        if len(self.samples_ms) != min(self.count, MOST_SAMPLES):
            raise ValueError(f"count {self.count} with {len(self.samples_ms)} samples_ms")
        return self


class CellSamples(_Kept):
    """One cell: what it is, and what was measured of it."""

    cell_id: str
    experiment: str
    status: Literal["ok", "oom", "unsupported"]
    reason: str | None = None
    drifted: bool = False
    session_id: str
    counts: dict[str, str | int | bool]
    quantities: list[Repeats]

    @model_validator(mode="after")
    def _quantities_differ(self) -> Self:
        return _with_names(self, [" ".join(quantity.key) for quantity in self.quantities])


class Looks(_Kept):
    """The sentinel through one session: the same cell, measured again and again."""

    session_id: str
    medians_ms: list[_Ms] = Field(min_length=1)
    noise_fraction: float | None = Field(
        None, ge=0, description="standard error of one look, as a fraction; null: not known"
    )


class SubjectRun(_Kept):
    """All cells of one subject of a run."""

    subject: str
    facts: dict[str, str]
    conditions: str = Field(description="quiet, disturbed or unusable")
    condition_reasons: list[str]
    looks: list[Looks]
    cells: list[CellSamples]

    @property
    def by_id(self) -> dict[str, CellSamples]:
        """Cells by name."""
        return {cell.cell_id: cell for cell in self.cells}

    @property
    def is_served(self) -> bool:
        """Whether it is a server, which a request is uploaded to."""
        return any(is_of_a_server(quantity.key) for cell in self.cells for quantity in cell.quantities)

    @model_validator(mode="after")
    def _cells_differ(self) -> Self:
        return _with_names(self, [cell.cell_id for cell in self.cells])


class Run(_Kept):
    """A study, measured once."""

    study: str
    plan_digest: str = Field(description="SHA-256 of the names and counts of all cells")
    subjects: list[SubjectRun] = Field(min_length=1)

    @property
    def by_name(self) -> dict[str, SubjectRun]:
        """Subjects by name."""
        return {subject.subject: subject for subject in self.subjects}

    @model_validator(mode="after")
    def _subjects_differ(self) -> Self:
        return _with_names(self, [subject.subject for subject in self.subjects])


class Baseline(_Kept):
    """What a baseline's file holds.

    answers: those of the study that it was made of (`vlmeter.analysis.answer_files`); none of several results.
    """

    format: Literal["vlmeter-baseline"] = BASELINE_FORMAT
    version: int = BASELINE_VERSION
    vlmeter: str = __version__
    runs: list[Run] = Field(min_length=1)
    answers: dict[str, Any] | None = None


# ---------------------------------------------------------------------------------------------------------------------
# Reading


def read_runs(path: Path) -> list[Run]:
    """Read what is to be compared: a study's results folder, a table.parquet, or a baseline (.json or .json.gz).

    Returns every run of it. Raises UserError on anything else.
    """
    try:
        is_folder, is_there = path.is_dir(), path.exists()
    except OSError as error:  # a name that is too long, a folder that may not be entered
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if is_folder:
        table = path / "table.parquet"
        if not table.exists():
            raise UserError(
                f"{path} has no table.parquet, so it is not the results folder of a measured study (results/<study>)"
            )
        return _runs_of(table)
    if not is_there:
        raise UserError(f"{path} does not exist; legal: a results folder, a table.parquet, a baseline")
    if path.suffix == ".parquet":
        return _runs_of(path)
    if path.name.endswith((".json", ".json.gz")):
        return read_baseline(path).runs
    raise UserError(
        f"{path} cannot be compared; legal: a results folder, a table.parquet, a baseline (.json, .json.gz)"
    )


def _runs_of(path: Path) -> list[Run]:
    table = read_table(path, columns=[*_COLUMNS, *(name for name in LATER_FACTS if has_column(path, name))])
    if table.empty:
        raise UserError(f"table {path} holds no cell, so there is nothing to compare")
    try:
        environments = _environments(path.parent)
        return [run_of_table(rows, environments=environments) for _, rows in table.groupby("run", sort=True)]
    except (ArithmeticError, TypeError, ValueError) as error:  # a duration that is none, a cell without a status
        raise UserError(f"table {path} is damaged ({_said(error)}); make it again from the records") from None


def _said(error: Exception) -> str:
    """What is wrong, in a line: where in the data, if that is known."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        text = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg'].removeprefix('Value error, ')}"
    else:
        text = str(error) or type(error).__name__
    line = " ".join(text.removeprefix(": ").split())
    return line if len(line) <= _SAID_CHARACTERS else f"{line[: _SAID_CHARACTERS - 3]}..."


def _environments(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    """The environment of most cells of each subject, if it is told beside the table."""
    try:
        told = json.loads((folder / "environments.json").read_bytes())
        return {
            subject: max(entries, key=lambda entry: entry["cells"])["environment"] for subject, entries in told.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # it only serves to name what differs


def run_of_table(table: pd.DataFrame, *, environments: Mapping[str, Mapping[str, Any]] | None = None) -> Run:
    """Take out of the rows of one run what a comparison needs.

    `environments` adds each subject's versions to its facts.
    """
    subjects = [_subject_run(table[table["subject"] == name], (environments or {}).get(name, {}))
                for name in subjects_of(table)]  # fmt: skip
    study = str(table["study"].iloc[0]) if len(table) else ""
    return Run(study=study, plan_digest=plan_digest(subjects), subjects=subjects)


def _subject_run(rows: pd.DataFrame, environment: Mapping[str, Any]) -> SubjectRun:
    facts = {name: _joined(rows[name]) for name in FACTS}
    facts |= {name: _joined(rows[name]) or empty for name, empty in LATER_FACTS.items() if name in rows}
    for name in ("vlmeter", "driver", "cuda", "platform"):
        facts[name] = str(environment.get(name) or "")
    versions = environment.get("versions")
    facts |= {name: str(value) for name, value in versions.items()} if isinstance(versions, Mapping) else {}
    judged = trust(rows)
    repeated = rows[rows["kind"] != REQUESTS]  # of many requests each is another one, so that nothing is repeated
    return SubjectRun(
        subject=str(rows["subject"].iloc[0]),
        facts={name: value for name, value in facts.items() if value},
        conditions=judged.verdict,
        condition_reasons=list(judged.reasons),
        looks=_looks(rows),
        cells=[_cell(cell) for _, cell in repeated.groupby("cell_id", sort=True)],
    )


def _joined(values: pd.Series[Any]) -> str:
    return ", ".join(sorted(str(value) for value in values.dropna().unique()))


def _looks(rows: pd.DataFrame) -> list[Looks]:
    visits = sentinel(rows)
    found = []
    for session, seen in visits.groupby("session_id", sort=True):
        told = rows.loc[rows["session_id"] == session, "drift_noise_fraction"].dropna().unique().astype(np.float64)
        # it holds the half widths of two 95 % intervals, of the look and of the first one
        noise = math.sqrt(float(np.mean(told**2))) / 2 / NORMAL_REACH if len(told) else None
        found.append(Looks(session_id=str(session), medians_ms=seen["median_ms"].tolist(), noise_fraction=noise))
    return found


def _cell(rows: pd.DataFrame) -> CellSamples:
    measured = rows[rows["source"] == "measured"]
    first = (measured if len(measured) else rows).iloc[0]
    return CellSamples(
        cell_id=str(first["cell_id"]),
        experiment=str(first["experiment"]),
        status=str(first["status"]),
        reason=None if pd.isna(first["reason"]) else str(first["reason"]),
        drifted=bool(first["drifted"]) if not pd.isna(first["drifted"]) else False,
        session_id=str(first["session_id"]),
        counts={name: _plain(first[name]) for name in COUNTS if not pd.isna(first[name])},
        quantities=[
            repeats_of(key, np.asarray(samples, dtype=np.float64))
            for *parts, samples in zip(*(measured[name] for name in (*RowKey._fields, "samples_ms")), strict=True)
            if samples is not None
            and len(samples)
            and min(samples) != 0  # of zero there is no ratio
            and is_repeat(key := RowKey(*map(str, parts)))
        ],
    )


def _plain(value: Any) -> str | int | bool:
    if isinstance(value, str):
        return value
    return bool(value) if isinstance(value, (bool, np.bool_)) else int(value)


def repeats_of(key: RowKey, samples: Array) -> Repeats:
    """Describe repeats of one duration; samples in ms, in the order in which they were taken."""
    estimate = median_estimate(samples.tolist(), in_order=True)
    serial = serial_correlation(samples.tolist())
    kept = samples
    if len(samples) > MOST_SAMPLES:
        kept = np.quantile(samples, (np.arange(MOST_SAMPLES) + 0.5) / MOST_SAMPLES)
    return Repeats(
        **key._asdict(),
        median_ms=estimate.value,
        low_ms=None if math.isnan(estimate.low) else estimate.low,
        high_ms=None if math.isnan(estimate.high) else estimate.high,
        count=len(samples),
        serial_correlation=None if math.isnan(serial) else serial,
        samples_ms=kept.tolist(),
    )


def plan_digest(subjects: Iterable[SubjectRun]) -> str:
    """Digest of what was measured, whatever came out: names and counts of the cells of all subjects."""
    what = [[s.subject, [[cell.cell_id, sorted(cell.counts.items())] for cell in s.cells]] for s in subjects]
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# The file


def write_baseline(path: Path, runs: Sequence[Run], *, answers: Mapping[str, Any] | None = None) -> int:
    """Write a baseline, compressed if the name ends with .gz; returns its size in bytes. Same runs, same bytes.

    answers: those of the study, as plain data, if the runs are of one study.
    """
    if not path.name.endswith((".json", ".json.gz")):
        raise UserError(f"a baseline's name ends with .json or .json.gz, which {path} does not")
    kept = Baseline(runs=list(runs)).model_dump(mode="json", exclude_none=True)
    kept |= {} if answers is None else {"answers": answers}  # where None stands for what is not known
    text = json.dumps(kept, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n"
    data = text.encode()
    if path.suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    write_atomically(path, data)
    return len(data)


def read_baseline(path: Path) -> Baseline:
    """Read and check a baseline; raises UserError on a file that is none, or is of another version."""
    try:
        data = path.read_bytes()
        text = gzip.decompress(data) if path.suffix == ".gz" else data
        content = json.loads(text)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise UserError(f"baseline {path} cannot be read ({_said(error)})") from None
    if not isinstance(content, dict) or content.get("format") != BASELINE_FORMAT:
        raise UserError(f"{path} is not a baseline; `vlmeter baseline RESULTS -o {path.name}` makes one")
    version = content.get("version")
    if version not in _READ_VERSIONS or isinstance(version, bool):  # true is 1 to Python
        raise UserError(
            f"baseline {path} has version {json.dumps(version)[:40]}, and this vlmeter reads "
            f"{' and '.join(map(str, _READ_VERSIONS))}; make it again"
        )
    try:
        return Baseline.model_validate(content)
    except ValidationError as error:
        raise UserError(f"baseline {path} is damaged at {_said(error)}; make it again") from None
