"""SmolVLM: SigLIP on tiles of 384 px, each of which becomes 81 tokens, and SmolLM2.

With random weights, images go through transformers' Idefics3 processor, which writes the same tokens: SmolVLM's own
wants num2words, for what it says about videos. A checkpoint is loaded with the one that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmeter.models.families.base import Family
from vlmeter.models.families.loaded_native import Parts, Template
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.splitting import SplittingGeometry

#: As in HuggingFaceTB/SmolVLM2-2.2B-Instruct: 27 x 27 patches to a tile, of which 3 x 3 become one token.
GEOMETRY = SplittingGeometry(family="smolvlm", longest_edge_px=4 * 384, tile_px=384, tokens_per_tile=81)


class SmolVLMFamily(NativeFamily):
    """SmolVLM and SmolVLM2."""

    name = "smolvlm"
    piece = "sub-image"
    model_types = ("smolvlm",)
    parts = Parts(
        vision_encoder="model.vision_model",
        projector=("model.connector",),
        blocks="model.text_model.layers",
        norm="model.text_model.norm",
    )
    template = Template(text="<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:", image="<image>")

    def geometry_of(self, settings: Mapping[str, Any]) -> SplittingGeometry:
        """Return the tiles of the subject's processor."""
        return SplittingGeometry.from_config(settings, default=GEOMETRY)


FAMILY: Family = SmolVLMFamily()
