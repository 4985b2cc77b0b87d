"""Every limit of a claim is where its reason says: a number just inside of it and one just outside are told apart."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from vlmeter.analysis import components, decode_runs, distribution, flops, held_out, step_times, subjects
from vlmeter.analysis.held_out import Accuracy
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.registry import CLAIMS
from vlmeter.claims.subjects import SIDE_BY_SIDE_CLAIMS
from vlmeter.numbers.medians import Estimate
from vlmeter.table.quantities import (
    AGREEMENT,
    AROUND,
    CLOSURE,
    HEAD,
    MERGE,
    OVERHEAD,
    PREFILL_SUM,
    RATIO,
    SLOPE_STEPS,
    Quantity,
)

#: Puts a number where a claim takes it from; returns what stands for `claims.base.Data`.
Plant = Callable[[pytest.MonkeyPatch, float], Any]

#: How far a planted number lies from the limit, as a fraction of the limit.
BESIDE = 0.01


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def cells(quantity: Quantity, value: float) -> pd.DataFrame:
    """Six cells with the same number, without an interval of its own."""
    columns = {**{around.column: 1.0 for around in AROUND}, **dict.fromkeys(quantity.columns, value)}
    return pd.DataFrame([{**columns, MERGE.column: 0.1, HEAD.column: 0.1, PREFILL_SUM.column: 1.0}] * 6)


def outside(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    return SimpleNamespace(answers={"outside": None}, answer=lambda name: exactly(value))


def of_cells(quantity: Quantity) -> Plant:
    return lambda monkeypatch, value: SimpleNamespace(cells=cells(quantity, value))


def law(*, bend: float = 0.0, slope: float = 1.0) -> SimpleNamespace:
    line = {"per_token": exactly(1.0), "constant": exactly(0.0)}
    power = {"slope": exactly(slope)}
    return SimpleNamespace(line=line, power=power, power_tokens=power, curvature=exactly(bend), longest_tokens=64)


def growth(monkeypatch: pytest.MonkeyPatch, *rows: dict[str, float]) -> None:
    monkeypatch.setattr(decode_runs, "growth", lambda runs: pd.DataFrame(rows))


def bend(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    said = SimpleNamespace(said=lambda: "1 ms")
    return SimpleNamespace(law=law(bend=value), answer=lambda name: exactly(1.0), answers={"output_token": said})


def step_growth(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    fit = {"constant": exactly(100.0 - 100.0 * value), "per_context_token": exactly(value)}
    contexts = np.array([100.0, 200.0])  # a step takes 100 ms where the context begins
    found = SimpleNamespace(contexts=contexts, fit=fit, modes="")
    monkeypatch.setattr(step_times, "step_law", lambda table: found)
    return SimpleNamespace(table=None)


def doubling(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    growth(monkeypatch, {"from_tokens": 64, "to_tokens": 128, **dict.fromkeys(RATIO.columns, 2 * (1 + value))})
    return SimpleNamespace(runs=None)


def slope(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    growth(monkeypatch, {"from_tokens": 8, "to_tokens": 16, **dict.fromkeys(SLOPE_STEPS.columns, 1.0)})
    return SimpleNamespace(law=law(slope=1 + value), runs=None)


def agreement(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    found = cells(AGREEMENT, value).assign(agrees=pd.array([True] * 6, dtype="boolean"))
    monkeypatch.setattr(decode_runs, "agreement", lambda table: found)
    return SimpleNamespace(table=None)


def step_over_floor(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    limit = SimpleNamespace(cells=("a", "b"))
    return SimpleNamespace(worked=None, answer=lambda name: exactly(value), answers={"limit_decode": limit})


def served_token(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    step = exactly(10.0)
    found = step_times.ServedToken(exactly(10.0 * (1 + value)), step, exactly(10.0 * value), exactly(value), 3)
    monkeypatch.setattr(step_times, "served_token", lambda table: found)
    return SimpleNamespace(table=None)


def model_error(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    relations = pd.DataFrame([{"phase": phase, **dict.fromkeys(
        [f"{name}{end}" for name in flops.RELATION_QUANTITIES for end in ("", "_low", "_high")], 0.5
    )} for phase in ("parts", "decode")])  # fmt: skip
    monkeypatch.setattr(flops, "relations", lambda points: relations)
    errors = dict.fromkeys(flops.MODELS, exactly(value))
    return SimpleNamespace(
        points=relations, models=SimpleNamespace(errors=errors, best_flops="flops"), modes_over_flops=""
    )


def equal_flops(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    found = SimpleNamespace(times=exactly(1 + value), floor_times=1.0, matched=True)
    monkeypatch.setattr(flops, "equal_flops", lambda points: found)
    monkeypatch.setattr(flops, "pace_cost", lambda points: Unknown("not asked"))
    return SimpleNamespace(points=None, modes_over_flops="")


def share_apart(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    found = components.Disagreement(HEAD.name, 0.5, exactly(0.5 + value))
    monkeypatch.setattr(components, "disagreement", lambda profile, quantity: found)
    return SimpleNamespace(profile=None)


def tail(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    monkeypatch.setattr(distribution, "tail_over_middle", lambda *by_run: exactly(value))
    return SimpleNamespace(requests=SimpleNamespace(by_run=lambda: [], size=300))


def explained(*, gap: float = 0.6, rest: float = 0.0) -> SimpleNamespace:
    shares = {"generated_tokens": exactly(gap), "rest": exactly(rest)}
    found = SimpleNamespace(fixed={}, gap=shares, variance=shares, gap_ms=exactly(10.0), tail_fraction=0.01)
    found.factors = ["generated_tokens"]
    return SimpleNamespace(explanation=found)


def predicted(monkeypatch: pytest.MonkeyPatch, *, error: float = 0.0, coverage: float = 1.0) -> Any:
    found = Accuracy(exactly(error), exactly(coverage), count=20, inside=20)
    monkeypatch.setattr(held_out, "accuracy", lambda frame, quantity=None: found)
    return SimpleNamespace(held_out=None, modes_of_requests="")


def costs(monkeypatch: pytest.MonkeyPatch, value: float) -> Any:
    found = {
        name: {"output_token": SimpleNamespace(found=exactly(cost))} for name, cost in (("a", 1.0), ("b", 1.0 + value))
    }
    return SimpleNamespace(by_subject=found)


#: Claim, its limit, what plants a number, and the verdicts just below and just above the limit.
LIMITS: list[tuple[str, float, Plant, tuple[str, str]]] = [
    ("total_is_the_sum", 0.01, of_cells(CLOSURE), ("holds", "does not hold")),
    ("total_is_the_sum", -0.01, of_cells(CLOSURE), ("does not hold", "holds")),
    ("hook_overhead_within_bound", 0.01, of_cells(OVERHEAD), ("holds", "does not hold")),
    ("first_token_is_outside", 0.5, outside, ("does not hold", "holds")),
    ("token_is_the_devices", 0.05, served_token, ("holds", "does not hold")),
    ("token_is_the_devices", -0.05, served_token, ("does not hold", "holds")),
    ("decode_linear_without_offset", 0.02, bend, ("holds", "does not hold")),
    ("decode_linear_without_offset", -0.02, bend, ("does not hold", "holds")),
    ("constant_cost_per_token", 0.02, step_growth, ("holds", "does not hold")),
    ("doubling_doubles", 0.05, doubling, ("holds", "does not hold")),
    ("doubling_doubles", -0.05, doubling, ("does not hold", "holds")),
    ("log_log_slope_is_one", 0.05, slope, ("holds", "does not hold")),
    ("log_log_slope_is_one", -0.05, slope, ("does not hold", "holds")),
    ("derived_agrees_with_direct", 0.01, agreement, ("holds", "does not hold")),
    ("derived_agrees_with_direct", -0.01, agreement, ("does not hold", "holds")),
    ("decode_near_floor", 1.5, step_over_floor, ("holds", "does not hold")),
    ("flops_predict_latency", 0.2, model_error, ("holds", "does not hold")),
    ("equal_flops_equal_time", 0.1, equal_flops, ("holds", "does not hold")),
    ("equal_flops_equal_time", -0.1, equal_flops, ("does not hold", "holds")),
    ("parameters_are_not_time", 0.1, share_apart, ("does not hold", "holds")),
    ("flops_are_not_time", -0.1, share_apart, ("holds", "does not hold")),
    ("tail_within_twice_the_middle", 2.0, tail, ("holds", "does not hold")),
    ("tail_is_output_length", 0.5, lambda _, value: explained(gap=value), ("does not hold", "holds")),
    ("requests_explain_their_latency", 0.1, lambda _, value: explained(rest=value), ("holds", "does not hold")),
    ("held_out_predicted", 0.1, lambda patch, value: predicted(patch, error=value), ("holds", "does not hold")),
    (
        "prediction_intervals_hold",
        0.9,
        lambda patch, value: predicted(patch, coverage=value),
        ("does not hold", "holds"),
    ),
    ("same_cost_per_output_token", 0.1, costs, ("holds", "does not hold")),
]


@pytest.mark.parametrize(("name", "limit", "plant", "verdicts"), LIMITS, ids=[f"{n} {x:g}" for n, x, _, _ in LIMITS])
def test_a_claim_changes_its_verdict_at_its_limit_and_not_beside_it(
    name: str, limit: float, plant: Plant, verdicts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = {**CLAIMS, **SIDE_BY_SIDE_CLAIMS}[name]
    for value, verdict in zip((limit - BESIDE * abs(limit), limit + BESIDE * abs(limit)), verdicts, strict=True):
        assert entry.judge(plant(monkeypatch, value)).verdict == verdict, f"{value} beside the limit {limit}"


@pytest.mark.parametrize("times", [0.99, 1.01])
@pytest.mark.parametrize("cost", [0.1])
def test_costs_of_an_image_are_the_same_up_to_the_same_limit(
    cost: float, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = pd.DataFrame({"image": ["640 x 480 px"] * 2, "subject": ["a", "b"]})
    monkeypatch.setattr(subjects, "shared_images", lambda table: image)
    told = {"a": exactly(1.0), "b": exactly(1.0 + cost * times)}
    monkeypatch.setattr(subjects, "estimates_of", lambda rows: told)
    found = SIDE_BY_SIDE_CLAIMS["same_image_same_cost"].judge(SimpleNamespace(table=None))  # type: ignore[arg-type]
    assert found.verdict == ("holds" if times < 1 else "does not hold")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.2, 0.3, "holds"), (0.2, 0.4, "cannot tell"), (0.6, 0.8, "cannot tell"), (0.7, 0.8, "does not hold")],
)
def test_a_share_falls_only_where_the_ends_intervals_are_apart(
    low: float, high: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = ("output_tokens", "value", "low", "high")
    shares = pd.DataFrame([(8, 0.5, 0.4, 0.6), (64, (low + high) / 2, low, high)], columns=columns)
    monkeypatch.setattr(decode_runs, "by_length", lambda runs, quantity: shares)
    data: Any = SimpleNamespace(runs=None)
    assert CLAIMS["prefill_share_falls"].judge(data).verdict == verdict
