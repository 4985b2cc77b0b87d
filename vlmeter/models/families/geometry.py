"""What geometries have in common: which sizes and options they refuse, and how they read a processor's settings.

A geometry turns the size of an image into crops and tokens by arithmetic alone. It is made from a preset, or from what
a checkpoint says about its own preprocessing (`preprocessor_config.json`, `processor_config.json`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.base import ImageOptions, ImageTokens

#: How elongated a size may be that is proposed for a count: longer side over shorter side. Photographs, pages and
#: screenshots lie within; beyond it, most of what the model sees would be padding.
LARGEST_ASPECT_RATIO = 8

#: The longest side that Pillow holds, in a C int.
LONGEST_SIDE_PX = 2**31 - 1


def require_size(width_px: int, height_px: int) -> None:
    """Refuse what is no size of an image."""
    if min(width_px, height_px) < 1:
        raise UnsupportedSize(
            f"image size {width_px}x{height_px} is not a size: width and height must be at least 1 px"
        )
    if max(width_px, height_px) > LONGEST_SIDE_PX:
        raise UnsupportedSize(
            f"image size {width_px}x{height_px} is larger than any image: a side can have at most {LONGEST_SIDE_PX} px"
        )


def refuse_max_crops(options: ImageOptions, *, family: str, instead: str) -> None:
    """Refuse a limit on crops for a family whose preprocessor takes none; `instead` says what decides there."""
    if options.max_crops is not None:
        raise UserError(f"max_crops: {options.max_crops} means nothing to {family}, where {instead}; leave it out")


def refuse_forced_tiling(options: ImageOptions, *, family: str) -> None:
    """Refuse a forced tiling for a family whose preprocessor cannot be told one."""
    if options.force_tiling is not None:
        rows, columns = options.force_tiling
        raise UserError(
            f"force_tiling: {rows}x{columns} cannot be imposed on {family}, whose preprocessor always chooses by "
            "itself; give an image size or a tiling that it chooses"
        )


def is_sane(width_px: int, height_px: int) -> bool:
    """Whether a size is no more elongated than what is proposed for a count."""
    return max(width_px, height_px) <= LARGEST_ASPECT_RATIO * min(width_px, height_px)


def squarest_of_each_kind(found: Iterable[ImageTokens]) -> tuple[tuple[int, int], ...]:
    """Keep, for every pair of vision tokens and crops, the size that is nearest to a square; ascending by pair."""
    best: dict[tuple[int, int], tuple[float, int, int, int]] = {}
    for tokens in found:
        width_px, height_px = tokens.width_px, tokens.height_px
        elongation = max(width_px, height_px) / min(width_px, height_px)
        # Among equals the smaller picture, then the wider one: it is made and read sooner, and looks like a photograph.
        rank = (elongation, width_px * height_px, -width_px, height_px)
        kind = (tokens.vision_tokens, tokens.crops)
        if kind not in best or rank < best[kind]:
            best[kind] = rank
    return tuple((-best[kind][2], best[kind][3]) for kind in sorted(best))


def flattened(config: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the settings of the image processor and of the processor side by side, however the checkpoint nests them."""
    inner = config.get("image_processor")
    nested = dict(inner) if isinstance(inner, Mapping) else {}
    return {**nested, **{key: value for key, value in config.items() if key != "image_processor"}}


def positive_integer(config: Mapping[str, Any], key: str, default: int) -> int:
    """Read a whole number of at least 1 from a checkpoint's settings; a pair of equal ones counts as one."""
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        value = list(value.values())
    if isinstance(value, (list, tuple)) and len(set(value)) == 1:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{key}: {value!r} in the checkpoint's processor settings must be a whole number of at least 1")
    return value


def edge_px(config: Mapping[str, Any], key: str, default: int, *, edges: tuple[str, ...]) -> int:
    """Read a length in px that the settings give as a number or under one of `edges`, such as "longest_edge"."""
    value = config.get(key)
    if isinstance(value, Mapping):
        given = {name: length for name, length in value.items() if length is not None}
        edge = next((name for name in edges if name in given), None)
        if edge is None or (edge in ("height", "width") and given.get("height") != given.get("width")):
            raise UserError(
                f"{key}: {dict(value)!r} in the checkpoint's processor settings is not understood; "
                f"expected {' or '.join(edges)}, and a square"
            )
        value = given[edge]
    return positive_integer({key: value}, key, default)
