"""What a module of vlmeter imports of vlmeter, read from its source."""

from __future__ import annotations

import ast
from functools import lru_cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


@lru_cache
def module_names() -> tuple[str, ...]:
    """Names of all modules and packages of vlmeter."""
    names = []
    for path in sorted((ROOT / "vlmeter").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return tuple(names)


def source_of(name: str) -> Path:
    """File of a module."""
    path = ROOT.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_empty(name: str) -> bool:
    """Whether a module has nothing but its docstring."""
    body = ast.parse(source_of(name).read_text(encoding="utf-8")).body
    return all(isinstance(node, ast.Expr) or "__future__" in ast.unparse(node) for node in body)


def _runs(node: ast.AST) -> bool:
    """Whether a statement runs: what stands under `if TYPE_CHECKING` is for the type checker alone."""
    return not (isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")


def _statements(node: ast.AST) -> list[ast.AST]:
    found = [child for child in ast.iter_child_nodes(node) if _runs(child)]
    return [node, *(each for child in found for each in _statements(child))]


@lru_cache
def all_imports(name: str) -> frozenset[str]:
    """Full names of everything that a module imports, at once or inside its functions.

    `from a import b` gives a.b as well as a: only the importer knows whether b is a module.
    """
    found: set[str] = set()
    for node in _statements(ast.parse(source_of(name).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


def imports(name: str) -> set[str]:
    """Modules of vlmeter that a module imports, itself left out."""
    return (set(module_names()) & all_imports(name)) - {name}


def closure(names: set[str]) -> set[str]:
    """The modules, and all that they import in turn; a package's __init__ comes with its modules."""
    reached: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        packages = {name.rpartition(".")[0]} - {""}
        waiting |= (imports(name) | packages) - reached
    return reached
