"""The benchmark of intervals counts rightly, and what it counts is what the report prints."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import coverage
from benchmarks.coverage import Answer, answers_of, every_case
from benchmarks.coverage_noise import NOISES, Case, Noise, Trial, sampled
from vlmeter.analysis import conditions
from vlmeter.figures import latency_tail
from vlmeter.numbers import words
from vlmeter.numbers.medians import Estimate

CASES = every_case()


@pytest.mark.parametrize("case", CASES, ids=[f"{case.interval}, {case.noise}" for case in CASES])
def test_every_case_gives_an_interval_about_its_truth(case: Case) -> None:
    found = [case.trial(np.random.default_rng(seed)) for seed in range(3)]
    trials = [one[0] if isinstance(one, list) else one for one in found]
    every = [trial for one in found for trial in (one if isinstance(one, list) else [one])]
    assert {trial.interval or case.interval for trial in every} == set(case.intervals)
    for trial in every:
        assert trial.found.low <= trial.found.value <= trial.found.high
        assert math.isfinite(trial.truth)
    assert len({trial.found for trial in trials}) == 3, "each has its own random numbers"


@pytest.mark.parametrize("noise", NOISES, ids=[noise.name for noise in NOISES])
def test_the_truth_of_a_noise_is_the_median_of_what_it_draws(noise: Noise) -> None:
    drawn = np.concatenate([noise.draw(np.random.default_rng(seed), 50) for seed in range(1500)])
    assert np.median(drawn) == pytest.approx(noise.truth(50), rel=0.002)


def planted(width: float) -> Case:
    """An interval of a normal value, so many standard deviations to each side."""

    def trial(rng: np.random.Generator) -> Trial:
        value = float(rng.standard_normal())
        return Trial(Estimate(value, value - width, value + width), 0.0, 1)

    return Case("planted", "normal", trial)


def answer(case: Case, *, repeats: int, seed: int) -> Answer:
    """Of a case with a single kind of interval."""
    (found,) = answers_of(case, repeats=repeats, seed=seed)
    return found


def test_a_case_of_several_intervals_counts_each_by_itself() -> None:
    def both(rng: np.random.Generator) -> list[Trial]:
        value = float(rng.standard_normal())
        sides = {"narrow": 0.5, "wide": 4.0}
        return [Trial(Estimate(value, value - side, value + side), 0.0, 1, name) for name, side in sides.items()]

    case = Case("both", "normal", both, kinds=("narrow", "wide"))
    found = {one.interval: one for one in answers_of(case, repeats=400, seed=1)}
    assert {name: one.verdict for name, one in found.items()} == {"narrow": "too narrow", "wide": "wide"}
    assert [one.trials for one in found.values()] == [400, 400]


@pytest.mark.parametrize(("width", "verdict"), [(1.3, "too narrow"), (1.96, "right"), (3.0, "wide")])
def test_a_planted_interval_is_called_what_it_is(width: float, verdict: str) -> None:
    assert answer(planted(width), repeats=2000, seed=1).verdict == verdict


def test_an_answer_does_not_depend_on_what_else_is_tried() -> None:
    found = [answer(planted(1.3), repeats=300, seed=seed) for seed in (1, 1, 2)]
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_sampling_stops_at_a_look_as_a_session_does() -> None:
    quiet, noisy = (np.exp(spread * np.random.default_rng(3).standard_normal(50)) for spread in (0.002, 0.2))
    assert sampled(quiet, before=False)[1] == 10
    assert sampled(noisy, before=False)[1] == 50
    counts = {sampled(np.exp(0.02 * np.random.default_rng(s).standard_normal(50)), before=False)[1] for s in range(60)}
    assert counts <= {10, 20, 40, 50}
    assert len(counts) > 2


def test_intervals_hold_more_often_than_they_did() -> None:
    name = "correlated 0.3, 2 %"
    now, before = (
        answer(next(case for case in every_case(before=old) if case.noise == name), repeats=400, seed=5)
        for old in (False, True)
    )
    assert now.coverage > 0.89
    assert before.coverage < 0.85


def test_the_committed_counts_are_of_the_cases_that_there_are() -> None:
    path = Path(coverage.__file__).parent / "results" / "coverage.json"
    kept = json.loads(path.read_text("utf-8"))
    there_are = {(interval, case.noise) for case in CASES for interval in case.intervals}
    assert {(each["interval"], each["noise"]) for each in kept["now"]} == there_are
    assert kept["commit"]
    assert kept["command"] == "python -m benchmarks.coverage --before", "all of them, in one run"
    medians = [Answer(**each) for each in kept["now"] if each["interval"].startswith("median, until")]
    page = (Path(coverage.__file__).parent / "README.md").read_text("utf-8")
    for each in medians:
        assert f"{each.coverage * 100:.1f} %" in page, each.noise
    rows = [line for line in page.splitlines() if line.startswith("| ")]
    for one in (Answer(**each) for each in kept["now"]):
        if not one.interval.startswith(("median, until", "median of ", "median in ")):
            start, told = f"| {one.interval} | {one.noise} | ", f"{one.coverage * 100:.1f} %"
            assert [row for row in rows if row.startswith(start) and told in row], one
    assert kept["commit"].split()[0] in page


def test_the_command_prints_a_table_and_writes_the_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert coverage.main(["--only", "closure over", "--repeats", "20", "--output", str(tmp_path / "c.json")]) == 0
    assert capsys.readouterr().out.count("closure over") == 3
    kept = json.loads((tmp_path / "c.json").read_text("utf-8"))
    assert [each["trials"] for each in kept["now"]] == [20, 20, 20]
    assert kept["command"] == "python -m benchmarks.coverage --only closure over --repeats 20"
    assert kept["repeats"] == 20
    assert "before" not in kept
    with pytest.raises(SystemExit):
        coverage.main(["--only", "nothing of that name"])


def test_what_the_report_says_of_rough_and_of_wide_intervals_is_what_was_counted() -> None:
    path = Path(coverage.__file__).parent / "results" / "coverage.json"
    counted = json.loads(path.read_text(encoding="utf-8"))["now"]

    def held(*starts: str, noise: str = "") -> list[int]:
        rows = [row for row in counted if row["interval"].startswith(starts) and noise in row["noise"]]
        return [int(100 * row["held"] / row["trials"]) for row in rows]

    shares = held("share of output tokens in", "rest of the variance", "gap of slow requests")
    assert f"{min(shares)} to {max(shares)} of 100 held the truth" in Path(latency_tail.__file__).read_text("utf-8")
    assert held("median over 3 runs", noise="runs 0.4 % apart") == [99]
    assert "99 of 100 hold" in conditions._WIDE
    assert held("time of 2 cells", "time of 4 cells") == [98, 98]
    assert "98 of 100 hold" in words.WIDE_OF_TWO
