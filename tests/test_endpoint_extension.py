"""Marks inside a vLLM worker, on workers that are made of the same parts and run nothing.

The older runner does everything but sampling in one method; the newer one leaves the head to the second, keeps its
encoder in an object of its own, and may replay a step as one graph, past the model.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import util
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from torch import nn

from tests.support.fake_server import FakeServer, Script
from tests.support.imports import ROOT
from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.engine_vllm import EXTENSION, EXTENSION_FOLDER, call_workers

Spans = list[tuple[str, float, float, int | None]]


class Clock:
    """The host's clock of the extension, turned by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s

    def work(self, ms: float) -> None:
        self.now_s += ms / 1000


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def marks(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The extension as vLLM loads it, by its bare name, with a clock that a test turns."""
    name = EXTENSION.partition(".")[0]
    spec = util.spec_from_file_location(name, EXTENSION_FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "time", clock)
    yield module
    sys.modules.pop(name, None)


class Projector(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def forward(self) -> None:
        self.clock.work(2)


class Model(nn.Module):
    """What every multimodal model of vLLM has."""

    def __init__(self, clock: Clock, connector: Any = "projector") -> None:
        super().__init__()
        self.clock, self._connector = clock, connector
        self.projector = Projector(clock)

    def get_mm_mapping(self) -> Any:
        return SimpleNamespace(connector=self._connector)

    def embed_multimodal(self) -> None:
        self.clock.work(10)
        self.projector()

    def forward(self) -> None:
        self.clock.work(20)

    def compute_logits(self) -> None:
        self.clock.work(3)


class OlderRunner:
    """The steps of v1/worker/gpu_model_runner.py; its CPU runner is one of these."""

    device = SimpleNamespace(type="cpu")

    def __init__(self, model: Model) -> None:
        self._model, self.clock = model, model.clock

    def get_model(self) -> Model:
        return self._model

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
        self.clock.work(1)
        if scheduler_output.total_num_scheduled_tokens == 0:
            return "nothing"
        self._execute_mm_encoder(scheduler_output)
        self._model()
        self._model.compute_logits()
        return None

    def _execute_mm_encoder(self, scheduler_output: Any) -> None:
        if scheduler_output.images:
            self.clock.work(0.5)
            self._model.embed_multimodal()

    def sample_tokens(self, grammar_output: Any) -> str:
        self._sample()
        self.clock.work(0.25)
        return "tokens"

    def _sample(self) -> None:
        self.clock.work(0.75)


class NewerRunner:
    """The steps of v1/worker/gpu/model_runner.py, where a decode step is one graph."""

    device = SimpleNamespace(type="cpu")

    def __init__(self, model: Model) -> None:
        self._model, self.clock = model, model.clock
        self.model_state = SimpleNamespace(encoder_runner=EncoderRunner(model))

    def get_model(self) -> Model:
        return self._model

    def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None, dummy_run: bool = False) -> Any:
        if scheduler_output.images:
            self.model_state.encoder_runner.execute_mm_encoder([])
        if scheduler_output.total_num_scheduled_tokens == 1:
            self.clock.work(4)  # the graph is replayed
        else:
            self._model()
        return None

    def sample_tokens(self, grammar_output: Any) -> str:
        self.sample(None, None, grammar_output)
        return "tokens"

    def sample(self, hidden_states: Any, input_batch: Any, grammar_output: Any) -> None:
        self._model.compute_logits()
        self.clock.work(1)


class EncoderRunner:
    def __init__(self, model: Model) -> None:
        self._model = model

    def execute_mm_encoder(self, mm_kwargs: Any) -> None:
        self._model.embed_multimodal()


def scheduled(
    tokens: dict[str, int], *, new: dict[str, int] | None = None, cached: dict[str, int] | None = None, images: int = 0
) -> Any:
    """What the scheduler hands a runner: tokens per request, prompt lengths of new ones, tokens that others had."""
    begun = cached or {}
    return SimpleNamespace(
        num_scheduled_tokens=tokens,
        total_num_scheduled_tokens=sum(tokens.values()),
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, prompt_token_ids=[0] * length, num_computed_tokens=0)
            for name, length in (new or {}).items()
        ],
        scheduled_cached_reqs=SimpleNamespace(req_ids=list(begun), num_computed_tokens=list(begun.values())),
        finished_req_ids=set(),
        images=images,
    )


def worker_of(marks: ModuleType, runner: Any) -> Any:
    """A worker with the extension among its bases, as vLLM puts it there."""

    class Worker(marks.PhaseMarks):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            self.model_runner = runner

        def step(self, scheduler_output: Any, **options: Any) -> Any:
            result = self.model_runner.execute_model(scheduler_output, None, **options)
            return self.model_runner.sample_tokens(None) if result is None else result

    return Worker()


def spans(step: dict[str, Any]) -> Spans:
    return [(s["name"], round(s["start_ms"], 6), round(s["ms"], 6), s["inside"]) for s in step["spans"]]


def test_the_older_runner_is_seen_from_pixels_to_token(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, OlderRunner(Model(clock)))
    about = worker.vlmeter_install_marks()
    assert about["marks"] == ["execute", "after", "encode", "vision", "projector", "forward", "logits", "sample"]
    assert about["missing"] == {}
    assert (about["clock"], about["model"]) == ("host", "Model")
    assert about["runner"].endswith("OlderRunner")
    clock.work(7)
    assert worker.step(scheduled({"a": 9}, new={"a": 9}, images=1)) == "tokens"
    (step,) = worker.vlmeter_take_marks()["steps"]
    assert (step["number"], step["began_ms"]) == (0, 7.0)
    assert step["requests"] == [{"id": "a", "tokens": 9, "start": 0, "prompt_tokens": 9}]
    assert spans(step) == [
        ("execute", 0.0, 36.5, None),
        ("encode", 1.0, 12.5, 0),
        ("vision", 1.5, 12.0, 1),
        ("projector", 11.5, 2.0, 2),
        ("forward", 13.5, 20.0, 0),
        ("logits", 33.5, 3.0, 0),
        ("after", 36.5, 1.0, None),
        ("sample", 36.5, 0.75, 6),
    ]


def test_the_newer_runner_is_seen_too_and_a_replayed_step_as_a_whole(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, NewerRunner(Model(clock)))
    assert worker.vlmeter_install_marks()["missing"] == {}
    worker.step(scheduled({"a": 9}, new={"a": 9}, images=1))
    worker.step(scheduled({"a": 1}, cached={"a": 9}))
    prefill, decode = worker.vlmeter_take_marks()["steps"]
    assert [name for name, *_ in spans(prefill)] == [
        *("execute", "encode", "vision", "projector", "forward"),
        *("after", "sample", "logits"),
    ]
    assert spans(decode) == [
        ("execute", 0.0, 4.0, None),
        ("after", 4.0, 4.0, None),
        ("sample", 4.0, 4.0, 1),
        ("logits", 4.0, 3.0, 2),
    ]


def test_the_chunks_of_a_long_prompt_are_told_apart(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, OlderRunner(Model(clock)))
    worker.vlmeter_install_marks()
    worker.step(scheduled({"a": 2048}, new={"a": 2950}, images=1))
    worker.step(scheduled({"a": 902}, cached={"a": 2048}))
    worker.step(scheduled({"a": 1}, cached={"a": 2950}))
    found = [step["requests"][0] for step in worker.vlmeter_take_marks()["steps"]]
    assert [(r["tokens"], r["start"], r["prompt_tokens"]) for r in found] == [
        (2048, 0, 2950),
        (902, 2048, 2950),
        (1, 2950, 2950),
    ]


def test_where_a_request_is_can_be_counted_if_the_scheduler_does_not_say(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, OlderRunner(Model(clock)))
    worker.vlmeter_install_marks()
    worker.step(scheduled({"a": 9}, new={"a": 9}))
    for _ in range(2):
        silent = scheduled({"a": 1})
        silent.scheduled_cached_reqs = SimpleNamespace(req_ids=["a"])
        worker.step(silent)
    found = [step["requests"][0]["start"] for step in worker.vlmeter_take_marks()["steps"]]
    assert found == [0, 9, 10]


def test_a_request_that_was_there_before_the_marks_has_no_prompt_length(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, OlderRunner(Model(clock)))
    worker.vlmeter_install_marks()
    worker.step(scheduled({"old": 1}, cached={"old": 40}))
    (step,) = worker.vlmeter_take_marks()["steps"]
    assert step["requests"] == [{"id": "old", "tokens": 1, "start": 40, "prompt_tokens": None}]


def test_a_request_that_has_ended_is_forgotten(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, OlderRunner(Model(clock)))
    worker.vlmeter_install_marks()
    worker.step(scheduled({"a": 9}, new={"a": 9}))
    last = scheduled({})
    last.finished_req_ids = {"a"}
    assert worker.step(last) == "nothing"
    assert len(worker.vlmeter_take_marks()["steps"]) == 1, "a call that runs nothing is no step"
    assert marks._HELD[id(worker)]._prompts == {}


def test_what_the_server_runs_for_itself_is_no_step(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, NewerRunner(Model(clock)))
    worker.vlmeter_install_marks()
    worker.step(scheduled({"dummy": 8}), dummy_run=True)
    worker.model_runner.get_model()()
    assert worker.vlmeter_take_marks()["steps"] == []


def test_steps_are_taken_once(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, OlderRunner(Model(clock)))
    assert worker.vlmeter_take_marks() == {"steps": [], "dropped": 0}, "before there are any"
    worker.vlmeter_install_marks()
    worker.step(scheduled({"a": 9}, new={"a": 9}))
    assert len(worker.vlmeter_take_marks()["steps"]) == 1
    assert worker.vlmeter_take_marks()["steps"] == []


def test_a_step_that_has_not_ended_waits_for_the_next_time(marks: ModuleType, clock: Clock) -> None:
    worker = worker_of(marks, OlderRunner(Model(clock)))
    worker.vlmeter_install_marks()
    worker.model_runner.execute_model(scheduled({"a": 9}, new={"a": 9}))
    assert worker.vlmeter_take_marks()["steps"] == []
    worker.model_runner.sample_tokens(None)
    (step,) = worker.vlmeter_take_marks()["steps"]
    assert [name for name, *_ in spans(step)][-2:] == ["after", "sample"]


def test_steps_that_nobody_takes_do_not_fill_the_memory(
    marks: ModuleType, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(marks, "MOST_STEPS", 2)
    worker = worker_of(marks, OlderRunner(Model(clock)))
    worker.vlmeter_install_marks()
    for n in range(5):
        worker.step(scheduled({"a": 1}, cached={"a": n}))
    taken = worker.vlmeter_take_marks()
    assert [step["number"] for step in taken["steps"]] == [3, 4]
    assert taken["dropped"] == 3


def test_marks_that_are_removed_leave_everything_as_it_was(marks: ModuleType, clock: Clock) -> None:
    model = Model(clock)
    runner = OlderRunner(model)
    before = dict(vars(runner)), set(vars(model)), set(vars(model.projector))
    worker = worker_of(marks, runner)
    worker.vlmeter_install_marks()
    assert worker.vlmeter_install_marks()["marks"], "asked twice, installed once"
    worker.step(scheduled({"a": 9}, new={"a": 9}, images=1))
    assert len(worker.vlmeter_take_marks()["steps"][0]["spans"]) == 8, "nothing is wrapped twice"
    assert worker.vlmeter_remove_marks() == {"removed": True}
    assert worker.vlmeter_remove_marks() == {"removed": False}
    assert (dict(vars(runner)), set(vars(model)), set(vars(model.projector))) == before
    worker.step(scheduled({"a": 9}, new={"a": 9}, images=1))
    assert worker.vlmeter_take_marks()["steps"] == []


def test_a_step_that_fails_is_passed_on_and_ends_its_spans(marks: ModuleType, clock: Clock) -> None:
    model = Model(clock)
    worker = worker_of(marks, OlderRunner(model))

    def broken() -> None:
        raise RuntimeError("out of memory")

    model.compute_logits = broken  # type: ignore[method-assign]
    worker.vlmeter_install_marks()
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.step(scheduled({"a": 9}, new={"a": 9}))
    worker.vlmeter_remove_marks()
    assert model.compute_logits is broken, "what was set on the object itself is put back"


def test_what_a_version_does_not_have_is_told(marks: ModuleType, clock: Clock) -> None:
    class Bare:
        device = "cpu"

        def get_model(self) -> Any:
            return SimpleNamespace(forward=lambda: None)

        def execute_model(self, scheduler_output: Any) -> None:
            self.get_model()

    about = worker_of(marks, Bare()).vlmeter_install_marks()
    assert about["marks"] == ["execute", "forward"]
    assert about["missing"] == {
        "after": "Bare has no sample_tokens",
        "encode": "Bare has no _execute_mm_encoder",
        "vision": "SimpleNamespace has no embed_multimodal",
        "projector": "the model names no connector (AttributeError)",
        "logits": "SimpleNamespace has no compute_logits",
        "sample": "Bare has no sample",
    }


def test_a_projector_that_is_no_module_of_its_own_is_told(marks: ModuleType, clock: Clock) -> None:
    for connector in (None, "elsewhere.", ["elsewhere"]):
        worker = worker_of(marks, OlderRunner(Model(clock, connector)))
        about = worker.vlmeter_install_marks()
        assert about["missing"] == {"projector": "the model has no module of its own for it"}
    listed = worker_of(marks, OlderRunner(Model(clock, ["projector."])))
    assert listed.vlmeter_install_marks()["missing"] == {}


def test_a_list_of_projectors_stands_for_its_members(marks: ModuleType, clock: Clock) -> None:
    model = Model(clock, ["projector", "deeper"])
    model.deeper = nn.ModuleList([Projector(clock), Projector(clock)])
    worker = worker_of(marks, OlderRunner(model))
    model.embed_multimodal = lambda: [part() for part in (*model.deeper, model.projector)]  # type: ignore[method-assign]
    worker.vlmeter_install_marks()
    worker.step(scheduled({"a": 9}, new={"a": 9}, images=1))
    (step,) = worker.vlmeter_take_marks()["steps"]
    assert [name for name, *_ in spans(step)].count("projector") == 3


def test_a_runner_that_samples_at_once_ends_its_step_there(marks: ModuleType, clock: Clock) -> None:
    class AtOnce(OlderRunner):
        def execute_model(self, scheduler_output: Any, intermediate_tensors: Any = None) -> Any:
            super().execute_model(scheduler_output)
            return "tokens"

    worker = worker_of(marks, AtOnce(Model(clock)))
    worker.vlmeter_install_marks()
    assert worker.step(scheduled({"a": 9}, new={"a": 9})) == "tokens"
    assert len(worker.vlmeter_take_marks()["steps"]) == 1


class Event:
    """A CUDA event of a device that is behind its host by 5 ms."""

    made = 0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        type(self).made += 1

    def record(self) -> None:
        self.at_ms = 1000 * CLOCKS[-1].now_s + 5

    def elapsed_time(self, other: Event) -> float:
        return other.at_ms - self.at_ms


CLOCKS: list[Clock] = []


def test_on_a_gpu_marks_are_events_that_are_used_again(
    marks: ModuleType, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    waited = []
    monkeypatch.setattr(Event, "made", 0)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr("tests.test_endpoint_extension.CLOCKS", CLOCKS)
    CLOCKS.append(clock)
    runner = NewerRunner(Model(clock))
    runner.device = SimpleNamespace(type="cuda")
    worker = worker_of(marks, runner)
    assert worker.vlmeter_install_marks()["clock"] == "cuda_event"
    for _ in range(3):
        worker.step(scheduled({"a": 1}, cached={"a": 9}))
        (step,) = worker.vlmeter_take_marks()["steps"]
        assert spans(step)[0] == ("execute", 0.0, 4.0, None)
    assert waited == [runner.device] * 3, "durations are worked out when they are asked for"
    assert Event.made == 8, "two for each span of one step"


def test_methods_of_the_extension_are_called_over_http() -> None:
    told = Script(
        [json.dumps({"results": [{"steps": []}, None]}).encode()], content_type="application/json", whole=True
    )
    with FakeServer(paths={"/collective_rpc": told}) as server, Client(server.url) as client:
        assert call_workers(client, "vlmeter_take_marks") == [{"steps": []}]


def test_workers_meet_on_the_loopback_address_alone() -> None:
    """In a process of its own: a process meets once."""
    program = """
import psutil, torch.distributed as d
import vlmeter_vllm_loopback
from vlmeter.backends.endpoint.server import free_port
d.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", world_size=1, rank=0)
found = {c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN}
assert found == {"127.0.0.1"}, found
"""
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXTENSION_FOLDER}", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
