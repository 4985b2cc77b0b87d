"""The plan's counts are checked against the model's own preprocessing before anything is measured."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.chaos import make_dummies
from tests.support.studies import dataset_items, photographs, pictures_of, study_of
from vlmeter.cells.cell import Cell, Expected
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.inputs.pictures import Picture
from vlmeter.measure.check_counts import SubjectCounts, check_counts, write_counts
from vlmeter.measure.count_work import shapes_of
from vlmeter.measure.subject import check_subject_counts
from vlmeter.models.families.base import Counts, ImageOptions, ModelInputs
from vlmeter.models.families.molmo import MolmoGeometry
from vlmeter.study.layout import Layout
from vlmeter.study.plan import build_plan


@dataclass
class Processor:
    """Preprocessing that follows Molmo's arithmetic, but for `error` tokens too many; it counts its calls."""

    error: int = 0
    text: int = 12
    seen: list[tuple[int, int]] = field(default_factory=list)

    def prepare(
        self, image: Image.Image, question: str | None, *, text_tokens: int | None, options: ImageOptions
    ) -> ModelInputs:
        self.seen.append(image.size)
        found = MolmoGeometry().image_tokens(*image.size, options=options)
        text = text_tokens or self.text
        counts = Counts(
            crops=found.crops,
            vision_tokens=found.vision_tokens + self.error,
            special_tokens=found.special_tokens,
            text_tokens=text,
            prompt_tokens=found.image_tokens + self.error + text,
        )
        return ModelInputs(tensors={}, counts=counts)


PICTURES = pictures_of([Picture(open=lambda: Image.new("RGB", (640, 480)), digest="x", question="What is it?")])


def cells_of(experiments: dict[str, Any]) -> tuple[Cell, ...]:
    return build_plan(study_of(experiments=experiments))


VISION = {"vision_tokens": {"tilings": ["1x1", "2x2"]}}


def test_the_counts_of_every_cell_are_those_of_the_processor() -> None:
    cells = cells_of(VISION)
    found = check_counts("fake", Processor, cells, PICTURES)
    assert found.unsupported is None
    assert {cell_id: counts.vision_tokens for cell_id, counts in found.cells.items()} == {
        "vision-tiling-1x1": 288,
        "vision-tiling-2x2": 544,
    }


def test_a_count_that_differs_names_the_cell_and_both_numbers() -> None:
    cells = cells_of(VISION)
    with pytest.raises(UserError, match=r"vision-tiling-1x1 of fake: the plan says vision_tokens 288, .* makes 290"):
        check_counts("fake", lambda: Processor(error=2), cells, PICTURES)


def test_a_count_that_the_plan_does_not_know_is_not_compared() -> None:
    cells = tuple(
        cell.model_copy(update={"requests": (cell.request.model_copy(update={"expected": Expected()}),)})
        for cell in cells_of(VISION)
    )
    assert check_counts("fake", lambda: Processor(error=2), cells, PICTURES).cells


def test_a_picture_that_many_cells_share_is_prepared_once() -> None:
    cells = cells_of({"output_tokens": {"output_tokens": [4, 8, 16], "images": 1}})
    processor = Processor()
    assert len(check_counts("fake", lambda: processor, cells, PICTURES).cells) == 3
    assert processor.seen == [(640, 480)]


def test_a_processor_that_is_not_to_be_had_is_an_outcome() -> None:
    def load() -> Any:
        raise Unsupported("its image processor needs torchvision; install it")

    cells = cells_of(VISION)
    found = check_counts("fake", load, cells, PICTURES)
    assert found == SubjectCounts(
        subject="fake", cells={}, unsupported="its image processor needs torchvision; install it"
    )


def test_what_is_written_is_the_counts(tmp_path: Path) -> None:
    cells = cells_of(VISION)
    found = check_counts("fake", Processor, cells, PICTURES)
    write_counts(tmp_path / "counts.json", found)
    assert SubjectCounts.model_validate(json.loads((tmp_path / "counts.json").read_bytes())) == found


def test_a_real_processor_agrees_with_the_plan_of_a_study(tmp_path: Path) -> None:
    study = study_of(experiments={"vision_tokens": {"tilings": ["1x1", "1x3"], "text_tokens": 20}})
    layout = Layout(study.study, tmp_path)
    make_dummies(study, layout)
    found = check_subject_counts(study, "fake", layout)
    assert {counts.text_tokens for counts in found.cells.values()} == {20}
    real = shapes_of(study.subjects["fake"]).prepare(
        Image.new("RGB", (336, 336)), None, text_tokens=20, options=ImageOptions()
    )
    assert found.cells["vision-tiling-1x1"].prompt_tokens == real.counts.prompt_tokens


def test_a_processor_is_asked_with_the_cells_own_options() -> None:
    cells = cells_of({"vision_tokens": {"tilings": ["4x5"], "force_tiling": True}})
    found = check_counts("fake", Processor, cells, PICTURES)
    assert found.cells["vision-forced-4x5"].crops == 21
    changed = tuple(cell.model_copy(update={"force_tiling": None}) for cell in cells)
    with pytest.raises(UserError, match="crops 21"):
        check_counts("fake", Processor, changed, PICTURES)


def test_requests_that_differ_in_their_vision_tokens_alone_are_looked_at_apart() -> None:
    study = study_of(experiments={"latency_distribution": {"samples": 2, "block_samples": 2}})
    (cell,) = build_plan(study)
    expected = [
        Expected(crops=2, vision_tokens=tokens, special_tokens=28, text_tokens=316 - tokens) for tokens in (288, 280)
    ]
    requests = tuple(cell.request.model_copy(update={"expected": one}) for one in expected)
    processor = Processor(text=28)
    with pytest.raises(UserError, match=r"request 1 of fake: the plan says vision_tokens 280"):
        check_counts(
            "fake",
            lambda: processor,
            [cell.model_copy(update={"requests": requests})],
            pictures_of([Picture(open=lambda: Image.new("RGB", (336, 336)), question="What is it?")]),
        )


def test_of_the_requests_of_blocks_one_of_each_kind_is_looked_at() -> None:
    study = study_of(experiments={"latency_distribution": {"samples": 40, "block_samples": 10}})
    blocks = build_plan(study, dataset=dataset_items(2))
    processor = Processor(text=blocks[0].request.expected.text_tokens or 0)
    pictures = pictures_of(photographs(2))
    found = check_counts("fake", lambda: processor, blocks, pictures)
    assert sorted(found.cells) == ["distribution-block000, request 0", "distribution-block000, request 1"]
    assert len(processor.seen) == 2
    with pytest.raises(UserError, match=r"distribution-block000, request 0 of fake: the plan says vision_tokens"):
        check_counts("fake", lambda: Processor(error=1, text=processor.text), blocks, pictures)
