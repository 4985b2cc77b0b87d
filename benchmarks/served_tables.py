"""The tables of `benchmarks.served`: what its records and `vllm bench serve` say, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vlmeter.numbers.medians import Estimate, median_estimate
from vlmeter.records.record import Record

#: From the first byte of a request to the first token; see `vlmeter.backends.endpoint.spans`.
PHASES = ("upload", "server_inputs", "vision_encoder", "projector", "merge", "llm_blocks", "head", "return")
ON_DEVICE = PHASES[2:-1]

#: Limits on a GPU (issue "What people deploy").
MARKS_LIMIT, BENCH_LIMIT = 0.01, 0.03


def as_text(records: Sequence[Record], bench: Mapping[str, Any] | None) -> str:
    """Lay everything out as tables in Markdown."""
    served = [record for record in records if record.subject == "served" and record.status == "ok"]
    if not served:
        return "nothing was measured"
    served.sort(key=lambda record: (record.cell.experiment, _pixels(record)))
    parts = [
        _about(served[0]),
        _first_token_table(served),
        _checks_table(served),
        _cost(served),
        _token_table(served, bench),
    ]
    if bench:
        parts.append(_bench_table(bench))
    eager = {record.cell.cell_id: record for record in records if record.subject == "eager" and record.status == "ok"}
    if eager:
        parts.append(_side_by_side(served, eager))
    return "\n\n".join(parts)


def _about(record: Record) -> str:
    at, server = record.environment, record.environment["server"]
    inside = server["inside"] or {}
    return (
        f"{at['device_model']}, driver {at['driver']}; {server['engine']} {server['version']}, "
        f"{inside.get('model')} on {inside.get('runner')}, marks by {inside.get('clock')} "
        f"({', '.join(inside.get('marks', []))}; missing: {inside.get('missing') or 'none'}); "
        f"options {' '.join(server['options']) or 'none'}; caches {server['caches']}; ready after "
        f"{server['loading_s']:.0f} s; an empty request {median(server['round_trips_ms']):.2f} ms; "
        f"vlmeter at {at['commit']}"
    )


def _pixels(record: Record) -> int:
    return sum((picture.width_px or 0) * (picture.height_px or 0) for picture in record.requests[0].pictures)


def _picture(record: Record) -> str:
    (seen,) = record.requests[0].pictures
    kind = "made" if record.cell.kind == "prefill" else "photograph"
    return f"{kind}, {seen.width_px}x{seen.height_px}"


def _samples(record: Record, arm: str, phase: str, clock: str) -> list[float]:
    return record.find(arm, phase, clock) or []


def _sum(record: Record, phases: Sequence[str]) -> list[float]:
    """Sum of phases of the marked requests, round by round."""
    return [sum(values) for values in zip(*(_samples(record, "hooks", name, "device") for name in phases), strict=True)]


def _in_ms(estimate: Estimate, digits: int = 1) -> str:
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def _rows(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _first_token_table(records: Sequence[Record]) -> str:
    rows = []
    for record in records:
        counted = record.counted
        tokens = str(counted.prompt_tokens) if counted else ""
        first = median_estimate(_sum(record, PHASES))
        phases = [_in_ms(median_estimate(_samples(record, "hooks", phase, "device"))) for phase in PHASES]
        outside = [1 - part / whole for part, whole in zip(_sum(record, ON_DEVICE), _sum(record, PHASES), strict=True)]
        rows.append([_picture(record), tokens, *phases, _in_ms(first), f"{100 * median(outside):.0f} %"])
    head = ("picture", "prompt tokens", *PHASES, "first token", "outside the device")
    return "Time to first token by phase, in ms: median (95 % interval).\n\n" + _rows(head, rows)


def _checks_table(records: Sequence[Record]) -> str:
    """Closure of first tokens, and the engine's own metrics of the very same requests."""
    rows = []
    for record in records:
        closure = "-"
        if record.cell.kind == "prefill":
            plain = _samples(record, "plain", "total", "wall")
            closure = _percent(median_estimate(_relative(_sum(record, PHASES), plain)))
        device = _sum(record, ON_DEVICE)
        row = [_picture(record), closure, _in_ms(median_estimate(device), 2)]
        for name in ("vllm.metrics.time_to_first_token_ms", "vllm:request_prefill_time_seconds"):
            said = _samples(record, "server", name, "wall")
            row.append(f"{_in_ms(median_estimate(said), 2)}; {_differ(said, device)}" if said else "-")
        rows.append(row)
    head = (
        "picture",
        "closure: phases with marks / first token without",
        "device's phases, ms",
        "vLLM's time_to_first_token_ms (from being scheduled)",
        "vLLM's request_prefill_time",
    )
    return "Checks.\n\n" + _rows(head, rows)


def _differ(said: Sequence[float], ours: Sequence[float]) -> str:
    """Medians of the paired differences, in ms."""
    found = median_estimate([one - other for one, other in zip(said, ours, strict=True)])
    return f"{found.value:+.2f} ms ({found.low:+.2f} to {found.high:+.2f})"


def _relative(found: Sequence[float], to: Sequence[float]) -> list[float]:
    return [one / other - 1 for one, other in zip(found, to, strict=True)]


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:+.2f} % ({100 * estimate.low:+.2f} to {100 * estimate.high:+.2f})"


def _cost(records: Sequence[Record]) -> str:
    pairs = [
        ratio
        for record in records
        for ratio in _relative(_samples(record, "hooks", "total", "wall"), _samples(record, "plain", "total", "wall"))
    ]
    cost = median_estimate(pairs)
    rows = [
        [
            _picture(record),
            str(record.cell.output_tokens),
            _percent(
                median_estimate(
                    _relative(_samples(record, "hooks", "total", "wall"), _samples(record, "plain", "total", "wall"))
                )
            ),
        ]
        for record in records
    ]
    verdict = "holds" if cost.high <= MARKS_LIMIT else "does not hold"
    return (
        f"Cost of the marks, whole requests, {len(pairs)} pairs: {_percent(cost)}; limit {100 * MARKS_LIMIT:.0f} %: "
        f"{verdict}.\n\n" + _rows(("picture", "output tokens", "with marks / without"), rows)
    )


def _token_table(records: Sequence[Record], bench: Mapping[str, Any] | None) -> str:
    rows = []
    for record in records:
        if not record.steps_ms:
            continue
        per_round = [median(steps) for steps in record.steps_ms]
        mean = [sum(steps) / len(steps) for steps in record.steps_ms]
        itl = _samples(record, "server", "vllm.metrics.mean_itl_ms", "wall")
        (seen,) = record.requests[0].pictures
        device = (bench or {}).get("device", {}).get(f"{seen.width_px}x{seen.height_px}")
        rows.append(
            [
                _picture(record),
                _in_ms(median_estimate(per_round), 3),
                _in_ms(median_estimate(mean), 3),
                _in_ms(median_estimate(itl), 3) if itl else "-",
                _in_ms(median_estimate(device["steps_ms"]), 3) if device else "-",
            ]
        )
    head = ("picture", "median gap at the client", "mean gap at the client", "vLLM's mean_itl_ms", "device's step")
    return "An output token, in ms.\n\n" + _rows(head, rows)


def _bench_table(bench: Mapping[str, Any]) -> str:
    rows = []
    for size, ours in bench["vlmeter"].items():
        theirs = bench["bench"][size]
        row = [size, f"{bench['payload_bytes'][size] / 1e6:.2f} MB"]
        for name in ("first_ms", "step_ms"):
            mine, other = median_estimate(ours[name]), median_estimate(theirs[name])
            digits = 1 if name == "first_ms" else 3
            row += [_in_ms(mine, digits), _in_ms(other, digits), f"{100 * (other.value / mine.value - 1):+.1f} %"]
        row.append(f"{bench['payload_ms'][size]:.2f}")
        rows.append(row)
    head = (
        "photograph",
        "payload",
        "first token: vlmeter",
        "vllm bench serve",
        "",
        "per output token: vlmeter",
        "vllm bench serve",
        "",
        "making the JSON, ms",
    )
    return f"The same requests by `vllm bench serve`; limit {100 * BENCH_LIMIT:.0f} %.\n\n" + _rows(head, rows)


def _side_by_side(served: Sequence[Record], eager: Mapping[str, Record]) -> str:
    rows = []
    for record in served:
        other = eager.get(record.cell.cell_id)
        if other is None:
            continue
        inputs = _samples(other, "inputs", "total", "wall")
        vision, language = ("vision_encoder", "projector"), ("merge", "llm_blocks", "head")
        row = [_picture(record)]
        for one in (record, other):
            row += [_in_ms(median_estimate(_sum(one, vision))), _in_ms(median_estimate(_sum(one, language)))]
        row.append(_in_ms(median_estimate(inputs)))
        for one in (record, other):
            steps = [median(steps) for steps in one.steps_ms]
            row.append(_in_ms(median_estimate(steps), 2) if steps else "-")
        rows.append(row)
    head = (
        "picture",
        "served: vision",
        "served: language",
        "eager: vision",
        "eager: language",
        "eager: inputs",
        "served: output token",
        "eager: output token",
    )
    return "Served and eager, the same cells, in ms.\n\n" + _rows(head, rows)
