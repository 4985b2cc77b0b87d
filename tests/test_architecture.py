"""ARCHITECTURE.md tells the truth: its table is made from the code, and every file that it names is there."""

from __future__ import annotations

import html
import re

import pytest

from tests.support.imports import ROOT
from tools import architecture
from tools.architecture import STAGES

TEXT = architecture.PAGE.read_text(encoding="utf-8")


def test_the_table_of_packages_is_what_the_code_says() -> None:
    """`python tools/architecture.py` brings it up to date."""
    assert architecture.page() == TEXT


def test_the_table_has_every_stage() -> None:
    assert {line.split("`")[1] for line in architecture.table().splitlines()[2:]} == set(STAGES)


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`((?:vlmeter|tests|tools|scripts|rules)/[\w/.]*\w)`", TEXT))))
def test_every_file_that_the_page_names_is_there(name: str) -> None:
    assert (ROOT / name).exists()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([\w/.]+)\)", TEXT))))
def test_every_link_of_the_page_leads_somewhere(link: str) -> None:
    assert (ROOT / link).exists()


@pytest.mark.parametrize(
    ("name", "where"),
    [(name, where) for name, where in re.findall(r"`([A-Z]\w+)` in\s+`(vlmeter/[\w/]+\.py)`", TEXT)],
)
def test_every_class_that_the_page_places_stands_there(name: str, where: str) -> None:
    assert re.search(rf"^class {name}\b", (ROOT / where).read_text(), re.MULTILINE)


def test_the_drawn_pipeline_is_the_one_of_the_architecture() -> None:
    """After a change there: render the diagram with mermaid, and put the SVG where docs/assets/pipeline.svg is."""
    diagram = re.search(r"```mermaid\n(.*?)```", TEXT, re.DOTALL)
    assert diagram
    wanted = {
        (re.match(r"\w+", one.strip())[0], re.match(r"\w+", other.strip())[0])  # type: ignore[index]
        for one, other in re.findall(r"^\s*(.+?) --> (.+)$", diagram[1], re.MULTILINE)
    }
    drawn = (ROOT / "docs" / "assets" / "pipeline.svg").read_text("utf-8")
    assert set(re.findall(r'data-id="L_(\w+?)_(\w+?)_0"', drawn)) == wanted
    labels = set(re.findall(r"[\[/]+([\w .:*]+)[/\]]+", diagram[1]))
    assert len(labels) > 5
    shown = re.sub(r"\s+", "", html.unescape(re.sub(r"<[^>]+>", "", drawn)))
    assert {label for label in labels if label.replace(" ", "") not in shown} == set()
