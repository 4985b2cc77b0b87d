"""What a finished study consists of, so that what somebody deleted is made again.

A workflow that asks for its last product alone has nothing to do as long as that one is there, whatever became of the
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlmeter.figures.registry import IN_PRINT, WITH_CAPTIONS
from vlmeter.study.layout import Layout


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
        tuple(layout.figure(place, name, form) for form in forms)
        for place, names in figures.items()
        for name in names
        for forms in (WITH_CAPTIONS, IN_PRINT)
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
