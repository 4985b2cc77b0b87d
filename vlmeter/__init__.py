"""vlmeter measures where the latency of a vision-language model goes."""

from __future__ import annotations

__version__ = "0.1.0"
