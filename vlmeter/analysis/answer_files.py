"""Answers as a file, which whoever shows an answer reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmeter.analysis.answers import Answer, Answers
from vlmeter.analysis.reading import Unknown
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.numbers.medians import Estimate

#: Version of the file's form.
VERSION = 1


def write_answers(path: Path, answers: Mapping[str, Answers]) -> None:
    """Write the answers of every subject as JSON: what is not known has no value, but a reason and a remedy."""
    subjects = {name: [_as_json(answer) for answer in own.values()] for name, own in answers.items()}
    text = json.dumps({"version": VERSION, "subjects": subjects}, indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def read_answers(path: Path) -> dict[str, Answers]:
    """Read answers back; raises UserError if the file is none of them."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["version"] != VERSION:
            raise ValueError(f"it has version {data['version']}, and {VERSION} is read")
        return {
            subject: {answer["name"]: _from_json(answer) for answer in found}
            for subject, found in data["subjects"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"answers {path} cannot be read ({error}); the workflow makes them again") from None


def _as_json(answer: Answer) -> dict[str, Any]:
    found = answer.found
    known = (found.value, found.low, found.high) if isinstance(found, Estimate) else (math.nan,) * 3
    value, low, high = (None if math.isnan(number) else number for number in known)
    return {
        "name": answer.name,
        "question": answer.question,
        "value": value,
        "low": low,
        "high": high,
        "unit": answer.unit,
        "not_known": {"why": found.reason, "remedy": found.remedy} if isinstance(found, Unknown) else None,
        "quantity": answer.quantity,
        "clock": answer.clock,
        "topic": answer.topic,
        "source": answer.source,
        "cells": list(answer.cells),
        "note": answer.note,
    }


def _from_json(data: Mapping[str, Any]) -> Answer:
    why = data["not_known"]
    numbers = (math.nan if data[name] is None else float(data[name]) for name in ("value", "low", "high"))
    return Answer(
        name=data["name"],
        question=data["question"],
        found=Estimate(*numbers) if why is None else Unknown(why["why"], why["remedy"]),
        unit=data["unit"],
        quantity=data["quantity"],
        clock=data["clock"],
        topic=data["topic"],
        source=data["source"],
        cells=tuple(data["cells"]),
        note=data["note"],
    )
