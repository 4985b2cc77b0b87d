"""A cell: the smallest thing that is measured and cached.

A cell holds requests; a request holds pictures, a question and an output length. One request with one picture is the
ordinary case, measured again and again in rounds. A cell of many requests measures each of them once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmeter.cells.keys import Sampling
from vlmeter.models.encoding import Encoding
from vlmeter.models.families.base import ImageOptions

#: What a cell measures: the prefill of one request, its whole generation, or many requests once each.
Kind = Literal["prefill", "generation", "requests"]


class Frozen(BaseModel):
    """Immutable data that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class MadePicture(Frozen):
    """Seeded noise of an exact size."""

    origin: Literal["made"] = "made"
    width_px: int
    height_px: int
    seed: int

    @property
    def file_name(self) -> str:
        """Name of the picture's file; the size and the seed say all about it."""
        return f"{self.width_px}x{self.height_px}-{self.seed}.png"

    def __str__(self) -> str:
        return f"{self.width_px}x{self.height_px} px"


class Photograph(Frozen):
    """The photograph at a place of the dataset's manifest, counted from 0."""

    origin: Literal["dataset"] = "dataset"
    index: int

    def __str__(self) -> str:
        return f"photograph {self.index}"


class OwnPicture(Frozen):
    """A picture that a study names by its path; its size is that of the file when the plan was made."""

    origin: Literal["own"] = "own"
    path: str
    width_px: int
    height_px: int

    def __str__(self) -> str:
        return self.path


PlannedPicture = Annotated[MadePicture | Photograph | OwnPicture, Field(discriminator="origin")]


class Expected(Frozen):
    """What the plan predicts; None where it depends on a picture or a tokenizer that is not at hand yet."""

    crops: int | None = None
    vision_tokens: int | None = None
    special_tokens: int | None = None
    text_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of the whole prompt, if all parts are known."""
        parts = (self.vision_tokens, self.special_tokens, self.text_tokens)
        return None if None in parts else sum(part for part in parts if part is not None)


class Request(Frozen):
    """What is asked of the model once: pictures, a question about them, and how long the answer gets."""

    pictures: tuple[PlannedPicture, ...] = Field(min_length=1)
    text_tokens: int | None = Field(
        None, description="exact length of the prompt's text part; None: the question, or the photograph's"
    )
    question: str | None = Field(None, description="a question of the study's own, in the place of the photograph's")
    output_tokens: int = Field(
        description="tokens to generate, the first of them out of the prefill; a limit where the end may come by itself"
    )
    expected: Expected = Expected()

    @property
    def photographs(self) -> tuple[Photograph, ...]:
        """Those of its pictures that are photographs of the dataset."""
        return tuple(picture for picture in self.pictures if isinstance(picture, Photograph))

    @property
    def made_pictures(self) -> tuple[MadePicture, ...]:
        """Those of its pictures that are made up."""
        return tuple(picture for picture in self.pictures if isinstance(picture, MadePicture))

    @property
    def own_pictures(self) -> tuple[OwnPicture, ...]:
        """Those of its pictures that the study names by their path."""
        return tuple(picture for picture in self.pictures if isinstance(picture, OwnPicture))

    @property
    def size_px(self) -> tuple[int, int] | None:
        """Width and height of its first picture, where the plan knows them: of all but photographs of the dataset."""
        first = self.pictures[0]
        return None if isinstance(first, Photograph) else (first.width_px, first.height_px)

    @property
    def look(self) -> str:
        """What is asked, but for the length of the answer, in words that tell two such things apart."""
        asked = self.question if self.text_tokens is None else f"{self.text_tokens} text tokens"
        return f"{', '.join(map(str, self.pictures))}{f': {asked}' if asked else ''}"


class Cell(Frozen):
    """One thing to measure. `cell_id` names it within its subject; nothing is ever parsed out of it."""

    cell_id: str
    subject: str
    experiment: str = Field(description="name of the experiment that asked for it, which nothing is decided by")
    kind: Kind
    requests: tuple[Request, ...] = Field(min_length=1)
    first: int = Field(0, description="number of the first request among all of the experiment, from 0")
    arms: tuple[str, ...] = Field(description="ways in which each round runs the request (`vlmeter.measure.arms`)")
    stop: Literal["length", "eos"] = "length"
    max_crops: int | None = None
    force_tiling: tuple[int, int] | None = None
    encoding: Encoding | None = Field(
        None, description="how its pictures are sent to a server, if not as the subject says"
    )
    layout: dict[str, int] = Field(default_factory=dict, description="the family's own columns, such as tiling_h")
    sampling: Sampling

    @property
    def options(self) -> ImageOptions:
        """How the pictures are to be cut up."""
        return ImageOptions(max_crops=self.max_crops, force_tiling=self.force_tiling)

    @property
    def request(self) -> Request:
        """The request of a cell that has one; of several, the first."""
        return self.requests[0]

    @property
    def output_tokens(self) -> int:
        """Tokens that the longest of its answers gets."""
        return max(request.output_tokens for request in self.requests)

    @property
    def expected(self) -> Expected:
        """Counts that hold for the whole cell: those of its request, none where several differ."""
        return self.request.expected if self.kind != "requests" else Expected()

    def __str__(self) -> str:
        if self.kind == "requests":
            return f"requests {self.first} to {self.first + len(self.requests) - 1}"
        sent = f", as {self.encoding}" if self.encoding else ""
        return ", ".join(map(str, self.request.pictures)) + sent


#: A request that stands as sentinel generates so many tokens at most: it is a quick look.
SENTINEL_OUTPUT_TOKENS = 16


def sentinel_of(cells: Sequence[Cell]) -> Cell:
    """Choose the cell that is measured again and again through a session to see drift.

    A prefill of middling size if there is one (short, and busy on every component), else the generation with the fewest
    output tokens. Where there are cells of many requests alone, it is the first request of one, as a cell of its own.
    """
    prefills = sorted(
        (cell for cell in cells if cell.kind == "prefill" and cell.encoding is None),
        key=lambda cell: (cell.expected.vision_tokens or 0, cell.cell_id),
    )
    if prefills:
        return prefills[len(prefills) // 2]
    generations = [cell for cell in cells if cell.kind == "generation"]
    if generations:
        return min(generations, key=lambda cell: (cell.output_tokens, cell.cell_id))
    many = min(cells, key=lambda cell: (cell.output_tokens, cell.cell_id))
    tokens = min(many.request.output_tokens, SENTINEL_OUTPUT_TOKENS)
    short = many.request.model_copy(update={"output_tokens": tokens})
    return many.model_copy(update={"kind": "generation", "requests": (short,), "arms": ("hooks",), "stop": "length"})
