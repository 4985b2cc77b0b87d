"""`vlmeter measure` and `vlmeter run` through the real workflow, as somebody in an empty folder starts them."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from PIL import Image

from tests.support.hub import HubStandIn
from tests.support.imports import ROOT
from tests.support.sessions import heed_interrupts, wait_until, wait_until_gone, workers_of
from tests.support.workflow import PATIENCE_S, Workflow, fake_study
from vlmeter.models.served_checkpoint import write_checkpoint
from vlmeter.records.record import Record, read_record

pytestmark = [pytest.mark.xdist_group("workflow"), pytest.mark.slow]

NANO = ("--random", "--family", "molmo", "--preset", "nano", "--device", "cpu")

#: One image and a short answer, which take the least time.
LITTLE = ("--image", "336x336", "--output-tokens", "4", "--no-costs")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with nothing but a photograph in it."""
    (tmp_path / "mine").mkdir()
    Image.effect_noise((640, 480), 90).convert("RGB").save(tmp_path / "mine" / "photo.jpg")
    return tmp_path / "mine"


def environment(folder: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    own = {"PYTHONPATH": str(ROOT), "VLMETER_LOCK_DIR": str(folder.parent / "locks"), "HF_HOME": str(folder.parent)}
    return {**kept, **own, **more}


def vlmeter(folder: Path, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run the command line there."""
    command = [sys.executable, "-m", "vlmeter", *arguments]
    return subprocess.run(
        command, cwd=folder, env=environment(folder, **more), capture_output=True, text=True, timeout=PATIENCE_S
    )


def records_in(folder: Path) -> list[Record]:
    return [read_record(path) for path in sorted(folder.rglob("*.json")) if "cells" in path.parts]


def test_several_pictures_in_several_runs_as_json(folder: Path) -> None:
    asked = ("--image", "336x336", "--image", "photo.jpg", "--output-tokens", "8", "--no-costs", "--runs", "2")
    ran = vlmeter(folder, "measure", *NANO, "--backend", "fake", *asked, "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert "cell 2 of 2" in ran.stderr, "how far it is, aside"
    assert "Traceback" not in ran.stderr
    measured = records_in(folder)
    assert len({record.session.session_id for record in measured}) == 2
    assert {(record.status, record.cell.output_tokens) for record in measured} == {("ok", 8)}
    (subject,) = found["subjects"].values()
    assert {answer["section"] for answer in subject["answers"]} >= {"336x336 px", "photo.jpg (640x480 px)"}
    assert subject["trust"]["verdict"] in ("quiet", "disturbed", "unusable")
    assert all((folder / found[place]).is_file() for place in ("report", "study_file"))
    again = vlmeter(folder, "run", found["study_file"])
    assert "Nothing to be done" in again.stderr
    assert again.stdout.splitlines()[-1] == f"Report  {found['report']}"
    assert max(map(len, again.stdout.splitlines())) <= 100, "no terminal, no long lines"


@pytest.mark.needs("g++")
def test_a_checkpoint_is_loaded_from_a_hub_its_family_found_and_it_runs_as_asked(folder: Path, tmp_path: Path) -> None:
    """One in a folder is measured by the same line in test_real_studies, on a server."""
    checkpoint = tmp_path / "checkpoint"
    write_checkpoint(checkpoint, family="llava_next", preset="nano", weights=True)
    with HubStandIn({"models/acme/llava": checkpoint}) as hub:
        where = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"}
        ran = vlmeter(folder, "measure", "acme/llava", *LITTLE, "--device", "cpu", "--backend", "compile", **where)
        assert any(request.path.endswith(".safetensors") for request in hub.requests)
    assert ran.returncode == 0, ran.stderr
    (record,) = records_in(folder)
    subject = record.subject_config
    assert (record.status, subject.family, subject.backend) == ("ok", "llava_next", "compile")
    assert subject.weights == "acme/llava"
    assert "time to first token" in ran.stdout
    assert "backend compile" in " ".join(ran.stdout.split())
    report, study = (line.split()[1] for line in ran.stdout.splitlines()[-2:])
    assert (folder / report).is_file()
    assert yaml.safe_load((folder / study).read_text())["subjects"]


def test_a_hub_that_is_out_of_reach_is_one_sentence_and_nothing_is_written(folder: Path) -> None:
    ran = vlmeter(folder, "measure", "acme/llava", HF_ENDPOINT="http://127.0.0.1:9")
    assert (ran.returncode, ran.stdout) == (2, "")
    assert ran.stderr.startswith("vlmeter: acme/llava: not in the local cache, and the hub is out of reach")
    assert ran.stderr.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["photo.jpg"]


@pytest.fixture
def interrupted(folder: Path) -> Iterator[Any]:
    """Start a command that hangs once a cell is finished, and interrupt it alone; returns its code and words."""
    families: list[psutil.Process] = []

    def interrupt(*arguments: str) -> tuple[int, str]:
        happened = folder.parent / "happened"
        finished = "results/**/.journal/**/*.json"
        fault = json.dumps([{"what": "hang", "after": finished, "once": str(happened)}])
        process = subprocess.Popen(
            [sys.executable, "-m", "vlmeter", *arguments],
            cwd=folder,
            env=environment(folder, VLMETER_FAKE_FAULTS=fault),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heed_interrupts,
        )
        wait_until(lambda: happened.exists() or process.poll() is not None, patience_s=PATIENCE_S)
        assert process.poll() is None
        assert workers_of(process.pid)
        families.extend([psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)])
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
        wait_until_gone(families)
        return process.returncode, said

    yield interrupt
    for process in families:
        if process.is_running():
            process.kill()


@pytest.mark.parametrize("command", ["measure", "run"])
def test_an_interrupt_of_the_command_alone_ends_all_of_it_and_the_same_line_goes_on(
    command: str, folder: Path, interrupted: Any
) -> None:
    line = ["measure", *NANO, "--backend", "fake", "--image", "336x336", "--output-tokens", "4"]
    if command == "run":
        (folder / "study.yaml").write_text(yaml.safe_dump(fake_study()))
        line = ["run", "study.yaml", "--", "--until", "tabulate"]
    code, said = interrupted(*line)
    assert code == 130, said
    assert "the same command goes on from here" in said
    assert "Traceback" not in said
    assert not list(folder.rglob("*.tmp*"))
    assert not list(folder.glob("results/*/table.parquet"))
    again = vlmeter(folder, *line)
    assert again.returncode == 0, again.stderr
    (done,) = re.findall(r"vlmeter: \S+: (\d+) measured, (\d+) fresh, (\d+) restored", again.stderr)
    measured, fresh, restored = map(int, done)
    assert measured > 0
    assert fresh + restored > 0, "what was finished is not measured again"
    found = records_in(folder)
    assert len(found) == measured + fresh + restored
    assert {record.status for record in found} == {"ok"}


@pytest.mark.needs("make")
def test_make_run_and_snakemake_itself_end_with_the_summary(tmp_path: Path) -> None:
    """In a clone whose environment is complete: Python's packages are those of the tests."""
    study = fake_study(experiments={"requests": {"image_sizes": ["336x336"], "output_tokens": [1, 4]}})
    clone = Workflow(tmp_path / "copy", study).folder
    for name in ("Makefile", "pyproject.toml", "requirements.lock", "requirements-dev.lock"):
        shutil.copy(ROOT / name, clone)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(clone / ".venv")], check=True)
    (site,) = (clone / ".venv").glob("lib/python*/site-packages")
    (site / "here.pth").write_text(f"{clone}\n{sysconfig.get_path('purelib')}\n")
    program = clone / ".venv" / "bin" / "vlmeter"
    program.write_text(f"#!{clone}/.venv/bin/python\nfrom vlmeter.cli.main import main\nmain()\n")
    program.chmod(0o755)
    for stamp, of in ((".requirements.lock", "requirements.lock"), (".package", "pyproject.toml")):
        summed = f"{{ pwd -P; cat {of}; }} | cksum | cut -d ' ' -f 1"
        number = subprocess.run(summed, shell=True, cwd=clone, capture_output=True, text=True, check=True).stdout
        (clone / ".venv" / f"{stamp}-{number.strip()}").touch()
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "PYTHONPATH"))}
    own["VLMETER_LOCK_DIR"] = str(tmp_path / "locks")
    plain = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", "study.yaml"]
    for command in (["make", "run", "STUDY=study.yaml"], plain):
        # where nothing is to be done Snakemake alone says so, and no more
        (clone / "results" / "fake" / "report.html").unlink(missing_ok=True)
        ran = subprocess.run(command, cwd=clone, env=own, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        assert "336x336 px" in ran.stdout
        assert "each further token" in ran.stdout
        assert ran.stdout.splitlines()[-1] == "Report  results/fake/report.html"
