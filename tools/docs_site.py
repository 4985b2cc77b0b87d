"""What mkdocs is told beyond mkdocs.yml: pages made from code, pages outside docs/, and the links between them.

Reference pages are made by tools/reference.py whenever the site is built, so they cannot go stale. Pages such as
CONTRIBUTING.md stay where people look for them in a repository, and are shown in the site all the same.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from tools import reference

ROOT = Path(__file__).resolve().parent.parent

#: Pages outside docs/, and where the site has them.
OUTSIDE = {
    "CONTRIBUTING.md": "project/contributing.md",
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "benchmarks/README.md": "project/benchmarks.md",
}

#: The diagram of ARCHITECTURE.md as a picture, so that no reader has to fetch or run what draws diagrams.
DIAGRAM = "assets/pipeline.svg"

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_MERMAID = re.compile(r"```mermaid\n.*?```", re.DOTALL)
_CODE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def on_config(config: Any) -> Any:
    """Put every decision note into the navigation, so that a new one needs no line there."""
    notes = sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs" / "decisions").glob("*.md"))
    config["nav"][-1]["Project"].append({"Decisions": notes})
    return config


def on_files(files: Files, /, *, config: Any) -> Files:
    """Add the pages that are made from code, and those that lie outside docs/."""
    for path, text in reference.pages().items():
        files.append(File.generated(config, path, content=text))
    for path, where in OUTSIDE.items():
        files.append(File.generated(config, where, content=(ROOT / path).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, /, *, page: Any, config: Any, files: Files) -> str:
    """Let links lead to where the site has what they name; those to a file of the repository alone become text."""
    place = page.file.src_uri
    source = {where: path for path, where in OUTSIDE.items()}.get(place, f"docs/{place}")
    with_picture = _MERMAID.sub(f"![The pipeline, stage by stage](docs/{DIAGRAM})", markdown)
    with_picture = with_picture.replace(":warning:", "\N{WARNING SIGN}")  # as GitHub shows it
    # code is left as it is: every other part of the split
    parts = _CODE.split(with_picture)
    return "".join(
        part if part.startswith("```") else _LINK.sub(lambda found: _moved(found, source, place), part)
        for part in parts
    )


def _moved(found: re.Match[str], source: str, place: str) -> str:
    """One link, as the page at `place` in the site has it, whose text lies at `source` in the repository."""
    mark, text, target = found.groups()
    path, _, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", target):
        return found[0]
    named = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
    there = OUTSIDE.get(named) or (named.removeprefix("docs/") if named.startswith("docs/") else None)
    if there is None:
        if not (ROOT / named).exists():
            return found[0]  # leads nowhere: a strict build says so
        return text
    link = posixpath.relpath(there, posixpath.dirname(place) or ".")
    return f"{mark}[{text}]({link}{'#' + anchor if anchor else ''})"
