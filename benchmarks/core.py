"""How far to believe vlmeter's numbers on this machine: one command, five answers.

    python -m benchmarks.core --family molmo --preset 7b-d --dtype bfloat16

1. What do the marks cost? Prefills with and without hooks, interleaved in every round.
2. Do the phases add up? Their sum against the total without hooks, cell by cell.
3. Does the profiler agree? Time between marks against the timeline of kernels.
4. Does it come out again? Slopes of two sessions, each in a process of its own.
5. What is being measured? Three clocks side by side, by prompt tokens.

Everything is measured by a session (`vlmeter.measure.session`) and worked out by the analysis
(`vlmeter.analysis.prefill_cells`) that a study uses; only the profiler's part is the benchmark's own. On a CPU it runs
as well, for trying it: the limits are meant for a GPU, where the device keeps time itself, and are not judged
elsewhere.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from vlmeter.cells.cell import Cell, MadePicture
from vlmeter.common.errors import UserError
from vlmeter.common.files import write_atomically
from vlmeter.numbers.medians import Estimate, median_estimate
from vlmeter.study.loader import parse_study
from vlmeter.study.plan import build_plan
from vlmeter.study.study import Study

#: A row of crops, and blocks of them: with rows alone, crops and tokens would grow together and no fit could tell
#: their slopes apart.
TILINGS = (*(f"1x{k}" for k in range(1, 13)), "2x2", "2x4", "2x6", "3x3", "3x4")

#: Limits on a GPU (issue "Numbers to believe").
LIMITS = {"overhead": 0.01, "closure": 0.01, "profiler": 0.02, "repeatability": 0.01}

SUBJECT, STUDY = "subject", "benchmark"

#: Picture and question behind the decode steps: any will do, since the output is forced.
PICTURE_PX, QUESTION = (560, 336), "What is in this picture?"

PROFILED_CELLS, PROFILE_REPEATS = 5, 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its answers, write them as JSON."""
    options = _parser().parse_args(arguments)
    try:
        study = study_of(options)
        if options.session is not None:
            found = run_one_session(study, profile=options.profile, tell=_tell)
            write_atomically(options.session, json.dumps(found).encode())
            return 0
        begin_s = time.monotonic()
        sessions = [_session_apart(options, number) for number in range(options.sessions)]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    result = summarise(sessions)
    result["seconds"] = time.monotonic() - begin_s
    print(as_text(result))
    write_atomically(options.output, (json.dumps(result, indent=1) + "\n").encode())
    print(f"\nWritten to {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.core", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--family", default="molmo")
    parser.add_argument("--preset", default="nano", help="architecture, with random weights")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--cpu-threads", type=int, help="threads on a CPU; absent: one per physical core")
    parser.add_argument("--tilings", nargs="+", default=list(TILINGS), metavar="RxC")
    parser.add_argument("--rounds", type=int, default=12, help="samples of every way of running a cell")
    parser.add_argument("--output-tokens", type=int, default=256, help="length of the decode part")
    parser.add_argument("--sessions", type=int, default=2, help="processes that measure everything anew")
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/core.json"))
    parser.add_argument("--session", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    return parser


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def study_of(options: argparse.Namespace) -> Study:
    """The study that every session measures."""
    return parse_study(
        {
            "study": STUDY,
            "subjects": {
                SUBJECT: {
                    "family": options.family,
                    "preset": options.preset,
                    "dtype": options.dtype,
                    "device": options.device,
                    "attention": options.attention,
                    "cpu_threads": options.cpu_threads,
                }
            },
            "dataset": {"source": "embedded", "images": 1},
            "experiments": {
                "vision_tokens": {"tilings": list(options.tilings)},
                "output_tokens": {
                    "output_tokens": [options.output_tokens],
                    "uninstrumented_max_output_tokens": 0,
                    "sampling": {"min_samples": 3, "max_samples": 3, "max_seconds_per_cell": 60},
                },
            },
            "sampling": {
                "min_samples": options.rounds,
                "max_samples": options.rounds,
                "max_seconds_per_cell": 60,
                "max_warmup": 4,
            },
            "sentinel_every_cells": 100,
        },
        source="benchmarks.core",
    )


def _session_apart(options: argparse.Namespace, number: int) -> dict[str, Any]:
    """Run a session in a process of its own: a slope that comes out again must survive a new start."""
    _tell(f"session {number + 1} of {options.sessions}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session.json"
        command = [sys.executable, "-m", "benchmarks.core", "--session", str(path)]
        for name in ("family", "preset", "dtype", "device", "attention", "rounds", "output_tokens"):
            command += [f"--{name.replace('_', '-')}", str(getattr(options, name))]
        command += ["--tilings", *options.tilings]
        command += ["--cpu-threads", str(options.cpu_threads)] if options.cpu_threads else []
        command += ["--profile"] if number == 0 else []
        done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], check=False)
        if done.returncode == 2:
            raise UserError(f"session {number + 1} was refused; the reason stands above")
        done.check_returncode()
        found: dict[str, Any] = json.loads(path.read_bytes())
        return found


# ---------------------------------------------------------------------------------------------------------- a session


def run_one_session(study: Study, *, profile: bool, tell: Any) -> dict[str, Any]:
    """Measure the study on this machine and work out what the benchmark needs of it."""
    from vlmeter.backends.registry import load_runner
    from vlmeter.inputs.images import dummy_image
    from vlmeter.inputs.manifest import ManifestImage
    from vlmeter.inputs.pictures import Picture, Pictures
    from vlmeter.measure.devices import check_memory, device_lock, resolve_device
    from vlmeter.measure.environment import snapshot
    from vlmeter.measure.monitors import make_monitor
    from vlmeter.measure.progress import Progress
    from vlmeter.measure.session import Machine, run_session
    from vlmeter.study.layout import cell_path
    from vlmeter.study.subject import loading
    from vlmeter.table.build import build_table

    width_px, height_px = PICTURE_PX
    photograph = Picture(open=lambda: dummy_image(width_px, height_px, seed=0), digest="benchmark", question=QUESTION)
    item = ManifestImage(
        file="none.png",
        sha256="0",
        width_px=width_px,
        height_px=height_px,
        image_id=0,
        question_id=0,
        question=QUESTION,
        answers=(),
    )
    cells = build_plan(study, dataset=[item])

    def made(picture: MadePicture) -> Any:
        return dummy_image(picture.width_px, picture.height_px, seed=picture.seed)

    pictures = Pictures(made=made, photographs=[photograph])

    def progress(step: Progress) -> None:
        tell(f"  {step.elapsed_s:5.0f} s  {step.done} of {step.total}  {step.cell.cell_id}")

    subject = study.subjects[SUBJECT]
    device = resolve_device(subject.device)
    begin_s = time.monotonic()
    with device_lock(device, purpose="benchmark", tell=tell), tempfile.TemporaryDirectory() as folder:
        device = resolve_device(subject.device)
        check_memory(SUBJECT, subject, cells, device)
        runner = load_runner(subject.backend, loading(subject, device=device.name))
        loaded_s = time.monotonic() - begin_s
        environment = {"device_identity": device.identity, **snapshot(device)}
        run_session(
            study,
            SUBJECT,
            cells,
            results=Path(folder),
            pictures=pictures,
            machine=Machine(
                identity=device.identity,
                load=lambda: runner,
                monitor=make_monitor(device=device.name, uuids=[device.uuid]),
                describe=lambda: snapshot(device),
            ),
            progress=progress,
        )
        table = build_table([cell_path(Path(folder), study.study, cell) for cell in cells])
        found = analyse(table)
        if profile:
            on_gpu = device.name.startswith("cuda")
            found["profiler"] = _profile_cells(runner, cells, pictures, found["cells"]) if on_gpu else []
    return {
        **found,
        "environment": environment,
        "subject": subject.model_dump(mode="json"),
        "load_seconds": loaded_s,
        "seconds": time.monotonic() - begin_s,
    }


#: Columns of `analysis.vision_cells` that the benchmark keeps.
_KEPT = (
    "cell_id",
    "crops",
    "vision_tokens",
    "prompt_tokens",
    "plain_wall_ms",
    "plain_device_ms",
    "plain_launch_ms",
    "busy_prefill_ms",
    "busy_vision_ms",
    "prefill_ms",
    "vision_encoder_ms",
    "projector_ms",
    "merge_ms",
    "llm_blocks_ms",
    "head_ms",
    "closure_fraction",
    "closure_low_fraction",
    "closure_high_fraction",
    "overhead_fraction",
    "bound",
)


def analyse(table: Any) -> dict[str, Any]:
    """Work out overhead, closure, clocks and slopes of one session, by the library's own analysis."""
    from vlmeter.analysis.prefill_cells import part_costs, two_factor, vision_cells
    from vlmeter.analysis.reading import Unknown
    from vlmeter.analysis.step_times import step_bound, step_law
    from vlmeter.table.quantities import BUSY_PREFILL, PLAIN_DEVICE, PLAIN_WALL

    cells = vision_cells(table)
    slopes: dict[str, float] = {}
    costs = part_costs(cells)
    if costs.clock.quantity is BUSY_PREFILL:
        for name, cost in (("crop, vision side", costs.crop), ("token, language side", costs.token)):
            if not isinstance(cost, Unknown):
                slopes[f"busy per {name}"] = cost.value
    for clock, quantity in (("plane", BUSY_PREFILL), ("device", PLAIN_DEVICE), ("wall", PLAIN_WALL)):
        fit = two_factor(cells, quantity)
        if not isinstance(fit, Unknown):
            slopes |= {f"{clock} per {name}": fit[name].value for name in ("crop", "token")}
    steps = step_law(table)
    decode: dict[str, float] = {}
    bound = step_bound(table)
    if not isinstance(bound, Unknown):
        slopes |= {"busy per decode step": bound.busy.value}
    if not isinstance(steps, Unknown):
        decode = {
            "per step": float(median_estimate(steps.values_ms.tolist()).value),
            "per token of context": steps.fit["per_context_token"].value,
        }
    return {
        "cells": [_clean(row) for row in cast("list[dict[str, Any]]", cells[list(_KEPT)].to_dict("records"))],
        "overhead": {clock: paired_overhead(table, clock) for clock in ("wall", "device")},
        "slopes": slopes,
        "decode": decode,
        "disturbances": sorted(set(table["disturbances"].dropna())),
    }


def paired_overhead(table: Any, clock: str) -> list[float]:
    """Duration with marks over that without, minus 1, for every round of every vision-token cell."""
    fractions: list[float] = []
    totals = table[(table["experiment"] == "vision_tokens") & (table["phase"] == "total") & (table["clock"] == clock)]
    for _, rows in totals.groupby("cell_id"):
        samples = dict(zip(rows["arm"], rows["samples_ms"], strict=True))
        if "hooks" in samples and "plain" in samples:
            pairs = zip(samples["hooks"], samples["plain"], strict=True)
            fractions += [float(hooked / plain - 1) for hooked, plain in pairs]
    return fractions


def _clean(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row in plain types; NaN, which JSON has no word for, becomes null."""
    plain = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in plain.items()}


def _profile_cells(
    runner: Any, cells: Sequence[Cell], pictures: Any, measured: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Profile prefills of a few cells, from few tokens to many, beside what the session measured without profiler."""
    from benchmarks.timeline import profile_prefill

    by_id = {cell.cell_id: cell for cell in cells}
    last = len(measured) - 1
    places = sorted({round(i * last / (PROFILED_CELLS - 1)) for i in range(PROFILED_CELLS)})
    found = []
    for place in places:
        row = measured[place]
        cell = by_id[row["cell_id"]]
        prompt = runner.prepare(pictures.opened(cell, cell.request))
        for phase, timeline in profile_prefill(runner, prompt, repeats=PROFILE_REPEATS).items():
            found.append(
                {
                    "cell_id": cell.cell_id,
                    "prompt_tokens": row["prompt_tokens"],
                    "phase": phase,
                    **asdict(timeline),
                    "device_bound": timeline.is_device_bound,
                    "unprofiled_ms": row[f"{phase}_ms"],
                }
            )
    return found


# ------------------------------------------------------------------------------------------------------------ answers


@dataclass(frozen=True)
class Verdict:
    """One answer against its limit; `passed` is None where the limit is not meant for this device."""

    name: str
    value: float | None
    limit: float
    passed: bool | None
    words: str


def summarise(sessions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the sessions together and judge them."""
    first = sessions[0]
    judged = str(first["environment"]["device"]).startswith("cuda")
    overhead = {
        clock: pooled_interval([value for session in sessions for value in session["overhead"][clock]])
        for clock in ("wall", "device")
    }
    closures = [abs(cell["closure_fraction"]) for session in sessions for cell in session["cells"]]
    repeats = repeatability(sessions)
    differences = [
        abs(row["event_ms"] / row["span_ms"] - 1) for row in first.get("profiler", []) if row["device_bound"]
    ]
    # The busy clock shows the device alone; the others also hold what the host did that day. The plane through busy
    # times of whole prefills is shown beside it: crops and tokens grow nearly together, which blurs its two slopes.
    firm = [row["difference_fraction"] for row in repeats if row["clock"] == "busy"]

    def verdict(name: str, value: float | None, words: str) -> Verdict:
        passed = None if not judged or value is None else value <= LIMITS[name]
        return Verdict(name, value, LIMITS[name], passed, words)

    closure = median_estimate(closures).value
    verdicts = [
        verdict("overhead", overhead["wall"].high, "upper end of the 95 % interval of what the marks cost, wall time"),
        verdict("closure", closure, "median over cells of |sum of phases / total without marks - 1|"),
        verdict(
            "profiler",
            max(differences, default=None),
            f"largest |time between marks / span of kernels - 1| of {len(differences)} device-bound phases",
        ),
        verdict(
            "repeatability", max(firm, default=None), "largest difference between sessions of a slope of busy time"
        ),
    ]
    return {
        "environment": first["environment"],
        "subject": first["subject"],
        "verdicts": [asdict(one) for one in verdicts],
        "overhead": {clock: asdict(estimate) for clock, estimate in overhead.items()},
        "overhead_pairs": sum(len(session["overhead"]["wall"]) for session in sessions),
        "repeatability": repeats,
        "profiler": first.get("profiler", []),
        "sessions": [
            {name: value for name, value in session.items() if name not in ("environment", "profiler", "subject")}
            for session in sessions
        ],
    }


def pooled_interval(fractions: Sequence[float], *, replicates: int = 2000, confidence: float = 0.95) -> Estimate:
    """Mean of paired fractions with its bootstrap interval, outliers beyond the middle 90 % trimmed.

    A single hiccup of the host (tens of milliseconds in a 20 ms prefill) would otherwise decide; a median would not
    see a cost that only some rounds pay.
    """

    def trimmed(values: Sequence[float]) -> float:
        cut = len(values) // 20
        kept = sorted(values)[cut : len(values) - cut]
        return sum(kept) / len(kept)

    rng = random.Random(0)
    draws = sorted(trimmed(rng.choices(fractions, k=len(fractions))) for _ in range(replicates))
    tail = (1 - confidence) / 2
    return Estimate(
        trimmed(fractions), draws[int(tail * replicates)], draws[min(replicates - 1, int((1 - tail) * replicates))]
    )


def repeatability(sessions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Compare the slopes of the last session with those of the first."""
    first, last = sessions[0], sessions[-1]
    rows = []
    for name, value in {**first["slopes"], **{f"decode {name}": v for name, v in first["decode"].items()}}.items():
        clock = name.split()[0]
        other = last["slopes"].get(name, last["decode"].get(name.removeprefix("decode ")))
        rows.append(
            {
                "slope": name,
                # The slope of a step over its context is a tenth of a percent of the step: shown, not judged.
                "clock": "context" if name.endswith("of context") else clock,
                "first_ms": value,
                "last_ms": other,
                "difference_fraction": abs(other / value - 1) if value else math.inf,
            }
        )
    return rows


def as_text(result: Mapping[str, Any]) -> str:
    """Print the answers."""
    environment, subject = result["environment"], result["subject"]
    lines = [
        f"{subject['family']} {subject['preset']} in {subject['dtype']} on {environment['device_identity']}, "
        f"vlmeter {environment['vlmeter']} ({environment['commit'] or 'no commit'}), "
        f"torch {environment['versions']['torch']}, transformers {environment['versions']['transformers']}",
        "",
    ]
    for one in result["verdicts"]:
        state = {True: "holds", False: "does not hold", None: "not judged"}[one["passed"]]
        value = "none" if one["value"] is None else f"{100 * one['value']:.2f} %"
        lines.append(f"{one['name']:14} {value:>9}  limit {100 * one['limit']:.0f} %  {state:13}  {one['words']}")

    lines += ["", f"1. Cost of the marks ({result['overhead_pairs']} pairs)"]
    for clock, found in result["overhead"].items():
        ends = f"{100 * found['low']:+.2f} to {100 * found['high']:+.2f} %"
        lines.append(f"   {clock:7} {100 * found['value']:+.2f} %  (95 %: {ends})")

    cells = result["sessions"][0]["cells"]
    lines += ["", "2. Closure of each cell (first session), 95 % interval"]
    for cell in cells:
        low, high = cell["closure_low_fraction"], cell["closure_high_fraction"]
        between = "" if low is None or high is None else f"{100 * low:+.2f} to {100 * high:+.2f} %"
        lines.append(f"   {cell['cell_id']:22} {100 * cell['closure_fraction']:+.2f} %  {between}")

    lines += ["", "3. Marks against the profiler's kernels"]
    if result["profiler"]:
        lines.append("   tokens  phase           marks ms   span ms   busy ms  kernels  unprofiled ms")
        for row in result["profiler"]:
            bound = "device-bound" if row["device_bound"] else ""
            lines.append(
                f"   {row['prompt_tokens']:6}  {row['phase']:14} {row['event_ms']:9.3f} {row['span_ms']:9.3f} "
                f"{row['busy_ms']:9.3f} {row['kernels']:8} {row['unprofiled_ms']:14.3f}  {bound}"
            )
    else:
        lines.append("   a CPU works in step with the host and keeps no timeline of its own")

    lines += ["", "4. Slopes of two sessions, ms"]
    for row in result["repeatability"]:
        lines.append(
            f"   {row['slope']:28} {row['first_ms']:12.6f} {row['last_ms']:12.6f}  "
            f"{100 * row['difference_fraction']:6.2f} %"
        )

    lines += ["", "5. Clocks by prompt tokens, ms (first session)"]
    lines.append("   tokens  crops      wall    device    launch      busy")
    for cell in cells:
        times = [cell[f"{name}_ms"] for name in ("plain_wall", "plain_device", "plain_launch", "busy_prefill")]
        shown = " ".join("         -" if value is None else f"{value:9.3f}" for value in times)
        lines.append(f"   {cell['prompt_tokens']:6} {cell['crops']:6} {shown}  {cell['bound']}")
    seconds = ", ".join(f"{session['seconds']:.0f}" for session in result["sessions"])
    lines += ["", f"Took {result['seconds']:.0f} s (sessions: {seconds} s)"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
