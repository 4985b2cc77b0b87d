"""Molmo, first generation, as the rest of vlmeter sees it.

Planning needs the token geometry and the shapes of the presets, both plain arithmetic. Only `load`, and what
it returns, touch torch. The network is the native port in `vlmeter.models.molmo1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from vlmeter.common.errors import UserError
from vlmeter.models.checkpoints import Checkpoint, checkpoint_at_hand
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
from vlmeter.models.families.geometry import image_settings, positive_integer
from vlmeter.models.families.preset_data import about_presets
from vlmeter.models.families.registry import check_family
from vlmeter.models.made_text import question_of
from vlmeter.models.molmo1 import NAME
from vlmeter.models.molmo1 import geometry as molmo_geometry
from vlmeter.models.molmo1.architecture import Architecture
from vlmeter.models.molmo1.geometry import DEFAULT_MAX_CROPS, Geometry
from vlmeter.models.molmo1.presets import preset, presets

if TYPE_CHECKING:
    from PIL.Image import Image

    from vlmeter.models.molmo1.modeling import MolmoForCausalLM
    from vlmeter.models.molmo1.tokenizer import MolmoTokenizer

_BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}

#: What of a checkpoint's preprocessor_config.json the port has built in; another value would be another model.
_BUILT_IN: Mapping[str, object] = {
    "base_image_input_size": [molmo_geometry.CROP_PX] * 2,
    "image_patch_size": molmo_geometry.PATCH_PX,
    "image_token_length_h": molmo_geometry.CROP_PX // molmo_geometry.PATCH_PX // molmo_geometry.POOLING_PATCHES,
    "image_token_length_w": molmo_geometry.CROP_PX // molmo_geometry.PATCH_PX // molmo_geometry.POOLING_PATCHES,
    "image_padding_mask": True,
    "overlap_margins": [4, 4],
}


@dataclass(frozen=True)
class MolmoGeometry:
    """Molmo-1's crops and tokens by image size; the arithmetic is in `vlmeter.models.molmo1.geometry`.

    max_crops: where the options leave the limit of crops open.
    """

    max_crops: int = DEFAULT_MAX_CROPS

    layout_columns: ClassVar[tuple[str, ...]] = ("tiling_h", "tiling_w")

    @classmethod
    def from_config(cls, processor_config: Mapping[str, Any]) -> Self:
        """Read a checkpoint's preprocessor_config.json; raises UserError for what the port does otherwise."""
        settings = image_settings(processor_config)
        for key, value in _BUILT_IN.items():
            if settings.get(key, value) != value:
                raise UserError(f"{key}: {settings[key]!r} in {settings.file}; the port of Molmo has {value!r} inside")
        return cls(max_crops=positive_integer(settings, "max_crops", DEFAULT_MAX_CROPS))

    def most_crops(self, options: ImageOptions) -> int:
        """Limit of crops: the options', else the checkpoint's."""
        return self.max_crops if options.max_crops is None else options.max_crops

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict crops and tokens of an image size; raises UnsupportedSize where the original fails."""
        return _image_tokens(
            molmo_geometry.geometry(
                width_px, height_px, max_crops=self.most_crops(options), force_tiling=options.force_tiling
            )
        )

    def candidates(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List the exact size of every tiling: counts depend on the tiling alone."""
        return molmo_geometry.exact_sizes(max_crops=self.most_crops(options))

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List every tiling (rows, columns) that the preprocessor may choose."""
        return molmo_geometry.tilings(max_crops=self.most_crops(options))

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Find the size that gives a tiling; raises UserError if none does.

        With `options.force_tiling` the preprocessor does not choose, so the size is the one that fits that tiling
        without scaling.
        """
        max_crops = self.most_crops(options)
        if options.force_tiling is None:
            return _image_tokens(molmo_geometry.size_for_tiling(*tiling, max_crops=max_crops))
        size = molmo_geometry.exact_size(*tiling)
        return _image_tokens(molmo_geometry.geometry(*size, max_crops=max_crops, force_tiling=tiling))

    def limit(self, *, options: ImageOptions) -> str:
        """Name the limit of crops."""
        return f"max_crops {self.most_crops(options)}"

    def remedy(self, *, vision_tokens: int | None, crops: int | None) -> str:
        """Say which max_crops reaches a count, or that none does."""
        return molmo_geometry.remedy(vision_tokens=vision_tokens, crops=crops)


class MolmoFamily:
    """Molmo-1 in its published flavours, with random or real weights."""

    name = NAME
    model_types: Sequence[str] = (NAME,)
    piece = "crop"
    loads_by_transformers = False
    takes_any_checkpoint = False
    runs_remote_code = False
    vision_attention_dtypes: Sequence[str] = ("float32", "weights")

    @cached_property
    def presets(self) -> Mapping[str, str]:
        """A line about every preset."""
        return about_presets(self.name)

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether it is a Molmo of the first generation."""
        return config.get("model_type") in self.model_types

    def other_format(self, config: Mapping[str, Any]) -> str | None:
        """Molmo has been published in one format."""
        return None

    def geometry(self, spec: SubjectSpec) -> ImageGeometry:
        """Return the way of cutting that all of Molmo-1 shares, with a checkpoint's own limit of crops.

        A hub checkpoint that is not on this machine counts as one with the published limit, and is not downloaded.
        """
        checkpoint = None if spec.weights == "random" else checkpoint_at_hand(spec.weights, spec.revision)
        return MolmoGeometry() if checkpoint is None else self._geometry_of(checkpoint)

    def _geometry_of(self, checkpoint: Checkpoint) -> MolmoGeometry:
        check_family(checkpoint, self)
        if not checkpoint.has_processor:
            return MolmoGeometry()
        try:
            return MolmoGeometry.from_config(checkpoint.processor_config())
        except UserError as error:
            raise UserError(f"{checkpoint.source}: {error}") from error

    def verify(self, checkpoint: str, cases: Sequence[Path], *, tolerance: float) -> Sequence[Any]:
        """Compare the port with what the original code computed; see `vlmeter.models.molmo1.verify`."""
        from vlmeter.models.molmo1.verify import verify

        return verify(checkpoint, cases, tolerance=tolerance)

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
        from vlmeter.models.weights import BYTES_PER_WEIGHT, check_fits, check_weights

        dtype: torch.dtype = getattr(torch, spec.dtype)
        if spec.weights == "random":
            architecture = _preset_of(spec)
            if device == "meta":
                model = empty_model(architecture, device=device, dtype=dtype, attn_implementation=spec.attention)
                attend_in(model, spec.vision_attention_dtype)
                return LoadedMolmo(model=model, tokenizer=make_tokenizer(architecture))
            model = build_random(
                architecture, device=device, dtype=dtype, seed=spec.seed, attn_implementation=spec.attention
            )
            attend_in(model, spec.vision_attention_dtype)
            return LoadedMolmo(model=model, tokenizer=make_tokenizer(architecture))
        checkpoint = open_checkpoint(spec.weights, revision=spec.revision, weights=device != "meta")
        geometry = self._geometry_of(Checkpoint(spec.weights, checkpoint.folder))
        tokenizer = load_tokenizer(checkpoint.folder, checkpoint.architecture)
        if device == "meta":
            model = empty_model(checkpoint.architecture, device=device, dtype=dtype, attn_implementation=spec.attention)
        else:
            values = check_weights(checkpoint.folder)
            check_fits(
                spec.weights,
                values,
                how=spec.dtype,
                bytes_per_value=BYTES_PER_WEIGHT[spec.dtype],
                device=device,
                spread=False,
            )
            model = load_model(checkpoint, device=device, dtype=dtype, attn_implementation=spec.attention)
        attend_in(model, spec.vision_attention_dtype)
        return LoadedMolmo(model=model, tokenizer=tokenizer, geometry=geometry)


class LoadedMolmo:
    """A Molmo on a device, with its tokenizer."""

    def __init__(
        self, model: MolmoForCausalLM, tokenizer: MolmoTokenizer, geometry: MolmoGeometry | None = None
    ) -> None:
        self.model = model
        self.geometry = geometry or MolmoGeometry()
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
            max_crops=self.geometry.most_crops(options),
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

    def prefill(self, tensors: Mapping[str, Any], cache: Any = None) -> tuple[Any, Any]:
        """Run the prompt into a new cache, or an empty one; returns the logits [1, vocabulary] of its end, and it.

        Logits of the other positions are not computed, as when generating.
        """
        from transformers.cache_utils import DynamicCache

        cache = DynamicCache(config=self.model.config) if cache is None else cache
        return self.model(**tensors, cache=cache, logits_to_keep=1).logits[:, -1], cache

    def decode(self, token_ids: Any, cache: Any) -> Any:
        """Run one token [1, 1] behind what the cache holds; returns its logits [1, vocabulary]."""
        return self.model(input_ids=token_ids, cache=cache).logits[:, -1]


def attend_in(model: MolmoForCausalLM, dtype: str | None) -> None:
    """Set the number format of attention in vision encoder and pooling; None leaves the original's."""
    from vlmeter.models.molmo1.vision import MolmoVisionAttention

    if dtype is not None:
        for module in model.modules():
            if isinstance(module, MolmoVisionAttention):
                module.in_float32 = dtype == "float32"


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
        raise UserError(f"preset: missing; random weights need one of {', '.join(presets())}")
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
