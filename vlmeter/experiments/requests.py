"""How long this picture takes with this long an answer: image sizes and pictures of one's own, by output lengths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field, field_validator, model_validator

from vlmeter.cells.cell import Cell, Expected, MadePicture, OwnPicture, Request
from vlmeter.cells.keys import Count, Pair, unique
from vlmeter.common.errors import UserError
from vlmeter.experiments.base import Asked, Repeated
from vlmeter.models.families.base import ImageOptions, ImageTokens
from vlmeter.numbers.pairs import parse_pair

#: EXIF tag that says how a camera was held, and its values that lay a picture on its side.
_ORIENTATION, _ON_ITS_SIDE = 0x0112, (5, 6, 7, 8)


class Requests(Repeated):
    """How long this picture takes with this long an answer: image sizes and pictures of one's own, by lengths."""

    name = "requests"
    question = "image sizes and pictures of one's own, by output lengths: a cell for each pair"
    starter: ClassVar[Mapping[str, Any]] = {"image_sizes": ["640x480", "1344x1344"], "output_tokens": [16, 128]}

    image_sizes: list[Pair] = Field([], description="sizes of made images as width x height in px, such as 640x480")
    pictures: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="paths of image files, relative to where vlmeter runs"
    )
    output_tokens: list[Count] = Field(
        min_length=1, description="numbers of output tokens N, forced: no end of sequence before"
    )
    questions: list[Annotated[str, Field(min_length=1)]] = Field(
        [], description="questions in words, each asked of every image; absent: text of text_tokens tokens"
    )
    text_tokens: int | None = Field(
        None, ge=8, description="text tokens of the prompt, exactly, where no questions are given; absent: 32"
    )
    image_seed: int = Field(0, ge=0, description="seed of the made images' pixels")
    uninstrumented_max_output_tokens: int = Field(
        512, ge=0, description="up to this N each round also runs without any mark, to show what the marks cost"
    )

    @field_validator("image_sizes", "pictures", "output_tokens", "questions")
    @classmethod
    def _no_repeats(cls, values: list[Any]) -> list[Any]:
        return unique(values)

    @model_validator(mode="after")
    def _something_to_do(self) -> Requests:
        if not self.image_sizes and not self.pictures:
            raise ValueError("nothing to look at; give at least one of image_sizes, pictures")
        if self.questions and self.text_tokens is not None:
            raise ValueError("text_tokens is given beside questions, which have their own lengths; give one of them")
        return self

    def cells(self, asked: Asked) -> Iterable[Cell]:
        """Lay out a cell for every image, question and output length."""
        for key, picture, image in self._images(asked):
            for asking, text_tokens, question in self._texts():
                expected = Expected(
                    crops=image.crops,
                    vision_tokens=image.vision_tokens,
                    special_tokens=image.special_tokens,
                    text_tokens=asked.family.text_tokens(asked.spec, question) if question else text_tokens,
                )
                for output_tokens in self.output_tokens:
                    request = Request(
                        pictures=(picture,),
                        text_tokens=text_tokens,
                        question=question,
                        output_tokens=output_tokens,
                        expected=expected,
                    )
                    yield Cell(
                        cell_id=f"requests-{key}{asking}-n{output_tokens}",
                        subject=asked.subject,
                        experiment=self.name,
                        # one output token comes out of the prefill: there is no decode step to be measured
                        kind="generation" if output_tokens > 1 else "prefill",
                        requests=(request,),
                        arms=self._arms(output_tokens),
                        max_crops=self.max_crops,
                        layout=dict(image.layout),
                        sampling=asked.sampling,
                    )

    def _arms(self, output_tokens: int) -> tuple[str, ...]:
        if output_tokens == 1:
            return ("inputs", "plain", "hooks", "vision")
        unmarked = output_tokens <= self.uninstrumented_max_output_tokens
        return ("inputs", "hooks", "plain") if unmarked else ("inputs", "hooks")

    def _texts(self) -> Iterator[tuple[str, int | None, str | None]]:
        """What is asked of every image: its part of a cell's name, the exact length, the words."""
        if not self.questions:
            yield "", self.text_tokens or 32, None
        for number, question in enumerate(self.questions, 1):
            yield f"-q{number}", None, question

    def _images(self, asked: Asked) -> Iterator[tuple[str, MadePicture | OwnPicture, ImageTokens]]:
        """Every image: its part of a cell's name, what it is, what it becomes; UserError names the key."""
        options, geometry = ImageOptions(max_crops=self.max_crops), asked.geometry

        def becomes(key: str, size_px: tuple[int, int]) -> ImageTokens:
            try:
                return geometry.image_tokens(*size_px, options=options)
            except UserError as error:
                raise UserError(f"experiments.requests.{key}, subject {asked.subject}: {error}") from None

        for text in self.image_sizes:
            width_px, height_px = size_px = parse_pair(text)
            made = MadePicture(width_px=width_px, height_px=height_px, seed=self.image_seed)
            yield f"size-{width_px}x{height_px}", made, becomes("image_sizes", size_px)
        for name, path in zip(_names_of(self.pictures), self.pictures, strict=True):
            width_px, height_px = size_px = _size_of(path)
            own = OwnPicture(path=path, width_px=width_px, height_px=height_px)
            yield f"picture-{name}", own, becomes(f"pictures, {path}", size_px)


def _names_of(paths: Sequence[str]) -> list[str]:
    """A name for every file that a cell may bear: its own without folder and suffix, numbered where it is not alone."""
    stems = [re.sub(r"[^A-Za-z0-9._]+", "-", Path(path).stem).strip("-.") or "picture" for path in paths]
    return [stem if stems.count(stem) == 1 else f"{stem}-{place}" for place, stem in enumerate(stems, 1)]


def _size_of(path: str) -> tuple[int, int]:
    """Width and height in px of an image file as it is shown, upright; raises UserError."""
    from PIL import Image

    try:
        with Image.open(Path(path).expanduser()) as image:
            width_px, height_px = image.size
            on_its_side = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except FileNotFoundError:
        why = "does not exist; legal: the path of an image file, relative to where vlmeter runs"
    except Exception as error:  # damaged bytes make Pillow raise errors of many kinds
        why = f"is no image file that can be read: {' '.join(str(error).split()) or type(error).__name__}"
    else:
        return (height_px, width_px) if on_its_side else (width_px, height_px)
    raise UserError(f"experiments.requests.pictures: {path} {why}")


EXPERIMENT = Requests
