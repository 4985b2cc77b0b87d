"""The families that vlmeter knows: one line each.

Entries name a module and are imported when asked for, so that a study pays for the families it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import Family

#: family name -> module that defines FAMILY
FAMILIES = {
    "gemma3": "vlmeter.models.families.gemma3",
    "generic": "vlmeter.models.families.generic",
    "idefics3": "vlmeter.models.families.idefics3",
    "internvl": "vlmeter.models.families.internvl",
    "llava_next": "vlmeter.models.families.llava_next",
    "llava_onevision": "vlmeter.models.families.llava_onevision",
    "mistral3": "vlmeter.models.families.mistral3",
    "molmo": "vlmeter.models.families.molmo",
    "molmo2": "vlmeter.models.families.molmo2",
    "pixtral": "vlmeter.models.families.pixtral",
    "qwen2_5_vl": "vlmeter.models.families.qwen2_5_vl",
    "qwen3_vl": "vlmeter.models.families.qwen3_vl",
    "smolvlm": "vlmeter.models.families.smolvlm",
}


def get_family(name: str) -> Family:
    """Return the family called `name`; raises UserError that lists the known ones."""
    if name not in FAMILIES:
        raise UserError(f"family: {name!r} is not known; legal: {', '.join(sorted(FAMILIES))}")
    return cast(Family, import_module(FAMILIES[name]).FAMILY)
