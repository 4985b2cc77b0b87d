"""Write a study as a file that explains itself: every key with what it says of itself as a comment."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from vlmeter.study.dataset_source import SOURCES
from vlmeter.study.refusals import about

#: Longest line; a comment that does not fit behind its key stands above it.
LINE_COLUMNS = 120


def study_text(content: Mapping[str, Any], *, opening: str) -> str:
    """Write a study's content as commented YAML, which reads back as the same content.

    opening: what the file is for, in sentences; they become its first comment.
    """
    first = [f"# {line}" for line in textwrap.wrap(opening, LINE_COLUMNS - 2)]
    body: list[str] = []
    for key, value in content.items():
        if isinstance(value, Mapping) and body:
            body.append("")
        body += _lines(key, value, (key,))
    return "\n".join([*first, "", *body, ""])


def _lines(key: str, value: Any, place: tuple[str, ...]) -> Iterator[str]:
    indent = "  " * (len(place) - 1)
    comment = about(_with_source(place))
    if isinstance(value, Mapping) and value:
        yield from _with_comment(f"{indent}{_plain(key)}:", comment, indent)
        for name, below in value.items():
            yield from _lines(str(name), below, (*place, str(name)))
        return
    yield from _with_comment(f"{indent}{_plain(key)}: {_plain(value)}", comment, indent)


def _with_source(place: tuple[str, ...]) -> tuple[str, ...]:
    """A place as the schema walks it: under `dataset` stand the keys of all sources."""
    source = next(iter(SOURCES))
    return (place[0], source, *place[1:]) if place[0] == "dataset" and len(place) > 1 else place


def _with_comment(line: str, comment: str, indent: str) -> Iterator[str]:
    if not comment:
        yield line
    elif len(line) + len(comment) + 3 <= LINE_COLUMNS:
        yield f"{line} # {comment}"
    else:
        yield from (f"{indent}# {part}" for part in textwrap.wrap(comment, LINE_COLUMNS - len(indent) - 2))
        yield line


def _plain(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")
