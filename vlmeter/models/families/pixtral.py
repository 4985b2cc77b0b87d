"""Pixtral: an encoder of its own for images of any size, a token per patch of 16 px, and Mistral NeMo.

In transformers it is a LLaVA with another vision encoder, so its checkpoints say model_type "llava".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import COMPONENTS, Family, LoadedModel, SubjectSpec
from vlmeter.models.families.loaded_native import Template
from vlmeter.models.families.native import NativeFamily, Scale
from vlmeter.models.families.patch_rows import PatchRowsGeometry, processor_settings, tokenizer

#: As in mistral-community/pixtral-12b.
GEOMETRY = PatchRowsGeometry(family="pixtral", token_px=16, longest_edge_px=1024)


def _scale(about: str, *, text: dict[str, Any], vision: dict[str, Any], parameters: tuple[int, ...]) -> Scale:
    return Scale(
        about=about,
        config={
            "model_type": "llava",
            "image_token_index": 10,
            "image_seq_length": 1,
            "vision_feature_layer": -1,
            "vision_feature_select_strategy": "full",
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
                "image_size": 1024,
                "patch_size": 16,
                "hidden_act": "silu",
                "rope_theta": 10_000.0,
                **vision,
            },
        },
        tokenizer=tokenizer(text["vocab_size"]),
        processor_config=processor_settings(patch_px=16, longest_edge_px=1024),
        processor="PixtralProcessor",
        processor_arguments={"patch_size": 16},
        parameters=dict(zip(COMPONENTS, parameters, strict=True)),
    )


class PixtralFamily(NativeFamily):
    """Pixtral."""

    name = "pixtral"
    model_types = ("llava",)
    template = Template(text="<s>[INST]{image}{question}[/INST]", image="[IMG]")
    scales: ClassVar[Mapping[str, Scale]] = {
        "nano": _scale(
            "a toy with Pixtral's image geometry, for one processor core",
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
            parameters=(45_216, 6_272, 32_768, 73_984, 32_832),
        ),
        "12b": _scale(
            "Pixtral-12B: the Pixtral encoder and Mistral NeMo 12B",
            text={
                "hidden_size": 5120,
                "intermediate_size": 14336,
                "num_hidden_layers": 40,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "max_position_embeddings": 1_024_000,
                "vocab_size": 131072,
            },
            vision={
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "head_dim": 64,
            },
            parameters=(403_489_792, 31_467_520, 671_088_640, 10_905_600_000, 671_093_760),
        ),
    }

    def model_config(self, spec: SubjectSpec) -> Mapping[str, Any]:
        """Content of config.json; raises UserError for another LLaVA than one with Pixtral's encoder."""
        config = super().model_config(spec)
        encoder = config.get("vision_config", {}).get("model_type")
        if encoder != "pixtral":
            raise UserError(
                f"{spec.weights}: config.json says model_type 'llava' with a vision encoder {encoder!r}, and family "
                "pixtral reads LLaVAs with 'pixtral'; family generic may read it"
            )
        return config

    def load(self, spec: SubjectSpec, *, device: str) -> LoadedModel:
        """Build or read the model; raises UserError for another LLaVA than one with Pixtral's encoder."""
        self.model_config(spec)
        return super().load(spec, device=device)

    def geometry(self, spec: SubjectSpec) -> PatchRowsGeometry:
        """Return patches and longest edge of the subject's processor."""
        self.model_config(spec)
        return PatchRowsGeometry.from_config(self.processor_config(spec), default=GEOMETRY)


FAMILY: Family = PixtralFamily()
