"""What would disturb a measurement is said beforehand, on any machine."""

from __future__ import annotations

import os
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from vlmeter.measure import doctor
from vlmeter.measure.doctor import SEVERITIES, Advice, examine, worst

from .support.nvml import REASONS, FakeGpu, NVMLError, fake_nvml, install

Shares = namedtuple("Shares", "user system idle iowait steal", defaults=(0.0,) * 5)


@pytest.fixture(autouse=True)
def _calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """An idle host with memory to spare and no telling variable, whatever the tests run on."""
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval: Shares(idle=100.0))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 << 30, available=60 << 30))
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    for name in (*doctor.TELLING_VARIABLES, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "container"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", None)


def look(tmp_path: Path, **files: str) -> list[Advice]:
    """Examine a machine whose /proc and /sys are these files (a double underscore stands for a slash)."""
    for name, text in files.items():
        path = tmp_path / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return examine(results=tmp_path / "results", root=tmp_path)


def about(found: list[Advice], topic: str, severity: str | None = None) -> list[str]:
    return [a.finding for a in found if a.topic == topic and severity in (None, a.severity)]


def torch_stub(monkeypatch: pytest.MonkeyPatch, *, cuda: str | None, devices: int) -> None:
    module: Any = ModuleType("torch")
    module.__version__ = "2.13.0"
    module.version = SimpleNamespace(cuda=cuda)
    module.cuda = SimpleNamespace(is_available=lambda: devices > 0, device_count=lambda: devices)
    monkeypatch.setitem(sys.modules, "torch", module)


def look_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *gpus: FakeGpu) -> list[Advice]:
    install(monkeypatch, fake_nvml(*gpus))
    torch_stub(monkeypatch, cuda="13.0", devices=len(gpus))
    return look(tmp_path)


def test_a_calm_machine_without_a_gpu_gives_no_warning(tmp_path: Path) -> None:
    found = look(tmp_path)
    assert worst(found) == "note"
    [finding] = about(found, "GPU")
    assert "`device: auto` is the CPU" in finding


def test_the_real_machine_can_be_examined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    found = examine(results=tmp_path)
    assert found
    assert all(advice.finding and advice.severity in SEVERITIES for advice in found)


def test_the_worst_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "1")
    found = look(tmp_path)
    ranks = [SEVERITIES.index(advice.severity) for advice in found]
    assert ranks == sorted(ranks)
    assert worst(found) == "problem"
    assert worst([]) == "good"


def test_everything_bad_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval: Shares(user=70.0, idle=20.0, steal=10.0))
    gpu = FakeGpu(temperature_c=80, throttle_reasons=0x40, compute_pids=(7, 8), mig=(1, 1), power_limit_mw=300_000)
    found = look_at(monkeypatch, tmp_path, gpu)
    bad = [advice for advice in found if advice.severity in ("problem", "warning")]
    assert len(bad) >= 6
    assert all(advice.action for advice in bad)


# --------------------------------------------------------------------------------------------------------------- GPUs


def test_a_quiet_gpu_gives_no_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_at(monkeypatch, tmp_path, FakeGpu())
    assert worst(found) == "note"
    assert about(found, "GPU 0", "good")[0] == "NVIDIA Fake 100, driver 580.1"
    assert "141 GiB" in about(found, "GPU 0", "good")[1]


def test_names_may_be_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_at(monkeypatch, tmp_path, FakeGpu(name=b"NVIDIA Old"))
    assert about(found, "GPU 0", "good")[0].startswith("NVIDIA Old")


def test_a_driver_without_a_gpu_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [finding] = about(look_at(monkeypatch, tmp_path), "GPU")
    assert "a GPU is not" in finding


def test_an_nvml_that_fails_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = fake_nvml(FakeGpu())

    def fail() -> None:
        raise NVMLError("Driver Not Loaded")

    module.nvmlInit = fail
    install(monkeypatch, module)
    assert "Driver Not Loaded" in about(look(tmp_path), "GPU", "note")[0]


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"throttle_reasons": REASONS["nvmlClocksThrottleReasonHwThermalSlowdown"]}, "hardware thermal slowdown"),
        ({"compute_pids": (4711,)}, "process 4711"),
        ({"graphics_pids": (4712,), "utilisation_percent": 30}, "busy 30 %"),
        ({"utilisation_percent": 30}, "nobody is listed"),
        ({"temperature_c": 75}, "75 °C before anything has begun; it slows down at 87 °C"),
        ({"free_bytes": 20 << 30}, "20.0 GiB of its 141 GiB"),
        ({"mig": (1, 1)}, "MIG"),
        ({"power_limit_mw": 350_000}, "350 W of 700 W"),
    ],
)
def test_a_gpu_that_is_not_itself_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: dict[str, Any], words: str
) -> None:
    [finding] = about(look_at(monkeypatch, tmp_path, FakeGpu(**state)), "GPU 0", "warning")
    assert words in finding


def test_this_process_is_not_foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_at(monkeypatch, tmp_path, FakeGpu(compute_pids=(os.getpid(),)))
    assert not about(found, "GPU 0", "warning")


def test_persistence_and_clocks_are_notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = look_at(monkeypatch, tmp_path, FakeGpu(persistence=0, sm_clock_mhz=345))
    notes = " ".join(about(found, "GPU 0", "note"))
    assert "persistence mode is off" in notes
    assert "345 MHz and may reach 1980 MHz" in notes


def test_a_gpu_that_tells_nothing_is_examined_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent = FakeGpu(
        sm_clock_mhz=None,
        max_sm_clock_mhz=None,
        temperature_c=None,
        throttle_reasons=None,
        compute_pids=None,
        graphics_pids=None,
        utilisation_percent=None,
        free_bytes=None,
        persistence=None,
        mig=None,
        power_limit_mw=None,
        default_power_limit_mw=None,
    )
    assert about(look_at(monkeypatch, tmp_path, silent), "GPU 0") == ["NVIDIA Fake 100, driver 580.1"]


def test_an_nvml_that_lacks_functions_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fake_nvml(FakeGpu())
    for name in ("nvmlDeviceGetMigMode", "nvmlDeviceGetPersistenceMode", "NVML_TEMPERATURE_GPU"):
        delattr(module, name)
    install(monkeypatch, module)
    torch_stub(monkeypatch, cuda="13.0", devices=1)
    assert about(look(tmp_path), "GPU 0", "good")


@pytest.mark.parametrize(
    ("cuda", "devices", "severity", "words"),
    [
        (None, 0, "problem", "built for CPUs only"),
        ("13.0", 0, "problem", "cannot use what NVML sees"),
        ("13.0", 1, "note", "1 of 2 GPUs"),
    ],
)
def test_a_pytorch_that_cannot_use_the_gpu_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, devices: int, severity: str, words: str
) -> None:
    install(monkeypatch, fake_nvml(FakeGpu(uuid="a"), FakeGpu(uuid="b")))
    torch_stub(monkeypatch, cuda=cuda, devices=devices)
    [finding] = about(look(tmp_path), "PyTorch", severity)
    assert words in finding


def test_an_absent_pytorch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, fake_nvml(FakeGpu()))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert about(look(tmp_path), "PyTorch", "problem")


# --------------------------------------------------------------------------------------------------------------- host


def test_load_and_steal_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = Shares(user=30.0, system=5.0, idle=50.0, iowait=5.0, steal=10.0)
    monkeypatch.setattr(psutil, "cpu_times_percent", lambda interval: shares)
    assert about(look(tmp_path), "load", "warning") == [
        "other processes take 35 % of the processors",
        "the hypervisor keeps 10 % of the processor time for others",
    ]


def test_a_governor_that_saves_power_is_warned_of(tmp_path: Path) -> None:
    governor = {"sys__devices__system__cpu__cpu0__cpufreq__scaling_governor": "powersave\n"}
    [finding] = about(look(tmp_path, **governor), "processors", "warning")
    assert "powersave" in finding


def test_a_governor_for_performance_is_fine(tmp_path: Path) -> None:
    governor = {"sys__devices__system__cpu__cpu0__cpufreq__scaling_governor": "performance\n"}
    assert not about(look(tmp_path, **governor), "processors", "warning")


@pytest.mark.parametrize(
    "files",
    [
        {"sys__devices__cpu_core__type": "4", "sys__devices__cpu_atom__type": "10"},
        {
            "sys__devices__system__cpu__cpu0__cpu_capacity": "1024",
            "sys__devices__system__cpu__cpu1__cpu_capacity": "446",
        },
        {
            "sys__devices__system__cpu__cpu0__cpufreq__cpuinfo_max_freq": "5200000",
            "sys__devices__system__cpu__cpu1__cpufreq__cpuinfo_max_freq": "3900000",
        },
    ],
    ids=["intel", "arm", "by clock"],
)
def test_fast_and_slow_cores_are_warned_of(tmp_path: Path, files: dict[str, str]) -> None:
    [finding] = about(look(tmp_path, **files), "processors", "warning")
    assert "fast and slow cores" in finding


def test_favoured_cores_are_no_slow_ones(tmp_path: Path) -> None:
    files = {
        "sys__devices__system__cpu__cpu0__cpufreq__cpuinfo_max_freq": "5200000",
        "sys__devices__system__cpu__cpu1__cpufreq__cpuinfo_max_freq": "5000000",
    }
    assert not about(look(tmp_path, **files), "processors", "warning")


def test_walls_around_this_process_are_noted(tmp_path: Path) -> None:
    found = look(
        tmp_path,
        proc__cpuinfo="flags : fpu hypervisor sse\n",
        sys__class__dmi__id__product_name="KVM\n",
        **{".dockerenv": ""},
    )
    virtual, container = about(found, "isolation", "note")
    assert "virtual machine (KVM)" in virtual
    assert "container" in container


def test_a_quota_is_warned_of(tmp_path: Path) -> None:
    found = look(
        tmp_path,
        **{
            "sys__fs__cgroup__cpu.max": "250000 100000\n",
            "sys__fs__cgroup__cpu.stat": "nr_periods 9\nnr_throttled 3\n",
        },
    )
    [advice] = [a for a in found if a.topic == "isolation"]
    assert advice.severity == "warning"
    assert "2.5 cores" in advice.finding
    assert "3 times" in advice.finding
    assert "cpu_threads: 2" in advice.action


def test_no_quota_is_no_news(tmp_path: Path) -> None:
    assert not about(look(tmp_path, **{"sys__fs__cgroup__cpu.max": "max 100000\n"}), "isolation")


@pytest.mark.parametrize("name", doctor.TELLING_VARIABLES)
def test_variables_that_change_numbers_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    [finding] = about(look(tmp_path), "environment")
    assert finding.startswith(f"{name}=1 ")


def test_a_variable_that_is_switched_off_is_no_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_LAUNCH_BLOCKING", "0")
    assert not about(look(tmp_path), "environment")


def test_threads_set_from_outside_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert "cpu_threads" in about(look(tmp_path), "environment", "note")[0]


def test_scarce_memory_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=64 << 30, available=5 << 30))
    assert about(look(tmp_path), "memory", "warning") == ["5.00 GiB of 64.0 GiB are available"]


def test_a_full_disk_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: SimpleNamespace(free=100 << 20))
    assert "100 MiB" in about(look(tmp_path), "disk", "problem")[0]


def test_a_folder_that_cannot_be_written_to_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda place, mode: False)
    assert "cannot be written" in about(look(tmp_path), "disk", "problem")[0]


def test_the_disk_is_looked_at_before_the_folder_exists(tmp_path: Path) -> None:
    found = examine(results=tmp_path / "not" / "there" / "yet", root=tmp_path)
    assert str(tmp_path) in about(found, "disk", "good")[0]


def test_a_battery_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "sensors_battery", lambda: SimpleNamespace(power_plugged=False), raising=False)
    assert about(look(tmp_path), "power", "warning")
