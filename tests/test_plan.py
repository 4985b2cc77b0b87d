"""The plan: the same study gives the same cells, exactly and for ever.

`python -m tests.test_plan` writes tests/data/quickstart_plan.json anew, for the day on which the quickstart is changed
on purpose.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.studies import QUESTION, dataset_items, study_of
from vlmeter.cells.cell import Cell, MadePicture, Photograph, sentinel_of
from vlmeter.common.errors import UnsupportedSize, UserError
from vlmeter.models.families.registry import get_family
from vlmeter.numbers.medians import MIN_SAMPLES_FOR_PERCENTILE
from vlmeter.records.fingerprint import fingerprint
from vlmeter.study import plan
from vlmeter.study.loader import load_study
from vlmeter.study.plan import build_plan

ROOT = Path(__file__).parent.parent
GOLDEN = Path(__file__).parent / "data" / "quickstart_plan.json"


def quickstart_rows() -> list[dict[str, Any]]:
    """Every cell of config.yaml, in order; the sampling rules, equal in all of them, have a test of their own."""
    cells = build_plan(load_study(ROOT / "config.yaml"))
    return [cell.model_dump(mode="json", exclude={"sampling"}) for cell in cells]


def plan_of(
    vision_tokens: dict[str, Any] | None = None, output_tokens: dict[str, Any] | None = None
) -> tuple[Cell, ...]:
    experiments = {"vision_tokens": vision_tokens, "output_tokens": output_tokens}
    return build_plan(study_of(experiments={name: what for name, what in experiments.items() if what}))


def ids(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.cell_id for cell in cells]


# --- the quickstart ---------------------------------------------------------------------------------


def test_the_quickstart_has_the_cells_that_it_always_had() -> None:
    assert quickstart_rows() == json.loads(GOLDEN.read_text())


def test_the_quickstart_covers_all_tilings_and_ten_photographs_at_five_lengths() -> None:
    rows = quickstart_rows()
    vision = [row for row in rows if row["experiment"] == "vision_tokens"]
    output = [row for row in rows if row["experiment"] == "output_tokens"]
    assert len(vision) == 35
    assert all(row["layout"]["tiling_h"] * row["layout"]["tiling_w"] <= 12 for row in vision)
    assert len({row["requests"][0]["expected"]["vision_tokens"] for row in vision}) == 17
    assert len(output) == 50
    assert {row["requests"][0]["pictures"][0]["index"] for row in output} == set(range(10))
    assert {row["requests"][0]["output_tokens"] for row in output} == {8, 16, 32, 64, 128}


def test_the_quickstart_has_requests_enough_for_a_99th_percentile() -> None:
    blocks = [row for row in quickstart_rows() if row["experiment"] == "latency_distribution"]
    assert sum(len(row["requests"]) for row in blocks) >= MIN_SAMPLES_FOR_PERCENTILE[0.99]


def test_cell_ids_are_unique_within_a_subject_and_safe_as_file_names() -> None:
    names = [row["cell_id"] for row in quickstart_rows()]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-") for name in names)


# --- what a cell is expected to hold ----------------------------------------------------------------


def test_a_tiling_is_reached_by_an_image_that_selects_it_and_its_counts_are_those_of_the_geometry() -> None:
    (cell,) = plan_of({"tilings": ["2x4"], "text_tokens": 40})
    assert cell.request.pictures == (MadePicture(width_px=1008, height_px=560, seed=0),)
    assert cell.layout == {"tiling_h": 2, "tiling_w": 4}
    assert (cell.expected.crops, cell.expected.vision_tokens, cell.expected.special_tokens) == (9, 864, 36)
    assert cell.expected.prompt_tokens == 864 + 36 + 40


def test_a_count_that_several_tilings_reach_gives_all_of_them() -> None:
    assert ids(plan_of({"vision_tokens": [864]})) == [f"vision-tiling-{t}" for t in ("1x7", "7x1", "2x4", "4x2")]
    assert ids(plan_of({"crops": [4]})) == ["vision-tiling-1x3", "vision-tiling-3x1"]


def test_the_same_tiling_asked_for_twice_is_one_cell() -> None:
    assert ids(plan_of({"tilings": ["1x1"], "crops": [2], "vision_tokens": [288]})) == ["vision-tiling-1x1"]


def test_max_crops_reaches_what_the_default_does_not() -> None:
    with pytest.raises(UserError, match="raise it to 16"):
        plan_of({"tilings": ["4x4"]})
    (cell,) = plan_of({"tilings": ["4x4"], "max_crops": 16})
    assert (cell.expected.crops, cell.max_crops) == (17, 16)


def test_a_forced_tiling_goes_past_the_selection_and_is_another_cell_than_a_selected_one() -> None:
    (cell,) = plan_of({"tilings": ["4x4"], "force_tiling": True})
    assert (cell.cell_id, cell.force_tiling, cell.expected.crops) == ("vision-forced-4x4", (4, 4), 17)
    assert cell.options.force_tiling == (4, 4)


def test_an_image_size_is_taken_as_it_is() -> None:
    (cell,) = plan_of({"image_sizes": ["640x480"]})
    assert (cell.cell_id, cell.expected.vision_tokens) == ("vision-size-640x480", build_size_tokens(640, 480))


def build_size_tokens(width_px: int, height_px: int) -> int:
    from vlmeter.models.molmo1.geometry import geometry

    return geometry(width_px, height_px).vision_tokens


def test_photographs_are_counted_once_the_dataset_is_at_hand() -> None:
    study = study_of(experiments={"output_tokens": {"output_tokens": [8]}})
    before, after = build_plan(study), build_plan(study, dataset=dataset_items(2))
    assert ids(before) == ids(after) == ["output-image0-n8", "output-image1-n8"]
    assert before[0].expected.prompt_tokens is None
    assert (after[0].expected.crops, after[1].expected.crops) == (2, 3)
    assert after[0].request.pictures == (Photograph(index=0),)
    assert after[0].expected.text_tokens is not None, f"a random-weight tokenizer counts {QUESTION!r}"


def test_only_the_lengths_run_directly_are_cells_and_the_longest_always_is() -> None:
    assert ids(plan_of(output_tokens={"output_tokens": [8, 16, 64], "direct": [16], "images": 1})) == [
        "output-image0-n16",
        "output-image0-n64",
    ]


def test_long_generations_are_not_repeated_without_marks() -> None:
    cells = plan_of(output_tokens={"output_tokens": [8, 64], "uninstrumented_max_output_tokens": 32, "images": 1})
    assert ["plain" in cell.arms for cell in cells] == [True, False]


def test_every_subject_has_its_own_cells() -> None:
    one = {"family": "molmo", "preset": "nano"}
    study = study_of(subjects={"a": one, "b": {**one, "attention": "eager"}})
    cells = build_plan(study)
    assert [cell.cell_id for cell in cells if cell.subject == "a"] == [c.cell_id for c in cells if c.subject == "b"]
    assert len(cells) == 2 * 8


def test_the_plan_of_one_subject_asks_no_other_family(monkeypatch: pytest.MonkeyPatch) -> None:
    molmo = {"family": "molmo", "preset": "nano", "dtype": "float32", "device": "cpu"}
    study = study_of(
        subjects={"a": molmo, "b": {**molmo, "family": "qwen2_5_vl"}, "c": molmo},
        experiments={"vision_tokens": {"image_sizes": ["640x480", "320x320"]}},
    )
    own = tuple(cell for cell in build_plan(study) if cell.subject == "b")
    asked: list[str] = []
    monkeypatch.setattr(plan, "get_family", lambda name: asked.append(name) or get_family(name))
    assert build_plan(study, subject="b") == own
    assert own
    assert asked == ["qwen2_5_vl"]


def test_an_experiments_own_sampling_goes_over_the_studys() -> None:
    study = study_of(
        sampling={"max_samples": 40},
        experiments={
            "vision_tokens": {"tilings": ["1x1"]},
            "output_tokens": {"output_tokens": [8], "sampling": {"min_samples": 3, "max_seconds_per_cell": 1.5}},
        },
    )
    vision, output = build_plan(study)[0].sampling, build_plan(study)[-1].sampling
    assert (vision.min_samples, vision.max_samples, vision.max_seconds_per_cell) == (10, 40, 20.0)
    assert (output.min_samples, output.max_samples, output.max_seconds_per_cell) == (3, 40, 1.5)


# --- refusals name the key --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("experiment", "sentence"),
    [
        (
            {"vision_tokens": [865]},
            r"^experiments.vision_tokens.vision_tokens, subject fake: .* 865 .* 864 below and 928 above",
        ),
        ({"crops": [99]}, r"^experiments.vision_tokens.crops, subject fake: .* 99 .* 13 below"),
        ({"tilings": ["3x5"]}, r"^experiments.vision_tokens.tilings, subject fake: tiling 3x5 takes 15 crops"),
        (
            {"image_sizes": ["4000x11"]},
            r"^experiments.vision_tokens.image_sizes, subject fake: image size 4000x11 is too elongated",
        ),
        (
            {"tilings": "all", "max_crops": 1_000_000},
            r"^experiments.vision_tokens.tilings, subject fake: max_crops is 1000000",
        ),
    ],
)
def test_what_no_image_can_give_is_refused_with_the_key_and_the_nearest(
    experiment: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        plan_of(experiment)


def test_more_photographs_than_the_dataset_has_are_refused() -> None:
    with pytest.raises(UserError, match=r"experiments.output_tokens.images: 3 is more than dataset.images, 2"):
        plan_of(output_tokens={"output_tokens": [8], "images": 3})


def test_an_unsupported_size_stays_a_user_error() -> None:
    assert issubclass(UnsupportedSize, UserError)


# --- the sentinel -----------------------------------------------------------------------------------


def test_the_sentinel_is_a_vision_cell_of_middling_size() -> None:
    cells = build_plan(study_of())
    assert sentinel_of(cells).cell_id == "vision-tiling-2x2"
    assert sentinel_of(tuple(reversed(cells))) == sentinel_of(cells), "whatever the order"


def test_without_vision_cells_the_sentinel_is_the_shortest_generation() -> None:
    assert sentinel_of(plan_of(output_tokens={"output_tokens": [16, 8]})).cell_id == "output-image0-n8"


if __name__ == "__main__":
    lines = ",\n".join(json.dumps(row) for row in quickstart_rows())
    GOLDEN.write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def test_reachable_spreads_counts_over_what_the_model_can_see() -> None:
    cells = plan_of({"reachable": 5})
    counts = [cell.expected.vision_tokens for cell in cells]
    assert (len(counts), counts[0], counts[-1]) == (5, 288, 1344)
    assert counts == sorted(set(counts))


def test_the_nearest_count_is_measured_where_the_study_says_so() -> None:
    cells = plan_of({"vision_tokens": [500, 481], "nearest": True})
    assert {cell.expected.vision_tokens for cell in cells} == {480}


# --- blocks of requests -----------------------------------------------------------------------------


def blocks_of(**latency: Any) -> tuple[Cell, ...]:
    return build_plan(study_of(experiments={"latency_distribution": latency}))


def requests_of(cells: tuple[Cell, ...]) -> list[tuple[int, int]]:
    found = []
    for cell in cells:
        found += [(request.photographs[0].index, request.output_tokens) for request in cell.requests]
    return found


def test_requests_stand_in_blocks_and_the_last_block_holds_the_rest() -> None:
    cells = blocks_of(samples=25, block_samples=10, output_tokens=4)
    assert ids(cells) == ["distribution-block000", "distribution-block001", "distribution-block002"]
    assert [(cell.first, len(cell.requests)) for cell in cells] == [(0, 10), (10, 10), (20, 5)]


def test_the_photographs_come_round_again_beyond_their_number() -> None:
    assert [index for index, _ in requests_of(blocks_of(samples=5, block_samples=2))] == [0, 1, 0, 1, 0]


def test_five_thousand_requests_are_a_hundred_cells() -> None:
    """The workflow's dry run looks at every cell."""
    assert len(blocks_of()) == 100


def test_a_request_depends_on_its_place_alone() -> None:
    lengths = [4, 8, 16]
    few = requests_of(blocks_of(samples=30, block_samples=7, output_tokens=lengths))
    many = requests_of(blocks_of(samples=90, block_samples=30, output_tokens=lengths))
    assert many[:30] == few
    assert {tokens for _, tokens in many} == set(lengths)
    assert requests_of(blocks_of(samples=30, output_tokens=lengths, seed=1)) != few


def test_lengths_are_drawn_about_as_often_as_they_stand_there() -> None:
    drawn = [tokens for _, tokens in requests_of(blocks_of(samples=3000, output_tokens=[4, 4, 8]))]
    assert drawn.count(4) / 3000 == pytest.approx(2 / 3, abs=0.04)


def test_a_block_generates_as_much_as_its_longest_request() -> None:
    (cell,) = blocks_of(samples=20, output_tokens=[2, 64], stop="eos")
    assert (cell.output_tokens, cell.stop) == (64, "eos")


def test_counts_of_requests_are_predicted_once_photographs_are_at_hand() -> None:
    study = study_of(experiments={"latency_distribution": {"samples": 3}})
    (cell,) = build_plan(study, dataset=dataset_items(2))
    assert [request.expected.crops for request in cell.requests] == [2, 3, 2]
    assert all(request.expected.prompt_tokens for request in cell.requests)


def test_a_prediction_is_no_part_of_what_makes_a_block_stale() -> None:
    study = study_of(experiments={"latency_distribution": {"samples": 3}})
    subject = study.subjects["fake"]
    (before,), (after,) = build_plan(study), build_plan(study, dataset=dataset_items(2))
    assert before != after
    assert fingerprint(before, subject) == fingerprint(after, subject)


def test_a_request_stands_as_sentinel_where_there_is_nothing_else() -> None:
    sentinel = sentinel_of(blocks_of(samples=100, output_tokens=400))
    assert (sentinel.request.pictures, sentinel.output_tokens) == ((Photograph(index=0),), 16)
    assert (sentinel.kind, sentinel.stop, sentinel.arms) == ("generation", "length", ("hooks",))
