"""Runs on a cluster: a real SLURM of one node, brought up by the test, and a scheduler known only by its commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sessions import wait_until
from tests.support.slurm import PROGRAMS, Slurm, slurm
from tests.support.workflow import Workflow, fake_study
from vlmeter.table.files import read_table

pytestmark = [pytest.mark.xdist_group("workflow"), pytest.mark.timeout(1800)]  # whole runs, some after one another


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Slurm]:
    folder = tmp_path / "slurm"
    folder.mkdir()
    with slurm(folder) as running:
        yield running


def table_cells(workflow: Workflow) -> set[tuple[str, ...]]:
    """What the table has rows for."""
    table = read_table(workflow.layout.table)
    names = ["subject", "cell_id", "output_tokens", "arm", "phase", "clock", "source"]
    return {tuple(map(str, row)) for row in table[names].itertuples(index=False)}


@pytest.mark.slow
@pytest.mark.needs(*PROGRAMS)
def test_a_job_that_is_cancelled_in_the_middle_is_submitted_again_and_the_table_is_that_of_a_local_run(
    cluster: Slurm, tmp_path: Path
) -> None:
    workflow = Workflow(tmp_path / "cluster", fake_study())
    happened = tmp_path / "happened"
    environment = {
        **cluster.environment,
        "VLMETER_FAKE_FAULTS": f'[{{"what": "hang", "call": 75, "once": "{happened}"}}]',
        "VLMETER_LOCK_DIR": str(tmp_path / "locks"),
    }
    impatience = ["--slurm-init-seconds-before-status-checks", "1", "--seconds-between-status-checks", "1"]
    profile = ["--workflow-profile", "profiles/slurm", "--latency-wait", "5", *impatience]
    run = workflow.start("--until", "tabulate", *profile, **environment)
    try:
        wait_until(lambda: happened.exists() or run.poll() is not None, patience_s=120)
        assert run.poll() is None, run.communicate()[1]
        (first,) = cluster.jobs()
        asked = cluster.ask("scontrol", "show", "job", first)
        cluster.ask("scancel", first)
        _, said = run.communicate(timeout=240)
    finally:
        run.kill()
        run.wait()
    assert run.returncode == 0, said
    assert "gpu:1" in asked, "one GPU for the subject's session"
    assert re.search(r"TimeLimit=00:10:00", asked), "as estimated from the plan"
    assert len(cluster.submitted()) == 2, "the session, twice, and nothing else"
    sessions = set(workflow.sessions().values())
    assert len(sessions) == 2, "what the cancelled job had finished was not measured again"
    assert set(workflow.states().values()) == {"fresh"}

    local = Workflow(tmp_path / "local", fake_study())
    assert local.measure().code == 0
    here, there = read_table(local.layout.table), read_table(workflow.layout.table)
    assert list(here.columns) == list(there.columns)
    assert list(here.dtypes) == list(there.dtypes)
    assert table_cells(local) == table_cells(workflow)


SUBMIT = """#!/usr/bin/env bash
# Stands for qsub: runs the job in the background, and prints an id.
echo "$@" >> submitted
job=$(mktemp -d jobs.XXXXXX)
( setsid bash "${@: -1}" > "$job/log" 2>&1; echo $? > "$job/code" ) &
echo "$job"
"""

STATUS = """#!/usr/bin/env bash
# Stands for qstat.
if [ ! -e "$1/code" ]; then echo running; elif [ "$(cat "$1/code")" = 0 ]; then echo success; else echo failed; fi
"""


@pytest.mark.slow
def test_a_scheduler_that_is_known_by_its_commands_alone_runs_the_sessions(tmp_path: Path) -> None:
    pytest.importorskip("snakemake_executor_plugin_cluster_generic")
    workflow = Workflow(tmp_path / "copy", fake_study())
    for name, text in (("submit.sh", SUBMIT), ("status.sh", STATUS)):
        (workflow.folder / name).write_text(text)
        (workflow.folder / name).chmod(0o755)
    submit = "./submit.sh {rule} {threads} {resources.gpu} {resources.mem_mb} {resources.runtime}"
    ran = workflow.run(
        "--workflow-profile", "profiles/cluster-generic", "--until", "tabulate", "--latency-wait", "5",
        "--cluster-generic-submit-cmd", submit, "--cluster-generic-status-cmd", "./status.sh",
        "--seconds-between-status-checks", "1",
    )  # fmt: skip
    assert ran.code == 0, ran.said
    (line,) = (workflow.folder / "submitted").read_text().splitlines()
    assert line.startswith("measure_one 8 1 1000 10 "), "nothing but the session was submitted"
    assert set(workflow.states().values()) == {"fresh"}
