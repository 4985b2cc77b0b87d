"""Figures as files: all of one subject, or all that set subjects side by side, drawn by one process.

What cannot be drawn has a caption that says why, and a file without a picture: a workflow that declared the file before
anything was measured gets it either way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis.reading import of_subject
from vlmeter.analysis.remembered import remembering
from vlmeter.analysis.roofline import beside
from vlmeter.common.files import write_atomically
from vlmeter.figures.registry import NOT_DRAWN, WITH_ROOFLINE, draw_or_explain
from vlmeter.figures.style import save_as

_MARKUP = re.compile(r"([\\*_`|])")


def subject_tables(
    table: pd.DataFrame, roofline: pd.DataFrame | None, subject: str | None
) -> Callable[[str], pd.DataFrame]:
    """Which table a figure is drawn of, by the figure's name; of all subjects where none is named."""
    own = table if subject is None else of_subject(table, subject)
    worked = own if roofline is None else beside(own, roofline)
    return lambda name: worked if name in WITH_ROOFLINE else own


def write_figures(
    names: Iterable[str],
    table_of: Callable[[str], pd.DataFrame],
    folder: Path,
    *,
    answers: Mapping[str, Any] | None,
    forms: Sequence[str],
) -> dict[str, str]:
    """Draw figures into a folder, each in these forms; returns captions by name.

    table_of: see `subject_tables`. answers: see `draw_or_explain`. Of a figure that cannot be drawn the SVG is the
    reason in a line, and every other form is an empty file.
    """
    captions = {}
    with remembering():
        for name in names:
            figure, captions[name] = draw_or_explain(table_of(name), name, answers=answers)
            for form in forms:
                path = folder / f"{name}.{form}"
                if isinstance(figure, Figure):
                    save_as(figure, path)
                else:
                    write_atomically(path, _line(captions[name]).encode() if form == "svg" else b"")
    return captions


def write_captions(captions: Mapping[str, str], folder: Path, *, start: str = "") -> None:
    """Write captions as text, and as RST that begins with `start`, for the workflow's own report."""
    for name, caption in captions.items():
        write_atomically(folder / f"{name}.txt", f"{caption}\n".encode())
        plain = _MARKUP.sub(r"\\\1", f"{start}{caption}")
        write_atomically(folder / f"{name}.rst", f"{{% raw %}}{plain}{{% endraw %}}\n".encode())


def not_drawn(captions: Mapping[str, str]) -> str:
    """Say in a line what was not drawn; empty where all was."""
    names = [name for name, caption in captions.items() if caption.startswith(NOT_DRAWN)]
    return f"not drawn, their captions say why: {', '.join(names)}" if names else ""


def _line(text: str) -> str:
    """A picture of nothing but a line of text."""
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 720 40" width="720" height="40">'
        f'<text x="8" y="24" font-family="sans-serif" font-size="13" fill="#767676">{escape(text)}</text></svg>\n'
    )
