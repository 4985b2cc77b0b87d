"""A capture that fails costs its busy time and nothing else: the stream and the memory are those of before."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.support.fakes import FakeClock
from vlmeter.backends.base import Prompt
from vlmeter.backends.eager_runner import EagerRunner, end_failed_capture

if TYPE_CHECKING:
    from collections.abc import Iterator

POOL = (0, 7)
MAIN, SIDE = "the stream of before", "the stream of the capture"
PROMPT = Prompt(tensors={}, counts=SimpleNamespace())  # type: ignore[arg-type]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, tuple[int, int]]]:
    """What torch's allocator was told."""
    calls: list[tuple[str, int, tuple[int, int]]] = []
    for name in ("end", "release"):
        attribute = {"end": "_cuda_endAllocateToPool", "release": "_cuda_releasePool"}[name]
        tell = lambda index, pool, name=name: calls.append((name, index, pool))  # noqa: E731
        monkeypatch.setattr(torch._C, attribute, tell, raising=False)
    return calls


def test_a_broken_capture_leaves_its_pool(told: list[Any]) -> None:
    end_failed_capture(POOL, "cuda:1")
    assert told == [("end", 1, POOL), ("release", 1, POOL)]


def test_a_pool_that_its_graph_gives_back_is_not_given_back_twice(
    told: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work failed, the capture ended in good order; giving the pool back twice ends the process."""

    def not_recording(index: int, pool: tuple[int, int]) -> None:
        raise RuntimeError("endAllocatePool: not currently recording to mempool_id")

    monkeypatch.setattr(torch._C, "_cuda_endAllocateToPool", not_recording, raising=False)
    end_failed_capture(POOL, "cuda:0")
    assert told == []


class Cuda:
    """torch.cuda as far as a capture goes: which stream is the current one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, breaks: bool) -> None:
        self.current, self.streams_made, self.breaks = MAIN, 0, breaks
        given = {
            "Stream": self.make_stream,
            "CUDAGraph": lambda: SimpleNamespace(replay=lambda: None, reset=lambda: None),
            "current_stream": lambda device: SimpleNamespace(wait_stream=lambda stream: None, name=self.current),
            "graph": self.graph,
            "graph_pool_handle": lambda: POOL,
            "set_stream": lambda stream: setattr(self, "current", stream.name),
            "stream": lambda stream: nullcontext(),
            "synchronize": lambda device: None,
        }
        for name, value in given.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def make_stream(self, device: str) -> Any:
        self.streams_made += 1
        return SimpleNamespace(wait_stream=lambda stream: None, name=SIDE)

    @contextmanager
    def graph(self, graph: Any, *, pool: tuple[int, int], stream: Any) -> Iterator[None]:
        """As torch's: a capture that cannot be ended does not go back to the stream of before."""
        self.current = stream.name
        yield
        if self.breaks:
            raise RuntimeError("operation failed due to a previous error during capture")
        self.current = MAIN


class Timed(FakeClock):
    """Every mark a millisecond after the one before."""

    def mark(self) -> float:
        self.work(device_ms=1.0)
        return super().mark()


def test_after_a_broken_capture_work_goes_on_where_it_was(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch, breaks=True)
    runner = EagerRunner(loaded=SimpleNamespace(), device="cuda:0", clock=Timed())  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(RuntimeError, match="previous error during capture"):
            runner._replay(lambda prompt: prompt, PROMPT, 3)
        assert cuda.current == MAIN
    assert told == [("end", 0, POOL), ("release", 0, POOL)] * 2
    assert cuda.streams_made == 1, "libraries keep memory for every stream that they have seen"


def test_a_capture_that_works_is_replayed(told: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = Cuda(monkeypatch, breaks=False)
    runner = EagerRunner(loaded=SimpleNamespace(), device="cuda:0", clock=Timed())  # type: ignore[arg-type]
    assert runner._replay(lambda prompt: prompt, PROMPT, 3) == (1.0, 1.0, 1.0)
    assert (cuda.current, told) == (MAIN, [])
