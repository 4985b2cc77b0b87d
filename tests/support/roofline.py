"""Devices of declared ceilings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from vlmeter.analysis.distribution import requests
from vlmeter.analysis.roofline import beside, roofline_table
from vlmeter.models.families.base import PREFILL_PHASES
from vlmeter.records.ceilings import Ceiling, Ceilings
from vlmeter.records.work import PhaseWork, ShapeWork, StepWork, SubjectWork, Work


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


def _work_of(cell: Mapping[Any, Any]) -> dict[str, Any]:
    return {
        "crops": cell["crops"],
        "vision_tokens": cell["vision_tokens"],
        "prompt_tokens": cell["prompt_tokens"],
        "prefill": tuple(
            PhaseWork(phase=phase, flops=int(1e8) * cell["crops"], weight_bytes=1000) for phase in PREFILL_PHASES
        ),
        "step": StepWork(flops=1000, flops_per_context_token=1, weight_bytes=int(1e9), cache_bytes_per_token=100),
    }


def with_floors(table: pd.DataFrame) -> pd.DataFrame:
    """Set work of declared size beside a table of fake cells: 0.1 ms of arithmetic per phase and crop."""
    dtype = str(table["dtype"].dropna().iloc[0])
    limits = ceilings_of(copy_bytes_per_s=1e12, matrix_flops_per_s=1e12, dtype=dtype)
    works = {}
    for subject, rows in table.groupby("subject"):
        cells = rows[rows["kind"] != "requests"].drop_duplicates("cell_id")
        shapes = requests(rows).drop_duplicates(["crops", "vision_tokens", "prompt_tokens"])
        works[subject] = SubjectWork(
            subject=subject,
            cells=tuple(Work(cell_id=cell["cell_id"], **_work_of(cell)) for cell in cells.to_dict("records")),
            shapes=tuple(ShapeWork(**_work_of(shape)) for shape in shapes.to_dict("records")),
        )
    return beside(table, roofline_table(table, works, dict.fromkeys(works, limits)))
