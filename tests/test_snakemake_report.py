"""Snakemake's own report in a real browser with the network cut: figures with their captions, the whole report."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import chromium, opened, outside
from tests.support.workflow import Workflow, fake_study
from vlmeter.figures.registry import FIGURES, get_figure

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.slow, pytest.mark.xdist_group("reported")]

#: Underscores are markup to RST.
STUDY = "a_study_"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A whole run on the fake backend, and Snakemake's report of it in one file."""
    workflow = Workflow(tmp_path_factory.mktemp("reported") / "copy", fake_study(study=STUDY))
    for arguments in ([], ["--report", "report.html"]):
        ran = workflow.run(*arguments)
        assert ran.code == 0, ran.said
    return workflow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, finished: Workflow) -> Iterator[Page]:
    path = finished.folder / "report.html"
    with opened(browser, path) as (page, witness):
        yield page
        # the style library inside Snakemake's page remarks on being used like that
        assert [complaint for complaint in witness.complaints if "tailwind" not in complaint] == []
        assert outside(witness, path) == []


def test_it_describes_the_workflow_and_names_the_study(page: Page) -> None:
    expect(page.get_by_text("vlmeter measures where the latency")).to_be_visible()
    expect(page.get_by_text(STUDY, exact=True)).to_be_visible()


def test_it_offers_the_whole_report_the_figures_and_the_data(page: Page) -> None:
    for category in ("Report", "Figures", "Data"):
        expect(page.get_by_role("link", name=category, exact=True)).to_be_visible()


def test_it_has_every_figure_with_the_caption_computed_from_the_data(page: Page, finished: Workflow) -> None:
    page.get_by_role("link", name="Figures", exact=True).click()
    asked = [name for name in FIGURES if finished.layout.figure("one", name, "svg").exists()]
    assert {"first_token_by_size", "vision_by_tokens", "decode_log", "sentinel"} <= set(asked)
    for name in asked:
        expect(page.get_by_text(get_figure(name).TITLE, exact=True)).to_be_visible()
        caption = finished.layout.figure("one", name, "txt").read_text(encoding="utf-8")
        path = str(finished.layout.figure("one", name, "svg").relative_to(finished.folder))
        held = page.evaluate(
            "([path]) => new DOMParser().parseFromString(results[path].caption, 'text/html').body.textContent", [path]
        )
        assert " ".join(held.split()) == " ".join(f"Subject one. {caption}".split())
    undrawn = [name for name in FIGURES if name not in asked and finished.layout.figure("one", name, "txt").exists()]
    assert "first_token_by_format" in undrawn, "no server was asked"
    for name in undrawn:
        expect(page.get_by_text(get_figure(name).TITLE, exact=True)).to_have_count(0)
