"""Studies through Snakemake on real serving engines: killed at the worst moments, and finished by a plain rerun."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest

from tests.support.imports import ROOT
from tests.support.processes import gone
from tests.support.real_servers import OPTIONS, checkpoint_for, get_engine, program_of, serve, setup_of
from tests.support.sessions import workers_of
from tests.support.workflow import Ran, Workflow
from vlmeter.analysis.encodings import sent_files
from vlmeter.records.record import Record, read_record
from vlmeter.table.files import read_table

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("real_servers")]

#: Long enough for vLLM to start on two busy cores, and to measure some cells.
PATIENCE_S = 240.0

TOY = {"preset": "nano", "dtype": "float32", "device": "cpu"}

#: The parts of the time to the first token, where a server can be looked into.
PHASES = ("upload", "server_inputs", "vision_encoder", "projector", "merge", "llm_blocks", "head", "return")


def served(engine: str, family: str, *, options: Sequence[str] = (), **keys: Any) -> dict[str, Any]:
    """A subject on a server that its session starts."""
    given = [*OPTIONS.get(engine, ()), *options]
    endpoint = {"engine": engine, "python": str(program_of(engine)), "options": given, **keys}
    return {**TOY, "family": family, "backend": "endpoint", "endpoint": endpoint}


def study(**subjects: dict[str, Any]) -> dict[str, Any]:
    """Six cells of each subject; images are small, since a server on two cores takes its time."""
    return {
        "study": "served",
        "subjects": subjects,
        "dataset": {"source": "embedded", "images": 1},
        "experiments": {
            "vision_tokens": {
                "image_sizes": ["336x336", "448x224", "224x448"],
                "text_tokens": 40,
            },
            "output_tokens": {"output_tokens": [1, 4, 8]},
        },
        "sampling": {"min_samples": 3, "max_samples": 3, "min_warmup": 1, "max_warmup": 2},
        "drift_tolerance_fraction": 1.0,  # these cores have others' work too
    }


class Story(NamedTuple):
    """What happened to a study: its runs, what was measured before each kill, and every process of a server."""

    workflow: Workflow
    runs: list[Ran]
    before: list[dict[str, str]]
    servers: list[int]


def vllm_below(run: subprocess.Popen[str], name: str = "VLLM::") -> list[int]:
    """Processes of vLLM below a run, by the names that they give themselves."""
    found = []
    with suppress(psutil.Error):
        for process in psutil.Process(run.pid).children(recursive=True):
            with suppress(psutil.Error):
                if process.name().startswith(name) or "vllm.entrypoints" in " ".join(process.cmdline()):
                    found.append(process.pid)
    return found


def until(what: Callable[[], Any], run: subprocess.Popen[str]) -> Any:
    """Wait until something is the case, while a run goes on; returns it."""
    ends_s = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert run.poll() is None, "the run has ended"
        assert time.monotonic() < ends_s, "it did not come to that"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Story:
    """Two families on vLLM and one of them beside it; the first one's sessions are killed in three ways."""
    content = study(
        qwen=served("vllm", "qwen2_5_vl"),
        internvl=served("vllm", "internvl", caches=True, options=("--block-size", "32")),
        eager={**TOY, "family": "qwen2_5_vl", "cpu_threads": 1},
    )
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    workflow = Workflow(tmp_path_factory.mktemp("served") / "copy", content)
    told: Story = Story(workflow, [], [], [])
    run = workflow.start("--until", "measure_qwen")
    try:
        # the process that measures is killed: the session goes on in another, with another server
        until(lambda: len(workflow.sessions()) >= 2, run)
        told.before.append(workflow.sessions())
        (worker,) = workers_of(run.pid)
        told.servers.extend(first := vllm_below(run))
        worker.kill()
        assert gone(*first), "a server outlived its session"
        # the server's engine is killed: that is one loss too many, and the session ends
        until(lambda: len(workflow.sessions()) >= len(told.before[0]) + 2, run)
        told.before.append(workflow.sessions())
        told.servers.extend(vllm_below(run))
        os.kill(until(lambda: vllm_below(run, "VLLM::EngineCore"), run)[0], signal.SIGKILL)
        _, said = run.communicate(timeout=PATIENCE_S)
        told.runs.append(Ran(run.returncode, said))
        assert gone(*told.servers)
        # the workflow is killed while the server loads; until a session ends well, the journal has what was finished
        run = workflow.start("--until", "measure_qwen")
        told.servers.extend(until(lambda: vllm_below(run), run))
        run.kill()
        run.communicate()
        assert gone(*told.servers)
        # a worker of the server is killed, below its engine: the session goes on in another process
        begun = len(workflow.sessions())
        run = workflow.start("--until", "measure_internvl")
        until(lambda: len(workflow.sessions()) > begun, run)
        told.servers.extend(first := vllm_below(run))
        os.kill(until(lambda: vllm_below(run, "VLLM::Worker"), run)[0], signal.SIGKILL)
        _, said = run.communicate(timeout=2 * PATIENCE_S)
        told.runs.append(Ran(run.returncode, said))
        assert gone(*first)
    finally:
        for pid in told.servers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if run.poll() is None:
            run.kill()
            run.communicate()
    told.runs.append(workflow.measure())
    return told


def records(workflow: Workflow, *subjects: str) -> list[Record]:
    """The records of subjects."""
    return [read_record(workflow.layout.record(cell)) for cell in workflow.cells if cell.subject in subjects]


def test_a_plain_rerun_finishes_what_was_killed_and_measures_nothing_twice(story: Story) -> None:
    killed, _, finished = story.runs
    assert killed.code != 0
    assert "it goes on in a new process" in killed.said, "the first loss"
    assert "ended again" in killed.said, "the second"
    assert "Traceback" not in killed.said
    assert finished.code == 0, finished.said
    assert set(story.workflow.states().values()) == {"fresh"}
    now = story.workflow.sessions()
    for before in story.before:
        assert before.items() <= now.items(), "what was measured is lost"
    assert 2 <= len(story.before[0]) < len(story.before[1]) < len(now)


def test_a_session_goes_on_when_a_worker_of_its_server_is_killed(story: Story) -> None:
    _, ran, _ = story.runs
    assert ran.code == 0, ran.said
    assert "it goes on in a new process" in ran.said
    assert "the server ended" in ran.said
    assert "Traceback" not in ran.said


def test_a_server_with_caches_is_measured_by_subtraction(story: Story) -> None:
    found = [record for record in records(story.workflow, "internvl") if record.cell.kind == "prefill"]
    assert len(found) == 3
    for record in found:
        assert record.left_out == {}
        medians = {}
        for arm in ("plain", "hooks", "known_picture", "known_prompt"):
            samples = record.find(arm, "total", "wall")
            assert samples is not None
            assert len(samples) == 3
            medians[arm] = sorted(samples)[1]
        (note,) = [note for note in record.environment["notes"] if "known_prompt" in note]
        cached, whole = (int(word) for word in note.split() if word.isdecimal())
        assert whole - 32 <= cached < whole, "all whole blocks of the prompt"
        assert record.environment["server"]["caches"] == "on"


def test_a_person_hears_that_a_server_loads_and_where_its_log_is(story: Story) -> None:
    assert story.runs[-1].lines("vlmeter: the vllm server starts; its log is results/served/")
    assert story.runs[-1].lines("vlmeter: the vllm server is loading, for ")
    log = story.workflow.folder / story.workflow.layout.log("measure-qwen").relative_to(story.workflow.folder)
    assert "server.log" in log.read_text()


def test_counts_are_the_plans_in_each_family(story: Story) -> None:
    for name in ("qwen", "internvl"):
        checked = json.loads(story.workflow.layout.counts(name).read_text())
        assert len(checked["cells"]) == 6, "by the processor, before a server was started"
    found = records(story.workflow, "qwen", "internvl")
    assert len(found) == 12
    assert {record.status for record in found} == {"ok"}
    for record in found:
        (request,), (seen,) = record.cell.requests, record.requests
        assert seen.counted is not None
        assert seen.counted.prompt_tokens == request.expected.prompt_tokens
        assert set(record.generated_tokens) <= {record.cell.output_tokens}


@pytest.mark.parametrize("subject", ["qwen", "internvl"])
def test_the_time_to_the_first_token_is_the_sum_of_its_phases(story: Story, subject: str) -> None:
    found = [each for each in records(story.workflow, subject) if each.cell.experiment == "vision_tokens"]
    assert len(found) == 3
    sums = dict.fromkeys(PHASES, 0.0)
    for record in found:
        parts = [record.find("hooks", phase, "device") for phase in PHASES]
        assert all(parts), record.cell.cell_id
        whole = record.find("hooks", "total", "wall")
        assert whole is not None
        for total_ms, *spans in zip(whole, *parts, strict=True):
            assert sum(spans) == pytest.approx(total_ms, rel=1e-6)
        for phase, spans in zip(PHASES, parts, strict=True):
            sums[phase] += sum(spans or ())
    # of all cells together: a client that was held up leaves none of a sample to what is between it and the server
    assert all(ms > 0 for phase, ms in sums.items() if phase != "merge"), sums


def test_the_record_says_what_served(story: Story) -> None:
    for record in records(story.workflow, "qwen"):
        about = record.environment["server"]
        assert (about["engine"], about["started"], about["caches"]) == ("vllm", True, "off")
        assert about["version"]
        assert about["inside"]["missing"] == {}
        assert about["loading_s"] > 0
        assert "server" in record.fingerprint


def test_eager_and_served_stand_side_by_side_in_the_table_and_are_compared(story: Story) -> None:
    table = read_table(story.workflow.layout.table)
    assert set(table["subject"]) == {"qwen", "internvl", "eager"}
    hooks = table[(table["arm"] == "hooks") & (table["subject"] == "qwen") & (table["experiment"] == "vision_tokens")]
    assert set(PHASES) <= set(hooks["phase"])
    folder = "results/served"
    compared = story.workflow.vlmeter("compare", folder, folder, "--subjects", "eager:qwen", "--format", "json")
    assert compared.code == 0, compared.said


@pytest.mark.parametrize(("engine", "family"), [("transformers", "llava_next"), ("llama.cpp", "qwen2_5_vl")])
def test_the_same_study_runs_on_an_engine_that_cannot_be_looked_into(engine: str, family: str, tmp_path: Path) -> None:
    subject = served(engine, family)
    if engine == "llama.cpp":  # it makes up no weights, so that it is given a checkpoint, as for a published model
        weights = checkpoint_for(engine, family, tmp_path / "checkpoint")
        subject = {key: value for key, value in subject.items() if key != "preset"} | {"weights": str(weights)}
    content = study(one=subject)
    sizes = content["experiments"]["vision_tokens"]["image_sizes"][:2]
    formats = {"image_format": ["png", "jpeg"], "image_quality": [60]}
    content["experiments"]["vision_tokens"] |= {"image_sizes": sizes, **formats}
    content["experiments"]["output_tokens"] = {"output_tokens": [1, 4]}
    workflow = Workflow(tmp_path / "copy", content)
    ran = workflow.measure()
    assert ran.code == 0, ran.said
    found = records(workflow, "one")
    assert [record.status for record in found] == ["ok"] * 6, [record.reason for record in found]
    for record in found:
        (seen,) = record.requests
        assert seen.counted is not None
        known = record.cell.request.expected.prompt_tokens  # of a photograph's question only its processor knows
        assert known in (None, seen.counted.prompt_tokens), "png and jpeg, image by image"
        assert seen.server_prompt_tokens == seen.counted.prompt_tokens
        assert set(record.generated_tokens) == {record.cell.output_tokens}
        about = record.environment["server"]
        assert (about["engine"], about["started"]) == (engine, True)
        assert any("no look inside" in note for note in record.environment["notes"])
    for prefill in found:
        if prefill.cell.kind == "prefill":
            whole = prefill.find("hooks", "total", "wall")
            parts = [prefill.find("hooks", phase, "device") for phase in ("upload", "server")]
            assert whole is not None
            assert all(parts)
            for total_ms, *spans in zip(whole, *parts, strict=True):
                assert sum(spans) == pytest.approx(total_ms, rel=1e-6)
    files = sent_files(read_table(workflow.layout.table))
    assert files.groupby("image")["image_format"].apply(list).tolist() == [["png", "jpeg"]] * 2
    assert (files.groupby("image")["prompt_tokens"].nunique() == 1).all()
    assert json.loads(workflow.vlmeter("status", "study.yaml", "--format", "json").said)


def test_one_line_measures_a_server_that_runs(tmp_path: Path) -> None:
    """As somebody types it beside a server of theirs; MODEL is the folder that it serves, by its path from here."""
    engine = get_engine("transformers")
    setup = setup_of("transformers", "llava_next", tmp_path)
    with serve(engine, setup, tmp_path) as server:
        asked = ["--url", server.url, "--image", "336x336", "--output-tokens", "8", "--no-costs", "--json"]
        (tmp_path / "mine").mkdir()
        ran = subprocess.run(
            [sys.executable, "-m", "vlmeter", "measure", f"../{setup.checkpoint.name}", *asked],
            cwd=tmp_path / "mine",
            env={**os.environ, "PYTHONPATH": str(ROOT), "VLMETER_LOCK_DIR": str(tmp_path / "locks")},
            capture_output=True,
            text=True,
            timeout=4 * PATIENCE_S,
        )
        assert server.is_running(), "it is somebody else's, and goes on"
    assert ran.returncode == 0, ran.stderr
    ((name, subject),) = json.loads(ran.stdout)["subjects"].items()
    found = {answer["name"]: answer for answer in subject["answers"]}
    assert name == "checkpoint-endpoint"
    for part in ("upload", "server", "first_token", "output_token"):
        assert found[part]["value"] > 0, part
    (path,) = (tmp_path / "mine").glob("results/*/cells/**/*.json")
    record = read_record(path)
    assert (record.status, set(record.generated_tokens)) == ("ok", {8})
    about = record.environment["server"]
    assert about["started"] is False
