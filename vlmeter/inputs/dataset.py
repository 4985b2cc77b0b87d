"""Photographs with questions: chosen from a source, checked, and kept as files with a manifest.

Every source yields *records* in the schema of VQA v2 (docs/datasets.md). A seeded choice of them is checked - is there
an image, can it be decoded, does the model take its size - and written as image files beside a `manifest.json`, before
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
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from pydantic import ValidationError

from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.inputs.fields import Undecodable, answers_of, image_bytes, question_of
from vlmeter.inputs.images import decode_and_settle
from vlmeter.inputs.manifest import Manifest, ManifestImage, SkippedRecord
from vlmeter.inputs.rows import SourceRow, rank_of, shown
from vlmeter.inputs.sources import describe, row_batches
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
        source: which records, how many, the seed of the choice, and whether records without a usable image are passed
            over.
        out_dir: folder for manifest.json and the image files.
        check_size: called with each image's width and height in px; raises UserError for a size no model here
            takes.
        progress: called with the number of images stored so far and the number wanted.

    Raises:
        UserError: one sentence that names the source and, where one is at fault, the record.
    """
    label = describe(source)
    batches, commit = row_batches(source)
    manifest_path = out_dir / "manifest.json"
    manifest_path.unlink(missing_ok=True)  # an old one would describe files that are being replaced
    images: list[ManifestImage] = []
    skipped: dict[int | str, SkippedRecord] = {}
    seen: set[str] = set()
    stored: dict[int | str, str] = {}
    for row in choose(batches, images=source.images, seed=source.seed, without=skipped.keys()):
        if str(row.question_id) in seen:
            raise UserError(f"{label}: question_id {shown(row.question_id)} stands there more than once")
        seen.add(str(row.question_id))
        first = out_dir / stored[row.image_id] if row.image_id in stored else None
        try:
            images.append(_store(row, out_dir, check_size=check_size, first=first))
        except Undecodable as reason:
            if not source.skip_undecodable:
                remedy = "dataset.skip_undecodable: true passes over such records"
                raise UserError(f"{label}: {row.name}: {reason}; {remedy}") from None
            skipped[row.image_id] = SkippedRecord(
                image_id=row.image_id, question_id=row.question_id, reason=str(reason)
            )
            continue
        except UserError as error:
            raise UserError(f"{label}: {row.name}: {error}") from None
        stored.setdefault(row.image_id, images[-1].file)
        if progress is not None:
            progress(len(images), source.images)
        if len(images) == source.images:
            break
    manifest = Manifest(source=source, commit=commit, images=tuple(images), skipped=tuple(skipped.values()))
    if len(images) < source.images:
        raise UserError(f"{label}: {_too_few(manifest)}")
    write_atomically(manifest_path, (manifest.model_dump_json(indent=2) + "\n").encode())
    return manifest


def _too_few(manifest: Manifest) -> str:
    found, skipped = len(manifest.images), manifest.skipped_in_words()
    if not found:
        return f"has no record that can be used ({skipped})" if skipped else "has no records"
    wanted = f"has {found} records, dataset.images asks for {manifest.source.images}; legal: 1 to {found}"
    return f"{wanted} ({skipped})" if skipped else wanted


def read_manifest(path: Path, *, check_files: bool = False) -> Manifest:
    """Read a manifest; with `check_files` every image file must be there and as it was when fetched.

    Raises UserError: one sentence that names the manifest, and the key or the image file that is at fault.
    """
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"dataset manifest {path} does not exist") from None
    except OSError as error:
        raise UserError(f"dataset manifest {path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        detail = error.errors()[0]
        where = ".".join(str(part) for part in detail["loc"]) or "the file"
        what = " ".join(detail["msg"].lower().split())
        raise UserError(f"dataset manifest {path}: {shown(where)}: {what}") from None
    if len(manifest.images) != manifest.source.images:
        raise UserError(
            f"dataset manifest {path}: images: {len(manifest.images)} are listed, and source.images is "
            f"{manifest.source.images}"
        )
    for image in manifest.images if check_files else ():
        file = path.parent / image.file
        try:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
        except (OSError, ValueError) as error:  # a name with a NUL byte is a ValueError
            missing = isinstance(error, FileNotFoundError)
            reason = "does not exist" if missing else f"cannot be read: {getattr(error, 'strerror', None) or error}"
            raise UserError(f"dataset manifest {path}: image file {shown(image.file)} {reason}") from None
        if digest != image.sha256:
            raise UserError(f"dataset manifest {path}: image file {image.file} has changed since it was fetched")
    return manifest


def choose(
    batches: Iterable[Iterable[SourceRow]], *, images: int, seed: int, without: Collection[int | str] = ()
) -> Iterator[SourceRow]:
    """Yield rows, one per image, in the order of the batches and of a seeded rank within each.

    Whoever asked for `images` of them stops there, and no further batch is read. Where there are fewer images than
    that, further questions on images that were already chosen follow; while they wait, they hold no image, since
    thousands of them may. A source that has too few rows ends early. `without` may grow meanwhile: images of which no
    further row is wanted.
    """
    seen: set[int | str] = set()
    spare: list[SourceRow] = []
    for batch in batches:
        for row in sorted(batch, key=lambda r: (rank_of(seed, r.image_id), rank_of(seed, r.question_id))):
            if row.image_id not in seen:
                seen.add(row.image_id)
                yield row
            elif len(spare) < images and row.image_id not in without:
                spare.append(row.without_image())
    yield from spare


def _store(
    row: SourceRow, out_dir: Path, *, check_size: Callable[[int, int], None] | None, first: Path | None = None
) -> ManifestImage:
    """Check one record and keep its image as a file.

    A record that holds no image any more takes it from `first`, the file of the first record of the same image. Raises
    Undecodable for an image that is absent, empty or broken, UserError for whatever else cannot be used.
    """
    fields = row.read_row()
    question, answers = question_of(fields), answers_of(fields)
    from_file = first is not None and "image" not in fields
    encoded = first.read_bytes() if from_file and first else image_bytes(fields["image"], row.folder)
    try:
        image, data, suffix = decode_and_settle(encoded)
    except ValueError as error:
        raise Undecodable(f"the image cannot be decoded: {error}") from None
    if check_size is not None:
        check_size(image.width, image.height)
    file = f"{_file_stem(row.question_id)}{suffix}"
    write_atomically(out_dir / file, data)
    return ManifestImage(
        file=file,
        image_id=row.image_id,
        question_id=row.question_id,
        question=question,
        answers=answers,
        width_px=image.width,
        height_px=image.height,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _file_stem(question_id: int | str) -> str:
    """Give a file name that is safe on any file system, and differs wherever the ids differ by more than their type.

    Some file systems take `A` for `a`.
    """
    text = str(question_id)
    safe = re.sub(r"[^A-Za-z0-9_-]", "_", text)[:80]
    return f"q{safe}" if safe == text.lower() else f"q{safe}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
