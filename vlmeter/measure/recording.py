"""Say what was run as the record keeps it: with the names that the dataset has for pictures and questions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vlmeter.cells.cell import Cell
from vlmeter.inputs.pictures import Pictures
from vlmeter.records.parts import MeasuredRequest, SeenPicture


def named(cell: Cell, requests: Sequence[MeasuredRequest], pictures: Pictures) -> list[MeasuredRequest]:
    """Give the requests that were measured the dataset's ids, questions and answers.

    Of a cell of one request, also where it was never run.
    """
    if not requests and cell.kind != "requests":
        unseen = [SeenPicture() for _ in cell.request.pictures]
        requests = [MeasuredRequest(place=0, counted=None, pictures=unseen)]
    found = []
    for request in requests:
        asked = cell.requests[request.place]
        own = pictures.of(asked)
        shown = [
            seen.model_copy(update={"image_id": picture.image_id})
            for seen, picture in zip(request.pictures, own, strict=True)
        ]
        told: dict[str, Any]
        if asked.question is not None:
            told = {"question": asked.question}
        else:
            told = {"question_id": own[0].question_id, "question": own[0].question, "answers": list(own[0].answers)}
        found.append(request.model_copy(update={"pictures": shown, **told}))
    return found
