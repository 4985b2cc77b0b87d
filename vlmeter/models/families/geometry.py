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


def mildest_strip(found: Iterable[ImageTokens], *, vision_tokens: int | None, crops: int | None) -> ImageTokens | None:
    """Choose, among images, the least elongated one of those with the counts; None if none has them."""
    fitting = [
        image for image in found if vision_tokens in (None, image.vision_tokens) and crops in (None, image.crops)
    ]
    return min(
        fitting,
        key=lambda image: (max(image.width_px, image.height_px) / min(image.width_px, image.height_px), image.width_px),
        default=None,
    )


class Settings(dict[str, Any]):
    """Settings of a processor, or of its image processor, with the name of the file that they stand in."""

    def __init__(self, content: Mapping[str, Any], file: str) -> None:
        super().__init__(content)
        self.file = file


def image_settings(config: Mapping[str, Any]) -> Settings:
    """What a processor's settings say to its image processor: under image_processor, else all of them."""
    inner = config.get("image_processor")
    return _settings(inner if isinstance(inner, Mapping) else config)


def processor_settings(config: Mapping[str, Any]) -> Settings:
    """What a processor's settings say to the processor itself, which reads none of its image processor's."""
    found = _settings(config)
    return Settings({key: value for key, value in found.items() if key != "image_processor"}, found.file)


def _settings(content: Mapping[str, Any]) -> Settings:
    return content if isinstance(content, Settings) else Settings(content, "the checkpoint's processor settings")


def require_resizing(settings: Settings, *, family: str) -> None:
    """Refuse a processor that leaves an image's size alone, which this family's model cannot do with.

    To the published code null is as good as false.
    """
    if not settings.get("do_resize", True):
        said = "null" if settings["do_resize"] is None else "false"
        raise UserError(
            f"do_resize: {said} in {settings.file}; {family} takes few images without it, and their counts are not "
            "known"
        )


def refuse_null(settings: Settings, *keys: str) -> None:
    """Refuse a key that is there and holds nothing: the published code takes that as it is, and not for its default."""
    for key in keys:
        if key in settings and settings[key] is None:
            raise UserError(
                f"{key}: null in {settings.file}, which the published code does not take for its default; write a "
                "value, or leave the key out"
            )


def without_null(settings: Settings, *keys: str) -> Settings:
    """Settings without those of some keys that hold nothing, where the published code does take that for absent."""
    return Settings({k: v for k, v in settings.items() if v is not None or k not in keys}, settings.file)


def truth(settings: Settings, key: str, default: bool) -> bool:
    """Read a yes or no."""
    refuse_null(settings, key)
    value = settings.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise UserError(f"{key}: {value!r} in {settings.file} must be true or false")
    return value


def positive_integer(settings: Settings, key: str, default: int | None) -> int:
    """Read a whole number of at least 1; a pair of equal ones counts as one.

    default: what the published code takes where nothing is given; None: it takes nothing then, and so it is refused.
    """
    value = settings.get(key)
    if value is None:
        if default is None:
            raise UserError(f"{key}: missing in {settings.file}, and the published code has no default for it")
        refuse_null(settings, key)
        return default
    if isinstance(value, Mapping) and set(value) == {"height", "width"}:
        value = list(value.values())
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{key}: {value!r} in {settings.file} must be a whole number of at least 1")
    return value


def edge_px(settings: Settings, key: str, default: int, *, edges: tuple[str, ...]) -> int:
    """Read a length in px that the settings give as a number or under one of `edges`, such as "longest_edge".

    default: the published code's own, for a key that is not there.
    """
    refuse_null(settings, key)
    value = settings.get(key, default)
    if isinstance(value, Mapping):
        given = {name: length for name, length in value.items() if length is not None}
        edge = next((name for name in edges if name in given), None)
        if edge is None or (edge in ("height", "width") and given.get("height") != given.get("width")):
            raise UserError(
                f"{key}: {dict(value)!r} in {settings.file} is not understood; expected {' or '.join(edges)}, and a "
                "square"
            )
        value = given[edge]
    elif key in settings and edges == ("longest_edge",):
        raise UserError(f"{key}: {value!r} in {settings.file} is a square to the published code; expected longest_edge")
    return positive_integer(Settings({key: value}, settings.file), key, default)
