"""A served subject, from the study to its records: counts held against the family's, times off the wire."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from benchmarks.chaos import make_dummies
from tests.support.fake_server import DONE, MODEL, FakeServer, Reset, Script, chunk, plain_answer, usage, usage_alone
from tests.support.sessions import wait_until
from tests.support.studies import dataset_items, photographs, pictures_of, study_of
from vlmeter.backends.base import CellFault, DeviceLost, OpenedRequest, RunsElsewhere, RunsVisionAlone, StampsItself
from vlmeter.backends.endpoint.client import Exchange
from vlmeter.backends.endpoint.faults import InvalidSample
from vlmeter.backends.endpoint.loading import load_runner
from vlmeter.backends.endpoint.pictures import encoded, unlike
from vlmeter.backends.endpoint.request import Address
from vlmeter.backends.endpoint.runner import EndpointRunner
from vlmeter.backends.endpoint.spans import device_decode_ms, first_token_spans, own_times, step_ms, token_gaps
from vlmeter.backends.endpoint.stream import Answer, Piece, Usage
from vlmeter.common.errors import Unsupported, UserError
from vlmeter.inputs.pictures import Pictures
from vlmeter.measure.devices import devices_for
from vlmeter.measure.monitors import QuietMonitor, ServedMonitor
from vlmeter.measure.session import Machine, SessionFailed, run_session
from vlmeter.measure.subject import measure_subject
from vlmeter.models.encoding import Encoding
from vlmeter.models.families.base import ImageOptions, LoadedModel
from vlmeter.models.families.registry import get_family
from vlmeter.records.record import Record, read_record
from vlmeter.study.layout import Layout, cell_path
from vlmeter.study.loader import parse_study
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study
from vlmeter.study.subject import Subject, loading, subject_spec

NATIVE = {"family": "llava_next", "preset": "nano", "dtype": "float32", "device": "cpu", "backend": "endpoint"}
VARIABLE = "VLMETER_TEST_KEY"


def served_study(url: str, *, endpoint: dict[str, Any] | None = None, **changes: Any) -> Study:
    """Two prefills and two generations on a server."""
    return study_of(
        **{
            "subjects": {"served": {**NATIVE, "endpoint": {"url": url, "model": MODEL, **(endpoint or {})}}},
            "experiments": {
                "vision_tokens": {"image_sizes": ["60x40", "40x60"], "text_tokens": 40},
                "output_tokens": {"output_tokens": [4]},
            },
            "sampling": {"min_samples": 5, "max_samples": 5, "min_warmup": 1, "max_warmup": 1},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    subject = Subject(**{**NATIVE, "backend": "eager"})
    return get_family("llava_next").load(subject_spec(subject), device="meta")


def picture_in(body: dict[str, Any]) -> Image.Image:
    """The picture that a request sends."""
    (url,) = [part["image_url"]["url"] for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def counting(loaded: LoadedModel, make: Callable[[int, int], Sequence[Any]] | None = None) -> Callable[[Any], Script]:
    """A server that counts as the family does; `make` writes the stream of so many tokens to a prompt of so many."""
    known: dict[object, int] = {}

    def answer(body: dict[str, Any]) -> Script:
        content = body["messages"][0]["content"]
        if all(part["type"] == "text" for part in content):  # the probe
            return Script(plain_answer(body["max_tokens"]))
        picture = picture_in(body)
        (text,) = [part["text"] for part in content if part["type"] == "text"]
        if (picture.size, text) not in known:
            made = loaded.prepare(picture, text, text_tokens=None, options=ImageOptions())
            known[picture.size, text] = made.counts.prompt_tokens
        tokens, prompt = body["max_tokens"], known[picture.size, text]
        return Script(make(tokens, prompt) if make else plain_answer(tokens, prompt=prompt))

    return answer


def run_served(
    study: Study, results: Path, *, runners: list[EndpointRunner] | None = None, pictures: Pictures | None = None
) -> dict[str, Record]:
    """Run a session against a server; returns the records that there are."""
    subject = study.subjects["served"]
    cells = build_plan(study, dataset=dataset_items(2))
    made: list[EndpointRunner] = [] if runners is None else runners

    def load() -> EndpointRunner:
        made.append(load_runner(loading(subject, device="cpu", folder=results)))
        return made[-1]

    machine = Machine(
        identity="server",
        load=load,
        monitor=ServedMonitor(QuietMonitor(), lambda: made[-1].disturbances() if made else ()),
        describe=lambda: {"device_model": "server"},
    )
    try:
        pictures = pictures or pictures_of(photographs(2))
        run_session(study, "served", cells, results=results, pictures=pictures, machine=machine)
    finally:
        for runner in made:
            runner.close()
    return records_of(study, results)


def records_of(study: Study, results: Path) -> dict[str, Record]:
    paths = {cell.cell_id: cell_path(results, study.study, cell) for cell in build_plan(study)}
    return {name: read_record(path) for name, path in paths.items() if path.exists()}


# --- a session ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ran(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    with FakeServer(counting(loaded)) as server:
        found = run_served(served_study(server.url), tmp_path_factory.mktemp("served"))
        yield found, server.requests


def test_every_cell_of_a_study_runs_on_a_server(ran: Any) -> None:
    records, _ = ran
    assert {name: record.status for name, record in records.items()} == dict.fromkeys(records, "ok")
    assert len(records) == 4
    assert all(len(record.rounds) == 5 for record in records.values())


def test_the_time_to_the_first_token_falls_into_upload_and_server(ran: Any) -> None:
    prefill = ran[0]["vision-size-60x40"]
    hooks, parts = prefill.find("hooks", "total", "wall"), ["upload", "server"]
    found = [prefill.find("hooks", part, "device") for part in parts]
    assert all(found)
    for whole, *spans in zip(hooks, *found, strict=True):
        assert sum(spans) == pytest.approx(whole)
    assert prefill.find("plain", "upload", "device") is None, "the plain arm has no marks"


def test_each_token_after_the_first_is_a_step(ran: Any) -> None:
    generation = ran[0]["output-image0-n4"]
    assert {len(steps) for steps in generation.steps_ms} == {3}
    assert generation.generated_tokens == [4] * 5


def test_the_record_has_the_servers_own_count_of_its_prompt(ran: Any) -> None:
    for record in ran[0].values():
        (request,) = record.requests
        assert request.server_prompt_tokens == request.counted.prompt_tokens > 0


def test_what_a_server_cannot_do_is_left_out_with_the_reason(ran: Any) -> None:
    assert set(ran[0]["vision-size-60x40"].left_out) == {"vision"}
    assert ran[0]["vision-size-60x40"].busy_reason


def test_the_record_says_what_ran(ran: Any) -> None:
    about = ran[0]["vision-size-60x40"].environment["server"]
    assert (about["model"], about["started"], about["image_format"]) == (MODEL, False, "png")
    assert len(about["round_trips_ms"]) == 20
    assert "max_tokens" in about["taken"]


def test_no_picture_is_sent_twice_and_all_have_their_cells_size(ran: Any) -> None:
    pictures = [picture_in(body) for body in ran[1] if len(body["messages"][0]["content"]) == 2]
    digests = [hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest() for picture in pictures]
    assert len(set(digests)) == len(digests) > 40
    assert {picture.size for picture in pictures} == {(60, 40), (40, 60), (336, 336), (560, 336)}


def test_a_runner_of_a_server_has_the_capabilities_of_one(loaded: LoadedModel) -> None:
    with FakeServer(counting(loaded)) as server:
        runner = load_runner(loading(served_study(server.url).subjects["served"], device="cpu"))
        assert isinstance(runner, StampsItself)
        assert isinstance(runner, RunsElsewhere)
        assert not isinstance(runner, RunsVisionAlone)
        runner.close()


# --- what is no sample --------------------------------------------------------------------------------


def answer_with(**told: Any) -> Callable[[int, int], list[bytes]]:
    def make(tokens: int, prompt: int) -> list[bytes]:
        made = usage(prompt + told.get("more", 0), tokens, cached=told.get("cached"))
        finish = told.get("finish", "length")
        middle = [chunk("a", finish=finish if n == tokens - 1 else None) for n in range(tokens)]
        return [chunk(role="assistant"), *middle, usage_alone(made), DONE]

    return make


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (answer_with(more=3), "prompt tokens and the family"),
        (answer_with(cached=16), "prompt tokens came from the server's cache"),
        (answer_with(finish="stop"), "the server does not force a length"),
        (lambda tokens, prompt: [chunk(role="assistant"), chunk("a"), Reset()], "the connection"),
        (lambda tokens, prompt: [chunk("a", finish="length"), DONE], "the server sent no usage"),
    ],
    ids=["counts", "cached", "length", "dies", "no usage"],
)
def test_an_answer_that_is_not_as_asked_fails_its_cell_and_is_told(
    loaded: LoadedModel, make: Any, sentence: str, tmp_path: Path
) -> None:
    with FakeServer(counting(loaded, make)) as server, pytest.raises(SessionFailed, match="4 of 4 cells") as failed:
        run_served(served_study(server.url), tmp_path)
    assert all(sentence in reason for reason in failed.value.summary.failed), failed.value.summary.failed[0]


def test_one_cell_that_fails_costs_the_others_nothing(loaded: LoadedModel, tmp_path: Path) -> None:
    good = counting(loaded)

    def answer(body: dict[str, Any]) -> Script:
        content = body["messages"][0]["content"]
        if len(content) == 2 and picture_in(body).size == (40, 60):
            return Script.error(500, {"error": {"message": "the encoder is out of order"}})
        return good(body)

    with FakeServer(answer) as server:
        study = served_study(server.url)
        with pytest.raises(SessionFailed) as failed:
            run_served(study, tmp_path)
    (reason,) = failed.value.summary.failed
    assert "vision-size-40x60" in reason
    assert "the encoder is out of order" in reason
    assert set(records_of(study, tmp_path)) == {"vision-size-60x40", "output-image0-n4", "output-image1-n4"}


# --- refusals ------------------------------------------------------------------------------------------


def test_a_server_without_the_model_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with FakeServer() as server, pytest.raises(UserError, match="model: other is not served at"):
        run_served(served_study(server.url, endpoint={"model": "other"}), tmp_path)


def test_nobody_at_the_address_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody answers at"):
        run_served(served_study("http://127.0.0.1:9/v1"), tmp_path)


def test_a_key_that_is_not_set_is_refused_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with FakeServer() as server, pytest.raises(UserError, match=f"variable {VARIABLE} is not set"):
        run_served(served_study(server.url, endpoint={"api_key_env": VARIABLE}), tmp_path)


def test_a_key_goes_to_the_server_and_nowhere_else(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, "sk-very-secret")
    with FakeServer(counting(loaded)) as server:
        run_served(served_study(server.url, endpoint={"api_key_env": VARIABLE}), tmp_path)
        assert {head["Authorization"] for head in server.heads} == {"Bearer sk-very-secret"}
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert written
    assert not any(b"sk-very-secret" in content for content in written)
    assert "sk-very-secret" not in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "sentence"),
    [
        (None, "endpoint is missing: backend endpoint wants to know where the server is"),
        ({}, "exactly one of url .* and engine"),
        ({"url": "http://127.0.0.1:1/v1", "engine": "vllm"}, "exactly one of url .* and engine"),
        ({"engine": "triton"}, "engine 'triton' is not known; legal: llama.cpp, sglang, transformers, vllm"),
        (
            {"url": "http://127.0.0.1:1/v1", "options": ["--x"]},
            "options is given, and the server at url is not",
        ),
        ({"url": "http://user:pass@h/v1"}, "holds a user or a password"),
        ({"url": "127.0.0.1:8000"}, "must begin with http"),
        ({"url": "http://127.0.0.1:1/v1", "port": 3}, "port is not known"),
    ],
)
def test_a_served_subject_is_refused_by_key(endpoint: Any, sentence: str) -> None:
    subject = {**NATIVE, **({} if endpoint is None else {"endpoint": endpoint})}
    study = {"study": "s", "subjects": {"a": subject}, "experiments": {"vision_tokens": {"image_sizes": ["64x64"]}}}
    with pytest.raises(UserError, match=sentence):
        parse_study(study, source="test")


@pytest.mark.parametrize("key", ["attention", "cpu_threads"])
def test_a_key_of_another_way_of_running_is_refused_by_name(key: str) -> None:
    value: Any = {"attention": "eager", "cpu_threads": 2}[key]
    with pytest.raises(ValueError, match=f"{key} is given, and backend endpoint does not know it"):
        Subject(**{**NATIVE, "endpoint": {"url": "http://127.0.0.1:1/v1"}, key: value})
    with pytest.raises(ValueError, match="endpoint is given, and backend eager does not know it"):
        Subject(**{**NATIVE, "backend": "eager", "endpoint": {"url": "http://127.0.0.1:1/v1"}})


def lock_of(url: str) -> str | None:
    (device,) = devices_for(Subject(**{**NATIVE, "endpoint": {"url": url}}))
    return device.uuid


#: A name of this machine in its network, and one of another machine, with an alias.
HOSTS = {"mine": ["192.0.2.7"], "theirs": ["192.0.2.9", "192.0.2.8"], "alias": ["192.0.2.8", "192.0.2.9"]}


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = socket.getaddrinfo

    def look_up(host: str, *rest: Any, **more: Any) -> Any:
        if host == "unheard.of":
            raise socket.gaierror("not known")
        numbers = HOSTS.get(host)
        return [(2, 1, 6, "", (number, 0)) for number in numbers] if numbers else usual(host, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    own = SimpleNamespace(family=socket.AF_INET, address="192.0.2.7")
    monkeypatch.setattr("psutil.net_if_addrs", lambda: {"lo": [], "eth0": [own]})


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:8000/v1/",
        "http://localhost:8000/v1",
        "http://LOCALHOST:8000/v1",
        "http://[::1]:8000/v1",
        "http://[::ffff:127.0.0.1]:8000/v1",
        "http://127.0.1.1:8000/v1",
        "http://0.0.0.0:8000/v1",
        "https://127.0.0.1:8000/other/v1",
        "http://mine:8000/v1",
        "http://192.0.2.7:8000/v1",
    ],
)
def test_a_server_has_one_lock_by_whatever_name_it_is_called(url: str, network: None) -> None:
    assert lock_of(url) == lock_of("http://127.0.0.1:8000/v1")


def test_other_servers_have_other_locks(network: None) -> None:
    urls = (
        "http://127.0.0.1:8000/v1",
        "http://127.0.0.1:8001/v1",
        "http://theirs:8000/v1",
        "http://unheard.of:8000/v1",
    )
    assert len({lock_of(url) for url in urls}) == 4
    assert lock_of("http://theirs/v1") == lock_of("http://alias:80/v1") == lock_of("http://192.0.2.8/v1")


def test_max_crops_does_not_reach_a_server(loaded: LoadedModel) -> None:
    with FakeServer(counting(loaded)) as server:
        runner = load_runner(loading(served_study(server.url).subjects["served"], device="cpu"))
        opened = OpenedRequest((Image.new("RGB", (60, 40)),), None, 40, ImageOptions(max_crops=2))
        with pytest.raises(Unsupported, match="neither max_crops nor force_tiling reaches it"):
            runner.prepare(opened)
        runner.close()


# --- others on the server, and another server ----------------------------------------------------------


def vllm_paths(*, version: str = "0.33.0", running: float = 0.0) -> dict[str, Script]:
    metrics = f'vllm:num_requests_running{{engine="0"}} {running}\nvllm:num_requests_waiting 0.0\n'
    return {
        "/version": Script([json.dumps({"version": version}).encode()], content_type="application/json", whole=True),
        "/metrics": Script([metrics.encode()], content_type="text/plain", whole=True),
    }


def test_requests_of_others_are_seen_and_the_rounds_marked(loaded: LoadedModel, tmp_path: Path) -> None:
    with FakeServer(counting(loaded), paths=vllm_paths(running=2.0)) as server:
        found = run_served(served_study(server.url), tmp_path / "busy")
    assert {state.disturbances for record in found.values() for state in record.rounds} == {
        ("other requests on the server",)
    }
    with FakeServer(counting(loaded), paths=vllm_paths()) as server:
        found = run_served(served_study(server.url), tmp_path / "quiet")
    assert {state.disturbances for record in found.values() for state in record.rounds} == {()}
    assert {record.environment["server"]["version"] for record in found.values()} == {"0.33.0"}


def test_records_of_two_servers_are_never_mixed(loaded: LoadedModel, tmp_path: Path) -> None:
    with FakeServer(counting(loaded), paths=vllm_paths(version="0.33.0")) as server:
        study = served_study(server.url)
        run_served(study, tmp_path)
        cell_path(tmp_path, study.study, build_plan(study)[0]).unlink()
        server.paths |= vllm_paths(version="0.34.0")
        with pytest.raises(UserError, match="was measured on another server"):
            run_served(study, tmp_path)


# --- spans ----------------------------------------------------------------------------------------------


def exchange(*stamps: tuple[float, int | None], began: float = 0.0, sent: float = 2.0) -> Exchange:
    pieces = tuple(Piece(ms, 1, tokens, "usage") for ms, tokens in stamps)
    total = sum(tokens or 0 for _, tokens in stamps) or len(stamps)
    answer = Answer(pieces, began, stamps[-1][0], "length", Usage(10, total))
    return Exchange(began, sent, sent, answer, "kept")


def step(began_ms: float, spans: list[tuple[str, float, int | None]], *, start: int, tokens: int) -> dict[str, Any]:
    request = {"id": "a", "tokens": tokens, "start": start, "prompt_tokens": 10}
    made = [{"name": name, "start_ms": 0.0, "ms": ms, "inside": inside} for name, ms, inside in spans]
    return {"number": 0, "began_ms": began_ms, "requests": [request], "spans": made}


PROMPT = step(
    20.0,
    [
        ("execute", 30.0, None),
        ("encode", 13.0, 0),
        ("vision", 12.0, 1),
        ("projector", 2.0, 2),
        ("forward", 10.0, 0),
        ("logits", 3.0, 0),
        ("after", 4.0, None),
    ],
    start=0,
    tokens=10,
)


def test_the_own_times_of_a_step_add_up_to_it() -> None:
    own = own_times(PROMPT)
    assert own == {"merge": 5.0, "vision_encoder": 10.0, "projector": 2.0, "llm_blocks": 10.0, "head": 7.0}
    assert sum(own.values()) == step_ms(PROMPT) == 34.0


def test_the_first_token_is_a_sum_that_closes() -> None:
    spans = dict(first_token_spans(exchange((60.0, 1)), [PROMPT]))
    assert spans["upload"] == 2.0
    assert spans["server_inputs"] == 18.0
    assert spans["return"] == 6.0
    assert sum(spans.values()) == 60.0


def test_a_client_that_stamps_late_takes_nothing_from_the_sum() -> None:
    """A busy machine may let the model's first step begin before the client is let run to stamp its last byte."""
    spans = dict(first_token_spans(exchange((60.0, 1), sent=58.0), [PROMPT]))
    assert (spans["upload"], spans["server_inputs"], spans["return"]) == (20.0, 0.0, 6.0)
    assert sum(spans.values()) == 60.0


@pytest.mark.parametrize(("first_ms", "head_ms", "merge_ms"), [(52.0, 5.0, 5.0), (46.0, 0.0, 4.0)])
def test_a_step_that_is_marked_late_ends_with_its_token(first_ms: float, head_ms: float, merge_ms: float) -> None:
    spans = dict(first_token_spans(exchange((first_ms, 1)), [PROMPT]))
    assert (spans["head"], spans["merge"], spans["return"]) == (head_ms, merge_ms, 0.0)
    assert sum(spans.values()) == first_ms


def test_marks_that_no_delay_explains_are_no_sample() -> None:
    with pytest.raises(InvalidSample, match=r"the model's layers ended 2\.0 ms after the first token had come"):
        first_token_spans(exchange((40.0, 1)), [PROMPT])
    with pytest.raises(InvalidSample, match=r"began 1\.0 ms before its request was sent"):
        first_token_spans(exchange((90.0, 1), began=21.0, sent=22.0), [PROMPT])


def test_a_prompt_in_two_chunks_is_one_prefill_and_the_gap_between_them_is_merge() -> None:
    first = step(20.0, [("execute", 10.0, None), ("forward", 9.0, 0)], start=0, tokens=6)
    second = step(33.0, [("execute", 10.0, None), ("forward", 8.0, 0)], start=6, tokens=4)
    decode = step(50.0, [("execute", 5.0, None)], start=10, tokens=1)
    spans = dict(first_token_spans(exchange((60.0, 1)), [first, second, decode]))
    assert (spans["llm_blocks"], spans["merge"], spans["return"]) == (17.0, 6.0, 17.0)
    assert sum(spans.values()) == 60.0


def test_the_devices_steps_are_those_behind_the_prompt() -> None:
    decode = [step(50.0 + n, [("execute", 5.0, None), ("after", 1.0, None)], start=10 + n, tokens=1) for n in range(3)]
    assert device_decode_ms([PROMPT, *decode]) == 18.0
    assert device_decode_ms([PROMPT]) is None, "one token, and no step of its own"
    assert device_decode_ms(None) is None


def test_marks_without_a_step_of_the_prompt_are_no_sample() -> None:
    decode = step(50.0, [("execute", 5.0, None)], start=10, tokens=1)
    with pytest.raises(InvalidSample, match="no step of the prompt"):
        first_token_spans(exchange((60.0, 1)), [decode])


def test_gaps_between_tokens_add_up_to_last_minus_first_however_they_arrive() -> None:
    assert token_gaps(exchange((10.0, 1), (14.0, 1), (20.0, 1))) == [4.0, 6.0]
    assert token_gaps(exchange((10.0, 1), (16.0, 2))) == [3.0, 3.0]
    assert token_gaps(exchange((10.0, 2), (16.0, 2))) == [0.0, 3.0, 3.0]
    assert token_gaps(exchange((10.0, 1))) == []


@pytest.mark.parametrize("encoding", [Encoding("png"), *(Encoding("jpeg", q) for q in (90, 75, 74, 40, 39, 20))])
def test_a_picture_unlike_another_is_so_as_it_is_sent_and_looks_the_same(encoding: Encoding) -> None:
    grey = Image.new("RGB", (200, 100), "grey")
    sent = [encoded(unlike(grey, number=number, encoding=encoding), encoding).data for number in range(20)]
    opened = [Image.open(io.BytesIO(data)).convert("RGB") for data in sent]
    assert len({picture.tobytes() for picture in opened}) == 20
    assert {picture.size for picture in opened} == {(200, 100)}
    far = [abs(a - b) for picture in opened for a, b in zip(picture.tobytes(), grey.tobytes(), strict=True)]
    if encoding.quality in (None, 90):
        assert max(far) <= 32
        assert sum(far) / len(far) < 0.2


class Ending:
    """A server of which a process was killed: it runs for some looks more."""

    def __init__(self, looks: int) -> None:
        self._left = looks

    def is_running(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def why_ended(self) -> str:
        return "out of memory"

    def stop(self) -> None:
        return None


@pytest.mark.parametrize(
    "answer",
    [
        Script([Reset()]),
        Script.error(500, {"error": {"message": "EngineCore encountered an issue"}}),
    ],
    ids=["cut", "engine"],
)
def test_a_server_that_ends_is_a_device_that_is_lost(
    answer: Script, loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vlmeter.backends.endpoint.runner.ENDING_S", 0.3)
    good = counting(loaded)
    with FakeServer(lambda body: good(body) if len(body["messages"][0]["content"]) == 1 else answer) as server:
        runner = load_runner(loading(served_study(server.url).subjects["served"], device="cpu"))
        prompt = runner.prepare(OpenedRequest((Image.new("RGB", (60, 40)),), None, 40, ImageOptions()))
        with pytest.raises(CellFault):
            runner.run(prompt, output_tokens=1, stop="length", marked=False)
        runner._server = Ending(1000)  # type: ignore[assignment]
        with pytest.raises(CellFault):
            runner.run(prompt, output_tokens=1, stop="length", marked=False)
        for looks in (0, 2):
            runner._server = Ending(looks)  # type: ignore[assignment]
            with pytest.raises(DeviceLost, match="the server ended: out of memory"):
                runner.run(prompt, output_tokens=1, stop="length", marked=False)
    runner._server = Ending(1)  # type: ignore[assignment]
    with pytest.raises(DeviceLost):  # nobody answers any more
        runner.run(prompt, output_tokens=1, stop="length", marked=False)
    runner.close()


# --- two at once ---------------------------------------------------------------------------------------


def test_two_studies_never_speak_to_one_server_at_once(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(tmp_path / "locks"))
    begun, go_on = threading.Event(), threading.Event()
    answer = counting(loaded)
    told: dict[str, list[str]] = {"first": [], "second": []}
    failed: list[BaseException] = []

    def held_up(body: dict[str, Any]) -> Script:
        begun.set()
        assert go_on.wait(60)
        return answer(body)

    def measure(name: str, url: str) -> None:
        study = served_study(url, study=name, experiments={"vision_tokens": {"image_sizes": ["60x40"]}})
        layout = Layout(name, tmp_path)
        make_dummies(study, layout)
        try:
            measure_subject(study, "served", layout, tell=told[name].append, progress=lambda step: None)
        except BaseException as error:
            failed.append(error)

    with FakeServer(held_up) as server:
        other = server.url.replace("127.0.0.1", "localhost")
        urls = {"first": server.url, "second": other}
        first, second = (threading.Thread(target=measure, args=(name, urls[name])) for name in told)
        first.start()
        assert begun.wait(60)
        second.start()
        wait_until(lambda: told["second"])
        assert len(server.requests) == 1, "the second has asked for nothing"
        go_on.set()
        first.join(120)
        second.join(120)
    assert failed == []
    (line, *_) = told["second"]
    assert f"server {Address.parse(other).netloc}" in line
    assert "study first, subject served" in line, "who has it"
    done = [read_record(path) for name in told for path in (tmp_path / name / "cells").rglob("*.json")]
    assert [record.status for record in done] == ["ok", "ok"]
