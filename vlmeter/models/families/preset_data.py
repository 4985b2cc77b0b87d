"""The presets of a family, as data: `presets/<family>.json` beside this file, read when somebody asks for them.

A preset is an architecture at one scale: the content of the published `config.json`, the settings of the published
processor, a tokenizer with its special tokens, and parameter counts that the tests check against the model. `about`
says in a line what it is, `source` where its numbers were published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmeter.common.code import digest_of

FOLDER = Path(__file__).parent / "presets"


@lru_cache(maxsize=64)
def read_presets(family: str) -> Mapping[str, Mapping[str, Any]]:
    """Read the presets of a family, the toy first."""
    content: dict[str, dict[str, Any]] = json.loads((FOLDER / f"{family}.json").read_text(encoding="utf-8"))
    return content


def about_presets(family: str) -> dict[str, str]:
    """Say of every preset what it is and how large, in a line."""
    return {
        name: f"{entry['about']} ({sum(entry['parameters'].values()):,} parameters)"
        for name, entry in read_presets(family).items()
    }


def preset_digest(family: str, preset: str | None) -> str | None:
    """Digest of a preset's content, without what is for people; None for what is no preset of the family."""
    if preset is None or not (FOLDER / f"{family}.json").is_file():
        return None
    entry = read_presets(family).get(preset)
    if entry is None:
        return None
    content = {key: value for key, value in entry.items() if key not in ("about", "source")}
    return digest_of(json.dumps(content, sort_keys=True).encode())
