"""Work is counted, not estimated: what the modules multiply and read, phase by phase."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache

import pytest
import torch
from PIL import Image
from torch import Tensor

from vlmeter.measure.count_pass import PassWork, count_pass
from vlmeter.measure.count_work import count_work, shapes_of
from vlmeter.measure.extend_work import Key, extend, independent, law_through
from vlmeter.models.families.base import PREFILL_PHASES, ImageOptions
from vlmeter.models.families.molmo import LoadedMolmo
from vlmeter.models.molmo1.architecture import Architecture
from vlmeter.models.molmo1.modeling import empty_model
from vlmeter.models.molmo1.presets import presets
from vlmeter.models.molmo1.tokenizer import make_tokenizer
from vlmeter.records.work import PhaseWork, StepWork
from vlmeter.study.plan import build_plan
from vlmeter.study.subject import Subject

from .support.molmo import TINY, TINY_EXPERTS, read_per_decode_step
from .support.studies import QUESTION, dataset_items, photographs, pictures_of, study_of

BF16 = 2


@lru_cache(maxsize=8)
def shapes(architecture: Architecture, attention: str = "sdpa", dtype: torch.dtype = torch.bfloat16) -> LoadedMolmo:
    model = empty_model(architecture, device="meta", dtype=dtype, attn_implementation=attention)
    return LoadedMolmo(model=model, tokenizer=make_tokenizer(architecture))


def prompt(crops: int, tokens: int) -> dict[str, Tensor]:
    """Inputs of the right shapes; on meta nobody looks at their content."""
    return {
        "input_ids": torch.zeros(1, tokens, dtype=torch.long, device="meta"),
        "images": torch.zeros(1, crops, 576, 588, device="meta"),
        "image_masks": torch.zeros(1, crops, 576, device="meta"),
        "image_input_idx": torch.zeros(1, crops, 144, dtype=torch.long, device="meta"),
    }


@lru_cache(maxsize=32)
def count(architecture: Architecture, crops: int, tokens: int, attention: str = "sdpa") -> PassWork:
    return count_pass(shapes(architecture, attention), prompt(crops, tokens))


def phases_of(work: PassWork) -> Mapping[str, PhaseWork]:
    return {phase.phase: phase for phase in work.prefill}


SEVEN = presets()["7b-d"]


def test_the_phases_are_those_that_are_timed() -> None:
    assert set(phases_of(count(SEVEN, 2, 348))) == set(PREFILL_PHASES)


def test_a_crop_of_molmo_7b_d_costs_what_its_shapes_say() -> None:
    two, five = phases_of(count(SEVEN, 2, 348)), phases_of(count(SEVEN, 5, 612))
    per_crop = {name: (five[name].flops - two[name].flops) / 3 for name in ("vision_encoder", "projector")}
    assert per_crop["vision_encoder"] == two["vision_encoder"].flops / 2  # nothing but crops counts
    assert per_crop["vision_encoder"] == pytest.approx(366.0e9, rel=2e-4)
    pooling_and_projection = 5.7e9 + 30.7e9
    assert per_crop["projector"] == pytest.approx(pooling_and_projection, rel=3e-3)
    projection = 2 * 144 * 106_692_608
    assert projection == pytest.approx(30.7e9, rel=1e-3)
    assert per_crop["projector"] - projection == pytest.approx(5.7e9, rel=1e-2)


def test_a_prompt_token_costs_two_flops_per_weight_and_the_attention_it_needs() -> None:
    tokens = 612
    blocks = phases_of(count(SEVEN, 5, tokens))["llm_blocks"]
    norms_and_biases = 28 * (2 * 3584 + 4608)
    products = 2 * tokens * (6_525_618_176 - norms_and_biases)
    pairs = tokens * (tokens + 1) // 2
    assert blocks.flops == products + 28 * 4 * 3584 * pairs


def test_the_head_is_computed_for_the_last_position_only() -> None:
    assert phases_of(count(SEVEN, 5, 612))["head"].flops == 2 * 544_997_376


def test_every_weight_is_read_once_and_the_embedding_by_rows() -> None:
    found = phases_of(count(SEVEN, 5, 612))
    parameters = shapes(SEVEN).parameters
    for phase in ("vision_encoder", "projector", "llm_blocks", "head"):
        assert found[phase].weight_bytes == BF16 * parameters[phase], phase
    row = 3584 * BF16
    assert (
        found["merge"].weight_bytes == 612 * row + 128 * row
    )  # a row per token; of the 128 added rows no more than all


def test_a_prefill_writes_the_keys_and_values_of_its_tokens() -> None:
    found = phases_of(count(SEVEN, 5, 612))
    assert found["llm_blocks"].cache_bytes == 612 * 57_344
    assert sum(phase.cache_bytes for phase in found.values()) == found["llm_blocks"].cache_bytes


def test_a_decode_step_reads_all_weights_but_the_embedding() -> None:
    step = count(SEVEN, 5, 612).step
    embedding_rows = 2 * 3584 * BF16
    assert step.weight_bytes - embedding_rows == 14_141_238_272
    assert step.cache_bytes_per_token == 57_344


def test_the_cost_of_a_step_grows_by_the_attention_to_one_more_token() -> None:
    step = count(SEVEN, 5, 612).step
    assert step.flops_per_context_token == 28 * 4 * 3584
    assert step == count(SEVEN, 2, 348).step
    norms_and_biases = 28 * (2 * 3584 + 4608)
    assert step.flops == 2 * (6_525_618_176 - norms_and_biases + 544_997_376)


def test_the_law_of_a_step_holds_at_a_context_that_was_not_counted() -> None:
    loaded = shapes(TINY)
    near, far = count_pass(loaded, prompt(2, 320)).step, count_pass(loaded, prompt(2, 999)).step
    assert near == far


def test_an_eager_attention_computes_the_half_that_a_causal_kernel_skips() -> None:
    fused, eager = (phases_of(count(TINY, 2, 320, how))["llm_blocks"].flops for how in ("sdpa", "eager"))
    skipped = 320 * 319 // 2
    assert eager - fused == TINY.num_hidden_layers * 4 * TINY.hidden_size * skipped


def test_the_format_of_the_weights_halves_the_bytes_and_leaves_the_flops() -> None:
    wide = count_pass(shapes(TINY, dtype=torch.float32), prompt(2, 320))
    narrow = count(TINY, 2, 320)
    for a, b in zip(wide.prefill, narrow.prefill, strict=True):
        assert (a.flops, a.weight_bytes, a.cache_bytes) == (b.flops, 2 * b.weight_bytes, 2 * b.cache_bytes)


def test_a_token_pays_for_the_experts_that_it_is_sent_to() -> None:
    experts = TINY_EXPERTS
    assert experts.moe_num_experts > experts.moe_top_k * 2
    step = count(experts, 2, 320).step
    read = read_per_decode_step(experts)
    embedding_rows = 2 * experts.hidden_size * BF16
    assert step.weight_bytes - embedding_rows == BF16 * read
    matrices = experts.moe_top_k * 3 * experts.hidden_size * experts.feed_forward_size
    others = replace(experts, moe_top_k=experts.moe_top_k - 1)
    per_expert = step.flops - count(others, 2, 320).step.flops
    assert per_expert == 2 * experts.num_hidden_layers * matrices // experts.moe_top_k


def test_a_long_prompt_reads_all_experts() -> None:
    blocks = phases_of(count(TINY_EXPERTS, 2, 320))["llm_blocks"]
    assert blocks.weight_bytes == BF16 * TINY_EXPERTS.parameters().blocks


def test_experts_are_counted_in_every_format() -> None:
    wide = count_pass(shapes(TINY_EXPERTS, dtype=torch.float32), prompt(2, 320))
    narrow = count(TINY_EXPERTS, 2, 320)
    assert [phase.flops for phase in wide.prefill] == [phase.flops for phase in narrow.prefill]


def test_counting_leaves_no_hook_behind() -> None:
    loaded = shapes(TINY)
    count_pass(loaded, prompt(2, 320))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in loaded.model.modules())


# ------------------------------------------------------------------------------------------ many cells, from few


def work_by(law: Mapping[str, tuple[int, int, int, int]]) -> dict[Key, PassWork]:
    found = {}
    for crops, tokens in [(2, 300), (3, 400), (3, 390), (5, 610), (7, 900), (10, 1000), (13, 1400), (13, 1401)]:
        phases = tuple(
            PhaseWork(phase=name, flops=a + b * crops + c * tokens + d * tokens**2, weight_bytes=100)
            for name, (a, b, c, d) in law.items()
        )
        step = StepWork(flops=1, flops_per_context_token=1, weight_bytes=1, cache_bytes_per_token=1)
        found[crops, tokens] = PassWork(phases, step)
    return found


def test_six_counts_give_all_cells_of_a_lawful_subject() -> None:
    truth = work_by({"vision_encoder": (0, 366, 0, 0), "llm_blocks": (7, 0, 13, 2)})
    asked: list[Key] = []

    def counting(key: Key) -> PassWork:
        asked.append(key)
        return truth[key]

    assert extend(list(truth), counting) == truth
    assert len(asked) == 6


def test_a_subject_that_follows_no_law_is_counted_cell_by_cell() -> None:
    truth = work_by({"llm_blocks": (7, 0, 13, 2)})
    odd = {key: PassWork((work.prefill[0].model_copy(update={"flops": 997 * i * i * i + i}),), work.step)
           for i, (key, work) in enumerate(truth.items())}  # fmt: skip
    assert extend(list(odd), odd.__getitem__) == odd


def test_collinear_cells_are_counted_by_themselves() -> None:
    keys = [(crops, 96 * crops + 12) for crops in range(2, 14)]  # tilings 1x1 to 1x12: crops and tokens go together
    assert len(independent(keys)) == 3
    truth = {key: work_by({"a": (1, 1, 1, 1)})[2, 300] for key in keys}
    assert extend(keys, truth.__getitem__) == truth


def test_a_law_is_solved_exactly() -> None:
    points = {(2, 300): 0, (3, 400): 0, (5, 610): 0, (13, 1400): 0}
    law = (10**15 + 1, 7, 10**12 + 3, 2)
    points = {(c, t): law[0] + law[1] * c + law[2] * t + law[3] * t * t for c, t in points}
    assert law_through(points) == law


def test_the_law_of_molmo_is_what_direct_counts_say() -> None:
    keys = [(2, 340), (3, 444), (5, 604), (5, 700), (7, 820), (10, 996), (13, 1396), (13, 1188)]
    direct = {key: count_pass(shapes(TINY), prompt(*key)) for key in keys}
    asked: list[Key] = []

    def counting(key: Key) -> PassWork:
        asked.append(key)
        return direct[key]

    assert extend(keys, counting) == direct
    assert len(asked) == 6


def test_the_work_of_a_study_is_counted_for_every_cell() -> None:
    study = study_of()
    loaded = shapes(presets()["nano"], dtype=torch.float32)
    cells = build_plan(study, dataset=dataset_items(2))
    work = count_work("fake", loaded, cells, pictures_of(photographs(2)))
    assert [cell.cell_id for cell in work.cells] == [cell.cell_id for cell in cells]
    options = ImageOptions()
    inputs = loaded.prepare(Image.new("RGB", (560, 336)), None, text_tokens=32, options=options)
    direct = count_pass(loaded, inputs.tensors)
    cell = next(cell for cell in work.cells if cell.cell_id == "vision-tiling-1x2")
    assert (cell.crops, cell.prompt_tokens) == (inputs.counts.crops, inputs.counts.prompt_tokens)
    assert (cell.prefill, cell.step) == (direct.prefill, direct.step)


def test_the_work_of_requests_is_counted_by_their_shapes() -> None:
    study = study_of(experiments={"latency_distribution": {"samples": 9, "block_samples": 4}})
    loaded = shapes(presets()["nano"], dtype=torch.float32)
    for items in (dataset_items(2), None):  # with and without a prediction
        cells = build_plan(study, dataset=items)
        work = count_work("fake", loaded, cells, pictures_of(photographs(2)))
        assert work.cells == ()
        assert [shape.crops for shape in work.shapes] == [2, 3]
        inputs = loaded.prepare(photographs(2)[1].open(), QUESTION, text_tokens=None, options=ImageOptions())
        assert work.shapes[1].prefill == count_pass(loaded, inputs.tensors).prefill


@pytest.mark.parametrize("preset", sorted(presets()))
def test_a_subject_is_loaded_without_a_weight(preset: str) -> None:
    loaded = shapes_of(Subject(family="molmo", preset=preset, dtype="bfloat16"))
    assert {parameter.device.type for parameter in loaded.model.parameters()} == {"meta"}


def test_prompts_of_one_length_with_other_vision_tokens_are_other_work() -> None:
    """A family that does not cut: one crop each, and 46 tokens of which 4 or 6 carry the image."""
    subject = Subject(family="qwen2_5_vl", preset="nano", dtype="float32")
    loaded = shapes_of(subject)
    study = study_of(
        subjects={"qwen": subject.model_dump()},
        experiments={"vision_tokens": {"image_sizes": ["56x56", "84x56"], "text_tokens": 40}},
    )
    small, large = build_plan(study)
    text = small.expected.prompt_tokens - large.expected.vision_tokens - large.expected.special_tokens
    longer = {"text_tokens": text, "expected": large.expected.model_copy(update={"text_tokens": text})}
    large = large.model_copy(update={"requests": (large.request.model_copy(update=longer),)})
    assert small.expected.prompt_tokens == large.expected.prompt_tokens == 46
    cells = [small, large]
    work = count_work("qwen", loaded, cells, pictures_of())
    by_phase = [{phase.phase: phase.flops for phase in cell.prefill} for cell in work.cells]
    assert by_phase[0]["vision_encoder"] < by_phase[1]["vision_encoder"]
    assert by_phase[0]["llm_blocks"] == by_phase[1]["llm_blocks"]
