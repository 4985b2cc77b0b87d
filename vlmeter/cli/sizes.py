"""Commands about image sizes and tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from vlmeter.cli.app import FamilyName, Format, MaxCrops, Preset, Revision, Weights, options_of, pair_of, say
from vlmeter.common.errors import UserError

if TYPE_CHECKING:
    from vlmeter.models.families.base import ImageGeometry, ImageTokens


def _geometry(family: str, preset: str | None, weights: str | None, revision: str | None) -> ImageGeometry:
    """How a family, one of its presets or a checkpoint cuts up images."""
    from vlmeter.models.families.base import SubjectSpec
    from vlmeter.models.families.registry import get_family

    known = get_family(family)
    if preset is not None and preset not in known.presets and family != "generic":
        raise UserError(f"--preset: {preset!r} is not known for {family}; legal: {', '.join(known.presets)}")
    if weights is None and preset is None:
        # The toy comes first, and may have smaller crops than any real model.
        preset = next((name for name in known.presets if name != "nano"), None)
        if preset is None:
            raise UserError(
                f"--preset or --weights is missing: family {family} has no real model as preset; legal: "
                f"{', '.join(known.presets)}, or a checkpoint as --weights"
            )
    return known.geometry(
        SubjectSpec(
            preset=preset,
            weights=weights or "random",
            revision=revision,
            dtype="bfloat16",
            attention="sdpa",
            seed=0,
        )
    )


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
    family: FamilyName = "molmo",
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    form: Format = "table",
    max_crops: MaxCrops = None,
    force_tiling: Annotated[
        str | None, typer.Option("--force-tiling", help="impose this tiling, rows x columns, such as 2x7")
    ] = None,
) -> None:
    """Say how many crops and tokens images of these sizes become, under the model's own preprocessing."""
    from vlmeter.cli.rows import rows_as

    geometry, options = _geometry(family, preset, weights, revision), options_of(max_crops, force_tiling)
    images = [geometry.image_tokens(*pair_of(text, "image size"), options=options) for text in sizes]
    say(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))


def size(
    family: FamilyName = "molmo",
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    vision_tokens: Annotated[int | None, typer.Option("--vision-tokens", min=1, help="wanted vision tokens")] = None,
    crops: Annotated[int | None, typer.Option("--crops", min=1, help="wanted crops, the global one included")] = None,
    tiling: Annotated[str | None, typer.Option("--tiling", help="wanted tiling, rows x columns, such as 2x4")] = None,
    nearest: Annotated[bool, typer.Option("--nearest", help="take the nearest count if no image reaches it")] = False,
    form: Format = "table",
    max_crops: MaxCrops = None,
) -> None:
    """Find image sizes that give exactly a count of vision tokens, of crops, or a tiling.

    Every way of reaching the count is listed, each with the size nearest to a square.
    """
    from vlmeter.cli.rows import rows_as
    from vlmeter.models.image_sizes import sizes_for

    if [vision_tokens, crops, tiling].count(None) != 2:
        raise UserError("give exactly one of --vision-tokens, --crops, --tiling")
    geometry, options = _geometry(family, preset, weights, revision), options_of(max_crops)
    if tiling:
        images = [geometry.size_for_tiling(pair_of(tiling, "--tiling"), options=options)]
    else:
        images = sizes_for(geometry, vision_tokens=vision_tokens, crops=crops, nearest=nearest, options=options)
    say(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))


def reachable(
    family: FamilyName = "molmo",
    preset: Preset = None,
    weights: Weights = None,
    revision: Revision = None,
    spread: Annotated[
        int | None, typer.Option("--spread", min=1, help="only so many counts, evenly over the range")
    ] = None,
    form: Format = "table",
    max_crops: MaxCrops = None,
) -> None:
    """List every count of vision tokens that a model can be made to see, with an image size for each.

    Under the list stands what sets its upper end.
    """
    from vlmeter.cli.rows import rows_as
    from vlmeter.models.image_sizes import evenly_spaced
    from vlmeter.models.image_sizes import reachable as all_reachable

    geometry, options = _geometry(family, preset, weights, revision), options_of(max_crops)
    if spread is None:
        images = list(all_reachable(geometry, options=options))
    else:
        images = evenly_spaced(geometry, spread, options=options)
    say(rows_as(_image_rows(images), _image_columns(geometry.layout_columns), form=form))
    if form == "table":
        counts = {image.vision_tokens for image in images}
        say(
            f"\n{len(counts)} counts of vision tokens, {min(counts)} to {max(counts)}; "
            f"the limit: {geometry.limit(options=options)}"
        )
