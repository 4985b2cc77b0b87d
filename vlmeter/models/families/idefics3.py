"""Idefics3: SigLIP on tiles of 364 px, each of which becomes 169 tokens, and Llama 3."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmeter.models.families.base import COMPONENTS, Family, SubjectSpec
from vlmeter.models.families.loaded_native import Parts, Template
from vlmeter.models.families.made_tokenizer import MadeTokenizer
from vlmeter.models.families.native import NativeFamily, Scale
from vlmeter.models.families.splitting import SplittingGeometry, special_tokens

#: As in HuggingFaceM4/Idefics3-8B-Llama3: 26 x 26 patches to a tile, of which 2 x 2 become one token.
GEOMETRY = SplittingGeometry(family="idefics3", longest_edge_px=4 * 364, tile_px=364, tokens_per_tile=169)


def _scale(
    about: str,
    *,
    text: dict[str, Any],
    vision: dict[str, Any],
    fake_token: int,
    begin_token: int,
    first_position: int,
    parameters: tuple[int, ...],
) -> Scale:
    """One scale; the ids are those of the marker around images, of the beginning of text, and of the first position."""
    named = {
        "<|begin_of_text|>": begin_token,
        "<|end_of_text|>": begin_token + 1,
        "<|finetune_right_pad_id|>": begin_token + 4,
        "<fake_token_around_image>": fake_token,
        "<image>": fake_token + 1,
        "<end_of_utterance>": fake_token + 2,
    }
    return Scale(
        about=about,
        config={
            "model_type": "idefics3",
            "image_token_id": named["<image>"],
            "scale_factor": 2,
            "tie_word_embeddings": False,
            "text_config": {"model_type": "llama", "rms_norm_eps": 1e-5, **text},
            "vision_config": {"image_size": 364, "patch_size": 14, **vision},
        },
        tokenizer=MadeTokenizer(
            vocab_size=text["vocab_size"],
            special_tokens={**named, **special_tokens(first_position)},
            bos="<|begin_of_text|>",
            eos="<end_of_utterance>",
            pad="<|finetune_right_pad_id|>",
        ),
        processor_config={
            "image_processor_type": "Idefics3ImageProcessor",
            "size": {"longest_edge": GEOMETRY.longest_edge_px},
            "max_image_size": {"longest_edge": GEOMETRY.tile_px},
        },
        processor="Idefics3Processor",
        processor_arguments={"image_seq_len": GEOMETRY.tokens_per_tile},
        parameters=dict(zip(COMPONENTS, parameters, strict=True)),
    )


class Idefics3Family(NativeFamily):
    """Idefics3."""

    name = "idefics3"
    model_types = ("idefics3",)
    parts = Parts(
        vision_encoder="model.vision_model",
        projector=("model.connector",),
        blocks="model.text_model.layers",
        norm="model.text_model.norm",
    )
    template = Template(text="<|begin_of_text|>User:{image}{question}<end_of_utterance>\nAssistant:", image="<image>")
    scales: ClassVar[Mapping[str, Scale]] = {
        "nano": _scale(
            "a toy with Idefics3's image geometry, for one processor core",
            text={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 8192,
                "vocab_size": 512,
                "pad_token_id": 508,
            },
            vision={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
            fake_token=500,
            begin_token=504,
            first_position=460,
            parameters=(57_632, 8_192, 32_768, 73_984, 32_832),
        ),
        "8b": _scale(
            "Idefics3-8B: SigLIP SO400M/14-364 and Llama 3.1 8B",
            text={
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500_000.0,
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                },
                "vocab_size": 128259,
                "pad_token_id": 128004,
            },
            vision={
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
            },
            fake_token=128256,
            begin_token=128000,
            first_position=128011,
            parameters=(412_926_192, 18_874_368, 525_348_864, 6_979_584_000, 525_352_960),
        ),
    }

    def geometry(self, spec: SubjectSpec) -> SplittingGeometry:
        """Return the tiles of the subject's processor."""
        return SplittingGeometry.from_config(self.processor_config(spec), default=GEOMETRY)


FAMILY: Family = Idefics3Family()
