"""What the fields of a record may hold: the forms in which people keep a question, its answers and an image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.resources.abc import Traversable
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.inputs.manifest import Answer
from vlmeter.inputs.rows import is_whole_text, shown

#: The forms of an answer, in words.
_LEGAL_ANSWERS = "a list of text, or of {answer, answer_confidence, answer_id}"

_LEGAL_IMAGES = "legal: encoded bytes, a file name, or {bytes, path}"


class Undecodable(UserError):
    """An image that is empty, absent or broken: the one fault for which a record may be passed over."""


def question_of(row: Mapping[str, Any]) -> str:
    """The question of a record; raises UserError if there is none."""
    question = row["question"]
    if question is None or (isinstance(question, str) and not question.strip()):
        raise UserError("the record has no question")
    if not isinstance(question, str):
        raise UserError(f"the question is {shown(question)}; legal: text")
    _require_whole_text(question, "the question")
    return question


def answers_of(row: Mapping[str, Any]) -> tuple[Answer, ...]:
    """The answers of a record, none if it has none.

    VQA v2 has a list of mappings (which parquet may give as a mapping of lists), TextVQA a list of text, others one
    text or one number. Raises UserError for anything else.
    """
    given = row.get("answers")
    if given is None or given == "":
        return ()
    if isinstance(given, Mapping):
        given = _unzipped(given)
    elif _is_plain(given):
        given = [given]
    if not isinstance(given, list | tuple):
        raise UserError(f"answers are not {_LEGAL_ANSWERS}, but {shown(given)}")
    return tuple(_answer(answer) for answer in given)


def _unzipped(given: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Make a list of mappings of a mapping of lists; a single answer is a list of one."""
    if not all(isinstance(values, list | tuple) for values in given.values()):
        return [given]
    try:
        return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
    except ValueError:
        raise UserError(f"answers are not {_LEGAL_ANSWERS}, but lists of unlike lengths") from None


def _answer(given: object) -> Answer:
    fields = given if isinstance(given, Mapping) else {"answer": given}
    text = fields.get("answer")
    try:
        if not _is_plain(text):
            raise ValueError(text)
        answer = Answer.model_validate({**fields, "answer": str(text)})
    except ValueError:
        raise UserError(f"answers are not {_LEGAL_ANSWERS}: one of them is {shown(given)}") from None
    _require_whole_text(answer.answer, "an answer")
    return answer


def _is_plain(value: object) -> bool:
    """Whether a value is text or a number; true and false are words of a file format, not of a person."""
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str | int) and not isinstance(value, bool)


def _require_whole_text(text: str, what: str) -> None:
    if not is_whole_text(text):
        raise UserError(f"{what} holds one half of a character (a lone surrogate): {shown(text)}")


def image_bytes(value: object, folder: Traversable | None) -> bytes:
    """Get the encoded image out of the image column: bytes, a mapping of bytes and path, or a file name.

    Raises Undecodable where there is none or it is 0 bytes long, UserError for a file that cannot be read.
    """
    if isinstance(value, Mapping):
        if not {"bytes", "path"} & value.keys():
            raise UserError(f"the image is a mapping of {shown(', '.join(map(str, value)))}; {_LEGAL_IMAGES}")
        encoded = value.get("bytes")
        value = value.get("path") if encoded is None else encoded
        if encoded is not None and not isinstance(encoded, bytes):
            raise UserError(f"the image's bytes are a {type(encoded).__name__}; {_LEGAL_IMAGES}")
    if value is None or value == "":
        raise Undecodable("the record has no image")
    if isinstance(value, bytes):
        if not value:
            raise Undecodable("the record has no image: its bytes have length zero")
        return value
    if not isinstance(value, str):
        raise UserError(f"the image is a {type(value).__name__}; {_LEGAL_IMAGES}")
    if folder is None:
        raise UserError(f"the record has no image, only the file name {shown(value)}")
    try:
        encoded = folder.joinpath(value).read_bytes()
    except (OSError, ValueError) as error:  # a name with a NUL byte or half a character is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"image file {shown(value)} cannot be read: {reason}") from None
    if not encoded:
        raise Undecodable(f"the record has no image: file {shown(value)} is 0 bytes long")
    return encoded
