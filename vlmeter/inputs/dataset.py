"""Photographs with questions: chosen from a source, checked, and kept as files with a manifest.

Every source yields *records* in the schema of VQA v2. A seeded choice of them is checked - is there an image,
can it be decoded, does the model take its size - and written as image files beside a `manifest.json`, before
anything is measured. What follows in the pipeline reads the manifest and never asks the source again.

The choice ranks records by a hash of the seed and their identity rather than by drawing from a random
generator. So it is the same on every platform and with every library version, and a larger choice begins with
the smaller one: asking for more photographs leaves the cells that were measured on the first ones as they
are.

A hub dataset may have gigabytes, of which ten photographs are wanted. A parquet file is made of *row groups*,
the smallest piece that can be read over HTTP by itself. So the shards are visited in an order set by the
seed, the row groups of a shard likewise, and reading stops with the row group that gives the last photograph.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.inputs.images import decode_and_settle
from vlmeter.inputs.manifest import Answer, Manifest, ManifestImage
from vlmeter.inputs.rows import Record, rank_of
from vlmeter.inputs.sources import describe, record_batches
from vlmeter.study.dataset_source import DatasetSource


def fetch(
    source: DatasetSource,
    out_dir: Path,
    *,
    check_size: Callable[[int, int], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Fetch the photographs that `source` describes into `out_dir`; manifest.json there is written last.

    Args:
        source: which records, how many, and the seed of the choice.
        out_dir: folder for manifest.json and the image files.
        check_size: called with each image's width and height in px; raises UserError for a size no model here
            takes.
        progress: called with the number of images stored so far and the number wanted.

    Raises:
        UserError: one sentence that names the source and, where one is at fault, the record.
    """
    label = describe(source)
    batches, commit = record_batches(source)
    manifest_path = out_dir / "manifest.json"
    manifest_path.unlink(missing_ok=True)  # an old one would describe files that are being replaced
    images: list[ManifestImage] = []
    seen: set[int | str] = set()
    stored: dict[int | str, str] = {}
    for record in choose(batches, images=source.images, seed=source.seed):
        if record.question_id in seen:
            raise UserError(f"{label}: question_id {record.question_id} stands there more than once")
        seen.add(record.question_id)
        first = out_dir / stored[record.image_id] if record.image_id in stored else None
        images.append(_store(record, out_dir, label=label, check_size=check_size, first=first))
        stored.setdefault(record.image_id, images[-1].file)
        if progress is not None:
            progress(len(images), source.images)
    if len(images) < source.images:
        raise UserError(
            f"{label}: has {len(images)} records, dataset.images asks for {source.images}; legal: 1 to {len(images)}"
            if images
            else f"{label}: has no records"
        )
    manifest = Manifest(source=source, commit=commit, images=tuple(images))
    write_atomically(manifest_path, (manifest.model_dump_json(indent=2) + "\n").encode())
    return manifest


def read_manifest(path: Path, *, check_files: bool = False) -> Manifest:
    """Read a manifest; with `check_files` every image file must be there and as it was when fetched."""
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"dataset manifest {path} does not exist") from None
    except OSError as error:
        raise UserError(f"dataset manifest {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"]) or "the file"
        raise UserError(f"dataset manifest {path}: {where}: {detail['msg'].lower()}") from None
    if check_files:
        for image in manifest.images:
            file = path.parent / image.file
            if not file.is_file():
                raise UserError(f"dataset manifest {path}: image file {image.file} does not exist")
            if hashlib.sha256(file.read_bytes()).hexdigest() != image.sha256:
                raise UserError(f"dataset manifest {path}: image file {image.file} has changed since it was fetched")
    return manifest


def choose(batches: Iterable[Iterable[Record]], *, images: int, seed: int) -> Iterator[Record]:
    """Yield `images` records, one per image, in the order of the batches and of a seeded rank within each.

    Where there are fewer images than that, further questions on images that were already chosen follow; while
    they wait, they hold no image, since thousands of them may. A source that has too few records ends early.
    """
    seen: set[int | str] = set()
    spare: list[Record] = []
    for batch in batches:
        for record in sorted(batch, key=lambda r: (rank_of(seed, r.image_id), rank_of(seed, r.question_id))):
            if record.image_id not in seen:
                seen.add(record.image_id)
                yield record
                if len(seen) == images:
                    return
            elif len(spare) < images:
                spare.append(record.without_image())
    yield from spare[: images - len(seen)]


def _store(
    record: Record,
    out_dir: Path,
    *,
    label: str,
    check_size: Callable[[int, int], None] | None,
    first: Path | None = None,
) -> ManifestImage:
    """Check one record and keep its image as a file; every complaint names the record.

    A record that holds no image any more takes it from `first`, the file of the first record of the same image.
    """
    try:
        row = record.read_row()
        question, answers = _question(row), _answers(row)
        from_file = first is not None and "image" not in row
        encoded = first.read_bytes() if from_file and first else _image_bytes(row["image"], record.folder)
        image, data, suffix = decode_and_settle(encoded)
        if check_size is not None:
            check_size(image.width, image.height)
    except UserError as error:
        raise UserError(f"{label}: {record.name}: {error}") from None
    except ValueError as error:
        raise UserError(f"{label}: {record.name}: the image cannot be decoded: {error}") from None
    file = f"{_file_stem(record.question_id)}{suffix}"
    write_atomically(out_dir / file, data)
    return ManifestImage(
        file=file,
        image_id=record.image_id,
        question_id=record.question_id,
        question=question,
        answers=answers,
        width_px=image.width,
        height_px=image.height,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _file_stem(question_id: int | str) -> str:
    """Give a file name that is safe on any file system, and differs wherever the ids differ."""
    text = str(question_id)
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:80]
    return f"q{safe}" if safe == text else f"q{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def _question(row: Mapping[str, Any]) -> str:
    question = row["question"]
    if not isinstance(question, str) or not question.strip():
        raise UserError("the record has no question")
    return question


def _answers(row: Mapping[str, Any]) -> tuple[Answer, ...]:
    answers = row.get("answers") or ()
    try:
        if isinstance(answers, Mapping):  # a list of structs that was read as a struct of lists
            answers = [dict(zip(answers, values, strict=True)) for values in zip(*answers.values(), strict=True)]
        return tuple(Answer.model_validate(answer) for answer in answers)
    except (TypeError, ValueError):
        raise UserError("answers are not a list of {answer, answer_confidence, answer_id}") from None


def _image_bytes(value: object, folder: Traversable | None) -> bytes:
    """Get the encoded image out of the image column: bytes, a struct of bytes and path, or a file name."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if not value:
        raise UserError("the record has no image")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise UserError(f"the image is a {type(value).__name__}; legal: encoded bytes or a file name")
    if folder is None:
        raise UserError(f"the record has no image, only the file name {value}")
    try:
        return folder.joinpath(value).read_bytes()
    except OSError as error:
        raise UserError(f"image file {value} cannot be read: {error.strerror or error}") from None
