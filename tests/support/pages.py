"""The documentation as text: its pages, and the commands, studies and programs that stand in them."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

#: Every page that a reader may take a command from.
PAGES = sorted(
    (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md", "benchmarks/README.md")),
        *(ROOT / "docs").rglob("*.md"),
    )
)

_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_COMMENT = re.compile(r"\s+#\s.*$")


@dataclass(frozen=True)
class Command:
    """A command of a page, as words; page: where it stands."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Code blocks of a language: what stands behind the language, and the code."""
    return [(rest.strip(), code) for found, rest, code in _BLOCK.findall(page.read_text("utf-8")) if found == language]


def commands(page: Path) -> list[Command]:
    """Commands in the console blocks of a page; where a block shows output, its commands begin with `$`."""
    found = []
    for _, code in blocks(page, "console"):
        lines = code.replace("\\\n", " ").splitlines()
        prompted = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in prompted or lines:
            parts = (shlex.split(part) for part in _COMMENT.sub("", line).split(" && "))
            found += [Command(name_of(page), tuple(words)) for words in parts if words]
    return found


def studies(page: Path) -> dict[str, str]:
    """Study files that a page shows with their names."""
    titled = ((re.search(r'title="([^"]+)"', rest), code) for rest, code in blocks(page, "yaml"))
    return {title[1]: code for title, code in titled if title}
