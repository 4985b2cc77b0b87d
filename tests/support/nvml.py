"""A stand-in for NVML's Python module: a device whose state a test declares."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


class NVMLError(Exception):
    """As in pynvml: the base of all its errors."""


class NVMLErrorNotSupported(NVMLError):
    """What a device says to a question that it does not understand."""


@dataclass
class FakeGpu:
    """The state of one device; None for what it does not tell."""

    uuid: str = "GPU-fake"
    name: Any = "NVIDIA Fake 100"
    sm_clock_mhz: int | None = 1980
    max_sm_clock_mhz: int | None = 1980
    memory_clock_mhz: int | None = 2619
    temperature_c: int | None = 35
    power_mw: int | None = 85_000
    energy_mj: int | None = 1_000_000
    throttle_reasons: int | None = 0
    compute_pids: tuple[int, ...] | None = ()
    graphics_pids: tuple[int, ...] | None = ()
    utilisation_percent: int | None = 0
    free_bytes: int | None = 140 << 30
    total_bytes: int = 141 << 30
    persistence: int | None = 1
    mig: tuple[int, int] | None = (0, 0)
    power_limit_mw: int | None = 700_000
    default_power_limit_mw: int | None = 700_000
    asked: list[str] = field(default_factory=list)


#: Bits of NVML's throttle reasons, as in nvml.h.
REASONS = {
    "nvmlClocksThrottleReasonGpuIdle": 0x1,
    "nvmlClocksThrottleReasonSwPowerCap": 0x4,
    "nvmlClocksThrottleReasonHwSlowdown": 0x8,
    "nvmlClocksThrottleReasonSwThermalSlowdown": 0x20,
    "nvmlClocksThrottleReasonHwThermalSlowdown": 0x40,
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": 0x80,
}


def fake_nvml(*gpus: FakeGpu, driver: Any = "580.1") -> ModuleType:
    """Make a module that answers about these devices."""
    module: Any = ModuleType("pynvml")
    module.NVMLError = NVMLError
    for name, bit in REASONS.items():
        setattr(module, name, bit)
    module.NVML_CLOCK_GRAPHICS, module.NVML_CLOCK_SM, module.NVML_CLOCK_MEM = 0, 1, 2
    module.NVML_TEMPERATURE_GPU, module.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN = 0, 1

    def known(value: Any) -> Any:
        if value is None:
            raise NVMLErrorNotSupported("Not Supported")
        return value

    def processes(pids: tuple[int, ...] | None) -> list[Any]:
        return [SimpleNamespace(pid=pid, usedGpuMemory=None) for pid in known(pids)]

    def by_uuid(uuid: str) -> FakeGpu:
        return next(gpu for gpu in gpus if gpu.uuid == uuid)

    module.nvmlInit = lambda: None
    module.nvmlSystemGetDriverVersion = lambda: driver
    module.nvmlDeviceGetCount = lambda: len(gpus)
    module.nvmlDeviceGetHandleByIndex = gpus.__getitem__
    module.nvmlDeviceGetHandleByUUID = by_uuid
    clocks: dict[int, Callable[[FakeGpu], Any]] = {1: lambda g: g.sm_clock_mhz, 2: lambda g: g.memory_clock_mhz}
    answers: dict[str, Callable[..., Any]] = {
        "Name": lambda g: g.name,
        "ClockInfo": lambda g, kind: known(clocks[kind](g)),
        "MaxClockInfo": lambda g, kind: known(g.max_sm_clock_mhz),
        "Temperature": lambda g, sensor: known(g.temperature_c),
        "TemperatureThreshold": lambda g, kind: 87,
        "PowerUsage": lambda g: known(g.power_mw),
        "TotalEnergyConsumption": lambda g: known(g.energy_mj),
        "CurrentClocksThrottleReasons": lambda g: known(g.throttle_reasons),
        "ComputeRunningProcesses": lambda g: processes(g.compute_pids),
        "GraphicsRunningProcesses": lambda g: processes(g.graphics_pids),
        "UtilizationRates": lambda g: SimpleNamespace(gpu=known(g.utilisation_percent), memory=0),
        "MemoryInfo": lambda g: SimpleNamespace(free=known(g.free_bytes), total=g.total_bytes),
        "PersistenceMode": lambda g: known(g.persistence),
        "MigMode": lambda g: known(g.mig),
        "PowerManagementLimit": lambda g: known(g.power_limit_mw),
        "PowerManagementDefaultLimit": lambda g: known(g.default_power_limit_mw),
    }

    def answering(name: str, answer: Callable[..., Any]) -> Callable[..., Any]:
        def ask(gpu: FakeGpu, *arguments: Any) -> Any:
            gpu.asked.append(name)
            return answer(gpu, *arguments)

        return ask

    for name, answer in answers.items():
        setattr(module, f"nvmlDeviceGet{name}", answering(name, answer))
    return module


def install(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> None:
    """Make `import pynvml` find this module."""
    monkeypatch.setitem(sys.modules, "pynvml", module)
