"""What makes a measured cell stale.

Every record carries the fingerprint of what its numbers depend on, part by part, so that a stale cell can be told from
a fresh one and the reason named:

- cell: which image, how many tokens, in which way (what the plan says of it, its prediction left out);
- protocol: warm-up, number of samples, stopping;
- subject: family, preset (its content) or checkpoint, dtype, backend, attention, seed, threads;
- checkpoint: the commit of a hub id, or the files of a folder, as far as they are at hand;
- code: what the modules mean that prepare inputs, run the model and take the time (`vlmeter.common.code`). Comments and
  docstrings do not count; figures and report are not among them;
- versions: Python, torch, transformers, tokenizers, Pillow, numpy;
- installed: the files of transformers and other packages that ran the model (`vlmeter.records.installed`), known once
  it has run; a record is compared with the listing that it names;
- input: the image file and the question, known once they have been fetched or made;
- run: which run of the study it is, from 0. A record without it is of run 0.

The device is no part of it, since only a running session knows it; the session compares it by itself.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib import metadata
from typing import Any

from vlmeter.backends.registry import BACKENDS
from vlmeter.cells.cell import Cell
from vlmeter.common.code import code_digest, digest_of, rests_on
from vlmeter.inputs.pictures import Pictures
from vlmeter.models.checkpoints import checkpoint_digest
from vlmeter.models.families.preset_data import preset_digest
from vlmeter.models.families.registry import FAMILIES, get_family
from vlmeter.study.subject import CommonKeys, Subject, own_keys

#: What takes the time and makes the images, whatever the family and the backend. With what these rest on, and with the
#: family and the backend of a subject, it is all that can change a number.
MEASURING = ("vlmeter.measure.rounds", "vlmeter.measure.requests", "vlmeter.inputs.images")

#: Distributions whose version can change a number.
VERSIONED = ("torch", "torchvision", "transformers", "tokenizers", "pillow", "numpy")


#: The part that tells a study's runs apart, and what it is in a record that was written before there were several.
RUN, FIRST_RUN = "run", "0"

#: What of a cell is no part of its fingerprint: the protocol, which is a part of its own, and predictions.
_PREDICTED: Any = {
    "sampling": True,
    "layout": True,
    "requests": {"__all__": {"expected"}},
}


def _digest_of(value: object) -> str:
    return digest_of(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def measuring_modules(subject: Subject) -> tuple[str, ...]:
    """Names of all modules that decide what a subject's numbers are."""
    return rests_on(*MEASURING, FAMILIES[subject.family], BACKENDS[subject.backend])


def subject_code(subject: Subject) -> str:
    """Digest of what the modules mean that decide what a subject's numbers are."""
    return code_digest(*MEASURING, FAMILIES[subject.family], BACKENDS[subject.backend])


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


def _subject_keys(subject: Subject) -> set[str]:
    """The keys that say what a subject is: the common ones but for the wish of a device, and its backend's own."""
    return {*CommonKeys.model_fields, *own_keys(subject)} - {"device"}


def _preset_of(subject: Subject) -> str | None:
    """Digest of the preset that a subject is built of; None for a checkpoint."""
    return preset_digest(subject.family, subject.preset) if subject.weights == "random" else None


def fingerprint(cell: Cell, subject: Subject, *, input_digest: str | None = None, run: int = 0) -> dict[str, str]:
    """Fingerprint of a cell in a run, part by part.

    The part `input` is there if its digest is given, `checkpoint` if weights are not random and are at hand.
    """
    parts = {
        # The prediction is left out: it follows from the rest, and for photographs it is known only after fetching.
        "cell": _digest_of(cell.model_dump(mode="json", exclude=_PREDICTED)),
        "protocol": _digest_of(cell.sampling.model_dump(mode="json")),
        # `device` is a wish ("auto"); what came of it stands in the record as the device.
        "subject": _digest_of([subject.model_dump(mode="json", include=_subject_keys(subject)), _preset_of(subject)]),
        "code": subject_code(subject),
        "versions": _digest_of(dict(versions())),
        RUN: str(run),
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
    recorded = {RUN: FIRST_RUN, **recorded}
    return tuple(name for name in current if recorded.get(name) != current[name])


def cell_fingerprint(cell: Cell, subject: Subject, pictures: Pictures, *, run: int = 0) -> dict[str, str]:
    """Fingerprint of a cell in a run together with what it looks at, if that is at hand."""
    content = pictures.content(cell)
    digest = None if content is None else input_digest(*content)
    return fingerprint(cell, subject, input_digest=digest, run=run)
