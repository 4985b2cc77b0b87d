"""Figures as the page shows them: packed, with colours that follow the reader."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from vlmeter.figures.registry import FIGURES, NOT_ASKED, NOT_DRAWN, get_figure
from vlmeter.figures.style import FAINT, INK, MUTED


@dataclass(frozen=True)
class FigureFiles:
    """A figure and what to see in it; of one that cannot be drawn there is the caption alone."""

    svg: Path
    caption: Path


#: Colours of the figures -> what they become where the reader prefers a dark page; all others stay.
DARK_COLOURS: Mapping[str, str] = {
    "#ffffff": "#171b20",
    INK.lower(): "#e6e9ec",
    MUTED.lower(): "#a3abb3",
    FAINT.lower(): "#414950",
    "#ececec": "#2a3037",
    "#999999": "#a3abb3",
    "#0072b2": "#4ba9e6",
    "#56b4e9": "#a5dcff",
    "#e69f00": "#f2b43c",
    "#cc79a7": "#e7a3c8",
    "#009e73": "#37c79b",
    "#d55e00": "#ff8d4d",
}


_COLOUR = re.compile("|".join(DARK_COLOURS), re.IGNORECASE)


def follow_the_reader(svg: str) -> str:
    """Make a figure's colours follow the light or dark setting of the page that shows it.

    Every known colour becomes a variable with the colour itself as fallback; a style at the top sets the variables
    where dark is preferred. Colours on paper, and in a download (where report.js takes the fallbacks), stay as drawn.
    """
    dark = ";".join(f"--c{light[1:]}:{dark}" for light, dark in DARK_COLOURS.items())
    style = f"<style>@media (prefers-color-scheme:dark){{svg{{{dark}}}}}</style>"
    coloured = _COLOUR.sub(lambda found: f"var(--c{found[0][1:].lower()},{found[0].lower()})", svg)
    return re.sub(r"(<svg\b[^>]*>)", lambda found: found[1] + style, coloured, count=1)


def _data_uri(svg: str) -> str:
    """Pack an SVG into an address, as text: shorter than base64, and mail filters can read it."""
    text = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<!--.*?-->|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    text = re.sub(r"\s+", " ", text).replace("> <", "><").strip().replace('"', "'")
    for character in "%#<>":
        text = text.replace(character, f"%{ord(character):02X}")
    return f"data:image/svg+xml,{text}"


@dataclass(frozen=True)
class FigureView:
    """A figure as the page shows it; without `src` the caption says why there is none."""

    name: str
    title: str
    section: str
    caption: str
    src: Markup | None


def figure_views(files: Mapping[str, FigureFiles], names: Iterable[str] = FIGURES) -> list[FigureView]:
    """The figures of a subject, in the order of the registry; those not drawn say why, unless nobody asked."""
    views = []
    for name in names:
        module = get_figure(name)
        if name not in files:
            continue
        caption, src = "this figure was not made", None
        if files[name].caption.exists():
            said = files[name].caption.read_text(encoding="utf-8").strip()
            if said.startswith(NOT_DRAWN):
                caption = said.removeprefix(NOT_DRAWN).removesuffix(".")
            elif files[name].svg.exists():
                caption, src = said, Markup(_data_uri(follow_the_reader(files[name].svg.read_text(encoding="utf-8"))))
        if caption == NOT_ASKED:
            continue
        views.append(FigureView(name, module.TITLE, module.SECTION, caption, src))
    return views
