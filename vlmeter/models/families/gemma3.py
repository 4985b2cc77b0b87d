"""Gemma 3: every image becomes one square of 896 px, and always the same number of tokens.

Image tokens see one another in both directions, and five of six decoder blocks look back on a window only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import Family, ImageGeometry, ImageOptions, ImageTokens, LoadedModel, SubjectSpec
from vlmeter.models.families.geometry import (
    edge_px,
    flattened,
    positive_integer,
    refuse_forced_tiling,
    refuse_max_crops,
    require_size,
)
from vlmeter.models.families.loaded_native import LoadedNative, Template
from vlmeter.models.families.made_tokenizer import MadeTokenizer, make_tokenizer
from vlmeter.models.families.native import NativeFamily, Scale


@dataclass(frozen=True)
class Gemma3Geometry:
    """A square of `image_px`, pooled to `tokens_per_image` tokens; the defaults are the published ones.

    The processor can cut crops from a long image ("pan and scan"), but it does so only for a caller who asks, whatever
    the checkpoint's files say. vlmeter does not ask.
    """

    image_px: int = 896
    tokens_per_image: int = 256

    layout_columns = ()

    @classmethod
    def from_config(cls, processor_config: Mapping[str, Any]) -> Self:
        """Read the contents of a preprocessor_config.json or processor_config.json; raises UserError for nonsense."""
        settings = flattened(processor_config)
        return cls(
            image_px=edge_px(settings, "size", 224, edges=("height",)),
            tokens_per_image=positive_integer(settings, "image_seq_length", cls.tokens_per_image),
        )

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Return the one count that there is."""
        _require_uncut(options)
        require_size(width_px, height_px)
        return ImageTokens(
            width_px=width_px,
            height_px=height_px,
            crops=1,
            vision_tokens=self.tokens_per_image,
            special_tokens=2,  # start and end of the picture; the line breaks around them are text
        )

    def candidates(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """Return the size that is not scaled."""
        _require_uncut(options)
        return [(self.image_px, self.image_px)]

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """Return no tiling: nothing is cut."""
        _require_uncut(options)
        return []

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Refuse: nothing is cut."""
        _require_uncut(options)
        rows, columns = tiling
        raise UserError(f"tiling: {rows}x{columns} is out of reach of gemma3, which cuts no image; legal: none")

    def limit(self, *, options: ImageOptions) -> str:
        """Say what keeps every other count out of reach."""
        return f"the {self.tokens_per_image} tokens that gemma3 makes of every image"


def _require_uncut(options: ImageOptions) -> None:
    refuse_max_crops(options, family="gemma3", instead="no image is cut")
    refuse_forced_tiling(options, family="gemma3")


_START, _SOFT, _END = "<start_of_image>", "<image_soft_token>", "<end_of_image>"


def _tokenizer(vocab_size: int, ids: Mapping[str, int]) -> MadeTokenizer:
    return MadeTokenizer(
        vocab_size=vocab_size,
        special_tokens=ids,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        named={"boi_token": _START, "eoi_token": _END, "image_token": _SOFT},
    )


def _ids(*, turn: int, image: int, soft: int) -> dict[str, int]:
    first = {"<pad>": 0, "<eos>": 1, "<bos>": 2}
    return {**first, "<start_of_turn>": turn, "<end_of_turn>": turn + 1, _START: image, _END: image + 1, _SOFT: soft}


#: 4b: config.json and preprocessor_config.json of google/gemma-3-4b-it.
SCALES = {
    "nano": Scale(
        about="a toy with Gemma 3's square image and code path",
        config={
            "model_type": "gemma3",
            "mm_tokens_per_image": 256,
            "boi_token_index": 509,
            "eoi_token_index": 510,
            "image_token_index": 511,
            "eos_token_id": [1, 508],
            "text_config": {
                "model_type": "gemma3_text",
                "vocab_size": 512,
                "hidden_size": 64,
                "intermediate_size": 256,
                "num_hidden_layers": 3,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "head_dim": 32,
                "query_pre_attn_scalar": 32,
                "sliding_window": 128,
                "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 1,
                "image_size": 896,
                "patch_size": 14,
                "vision_use_head": False,
            },
        },
        tokenizer=_tokenizer(512, _ids(turn=507, image=509, soft=511)),
        processor_config={"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 896, "width": 896}},
        processor="Gemma3Processor",
        processor_arguments={"image_seq_length": 256},
        parameters={
            "vision_encoder": 79_440,
            "projector": 1_040,
            "embedding": 32_768,
            "llm_blocks": 185_280,
            "head": 64,
        },
    ),
    "4b": Scale(
        about="Gemma 3 4B: SigLIP-So400m and 34 decoder blocks",
        config={
            "model_type": "gemma3",
            "mm_tokens_per_image": 256,
            "boi_token_index": 255_999,
            "eoi_token_index": 256_000,
            "image_token_index": 262_144,
            "eos_token_id": [1, 106],
            "text_config": {
                "model_type": "gemma3_text",
                "vocab_size": 262_208,
                "hidden_size": 2560,
                "intermediate_size": 10_240,
                "num_hidden_layers": 34,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "head_dim": 256,
                "query_pre_attn_scalar": 256,
                "sliding_window": 1024,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 1152,
                "intermediate_size": 4304,
                "num_hidden_layers": 27,
                "num_attention_heads": 16,
                "image_size": 896,
                "patch_size": 14,
                "vision_use_head": False,
            },
        },
        tokenizer=_tokenizer(262_208, _ids(turn=105, image=255_999, soft=262_144)),
        processor_config={"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 896, "width": 896}},
        processor="Gemma3Processor",
        processor_arguments={"image_seq_length": 256},
        parameters={
            "vision_encoder": 416_866_032,
            "projector": 2_950_272,
            "embedding": 671_252_480,
            "llm_blocks": 3_209_008_128,
            "head": 2_560,
        },
    ),
}


class Gemma3Family(NativeFamily):
    """Gemma 3 with random or real weights."""

    name = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    scales: ClassVar[Mapping[str, Scale]] = SCALES
    template: ClassVar[Template] = Template(
        text="<bos><start_of_turn>user\n{image}{question}<end_of_turn>\n<start_of_turn>model\n", image=_START
    )

    def geometry(self, spec: SubjectSpec) -> ImageGeometry:
        """Return the subject's own square."""
        return Gemma3Geometry.from_config(self.processor_config(spec))

    def text_tokens(self, spec: SubjectSpec, question: str) -> int | None:
        """Count the text tokens of a prompt; None for a checkpoint, whose chat template would have to be run."""
        if spec.weights != "random":
            return None
        tokenizer = make_tokenizer(self.scale(spec).tokenizer)
        image_ids = {tokenizer.token_to_id(token) for token in (_START, _SOFT, _END)}
        prompt = _as_tokenized(self.template.filled(question))
        return sum(number not in image_ids for number in tokenizer.encode(prompt, add_special_tokens=False).ids)

    def loaded(self, model: Any, processor: Any) -> LoadedModel:
        """Put a model and its processor together."""
        return LoadedGemma3(model=model, processor=processor, parts=self.parts, template=self.template)


class LoadedGemma3(LoadedNative):
    """A Gemma 3, whose processor puts line breaks around an image that belong to the text."""

    def _image_ids(self) -> set[int]:
        return {self.tokenizer.convert_tokens_to_ids(token) for token in (_START, _SOFT, _END)}

    def _text_tokens(self, prompt: str) -> int:
        return super()._text_tokens(_as_tokenized(prompt))


def _as_tokenized(prompt: str) -> str:
    """Write the prompt as the processor does before it is tokenized, with one token for the 256.

    A tokenizer makes one token of adjacent line breaks, so that nobody could say which of them are the image's.
    """
    return prompt.replace(_START, f"\n\n{_START}{_SOFT}{_END}\n\n")


FAMILY: Family = Gemma3Family()
