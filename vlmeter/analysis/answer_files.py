"""Answers as a file, which whoever shows an answer reads."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlmeter.analysis.answers import Answer, Answers, all_answers
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.roofline import read_roofline
from vlmeter.analysis.spread import Mixed
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.numbers.medians import Estimate
from vlmeter.table.files import read_table

#: Version of the file's form.
VERSION = 1

#: What the file is called beside the table of a study.
NAME = "answers.json"


def write_answers(path: Path, answers: Mapping[str, Answers]) -> None:
    """Write the answers of every subject as JSON: what is not known has no value, but a reason and a remedy."""
    text = json.dumps(answers_as_data(answers), indent=1, ensure_ascii=False, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def answers_as_data(answers: Mapping[str, Answers]) -> dict[str, Any]:
    """Lay answers out as plain data."""
    subjects = {name: [answer_as_data(answer) for answer in own.values()] for name, own in answers.items()}
    return {"version": VERSION, "subjects": subjects}


def read_answers(path: Path) -> dict[str, Answers]:
    """Read answers back; raises UserError if the file is none of them."""
    try:
        return answers_from_data(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise UserError(f"answers {path} cannot be read ({error}); the workflow makes them again") from None


def answers_from_data(data: Any) -> dict[str, Answers]:
    """Read answers back from plain data; raises ValueError if it is none of them."""
    try:
        if data["version"] != VERSION:
            raise ValueError(f"it has version {data['version']}, and {VERSION} is read")
        return {
            subject: {answer["name"]: _from_data(answer) for answer in found}
            for subject, found in data["subjects"].items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(str(error)) from None


def answers_beside(table: Path) -> dict[str, Answers]:
    """Take the answers that lie beside a study's table, as everything that shows one does.

    Where there is no such file they are made of the table and its floors, as the workflow would make them. Raises
    UserError if a file cannot be read.
    """
    beside = table.with_name(NAME)
    if beside.exists():
        return read_answers(beside)
    floors = table.with_name("roofline.parquet")
    return all_answers(read_table(table), roofline=read_roofline(floors) if floors.exists() else None)


def answer_as_data(answer: Answer) -> dict[str, Any]:
    """Lay one answer out as plain data; what is not known has no value, but a reason and a remedy."""
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
        "mixed": [_mixed_as_data(one) for one in answer.mixed],
    }


def _mixed_as_data(one: Mixed) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in asdict(one).items()}


def _mixed(data: Any) -> Mixed:
    """Read a cell of two modes; an older file has its name alone."""
    if isinstance(data, str):
        return Mixed(data, math.nan, math.nan)
    low, high = (math.nan if data[name] is None else float(data[name]) for name in ("low_ms", "high_ms"))
    return Mixed(str(data["cell_id"]), low, high)


def _from_data(data: Mapping[str, Any]) -> Answer:
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
        mixed=tuple(_mixed(one) for one in data.get("mixed", ())),  # a file of before they were looked for has none
    )
