"""The backends that vlmeter knows: one line each, imported when asked for."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from vlmeter.backends.base import Backend, Loading, Runner

#: backend name -> module that defines BACKEND, and imports neither torch nor anything else that takes time
BACKENDS = {
    "compile": "vlmeter.backends.compile",
    "cudagraph": "vlmeter.backends.cudagraph",
    "eager": "vlmeter.backends.eager",
    "endpoint": "vlmeter.backends.endpoint.backend",
    "fake": "vlmeter.backends.fake",
}


def get_backend(name: str) -> Backend:
    """Return what the backend called `name` says of itself."""
    return cast(Backend, import_module(BACKENDS[name]).BACKEND)


def load_runner(name: str, asked: Loading) -> Runner:
    """Load a model on a device with a backend."""
    return get_backend(name).load(asked)
