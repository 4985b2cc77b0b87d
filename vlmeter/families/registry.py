"""The families that vlmeter knows: one line each.

Entries name a module and are imported when asked for, so that a study pays for the families it uses.
"""

from __future__ import annotations

from importlib import import_module
from typing import cast

from vlmeter.errors import UserError
from vlmeter.families.base import Family

#: family name -> module that defines FAMILY
FAMILIES = {
    "gemma3": "vlmeter.families.gemma3",
    "generic": "vlmeter.families.generic",
    "idefics3": "vlmeter.families.idefics3",
    "internvl": "vlmeter.families.internvl",
    "llava_next": "vlmeter.families.llava_next",
    "llava_onevision": "vlmeter.families.llava_onevision",
    "mistral3": "vlmeter.families.mistral3",
    "molmo": "vlmeter.families.molmo",
    "molmo2": "vlmeter.families.molmo2",
    "pixtral": "vlmeter.families.pixtral",
    "qwen2_5_vl": "vlmeter.families.qwen2_5_vl",
    "qwen3_vl": "vlmeter.families.qwen3_vl",
    "smolvlm": "vlmeter.families.smolvlm",
}


def get_family(name: str) -> Family:
    """Return the family called `name`; raises UserError that lists the known ones."""
    if name not in FAMILIES:
        raise UserError(f"family: {name!r} is not known; legal: {', '.join(sorted(FAMILIES))}")
    return cast(Family, import_module(FAMILIES[name]).FAMILY)
