"""`vlmeter.load` gives a notebook what the report says, as pandas."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import vlmeter
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.reading import Unknown
from vlmeter.common.errors import UserError
from vlmeter.report.notebook import FIT_COLUMNS, Results

ROOT = Path(__file__).parent.parent
GALLERY = ROOT / "docs" / "gallery"


@pytest.fixture(scope="module")
def gallery() -> Results:
    return vlmeter.load(GALLERY)


def test_importing_vlmeter_brings_no_pandas() -> None:
    code = "import sys, vlmeter; print('pandas' in sys.modules); vlmeter.load; print('pandas' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_only_what_is_there_can_be_asked_for() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        getattr(vlmeter, "lode")  # noqa: B009 - the type checker would refuse the plain form


def test_the_fits_are_those_of_the_report(gallery: Results) -> None:
    fits = gallery.fits.set_index(["law", "term"])
    said = answers_of(gallery.table)
    for name, place in (
        ("crop", ("costs", "crop")),
        ("vision_token", ("costs", "token")),
        ("output_token", ("decode_line", "per_token")),
    ):
        answer = said[name].found
        assert not isinstance(answer, Unknown)
        found = fits.loc[place, ["value", "low", "high"]].to_numpy(dtype=float)
        assert found == pytest.approx([answer.value, answer.low, answer.high])


def test_every_fit_has_a_number_or_the_reason_why_not() -> None:
    fits = vlmeter.load(ROOT / "docs" / "families" / "table.parquet").fits
    assert list(fits.columns) == list(FIT_COLUMNS)
    assert set(fits["subject"]) == {"internvl-8b", "llava-onevision-7b", "molmo-7b-d", "molmo-7b-d-eager"}
    assert (fits["value"].isna() == (fits["unknown"] != "")).all()
    of_internvl = fits[(fits["subject"] == "internvl-8b") & (fits["law"] == "prefill_plane")]
    assert set(of_internvl["unknown"]) == {"crops and tokens do not vary independently of each other in these cells"}


def test_frames_name_the_subject_of_each_row(gallery: Results) -> None:
    for frame in (gallery.prefills, gallery.generations, gallery.claims, gallery.roofline):
        assert set(frame["subject"]) == {"molmo-7b-d"}
        assert len(frame) > 20
    several = vlmeter.load(ROOT / "docs" / "families" / "table.parquet")
    assert list(several.prefills["subject"].unique()) == several.subjects


def test_what_is_not_there_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no table\.parquet; legal: the folder of a study that has run"):
        vlmeter.load(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        vlmeter.load(tmp_path / "table.parquet")
    alone = vlmeter.load(GALLERY / "table.parquet")
    with pytest.raises(UserError, match="a table alone was loaded; legal: the folder of a study that has run"):
        _ = alone.claims
