"""The tables of docs/compiled.md say what the file of results says, and name command, device and commit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from benchmarks import compiled_rows
from tests.support.imports import ROOT
from vlmeter.models.families.registry import FAMILIES
from vlmeter.table.kinds import GENERATION, PREFILL, Kind
from vlmeter.table.quantities import (
    BUSY_PREFILL,
    BUSY_STEP,
    BUSY_VISION,
    INTER_TOKEN,
    PLAIN_WALL,
    VISION_ALONE_WALL,
    Quantity,
)

TEXT = (ROOT / "docs" / "compiled.md").read_text(encoding="utf-8")
RESULTS: Mapping[str, Any] = json.loads((ROOT / "benchmarks/results/compiled-h200.json").read_text())
BACKENDS = ("eager", "cudagraph", "compile")

MOLMO, NARROW, CROP = "molmo 7b-d", "molmo 7b-d, vision attention in the weights' format", "molmo 7b-d, one crop"
QWEN, SMALL_QWEN, INTERNVL = "qwen2_5_vl 7b, 1344x1344", "qwen2_5_vl 7b, 448x448", "internvl 8b"

#: Start of a row -> what its numbers are, in the order in which they stand: cell of the results, and what of it.
ROWS: Mapping[str, list[tuple[str, str]]] = {
    "prefill, 1,404 prompt tokens, 13 crops, vision attention in float32": [(MOLMO, "prefill")],
    "the same, `vision_attention_dtype: weights`": [(NARROW, "prefill")],
    "vision side in it, by its marks (float32 / weights)": [(MOLMO, "marked vision"), (NARROW, "marked vision")],
    "vision side alone, after a prefill (float32 / weights)": [(MOLMO, "vision"), (NARROW, "vision")],
    "prefill, 348 prompt tokens, 2 crops (launch-bound in eager)": [(CROP, "prefill")],
    "Qwen2.5-VL-7B, 1344x1344: vision encoder, by its marks": [(QWEN, "vision_encoder")],
    "... vision side alone": [(QWEN, "vision")],
    "... prefill of 2,346 tokens / decode step": [(QWEN, "prefill"), (QWEN, "decode_step")],
    "Qwen2.5-VL-7B, 448x448: vision side alone / prefill / step": [
        (SMALL_QWEN, "vision"), (SMALL_QWEN, "prefill"), (SMALL_QWEN, "decode_step"),
    ],
    "InternVL3-8B, 896x896: vision side alone / prefill / step": [
        (INTERNVL, "vision"), (INTERNVL, "prefill"), (INTERNVL, "decode_step"),
    ],
}  # fmt: skip


def numbers_in(field: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", field)


def row_of(start: str) -> list[str]:
    (line,) = (line for line in TEXT.splitlines() if line.startswith(f"| {start} |"))
    return [field.strip() for field in line.strip("|").split("|")][1:]


def measured(cell: str, backend: str, what: str) -> float:
    (found,) = RESULTS[cell]["cells"]
    own = found["backends"][backend]
    phases = own["median_phases_ms"]
    if what == "marked vision":
        return float(phases["vision_encoder"] + phases["projector"])
    return float((phases if what in phases and what != "decode_step" else own["median_ms"])[what])


def floor(cell: str, what: str) -> float:
    return float(RESULTS[cell]["cells"][0]["floor_ms"][what.removeprefix("marked ")])


def says(text: str, value: float) -> bool:
    """Whether a number in the text is the value, rounded to the digits that it has."""
    return abs(float(text) - value) <= 0.5001 * 10 ** -len(text.partition(".")[2])


@pytest.mark.parametrize("start", ROWS)
def test_a_row_says_what_was_measured(start: str) -> None:
    fields = row_of(start)
    for backend, field in zip(BACKENDS, fields, strict=False):
        said = numbers_in(field)
        assert len(said) == len(ROWS[start])
        for text, (cell, what) in zip(said, ROWS[start], strict=True):
            assert says(text, measured(cell, backend, what)), f"{what} of {cell} in {backend}"
    for text, (cell, what) in zip(numbers_in(fields[3]), ROWS[start], strict=True):
        assert says(text, floor(cell, what)), f"floor of {what} of {cell}"


def test_the_decode_step_of_molmo_is_that_of_the_file() -> None:
    eager, cudagraph, compiled, least, _ = row_of("decode step, 1,404 prompt tokens")
    low, high, busy = numbers_in(eager)
    every = [measured(cell, "eager", "decode_step") for cell in (MOLMO, NARROW, CROP)]
    assert float(low) <= min(every) <= max(every) <= float(high)
    assert says(busy, RESULTS[MOLMO]["cells"][0]["backends"]["eager"]["busy_ms"]["decode_step"])
    assert says(cudagraph, measured(MOLMO, "cudagraph", "decode_step"))
    ms, ratio = numbers_in(compiled)
    assert says(ms, measured(MOLMO, "compile", "decode_step"))
    assert says(ratio, measured(MOLMO, "compile", "decode_step") / floor(MOLMO, "decode_step"))
    assert says(least, floor(MOLMO, "decode_step"))


def test_wall_over_busy_is_what_the_page_says() -> None:
    """In the study of three runs; a ratio of the benchmark's medians, taken at different moments, lies further out."""
    own: dict[bool, list[float]] = {True: [], False: []}
    for card in ("card-1", "card-2"):
        table = pd.read_parquet(ROOT / "docs" / "repeat" / card / "table.parquet")

        def mean(quantity: Quantity, kind: Kind, table: pd.DataFrame = table) -> pd.Series:
            key = quantity.rows[kind]
            rows = table[(table["arm"] == key.arm) & (table["phase"] == key.phase) & (table["clock"] == key.clock)]
            rows = rows[rows["kind"] == kind]
            return rows.groupby(["subject", "cell_id"], observed=True)["median_ms"].mean()

        for wall, busy, kind in (
            (PLAIN_WALL, BUSY_PREFILL, PREFILL),
            (VISION_ALONE_WALL, BUSY_VISION, PREFILL),
            (INTER_TOKEN, BUSY_STEP, GENERATION),
        ):
            for (subject, _), ratio in (mean(wall, kind) / mean(busy, kind)).items():
                own[subject == "eager"].append(ratio)
    assert len(own[False]) == 2 * 2 * 7
    assert f"{max(own[False]):.3f} (eager: {max(own[True]):.2f})" in TEXT
    assert max(own[False]) <= 1.05

    every = [
        backend["median_ms"][what] / backend["busy_ms"][what]
        for row in RESULTS.values()
        if "cells" in row
        for name, backend in row["cells"][0]["backends"].items()
        if name != "eager"
        for what in ("prefill", "vision", "decode_step")
    ]
    assert f"between {min(every):.3f} and {max(every):.3f}" in TEXT


def test_command_device_and_versions_are_named() -> None:
    environment = RESULTS[MOLMO]["environment"]
    assert "python -m benchmarks.compiled --family molmo --preset 7b-d --dtype bfloat16 --images 2800x336" in TEXT
    assert f"One {environment['device_model']} (driver {environment['driver']})" in TEXT
    for package in ("torch", "transformers"):
        assert f"{package} {environment['versions'][package].rpartition('.')[0]}" in TEXT
    assert {row["environment"]["commit"] for row in RESULTS.values()} == {environment["commit"]} == {"8bd5016"}
    assert f"at commit {environment['commit']}" in TEXT


def test_all_families_of_the_file_chose_the_same_tokens() -> None:
    found = RESULTS["same tokens"]
    assert found["different"] == []
    assert set(found["families"]) == set(FAMILIES) - {"generic"}
    assert all(set(BACKENDS) == set(one) for one in found["families"].values())


def test_one_command_measures_the_rows_of_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A row that is there is left alone, one that fails is told, and the others stand in the file."""
    assert set(compiled_rows.ROWS) == set(RESULTS)
    asked: list[list[str]] = []

    def run(command: list[str], check: bool) -> SimpleNamespace:
        asked.append(command[3:-2])
        Path(command[-1]).write_text('{"value": 1.23456789}')
        return SimpleNamespace(returncode=int("--bad" in command))

    monkeypatch.setattr(compiled_rows.subprocess, "run", run)
    file = tmp_path / "rows.json"
    assert compiled_rows.measure({"one": ("--images", "1x1"), "two": ("--bad",)}, file) == 1
    assert json.loads(file.read_text()) == {"one": {"value": 1.23457}}
    assert compiled_rows.measure({"one": ("--images", "1x1"), "three": ("--images", "2x2")}, file) == 0
    assert asked == [["--images", "1x1"], ["--bad"], ["--images", "2x2"]]
    assert set(json.loads(file.read_text())) == {"one", "three"}
