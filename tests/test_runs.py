"""A study of several runs: sessions of their own, each in its place, and a run more measures that run alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.comparisons import compared, overall
from tests.support.fakes import FakeRunner
from tests.support.sessions import Bench, fake_study
from tests.support.studies import machine_of, run_fake, study_of
from tests.support.tables import table_of_runs
from tests.support.workflow import Workflow
from tests.test_cli import refused, run  # noqa: F401
from vlmeter.common.errors import UserError
from vlmeter.compare.baseline import read_runs, write_baseline
from vlmeter.measure.supervision import supervise
from vlmeter.records.record import Record, read_record, write_record
from vlmeter.records.states import (
    cell_states,
    seal_records,
    some_missing,
    stale_digests,
    states_in_words,
    subject_digest,
)
from vlmeter.records.store import Journal, sweep
from vlmeter.study.layout import Layout, cell_path, session_name
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study
from vlmeter.table.build import build_table
from vlmeter.table.columns import COLUMNS
from vlmeter.table.files import read_table, write_table

pytestmark = pytest.mark.xdist_group("workflow")

VISION: dict[str, Any] = {"vision_tokens": {"tilings": ["1x1", "1x2", "2x2", "1x3", "2x3", "3x4"]}}


def vision_study(**changes: Any) -> Study:
    return study_of(**{"experiments": VISION, "runs": 3, **changes})


STUDY = vision_study()
CELLS = build_plan(STUDY)


def records(results: Path, number: int) -> list[Record]:
    return [read_record(cell_path(results, "small", cell, run=number)) for cell in CELLS]


def order(found: list[Record]) -> list[str]:
    return [record.cell.cell_id for record in sorted(found, key=lambda record: record.session.position)]


@pytest.fixture
def twice(tmp_path: Path) -> Path:
    """Results of the first two runs of three."""
    for number in (0, 1):
        run_fake(STUDY, tmp_path, run=number)
    return tmp_path


# --- sessions and their records ---------------------------------------------------------------------


def test_the_first_runs_records_lie_where_those_of_one_run_do_and_the_others_beside(tmp_path: Path) -> None:
    cell = CELLS[0]
    assert cell_path(tmp_path, "small", cell) == tmp_path / "small" / "cells" / "fake" / "vision-tiling-1x1.json"
    second = tmp_path / "small" / "runs" / "1"
    assert cell_path(tmp_path, "small", cell, run=1) == second / "cells" / "fake" / "vision-tiling-1x1.json"
    layout = Layout("small", tmp_path)
    assert layout.seal("fake", run=1) == second / "cells" / "fake.sha256"
    assert layout.session_lock("fake", run=1) == second / ".journal" / "fake.lock"
    assert layout.backend_files("fake", run=1) == second / "backends" / "fake"
    assert (session_name("fake", 0), session_name("fake", 1)) == ("fake", "fake+1")


def test_every_run_is_a_session_of_its_own_in_an_order_of_its_own(twice: Path) -> None:
    first, second = records(twice, 0), records(twice, 1)
    assert [{record.run for record in found} for found in (first, second)] == [{0}, {1}]
    assert len({record.session.session_id for record in (*first, *second)}) == 2
    assert {record.session.order_seed for record in first} == {"0/fake"}, "as with one run"
    assert {record.session.order_seed for record in second} == {"0/fake/1"}
    assert order(first) != order(second)
    assert [record.cell for record in first] == [record.cell for record in second]


def test_a_run_more_leaves_the_others_fresh(twice: Path) -> None:
    before = [path.read_bytes() for path in sorted(twice.rglob("cells/fake/*.json"))]
    runner = FakeRunner()
    assert run_fake(STUDY, twice, runner=runner, run=0).fresh == len(CELLS)
    assert runner.calls == []
    assert run_fake(STUDY, twice, run=2).measured == len(CELLS)
    assert [path.read_bytes() for path in sorted(twice.rglob("cells/fake/*.json")) if "/2/" not in str(path)] == before


def test_records_of_a_study_without_runs_are_those_of_the_first(tmp_path: Path) -> None:
    """They were written before a fingerprint had a part for it."""
    one = vision_study(runs=1)
    run_fake(one, tmp_path)
    for cell in CELLS:
        path = cell_path(tmp_path, "small", cell)
        data = json.loads(path.read_text())
        del data["fingerprint"]["run"]
        path.write_text(json.dumps(data))
    assert run_fake(STUDY, tmp_path).fresh == len(CELLS)
    states = [(state.run, state.state) for _, state in cell_states(STUDY, Layout("small", tmp_path))]
    assert states == [(0, "fresh")] * 6 + [(1, "missing")] * 6 + [(2, "missing")] * 6
    assert subject_digest(one, "fake", CELLS) == subject_digest(STUDY, "fake", CELLS)
    assert len({subject_digest(STUDY, "fake", CELLS, run=number) for number in range(3)}) == 3
    second = cell_path(tmp_path, "small", CELLS[0], run=1)
    second.parent.mkdir(parents=True)
    second.write_bytes(cell_path(tmp_path, "small", CELLS[0]).read_bytes())
    assert [state.reasons for _, state in cell_states(STUDY, Layout("small", tmp_path)) if state.state == "stale"] == [
        ("run",)
    ]


def test_a_record_in_another_runs_place_does_not_hold(twice: Path) -> None:
    """One session copied would pass for two that agree to the last digit."""
    cell = CELLS[0]
    for source, place in ((0, 1), (1, 0)):
        write_record(cell_path(twice, "small", cell, run=place), records(twice, source)[0])
        states = cell_states(STUDY, Layout("small", twice))
        (state,) = [found for own, found in states if own == cell and found.run == place]
        assert (state.state, state.reasons) == ("stale", ("run",))
        assert run_fake(STUDY, twice, run=place).measured == 1


def test_a_run_on_another_device_is_refused_by_name(twice: Path) -> None:
    with pytest.raises(UserError, match=r"was measured on fake device, and this is other; records of two devices"):
        run_fake(STUDY, twice, machine=machine_of(FakeRunner(), identity="other"), run=2)


def test_a_run_that_no_longer_holds_says_nothing_of_the_device(twice: Path) -> None:
    changed = STUDY.model_copy(update={"sampling": STUDY.sampling.model_copy(update={"max_samples": 41})})
    summary = run_fake(changed, twice, machine=machine_of(FakeRunner(), identity="other"), run=1)
    assert (summary.fresh, summary.measured) == (0, len(CELLS))


def test_journals_are_told_apart_by_run(twice: Path) -> None:
    record = records(twice, 1)[0]
    first, second = (Journal(twice, "small", "fake", run=number) for number in (0, 1))
    second.keep(record)
    assert first.take_back(record.cell, record.fingerprint) is None
    first.clear()
    assert second.take_back(record.cell, record.fingerprint) == record
    begun = cell_path(twice, "small", CELLS[0], run=1).with_name(".half.tmp")
    begun.touch()
    sweep(twice, "small", "fake")
    assert begun.exists(), "a session of another run may be writing it"
    sweep(twice, "small", "fake", run=1)
    assert not begun.exists()


# --- what the workflow is told ----------------------------------------------------------------------


def test_each_run_is_asked_for_sealed_and_said_by_itself(twice: Path) -> None:
    layout = Layout("small", twice)
    cell_path(twice, "small", CELLS[2], run=1).unlink()
    write_record(cell_path(twice, "small", CELLS[0], run=1), records(twice, 0)[0])
    states = cell_states(STUDY, layout)
    assert some_missing(states) == [(CELLS[2], 1), *((cell, 2) for cell in CELLS)]
    assert set(stale_digests(layout, states)) == {"fake+1"}
    said = [states_in_words(states, "fake", run=number) for number in range(3)]
    assert said == ["0 of 6 cells", "2 of 6 cells (1 missing; 1 stale: run)", "6 of 6 cells (6 missing)"]
    seal_records(layout, "fake", CELLS)
    run_fake(STUDY, twice, run=1)
    seal_records(layout, "fake", CELLS, run=1)
    first, second = (layout.seal("fake", run=number).read_text() for number in (0, 1))
    assert first != second


def test_a_session_of_a_run_is_watched_over_like_any_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, monkeypatch, fake_study(runs=2))
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(tmp_path / "locks"))
    summary = supervise(
        bench.study,
        "fake",
        bench.layout,
        tell=bench.told.append,
        progress=bench.steps.append,
        log_file=bench.log_file,
        run=1,
    )
    assert summary.measured == len(bench.cells)
    states = [(state.run, state.state) for _, state in cell_states(bench.study, bench.layout)]
    assert states == [(0, "missing")] * 6 + [(1, "fresh")] * 6


# --- the table --------------------------------------------------------------------------------------


def test_the_table_tells_the_run_of_every_row(tmp_path: Path) -> None:
    output = {"output_tokens": [8, 32], "sampling": {"min_samples": 5, "max_samples": 5}}
    table = table_of_runs(tmp_path, [FakeRunner(), FakeRunner(slowdown=1.5)], vision=None, output=output)
    key = ["subject", "cell_id", "run", "output_tokens", "arm", "phase", "clock", "source"]
    assert not table.duplicated(key).any()
    assert set(table["run"]) == {0, 1}
    assert table.groupby("run").size().nunique() == 1, "derived rows are made in each run"
    decode = table[(table["phase"] == "decode") & (table["source"] == "derived")]
    by_run = decode.pivot_table(index=["cell_id", "output_tokens"], columns="run", values="median_ms")
    assert (by_run[1] / by_run[0]).to_list() == pytest.approx([1.5] * len(by_run))


def test_an_older_table_is_of_the_first_run(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = table_of_runs(tmp_path, [FakeRunner()], output=None)
    write_table(table, tmp_path / "t.parquet", tmp_path / "t.csv")
    pq.write_table(pq.read_table(tmp_path / "t.parquet").drop(["run"]), tmp_path / "old.parquet")
    old = read_table(tmp_path / "old.parquet")
    assert set(old["run"]) == {0}
    assert list(old.columns) == [column.name for column in COLUMNS]


def test_runs_of_two_devices_are_not_laid_out_as_one_subject(twice: Path) -> None:
    """On a cluster both may have begun before either had a record."""
    paths = [cell_path(twice, "small", cell, run=number) for number in (0, 1) for cell in CELLS]
    data = json.loads(paths[-1].read_text())
    for path in paths[6:]:
        data = json.loads(path.read_text())
        data["environment"]["device_identity"] = "other"
        path.write_text(json.dumps(data))
    with pytest.raises(UserError, match="run 1 of fake was measured on other and run 0 on fake device"):
        build_table(paths)


# --- comparisons ------------------------------------------------------------------------------------


def test_every_run_of_a_table_is_a_run_of_its_side(tmp_path: Path) -> None:
    tilings = {"tilings": ["1x1", "1x2", "2x2"]}
    sides = []
    for name, factors in (("a", (1.0, 1.01, 0.99)), ("b", (1.1, 1.11, 1.09))):
        runners = [FakeRunner(slowdown=factor, noise_fraction=0.002, seed=seed) for seed, factor in enumerate(factors)]
        table = table_of_runs(tmp_path / name, runners, vision=tilings, output=None)
        root = tmp_path / name / "small"
        write_table(table, root / "table.parquet", root / "table.csv")
        sides.append(read_runs(root))
        write_baseline(tmp_path / f"{name}.json.gz", sides[-1])
        assert read_runs(tmp_path / f"{name}.json.gz") == sides[-1]
    assert [len(side) for side in sides] == [3, 3]
    assert {cell.session_id for cell in sides[0][0].subjects[0].cells}.isdisjoint(
        cell.session_id for cell in sides[0][1].subjects[0].cells
    )
    comparison = compared(*sides)
    assert comparison.assumed == (None,)
    assert overall(comparison).verdict == "slower"
    assert overall(comparison).ratio == pytest.approx(1.1, rel=0.01)
    assert overall(comparison).freedom == pytest.approx(4, abs=0.5)
    assert overall(comparison).high / overall(comparison).low - 1 == pytest.approx(0.046, abs=0.01), "the runs' scatter"


# --- the command line -------------------------------------------------------------------------------


def test_status_plan_and_forget_know_the_run(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bench = Bench(tmp_path, monkeypatch, fake_study(runs=2))
    monkeypatch.setenv("VLMETER_LOCK_DIR", str(tmp_path / "locks"))
    bench.run()
    study, results = str(bench.file), ("--results", str(tmp_path / "results"))
    _, out, _ = run("status", study, *results)
    assert "6 cells in 2 runs: 6 fresh, 6 missing, 0 stale" in out
    _, out, _ = run("status", study, *results, "--format", "json")
    assert [(row["run"], row["state"]) for row in json.loads(out)] == [(0, "fresh")] * 6 + [(1, "missing")] * 6
    _, out, _ = run("plan", study, *results)
    assert "6 cells: 6 vision_tokens of fake; 2 runs of each, 12 records" in out
    assert "0 records deleted" in run("forget", study, "all", "--run", "1", *results)[1]
    assert "legal: 0 to 1" in refused(run("forget", study, "all", "--run", "2", *results))
    assert "6 records deleted" in run("forget", study, "all", *results)[1]


def test_a_number_of_runs_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="runs"):
        vision_study(runs=0)


# --- through Snakemake ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_runs_of_two_subjects_take_turns_and_a_run_more_measures_that_run_alone(tmp_path: Path) -> None:
    from tests.support.workflow import fake_study as workflow_study

    one = workflow_study()["subjects"]["one"]
    content = workflow_study(subjects={"one": one, "two": {**one, "seed": 1}}, experiments=VISION, runs=2)
    workflow = Workflow(tmp_path / "copy", content)
    ran = workflow.measure()
    assert ran.code == 0, ran.said
    begun = [line.partition(" runs on ")[0] for line in ran.lines("vlmeter: ") if " runs on " in line]
    assert begun == [f"vlmeter: {name}" for name in ("one", "two", "one", "two")]
    started = [
        (record.session.started_at, record.subject, record.run)
        for number in (0, 1)
        for record in (read_record(workflow.layout.record(cell, run=number)) for cell in workflow.cells)
    ]
    assert list(dict.fromkeys((subject, number) for _, subject, number in sorted(started))) == [
        *(("one", 0), ("two", 0)),
        *(("one", 1), ("two", 1)),
    ]
    assert workflow.measure().nothing_to_do
    before = [workflow.sessions(run=number) for number in (0, 1)]
    workflow.write({**content, "runs": 3})
    ran = workflow.measure()
    assert ran.code == 0, ran.said
    assert "Measuring one, run 2: 6 of 6 cells (6 missing)" in ran.said
    assert len(ran.lines("vlmeter: one, run 2: 6 measured, 0 fresh")) == 1
    assert [workflow.sessions(run=number) for number in (0, 1)] == before
    assert len(workflow.sessions(run=2)) == len(workflow.cells)
    assert set(read_table(workflow.layout.table)["run"]) == {0, 1, 2}
    assert "Measuring" not in workflow.run("-n", "--until", "tabulate").said
    workflow.layout.record(workflow.cells[0], run=1).unlink()
    ran = workflow.measure()
    assert "vlmeter: one, run 1: 1 measured, 5 fresh, 0 restored" in ran.said
