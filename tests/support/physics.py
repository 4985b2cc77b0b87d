"""Devices of declared ceilings."""

from __future__ import annotations

from vlmeter.ceilings import Ceiling, Ceilings


def ceilings_of(
    *, copy_bytes_per_s: float, matrix_flops_per_s: float, device_model: str = "fake device", dtype: str = "float32"
) -> Ceilings:
    """Ceilings of a device that can do exactly so much."""

    def exactly(value: float) -> Ceiling:
        return Ceiling(value=value, low=value, high=value, samples=(value,))

    return Ceilings(
        device_identity=f"{device_model}, driver 1",
        device_model=device_model,
        device_uuid=None,
        driver="1",
        dtype=dtype,
        torch_threads=1,
        versions={},
        measured_at="2026-01-01T00:00:00+00:00",
        copy_bytes_per_s=exactly(copy_bytes_per_s),
        matrix_flops_per_s=exactly(matrix_flops_per_s),
        matrix_side=8192,
        launch_ms=exactly(0.005),
    )


#: As the data sheets say: H200 and A100 SXM 80 GB with dense bf16 products.
H200 = ceilings_of(copy_bytes_per_s=4.8e12, matrix_flops_per_s=989e12, device_model="H200", dtype="bfloat16")
A100 = ceilings_of(copy_bytes_per_s=2.039e12, matrix_flops_per_s=312e12, device_model="A100", dtype="bfloat16")
