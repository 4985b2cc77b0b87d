"""The backends that vlmeter knows: one line each, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

from vlmeter.backends.base import Runner

if TYPE_CHECKING:
    from vlmeter.config import Subject

#: backend name -> module that defines load_runner
BACKENDS = {
    "eager": "vlmeter.backends.eager",
    "fake": "vlmeter.backends.fake",
}


def load_runner(subject: Subject, *, device: str) -> Runner:
    """Load a subject on a device with the backend that it names."""
    return cast(Runner, import_module(BACKENDS[subject.backend]).load_runner(subject, device=device))
