"""Which crop counts images of 336 x 336k px reach, and which images that fit a tiling exactly reach.

The lab notes swept 336 x 336k and found crop counts missing. They are not missing from the model: a tiling of k
crops is 224k + 112 px long, since neighbouring crops overlap, so 336k skips some.
"""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from vlmeter.analysis import prefill_cells
from vlmeter.figures import style
from vlmeter.models.molmo1 import NAME as MOLMO
from vlmeter.models.molmo1.geometry import CROP_PX, DEFAULT_MAX_CROPS, Geometry, geometry, size_for_tiling

NAME = "notes_series"
TITLE = "Crops of images of 336 · k x 336 px, and of exact ones"
SECTION = "vision"


def needs(table: pd.DataFrame) -> str | None:
    """The two series are sizes of Molmo's crops."""
    if (table["family"] != MOLMO).any() or table.empty:
        return f"the series are image sizes of the family {MOLMO}"
    if prefill_cells.vision_cells(table).empty:
        return "no vision-token cell was measured"
    return None


def series(table: pd.DataFrame) -> tuple[list[Geometry], list[Geometry]]:
    """Images of 336k x 336 px, and exact ones for tilings 1 x k, for k up to the limit of crops."""
    given = table["max_crops"].dropna()
    limit = int(given.max()) if len(given) else DEFAULT_MAX_CROPS
    lengths = range(1, limit + 1)
    notes = [geometry(CROP_PX * k, CROP_PX, max_crops=limit) for k in lengths]
    return notes, [size_for_tiling(1, k, max_crops=limit) for k in lengths]


def missed(table: pd.DataFrame) -> list[int]:
    """Crop counts that the exact series reaches and the notes' series does not."""
    notes, exact = series(table)
    return sorted({image.crops for image in exact} - {image.crops for image in notes})


def draw(table: pd.DataFrame) -> Figure:
    """Draw crops over the image's width for both series; counts that the notes' series misses are named."""
    notes, exact = series(table)
    with style.styled():
        figure, (axes,) = style.new_figure(height_in=4.4)
        red, blue = style.COLOURS["vermilion"], style.COLOURS["blue"]
        axes.plot([i.width_px for i in exact], [i.crops for i in exact], "o-", color=blue, markersize=6, linewidth=1)
        axes.plot([i.width_px for i in notes], [i.crops for i in notes], "s--", color=red, markersize=5, linewidth=1)
        for crops in missed(table):
            image = next(image for image in exact if image.crops == crops)
            axes.annotate(
                f"{image.width_px:,} px: {crops} crops, {image.vision_tokens:,} tokens",
                (image.width_px, crops),
                textcoords="offset points",
                xytext=(9, -3),
                va="center",
                fontsize=7.5,
            )
        axes.yaxis.set_major_locator(MultipleLocator(1))
        ends = [notes[-1].width_px, *(1.5 * image.width_px for image in exact if image.crops in missed(table))]
        axes.set_xlim(0, 1.05 * max(ends))  # what is written beside a point takes a third of the width
        style.token_axis(axes, "width of the image (px), height 336 px")
        axes.set_ylabel("crops (the global one included)")
        last = exact[-1]
        axes.annotate(
            "exact: 224 · k + 112",
            (last.width_px, last.crops),
            textcoords="offset points",
            xytext=(0, 8),
            ha="center",
            fontsize=8,
        )
        axes.annotate(
            "multiples: 336 · k",
            (notes[-1].width_px, notes[-1].crops),
            textcoords="offset points",
            xytext=(0, 8),
            ha="right",
            fontsize=8,
        )
        axes.set_ylim(1, last.crops + 1)
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Name the counts that the notes' series misses, and which of them this study measured."""
    gaps = missed(table)
    cells = prefill_cells.vision_cells(table)
    measured = sorted({int(crops) for crops in cells["crops"].dropna()} & set(gaps))
    if not gaps:
        return "Images of 336 · k x 336 px reach every crop count that exact images reach, at this limit of crops."
    text = (
        f"Images of 336 · k x 336 px never become {_listed(gaps)} crops; images of (224 · k + 112) x 336 px do. Both "
        "follow from the preprocessor's own choice of a tiling, without forcing it."
    )
    if measured:
        text += f" Of these, this study measured cells with {_listed(measured)} crops."
    return text


def _listed(numbers: list[int]) -> str:
    texts = [str(number) for number in numbers]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} or {texts[-1]}"
