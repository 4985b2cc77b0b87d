"""The manifest: which photographs and questions were chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmeter.study.dataset_source import DatasetSource


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(BaseModel):
    """One person's answer, as VQA v2 has it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    answer: str
    answer_confidence: str | None = None
    answer_id: int | None = None


class ManifestImage(_Frozen):
    """One photograph with one question."""

    file: str = Field(description="image file, relative to the manifest's folder")
    image_id: int | str
    question_id: int | str
    question: str
    answers: tuple[Answer, ...]
    width_px: int
    height_px: int
    sha256: str = Field(description="of the image file")


class Manifest(_Frozen):
    """What was fetched: the photographs in their order, and where they come from."""

    version: Literal[1] = 1
    source: DatasetSource
    commit: str | None = Field(None, description="commit of the hub repository that was read")
    images: tuple[ManifestImage, ...]
