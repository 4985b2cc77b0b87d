"""All that a report reads, laid out in a folder as the workflow does it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from vlmeter.analysis import reading
from vlmeter.analysis.answer_files import write_answers
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.roofline import COLUMNS, beside, write_roofline
from vlmeter.claims.files import write_claims
from vlmeter.claims.registry import judge_all
from vlmeter.claims.subjects import judge_side_by_side
from vlmeter.figures.registry import FIGURES, NOT_DRAWN, SIDE_BY_SIDE, draw_or_explain
from vlmeter.figures.style import save_as
from vlmeter.report.page import ReportInputs, Reproduction
from vlmeter.report.pictures import FigureFiles
from vlmeter.study.layout import ALL_SUBJECTS
from vlmeter.table.files import write_table

#: How many times as long as its floor everything takes in `roofline_of`.
PREFILL_TIMES, DECODE_TIMES = 4.0, 6.0

STUDY: Mapping[str, Any] = {"study": "small", "subjects": {"fake": {"family": "molmo", "preset": "nano"}}}

#: A figure that takes no time to draw.
PLAIN_SVG = '<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 20"><!-- drawn --><rect \
width="40" height="20" style="fill: #ffffff"/><rect width="9" height="9" style="fill: #0072B2"/></svg>'


def roofline_of(table: pd.DataFrame) -> pd.DataFrame:
    """A roofline table in which every prefill takes 4 times its floor, and decode 6 times."""
    rows = table[(table["status"] == "ok") & table["median_ms"].notna() & (table["arm"] != "inputs")].copy()
    rows = rows[rows["clock"].isin(["wall", "device", "busy"]) & (rows["phase"] != "first_call")]
    decode = rows["phase"] == "decode"
    rows["floor_ms"] = rows["median_ms"] / decode.map({True: DECODE_TIMES, False: PREFILL_TIMES})
    rows["floor_fraction"] = rows["floor_ms"] / rows["median_ms"]
    rows["bound"] = decode.map({True: "traffic", False: "arithmetic"})
    given = {"flops": 1e9, "weight_bytes": 1e6, "cache_bytes": 1e3, "mfu_fraction": 0.25, "mbu_fraction": 0.125}
    return rows.assign(**given)[[name for name, _, _ in COLUMNS]]


def inputs_of(
    folder: Path,
    table: pd.DataFrame,
    *,
    study: Mapping[str, Any] = STUDY,
    environment: Mapping[str, Any] | None = None,
    roofline: pd.DataFrame | None = None,
    draw: bool = False,
    captions: Mapping[str, str] | None = None,
) -> ReportInputs:
    """Write what a report reads; without `draw` every figure is the same small picture, with a caption of its own."""
    paths = {
        name: folder / name
        for name in ("table.parquet", "table.csv", "answers.json", "claims.json", "roofline.parquet")
    }
    write_table(table, paths["table.parquet"], paths["table.csv"])
    answers = {name: answers_of(table, name, roofline=roofline) for name in study["subjects"]}
    write_answers(paths["answers.json"], answers)
    judged = {name: judge_all(table, name, roofline=roofline, answers=answers[name]) for name in study["subjects"]}
    together = judge_side_by_side(table, roofline=roofline, answers=answers)
    write_claims(paths["claims.json"], {**judged, ALL_SUBJECTS: together})
    environments = folder / "environments.json"
    if environment is not None:
        found = {name: [{"cells": 3, "environment": environment}] for name in study["subjects"]}
        environments.write_text(json.dumps(found), encoding="utf-8")
    if roofline is not None:
        write_roofline(roofline, paths["roofline.parquet"])
    many = len(study["subjects"]) > 1
    with_floors = table if roofline is None else beside(table, roofline)
    return ReportInputs(
        study=study,
        table=paths["table.parquet"],
        answers=paths["answers.json"],
        claims=paths["claims.json"],
        figures={
            subject: _figures(
                folder / "figures" / subject,
                with_floors if draw else None,
                subject,
                captions or {},
                answers=answers if subject == ALL_SUBJECTS else answers[subject],
            )
            for subject in (*study["subjects"], *([ALL_SUBJECTS] if many else []))
        },
        reproduction=Reproduction("snakemake --configfile study.yaml", "requirements.lock", "ab" * 32),
        environments=environments if environment is not None else None,
        roofline=paths["roofline.parquet"] if roofline is not None else None,
    )


def _figures(
    folder: Path,
    table: pd.DataFrame | None,
    subject: str,
    captions: Mapping[str, str],
    *,
    answers: Mapping[str, Any],
) -> dict[str, FigureFiles]:
    """Every figure of a subject, drawn from the table if there is one."""
    names = SIDE_BY_SIDE if subject == ALL_SUBJECTS else FIGURES
    figures = {name: FigureFiles(folder / name / f"{name}.svg", folder / name / f"{name}.txt") for name in names}
    for name, files in figures.items():
        files.svg.parent.mkdir(parents=True, exist_ok=True)
        caption = captions.get(name, f"What {name} shows.")
        if table is not None:
            shown = table if subject == ALL_SUBJECTS else reading.of_subject(table, subject)
            figure, caption = draw_or_explain(shown, name, answers=answers)
            if figure is not None:
                save_as(figure, files.svg)
        elif not caption.startswith(NOT_DRAWN):
            files.svg.write_text(PLAIN_SVG, encoding="utf-8")
        files.caption.write_text(f"{caption}\n", encoding="utf-8")
    return figures
