"""The command that predicts a request."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vlmeter.cli.app import Format, pair_of, say
from vlmeter.common.errors import UserError


def predict(
    study: Annotated[Path, typer.Option("--study", help="folder of a study's results, such as results/quickstart")],
    image: Annotated[str, typer.Option("--image", help="size of the image, such as 1920x1080", metavar="WIDTHxHEIGHT")],
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", min=1, help="tokens to generate, the first included")
    ],
    question_tokens: Annotated[
        int, typer.Option("--question-tokens", min=1, help="text tokens of the prompt, all of them")
    ] = 32,
    subject: Annotated[str | None, typer.Option("--subject", help="which subject, where the study has several")] = None,
    max_crops: Annotated[
        int | None, typer.Option("--max-crops", min=1, help="limit of high-resolution crops; default: the study's")
    ] = None,
    form: Format = "table",
) -> None:
    """Predict time to first token and total of a request that was not measured, with 95 % intervals.

    Made of the laws that the study's cells follow (docs/predicting.md). Refuses what is far from anything measured.
    """
    from vlmeter.analysis.prediction import choose_subject, in_words, prediction_rows
    from vlmeter.analysis.prediction import predict as predict_request
    from vlmeter.cli.rows import rows_as
    from vlmeter.table.files import read_table

    width_px, height_px = pair_of(image, "--image", example="640x480")
    if not (study / "table.parquet").exists():
        raise UserError(f"--study: {study} holds no table.parquet; legal: the folder of a study that has run")
    found = predict_request(
        choose_subject(read_table(study / "table.parquet"), subject),
        width_px=width_px,
        height_px=height_px,
        output_tokens=output_tokens,
        question_tokens=question_tokens,
        max_crops=max_crops,
    )
    if form == "json":
        say(json.dumps(found, indent=2))
        return
    rows = prediction_rows(found, form=form)
    say(rows_as(rows, list(rows[0]), form=form, title=in_words(found) if form == "table" else ""))
    if form == "table":
        for line in (
            *found["notes"],
            *(f"held out, {name}: {part['said']}" for name, part in found["held_out"].items()),
        ):
            say(f"- {line}")
