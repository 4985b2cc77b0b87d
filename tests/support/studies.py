"""Studies that a test runs on a fake subject, through the same session as a real one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.fakes import FakeRunner
from vlmeter.cells.cell import MadePicture
from vlmeter.inputs.pictures import Picture, Pictures
from vlmeter.measure.monitors import Monitor, QuietMonitor
from vlmeter.measure.progress import Progress, Summary
from vlmeter.measure.session import Machine, run_session
from vlmeter.study.loader import parse_study
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study

QUESTION = "What is on the table?"


def study_of(**changes: Any) -> Study:
    """A small study; `changes` replace top-level keys."""
    data: dict[str, Any] = {
        "study": "small",
        "subjects": {"fake": {"family": "molmo", "preset": "nano", "dtype": "float32", "device": "cpu"}},
        "dataset": {"source": "embedded", "images": 2},
        "experiments": {
            "vision_tokens": {"tilings": ["1x1", "1x2", "2x2", "3x4"]},
            "output_tokens": {"output_tokens": [8, 16], "sampling": {"min_samples": 3}},
        },
    }
    return parse_study({**data, **changes}, source="test")


def photographs(count: int) -> list[Picture]:
    """So many grey pictures of various sizes, with a question each."""

    def make(index: int) -> Picture:
        return Picture(
            open=lambda: Image.new("RGB", (336 + 224 * index, 336), "grey"),
            digest=f"digest-{index}",
            image_id=str(1000 + index),
            question_id=str(10000 + index),
            question=QUESTION,
            answers=("a cup",),
        )

    return [make(index) for index in range(count)]


@dataclass(frozen=True)
class Known:
    """What the plan is told of a photograph."""

    width_px: int
    height_px: int
    question: str


def dataset_items(count: int) -> list[Known]:
    """What the plan is told of `photographs`."""
    return [Known(width_px=336 + 224 * i, height_px=336, question=QUESTION) for i in range(count)]


def blank(picture: MadePicture) -> Image.Image:
    """A made picture of the right size."""
    return Image.new("RGB", (picture.width_px, picture.height_px))


def pictures_of(photographs: Sequence[Picture] = ()) -> Pictures:
    """Pictures at hand: blank ones where they are made up, and photographs."""
    return Pictures(made=blank, photographs=photographs)


def machine_of(
    runner: FakeRunner,
    *,
    identity: str = "fake device",
    monitor: Monitor | None = None,
    load: Callable[[], Any] | None = None,
) -> Machine:
    """A machine that holds the fake runner."""
    environment: Mapping[str, Any] = {"device": "cuda:0", "device_model": identity, "commit": None, "versions": {}}
    return Machine(
        identity=identity,
        load=load or (lambda: runner),
        monitor=monitor or QuietMonitor(),
        describe=lambda: environment,
    )


def run_fake(
    study: Study,
    results: Path,
    *,
    runner: FakeRunner | None = None,
    subject: str = "fake",
    machine: Machine | None = None,
    progress: Callable[[Progress], None] = lambda step: None,
    run: int = 0,
) -> Summary:
    """Run a session of the study on a fake subject."""
    cells = [c for c in build_plan(study, dataset=dataset_items(study.dataset.images)) if c.subject == subject]
    return run_session(
        study,
        subject,
        cells,
        results=results,
        pictures=pictures_of(photographs(study.dataset.images)),
        machine=machine or machine_of(runner or FakeRunner()),
        progress=progress,
        run=run,
    )
