"""Many requests: percentiles where there are enough, and a tail taken apart into the causes that were planted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.support.fakes import FakeRunner
from tests.support.tables import LATENCY, records_of, rewrite, table_of
from vlmeter.analysis import answers, distribution
from vlmeter.analysis.conditions import trust
from vlmeter.analysis.distribution import Explanation, Sample, _about, explain, sample_of
from vlmeter.analysis.reading import Unknown
from vlmeter.numbers.medians import Estimate
from vlmeter.table.build import build_table


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    runner = FakeRunner(noise_fraction=0.01)
    return table_of(tmp_path_factory.mktemp("requests"), runner=runner, vision=None, output=None, latency=LATENCY)


def planted(
    count: int,
    *,
    per_output_ms: float = 0.0,
    per_crop_ms: float = 0.0,
    per_token_ms: float = 0.0,
    noise_ms: float = 0.0,
    lengths: tuple[int, ...] = (4, 8, 16, 32, 64),
    together: bool = False,
    seed: int = 0,
) -> Sample:
    """Requests whose latency follows a planted law; `together`: prompt tokens follow from crops alone."""
    rng = np.random.default_rng(seed)
    crops = rng.integers(2, 14, size=count)
    tokens = 144 * crops + (0 if together else rng.integers(10, 200, size=count))
    outputs = rng.choice(lengths, size=count)
    total_ms = 20 + per_output_ms * outputs + per_crop_ms * crops + per_token_ms * tokens
    requests = pd.DataFrame(
        {
            "number": np.arange(count),
            "image_index": np.arange(count),
            "image_id": [str(number) for number in range(count)],
            "question_id": [str(number) for number in range(count)],
            "crops": crops,
            "prompt_tokens": tokens,
            "generated_tokens": outputs,
            "image_px": rng.integers(1e5, 1e6, size=count).astype(np.float64),
            "whole_request_ms": total_ms + noise_ms * rng.standard_normal(count),
        }
    )
    return Sample(requests, disturbed=0, kept=False, failed=0)


def explained(sample: Sample) -> Explanation:
    found = explain(sample)
    assert not isinstance(found, Unknown), found
    return found


# --- requests out of the table --------------------------------------------------------------------------


def test_every_request_is_a_row_with_what_it_was_and_what_it_took(table: pd.DataFrame) -> None:
    found = distribution.requests(table)
    assert list(found["number"]) == list(range(320))
    assert set(found["generated_tokens"]) == {4, 8, 16, 64}
    assert list(found["image_index"]) == [number % 6 for number in range(320)]
    law = FakeRunner()
    for row in found.head(20).to_dict("records"):
        declared = law.duration_ms("llm_blocks", crops=row["crops"], tokens=row["prompt_tokens"])
        assert row["llm_blocks_ms"] == pytest.approx(declared, rel=0.06)
        assert row["first_token_ms"] == pytest.approx(row["inputs_ms"] + row["prefill_ms"])
        assert row["whole_request_ms"] == pytest.approx(row["first_token_ms"] + row["decode_ms"])


def test_the_table_of_a_block_keeps_every_sample_and_its_own_statistics(table: pd.DataFrame) -> None:
    whole = table[(table["arm"] == "request") & (table["phase"] == "total") & (table["clock"] == "wall")]
    assert list(whole["samples"]) == [80] * 4
    assert list(whole["failed_requests"]) == [0] * 4
    assert whole["p95_ms"].notna().all()
    assert whole["p99_ms"].isna().all(), "80 requests bound no 99th percentile"


def test_a_study_without_requests_has_none() -> None:
    empty = sample_of(build_table([]))
    assert (empty.size, empty.disturbed, empty.failed) == (0, 0, 0)
    assert empty.too_few == "no request was measured"


def disturb(path: Path, places: range) -> None:
    def change(data: dict[str, Any]) -> None:
        for place in places:
            data["rounds"][place]["disturbances"] = ["other processes on the host"]

    rewrite(path, change)


def test_disturbed_requests_are_left_out_unless_they_are_the_most(tmp_path: Path) -> None:
    latency = {"samples": 20, "block_samples": 20, "output_tokens": 4}
    (path,) = records_of(tmp_path, vision=None, output=None, latency=latency)
    disturb(path, range(0, 6))
    some = sample_of(build_table([path]))
    assert (some.size, some.disturbed, some.kept) == (14, 6, False)
    assert "6 requests during which the machine was disturbed are left out" in distribution.conditions(some)
    assert trust(build_table([path])).verdict == "quiet", "as a few disturbed rounds of a cell"
    disturb(path, range(0, 14))
    most = sample_of(build_table([path]))
    assert (most.size, most.disturbed, most.kept) == (20, 14, True)
    assert "disturbed during 14 of them" in distribution.conditions(most)
    assert trust(build_table([path])).verdict == "unusable"


def test_requests_that_ran_out_of_memory_are_counted_beside_the_others(tmp_path: Path) -> None:
    latency = {"samples": 20, "block_samples": 20, "output_tokens": 4}
    (path,) = records_of(tmp_path, vision=None, output=None, latency=latency)
    rewrite(path, lambda data: data.update(failed_requests=[{"place": 3, "reason": "2 GiB"}] * 2))
    sample = sample_of(build_table([path]))
    assert (sample.size, sample.failed) == (20, 2)
    assert "2 requests ran out of device memory" in distribution.conditions(sample)


def test_requests_that_come_round_again_are_said_to(table: pd.DataFrame) -> None:
    sample = sample_of(table)
    assert sample.distinct == 6
    assert "6 pairs of photograph and question" in distribution.conditions(sample)


# --- percentiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "told"), [(4, 0), (5, 1), (28, 1), (29, 2), (58, 2), (59, 3), (298, 3), (299, 4)])
def test_a_percentile_is_told_from_the_number_of_requests_on_that_can_bound_it(count: int, told: int) -> None:
    found = distribution.percentiles(np.arange(count, dtype=np.float64))
    assert [found[fraction] is not None for fraction in (0.5, 0.9, 0.95, 0.99)] == [n < told for n in range(4)]


def test_an_absent_percentile_comes_with_the_number_that_is_wanted() -> None:
    assert distribution.too_few(0.99, 60) == "P99 needs 299 requests, and there are 60"


def test_intervals_of_percentiles_cover_as_often_as_they_say() -> None:
    rng, hits, repeats = np.random.default_rng(3), 0, 300
    truth = math.exp(0.5 * 1.6448536269514722)
    for _ in range(repeats):
        found = distribution.percentiles(np.exp(0.5 * rng.standard_normal(400)))[0.95]
        assert found is not None
        hits += found.contains(truth)
    assert hits / repeats > 0.92


def test_tail_over_middle_needs_a_tail() -> None:
    few = distribution.tail_over_middle(np.ones(100))
    assert isinstance(few, Unknown)
    assert few.reason == distribution.too_few(0.99, 100)
    ratio = distribution.tail_over_middle(np.concatenate([np.full(600, 10.0), np.full(20, 30.0)]))
    assert isinstance(ratio, Estimate)
    assert ratio.value == pytest.approx(3.0)


# --- what makes the tail --------------------------------------------------------------------------------


def test_a_planted_law_is_recovered_with_intervals_that_hold_it() -> None:
    found = explained(planted(800, per_output_ms=2.0, per_crop_ms=3.0, per_token_ms=0.02, noise_ms=5.0))
    assert found.fit["generated_tokens"].contains(2.0)
    assert found.fit["crops"].contains(3.0)
    assert found.fit["prompt_tokens"].contains(0.02)
    assert found.fit["image_px"].contains(0.0)
    assert found.fit["generated_tokens"].value == pytest.approx(2.0, rel=0.02)


def test_shares_of_variance_and_of_the_gap_add_up() -> None:
    found = explained(planted(500, per_output_ms=1.0, per_crop_ms=4.0, noise_ms=10.0))
    for shares in (found.variance, found.gap):
        assert sum(one.value for one in shares.values()) == pytest.approx(1.0)
    assert found.variance["rest"].value == pytest.approx(1 - found.fit.r_squared)


def test_a_tail_of_long_answers_is_put_down_to_output_tokens() -> None:
    found = explained(planted(700, per_output_ms=5.0, per_crop_ms=0.5, noise_ms=2.0))
    assert found.gap["generated_tokens"].low > 0.85
    assert found.variance["generated_tokens"].low > 0.85


def test_the_share_of_a_factor_that_dominates_is_not_told_too_low() -> None:
    """A resample has more chance correlations than the requests, so that percentiles of its shares are too low."""
    whole = planted(200_000, per_output_ms=10.0, per_crop_ms=0.1, noise_ms=20.0).requests
    factors = whole[list(distribution.FACTORS)].to_numpy(np.float64)
    truth = float(distribution.variance_shares(factors, whole["whole_request_ms"].to_numpy(np.float64))[1])
    assert truth > 0.99
    for seed in range(1, 6):
        share = explained(planted(300, per_output_ms=10.0, per_crop_ms=0.1, noise_ms=20.0, seed=seed)).variance
        assert share["generated_tokens"].low < truth < share["generated_tokens"].high <= 1
        assert all(0 <= one.low <= one.value <= one.high <= 1 for one in share.values())


def test_four_slow_requests_make_intervals_wider_than_forty_do() -> None:
    draws = 5.0 + np.random.default_rng(1).standard_normal(20_000)
    few, many = (_about(5.0, draws, freedom=freedom) for freedom in (3, 39))
    assert few.high - 5.0 == pytest.approx(5.0 - few.low) == pytest.approx(3.18, rel=0.02), "Student's t of three"
    assert many.high - 5.0 == pytest.approx(2.02, rel=0.02)
    assert _about(0.9, draws, freedom=3, ends=(0.0, 1.0)) == Estimate(0.9, 0.0, 1.0)
    explanation = explained(planted(80, per_output_ms=1.0, noise_ms=10.0))
    assert explanation.tail_requests == 4
    gap = explanation.gap_ms
    assert gap.value - gap.low == pytest.approx(gap.high - gap.value)


def test_a_tail_of_large_pictures_is_put_down_to_crops_and_tokens() -> None:
    found = explained(planted(700, per_output_ms=0.02, per_crop_ms=20.0, noise_ms=2.0))
    assert found.gap["crops"].value + found.gap["prompt_tokens"].value > 0.9
    assert found.gap["generated_tokens"].high < 0.1


def test_a_tail_of_pure_noise_is_put_down_to_nothing() -> None:
    found = explained(planted(700, noise_ms=5.0))
    assert found.gap["rest"].value > 0.9
    assert found.variance["rest"].value > 0.95


def test_factors_that_go_together_share_what_they_explain_and_neither_runs_away() -> None:
    """With next to no difference between them their coefficients are worth nothing, and their shares still are."""
    sample = planted(400, per_crop_ms=10.0, noise_ms=3.0, together=True)
    jitter = np.random.default_rng(1).integers(0, 2, size=400)
    sample.requests["prompt_tokens"] = sample.requests["prompt_tokens"] + jitter
    found = explained(sample)
    assert found.fit["crops"].high - found.fit["crops"].low > 20, "the coefficient is not known"
    assert 0.3 < found.gap["crops"].value < 0.7
    assert found.gap["crops"].value + found.gap["prompt_tokens"].value > 0.9


def test_a_factor_that_does_not_vary_or_cannot_be_told_apart_is_named() -> None:
    found = explained(planted(200, per_crop_ms=3.0, noise_ms=1.0, lengths=(16,), together=True))
    assert found.fixed == {
        "generated_tokens": "all requests have 16 output tokens",
        "crops": "crops cannot be told apart from prompt tokens in these requests",
    }
    assert found.factors == ["prompt_tokens", "image_px"]


def test_the_tail_is_the_slowest_hundredth_where_that_is_enough() -> None:
    assert (explained(planted(400, per_output_ms=1.0, noise_ms=1.0)).tail_fraction) == 0.05
    many = explained(planted(3000, per_output_ms=1.0, noise_ms=1.0))
    assert (many.tail_fraction, many.tail_requests) == (0.01, 30)


@pytest.mark.parametrize("count", [0, 1, 58])
def test_too_few_requests_explain_nothing(count: int) -> None:
    found = explain(planted(count, per_output_ms=1.0))
    assert isinstance(found, Unknown)
    assert found.reason == f"to take a tail apart needs 59 requests, and there are {count}"


def test_requests_of_one_kind_explain_nothing() -> None:
    sample = planted(100, noise_ms=1.0)
    same = sample.requests.assign(crops=5, prompt_tokens=600, generated_tokens=16, image_px=1e5)
    found = explain(Sample(same, 0, kept=False, failed=0))
    assert isinstance(found, Unknown)
    assert "of one kind" in found.reason


def test_requests_of_few_photographs_are_resampled_by_photograph() -> None:
    """A photograph that is slow for a reason of its own is one such case, however often it comes."""
    sample = planted(600, per_output_ms=0.5, noise_ms=0.5)
    own = sample.requests.assign(image_id=[str(number % 8) for number in range(600)])
    slow = own["image_id"].astype(int).to_numpy() * 20.0
    often = explained(Sample(own.assign(whole_request_ms=own["whole_request_ms"] + slow), 0, kept=False, failed=0))
    alone = explained(
        Sample(sample.requests.assign(whole_request_ms=own["whole_request_ms"] + slow), 0, kept=False, failed=0)
    )

    def width(one: Estimate) -> float:
        return one.high - one.low

    assert width(often.fit["constant"]) > 2 * width(alone.fit["constant"])


# --- the slowest, and the first screen ------------------------------------------------------------------


def test_the_slowest_come_first_beside_what_was_to_be_expected(table: pd.DataFrame) -> None:
    sample = sample_of(table)
    found = distribution.slowest(sample)
    assert len(found) == 10
    assert list(found["whole_request_ms"]) == sorted(sample.requests["whole_request_ms"], reverse=True)[:10]
    assert set(found["generated_tokens"]) == {64}
    assert np.allclose(found["fitted_ms"], found["whole_request_ms"], rtol=0.1)


def test_the_slowest_of_a_few_are_told_without_an_expectation() -> None:
    found = distribution.slowest(planted(8, per_output_ms=1.0))
    assert len(found) == 8
    assert found["fitted_ms"].isna().all()


def test_the_slow_request_is_the_last_percentile_that_can_be_told(table: pd.DataFrame) -> None:
    many = answers.answers_of(table)["slow_request"]
    assert many.question == "a slow request, P99"
    assert many.found == distribution.percentiles(sample_of(table).requests["whole_request_ms"].to_numpy())[0.99]
    assert many.note.startswith("of 320 requests with 8 output tokens in the median; half of them stay below ")
    (some,) = answers._slow_request(planted(60, noise_ms=1.0))
    assert some.question == "a slow request, P95"
    (few,) = answers._slow_request(planted(4))
    assert isinstance(few.found, Unknown)
    assert few.found.reason == "P50 needs 5 requests, and there are 4"
    assert "samples" in few.found.remedy
