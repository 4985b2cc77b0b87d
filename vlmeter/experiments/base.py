"""What every experiment is: a question with its keys, and the cells that they ask for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from pydantic import Field

from vlmeter.cells.cell import Cell, Expected
from vlmeter.cells.keys import Model, Sampling, SamplingOverride
from vlmeter.models.encoding import Encoding
from vlmeter.models.families.base import Family, ImageGeometry, ImageOptions, SubjectSpec


class KnownPhotograph(Protocol):
    """What an experiment needs to know of a photograph to predict its counts."""

    @property
    def width_px(self) -> int:
        """Width in pixels."""

    @property
    def height_px(self) -> int:
        """Height in pixels."""

    @property
    def question(self) -> str:
        """The question that belongs to it."""


@dataclass(frozen=True)
class Asked:
    """For whom an experiment lays out its cells.

    images: photographs in the study's dataset. photographs: what is known of them, once they have been fetched.
    encoding: how the subject is sent its pictures as files; None where they are no files.
    """

    subject: str
    family: Family
    spec: SubjectSpec
    sampling: Sampling
    images: int
    photographs: Sequence[KnownPhotograph] | None = None
    encoding: Encoding | None = None

    @property
    def geometry(self) -> ImageGeometry:
        """How the subject cuts up images."""
        return self.family.geometry(self.spec)

    def expect(self, geometry: ImageGeometry, index: int, options: ImageOptions) -> tuple[Expected, dict[str, int]]:
        """Predict the counts of a photograph with its question, and the family's layout columns.

        Nothing is predicted for a photograph that has not been fetched.
        """
        if self.photographs is None:
            return Expected(), {}
        item = self.photographs[index]
        image = geometry.image_tokens(item.width_px, item.height_px, options=options)
        expected = Expected(
            crops=image.crops,
            vision_tokens=image.vision_tokens,
            special_tokens=image.special_tokens,
            text_tokens=self.family.text_tokens(self.spec, item.question),
        )
        return expected, dict(image.layout)


class Experiment(Model, ABC):
    """One question of a study: its keys are the fields, and it lays out the cells that they ask for."""

    #: how it is called in a study, in cells and in the table
    name: ClassVar[str]
    #: what it asks, in a few words
    question: ClassVar[str]
    #: keys of a first study of one's own; empty: `vlmeter new` does not propose it
    starter: ClassVar[Mapping[str, Any]] = {}
    #: whether it looks at the dataset's photographs
    on_photographs: ClassVar[bool] = False
    #: whether it adds a contact sheet to the report: the photographs of its longest latencies
    adds_thumbnails: ClassVar[bool] = False

    max_crops: int | None = Field(
        None, ge=1, description="upper limit of high-resolution crops; absent: the model's own (12 for Molmo)"
    )

    @property
    def key_of_files(self) -> str | None:
        """The key, if it is given, that asks for pictures as files of several formats."""
        return None

    @property
    @abstractmethod
    def own_sampling(self) -> SamplingOverride:
        """What this experiment sets of the study's sampling rules."""

    @abstractmethod
    def cells(self, asked: Asked) -> Iterable[Cell]:
        """Lay out the cells for one subject, in a fixed order.

        Raises UserError where a key asks for what the subject's family cannot do.
        """


class Repeated(Experiment):
    """An experiment that measures each of its cells again and again, until the median is known well enough."""

    sampling: SamplingOverride = Field(
        SamplingOverride(), description="how often this experiment's cells are measured, over the study's sampling"
    )

    @property
    def own_sampling(self) -> SamplingOverride:
        """The experiment's own key."""
        return self.sampling
