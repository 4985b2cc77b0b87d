"""Named Molmo architectures, for subjects with random weights.

A latency does not depend on the values of the weights, only on their shapes, so a study of Molmo-7B-D needs
no download. The four published models have their published shapes (`config.json` of allenai/Molmo-7B-D-0924,
-7B-O-0924, -72B-0924 and MolmoE-1B-0924). `nano` is no model that anybody trained: it has Molmo's image
geometry and code path with a network small enough to be measured on two processor cores within minutes.
They are data: `vlmeter/models/families/presets/molmo.json`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from vlmeter.common.errors import UserError
from vlmeter.models.families.preset_data import read_presets
from vlmeter.models.molmo1 import NAME
from vlmeter.models.molmo1.architecture import Architecture


@lru_cache(maxsize=1)
def presets() -> Mapping[str, Architecture]:
    """Read all of them, the toy first."""
    return {
        name: Architecture.from_config(entry["config"], source=f"preset {name}")
        for name, entry in read_presets(NAME).items()
    }


def preset(name: str) -> Architecture:
    """Return the architecture called `name`; raise `UserError` with the legal names otherwise."""
    if name not in presets():
        raise UserError(f"preset: {name!r} is unknown; legal are {', '.join(presets())}")
    return presets()[name]
