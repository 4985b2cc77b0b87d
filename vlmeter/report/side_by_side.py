"""Several subjects as the page shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vlmeter.analysis import subjects as compared_subjects
from vlmeter.analysis.roofline import beside
from vlmeter.claims.base import Claim
from vlmeter.figures.registry import SIDE_BY_SIDE
from vlmeter.report.grids import Grid, Value, count_value, measured_value, word_value
from vlmeter.report.pictures import FigureFiles, FigureView, figure_views
from vlmeter.report.software import software_grids
from vlmeter.report.subjects import SubjectView, claim_view
from vlmeter.study.layout import ALL_SUBJECTS
from vlmeter.table.quantities import FIRST_TOKEN


@dataclass(frozen=True)
class SideBySideView:
    """What the page shows of all subjects together."""

    name: str
    figures: Sequence[FigureView]
    images: Grid
    software: Sequence[Grid]
    claims: Sequence[Mapping[str, Any]]
    verdicts: Grid
    missing: Mapping[str, str]


def side_by_side_view(
    table: pd.DataFrame,
    subjects: Sequence[SubjectView],
    *,
    figures: Mapping[str, FigureFiles],
    claims: Sequence[Claim],
    roofline: pd.DataFrame | None,
) -> SideBySideView:
    """Everything that the page shows of all subjects together."""
    drawn = figure_views(figures, SIDE_BY_SIDE)
    measured = set(table.loc[table["arm"].notna(), "subject"])
    return SideBySideView(
        name=ALL_SUBJECTS,
        figures=drawn,
        images=_images_grid(compared_subjects.shared_images(table)),
        software=software_grids(table if roofline is None else beside(table, roofline)),
        claims=[claim_view(claim, drawn) for claim in claims],
        verdicts=_verdicts_grid(subjects),
        missing={
            **{subject.name: "it was not measured" for subject in subjects if subject.name not in measured},
            **compared_subjects.absent(table, measured),
        },
    )


def _images_grid(shared: pd.DataFrame) -> Grid:
    columns = [
        ("image", "its size, or the dataset's id of the photograph"),
        ("subject", "its name in the study"),
        ("crops", "pieces of the image that the vision encoder sees"),
        ("vision tokens", "prompt tokens that carry the image; counted in the model's input"),
        ("prompt tokens", "all tokens of the prompt; counted in the model's input"),
        (FIRST_TOKEN.label, "preprocessing, copy to the device and prefill"),
    ]
    rows = [
        [
            Value(row["image"], float(row["pixels"])) if not pd.isna(row["pixels"]) else word_value(row["image"]),
            word_value(row["subject"]),
            *(count_value(row[count]) for count in ("crops", "vision_tokens", "prompt_tokens")),
            measured_value(row, FIRST_TOKEN),
        ]
        for row in shared.to_dict("records")
    ]
    return Grid("images", "The same image in each subject: median (95 % interval)", columns, rows).where_cut()


def _verdicts_grid(subjects: Sequence[SubjectView]) -> Grid:
    """Every claim that is judged for each subject by itself, and what came out for each."""
    claims = {claim["name"]: claim["claim"] for subject in subjects for claim in subject.claims}
    verdicts = {subject.name: {claim["name"]: claim["verdict"] for claim in subject.claims} for subject in subjects}
    columns = [("claim", "what was to be judged; the statements are below, subject by subject")]
    columns += [(subject.name, "verdict for this subject") for subject in subjects]
    rows = [
        [word_value(claim), *(word_value(verdicts[subject.name].get(name)) for subject in subjects)]
        for name, claim in claims.items()
    ]
    return Grid("verdicts", "Claims about one subject, side by side", columns, rows)
