"""vlmeter measures where the latency of a vision-language model goes.

In a notebook, `vlmeter.load("results/quickstart")` gives a study's table and fits as pandas frames.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vlmeter.report.notebook import load

__all__ = ["__version__", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Find `load` when it is asked for: it brings pandas, which a command that only looks does without."""
    if name == "load":
        return import_module("vlmeter.report.notebook").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
