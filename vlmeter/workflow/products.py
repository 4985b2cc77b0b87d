"""What a finished study consists of, so that what somebody deleted is made again.

A workflow that asks for its last product alone has nothing to do as long as that one is there, whatever became of the
others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from vlmeter.common.code import digest_of
from vlmeter.figures.registry import IN_PRINT, NOT_DRAWN, WITH_CAPTIONS
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
    drawn = [(layout.figure_folder(place, name),) for place, names in figures.items() for name in names]
    printed = [(layout.prints(place),) for place in figures]
    limits = [(path,) for subject in on_devices for path in (layout.ceilings(subject), layout.work(subject))]
    return [
        (layout.table, layout.table_csv, layout.environments),
        *limits,
        *([(layout.roofline,)] if on_devices else []),
        (layout.answers,),
        (layout.claims,),
        *drawn,
        *printed,
        *([(layout.thumbnails,)] if thumbnails else []),
        (layout.report,),
    ]


def deleted(products: Sequence[tuple[Path, ...]]) -> list[Path]:
    """Name a missing file of every product that is not whole; none before the first of all has been made."""
    missing = [[path for path in paths if not path.exists()] for paths in products]
    begun = any(len(gone) < len(paths) for gone, paths in zip(missing, products, strict=True))
    return [gone[0] for gone in missing if gone and begun]


def to_draw_again(layout: Layout, figures: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Say in which places a figure's folder is there and not all that it held, each with a digest of just these.

    A workflow that knows folders alone does not see a file that was deleted inside one. figures: see `products_of`.
    """
    return {
        place: _digest_of(spoilt)
        for place, names in figures.items()
        if (spoilt := [layout.figure_folder(place, name) for name in names if _is_spoilt(layout, place, name)])
    }


def to_print_again(layout: Layout, figures: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Say the same of the folders of figures for slides and papers."""
    return {
        place: _digest_of([layout.prints(place)])
        for place, names in figures.items()
        if layout.prints(place).exists()
        and not all(
            layout.printed(place, name, form).exists()
            for name in names
            if _is_drawn(layout, place, name)
            for form in IN_PRINT
        )
    }


def _is_spoilt(layout: Layout, place: str, name: str) -> bool:
    drawn = _is_drawn(layout, place, name)
    if drawn is None:
        return layout.figure_folder(place, name).exists()
    return drawn and not all(layout.figure(place, name, form).exists() for form in WITH_CAPTIONS)


def _is_drawn(layout: Layout, place: str, name: str) -> bool | None:
    """Whether there is a figure by its caption; None without a caption."""
    path = layout.figure(place, name, "txt")
    return not path.read_text(encoding="utf-8").startswith(NOT_DRAWN) if path.exists() else None


def _digest_of(folders: Sequence[Path]) -> str:
    """Digest of folders with the times at which they were changed, so that none ever comes again."""
    return digest_of("\n".join(f"{path} {path.stat().st_mtime_ns}" for path in folders).encode())
