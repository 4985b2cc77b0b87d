"""The same kernels without their launches: prefill and decode step are captured as CUDA graphs and replayed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmeter.backends.base import Backend, Execution, Loading, Needs, Runner
from vlmeter.common.errors import UserError

#: No device_map and no quantization: a graph is one device's, and packed weights were never captured.
TAKES = frozenset({"revision", "attention", "vision_attention_dtype", "trust_remote_code"})


def devices(wish: str, own: Mapping[str, Any]) -> None:
    """Leave the choice of a device to torch, but for a wish that no device can fulfil."""
    if wish == "cpu":
        raise UserError(_on("cpu"))


def load(asked: Loading) -> Runner:
    """Load a model on a GPU; torch is imported here."""
    if not asked.device.startswith("cuda"):
        raise UserError(_on(asked.device))
    from vlmeter.backends.compiled.captured_runner import load_runner

    return load_runner(asked)


def _on(device: str) -> str:
    return f"backend: cudagraph captures what a GPU runs, but the device is {device}; legal on it: eager, compile"


BACKEND = Backend(
    name="cudagraph",
    about="the kernels of plain PyTorch, replayed without launching them (a GPU's)",
    load=load,
    takes=TAKES,
    needs=lambda own: Needs(ready_s=10.0),  # measured: 2 to 4 s with 7 billion parameters (docs/compiled.md)
    devices=devices,
    execution=lambda device: Execution(launches="replayed", kernels="separate"),
)
