"""Records of photographs with questions, read from files on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import chain
from pathlib import Path
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.inputs.hub import hub_batches
from vlmeter.inputs.rows import REQUIRED_COLUMNS, Record, check_columns, first_line, record_of
from vlmeter.study.dataset_source import DatasetSource, EmbeddedSource, HubSource, LocalSource


def describe(source: DatasetSource) -> str:
    """Name a source the way messages do."""
    match source:
        case EmbeddedSource():
            return "embedded sample"
        case HubSource():
            return f"dataset {source.name} ({source.split})"
        case LocalSource():
            return f"dataset {source.path}"


def record_batches(source: DatasetSource) -> tuple[Iterable[Iterable[Record]], str | None]:
    """Give a source's records in batches, and the commit they are read at if there is such a thing."""
    label = describe(source)
    match source:
        case EmbeddedSource():
            sample = resources.files("vlmeter").joinpath("data", "sample")
            return [_jsonl_records(sample.joinpath("records.jsonl"), sample, label=label)], None
        case LocalSource():
            files = _local_files(Path(source.path), label=label)
            readers = (_LOCAL_READERS[file.suffix](file, file.parent, label=label) for file in files)
            return [chain.from_iterable(readers)], None  # one batch: the choice is among all files together
        case HubSource():
            return hub_batches(source, label=label)


def _jsonl_records(file: Traversable, folder: Traversable, *, label: str) -> Iterator[Record]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{label}: {file.name} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{label}: {file.name} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{label}: {file.name} line {number} is not a record, but {line[:40]}")
        check_columns(row, label=f"{label}: {file.name} line {number}")
        yield record_of(row, label=label, folder=folder)


def _local_files(path: Path, *, label: str) -> list[Path]:
    if any(character in str(path) for character in "*?[") and not path.exists():
        candidates = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        none_found = "matches no"
    elif path.is_dir():
        candidates = list(path.rglob("*"))
        none_found = "holds no"
    elif path.exists():
        candidates = [path]
        none_found = "is not a"
    else:
        raise UserError(f"{label}: dataset.path {path} does not exist")
    files = sorted(file for file in candidates if file.suffix in _LOCAL_READERS and file.is_file())
    if not files:
        raise UserError(f"{label}: dataset.path {path} {none_found} .parquet or .jsonl file")
    return files


def _parquet_records(file: Path, folder: Path, *, label: str) -> Iterator[Record]:
    """Read the ids alone; the rest, images above all, is read row group by row group for chosen records."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            check_columns(parquet.schema_arrow.names, label=f"{label}: {file.name}")
            groups = [
                parquet.read_row_group(group, columns=["image_id", "question_id"]).to_pylist()
                for group in range(parquet.num_row_groups)
            ]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{label}: {file} is not a whole parquet file: {first_line(error)}") from None
    for group, rows in enumerate(groups):
        for offset, row in enumerate(rows):
            read_row = partial(_parquet_row, file, group, offset)
            yield record_of(row, label=label, read_row=read_row, folder=folder)


def _parquet_row(file: Path, group: int, offset: int) -> Mapping[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            wanted = [name for name in (*REQUIRED_COLUMNS, "answers") if name in parquet.schema_arrow.names]
            row: dict[str, Any] = parquet.read_row_group(group, columns=wanted).slice(offset, 1).to_pylist()[0]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot be read from {file}: {first_line(error)}") from None
    return row


_LOCAL_READERS: dict[str, Callable[..., Iterator[Record]]] = {
    ".parquet": _parquet_records,
    ".jsonl": _jsonl_records,
}
