"""Speaking to a server: what is sent, what is believed, and one sentence for each way in which it goes wrong."""

from __future__ import annotations

import base64
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.fake_server import (
    DONE,
    KEEP_ALIVE,
    MODEL,
    FakeServer,
    Hang,
    Reset,
    Script,
    chunk,
    plain_answer,
    usage,
    usage_alone,
)
from vlmeter.backends.endpoint.capabilities import ANY_SERVER, Capabilities, probe
from vlmeter.backends.endpoint.client import Client, _Reads
from vlmeter.backends.endpoint.faults import (
    Busy,
    ConnectionLost,
    Failed,
    InvalidSample,
    KeyRefused,
    NotAnEndpoint,
    Refusal,
    Rejected,
    ServerFault,
    TimedOut,
    Unreachable,
    Unreadable,
    WrongModel,
)
from vlmeter.backends.endpoint.metrics import Metrics, read_metrics
from vlmeter.backends.endpoint.request import Address, Body, Chat, Picture, encode
from vlmeter.backends.endpoint.validity import check_answer
from vlmeter.common.errors import UserError

KEY = "sk-secret-123"


@contextmanager
def served(
    *scripts: Script | Callable[[dict[str, Any]], Script], paths: dict[str, Script] | None = None, **options: Any
) -> Iterator[tuple[FakeServer, Client]]:
    """A server that plays scripts, and a client of it."""
    with FakeServer(*scripts, paths=paths) as server, Client(server.url, **options) as client:
        yield server, client


@contextmanager
def asking(*scripts: Script | Callable[[dict[str, Any]], Script], **options: Any) -> Iterator[Client]:
    """A client of a server that plays scripts."""
    with served(*scripts, **options) as (_, client):
        yield client


def body(**fields: Any) -> Body:
    return encode(Chat(MODEL, "What is this?", fields={"max_tokens": 3, **fields}))


def take_request(connection: socket.socket) -> bytes:
    """Read a request to its end: a connection that is closed before may take the answer along."""
    with connection.makefile("rb") as lines:
        head = list(iter(lines.readline, b"\r\n"))
        (length,) = (int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length"))
        return b"".join(head) + b"\r\n" + lines.read(length)


def test_an_answer_is_read_over_a_connection_that_is_kept() -> None:
    with served() as (server, client):
        exchanges = [client.ask(body()) for _ in range(3)]
        assert [exchange.connection for exchange in exchanges] == ["new", "kept", "kept"]
        assert server.connections == 1
    for exchange in exchanges:
        assert exchange.answer.output_tokens == 3
        assert exchange.began_ms <= exchange.sent_ms <= exchange.responded_ms <= exchange.answer.opened_ms
        assert exchange.time_to_first_token_ms is not None
        assert exchange.total_ms is not None
        assert 0 < exchange.time_to_first_token_ms <= exchange.total_ms


def test_sending_ends_before_the_last_byte_without_which_no_server_can_begin() -> None:
    """What a server does with the whole request can then never lie before the stamp, however late it is taken."""
    received, begun = bytearray(), threading.Event()
    asked = body(padding="x" * 3_000_000)
    stamps: list[bool] = []

    def takes(source: socket.socket) -> None:
        connection, _ = source.accept()
        while not received.endswith(asked.payload):
            received.extend(connection.recv(65_536))
        begun.set()
        answer = b"".join(plain_answer(1))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(answer)
        connection.sendall(head + answer)
        connection.close()

    def slow_clock() -> float:
        stamps.append(begun.wait(0.3))  # time enough for the server to begin, if it could
        return float(len(stamps))

    with socket.create_server(("127.0.0.1", 0)) as source:
        threading.Thread(target=takes, args=(source,), daemon=True).start()
        with Client(f"http://127.0.0.1:{source.getsockname()[1]}/v1", host_ms=slow_clock) as client:
            exchange = client.ask(asked)
    assert (exchange.began_ms, exchange.sent_ms) == (1.0, 2.0)
    assert stamps[:3] == [False, False, True]


def test_a_connection_that_the_server_closed_meanwhile_is_made_anew_before_the_clock_starts() -> None:
    with asking(Script(plain_answer(3), closes=True), Script(plain_answer(3))) as client:
        assert [client.ask(body()).connection for _ in range(3)] == ["new", "new", "kept"]


def test_a_connection_that_ended_without_a_word_is_made_anew() -> None:
    payload = b"".join(plain_answer(1))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(payload)
    ended = threading.Semaphore(0)

    def answers_once(source: socket.socket) -> None:
        for _ in range(2):
            connection, _ = source.accept()
            take_request(connection)
            connection.sendall(head + payload)
            connection.close()
            ended.release()

    with socket.create_server(("127.0.0.1", 0)) as source:
        threading.Thread(target=answers_once, args=(source,), daemon=True).start()
        with Client(f"http://127.0.0.1:{source.getsockname()[1]}/v1") as client:
            for _ in range(2):
                assert client.ask(body()).connection == "new"
                assert ended.acquire(timeout=10), "the server has closed it, after saying that it would not"


def test_a_get_is_sent_again_where_the_server_closes_its_connection_just_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """As llama.cpp does behind a stream: the client does not see it yet when it uses the connection again."""
    monkeypatch.setattr("vlmeter.backends.endpoint.client.select.select", lambda *_: ([], [], []))
    with asking(Script(plain_answer(3))) as client:

        def ask_and_close() -> None:
            client.ask(body())
            assert client._socket is not None
            client._socket.shutdown(socket.SHUT_RDWR)

        ask_and_close()
        assert client.models() == [MODEL]
        ask_and_close()
        with pytest.raises(ConnectionLost):
            client.ask(body())  # no sample is asked for twice


def test_a_stream_that_does_not_end_after_its_last_event_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlmeter.backends.endpoint.client.DRAIN_S", 0.05)
    with asking(Script([*plain_answer(3), Hang()]), Script(plain_answer(3))) as client:
        assert client.ask(body()).answer.output_tokens == 3
        assert client.ask(body()).connection == "new"


def test_the_picture_goes_first_as_it_is_and_encoding_is_timed_apart() -> None:
    times = iter([5.0, 8.0])
    picture = Picture(b"\x89PNG...", "image/png")
    made = encode(Chat(MODEL, "What?", picture, {"temperature": 0}), host_ms=lambda: next(times))
    assert (made.encode_ms, made.picture_bytes) == (3.0, 7)
    request = json.loads(made.payload)
    image, text = request["messages"][0]["content"]
    assert image["image_url"]["url"] == "data:image/png;base64," + base64.b64encode(picture.data).decode()
    assert text == {"type": "text", "text": "What?"}
    assert (request["stream"], request["temperature"]) == (True, 0)


def test_events_split_over_several_pieces_of_http_are_one() -> None:
    whole = b"".join(plain_answer(3))
    pieces = [whole[n : n + 7] for n in range(0, len(whole), 7)]
    with asking(Script([KEEP_ALIVE, *pieces])) as client:
        assert len(client.ask(body()).answer.pieces) == 3


def test_tokens_that_come_apart_have_their_own_stamps() -> None:
    steps = [part for piece in plain_answer(3) for part in (piece, 0.02)]
    with asking(Script(steps)) as client:
        answer = client.ask(body()).answer
    assert [arrival.tokens for arrival in answer.arrivals] == [1, 1, 1]
    assert len({arrival.received_ms for arrival in answer.arrivals}) == 3


# ------------------------------------------------------------------------------------------------------- faults

ERROR = {"error": {"message": "no such thing"}}


@pytest.mark.parametrize(
    ("script", "fault", "says"),
    [
        (Script.error(400, ERROR), Rejected, r"rejects the request \(400\): no such thing$"),
        (Script.error(422, {"detail": "Unexpected fields: {'x'}"}), Rejected, r"\(422\): Unexpected fields: {'x'}$"),
        (Script.error(413, {"message": "too large"}), Rejected, r"\(413\): too large$"),
        (Script.error(401, ERROR), KeyRefused, r"wants a key \(401\); name its variable in api_key_env$"),
        (Script.error(403, ERROR), KeyRefused, r"wants a key \(403\)"),
        (Script.error(404, {"detail": "Not Found"}), NotAnEndpoint, r"has no chat API \(404\): Not Found$"),
        (
            Script.error(404, {"error": {"message": "The model `toy` does not exist.", "code": 404}}),
            WrongModel,
            r"model: not served at .*: The model `toy` does not exist\.$",
        ),
        (Script.error(400, {"detail": "Server is pinned to 'b'; requested 'a'."}), WrongModel, "pinned to 'b'"),
        (Script.error(429, ERROR), Busy, r"turns the request away \(429\)"),
        (Script.error(503, ERROR), Busy, r"turns the request away \(503\)"),
        (Script.error(500, ERROR), Failed, r"failed at the request \(500\): no such thing$"),
        (Script.error(200, ERROR), Failed, "reports an error instead of an answer: no such thing$"),
        (
            Script([b"<html>"], content_type="text/html", whole=True),
            NotAnEndpoint,
            "answers with text/html instead of a stream: <html>",
        ),
        (
            Script(status=307, headers={"Location": "http://elsewhere/v1"}, whole=True),
            NotAnEndpoint,
            r"sends on to http://elsewhere/v1 \(307\), which is not followed",
        ),
        (Script([Reset()]), ConnectionLost, "closed the connection before the answer was whole"),
        (Script([chunk(role="assistant"), Reset()]), ConnectionLost, "closed the connection before"),
        (Script(plain_answer(3)[:-3], ends=False), ConnectionLost, "closed the connection before"),
        (Script([chunk(role="assistant"), chunk("a")]), ConnectionLost, "after 1 events with tokens, without saying"),
        (Script([b"".join(plain_answer(3))[:-40]]), ConnectionLost, "ends within an event"),
        (Script([chunk("a"), b'data: {"error": {"message": "engine died"}}\n\n']), Failed, "engine died"),
        (Script([b"data: hm\n\n"]), Unreadable, "not JSON: hm"),
    ],
)
def test_each_fault_is_one_sentence(script: Script, fault: type[ServerFault], says: str) -> None:
    with asking(script, Script(plain_answer(3))) as client:
        with pytest.raises(fault, match=says) as caught:
            client.ask(body())
        assert "\n" not in str(caught.value)
        assert client.ask(body()).answer.output_tokens == 3, "the next request has a connection again"


@pytest.mark.parametrize("steps", [[Hang()], [chunk(role="assistant"), Hang()], [chunk("a"), KEEP_ALIVE, Hang()]])
def test_a_server_that_hangs_is_given_up_at_the_limit(steps: list[Any]) -> None:
    with asking(Script(steps), Script(plain_answer(3)), timeout_s=0.2) as client:
        with pytest.raises(TimedOut, match=r"no whole answer from .* within 0\.2 s$"):
            client.ask(body())
        client.timeout_s = 20.0
        assert client.ask(body()).connection == "new", "what hangs is not asked again"


def test_a_limit_that_has_passed_is_not_waited_for_again() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"late")
        reads = _Reads(ours, now=lambda: 0.0, limit_s=-1.0)
        with pytest.raises(TimeoutError):
            reads.readinto(bytearray(8))


def test_a_server_that_keeps_a_connection_alive_and_says_nothing_is_given_up_too() -> None:
    steps = [part for _ in range(100) for part in (KEEP_ALIVE, 0.02)]
    with FakeServer(Script(steps)) as server, Client(server.url, timeout_s=0.2) as client, pytest.raises(TimedOut):
        client.ask(body())


def test_nobody_at_the_address_is_for_the_user_to_mend() -> None:
    with socket.create_server(("127.0.0.1", 0)) as source:
        port = source.getsockname()[1]
    with (
        Client(f"http://127.0.0.1:{port}/v1") as client,
        pytest.raises(Unreachable, match="nobody answers at") as caught,
    ):
        client.ask(body())
    assert isinstance(caught.value, UserError)


def test_somebody_who_does_not_speak_http_is_told() -> None:
    def speaks(source: socket.socket) -> None:
        connection, _ = source.accept()
        take_request(connection)
        connection.sendall(b"SSH-2.0-hm\r\n")
        connection.close()

    with socket.create_server(("127.0.0.1", 0)) as source:
        threading.Thread(target=speaks, args=(source,), daemon=True).start()
        with (
            Client(f"http://127.0.0.1:{source.getsockname()[1]}") as client,
            pytest.raises(Unreadable, match="not HTTP"),
        ):
            client.ask(body())


def test_only_what_the_user_has_to_mend_is_a_mistake_of_the_study() -> None:
    assert all(issubclass(kind, UserError) for kind in (Unreachable, KeyRefused, WrongModel, NotAnEndpoint, Refusal))
    assert not any(issubclass(kind, UserError) for kind in (Rejected, Busy, Failed, TimedOut, ConnectionLost))


# ---------------------------------------------------------------------------------------------------- addresses


def test_an_address_is_that_of_the_api_and_what_is_beside_it() -> None:
    address = Address.parse("https://example.org/llm/v1/")
    assert (address.port, address.path, address.root) == (443, "/llm/v1", "/llm")
    assert str(Address.parse("http://[::1]:8000/v1")) == "http://[::1]:8000/v1"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("127.0.0.1:8000/v1", "must begin with http"),
        ("http:///v1", "name a host"),
        ("http://host:port/v1", "no address"),
        ("http://host/v1?key=3", "must end with the path"),
        ("ftp://host/v1", "must begin with http"),
    ],
)
def test_what_is_no_address_is_refused(url: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        Address.parse(url)


def test_a_key_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        Address.parse(f"http://user:{KEY}@host/v1")
    assert KEY not in str(caught.value)


def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with asking() as client:
        assert client.ask(body()).answer.output_tokens == 3


# --------------------------------------------------------------------------------------------------------- keys


def test_the_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)
    echo = Script.error(400, {"error": {"message": f"the key {KEY} may not use this field"}})
    with served(Script(plain_answer(3)), echo, api_key_env="TOY_KEY") as (server, client):
        exchange = client.ask(body())
        assert server.heads[0]["Authorization"] == f"Bearer {KEY}"
        with pytest.raises(Rejected) as caught:
            client.ask(body())
    shown = [repr(client), repr(exchange), repr(body()), str(caught.value), repr(caught.value)]
    assert not [text for text in shown if KEY in text]


def test_what_is_said_to_a_refused_key_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KEY", KEY)
    said = Script.error(401, {"error": {"message": "Incorrect API key provided: sk-s*****123"}})
    says = r"refuses the key in TOY_KEY \(401\)$"
    with asking(said, api_key_env="TOY_KEY") as client, pytest.raises(KeyRefused, match=says):
        client.ask(body())


def test_a_key_that_is_not_there_is_named_by_its_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOY_KEY", raising=False)
    with pytest.raises(UserError, match="the environment variable TOY_KEY is not set, or empty"):
        Client("http://127.0.0.1/v1", api_key_env="TOY_KEY")
    monkeypatch.setenv("TOY_KEY", "two\nlines")
    with pytest.raises(UserError, match="holds what cannot be a key") as caught:
        Client("http://127.0.0.1/v1", api_key_env="TOY_KEY")
    assert "lines" not in str(caught.value)


# -------------------------------------------------------------------------------------------------- capabilities


def takes(*fields: str, named: bool = True, **also: Any) -> Callable[[dict[str, Any]], Script]:
    """A server that refuses every field but these, and names it or not; its answers run their count of tokens."""
    known = {"model", "messages", "stream", *fields}

    def answer(request: dict[str, Any]) -> Script:
        if unknown := sorted(set(request) - known):
            return Script.error(422, {"detail": f"Unexpected fields: {unknown}" if named else "malformed"})
        tokens = request.get("max_tokens", request.get("max_completion_tokens", 4))
        return Script(also["answer"](request) if "answer" in also else plain_answer(tokens))

    return answer


def test_fields_that_a_server_refuses_are_dropped_by_name_and_remembered() -> None:
    with asking(takes("max_tokens", "temperature", "stream_options")) as client:
        found = probe(client, MODEL, wanted=ANY_SERVER)
    assert found.taken == ("usage", "max_tokens", "greedy")
    assert set(found.refused) == {"ignore_eos", "min_tokens", "return_token_ids"}
    assert "Unexpected fields" in found.refused["ignore_eos"]
    assert found.unseen == ("continuous_usage_stats",), "taken, and nothing of it was to be seen"


def test_a_server_that_does_not_say_which_field_it_refuses_is_asked_for_each() -> None:
    with asking(takes("max_tokens", "ignore_eos", named=False)) as client:
        found = probe(client, MODEL, wanted=("max_tokens", "greedy", "ignore_eos", "min_tokens"))
    assert found.taken == ("max_tokens", "ignore_eos")
    assert set(found.refused) == {"greedy", "min_tokens"}


def test_no_request_goes_without_a_limit() -> None:
    with served(takes("max_completion_tokens", "temperature")) as (server, client):
        found = probe(client, MODEL, wanted=("max_tokens", "greedy"))
        assert all({"max_tokens", "max_completion_tokens"} & set(request) for request in server.requests)
    assert found.taken == ("greedy", "max_completion_tokens")
    assert set(found.refused) == {"max_tokens"}


def test_a_feature_that_leaves_its_trace_is_in_use() -> None:
    def answer(request: dict[str, Any]) -> list[bytes]:
        counted = [chunk("a", ids=[n], usage=usage(7, n + 1)) for n in range(4)]
        return [*counted, chunk(finish="length", usage=usage(7, 4)), usage_alone(usage(7, 4)), DONE]

    wanted = ("usage", "continuous_usage_stats", "max_tokens", "return_token_ids")
    fields = ("max_tokens", "return_token_ids", "stream_options")
    with asking(takes(*fields, answer=answer)) as client:
        found = probe(client, MODEL, wanted=wanted)
    assert found == Capabilities(wanted), "the traces of two ways to count tokens do not hide each other"


def test_a_server_that_is_wrong_otherwise_is_not_taken_for_one_that_lacks_a_field() -> None:
    with asking(Script.error(500, ERROR)) as client, pytest.raises(Failed, match="no such thing"):
        probe(client, MODEL)
    with asking(Script.error(404, {"message": "model not found"})) as client, pytest.raises(WrongModel):
        probe(client, MODEL)


def test_a_request_asks_for_its_length_and_only_a_forced_one_forces_it() -> None:
    found = Capabilities(("usage", "continuous_usage_stats", "max_tokens", "greedy", "ignore_eos", "min_tokens"))
    forced = found.fields(output_tokens=8, cache_salt="s")
    assert forced == {
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "max_tokens": 8,
        "min_tokens": 8,
        "ignore_eos": True,
        "temperature": 0,
        "cache_salt": "s",
    }
    assert set(found.fields(output_tokens=8, forced=False)) == {"stream_options", "max_tokens", "temperature"}


# ------------------------------------------------------------------------------------------------------ validity


def answer_of(**counts: Any) -> Any:
    parts = [chunk("a"), chunk("b", finish=counts.pop("finish", "length")), usage_alone(usage(**counts)), DONE]
    with asking(Script(parts)) as client:
        return client.ask(body()).answer


def test_an_answer_as_asked_for_is_valid() -> None:
    check_answer(answer_of(prompt=9, completion=2, cached=0), prompt_tokens=9, output_tokens=2)
    check_answer(answer_of(prompt=9, completion=2), prompt_tokens=None, output_tokens=2)
    check_answer(answer_of(prompt=9, completion=2, finish="stop"), prompt_tokens=9, output_tokens=8, forced=False)


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ({"prompt": 8}, "counts 8 prompt tokens and the family 9"),
        ({"cached": 4}, "4 of 9 prompt tokens came from the server's cache"),
        ({"finish": "stop"}, "ended by stop, not 2 by length"),
        ({"completion": 3}, "has 3 tokens and ended by length, not 2 by length"),
    ],
)
def test_an_answer_to_something_else_is_no_sample(counts: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidSample, match=says):
        check_answer(answer_of(**{"prompt": 9, "completion": 2, **counts}), prompt_tokens=9, output_tokens=2)


def test_an_answer_without_usage_is_no_sample() -> None:
    with asking(Script([chunk("a", finish="length"), DONE])) as client:
        answer = client.ask(body()).answer
    with pytest.raises(InvalidSample, match="no usage"):
        check_answer(answer, prompt_tokens=9, output_tokens=1)


def test_an_answer_that_is_longer_than_asked_for_is_no_sample_even_if_not_forced() -> None:
    with pytest.raises(InvalidSample, match="more than the 2 asked for"):
        check_answer(answer_of(prompt=9, completion=3), prompt_tokens=9, output_tokens=2, forced=False)


# ------------------------------------------------------------------------------------------------ beside the API


def test_a_model_that_is_not_served_is_named_with_those_that_are() -> None:
    with asking() as client:
        client.require_model(MODEL)
        with pytest.raises(WrongModel, match=r"model: other is not served at .*; there is toy$"):
            client.require_model("other")


def test_a_round_trip_asks_for_next_to_nothing_over_the_connection_that_stands() -> None:
    with served() as (server, client):
        times = client.round_trips_ms("/health", repeats=4)
        assert server.connections == 1
    assert len(times) == 4
    assert all(time > 0 for time in times)


METRICS = """\
# HELP vllm:e2e_request_latency_seconds Histogram
vllm:e2e_request_latency_seconds_bucket{engine="0",le="0.3"} 4.0
vllm:e2e_request_latency_seconds_count{engine="0"} 4.0
vllm:e2e_request_latency_seconds_sum{engine="0",text="a } b"} 1.5
vllm:num_requests_running{engine="0"} 1.0
vllm:num_requests_running{engine="1"} 2.0
odd NaNs
"""


def test_metrics_are_summed_over_their_labels_without_buckets() -> None:
    found = Metrics.parse(METRICS)
    assert found.values["vllm:num_requests_running"] == 3.0
    assert found.values["vllm:e2e_request_latency_seconds_sum"] == 1.5
    assert "vllm:e2e_request_latency_seconds_bucket" not in found.values
    assert found.growth("vllm:new_total", since=found) == 0.0


def test_a_server_without_metrics_has_none() -> None:
    told = Script([METRICS.encode()], content_type="text/plain", whole=True)
    with asking(paths={"/metrics": told}) as client:
        assert read_metrics(client, "/metrics") == Metrics.parse(METRICS)
        assert read_metrics(client, "/elsewhere") is None
        assert read_metrics(client, None) is None
