"""What a module's code means, and which modules it rests on: what has to be made again when code changes.

The meaning of a module is its syntax tree without docstrings: comments, line breaks and words for people do not count.
A module rests on all that it imports, at once or inside a function, and on what those import in turn; what stands under
`if TYPE_CHECKING` runs nowhere and does not count. A registry names its modules as text, and rests on none of them:
whoever uses an entry names it beside the module that looks it up.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

#: The package whose modules are followed, and the folder that it lies in.
PACKAGE = __name__.partition(".")[0]
ROOT = Path(__file__).parents[2]


def digest_of(data: bytes) -> str:
    """Digest that names a content, short enough to be read."""
    return hashlib.sha256(data).hexdigest()[:16]


def source_of(name: str) -> Path | None:
    """File of a module or package of vlmeter; None if there is none of that name."""
    path = ROOT.joinpath(*name.split("."))
    found = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return found if found.is_file() else None


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if ast.get_docstring(node, clean=False) is not None:
                node.body = node.body[1:]
            node.body = [statement for statement in node.body if not _is_for_types(statement)]
    return tree


def _names_in(tree: ast.Module) -> Iterator[str]:
    """Full names of all that a module imports: `from a import b` gives a.b as well as a."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@lru_cache(maxsize=1024)
def _read(name: str) -> tuple[str, frozenset[str]]:
    """Digest of a module's meaning, and the modules of vlmeter that it imports."""
    path = source_of(name)
    if path is None:
        raise ValueError(f"{name} is no module of {PACKAGE}")
    tree = _without_docstrings(ast.parse(path.read_bytes()))
    found = {other for other in _names_in(tree) if other.partition(".")[0] == PACKAGE and source_of(other)}
    return digest_of(ast.dump(tree).encode()), frozenset(found - {name})


def meaning(name: str) -> str:
    """Digest of what one module means; raises ValueError for a name that is no module of vlmeter."""
    return _read(name)[0]


@lru_cache(maxsize=256)
def rests_on(*names: str) -> tuple[str, ...]:
    """Name the modules themselves and all modules of vlmeter that they rest on, in alphabetical order."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in reached:
            continue
        reached.add(name)
        waiting += _read(name)[1]
        waiting += [package for package in [name.rpartition(".")[0]] if package]
    reached -= {PACKAGE}  # it holds a version, which stands in every record
    return tuple(sorted(reached))


@lru_cache(maxsize=256)
def code_digest(*names: str) -> str:
    """Digest of what modules and all that they rest on mean."""
    return digest_of("\n".join(f"{name} {meaning(name)}" for name in rests_on(*names)).encode())
