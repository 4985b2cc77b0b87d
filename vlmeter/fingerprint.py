"""What makes a measured cell stale.

Every record carries the fingerprint of what its numbers depend on, part by part, so that a stale cell can be told from
a fresh one and the reason named:

- cell: which image, how many tokens, in which way (what the plan says of it, its prediction left out);
- protocol: warm-up, number of samples, stopping;
- subject: family, preset or checkpoint, dtype, backend, attention, seed, threads;
- checkpoint: the commit of a hub id, or the files of a folder, as far as they are at hand;
- code: the modules that prepare inputs, run the model and take the time. Figures and report are not among them;
- versions: Python, torch, transformers, tokenizers, Pillow, numpy;
- input: the image file and the question, known once they have been fetched or made.

The device is no part of it, since only a running session knows it; the session compares it by itself.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from vlmeter.backends.registry import BACKENDS
from vlmeter.checkpoints import checkpoint_digest
from vlmeter.config import Subject
from vlmeter.families.registry import FAMILIES, get_family
from vlmeter.plan import Cell

#: Modules whose content can change a number, whatever the family and the backend. A test follows the imports of
#: `vlmeter.measure` and fails when one of them is neither here nor named below as harmless.
MEASURING_MODULES = (
    "vlmeter.backends.base",
    "vlmeter.block",
    "vlmeter.clock",
    "vlmeter.families.base",
    "vlmeter.images",
    "vlmeter.measure",
    "vlmeter.monitor",
    "vlmeter.session",
    "vlmeter.stats",
)

#: Modules that measuring imports and that cannot change a number by themselves, with the reason.
HARMLESS_MODULES: Mapping[str, str] = {
    "vlmeter": "its version stands in the record",
    "vlmeter.backends.registry": "which backend is meant is part of the subject",
    "vlmeter.config": "its values are hashed as cell, protocol and subject",
    "vlmeter.dataset_source": "what it chooses is hashed as input",
    "vlmeter.errors": "only words",
    "vlmeter.families.registry": "which family is meant is part of the subject",
    "vlmeter.files": "writes what has been measured",
    "vlmeter.fingerprint": "a change of it shows in the fingerprints themselves",
    "vlmeter.pairs": "its results are hashed as cell",
    "vlmeter.plan": "its cells are hashed by value",
    "vlmeter.processors": "finds classes of transformers, whose version is hashed",
    "vlmeter.reach": "the sizes that it finds are hashed as cell",
    "vlmeter.record": "keeps what has been measured; its shape has a version of its own",
    "vlmeter.store": "says where records lie",
    "vlmeter.units": "only words",
}

#: Distributions whose version can change a number.
VERSIONED = ("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy")


#: What of a cell is no part of its fingerprint: the protocol, which is a part of its own, and predictions.
_PREDICTED: Any = {
    "sampling": True,
    "expected": True,
    "layout": True,
    "image": {"requests": {"__all__": {"expected"}}},
}


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _digest_of(value: object) -> str:
    return _digest(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


@lru_cache(maxsize=256)
def module_digest(name: str) -> str:
    """Digest of a module's source, without importing it."""
    path = Path(__file__).parent.joinpath(*name.split(".")[1:]).with_suffix(".py")
    return _digest(path.read_bytes())


def measuring_modules(subject: Subject) -> tuple[str, ...]:
    """Names of all modules that decide what a subject's numbers are."""
    family = get_family(subject.family)
    own = (FAMILIES[subject.family], *family.measuring_modules, BACKENDS[subject.backend])
    return tuple(sorted({*MEASURING_MODULES, *own}))


@lru_cache(maxsize=64)
def code_digest(subject: Subject) -> str:
    """Digest of all modules that decide what a subject's numbers are."""
    return _digest_of({name: module_digest(name) for name in measuring_modules(subject)})


@lru_cache(maxsize=1)
def versions() -> Mapping[str, str]:
    """Versions of what the numbers depend on; "absent" for what is not installed here."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def _checkpoint_of(subject: Subject) -> str | None:
    """The checkpoint that a subject depends on: its weights, or a preset that is a checkpoint's configuration."""
    if subject.weights != "random":
        return subject.weights
    return None if subject.preset in get_family(subject.family).presets else subject.preset


def fingerprint(cell: Cell, subject: Subject, *, input_digest: str | None = None) -> dict[str, str]:
    """Fingerprint of a cell, part by part.

    The part `input` is there if its digest is given, `checkpoint` if weights are not random and are at hand.
    """
    parts = {
        # The prediction is left out: it follows from the rest, and for photographs it is known only after fetching.
        "cell": _digest_of(cell.model_dump(mode="json", exclude=_PREDICTED)),
        "protocol": _digest_of(cell.sampling.model_dump(mode="json")),
        # `device` is a wish ("auto"); what came of it stands in the record as the device.
        "subject": _digest_of(subject.model_dump(mode="json", exclude={"device"})),
        "code": code_digest(subject),
        "versions": _digest_of(dict(versions())),
    }
    source = _checkpoint_of(subject)
    if source is not None and (found := checkpoint_digest(source, subject.revision)) is not None:
        parts["checkpoint"] = found
    if input_digest is not None:
        parts["input"] = input_digest
    return parts


def input_digest(*parts: str) -> str:
    """Digest of what a cell looks at: the image's checksum, the question."""
    return _digest_of(list(parts))


def stale_parts(recorded: Mapping[str, str], current: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the parts in which a record differs from now; parts that are not known now are not compared."""
    return tuple(name for name in current if recorded.get(name) != current[name])
