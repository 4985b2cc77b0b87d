"""How long many requests take, each measured once, on photographs with questions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from vlmeter.cells.cell import Cell, Photograph, Request
from vlmeter.cells.keys import Count, Sampling, SamplingOverride
from vlmeter.experiments.base import Asked, Experiment
from vlmeter.models.families.base import ImageOptions


class LatencyDistribution(Experiment):
    """How long many requests take, each measured once, on photographs with questions."""

    name = "latency_distribution"
    question = "latency of many requests, each measured once, on photographs"
    starter: ClassVar[Mapping[str, Any]] = {"samples": 300, "output_tokens": 16}
    on_photographs = True
    adds_thumbnails = True

    samples: int = Field(
        5000, ge=1, description="requests, each measured once; of more than the dataset has, some are asked again"
    )
    output_tokens: Count | list[Count] = Field(
        16,
        description="tokens to generate; a list: every request draws one of its numbers, as answers differ in length",
    )
    stop: Literal["length", "eos"] = Field(
        "length",
        description="length: forced to output_tokens; eos: natural stopping, output_tokens a limit",
    )
    block_samples: int = Field(
        50, ge=1, description="requests of one block, which is measured as a whole: what is lost if a run is ended"
    )
    warmup_runs: int = Field(
        1, ge=1, description="runs of every distinct shape before a block, in no sample: a server has seen its shapes"
    )
    seed: int = Field(0, ge=0, description="seed of the drawing of output lengths")

    @field_validator("output_tokens")
    @classmethod
    def _some_lengths(cls, values: Any) -> Any:
        if values == []:
            raise ValueError("an empty list has no length to draw; legal: a whole number, or a list of them")
        return values

    @property
    def lengths(self) -> tuple[int, ...]:
        """Output lengths among which a request draws; one that stands there twice is drawn twice as often."""
        return tuple(self.output_tokens) if isinstance(self.output_tokens, list) else (self.output_tokens,)

    @property
    def own_sampling(self) -> SamplingOverride:
        """Every request is measured once, so that nothing of the study's sampling but the energy span applies."""
        default = Sampling()
        return SamplingOverride(
            min_samples=1,
            max_samples=1,
            relative_half_width_fraction=default.relative_half_width_fraction,
            max_seconds_per_cell=default.max_seconds_per_cell,
            min_warmup=self.warmup_runs,
            max_warmup=self.warmup_runs,
            warmup_tolerance_fraction=default.warmup_tolerance_fraction,
        )

    def cells(self, asked: Asked) -> Iterable[Cell]:
        """Lay the requests out in blocks.

        A request depends on its place alone, not on how many there are: more samples add blocks and leave the others
        (but for a last one that was not full) as they were.
        """
        options, geometry = ImageOptions(max_crops=self.max_crops), asked.geometry
        wanted = range(min(asked.images, self.samples))
        known = [asked.expect(geometry, index, options)[0] for index in wanted]

        def request(place: int) -> Request:
            index = place % asked.images
            return Request(
                pictures=(Photograph(index=index),), output_tokens=self._drawn_length(place), expected=known[index]
            )

        size = self.block_samples
        for number, first in enumerate(range(0, self.samples, size)):
            requests = tuple(request(place) for place in range(first, min(first + size, self.samples)))
            yield Cell(
                cell_id=f"distribution-block{number:03d}",
                subject=asked.subject,
                experiment=self.name,
                kind="requests",
                requests=requests,
                first=first,
                arms=("request",),
                max_crops=self.max_crops,
                stop=self.stop,
                sampling=asked.sampling,
            )

    def _drawn_length(self, place: int) -> int:
        """Draw a request's output length by a hash of its place, which gives the same on every platform for ever."""
        drawn = hashlib.sha256(f"{self.seed}/{place}".encode()).digest()
        return self.lengths[int.from_bytes(drawn[:8], "big") % len(self.lengths)]


EXPERIMENT = LatencyDistribution
