"""What a finished study consists of, so that what somebody deleted is made again.

A workflow that asks for its last product alone has nothing to do as long as that one is there, whatever became of the
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlmeter.study.layout import Layout

#: In which forms a figure is kept; the last is what there is to be seen in it.
FIGURE_FORMS = ("svg", "png", "pdf", "txt")


def page_files() -> list[Path]:
    """The template, style and script of the report's page."""
    return sorted((Path(__file__).parents[1] / "report" / "template").iterdir())


def products_of(
    layout: Layout, *, figures: Mapping[str, Iterable[str]], on_devices: Sequence[str], thumbnails: bool
) -> list[tuple[Path, ...]]:
    """List what is made of a study's records, a tuple for every job that makes it.

    figures: their names by subject, or by what stands in its place. on_devices: the subjects whose device has limits.
    """
    drawn = [
        tuple(layout.figure(place, name, form) for form in FIGURE_FORMS)
        for place, names in figures.items()
        for name in names
    ]
    limits = [(path,) for subject in on_devices for path in (layout.ceilings(subject), layout.work(subject))]
    return [
        (layout.table, layout.table_csv, layout.environments),
        *limits,
        *([(layout.roofline,)] if on_devices else []),
        (layout.answers,),
        (layout.claims,),
        *drawn,
        *([(layout.thumbnails,)] if thumbnails else []),
        (layout.report,),
    ]


def deleted(products: Sequence[tuple[Path, ...]]) -> list[Path]:
    """Name a missing file of every product that is not whole; none before the first of all has been made."""
    missing = [[path for path in paths if not path.exists()] for paths in products]
    begun = any(len(gone) < len(paths) for gone, paths in zip(missing, products, strict=True))
    return [gone[0] for gone in missing if gone and begun]
