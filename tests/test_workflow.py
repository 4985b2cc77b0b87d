"""The workflow, run as a user runs it: what is measured again and what is not, and what a person is told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.support.imports import ROOT
from tests.support.sessions import wait_until, wait_until_gone, workers_of
from tests.support.tables import OF_SERVERS, OF_WAYS
from tests.support.workflow import PATIENCE_S, Ran, Workflow, fake_study
from vlmeter.analysis.distribution import sample_of
from vlmeter.figures.registry import FIGURES, SIDE_BY_SIDE
from vlmeter.study.layout import ALL_SUBJECTS
from vlmeter.table.files import read_table

pytestmark = [pytest.mark.xdist_group("workflow"), pytest.mark.timeout(1800)]  # whole runs, some after one another


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workflow:
    """A study on the fake backend that has been measured and gathered into a table."""
    workflow = Workflow(tmp_path_factory.mktemp("finished") / "copy", fake_study())
    ran = workflow.measure()
    assert ran.code == 0, ran.said
    return workflow


@pytest.fixture
def workflow(finished: Workflow, tmp_path: Path) -> Workflow:
    """A copy of the finished study, with the times of its files."""
    shutil.copytree(finished.folder, tmp_path / "copy", symlinks=True)
    copy = object.__new__(Workflow)
    copy.folder = tmp_path / "copy"
    copy.write(finished.content)
    return copy


def measured_again(workflow: Workflow, before: dict[str, str]) -> set[str]:
    """Cells whose session is another one than before."""
    return {name for name, session in workflow.sessions().items() if before.get(name) != session}


# --- what is measured again -------------------------------------------------------------------------


def test_a_second_run_has_nothing_to_do(workflow: Workflow) -> None:
    before = workflow.sessions()
    assert workflow.measure().nothing_to_do
    assert workflow.sessions() == before
    assert set(workflow.states().values()) == {"fresh"}


def test_a_deleted_cell_is_measured_again_and_no_other(workflow: Workflow) -> None:
    before = workflow.sessions()
    workflow.layout.record(workflow.cells[2]).unlink()
    ran = workflow.measure()
    assert ran.code == 0
    assert measured_again(workflow, before) == {"one/vision-tiling-2x2"}
    assert "vlmeter: one: 1 measured, 7 fresh, 0 restored" in ran.said
    assert workflow.measure().nothing_to_do


def test_another_output_length_measures_the_new_cells_and_no_other(workflow: Workflow) -> None:
    before = workflow.sessions()
    experiments = fake_study()["experiments"]
    experiments["output_tokens"]["output_tokens"] = [4, 8, 16]
    workflow.write(fake_study(experiments=experiments))
    ran = workflow.measure()
    assert "Measuring one: 2 of 10 cells (2 missing)" in ran.said
    assert measured_again(workflow, before) == {"one/output-image0-n16", "one/output-image1-n16"}


def edit(workflow: Workflow, module: str) -> None:
    with (workflow.folder / "vlmeter" / module).open("a") as file:
        file.write("\nEDITED = True\n")


def test_an_edit_of_a_figures_code_measures_nothing_again(workflow: Workflow) -> None:
    edit(workflow, "figures/style.py")
    edit(workflow, "report/page.py")
    assert workflow.measure().nothing_to_do
    assert set(workflow.states().values()) == {"fresh"}


def test_words_about_measuring_code_measure_nothing_again(workflow: Workflow) -> None:
    path = workflow.folder / "vlmeter" / "backends" / "clock.py"
    path.write_text(f"# a comment\n{path.read_text()}\n# and another\n")
    assert workflow.measure().nothing_to_do
    assert set(workflow.states().values()) == {"fresh"}


def test_an_edit_of_measuring_code_measures_everything_again(workflow: Workflow) -> None:
    before = workflow.sessions()
    edit(workflow, "backends/clock.py")
    assert {(row["state"], row["reason"]) for row in workflow.status()} == {("stale", "code")}
    ran = workflow.measure()
    assert "Measuring one: 8 of 8 cells (8 stale: code)" in ran.said
    assert measured_again(workflow, before) == set(before)
    assert workflow.measure().nothing_to_do


def test_an_edit_of_the_table_makes_the_table_again_and_measures_nothing(workflow: Workflow) -> None:
    before = workflow.sessions()
    edit(workflow, "table/build.py")
    ran = workflow.measure()
    assert "into one table" in ran.said
    assert "Measuring" not in ran.said
    assert workflow.sessions() == before


def test_more_requests_measure_the_new_blocks_and_no_other(workflow: Workflow) -> None:
    before = workflow.sessions()
    experiments = dict(workflow.content["experiments"])
    for samples, new in ((6, 2), (9, 1)):
        experiments["latency_distribution"] = {"samples": samples, "block_samples": 3, "output_tokens": 2}
        workflow.write({**workflow.content, "experiments": experiments})
        assert workflow.measure().code == 0
        assert len(measured_again(workflow, before)) == new
        before = workflow.sessions()
    assert set(workflow.states().values()) == {"fresh"}


def test_forgotten_cells_are_measured_again_on_purpose(workflow: Workflow) -> None:
    before = workflow.sessions()
    assert "4 cells chosen, 4 records deleted" in workflow.vlmeter("forget", "study.yaml", "output-*").said
    workflow.measure()
    assert measured_again(workflow, before) == {name for name in before if "output" in name}


def test_status_and_snakemake_agree_on_records_that_do_not_hold(workflow: Workflow) -> None:
    """Snakemake's own eyes see files that are there, newer than their inputs."""
    before = workflow.sessions()
    paths = [workflow.layout.record(cell) for cell in workflow.cells[:4]]
    texts = [path.read_text() for path in paths]
    paths[0].write_text(texts[0][: len(texts[0]) // 2])
    paths[1].write_text("")
    paths[2].write_text(texts[2].replace('"protocol":"', '"protocol":"0'))
    paths[3].write_text(texts[3].replace('"series":', '"serious":'))
    stale = {f"one/{cell.cell_id}" for cell in workflow.cells[:4]}
    assert {name for name, state in workflow.states().items() if state == "stale"} == stale
    assert "Measuring one: 4 of 8 cells (4 stale: protocol, unreadable)" in workflow.run("-n").said
    assert workflow.run("--until", "measure_one").code == 0
    assert set(workflow.states().values()) == {"fresh"}
    assert {name for name, session in workflow.sessions().items() if before[name] != session} == stale
    assert workflow.measure().code == 0
    assert workflow.measure().nothing_to_do
    assert not workflow.layout.stale_marks.exists()


@pytest.mark.parametrize(
    ("was", "now", "sentence"),
    [
        (
            '"device_identity":"fake device"',
            '"device_identity":"other"',
            "was measured on other, and this is fake device",
        ),
        ('"record_version":3', '"record_version":0', "has record_version 0, and this vlmeter reads 3"),
    ],
)
def test_records_of_another_device_or_version_are_refused_with_the_choice(
    was: str, now: str, sentence: str, workflow: Workflow
) -> None:
    path = workflow.layout.record(workflow.cells[0])
    path.write_text(path.read_text().replace(was, now))
    workflow.layout.record(workflow.cells[1]).unlink()
    old = path.read_text()
    ran = workflow.measure()
    assert ran.code != 0
    (line,) = ran.lines("vlmeter: record")
    assert sentence in line
    assert "another name" in line
    assert "`vlmeter forget`" in line
    assert path.read_text() == old


# --- what a person is told --------------------------------------------------------------------------


def test_a_bad_study_gets_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    workflow = Workflow(tmp_path / "copy", fake_study())
    text = (workflow.folder / "study.yaml").read_text()
    (workflow.folder / "study.yaml").write_text(text.replace("tilings:", "tillings:"))
    ran = workflow.run()
    assert ran.code != 0
    (line,) = ran.lines("vlmeter: ")
    assert "key experiments.vision_tokens.tillings is not known (did you mean tilings?)" in line
    assert "Traceback" not in ran.said
    assert not (workflow.folder / "results").exists()


@pytest.mark.parametrize(
    ("more", "arguments", "sentence"),
    [
        ("seed: 1\nseed: 2\n", [], "key 'seed' is given twice"),
        ("sampling: {max_samples: 2e1}\n", [], "sampling.max_samples: 20.0 is not legal; legal: a whole number"),
        ("seed: 1\n", ["--config", 'sampling={"max_samples": "7"}'], 'sampling.max_samples: "7" is not legal'),
        ("seed: 1\n", ["--config", "seed=x: y: z"], "--config 'seed=x: y: z' line 1, column 5: mapping values"),
        ("", [], "Config file must be given as JSON or YAML with keys at top level."),
    ],
)
def test_the_workflow_refuses_what_the_command_line_refuses(
    more: str, arguments: list[str], sentence: str, tmp_path: Path
) -> None:
    workflow = Workflow(tmp_path / "copy", fake_study())
    (workflow.folder / "more.yaml").write_text(more)
    ran = workflow.run("-n", "--configfile", "study.yaml", "more.yaml", *arguments)
    assert ran.code != 0
    assert sentence in ran.said
    assert "Traceback" not in ran.said
    asked = workflow.vlmeter("plan", "study.yaml", "--configfile", "more.yaml", *arguments)
    assert asked.code == 2
    if more:
        assert ran.lines("vlmeter: ") == asked.lines("vlmeter: ")


def test_every_file_and_value_reaches_the_session_as_the_command_line_reads_it(workflow: Workflow) -> None:
    (workflow.folder / "more.yaml").write_text("cell_time_limit_seconds: 2e1\nsampling: {max_samples: 6}\n")
    more = ["--configfile", "more.yaml"]
    values = ["--config", 'sampling={"max_samples": 7}']
    ran = workflow.run("--until", "tabulate", "--configfile", "study.yaml", "more.yaml", *values)
    assert "Measuring one: 4 of 8 cells (4 stale: protocol)" in ran.said, "the others have a sampling of their own"
    status = json.loads(workflow.vlmeter("status", "study.yaml", *more, *values, "--format", "json").said)
    assert {row["state"] for row in status} == {"fresh"}
    assert workflow.run("--until", "tabulate", "--configfile", "study.yaml", "more.yaml", *values).nothing_to_do


def test_a_missing_study_is_named_before_anything_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vlmeter", "run", "typo.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=os.environ)
    assert (done.returncode, done.stderr) == (2, "vlmeter: study file typo.yaml does not exist\n")


# --- where it lies, and who runs it -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["My Drive", "it's (a) $HOME & co #1 ü%s"])
def test_a_folder_of_any_name_will_do(name: str, tmp_path: Path) -> None:
    workflow = Workflow(tmp_path / name / "vlmeter", fake_study())
    assert workflow.measure().code == 0
    assert workflow.layout.table.exists()
    assert workflow.measure().nothing_to_do


def test_a_folder_that_cannot_do_is_refused_in_a_sentence(tmp_path: Path) -> None:
    ran = Workflow(tmp_path / "a{b}" / "vlmeter", fake_study()).run("-n")
    (line,) = ran.lines("vlmeter: the folder ")
    assert line.endswith("which stands for a wildcard in a workflow; legal: a folder without braces")
    spaced = Workflow(tmp_path / "My Drive" / "vlmeter", fake_study())
    (line,) = spaced.run("-n", "--sdm", "apptainer").lines("vlmeter: the folder ")
    assert "which no container image may have" in line
    assert spaced.run("-n").code == 0


def test_results_lie_where_directory_says_and_a_profile_of_ones_own_is_heeded(tmp_path: Path) -> None:
    """`--workflow-profile`: with `--profile` alone the default one of the repository stands over it."""
    workflow = Workflow(tmp_path / "copy", fake_study())
    profile = tmp_path / "own profile"
    profile.mkdir()
    (profile / "config.yaml").write_text("cores: 1\nuntil: [tabulate]\n")
    own = ["--workflow-profile", str(profile), "--directory", str(tmp_path / "elsewhere"), "--configfile", "study.yaml"]
    command = [sys.executable, "-m", "snakemake", *own]
    run = {"cwd": workflow.folder, "env": workflow.environment(), "capture_output": True, "text": True}
    ran = subprocess.run(command, **run, timeout=PATIENCE_S)
    assert ran.returncode == 0, ran.stderr
    assert "Provided cores: 1" in ran.stderr
    assert "draw_figures" not in ran.stderr, "no further than the profile says"
    assert (tmp_path / "elsewhere" / "results" / "fake" / "table.parquet").exists()
    assert not (workflow.folder / "results").exists()
    again = subprocess.run(command, **run, timeout=PATIENCE_S)
    assert Ran(again.returncode, again.stderr).nothing_to_do


def test_every_rule_that_runs_code_names_an_environment_made_from_the_lock() -> None:
    """With `--sdm conda` Snakemake makes these; `tests/test_environment_files.py` holds them against the lock."""
    rules = (ROOT / "rules").glob("*.smk")
    jobs = [job for path in rules for job in re.split(r"^ *rule\b", path.read_text(), flags=re.MULTILINE)[1:]]
    with_code = [job for job in jobs if "script:" in job]
    assert len(with_code) > 8
    for job in with_code:
        (name,) = re.findall(r'conda:\s+"\.\./envs/([\w.]+)"', job)
        assert (ROOT / "envs" / name).is_file()


#: Another workflow that takes this one in: all of it, or under names of its own and twice.
IMPORTED_WHOLE = """
module vl:
    snakefile: "../copy/Snakefile"
use rule * from vl
"""
IMPORTED_TWICE = """
configfile: "importer.yaml"
module a:
    snakefile: "../copy/Snakefile"
    config: config["vl"]
    prefix: "sub/a"
use rule * from a as a_*
module b:
    snakefile: "../copy/Snakefile"
    config: config["vl"]
    replace_prefix: {"results/": "out/"}
use rule * from b as b_*
rule collect:
    default_target: True
    input:
        rules.a_judge_claims.output.claims,
        rules.b_tabulate.output.table,
"""


def importer(tmp_path: Path, text: str) -> Workflow:
    """A workflow that imports a copy of this one, which lies in a folder beside it."""
    Workflow(tmp_path / "copy", fake_study())
    (tmp_path / "copy" / "config.yaml").write_text(yaml.safe_dump(fake_study()))
    outer = Workflow(tmp_path / "outer", fake_study())
    (outer.folder / "Snakefile").write_text(text)
    (outer.folder / "importer.yaml").write_text(yaml.safe_dump({"vl": fake_study()}))
    return outer


def test_another_workflow_may_take_it_in_with_and_without_a_prefix(tmp_path: Path) -> None:
    outer = importer(tmp_path, IMPORTED_TWICE)
    ran = outer.run("--configfile", "importer.yaml")
    assert ran.code == 0, ran.said
    for root in ("sub/a/results/fake", "out/fake"):
        assert (outer.folder / root / "table.parquet").exists()
        assert len(list((outer.folder / root / "cells" / "one").iterdir())) == 8
    assert not (outer.folder / "results").exists()
    assert outer.run("--configfile", "importer.yaml").nothing_to_do


def test_another_workflow_may_take_in_all_of_it(tmp_path: Path) -> None:
    outer = importer(tmp_path, IMPORTED_WHOLE)
    command = [word for word in outer.command("--until", "tabulate") if word not in ("--configfile", "study.yaml")]
    done = subprocess.run(
        command, cwd=outer.folder, env=outer.environment(), capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert (outer.folder / "results" / "fake" / "table.parquet").exists()
    ran = outer.run("-n", "--configfile", "importer.yaml")
    assert ran.code == 2
    assert ran.lines("vlmeter: importer.yaml: "), "its own configuration is taken for a study"
    assert "key study is missing" in ran.said


# --- what was deleted -------------------------------------------------------------------------------


def test_a_deleted_product_is_made_again_by_the_plain_command(workflow: Workflow) -> None:
    until = ("--until", "judge_claims")
    assert workflow.run(*until).code == 0
    assert workflow.run(*until).nothing_to_do
    layout = workflow.layout
    for gone in ([layout.table], [layout.table_csv], [layout.environments, layout.claims]):
        for path in gone:
            path.unlink()
        assert workflow.run(*until).code == 0
        assert all(path.exists() for path in gone)
    said = workflow.run("-n").said
    assert "draw_figures_one" in said, "what was never made is made, too"


# --- what a person is told --------------------------------------------------------------------------


def test_a_failed_cell_is_named_with_the_place_of_the_log_and_the_others_are_kept(workflow: Workflow) -> None:
    before = workflow.sessions()
    for cell in workflow.cells[:2]:
        workflow.layout.record(cell).unlink()
    workflow.write({**workflow.content, "cell_time_limit_seconds": 1.0})
    ran = workflow.measure(VLMETER_FAKE_FAULTS='[{"what": "hang", "image": "336x336"}]')
    assert ran.code != 0
    (line,) = ran.lines("vlmeter: 1 of 8 cells of one failed")
    assert "cell vision-tiling-1x1 of one had not ended after 1 s" in line
    assert line.endswith("the log is results/fake/logs/measure-one.log")
    (closing,) = ran.lines("vlmeter: not finished")
    assert "the same command goes on from here" in closing
    again = workflow.measure()
    assert "vlmeter: one: 1 measured, 6 fresh, 1 restored" in again.said
    assert measured_again(workflow, before) == {"one/vision-tiling-1x1", "one/vision-tiling-1x2"}


def test_the_workflow_passes_its_own_lint(tmp_path: Path) -> None:
    ran = Workflow(tmp_path / "copy", fake_study()).run("--lint")
    assert ran.code == 0
    assert "Congratulations, your workflow is in a good condition!" in ran.said


def test_the_workflow_can_be_watched_through_the_rich_logger(workflow: Workflow) -> None:
    pytest.importorskip("snakemake_logger_plugin_rich")
    workflow.layout.record(workflow.cells[0]).unlink()
    ran = workflow.run("--until", "measure_one", "--logger", "rich")
    assert ran.code == 0
    assert "vlmeter: one: 1 measured, 7 fresh, 0 restored" in ran.said


# --- several subjects -------------------------------------------------------------------------------


@pytest.mark.slow
def test_figures_and_claims_side_by_side_are_made_where_there_are_several(finished: Workflow, tmp_path: Path) -> None:
    one = fake_study()["subjects"]["one"]
    workflow = Workflow(tmp_path / "copy", fake_study(subjects={"one": one, "two": one}))
    ran = workflow.run("--until", "draw_side_by_side", "judge_claims")
    assert ran.code == 0, ran.said
    for name in SIDE_BY_SIDE:
        said = workflow.layout.figure(ALL_SUBJECTS, name, "txt").read_text()
        assert workflow.layout.figure(ALL_SUBJECTS, name, "svg").exists() != said.startswith("Not drawn")
        if name == "side_by_side_costs":  # on a machine that others use, a cost may not be told from nothing
            assert not said.startswith("Not drawn") or "have a cost that could be told" in said
        else:
            assert said.startswith("Not drawn") == (name in OF_SERVERS | OF_WAYS)
    assert set(json.loads(workflow.layout.claims.read_text())) == {"one", "two", ALL_SUBJECTS}
    assert "draw_side_by_side" not in finished.run("-n", "--forceall").said, "one subject has nobody beside it"
    until = ("--until", "draw_side_by_side")
    assert workflow.run(*until).nothing_to_do
    path = workflow.layout.figure(ALL_SUBJECTS, "side_by_side_images", "svg")
    drawn = path.read_bytes()
    path.unlink()
    assert workflow.run(*until).code == 0
    assert path.read_bytes() == drawn, "what was deleted inside a folder that is still there is drawn again"
    assert workflow.run(*until).nothing_to_do


# --- killed -----------------------------------------------------------------------------------------


@pytest.fixture
def hanging(workflow: Workflow) -> Iterator[Callable[[], tuple[subprocess.Popen[str], list[psutil.Process]]]]:
    """Starts a run that stops in the middle of its session, and gives it with all of its processes."""
    families: list[list[psutil.Process]] = []

    def start() -> tuple[subprocess.Popen[str], list[psutil.Process]]:
        for cell in workflow.cells[:4]:
            workflow.layout.record(cell).unlink()
        happened = workflow.folder / "happened"
        fault = f'[{{"what": "hang", "call": 75, "once": "{happened}"}}]'
        run = workflow.start("--until", "tabulate", VLMETER_FAKE_FAULTS=fault)
        wait_until(lambda: happened.exists() or run.poll() is not None)
        assert run.poll() is None
        families.append([psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)])
        return run, families[-1]

    yield start
    for process in (process for family in families for process in family):
        with suppress(psutil.Error):
            process.kill()


@pytest.mark.parametrize("who", ["workflow", "session", "all", "ctrl-c"])
def test_whoever_is_killed_a_plain_rerun_measures_the_rest(who: str, workflow: Workflow, hanging: Any) -> None:
    before = workflow.sessions()
    run, family = hanging()
    if who == "ctrl-c":
        os.killpg(run.pid, signal.SIGINT)
    else:
        sessions = [process.parent() for process in workers_of(run.pid)]
        for process in {"workflow": [psutil.Process(run.pid)], "session": sessions, "all": family}[who]:
            process.kill()
    _, said = run.communicate(timeout=60)
    wait_until_gone(family)
    assert run.returncode != 0
    assert "Traceback" not in said
    ran = workflow.measure()
    assert ran.code == 0, ran.said
    assert set(workflow.states().values()) == {"fresh"}
    again = {name: session for name, session in workflow.sessions().items() if name in measured_again(workflow, before)}
    assert len(again) == 4, "what was finished long before is not touched"
    assert len(set(again.values())) == 2, "what the killed session had finished is not measured again"


def test_a_second_run_of_a_study_is_refused_while_the_first_goes_on(workflow: Workflow, hanging: Any) -> None:
    run, family = hanging()
    second = workflow.measure()
    assert second.code != 0
    (line,) = [line for line in second.said.splitlines() if line.startswith("study fake is being run by process")]
    assert f"process {run.pid} of" in line
    assert line.endswith("wait until that run has ended, or end it, and start this one again: nothing has been changed")
    assert run.poll() is None
    run.kill()
    run.communicate()
    wait_until_gone(family)
    assert workflow.measure().code == 0


# --- several devices --------------------------------------------------------------------------------


def test_sessions_run_at_once_each_on_a_device_of_its_own(tmp_path: Path) -> None:
    one = fake_study()["subjects"]["one"]
    subjects = {"one": one, "two": {**one, "seed": 1}}
    workflow = Workflow(
        tmp_path / "copy", fake_study(subjects=subjects, sampling={"min_samples": 60, "max_samples": 60})
    )
    ran = workflow.run("--until", "tabulate", "--resources", "gpu=2", VLMETER_FAKE_DEVICES="2")
    assert ran.code == 0, ran.said
    told = sorted(line.partition(" runs on ")[2] for line in ran.lines("vlmeter: ") if " runs on " in line)
    assert told == ["fake:0: fake device", "fake:1: fake device"], "the first of them was taken, so it was held"


def test_subjects_that_use_a_device_alike_have_its_limits_from_one_measurement(tmp_path: Path) -> None:
    nano = {"family": "molmo", "preset": "nano", "dtype": "float32", "device": "cpu", "cpu_threads": 1}
    workflow = Workflow(tmp_path / "copy", fake_study(subjects={"one": nano, "two": {**nano, "seed": 1}}))
    ran = workflow.run("device")
    assert ran.code == 0, ran.said
    assert len(ran.lines("Finished jobid")) == 2, "the measurement, and the target that wants it"
    one, two = (workflow.layout.ceilings(subject).read_bytes() for subject in ("one", "two"))
    assert one == two


# --- from end to end --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_real_model_is_measured_from_the_study_to_the_report(tmp_path: Path) -> None:
    study: dict[str, Any] = {
        "study": "tiny",
        "subjects": {"nano": {"family": "molmo", "preset": "nano", "dtype": "float32", "device": "cpu"}},
        "dataset": {"source": "embedded", "images": 1},
        "experiments": {
            "vision_tokens": {"tilings": ["1x1", "1x2", "2x2"]},
            "output_tokens": {"output_tokens": [2, 4]},
            "latency_distribution": {"samples": 8, "block_samples": 4, "output_tokens": [1, 3]},
        },
        "sampling": {"min_samples": 2, "max_samples": 2, "min_warmup": 1, "max_warmup": 1},
    }
    workflow = Workflow(tmp_path / "copy", study)
    of_an_older_version = workflow.layout.root / "figures" / "nano" / "decode_log.svg"
    of_an_older_version.parent.mkdir(parents=True)
    of_an_older_version.touch()
    ran = workflow.run()
    assert ran.code == 0, ran.said
    (closing,) = ran.lines("vlmeter: 7 cells: 7 measured")
    assert closing.endswith("the report is results/tiny/report.html")
    layout = workflow.layout
    assert "<html" in layout.report.read_text()[:500]
    captions = {name: layout.figure("nano", name, "txt").read_text() for name in FIGURES}
    drawn = {name for name, caption in captions.items() if not caption.startswith("Not drawn: ")}
    assert {"first_token_by_size", "decode_log", "component_profile", "sentinel"} <= drawn <= set(FIGURES) - OF_SERVERS
    for name in set(FIGURES) - drawn:
        assert len(captions[name].splitlines()) == 1
    made = {path.name for top in ("figures", "prints") for path in (layout.root / top).rglob("*.*") if path.is_file()}
    assert made - {".snakemake_timestamp"} == {
        *(f"{name}.txt" for name in FIGURES),
        *(f"{name}.{form}" for name in drawn for form in ("svg", "rst", "png", "pdf")),
    }
    assert not of_an_older_version.exists()
    assert layout.figure("nano", "component_profile", "txt").read_text().startswith("A mean over 8 requests.")
    shown = sample_of(read_table(layout.table)).size  # where others use the machine, not all of the eight
    assert 4 <= shown <= 8
    assert layout.report.read_text().count('<img class="thumbnail"') == shown
    assert "Nothing to be done" in workflow.run().said
    for path in (layout.figure("nano", "decode_log", "svg"), layout.printed("nano", "decode_log", "pdf")):
        path.rename(path.with_suffix(".away"))
    planned = workflow.run("--dry-run").said
    for rule in ("draw_figures_nano", "print_figures_nano", "render_report"):
        assert re.search(rf"^{rule} +1$", planned, re.MULTILINE), "a file is missed inside a folder that is still there"
    for path in (layout.figure("nano", "decode_log", "svg"), layout.printed("nano", "decode_log", "pdf")):
        path.with_suffix(".away").rename(path)
    workflow.write({**study, "subjects": {"nano": {**study["subjects"]["nano"], "seed": 1}}})
    planned = workflow.run("--dry-run").said
    for rule in ("check_counts", "measure_nano", "tabulate", "render_report"):
        assert re.search(rf"^{rule} +1$", planned, re.MULTILINE), "an edited subject is checked, and measured"
    workflow.write(study)
    assert workflow.run("--report", "report.zip").code == 0
    with zipfile.ZipFile(workflow.folder / "report.zip") as report:
        names = report.namelist()
    assert any(name.endswith("report.html") for name in names)
    assert sorted(Path(name).name for name in names if name.endswith(".svg")) == sorted(f"{name}.svg" for name in drawn)
