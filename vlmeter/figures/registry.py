"""The figures that vlmeter draws: one line each, in the order of the report, imported when asked for.

A figure is a module with

- `NAME`, `TITLE` and `SECTION` (first_token, vision, output, distribution, components, flops, prediction, limits,
  session or side_by_side);
- `needs(table)`: why it cannot be drawn from this table, or None;
- `caption(table)`: what to see in it, in sentences made of the data;
- `draw(table)`: the figure.

`table` holds the rows of one subject (`analysis.of_subject`), or those of all subjects for a figure of SIDE_BY_SIDE.
`caption` and `draw` are called only if `needs` is None.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from vlmeter.common.errors import UserError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

#: figure name -> module that draws it
FIGURES = {
    "first_token_by_size": "vlmeter.figures.first_token_by_size",
    "vision_by_tokens": "vlmeter.figures.vision_by_tokens",
    "vision_by_crops": "vlmeter.figures.vision_by_crops",
    "first_token_by_tokens": "vlmeter.figures.first_token_by_tokens",
    "first_token_by_format": "vlmeter.figures.first_token_by_format",
    "two_methods": "vlmeter.figures.two_methods",
    "three_clocks": "vlmeter.figures.three_clocks",
    "two_factors": "vlmeter.figures.two_factors",
    "notes_series": "vlmeter.figures.notes_series",
    "decode_log": "vlmeter.figures.decode_log",
    "decode_linear": "vlmeter.figures.decode_linear",
    "decode_zoom": "vlmeter.figures.decode_zoom",
    "prefill_and_decode": "vlmeter.figures.prefill_and_decode",
    "prefill_share": "vlmeter.figures.prefill_share",
    "total_by_length": "vlmeter.figures.total_by_length",
    "decode_steps": "vlmeter.figures.decode_steps",
    "inter_token": "vlmeter.figures.inter_token",
    "latency_histogram": "vlmeter.figures.latency_histogram",
    "latency_cdf": "vlmeter.figures.latency_cdf",
    "latency_tail": "vlmeter.figures.latency_tail",
    "component_profile": "vlmeter.figures.component_profile",
    "flops_latency": "vlmeter.figures.flops_latency",
    "flops_or_roofline": "vlmeter.figures.flops_or_roofline",
    "token_costs": "vlmeter.figures.token_costs",
    "held_out": "vlmeter.figures.held_out",
    "limits": "vlmeter.figures.limits",
    "sentinel": "vlmeter.figures.sentinel",
}

#: Figures that set the subjects of a study side by side: name -> module. They are drawn where there are two or more.
SIDE_BY_SIDE = {
    "side_by_side_first_token": "vlmeter.figures.side_by_side_first_token",
    "side_by_side_images": "vlmeter.figures.side_by_side_images",
    "side_by_side_waits": "vlmeter.figures.side_by_side_waits",
    "side_by_side_costs": "vlmeter.figures.side_by_side_costs",
    "side_by_side_decode": "vlmeter.figures.side_by_side_decode",
    "side_by_side_software": "vlmeter.figures.side_by_side_software",
}

#: Every figure: name -> module.
ALL_FIGURES = {**FIGURES, **SIDE_BY_SIDE}

#: Figures that show cells of a kind, by that kind; those of none are of whatever a study has.
_OF_KIND: Mapping[str, Sequence[str]] = {
    "prefill": (
        "first_token_by_size",
        "vision_by_tokens",
        "vision_by_crops",
        "first_token_by_tokens",
        "two_methods",
        "three_clocks",
        "two_factors",
        "notes_series",
    ),
    "generation": (
        "decode_log",
        "decode_linear",
        "decode_zoom",
        "prefill_and_decode",
        "prefill_share",
        "total_by_length",
        "decode_steps",
        "inter_token",
    ),
    "requests": ("latency_histogram", "latency_cdf", "latency_tail"),
}

#: Figures of work and floors, which a subject has on a device whose limits are measured.
_OF_LIMITS = ("flops_latency", "flops_or_roofline", "limits")

#: Figures whose table has work and floors beside the measured times (`roofline.beside`).
WITH_ROOFLINE = frozenset(
    {"component_profile", "flops_latency", "flops_or_roofline", "limits", "side_by_side_software"}
)

#: Figures that show answers, and take them (`analysis.answers`): of the subject, or side by side of all of them.
WITH_ANSWERS = frozenset(
    {"decode_linear", "decode_log", "side_by_side_costs", "side_by_side_decode", "token_costs", "two_factors"}
)


#: What a figure says that it needs where a study has not asked for what it shows; a report does not mention it then.
NOT_ASKED = "the study did not ask for it"


#: Forms of a figure: with what there is to be seen in it, as text and for the workflow's own report; and for slides.
WITH_CAPTIONS, IN_PRINT = ("svg", "txt", "rst"), ("png", "pdf")

#: What the caption of a figure begins with that cannot be drawn.
NOT_DRAWN = "Not drawn: "


def figures_asked(kinds: Collection[str], *, has_limits: bool) -> list[str]:
    """Names of the figures that cells of these kinds can fill, before any is measured, in the order of the report."""
    away = {name for kind, names in _OF_KIND.items() if kind not in kinds for name in names}
    return [name for name in FIGURES if name not in away and (has_limits or name not in _OF_LIMITS)]


class FigureModule(Protocol):
    """What a figure's module offers.

    One of WITH_ANSWERS takes `answers` besides the table, and makes them from the table where it is not given any.
    """

    NAME: str
    TITLE: str
    SECTION: str

    def needs(self, table: pd.DataFrame) -> str | None:
        """Say why the figure cannot be drawn from this table; None if it can."""
        ...

    def caption(self, table: pd.DataFrame) -> str:
        """Say what to see in the figure, in plain sentences with numbers of this table."""
        ...

    def draw(self, table: pd.DataFrame) -> Figure:
        """Draw the figure."""
        ...


def get_figure(name: str) -> FigureModule:
    """Return a figure's module by name."""
    if name not in ALL_FIGURES:
        raise UserError(f"figure {name!r} is not known; legal: {', '.join(ALL_FIGURES)}")
    return cast(FigureModule, import_module(ALL_FIGURES[name]))


def draw_or_explain(
    table: pd.DataFrame, name: str, *, answers: Mapping[str, Any] | None = None
) -> tuple[Figure | None, str]:
    """Draw a figure and caption it; where it cannot be drawn there is none, and the caption says why.

    answers: of the table's subject, or of every subject for a figure that sets them side by side.
    """
    figure = get_figure(name)
    own: dict[str, Any] = {"answers": answers} if name in WITH_ANSWERS else {}
    reason = figure.needs(table, **own)
    if reason is not None:
        return None, f"{NOT_DRAWN}{reason}."
    return figure.draw(table, **own), figure.caption(table, **own)
