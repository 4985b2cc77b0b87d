"""Mistral Small 3.1: Pixtral's encoder with patches of 14 px, of which 2 x 2 become one token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmeter.models.families.base import COMPONENTS, Family, SubjectSpec
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.native import NativeFamily, Scale
from vlmeter.models.families.patch_rows import PatchRowsGeometry, processor_settings, tokenizer

#: As in mistralai/Mistral-Small-3.1-24B-Instruct-2503. The model's `get_image_features` squeezes a single token's
#: dimension away and fails.
GEOMETRY = PatchRowsGeometry(family="mistral3", token_px=28, longest_edge_px=1540, fewest_tokens=2)


def _scale(about: str, *, text: dict[str, Any], vision: dict[str, Any], parameters: tuple[int, ...]) -> Scale:
    return Scale(
        about=about,
        config={
            "model_type": "mistral3",
            "image_token_index": 10,
            "spatial_merge_size": 2,
            "multimodal_projector_bias": False,
            "vision_feature_layer": -1,
            "tie_word_embeddings": False,
            "text_config": {
                "model_type": "mistral",
                "sliding_window": None,
                "rms_norm_eps": 1e-5,
                "rope_theta": 1_000_000_000.0,
                **text,
            },
            "vision_config": {
                "model_type": "pixtral",
                "image_size": 1540,
                "patch_size": 14,
                "hidden_act": "silu",
                "rope_theta": 10_000.0,
                **vision,
            },
        },
        tokenizer=tokenizer(text["vocab_size"]),
        processor_config=processor_settings(patch_px=14, longest_edge_px=1540),
        processor="PixtralProcessor",
        processor_arguments={"patch_size": 14, "spatial_merge_size": 2},
        parameters=dict(zip(COMPONENTS, parameters, strict=True)),
    )


class Mistral3Family(NativeFamily):
    """Mistral Small 3.1 and 3.2."""

    name = "mistral3"
    model_types = ("mistral3",)
    template = Template(text="<s>[INST]{image}{question}[/INST]", image="[IMG]")
    scales: ClassVar[Mapping[str, Scale]] = {
        "nano": _scale(
            "a toy with Mistral3's image geometry, for one processor core",
            text={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 16,
                "vocab_size": 512,
            },
            vision={
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "head_dim": 16,
            },
            parameters=(39_456, 10_272, 32_768, 73_984, 32_832),
        ),
        "24b": _scale(
            "Mistral-Small-3.1-24B: the Pixtral encoder and Mistral Small 3",
            text={
                "hidden_size": 5120,
                "intermediate_size": 32768,
                "num_hidden_layers": 40,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 131_072,
                "vocab_size": 131072,
            },
            vision={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "head_dim": 64,
            },
            parameters=(403_305_472, 35_652_608, 671_088_640, 22_230_220_800, 671_093_760),
        ),
    }

    def geometry(self, spec: SubjectSpec) -> PatchRowsGeometry:
        """Return patches and longest edge of the subject's processor."""
        return PatchRowsGeometry.from_config(self.processor_config(spec), default=GEOMETRY)


FAMILY: Family = Mistral3Family()
