"""A checkpoint whose weights are packed, with the real bitsandbytes on the processor, and one that is spread."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from tests.support.native import NATIVE, spec_of, write_native_checkpoint
from vlmeter import checkpoints
from vlmeter.backends.eager import EagerRunner, devices_beside
from vlmeter.checkpoints import QUANTIZED_BYTES
from vlmeter.clock import FakeClock
from vlmeter.errors import UserError
from vlmeter.families.base import ImageOptions, LoadedModel
from vlmeter.flops import count_pass

needs_bitsandbytes = pytest.mark.skipif(
    "CI" not in os.environ and not (find_spec("bitsandbytes") and find_spec("accelerate")),
    reason="bitsandbytes and accelerate are not installed",
)


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


@needs_bitsandbytes
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


@needs_bitsandbytes
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


@needs_bitsandbytes
def test_a_model_that_is_to_be_spread_is_on_the_processor_where_there_is_nothing_else(folder: Path) -> None:
    loaded = load(folder, device_map="auto")
    assert {str(parameter.device) for parameter in loaded.model.parameters()} == {"cpu"}


def test_a_model_of_which_a_part_stays_in_the_hosts_memory_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate would fetch it in every pass, and the time would be that of the host's bus."""
    from transformers import PreTrainedModel

    def dispatched(*args: Any, **kwargs: Any) -> Any:
        model = SimpleNamespace(hf_device_map={"model.visual": 0, "lm_head": "cpu"})
        return model, {"missing_keys": [], "mismatched_keys": []}

    monkeypatch.setattr(checkpoints, "find_spec", lambda name: name)
    monkeypatch.setattr(checkpoints, "check_room", lambda *args, **kwargs: None)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", dispatched)
    with pytest.raises(UserError, match="only a part of the model has room on the GPU"):
        load(folder, device="cuda:0", device_map="auto")


def test_the_devices_of_a_spread_model_are_where_its_weights_are() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta"))
    assert devices_beside(model, "cpu") == ("meta",)
    assert devices_beside(model[0], "cpu") == ()


def test_a_step_on_several_devices_has_no_busy_time_and_says_why() -> None:
    runner = EagerRunner(
        loaded=SimpleNamespace(),  # type: ignore[arg-type]
        device="cuda:0",
        clock=FakeClock(),
        beside=("cuda:1",),
    )
    busy, reason = runner.busy_step(SimpleNamespace(), repeats=3)  # type: ignore[arg-type]
    assert busy == []
    assert reason is not None
    assert "several devices" in reason
