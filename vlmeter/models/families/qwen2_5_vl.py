"""Qwen2.5-VL: a vision encoder with windows that takes an image of any shape, and a merger of 2x2 patches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from vlmeter.models.families import qwen
from vlmeter.models.families.base import Family, ImageGeometry, SubjectSpec
from vlmeter.models.families.loaded_native import Parts, Template
from vlmeter.models.families.native import NativeFamily, Scale


@dataclass(frozen=True)
class Qwen25VLGeometry(qwen.PatchGrid):
    """Patches of 14 px, four to a token; the limits are those of the published checkpoints."""

    max_pixels: int = 16_384 * 28 * 28

    family = "qwen2_5_vl"


_PROCESSOR = {
    "image_processor_type": "Qwen2VLImageProcessor",
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
}

#: 7b: config.json and preprocessor_config.json of Qwen/Qwen2.5-VL-7B-Instruct.
SCALES = {
    "nano": Scale(
        about="a toy with Qwen2.5-VL's code path and at most 1,280 vision tokens",
        config={
            "model_type": "qwen2_5_vl",
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "vocab_size": 512,
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": 128_000,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
                "bos_token_id": 498,
                "eos_token_id": 500,
            },
            "vision_config": {
                "model_type": "qwen2_5_vl_vision",
                "depth": 2,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_heads": 2,
                "out_hidden_size": 64,
                "fullatt_block_indexes": [1],
            },
            **qwen.token_ids(first_special_id=498),
        },
        tokenizer=qwen.tokenizer(512, first_special_id=498),
        processor_config={**_PROCESSOR, "min_pixels": 4 * 28 * 28, "max_pixels": 1280 * 28 * 28},
        processor="Qwen2_5_VLProcessor",
        parameters={
            "vision_encoder": 58_816,
            "projector": 24_800,
            "embedding": 32_768,
            "llm_blocks": 185_088,
            "head": 32_832,
        },
    ),
    "7b": Scale(
        about="Qwen2.5-VL-7B: its own vision encoder of 32 blocks, and Qwen2.5-7B",
        config={
            "model_type": "qwen2_5_vl",
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "qwen2_5_vl_text",
                "vocab_size": 152_064,
                "hidden_size": 3584,
                "intermediate_size": 18_944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 128_000,
                "rms_norm_eps": 1e-6,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
                "bos_token_id": 151_643,
                "eos_token_id": 151_645,
            },
            "vision_config": {
                "model_type": "qwen2_5_vl_vision",
                "depth": 32,
                "hidden_size": 1280,
                "intermediate_size": 3420,
                "num_heads": 16,
                "out_hidden_size": 3584,
                "fullatt_block_indexes": [7, 15, 23, 31],
                "tokens_per_second": 2,
            },
            **qwen.token_ids(first_special_id=qwen.FIRST_SPECIAL_ID),
        },
        tokenizer=qwen.tokenizer(152_064, first_special_id=qwen.FIRST_SPECIAL_ID),
        processor_config={**_PROCESSOR, "min_pixels": 3136, "max_pixels": 12_845_056},
        processor="Qwen2_5_VLProcessor",
        parameters={
            "vision_encoder": 631_975_680,
            "projector": 44_574_464,
            "embedding": 544_997_376,
            "llm_blocks": 6_525_618_176,
            "head": 545_000_960,
        },
    ),
}


class Qwen25VLFamily(NativeFamily):
    """Qwen2.5-VL with random or real weights."""

    name = "qwen2_5_vl"
    model_types: ClassVar[tuple[str, ...]] = ("qwen2_5_vl",)
    scales: ClassVar[Mapping[str, Scale]] = SCALES
    parts: ClassVar[Parts] = qwen.PARTS
    template: ClassVar[Template] = qwen.TEMPLATE

    def geometry(self, spec: SubjectSpec) -> ImageGeometry:
        """Return the subject's own limits."""
        return Qwen25VLGeometry.from_config(self.processor_config(spec))


FAMILY: Family = Qwen25VLFamily()
