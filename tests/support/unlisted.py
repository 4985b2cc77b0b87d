"""Toys of models that have no family of their own: folders with configuration, tokenizer and processor, no weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmeter.models.families.made_tokenizer import MadeTokenizer
from vlmeter.models.families.native import Scale, made_processor

_LLM = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1000,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
_SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
    "vision_use_head": False,
}
_SIZE = {"height": 56, "width": 56}


@dataclass(frozen=True)
class Unlisted:
    """One toy. crops, vision_tokens: of a picture of 200 x 100 px, as the published code makes of it."""

    config: Mapping[str, Any]
    processor: str
    processor_config: Mapping[str, Any]
    crops: int
    vision_tokens: int
    tokens: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    processor_arguments: Mapping[str, Any] = field(default_factory=dict)
    chat_template: str | None = None

    def write(self, folder: Path) -> Path:
        """Write the files that a published model has, its weights left out."""
        special = {"<s>": 0, "</s>": 1, **{token: 2 + i for i, token in enumerate(self.tokens)}}
        scale = Scale(
            about="",
            config=self.config,
            tokenizer=MadeTokenizer(
                vocab_size=1000, special_tokens=special, bos="<s>", eos="</s>", named=self.named, adds_bos=True
            ),
            processor_config=self.processor_config,
            processor=self.processor,
            processor_arguments=self.processor_arguments,
        )
        processor = made_processor(scale)
        folder.mkdir(parents=True)
        processor.tokenizer.save_pretrained(folder)
        processor.image_processor.save_pretrained(folder)
        (folder / "processor_config.json").write_text(
            json.dumps({**self.processor_arguments, "processor_class": self.processor})
        )
        (folder / "config.json").write_text(json.dumps(self.config))
        if self.chat_template:
            (folder / "chat_template.jinja").write_text(self.chat_template)
        return folder


_CHAT = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}PLACE{% else %}"
    "{{ c.text }}{% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %} answer:{% endif %}"
)

UNLISTED: Mapping[str, Unlisted] = {
    "paligemma": Unlisted(
        config={
            "model_type": "paligemma",
            "text_config": {"model_type": "gemma", "head_dim": 16, **_LLM},
            "vision_config": {**_SIGLIP, "projection_dim": 64},
            "projection_dim": 64,
            "image_token_index": 2,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
        processor="PaliGemmaProcessor",
        processor_config={"image_processor_type": "SiglipImageProcessor", "size": _SIZE, "image_seq_length": 16},
        tokens=("<image>",),
        named={"image_token": "<image>"},
        crops=1,
        vision_tokens=16,
    ),
    "aya_vision": Unlisted(
        config={
            "model_type": "aya_vision",
            "text_config": {"model_type": "cohere2", "sliding_window": 16, "layer_types": None, **_LLM},
            "vision_config": _SIGLIP,
            "image_token_index": 2,
            "downsample_factor": 2,
        },
        processor="AyaVisionProcessor",
        processor_config={
            "image_processor_type": "GotOcr2ImageProcessor",
            "size": _SIZE,
            "crop_to_patches": True,
            "min_patches": 1,
            "max_patches": 6,
        },
        tokens=("<|IMG_PATCH|>", "<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_LINE_BREAK|>"),
        processor_arguments={"patch_size": 14, "img_size": 56, "downsample_factor": 2},
        crops=3,
        vision_tokens=12,
    ),
    "glm4v": Unlisted(
        config={
            "model_type": "glm4v",
            "text_config": {
                **_LLM,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            },
            "vision_config": {
                "depth": 2,
                "hidden_size": 32,
                "num_heads": 2,
                "intermediate_size": 96,
                "out_hidden_size": 64,
                "image_size": 56,
            },
            "image_token_id": 2,
            "video_token_id": 3,
            "image_start_token_id": 4,
            "image_end_token_id": 5,
            "video_start_token_id": 6,
            "video_end_token_id": 7,
        },
        processor="Glm4vProcessor",
        processor_config={
            "image_processor_type": "Glm4vImageProcessor",
            "size": {"shortest_edge": 3136, "longest_edge": 1003520},
        },
        tokens=(
            "<|image|>",
            "<|video|>",
            "<|begin_of_image|>",
            "<|end_of_image|>",
            "<|begin_of_video|>",
            "<|end_of_video|>",
        ),
        chat_template=_CHAT.replace("PLACE", "<|begin_of_image|><|image|><|end_of_image|>"),
        crops=1,
        vision_tokens=28,
    ),
    "qwen2_vl": Unlisted(
        config={
            "model_type": "qwen2_vl",
            "text_config": {
                **_LLM,
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
            },
            "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64, "num_heads": 2, "mlp_ratio": 2},
            "image_token_id": 2,
            "video_token_id": 3,
            "vision_start_token_id": 4,
            "vision_end_token_id": 5,
        },
        processor="Qwen2VLProcessor",
        processor_config={"image_processor_type": "Qwen2VLImageProcessor", "min_pixels": 3136, "max_pixels": 1003520},
        tokens=("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"),
        chat_template=_CHAT.replace("PLACE", "<|vision_start|><|image_pad|><|vision_end|>"),
        crops=1,
        vision_tokens=28,
    ),
    "ovis2": Unlisted(
        config={
            "model_type": "ovis2",
            "text_config": {"model_type": "qwen2", **_LLM},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 56,
                "patch_size": 14,
                "vocab_size": 64,
                "hidden_stride": 2,
            },
            "hidden_size": 64,
            "vocab_size": 1000,
            "image_token_id": 2,
            "visual_indicator_token_ids": [3, 4, 5, 6, 7],
        },
        processor="Ovis2Processor",
        processor_config={"image_processor_type": "Ovis2ImageProcessor", "size": _SIZE, "crop_to_patches": False},
        processor_arguments={"image_seq_length": 4},
        tokens=("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", "<image>"),
        crops=1,
        vision_tokens=4,
    ),
    "deepseek_vl": Unlisted(
        config={
            "model_type": "deepseek_vl",
            "text_config": {"model_type": "llama", **_LLM},
            "vision_config": _SIGLIP,
            "image_token_id": 2,
        },
        processor="DeepseekVLProcessor",
        processor_config={"image_processor_type": "DeepseekVLImageProcessor", "size": _SIZE, "min_size": 14},
        processor_arguments={"num_image_tokens": 16},
        tokens=("<image_placeholder>",),
        named={"image_token": "<image_placeholder>"},
        crops=1,
        vision_tokens=16,
    ),
}
