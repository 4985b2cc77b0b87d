"""LLaVA-NeXT (LLaVA 1.6): CLIP on the tiles of five canvases, and a newline after each row of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmeter.models.families.anyres import AnyresGeometry
from vlmeter.models.families.base import Family
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.native import NativeFamily

#: As in llava-hf/llava-v1.6-mistral-7b-hf: tiles of CLIP ViT-L/14-336, 24 patches a side; canvases are height x width.
GEOMETRY = AnyresGeometry(
    family="llava_next",
    tile_px=336,
    tile_patches=24,
    canvases=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
)


class LlavaNextFamily(NativeFamily):
    """LLaVA-NeXT on Mistral, Vicuna and others."""

    name = "llava_next"
    piece = "patch"
    model_types = ("llava_next",)
    other_formats: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("llava_llama", "llava_mistral", "llava_gemma", "llava_mixtral"), "llava-hf/llava-v1.6-mistral-7b-hf"
    )
    template = Template(text="<s>[INST] {image}\n{question} [/INST]", image="<image>")

    def geometry_of(self, settings: Mapping[str, Any]) -> AnyresGeometry:
        """Return tiles and canvases of the subject's processor."""
        return AnyresGeometry.from_config(settings, default=GEOMETRY, tile_px=224, crops_to_px=224)


FAMILY: Family = LlavaNextFamily()
