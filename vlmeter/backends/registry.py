"""The backends that vlmeter knows: one line each, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from vlmeter.backends.base import Loading, Runner

#: backend name -> module that defines load_runner
BACKENDS = {
    "eager": "vlmeter.backends.eager",
    "fake": "vlmeter.backends.fake",
}


def load_runner(backend: str, asked: Loading) -> Runner:
    """Load a model on a device with a backend."""
    return cast(Runner, import_module(BACKENDS[backend]).load_runner(asked))
