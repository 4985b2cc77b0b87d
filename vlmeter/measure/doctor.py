"""What would disturb a measurement on this machine, said before it starts.

A latency is a property of a model on a machine *as it is*: its clocks, its heat, its other users. A session records all
that and flags what it saw; this looks beforehand, while something can still be done about it. Nothing is changed and no
privilege is asked for. Where a question has no answer (no GPU, no NVML, another operating system) it is left out, or
said to be open where that matters.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vlmeter.measure.monitors import FOREIGN_LOAD_FRACTION, STEAL_FRACTION, THROTTLE_REASONS
from vlmeter.numbers.units import percent, size

Severity = Literal["problem", "warning", "note", "good"]

#: problem: numbers would be wrong or there would be none; warning: they would be noisy or off; note: worth knowing.
SEVERITIES: tuple[Severity, ...] = ("problem", "warning", "note", "good")

#: A GPU at rest that is hotter than this has just been at work, or is badly cooled.
WARM_AT_REST_C = 60

#: A record is 50 kB, one with ten 4096-step rounds 1 MB; a study, its figures and its journal stay below this.
NEEDED_DISK_BYTES = 1 << 30

#: Environment variables that change what is measured: what each does, and whether numbers would be wrong with it.
TELLING_VARIABLES: Mapping[str, tuple[Severity, str]] = {
    "CUDA_LAUNCH_BLOCKING": ("problem", "makes the host wait for every kernel, so every prefill would be launch-bound"),
    "PYTORCH_NO_CUDA_MEMORY_CACHING": (
        "problem",
        "makes every tensor a call to the driver, which waits",
    ),
    "NVIDIA_TF32_OVERRIDE": ("warning", "changes the number format of float32 products behind PyTorch's back"),
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": ("warning", "changes the number format of float32 products"),
    "PYTHONDEVMODE": ("warning", "adds checks to every call of the host"),
    "PYTHONTRACEMALLOC": ("warning", "traces every allocation of the host"),
    "OMP_PROC_BIND": ("note", "pins the threads of PyTorch on a CPU"),
    "KMP_AFFINITY": ("note", "pins the threads of PyTorch on a CPU"),
    "GOMP_CPU_AFFINITY": ("note", "pins the threads of PyTorch on a CPU"),
    "CUDA_VISIBLE_DEVICES": ("note", "decides which GPUs there are and how they are numbered"),
}


@dataclass(frozen=True)
class Advice:
    """One finding: how bad it is, what it is about, what was found and what to do about it."""

    severity: Severity
    topic: str
    finding: str
    action: str = ""


def examine(*, results: Path = Path("results"), root: Path = Path("/")) -> list[Advice]:
    """Look at the GPUs, the host and the disk; the worst comes first.

    results: where records would go. root: where /proc and /sys are looked for; a test puts its own there.
    """
    found = [
        *_gpus(),
        *_load(),
        *_processors(root),
        *_isolation(root),
        *_environment(),
        *_memory(),
        *_disk(results),
        *_power_supply(),
    ]
    return sorted(found, key=lambda advice: SEVERITIES.index(advice.severity))


def worst(advice: list[Advice]) -> Severity:
    """Return the worst severity of a list, "good" if it is empty."""
    return min((one.severity for one in advice), key=SEVERITIES.index, default="good")


# --------------------------------------------------------------------------------------------------------------- GPUs


def _gpus() -> Iterator[Advice]:
    try:
        import pynvml

        pynvml.nvmlInit()
        count = pynvml.nvmlDeviceGetCount()
    except Exception as error:  # no library, no driver, no device: NVML has a different error for each
        yield Advice(
            "note",
            "GPU",
            f"none can be seen through NVML ({error}), so `device: auto` is the CPU",
            "if there is one, check that its driver is loaded (nvidia-smi) and, in a container, passed through",
        )
        return
    if count == 0:
        yield Advice("note", "GPU", "the driver is there, a GPU is not, so `device: auto` is the CPU")
        return
    driver = _text(pynvml.nvmlSystemGetDriverVersion())
    for index in range(count):
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        yield from _gpu(_Nvml(pynvml, handle), index=index, driver=driver)
    yield from _torch_sees_gpus(count)


class _Nvml:
    """One device; a question that it, its driver or this NVML does not know is answered None."""

    def __init__(self, module: Any, handle: Any) -> None:
        self._module, self._handle = module, handle

    def __call__(self, name: str, *arguments: str | int) -> Any:
        """Ask nvmlDeviceGet<name>; a word among the arguments is the name of one of NVML's constants."""
        with contextlib.suppress(self._module.NVMLError, AttributeError):
            values = [getattr(self._module, word) if isinstance(word, str) else word for word in arguments]
            return getattr(self._module, f"nvmlDeviceGet{name}")(self._handle, *values)
        return None

    def constant(self, name: str) -> int:
        """Return a constant, 0 where this NVML does not have it."""
        return int(getattr(self._module, name, 0))


def _gpu(ask: _Nvml, *, index: int, driver: str) -> Iterator[Advice]:
    topic = f"GPU {index}"
    yield Advice("good", topic, f"{_text(ask('Name'))}, driver {driver}")
    yield from _gpu_clocks(ask, topic)
    yield from _gpu_users(ask, topic)
    temperature_c = ask("Temperature", "NVML_TEMPERATURE_GPU")
    limit_c = ask("TemperatureThreshold", "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN")
    if temperature_c is not None and temperature_c >= WARM_AT_REST_C:
        limit = f"; it slows down at {limit_c} °C" if limit_c else ""
        yield Advice(
            "warning",
            topic,
            f"it is at {temperature_c} °C before anything has begun{limit}",
            "let it cool down, or look at its cooling",
        )
    if ask("PersistenceMode") == 0:
        yield Advice(
            "note",
            topic,
            "persistence mode is off, so the driver unloads between sessions and the first one is slow to start",
            "sudo nvidia-smi -pm 1",
        )
    mig = ask("MigMode")
    if mig and mig[0]:
        yield Advice(
            "warning",
            topic,
            "it is partitioned (MIG), so its neighbours share its clocks, power and temperature",
            "report the partition with the numbers",
        )
    limit_mw, default_mw = ask("PowerManagementLimit"), ask("PowerManagementDefaultLimit")
    if limit_mw and default_mw and limit_mw < default_mw:
        yield Advice(
            "warning",
            topic,
            f"its power is limited to {limit_mw / 1000:.0f} W of {default_mw / 1000:.0f} W",
            f"sudo nvidia-smi -pl {default_mw // 1000}",
        )


def _gpu_clocks(ask: _Nvml, topic: str) -> Iterator[Advice]:
    reasons = ask("CurrentClocksThrottleReasons") or 0
    active = [text for name, text in THROTTLE_REASONS.items() if reasons & ask.constant(name)]
    if active:
        yield Advice(
            "warning",
            topic,
            f"it is held below its clocks right now: {', '.join(active)}",
            "wait until nvidia-smi -q -d PERFORMANCE says Not Active",
        )
    now_mhz, highest_mhz = ask("ClockInfo", "NVML_CLOCK_SM"), ask("MaxClockInfo", "NVML_CLOCK_SM")
    if now_mhz and highest_mhz:
        yield Advice(
            "note",
            topic,
            f"its SM clock is at {now_mhz} MHz and may reach {highest_mhz} MHz; each round's clock is recorded",
            "for the steadiest numbers lock it to what it holds under load: sudo nvidia-smi -lgc MHZ (undo: -rgc)",
        )


def _gpu_users(ask: _Nvml, topic: str) -> Iterator[Advice]:
    processes = {
        process.pid for kind in ("ComputeRunningProcesses", "GraphicsRunningProcesses") for process in ask(kind) or []
    } - {os.getpid()}
    rates = ask("UtilizationRates")
    busy = f", and it is busy {rates.gpu} % of the time" if rates is not None and rates.gpu else ""
    if processes:
        numbers = ", ".join(str(pid) for pid in sorted(processes))
        yield Advice(
            "warning",
            topic,
            f"other processes use it (process {numbers}){busy}",
            "stop them, or choose another device with subjects.<name>.device: cuda:N",
        )
    elif busy:
        yield Advice(
            "warning", topic, f"nobody is listed as using it{busy}", "look for processes outside this container"
        )
    memory = ask("MemoryInfo")
    if memory is not None:
        half_full = memory.free < memory.total / 2
        yield Advice(
            "warning" if half_full else "good",
            topic,
            f"{size(memory.free)} of its {size(memory.total)} of memory are free",
            "find out who holds the rest: nvidia-smi" if half_full else "",
        )


def _torch_sees_gpus(count: int) -> Iterator[Advice]:
    try:
        import torch
    except ImportError:
        yield Advice("problem", "PyTorch", "it is not installed here", "pip install -r requirements.lock")
        return
    if torch.version.cuda is None:
        yield Advice(
            "problem",
            "PyTorch",
            f"PyTorch {torch.__version__} is built for CPUs only, so no GPU would be used",
            "install a build for CUDA: https://pytorch.org/get-started/locally",
        )
    elif not torch.cuda.is_available():
        yield Advice(
            "problem",
            "PyTorch",
            f"PyTorch {torch.__version__} for CUDA {torch.version.cuda} cannot use what NVML sees",
            "the driver may be too old for this CUDA, or CUDA_VISIBLE_DEVICES may hide the device",
        )
    elif torch.cuda.device_count() < count:
        yield Advice("note", "PyTorch", f"it may use {torch.cuda.device_count()} of {count} GPUs")


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# --------------------------------------------------------------------------------------------------------------- host


def _load(watch_s: float = 0.5) -> Iterator[Advice]:
    """Watch the processors for a moment: what they do while this process sleeps is somebody else's work."""
    import psutil

    shares = psutil.cpu_times_percent(interval=watch_s)
    steal = getattr(shares, "steal", 0.0) / 100
    busy = max(0.0, 1 - (shares.idle + getattr(shares, "iowait", 0.0)) / 100 - steal)
    if busy > FOREIGN_LOAD_FRACTION:
        yield Advice(
            "warning",
            "load",
            f"other processes take {percent(busy)} of the processors",
            "stop them (top shows which); rounds that they disturb are marked in the records",
        )
    else:
        yield Advice("good", "load", f"the processors are {percent(1 - busy)} idle")
    if steal > STEAL_FRACTION:
        yield Advice(
            "warning",
            "load",
            f"the hypervisor keeps {percent(steal)} of the processor time for others",
            "use a machine with processors of its own; launch-bound numbers from here are those of a crowd",
        )


def _processors(root: Path) -> Iterator[Advice]:
    import psutil

    cpus = root / "sys/devices/system/cpu"
    logical, physical = os.cpu_count() or 1, psutil.cpu_count(logical=False)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else logical
    yield Advice("good", "processors", f"{logical} logical, {physical or 'unknown'} physical cores")
    if usable < logical:
        yield Advice(
            "note",
            "processors",
            f"this process may use {usable} of {logical} logical cores",
            "that is kept to; start it with taskset or the scheduler's own options to change it",
        )
    governors = {text for path in cpus.glob("cpu[0-9]*/cpufreq/scaling_governor") if (text := _read(path))}
    if governors - {"performance"}:
        yield Advice(
            "warning",
            "processors",
            f"the clock governor is {', '.join(sorted(governors))}, so the host may launch kernels at half its speed",
            "sudo cpupower frequency-set -g performance",
        )
    highest = {text for path in cpus.glob("cpu[0-9]*/cpufreq/cpuinfo_max_freq") if (text := _read(path))}
    capacities = {text for path in cpus.glob("cpu[0-9]*/cpu_capacity") if (text := _read(path))}
    kinds = [root / "sys/devices" / kind for kind in ("cpu_core", "cpu_atom")]
    # Cores of one kind also differ by a bin or two in their highest clock; cores of two kinds differ by a third.
    spread = min(map(int, highest)) / max(map(int, highest)) if highest else 1.0
    if all(kind.exists() for kind in kinds) or len(capacities) > 1 or spread < 0.8:
        yield Advice(
            "warning",
            "processors",
            "there are fast and slow cores, and the host's speed depends on which it gets",
            "pin the run to the fast ones with taskset; set subjects.<name>.cpu_threads to their number",
        )
    if _read(cpus / "smt/active") == "1":
        yield Advice(
            "note",
            "processors",
            "two threads share a core (SMT), so others' work slows this one down even if not all are busy",
            "vlmeter uses one thread per physical core on a CPU",
        )


def _isolation(root: Path) -> Iterator[Advice]:
    """Virtual machine, container, quota: walls through which the neighbours are heard but not seen."""
    flags = _read(root / "proc/cpuinfo") or ""
    if " hypervisor" in flags:
        product = _read(root / "sys/class/dmi/id/product_name") or "unknown make"
        yield Advice(
            "note",
            "isolation",
            f"this is a virtual machine ({product}); clocks and neighbours of the host cannot be seen from here",
            "watch the intervals; measure again at another hour",
        )
    if (root / ".dockerenv").exists() or (root / "run/.containerenv").exists() or _in_systemd_container():
        yield Advice(
            "note",
            "isolation",
            "this is a container; processes outside it are not seen",
            "make sure that nobody else is on the machine",
        )
    quota = (_read(root / "sys/fs/cgroup/cpu.max") or "max").split()
    if len(quota) == 2 and quota[0] != "max":
        cores = int(quota[0]) / int(quota[1])
        lines = [line.split() for line in (_read(root / "sys/fs/cgroup/cpu.stat") or "").splitlines()]
        stopped = {words[0]: words[-1] for words in lines if words}.get("nr_throttled", "0")
        yield Advice(
            "warning",
            "isolation",
            f"a quota allows {cores:.3g} cores of processor time; who uses more threads than that is stopped in the "
            f"middle of a sample (so far {stopped} times)",
            f"set subjects.<name>.cpu_threads: {max(1, int(cores))}, or lift the quota",
        )


def _in_systemd_container() -> bool:
    return bool(os.environ.get("container"))  # noqa: SIM112 - podman and systemd-nspawn spell it so


def _environment() -> Iterator[Advice]:
    for name, (severity, effect) in TELLING_VARIABLES.items():
        value = os.environ.get(name)
        if value not in (None, "", "0"):
            action = f"unset {name}" if severity != "note" else ""
            yield Advice(severity, "environment", f"{name}={value} {effect}", action)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if value := os.environ.get(name):
            yield Advice(
                "note",
                "environment",
                f"{name}={value} is overruled by subjects.<name>.cpu_threads where a CPU is measured",
            )


def _memory() -> Iterator[Advice]:
    import psutil

    memory = psutil.virtual_memory()
    scarce = memory.available < memory.total / 5
    yield Advice(
        "warning" if scarce else "good",
        "memory",
        f"{size(memory.available)} of {size(memory.total)} are available",
        "close what uses it: a machine that swaps measures its disk" if scarce else "",
    )


def _disk(results: Path) -> Iterator[Advice]:
    place = results.resolve()
    while not place.exists():
        place = place.parent
    free_bytes = shutil.disk_usage(place).free
    if not os.access(place, os.W_OK):
        yield Advice("problem", "disk", f"{place} cannot be written to", "choose another folder for the results")
    elif free_bytes < NEEDED_DISK_BYTES:
        yield Advice(
            "problem",
            "disk",
            f"{size(free_bytes)} are free at {place}, and a study may take {size(NEEDED_DISK_BYTES)}",
            "make room",
        )
    else:
        yield Advice("good", "disk", f"{size(free_bytes)} are free at {place}")


def _power_supply() -> Iterator[Advice]:
    import psutil

    battery = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    if battery is not None and not battery.power_plugged:
        yield Advice("warning", "power", "this machine runs on its battery, and slows down to save it", "plug it in")


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None
