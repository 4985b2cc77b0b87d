"""The manifest: which photographs and questions were chosen."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vlmeter.inputs.rows import shown
from vlmeter.numbers.words import plural
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

    file: str = Field(min_length=1, description="image file, relative to the manifest's folder")
    image_id: int | str
    question_id: int | str
    question: str = Field(min_length=1)
    answers: tuple[Answer, ...]
    width_px: int = Field(ge=1)
    height_px: int = Field(ge=1)
    sha256: str = Field(description="of the image file")


class SkippedRecord(_Frozen):
    """A record that was passed over, since its image is absent, empty or broken."""

    image_id: int | str
    question_id: int | str
    reason: str


class Manifest(_Frozen):
    """What was fetched: the photographs in their order, and where they come from."""

    version: Literal[1] = 1
    source: DatasetSource
    commit: str | None = Field(None, description="commit of the hub repository that was read")
    images: tuple[ManifestImage, ...]
    skipped: tuple[SkippedRecord, ...] = Field((), description="records passed over under dataset.skip_undecodable")

    def skipped_in_words(self) -> str | None:
        """Say how many records were passed over and why the first one was; None where none was."""
        if not self.skipped:
            return None
        first = self.skipped[0]
        return (
            f"{plural(len(self.skipped), 'record')} without an image that can be decoded passed over; the first: "
            f"question_id {shown(first.question_id)}, image_id {shown(first.image_id)}: {first.reason}"
        )
