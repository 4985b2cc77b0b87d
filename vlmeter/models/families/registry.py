"""The families that vlmeter knows: one line each.

Entries name a module and are imported when asked for, so that a study pays for the families it uses. Nobody else knows
a family by its name: what somebody wants to know of one, the family says of itself (`Family`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import Family

if TYPE_CHECKING:
    from vlmeter.models.checkpoints import Checkpoint

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

#: Whom a question about image sizes is put to that names neither a family nor a checkpoint.
DEFAULT = "molmo"


def get_family(name: str) -> Family:
    """Return the family called `name`; raises UserError that lists the known ones."""
    if name not in FAMILIES:
        raise UserError(f"family: {unknown_family(name)}")
    return cast(Family, import_module(FAMILIES[name]).FAMILY)


def unknown_family(name: str) -> str:
    """Say that there is no family of this name, which one may be meant, and which there are."""
    meant = closest_family(name)
    hint = f" (did you mean {meant}?)" if meant else ""
    return f"{name!r} is not known{hint}; legal: {', '.join(sorted(FAMILIES))}"


def closest_family(name: str) -> str | None:
    """Name the family that somebody means who writes, say, "Qwen2.5-VL"; None if none is near."""
    plain = {_plain(known): known for known in sorted(FAMILIES)}
    wanted = _plain(name.rpartition("/")[2])
    if wanted in plain:
        return plain[wanted]
    begins = [known for known in plain if len(known) > 3 and wanted.startswith(known)]
    if begins:
        return plain[max(begins, key=len)]
    if len([known for known in plain if known.startswith(wanted)]) > 1:
        return None  # "qwen": nobody knows which
    found = difflib.get_close_matches(wanted, plain, n=1, cutoff=0.7)
    return plain[found[0]] if found else None


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def family_of(config: Mapping[str, Any]) -> str | None:
    """Name the family that reads checkpoints with this config.json; None if none of its own does."""
    return next((name for name in FAMILIES if get_family(name).reads(config)), None)


def family_of_checkpoint(checkpoint: Checkpoint) -> str:
    """Name the family that reads a checkpoint; raises UserError where none of its own does."""
    config = checkpoint.config
    found = family_of(config)
    if found is None:
        raise UserError(f"{checkpoint.source}: {_says(config)}; {_advice(config)}")
    return found


def check_family(checkpoint: Checkpoint, family: Family) -> None:
    """Refuse a checkpoint of another architecture; the message names the family that reads it, if one does."""
    config = checkpoint.config
    if family.takes_any_checkpoint or family.reads(config):
        return
    encoders = getattr(family, "encoders", ())
    read = ", ".join(family.model_types) + (f" with {' or '.join(map(repr, encoders))}" if encoders else "")
    raise UserError(f"{checkpoint.source}: {_says(config)}, and family {family.name} reads {read}; {_advice(config)}")


def _says(config: Mapping[str, Any]) -> str:
    model_type, encoder = config.get("model_type"), config.get("vision_config")
    said = f"config.json says model_type {model_type!r}"
    shared = any(model_type in get_family(name).model_types and family_of(config) != name for name in FAMILIES)
    if shared and isinstance(encoder, Mapping):  # the vision encoder decides whose it is
        said += f" with a vision encoder {encoder.get('model_type')!r}"
    return said


def _advice(config: Mapping[str, Any]) -> str:
    """Say who reads a checkpoint, or what it would have to be to be read."""
    found = family_of(config)
    if found:
        return f"family {found} reads it"
    if instead := instead_of(config):
        return instead
    takers = [name for name in FAMILIES if get_family(name).takes_any_checkpoint]
    return f"no family of its own reads it; family {' or '.join(takers)} may"


def instead_of(config: Mapping[str, Any]) -> str | None:
    """Say what to take instead of a checkpoint in a format that no family reads; None for every other."""
    return next((said for name in FAMILIES if (said := get_family(name).other_format(config))), None)
