"""What a release has to agree on, and what others read of the repository."""

from __future__ import annotations

import re
import shlex

import pytest
import yaml

import vlmeter
from tests.support.pages import ROOT
from tools.reference import command_line

TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_version_citation_and_changelog_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == vlmeter.__version__
    released = re.findall(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert released[0] == (str(citation["date-released"]), vlmeter.__version__)


def test_the_citation_has_what_its_format_asks_for() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == "Apache-2.0"


def test_every_entry_of_the_changelog_says_its_effect_on_numbers() -> None:
    _, *entries = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text("utf-8"), flags=re.MULTILINE)
    assert [entry.splitlines()[0] for entry in entries if "Effect on numbers" not in entry] == []


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_every_template_of_an_issue_asks_for_something_that_works(path) -> None:
    text = path.read_text("utf-8")
    for item in yaml.safe_load(text).get("body", []):
        assert item["attributes"]["label"]
    for command in re.findall(r"`vlmeter ([^`]+)`", text):
        name, *rest = shlex.split(command)
        if not name.startswith("-"):
            command_line().commands[name].make_context(name, rest)


def test_a_report_of_a_defect_brings_what_the_doctor_says() -> None:
    assert "`vlmeter doctor --" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "defect.yml").read_text("utf-8")


def test_the_catalogue_is_told_of_ways_that_are_there() -> None:
    usage = yaml.safe_load((ROOT / ".snakemake-workflow-catalog.yml").read_text("utf-8"))["usage"]
    assert usage["software-stack-deployment"] == {"conda": True, "apptainer": True}
    assert list(ROOT.glob("envs/*.yaml"))
    assert (ROOT / "containers" / "vlmeter.def").exists()
    assert (ROOT / usage["mandatory-flags"]["flags"].split()[-1]).is_dir()
    assert usage["report"]
    assert (ROOT / "report" / "workflow.rst").exists()
