"""CONTRIBUTING's recipe for a family, walked in a copy of the library: a file, its presets, a line; it is measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: A file as a newcomer writes it: LLaVA 1.5, every image cropped to one square.
OWN_FAMILY = '''
"""LLaVA 1.5: CLIP on one square, a projection, Llama."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from vlmeter.common.errors import UserError
from vlmeter.models.families.base import Family, ImageOptions, ImageTokens
from vlmeter.models.families.native import NativeFamily
from vlmeter.models.families.loaded_native import Parts, Template


@dataclass(frozen=True)
class Llava15Geometry:
    """Always the same number of tokens."""

    vision_tokens: int
    layout_columns: ClassVar[tuple[str, ...]] = ()

    def image_tokens(self, width_px: int, height_px: int, *, options: ImageOptions) -> ImageTokens:
        return ImageTokens(width_px, height_px, crops=1, vision_tokens=self.vision_tokens, special_tokens=0)

    def candidates(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        return [(56, 56)]

    def tilings(self, *, options: ImageOptions) -> list[tuple[int, int]]:
        return []

    def size_for_tiling(self, tiling: tuple[int, int], *, options: ImageOptions) -> ImageTokens:
        raise UserError("LLaVA 1.5 does not cut")

    def limit(self, *, options: ImageOptions) -> str:
        return f"the family always makes {self.vision_tokens}"


class Llava15Family(NativeFamily):
    """LLaVA 1.5."""

    name = "llava15"
    model_types = ("llava",)
    parts = Parts(vision_encoder="model.vision_tower", projector=("model.multi_modal_projector",))
    template = Template(text="USER: {image}\\n{question} ASSISTANT:", image="<image>")

    def geometry_of(self, settings: Mapping[str, Any]) -> Llava15Geometry:
        side_px = settings["image_processor"]["crop_size"]["height"]
        return Llava15Geometry((side_px // settings["patch_size"]) ** 2)


FAMILY: Family = Llava15Family()
'''

STUDY = """
study: own
subjects:
  mine: {family: llava15, preset: nano, dtype: float32, device: cpu, cpu_threads: 1}
experiments:
  vision_tokens: {vision_tokens: [16], image_sizes: [300x200], text_tokens: 40}
sampling: {min_samples: 1, max_samples: 1, max_warmup: 2, min_warmup: 1}
"""

CLI = "from vlmeter.cli.main import main; main()"

MEASURE = """
import json, sys
from pathlib import Path
from vlmeter.study.loader import load_study
from vlmeter.inputs.images import write_dummy_image
from vlmeter.study.layout import Layout
from vlmeter.study.plan import build_plan
from vlmeter.records.record import read_record
from vlmeter.inputs.looks import made_pictures
from vlmeter.measure.subject import check_subject_counts, count_subject_work, measure_subject
study = load_study(Path("study.yaml"))
layout = Layout(study.study)
cells = build_plan(study)
for name, image in made_pictures(cells).items():
    write_dummy_image(layout.dummies / name, width_px=image.width_px, height_px=image.height_px, seed=image.seed)
counts = check_subject_counts(study, "mine", layout)
work = count_subject_work(study, "mine", layout)
summary = measure_subject(study, "mine", layout, tell=lambda text: None, progress=lambda step: None)
records = [read_record(layout.record(cell)) for cell in cells]
print(json.dumps({
    "vision_tokens": [c.vision_tokens for c in counts.cells.values()],
    "measured": summary.measured,
    "phases": sorted({s.phase for s in records[0].series if s.arm == "hooks"}),
    "flops": [sum(phase.flops for phase in cell.prefill) for cell in work.cells],
    "parameters": records[0].parameters,
}))
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the library with one more family: the file, and the registry's line."""
    root = tmp_path_factory.mktemp("recipe")
    shutil.copytree(ROOT / "vlmeter", root / "vlmeter", ignore=shutil.ignore_patterns("__pycache__"))
    families = root / "vlmeter" / "models" / "families"
    (families / "llava15.py").write_text(OWN_FAMILY)
    # the presets are data: here those of the toy LLaVA 1.5 that any other model is rehearsed with
    shutil.copy(families / "presets" / "generic.json", families / "presets" / "llava15.json")
    registry = root / "vlmeter" / "models" / "families" / "registry.py"
    line = '    "llava15": "vlmeter.models.families.llava15",\n'
    registry.write_text(registry.read_text().replace("FAMILIES = {\n", "FAMILIES = {\n" + line))
    (root / "study.yaml").write_text(STUDY)
    return root


def run(copy: Path, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "VLMETER_LOCK_DIR": str(copy / "locks")}
    environment["PYTHONPATH"] = os.pathsep.join([str(copy), *(path for path in sys.path if path != str(ROOT))])
    done = subprocess.run(
        [sys.executable, *arguments], cwd=copy, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_new_family_answers_at_the_command_line(copy: Path) -> None:
    told = json.loads(
        run(copy, "-c", CLI, "tokens", "640x480", "--family", "llava15", "--preset", "nano", "--format", "json")
    )
    assert (told[0]["crops"], told[0]["vision_tokens"]) == (1, 16)
    assert "vision-size-56x56" in run(copy, "-c", CLI, "plan", "study.yaml")


def test_a_new_family_is_checked_counted_and_measured(copy: Path) -> None:
    result = json.loads(run(copy, "-c", MEASURE).splitlines()[-1])
    assert result["vision_tokens"] == [16, 16]
    assert result["measured"] == 2
    assert {"vision_encoder", "projector", "merge", "llm_blocks", "head"} <= set(result["phases"])
    assert all(flops > 0 for flops in result["flops"])
    assert sum(result["parameters"].values()) == 241_184


def test_a_new_familys_checkpoints_are_known_by_their_model_type(copy: Path, tmp_path: Path) -> None:
    """Nothing but the family says which checkpoints are its own."""
    code = (
        "import json, sys; from pathlib import Path; from vlmeter.models.families.registry import family_of; "
        "print(json.dumps([family_of({'model_type': 'llava'}), "
        "family_of({'model_type': 'llava', 'vision_config': {'model_type': 'pixtral'}})]))"
    )
    assert json.loads(run(copy, "-c", code)) == ["llava15", "llava15"]
