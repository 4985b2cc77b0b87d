"""The table as files: parquet with all samples, CSV without."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.table.columns import ADDED_LATER, ARROW, COLUMNS, PANDAS, Column
from vlmeter.table.kinds import kinds_of_experiments

#: What a column that was added later is in an older table, where it is not empty.
_BEFORE = {"run": 0}


def _to_arrow(table: pd.DataFrame, columns: Sequence[Column]) -> pa.Table:
    arrays = [
        pa.array(
            [None if values is None else values for values in table[column.name]]
            if column.dtype == "list"
            else table[column.name],
            type=ARROW[column.dtype],
            from_pandas=True,
        )
        for column in columns
    ]
    return pa.table(arrays, schema=pa.schema([(column.name, ARROW[column.dtype]) for column in columns]))


def write_table(table: pd.DataFrame, parquet_path: Path, csv_path: Path) -> None:
    """Write the table as parquet and, without its lists, as CSV; each is whole or absent."""
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


def has_column(path: Path, name: str) -> bool:
    """Whether a table has a column, which one of another version may lack; False for what is no table."""
    try:
        return name in pa.parquet.read_schema(path).names
    except (OSError, pa.ArrowInvalid):
        return False


def read_table(path: Path, *, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Read a parquet table back, in the types in which `build_table` makes it.

    With `columns` only those are read, and it does not matter which others the table has: so may one be read that an
    older or a newer vlmeter wrote. Raises UserError on a file that is not a table, or lacks a column that is asked
    for; without `columns` also if it has others than this vlmeter writes. Columns that were added since are empty in an
    older table, but for `kind`, which its experiment tells, and `run`, of which there was one.
    """
    wanted = [column.name for column in COLUMNS] if columns is None else list(columns)
    try:
        names = pa.parquet.read_schema(path).names
        told = ADDED_LATER if "experiment" in names else ADDED_LATER - {"kind"}
        later = [name for name in wanted if name in told and name not in names]
        wanted = [name for name in wanted if name not in later]
        if unlike := sorted(set(wanted) - set(names) if columns is not None else set(wanted) ^ set(names)):
            raise UserError(
                f"table {path} has other columns than this vlmeter writes ({unlike[0]}); make it again from the records"
            )
        found = pa.parquet.read_table(path, columns=[name for name in names if name in {*wanted, "experiment"}])
    except FileNotFoundError:
        raise UserError(f"table {path} does not exist") from None
    except UserError:
        raise
    except Exception as error:  # a damaged footer: errors of pyarrow, OSError, UnicodeDecodeError
        raise UserError(f"table {path} cannot be read ({_line(error)}); make it again from the records") from None
    if columns is None and names != wanted:
        raise UserError(
            f"table {path} has other columns than this vlmeter writes (the order of columns); make it again from the "
            "records"
        )
    ordered = [column.name for column in COLUMNS] if columns is None else list(columns)
    types: Mapping[str, Any] = {column.name: PANDAS[column.dtype] for column in COLUMNS if column.name in ordered}
    try:
        frame = found.to_pandas()
        for name in later:
            frame[name] = kinds_of_experiments(frame["experiment"]) if name == "kind" else _BEFORE.get(name)
        return pd.DataFrame(frame[ordered].astype(types))
    except Exception as error:  # damaged pages, text where numbers belong: errors of many kinds
        raise UserError(f"table {path} is damaged ({_line(error)}); make it again from the records") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
