"""Writing files so that a reader sees the old content or the new, never a part of it."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path` (folders are made as needed): a temporary file beside it, then one rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # not tempfile: its files are readable by their owner alone, and results are shared on a cluster
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
