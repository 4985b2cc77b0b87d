"""What else is going on: clocks, heat, throttling, other processes, load.

Locked clocks are not ours to set. So they are read around every round of samples, outside the timed regions, and a
round in which the device was throttled or shared is marked as disturbed. Nothing is thrown away silently.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from vlmeter.records.gauges import (
    DEVICE_GAUGES,
    HOST_GAUGES,
    HostSpan,
    cpu_load_fraction,
    cpu_steal_fraction,
    sm_clock_mhz,
)
from vlmeter.records.parts import Reading

#: NVML's reasons for clocks below the highest that always tell of a disturbance. (Idle and application clocks are a
#: device's ordinary life, and so is the power cap as long as it costs little: see POWER_CAP.)
THROTTLE_REASONS: Mapping[str, str] = {
    "nvmlClocksThrottleReasonHwSlowdown": "hardware slowdown",
    "nvmlClocksThrottleReasonSwThermalSlowdown": "thermal slowdown",
    "nvmlClocksThrottleReasonHwThermalSlowdown": "hardware thermal slowdown",
    "nvmlClocksThrottleReasonHwPowerBrakeSlowdown": "power brake",
}

#: NVML's reason for a clock that the power limit holds down. Under full load a large GPU is at its limit nearly always,
#: so it counts as a disturbance only if the clock is lower by more than CAPPED_CLOCK_FRACTION of the highest.
POWER_CAP = "nvmlClocksThrottleReasonSwPowerCap"
CAPPED_CLOCK_FRACTION = 0.05

#: Share of the host's processor time taken by other processes above which a round counts as disturbed.
FOREIGN_LOAD_FRACTION = 0.25

#: Processor time, all cores together, below which a reading says nothing: the kernel counts in steps of 10 ms, and the
#: error of a share should stay well below FOREIGN_LOAD_FRACTION.
SHORTEST_LOOK_S = 0.2

#: Share of processor time that a hypervisor kept for others above which a round counts as disturbed.
STEAL_FRACTION = 0.02


class Monitor(Protocol):
    """Reads the machine's state; each reading covers the time since the one before."""

    def read(self) -> Reading:
        """Return the state now and what disturbed the time since the last reading."""
        ...

    def energy_j(self) -> float | None:
        """Joules that the device has used since it was started, or None."""
        ...


class QuietMonitor:
    """Sees nothing."""

    def read(self) -> Reading:
        """Return an empty reading."""
        return Reading()

    def energy_j(self) -> float | None:
        """No counter."""
        return None


@dataclass
class HostMonitor:
    """Processor load of everybody else, and time stolen by a hypervisor, from psutil."""

    #: processes that work for what is measured, beside this one
    beside: Callable[[], Sequence[int]] = lambda: ()
    _last_times: Any = None
    _last_own_s: float = 0.0

    def __post_init__(self) -> None:
        self.read()

    def read(self) -> Reading:
        """Compare processor times with those of the last reading."""
        import psutil

        times = psutil.cpu_times()
        own_times = os.times()
        own_s = own_times.user + own_times.system + _spent_s(self.beside())
        last, last_own_s = self._last_times, self._last_own_s
        if last is None:
            self._last_times, self._last_own_s = times, own_s
            return Reading()
        total_s = sum(times) - sum(last)
        # On Linux guest time is counted within user time as well.
        total_s -= sum(getattr(times, name, 0.0) - getattr(last, name, 0.0) for name in ("guest", "guest_nice"))
        if total_s < SHORTEST_LOOK_S:
            return Reading()  # the time goes on adding up, or a series of short rounds would never be watched
        self._last_times, self._last_own_s = times, own_s
        span = HostSpan(
            total_s=total_s,
            idle_s=times.idle - last.idle + getattr(times, "iowait", 0.0) - getattr(last, "iowait", 0.0),
            own_s=own_s - last_own_s,
            steal_s=getattr(times, "steal", 0.0) - getattr(last, "steal", 0.0),
        )
        disturbances = []
        if cpu_load_fraction(span) > FOREIGN_LOAD_FRACTION:
            disturbances.append("other processes on the host")
        if cpu_steal_fraction(span) > STEAL_FRACTION:
            disturbances.append("processor time stolen by the hypervisor")
        seen = {name: value for name, gauge in HOST_GAUGES.items() if (value := gauge.read(span)) is not None}
        return Reading(readings=seen, disturbances=tuple(disturbances))

    def energy_j(self) -> float | None:
        """The host has no counter that is open to every user."""
        return None


def _spent_s(pids: Sequence[int]) -> float:
    """Processor seconds that processes have spent so far; those that are gone count nothing."""
    import psutil

    spent_s = 0.0
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            continue
        spent_s += times.user + times.system
    return spent_s


@dataclass
class NvmlMonitor:
    """An NVIDIA device, read through NVML, and the host beside it."""

    uuid: str
    host: Monitor = field(default_factory=HostMonitor)
    #: processes that work for what is measured, beside this one
    beside: Callable[[], Sequence[int]] = lambda: ()

    def __post_init__(self) -> None:
        import pynvml

        self._nvml = pynvml
        pynvml.nvmlInit()
        self._handle = pynvml.nvmlDeviceGetHandleByUUID(self.uuid)

    def ask(self, question: str, *constants: str) -> Any:
        """Ask NVML, as a gauge does; None where this device or driver does not answer."""
        try:
            arguments = [getattr(self._nvml, name) for name in constants]
            return getattr(self._nvml, f"nvmlDeviceGet{question}")(self._handle, *arguments)
        except (self._nvml.NVMLError, AttributeError):  # AttributeError: an NVML older or newer than we know
            return None

    def read(self) -> Reading:
        """Read all gauges of the device, throttle reasons and foreign processes."""
        nvml = self._nvml
        host = self.host.read()
        disturbances = list(host.disturbances)
        reasons = self.ask("CurrentClocksThrottleReasons") or 0
        disturbances += [text for name, text in THROTTLE_REASONS.items() if reasons & getattr(nvml, name, 0)]
        seen = {name: value for name, gauge in DEVICE_GAUGES.items() if (value := gauge.read(self)) is not None}
        clock_mhz = seen.get(sm_clock_mhz.__name__)
        highest_mhz = self.ask("MaxClockInfo", "NVML_CLOCK_SM")
        capped = bool(reasons & getattr(nvml, POWER_CAP, 0)) and highest_mhz is not None
        if capped and clock_mhz is not None and clock_mhz < (1 - CAPPED_CLOCK_FRACTION) * highest_mhz:
            disturbances.append("power cap")
        processes = self.ask("ComputeRunningProcesses") or []
        # In a container the process ids are another name space's: then our own is not among them, and one is ours.
        own = {os.getpid(), *self.beside()}
        pids = {process.pid for process in processes}
        if len(pids - own) > (0 if pids & own else 1):
            disturbances.append("other processes on the device")
        return Reading(readings={**host.readings, **seen}, disturbances=tuple(disturbances))

    def energy_j(self) -> float | None:
        """Read the device's energy counter, which (unlike its power reading) misses nothing."""
        energy_mj = self.ask("TotalEnergyConsumption")
        return None if energy_mj is None else energy_mj / 1000


@dataclass
class SeveralMonitor:
    """Several devices that one model is spread over; a gauge says how its readings become one (the slowest clock, say).

    The first of the monitors speaks for the host.
    """

    monitors: Sequence[Monitor]

    def read(self) -> Reading:
        """Read all of them."""
        readings = [monitor.read() for monitor in self.monitors]
        seen = {name: value for name, value in readings[0].readings.items() if name in HOST_GAUGES}
        for name, gauge in DEVICE_GAUGES.items():
            known = [reading.readings[name] for reading in readings if name in reading.readings]
            if gauge.over_devices is not None and len(known) == len(readings):
                seen[name] = gauge.over_devices.of(known)
        disturbances = dict.fromkeys(found for reading in readings for found in reading.disturbances)
        return Reading(readings=seen, disturbances=tuple(disturbances))

    def energy_j(self) -> float | None:
        """Add up the energy counters; None if one of them is not to be had."""
        joules = [monitor.energy_j() for monitor in self.monitors]
        known = [value for value in joules if value is not None]
        return sum(known) if len(known) == len(joules) else None


@dataclass
class ServedMonitor:
    """A device, and a server on it that may have requests of others."""

    monitor: Monitor
    disturbances: Callable[[], tuple[str, ...]]

    def read(self) -> Reading:
        """Read the device, and ask what disturbed the server."""
        reading = self.monitor.read()
        return reading.model_copy(update={"disturbances": (*reading.disturbances, *self.disturbances())})

    def energy_j(self) -> float | None:
        """The device's."""
        return self.monitor.energy_j()


def make_monitor(
    *, device: str, uuids: Sequence[str | None], beside: Callable[[], Sequence[int]] = lambda: ()
) -> Monitor:
    """Return the monitor that suits a device, or several that work together; without NVML only the host is watched.

    beside: processes that work for what is measured, beside this one.
    """
    known = [uuid for uuid in uuids if uuid is not None]
    if device.startswith("cuda") and known:
        try:
            first, *others = known
            host = HostMonitor(beside=beside)
            monitors = [
                NvmlMonitor(first, host=host, beside=beside),
                *(NvmlMonitor(uuid, host=QuietMonitor(), beside=beside) for uuid in others),
            ]
            return SeveralMonitor(monitors) if others else monitors[0]
        except Exception as error:  # NVML's absence shows in many ways, and none of them may stop a measurement
            import logging

            logging.getLogger(__name__).warning("the GPU's clocks and temperature cannot be read: %s", error)
    return HostMonitor(beside=beside)
