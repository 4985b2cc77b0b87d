"""What one and the same image costs in each model, and how many vision tokens it becomes there."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis import reading, subjects
from vlmeter.figures import side_by_side, style
from vlmeter.numbers.units import duration, significant
from vlmeter.numbers.words import plural
from vlmeter.table.quantities import FIRST_TOKEN

NAME = "side_by_side_images"
TITLE = "Time to first token of the same image"
SECTION = "side_by_side"


def images(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Rows of `subjects.shared_images` for each image that is shown."""
    shared = subjects.shared_images(table)
    return {image: shared[shared["image"] == image] for image in subjects.shown_images(shared)}


def needs(table: pd.DataFrame) -> str | None:
    """An image that two subjects measured."""
    return None if len(subjects.shared_images(table)) else "no image was measured in two subjects or more"


def _tokens(row: Any) -> str:
    return f"{row['vision_tokens']:,} vision tokens"


def draw(table: pd.DataFrame) -> Figure:
    """Draw a panel per image and in each a row per subject: its time to first token, and the image's vision tokens."""
    found, drawn = images(table), side_by_side.looks(table)
    with style.styled():
        figure, axes = side_by_side.new_panels([len(rows) for rows in found.values()])
        every = [estimate for rows in found.values() for estimate in subjects.estimates_of(rows).values()]
        for place, ((image, rows), own) in enumerate(zip(found.items(), axes, strict=True)):
            remarks = {str(row["subject"]): _tokens(row) for row in rows.to_dict("records")}
            side_by_side.draw_rows(own, subjects.estimates_of(rows), drawn, remarks=remarks, beside=every)
            own.set_xlabel(f"{image}: {FIRST_TOKEN.label} ({FIRST_TOKEN.unit})")
            if place == 0:
                side_by_side.title(own, TITLE, table, _subjects(found))
    return figure


def _subjects(found: dict[str, pd.DataFrame]) -> list[str]:
    return sorted({str(name) for rows in found.values() for name in rows["subject"]})


def caption(table: pd.DataFrame) -> str:
    """Say for the largest image where it costs least and most, and what it becomes there."""
    found, shared = images(table), subjects.shared_images(table)
    image, rows = next(reversed(found.items()))
    sentences = [
        "Preprocessing, copy to the device and prefill"
        + (", without marks." if (rows["picture"] == "dummy").all() else ", summed over its phases.")
    ]
    apart = subjects.extremes(subjects.estimates_of(rows))
    if not isinstance(apart, reading.Unknown):
        ends = {str(row["subject"]): row for row in rows.to_dict("records")}
        least, most = ends[apart.least], ends[apart.most]
        named = f"An image of {image}" if image[0].isdigit() else f"The {image}"
        sentences.append(
            f"{named} costs {duration(least[FIRST_TOKEN.column])} in {apart.least}, where it becomes "
            f"{_tokens(least)}, and {duration(most[FIRST_TOKEN.column])} in {apart.most}, where it becomes "
            f"{_tokens(most)}: {significant(apart.times.value, 2)} times as long."
        )
    left = shared["image"].nunique() - len(found)
    if left:
        sentences.append(
            f"{plural(left, 'more image')} that subjects share {'is' if left == 1 else 'are'} in the table."
        )
    return " ".join([*sentences, *side_by_side.who_is_missing(table, _subjects(found))])
