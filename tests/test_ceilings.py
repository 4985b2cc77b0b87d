"""Ceilings are rates of known work on the device's own clock, and stay with their device."""

from __future__ import annotations

from pathlib import Path

import pytest

import vlmeter.measure.ceilings
from tests.support.fakes import FakeClock
from vlmeter.backends.clock import make_clock
from vlmeter.backends.device import Device
from vlmeter.common.errors import UserError
from vlmeter.measure.ceilings import (
    MAX_SAMPLES,
    MIN_SAMPLES,
    alike,
    duration_ms,
    measure_ceilings,
    measure_device,
    repeat,
)
from vlmeter.measure.devices import resolve_device
from vlmeter.records.ceilings import Ceilings, ceiling_of, read_ceilings, write_ceilings
from vlmeter.study.subject import Subject

from .support.roofline import H200

NANO = Subject(family="molmo", preset="nano", dtype="float32", device="cpu", cpu_threads=1)


def test_repeating_stops_when_the_time_is_up() -> None:
    clock = FakeClock()
    timings = repeat(clock, lambda: clock.work(device_ms=100.0), seconds=1.0)
    assert len(timings) == 10
    assert [timing.device_ms for timing in timings] == pytest.approx([100.0] * 10)


def test_slow_work_is_repeated_often_enough_for_an_interval() -> None:
    clock = FakeClock()
    assert len(repeat(clock, lambda: clock.work(device_ms=5000.0), seconds=1.0)) == MIN_SAMPLES


def test_fast_work_is_repeated_so_often_and_no_more() -> None:
    clock = FakeClock()
    assert len(repeat(clock, lambda: clock.work(device_ms=0.1), seconds=1.0)) == MAX_SAMPLES


def test_the_first_runs_are_not_timed() -> None:
    clock = FakeClock()
    durations = iter([500.0, 300.0] + [10.0] * MAX_SAMPLES)
    timings = repeat(clock, lambda: clock.work(device_ms=next(durations)), seconds=1.0)
    assert {round(timing.device_ms, 6) for timing in timings} == {10.0}


def test_a_trial_is_timed_after_a_run_that_is_not() -> None:
    clock = FakeClock()
    durations = iter([500.0, 7.0])
    assert duration_ms(clock, lambda: clock.work(device_ms=next(durations))) == pytest.approx(7.0)


def test_a_ceiling_is_a_median_with_its_interval() -> None:
    ceiling = ceiling_of([9.0, 10.0, 11.0, 10.0, 10.0, 30.0, 10.0])
    assert ceiling.value == 10.0
    assert ceiling.low <= 10.0 <= ceiling.high < 30.0
    assert len(ceiling.samples) == 7


@pytest.fixture(scope="module")
def measured() -> Ceilings:
    return measure_ceilings(resolve_device("cpu"), dtype="float32", clock=make_clock("cpu"), seconds_per_ceiling=0.05)


def test_every_ceiling_of_a_cpu_is_found(measured: Ceilings) -> None:
    for ceiling in (measured.copy_bytes_per_s, measured.matrix_flops_per_s, measured.launch_ms):
        assert 0 < ceiling.low <= ceiling.value <= ceiling.high
        assert len(ceiling.samples) >= MIN_SAMPLES


def test_ceilings_say_what_they_belong_to(measured: Ceilings) -> None:
    device = resolve_device("cpu")
    assert (measured.device_identity, measured.dtype) == (device.identity, "float32")
    assert measured.torch_threads >= 1
    assert {"torch", "python"} <= set(measured.versions)


def test_a_small_device_is_given_small_buffers() -> None:
    crowded = Device(name="cpu", model="m", uuid=None, driver=None, memory_bytes=1 << 30, free_bytes=64 << 20)
    found = measure_ceilings(crowded, dtype="float32", clock=make_clock("cpu"), seconds_per_ceiling=0.01)
    assert 3 * found.matrix_side**2 * 4 <= crowded.free_bytes // 4


def test_rates_are_work_over_device_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that says ten milliseconds for everything, a rate is its work times a hundred."""

    class SteadyClock(FakeClock):
        def elapsed_ms(self, start: float, end: float) -> float:
            return 10.0

    monkeypatch.setattr(SteadyClock, "synchronize", lambda self: self.host_work(10.0))
    monkeypatch.setattr(vlmeter.measure.ceilings, "COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(vlmeter.measure.ceilings, "MATRIX_MS", {"cpu": 10.0})
    found = measure_ceilings(resolve_device("cpu"), dtype="float32", clock=SteadyClock(), seconds_per_ceiling=0.1)
    assert found.copy_bytes_per_s.value == pytest.approx(100 * 2 * (1 << 20))
    assert found.matrix_side == 256
    assert found.matrix_flops_per_s.value == pytest.approx(100 * 2 * 256**3)


# --------------------------------------------------------------------------------------------------------------- file


def test_ceilings_survive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "ceilings.json"
    write_ceilings(path, H200)
    assert read_ceilings(path) == H200


@pytest.mark.parametrize(
    "content", ["", "[]", '{"ceilings_version": 1}', '{"ceilings_version": 9}', "{}", "[" * 100_000]
)
def test_a_file_that_holds_no_ceilings_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "ceilings.json"
    path.write_text(content)
    with pytest.raises(UserError, match=r"ceilings\.json"):
        read_ceilings(path)


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_ceilings(tmp_path / "ceilings.json")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(tmp_path / "locks"))
    monkeypatch.setattr(vlmeter.measure.ceilings, "COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(vlmeter.measure.ceilings, "MAX_MATRIX_SIDE", {"cpu": 256})
    monkeypatch.setattr(vlmeter.measure.ceilings, "MAX_SAMPLES", MIN_SAMPLES)


@pytest.mark.usefixtures("_quick")
def test_a_device_is_measured_once(tmp_path: Path) -> None:
    path = tmp_path / "ceilings.json"
    first = measure_device(NANO, path)
    assert measure_device(NANO, path) == first
    assert read_ceilings(path) == first


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    "change", [{"device_identity": "another device"}, {"dtype": "bfloat16"}, {"torch_threads": 99}, {"versions": {}}]
)
def test_a_device_is_measured_again_when_something_else_is_there(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "ceilings.json"
    old = measure_device(NANO, path).model_copy(update=change)
    write_ceilings(path, old)
    new = measure_device(NANO, path)
    assert new.device_identity == resolve_device("cpu").identity
    assert new.model_dump(include={*change}) != old.model_dump(include={*change})


@pytest.mark.usefixtures("_quick")
def test_a_damaged_file_is_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "ceilings.json"
    path.write_text("not json")
    said: list[str] = []
    found = measure_device(NANO, path, tell=said.append)
    assert read_ceilings(path) == found
    assert "holds no ceilings" in said[0]


def test_subjects_that_use_a_device_in_the_same_way_share_its_ceilings() -> None:
    other = NANO.model_copy(update={"dtype": "bfloat16"})
    slim = NANO.model_copy(update={"cpu_threads": 2})
    far = NANO.model_copy(update={"device": "cuda:1"})
    subjects = {"a": NANO, "b": other, "c": NANO.model_copy(update={"attention": "eager"}), "d": slim, "e": far}
    assert sorted(alike(subjects).values()) == [["a", "c"], ["b"], ["d"], ["e"]]
    assert list(alike({"d": slim, "e": far})) == ["cpu-float32-2", "cuda1-float32-1"]
