"""CONTRIBUTING's other recipes, each walked in a copy of the library: a file or function, a line, and it is there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tables import table_of
from vlmeter.table.files import write_table

ROOT = Path(__file__).parents[1]

BACKEND = '''
"""Plain PyTorch without anything that may come out differently twice."""

from __future__ import annotations

from pydantic import BaseModel, Field

from vlmeter.backends.base import Backend, Loading, Runner


class Keys(BaseModel):
    """What a study may say of it."""

    warn_only: bool = Field(False, description="go on where something cannot be made deterministic")


def load(asked: Loading) -> Runner:
    """Load the subject as eager does, after ruling out what is not deterministic."""
    import torch

    from vlmeter.backends.eager_runner import load_runner

    torch.use_deterministic_algorithms(True, warn_only=asked.own["warn_only"])
    return load_runner(asked)


BACKEND = Backend(
    name="deterministic", about="plain PyTorch, the same each time", load=load, takes=frozenset(), keys=Keys
)
'''

FIGURE = '''
"""What prompts are made of: vision, special and text tokens of each image."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from vlmeter.analysis.prefill_cells import vision_cells
from vlmeter.figures import style

NAME = "prompt_parts"
TITLE = "What a prompt is made of"
SECTION = "vision"


def needs(table: pd.DataFrame) -> str | None:
    """Vision-token cells."""
    return "no vision-token cell was measured" if vision_cells(table).empty else None


def draw(table: pd.DataFrame) -> Figure:
    """Draw all prompt tokens over vision tokens."""
    cells = vision_cells(table)
    with style.styled():
        figure, (axes,) = style.new_figure()
        axes.plot(cells["vision_tokens"], cells["prompt_tokens"], "o")
        style.token_axis(axes, "vision tokens")
        axes.set_ylabel("prompt tokens")
        style.title(axes, TITLE, table)
    return figure


def caption(table: pd.DataFrame) -> str:
    """Say how much of the longest prompt is vision."""
    longest = vision_cells(table).iloc[-1]
    return f"Of {longest['prompt_tokens']} prompt tokens {longest['vision_tokens']} carry the image."
'''

CLAIM = '''
"""Claims about prompts."""

from vlmeter.claims.base import Data, Evidence, Finding, cannot_tell


def vision_is_most_of_a_prompt(data: Data) -> Finding:
    """Most tokens of a prompt carry the image."""
    if data.cells.empty:
        return cannot_tell("no vision-token cell was measured")
    share = (data.cells["vision_tokens"] / data.cells["prompt_tokens"]).astype(float)
    evidence = (Evidence("smallest share", float(share.min()), None, None, "fraction"),)
    if share.min() > 0.5:
        return Finding("holds", "Most tokens of every prompt carry the image.", evidence)
    return Finding("does not hold", "There are prompts of which most is something else.", evidence)
'''

#: An entry of a family's presets, as data.
PRESET = {
    "about": "a smaller toy",
    "source": "made up",
    "parameters": {"vision_encoder": 1, "projector": 1, "embedding": 1, "llm_blocks": 1, "head": 1},
    "config": {
        "model_type": "molmo",
        "vocab_size": 512,
        "embedding_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_theta": 1e6,
        "layer_norm_eps": 1e-6,
        "qkv_bias": True,
        "eos_token_id": 511,
    },
}


GAUGE = '''

@of_device(over_rounds=MEDIAN, over_devices=SUM)
def power_limit_w(device: Device) -> float | None:
    """Power that the device may draw."""
    limit_mw = device.ask("PowerManagementLimit")
    return None if limit_mw is None else limit_mw / 1000
'''


def insert(path: Path, before: str, new: str) -> None:
    """Put text in the place of a text that stands there once."""
    content = path.read_text()
    assert content.count(before) == 1, f"{before!r} stands {content.count(before)} times in {path.name}"
    path.write_text(content.replace(before, new))


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "vlmeter", tmp_path / "vlmeter", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run(copy: Path, code: str) -> str:
    """Run code against the copy; returns the last line that it prints."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(copy), *(path for path in sys.path if path != str(ROOT))])
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def table_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    table = table_of(folder / "records", vision={"tilings": ["1x1", "2x2", "3x4"]}, output=None)
    write_table(table, folder / "table.parquet", folder / "table.csv")
    return folder / "table.parquet"


def test_a_backend_is_one_file_and_one_line(copy: Path) -> None:
    (copy / "vlmeter/backends/deterministic.py").write_text(BACKEND)
    registry = copy / "vlmeter/backends/registry.py"
    insert(registry, "BACKENDS = {\n", 'BACKENDS = {\n    "deterministic": "vlmeter.backends.deterministic",\n')
    said = run(
        copy,
        """
import json, torch
from vlmeter.backends.base import OpenedRequest
from vlmeter.backends.registry import load_runner
from vlmeter.common.errors import UserError
from vlmeter.study.loader import parse_study
from vlmeter.study.subject import Subject, loading
from vlmeter.records.fingerprint import measuring_modules
from vlmeter.inputs.images import dummy_image
from vlmeter.models.families.base import ImageOptions
subject = Subject(family="molmo", preset="nano", dtype="float32", backend="deterministic", warn_only=True)
runner = load_runner(subject.backend, loading(subject, device="cpu"))
prompt = runner.prepare(
    OpenedRequest(pictures=(dummy_image(336, 336, seed=0),), question=None, text_tokens=20, options=ImageOptions())
)
runner.generate(prompt, output_tokens=1, stop="length")
refused = ""
try:
    parse_study({"study": "own", "subjects": {"a": {"family": "molmo", "preset": "nano", "warn_only": True}},
                 "experiments": {"vision_tokens": {"tilings": ["1x1"]}}}, source="own")
except UserError as error:
    refused = str(error)
print(json.dumps([torch.is_deterministic_algorithms_warn_only_enabled(), prompt.counts.vision_tokens, refused,
                  "vlmeter.backends.deterministic" in measuring_modules(subject)]))
""",
    )
    warn_only, vision_tokens, refused, is_measuring = json.loads(said)
    assert (warn_only, vision_tokens, is_measuring) == (True, 288, True)
    assert "warn_only is given, and backend eager does not know it; it takes attention, " in refused


def test_a_figure_is_one_file_and_one_line(copy: Path, table_file: Path) -> None:
    (copy / "vlmeter/figures/prompt_parts.py").write_text(FIGURE)
    registry = copy / "vlmeter/figures/registry.py"
    insert(registry, "\nFIGURES = {\n", '\nFIGURES = {\n    "prompt_parts": "vlmeter.figures.prompt_parts",\n')
    said = run(
        copy,
        f"""
from pathlib import Path
from vlmeter.figures.registry import FIGURES, draw_or_explain
from vlmeter.figures.style import save
from vlmeter.table.files import read_table
assert "prompt_parts" in FIGURES
figure, caption = draw_or_explain(read_table(Path({str(table_file)!r})), "prompt_parts")
save(figure, Path("prompt_parts"))
print(caption)
""",
    )
    assert said == "Of 1228 prompt tokens 1152 carry the image."
    assert all((copy / f"prompt_parts.{suffix}").stat().st_size > 1000 for suffix in ("svg", "png", "pdf"))


def test_a_claim_is_one_function_and_one_line(copy: Path, table_file: Path) -> None:
    claims = copy / "vlmeter/claims/registry.py"
    (copy / "vlmeter/claims/prompts.py").write_text(CLAIM.lstrip())
    known = "from vlmeter.claims.requests import "
    insert(claims, known, "from vlmeter.claims.prompts import vision_is_most_of_a_prompt\n" + known)
    line = '    "vision_is_most_of_a_prompt": Entry("Most of a prompt is vision", vision_is_most_of_a_prompt, ()),\n'
    insert(claims, "CLAIMS: Mapping[str, Entry] = {\n", "CLAIMS: Mapping[str, Entry] = {\n" + line)
    said = run(
        copy,
        f"""
from pathlib import Path
from vlmeter.claims.registry import judge_all
from vlmeter.table.files import read_table
found = {{claim.name: claim for claim in judge_all(read_table(Path({str(table_file)!r})), "fake")}}
print(found["vision_is_most_of_a_prompt"].verdict, "-", found["vision_is_most_of_a_prompt"].statement)
""",
    )
    assert said == "holds - Most tokens of every prompt carry the image."


def test_a_preset_is_one_entry_of_data(copy: Path) -> None:
    path = copy / "vlmeter/models/families/presets/molmo.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "micro": PRESET}))
    said = run(
        copy,
        """
from vlmeter.study.loader import parse_study
from vlmeter.study.plan import build_plan
study = parse_study({"study": "own", "subjects": {"mine": {"family": "molmo", "preset": "micro"}},
                     "experiments": {"vision_tokens": {"reachable": 4}}}, source="own")
print(len(build_plan(study)))
""",
    )
    assert said == "4"


def test_a_measured_quantity_is_one_function(copy: Path) -> None:
    """It is read around every round, kept in the records, and a column of the table and of the data dictionary."""
    gauges = copy / "vlmeter/records/gauges.py"
    gauges.write_text(gauges.read_text() + GAUGE)
    (copy / "tests").symlink_to(ROOT / "tests")
    (copy / "benchmarks").symlink_to(ROOT / "benchmarks")
    said = run(
        copy,
        """
import json, sys
from pathlib import Path
from tests.support.nvml import FakeGpu, fake_nvml
sys.modules["pynvml"] = fake_nvml(FakeGpu(power_limit_mw=350_000))
from tests.support.tables import records_of
from vlmeter.measure.monitors import NvmlMonitor
from vlmeter.records.record import read_record
from vlmeter.table.build import build_table
from vlmeter.table.columns import data_dictionary
records = records_of(Path("records"), monitor=NvmlMonitor("GPU-fake"), vision={"tilings": ["1x1"]}, output=None)
read = {state.readings["power_limit_w"] for state in read_record(records[0]).rounds}
column = data_dictionary().set_index("name").loc["power_limit_w"]
table = build_table(records)
print(json.dumps([sorted(read), table["power_limit_w"].unique().tolist(), column["unit"], column["description"]]))
""",
    )
    assert json.loads(said) == [[350.0], [350.0], "W", "power that the device may draw (median over rounds)"]


def test_what_is_known_of_a_cell_becomes_a_column_by_one_entry(copy: Path, table_file: Path) -> None:
    columns = copy / "vlmeter/table/columns.py"
    known = '    ("family", "string", "model family", "subject_config.family"),\n'
    own = '    ("fingerprint_parts", "integer", "parts of the fingerprint", lambda record: len(record.fingerprint)),\n'
    insert(columns, known, known + own)
    records = sorted((table_file.parent / "records").rglob("cells/**/*.json"))
    said = run(
        copy,
        f"""
from pathlib import Path
from vlmeter.records.record import read_record
from vlmeter.table.build import build_table
record = Path({str(records[0])!r})
print(build_table([record])["fingerprint_parts"].unique().tolist() == [len(read_record(record).fingerprint)])
""",
    )
    assert said == "True"
