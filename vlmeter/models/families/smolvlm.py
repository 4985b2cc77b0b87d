"""SmolVLM: SigLIP on tiles of 384 px, each of which becomes 81 tokens, and SmolLM2.

With random weights, images go through transformers' Idefics3 processor, which writes the same tokens: SmolVLM's own
wants num2words, for what it says about videos. A checkpoint is loaded with the one that it names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from vlmeter.models.families.base import COMPONENTS, Family, SubjectSpec
from vlmeter.models.families.loaded_native import Parts, Template
from vlmeter.models.families.made_tokenizer import MadeTokenizer
from vlmeter.models.families.native import NativeFamily, Scale
from vlmeter.models.families.splitting import SplittingGeometry, special_tokens

#: As in HuggingFaceTB/SmolVLM2-2.2B-Instruct: 27 x 27 patches to a tile, of which 3 x 3 become one token.
GEOMETRY = SplittingGeometry(family="smolvlm", longest_edge_px=4 * 384, tile_px=384, tokens_per_tile=81)

_VISION_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
_VISION_BASE = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}


def _scale(
    about: str,
    *,
    text: dict[str, Any],
    vision: dict[str, Any],
    merged: int,
    tokens: tuple[int, int, int],
    parameters: tuple[int, ...],
) -> Scale:
    """One scale.

    merged: patches per side that become one token. tokens: ids of <|im_start|>, of the first position (markers and
    images stand behind the positions) and of <end_of_utterance>.
    """
    start, first_position, end = tokens
    positions = special_tokens(first_position)
    marker = max(positions.values()) + 1
    tile_px = vision["image_size"]
    return Scale(
        about=about,
        config={
            "model_type": "smolvlm",
            "image_token_id": marker + 1,
            "scale_factor": merged,
            "tie_word_embeddings": False,
            "text_config": {"model_type": "llama", "rms_norm_eps": 1e-5, "pad_token_id": start + 1, **text},
            "vision_config": dict(vision),
        },
        tokenizer=MadeTokenizer(
            vocab_size=text["vocab_size"],
            special_tokens={
                "<|im_start|>": start,
                "<|im_end|>": start + 1,
                **positions,
                "<fake_token_around_image>": marker,
                "<image>": marker + 1,
                "<end_of_utterance>": end,
            },
            bos="<|im_start|>",
            eos="<end_of_utterance>",
            pad="<|im_end|>",
        ),
        processor_config={
            "image_processor_type": "SmolVLMImageProcessor",
            "size": {"longest_edge": 4 * tile_px},
            "max_image_size": {"longest_edge": tile_px},
        },
        processor="Idefics3Processor",
        processor_arguments={"image_seq_len": (tile_px // vision["patch_size"] // merged) ** 2},
        parameters=dict(zip(COMPONENTS, parameters, strict=True)),
    )


class SmolVLMFamily(NativeFamily):
    """SmolVLM and SmolVLM2."""

    name = "smolvlm"
    model_types = ("smolvlm",)
    parts = Parts(
        vision_encoder="model.vision_model",
        projector=("model.connector",),
        blocks="model.text_model.layers",
        norm="model.text_model.norm",
    )
    template = Template(text="<|im_start|>User:{image}{question}<end_of_utterance>\nAssistant:", image="<image>")
    scales: ClassVar[Mapping[str, Scale]] = {
        "nano": _scale(
            "a toy with SmolVLM's image geometry, for one processor core",
            text={
                "hidden_size": 64,
                "intermediate_size": 128,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 8192,
                "vocab_size": 512,
            },
            vision={
                **_VISION_SO400M,
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
            },
            merged=3,
            tokens=(1, 460, 511),
            parameters=(59_328, 18_432, 32_768, 82_176, 32_832),
        ),
        "2.2b": _scale(
            "SmolVLM2-2.2B: SigLIP SO400M/14-384 and SmolLM2 1.7B",
            text={
                "hidden_size": 2048,
                "intermediate_size": 8192,
                "num_hidden_layers": 24,
                "num_attention_heads": 32,
                "num_key_value_heads": 32,
                "max_position_embeddings": 8192,
                "rope_theta": 130_000.0,
                "vocab_size": 49280,
            },
            vision=_VISION_SO400M,
            merged=3,
            tokens=(1, 49152, 49279),
            parameters=(412_987_248, 21_233_664, 100_925_440, 1_610_711_040, 100_927_488),
        ),
        "256m": _scale(
            "SmolVLM2-256M: SigLIP base/16-512 and SmolLM2 135M",
            text={
                "hidden_size": 576,
                "intermediate_size": 1536,
                "num_hidden_layers": 30,
                "num_attention_heads": 9,
                "num_key_value_heads": 3,
                "head_dim": 64,
                "max_position_embeddings": 8192,
                "rope_theta": 100_000.0,
                "vocab_size": 49280,
            },
            vision=_VISION_BASE,
            merged=4,
            tokens=(1, 49152, 49279),
            parameters=(86_433_024, 7_077_888, 28_385_280, 106_202_880, 28_385_856),
        ),
        "500m": _scale(
            "SmolVLM2-500M: SigLIP base/16-512 and SmolLM2 360M",
            text={
                "hidden_size": 960,
                "intermediate_size": 2560,
                "num_hidden_layers": 32,
                "num_attention_heads": 15,
                "num_key_value_heads": 5,
                "head_dim": 64,
                "max_position_embeddings": 8192,
                "rope_theta": 100_000.0,
                "vocab_size": 49280,
            },
            vision=_VISION_BASE,
            merged=4,
            tokens=(1, 49152, 49279),
            parameters=(86_433_024, 11_796_480, 47_308_800, 314_634_240, 47_309_760),
        ),
    }

    def geometry(self, spec: SubjectSpec) -> SplittingGeometry:
        """Return the tiles of the subject's processor."""
        return SplittingGeometry.from_config(self.processor_config(spec), default=GEOMETRY)


FAMILY: Family = SmolVLMFamily()
