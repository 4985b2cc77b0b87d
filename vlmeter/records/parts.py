"""The parts of a record: what measuring hands over as it is, and what the file keeps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmeter.models.families.base import Counts


class Part(BaseModel):
    """Base of everything in a record: immutable, unknown keys refused, NaN kept out."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Series(Part):
    """Samples of one duration: one value per round, so that series of the same record are paired by place.

    arm: how the work was run (plain, hooks, vision, inputs, request); phase: what span of it; clock: which time.
    """

    arm: str
    phase: str
    clock: Literal["wall", "device", "launch", "busy"]
    samples_ms: list[float]


class Reading(Part):
    """The machine's state around a piece of work: what the gauges showed, and reasons to doubt what was timed."""

    readings: dict[str, float] = Field(
        default_factory=dict, description="of the gauges in `vlmeter.records.gauges`, as far as the machine tells"
    )
    disturbances: tuple[str, ...] = Field((), description="empty: none seen")


class Round(Reading):
    """What was going on around one round of samples."""

    order: list[str] = Field(description="the arms, in the order in which they ran")
    started_s: float = Field(description="seconds since the session began")

    @classmethod
    def of(cls, order: Sequence[str], started_s: float, reading: Reading) -> Round:
        """Put a round together with what the monitor read around it."""
        return cls(order=list(order), started_s=started_s, **reading.model_dump())


class Warmup(Part):
    """Runs of one arm before the rounds; the very first call of a shape is here, and in no sample."""

    arm: str
    wall_ms: list[float]
    settled: bool | None = Field(description="whether successive runs agreed; null: many requests, all of other shapes")


class Drift(Part):
    """How the sentinel fared around this cell, against its first measurement in the session."""

    before_ms: float
    after_ms: float
    reference_ms: float
    noise_fraction: float | None = Field(
        description="half widths of the two 95 % intervals over their medians, added; null: too few samples to tell"
    )
    drifted: bool
    remeasured: bool = False


class SessionStamp(Part):
    """Which session measured the cell, and when in it."""

    session_id: str
    position: int = Field(description="place in the randomised order, from 0")
    cells: int
    started_at: str = Field(description="UTC, ISO 8601")
    order_seed: str = Field(description="seed of the order of the cells, and of the arms in each round")


class Energy(Part):
    """Energy over a span long enough for the counter to mean something."""

    what: Literal["vision", "prefill", "generation", "request"]
    joules: float
    span_s: float
    repeats: int


class SeenPicture(Part):
    """A picture as it was handed over (no size: it never was), and what the dataset calls it."""

    width_px: int | None = None
    height_px: int | None = None
    file_bytes: int | None = Field(
        None, description="size of the file that is sent to a server; from sample to sample some pixels differ"
    )
    image_id: str | None = None


class MeasuredRequest(Part):
    """What was run: a request of the cell, its pictures and question, and what was counted in its inputs.

    A cell of one request has one of these, for all of its rounds, and has it though nothing could be run (then nothing
    was counted); of many, each round has its own, in their order.
    """

    place: int = Field(description="place among the cell's requests, from 0")
    counted: Counts | None
    pictures: list[SeenPicture] = Field(min_length=1)
    question_id: str | None = None
    question: str | None = None
    answers: list[str] = Field(default_factory=list, description="the dataset's, not the model's")
    server_prompt_tokens: int | None = Field(
        None, description="tokens of the prompt by a server's own count (of a cell of one request: in its last round)"
    )


class FailedRequest(Part):
    """A request among many that has no round, since the device had not enough memory for it."""

    place: int
    reason: str
