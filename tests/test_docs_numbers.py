"""Numbers of the documentation that tables of measured studies give are what they give now."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.support.imports import ROOT
from vlmeter.analysis.answer_files import answers_beside

DOCS = ROOT / "docs"


def words_of(name: str) -> str:
    return " ".join((DOCS / name).read_text(encoding="utf-8").split())


def test_the_prediction_of_the_gallery_is_what_the_command_prints() -> None:
    asked = ["--study", str(DOCS / "gallery"), "--image", "1920x1080", "--output-tokens", "200"]
    command = [sys.executable, "-m", "vlmeter", "predict", *asked]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120).stdout.strip()
    assert said.startswith("molmo-7b-d on NVIDIA H200")
    assert said in (DOCS / "predicting.md").read_text(encoding="utf-8")
    (held_out,) = (line for line in said.splitlines() if "held out, time_to_first_token" in line)
    error, holds = held_out.rpartition("median error ")[2].split(", and ")
    assert f"| {error} in the median; {holds} |" in (DOCS / "gallery" / "README.md").read_text(encoding="utf-8")


def test_what_a_screenshot_costs_in_three_families_is_what_their_table_answers() -> None:
    found: Any = answers_beside(DOCS / "families" / "table.parquet")
    names = ("internvl-8b", "llava-onevision-7b", "molmo-7b-d")
    said = [found[name]["first_token_1920x1080"].said() for name in names]
    assert f"costs {said[0]}, {said[1]} and {said[2]} to the first token" in words_of("families.md")
