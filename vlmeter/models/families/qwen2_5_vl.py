"""Qwen2.5-VL: a vision encoder with windows that takes an image of any shape, and a merger of 2x2 patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmeter.models.families import qwen
from vlmeter.models.families.base import Family, ImageGeometry
from vlmeter.models.families.loaded_native import Parts, Template
from vlmeter.models.families.native import NativeFamily


@dataclass(frozen=True)
class Qwen25VLGeometry(qwen.PatchGrid):
    """Patches of 14 px, four to a token; the limits are those of the published checkpoints."""

    max_pixels: int = 16_384 * 28 * 28

    family = "qwen2_5_vl"


class Qwen25VLFamily(NativeFamily):
    """Qwen2.5-VL with random or real weights."""

    name = "qwen2_5_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    parts: ClassVar[Parts] = qwen.PARTS
    template: ClassVar[Template] = qwen.TEMPLATE

    def geometry_of(self, settings: Mapping[str, Any]) -> ImageGeometry:
        """Return the subject's own limits."""
        return Qwen25VLGeometry.from_config(settings)


FAMILY: Family = Qwen25VLFamily()
