"""LLaVA-NeXT (LLaVA 1.6): CLIP on the tiles of five canvases, and a newline after each row of patches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmeter.models.families.anyres import AnyresGeometry
from vlmeter.models.families.base import COMPONENTS, Family, SubjectSpec
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.made_tokenizer import MadeTokenizer
from vlmeter.models.families.native import NativeFamily, Scale

#: As in llava-hf/llava-v1.6-mistral-7b-hf: tiles of CLIP ViT-L/14-336, 24 patches a side; canvases are height x width.
GEOMETRY = AnyresGeometry(
    family="llava_next",
    tile_px=336,
    tile_patches=24,
    canvases=((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)),
)

_CANVASES = [list(canvas) for canvas in GEOMETRY.canvases]


def _scale(
    about: str, *, text: dict[str, Any], vision: dict[str, Any], image_token: int, parameters: tuple[int, ...]
) -> Scale:
    return Scale(
        about=about,
        config={
            "model_type": "llava_next",
            "image_token_index": image_token,
            "image_grid_pinpoints": _CANVASES,
            "vision_feature_layer": -2,
            "vision_feature_select_strategy": "default",
            "tie_word_embeddings": False,
            "text_config": {"model_type": "mistral", "sliding_window": None, "rms_norm_eps": 1e-5, **text},
            "vision_config": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, **vision},
        },
        tokenizer=MadeTokenizer(
            vocab_size=text["vocab_size"],
            special_tokens={"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": image_token, "<pad>": image_token + 1},
            bos="<s>",
            eos="</s>",
            pad="<pad>",
        ),
        processor_config={
            "image_processor_type": "LlavaNextImageProcessor",
            "size": {"shortest_edge": 336},
            "crop_size": {"height": 336, "width": 336},
            "image_grid_pinpoints": _CANVASES,
        },
        processor="LlavaNextProcessor",
        processor_arguments={
            "patch_size": 14,
            "vision_feature_select_strategy": "default",
            "num_additional_image_tokens": 1,  # CLIP's class token, which "default" drops again
        },
        parameters=dict(zip(COMPONENTS, parameters, strict=True)),
    )


class LlavaNextFamily(NativeFamily):
    """LLaVA-NeXT on Mistral, Vicuna and others."""

    name = "llava_next"
    model_types = ("llava_next",)
    template = Template(text="<s>[INST] {image}\n{question} [/INST]", image="<image>")
    scales: ClassVar[Mapping[str, Scale]] = {
        "nano": _scale(
            "a toy with LLaVA-NeXT's image geometry, for one processor core",
            text={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": 512,
            },
            vision={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "projection_dim": 32,
            },
            image_token=500,
            parameters=(63_072, 6_336, 32_768, 73_984, 32_832),
        ),
        "7b": _scale(
            "LLaVA-v1.6-Mistral-7B: CLIP ViT-L/14-336 and Mistral 7B",
            text={
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 32768,
                "rope_theta": 1_000_000.0,
                "vocab_size": 32064,
            },
            vision={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "projection_dim": 768,
            },
            image_token=32000,
            parameters=(303_507_456, 20_983_808, 131_334_144, 6_979_584_000, 131_338_240),
        ),
    }

    def geometry(self, spec: SubjectSpec) -> AnyresGeometry:
        """Return tiles and canvases of the subject's processor."""
        return AnyresGeometry.from_config(self.processor_config(spec), default=GEOMETRY)


FAMILY: Family = LlavaNextFamily()
