"""Qwen3-VL: as Qwen2.5-VL without windows, and with features of early vision blocks added to early decoder blocks.

Those "deepstack" features have a merger each, which runs between two blocks of the vision encoder and belongs to the
projector. They are added inside the decoder's loop over its blocks, so that this counts to the decoder blocks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vlmeter.models.families import qwen
from vlmeter.models.families.base import Family, ImageGeometry, SubjectSpec
from vlmeter.models.families.loaded_native import Parts, Template
from vlmeter.models.families.native import NativeFamily, Scale


@dataclass(frozen=True)
class Qwen3VLGeometry(qwen.PatchGrid):
    """Patches of 16 px, four to a token; the limits are those of the published checkpoints."""

    patch_px: int = 16
    min_pixels: int = 64 * 32 * 32
    max_pixels: int = 16_384 * 32 * 32

    family = "qwen3_vl"


_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}

#: 8b: config.json and preprocessor_config.json of Qwen/Qwen3-VL-8B-Instruct.
SCALES = {
    "nano": Scale(
        about="a toy with Qwen3-VL's code path and at most 1,280 vision tokens",
        config={
            "model_type": "qwen3_vl",
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "qwen3_vl_text",
                "vocab_size": 512,
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 32,
                "max_position_embeddings": 262_144,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_interleaved": True,
                    "mrope_section": [6, 5, 5],
                },
                "bos_token_id": 498,
                "eos_token_id": 500,
            },
            "vision_config": {
                "model_type": "qwen3_vl_vision",
                "depth": 3,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": 64,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [0, 1],
            },
            **qwen.token_ids(first_special_id=498),
        },
        tokenizer=qwen.tokenizer(512, first_special_id=498),
        processor_config={**_PROCESSOR, "size": {"shortest_edge": 64 * 32 * 32, "longest_edge": 1280 * 32 * 32}},
        processor="Qwen3VLProcessor",
        parameters={
            "vision_encoder": 148_544,
            "projector": 74_880,
            "embedding": 32_768,
            "llm_blocks": 184_896,
            "head": 32_832,
        },
    ),
    "8b": Scale(
        about="Qwen3-VL-8B: a vision encoder of 27 blocks with three deepstack mergers, and Qwen3-8B",
        config={
            "model_type": "qwen3_vl",
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "qwen3_vl_text",
                "vocab_size": 151_936,
                "hidden_size": 4096,
                "intermediate_size": 12_288,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 262_144,
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 5e6,
                    "mrope_interleaved": True,
                    "mrope_section": [24, 20, 20],
                },
                "bos_token_id": 151_643,
                "eos_token_id": 151_645,
            },
            "vision_config": {
                "model_type": "qwen3_vl_vision",
                "depth": 27,
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_heads": 16,
                "out_hidden_size": 4096,
                "num_position_embeddings": 2304,
                "deepstack_visual_indexes": [8, 16, 24],
            },
            **qwen.token_ids(first_special_id=qwen.FIRST_SPECIAL_ID),
        },
        tokenizer=qwen.tokenizer(151_936, first_special_id=qwen.FIRST_SPECIAL_ID),
        processor_config={**_PROCESSOR, "size": {"shortest_edge": 65_536, "longest_edge": 16_777_216}},
        processor="Qwen3VLProcessor",
        parameters={
            "vision_encoder": 415_891_440,
            "projector": 160_496_896,
            "embedding": 622_329_856,
            "llm_blocks": 6_946_071_552,
            "head": 622_333_952,
        },
    ),
}


class Qwen3VLFamily(NativeFamily):
    """Qwen3-VL with random or real weights."""

    name = "qwen3_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen3_vl",)
    scales: ClassVar[Mapping[str, Scale]] = SCALES
    parts: ClassVar[Parts] = Parts(
        vision_encoder="model.visual", projector=("model.visual.deepstack_merger_list", "model.visual.merger")
    )
    template: ClassVar[Template] = qwen.TEMPLATE

    def geometry(self, spec: SubjectSpec) -> ImageGeometry:
        """Return the subject's own limits."""
        return Qwen3VLGeometry.from_config(self.processor_config(spec))


FAMILY: Family = Qwen3VLFamily()
