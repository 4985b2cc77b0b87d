"""Output tokens against latency, on photographs with questions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vlmeter.cells.cell import Cell, Photograph, Request
from vlmeter.cells.keys import Count, unique
from vlmeter.common.errors import UserError
from vlmeter.experiments.base import Asked, Repeated
from vlmeter.models.families.base import ImageOptions


class OutputTokens(Repeated):
    """Output tokens against latency, on photographs with questions."""

    name = "output_tokens"
    question = "output tokens against latency, on photographs"
    starter: ClassVar[Mapping[str, Any]] = {"output_tokens": [8, 32, 128], "images": 5}
    on_photographs = True

    output_tokens: list[Count] = Field(min_length=1, description="numbers of output tokens N")
    direct: Literal["all"] | list[Count] = Field(
        "all",
        description="which N are run by themselves; the largest always is, and its steps give every other N",
    )
    images: int | None = Field(None, ge=1, description="how many of the dataset's images; absent: all of them")
    stop: Literal["length", "eos"] = Field(
        "length",
        description="length: forced to N tokens, no end of sequence before; eos: natural stopping, N a limit",
    )
    uninstrumented_max_output_tokens: int = Field(
        512,
        ge=0,
        description="up to this N each round also runs without any mark, to show what the marks cost",
    )

    @field_validator("output_tokens", "direct")
    @classmethod
    def _no_repeats(cls, values: Any) -> Any:
        return unique(values) if isinstance(values, list) else values

    @model_validator(mode="after")
    def _direct_is_listed(self) -> OutputTokens:
        if self.direct != "all":
            extra = sorted(set(self.direct) - set(self.output_tokens))
            if extra:
                legal = ", ".join(map(str, self.output_tokens))
                raise ValueError(f"direct names {extra[0]}, which is not among output_tokens; legal: {legal}")
        if self.stop == "eos" and self.direct != "all":
            raise ValueError(
                "direct must be all with stop: eos, since a natural end cannot be derived from a longer run"
            )
        return self

    def cells(self, asked: Asked) -> Iterable[Cell]:
        """Lay out the generations: every photograph with every length that is run by itself."""
        images = self.images or asked.images
        if images > asked.images:
            raise UserError(f"experiments.output_tokens.images: {images} is more than dataset.images, {asked.images}")
        options, geometry = ImageOptions(max_crops=self.max_crops), asked.geometry
        longest = max(self.output_tokens)
        direct = self.output_tokens if self.direct == "all" else sorted({*self.direct, longest})
        unmarked = self.uninstrumented_max_output_tokens
        for index in range(images):
            expected, layout = asked.expect(geometry, index, options)
            for output_tokens in direct:
                yield Cell(
                    cell_id=f"output-image{index}-n{output_tokens}",
                    subject=asked.subject,
                    experiment=self.name,
                    kind="generation",
                    requests=(
                        Request(pictures=(Photograph(index=index),), output_tokens=output_tokens, expected=expected),
                    ),
                    arms=("inputs", "hooks", "plain") if output_tokens <= unmarked else ("inputs", "hooks"),
                    max_crops=self.max_crops,
                    stop=self.stop,
                    layout=layout,
                    sampling=asked.sampling,
                )


EXPERIMENT = OutputTokens
