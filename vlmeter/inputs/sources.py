"""Records of photographs with questions, read from files on this machine."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from importlib import resources
from itertools import chain
from pathlib import Path

from vlmeter.common.errors import UserError
from vlmeter.inputs.hub import hub_batches
from vlmeter.inputs.jsonl import jsonl_rows
from vlmeter.inputs.parquet import parquet_rows
from vlmeter.inputs.rows import SourceRow
from vlmeter.study.dataset_source import DatasetSource, EmbeddedSource, HubSource, LocalSource


def describe(source: DatasetSource) -> str:
    """Name a source the way messages do."""
    match source:
        case EmbeddedSource():
            return "embedded sample"
        case HubSource():
            return f"dataset {source.name} ({source.split})"
        case LocalSource():
            return f"dataset {source.path}"


def row_batches(source: DatasetSource) -> tuple[Iterable[Iterable[SourceRow]], str | None]:
    """Give a source's records in batches, and the commit they are read at if there is such a thing."""
    label = describe(source)
    match source:
        case EmbeddedSource():
            sample = resources.files("vlmeter").joinpath("data", "sample")
            return [jsonl_rows(sample.joinpath("records.jsonl"), sample, label=label)], None
        case LocalSource():
            files = _local_files(source.path, label=label)
            readers = (_LOCAL_READERS[file.suffix.lower()](file, file.parent, label=label) for file in files)
            return [chain.from_iterable(readers)], None  # one batch: the choice is among all files together
        case HubSource():
            return hub_batches(source, label=label)


def _local_files(given: str, *, label: str) -> list[Path]:
    """List the files that `dataset.path` means, in order; `~` is one's home.

    What is hidden inside a folder, or to a pattern that does not name it, is passed over, as a shell does:
    `._a.parquet` is what macOS leaves beside a file, and `.ipynb_checkpoints/` holds copies.
    """
    try:
        path = Path(given).expanduser()
        if any(character in given for character in "*?[") and not path.exists():
            matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 - hides what a shell does
            candidates = [file for file in matches if not _is_hidden(Path(*(set(file.parts) - set(path.parts))))]
            none_found = "matches no"
        elif path.is_dir():
            candidates = [file for file in path.rglob("*") if not _is_hidden(file.relative_to(path))]
            none_found = "holds no"
        elif path.exists():
            candidates = [path]
            none_found = "is not a"
        else:
            raise UserError(f"{label}: dataset.path {path} does not exist")
        files = sorted(file for file in candidates if file.suffix.lower() in _LOCAL_READERS and _is_meant(file))
        for file in files:
            _require_content(file, label=label)
    except (OSError, RuntimeError) as error:  # RuntimeError: the home of a user who is not known
        raise UserError(f"{label}: dataset.path cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not files:
        raise UserError(f"{label}: dataset.path {path} {none_found} .parquet or .jsonl file")
    return files


def _is_meant(file: Path) -> bool:
    """Whether a path is a file, or a link to one that is not there: a gap in the data, which is not passed over."""
    return file.is_file() or (file.is_symlink() and not file.exists())


def _is_hidden(path: Path) -> bool:
    """Whether a path in a folder is not for readers of data: hidden, or, as Spark and pyarrow have it, with a "_".

    `_delta_log` and `_temporary` hold parquet files that are no records, `__MACOSX` what an archive brought along; a
    program that has a file open leaves a "~" before its name.
    """
    return any(part.startswith((".", "_", "~")) for part in path.parts)


def _require_content(file: Path, *, label: str) -> None:
    """Raise UserError for what stands in for a file that was not downloaded: a link to nothing, a pointer."""
    if not file.exists():
        raise UserError(f"{label}: {file} is a link to a file that is not there; fetch its content (`git annex get`)")
    with file.open("rb") as content:
        if content.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise UserError(f"{label}: {file} is a pointer of Git LFS and not the file; fetch it (`git lfs pull`)")


_LFS_POINTER = b"version https://git-lfs"


_LOCAL_READERS: dict[str, Callable[..., Iterator[SourceRow]]] = {
    ".parquet": parquet_rows,
    ".jsonl": jsonl_rows,
}
