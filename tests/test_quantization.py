"""A checkpoint whose weights are packed, with the real bitsandbytes on the processor, and one that is spread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.support.fakes import FakeClock
from tests.support.native import NATIVE, spec_of, write_native_checkpoint
from vlmeter.backends import eager_runner
from vlmeter.backends.base import MemoryUse, Prompt
from vlmeter.backends.eager_runner import EagerRunner, devices_beside
from vlmeter.common.errors import UserError
from vlmeter.measure.count_pass import _WeightReads, count_pass
from vlmeter.models import pretrained
from vlmeter.models.families.base import ImageOptions, LoadedModel
from vlmeter.models.packing import PACKED, QUANTIZED_BYTES
from vlmeter.study.subject import Subject, loading


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_native_checkpoint(NATIVE["qwen"], tmp_path_factory.mktemp("written") / "checkpoint")


def load(folder: Path, *, device: str = "cpu", **changes: Any) -> LoadedModel:
    return NATIVE["qwen"].load(spec_of(preset=None, weights=str(folder), **changes), device=device)


def packed_values(model: Any) -> int:
    """Values of the linear layers other than the head, which are the ones that are packed."""
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert "lm_head" in layers
    return sum(module.weight.numel() for name, module in layers.items() if name != "lm_head")


def test_a_packed_checkpoint_answers_like_the_whole_one(folder: Path) -> None:
    image = Image.effect_noise((112, 112), 64).convert("RGB")
    logits = {}
    for quantization in (None, "bitsandbytes-8bit"):
        loaded = load(folder, quantization=quantization)
        prompt = loaded.prepare(image, None, text_tokens=24, options=ImageOptions())
        with torch.inference_mode():
            logits[quantization] = loaded.prefill(prompt.tensors)[0].float()
    whole, packed = logits[None], logits["bitsandbytes-8bit"]
    assert not torch.equal(whole, packed), "the weights are packed indeed"
    assert torch.nn.functional.cosine_similarity(whole, packed).item() > 0.99


@pytest.mark.parametrize("quantization", list(QUANTIZED_BYTES))
def test_packing_changes_the_bytes_of_a_model_and_not_its_number_of_parameters(folder: Path, quantization: str) -> None:
    whole, packed = load(folder), load(folder, quantization=quantization)
    assert packed.parameters == whole.parameters
    kinds = {type(parameter).__name__ for parameter in packed.model.parameters()}
    assert kinds & {"Int8Params", "Params4bit"}


@pytest.mark.parametrize("quantization", list(QUANTIZED_BYTES))
def test_a_packed_weight_is_read_packed(folder: Path, quantization: str) -> None:
    """The floor of a quantised model is that of the bytes it keeps, not that of its dtype."""
    image = Image.effect_noise((112, 112), 64).convert("RGB")
    found = {}
    for way in (None, quantization):
        loaded = load(folder, device="meta", quantization=way)
        prompt = loaded.prepare(image, None, text_tokens=24, options=ImageOptions())
        found[way] = count_pass(loaded, prompt.tensors).prefill
    saved = {way: sum(phase.weight_bytes for phase in phases) for way, phases in found.items()}
    flops = {way: sum(phase.flops for phase in phases) for way, phases in found.items()}
    expected = packed_values(load(folder).model) * (4 - QUANTIZED_BYTES[quantization])
    assert saved[None] - saved[quantization] == pytest.approx(expected, rel=1e-3)
    assert flops[None] == flops[quantization]


def test_a_part_of_a_packed_weight_is_read_packed() -> None:
    layer = nn.Linear(8, 4, bias=False, device="meta")
    setattr(layer.weight, PACKED, 0.5)
    with _WeightReads(layer) as reads:
        torch.zeros(1, 8, device="meta") @ layer.weight[:2].T
    assert sum(reads.drain().values()) == 2 * 8 * 0.5


def test_a_model_that_is_to_be_spread_is_on_the_processor_where_there_is_nothing_else(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What accelerate takes for the best device (a Mac's GPU, say) is not asked."""
    from transformers import PreTrainedModel

    asked: list[Any] = []
    load_it = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]

    def noted(cls: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("device_map"))
        return load_it(cls, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(noted))
    loaded = load(folder, device_map="auto")
    assert asked == [None]
    assert {str(parameter.device) for parameter in loaded.model.parameters()} == {"cpu"}


def test_a_model_of_which_a_part_stays_in_the_hosts_memory_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate would fetch it in every pass, and the time would be that of the host's bus."""
    from transformers import PreTrainedModel

    def dispatched(*args: Any, **kwargs: Any) -> Any:
        model = SimpleNamespace(hf_device_map={"model.visual": 0, "lm_head": "cpu"})
        return model, {"missing_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(pretrained, "find_spec", lambda name: name)
    monkeypatch.setattr(pretrained, "check_room", lambda *args, **kwargs: None)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", dispatched)
    with pytest.raises(UserError, match="only a part of the model has room on the GPU"):
        load(folder, device="cuda:0", device_map="auto")


def test_the_devices_of_a_spread_model_are_where_its_weights_are() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert devices_beside(model, "cpu") == ("meta",)
    assert devices_beside(model[0], "cpu") == ()


def spread_runner(**loaded: Any) -> EagerRunner:
    return EagerRunner(
        loaded=SimpleNamespace(boundaries=list, **loaded),  # type: ignore[arg-type]
        device="cuda:0",
        clock=FakeClock(),
        beside=("cuda:1",),
    )


PROMPT = Prompt(tensors={}, counts=SimpleNamespace())  # type: ignore[arg-type]


def test_a_subject_that_is_spread_is_run_with_all_devices_of_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    family = SimpleNamespace(load=lambda spec, device: SimpleNamespace(model=model))
    clocks: list[Sequence[str]] = []
    monkeypatch.setattr(eager_runner, "get_family", lambda name: family)
    monkeypatch.setattr(eager_runner, "make_clock", lambda device, beside: clocks.append(beside))
    for device_map in ("auto", None):
        subject = Subject(family="internvl", weights="acme/spoon", device_map=device_map)
        assert eager_runner.load_runner(loading(subject, device="cpu")).beside == clocks[-1]
    assert clocks == [("meta",), ()]


def test_the_memory_of_a_spread_model_is_that_of_all_its_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    gave_back: list[str] = []
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", {"cuda:0": 5, "cuda:1": 7}.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_reserved", {"cuda:0": 10, "cuda:1": 20}.__getitem__)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", gave_back.append)
    runner = spread_runner(prefill=lambda tensors: (torch.zeros(1, 3), None), eos_token_ids=[])
    assert runner.memory(PROMPT) == [MemoryUse("head", 12, 30)]
    assert gave_back == ["cuda:0", "cuda:1"]


def test_the_busy_time_of_a_spread_model_is_the_profilers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EagerRunner, "_profile", lambda self, call, prompt, repeats: (1.0,) * repeats)
    monkeypatch.setattr(EagerRunner, "_replay", lambda *args: pytest.fail("a graph is one device's"))
    busy, reason = spread_runner().busy(PROMPT, repeats=10)
    assert [(found.source, found.phase, len(found.samples_ms)) for found in busy] == [
        ("profiler", "prefill", 3),
        ("profiler", "vision", 3),
    ]
    assert reason is None


def test_a_step_on_several_devices_has_no_busy_time_and_says_why() -> None:
    busy, reason = spread_runner().busy_step(PROMPT, repeats=3)
    assert busy == []
    assert reason is not None
    assert "several devices" in reason
