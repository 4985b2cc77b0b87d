"""What is read around every round of samples: each gauge is one function here, and nothing else has to know of it.

The function's name is what the reading is called in the record and in the table, and ends with its unit; its first line
says in words what it is; its decorator says how the readings of a cell's rounds become the one value in the table, and
those of several devices one. A gauge of a device asks its driver (NVML), a gauge of the host looks at the processor
time since the last look. This stands left of what measures and of what makes the table: both go through the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Generic, Protocol, TypeVar

Looked = TypeVar("Looked")


@dataclass(frozen=True)
class Reduction:
    """How several readings become one, and what that is called."""

    name: str
    of: Callable[[Sequence[float]], float]


MEDIAN, HIGHEST, LOWEST, SUM = (
    Reduction("median", median),
    Reduction("highest", max),
    Reduction("lowest", min),
    Reduction("sum", sum),
)


class Device(Protocol):
    """A device whose driver answers questions."""

    def ask(self, question: str, *constants: str) -> float | None:
        """Ask NVML `nvmlDeviceGet<question>`, with constants of its by name; None where there is no answer."""
        ...


@dataclass(frozen=True)
class HostSpan:
    """Where the host's processor time went since the last look, all cores together, in seconds.

    own_s: what this process took; steal_s: what a hypervisor kept for others.
    """

    total_s: float
    idle_s: float
    own_s: float
    steal_s: float


@dataclass(frozen=True)
class Gauge(Generic[Looked]):
    """One thing that is read around every round. over_devices: absent for the host, of which there is one."""

    name: str
    words: str
    read: Callable[[Looked], float | None]
    over_rounds: Reduction
    over_devices: Reduction | None = None


#: Gauges by name, in the order of the table's columns.
DEVICE_GAUGES: dict[str, Gauge[Device]] = {}
HOST_GAUGES: dict[str, Gauge[HostSpan]] = {}


def every_gauge() -> list[Gauge[Any]]:
    """All gauges, those of a device first."""
    return [*DEVICE_GAUGES.values(), *HOST_GAUGES.values()]


def _words(read: Callable[..., object]) -> str:
    said = (read.__doc__ or read.__name__).partition("\n")[0].removesuffix(".")
    return said[0].lower() + said[1:]


ReadDevice = TypeVar("ReadDevice", bound=Callable[[Device], float | None])
ReadHost = TypeVar("ReadHost", bound=Callable[[HostSpan], float | None])


def of_device(*, over_rounds: Reduction, over_devices: Reduction) -> Callable[[ReadDevice], ReadDevice]:
    """Make a function of a device a gauge."""

    def register(read: ReadDevice) -> ReadDevice:
        DEVICE_GAUGES[read.__name__] = Gauge(read.__name__, _words(read), read, over_rounds, over_devices)
        return read

    return register


def of_host(*, over_rounds: Reduction) -> Callable[[ReadHost], ReadHost]:
    """Make a function of a span of the host's time a gauge."""

    def register(read: ReadHost) -> ReadHost:
        HOST_GAUGES[read.__name__] = Gauge(read.__name__, _words(read), read, over_rounds)
        return read

    return register


@of_device(over_rounds=MEDIAN, over_devices=LOWEST)
def sm_clock_mhz(device: Device) -> float | None:
    """Clock of the device's processors."""
    return device.ask("ClockInfo", "NVML_CLOCK_SM")


@of_device(over_rounds=MEDIAN, over_devices=LOWEST)
def memory_clock_mhz(device: Device) -> float | None:
    """Clock of the device's memory."""
    return device.ask("ClockInfo", "NVML_CLOCK_MEM")


@of_device(over_rounds=HIGHEST, over_devices=HIGHEST)
def temperature_c(device: Device) -> float | None:
    """Temperature of the device."""
    return device.ask("Temperature", "NVML_TEMPERATURE_GPU")


@of_device(over_rounds=MEDIAN, over_devices=SUM)
def power_w(device: Device) -> float | None:
    """Power reading of the device."""
    power_mw = device.ask("PowerUsage")
    return None if power_mw is None else power_mw / 1000


@of_host(over_rounds=MEDIAN)
def cpu_load_fraction(span: HostSpan) -> float:
    """Share of processor time that other processes took."""
    taken = (span.total_s - span.idle_s - span.own_s) / span.total_s
    return min(1.0, max(0.0, taken - cpu_steal_fraction(span)))


@of_host(over_rounds=HIGHEST)
def cpu_steal_fraction(span: HostSpan) -> float:
    """Share of processor time that a hypervisor kept for others."""
    return max(0.0, span.steal_s / span.total_s)
