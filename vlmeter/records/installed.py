"""The installed code that ran a model: which files, and whether they are still what they were.

A version says little about a library that somebody has changed in its place, installed from a checkout, or put in front
of the installed one by PYTHONPATH. So a session lists the files of such packages that its process has loaded, each with
the digest of its bytes. A listing lies beside the records under its own digest, which stands in their fingerprints as
part `installed`. It is compared without importing anything.

torch itself counts by its version and by the commit that it was built from: it is compiled, and much larger.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from functools import lru_cache
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

from vlmeter.common.code import digest_of
from vlmeter.common.files import write_atomically

#: Packages (by the name that is imported) whose Python code may run in a pass, or decides what does.
PACKAGES = (
    *("transformers", "transformers_modules", "tokenizers", "torchvision", "PIL"),
    *("accelerate", "bitsandbytes", "compressed_tensors", "gptqmodel", "auto_gptq", "awq", "hqq", "torchao", "optimum"),
    *("flash_attn", "kernels", "triton", "xformers", "liger_kernel", "causal_conv1d", "mamba_ssm", "fla"),
    *("timm", "einops", "peft", "sentencepiece", "qwen_vl_utils"),
)

#: Stands for what is not there.
ABSENT = "absent"

#: Holds the version of torch and its commit, without torch being loaded.
TORCH_VERSION = "torch/version.py"

#: Code that a checkpoint brings along is copied here before it is loaded. The checkpoint is a part of the fingerprint
#: by itself, so a copy that is gone says nothing.
COPIES = "transformers_modules"


def loaded_files() -> dict[str, str]:
    """List the files of PACKAGES that this process has loaded, as `package/file.py`, each with its digest.

    Empty where torch is not loaded: then no model runs in this process.
    """
    if "torch" not in sys.modules:
        return {}
    found = {}
    for name, module in list(sys.modules.items()):
        package = name.partition(".")[0]
        source = getattr(module, "__dict__", {}).get("__file__")
        if package not in PACKAGES or not isinstance(source, str) or not source.endswith(".py"):
            continue
        for folder in _folders_of(sys.modules.get(package)):
            path = Path(source)
            if path.is_relative_to(folder) and path.is_file():
                found[f"{package}/{path.relative_to(folder).as_posix()}"] = _digest_first_seen(path)
                break
    found[TORCH_VERSION] = _digest_now(TORCH_VERSION)
    return dict(sorted(found.items()))


def packages_here() -> dict[str, str]:
    """List PACKAGES, each with its version or as absent: what a model that cannot be run may be waiting for."""
    return {name: _version_of(name) for name in PACKAGES if name != COPIES}


def keep_listing(folder: Path, listing: Mapping[str, str]) -> str:
    """Write a listing under its own digest, if it is not there yet; returns the digest."""
    content = (json.dumps(listing, indent=1, sort_keys=True) + "\n").encode()
    digest = digest_of(content)
    path = folder / f"{digest}.json"
    if not path.is_file() or path.read_bytes() != content:
        write_atomically(path, content)
    return digest


@lru_cache(maxsize=256)
def changed_files(folder: Path, digest: str) -> tuple[str, ...]:
    """Name the files of a listing that are not what they were, in alphabetical order; found out once per process.

    A listing that cannot be read is named itself: nothing is known then of the code that ran.
    """
    path = folder / f"{digest}.json"
    try:
        listing = json.loads(path.read_bytes())
        whole = all(isinstance(name, str) and isinstance(was, str) for name, was in listing.items())
    except (OSError, ValueError, AttributeError):
        whole = False
    if not whole:
        return (f"no listing {path.name}",)
    return tuple(name for name, was in sorted(listing.items()) if _is_other(name, was))


@lru_cache(maxsize=8192)
def _digest_first_seen(path: Path) -> str:
    """Digest of a file soon after it was loaded: what becomes of the file later does not run in this process."""
    return digest_of(path.read_bytes())


def _is_other(name: str, was: str) -> bool:
    now = _digest_now(name) if "/" in name else _version_of(name)
    return now != was and not (now == ABSENT and name.startswith(f"{COPIES}/"))


def _digest_now(name: str) -> str:
    """Digest of a file as it would be loaded now."""
    package, _, rest = name.partition("/")
    for folder in _places_of(package):
        try:
            return digest_of((folder / rest).read_bytes())
        except OSError:
            continue
    return ABSENT


@lru_cache(maxsize=256)
def _version_of(package: str) -> str:
    """Version of a package, or `present` where it has none; ABSENT if there is none, or but a folder of that name."""
    if not any((place / "__init__.py").is_file() for place in _places_of(package)):
        return ABSENT
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "present"


@lru_cache(maxsize=256)
def _places_of(package: str) -> tuple[Path, ...]:
    """Folders of a package as an import would find them now; nothing is imported."""
    if package == COPIES:
        return (_copies_folder(),)
    try:
        spec = util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: it is loaded, and does not say from where
        return tuple(_folders_of(sys.modules.get(package)))
    return tuple(Path(place) for place in (spec.submodule_search_locations or ())) if spec else ()


def _folders_of(package: ModuleType | None) -> Iterator[Path]:
    yield from (Path(place) for place in getattr(package, "__path__", ()))


def _copies_folder() -> Path:
    """Where transformers copies the code of checkpoints, by its own rule."""
    cache = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    home = os.environ.get("HF_HOME", str(Path(cache) / "huggingface"))
    return Path(os.environ.get("HF_MODULES_CACHE", str(Path(home) / "modules"))).expanduser() / COPIES
