"""How a picture is written where it is sent as a file: its format, and how much of it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

ImageFormat = Literal["png", "jpeg"]

#: Quality of JPEG where a study says none, and the least that is taken: below it, a change that tells one sample's
#: picture from the next is rounded away (`vlmeter.backends.endpoint.pictures`).
DEFAULT_QUALITY, LEAST_QUALITY = 90, 20

Quality = Annotated[int, Field(ge=LEAST_QUALITY, le=100)]


@dataclass(frozen=True)
class Encoding:
    """The format of a file; quality: of JPEG, 100 the best; None of PNG, which keeps everything."""

    image_format: ImageFormat
    quality: int | None = None

    @classmethod
    def of(cls, image_format: ImageFormat, quality: int) -> Encoding:
        """Take a format with the quality that stands beside it, which says nothing of PNG."""
        return cls(image_format, quality if image_format == "jpeg" else None)

    @property
    def key(self) -> str:
        """The encoding in the name of a cell."""
        return self.image_format if self.quality is None else f"{self.image_format}{self.quality}"

    def __str__(self) -> str:
        name = self.image_format.upper()
        return name if self.quality is None else f"{name} of quality {self.quality}"
