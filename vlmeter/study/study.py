"""The study: what is measured, on what, and how carefully.

Every key is typed, so that a misspelt key or an impossible value is refused with one sentence before anything runs. The
JSON Schema that editors use is generated from these classes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, create_model, model_validator

from vlmeter.cells.keys import Model, Sampling
from vlmeter.experiments.base import Experiment
from vlmeter.experiments.registry import EXPERIMENTS, get_experiment
from vlmeter.study.dataset_source import DatasetSource, EmbeddedSource
from vlmeter.study.subject import Subject

#: Names become folders, of which a file system takes 255 bytes.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class Experiments(Model):
    """The experiments of a study, a key for each in the registry; each is optional, one at least must be there."""

    @property
    def given(self) -> dict[str, Experiment]:
        """The experiments that are there, in the registry's order."""
        return {name: found for name in EXPERIMENTS if (found := getattr(self, name)) is not None}

    @property
    def on_photographs(self) -> tuple[Experiment, ...]:
        """The experiments that look at the dataset's photographs."""
        return tuple(found for found in self.given.values() if found.on_photographs)

    @property
    def adds_thumbnails(self) -> bool:
        """Whether the report shows photographs of the longest latencies."""
        return any(found.adds_thumbnails for found in self.given.values())

    @model_validator(mode="after")
    def _one_at_least(self) -> Experiments:
        if not self.given:
            raise ValueError(f"no experiment given; legal: {', '.join(EXPERIMENTS)}")
        return self


def _with_keys() -> type[Experiments]:
    """Give every experiment of the registry its key."""
    fields: dict[str, Any] = {
        name: (experiment | None, Field(None, description=experiment.question))
        for name, experiment in ((name, get_experiment(name)) for name in EXPERIMENTS)
    }
    # it is found under this name again when a study goes to another process
    return create_model("StudyExperiments", __base__=Experiments, __module__=__name__, **fields)


if TYPE_CHECKING:
    StudyExperiments = Experiments
else:
    StudyExperiments = _with_keys()


class Study(Model):
    """The whole of a study file."""

    study: str = Field(pattern=NAME_PATTERN, description="name of the study; results go to results/<study>/")
    seed: int = Field(0, ge=0, description="seed of the order in which cells are measured")
    runs: int = Field(
        1,
        ge=1,
        description="sessions of each subject, every one in a process and an order of its own: what differs between "
        "them is in every interval from the second on",
    )
    subjects: dict[Annotated[str, Field(pattern=NAME_PATTERN)], Subject] = Field(
        min_length=1, description="what is measured, by a name of your own"
    )
    dataset: DatasetSource = Field(EmbeddedSource(source="embedded"), description="where the photographs come from")
    experiments: StudyExperiments = Field(description=f"what is varied: {', '.join(EXPERIMENTS)}")
    sampling: Sampling = Field(Sampling(), description="how often cells are measured")
    sentinel_every_cells: int = Field(
        10, ge=1, description="one cell is measured again after every so many cells, to see drift"
    )
    cell_time_limit_seconds: float = Field(
        3600.0,
        gt=0,
        description="a cell that takes longer, in all, is given up: its process is ended, and the other cells go on",
    )
    drift_tolerance_fraction: float = Field(
        0.02,
        gt=0,
        description="drift of the sentinel that is let pass, if it is also beyond the sentinel's own noise",
    )

    def sampling_for(self, experiment: str) -> Sampling:
        """Sampling of one experiment: its own keys over the study's."""
        own = self.experiments.given[experiment].own_sampling.model_dump(exclude_none=True)
        return Sampling(**{**self.sampling.model_dump(), **own})


def study_schema() -> dict[str, Any]:
    """JSON Schema of a study file, for editors."""
    schema = Study.model_json_schema()
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    schema["title"] = "vlmeter study"
    return schema
