"""What a cell looks at: the pictures that are at hand, and the requests that are opened with them.

This is the one place that says which picture stands behind a request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from vlmeter.backends.base import OpenedRequest
from vlmeter.cells.cell import Cell, MadePicture, OwnPicture, Photograph, PlannedPicture, Request
from vlmeter.common.errors import UserError


@dataclass(frozen=True)
class Picture:
    """A picture that is at hand: how to open it, and what is known of it.

    digest is that of its content; empty where the plan says all about it.
    """

    open: Callable[[], Any]
    digest: str = ""
    image_id: str | None = None
    question_id: str | None = None
    question: str | None = None
    answers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pictures:
    """All pictures of a study, as far as they are at hand.

    made: opens a picture that is made up. photographs: those of the manifest, in its order; fewer than the plan names
    if they have not been fetched.
    """

    made: Callable[[MadePicture], Any]
    photographs: Sequence[Picture] = ()

    def has(self, cell: Cell) -> bool:
        """Whether everything that a cell looks at is at hand."""
        count = len(self.photographs)
        return all(photograph.index < count for request in cell.requests for photograph in request.photographs)

    def _picture(self, planned: PlannedPicture) -> Picture:
        if isinstance(planned, Photograph):
            return self.photographs[planned.index]
        if isinstance(planned, OwnPicture):
            return own_picture(planned)
        return Picture(open=lambda: self.made(planned))

    def of(self, request: Request) -> tuple[Picture, ...]:
        """The pictures of a request, in its order; raises IndexError for a photograph that is not at hand."""
        return tuple(map(self._picture, request.pictures))

    def question(self, request: Request) -> str | None:
        """The question of a request; None where its text has an exact length, and words do not matter."""
        if request.text_tokens is not None:
            return None
        return self.of(request)[0].question if request.question is None else request.question

    def opened(self, cell: Cell, request: Request) -> OpenedRequest:
        """Open a request of a cell: its pictures are read now."""
        return OpenedRequest(
            pictures=tuple(picture.open() for picture in self.of(request)),
            question=self.question(request),
            text_tokens=request.text_tokens,
            options=cell.options,
            encoding=cell.encoding,
        )

    def content(self, cell: Cell) -> list[str] | None:
        """What a cell's numbers depend on beside the plan: digests and questions; None if not all is at hand."""
        if not self.has(cell):
            return None
        pictures = [picture for request in cell.requests for picture in self.of(request)]
        return [part for picture in pictures for part in (picture.digest, picture.question or "")]


def own_picture(planned: OwnPicture) -> Picture:
    """The file that a study names; raises UserError if it cannot be read, ValueError on opening what is no picture."""
    path = Path(planned.path).expanduser()

    def opened() -> Any:
        from vlmeter.inputs.images import read_image

        return read_image(path)

    try:
        state = path.stat()
        return Picture(open=opened, digest=_digest(path, state.st_mtime_ns, state.st_size), image_id=planned.path)
    except OSError as error:
        raise UserError(f"picture {planned.path} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=256)
def _digest(path: Path, changed_ns: int, size_bytes: int) -> str:
    """Digest of a file as it was when it had that time and size: a plan asks for it once a cell."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
