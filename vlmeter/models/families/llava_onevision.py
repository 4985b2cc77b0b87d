"""LLaVA-OneVision: SigLIP on up to 6 x 6 tiles, with features scaled down to what nine tiles make."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmeter.models.families.anyres import AnyresGeometry
from vlmeter.models.families.base import COMPONENTS, Family, SubjectSpec
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.made_tokenizer import MadeTokenizer
from vlmeter.models.families.native import NativeFamily, Scale

#: As in llava-hf/llava-onevision-qwen2-7b-ov-hf: tiles of SigLIP SO400M/14-384, 27 patches a side; every canvas of up
#: to 6 x 6 tiles, and "anyres_max_9".
GEOMETRY = AnyresGeometry(
    family="llava_onevision",
    tile_px=384,
    tile_patches=27,
    canvases=tuple((384 * rows, 384 * columns) for rows in range(1, 7) for columns in range(1, 7)),
    largest_tiles=9,
)

_CANVASES = [list(canvas) for canvas in GEOMETRY.canvases]


def _scale(
    about: str, *, text: dict[str, Any], vision: dict[str, Any], first_token: int, parameters: tuple[int, ...]
) -> Scale:
    """One scale; first_token: the id of Qwen's first special token, behind which the others stand."""
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
    special_tokens = {name: first_token + n for n, name in enumerate(names)}
    return Scale(
        about=about,
        config={
            "model_type": "llava_onevision",
            "image_token_index": special_tokens["<image>"],
            "video_token_index": special_tokens["<video>"],
            "image_grid_pinpoints": _CANVASES,
            "vision_aspect_ratio": "anyres_max_9",
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
            "tie_word_embeddings": False,
            "text_config": {"model_type": "qwen2", "rope_theta": 1_000_000.0, **text},
            "vision_config": {
                "model_type": "siglip_vision_model",
                "image_size": 384,
                "patch_size": 14,
                "vision_use_head": False,
                **vision,
            },
        },
        tokenizer=MadeTokenizer(
            vocab_size=text["vocab_size"], special_tokens=special_tokens, eos="<|im_end|>", pad="<|endoftext|>"
        ),
        processor_config={
            "image_processor_type": "LlavaOnevisionImageProcessor",
            "size": {"height": 384, "width": 384},
            "image_grid_pinpoints": _CANVASES,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
        processor="LlavaOnevisionProcessor",
        processor_arguments={
            "num_image_tokens": 729,
            "vision_feature_select_strategy": "full",
            "vision_aspect_ratio": "anyres_max_9",
        },
        parameters=dict(zip(COMPONENTS, parameters, strict=True)),
    )


class LlavaOnevisionFamily(NativeFamily):
    """LLaVA-OneVision on Qwen2."""

    name = "llava_onevision"
    model_types = ("llava_onevision",)
    template = Template(
        text="<|im_start|>user {image}\n{question}<|im_end|><|im_start|>assistant\n",
        image="<image>",
    )
    scales: ClassVar[Mapping[str, Scale]] = {
        "nano": _scale(
            "a toy with LLaVA-OneVision's image geometry, for one processor core",
            text={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 512,
            },
            vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
            first_token=500,
            parameters=(59_328, 6_336, 32_768, 74_240, 32_832),
        ),
        "7b": _scale(
            "LLaVA-OneVision-Qwen2-7B: SigLIP SO400M/14-384 and Qwen2-7B",
            text={
                "hidden_size": 3584,
                "intermediate_size": 18944,
                "num_hidden_layers": 28,
                "num_attention_heads": 28,
                "num_key_value_heads": 4,
                "max_position_embeddings": 32768,
                "vocab_size": 152064,
            },
            vision={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 26,
                "num_attention_heads": 16,
            },
            first_token=151643,
            parameters=(397_747_744, 16_984_576, 544_997_376, 6_525_618_176, 545_000_960),
        ),
    }

    def geometry(self, spec: SubjectSpec) -> AnyresGeometry:
        """Return tiles and canvases of the subject's processor."""
        return AnyresGeometry.from_config(self.processor_config(spec), default=GEOMETRY)


FAMILY: Family = LlavaOnevisionFamily()
