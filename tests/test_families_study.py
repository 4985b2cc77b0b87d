"""Every family, from its own processor to the comparison: one study, run as a user runs it.

It takes minutes, so it is a file of its own: the other tests go on beside it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from tests.support.imports import ROOT
from tests.support.tables import OF_SERVERS, OF_WAYS
from tests.support.workflow import Workflow
from vlmeter.analysis.subjects import shared_images
from vlmeter.figures.registry import SIDE_BY_SIDE
from vlmeter.models.families.registry import FAMILIES
from vlmeter.study.layout import ALL_SUBJECTS
from vlmeter.table.files import read_table


@pytest.mark.slow
def test_every_family_is_measured_on_a_cpu_or_says_why_it_cannot_be(tmp_path: Path) -> None:
    study = yaml.safe_load((ROOT / "studies" / "families-nano.yaml").read_text(encoding="utf-8"))
    assert {subject["family"] for subject in study["subjects"].values()} == set(FAMILIES)
    study["sampling"] |= {"min_samples": 3, "max_samples": 3}  # nothing here looks at an interval
    workflow = Workflow(tmp_path / "copy", study)
    ran = workflow.run("--until", "draw_side_by_side")
    assert ran.code == 0, ran.said
    table = read_table(workflow.layout.table)
    unsupported = table[table["status"] == "unsupported"]
    assert set(unsupported["family"]) == (set() if find_spec("torchvision") else {"molmo2"})
    assert unsupported["reason"].str.contains("torchvision").all()
    measured = set(study["subjects"]) - set(unsupported["subject"])
    assert set(table.loc[table["status"] == "ok", "subject"]) == measured
    shared = shared_images(table)
    assert set(shared.loc[shared["image"] == "640 x 480 px", "subject"]) == measured
    for name in SIDE_BY_SIDE:
        said = workflow.layout.figure(ALL_SUBJECTS, name, "txt").read_text()
        assert said.startswith("Not drawn") == (name in OF_SERVERS | OF_WAYS)
