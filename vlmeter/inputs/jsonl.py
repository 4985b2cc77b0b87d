"""Records from JSON Lines: UTF-8, one JSON object in a line, and nothing but a line feed ends a line.

Python's own idea of a line is wider: `str.splitlines` cuts at U+2028 and U+0085 too, which JSON allows inside text.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from importlib.resources.abc import Traversable
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.inputs.rows import SourceRow, check_columns, shown, source_row

#: What other encodings begin with. Four bytes first: UTF-32's begins with UTF-16's.
_OTHER_ENCODINGS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}

_ONE_RECORD = "legal: one whole record in each line"


def jsonl_rows(file: Traversable, folder: Traversable, *, label: str) -> Iterator[SourceRow]:
    """Yield the records of a file; a UserError names the line. Blank lines and a byte order mark are passed over."""
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                where = f"{label}: {file.name} line {number}"
                row = _record(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, where=where)
                if row is not None:
                    check_columns(row, label=where)
                    yield source_row(row, label=label, folder=folder)
    except OSError as error:
        raise UserError(f"{label}: {file.name} cannot be read: {error.strerror or error}") from None


def _record(line: bytes, *, where: str) -> dict[str, Any] | None:
    """Read the record in a line; None for a blank line."""
    line = line.strip()
    if not line:
        return None
    for mark, encoding in _OTHER_ENCODINGS.items():
        if line.startswith(mark):
            raise UserError(f"{where} is {encoding}; legal: UTF-8")
    try:
        row = json.loads(line.decode("utf-8"), object_pairs_hook=_with_unique_keys)
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8: {error.reason} at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where} is not JSON: {error.msg} at column {error.colno}; {_ONE_RECORD}") from None
    except ValueError as error:  # a key given twice, or a number of more digits than Python reads
        raise UserError(f"{where} is not a record: {error}") from None
    except RecursionError:
        raise UserError(f"{where} is not a record: it is nested too deeply") from None
    if not isinstance(row, dict):
        raise UserError(f"{where} is not a record, but {shown(row)}; {_ONE_RECORD}")
    return row


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {shown(twice)} is given twice")
    return made
