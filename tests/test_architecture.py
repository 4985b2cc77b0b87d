"""ARCHITECTURE.md tells the truth: its table is made from the code, and every file that it names is there."""

from __future__ import annotations

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
