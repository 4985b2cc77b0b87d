"""Exact control: which image sizes make a model see exactly the wanted number of vision tokens or crops.

A family predicts what one size becomes. Here that prediction is inverted: the family's candidate sizes, which show
every count that it can reach, are put through it once, and what they become is kept in order. A count may be reached in
several ways, for instance by tilings that differ in crops. Where several sizes do the same, the one nearest to a square
is taken: so are photographs and screens, while a long strip stresses a model in ways that its users do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageGeometry, ImageOptions, ImageTokens, KnowsRemedy, KnowsStrips
from vlmeter.models.families.geometry import LARGEST_ASPECT_RATIO


def reachable(geometry: ImageGeometry, *, options: ImageOptions) -> tuple[ImageTokens, ...]:
    """List one image for every way of cutting and counting that the family has, by vision tokens, then crops.

    Two images go the same way if they have as many crops and vision tokens and, in a family that cuts, the same tiling.
    """
    return _reachable(geometry, options)


@lru_cache(maxsize=64)
def _reachable(geometry: Any, options: ImageOptions) -> tuple[ImageTokens, ...]:
    best: dict[tuple[object, ...], ImageTokens] = {}
    for width_px, height_px in geometry.candidates(options=options):
        try:
            image = geometry.image_tokens(width_px, height_px, options=options)
        except UnsupportedSize:
            continue
        way = (image.vision_tokens, image.crops, image.layout.get("tiling_h"), image.layout.get("tiling_w"))
        if way not in best or _oddity(image) < _oddity(best[way]):
            best[way] = image
    return tuple(sorted(best.values(), key=lambda image: (image.vision_tokens, image.crops, _oddity(image))))


def _oddity(image: ImageTokens) -> tuple[float, int, int]:
    """How far a size is from what people show a model: from a square, then large, then upright."""
    elongation = abs(math.log(image.width_px / image.height_px))
    return round(elongation, 6), image.width_px * image.height_px, image.height_px


def sizes_for(
    geometry: ImageGeometry,
    *,
    vision_tokens: int | None = None,
    crops: int | None = None,
    nearest: bool = False,
    options: ImageOptions,
) -> list[ImageTokens]:
    """List an image for every way of reaching this many vision tokens, this many crops, or both at once.

    With `nearest` the nearest reachable count stands in for one that is out of reach (of two as near, the lower).
    Raises UserError that names the nearest counts and what sets the limit.
    """
    if vision_tokens is None and crops is None:
        raise UserError("no count to find a size for: give vision_tokens, crops, or both")
    known = reachable(geometry, options=options)
    found = [image for image in known if vision_tokens in (None, image.vision_tokens) and crops in (None, image.crops)]
    if found:
        return sorted(found, key=lambda image: (image.crops, _oddity(image)))
    if nearest and (vision_tokens is None) != (crops is None):
        wanted = vision_tokens or crops or 0
        counts = sorted({image.crops if vision_tokens is None else image.vision_tokens for image in known})
        closest = min(counts, key=lambda count: abs(count - wanted))
        return sizes_for(
            geometry,
            vision_tokens=None if vision_tokens is None else closest,
            crops=None if crops is None else closest,
            options=options,
        )
    raise _unreachable(geometry, known, vision_tokens=vision_tokens, crops=crops, options=options)


def evenly_spaced(geometry: ImageGeometry, number: int, *, options: ImageOptions) -> list[ImageTokens]:
    """Choose so many vision-token counts, evenly over the whole reachable range, one image each.

    The lowest and the highest are always among them. A family that reaches fewer counts gives all that it has.
    """
    by_count: dict[int, ImageTokens] = {}
    for image in reachable(geometry, options=options):
        known = by_count.get(image.vision_tokens)
        if known is None or _oddity(image) < _oddity(known):
            by_count[image.vision_tokens] = image
    counts = list(by_count)
    if number < len(counts):
        low, high = counts[0], counts[-1]
        wanted = [low + (high - low) * place / max(1, number - 1) for place in range(number)]
        # The nearest count that is still free: close neighbours must not make one point of two.
        chosen: list[int] = []
        for target in wanted:
            chosen.append(min((c for c in counts if c not in chosen), key=lambda count: abs(count - target)))
        counts = sorted(chosen)
    return [by_count[count] for count in counts]


def _unreachable(
    geometry: ImageGeometry,
    known: Sequence[ImageTokens],
    *,
    vision_tokens: int | None,
    crops: int | None,
    options: ImageOptions,
) -> UserError:
    """Say that no image has these counts, which are nearest, what sets the limit, and what would help."""
    with_tokens = [image for image in known if image.vision_tokens == vision_tokens]
    if crops is not None and (vision_tokens is None or with_tokens):
        wanted = f"crops {crops}" if vision_tokens is None else f"vision_tokens {vision_tokens} in crops {crops}"
        asked, counts = crops, sorted({image.crops for image in (with_tokens or known)})
    else:
        wanted = f"vision_tokens {vision_tokens}"
        asked, counts = vision_tokens or 0, sorted({image.vision_tokens for image in known})
    nearest = [f"{count} below" for count in counts if count < asked][-1:]
    nearest += [f"{count} above" for count in counts if count > asked][:1]
    told = f"nearest {'is' if len(nearest) == 1 else 'are'} {' and '.join(nearest)}"
    limit = geometry.limit(options=options)
    strip = geometry.strip(vision_tokens=vision_tokens, crops=crops) if isinstance(geometry, KnowsStrips) else None
    if strip is not None:
        size = f"{strip.width_px}x{strip.height_px}"
        return UserError(
            f"{wanted} takes an image more elongated than {LARGEST_ASPECT_RATIO}:1, and none such is proposed: {size} "
            f"px makes it, as one of image_sizes; of the others, {told}"
        )
    if crops is not None and asked == crops and len(counts) == 1 and not geometry.tilings(options=options):
        return UserError(f"no image reaches {wanted}: every image is {counts[0]} there, since none is cut")
    if asked > counts[-1]:
        said = f"no image reaches {wanted} with {limit}, which sets the limit: {told}"
    else:  # a limit cuts off above; below and in between it is the way of cutting that leaves counts out
        said = f"no image reaches {wanted} with {limit}: {told}"
    if isinstance(geometry, KnowsRemedy):
        said += f"; {geometry.remedy(vision_tokens=vision_tokens, crops=crops)}"
    return UserError(said)
