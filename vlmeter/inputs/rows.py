"""Rows of a source: one photograph with a question, whatever it was read from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.resources.abc import Traversable
from typing import Any

from vlmeter.common.errors import UserError

#: Columns without which a record cannot be used; `answers` and the rest of the schema may be absent.
REQUIRED_COLUMNS = ("image_id", "question_id", "question", "image")


#: Records of a row group among which the choice is made before the next ones are looked at: bounds the memory
#: that a dataset of huge row groups takes (256 records of 200 kB are 50 MB).
BATCH_RECORDS = 256


@dataclass(frozen=True)
class Record:
    """A record that may be chosen: its identity, and a way to the rest of it, which is read only if it is."""

    image_id: int | str
    question_id: int | str
    read_row: Callable[[], Mapping[str, Any]]
    folder: Traversable | None = None  # where file names in the image column are to be found
    holds_image: bool = False  # whether the encoded image is in memory already

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"question_id {self.question_id}, image_id {self.image_id}"

    def without_image(self) -> Record:
        """The same record without the image that it may hold in memory."""
        if not self.holds_image:
            return self
        row = {name: value for name, value in self.read_row().items() if name != "image"}
        return replace(self, read_row=lambda: row, holds_image=False)


def check_columns(names: Iterable[str], *, label: str) -> None:
    """Raise UserError unless a source has every column that is needed; `label` names it."""
    names = list(names)
    for column in REQUIRED_COLUMNS:
        if column not in names:
            raise UserError(f"{label}: has no column {column}; it has: {', '.join(names)}")


def record_of(
    row: Mapping[str, Any],
    *,
    label: str,
    read_row: Callable[[], Mapping[str, Any]] | None = None,
    folder: Traversable | None = None,
    holds_image: bool = False,
) -> Record:
    """Make a record of a row's ids; without `read_row` the row is whole already."""
    for column in ("image_id", "question_id"):
        if not isinstance(row[column], int | str) or row[column] == "":
            raise UserError(
                f"{label}: question_id {row['question_id']!r}, image_id {row['image_id']!r}: {column} is not "
                "legal; legal: a whole number or text"
            )
    return Record(row["image_id"], row["question_id"], read_row or (lambda: row), folder, holds_image)


def first_line(error: Exception) -> str:
    """The first line of an error's text."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def rank_of(seed: int, identity: object) -> bytes:
    """Rank of a row in the order of the seed."""
    return hashlib.sha256(f"{seed}/{identity}".encode()).digest()


def seeded_order(items: int, *, seed: int, salt: str) -> list[int]:
    """Put places into the order of the seed."""
    return sorted(range(items), key=lambda item: rank_of(seed, f"{salt}/{item}"))
