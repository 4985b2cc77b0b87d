"""Commands about image sizes and tokens."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmeter.cli.app import FamilyName, Format, MaxCrops, Preset, Revision, Weights, options_of, pair_of, say
from vlmeter.common.errors import Unsupported, UserError

if TYPE_CHECKING:
    from vlmeter.models.families.base import Family, ImageGeometry, ImageOptions, ImageTokens, SubjectSpec


Check = Annotated[
    bool | None,
    typer.Option(
        "--check/--no-check",
        help="with --weights: put an image of each size through the checkpoint's own processor, and refuse what "
        "differs; default: where torch is installed, as many as take seconds",
    ),
]


@dataclass(frozen=True)
class _Asked:
    """Whose way of cutting is asked for: a family's preset, or a checkpoint."""

    family: Family
    spec: SubjectSpec

    @property
    def geometry(self) -> ImageGeometry:
        return self.family.geometry(self.spec)


def _asked(family: str | None, preset: str | None, weights: str | None, revision: str | None) -> _Asked:
    """Find the family and the subject; without a family it is the checkpoint's, and else the default one."""
    from vlmeter.models.checkpoints import open_checkpoint
    from vlmeter.models.families.base import SubjectSpec
    from vlmeter.models.families.registry import (
        DEFAULT,
        FAMILIES,
        check_family,
        family_of_checkpoint,
        get_family,
        unknown_family,
    )

    if family is not None and family not in FAMILIES:
        raise UserError(f"--family: {unknown_family(family)}")
    if weights is None:
        if revision is not None:
            raise UserError(f"--revision: {revision!r} is given without --weights; legal only with a hub id there")
        known = get_family(family or DEFAULT)
    else:
        if preset is not None:
            raise UserError(f"--preset: {preset!r} is given beside --weights, whose own preprocessing counts; give one")
        checkpoint = open_checkpoint(weights, revision=revision, weights=False)
        known = get_family(family or family_of_checkpoint(checkpoint))
        check_family(checkpoint, known)
    if preset is not None and preset not in known.presets and not known.takes_any_checkpoint:
        close = difflib.get_close_matches(preset.lower(), list(known.presets), n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise UserError(f"--preset: {preset!r} is not known for {known.name}{hint}; legal: {', '.join(known.presets)}")
    if weights is None and preset is None:
        # The toy comes first, and may have smaller crops than any real model.
        preset = next((name for name in known.presets if name != "nano"), None)
        if preset is None:
            raise UserError(
                f"--preset or --weights is missing: family {known.name} has no real model as preset; legal: "
                f"{', '.join(known.presets)}, or a checkpoint as --weights"
            )
    spec = SubjectSpec(
        preset=preset,
        weights=weights or "random",
        revision=revision,
        dtype="bfloat16",
        attention="sdpa",
        seed=0,
    )
    return _Asked(known, spec)


def _check(asked: _Asked, images: Sequence[ImageTokens], options: ImageOptions, wanted: bool | None) -> None:
    """Hold predictions for a checkpoint against its own processor, where that is wanted or costs little.

    What could not be checked is said beside the answer; where the check was asked for, it is a refusal.
    """
    from vlmeter.models.real_counts import check_predictions, worth_checking

    if wanted is False or asked.spec.weights == "random" or asked.family.takes_any_checkpoint:
        return  # a family that takes any checkpoint has no prediction of its own: it asks the processor
    chosen = list(images) if wanted else worth_checking(images)
    if not wanted and find_spec("torch") is None:
        _say_aside("not checked against the checkpoint's own processor: torch is not installed")
    elif not chosen:
        pixels = sum(image.width_px * image.height_px for image in images)
        _say_aside(
            f"not checked against the checkpoint's own processor: the images have {pixels:,} pixels; --check does it "
            "all the same"
        )
    else:
        try:
            check_predictions(asked.family, asked.spec, chosen, options=options)
        except Unsupported as reason:
            if wanted:
                raise
            _say_aside(f"not checked against the checkpoint's own processor: {reason}")
            return
        if len(chosen) < len(images):
            _say_aside(
                f"{len(chosen)} of {len(images)} sizes were checked against the checkpoint's own processor; --check "
                "takes all"
            )


def _say_aside(text: str) -> None:
    print(f"vlmeter: {text}", file=sys.stderr)


def _image_rows(images: list[ImageTokens]) -> list[dict[str, Any]]:
    return [
        {
            "width": image.width_px,
            "height": image.height_px,
            **image.layout,
            "crops": image.crops,
            "vision_tokens": image.vision_tokens,
            "special_tokens": image.special_tokens,
            "image_tokens": image.image_tokens,
        }
        for image in images
    ]


def _image_columns(layout_columns: tuple[str, ...]) -> list[str]:
    return ["width", "height", *layout_columns, "crops", "vision_tokens", "special_tokens", "image_tokens"]


def tokens(
    sizes: Annotated[list[str], typer.Argument(help="image sizes, such as 640x480", metavar="WIDTHxHEIGHT...")],
    family: FamilyName = None,
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    form: Format = "table",
    max_crops: MaxCrops = None,
    force_tiling: Annotated[
        str | None, typer.Option("--force-tiling", help="impose this tiling, rows x columns, such as 2x7")
    ] = None,
    check: Check = None,
) -> None:
    """Say how many crops and tokens images of these sizes become, under the model's own preprocessing."""
    from vlmeter.cli.rows import rows_as

    pairs = [pair_of(text, "image size", example="640x480") for text in sizes]
    asked, options = _asked(family, preset, weights, revision), options_of(max_crops, force_tiling)
    geometry = asked.geometry
    images = [geometry.image_tokens(*pair, options=options) for pair in pairs]
    _check(asked, images, options, check)
    say(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))


def size(
    family: FamilyName = None,
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    vision_tokens: Annotated[int | None, typer.Option("--vision-tokens", min=1, help="wanted vision tokens")] = None,
    crops: Annotated[int | None, typer.Option("--crops", min=1, help="wanted crops, the global one included")] = None,
    tiling: Annotated[str | None, typer.Option("--tiling", help="wanted tiling, rows x columns, such as 2x4")] = None,
    nearest: Annotated[bool, typer.Option("--nearest", help="take the nearest count if no image reaches it")] = False,
    form: Format = "table",
    max_crops: MaxCrops = None,
    check: Check = None,
) -> None:
    """Find image sizes that give exactly a count of vision tokens, of crops, or a tiling.

    Every way of reaching the count is listed, each with the size nearest to a square.
    """
    from vlmeter.cli.rows import rows_as
    from vlmeter.models.image_sizes import sizes_for

    if [vision_tokens, crops, tiling].count(None) != 2:
        raise UserError("give exactly one of --vision-tokens, --crops, --tiling")
    asked, options = _asked(family, preset, weights, revision), options_of(max_crops)
    geometry = asked.geometry
    if tiling:
        images = [geometry.size_for_tiling(pair_of(tiling, "--tiling"), options=options)]
    else:
        images = sizes_for(geometry, vision_tokens=vision_tokens, crops=crops, nearest=nearest, options=options)
    _check(asked, images, options, check)
    say(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))


def reachable(
    family: FamilyName = None,
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    spread: Annotated[
        int | None, typer.Option("--spread", min=1, help="only so many counts, evenly over the range")
    ] = None,
    form: Format = "table",
    max_crops: MaxCrops = None,
    check: Check = None,
) -> None:
    """List every count of vision tokens that a model can be made to see, with an image size for each.

    Under the list stands what sets its upper end.
    """
    from vlmeter.cli.rows import rows_as
    from vlmeter.models.families.base import KnowsStrips
    from vlmeter.models.families.geometry import LARGEST_ASPECT_RATIO
    from vlmeter.models.image_sizes import evenly_spaced
    from vlmeter.models.image_sizes import reachable as all_reachable

    asked, options = _asked(family, preset, weights, revision), options_of(max_crops)
    geometry = asked.geometry
    if spread is None:
        images = list(all_reachable(geometry, options=options))
    else:
        images = evenly_spaced(geometry, spread, options=options)
    _check(asked, images, options, check)
    say(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))
    if form == "table":
        counts = {image.vision_tokens for image in images}
        strips = ""
        if isinstance(geometry, KnowsStrips):
            strips = f"; images beyond {LARGEST_ASPECT_RATIO}:1, which make further counts, are not proposed"
        say(
            f"\n{len(counts)} counts of vision tokens, {min(counts)} to {max(counts)}; "
            f"the limit: {geometry.limit(options=options)}{strips}"
        )
