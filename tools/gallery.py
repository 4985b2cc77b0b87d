"""Make what the documentation shows of measured studies again, from their tables, as the workflow's rules do.

`python -m tools.gallery` writes answers, claims and report of `docs/gallery`, and every picture below `docs` that is
one of the registry's figures, of the table beside it. To be run when figures, answers, claims or the page have changed;
what was measured stays as it is.
"""

from __future__ import annotations

import io
import tempfile
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from vlmeter.analysis.answer_files import write_answers
from vlmeter.analysis.answers import all_answers, answers_of
from vlmeter.analysis.reading import subjects_of
from vlmeter.analysis.roofline import read_roofline
from vlmeter.claims.files import write_claims
from vlmeter.claims.registry import judge_all
from vlmeter.common.files import write_atomically
from vlmeter.figures import style
from vlmeter.figures.files import subject_tables, write_captions, write_figures
from vlmeter.figures.registry import ALL_FIGURES, SIDE_BY_SIDE, draw_or_explain, figures_asked
from vlmeter.report.page import ReportInputs, Reproduction, write
from vlmeter.report.pictures import FigureFiles
from vlmeter.study.loader import load_study
from vlmeter.table.files import read_table

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

#: Study of the gallery, and its subject.
STUDY, SUBJECT = "studies/molmo-7b-d-short.yaml", "molmo-7b-d"

#: SHA-256 of the lock file with which the gallery was measured.
LOCK_SHA256 = "189e077df3122425b731fc85916140bc0abeb761c92385fa51b9a66633caab01"

#: Folders below DOCS with pictures, and the table that they are drawn of.
TABLES = {
    "gallery": "table.parquet",
    "families": "table.parquet",
    "anomaly": "table.parquet",
    "served": "h200.parquet",
    "repeat/card-1": "table.parquet",
}

#: Folders below DOCS of which the answers are kept, besides the gallery's.
ANSWERED = ("repeat/card-1", "repeat/card-2")

#: Dots per inch of a picture: twice as many as on a page.
DPI = 200


def main() -> None:
    """Write all of it."""
    gallery(DOCS / "gallery")
    for name in ANSWERED:
        own = DOCS / name
        table, roofline = read_table(own / "table.parquet"), read_roofline(own / "roofline.parquet")
        write_answers(own / "answers.json", all_answers(table, roofline=roofline))
    for name, file in TABLES.items():
        pictures(DOCS / name, DOCS / name / file)


def gallery(folder: Path) -> None:
    """Write answers, claims and report of a study of one subject, from its tables."""
    table, roofline = read_table(folder / "table.parquet"), read_roofline(folder / "roofline.parquet")
    answers = answers_of(table, SUBJECT, roofline=roofline)
    write_answers(folder / "answers.json", {SUBJECT: answers})
    write_claims(folder / "claims.json", {SUBJECT: judge_all(table, SUBJECT, roofline=roofline, answers=answers)})
    names = figures_asked(set(table["kind"].dropna()), has_limits=True)
    with tempfile.TemporaryDirectory() as scratch:
        drawn = Path(scratch)
        table_of = subject_tables(table, roofline, SUBJECT)
        folders = dict.fromkeys(names, drawn)
        write_captions(write_figures(folders, table_of, answers=answers, forms=["svg"]), folders)
        inputs = ReportInputs(
            study=load_study(ROOT / STUDY).model_dump(mode="json", exclude_none=True),
            table=folder / "table.parquet",
            answers=folder / "answers.json",
            claims=folder / "claims.json",
            figures={SUBJECT: {name: FigureFiles(drawn / f"{name}.svg", drawn / f"{name}.txt") for name in names}},
            reproduction=Reproduction(f"make run STUDY={STUDY}", "requirements.lock", LOCK_SHA256),
            environments=folder / "environments.json",
            roofline=folder / "roofline.parquet",
            thumbnails=folder / "thumbnails.json",
        )
        write(inputs, folder / "report.html")


def pictures(folder: Path, path: Path) -> None:
    """Draw every picture of a folder that has a figure's name again, of the first subject that can fill it."""
    table = read_table(path)
    roofline = read_roofline(folder / "roofline.parquet") if (folder / "roofline.parquet").exists() else None
    answers = all_answers(table)
    for picture in sorted(folder.glob("*.png")):
        if picture.stem in SIDE_BY_SIDE:
            own = subject_tables(table, roofline, None)(picture.stem)
            figure, _ = draw_or_explain(own, picture.stem, answers=answers)
        elif picture.stem in ALL_FIGURES:
            figure = _of_first_subject(table, roofline, picture.stem)
        else:
            continue  # of a comparison, which is not of one table
        if figure is None:
            raise ValueError(f"{picture} cannot be drawn from {path}")
        save(figure, picture)


def _of_first_subject(table: pd.DataFrame, roofline: pd.DataFrame | None, name: str) -> Figure | None:
    for subject in subjects_of(table):
        own = subject_tables(table, roofline, subject)(name)
        figure, _ = draw_or_explain(own, name, answers=answers_of(own))
        if figure is not None:
            return figure
    return None


def save(figure: Figure, path: Path) -> None:
    """Write a picture with all of its colours; no palette is small enough to be without loss."""
    drawn, packed = io.BytesIO(), io.BytesIO()
    with style.styled():
        figure.savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        image.convert("RGB").save(packed, format="PNG", optimize=True, dpi=(DPI, DPI))
    write_atomically(path, packed.getvalue())


if __name__ == "__main__":
    main()
