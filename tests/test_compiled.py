"""The captured and compiled backends, as far as a CPU can run them: same tokens as eager, and nothing that waits."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.chaos import make_dummies
from vlmeter.backends import cudagraph
from vlmeter.backends.base import Execution, OpenedRequest
from vlmeter.backends.compiled import constants
from vlmeter.backends.compiled.captured import key_of
from vlmeter.backends.compiled.compiled_runner import CompiledRunner, Part, parts_of
from vlmeter.backends.compiled.constants import NotTheSame, Remembered, unwatched
from vlmeter.backends.compiled.decode_attention import decode_attention
from vlmeter.backends.compiled.static_cache import BLOCK_TOKENS, FixedCache, rounded
from vlmeter.backends.compiled.windows import given_lengths
from vlmeter.backends.eager_runner import EagerRunner, load_runner
from vlmeter.backends.registry import get_backend
from vlmeter.cli.main import main
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.inputs.images import dummy_image
from vlmeter.measure.devices import devices_for
from vlmeter.measure.subject import measure_subject
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.registry import FAMILIES, get_family
from vlmeter.models.molmo1.vision import MolmoVisionAttention
from vlmeter.records.record import Record, read_record
from vlmeter.study.layout import Layout
from vlmeter.study.loader import load_study
from vlmeter.study.plan import build_plan
from vlmeter.study.subject import Subject, loading, subject_spec
from vlmeter.table.build import build_table
from vlmeter.table.files import write_table

NATIVE = sorted(set(FAMILIES) - {"generic"})
SIZE, TEXT_TOKENS, OUTPUT_TOKENS = (500, 380), 40, 6


def subject(family: str, **keys: Any) -> Subject:
    return Subject(family=family, preset="nano", dtype="float32", device="cpu", **keys)


def loaded(family: str) -> EagerRunner:
    try:
        return load_runner(loading(subject(family), device="cpu"))
    except Unsupported as error:
        pytest.skip(str(error))


def prompt_of(runner: Any, *, seed: int = 0, size: tuple[int, int] = SIZE) -> Any:
    picture = dummy_image(*size, seed=seed)
    return runner.prepare(OpenedRequest((picture,), None, TEXT_TOKENS, ImageOptions()))


def generated(runner: Any, *, seed: int = 0) -> tuple[list[int], list[str | None]]:
    marks: list[str | None] = []
    with runner.hooks():
        tokens = runner.generate(
            prompt_of(runner, seed=seed), output_tokens=OUTPUT_TOKENS, stop="length", mark=marks.append
        )
    return runner.numbers_of(tokens), marks


def beside(runner: EagerRunner, *stages: Any) -> CompiledRunner:
    return CompiledRunner(loaded=runner.loaded, device="cpu", clock=runner.clock, stages=stages)


@pytest.fixture(scope="module", params=NATIVE)
def of_family(request: pytest.FixtureRequest) -> EagerRunner:
    """One toy of each family, for all tests that want it."""
    return loaded(request.param)


@pytest.fixture
def plain(of_family: EagerRunner, monkeypatch: pytest.MonkeyPatch) -> EagerRunner:
    """The same, whose attention is its own again afterwards."""
    text = of_family.loaded.model.config.get_text_config(decoder=True)
    monkeypatch.setattr(text, "_attn_implementation", text._attn_implementation)
    return of_family


@pytest.fixture
def cpu_as_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every tensor for one on a device, so that looks at it are seen."""
    monkeypatch.setattr(constants, "_on_device", lambda tensor: isinstance(tensor, torch.Tensor))


# ---------------------------------------------------------------------------------------------------- same tokens


def test_a_cache_of_fixed_length_gives_eagers_tokens_at_eagers_marks(plain: EagerRunner) -> None:
    wanted = [generated(plain, seed=seed) for seed in (0, 1)]
    fixed = beside(plain)  # nothing is compiled
    assert [generated(fixed, seed=seed) for seed in (0, 1)] == wanted
    assert len(fixed.preparations) == 1, "two pictures of one size are one shape"


def test_a_compiled_molmo_chooses_eagers_tokens_at_eagers_marks() -> None:
    plain = loaded("molmo")
    wanted = generated(plain)
    compiled = beside(plain, "prefill", "step")
    assert compiled.ready(prompt_of(compiled), output_tokens=OUTPUT_TOKENS).keys() == {"compile"}
    assert generated(compiled) == wanted
    assert compiled.ready(prompt_of(compiled, seed=1), output_tokens=OUTPUT_TOKENS) == {}, "it is there already"


def test_ends_of_a_sequence_are_chosen_where_they_are_allowed() -> None:
    plain = loaded("molmo")
    fixed = beside(plain)
    ends = plain.loaded.eos_token_ids
    shape = fixed._made_shape(prompt_of(fixed), 2)
    with torch.inference_mode():
        logits = torch.zeros_like(shape.forbidden)
        logits[0, ends[0]] = 1.0
        for suppress, allowed in ((True, False), (False, True)):
            fixed._forbid(shape, suppress)
            shape.rewind()
            shape.choose(logits.clone())
            assert (int(shape.token) in ends) is allowed


def test_a_shape_has_room_for_a_step_however_long_its_prompt() -> None:
    """A step is captured with every shape, and one that wrote behind its cache would cost the device."""
    fixed = beside(loaded("molmo"))
    missing = -prompt_of(fixed).counts.prompt_tokens % BLOCK_TOKENS
    picture = dummy_image(*SIZE, seed=0)
    prompt = fixed.prepare(OpenedRequest((picture,), None, TEXT_TOKENS + missing, ImageOptions()))
    assert prompt.counts.prompt_tokens % BLOCK_TOKENS == 0
    assert fixed._made_shape(prompt, 1).cache.capacity > prompt.counts.prompt_tokens


def test_a_warm_up_shorter_than_its_samples_runs_on_their_shape() -> None:
    fixed = beside(loaded("molmo"))
    prompt = prompt_of(fixed)
    fixed.ready(prompt, output_tokens=200)
    fixed.generate(prompt, output_tokens=3, stop="length")
    assert len(fixed.preparations) == 1
    assert fixed.preparations[0].what.endswith(f"cache of {rounded(prompt.counts.prompt_tokens + 199)}")


# --------------------------------------------------------------------------------------------- looks at the device


@pytest.mark.usefixtures("cpu_as_device")
def test_a_pass_that_finds_what_another_saw_computes_its_own(plain: EagerRunner) -> None:
    first, second = (prompt_of(plain, seed=seed).tensors for seed in (0, 1))
    remembered = Remembered()
    with torch.inference_mode(), given_lengths(plain.loaded):
        wanted = plain.loaded.prefill(second)[0]
        plain.loaded.prefill(first)
        with remembered.watching():
            plain.loaded.prefill(first)
        with remembered.replaying():
            found = plain.loaded.prefill(second)[0]
    assert torch.equal(found, wanted)


def looks(numbers: torch.Tensor) -> list[Any]:
    return [
        numbers.tolist(),
        int(numbers[1]),
        bool(numbers.sum() > 3),
        numbers[: numbers[2]].tolist(),
        numbers[numbers > 1].tolist(),
        torch.repeat_interleave(numbers, numbers).tolist(),
    ]


@pytest.mark.usefixtures("cpu_as_device")
@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_every_way_of_looking_is_seen(mode: Callable[[], Any]) -> None:
    remembered, numbers = Remembered(), torch.arange(4)
    with mode():
        with remembered.watching():
            seen = looks(numbers)
        with remembered.replaying():
            assert looks(numbers + 1) == seen
    assert looks(numbers + 1) != seen


@pytest.mark.usefixtures("cpu_as_device")
def test_a_look_at_another_place_is_refused() -> None:
    remembered, numbers = Remembered(), torch.arange(4)
    with remembered.watching():
        numbers.tolist()
    with remembered.replaying(), pytest.raises(NotTheSame):
        numbers.nonzero()


@pytest.mark.usefixtures("cpu_as_device")
def test_nothing_is_seen_of_what_runs_unwatched() -> None:
    remembered, numbers = Remembered(), torch.arange(4)
    with remembered.watching():
        with unwatched():
            numbers.tolist()
        numbers.sum().item()
    assert remembered.looks == {"item": 1}


@pytest.mark.usefixtures("cpu_as_device")
def test_a_part_that_looks_at_the_device_is_found_out() -> None:
    class Looks(torch.nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            return states[: int(states.shape[0] - states.sum().item())]

    part = Part(Looks(), layer=None, options={})
    part.on_trial = True
    with Remembered().watching(), part.standing_in():
        part.module(torch.zeros(3, 2))
    assert part.looks


# ----------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(448, 448), (500, 380), (300, 700)])
def test_windows_of_one_length_attended_to_together_are_the_same_windows(family: str, size: tuple[int, int]) -> None:
    plain = loaded(family)
    tensors = prompt_of(plain, size=size).tensors
    with torch.inference_mode():
        wanted = plain.loaded.vision(tensors).last_hidden_state
        with given_lengths(plain.loaded):
            found = plain.loaded.vision(tensors).last_hidden_state
    torch.testing.assert_close(found, wanted)


def test_all_blocks_share_one_compiled_function() -> None:
    parts = parts_of(loaded("molmo").loaded, mode="default", on_gpu=False)
    layers = [part.layer for part in parts if part.layer is not None]
    assert layers == list(range(len(layers)))
    assert all("forward" not in vars(part.module) for part in parts)
    with parts[0].standing_in():
        assert "forward" in vars(parts[0].module)
    assert "forward" not in vars(parts[0].module)


def test_attention_over_a_fixed_cache_is_attention_over_what_it_holds() -> None:
    made = torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, heads, rows, 16, generator=made) for heads, rows in ((6, 1), (2, 64), (2, 64)))
    mask = (torch.arange(64) < 40)[None, None, None]
    wanted = torch.nn.functional.scaled_dot_product_attention(query, key[:, :, :40], value[:, :, :40], enable_gqa=True)
    torch.testing.assert_close(decode_attention(query, key, value, mask), wanted)


def test_a_fixed_cache_hands_a_prefill_its_own_keys_and_a_step_all_of_them() -> None:
    cache = FixedCache(loaded("molmo").loaded.model.config, capacity=64, device="cpu")
    cache.begin()
    keys = torch.ones(1, 2, 5, 8)
    assert cache.update(keys, keys, 0)[0] is keys
    assert cache.get_seq_length() == 0
    cache.prefilled(5)
    seen, _ = cache.update(2 * keys[:, :, :1], keys[:, :, :1], 0)
    assert seen.shape[2] == 64
    assert seen[0, 0, :, 0].tolist() == [1.0] * 5 + [2.0] + [0.0] * 58
    cache.advance()
    assert int(cache.get_seq_length()) == 6


@pytest.fixture
def prompts() -> dict[str, torch.Tensor]:
    return {
        "input_ids": torch.tensor([[1, 9, 9, 2]]),
        "image_grid_thw": torch.tensor([[1, 4, 4]]),
        "pixel_values": torch.rand(16, 8),
    }


def test_prompts_share_a_capture_whatever_their_pixels_and_words(prompts: dict[str, torch.Tensor]) -> None:
    other = {**prompts, "pixel_values": torch.rand(16, 8), "input_ids": torch.tensor([[1, 9, 9, 3]])}
    assert key_of(prompts, image_token_id=9) == key_of(other, image_token_id=9)


@pytest.mark.parametrize(
    "changed",
    [
        {"input_ids": torch.tensor([[9, 9, 1, 2]])},
        {"image_grid_thw": torch.tensor([[1, 2, 8]])},
        {"pixel_values": torch.rand(16, 9)},
    ],
)
def test_other_places_grids_or_shapes_make_another_capture(
    prompts: dict[str, torch.Tensor], changed: dict[str, torch.Tensor]
) -> None:
    assert key_of(prompts, image_token_id=9) != key_of({**prompts, **changed}, image_token_id=9)


def test_cudagraph_on_a_cpu_is_refused_in_a_sentence() -> None:
    with pytest.raises(UserError, match="legal on it: eager, compile"):
        cudagraph.load(loading(subject("molmo", backend="cudagraph"), device="cpu"))


def test_cudagraph_for_a_cpu_is_refused_before_a_device_is_taken() -> None:
    with pytest.raises(UserError, match="the device is cpu"):
        devices_for(subject("molmo", backend="cudagraph"))


def test_compile_without_a_compiler_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def none() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    with pytest.raises(Unsupported, match=r"needs a C\+\+ compiler on a CPU"):
        get_backend("compile").load(loading(subject("molmo", backend="compile"), device="cpu"))


def test_a_model_whose_blocks_are_not_found_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = loaded("molmo")
    others = [boundary for boundary in plain.loaded.boundaries() if boundary.closes != "llm_blocks"]
    monkeypatch.setattr(plain.loaded, "boundaries", lambda: others)
    with pytest.raises(
        Unsupported, match="finds no list of blocks in this model's language model; legal for it: eager"
    ):
        parts_of(plain.loaded, mode="default", on_gpu=False)


@pytest.mark.parametrize("backend", ["eager", "cudagraph", "compile"])
def test_vision_attention_is_a_choice_of_molmo_alone(backend: str) -> None:
    keys = {"backend": backend, "vision_attention_dtype": "weights"}
    assert subject_spec(subject("molmo", **keys)).vision_attention_dtype == "weights"
    with pytest.raises(ValueError, match="family gemma3 leaves no choice; legal with molmo"):
        subject("gemma3", **keys)


def test_vision_attention_attends_in_the_format_that_was_chosen() -> None:
    for dtype, wide in ((None, True), ("float32", True), ("weights", False)):
        family = get_family("molmo").load(subject_spec(subject("molmo", vision_attention_dtype=dtype)), device="meta")
        layers = [layer for layer in family.model.modules() if isinstance(layer, MolmoVisionAttention)]
        assert layers
        assert {layer.in_float32 for layer in layers} == {wide}


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"compile_mode": "max-autotune"}, "compile_mode is given, and backend eager does not know it"),
        ({"backend": "fake", "vision_attention_dtype": "weights"}, "backend fake does not know it"),
        ({"backend": "cudagraph", "cpu_threads": 2}, "cpu_threads is given, and backend cudagraph does not know it"),
    ],
)
def test_a_key_of_another_backend_is_refused(keys: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        subject("molmo", **keys)


# -------------------------------------------------------------------------------- how our kernels are called for


def test_vision_attention_that_stands_in_is_given_what_it_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel itself needs a GPU (`benchmarks.compiled --same-tokens` tries it); a stand-in takes its place."""
    from vlmeter.backends.compiled.wide_attention import attend_widely

    shapes = []

    def stand_in(query: Any, key: Any, value: Any, scale: float, dtype: torch.dtype) -> torch.Tensor:
        shapes.append(tuple(query.shape))
        assert all(states.is_contiguous() for states in (query, key, value)), "heads and widths side by side"
        turned = (states.transpose(1, 2) for states in (query, key, value))
        return torch.nn.functional.scaled_dot_product_attention(*turned, scale=scale).transpose(1, 2).to(dtype)

    monkeypatch.setattr(torch.ops.vlmeter, "wide_attention", stand_in, raising=False)
    plain = loaded("molmo")
    tensors, encoder = prompt_of(plain).tensors, plain.loaded.model.vision_backbone
    with torch.inference_mode():
        wanted = plain.loaded.vision(tensors)
        for layer in encoder.modules():
            if hasattr(layer, "wide"):
                layer.wide = attend_widely
        found = plain.loaded.vision(tensors)
    torch.testing.assert_close(found, wanted)
    blocks = encoder.image_vit.transformer.resblocks
    assert len(shapes) == len(blocks), "the pooling's single queries are left to the original"


def test_a_single_row_goes_to_the_kernel_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from vlmeter.backends.compiled.vector_product import OneRowLinear

    rows = []

    def stand_in(vector: Any, weight: Any, bias: Any) -> torch.Tensor:
        rows.append(tuple(vector.shape))
        return torch.nn.functional.linear(vector, weight, bias)

    monkeypatch.setattr(torch.ops.vlmeter, "vector_product", stand_in, raising=False)
    layer = OneRowLinear(4, 3)
    for shape in ((1, 1, 4), (1, 5, 4)):
        states = torch.rand(shape)
        torch.testing.assert_close(layer(states), torch.nn.functional.linear(states, layer.weight, layer.bias))
    assert rows == [(1, 1, 4)]


# ------------------------------------------------------------------------------------------------ from study to verdict

STUDY = """
study: ways
subjects:
  eager: {family: molmo, preset: nano, dtype: float32, device: cpu, cpu_threads: 1}
  compile: {family: molmo, preset: nano, dtype: float32, device: cpu, cpu_threads: 1, backend: compile}
experiments:
  vision_tokens: {tilings: [1x1], text_tokens: 32}
sampling: {min_samples: 3, max_samples: 3, min_warmup: 2, max_warmup: 2, max_seconds_per_cell: 2}
"""


@pytest.mark.slow
def test_a_study_compares_a_compiled_model_with_the_same_one_run_eagerly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(tmp_path / "locks"))
    (tmp_path / "study.yaml").write_text(STUDY)
    study = load_study(tmp_path / "study.yaml")
    layout = Layout(study.study, tmp_path / "results")
    cells = build_plan(study)
    make_dummies(study, layout)
    for name in study.subjects:
        assert measure_subject(study, name, layout, tell=print, progress=lambda step: None).failed == []
    eager, compiled = (read_record(layout.record(cell)) for cell in cells)
    assert compiled.seconds["compile"] > 0
    assert "compile" not in eager.seconds
    assert {(series.arm, series.phase) for series in compiled.series} == {(s.arm, s.phase) for s in eager.series}
    write_table(build_table([layout.record(cell) for cell in cells]), layout.table, layout.table_csv)
    capsys.readouterr()
    monkeypatch.setattr(
        sys, "argv", ["vlmeter", "compare", str(layout.root), str(layout.root), "--subjects", "eager:compile"]
    )
    with suppress(SystemExit):
        main()
    said = capsys.readouterr().out
    assert "backend" in said
    assert "compile" in said


OF_A_FAMILY = """
study: family
subjects:
  eager: &toy {{family: {family}, preset: nano, dtype: float32, device: cpu, cpu_threads: 1}}
  compile: {{<<: *toy, backend: compile}}
experiments:
  requests: {{image_sizes: [500x380], output_tokens: [6], text_tokens: 40}}
sampling: {{min_samples: 3, max_samples: 3, min_warmup: 1, max_warmup: 1, max_seconds_per_cell: 2}}
drift_tolerance_fraction: 100 # measured again, a cell would find its shape compiled
"""


@pytest.mark.slow
@pytest.mark.parametrize("family", NATIVE)
def test_a_study_of_a_compiled_family_gives_numbers_with_eagers_tokens_and_phases_or_a_sentence(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(tmp_path / "locks"))
    (tmp_path / "study.yaml").write_text(OF_A_FAMILY.format(family=family))
    study = load_study(tmp_path / "study.yaml")
    layout = Layout(study.study, tmp_path / "results")
    make_dummies(study, layout)
    for name in study.subjects:
        assert measure_subject(study, name, layout, tell=print, progress=lambda step: None).failed == []
    plain, record = (read_record(layout.record(cell)) for cell in build_plan(study))
    if record.status == "unsupported":
        with pytest.raises(Unsupported, match=re.escape(record.reason or "nothing")):
            load_runner(loading(subject(family), device="cpu"))  # what keeps it out is not the compiling
        return
    assert (record.status, plain.status) == ("ok", "ok")
    assert (record.cell.subject, record.cell.output_tokens) == ("compile", 6)
    assert record.output_digests == plain.output_digests != [], "it chooses eager's tokens"
    assert phases_of(record) == phases_of(plain) >= {"vision_encoder", "llm_blocks", "decode"}
    assert record.find("hooks", "llm_blocks", "device")
    assert record.seconds["compile"] > 0
    assert record.execution == Execution("fewer", "fused")


def phases_of(record: Record) -> set[str]:
    """What the marks of a cell tell apart."""
    return {series.phase for series in record.series if series.arm == "hooks"}
