"""Ways of running a model: one file each, one line in the registry each."""

from __future__ import annotations
