"""Tables of one model that was run in several ways on a GPU: fakes whose launches and kernels take declared times."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from tests.support.fakes import FakeRunner, TellingRunner
from tests.support.studies import machine_of, run_fake, study_of
from vlmeter.table.build import build_table

MODEL: Mapping[str, Any] = {"family": "molmo", "preset": "nano", "dtype": "bfloat16", "device": "auto"}

#: Subject -> the keys that it has beside the model's.
WAYS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "graphs": {"backend": "cudagraph"},
    "fused": {"backend": "compile"},
    "served": {"backend": "endpoint", "endpoint": {"url": "http://127.0.0.1:8000"}},
}

#: A step of the kernels as they are, of fused ones, and what launching the former takes, in ms.
STEP_MS, FUSED_STEP_MS, LAUNCH_STEP_MS = 6.0, 4.0, 15.0

PREFILL = ("vision_encoder", "projector", "merge", "llm_blocks", "head")


def runner_of(name: str, **changes: Any) -> FakeRunner:
    """The fake of one of WAYS: `plain` waits for its launches, `fused` has faster kernels, the server is slow."""
    factor = {"fused": FUSED_STEP_MS / STEP_MS, "served": 1.5}.get(name, 1.0)
    plain = FakeRunner()
    runner = TellingRunner(
        fixed_ms={**{phase: factor * ms for phase, ms in plain.fixed_ms.items()}, "decode_step": factor * STEP_MS},
        per_crop_ms={phase: factor * ms for phase, ms in plain.per_crop_ms.items()},
        per_token_ms={"llm_blocks": factor * 0.02},
        launch_ms={**dict.fromkeys(PREFILL, 12.0), "decode_step": LAUNCH_STEP_MS} if name == "plain" else {},
        noise_fraction=0.002,
    )
    return replace(runner, **changes)


def ways_table(
    folder: Path,
    *names: str,
    runners: Mapping[str, FakeRunner] | None = None,
    keys: Mapping[str, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> pd.DataFrame:
    """The table of a study of these ways; `keys` are further keys of a subject, by name, and names of its own."""
    own = {name: {**WAYS.get(name, {}), **(keys or {}).get(name, {})} for name in names}
    study = study_of(
        subjects={name: {**MODEL, **given} for name, given in own.items()},
        experiments={
            "vision_tokens": {"tilings": ["1x1", "2x2", "3x4"]},
            "output_tokens": {"output_tokens": [8, 32]},
        },
        dataset={"source": "embedded", "images": 1},
        sampling={"min_samples": 9, "max_samples": 9, "max_seconds_per_cell": 1000},
        **changes,
    )
    for name in names:
        runner = (runners or {}).get(name) or runner_of(name)
        run_fake(study, folder, subject=name, machine=machine_of(runner))
    return build_table(sorted((folder / study.study / "cells").rglob("*.json")))
