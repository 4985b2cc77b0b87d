"""The device: found or refused in words, large enough or refused before loading, and never shared by two sessions."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vlmeter.measure.devices
import vlmeter.measure.monitors
from benchmarks.chaos import make_dummies
from tests.support.studies import study_of
from vlmeter.backends.device import Device
from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.measure.devices import (
    any_device,
    check_memory,
    device_lock,
    devices_for,
    needed_bytes,
    refreshed,
    resolve_device,
    session_device,
)
from vlmeter.measure.monitors import QuietMonitor
from vlmeter.measure.subject import measure_subject
from vlmeter.records.ceilings import one_card
from vlmeter.records.record import read_record
from vlmeter.study.layout import Layout
from vlmeter.study.plan import build_plan
from vlmeter.study.subject import Subject

ROOT = Path(__file__).parent.parent
GIB = 1 << 30

CARD = Device(
    name="cuda:0", model="Example 9000", uuid="GPU-1", driver="570.1", memory_bytes=24 * GIB, free_bytes=20 * GIB
)
OTHER_CARD = Device(
    name="cuda:1", model="Example 9000", uuid="GPU-2", driver="570.1", memory_bytes=24 * GIB, free_bytes=20 * GIB
)

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens on a machine with no GPU")


# --- which device -----------------------------------------------------------------------------------


@without_gpu
@pytest.mark.parametrize("wish", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_where_there_is_none_is_refused_with_what_is_legal_here(wish: str) -> None:
    with pytest.raises(UserError) as caught:
        resolve_device(wish)
    sentence = str(caught.value)
    assert sentence.startswith(f"device: {wish} is asked for, but PyTorch {torch.__version__} sees no CUDA device")
    assert sentence.endswith("legal here: auto, cpu")


@without_gpu
def test_auto_is_the_processor_where_there_is_no_gpu() -> None:
    assert resolve_device("auto").name == resolve_device("cpu").name == "cpu"


def test_a_processor_is_known_by_its_model_and_the_cores_that_may_be_used() -> None:
    device = resolve_device("cpu")
    assert f"({len(os.sched_getaffinity(0))} logical cores)" in device.identity
    assert 0 < device.free_bytes <= device.memory_bytes


class FakeCuda:
    """A machine with so many cards."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cards: int) -> None:
        from types import SimpleNamespace

        properties = SimpleNamespace(name="Example 9000", uuid="1234", total_memory=24 * GIB)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (20 * GIB, 24 * GIB))


@pytest.mark.parametrize(
    ("wish", "name"), [("auto", "cuda:0"), ("cuda", "cuda:0"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_a_wish_is_turned_into_one_device(wish: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, cards=2)
    device = resolve_device(wish)
    assert device.name == name
    if name != "cpu":
        assert (device.model, device.uuid, device.memory_bytes) == ("Example 9000", "GPU-1234", 24 * GIB)


def test_a_card_that_is_not_there_is_refused_with_those_that_are(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, cards=2)
    with pytest.raises(UserError, match="device: cuda:2 is not there; legal here: auto, cpu, cuda, cuda:0, cuda:1"):
        resolve_device("cuda:2")


def gpu_subject(device: str, **more: str) -> Subject:
    return Subject.model_validate({"family": "molmo", "preset": "nano", "device": device, **more})


def test_a_subject_may_run_on_any_of_several_equal_cards_unless_it_names_one(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, cards=3)
    assert [device.name for device in devices_for(gpu_subject("auto"))] == ["cuda:0", "cuda:1", "cuda:2"]
    assert [device.name for device in devices_for(gpu_subject("cuda:1"))] == ["cuda:1"]
    assert [device.name for device in devices_for(gpu_subject("cpu"))] == ["cpu"]


def test_a_card_of_another_model_does_not_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its records would be refused beside those of the first."""
    from types import SimpleNamespace

    FakeCuda(monkeypatch, cards=2)
    cards = [SimpleNamespace(name=name, uuid=name, total_memory=24 * GIB) for name in ("Example 9000", "Display 100")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    assert [device.name for device in devices_for(gpu_subject("cuda"))] == ["cuda:0"]


def test_looking_for_cards_puts_nothing_on_those_that_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking for free memory makes a context, which takes memory from whoever measures there."""
    FakeCuda(monkeypatch, cards=3)
    asked: list[int] = []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (asked.append(index), (1, 2))[1])
    devices_for(gpu_subject("cuda"))
    assert asked == [0]


def spread_subject() -> Subject:
    return Subject(family="internvl", weights="acme/spoon", device="cuda", device_map="auto")


def test_a_model_that_is_spread_over_all_cards_has_them_as_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, cards=3)
    (device,) = devices_for(spread_subject())
    assert [card.name for card in device.cards] == ["cuda:0", "cuda:1", "cuda:2"]
    assert device.model == "3 x Example 9000"
    assert one_card(device.model) == one_card("Example 9000") == "Example 9000"
    again = refreshed(device, spread_subject())
    assert (again.model, len(again.cards)) == ("3 x Example 9000", 3)
    assert (again.free_bytes, again.memory_bytes) == (60 * GIB, 72 * GIB)


def test_one_card_to_spread_over_is_that_card(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, cards=1)
    (device,) = devices_for(spread_subject())
    assert (device.model, device.cards) == ("Example 9000", (device,))


def test_a_server_holds_as_many_cards_as_its_options_spread_it_over(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeCuda(monkeypatch, cards=3)

    def served(number: int) -> Subject:
        endpoint = {"engine": "vllm", "options": ["--tensor-parallel-size", str(number)]}
        return Subject(family="internvl", preset="8b", device="cuda", backend="endpoint", endpoint=endpoint)

    (device,) = devices_for(served(2))
    assert ([card.name for card in device.cards], device.model) == (["cuda:0", "cuda:1"], "2 x Example 9000")
    assert len(devices_for(served(1))) == 3, "any of the cards will do"
    with pytest.raises(UserError, match="options: 4 cards are asked for, and there are 3 x Example 9000 here"):
        devices_for(served(4))


def test_a_model_is_not_spread_over_cards_that_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    FakeCuda(monkeypatch, cards=2)
    cards = [SimpleNamespace(name=name, uuid=name, total_memory=24 * GIB) for name in ("Example 9000", "Display 100")]
    monkeypatch.setattr(torch.cuda, "get_device_properties", cards.__getitem__)
    with pytest.raises(UserError, match=r"over a Example 9000 and a Display 100, .* set CUDA_VISIBLE_DEVICES"):
        devices_for(spread_subject())


def test_fake_devices_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMETER_FAKE_DEVICES", "2")
    devices = devices_for(gpu_subject("auto", backend="fake"))
    assert [device.name for device in devices] == ["fake:0", "fake:1"]
    assert {device.identity for device in devices} == {"fake device"}
    assert [device.name for device in devices_for(gpu_subject("cuda:1", backend="fake"))] == ["fake:1"]
    assert [device.name for device in devices_for(gpu_subject("cpu", backend="fake"))] == ["fake:cpu"]
    with pytest.raises(UserError, match="device: cuda:2 is not there; VLMETER_FAKE_DEVICES says that 2 fake devices"):
        devices_for(gpu_subject("cuda:2", backend="fake"))


def test_two_cards_of_one_model_and_driver_are_the_same_to_a_record() -> None:
    assert CARD.identity == OTHER_CARD.identity == "Example 9000, driver 570.1"


# --- memory -----------------------------------------------------------------------------------------


def cells_of(subject: dict[str, str]) -> tuple[Subject, tuple[Cell, ...]]:
    study = study_of(subjects={"big": subject})
    return study.subjects["big"], build_plan(study)


def test_a_model_that_cannot_fit_is_refused_with_both_sizes_before_it_is_made() -> None:
    subject, cells = cells_of({"family": "molmo", "preset": "72b", "dtype": "bfloat16"})
    with pytest.raises(UserError) as caught:
        check_memory("big", subject, cells, CARD)
    sentence = str(caught.value)
    assert sentence.startswith("subjects.big: 72b in bfloat16 needs about 144 GiB of memory, and cuda:0 (Example 9000)")
    assert sentence.endswith("has 20.0 GiB free of 24.0 GiB; choose a smaller preset or dtype, or another device")


def test_a_model_that_fits_is_let_through() -> None:
    subject, cells = cells_of({"family": "molmo", "preset": "7b-d", "dtype": "bfloat16"})
    check_memory("big", subject, cells, CARD)


def test_what_is_needed_is_weights_cache_and_a_margin() -> None:
    subject, cells = cells_of({"family": "molmo", "preset": "7b-d", "dtype": "bfloat16"})
    weights = 2 * 8_021_025_280
    longest = max((cell.expected.prompt_tokens or 2048) + cell.output_tokens for cell in cells)
    assert needed_bytes(subject, cells) == weights + longest * 57_344 + weights // 20 + (256 << 20)


def test_float32_needs_twice_the_weights() -> None:
    half, cells = cells_of({"family": "molmo", "preset": "7b-d", "dtype": "bfloat16"})
    whole, _ = cells_of({"family": "molmo", "preset": "7b-d", "dtype": "float32"})
    needed_half, needed_whole = needed_bytes(half, cells), needed_bytes(whole, cells)
    assert needed_half is not None
    assert needed_whole is not None
    assert 1.9 < needed_whole / needed_half < 2.0


def test_what_a_hub_checkpoint_needs_is_not_known_before_it_is_read() -> None:
    subject, cells = cells_of({"family": "molmo", "weights": "allenai/Molmo-7B-D-0924"})
    assert needed_bytes(subject, cells) is None
    check_memory("big", subject, cells, CARD)


# --- the lock ---------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of locks of this test's own."""
    folder = tmp_path / "locks"
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(folder))
    return folder


HOLD = """
import sys
from vlmeter.backends.device import Device
from vlmeter.measure.devices import device_lock
uuid, purpose = sys.argv[1:]
device = Device(name="cuda:0", model="m", uuid=uuid, driver=None, memory_bytes=1, free_bytes=1)
def tell(message):
    print(message, flush=True)
with device_lock(device, purpose=purpose, tell=tell, poll_s=0.01):
    print("held", flush=True)
    sys.stdin.readline()
print("released", flush=True)
"""


class StopWaiting(Exception):
    """Raised instead of waiting for a lock."""


class Session:
    """Another process that wants the lock of a device, and holds it until it is told to end."""

    def __init__(self, uuid: str, purpose: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", HOLD, uuid, purpose],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def says(self) -> str:
        """Wait for its next line; empty once it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=60)


@pytest.fixture
def session() -> Iterator[Callable[..., Session]]:
    """Starts processes that want a lock, and sees that none outlives the test."""
    started: list[Session] = []

    def start(purpose: str, uuid: str = "GPU-1") -> Session:
        started.append(Session(uuid, purpose))
        return started[-1]

    yield start
    for each in started:
        each.kill()
        for stream in (each.process.stdin, each.process.stdout):
            if stream is not None:
                stream.close()


def test_a_second_session_waits_and_is_told_for_whom(session: Callable[..., Session]) -> None:
    first = session("study one, subject a")
    assert first.says() == "held"
    second = session("study two, subject b")
    waiting = second.says()
    assert waiting.startswith(f"waiting for cuda:0, which is held by process {first.process.pid} of ")
    assert waiting.endswith("(study one, subject a)")
    first.end()
    assert first.says() == "released"
    assert second.says() == "held", "one message, however long it waits"


def test_a_lock_dies_with_its_holder_however_it_dies(session: Callable[..., Session]) -> None:
    first = session("study one")
    assert first.says() == "held"
    second = session("study two")
    assert second.says().startswith("waiting for cuda:0")
    first.kill()
    assert second.says() == "held"
    second.kill()
    told: list[str] = []
    with device_lock(CARD, purpose="study three", tell=told.append):
        assert told == [], "nothing stale is left to wait for"


def test_two_devices_have_two_locks(session: Callable[..., Session]) -> None:
    assert session("study one", "GPU-1").says() == "held"
    assert session("study two", "GPU-2").says() == "held"


def test_a_device_is_told_by_its_uuid_whatever_number_it_has_here(session: Callable[..., Session]) -> None:
    """CUDA_VISIBLE_DEVICES gives the same card other numbers in other processes."""
    assert session("study one", "GPU-2").says() == "held"
    told: list[str] = []

    def tell(message: str) -> None:
        told.append(message)
        raise StopWaiting

    with pytest.raises(StopWaiting), device_lock(OTHER_CARD, purpose="study two", tell=tell):
        pass
    assert told[0].startswith("waiting for cuda:1, which is held by process")


def interrupted(told: list[str]) -> Callable[[str], None]:
    """A listener that gives up waiting."""

    def tell(message: str) -> None:
        told.append(message)
        raise InterruptedError

    return tell


def test_the_first_free_of_several_devices_is_taken(session: Callable[..., Session]) -> None:
    assert session("study one", "GPU-1").says() == "held"
    with any_device((CARD, OTHER_CARD), purpose="study two", tell=print) as device:
        assert device == OTHER_CARD
        told: list[str] = []
        with (
            pytest.raises(InterruptedError),
            any_device((CARD, OTHER_CARD), purpose="study three", tell=interrupted(told)),
        ):
            pass
    assert re.fullmatch(
        r"waiting for cuda:0 or cuda:1, which is held by .*\(study one\) and by .*\(study two\)", told[0]
    )


def test_sessions_on_two_cards_run_beside_each_other_and_none_on_the_processor_beside_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host = Device(name="cpu", model="m", uuid=None, driver=None, memory_bytes=1, free_bytes=1)
    told: list[str] = []
    with (
        session_device((CARD,), purpose="study one", tell=print),
        session_device((OTHER_CARD,), purpose="study two", tell=print),
    ):
        with pytest.raises(InterruptedError), session_device((host,), purpose="three", tell=interrupted(told)):
            pass
        assert told[0].startswith("waiting for this machine, which is held by process")
        monkeypatch.setenv("VLMETER_SHARE_HOST", "1")
        with session_device((host,), purpose="asked for", tell=print) as device:
            assert device == host
    monkeypatch.delenv("VLMETER_SHARE_HOST")
    with (
        session_device((host,), purpose="study three", tell=print),
        pytest.raises(InterruptedError),
        session_device((CARD,), purpose="study one", tell=interrupted(told)),
    ):
        pass
    assert "(study three)" in told[1]


def test_a_session_on_several_cards_holds_each_of_them(session: Callable[..., Session]) -> None:
    both = replace(CARD, model="2 x Example 9000", beside=(OTHER_CARD,))
    told: list[str] = []
    with session_device((both,), purpose="study one", tell=print) as device:
        assert device == both
        for card in (CARD, OTHER_CARD):
            with pytest.raises(InterruptedError), session_device((card,), purpose="two", tell=interrupted(told)):
                pass
    assert [line.split(",")[0] for line in told] == ["waiting for cuda:0", "waiting for cuda:1"]
    with session_device((OTHER_CARD,), purpose="study two", tell=print):
        with pytest.raises(InterruptedError), session_device((both,), purpose="one", tell=interrupted(told)):
            pass
        with session_device((CARD,), purpose="the first is free again", tell=print):
            pass


def test_a_session_on_several_cards_watches_and_names_all_of_them(
    locks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = replace(CARD, name="fake:0", model="2 x Example 9000", beside=(replace(OTHER_CARD, name="fake:1"),))
    watched: list[list[str | None]] = []
    monkeypatch.setattr(vlmeter.measure.devices, "devices_for", lambda subject: (both,))
    monkeypatch.setattr(
        vlmeter.measure.monitors,
        "make_monitor",
        lambda device, uuids, beside: (watched.append(uuids), QuietMonitor())[1],
    )
    fake = {"family": "molmo", "preset": "nano", "backend": "fake"}
    study = study_of(subjects={"fake": fake}, experiments={"vision_tokens": {"tilings": ["1x1"]}})
    layout = Layout(study.study, tmp_path)
    make_dummies(study, layout)
    measure_subject(study, "fake", layout, tell=print, progress=print)
    (cell,) = build_plan(study)
    environment = read_record(layout.record(cell)).environment
    assert watched == [["GPU-1", "GPU-2"]]
    assert (environment["device"], environment["device_model"]) == ("fake:0, fake:1", "2 x Example 9000")


def test_a_session_that_fails_gives_the_lock_back() -> None:
    with pytest.raises(RuntimeError), device_lock(CARD, purpose="study one", tell=print):
        raise RuntimeError
    told: list[str] = []
    with device_lock(CARD, purpose="study two", tell=told.append):
        assert told == []


def test_a_holder_that_has_not_written_its_name_yet_is_another_process(
    locks: Path, session: Callable[..., Session]
) -> None:
    assert session("study one").says() == "held"
    (path,) = locks.iterdir()
    for content in ("", "{", "[]", "{}", json.dumps({"pid": 1})):
        path.write_text(content)
        told: list[str] = []

        def tell(message: str, told: list[str] = told) -> None:
            told.append(message)
            raise StopWaiting

        with pytest.raises(StopWaiting), device_lock(CARD, purpose="study two", tell=tell):
            pass
        assert told == ["waiting for cuda:0, which is held by another process"], content


def test_other_users_can_take_the_same_lock(locks: Path) -> None:
    umask = os.umask(0o077)
    try:
        with device_lock(CARD, purpose="study one", tell=print):
            pass
    finally:
        os.umask(umask)
    (path,) = locks.iterdir()
    assert path.stat().st_mode & 0o777 == 0o666
    assert locks.stat().st_mode & 0o7777 == 0o1777


def test_a_lock_that_cannot_be_opened_is_refused_with_the_way_out(locks: Path) -> None:
    locks.write_text("a file where the folder should be")
    with (
        pytest.raises(UserError, match=r"the lock of cuda:0 cannot be opened: .*VLMETER_LOCK_DIR can name another"),
        device_lock(CARD, purpose="study one", tell=print),
    ):
        pass


def test_a_link_in_place_of_a_lock_is_not_followed(locks: Path, tmp_path: Path) -> None:
    """Anybody may write to /tmp, and a lock is written to."""
    with device_lock(CARD, purpose="study one", tell=print):
        pass
    (path,) = locks.iterdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.unlink()
    path.symlink_to(victim)
    with pytest.raises(UserError, match="cannot be opened"), device_lock(CARD, purpose="study two", tell=print):
        pass
    assert victim.read_text() == "precious"
