"""Figures as files: one process for all of a subject, a caption for each, nothing drawn where there is nothing."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from tests.support.fakes import FakeRunner
from tests.support.roofline import with_floors
from tests.support.tables import LATENCY, CpuLikeRunner, table_of
from vlmeter.analysis.answers import answers_of
from vlmeter.figures.files import not_drawn, remove_leftovers, subject_tables, write_captions, write_figures
from vlmeter.figures.registry import ALL_FIGURES, FIGURES, IN_PRINT, WITH_CAPTIONS, figures_asked, get_figure
from vlmeter.table import kinds


@pytest.fixture(scope="module")
def one_cell(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("one")
    return table_of(folder, runner=CpuLikeRunner(), vision={"tilings": ["2x2"]}, output=None)


def test_every_figure_is_asked_for_by_a_study_that_has_everything() -> None:
    everything = {kinds.PREFILL, kinds.GENERATION, kinds.REQUESTS}
    assert figures_asked(everything, has_limits=True) == list(FIGURES)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"output": None}, kinds.PREFILL),
        ({"vision": None}, kinds.GENERATION),
        ({"vision": None, "output": None, "latency": LATENCY}, kinds.REQUESTS),
    ],
)
def test_what_a_study_does_not_ask_for_could_not_be_drawn_of_it(options: dict, kind: str, tmp_path: Path) -> None:  # type: ignore[type-arg]
    """The list that is made before anything is measured leaves out nothing that there would have been."""
    table = with_floors(table_of(tmp_path, runner=FakeRunner(), **options))
    asked = figures_asked({kind}, has_limits=True)
    for name in set(FIGURES) - set(asked):
        assert get_figure(name).needs(table) is not None, name
    assert any(get_figure(name).needs(table) is None for name in asked)


def test_without_limits_no_figure_of_floors_is_asked_for() -> None:
    asked = figures_asked({kinds.PREFILL}, has_limits=False)
    assert not {"limits", "flops_latency", "flops_or_roofline"} & set(asked)
    assert "first_token_by_size" in asked


def test_what_cannot_be_drawn_says_why_in_a_line_and_leaves_no_picture(one_cell: pd.DataFrame, tmp_path: Path) -> None:
    names = ["vision_by_tokens", "three_clocks"]
    folders = {name: tmp_path / "figures" / name for name in names}
    table_for, answers = subject_tables(one_cell, None, "fake"), answers_of(one_cell)
    captions = write_figures(folders, table_for, answers=answers, forms=["svg"])
    write_captions(captions, folders)
    printed = dict.fromkeys(names, tmp_path / "prints")
    assert write_figures(printed, table_for, answers=answers, forms=IN_PRINT) == captions
    held = {path.name: path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()}
    drawn = {f"vision_by_tokens.{form}" for form in (*WITH_CAPTIONS, *IN_PRINT)}
    assert set(held) == {*drawn, "three_clocks.txt"}
    assert all(held[f"vision_by_tokens.{form}"] > 1000 for form in ("svg", *IN_PRINT))
    (line,) = (folders["three_clocks"] / "three_clocks.txt").read_text().splitlines()
    assert line == captions["three_clocks"]
    assert line.startswith("Not drawn: ")
    assert not_drawn(captions) == "not drawn, their captions say why: three_clocks"
    assert not_drawn({"vision_by_tokens": "It rises."}) == ""


def test_a_caption_is_kept_as_text_and_as_markup_that_says_the_same(tmp_path: Path) -> None:
    write_captions({"one": "a_b * `c` | {{ d }}."}, {"one": tmp_path}, start="Subject my_model. ")
    assert (tmp_path / "one.txt").read_text() == "a_b * `c` | {{ d }}.\n"
    marked = (tmp_path / "one.rst").read_text()
    assert marked == "{% raw %}Subject my\\_model. a\\_b \\* \\`c\\` \\| {{ d }}.{% endraw %}\n"


def test_where_nothing_can_be_drawn_the_folder_for_it_is_there(one_cell: pd.DataFrame, tmp_path: Path) -> None:
    """A workflow that declared the folder wants it."""
    folder = tmp_path / "prints"
    write_figures({"three_clocks": folder}, subject_tables(one_cell, None, "fake"), answers=None, forms=IN_PRINT)
    assert folder.is_dir()
    assert not list(folder.iterdir())


def test_figures_that_are_no_longer_drawn_are_removed_and_nothing_else(tmp_path: Path) -> None:
    """Of a study that asked for more, and of a version that kept all files of a subject in one folder."""
    kept = ["decode_log/decode_log.svg", "mine.svg", "of_mine/decode_log.svg", "decode_log.md"]
    gone = ["limits/limits.svg", *(f"{name}.{form}" for name in ("decode_log", "limits") for form in ("svg", "png"))]
    for name in (*kept, *gone):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, ["decode_log"])
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(kept)
    assert not (tmp_path / "limits").exists()


def test_a_figure_of_floors_has_them_beside_its_table(one_cell: pd.DataFrame) -> None:
    from tests.support.reports import roofline_of

    table_for = subject_tables(one_cell, roofline_of(one_cell), "fake")
    assert "floor_ms" in table_for("limits")
    assert "floor_ms" not in table_for("two_methods")


def test_pictures_of_the_documentation_keep_their_colours_and_can_be_made_again() -> None:
    """Reduced to a palette, two series had one colour."""
    from tools.gallery import DOCS, TABLES

    found = sorted(DOCS.rglob("*.png"))
    assert len(found) > 10
    for path in found:
        with Image.open(path) as image:
            assert image.mode == "RGB", path
    made = [path for path in found if path.stem in ALL_FIGURES]
    assert {path.parent for path in made} == {DOCS / folder for folder in TABLES}
    assert all((DOCS / folder / table).exists() for folder, table in TABLES.items())
