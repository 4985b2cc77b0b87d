"""LLaVA-OneVision: SigLIP on up to 6 x 6 tiles, with features scaled down to what nine tiles make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmeter.models.families.anyres import AnyresGeometry
from vlmeter.models.families.base import Family
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.native import NativeFamily

#: As in llava-hf/llava-onevision-qwen2-7b-ov-hf: tiles of SigLIP SO400M/14-384, 27 patches a side; every canvas of up
#: to 6 x 6 tiles, and "anyres_max_9".
GEOMETRY = AnyresGeometry(
    family="llava_onevision",
    tile_px=384,
    tile_patches=27,
    canvases=tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)),
    largest_tiles=9,
)


class LlavaOnevisionFamily(NativeFamily):
    """LLaVA-OneVision on Qwen2."""

    name = "llava_onevision"
    piece = "patch"
    model_types = ("llava_onevision",)
    other_formats: ClassVar[Mapping[str, str]] = {"llava_qwen": "llava-hf/llava-onevision-qwen2-7b-ov-hf"}
    template = Template(
        text="<|im_start|>user {image}\n{question}<|im_end|><|im_start|>assistant\n",
        image="<image>",
    )

    def geometry_of(self, settings: Mapping[str, Any]) -> AnyresGeometry:
        """Return tiles and canvases of the subject's processor."""
        return AnyresGeometry.from_config(settings, default=GEOMETRY, tile_px=384, crops_to_px=None)


FAMILY: Family = LlavaOnevisionFamily()
