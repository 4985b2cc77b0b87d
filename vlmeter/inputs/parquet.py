"""Records from parquet files, of which only the ids are read until a record is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.inputs.rows import USED_COLUMNS, SourceRow, check_columns, first_line, source_row


def parquet_rows(file: Path, folder: Path, *, label: str) -> Iterator[SourceRow]:
    """Read the ids alone; the rest, images above all, is read row group by row group for chosen records."""
    import pyarrow.parquet as pq

    with _reading(f"{label}: {file} is not a whole parquet file"), pq.ParquetFile(file) as parquet:
        check_columns(parquet.schema_arrow.names, label=f"{label}: {file.name}")
        groups = [
            parquet.read_row_group(group, columns=["image_id", "question_id"]).to_pylist()
            for group in range(parquet.num_row_groups)
        ]
    for group, rows in enumerate(groups):
        for offset, row in enumerate(rows):
            yield source_row(row, label=label, read_row=partial(_parquet_row, file, group, offset), folder=folder)


def _parquet_row(file: Path, group: int, offset: int) -> Mapping[str, Any]:
    import pyarrow.parquet as pq

    with _reading(f"cannot be read from {file}"), pq.ParquetFile(file) as parquet:
        wanted = [name for name in USED_COLUMNS if name in parquet.schema_arrow.names]
        row: dict[str, Any] = parquet.read_row_group(group, columns=wanted).slice(offset, 1).to_pylist()[0]
    return row


@contextmanager
def _reading(complaint: str) -> Iterator[None]:
    """Turn what pyarrow raises over damaged bytes (errors of its own, OSError, UnicodeDecodeError) into a sentence."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{complaint}: {first_line(error)}") from None
