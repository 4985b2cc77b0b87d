"""Molmo2: Molmo's overlapping crops with a wider window, and a global crop that is square whatever the image.

The tiling is chosen as in the first generation (`vlmeter.models.molmo1.geometry`), with crops of 378 px that step by
266 px and at most 8 of them. Two things differ: patches are pooled 2 x 2 after the crops have been laid side by side,
so that an odd number of them is rounded up, and the whole image is squeezed into the global crop whatever its shape,
so that no size is too elongated.

All image tokens attend to each other in the prefill, which rules flash attention out. transformers' image processor
needs torchvision; the geometry, and so a plan, does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from importlib.util import find_spec
from typing import Any, Self

from vlmeter.common.errors import Unsupported, UserError
from vlmeter.models.families.base import Family, ImageOptions, ImageTokens, LoadedModel, SubjectSpec
from vlmeter.models.families.geometry import (
    edge_px,
    image_settings,
    is_sane,
    positive_integer,
    processor_settings,
    refuse_forced_tiling,
    refuse_null,
    require_size,
    squarest_of_each_kind,
    truth,
    without_null,
)
from vlmeter.models.families.loaded_native import LoadedNative, Template
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.molmo1.geometry import select_tiling
from vlmeter.models.molmo1.geometry import tilings as tilings_within


@dataclass(frozen=True)
class Molmo2Geometry:
    """Crops, their overlap and their pooling, as in transformers' Molmo2 image processor.

    margin_patches: patches that a crop shares with its neighbours, both sides together.
    column_tokens, global_column_tokens: whether a token ends each row of the tiled image, and of the global crop.
    """

    crop_px: int = 378
    patch_px: int = 14
    margin_patches: int = 8
    pooling: int = 2
    max_crops: int = 8
    column_tokens: bool = True
    global_column_tokens: bool = True

    layout_columns = ("tiling_h", "tiling_w")

    @classmethod
    def from_config(cls, processor_config: Mapping[str, Any]) -> Self:
        """Read the settings of a checkpoint's processor; raises UserError for settings that make no sense."""
        config, own, default = image_settings(processor_config), processor_settings(processor_config), cls()
        refuse_null(config, "overlap_margins")
        own = without_null(own, "use_single_crop_col_tokens")
        margins = config.get("overlap_margins")
        margins = (default.margin_patches // 2,) * 2 if margins is None else margins
        legal = isinstance(margins, (list, tuple)) and len(margins) == 2 and all(type(m) is int for m in margins)
        if not legal or min(margins) < 0:
            raise UserError(f"overlap_margins: {margins!r} in {config.file} must be two numbers of patches")
        columns = truth(own, "image_use_col_tokens", default.column_tokens)
        found = cls(
            crop_px=edge_px(config, "size", default.crop_px, edges=("height",)),
            patch_px=positive_integer(config, "patch_size", default.patch_px),
            margin_patches=sum(margins),
            pooling=positive_integer(config, "pooling_size", default.pooling),
            max_crops=positive_integer(config, "max_crops", default.max_crops),
            column_tokens=columns,
            global_column_tokens=truth(own, "use_single_crop_col_tokens", columns),
        )
        if found.crop_px % found.patch_px or found._window_patches < 1:
            raise UserError(
                f"overlap_margins: {list(margins)} leave no room in crops of {found.crop_px} px with patches of "
                f"{found.patch_px} px, of which whole ones must fit"
            )
        return found

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        """Predict crops and tokens; every size that is one will do."""
        geometry = self._with(options)
        require_size(width_px, height_px)
        return geometry._image_tokens(width_px, height_px)

    def candidates(self, *, options: ImageOptions) -> Iterable[tuple[int, int]]:
        """List the exact size (width, height) of one tiling for every pair of vision tokens and crops."""
        geometry = self._with(options)
        sizes = (geometry._exact_size(*tiling) for tiling in tilings_within(max_crops=geometry.max_crops))
        return squarest_of_each_kind(geometry._image_tokens(*size) for size in sizes if is_sane(*size))

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        """List every tiling (rows, columns) that the preprocessor may choose, fewest crops first."""
        return tilings_within(max_crops=self._with(options).max_crops)

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        """Return the size at which this tiling needs no scaling; as in the first generation, it is chosen there."""
        geometry = self._with(options)
        rows, columns = tiling
        if min(tiling) < 1 or rows * columns > geometry.max_crops:
            raise UserError(
                f"tiling: {rows}x{columns} takes {rows * columns} crops, out of reach with "
                f"{geometry.limit(options=ImageOptions())}"
            )
        return geometry._image_tokens(*geometry._exact_size(rows, columns))

    def limit(self, *, options: ImageOptions) -> str:
        """Say what keeps larger counts out of reach."""
        return f"max_crops {self._with(options).max_crops}"

    def _with(self, options: ImageOptions) -> Self:
        refuse_forced_tiling(options, family="molmo2")
        if options.max_crops is None:
            return self
        if options.max_crops < 1:
            raise UserError(f"max_crops: {options.max_crops} is too few; legal from 1 on")
        return replace(self, max_crops=options.max_crops)

    @property
    def _window_patches(self) -> int:
        return self.crop_px // self.patch_px - self.margin_patches

    def _exact_size(self, rows: int, columns: int) -> tuple[int, int]:
        window, margin = self._window_patches * self.patch_px, self.margin_patches * self.patch_px
        return columns * window + margin, rows * window + margin

    def _pooled(self, patches: int) -> int:
        return math.ceil(patches / self.pooling)

    def _image_tokens(self, width_px: int, height_px: int) -> ImageTokens:
        rows, columns = select_tiling(
            width_px,
            height_px,
            max_crops=self.max_crops,
            window_px=self._window_patches * self.patch_px,
            margin_px=self.margin_patches * self.patch_px,
        )
        side = self._pooled(self.crop_px // self.patch_px)
        tokens_h = self._pooled(rows * self._window_patches + self.margin_patches)
        tokens_w = self._pooled(columns * self._window_patches + self.margin_patches)
        # A start and an end token around the global crop and around the tiled image, and the ends of their rows.
        special_tokens = 4 + side * self.global_column_tokens + tokens_h * self.column_tokens
        return ImageTokens(
            width_px=width_px,
            height_px=height_px,
            crops=1 + rows * columns,
            vision_tokens=side**2 + tokens_h * tokens_w,
            special_tokens=special_tokens,
            layout={"tiling_h": rows, "tiling_w": columns},
        )


class Molmo2Family(NativeFamily):
    """Molmo2 on Qwen3."""

    name = "molmo2"
    model_types = ("molmo2",)
    template = Template(
        text="<|im_end|>{image}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n", image="<|image|>"
    )

    def geometry_of(self, settings: Mapping[str, Any]) -> Molmo2Geometry:
        """Return the crops of the subject's processor."""
        return Molmo2Geometry.from_config(settings)

    def load(self, spec: SubjectSpec, *, device: str) -> LoadedModel:
        """Build or read the model; raises Unsupported where transformers or torchvision is missing what it takes."""
        _require_libraries()
        return super().load(spec, device=device)

    def loaded(self, model: Any, processor: Any) -> LoadedModel:
        """Put a model and its processor together."""
        return LoadedMolmo2(model=model, processor=processor, parts=self.parts, template=self.template)


class LoadedMolmo2(LoadedNative):
    """A Molmo2 on a device, with its processor."""

    def render(self, question: str) -> str:
        """Return the prompt with the beginning of sequence that the processor would otherwise put before it."""
        prompt, begin = super().render(question), self.tokenizer.bos_token or self.tokenizer.eos_token
        return prompt if prompt.startswith(begin) else begin + prompt

    def image_arguments(self, options: ImageOptions) -> dict[str, Any]:
        """Pass a limit on crops to the image processor."""
        refuse_forced_tiling(options, family="molmo2")
        return {} if options.max_crops is None else {"images_kwargs": {"max_crops": options.max_crops}}

    def crops(self, made: Mapping[str, Any]) -> int:
        """Count the crops, whose patches come flattened, in the pixel tensor."""
        return len(made["pixel_values"])


def _require_libraries() -> None:
    """Raise Unsupported, with what to install, where Molmo2 cannot run."""
    import transformers

    if not hasattr(transformers, "Molmo2ForConditionalGeneration"):
        raise Unsupported(
            f"molmo2: transformers {metadata.version('transformers')} does not know it; install 5.20 or newer"
        )
    if find_spec("torchvision") is None:
        raise Unsupported(
            "molmo2: its image processor in transformers needs torchvision, which is not installed; install the "
            "version that fits the installed torch"
        )


FAMILY: Family = Molmo2Family()
