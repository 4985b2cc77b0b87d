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
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from importlib.resources.abc import Traversable
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vlmeter.dataset_source import DatasetSource, EmbeddedSource, HubSource, LocalSource
from vlmeter.errors import UserError
from vlmeter.files import write_atomically
from vlmeter.images import decode_and_settle

#: Columns without which a record cannot be used; `answers` and the rest of the schema may be absent.
REQUIRED_COLUMNS = ("image_id", "question_id", "question", "image")

#: Records of a row group among which the choice is made before the next ones are looked at: bounds the memory
#: that a dataset of huge row groups takes (256 records of 200 kB are 50 MB).
BATCH_RECORDS = 256

#: Tries for one read from the hub. `datasets` makes 20, which lets a lost network pass for a slow one for ten
#: minutes.
HUB_READ_TRIES = 3


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(BaseModel):
    """One person's answer, as VQA v2 has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    answer: str
    answer_confidence: str | None = None
    answer_id: int | None = None


class ManifestImage(_Frozen):
    """One photograph with one question."""

    file: str = Field(description="image file, relative to the manifest's folder")
    image_id: int | str
    question_id: int | str
    question: str
    answers: tuple[Answer, ...]
    width_px: int
    height_px: int
    sha256: str = Field(description="of the image file")


class Manifest(_Frozen):
    """What was fetched: the photographs in their order, and where they come from."""

    version: Literal[1] = 1
    source: DatasetSource
    commit: str | None = Field(None, description="commit of the hub repository that was read")
    images: tuple[ManifestImage, ...]


@dataclass(frozen=True)
class Record:
    """A record that may be chosen: its identity, and a way to the rest of it, which is read only if it is."""

    image_id: int | str
    question_id: int | str
    read_row: Callable[[], Mapping[str, Any]]
    folder: Traversable | None = None  # where file names in the image column are to be found
    holds_image: bool = False  # whether the encoded image is in memory already

    @property
    def name(self) -> str:
        """How messages name it."""
        return f"question_id {self.question_id}, image_id {self.image_id}"

    def without_image(self) -> Record:
        """The same record without the image that it may hold in memory."""
        if not self.holds_image:
            return self
        row = {name: value for name, value in self.read_row().items() if name != "image"}
        return replace(self, read_row=lambda: row, holds_image=False)


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
    batches, commit = _batches(source)
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


def describe(source: DatasetSource) -> str:
    """Name a source the way messages do."""
    match source:
        case EmbeddedSource():
            return "embedded sample"
        case HubSource():
            return f"dataset {source.name} ({source.split})"
        case LocalSource():
            return f"dataset {source.path}"


def choose(batches: Iterable[Iterable[Record]], *, images: int, seed: int) -> Iterator[Record]:
    """Yield `images` records, one per image, in the order of the batches and of a seeded rank within each.

    Where there are fewer images than that, further questions on images that were already chosen follow; while
    they wait, they hold no image, since thousands of them may. A source that has too few records ends early.
    """
    seen: set[int | str] = set()
    spare: list[Record] = []
    for batch in batches:
        for record in sorted(batch, key=lambda r: (_rank(seed, r.image_id), _rank(seed, r.question_id))):
            if record.image_id not in seen:
                seen.add(record.image_id)
                yield record
                if len(seen) == images:
                    return
            elif len(spare) < images:
                spare.append(record.without_image())
    yield from spare[: images - len(seen)]


def _rank(seed: int, identity: object) -> bytes:
    return hashlib.sha256(f"{seed}/{identity}".encode()).digest()


def _seeded_order(items: int, *, seed: int, salt: str) -> list[int]:
    return sorted(range(items), key=lambda item: _rank(seed, f"{salt}/{item}"))


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


# --- records out of rows ------------------------------------------------------------------------------------


def _check_columns(names: Iterable[str], *, label: str) -> None:
    names = list(names)
    for column in REQUIRED_COLUMNS:
        if column not in names:
            raise UserError(f"{label}: has no column {column}; it has: {', '.join(names)}")


def _record(
    row: Mapping[str, Any],
    *,
    label: str,
    read_row: Callable[[], Mapping[str, Any]] | None = None,
    folder: Traversable | None = None,
    holds_image: bool = False,
) -> Record:
    """Make a record of a row's ids; without `read_row` the row is whole already."""
    for column in ("image_id", "question_id"):
        if not isinstance(row[column], int | str) or row[column] == "":
            raise UserError(
                f"{label}: question_id {row['question_id']!r}, image_id {row['image_id']!r}: {column} is not "
                "legal; legal: a whole number or text"
            )
    return Record(row["image_id"], row["question_id"], read_row or (lambda: row), folder, holds_image)


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


# --- sources ------------------------------------------------------------------------------------------------


def _batches(source: DatasetSource) -> tuple[Iterable[Iterable[Record]], str | None]:
    """Give a source's records in batches, and the commit they are read at if there is such a thing."""
    label = describe(source)
    match source:
        case EmbeddedSource():
            sample = resources.files("vlmeter").joinpath("data", "sample")
            return [_jsonl_records(sample.joinpath("records.jsonl"), sample, label=label)], None
        case LocalSource():
            files = _local_files(Path(source.path), label=label)
            readers = (_LOCAL_READERS[file.suffix](file, file.parent, label=label) for file in files)
            return [chain.from_iterable(readers)], None  # one batch: the choice is among all files together
        case HubSource():
            return _hub_batches(source, label=label)


def _jsonl_records(file: Traversable, folder: Traversable, *, label: str) -> Iterator[Record]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{label}: {file.name} cannot be read: {error}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{label}: {file.name} line {number} is not JSON: {error}") from None
        if not isinstance(row, dict):
            raise UserError(f"{label}: {file.name} line {number} is not a record, but {line[:40]}")
        _check_columns(row, label=f"{label}: {file.name} line {number}")
        yield _record(row, label=label, folder=folder)


def _local_files(path: Path, *, label: str) -> list[Path]:
    if any(character in str(path) for character in "*?[") and not path.exists():
        candidates = list(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        none_found = "matches no"
    elif path.is_dir():
        candidates = list(path.rglob("*"))
        none_found = "holds no"
    elif path.exists():
        candidates = [path]
        none_found = "is not a"
    else:
        raise UserError(f"{label}: dataset.path {path} does not exist")
    files = sorted(file for file in candidates if file.suffix in _LOCAL_READERS and file.is_file())
    if not files:
        raise UserError(f"{label}: dataset.path {path} {none_found} .parquet or .jsonl file")
    return files


def _parquet_records(file: Path, folder: Path, *, label: str) -> Iterator[Record]:
    """Read the ids alone; the rest, images above all, is read row group by row group for chosen records."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            _check_columns(parquet.schema_arrow.names, label=f"{label}: {file.name}")
            groups = [
                parquet.read_row_group(group, columns=["image_id", "question_id"]).to_pylist()
                for group in range(parquet.num_row_groups)
            ]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{label}: {file} is not a whole parquet file: {_first_line(error)}") from None
    for group, rows in enumerate(groups):
        for offset, row in enumerate(rows):
            read_row = partial(_parquet_row, file, group, offset)
            yield _record(row, label=label, read_row=read_row, folder=folder)


def _parquet_row(file: Path, group: int, offset: int) -> Mapping[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            wanted = [name for name in (*REQUIRED_COLUMNS, "answers") if name in parquet.schema_arrow.names]
            row: dict[str, Any] = parquet.read_row_group(group, columns=wanted).slice(offset, 1).to_pylist()[0]
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"cannot be read from {file}: {_first_line(error)}") from None
    return row


_LOCAL_READERS: dict[str, Callable[..., Iterator[Record]]] = {
    ".parquet": _parquet_records,
    ".jsonl": _jsonl_records,
}


def _hub_batches(source: HubSource, *, label: str) -> tuple[Iterator[list[Record]], str]:
    """Find the repository and its split; the records themselves come when the batches are iterated over."""
    with _hub_errors(source, label):
        import datasets
        import huggingface_hub

        if huggingface_hub.constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
            raise UserError(
                f"{label}: must be read from the hub, but HF_HUB_OFFLINE is set; unset it, or set "
                "dataset.source to embedded or local"
            )
        # the commit pins every later request to one state of the repository
        commit = huggingface_hub.HfApi().dataset_info(source.name, revision=source.revision).sha
        splits = datasets.load_dataset(source.name, source.config, revision=commit, streaming=True)
    if source.split not in splits:
        raise UserError(f"{label}: has no split {source.split}; legal: {', '.join(map(str, splits))}")
    stream = splits[source.split]
    if stream.column_names is not None:
        _check_columns(stream.column_names, label=label)
    return _hub_records(source, stream, label=label), str(commit)


def _hub_records(source: HubSource, stream: Any, *, label: str) -> Iterator[list[Record]]:
    """Yield batches of records, row group by row group; nothing is requested beyond the last batch taken."""
    seed = source.seed
    for shard in _seeded_order(stream.num_shards, seed=seed, salt="shard"):
        with _hub_errors(source, label):
            groups = stream.shard(num_shards=stream.num_shards, index=shard).reshard()
        for group in _seeded_order(groups.num_shards, seed=seed, salt=f"shard {shard}, group"):
            with _hub_errors(source, label):
                # left encoded: a broken image that is not chosen must not end the stream
                rows = iter(groups.shard(num_shards=groups.num_shards, index=group).decode(False))
            while True:
                with _hub_errors(source, label):
                    batch = list(islice(rows, BATCH_RECORDS))
                if not batch:
                    break
                _check_columns(batch[0], label=label)
                yield [_record(row, label=label, holds_image=True) for row in batch]


_LEGAL_REPOSITORY = "legal: a repository of parquet files, such as lmms-lab/VQAv2"


@contextmanager
def _hub_errors(source: HubSource, label: str) -> Iterator[None]:
    """Turn what the hub's client libraries raise into one sentence, and keep their patience within reason.

    Only calls into those libraries belong inside: whatever goes wrong there - name resolution, HTTP, a
    repository in a form that cannot be read - concerns the user's choice of dataset or their network.
    """
    import datasets.config as config

    patience = {name: getattr(config, name) for name in ("STREAMING_READ_MAX_RETRIES", "STREAMING_OPEN_MAX_RETRIES")}
    try:
        for name in patience:
            setattr(config, name, HUB_READ_TRIES)
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{label}: {_hub_sentence(source, error)}") from error
    finally:
        for name, tries in patience.items():
            setattr(config, name, tries)


def _hub_sentence(source: HubSource, error: Exception) -> str:
    from datasets.data_files import EmptyDatasetError
    from datasets.exceptions import DataFilesNotFoundError, DatasetNotFoundError
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    hub = constants.ENDPOINT
    gated = f"is gated; ask for access at {hub}/datasets/{source.name} and log in with `hf auth login`"
    match error:
        case GatedRepoError():
            return gated
        case DatasetNotFoundError() if "gated" in str(error):  # as `datasets` puts it, with no cause
            return gated
        case RevisionNotFoundError():
            return f"has no revision {source.revision} on {hub}"
        case RepositoryNotFoundError():
            return f"does not exist on {hub}, or is private and needs `hf auth login`"
        case DataFilesNotFoundError() | EmptyDatasetError():
            return f"holds no data files; {_LEGAL_REPOSITORY}"
    if "scripts are no longer supported" in str(error):
        return f"is made by a script, which no longer runs; {_LEGAL_REPOSITORY}"
    return f"cannot be read from {hub}: {type(error).__name__}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
