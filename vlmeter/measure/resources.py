"""What a session will ask of the machine it runs on, estimated from the plan: time, memory, processor cores.

A cluster wants to know before a job starts. The estimates err on the long side, since a job that is ended early has to
queue again - though it loses nothing: what was measured is in the journal, and the next job goes on from there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmeter.backends.registry import get_backend
from vlmeter.cells.cell import Cell
from vlmeter.measure.devices import BYTES_PER_VALUE, needed_bytes
from vlmeter.models.families.registry import get_family
from vlmeter.study.study import Study
from vlmeter.study.subject import Subject, own_keys, subject_spec

#: Python, torch and the CUDA libraries in a process that has not loaded a model yet. # ASSUME: measured 3 to 5 GiB.
PROCESS_BYTES = 6 << 30

#: Import of the libraries, a context on the device, and the start of the workflow in the job.
START_SECONDS = 120.0

#: Rate at which weights come into memory: a network file system that others use as well. # ASSUME
LOAD_BYTES_PER_S = 200e6

#: A generation is as long as its tokens take; slow devices need about so much for each with a model of 7 billion
#: parameters. # ASSUME: the notes that this work follows saw 0.13 s on an edge device.
SECONDS_PER_OUTPUT_TOKEN = 0.15

#: A hub checkpoint's size is not known before it is read. # ASSUME: 20 billion parameters.
UNKNOWN_PARAMETERS = 20_000_000_000

#: Warm-up, busy time and memory, beside the rounds that the time cap bounds.
SECONDS_BESIDE_ROUNDS = 10.0

#: Opening a picture, preprocessing and prefill. # ASSUME: large pictures and slow hosts take some tenths of a second.
SECONDS_BESIDE_REQUEST = 0.5

#: Shapes among the requests of a block. # ASSUME: photographs have one of a few sizes, questions ten lengths or so.
SHAPES_PER_BLOCK = 25

#: Output tokens of a warm-up run (`vlmeter.measure.rounds`, which is not to be imported before it measures).
WARMUP_TOKENS = 8

#: Cells may be measured a second time if the device drifts.
DRIFT_FACTOR = 2.0


def weight_bytes(study: Study, subject: str) -> int:
    """Estimate the size of a subject's weights."""
    own = study.subjects[subject]
    parameters = get_family(own.family).parameters(subject_spec(own))
    count = UNKNOWN_PARAMETERS if parameters is None else sum(parameters.values())
    return count * BYTES_PER_VALUE[own.dtype]


def cell_seconds(cell: Cell) -> float:
    """Estimate how long a cell takes at most: its last round may begin just before the time cap.

    A block has no cap: every request runs once, and every shape is warmed up with a few tokens.
    """
    if cell.kind == "requests":
        warmups = cell.sampling.min_warmup * min(len(cell.requests), SHAPES_PER_BLOCK)
        tokens = sum(request.output_tokens for request in cell.requests)
        tokens += warmups * min(cell.output_tokens, WARMUP_TOKENS)
        requests_s = tokens * SECONDS_PER_OUTPUT_TOKEN + (len(cell.requests) + warmups) * SECONDS_BESIDE_REQUEST
        return requests_s + 2 * cell.sampling.energy_seconds_per_cell + SECONDS_BESIDE_ROUNDS
    arms = len(set(cell.arms) - {"inputs", "vision"})
    round_s = arms * cell.output_tokens * SECONDS_PER_OUTPUT_TOKEN
    return cell.sampling.max_seconds_per_cell + cell.sampling.energy_seconds_per_cell + round_s + SECONDS_BESIDE_ROUNDS


def session_minutes(study: Study, subject: str, cells: Sequence[Cell]) -> int:
    """Estimate how long a session of these cells takes at most, loading included."""
    if not get_backend(study.subjects[subject].backend).runs_model:
        return 10
    needs = get_backend(study.subjects[subject].backend).needs(own_keys(study.subjects[subject]))
    load_s = START_SECONDS + needs.loading_s + weight_bytes(study, subject) / LOAD_BYTES_PER_S
    cells_s = sum(cell_seconds(cell) + needs.ready_s * len(cell.requests) for cell in cells)
    looks_s = SECONDS_BESIDE_ROUNDS * (2 + len(cells) // study.sentinel_every_cells)
    return math.ceil((load_s + DRIFT_FACTOR * (cells_s + looks_s)) / 60)


def host_memory_mb(study: Study, subject: str, cells: Sequence[Cell]) -> int:
    """Estimate the host's memory that a session needs: on a GPU half the weights pass through it at a time."""
    own = study.subjects[subject]
    if not get_backend(own.backend).runs_model:
        return 1000
    needs = get_backend(own.backend).needs(own_keys(own))
    if needs.gpus == 0:  # it runs elsewhere
        own_bytes = 0
    elif own.device == "cpu":
        own_bytes = needed_bytes(own, tuple(cells)) or weight_bytes(study, subject)
    else:
        passes = own.weights != "random" or needs.weights_pass
        own_bytes = weight_bytes(study, subject) // 2 if passes else 0
    return math.ceil((PROCESS_BYTES * (1 + needs.processes) + own_bytes) / 1e6)


def session_gpus(subject: Subject, *, gpus: int) -> int:
    """Say how many of the GPUs for sessions (`gpus`) one session takes.

    All of them if its model is spread, as many as its backend asks for, none if it runs elsewhere.
    """
    if subject.device == "cpu":
        return 0
    if subject.device_map:
        return max(1, gpus)
    return get_backend(subject.backend).needs(own_keys(subject)).gpus


def session_threads(gpus: int, *, cores: int, of_gpus: int) -> int:
    """Say how many cores a session on so many GPUs reserves, so that nothing runs beside it but sessions on others.

    A session on the processor takes all cores. Sessions on GPUs share them out by their GPUs: each needs the host to
    launch its work, and a small job beside it would be measured with it.
    """
    return max(1, cores * gpus // max(1, of_gpus)) if gpus else cores
