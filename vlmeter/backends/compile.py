"""The same model with its kernels fused by `torch.compile`, and on a GPU replayed as CUDA graphs."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from vlmeter.backends.base import Backend, Execution, Loading, Needs, Runner


class Keys(BaseModel):
    """What a study says of a compiled subject."""

    compile_mode: Literal["default", "max-autotune"] = Field(
        "default", description="how hard torch.compile looks for fast kernels on a GPU"
    )


def load(asked: Loading) -> Runner:
    """Load a model on a device; torch is imported here."""
    from vlmeter.backends.compiled.compiled_runner import load_runner

    return load_runner(asked)


def execution(device: str) -> Execution:
    """Replayed on a GPU; on a CPU every part that is compiled is called by itself."""
    return Execution(launches="replayed" if device.startswith("cuda") else "fewer", kernels="fused")


BACKEND = Backend(
    name="compile",
    about="fused by torch.compile, and on a GPU replayed without launching",
    load=load,
    # no device_map and no quantization: a graph is one device's, and packed weights were never compiled
    takes=frozenset({"revision", "attention", "vision_attention_dtype", "trust_remote_code", "cpu_threads"}),
    keys=Keys,
    # measured: 2 to 16 s with 7 billion parameters (docs/compiled.md); max-autotune more
    needs=lambda own: Needs(ready_s=60.0),
    execution=execution,
)
