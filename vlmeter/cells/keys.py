"""The base of everything that a study says, and how carefully a cell is measured."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from vlmeter.numbers.pairs import parse_pair


class Model(BaseModel):
    """Base of everything in a study: immutable, unknown keys refused, no type taken for another."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def _check_pair(text: Any) -> Any:
    parse_pair(str(text))
    return text


# before the type is looked at: YAML reads 0x2 as the number 2, and "text is wanted" would not help
Pair = Annotated[str, BeforeValidator(_check_pair)]


Count = Annotated[int, Field(ge=1)]


def unique(values: list[Any]) -> list[Any]:
    """Return the values; raises ValueError if one stands there twice."""
    repeated = sorted({str(value) for value in values if values.count(value) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} stands there more than once; every value may be given once")
    return values


class Sampling(Model):
    """How often a cell is measured. A round runs every way of measuring the cell once, in random order."""

    min_samples: int = Field(10, ge=1, description="rounds that are always taken (unless the time cap ends the cell)")
    max_samples: int = Field(50, ge=1, description="rounds after which a cell ends, precise or not")
    relative_half_width_fraction: float = Field(
        0.01,
        gt=0,
        lt=1,
        description="a cell ends when the 95 % interval of the median latency is within +- this part of it",
    )
    max_seconds_per_cell: float = Field(
        20.0, gt=0, description="time cap for the rounds of one cell, in seconds, warm-up not included"
    )
    energy_seconds_per_cell: float = Field(
        0.0,
        ge=0,
        description="seconds of repeated prefill over which energy is read, on a GPU; 0: not measured",
    )
    min_warmup: int = Field(2, ge=1, description="warm-up runs that are always taken, for every input shape")
    max_warmup: int = Field(8, ge=1, description="warm-up runs after which measuring starts, settled or not")
    warmup_tolerance_fraction: float = Field(
        0.05,
        gt=0,
        description="warm-up is settled when two successive runs differ by less than this fraction",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Sampling:
        if self.max_samples < self.min_samples:
            raise ValueError(f"max_samples {self.max_samples} is below min_samples {self.min_samples}")
        if self.max_warmup < self.min_warmup:
            raise ValueError(f"max_warmup {self.max_warmup} is below min_warmup {self.min_warmup}")
        return self


def _says(key: str) -> str | None:
    """What a sampling key says of itself, for the experiments that set it anew."""
    return Sampling.model_fields[key].description


class SamplingOverride(Model):
    """Sampling keys that one experiment sets for itself; what is absent comes from the study's `sampling`."""

    min_samples: int | None = Field(None, ge=1, description=_says("min_samples"))
    max_samples: int | None = Field(None, ge=1, description=_says("max_samples"))
    relative_half_width_fraction: float | None = Field(
        None, gt=0, lt=1, description=_says("relative_half_width_fraction")
    )
    max_seconds_per_cell: float | None = Field(None, gt=0, description=_says("max_seconds_per_cell"))
    energy_seconds_per_cell: float | None = Field(None, ge=0, description=_says("energy_seconds_per_cell"))
    min_warmup: int | None = Field(None, ge=1, description=_says("min_warmup"))
    max_warmup: int | None = Field(None, ge=1, description=_says("max_warmup"))
    warmup_tolerance_fraction: float | None = Field(None, gt=0, description=_says("warmup_tolerance_fraction"))
