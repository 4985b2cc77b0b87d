"""The device of a subject: which one it is, whether the model will fit, and a lock so that nobody shares it.

A subject that asks for no particular device gets the first of several equal ones that nobody holds. Sessions on
different devices may run at the same time; one that runs on the processor may not run beside any of them, since it
takes from them the host that launches their work.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from vlmeter.backends.device import Device
from vlmeter.backends.registry import get_backend
from vlmeter.cells.cell import Cell
from vlmeter.common.errors import UserError
from vlmeter.common.locks import POLL_S, LockUnusable, held
from vlmeter.models.families.registry import get_family
from vlmeter.numbers.units import size
from vlmeter.study.subject import Subject, own_keys, subject_spec

#: Set to 1, sessions on the processor do run beside sessions on a GPU.
SHARE_HOST_VARIABLE = "VLMETER_SHARE_HOST"

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cuda_driver() -> str | None:
    try:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    except Exception:  # no NVML: the driver's version is then unknown, and nothing depends on it
        return None


def resolve_device(wish: str) -> Device:
    """Find the device that a study's `device` asks for; raises UserError if this machine has none such."""
    import psutil
    import torch

    if wish == "cpu" or (wish == "auto" and not torch.cuda.is_available()):
        memory = psutil.virtual_memory()
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return Device(
            name="cpu",
            model=f"{_cpu_model()} ({threads} logical cores)",
            uuid=None,
            driver=None,
            memory_bytes=memory.total,
            free_bytes=memory.available,
        )
    if not torch.cuda.is_available():
        raise UserError(
            f"device: {wish} is asked for, but PyTorch {torch.__version__} sees no CUDA device here; "
            "legal here: auto, cpu"
        )
    index = int(wish.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        known = ", ".join(f"cuda:{number}" for number in range(torch.cuda.device_count()))
        raise UserError(f"device: {wish} is not there; legal here: auto, cpu, cuda, {known}")
    free_bytes, total_bytes = torch.cuda.mem_get_info(index)
    return replace(_cuda_device(index), memory_bytes=total_bytes, free_bytes=free_bytes)


def _cuda_device(index: int) -> Device:
    """Describe a CUDA device without putting a context on it, which would take memory from whoever measures there."""
    import torch

    properties = torch.cuda.get_device_properties(index)
    return Device(
        name=f"cuda:{index}",
        model=properties.name,
        uuid=f"GPU-{properties.uuid}" if hasattr(properties, "uuid") else None,
        driver=_cuda_driver(),
        memory_bytes=properties.total_memory,
        free_bytes=properties.total_memory,
    )


def devices_for(subject: Subject) -> tuple[Device, ...]:
    """List the devices that a subject may run on: the one it names, or all that equal the first one seen here.

    Records of two models of device are never mixed, so only equal ones stand in for each other.
    """
    if (found := get_backend(subject.backend).devices(subject.device, own_keys(subject))) is not None:
        return found
    first = resolve_device(subject.device)
    if first.name == "cpu" or ":" in subject.device:
        return (first,)
    import torch

    others = [_cuda_device(index) for index in range(1, torch.cuda.device_count())]
    if subject.device_map:
        return (_together(first, others),)
    if (wanted := get_backend(subject.backend).needs(own_keys(subject)).gpus) > 1:
        return (_several(first, others, wanted),)
    return (first, *(device for device in others if device.identity == first.identity))


def _together(first: Device, others: Sequence[Device]) -> Device:
    """One device made of all cards, which have to be equal, for a model that is spread over them."""
    for other in others:
        if other.model != first.model:
            raise UserError(
                f"device_map: auto would spread the model over a {first.model} and a {other.model}, and nobody could "
                "say which of them a time belongs to; set CUDA_VISIBLE_DEVICES to equal ones"
            )
    return replace(
        first,
        model=f"{1 + len(others)} x {first.model}" if others else first.model,
        memory_bytes=sum(device.memory_bytes for device in (first, *others)),
        free_bytes=sum(device.free_bytes for device in (first, *others)),
        beside=tuple(others),
    )


def _several(first: Device, others: Sequence[Device], wanted: int) -> Device:
    """One device made of as many equal cards as a backend asks for."""
    equal = [device for device in others if device.identity == first.identity]
    if 1 + len(equal) < wanted:
        raise UserError(f"options: {wanted} cards are asked for, and there are {1 + len(equal)} x {first.model} here")
    return _together(first, equal[: wanted - 1])


def refreshed(device: Device, subject: Subject) -> Device:
    """Look at a device again: what memory is free shows only once its former holder has gone."""
    if get_backend(subject.backend).devices(subject.device, own_keys(subject)) is not None:
        return device
    first, *others = (resolve_device(card.name) for card in device.cards)
    return _together(first, others) if others else first


def needed_bytes(subject: Subject, cells: tuple[Cell, ...]) -> int | None:
    """Estimate the memory that a subject needs: weights, the longest cell's key-value cache, and a margin.

    The margin for activations and the allocator is 5 % of the weights and 256 MiB. # ASSUME: activations of one prompt
    stay within it; a cell that needs more runs out of memory, which is a result.
    None if the architecture is not known before its checkpoint is read.
    """
    family, spec = get_family(subject.family), subject_spec(subject)
    parameters, kv_bytes = family.parameters(spec), family.kv_bytes_per_token(spec)
    if parameters is None:
        return None
    weights = sum(parameters.values()) * BYTES_PER_VALUE[subject.dtype]
    longest = max((tokens for cell in cells for tokens in _context_tokens(cell)), default=0)
    margin = weights // 20 + (256 << 20)
    return weights + longest * (kv_bytes or 0) + margin


def _context_tokens(cell: Cell) -> list[int]:
    """Tokens of prompt and answer together, of each request."""
    return [(request.expected.prompt_tokens or 2048) + request.output_tokens for request in cell.requests]


def check_memory(subject_name: str, subject: Subject, cells: tuple[Cell, ...], device: Device) -> None:
    """Refuse a subject that cannot fit, before any weight is made or read."""
    needed = needed_bytes(subject, cells)
    if needed is not None and needed > device.free_bytes:
        raise UserError(
            f"subjects.{subject_name}: {subject.preset or subject.weights} in {subject.dtype} needs about "
            f"{size(needed)} of memory, and {device.name} ({device.model}) has {size(device.free_bytes)} free of "
            f"{size(device.memory_bytes)}; choose a smaller preset or dtype, or another device"
        )


def _lock_folder() -> Path:
    """A folder for locks that all of this machine's users can reach; files in it belong to their makers."""
    return Path(os.environ.get("VLMETER_LOCK_DIR") or Path(tempfile.gettempdir()) / "vlmeter-locks")


def _lock_path(key: str) -> Path:
    folder = _lock_folder()
    with contextlib.suppress(OSError):  # somebody else's folder has these rights already; others fail with the lock
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o1777)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.lock"


@contextlib.contextmanager
def _locked(
    keys: Sequence[str], *, what: str, purpose: str, tell: Callable[[str], None], shared: bool, poll_s: float
) -> Iterator[int]:
    """Hold the first lock of several that is free; yields its place."""
    with contextlib.ExitStack() as stack:
        paths = [_lock_path(key) for key in keys]
        try:
            place = stack.enter_context(
                held(paths, what=what, purpose=purpose, tell=tell, shared=shared, poll_s=poll_s)
            )
        except LockUnusable as error:
            raise UserError(
                f"the lock of {what} cannot be opened: {error}; VLMETER_LOCK_DIR can name another folder, "
                "the same for everybody who measures on this machine"
            ) from None
        yield place


@contextlib.contextmanager
def device_lock(device: Device, *, purpose: str, tell: Callable[[str], None], poll_s: float = POLL_S) -> Iterator[None]:
    """Hold one device; wait, with a message, while another process holds it."""
    with any_device((device,), purpose=purpose, tell=tell, poll_s=poll_s):
        yield


@contextlib.contextmanager
def any_device(
    devices: Sequence[Device], *, purpose: str, tell: Callable[[str], None], poll_s: float = POLL_S
) -> Iterator[Device]:
    """Hold the first of several devices that is free; wait, with a message, while none is."""
    keys = [device.uuid or device.name for device in devices]
    names = " or ".join(device.name for device in devices)
    with _locked(keys, what=names, purpose=purpose, tell=tell, shared=False, poll_s=poll_s) as place:
        yield devices[place]


@contextlib.contextmanager
def session_device(
    devices: Sequence[Device], *, purpose: str, tell: Callable[[str], None], poll_s: float = POLL_S
) -> Iterator[Device]:
    """Hold a device for a session and the host with it, alone if the device is the processor, else shared."""
    on_host = devices[0].name.endswith("cpu")
    shared = not on_host or os.environ.get(SHARE_HOST_VARIABLE) == "1"
    with contextlib.ExitStack() as stack:
        stack.enter_context(
            _locked(["host"], what="this machine", purpose=purpose, tell=tell, shared=shared, poll_s=poll_s)
        )
        device = stack.enter_context(any_device(devices, purpose=purpose, tell=tell, poll_s=poll_s))
        for card in device.beside:  # always in the same order, so that no two sessions wait for each other
            stack.enter_context(any_device((card,), purpose=purpose, tell=tell, poll_s=poll_s))
        yield device
