"""Folders as people have them on disk: a toy's checkpoint, and what has been done to it since."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

Change = Callable[[dict[str, Any]], object]


def edit(path: Path, change: Change | Mapping[str, Any]) -> None:
    """Change a JSON file: by a function of its content, or by keys."""
    content = json.loads(path.read_text()) if path.exists() else {}
    if callable(change):
        change(content)
    else:
        content |= change
    path.write_text(json.dumps(content))


def whole(folder: Path, *, keep_index: bool) -> None:
    """Put sharded weights into one model.safetensors; an index that stays names shards that are gone."""
    tensors = {}
    for path in sorted(folder.glob("model-*.safetensors")):
        tensors |= load_file(path)
        path.unlink()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    if not keep_index:
        (folder / "model.safetensors.index.json").unlink()
