"""A cell: the smallest thing that is measured and cached. One subject, what it looks at, how long the answer gets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmeter.cells.keys import Sampling
from vlmeter.models.families.base import ImageOptions


class Frozen(BaseModel):
    """Immutable data that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DummyImage(Frozen):
    """Seeded noise of an exact size."""

    kind: Literal["dummy"] = "dummy"
    width_px: int
    height_px: int
    seed: int

    @property
    def file_name(self) -> str:
        """Name of the image's file; the size and the seed say all about it."""
        return f"{self.width_px}x{self.height_px}-{self.seed}.png"


class DatasetImage(Frozen):
    """The image and question at a place of the dataset's manifest, counted from 0."""

    kind: Literal["dataset"] = "dataset"
    index: int


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
    """One request of a block: the photograph and question at a place of the manifest, and how long the answer gets."""

    index: int
    output_tokens: int = Field(description="tokens to generate; a limit where the sequence may end by itself")
    expected: Expected = Expected()


class RequestBlock(Frozen):
    """Requests that are measured once each, one after the other."""

    kind: Literal["block"] = "block"
    first: int = Field(description="place of the first request among all of the experiment, from 0")
    requests: tuple[Request, ...]


class Cell(Frozen):
    """One thing to measure. `cell_id` names it within its subject; nothing is ever parsed out of it."""

    cell_id: str
    subject: str
    experiment: Literal["vision_tokens", "output_tokens", "latency_distribution"]
    image: Annotated[DummyImage | DatasetImage | RequestBlock, Field(discriminator="kind")]
    max_crops: int | None = None
    force_tiling: tuple[int, int] | None = None
    text_tokens: int | None = Field(
        None, description="exact length of the prompt's text part; None: the question's own"
    )
    output_tokens: int = Field(description="tokens to generate; the first one comes out of the prefill")
    stop: Literal["length", "eos"] = "length"
    uninstrumented: bool = Field(True, description="whether rounds also run without any mark")
    layout: dict[str, int] = Field(default_factory=dict, description="the family's own columns, such as tiling_h")
    expected: Expected = Expected()
    sampling: Sampling

    @property
    def options(self) -> ImageOptions:
        """How the image is to be cut up."""
        return ImageOptions(max_crops=self.max_crops, force_tiling=self.force_tiling)


def singles(cell: Cell) -> tuple[Cell, ...]:
    """Take a block apart into a cell for each of its requests, in their order; any other cell is by itself already."""
    if not isinstance(cell.image, RequestBlock):
        return (cell,)
    return tuple(
        cell.model_copy(
            update={
                "cell_id": f"{cell.cell_id}, request {place}",
                "image": DatasetImage(index=request.index),
                "output_tokens": request.output_tokens,
                "expected": request.expected,
            }
        )
        for place, request in enumerate(cell.image.requests)
    )


class DatasetItem(Frozen):
    """What the plan needs to know of one photograph of the manifest."""

    width_px: int
    height_px: int
    question: str


#: A request that stands as sentinel generates so many tokens at most: it is a quick look.
SENTINEL_OUTPUT_TOKENS = 16


def sentinel_of(cells: Sequence[Cell]) -> Cell:
    """Choose the cell that is measured again and again through a session to see drift.

    A vision-token cell of middling size if there is one (short, and busy on every component), else the generation with
    the fewest output tokens. Where there are blocks alone, it is the first request of one, as a cell of its own.
    """
    vision = sorted(
        (cell for cell in cells if cell.experiment == "vision_tokens"),
        key=lambda cell: (cell.expected.vision_tokens or 0, cell.cell_id),
    )
    if vision:
        return vision[len(vision) // 2]
    generations = [cell for cell in cells if not isinstance(cell.image, RequestBlock)]
    if generations:
        return min(generations, key=lambda cell: (cell.output_tokens, cell.cell_id))
    block = min(cells, key=lambda cell: (cell.output_tokens, cell.cell_id))
    assert isinstance(block.image, RequestBlock)
    request = block.image.requests[0]
    return block.model_copy(
        update={
            "experiment": "output_tokens",
            "image": DatasetImage(index=request.index),
            "output_tokens": min(request.output_tokens, SENTINEL_OUTPUT_TOKENS),
            "stop": "length",
            "expected": request.expected,
        }
    )
