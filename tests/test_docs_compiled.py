"""The tables of docs/compiled.md say what the file of results says, and name command, device and commit."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.imports import ROOT

TEXT = (ROOT / "docs" / "compiled.md").read_text(encoding="utf-8")
RESULTS: Mapping[str, Any] = json.loads((ROOT / "benchmarks/results/compiled-h200.json").read_text())
MOVED: Mapping[str, Any] = json.loads((ROOT / "benchmarks/results/compiled-h200-moved.json").read_text())
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


def test_the_run_behind_the_move_is_told_with_its_commit() -> None:
    assert f"commit {MOVED['environment']['commit'].removesuffix('+changes')} with the move itself" in TEXT
    (cell,) = MOVED["cells"]
    for what, told in (("decode_step", "a decode step"), ("prefill", "a prefill"), ("vision", "a vision side alone")):
        found = re.search(rf"{told} of ([\d.]+),\s+([\d.]+) and ([\d.]+) ms", TEXT)
        assert found, told
        for text, backend in zip(found.groups(), BACKENDS, strict=True):
            assert says(text, cell["backends"][backend]["median_ms"][what])


def test_command_device_and_versions_are_named() -> None:
    environment = RESULTS[MOLMO]["environment"]
    assert "python -m benchmarks.compiled --family molmo --preset 7b-d --dtype bfloat16 --images 2800x336" in TEXT
    assert f"One {environment['device_model']} (driver {environment['driver']})" in TEXT
    for package in ("torch", "transformers"):
        assert f"{package} {environment['versions'][package].rpartition('.')[0]}" in TEXT
    assert environment["commit"] is None
    assert "That file names no commit" in TEXT


def test_all_families_of_the_file_chose_the_same_tokens() -> None:
    assert RESULTS["same tokens"]["different"] == []
