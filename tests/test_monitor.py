"""What disturbs a measurement is seen, whatever the device can and cannot tell."""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from typing import Any

import psutil
import pytest

from vlmeter.measure.monitors import (
    POWER_CAP,
    THROTTLE_REASONS,
    HostMonitor,
    NvmlMonitor,
    QuietMonitor,
    Reading,
    SeveralMonitor,
    make_monitor,
)

from .support.nvml import REASONS, FakeGpu, fake_nvml, install

Times = namedtuple("Times", "user system idle iowait steal guest guest_nice", defaults=(0.0,) * 4)


class StillHost:
    """A host on which nothing happens."""

    def read(self) -> Reading:
        return Reading(readings={"cpu_load_fraction": 0.01, "cpu_steal_fraction": 0.0})


def watch(monkeypatch: pytest.MonkeyPatch, gpu: FakeGpu) -> NvmlMonitor:
    install(monkeypatch, fake_nvml(FakeGpu(uuid="GPU-other"), gpu))
    return NvmlMonitor(gpu.uuid, host=StillHost())  # type: ignore[arg-type]


def test_a_quiet_device_disturbs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = watch(monkeypatch, FakeGpu()).read()
    assert reading.disturbances == ()
    told = {"sm_clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_c": 35, "power_w": 85.0}
    assert reading.readings == {**told, "cpu_load_fraction": 0.01, "cpu_steal_fraction": 0.0}


@pytest.mark.parametrize("reason", THROTTLE_REASONS)
def test_every_throttle_reason_is_named(monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    reading = watch(monkeypatch, FakeGpu(throttle_reasons=REASONS[reason])).read()
    assert reading.disturbances == (THROTTLE_REASONS[reason],)


def test_several_throttle_reasons_are_all_named(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = watch(monkeypatch, FakeGpu(throttle_reasons=0x8 | 0x40)).read()
    assert set(reading.disturbances) == {"hardware slowdown", "hardware thermal slowdown"}


def test_a_power_cap_that_costs_little_clock_is_a_device_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    capped = FakeGpu(throttle_reasons=REASONS[POWER_CAP], sm_clock_mhz=1950, max_sm_clock_mhz=1980)
    assert watch(monkeypatch, capped).read().disturbances == ()


def test_a_power_cap_that_takes_clock_away_is_a_disturbance(monkeypatch: pytest.MonkeyPatch) -> None:
    capped = FakeGpu(throttle_reasons=REASONS[POWER_CAP], sm_clock_mhz=1500, max_sm_clock_mhz=1980)
    assert watch(monkeypatch, capped).read().disturbances == ("power cap",)


def test_idling_is_no_disturbance(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = REASONS["nvmlClocksThrottleReasonGpuIdle"]
    assert watch(monkeypatch, FakeGpu(throttle_reasons=idle)).read().disturbances == ()


def test_this_process_is_not_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch(monkeypatch, FakeGpu(compute_pids=(os.getpid(),))).read().disturbances == ()


def test_another_process_on_the_device_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    reading = watch(monkeypatch, FakeGpu(compute_pids=(os.getpid(), 999_999))).read()
    assert reading.disturbances == ("other processes on the device",)


def test_in_a_container_one_unknown_process_is_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch(monkeypatch, FakeGpu(compute_pids=(999_999,))).read().disturbances == ()
    reading = watch(monkeypatch, FakeGpu(compute_pids=(999_998, 999_999))).read()
    assert reading.disturbances == ("other processes on the device",)


def test_what_a_device_does_not_tell_is_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = FakeGpu(
        sm_clock_mhz=None,
        memory_clock_mhz=None,
        temperature_c=None,
        power_mw=None,
        energy_mj=None,
        throttle_reasons=None,
        compute_pids=None,
    )
    monitor = watch(monkeypatch, silent)
    assert monitor.read() == Reading(readings={"cpu_load_fraction": 0.01, "cpu_steal_fraction": 0.0})
    assert monitor.energy_j() is None


def test_energy_is_the_counter_in_joules(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu(energy_mj=5_000)
    monitor = watch(monkeypatch, gpu)
    assert monitor.energy_j() == 5.0
    gpu.energy_mj = 7_500
    assert monitor.energy_j() == 7.5


def test_energy_costs_one_question(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = FakeGpu()
    watch(monkeypatch, gpu).energy_j()
    assert gpu.asked == ["TotalEnergyConsumption"]


def test_everything_that_is_asked_exists_in_the_nvml_that_is_installed() -> None:
    import pynvml

    for name in (
        "nvmlInit",
        "nvmlSystemGetDriverVersion",
        "nvmlDeviceGetHandleByUUID",
        "nvmlDeviceGetCurrentClocksThrottleReasons",
        "nvmlDeviceGetComputeRunningProcesses",
        "nvmlDeviceGetPowerUsage",
        "nvmlDeviceGetClockInfo",
        "nvmlDeviceGetTemperature",
        "nvmlDeviceGetTotalEnergyConsumption",
        "NVML_CLOCK_SM",
        "NVML_CLOCK_MEM",
        "NVML_TEMPERATURE_GPU",
        *THROTTLE_REASONS,
    ):
        assert hasattr(pynvml, name), name
    assert {name: getattr(pynvml, name) for name in REASONS} == REASONS


# ------------------------------------------------------------------------------------------------------ which monitor


def test_a_gpu_is_watched_through_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_nvml(FakeGpu(uuid="GPU-1")))
    assert isinstance(make_monitor(device="cuda:0", uuids=["GPU-1"]), NvmlMonitor)


def test_cards_that_share_a_model_are_watched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    hot = FakeGpu(uuid="GPU-2", power_mw=300_000, throttle_reasons=REASONS["nvmlClocksThrottleReasonHwSlowdown"])
    install(monkeypatch, fake_nvml(FakeGpu(uuid="GPU-1"), hot))
    monitor = make_monitor(device="cuda:0", uuids=["GPU-1", "GPU-2"])
    one, two = (make_monitor(device="cuda:0", uuids=[uuid]) for uuid in ("GPU-1", "GPU-2"))
    assert isinstance(monitor, SeveralMonitor)
    hosts = [each.host for each in monitor.monitors if isinstance(each, NvmlMonitor)]
    assert [type(host) for host in hosts] == [HostMonitor, QuietMonitor], "one look at the host is enough"
    reading = monitor.read()
    powers = [each.read().readings["power_w"] for each in (one, two)]
    assert reading.readings["power_w"] == pytest.approx(sum(powers))
    assert "hardware slowdown" in reading.disturbances
    joules = [each.energy_j() or 0.0 for each in (one, two)]
    assert monitor.energy_j() == pytest.approx(sum(joules))


def test_the_slowest_clock_and_the_highest_temperature_stand_for_several_cards() -> None:
    class Card(QuietMonitor):
        def __init__(self, reading: Reading, joules: float | None) -> None:
            self.reading, self.joules = reading, joules

        def read(self) -> Reading:
            return self.reading

        def energy_j(self) -> float | None:
            return self.joules

    cold = {"sm_clock_mhz": 1980, "temperature_c": 40, "power_w": 300, "cpu_load_fraction": 0.1}
    hot = {"sm_clock_mhz": 1500, "temperature_c": 60, "cpu_load_fraction": 0.2}
    first, second = Reading(readings=cold, disturbances=("a", "b")), Reading(readings=hot, disturbances=("b", "c"))
    several = SeveralMonitor([Card(first, 5.0), Card(second, None)])
    told = {"sm_clock_mhz": 1500, "temperature_c": 60, "cpu_load_fraction": 0.1}
    assert several.read() == Reading(readings=told, disturbances=("a", "b", "c")), (
        "the power of one card is not the model's"
    )
    assert several.energy_j() is None, "one card's energy is not the model's"


def test_a_cpu_is_watched_without_nvml() -> None:
    assert isinstance(make_monitor(device="cpu", uuids=[None]), HostMonitor)


def test_an_absent_nvml_leaves_the_host_and_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert isinstance(make_monitor(device="cuda:0", uuids=["GPU-1"]), HostMonitor)
    assert "cannot be read" in caplog.text


def test_a_device_that_nvml_does_not_know_leaves_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_nvml(FakeGpu(uuid="GPU-1")))
    assert isinstance(make_monitor(device="cuda:0", uuids=["GPU-2"]), HostMonitor)


def test_a_quiet_monitor_sees_nothing() -> None:
    monitor = QuietMonitor()
    assert monitor.read() == Reading()
    assert monitor.energy_j() is None


# --------------------------------------------------------------------------------------------------------------- host


class Processors:
    """Processor times that a test turns by hand: those of all processes, and those of this one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.all, self.own_s = Times(0.0, 0.0, 0.0), 0.0
        monkeypatch.setattr(psutil, "cpu_times", lambda: self.all)
        monkeypatch.setattr(os, "times", lambda: os.times_result((self.own_s, 0.0, 0.0, 0.0, 0.0)))

    def spend(self, *, own_s: float = 0.0, **seconds: float) -> None:
        times: dict[str, Any] = self.all._asdict()
        for name, value in seconds.items():
            times[name] += value
        times["user"] += own_s
        self.all, self.own_s = Times(**times), self.own_s + own_s


def test_the_work_of_this_process_is_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = Processors(monkeypatch)
    monitor = HostMonitor()
    processors.spend(own_s=2.0, idle=2.0)
    reading = monitor.read()
    assert reading.readings["cpu_load_fraction"] == pytest.approx(0.0)
    assert reading.disturbances == ()


def test_the_work_of_others_is_load(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = Processors(monkeypatch)
    monitor = HostMonitor()
    processors.spend(own_s=1.0, user=2.0, idle=1.0)
    reading = monitor.read()
    assert reading.readings["cpu_load_fraction"] == pytest.approx(0.5)
    assert reading.disturbances == ("other processes on the host",)


def test_waiting_for_a_disk_is_no_load(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = Processors(monkeypatch)
    monitor = HostMonitor()
    processors.spend(own_s=1.0, iowait=3.0)
    assert monitor.read().disturbances == ()


def test_a_virtual_machine_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = Processors(monkeypatch)
    monitor = HostMonitor()
    processors.spend(user=1.0, guest=1.0, idle=3.0)  # Linux counts a guest's second under `user` as well
    assert monitor.read().readings["cpu_load_fraction"] == pytest.approx(0.25)


def test_stolen_time_is_told_from_load(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = Processors(monkeypatch)
    monitor = HostMonitor()
    processors.spend(own_s=1.0, idle=2.6, steal=0.4)
    reading = monitor.read()
    assert reading.readings["cpu_steal_fraction"] == pytest.approx(0.1)
    assert reading.readings["cpu_load_fraction"] == pytest.approx(0.0)
    assert reading.disturbances == ("processor time stolen by the hypervisor",)


def test_too_short_a_time_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = Processors(monkeypatch)
    monitor = HostMonitor()
    processors.spend(user=0.01)
    assert monitor.read() == Reading()


def test_the_host_of_a_gpu_is_watched_too(monkeypatch: pytest.MonkeyPatch) -> None:
    processors = Processors(monkeypatch)
    install(monkeypatch, fake_nvml(FakeGpu()))
    monitor = NvmlMonitor("GPU-fake")
    processors.spend(user=2.0, idle=2.0)
    assert monitor.read().disturbances == ("other processes on the host",)
