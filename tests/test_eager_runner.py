"""The eager backend by itself: what it runs, where its marks stand, what it never chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from vlmeter.backends.base import (
    CountsParameters,
    HoldsMemory,
    MarksPhases,
    OpenedRequest,
    Prompt,
    RunsVisionAlone,
    TellsBusyTime,
    TellsMemory,
)
from vlmeter.backends.clock import Marks, time_call
from vlmeter.backends.eager_runner import NO_BUSY_TIME, EagerRunner, load_runner
from vlmeter.common.errors import Unsupported
from vlmeter.models.families.base import PREFILL_PHASES, ImageOptions
from vlmeter.study.subject import Subject, loading

SUBJECT = Subject(family="molmo", preset="nano", dtype="float32", device="cpu", cpu_threads=1)
PICTURE = Image.new("RGB", (560, 336), "grey")


@pytest.fixture(scope="module")
def runner() -> EagerRunner:
    return load_runner(loading(SUBJECT, device="cpu"))


def opened(*pictures: Image.Image) -> OpenedRequest:
    return OpenedRequest(pictures=pictures, question=None, text_tokens=20, options=ImageOptions())


@pytest.fixture
def prompt(runner: EagerRunner) -> Prompt:
    return runner.prepare(opened(PICTURE))


def test_it_has_every_capability(runner: EagerRunner) -> None:
    capabilities = (MarksPhases, RunsVisionAlone, TellsBusyTime, TellsMemory, CountsParameters, HoldsMemory)
    assert all(isinstance(runner, capability) for capability in capabilities)


def test_preparing_marks_preprocessing_and_copy(runner: EagerRunner) -> None:
    marks = Marks(runner.clock)
    assert runner.prepare(opened(PICTURE), mark=marks).counts.text_tokens == 20
    assert [phase for phase, _ in marks.spans()] == ["preprocess", "copy"]


def test_a_request_of_several_pictures_is_not_taken_for_one(runner: EagerRunner) -> None:
    with pytest.raises(Unsupported, match="a request with 2 pictures"):
        runner.prepare(opened(PICTURE, PICTURE))


def test_marks_cover_the_pass_in_the_order_of_its_phases(runner: EagerRunner, prompt: Prompt) -> None:
    with runner.hooks():
        timing = time_call(
            runner.clock, lambda marks: runner.generate(prompt, output_tokens=3, stop="length", mark=marks)
        )
    phases = [phase for phase, _ in timing.spans]
    assert set(phases[:-2]) == set(PREFILL_PHASES)
    assert phases[-3:] == ["head", "decode_step", "decode_step"]
    assert phases.index("vision_encoder") < phases.index("projector") < phases.index("llm_blocks")
    assert sum(duration_ms for _, duration_ms in timing.spans) <= timing.device_ms


def test_without_hooks_only_what_the_loop_knows_is_marked(runner: EagerRunner, prompt: Prompt) -> None:
    marks = Marks(runner.clock)
    runner.generate(prompt, output_tokens=2, stop="length", mark=marks)
    assert [closes for closes, _ in marks._marks] == ["head", "decode_step"]


def test_the_heads_mark_is_placed_after_the_token_is_chosen(
    runner: EagerRunner, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str | None] = []
    choose = EagerRunner._choose

    def chosen(self: EagerRunner, *arguments: Any, **named: Any) -> Any:
        told.append("chosen")
        return choose(self, *arguments, **named)

    monkeypatch.setattr(EagerRunner, "_choose", chosen)
    with runner.hooks():
        runner.generate(prompt, output_tokens=2, stop="length", mark=told.append)
    assert told[-4:] == ["chosen", "head", "chosen", "decode_step"]


def tokens_of(runner: EagerRunner, prompt: Prompt, count: int, *, stop: Any = "length") -> list[int]:
    return [int(token) for token in runner.generate(prompt, output_tokens=count, stop=stop)]


def test_it_generates_as_many_tokens_as_are_asked_for_and_the_same_each_time(
    runner: EagerRunner, prompt: Prompt
) -> None:
    tokens = tokens_of(runner, prompt, 6)
    assert len(tokens) == 6
    assert tokens_of(runner, prompt, 6) == tokens
    assert tokens_of(runner, prompt, 3) == tokens[:3]


def test_a_forced_length_never_chooses_an_end_and_natural_stopping_does(
    runner: EagerRunner, prompt: Prompt, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, *_ = tokens_of(runner, prompt, 6)
    monkeypatch.setattr(runner.loaded, "eos_token_ids", [first, second])
    monkeypatch.setattr(runner, "_ends", None)
    assert not {first, second} & set(tokens_of(runner, prompt, 6))
    assert tokens_of(runner, prompt, 6, stop="eos") == [first], "it ends with the end, and has it as its last token"


class Counted(TorchDispatchMode):
    """Count the operators that write to a tensor in place."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("ends", [[1], [1, 2, 3, 4]])
def test_keeping_ends_out_is_one_operator_however_many_there_are(
    runner: EagerRunner, ends: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner.loaded, "eos_token_ids", ends)
    monkeypatch.setattr(runner, "_ends", None)
    logits = torch.arange(10.0).reshape(1, 10)
    runner._choose(logits.clone(), suppress=True)  # the first time the ids go to the device
    with Counted() as counted:
        chosen = runner._choose(logits.clone(), suppress=True)
    assert counted.names == ["clone", "index_fill_", "argmax"]
    assert int(chosen) == 9
    with Counted() as counted:
        runner._choose(logits, suppress=False)
    assert counted.names == ["argmax"]


def test_the_cache_lives_as_long_as_the_tokens(runner: EagerRunner, prompt: Prompt) -> None:
    """Freeing it must not be timed with the pass."""
    assert runner.generate(prompt, output_tokens=2, stop="length").cache is not None  # type: ignore[attr-defined]


def test_a_cpu_has_no_busy_time_of_its_own_and_counts_no_memory(runner: EagerRunner, prompt: Prompt) -> None:
    assert runner.busy(prompt, repeats=3) == ([], NO_BUSY_TIME)
    assert runner.busy_step(prompt, repeats=3) == ([], NO_BUSY_TIME)
    assert runner.memory(prompt) == []
