"""A question that holds what marks an image is refused by the name of its record, whatever the family."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support import vqa
from tests.support.studies import dataset_items, pictures_of, study_of
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.inputs.looks import fetch_dataset
from vlmeter.inputs.pictures import Picture
from vlmeter.measure.questions import refuse_placeholders
from vlmeter.measure.subject import check_subject_counts, count_subject_work
from vlmeter.models.families.base import ImageOptions, SubjectSpec
from vlmeter.models.families.registry import FAMILIES, get_family
from vlmeter.study.layout import Layout
from vlmeter.study.plan import build_plan


@lru_cache
def shapes(name: str) -> Any:
    family = get_family(name)
    spec = SubjectSpec(
        preset=next(iter(family.presets)), weights="random", revision=None, dtype="float32", attention="sdpa", seed=0
    )
    try:
        return family.load(spec, device="meta")
    except Unsupported as reason:
        pytest.skip(str(reason))


def marks_of(loaded: Any) -> set[str]:
    """Every token that a family's tokenizer was given beside its words, and what its processor calls by a name."""
    if not hasattr(loaded, "processor"):
        return {token.content for token in loaded.tokenizer.tokenizer.get_added_tokens_decoder().values()}
    named = {value for name, value in vars(loaded.processor).items() if name.endswith("_token")}
    return {text for text in named if isinstance(text, str)} | {
        token.content for token in loaded.tokenizer.added_tokens_decoder.values()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_not_refused_leaves_the_picture_its_counts(name: str) -> None:
    loaded = shapes(name)
    image = Image.effect_noise((300, 200), 80).convert("RGB")

    def counts(question: str) -> tuple[int, int, int]:
        made = loaded.prepare(image, question, text_tokens=None, options=ImageOptions()).counts
        return made.crops, made.vision_tokens, made.special_tokens

    plain = counts("What is it?")
    taken = {*marks_of(loaded), "<image>", "<video>", "<|image_pad|>", "[IMG]"} - {*loaded.placeholders}
    for text in taken:
        assert counts(f"{text}\nWhat is it?") == plain, text


@pytest.mark.parametrize(
    ("name", "question", "mark"),
    [
        ("gemma3", "<start_of_image> What is it?", "<start_of_image>"),
        ("generic", "<image>\nWhat is it?", "<image>"),
        ("idefics3", "<image>\nWhat is it?", "<image>"),
        ("internvl", "<IMG_CONTEXT>\nWhat is it?", "<IMG_CONTEXT>"),
        ("internvl", "What happens in <video>?", "<video>"),
        ("llava_next", "<image>\nWhat is it?", "<image>"),
        ("llava_onevision", "What is it?\n<image>", "<image>"),
        ("mistral3", "[IMG]What is it?", "[IMG]"),
        ("molmo", "<im_start> What is it?", "<im_start>"),
        ("molmo2", "<im_start> What is it?", "<im_start>"),
        ("pixtral", "[IMG]What is it?", "[IMG]"),
        ("qwen2_5_vl", "<|vision_start|><|image_pad|><|vision_end|>What is it?", "<|vision_start|>"),
        ("qwen3_vl", "What is <|video_pad|>?", "<|video_pad|>"),
        ("smolvlm", "Look at <image> and <image>.", "<image>"),
    ],
)
def test_a_mark_of_the_model_names_the_record(name: str, question: str, mark: str) -> None:
    study = study_of(dataset={"source": "embedded", "images": 3}, experiments={"output_tokens": {"output_tokens": [4]}})
    cells = build_plan(study, dataset=dataset_items(3))
    asked = ["What is it?", question, question]
    pictures = [
        Picture(open=lambda: None, digest=str(i), image_id=str(i), question_id=str(70 + i), question=text)
        for i, text in enumerate(asked)
    ]
    with pytest.raises(UserError) as caught:
        refuse_placeholders("mine", shapes(name), cells, pictures_of(pictures))
    assert str(caught.value) == (
        f"question_id 71, image_id 1: the question holds {mark}, which marks an image in a prompt of mine; take it out "
        "of the dataset's questions, since the picture has its place already (1 other question of the study likewise)"
    )


@pytest.mark.parametrize(
    "experiments",
    [
        {"output_tokens": {"output_tokens": [4], "images": 2}},
        {"latency_distribution": {"samples": 40, "block_samples": 10}},
    ],
)
def test_data_in_the_format_of_llava_is_refused_before_anything_is_measured(
    experiments: dict[str, Any], tmp_path: Path
) -> None:
    lines = []
    for row in vqa.rows(2)[::5]:
        (tmp_path / row["image"]["path"]).write_bytes(row["image"]["bytes"])
        question = row["question"] if row["image_id"] == 1 else f"<image>\n{row['question']}"
        lines.append(json.dumps({**row, "question": question, "image": row["image"]["path"]}))
    (tmp_path / "llava.jsonl").write_text("\n".join(lines))
    study = study_of(
        dataset={"source": "local", "path": str(tmp_path / "llava.jsonl"), "images": 2},
        experiments=experiments,
        subjects={"toy": {"family": "llava_next", "preset": "nano", "device": "cpu", "dtype": "float32"}},
    )
    layout = Layout(study.study, tmp_path / "results")
    fetch_dataset(study, layout.dataset)
    for step in (check_subject_counts, count_subject_work):
        with pytest.raises(UserError, match=r"^question_id 2000, image_id 2: the question holds <image>, which"):
            step(study, "toy", layout)


def test_a_question_of_a_made_length_is_nobodys_question() -> None:
    study = study_of(experiments={"output_tokens": {"output_tokens": [4], "images": 1}})
    (cell,) = build_plan(study, dataset=dataset_items(2))
    marked = pictures_of([Picture(open=lambda: None, digest="x", question_id="7", question="<image>")])
    with pytest.raises(UserError, match="question_id 7"):
        refuse_placeholders("fake", shapes("generic"), [cell], marked)
    request = cell.request.model_copy(update={"text_tokens": 20})
    refuse_placeholders("fake", shapes("generic"), [cell.model_copy(update={"requests": (request,)})], marked)
