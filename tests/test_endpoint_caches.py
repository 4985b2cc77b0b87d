"""A server with caches: what of a request it knows is decided by the client, and held against what it says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_server import DONE, MODEL, FakeServer, Script, chunk, plain_answer, usage, usage_alone
from tests.test_endpoint_runner import NATIVE, counting, picture_in, run_served, served_study, vllm_paths
from vlmeter.backends.base import RunsKnown
from vlmeter.backends.endpoint.loading import load_runner
from vlmeter.common.errors import UserError
from vlmeter.measure.session import SessionFailed
from vlmeter.models.families.base import LoadedModel
from vlmeter.models.families.registry import get_family
from vlmeter.records.record import Record
from vlmeter.study.subject import Subject, loading, subject_spec

PREFILLS = {"vision_tokens": {"image_sizes": ["60x40", "40x60"], "text_tokens": 40}}

#: Tokens of a block of the cache of prompts: the last block of a prompt is never whole.
BLOCK = 16


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    subject = Subject(**{**NATIVE, "backend": "eager"})
    return get_family("llava_next").load(subject_spec(subject), device="meta")


class Keeping:
    """A vLLM that keeps pictures, and prompts by their salt; faults switch off what it would do."""

    def __init__(self, loaded: LoadedModel, *, pictures: bool = True, prompts: bool = True, salts: bool = True) -> None:
        self._count, self._keeps = counting(loaded, self._stream), (pictures, prompts, salts)
        self._known: set[object] = set()
        self.hits = {"prefix": 0, "mm": 0}
        self.cached = 0
        self.server = FakeServer(self._answer, paths=vllm_paths())

    def _answer(self, body: dict[str, Any]) -> Script:
        if isinstance(body["messages"][0]["content"], str) or len(body["messages"][0]["content"]) == 1:
            return Script(plain_answer(body["max_tokens"]))
        pictures, prompts, salts = self._keeps
        picture = picture_in(body).tobytes()
        prompt = (picture, body.get("cache_salt") if salts else None)
        self.cached = BLOCK if prompts and prompt in self._known else 0
        self.hits["mm"] += pictures and picture in self._known
        self.hits["prefix"] += self.cached
        self._known |= {picture, prompt}
        names = {"prefix": "prefix_cache_hits_total", "mm": "mm_cache_hits_total"}
        text = "".join(f"vllm:{names[name]} {count}\n" for name, count in self.hits.items())
        self.server.paths["/metrics"] = Script([text.encode()], content_type="text/plain", whole=True)
        return self._count(body)

    def _stream(self, tokens: int, prompt: int) -> list[bytes]:
        middle = [chunk("a", finish="length" if n == tokens - 1 else None) for n in range(tokens)]
        return [chunk(role="assistant"), *middle, usage_alone(usage(prompt, tokens, cached=self.cached)), DONE]


@pytest.fixture(scope="module")
def ran(loaded: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, list[dict[str, Any]]]]:
    with (keeping := Keeping(loaded)).server as server:
        study = served_study(server.url, endpoint={"caches": True})
        yield run_served(study, tmp_path_factory.mktemp("kept")), server.requests
    assert keeping.hits["prefix"] > 0


def prefills(records: dict[str, Record]) -> list[Record]:
    found = [record for record in records.values() if record.cell.kind == "prefill"]
    assert len(found) == 2
    return found


def sent(requests: list[dict[str, Any]]) -> list[tuple[bytes, str]]:
    """Picture and salt of each request but the probe."""
    return [(picture_in(body).tobytes(), body["cache_salt"]) for body in requests if "cache_salt" in body]


def test_subtraction_takes_the_place_of_vision_alone_paired_with_the_whole_in_every_round(ran: Any) -> None:
    for record in prefills(ran[0]):
        assert record.status == "ok"
        assert record.left_out == {}
        arms = ("inputs", "plain", "hooks", "known_picture", "known_prompt")
        assert {len(record.find(arm, "total", "wall")) for arm in arms} == {5}
        assert all(set(state.order) == set(arms) for state in record.rounds)
        assert len({tuple(state.order) for state in record.rounds}) > 1, "interleaved"
        assert record.find("vision", "total", "wall") is None


def test_a_known_picture_comes_with_another_salt_and_a_known_prompt_with_the_same(ran: Any) -> None:
    found = sent(ran[1])
    again = [n for n in range(1, len(found)) if found[n][0] == found[n - 1][0]]
    same = [n for n in again if found[n][1] == found[n - 1][1]]
    assert len(again) == 2 * len(same) == 2 * 2 * (5 + 1), "two cells of five rounds and a warm-up"
    new = [request for n, request in enumerate(found) if n not in again]
    assert len({picture for picture, _ in new}) == len({salt for _, salt in new}) == len(new), "all others are new"


def test_the_record_says_how_much_of_a_known_prompt_was_known(ran: Any) -> None:
    for record in prefills(ran[0]):
        (note,) = [note for note in record.environment["notes"] if "known_prompt" in note]
        counted = record.requests[0].counted
        assert note.startswith(f"arm known_prompt: {BLOCK} of {counted.prompt_tokens} prompt tokens come from")
        assert record.environment["server"]["caches"] == "on"
    others = [record for record in ran[0].values() if record.cell.kind == "generation"]
    assert others
    assert not any("known_prompt" in note for record in others for note in record.environment.get("notes", ()))


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ({"pictures": False}, "the server made the picture anew that it was to know (vllm:mm_cache_hits_total"),
        ({"prompts": False}, "no prompt token came from the server's cache, though it had the same request just"),
        ({"salts": False}, "16 of {} prompt tokens came from the server's cache"),
    ],
    ids=["pictures", "prompts", "salts"],
)
def test_a_server_that_does_not_keep_what_it_should_fails_its_cells(
    loaded: LoadedModel, fault: dict[str, bool], sentence: str, tmp_path: Path
) -> None:
    with Keeping(loaded, **fault).server as server, pytest.raises(SessionFailed, match="2 of 2 cells") as failed:
        run_served(served_study(server.url, endpoint={"caches": True}, experiments=PREFILLS), tmp_path)
    start, _, end = sentence.partition("{}")
    assert all(start in reason and end in reason for reason in failed.value.summary.failed), failed.value.summary


def test_without_caches_nothing_is_asked_twice_and_a_salt_keeps_it_from_those_of_the_server(
    loaded: LoadedModel, tmp_path: Path
) -> None:
    with Keeping(loaded).server as server:
        found = run_served(served_study(server.url, experiments=PREFILLS), tmp_path)
        pictures, salts = zip(*sent(server.requests), strict=True)
    assert len(set(pictures)) == len(set(salts)) == len(pictures)
    assert all(set(record.left_out) == {"vision"} for record in found.values())


def test_caches_without_a_salt_are_refused(loaded: LoadedModel) -> None:
    for engine in ("llama.cpp", "transformers"):
        with pytest.raises(
            ValueError, match=rf"caches: true is given, and {engine} takes no cache_salt .* sglang, vllm"
        ):
            Subject(**{**NATIVE, "endpoint": {"engine": engine, "caches": True}})
    with FakeServer(counting(loaded)) as server:
        subject = served_study(server.url, endpoint={"caches": True}).subjects["served"]
        with pytest.raises(UserError, match="a server that does not say what it is takes no cache_salt"):
            load_runner(loading(subject, device="cpu"))


def test_a_server_that_does_not_say_when_it_knew_a_picture_is_measured_without_subtraction(loaded: LoadedModel) -> None:
    """As SGLang is: it counts tokens of prompts and no pictures."""
    paths = {"/get_server_info": Script([b'{"version": "0.5.23"}'], content_type="application/json", whole=True)}
    with FakeServer(counting(loaded), paths=paths) as server:
        subject = served_study(server.url, endpoint={"caches": True, "model": MODEL}).subjects["served"]
        runner = load_runner(loading(subject, device="cpu"))
        assert not isinstance(runner, RunsKnown)
        assert runner.about["engine"] == "sglang"
        assert any("does not say when it knew a picture" in note for note in runner.notes)
        runner.close()
