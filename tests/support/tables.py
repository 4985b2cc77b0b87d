"""Tables of fake studies, through the same session and the same records as real ones."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tests.support.fakes import FakeRunner
from tests.support.studies import machine_of, run_fake, study_of
from vlmeter.measure.monitors import Monitor
from vlmeter.study.study import Study
from vlmeter.table.build import build_table
from vlmeter.table.kinds import OTHERWISE, PREFILL

#: Tilings in which crops and tokens vary independently of each other, 1x7 and 2x4 with equal tokens among them.
TILINGS = ["1x1", "1x2", "2x2", "1x5", "1x7", "2x4", "3x3", "1x10", "2x6", "3x4", "6x2", "1x12"]

VISION = {"tilings": TILINGS}
OUTPUT: dict[str, Any] = {"output_tokens": [8, 16, 32, 64], "sampling": {"min_samples": 5, "max_samples": 5}}

#: Requests enough for every percentile, with answers of four lengths.
LATENCY: dict[str, Any] = {"samples": 320, "block_samples": 80, "output_tokens": [4, 8, 16, 64]}


def records_of(
    results: Path,
    *,
    runner: FakeRunner | None = None,
    monitor: Monitor | None = None,
    vision: dict[str, Any] | None = VISION,
    output: dict[str, Any] | None = OUTPUT,
    latency: dict[str, Any] | None = None,
    **changes: Any,
) -> list[Path]:
    """Run a fake study into `results`; returns its records' paths."""
    study = _study(vision, output, latency, **changes)
    run_fake(study, results, machine=machine_of(runner or FakeRunner(), monitor=monitor))
    return sorted((results / study.study / "cells").rglob("*.json"))


def _study(
    vision: dict[str, Any] | None, output: dict[str, Any] | None, latency: dict[str, Any] | None, **changes: Any
) -> Study:
    experiments = {"vision_tokens": vision, "output_tokens": output, "latency_distribution": latency}
    return study_of(
        experiments={name: given for name, given in experiments.items() if given is not None},
        dataset={"source": "embedded", "images": 6},
        sampling={"min_samples": 9, "max_samples": 9, "max_seconds_per_cell": 1000},
        **changes,
    )


def table_of_runs(
    results: Path,
    runners: Sequence[FakeRunner],
    *,
    vision: dict[str, Any] | None = VISION,
    output: dict[str, Any] | None = OUTPUT,
    latency: dict[str, Any] | None = None,
) -> pd.DataFrame:
    """The table of a fake study that was run once on each of the runners."""
    study = _study(vision, output, latency, runs=len(runners))
    for run, runner in enumerate(runners):
        run_fake(study, results, runner=runner, run=run)
    return build_table(sorted((results / study.study).rglob("cells/fake/*.json")))


def table_of(results: Path, **options: Any) -> pd.DataFrame:
    """The table of a fake study; options are those of `records_of`."""
    return build_table(records_of(results, **options))


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change a record's file in place."""
    data = json.loads(path.read_bytes())
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


class CpuLikeRunner(FakeRunner):
    """A fake subject whose busy time cannot be measured, as on a CPU."""

    def busy(self, prompt: Any, *, repeats: int) -> Any:
        return [], "a CPU works in step with the host, so its busy time is its wall time"

    busy_step = busy


#: Figures that want a server in the table; test_waits draws them.
OF_SERVERS = frozenset({"first_token_by_tokens", "first_token_by_format", "side_by_side_waits"})

#: Figures that want one model, run in several ways, in the table; test_software draws them.
OF_WAYS = frozenset({"side_by_side_software"})

#: What lies around the model on the server of `at_a_server`, in ms.
AROUND_MS = {"upload": 1.0, "server_inputs": 20.0, "return": 2.0}


def at_a_server(path: Path, *, factor: float = 1.0) -> Path:
    """Turn a record of a fake into that of a server: AROUND_MS times `factor` lies around its phases."""
    whole_ms = factor * sum(AROUND_MS.values())

    def change(data: dict[str, Any]) -> None:
        marked = [series for series in data["series"] if series["phase"] == "llm_blocks"]
        for series in data["series"]:
            if series["phase"] == "total" and series["arm"] in ("plain", "hooks", "request"):
                series["samples_ms"] = [sample + whole_ms for sample in series["samples_ms"]]
        for series in marked:
            for phase, ms in AROUND_MS.items():
                samples = [factor * ms for _ in series["samples_ms"]]
                data["series"].append({**series, "phase": phase, "samples_ms": samples})

    return rewrite(path, change)


def in_formats(table: pd.DataFrame, qualities: Sequence[int]) -> pd.DataFrame:
    """Add each prefill of a server's table once more per quality, as a JPEG: fewer bytes, less time."""
    prefills = table[table["kind"] == PREFILL]
    pixels = prefills["width_px"] * prefills["height_px"]
    parts = [table.drop(prefills.index), prefills.assign(image_format="png", image_bytes=3 * pixels)]
    for quality in qualities:
        sent = prefills.assign(
            cell_id=prefills["cell_id"] + f"-jpeg{quality}",
            kind=OTHERWISE,
            image_format="jpeg",
            image_quality=quality,
            image_bytes=pixels * quality // 50,
        )
        factor = 0.5 + quality / 250
        times = {name: sent[name] * factor for name in ("median_ms", "low_ms", "high_ms")}
        samples = [np.asarray(one) * factor for one in sent["samples_ms"]]
        parts.append(sent.assign(**times, samples_ms=pd.Series(samples, index=sent.index)))
    return pd.concat(parts, ignore_index=True)
