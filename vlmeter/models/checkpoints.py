"""Find a checkpoint, look at its files before anything is loaded, and load it with transformers.

A checkpoint is a folder, or a repository on the hub, with `config.json`, the files of a processor, and safetensors: one
`model.safetensors`, or several with an index. The hub's own client is asked, so HF_HOME, HF_HUB_OFFLINE and HF_TOKEN
mean what they mean elsewhere; a token is read from the environment by that client alone, and never seen here.

What can be wrong with a checkpoint is found before a weight is read, by its headers: a safetensors file says at its
beginning which tensors it holds and where they end. Nothing in a checkpoint is executed, unless the study says
`trust_remote_code: true` and names an exact commit.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmeter.common.errors import UserError
from vlmeter.models.families.geometry import Settings

CONFIG_FILE = "config.json"

PROCESSOR_FILE = "processor_config.json"

PREPROCESSOR_FILE = "preprocessor_config.json"

ADAPTER_FILE = "adapter_config.json"


WEIGHTS_FILE = "model.safetensors"


INDEX_FILE = "model.safetensors.index.json"


#: What is fetched from the hub: configuration, tokenizer, processor, chat template; then weights; and code only where
#: the study trusts it.
CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


WEIGHT_FILES = ("*.safetensors",)


CODE_FILES = ("*.py",)


HEADER_LIMIT_BYTES = 100 << 20

#: What a file is that somebody gives instead of a folder.
KINDS_OF_FILE: Mapping[str, str] = {
    ".bin": "is a file of pickled weights, which can run code while it is read",
    ".ckpt": "is a file of pickled weights, which can run code while it is read",
    ".gguf": "is a GGUF model, for llama.cpp and its kin",
    ".pt": "is a file of pickled weights, which can run code while it is read",
    ".pth": "is a file of pickled weights, which can run code while it is read",
    ".safetensors": "is a file of weights, without the configuration beside it",
}

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine. source: what the study calls it; commit: of a repository on the hub."""

    source: str
    folder: Path
    commit: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Content of config.json; raises UserError that says what a folder without one is."""
        path = self.folder / CONFIG_FILE
        if not path.is_file() or (self.folder / ADAPTER_FILE).is_file():
            raise UserError(f"{self.source}: {_what_it_is(self)}")
        return read_json(path)

    @property
    def template_file(self) -> str:
        """Name of the file that the chat template stands in, in the order in which transformers looks for it."""
        for name in (PROCESSOR_FILE, "chat_template.json", "chat_template.jinja", "tokenizer_config.json"):
            path = self.folder / name
            if path.is_file() and (path.suffix == ".jinja" or read_json(path).get("chat_template") is not None):
                return name
        return "chat_template.jinja"

    @property
    def has_processor(self) -> bool:
        """Whether there are any settings of a processor."""
        return any((self.folder / name).is_file() for name in (PROCESSOR_FILE, PREPROCESSOR_FILE))

    def processor_config(self) -> Settings:
        """Settings of the processor, and under image_processor those of its image processor, as transformers reads.

        The processor's are those of processor_config.json. The image processor's are nested in it, in checkpoints that
        transformers 5 saved, and then no other file is read; else they are those of preprocessor_config.json.
        """
        path = self.folder / PROCESSOR_FILE
        own = Settings(read_json(path) if path.is_file() else {}, PROCESSOR_FILE)
        image = own.get("image_processor")
        if image is not None:
            if not isinstance(image, dict):
                raise UserError(f"{self.source}: image_processor in {PROCESSOR_FILE} is {image!r}, not a mapping")
            return Settings({**own, "image_processor": Settings(image, PROCESSOR_FILE)}, PROCESSOR_FILE)
        path = self.folder / PREPROCESSOR_FILE
        if not path.is_file():
            raise UserError(
                f"{self.source}: has neither {PREPROCESSOR_FILE} nor a {PROCESSOR_FILE} with an image_processor in it"
            )
        return Settings({**own, "image_processor": Settings(read_json(path), PREPROCESSOR_FILE)}, PROCESSOR_FILE)


def _what_it_is(checkpoint: Checkpoint) -> str:
    """Say what a folder is, if not a whole checkpoint in transformers' format, and what to do with it."""
    folder = checkpoint.folder
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    if ADAPTER_FILE in names:
        base = read_json(folder / ADAPTER_FILE).get("base_model_name_or_path")
        of = f" for {base}" if isinstance(base, str) and base else ""
        return (
            f"holds a LoRA adapter{of} ({ADAPTER_FILE}), and vlmeter measures whole models; merge the two with peft "
            "(merge_and_unload), save the result, and give that folder"
        )
    if any(name.endswith(".gguf") for name in names) or "gguf" in checkpoint.source.lower():
        return (
            f"has no {CONFIG_FILE} and is a GGUF model, for llama.cpp and its kin; vlmeter reads transformers' format, "
            f"{CONFIG_FILE} with safetensors: give the checkpoint that it was made of"
        )
    if "params.json" in names or any(name.startswith("consolidated") for name in names):
        return (
            f"has no {CONFIG_FILE} and is in the format of the model's makers (params.json, consolidated weights); "
            "give the checkpoint in transformers' format"
        )
    has = f"; it has {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "; it is empty"
    return f"{CONFIG_FILE}: no such file{has}"


def open_checkpoint(
    source: str | Path, *, revision: str | None = None, weights: bool = True, code: bool = False
) -> Checkpoint:
    """Find a checkpoint, without reading a weight.

    Args:
        source: a folder, or a hub id such as "allenai/Molmo-7B-D-0924", downloaded into the hub's cache unless it is
            there; HF_HUB_OFFLINE=1 keeps off the network.
        revision: branch, tag or commit of a hub id.
        weights: whether the weights are wanted, or the configuration alone.
        code: whether Python files are wanted too.

    Raises UserError with one sentence for everything that can be wrong with it.
    """
    folder = Path(source)
    if folder.is_dir():
        return Checkpoint(source=str(source), folder=folder)
    if folder.exists():
        kind = KINDS_OF_FILE.get(folder.suffix, "is a file")
        raise UserError(f"{source}: {kind}; a checkpoint is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such folder, and not a hub id such as Qwen/Qwen2.5-VL-7B-Instruct either")
    wanted = (*CONFIG_FILES, *(WEIGHT_FILES if weights else ()), *(CODE_FILES if code else ()))
    folder = _snapshot(source, revision, wanted)
    return Checkpoint(source=source, folder=folder, commit=folder.name if COMMIT.fullmatch(folder.name) else None)


@lru_cache(maxsize=64)
def _snapshot(hub_id: str, revision: str | None, wanted: tuple[str, ...]) -> Path:
    """Return the folder of a hub repository in the local cache, downloading what is not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named = hub_id if revision is None else f"{hub_id} at revision {revision}"
    try:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(wanted)))
    except GatedRepoError as error:
        raise UserError(
            f"{named}: gated on the hub; ask for access on its page, then log in with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise UserError(f"{named}: the hub has no such revision; legal are its branches, tags and commits") from error
    except RepositoryNotFoundError as error:
        raise UserError(f"{named}: not found on the hub (misspelt, private, or not a model)") from error
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"{named}: not in the local cache, and the hub is out of reach (no network, or HF_HUB_OFFLINE); "
            "download it first or give a folder"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{named}: the download failed: {str(error).splitlines()[0]}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object of a checkpoint; raises UserError if it is missing or something else."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; a checkpoint has one")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not a JSON object")
    return content


def checkpoint_digest(weights: str, revision: str | None) -> str | None:
    """Digest of what a checkpoint is right now, without the network: another one makes its cells stale.

    A hub id is its commit, if that is known here; a folder is its small files and the headers of its large ones. None
    for what is not at hand yet.
    """
    folder = Path(weights)
    if folder.is_dir():
        files = sorted(path for path in folder.iterdir() if path.is_file())
        stats = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
        return _folder_digest(str(folder), stats)
    commit = _known_commit(weights, revision)
    return None if commit is None else commit[:16]


@lru_cache(maxsize=16)
def _folder_digest(folder: str, stats: tuple[tuple[str, int, int], ...]) -> str:
    """Digest of a folder; when a file was written decides whether it is read again, and is no part of the digest."""
    digest = hashlib.sha256()
    for name, length_bytes, _ in stats:
        path = Path(folder) / name
        digest.update(f"{name} {length_bytes}\n".encode())
        with path.open("rb") as file:
            if path.suffix == ".safetensors":
                start = file.read(8)
                header_bytes = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
                digest.update(start + file.read(min(header_bytes, HEADER_LIMIT_BYTES)))
            elif length_bytes < HEADER_LIMIT_BYTES:
                digest.update(file.read())
    return digest.hexdigest()[:16]


def _known_commit(hub_id: str, revision: str | None) -> str | None:
    """Commit of a hub id as the local cache knows it."""
    if revision is not None and COMMIT.fullmatch(revision):
        return revision
    found = _cached(hub_id, revision)
    return None if found is None else found.parent.name


def _cached(hub_id: str, revision: str | None) -> Path | None:
    """Path of a hub repository's config.json in the local cache; None if it is not there."""
    if not HUB_ID.fullmatch(hub_id):
        return None
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(hub_id, CONFIG_FILE, revision=revision)
    return Path(found) if isinstance(found, str) else None


def checkpoint_at_hand(source: str, revision: str | None = None) -> Checkpoint | None:
    """Find a checkpoint on this machine, without the network; None for a hub id that is not in the local cache.

    Raises UserError for what is neither a folder nor a hub id.
    """
    if HUB_ID.fullmatch(source) and not Path(source).exists():
        found = _cached(source, revision)
        return None if found is None else Checkpoint(source, found.parent, found.parent.name)
    return open_checkpoint(source, weights=False)
