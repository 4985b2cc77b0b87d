"""The engines by name; a new one is a file and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from vlmeter.backends.endpoint.engine import Engine
from vlmeter.common.errors import UserError

#: Name in a study -> module that holds its ENGINE.
ENGINES: Mapping[str, str] = {
    "vllm": "vlmeter.backends.endpoint.engine_vllm",
    "sglang": "vlmeter.backends.endpoint.engine_sglang",
    "transformers": "vlmeter.backends.endpoint.engine_transformers",
    "llama.cpp": "vlmeter.backends.endpoint.engine_llama",
}


def get_engine(name: str) -> Engine:
    """Return an engine; raises UserError for a name that is none."""
    if name not in ENGINES:
        raise UserError(f"engine: {name!r} is not known; legal: {', '.join(ENGINES)}")
    engine: Engine = import_module(ENGINES[name]).ENGINE
    return engine
