"""What a module's code means, and which modules it rests on: what has to be made again when code changes.

The meaning of a module is its syntax tree without docstrings: comments, line breaks and words for people do not count.
A module rests on all that it imports, at once or inside a function, and on what those import in turn; what stands under
`if TYPE_CHECKING` runs nowhere and does not count. A registry names its modules as text, and rests on none of them:
whoever uses an entry names it beside the module that looks it up.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from vlmeter.common.files import write_atomically

#: The package whose modules are followed, and the folder that it lies in.
PACKAGE = __name__.partition(".")[0]

#: Sources whose meaning is kept: some checkouts of them.
MOST_KEPT = 2000

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


def _parsed(source: bytes) -> list[str]:
    """Digest of what a source means, and behind it the names of vlmeter that it imports."""
    tree = _without_docstrings(ast.parse(source))
    names = sorted({name for name in _names_in(tree) if name.partition(".")[0] == PACKAGE})
    return [digest_of(ast.dump(tree).encode()), *names]


class _Kept:
    """What sources meant that were parsed before, in a file of the user's cache: parsing all of them takes a second.

    It is found by the source's own digest, so that it can be wrong for none; without a place to write it goes without.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[str]] | None = None
        self._is_new = False

    @property
    def path(self) -> Path:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return folder / "vlmeter" / f"code-{sys.version_info.major}.{sys.version_info.minor}.json"

    def meaning(self, source: bytes) -> list[str]:
        if self._found is None:
            try:
                self._found = dict(json.loads(self.path.read_bytes()))
            except (OSError, RuntimeError, ValueError, TypeError):
                self._found = {}
        key = hashlib.sha256(source).hexdigest()
        if key not in self._found:
            self._found[key], self._is_new = _parsed(source), True
        return self._found[key]

    def keep(self) -> None:
        """Write down what is new; as much as one checkout has, not all that ever was."""
        if self._is_new and self._found is not None:
            self._is_new = False
            latest = dict(list(self._found.items())[-MOST_KEPT:])
            with contextlib.suppress(OSError, RuntimeError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(self.path, json.dumps(latest).encode())


_KEPT = _Kept()


@lru_cache(maxsize=1024)
def _read(name: str) -> tuple[str, frozenset[str]]:
    """Digest of a module's meaning, and the modules of vlmeter that it imports."""
    path = source_of(name)
    if path is None:
        raise ValueError(f"{name} is no module of {PACKAGE}")
    digest, *names = _KEPT.meaning(path.read_bytes())
    return digest, frozenset({other for other in names if source_of(other)} - {name})


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
    _KEPT.keep()
    return tuple(sorted(reached))


@lru_cache(maxsize=256)
def code_digest(*names: str) -> str:
    """Digest of what modules and all that they rest on mean."""
    return digest_of("\n".join(f"{name} {meaning(name)}" for name in rests_on(*names)).encode())
