"""What a device can do at best, measured rather than read off a data sheet.

Three numbers bound every latency. *Copy bandwidth*: bytes read and written per second by one large copy. *Matrix rate*:
FLOPs per second (two per multiply-accumulate) of one large matrix product in the study's number format, on random
data, because a chip that multiplies zeros draws less power and clocks higher. *Launch time*: what it costs the
host to hand over one kernel, however small: a pass of a thousand kernels cannot take less than a thousand of these,
whatever the device. They are measured with the libraries, the settings and the threads that the study runs with, so
that what is left between a floor and a measured time is the model's way of using them.

A ceiling is a median over repeats, with its interval: a device that throttles in half a second of matrix products would
throttle in the study too, so the best of many is not what it can do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from vlmeter.backends.clock import Clock, Timing, time_call
from vlmeter.backends.device import Device
from vlmeter.common.errors import UserError
from vlmeter.measure.devices import BYTES_PER_VALUE, device_lock, resolve_device
from vlmeter.records.ceilings import Ceiling, Ceilings, ceiling_of, read_ceilings, write_ceilings
from vlmeter.records.fingerprint import versions
from vlmeter.study.subject import Subject

log = logging.getLogger(__name__)


#: Seconds for each of the three, warm-up included: with the making of the buffers that stays below five seconds.
SECONDS_PER_CEILING = 1.0


#: Samples of each ceiling: enough for an interval of the median, few enough for a device on which one takes 0.1 s.
MIN_SAMPLES, MAX_SAMPLES = 7, 30


#: A copy must be far beyond any cache: 50 MB on a H100, up to 1 GB (stacked) on a server's CPU.
COPY_BYTES = {"cuda": 1 << 30, "cpu": 256 << 20}


#: Side of the square matrices: large enough that reading them (3 n^2) costs nothing beside multiplying them (2 n^3).
MAX_MATRIX_SIDE = {"cuda": 8192, "cpu": 4096}


#: A device is given larger matrices until one product takes so long; more would only take time.
MATRIX_MS = {"cuda": 1.0, "cpu": 30.0}


#: Launches per sample: many, since one takes microseconds; few enough that the device's queue (1024 entries) never
#: fills up and makes the host wait.
LAUNCHES = 500


def measure_ceilings(
    device: Device, *, dtype: str, clock: Clock, seconds_per_ceiling: float = SECONDS_PER_CEILING
) -> Ceilings:
    """Measure a device's copy bandwidth, matrix rate and launch time; takes a few seconds and a few GiB of memory.

    Args:
        device: found by `resolve_device`; the caller holds its lock.
        dtype: number format of the matrix product: float32, bfloat16 or float16.
        clock: the clock of that device.
        seconds_per_ceiling: time to spend on each, at least MIN_SAMPLES samples whatever they take.
    """
    import torch

    kind = device.name.partition(":")[0]
    with torch.inference_mode():
        copy = _measure_copy(device, clock, _budget(kind, device), seconds_per_ceiling)
        side, matrix = _measure_matrix(device, clock, dtype=dtype, kind=kind, seconds=seconds_per_ceiling)
        launch = _measure_launch(device, clock, seconds_per_ceiling)
    if kind == "cuda":
        torch.cuda.empty_cache()
    return Ceilings(
        device_identity=device.identity,
        device_model=device.model,
        device_uuid=device.uuid,
        driver=device.driver,
        dtype=dtype,
        torch_threads=torch.get_num_threads(),
        versions=dict(versions()),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        copy_bytes_per_s=copy,
        matrix_flops_per_s=matrix,
        matrix_side=side,
        launch_ms=launch,
    )


def repeat(clock: Clock, call: Callable[[], object], *, seconds: float) -> list[Timing]:
    """Time a call again and again for so many seconds, between MIN_SAMPLES and MAX_SAMPLES times, after two runs."""
    for _ in range(2):
        call()
    clock.synchronize()
    begin_ms = clock.host_ms()
    timings: list[Timing] = []
    while len(timings) < MIN_SAMPLES or (len(timings) < MAX_SAMPLES and clock.host_ms() - begin_ms < 1000 * seconds):
        timings.append(time_call(clock, lambda marks: call()))
    return timings


def duration_ms(clock: Clock, call: Callable[[], object]) -> float:
    """Time one call on the device's clock, after a run that chooses its kernel."""
    call()
    return time_call(clock, lambda marks: call()).device_ms


def _budget(kind: str, device: Device) -> int:
    """Bytes of one copy buffer: two of them take a quarter of what is free, at most."""
    return max(1 << 20, min(COPY_BYTES[kind], device.free_bytes // 8))


def _measure_copy(device: Device, clock: Clock, buffer_bytes: int, seconds: float) -> Ceiling:
    import torch

    source = torch.ones(buffer_bytes, dtype=torch.uint8, device=device.name)
    target = torch.zeros_like(source)
    timings = repeat(clock, lambda: target.copy_(source), seconds=seconds)
    return ceiling_of([2 * buffer_bytes / (timing.device_ms / 1000) for timing in timings])


def _measure_matrix(device: Device, clock: Clock, *, dtype: str, kind: str, seconds: float) -> tuple[int, Ceiling]:
    import torch

    number = getattr(torch, dtype)
    most_bytes = device.free_bytes // 4

    def product_of(side: int) -> Callable[[], object]:
        generator = torch.Generator(device.name).manual_seed(0)
        left, right = (torch.randn(side, side, dtype=number, device=device.name, generator=generator) for _ in range(2))
        product = torch.empty_like(left)
        return lambda: torch.mm(left, right, out=product)

    side = 256
    multiply = product_of(side)
    while 2 * side <= MAX_MATRIX_SIDE[kind] and 3 * (2 * side) ** 2 * BYTES_PER_VALUE[dtype] <= most_bytes:
        if duration_ms(clock, multiply) >= MATRIX_MS[kind]:
            break
        side *= 2
        multiply = product_of(side)
    timings = repeat(clock, multiply, seconds=seconds)
    return side, ceiling_of([2 * side**3 / (timing.device_ms / 1000) for timing in timings])


def _measure_launch(device: Device, clock: Clock, seconds: float) -> Ceiling:
    import torch

    value = torch.zeros(1, device=device.name)

    def launch() -> None:
        for _ in range(LAUNCHES):
            value.add_(1)

    timings = repeat(clock, launch, seconds=seconds)
    return ceiling_of([timing.launch_ms / LAUNCHES for timing in timings])


def alike(subjects: Mapping[str, Subject]) -> dict[str, list[str]]:
    """Group subjects that have the same ceilings, since they run on one device in one format with as many threads.

    Returns the names of each group's subjects by a name for the group, such as `cuda0-bfloat16`, which is plain enough
    to be that of a job.
    """
    groups: dict[str, list[str]] = {}
    for name, subject in subjects.items():
        use = f"{subject.device.replace(':', '')}-{subject.dtype}"
        if subject.cpu_threads:
            use += f"-{subject.cpu_threads}"
        groups.setdefault(use, []).append(name)
    return groups


def measure_device(subject: Subject, path: Path, *, tell: Callable[[str], None] = log.info) -> Ceilings:
    """Write the ceilings of a subject's device to `path`: the whole of what a workflow's script has to call.

    Holds the device's lock meanwhile. Ceilings at `path` that are of this device, driver and format, in these versions
    and with as many threads, are left as they are: one measurement serves all studies.
    """
    import torch

    from vlmeter.backends.clock import make_clock

    device = resolve_device(subject.device)
    if device.name == "cpu":
        from vlmeter.backends.eager_runner import physical_cores

        torch.set_num_threads(subject.cpu_threads or physical_cores())
    if path.exists():
        try:
            known = read_ceilings(path)
        except UserError as error:
            tell(str(error))
        else:
            mine = (device.identity, subject.dtype, torch.get_num_threads(), dict(versions()))
            if mine == (known.device_identity, known.dtype, known.torch_threads, known.versions):
                return known
    with device_lock(device, purpose="measuring its ceilings", tell=tell):
        found = measure_ceilings(device, dtype=subject.dtype, clock=make_clock(device.name))
    write_ceilings(path, found)
    return found
