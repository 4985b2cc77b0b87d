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
    image_settings,
    positive_integer,
    processor_settings,
    refuse_forced_tiling,
    refuse_max_crops,
    require_resizing,
    require_size,
)
from vlmeter.models.families.loaded_native import LoadedNative, Template
from vlmeter.models.families.made_tokenizer import make_tokenizer
from vlmeter.models.families.native import NativeFamily


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
        settings = image_settings(processor_config)
        require_resizing(settings, family="gemma3")
        return cls(
            image_px=edge_px(settings, "size", 224, edges=("height",)),
            tokens_per_image=positive_integer(
                processor_settings(processor_config), "image_seq_length", cls.tokens_per_image
            ),
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


class Gemma3Family(NativeFamily):
    """Gemma 3 with random or real weights."""

    name = "gemma3"
    model_types: ClassVar[tuple[str, ...]] = ("gemma3",)
    template: ClassVar[Template] = Template(
        text="<bos><start_of_turn>user\n{image}{question}<end_of_turn>\n<start_of_turn>model\n", image=_START
    )

    def geometry_of(self, settings: Mapping[str, Any]) -> ImageGeometry:
        """Return the subject's own square."""
        return Gemma3Geometry.from_config(settings)

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
