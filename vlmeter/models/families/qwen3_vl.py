"""Qwen3-VL: as Qwen2.5-VL without windows, and with features of early vision blocks added to early decoder blocks.

Those "deepstack" features have a merger each, which runs between two blocks of the vision encoder and belongs to the
projector. They are added inside the decoder's loop over its blocks, so that this counts to the decoder blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmeter.models.families import qwen
from vlmeter.models.families.base import Family, ImageGeometry
from vlmeter.models.families.loaded_native import Parts, Template
from vlmeter.models.families.native import NativeFamily


@dataclass(frozen=True)
class Qwen3VLGeometry(qwen.PatchGrid):
    """Patches of 16 px, four to a token; the limits are those of the published checkpoints."""

    patch_px: int = 16
    min_pixels: int = 64 * 32 * 32
    max_pixels: int = 16_384 * 32 * 32

    family = "qwen3_vl"


class Qwen3VLFamily(NativeFamily):
    """Qwen3-VL with random or real weights."""

    name = "qwen3_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    parts: ClassVar[Parts] = Parts(
        vision_encoder="model.visual", projector=("model.visual.deepstack_merger_list", "model.visual.merger")
    )
    template: ClassVar[Template] = qwen.TEMPLATE

    def geometry_of(self, settings: Mapping[str, Any]) -> ImageGeometry:
        """Return the subject's own limits."""
        return Qwen3VLGeometry.from_config(settings)


FAMILY: Family = Qwen3VLFamily()
