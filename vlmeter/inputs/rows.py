"""Rows of a source: one photograph with a question, whatever it was read from.

To a user they are the dataset's records. A row knows its ids, and how to get the rest of it, which is read only if the
row is chosen: the rest holds the image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from typing import Any

from vlmeter.common.errors import UserError

#: Columns without which a record cannot be used; `answers` and the rest of the schema may be absent.
REQUIRED_COLUMNS = ("image_id", "question_id", "question", "image")

#: Columns that are read of a chosen record.
USED_COLUMNS = (*REQUIRED_COLUMNS, "answers")

#: Records of a row group among which the choice is made before the next ones are looked at: bounds the memory
#: that a dataset of huge row groups takes (256 records of 200 kB are 50 MB).
BATCH_RECORDS = 256

#: Characters of a value that a message shows: a base64 image in the wrong column has a million.
_SHOWN_CHARACTERS = 80


@dataclass(frozen=True)
class SourceRow:
    """A record that may be chosen: its identity, and a way to the rest of it, which is read only if it is."""

    image_id: int | str
    question_id: int | str
    read_row: Callable[[], Mapping[str, Any]]
    folder: Traversable | None = None  # where file names in the image column are to be found
    holds_image: bool = False  # whether the encoded image is in memory already

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"question_id {shown(self.question_id)}, image_id {shown(self.image_id)}"

    def without_image(self) -> SourceRow:
        """The same record without the image that it may hold in memory."""
        if not self.holds_image:
            return self
        row = {name: value for name, value in self.read_row().items() if name != "image"}
        return replace(self, read_row=lambda: row, holds_image=False)


def check_columns(names: Iterable[str], *, label: str) -> None:
    """Raise UserError unless a source has every column that is needed, and once; `label` names it."""
    names = list(names)
    for column in USED_COLUMNS:
        if column in REQUIRED_COLUMNS and column not in names:
            raise UserError(f"{label}: has no column {column}; it has: {shown(', '.join(names))}")
        if names.count(column) > 1:
            raise UserError(f"{label}: has {names.count(column)} columns {column}")


def source_row(
    row: Mapping[str, Any],
    *,
    label: str,
    read_row: Callable[[], Mapping[str, Any]] | None = None,
    folder: Traversable | None = None,
    holds_image: bool = False,
) -> SourceRow:
    """Make a source row of a record's ids; without `read_row` the record is whole already.

    Raises UserError for ids that are neither whole numbers nor text.
    """
    for column in ("image_id", "question_id"):
        identity = row[column]
        legal = isinstance(identity, int | str) and not isinstance(identity, bool) and identity != ""
        if not legal or not is_whole_text(str(identity)):
            raise UserError(
                f"{label}: question_id {shown(row['question_id'])}, image_id {shown(row['image_id'])}: {column} is "
                "not legal; legal: a whole number or text"
            )
    return SourceRow(row["image_id"], row["question_id"], read_row or (lambda: row), folder, holds_image)


def is_whole_text(text: str) -> bool:
    """Whether text can be written as UTF-8: JSON may hold one half of a character (a lone surrogate), which cannot."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def shown(value: object) -> str:
    """A value as a message shows it, in one line and cut: text as it is, in quotes if it has what does not print."""
    text = value if isinstance(value, str) and value.strip() and value.isprintable() else repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[: _SHOWN_CHARACTERS - 3]}..."


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def rank_of(seed: int, identity: object) -> bytes:
    """Rank of a row in the order of the seed."""
    return hashlib.sha256(f"{seed}/{identity}".encode()).digest()


def seeded_order(items: int, *, seed: int, salt: str) -> list[int]:
    """Put places into the order of the seed."""
    return sorted(range(items), key=lambda item: rank_of(seed, f"{salt}/{item}"))
