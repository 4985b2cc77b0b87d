"""Plain PyTorch: every operator is launched by the host, one after the other."""

from __future__ import annotations

from vlmeter.backends.base import Backend, Execution, Loading, Runner


def load(asked: Loading) -> Runner:
    """Load a model on a device; torch is imported here."""
    from vlmeter.backends.eager_runner import load_runner

    return load_runner(asked)


BACKEND = Backend(
    name="eager",
    about="plain PyTorch",
    load=load,
    takes=frozenset(
        {
            "revision",
            "attention",
            "vision_attention_dtype",
            "device_map",
            "quantization",
            "trust_remote_code",
            "cpu_threads",
        }
    ),
    execution=lambda device: Execution(launches="each", kernels="separate"),
)
