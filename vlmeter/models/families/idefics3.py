"""Idefics3: SigLIP on tiles of 364 px, each of which becomes 169 tokens, and Llama 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmeter.models.families.base import Family
from vlmeter.models.families.loaded_native import Parts, Template
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.splitting import SplittingGeometry

#: As in HuggingFaceM4/Idefics3-8B-Llama3: 26 x 26 patches to a tile, of which 2 x 2 become one token.
GEOMETRY = SplittingGeometry(family="idefics3", longest_edge_px=4 * 364, tile_px=364, tokens_per_tile=169)


class Idefics3Family(NativeFamily):
    """Idefics3."""

    name = "idefics3"
    piece = "sub-image"
    model_types = ("idefics3",)
    parts = Parts(
        vision_encoder="model.vision_model",
        projector=("model.connector",),
        blocks="model.text_model.layers",
        norm="model.text_model.norm",
    )
    template = Template(text="<|begin_of_text|>User:{image}{question}<end_of_utterance>\nAssistant:", image="<image>")

    def geometry_of(self, settings: Mapping[str, Any]) -> SplittingGeometry:
        """Return the tiles of the subject's processor."""
        return SplittingGeometry.from_config(settings, default=GEOMETRY)


FAMILY: Family = Idefics3Family()
