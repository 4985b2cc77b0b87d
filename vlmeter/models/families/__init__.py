"""Model families: one file each, one line in the registry each."""

from __future__ import annotations
