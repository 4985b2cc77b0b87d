"""What a claim says follows what was planted: counts, singular and plural, limits, and which numbers were looked at."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from vlmeter.analysis import decode_runs, reading, software, subjects
from vlmeter.analysis.distribution import FACTORS
from vlmeter.claims import software as software_claims
from vlmeter.claims.base import Finding, listed
from vlmeter.claims.registry import CLAIMS
from vlmeter.claims.subjects import SIDE_BY_SIDE_CLAIMS
from vlmeter.numbers.medians import Estimate
from vlmeter.table.quantities import RATIO, SLOPE_STEPS


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def judge(name: str, data: Any) -> Finding:
    return {**CLAIMS, **SIDE_BY_SIDE_CLAIMS}[name].judge(data)


@pytest.mark.parametrize(
    ("factors", "said"),
    [
        (["crops"], "crops"),
        (["crops", "image_px"], "crops and pixels of the image"),
        (["generated_tokens", "crops", "image_px"], "output tokens, crops and pixels of the image"),
        (list(FACTORS), "output tokens, prompt tokens, crops and pixels of the image"),
    ],
)
def test_factors_are_named_in_one_list(factors: list[str], said: str) -> None:
    assert listed(factors) == said


@pytest.mark.parametrize(("slope", "off"), [(0.94, True), (0.96, False), (1.0, False), (1.04, False), (1.06, True)])
def test_pieces_whose_slope_is_away_from_one_are_named(
    slope: float, off: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    piece = {"from_tokens": 512, "to_tokens": 1024, **dict.fromkeys(SLOPE_STEPS.columns, slope)}
    monkeypatch.setattr(decode_runs, "growth", lambda runs: pd.DataFrame([piece]))
    law = SimpleNamespace(power={"slope": exactly(1.0)}, power_tokens={"slope": exactly(1.0)}, misgivings=lambda: "")
    found = judge("log_log_slope_is_one", SimpleNamespace(law=law, runs=None, table=None))
    assert ("Piece by piece it is away from 1 between 512 to 1,024 tokens." in found.statement) == off


def test_only_lengths_and_their_doubles_are_doublings(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = [(24, 32, 1.33), (32, 64, 2.0), (64, 256, 4.0)]
    rows = [{"from_tokens": start, "to_tokens": end, **dict.fromkeys(RATIO.columns, x)} for start, end, x in steps]
    monkeypatch.setattr(decode_runs, "growth", lambda runs: pd.DataFrame(rows))
    found = judge("doubling_doubles", SimpleNamespace(runs=None, table=None))
    assert found.verdict == "holds"
    assert [part.name for part in found.evidence] == ["T(64) / T(32)"]


# --- subjects side by side --------------------------------------------------------------------------


def images(
    monkeypatch: pytest.MonkeyPatch,
    tokens: list[tuple[int, int]],
    times: list[tuple[float, float]],
    *,
    known: bool = True,
) -> Any:
    """Two subjects, a and b, that measured the same images: their vision tokens and ms, with intervals or without."""
    rows = [
        {"image": f"image {place}", "subject": subject, "vision_tokens": count, "time": value}
        for place, (counts, values) in enumerate(zip(tokens, times, strict=True))
        for subject, count, value in zip("ab", counts, values, strict=True)
    ]
    found = exactly if known else lambda value: Estimate(value, math.nan, math.nan)
    monkeypatch.setattr(subjects, "shared_images", lambda table: pd.DataFrame(rows))
    monkeypatch.setattr(
        subjects,
        "estimates_of",
        lambda frame: {row["subject"]: found(row["time"]) for row in frame.to_dict("records")},
    )
    return SimpleNamespace(table=None)


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([(10, 20), (7, 7), (9, 9)], "1 of 3 images becomes unlike numbers of vision tokens"),
        ([(10, 20), (7, 8), (9, 9)], "2 of 3 images become unlike numbers of vision tokens"),
    ],
)
def test_images_of_unlike_counts_are_counted(
    tokens: list[tuple[int, int]], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = judge("same_image_same_tokens", images(monkeypatch, tokens, [(1.0, 1.0)] * 3))
    assert found.statement.startswith(f"{said}; image 0 becomes 10 in a and 20 in b")


@pytest.mark.parametrize("known", [True, False])
def test_pairs_in_which_fewer_tokens_are_later_are_counted_among_all(
    known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, times = [(10, 20), (10, 30), (10, 40)], [(1.0, 2.0), (1.0, 2.0), (4.0, 2.0)]
    found = judge("fewer_tokens_sooner", images(monkeypatch, tokens, times, known=known))
    assert found.verdict == "does not hold"
    assert "in 1 of 3 pairs of subjects and images: image 2 becomes 10 vision tokens in a" in found.statement
    assert [part.value for part in found.evidence] == [2, 1]


def test_whether_tokens_are_the_same_is_told_under_any_conditions_and_times_are_not() -> None:
    untimed = {name for name, entry in SIDE_BY_SIDE_CLAIMS.items() if not entry.timed}
    assert untimed == {"same_image_same_tokens", "ways_same_tokens"}


# --- ways of running --------------------------------------------------------------------------------


def steps(monkeypatch: pytest.MonkeyPatch, *above_ms: float, kernels: float = 1.0) -> Any:
    """Groups of one way each, whose step is so long above a floor of 10 ms; `kernels` is their share in it."""
    found = []
    for place, above in enumerate(above_ms):
        way = SimpleNamespace(subject=f"way{place}")
        task = SimpleNamespace(
            times={way.subject: exactly(10.0 + above)}, floor_ms=10.0, bound="memory", no_busy="nothing is known"
        )
        found.append(((way,), task))
    monkeypatch.setattr(software_claims, "_steps", lambda data: found)

    def left(task: Any, way: Any) -> tuple[Any, Any]:
        above = task.times[way.subject].value - task.floor_ms
        return SimpleNamespace(ms=above * (1 - kernels)), SimpleNamespace(ms=above * kernels)

    monkeypatch.setattr(software, "left_of", left)
    return SimpleNamespace()


def test_the_limit_of_a_distance_to_the_floor_is_said_without_zeros(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judge("ways_near_floor", steps(monkeypatch, 1.0))
    assert found.statement.startswith("The fastest way of running decodes within 1.5 times the floor: ")


def test_what_little_is_left_above_a_floor_is_told_apart_too(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judge("ways_left_is_kernels", steps(monkeypatch, 0.5))
    assert found.verdict == "holds"
    assert "of the 0.500 ms by which a step of way0 lies above its floor" in found.statement


def test_a_way_at_its_floor_does_not_hide_those_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = judge("ways_left_is_kernels", steps(monkeypatch, 0.0, 2.0, kernels=0.1))
    assert found.verdict == "does not hold"
    assert "a step of way1" in found.statement
    assert judge("ways_left_is_kernels", steps(monkeypatch, 0.0)).verdict == "cannot tell"


# --- servers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ([300, 1200, 700], "as the plan, 300 to 1,200, in each of 3 cells."),
        ([300], "as the plan, 300, in each of 1 cell."),
    ],
)
def test_counts_of_a_server_that_agree_are_said_from_least_to_most(
    tokens: list[int], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pd.DataFrame({"server_prompt_tokens": tokens, "prompt_tokens": tokens, "cell_id": "cell"})
    monkeypatch.setattr(reading, "whole_rows", lambda table: rows)
    found = judge("server_counts_are_the_plans", SimpleNamespace(table=None))
    assert found.verdict == "holds"
    assert found.statement.endswith(said)
