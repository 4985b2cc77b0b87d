"""Mistral Small 3.1: Pixtral's encoder with patches of 14 px, of which 2 x 2 become one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmeter.models.families.base import Family
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.patch_rows import PatchRowsGeometry

#: As in mistralai/Mistral-Small-3.1-24B-Instruct-2503. The model's `get_image_features` squeezes a single token's
#: dimension away and fails.
GEOMETRY = PatchRowsGeometry(family="mistral3", token_px=28, longest_edge_px=1540, fewest_tokens=2)


class Mistral3Family(NativeFamily):
    """Mistral Small 3.1 and 3.2."""

    name = "mistral3"
    model_types = ("mistral3",)
    template = Template(text="<s>[INST]{image}{question}[/INST]", image="[IMG]")

    def geometry_of(self, settings: Mapping[str, Any]) -> PatchRowsGeometry:
        """Return patches and longest edge of the subject's processor."""
        return PatchRowsGeometry.from_config(settings, default=GEOMETRY)


FAMILY: Family = Mistral3Family()
