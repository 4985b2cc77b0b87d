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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmeter.common.errors import UserError

CONFIG_FILE = "config.json"


WEIGHTS_FILE = "model.safetensors"


INDEX_FILE = "model.safetensors.index.json"


#: What is fetched from the hub: configuration, tokenizer, processor, chat template; then weights; and code only where
#: the study trusts it.
CONFIG_FILES = ("*.json", "*.jinja", "*.txt", "*.model")


WEIGHT_FILES = ("*.safetensors",)


CODE_FILES = ("*.py",)


HEADER_LIMIT_BYTES = 100 << 20

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


COMMIT = re.compile(r"[0-9a-f]{40}")


#: model_type in config.json -> the family that reads it
FAMILY_OF: Mapping[str, str] = {
    "gemma3": "gemma3",
    "idefics3": "idefics3",
    "internvl": "internvl",
    "llava_next": "llava_next",
    "llava_onevision": "llava_onevision",
    "mistral3": "mistral3",
    "molmo": "molmo",
    "molmo2": "molmo2",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen3_vl": "qwen3_vl",
    "smolvlm": "smolvlm",
}


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder on this machine. source: what the study calls it; commit: of a repository on the hub."""

    source: str
    folder: Path
    commit: str | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Content of config.json."""
        return read_json(self.folder / CONFIG_FILE)

    def check_family(self, name: str, model_types: Sequence[str]) -> None:
        """Refuse a checkpoint of another architecture; the message names the family that reads it, if one does."""
        config = self.config
        found = config.get("model_type")
        if found in model_types:
            return
        others = family_for(config)
        advice = f"family {others} reads it" if others else "no family of its own reads it; family generic may"
        raise UserError(
            f"{self.source}: {CONFIG_FILE} says model_type {found!r}, and family {name} reads "
            f"{', '.join(model_types)}; {advice}"
        )

    def processor_config(self) -> dict[str, Any]:
        """Settings of the processor and of its image processor, in whichever files the checkpoint has them.

        The image processor's own go over the processor's, as they do in transformers.
        """
        settings: dict[str, Any] = {}
        for name in ("processor_config.json", "preprocessor_config.json"):
            path = self.folder / name
            if path.is_file():
                content = read_json(path)
                settings |= {**content, **content.get("image_processor", {})}
        if not settings:
            raise UserError(f"{self.source}: has neither preprocessor_config.json nor processor_config.json")
        return settings


def family_for(config: Mapping[str, Any]) -> str | None:
    """Name the family that reads a config.json; None if none of its own does."""
    found = str(config.get("model_type"))
    if found == "llava" and config.get("vision_config", {}).get("model_type") == "pixtral":
        return "pixtral"
    return FAMILY_OF.get(found)


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
        raise UserError(f"{source}: is a file; a checkpoint is a folder with {CONFIG_FILE} and {WEIGHTS_FILE}")
    if isinstance(source, Path) or not HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such folder, and not a hub id such as allenai/Molmo-7B-D-0924 either")
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
    from huggingface_hub.constants import HF_HUB_CACHE

    ref = Path(HF_HUB_CACHE) / f"models--{hub_id.replace('/', '--')}" / "refs" / (revision or "main")
    return ref.read_text().strip() if ref.is_file() else None
