"""Pixtral: an encoder of its own for images of any size, a token per patch of 16 px, and Mistral NeMo.

In transformers it is a LLaVA with another vision encoder, so its checkpoints say model_type "llava".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmeter.models.families.base import Family
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.patch_rows import PatchRowsGeometry

#: As in mistral-community/pixtral-12b.
GEOMETRY = PatchRowsGeometry(family="pixtral", token_px=16, longest_edge_px=1024)


class PixtralFamily(NativeFamily):
    """Pixtral."""

    name = "pixtral"
    model_types = ("llava",)
    encoders = ("pixtral",)
    template = Template(text="<s>[INST]{image}{question}[/INST]", image="[IMG]")

    def geometry_of(self, settings: Mapping[str, Any]) -> PatchRowsGeometry:
        """Return patches and longest edge of the subject's processor."""
        return PatchRowsGeometry.from_config(settings, default=GEOMETRY)


FAMILY: Family = PixtralFamily()
