"""How fast the work could be done at all, and how near a measurement comes to it.

A piece of work is two numbers: arithmetic (FLOPs, two per multiply-accumulate) and traffic (bytes that have to cross
the memory bus at least once). A device is two ceilings: arithmetic per second and bytes per second. Whichever takes
longer is a floor under the latency, since no implementation can do both faster (the roofline model; Williams, Waterman,
Patterson, CACM 52(4), 2009, https://doi.org/10.1145/1498765.1498785):

    floor = max(FLOPs / matrix rate, bytes / copy bandwidth)

Two fractions say how near a measured time T comes:

- MFU, model FLOPs utilisation, FLOPs / (T * matrix rate): share of the arithmetic that the device could have done in
  that time (Chowdhery et al., PaLM, 2022, appendix B, https://arxiv.org/abs/2204.02311);
- MBU, model bandwidth utilisation, bytes / (T * copy bandwidth): the same for traffic (Agarwal et al., LLM inference
  performance engineering, Databricks, 2023).

The larger of the two is floor / T. Counted as traffic: every weight that a phase reads, once; the rows that an
embedding hands out; the keys and values that are written, and in a decode step all those that are read. *Not*
counted: activations, which an ideal implementation keeps in the caches and registers of the device. So the floor is
low rather than high, above all for a pass over many tokens, and lower still than what a ceiling's own kernel reaches.

A decode step reads all weights to make one token, so its floor is that of traffic, and it grows with the context by
the keys and values read:

    floor(step) = (weights + (context + 1) * bytes of keys and values per token) / copy bandwidth

(the one: the step's own key and value are written). Nothing here imports torch: `vlmeter.measure.count_work`
counts, this divides.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.records.ceilings import Ceilings, one_card
from vlmeter.records.work import PhaseWork, SubjectWork, Work
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    BUSY_PREFILL,
    BUSY_STEP,
    BUSY_VISION,
    DECODE,
    INTER_TOKEN,
    PHASES,
    VISION,
    VISION_ALONE_DEVICE,
    VISION_ALONE_WALL,
    WHOLE_PASSES,
    WHOLE_REQUEST,
    WHOLE_REQUEST_DEVICE,
    Quantity,
    RowKey,
    quantity_at,
)

if TYPE_CHECKING:
    import pandas as pd


Bound = Literal["arithmetic", "traffic"]


@dataclass(frozen=True)
class Floor:
    """The least time that work can take, and which ceiling it hits."""

    floor_ms: float
    bound: Bound


def floor_of(work: PhaseWork, ceilings: Ceilings) -> Floor:
    """Roofline of one phase: the longer of its arithmetic and its traffic, each at the device's ceiling."""
    arithmetic_ms = 1000 * work.flops / ceilings.matrix_flops_per_s.value
    traffic_ms = 1000 * work.traffic_bytes / ceilings.copy_bytes_per_s.value
    if arithmetic_ms > traffic_ms:
        return Floor(arithmetic_ms, "arithmetic")
    return Floor(traffic_ms, "traffic")


def floor_of_all(works: Iterable[PhaseWork], ceilings: Ceilings) -> Floor:
    """Floor of phases that follow each other: the sum of theirs, named after the bound that holds most of it."""
    sums: dict[Bound, float] = {"traffic": 0.0, "arithmetic": 0.0}
    for work in works:
        floor = floor_of(work, ceilings)
        sums[floor.bound] += floor.floor_ms
    bound: Bound = "arithmetic" if sums["arithmetic"] > sums["traffic"] else "traffic"
    return Floor(sum(sums.values()), bound)


def mfu_fraction(flops: float, measured_ms: float, ceilings: Ceilings) -> float:
    """Share of the device's arithmetic that was used: FLOPs / (time * matrix rate)."""
    return flops / (measured_ms / 1000) / ceilings.matrix_flops_per_s.value


def mbu_fraction(traffic_bytes: float, measured_ms: float, ceilings: Ceilings) -> float:
    """Share of the device's bandwidth that was used: bytes / (time * copy bandwidth)."""
    return traffic_bytes / (measured_ms / 1000) / ceilings.copy_bytes_per_s.value


#: The roofline table: name, type (as in `vlmeter.table.columns`) and meaning of each column. The first seven are
#: the key of the row in the tidy table that holds the measured time.
COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("subject", "string", "name of the subject"),
    ("cell_id", "string", "name of the cell"),
    ("output_tokens", "integer", "tokens generated, the first one included"),
    ("arm", "string", "how it was run"),
    ("phase", "string", "what was timed; total of arm plain in a vision-token cell is the whole prefill"),
    ("clock", "string", "which time: wall, device or busy"),
    ("source", "string", "measured, or derived from a longer run"),
    ("experiment", "string", "the question that the cell is of"),
    ("crops", "integer", "crops that the vision encoder takes"),
    ("vision_tokens", "integer", "prompt tokens that receive vision features"),
    ("prompt_tokens", "integer", "all tokens of the prompt"),
    ("median_ms", "float", "the measured time (of a block, whose work is that of a mean request, beside its mean)"),
    ("low_ms", "float", "lower end of its 95 % interval"),
    ("high_ms", "float", "upper end of its 95 % interval"),
    ("flops", "float", "arithmetic of it, two per multiply-accumulate; of a block, of a request in the mean"),
    ("weight_bytes", "float", "weights that it reads, each once in every pass"),
    ("cache_bytes", "float", "keys and values that it writes and, decoding, reads"),
    ("floor_ms", "float", "least time in which the device could do it (roofline, on measured ceilings)"),
    ("bound", "string", "the ceiling that makes most of the floor: arithmetic or traffic"),
    ("mfu_fraction", "float", "share of the device's matrix rate that was used"),
    ("mbu_fraction", "float", "share of the device's copy bandwidth that was used by weights, keys and values"),
    ("floor_fraction", "float", "floor over measured time: 1 is as fast as the device can be"),
)


def roofline_table(
    table: pd.DataFrame, works: Mapping[str, SubjectWork], ceilings: Mapping[str, Ceilings]
) -> pd.DataFrame:
    """Set measured times of the tidy table beside what was to do in them and the least time that it could take.

    Args:
        table: from `vlmeter.table.build`, of one study.
        works: by subject.
        ceilings: by subject, of the device on which it was measured.

    Several runs are pooled. Blocks of requests have the work of a mean request, set beside the mean time of their rows.

    Rows: the phases of a prefill, whole prefills, vision alone (device, wall and busy clock, as far as measured),
    decode times, and single decode steps (`inter_token`, beside the mean step). What has no work is left out:
    preprocessing and copying on the host, the first use of a shape, the time of launching. Raises UserError where
    ceilings or work do not belong to what was measured.
    """
    import pandas as pd

    from vlmeter.analysis.runs import pooled_rows

    measured = pooled_rows(table[(table["status"] == "ok") & table["median_ms"].notna()])
    rows: list[dict[str, object]] = []
    for _, cell in measured.groupby(["subject", "cell_id"], sort=False):
        found = cast("list[dict[str, Any]]", cell.to_dict("records"))
        limits = _ceilings_of(found[0], ceilings)
        if found[0]["kind"] == kinds.REQUESTS:
            rows += _block_rows(found, works, limits)
            continue
        work = _work_of(found[0], works)
        decoded: dict[int, list[PhaseWork]] = {}
        for row in found:
            phases, passes = _phases_of(row, work, decoded)
            if phases:
                rows.append(_row(row, phases, passes, limits))
    types = {"string": "string", "integer": "Int64", "float": "float64"}
    frame = pd.DataFrame(rows, columns=[name for name, _, _ in COLUMNS])
    return frame.astype({name: types[dtype] for name, dtype, _ in COLUMNS})


def write_roofline(table: pd.DataFrame, path: Path) -> None:
    """Write the roofline table as parquet, atomically."""
    write_atomically(path, table.to_parquet(index=False))


def read_roofline(path: Path) -> pd.DataFrame:
    """Read the roofline table; raises UserError if it is not one of this version."""
    import pandas as pd

    try:
        roofline = pd.read_parquet(path, dtype_backend="numpy_nullable")
    except (OSError, ValueError) as error:
        raise UserError(f"roofline table {path} cannot be read: {error}") from None
    missing = [name for name, _, _ in COLUMNS if name not in roofline]
    if missing:
        raise UserError(f"roofline table {path} has no column {missing[0]}; delete it and it is made again")
    types = {"string": "string", "integer": "Int64", "float": "float64"}
    return roofline.astype({name: types[dtype] for name, dtype, _ in COLUMNS})


def beside(table: pd.DataFrame, roofline: pd.DataFrame) -> pd.DataFrame:
    """Set work and floors beside the rows of the tidy table; absent where a row has no work."""
    names = [name for name, _, _ in COLUMNS]
    key = names[: names.index("experiment")]
    new = [name for name in names if name not in table]
    return table.merge(roofline[key + new], on=key, how="left")


def _work_of(row: Mapping[str, Any], works: Mapping[str, SubjectWork]) -> Work:
    subject, cell_id = row["subject"], row["cell_id"]
    cells = works[subject].cells if subject in works else ()
    found = next((work for work in cells if work.cell_id == cell_id), None)
    if found is None:
        raise UserError(f"work: none was counted for cell {cell_id} of {subject}; count it again")
    if (found.crops, found.prompt_tokens) != (row["crops"], row["prompt_tokens"]):
        raise UserError(
            f"work: that of cell {cell_id} of {subject} was counted for {found.crops} crops and "
            f"{found.prompt_tokens} prompt tokens, and measured were {row['crops']} and {row['prompt_tokens']}"
        )
    return found


def _block_rows(
    found: Sequence[Mapping[str, Any]], works: Mapping[str, SubjectWork], ceilings: Ceilings
) -> list[dict[str, object]]:
    """Set the requests of a block beside their work: each row of a phase has that of all requests over their number."""
    subject, cell_id = found[0]["subject"], found[0]["cell_id"]
    packed = next((row["requests"] for row in found if isinstance(row["requests"], str)), "[]")
    shapes = {
        (shape.crops, shape.vision_tokens, shape.prompt_tokens): shape
        for shape in (works[subject].shapes if subject in works else ())
    }
    works_of: dict[str, list[PhaseWork]] = {}
    requests = json.loads(packed)
    for request in requests:
        shape = shapes.get((request["crops"], request["vision_tokens"], request["prompt_tokens"]))
        if shape is None:
            raise UserError(f"work: none was counted for a request of cell {cell_id} of {subject}; count it again")
        steps = shape.decode(request["generated_tokens"] - 1)
        for phase in shape.prefill:
            works_of.setdefault(phase.phase, []).append(phase)
        works_of.setdefault(DECODE.name, []).extend(steps)
        for whole in (WHOLE_REQUEST, WHOLE_REQUEST_DEVICE):
            works_of.setdefault(whole.name, []).extend([*shape.prefill, *steps])
    return [
        _row(row, works_of[str(quantity)], len(requests), ceilings, measured_ms=row["mean_ms"])
        for row in found
        if works_of.get(str(quantity := quantity_at(kinds.REQUESTS, _key(row)))) and row["mean_ms"] > 0
    ]


def _key(row: Mapping[str, Any]) -> RowKey:
    return RowKey(row["arm"], row["phase"], row["clock"])


def _ceilings_of(row: Mapping[str, Any], ceilings: Mapping[str, Ceilings]) -> Ceilings:
    subject = row["subject"]
    if subject not in ceilings:
        raise UserError(f"ceilings: none were measured for subject {subject}")
    found = ceilings[subject]
    # cards that share a model work one after the other, so that the limits of one are those of all
    if (found.device_model, found.dtype) != (one_card(row["device_model"]), row["dtype"]):
        raise UserError(
            f"ceilings: those of subject {subject} belong to {found.device_model} in {found.dtype}, and cell "
            f"{row['cell_id']} was measured on {row['device_model']} in {row['dtype']}; measure the ceilings there"
        )
    return found


def _phases_of(
    row: Mapping[str, Any], work: Work, decoded: dict[int, list[PhaseWork]]
) -> tuple[Sequence[PhaseWork], int]:
    """Return the work behind a row, and by how many to divide it; no work where a row has no work."""
    tokens = row["output_tokens"] if row["source"] == "derived" else row["generated_tokens"]
    steps = max(0, int(tokens) - 1)
    if steps not in decoded:
        decoded[steps] = work.decode(steps)
    by_phase = {phase.phase: phase for phase in work.prefill}
    vision = [by_phase[part.name] for part in VISION.parts if part.name in by_phase]
    behind: dict[Quantity | None, tuple[Sequence[PhaseWork], int]] = {
        **{whole: ([*work.prefill, *decoded[steps]], 1) for whole in WHOLE_PASSES},
        **{phase: ([by_phase[phase.name]], 1) for phase in PHASES if phase.name in by_phase},
        **dict.fromkeys((VISION_ALONE_WALL, VISION_ALONE_DEVICE, BUSY_VISION), (vision, 1)),
        BUSY_PREFILL: (work.prefill, 1),
        DECODE: (decoded[steps], 1),
        INTER_TOKEN: (decoded[steps], max(1, steps)),
    }
    quantity = quantity_at(row["kind"], _key(row))
    return (work.decode(1), 1) if quantity is BUSY_STEP else behind.get(quantity, ((), 1))


def _row(
    row: Mapping[str, Any],
    phases: Sequence[PhaseWork],
    passes: int,
    ceilings: Ceilings,
    *,
    measured_ms: float | None = None,
) -> dict[str, object]:
    taken = {name: row[name] for name, _, _ in COLUMNS if name in row}
    flops = sum(phase.flops for phase in phases) / passes
    weight_bytes = sum(phase.weight_bytes for phase in phases) / passes
    cache_bytes = sum(phase.cache_bytes for phase in phases) / passes
    floor = floor_of_all(phases, ceilings)
    floor_ms = floor.floor_ms / passes
    time_ms = row["median_ms"] if measured_ms is None else measured_ms
    return {
        **taken,
        "flops": flops,
        "weight_bytes": weight_bytes,
        "cache_bytes": cache_bytes,
        "floor_ms": floor_ms,
        "bound": floor.bound,
        "mfu_fraction": mfu_fraction(flops, time_ms, ceilings),
        "mbu_fraction": mbu_fraction(weight_bytes + cache_bytes, time_ms, ceilings),
        "floor_fraction": floor_ms / time_ms,
    }
