"""The documentation builds as a site, says all that the code has, and needs nothing from elsewhere to be read."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.pages import ROOT
from tools.reference import PYTHON_API, command_line
from vlmeter.experiments.registry import EXPERIMENTS
from vlmeter.study.subject import Subject
from vlmeter.table.columns import COLUMNS
from vlmeter.table.quantities import QUANTITIES

pytestmark = [pytest.mark.xdist_group("site"), pytest.mark.needs("mkdocs")]

#: What a browser fetches by itself when it shows a page; links that a reader follows are none of it.
FETCHED = re.compile(
    r"<(?:script|img|iframe|source|video|audio|embed|object)\b[^>]*?\b(?:src|data|srcset)=[\"']?([^\"' >]+)"
    r"|<link\b[^>]*?\bhref=[\"']?([^\"' >]+)",
)


def build(folder: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=root,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def text_of(page: Path) -> str:
    return html.unescape(re.sub(r"<[^>]+>", "", page.read_text("utf-8")))


def test_every_page_of_the_documentation_is_in_the_site(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    wanted = {path.with_name("index.html") if path.stem == "README" else path.with_suffix(".html") for path in pages}
    assert {path for path in wanted if not (site / path).is_file()} == set()
    assert len(wanted) > 30


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    looked_at = 0
    for page in site.rglob("*.html"):
        if page.name == "report.html":
            continue  # a report of vlmeter's, which tests of its own look at
        for found in FETCHED.findall(page.read_text("utf-8")):
            address = next(filter(None, found))
            looked_at += 1
            assert not re.match(r"(https?:)?//", address), f"{page.relative_to(site)} fetches {address}"
        assert 'class="mermaid"' not in page.read_text("utf-8"), f"{page.name}: the theme would fetch what draws it"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*[\"']?(https?:)?//", style.read_text("utf-8")), style.name
    assert looked_at > 200


def test_every_local_file_that_a_page_fetches_is_there(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name in ("report.html", "404.html"):
            continue  # the second is shown at any address
        for found in FETCHED.findall(page.read_text("utf-8")):
            address = html.unescape(next(filter(None, found)))
            assert address.startswith("data:") or (page.parent / address.partition("?")[0]).exists(), address


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    text = text_of(site / "reference" / "commands.html")
    for name, command in command_line().commands.items():
        assert f"vlmeter {name}" in text
        for parameter in command.params:
            for option in parameter.opts:
                assert not option.startswith("--") or option in text, f"{name} {option}"


def test_the_reference_has_every_study_key(site: Path) -> None:
    text = (site / "reference" / "study-keys.html").read_text("utf-8")
    for key in [*Subject.model_fields, *EXPERIMENTS, "sentinel_every_cells", "min_samples", "block_samples"]:
        assert f"<code>{key}</code>" in text, key
    for section in ("subjects.NAME", "experiments.vision_tokens", "dataset (source: local)"):
        assert section in text


def test_the_reference_has_every_column_and_quantity(site: Path) -> None:
    text = (site / "reference" / "table-columns.html").read_text("utf-8")
    for name in [*(column.name for column in COLUMNS), *QUANTITIES]:
        assert f"<code>{name}</code>" in text, name


def test_the_reference_has_what_python_may_call(site: Path) -> None:
    text = text_of(site / "reference" / "python.html")
    for names in PYTHON_API.values():
        assert [name for name in names if name not in text] == []
    assert "vlmeter.load" in text


def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path, site: Path) -> None:
    """Also one from a page outside docs/, which the site takes in."""
    for name in ("docs", "tools", "vlmeter", "benchmarks", "mkdocs.yml", "ARCHITECTURE.md", "CHANGELOG.md"):
        (tmp_path / name).symlink_to(ROOT / name)
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    (tmp_path / "CONTRIBUTING.md").write_text(text + "\n[nowhere](docs/nowhere.md)\n", encoding="utf-8")
    # tools/docs_site.py finds the pages beside itself, so it has to lie there as a file
    (tmp_path / "tools").unlink()
    (tmp_path / "tools").mkdir()
    for path in (ROOT / "tools").glob("*.py"):
        (tmp_path / "tools" / path.name).write_bytes(path.read_bytes())
    done = build(tmp_path / "site", tmp_path)
    assert done.returncode != 0
    assert "nowhere.md" in done.stdout + done.stderr


@pytest.mark.needs("chromium")
def test_a_browser_opens_it_from_disk_and_finds_a_word(site: Path) -> None:
    from tests.support.browser import chromium, opened

    with (
        chromium() as browser,
        opened(browser, site / "howto" / "which-model.html") as (page, witness),
    ):
        page.fill("input[name=query]", "sentinel")
        page.wait_for_selector(".md-search-result__item", timeout=60_000)
        assert page.locator(".md-search-result__item").count() > 0
    assert {url.partition(":")[0] for url in witness.requests} <= {"file", "data", "blob", "about"}
    assert witness.complaints == []
