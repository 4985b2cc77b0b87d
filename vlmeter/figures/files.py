"""Figures as files: all of one subject, or all that set subjects side by side, drawn by one process.

Each may have a folder of its own, so that a workflow can declare the folder before anything was measured: what cannot
be drawn leaves no picture there, and a caption that says why in a line.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis.reading import of_subject
from vlmeter.analysis.remembered import remembering
from vlmeter.analysis.roofline import beside
from vlmeter.common.files import write_atomically
from vlmeter.figures.registry import ALL_FIGURES, IN_PRINT, NOT_DRAWN, WITH_CAPTIONS, WITH_ROOFLINE, draw_or_explain
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
    folders: Mapping[str, Path],
    table_of: Callable[[str], pd.DataFrame],
    *,
    answers: Mapping[str, Any] | None,
    forms: Sequence[str],
) -> dict[str, str]:
    """Draw figures, each into its folder in these forms; returns captions by name.

    folders: by the figure's name. table_of: see `subject_tables`. answers: see `draw_or_explain`. Of a figure that
    cannot be drawn no file is written; its folder is there all the same.
    """
    captions = {}
    with remembering():
        for name, folder in folders.items():
            folder.mkdir(parents=True, exist_ok=True)
            figure, captions[name] = draw_or_explain(table_of(name), name, answers=answers)
            if isinstance(figure, Figure):
                for form in forms:
                    save_as(figure, folder / f"{name}.{form}")
    return captions


def write_captions(captions: Mapping[str, str], folders: Mapping[str, Path], *, start: str = "") -> None:
    """Write captions as text, and of what was drawn as RST that begins with `start`, for the workflow's own report."""
    for name, caption in captions.items():
        write_atomically(folders[name] / f"{name}.txt", f"{caption}\n".encode())
        if not caption.startswith(NOT_DRAWN):
            plain = _MARKUP.sub(r"\\\1", f"{start}{caption}")
            write_atomically(folders[name] / f"{name}.rst", f"{{% raw %}}{plain}{{% endraw %}}\n".encode())


def remove_leftovers(folder: Path, names: Collection[str]) -> None:
    """Remove figures from the folder of a subject's figures that are no longer drawn there.

    names: those that are, each in a folder of its own. The others may be of a study that asked for more, or of a
    version that kept every figure's files in this folder itself. What has not the name of a figure is left alone.
    """
    for name in ALL_FIGURES:
        for form in (*WITH_CAPTIONS, *IN_PRINT):
            (folder / f"{name}.{form}").unlink(missing_ok=True)
        if name not in names and (folder / name).is_dir():
            shutil.rmtree(folder / name)


def not_drawn(captions: Mapping[str, str]) -> str:
    """Say in a line what was not drawn; empty where all was."""
    names = [name for name, caption in captions.items() if caption.startswith(NOT_DRAWN)]
    return f"not drawn, their captions say why: {', '.join(names)}" if names else ""
