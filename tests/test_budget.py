"""What a session asks of a cluster, estimated from the plan: never too little, and no more than is sensible."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.imports import ROOT
from tests.support.studies import study_of
from vlmeter.measure.resources import (
    cell_seconds,
    host_memory_mb,
    session_gpus,
    session_minutes,
    session_threads,
    weight_bytes,
)
from vlmeter.study.loader import load_study
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study
from vlmeter.study.subject import Subject, has_counts, has_limits


def big(**subject: Any) -> Study:
    own = {"family": "molmo", "preset": "7b-d", "dtype": "bfloat16", "device": "cuda", **subject}
    return study_of(subjects={"big": own})


def test_a_cell_is_expected_to_take_its_cap_and_a_last_round_that_begins_just_before_it() -> None:
    study = study_of()
    vision = next(cell for cell in build_plan(study) if cell.experiment == "vision_tokens")
    assert cell_seconds(vision) == pytest.approx(20 + 2 * 0.15 + 10)
    long = next(cell for cell in build_plan(study) if cell.output_tokens == 16)
    assert cell_seconds(long) == pytest.approx(20 + 2 * 16 * 0.15 + 10)


def test_more_cells_longer_generations_and_larger_weights_take_longer() -> None:
    study = big()
    cells = build_plan(study)
    assert session_minutes(study, "big", cells[:2]) < session_minutes(study, "big", cells)
    long = cells[0].request.model_copy(update={"output_tokens": 4096})
    longer = [cell.model_copy(update={"requests": (long,)}) for cell in cells]
    assert session_minutes(study, "big", longer) > session_minutes(study, "big", cells)
    assert session_minutes(study_of(subjects={"big": {**SMALL}}), "big", cells) < session_minutes(study, "big", cells)


def test_what_is_compiled_or_captured_takes_longer_to_be_ready() -> None:
    study = big()
    cells = build_plan(study)
    plainly = session_minutes(study, "big", cells)
    for backend in ("cudagraph", "compile"):
        assert session_minutes(big(backend=backend), "big", cells) > plainly


def test_every_cell_may_have_to_be_measured_twice() -> None:
    study = study_of(subjects={"small": SMALL}, sampling={"max_seconds_per_cell": 600})
    cells = build_plan(study)
    assert 60 * session_minutes(study, "small", cells) > 2 * sum(map(cell_seconds, cells))


SMALL = {"family": "molmo", "preset": "nano", "device": "cuda"}


def test_the_committed_full_size_study_fits_into_a_working_day() -> None:
    study = load_study(Path(ROOT) / "studies" / "molmo-7b-d.yaml")
    for subject in study.subjects:
        cells = [cell for cell in build_plan(study) if cell.subject == subject]
        assert 30 < session_minutes(study, subject, cells) < 16 * 60


def test_weights_made_on_the_device_take_no_memory_of_the_host() -> None:
    study = big()
    assert weight_bytes(study, "big") == 2 * 8_021_025_280
    assert host_memory_mb(study, "big", build_plan(study)) == 6443


def test_a_model_on_the_processor_lies_in_the_hosts_memory() -> None:
    study = big(device="cpu")
    assert host_memory_mb(study, "big", build_plan(study)) > 6443 + 16_000


def test_a_checkpoint_passes_through_the_hosts_memory_and_its_size_is_guessed_before_it_is_read() -> None:
    study = big(weights="allenai/Molmo-7B-D-0924", preset=None)
    assert host_memory_mb(study, "big", build_plan(study)) == pytest.approx(6443 + 20_000, rel=0.01)


def test_a_rehearsal_asks_for_little() -> None:
    study = big(backend="fake")
    cells = build_plan(study)
    assert (session_minutes(study, "big", cells), host_memory_mb(study, "big", cells)) == (10, 1000)


@pytest.mark.parametrize(
    ("gpus", "cores", "of_gpus", "threads"),
    [(1, 16, 1, 16), (1, 16, 4, 4), (4, 16, 4, 16), (1, 2, 4, 1), (1, 16, 0, 16), (0, 16, 4, 16), (0, 1, 1, 1)],
)
def test_sessions_share_out_all_cores_so_that_nothing_else_runs_beside_them(
    gpus: int, cores: int, of_gpus: int, threads: int
) -> None:
    assert session_threads(gpus, cores=cores, of_gpus=of_gpus) == threads


def test_a_model_that_is_spread_over_the_gpus_takes_them_all() -> None:
    own = Subject(family="internvl", weights="acme/spoon", device="cuda")
    assert session_gpus(own, gpus=4) == 1
    assert session_gpus(own.model_copy(update={"device_map": "auto"}), gpus=4) == 4
    assert session_gpus(own.model_copy(update={"device_map": "auto"}), gpus=0) == 1
    assert session_gpus(own.model_copy(update={"device": "cpu"}), gpus=4) == 0


SERVED = {"family": "internvl", "preset": "8b", "device": "cuda", "backend": "endpoint"}


def test_a_started_server_takes_a_gpu_or_as_many_as_its_options_say_and_a_running_one_none() -> None:
    started = Subject(**SERVED, endpoint={"engine": "vllm"})
    spread = Subject(**SERVED, endpoint={"engine": "vllm", "options": ["--tensor-parallel-size", "2"]})
    running = Subject(**SERVED, endpoint={"url": "http://127.0.0.1:8000/v1"})
    assert [session_gpus(subject, gpus=4) for subject in (started, spread, running)] == [1, 2, 0]
    assert session_gpus(started.model_copy(update={"device": "cpu"}), gpus=4) == 0


def test_a_session_has_time_and_memory_for_the_server_that_it_starts() -> None:
    def of(**endpoint: object) -> tuple[int, int]:
        study = study_of(subjects={"served": {**SERVED, "endpoint": endpoint}})
        cells = build_plan(study)
        return session_minutes(study, "served", cells), host_memory_mb(study, "served", cells)

    running, started = of(url="http://127.0.0.1:8000/v1"), of(engine="vllm", ready_seconds=600.0)
    assert started[0] - running[0] in (10, 11)
    assert started[1] > 3 * running[1]


def test_a_served_subjects_counts_are_checked_before_its_server_is_started() -> None:
    served = Subject(**SERVED, endpoint={"engine": "vllm"})
    eager, fake = (Subject(**{**SERVED, "backend": name}) for name in ("eager", "fake"))
    assert [has_counts(subject) for subject in (served, eager, fake)] == [True, True, False]
    assert [has_limits(subject) for subject in (eager, fake)] == [True, False]


def test_a_server_has_limits_where_its_device_is_the_sessions_and_its_shapes_are_the_plans() -> None:
    def of(preset: str, **endpoint: object) -> bool:
        return has_limits(Subject(**{**SERVED, "family": "qwen2_5_vl", "preset": preset}, endpoint=endpoint))

    assert of("7b", engine="vllm")
    assert not of("7b", url="http://127.0.0.1:8000/v1"), "who knows where it runs"
    assert not of("7b", engine="vllm", options=["--tensor-parallel-size", "2"]), "the limits of two cards are unknown"
    assert not of("nano", engine="vllm"), "its heads are widened"
