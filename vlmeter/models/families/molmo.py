"""Molmo, first generation, as the rest of vlmeter sees it.

Planning needs the token geometry and the shapes of the presets, both plain arithmetic. Only `load`, and what
it returns, touch torch. The network is the native port in `vlmeter.models.molmo1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import (
    Boundary,
    Counts,
    Family,
    ImageGeometry,
    ImageOptions,
    ImageTokens,
    LoadedModel,
    ModelInputs,
    SubjectSpec,
)
from vlmeter.models.made_text import question_of
from vlmeter.models.molmo1 import geometry as molmo_geometry
from vlmeter.models.molmo1.architecture import Architecture
from vlmeter.models.molmo1.geometry import DEFAULT_MAX_CROPS, Geometry
from vlmeter.models.molmo1.presets import PRESETS, preset

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmeter.models.molmo1.modeling import MolmoForCausalLM
    from vlmeter.models.molmo1.tokenizer import MolmoTokenizer

_BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}

_ABOUT = {
    "nano": "a toy with Molmo's image geometry, for two processor cores",
    "7b-d": "Molmo-7B-D: CLIP ViT-L/14 and Qwen2-7B",
    "7b-o": "Molmo-7B-O: CLIP ViT-L/14 and OLMo-7B",
    "e-1b": "MolmoE-1B: CLIP ViT-L/14 and OLMoE, 64 experts of which 8 per token",
    "72b": "Molmo-72B: CLIP ViT-L/14 and Qwen2-72B",
}


@dataclass(frozen=True)
class MolmoGeometry:
    """Molmo-1's crops and tokens by image size; the arithmetic is in `vlmeter.models.molmo1.geometry`."""

    layout_columns: ClassVar[tuple[str, ...]] = ("tiling_h", "tiling_w")

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict crops and tokens of an image size; raises UnsupportedSize where the original fails."""
        return _image_tokens(
            molmo_geometry.geometry(
                width_px, height_px, max_crops=_max_crops(options), force_tiling=options.force_tiling
            )
        )

    def candidates(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List the exact size of every tiling: counts depend on the tiling alone."""
        return molmo_geometry.exact_sizes(max_crops=_max_crops(options))

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List every tiling (rows, columns) that the preprocessor may choose."""
        return molmo_geometry.tilings(max_crops=_max_crops(options))

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Find the size that gives a tiling; raises UserError if none does.

        With `options.force_tiling` the preprocessor does not choose, so the size is the one that fits that tiling
        without scaling.
        """
        max_crops = _max_crops(options)
        if options.force_tiling is None:
            return _image_tokens(molmo_geometry.size_for_tiling(*tiling, max_crops=max_crops))
        size = molmo_geometry.exact_size(*tiling)
        return _image_tokens(molmo_geometry.geometry(*size, max_crops=max_crops, force_tiling=tiling))

    def limit(self, *, options: ImageOptions) -> str:
        """Name the limit of crops."""
        return f"max_crops {_max_crops(options)}"

    def remedy(self, *, vision_tokens: int | None, crops: int | None) -> str:
        """Say which max_crops reaches a count, or that none does."""
        return molmo_geometry.remedy(vision_tokens=vision_tokens, crops=crops)


class MolmoFamily:
    """Molmo-1 in its published flavours, with random or real weights."""

    name = "molmo"
    presets: Mapping[str, str] = {
        name: f"{_ABOUT[name]} ({architecture.parameters().total:,} parameters)"
        for name, architecture in PRESETS.items()
    }

    def geometry(self, spec: SubjectSpec) -> ImageGeometry:
        """Return the way of cutting that all of Molmo-1 shares; only its options differ."""
        return MolmoGeometry()

    def text_tokens(self, spec: SubjectSpec, question: str) -> int | None:
        """Count the text tokens of a prompt; None for a hub checkpoint, whose tokenizer may not be here."""
        tokenizer = _tokenizer_at_hand(spec.weights, spec.preset)
        return None if tokenizer is None else 1 + len(tokenizer.prompt_ids(question))

    def parameters(self, spec: SubjectSpec) -> dict[str, int] | None:
        """Count parameters per component before loading; None for a hub checkpoint."""
        architecture = _architecture_at_hand(spec)
        return None if architecture is None else _by_component(architecture)

    def kv_bytes_per_token(self, spec: SubjectSpec) -> int | None:
        """Return the bytes of key-value cache of one token; None for a hub checkpoint."""
        architecture = _architecture_at_hand(spec)
        if architecture is None:
            return None
        return architecture.kv_cache_bytes_per_token(bytes_per_value=_BYTES_PER_VALUE[spec.dtype])

    def load(self, spec: SubjectSpec, *, device: str) -> LoadedModel:
        """Build or read the model on the device, ready to run; raises UserError for what a user can mend."""
        import torch

        from vlmeter.models.molmo1.checkpoint import load_model, open_checkpoint
        from vlmeter.models.molmo1.modeling import build_random, empty_model
        from vlmeter.models.molmo1.tokenizer import load_tokenizer, make_tokenizer
        from vlmeter.models.weights import check_fits, check_weights

        dtype: torch.dtype = getattr(torch, spec.dtype)
        if spec.weights == "random":
            architecture = _preset_of(spec)
            if device == "meta":
                model = empty_model(architecture, device=device, dtype=dtype, attn_implementation=spec.attention)
                return LoadedMolmo(model=model, tokenizer=make_tokenizer(architecture))
            model = build_random(
                architecture, device=device, dtype=dtype, seed=spec.seed, attn_implementation=spec.attention
            )
            return LoadedMolmo(model=model, tokenizer=make_tokenizer(architecture))
        checkpoint = open_checkpoint(spec.weights, revision=spec.revision, weights=device != "meta")
        tokenizer = load_tokenizer(checkpoint.folder, checkpoint.architecture)
        if device == "meta":
            model = empty_model(checkpoint.architecture, device=device, dtype=dtype, attn_implementation=spec.attention)
        else:
            values = check_weights(checkpoint.folder)
            check_fits(spec.weights, values, dtype=spec.dtype, quantization=None, device=device, spread=False)
            model = load_model(checkpoint, device=device, dtype=dtype, attn_implementation=spec.attention)
        return LoadedMolmo(model=model, tokenizer=tokenizer)


class LoadedMolmo:
    """A Molmo on a device, with its tokenizer."""

    def __init__(self, model: MolmoForCausalLM, tokenizer: MolmoTokenizer) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.eos_token_ids: Sequence[int] = (tokenizer.eos_token_id,)
        components = {
            "vision_encoder": model.vision_backbone.image_vit,
            "projector": model.vision_backbone.projector,
            "embedding": model.model.embed_tokens,
            "llm_blocks": model.blocks,
            "head": model.head,
        }
        self.parameters: Mapping[str, int] = {
            name: sum(parameter.numel() for parameter in module.parameters()) for name, module in components.items()
        }

    @property
    def placeholders(self) -> Sequence[str]:
        """Texts that mark an image in a prompt: what the tokens of its crops, rows and ends are called."""
        from vlmeter.models.molmo1.tokenizer import SPECIAL_TOKENS

        return SPECIAL_TOKENS

    def prepare(
        self, image: Image, question: str | None, *, text_tokens: int | None, options: ImageOptions
    ) -> ModelInputs:
        """Turn a picture and a question into model inputs on the CPU.

        With `text_tokens` instead of a question, a question is made up that fills the prompt's text part,
        beginning-of-sequence token included, to exactly that many tokens.
        """
        import torch

        from vlmeter.models.molmo1.processing import prepare_question

        if (question is None) == (text_tokens is None):
            raise UserError("a prompt takes exactly one of question and text_tokens")
        if question is None:
            assert text_tokens is not None
            question = _question_of(self.tokenizer, text_tokens)
        prepared = prepare_question(
            image,
            question,
            self.tokenizer,
            max_crops=_max_crops(options),
            force_tiling=options.force_tiling,
        )
        tensors = {
            "input_ids": torch.from_numpy(prepared.input_ids)[None],
            "images": torch.from_numpy(prepared.images)[None].to(self.model.dtype),
            "image_masks": torch.from_numpy(prepared.image_masks)[None].to(self.model.dtype),
            "image_input_idx": torch.from_numpy(prepared.image_input_idx)[None],
        }
        counted = prepared.counts()
        return ModelInputs(
            tensors=tensors,
            counts=Counts(
                crops=counted.crops,
                vision_tokens=counted.vision_tokens,
                special_tokens=counted.special_tokens,
                text_tokens=counted.text_tokens,
                prompt_tokens=counted.prompt_tokens,
            ),
            question=question,
        )

    def boundaries(self) -> Sequence[Boundary]:
        """Return the marks of one prefill, in the order in which they fire.

        The merge is in two pieces: tokens are embedded before the picture is encoded, features added after.
        """
        model, vision = self.model, self.model.vision_backbone
        return (
            Boundary(module=model, when="before", closes=None),
            Boundary(module=vision.image_vit, when="before", closes="merge"),
            Boundary(module=vision.image_vit, when="after", closes="vision_encoder"),
            Boundary(module=vision.projector, when="after", closes="projector"),
            Boundary(module=model.blocks[0], when="before", closes="merge"),
            Boundary(module=model.blocks[-1], when="after", closes="llm_blocks"),
            Boundary(module=model, when="after", closes="head"),
        )

    def vision(self, tensors: Mapping[str, Any]) -> Any:
        """Run vision encoder and projector alone on device tensors -> features [1, crops, 144, hidden]."""
        return self.model.vision_backbone(tensors["images"], tensors["image_masks"])

    def prefill(self, tensors: Mapping[str, Any]) -> tuple[Any, Any]:
        """Run the prompt into a new cache; returns the logits [1, vocabulary] of its end, and the cache.

        Logits of the other positions are not computed, as when generating.
        """
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self.model.config)
        return self.model(**tensors, cache=cache, logits_to_keep=1).logits[:, -1], cache

    def decode(self, token_ids: Any, cache: Any) -> Any:
        """Run one token [1, 1] behind what the cache holds; returns its logits [1, vocabulary]."""
        return self.model(input_ids=token_ids, cache=cache).logits[:, -1]


def _max_crops(options: ImageOptions) -> int:
    return DEFAULT_MAX_CROPS if options.max_crops is None else options.max_crops


def _image_tokens(geometry: Geometry) -> ImageTokens:
    return ImageTokens(
        width_px=geometry.width_px,
        height_px=geometry.height_px,
        crops=geometry.crops,
        vision_tokens=geometry.vision_tokens,
        special_tokens=geometry.special_tokens,
        layout={"tiling_h": geometry.tiling_h, "tiling_w": geometry.tiling_w},
    )


def _question_of(tokenizer: MolmoTokenizer, text_tokens: int) -> str:
    """Make up a question for a text part of this length, whose first token begins the sequence."""
    return question_of(text_tokens, lambda text: 1 + len(tokenizer.prompt_ids(text)), what="a prompt of Molmo")


def _preset_of(spec: SubjectSpec) -> Architecture:
    if spec.preset is None:
        raise UserError(f"preset: missing; random weights need one of {', '.join(PRESETS)}")
    return preset(spec.preset)


def _architecture_at_hand(spec: SubjectSpec) -> Architecture | None:
    """Return the subject's architecture without touching the network; None where that takes a download."""
    from vlmeter.models.molmo1.checkpoint import read_architecture

    if spec.weights == "random":
        return _preset_of(spec)
    folder = Path(spec.weights)
    return read_architecture(folder) if folder.is_dir() else None


@lru_cache(maxsize=8)
def _tokenizer_at_hand(weights: str, preset_name: str | None) -> MolmoTokenizer | None:
    """Return the subject's tokenizer without touching the network; None where that takes a download."""
    from vlmeter.models.molmo1.checkpoint import read_architecture
    from vlmeter.models.molmo1.tokenizer import load_tokenizer, make_tokenizer

    if weights == "random":
        return None if preset_name is None else make_tokenizer(preset(preset_name))
    folder = Path(weights)
    return load_tokenizer(folder, read_architecture(folder)) if folder.is_dir() else None


def _by_component(architecture: Architecture) -> dict[str, int]:
    counted = architecture.parameters()
    return {
        "vision_encoder": counted.vision_encoder,
        "projector": counted.projector,
        "embedding": counted.token_embedding,
        "llm_blocks": counted.blocks,
        "head": counted.final_norm + counted.lm_head,
    }


FAMILY: Family = MolmoFamily()
