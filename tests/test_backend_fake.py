"""The fake backend: declared times on a real clock, no torch, no device, and it never passes for one."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from tests.support.imports import ROOT
from tests.support.studies import study_of
from vlmeter.backends.base import DeviceLost, OpenedRequest, OutOfDeviceMemory, Prompt
from vlmeter.backends.clock import Marks, time_call, total_by_phase
from vlmeter.backends.fake import LAWS, PASS, FakeRunner, declared_ms, load_runner
from vlmeter.common.errors import UserError
from vlmeter.models.families.base import PREFILL_PHASES, ImageOptions
from vlmeter.study.subject import Subject, loading

SUBJECT = Subject.model_validate({"family": "molmo", "preset": "nano", "backend": "fake"})


@pytest.fixture
def runner() -> FakeRunner:
    return load_runner(loading(SUBJECT, device="fake:0"))


def prompt_of(runner: FakeRunner, size: tuple[int, int] = (560, 560)):  # type: ignore[no-untyped-def]
    return runner.prepare(
        OpenedRequest(pictures=(Image.new("RGB", size),), question=None, text_tokens=32, options=ImageOptions())
    )


def prefill(runner: FakeRunner, prompt: Prompt, marks: Marks | None = None) -> object:
    return runner.generate(prompt, output_tokens=1, stop="length", mark=marks)


def test_every_phase_of_a_prefill_has_a_law_and_a_mark() -> None:
    assert set(PASS) == set(PREFILL_PHASES)
    assert set(PASS) < set(LAWS)


def test_counts_are_those_of_the_family(runner: FakeRunner) -> None:
    counts = prompt_of(runner).counts
    assert (counts.crops, counts.vision_tokens, counts.text_tokens) == (5, 544, 32)
    assert counts.prompt_tokens == counts.vision_tokens + counts.special_tokens + 32


def test_no_phase_is_shorter_than_declared_and_marks_cover_the_pass(runner: FakeRunner) -> None:
    """How much longer it is, is the machine's affair; no test here asserts that."""
    prompt = prompt_of(runner)
    with runner.hooks():
        timing = time_call(runner.clock, lambda marks: prefill(runner, prompt, marks))
    counts = prompt.counts
    declared = {p: declared_ms(p, crops=counts.crops, tokens=counts.prompt_tokens) for p in PREFILL_PHASES}
    assert set(total_by_phase(timing.spans)) == set(PREFILL_PHASES)
    assert timing.wall_ms >= sum(declared.values())


def test_without_hooks_a_pass_places_no_mark(runner: FakeRunner) -> None:
    marks = Marks(runner.clock)
    prefill(runner, prompt_of(runner), marks)
    assert marks.spans() == ()


def test_more_crops_and_more_tokens_are_declared_to_take_longer() -> None:
    for phase, axis in (("vision_encoder", "crops"), ("projector", "crops"), ("llm_blocks", "tokens")):
        times = [declared_ms(phase, **{"crops": 1, "tokens": 1, axis: value}) for value in (1, 5, 13)]
        assert all(short < long for short, long in pairwise(times))


def test_a_generation_has_a_mark_for_every_token_after_the_first(runner: FakeRunner) -> None:
    prompt = prompt_of(runner)
    with runner.hooks():
        timing = time_call(
            runner.clock, lambda marks: runner.generate(prompt, output_tokens=5, stop="length", mark=marks)
        )
    assert [phase for phase, _ in timing.spans].count("decode_step") == 4


def test_a_checkpoint_is_not_read_by_it() -> None:
    with pytest.raises(UserError, match="weights: 'a/b' is not read by backend fake; legal with it: random"):
        study_of(subjects={"one": {"family": "molmo", "backend": "fake", "weights": "a/b"}})


def test_measuring_with_it_imports_no_torch(tmp_path: Path) -> None:
    code = """
import json, sys
from pathlib import Path
from benchmarks.chaos import make_dummies
from vlmeter.study.loader import parse_study
from vlmeter.study.layout import Layout
from vlmeter.measure.subject import measure_subject
study = parse_study(json.loads(sys.argv[1]), source="test")
layout = Layout(study.study)
make_dummies(study, layout)
print(measure_subject(study, "fake", layout, tell=str, progress=lambda step: None).measured, "torch" in sys.modules)
"""
    study = {
        "study": "rehearsal",
        "subjects": {"fake": {"family": "molmo", "preset": "nano", "backend": "fake"}},
        "experiments": {"vision_tokens": {"tilings": ["1x1"]}},
        "sampling": {"min_samples": 2, "max_samples": 2},
    }
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(study)],
        cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT), "VLMETER_LOCK_DIR": str(tmp_path / "locks"), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.stdout.split() == ["1", "False"], done.stderr


@pytest.mark.parametrize(
    ("what", "error"), [("oom", OutOfDeviceMemory), ("device-lost", DeviceLost), ("bug", RuntimeError)]
)
def test_a_planted_fault_happens_where_it_was_planted_and_once(
    what: str, error: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fault = {"what": what, "image": "336x336", "once": str(tmp_path / "happened")}
    monkeypatch.setenv("VLMETER_FAKE_FAULTS", json.dumps([fault]))
    runner = load_runner(loading(SUBJECT, device="fake:0"))
    prefill(runner, prompt_of(runner))
    with pytest.raises(error, match="a planted"):
        prefill(runner, prompt_of(runner, (336, 336)))
    prefill(runner, prompt_of(runner, (336, 336)))


def test_a_fault_at_a_pass_counts_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMETER_FAKE_FAULTS", json.dumps([{"what": "oom", "call": 2}]))
    runner = load_runner(loading(SUBJECT, device="fake:0"))
    prompt = prompt_of(runner)
    runner.vision(prompt)
    with pytest.raises(OutOfDeviceMemory):
        prefill(runner, prompt)
    prefill(runner, prompt)


def test_a_fault_after_a_file_waits_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    fault = {"what": "oom", "after": "**/*.json", "once": str(tmp_path / "happened")}
    monkeypatch.setenv("VLMETER_FAKE_FAULTS", json.dumps([fault]))
    runner = load_runner(loading(SUBJECT, device="fake:0"))
    prompt = prompt_of(runner)
    prefill(runner, prompt)
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "finished.json").touch()
    with pytest.raises(OutOfDeviceMemory):
        prefill(runner, prompt)
    prefill(runner, prompt)
