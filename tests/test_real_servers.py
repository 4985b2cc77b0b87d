"""Real serving engines on this machine's processor, with models of made-up weights.

They are made by `make servers`; without one its tests are skipped.
Studies on them, and other families, are in test_real_studies.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import psutil
import pytest

from tests.support.processes import gone
from tests.support.real_servers import get_engine, noise, predicted_tokens, program_of, serve, setup_of
from vlmeter.backends.endpoint.capabilities import Capabilities, probe
from vlmeter.backends.endpoint.client import Client, Exchange
from vlmeter.backends.endpoint.engine import Engine
from vlmeter.backends.endpoint.engine_llama import TIMINGS
from vlmeter.backends.endpoint.engine_vllm import call_workers
from vlmeter.backends.endpoint.faults import WrongModel
from vlmeter.backends.endpoint.metrics import read_metrics
from vlmeter.backends.endpoint.request import Chat, encode
from vlmeter.backends.endpoint.server import Server
from vlmeter.backends.endpoint.validity import check_answer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real_servers")]

#: The last is a prompt of LLaVA-NeXT that vLLM cuts into two chunks.
SIZES = ((336, 336), (500, 333), (640, 640))


class Served(NamedTuple):
    engine: Engine
    family: str
    server: Server
    client: Client
    model: str
    taken: Capabilities

    def ask(self, width_px: int, height_px: int, *, seed: int, output_tokens: int = 8) -> Exchange:
        """Ask about a picture that it has not seen, and require an answer as asked for."""
        text = f"What is to be seen in picture {seed}?"
        fields = self.taken.fields(output_tokens=output_tokens)
        exchange = self.client.ask(encode(Chat(self.model, text, noise(width_px, height_px, seed=seed), fields)))
        predicted, vision = predicted_tokens(self.family, width_px, height_px, text)
        check_answer(exchange.answer, prompt_tokens=predicted, output_tokens=output_tokens)
        assert exchange.answer.usage is not None
        assert exchange.answer.usage.image_tokens in (None, vision)
        return exchange


@pytest.fixture(
    scope="module",
    params=[("vllm", "llava_next"), ("transformers", "llava_next"), ("llama.cpp", "qwen2_5_vl")],
    ids=lambda pair: "-".join(pair),
)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    name, family = request.param
    program_of(name)
    folder, engine = tmp_path_factory.mktemp(f"{name}-{family}"), get_engine(name)
    setup = setup_of(name, family, folder, marks=name == "vllm")
    with serve(engine, setup, folder) as server, Client(server.url, timeout_s=120) as client:
        model = engine.model_name(setup)
        yield Served(engine, family, server, client, model, probe(client, model, wanted=engine.wanted))
        pids = server.processes()
    assert gone(*pids)


def test_counts_are_the_familys_and_lengths_are_forced(served: Served) -> None:
    for seed, (width, height) in enumerate(SIZES):
        answer = served.ask(width, height, seed=seed).answer
        assert answer.output_tokens == 8
        assert sum(piece.tokens or 0 for piece in answer.pieces) == 8


def test_it_takes_what_its_code_says_that_it_takes(served: Served) -> None:
    assert served.taken == Capabilities(tuple(served.engine.wanted)), "nothing refused, nothing without its trace"


def test_it_listens_on_the_loopback_address_alone(served: Served) -> None:
    assert served.server.listens_beyond() == []
    assert served.server.dropped == ()


def test_a_round_trip_is_short_against_a_request(served: Served) -> None:
    trips = served.client.round_trips_ms(served.engine.idle_path, repeats=5)
    total_ms = served.ask(336, 336, seed=100).total_ms
    assert total_ms is not None
    assert min(trips) < total_ms


def test_a_model_that_it_has_not_is_told(served: Served) -> None:
    with pytest.raises(WrongModel):
        served.client.require_model("another")
    if served.engine.name != "llama.cpp":  # it answers with the model that it has, whatever the request calls it
        with pytest.raises(WrongModel):
            served.client.ask(encode(Chat("another", "Hm?", fields={"max_tokens": 2})))


def test_what_it_says_of_itself_is_kept_under_its_own_names(served: Served) -> None:
    served.ask(336, 336, seed=200)
    before = read_metrics(served.client, served.engine.metrics_path)
    exchange = served.ask(336, 336, seed=201)
    after = read_metrics(served.client, served.engine.metrics_path)
    said = {each.name: each.value_ms for each in served.engine.said(exchange.answer, before, after)}
    if served.engine.name == "transformers":
        assert (said, before) == ({}, None)
        return
    assert before is not None
    assert after is not None
    assert served.engine.busy(after) == 0
    assert exchange.total_ms is not None
    if served.engine.name == "llama.cpp":
        assert set(said) == {f"llama.cpp.timings.{name}" for name in TIMINGS}
        both_ms = said["llama.cpp.timings.prompt_ms"] + said["llama.cpp.timings.predicted_ms"]
        assert 0 < both_ms < exchange.total_ms
        return
    assert set(served.engine.cache_hits(before, after).values()) == {0.0}
    assert said["vllm.metrics.time_to_first_token_ms"] < said["vllm:time_to_first_token_seconds"] < exchange.total_ms
    assert said["vllm:e2e_request_latency_seconds"] <= exchange.total_ms


def test_phases_inside_vllm_add_up_to_what_its_steps_took(served: Served) -> None:
    if served.engine.name != "vllm":
        pytest.skip("has no way in")
    served.ask(640, 640, seed=300)
    (about,) = call_workers(served.client, "vlmeter_install_marks")
    assert about["missing"] == {}
    exchange = served.ask(640, 640, seed=301)
    assert call_workers(served.client, "vlmeter_take_marks")[0]["dropped"] == 0
    exchange = served.ask(640, 640, seed=302)
    (taken,) = call_workers(served.client, "vlmeter_take_marks")
    steps = taken["steps"]
    prefill = [step for step in steps if step["requests"][0]["start"] < step["requests"][0]["prompt_tokens"]]
    usage = exchange.answer.usage
    assert usage is not None
    assert sum(step["requests"][0]["tokens"] for step in prefill) == usage.prompt_tokens
    assert len(prefill) == 2, "a long prompt comes in chunks"
    assert len(steps) - len(prefill) == 7, "the first of 8 tokens comes out of the prefill"
    spans = {span["name"]: span for span in prefill[0]["spans"]}
    assert spans["execute"]["ms"] >= spans["vision"]["ms"] + spans["forward"]["ms"]
    assert 0 < spans["projector"]["ms"] < spans["vision"]["ms"] <= spans["encode"]["ms"]
    assert all("vision" not in {span["name"] for span in step["spans"]} for step in steps[len(prefill) :])
    # On one machine the worker's clock is the client's: the first step begins after the request did, and its token
    # leaves the worker before the client has it.
    first_ms = exchange.answer.first_token_ms
    assert first_ms is not None
    assert exchange.began_ms < prefill[0]["began_ms"] < first_ms
    inside_ms = sum(span["ms"] for step in prefill for span in step["spans"] if span["inside"] is None)
    assert inside_ms < first_ms - exchange.began_ms
    assert call_workers(served.client, "vlmeter_remove_marks") == [{"removed": True}]


def test_a_keeper_that_is_killed_takes_every_process_of_a_server_along(served: Served) -> None:
    """The last test of each server, which is gone after it."""
    pids = served.server.processes()
    named = {psutil.Process(pid).name() for pid in pids}
    if served.engine.name == "vllm":
        assert {"VLLM::EngineCore", "VLLM::Worker"} <= named, "several processes"
    served.server._keeper.kill()
    assert gone(*pids, patience_s=60)
