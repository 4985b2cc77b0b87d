"""Where photographs and questions come from: the `dataset` section of a study.

Kept apart from the fetching (`vlmeter.inputs.dataset`), so that reading a study imports neither an image library nor
a dataset library.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

HUB_NAME_PATTERN = r"^[A-Za-z0-9][\w.-]*/[\w.-]+$"


class _Source(BaseModel):
    """What every source has in common: how many photographs, and which ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    images: int = Field(
        10, ge=1, description="how many photographs, each with one question; more keeps those that fewer gave"
    )
    seed: int = Field(0, ge=0, description="seed of the choice among the source's records")
    skip_undecodable: bool = Field(
        False,
        description="pass over records whose image is absent, empty or broken, and say how many; "
        "otherwise the first that is chosen ends the study",
    )


class EmbeddedSource(_Source):
    """The photographs that ship with vlmeter; needs no network."""

    source: Literal["embedded"] = Field(description="embedded: the photographs that ship with vlmeter")


class HubSource(_Source):
    """A dataset repository of the Hugging Face hub in the record schema of VQA v2, read as a stream."""

    source: Literal["hub"] = Field(description="hub: a dataset repository of the Hugging Face hub")
    name: str = Field(pattern=HUB_NAME_PATTERN, description="repository, such as lmms-lab/VQAv2")
    split: str = Field(min_length=1, description="split of the dataset, such as validation")
    config: str | None = Field(None, description="configuration, of a repository that has several")
    revision: str | None = Field(None, description="branch, tag or commit; absent: the newest commit of main")


class LocalSource(_Source):
    """Files on this machine in the record schema of VQA v2."""

    source: Literal["local"] = Field(description="local: files on this machine")
    path: str = Field(
        min_length=1,
        description="a .parquet or .jsonl file, a folder of them, or a pattern such as "
        "data/validation-*.parquet, relative to where vlmeter runs; docs/datasets.md says what is in them",
    )


#: the value of `source` -> the class that has the other keys
SOURCES: dict[str, type[BaseModel]] = {"embedded": EmbeddedSource, "hub": HubSource, "local": LocalSource}

DatasetSource = Annotated[EmbeddedSource | HubSource | LocalSource, Field(discriminator="source")]
