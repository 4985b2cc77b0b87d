"""Write the table of packages into ARCHITECTURE.md, from their docstrings and their real imports.

`python tools/architecture.py` brings the page up to date; a test fails while it is not.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "ARCHITECTURE.md"
#: The stages, from left to right; a module imports only of its own and of those to the left.
STAGES = (
    "common",
    "numbers",
    "models",
    "backends",
    "cells",
    "experiments",
    "study",
    "inputs",
    "records",
    "measure",
    "table",
    "analysis",
    "compare",
    "claims",
    "figures",
    "report",
    "workflow",
    "cli",
)

BEGIN, END = "<!-- packages: made by tools/architecture.py -->", "<!-- end of packages -->"


def modules() -> dict[str, ast.Module]:
    """Every module of vlmeter by its full name, as a syntax tree."""
    found = {}
    for path in sorted((ROOT / "vlmeter").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def stage(name: str) -> str:
    """The package that a module belongs to; empty for vlmeter itself."""
    return name.split(".")[1] if "." in name else ""


def imported(tree: ast.Module) -> set[str]:
    """Packages of vlmeter that a module imports; one under `if TYPE_CHECKING` runs nowhere, and does not count."""
    types = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if node in types:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == "vlmeter":
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("vlmeter.")}
    return {stage(name) for name in names}


def table() -> str:
    """The table of packages, in the order in which each imports only those above it."""
    found = modules()
    lines = ["| package | what it is | modules | lines | imports |", "|---|---|---|---|---|"]
    for package in STAGES:
        own = [name for name in found if stage(name) == package and not (ROOT / Path(*name.split("."))).is_dir()]
        count = sum(len((ROOT / Path(*name.split("."))).with_suffix(".py").read_text().splitlines()) for name in own)
        about = (ast.get_docstring(found[f"vlmeter.{package}"]) or "").splitlines()[0]
        uses = {other for name, tree in found.items() if stage(name) == package for other in imported(tree)} - {package}
        used = ", ".join(name for name in STAGES if name in uses) or "nothing of vlmeter"
        hundreds = f"{round(count, -2):,}"
        lines.append(f"| [`{package}`](vlmeter/{package}) | {about} | {len(own)} | {hundreds} | {used} |")
    return "\n".join(lines)


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE.name} has lost its marks: {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE.name} is up to date\n")
