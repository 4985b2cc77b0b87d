"""A comparison finds what is there, keeps quiet about what is not, and refuses to compare what is not alike."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

from benchmarks.compare import Noise, Plan, as_text, several_as_text, several_runs, tally
from tests.support.comparisons import (
    QUIET,
    changed,
    compared,
    drawn,
    measured,
    overall,
    results_of,
    verdicts,
)
from tests.support.fakes import FakeRunner, out_of_memory
from tests.test_cli import refused, run  # noqa: F401
from vlmeter.common.errors import UserError
from vlmeter.compare.baseline import repeats_of
from vlmeter.compare.compare import _level, run_variances
from vlmeter.compare.comparison import BUSY_NAME, TOTAL_NAME, Side, effect_of, judge_effects
from vlmeter.compare.limits import Limit, beyond, refuse_assumptions
from vlmeter.compare.planning import RunNoise, chance_to_find, plan_in_words, run_noise, runs_to_find
from vlmeter.compare.rendering import as_data, as_markdown, cell_columns, cell_rows, change, headline, interval
from vlmeter.figures import forest, style
from vlmeter.numbers.intervals import (
    Variance,
    add_variances,
    holm,
    median_standard_error,
    pooled_serial_correlation,
)
from vlmeter.numbers.medians import Estimate, median_inflation, serial_correlation

# ---------------------------------------------------------------------------------------------------------------------
# What is found, and what is not


def test_two_runs_of_the_same_thing_raise_no_false_alarm_in_twenty_repeats() -> None:
    found = tally(repeats=20, plan=Plan(cells=24), noise=Noise(), seed=3)
    assert found.overall_slower + found.overall_faster <= 2, "5 % are allowed: one on average"
    assert found.any_cell_told <= 2
    assert found.failed_slower_1 == 0


def test_a_planted_slowdown_of_three_percent_is_found() -> None:
    found = tally(repeats=20, plan=Plan(cells=24), noise=Noise(), slower=0.03, seed=3)
    assert found.overall_slower >= 17
    assert found.overall_faster == 0
    assert found.cells_faster == 0


def test_a_quiet_device_that_was_measured_three_times_is_told_to_be_the_same() -> None:
    comparison = compared(*([drawn(seed, name=str(seed)) for seed in seeds] for seeds in ((1, 2, 3), (4, 5, 6))))
    assert overall(comparison).verdict == "same"
    assert set(verdicts(comparison).values()) <= {"same", "cannot tell"}


def test_the_same_needs_more_than_the_lack_of_a_difference() -> None:
    noisy = Noise(scatter_fraction=0.05)
    comparison = compared(drawn(1, noise=noisy), drawn(2, noise=noisy))
    assert set(verdicts(comparison).values()) == {"cannot tell"}


def test_what_differs_by_less_than_the_margin_is_the_same_though_it_differs() -> None:
    a, b = drawn(1), drawn(2, slower=0.02)
    assert overall(compared(a, b)).verdict == "slower"
    assert overall(compared(a, b, margin_fraction=0.05)).verdict == "same"


def test_only_the_cells_that_changed_are_named() -> None:
    slower = np.where(np.arange(12) == 5, 0.1, 0.0)
    found = verdicts(compared(drawn(1), drawn(2, slower=slower)))
    assert [name for name, verdict in found.items() if verdict == "slower"] == ["cell-005"]


def test_faster_is_told_from_slower() -> None:
    comparison = compared(drawn(1, slower=0.05), drawn(2))
    assert overall(comparison).verdict == "faster"
    assert overall(comparison).high < 1


def test_the_ratio_is_that_of_the_medians() -> None:
    a, b = drawn(1), drawn(2, slower=0.02)
    (total,) = compared(a, b).of(TOTAL_NAME)
    for cell in total.cells:
        first, second = (side.subjects[0].by_id[cell.cell_id].quantities[0].median_ms for side in (a, b))
        assert cell.effect.ratio == pytest.approx(second / first)
        assert cell.effect.low < cell.effect.ratio < cell.effect.high
    logs = [math.log(cell.effect.ratio) for cell in total.cells]
    assert total.overall[0].effect.ratio == pytest.approx(math.exp(np.mean(logs)))


def test_a_comparison_says_the_same_each_time() -> None:
    assert as_data(compared(drawn(1), drawn(2))) == as_data(compared(drawn(1), drawn(2)))


def test_swapping_the_sides_swaps_the_verdict() -> None:
    a, b = drawn(1), drawn(2, slower=0.04)
    there, back = overall(compared(a, b)), overall(compared(b, a))
    assert (there.verdict, back.verdict) == ("slower", "faster")
    assert there.ratio * back.ratio == pytest.approx(1)
    assert there.low * back.high == pytest.approx(1)


def test_two_samples_tell_nothing() -> None:
    runs = []
    for seed, slower in ((1, 0.0), (2, 0.5)):
        full = drawn(seed, slower=slower)
        few = [
            cell.model_copy(update={"quantities": [repeats_of(q.key, np.array(q.samples_ms[:2]))]})
            for cell in full.subjects[0].cells
            for q in cell.quantities
        ]
        runs.append(changed(full, cells=few))
    comparison = compared(*runs)
    assert set(verdicts(comparison).values()) == {"cannot tell"}
    assert math.isnan(overall(comparison).low)
    json.dumps(as_data(comparison), allow_nan=False)


# ---------------------------------------------------------------------------------------------------------------------
# Sessions


def test_a_session_that_wandered_widens_every_interval() -> None:
    steady, restless = drawn(1), drawn(1)
    looks = restless.subjects[0].looks[0]
    wandered = [value * factor for value, factor in zip(looks.medians_ms, (1, 1.03, 0.98), strict=True)]
    restless = changed(restless, looks=[looks.model_copy(update={"medians_ms": wandered})])
    b = drawn(2)
    narrow, wide = overall(compared(steady, b)), overall(compared(restless, b))
    assert wide.high / wide.low > 2 * narrow.high / narrow.low - 1
    assert wide.verdict == "cannot tell"


def test_under_bad_conditions_the_scatter_of_cells_is_an_error() -> None:
    """Ratios that go both ways: of a quiet session a finding, of a disturbed one perhaps the disturbance."""
    uneven = np.where(np.arange(12) % 2, 0.5, -0.2)
    quiet = compared(drawn(1), drawn(2, slower=uneven))
    assert set(verdicts(quiet).values()) == {"slower", "faster"}
    assert overall(quiet).verdict == "slower"
    disturbed = compared(drawn(1), changed(drawn(2, slower=uneven), conditions="disturbed"))
    assert set(verdicts(disturbed).values()) == {"cannot tell"}
    assert overall(disturbed).verdict == "cannot tell"
    assert overall(disturbed).ratio == overall(quiet).ratio


def test_sessions_that_lie_apart_are_told_by_running_more_of_them() -> None:
    """One session a side cannot know; three can, and so can who says it."""
    far = Noise(offset_fraction=0.03, wander_fraction=0.001, scatter_fraction=0.003)
    once = tally(repeats=20, plan=Plan(cells=8), noise=far, seed=5)
    thrice = tally(repeats=20, plan=Plan(cells=8), noise=far, runs=3, seed=5)
    assert once.overall_slower + once.overall_faster >= 8
    assert thrice.overall_slower + thrice.overall_faster <= 3


def test_who_knows_how_sessions_differ_may_say_so() -> None:
    a, b = drawn(1), drawn(2, slower=0.03)
    assert overall(compared(a, b)).verdict == "slower"
    assert overall(compared(a, b, session_noise_fraction=0.03)).verdict == "cannot tell"


def test_without_a_sentinel_a_noise_is_assumed_and_said() -> None:
    comparison = compared(changed(drawn(1), looks=[]), changed(drawn(2), looks=[]))
    assert any("0.3 % is assumed" in note for note in comparison.notes)
    assert not math.isnan(overall(comparison).low)


def test_runs_keep_false_alarms_rare_however_far_sessions_lie_apart() -> None:
    """1,000 pairs of sides of three runs, ratios of one cell: Welch's t calls 3.5 % of them different."""
    rng = np.random.default_rng(0)
    for apart in (0.004, 0.05):
        chances = []
        for _ in range(1000):
            a, b = rng.normal(0, apart, (2, 3))
            effect = effect_of(b.mean() - a.mean(), add_variances(run_variances(a, b)), 0.0)
            chances.append(effect.chance_if_equal)
        assert 0.02 < np.mean(np.array(chances) <= 0.05) < 0.05


def test_a_side_of_one_run_is_taken_to_scatter_like_the_other() -> None:
    three = np.array([0.01, 0.03, 0.02])
    for sides in ((three, np.array([0.5])), (np.array([0.5]), three)):
        assert run_variances(*sides) == (Variance(pytest.approx(1e-4 * 4 / 3), 2),)
    assert [part.freedom for part in run_variances(three, three[:2])] == [2, 1]
    a = [drawn(seed, name=f"a{seed}") for seed in (1, 2, 3)]
    comparison = compared(a, drawn(4, slower=0.05))
    assert overall(comparison).freedom == pytest.approx(2)
    assert comparison.assumed == (None,)
    assert "B has one run, which is taken to err as the 3 runs of A do" in comparison.notes


def test_one_run_a_side_says_what_it_assumes() -> None:
    comparison = compared(drawn(1), drawn(2, slower=0.05))
    (assumed,) = comparison.assumed
    assert assumed == pytest.approx(0.004, abs=0.001)
    (sentence,) = headline(comparison)
    assert "slower by" in sentence
    assert sentence.endswith("; one run a side, so this assumes that a whole session errs by 0.37 %")
    assert any("`runs: 3` in the study measures it" in note for note in comparison.notes)
    assert as_data(comparison)["assumed_session_noise"][0]["fraction"] == assumed
    for known in (
        compared(drawn(1), drawn(2), session_noise_fraction=0.01),
        compared([drawn(1, name="1"), drawn(3, name="3")], drawn(2, name="2")),
    ):
        assert known.assumed == (None,)
        assert "assumes" not in headline(known)[0]


def test_limits_are_not_judged_on_an_assumption() -> None:
    with pytest.raises(UserError, match=r"legal: several runs .*, --session-noise N%, or --accept-one-run"):
        refuse_assumptions(compared(drawn(1), drawn(2, slower=0.5)))
    refuse_assumptions(compared(drawn(1), drawn(2, slower=0.5), session_noise_fraction=0.01))
    refuse_assumptions(compared(drawn(1), drawn(1)))  # a measurement compared with itself rests on nothing
    refuse_assumptions(compared([drawn(1, name="1"), drawn(3, name="3")], drawn(2, name="2")))


def test_a_change_of_one_cell_from_run_to_run_is_no_change_of_that_cell() -> None:
    """Cells that wander by themselves, which the looks at the sentinel did not see."""
    rng = np.random.default_rng(1)
    sides = []
    for side in "ab":
        moved = [np.expm1(rng.normal(0, 0.03, 12)) for _ in range(3)]
        sides.append([drawn(seed, slower=own, name=f"{side}{seed}") for seed, own in enumerate(moved)])
    assert "slower" not in verdicts(compared(*sides)).values()
    assert "faster" not in verdicts(compared(*sides)).values()


# ---------------------------------------------------------------------------------------------------------------------
# How many runs


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_the_chance_to_find_a_change_is_what_comparing_many_pairs_finds(runs: int) -> None:
    rng = np.random.default_rng(runs)
    found = 0
    for _ in range(2000):
        a, b = rng.normal(0, 0.01, (2, runs))
        effect = effect_of(b.mean() + math.log(1.03) - a.mean(), add_variances(run_variances(a, b)), 0.0)
        found += effect.chance_if_equal <= 0.05
    assert chance_to_find(0.03, 0.01, runs) == pytest.approx(found / 2000, abs=0.03)


def test_more_runs_find_more_and_the_least_number_is_told() -> None:
    chances = [chance_to_find(0.03, 0.01, runs) for runs in range(2, 12)]
    assert chances == sorted(chances)
    needed = runs_to_find(0.03, 0.01)
    assert needed == 4
    assert chance_to_find(0.03, 0.01, needed - 1) < 0.9 <= chance_to_find(0.03, 0.01, needed)
    assert runs_to_find(0.001, 0.05) is None
    assert chance_to_find(0.03, 0.0, 2) == 1


def test_the_noise_of_whole_runs_is_measured_on_them() -> None:
    far = Noise(offset_fraction=0.02, wander_fraction=0.001, scatter_fraction=0.002, tail_share=0)
    runs = [drawn(seed, noise=far, name=str(seed)) for seed in range(12)]
    (noise,) = run_noise([Side("A", runs)])
    assert noise.how == "from 12 runs"
    assert noise.fraction.value == pytest.approx(0.02, rel=0.4)
    assert noise.fraction.low < 0.02 < noise.fraction.high
    levels = np.log([[cell.quantities[0].median_ms for cell in one.subjects[0].cells] for one in runs]).mean(axis=1)
    assert noise.fraction.value == pytest.approx(np.std(levels, ddof=1))
    (both,) = run_noise([Side("A", runs[:6]), Side("B", runs[6:])])
    parts = [np.var(part, ddof=1) for part in (levels[:6], levels[6:])]
    assert both.fraction.value == pytest.approx(math.sqrt(np.mean(parts)))
    (one,) = run_noise([Side("A", runs[:1])])
    assert "one run cannot tell" in one.how
    (told,) = run_noise([Side("A", runs)], session_noise_fraction=0.01)
    assert (told.fraction.value, told.how) == (0.01, "as told")


def test_the_command_plans_from_one_side(run, folders: dict[str, Path]) -> None:  # noqa: F811
    code, out, _ = run("compare", str(folders["a"]), "--plan", "3%", "--session-noise", "1%")
    assert code == 0
    assert "fake: whole runs err by 1 % (standard deviation; as told)" in out
    assert "fake: 4 runs a side find a change of 3 % with 90 % power" in out
    assert "assumed: one run cannot tell" in run("compare", str(folders["a"]), "--plan", "3%")[1]
    more = ("--more-a", str(folders["again"]))
    assert "from 2 runs, " in run("compare", str(folders["a"]), *more, "--plan", "3%")[1]


def test_several_runs_are_one_side() -> None:
    a = [drawn(seed, name=f"a{seed}") for seed in (1, 2, 3)]
    b = [drawn(seed, name=f"b{seed}", slower=0.02) for seed in (4, 5, 6)]
    comparison = compared(a, b)
    assert overall(comparison).verdict == "slower"
    assert comparison.of(TOTAL_NAME)[0].cells[0].a_samples == 30


def test_one_run_given_twice_is_refused() -> None:
    with pytest.raises(UserError, match="two runs of drawn in B hold the same session, s"):
        compared(drawn(1), [drawn(2), drawn(2)])


def test_one_measurement_compared_with_itself_is_the_same_and_said_to_be_itself() -> None:
    comparison = compared(drawn(1), drawn(1))
    assert set(verdicts(comparison).values()) == {"same"}
    assert (overall(comparison).low, overall(comparison).high) == (1, 1)
    assert any("compared with itself" in warning for warning in comparison.warnings)


# ---------------------------------------------------------------------------------------------------------------------
# What must be alike


def without(seed: int, *names: str) -> object:
    full = drawn(seed)
    return changed(full, cells=[cell for cell in full.subjects[0].cells if cell.cell_id not in names])


def test_unlike_plans_are_refused_with_the_cells_that_only_one_has() -> None:
    with pytest.raises(UserError, match=r"2 cells of drawn in A \(A\) are not in every run of B: cell-003, cell-007;"):
        compared(drawn(1), without(2, "cell-003", "cell-007"))
    with pytest.raises(UserError, match=r"1 cell of drawn in B \(B\) is not in every run of A: cell-003;"):
        compared(without(1, "cell-003"), drawn(2))


def test_what_both_have_is_compared_on_request() -> None:
    comparison = compared(drawn(1), without(2, "cell-003"), allow_missing=True)
    assert len(verdicts(comparison)) == 11
    assert any("cell-003" in warning for warning in comparison.warnings)


def test_a_cell_of_one_name_and_other_counts_is_refused() -> None:
    a, b = drawn(1), drawn(2)
    cells = [cell.model_copy(update={"counts": {"prompt_tokens": 348}}) for cell in a.subjects[0].cells]
    others = [cell.model_copy(update={"counts": {"prompt_tokens": 360}}) for cell in b.subjects[0].cells]
    with pytest.raises(UserError, match="cell-000 has prompt_tokens 348 in A and 360"):
        compared(changed(a, cells=cells), changed(b, cells=others))


@pytest.mark.parametrize(
    ("name", "mine", "theirs", "said"),
    [
        ("device_model", "NVIDIA H200", "NVIDIA H100", "device model differs: NVIDIA H200 in A, NVIDIA H100 in B"),
        ("dtype", "bfloat16", "float32", "dtype differs"),
        ("random_weights", "True", "False", "random weights differs"),
        ("torch", "2.11.0", "2.13.0", "torch differs: 2.11.0 in A, 2.13.0 in B"),
        ("attention", "eager", "sdpa", "attention differs"),
        ("compile_mode", "default", "max-autotune", "compile mode differs: default in A, max-autotune in B"),
        ("vision_attention_dtype", "as the original", "weights", "vision attention dtype differs"),
    ],
)
def test_unlike_devices_versions_and_weights_are_named(name: str, mine: str, theirs: str, said: str) -> None:
    comparison = compared(changed(drawn(1), facts={name: mine}), changed(drawn(2), facts={name: theirs}))
    assert any(said in warning for warning in comparison.warnings)


def test_another_commit_is_a_note_and_no_warning() -> None:
    comparison = compared(changed(drawn(1), facts={"commit": "abc"}), changed(drawn(2), facts={"commit": "def"}))
    assert "commit: abc in A, def in B" in comparison.notes
    assert not comparison.warnings


def test_bad_conditions_are_named() -> None:
    restless = changed(drawn(1), conditions="disturbed", condition_reasons=["somebody else was there"])
    assert any("disturbed (somebody else was there)" in w for w in compared(restless, drawn(2)).warnings)


def test_subjects_are_paired_by_name_or_as_told() -> None:
    a, b = changed(drawn(1), subject="eager"), changed(drawn(2, slower=0.03), subject="sdpa")
    with pytest.raises(UserError, match="--subjects eager:sdpa"):
        compared(a, b)
    with pytest.raises(UserError, match=r"B \(B\) has no subject 'flash'; it has sdpa"):
        compared(a, b, subjects=[("eager", "flash")])
    comparison = compared(a, b, subjects=[("eager", "sdpa")])
    assert overall(comparison).verdict == "slower"
    assert headline(comparison)[0].startswith("sdpa against eager: slower by 2.95 %, 95 % interval +1.6")


def test_two_subjects_of_one_folder_can_be_compared() -> None:
    first, second = changed(drawn(1), subject="eager"), changed(drawn(2, slower=-0.1), subject="sdpa")
    both = first.model_copy(update={"subjects": [*first.subjects, *second.subjects]})
    comparison = compared(both, both, subjects=[("eager", "sdpa")])
    assert overall(comparison).verdict == "faster"


def test_subjects_that_one_side_lacks_are_refused() -> None:
    first, second = changed(drawn(1), subject="one"), changed(drawn(2), subject="two")
    both = first.model_copy(update={"subjects": [*first.subjects, *second.subjects]})
    with pytest.raises(UserError, match=r"two \(A only\)"):
        compared(both, first)
    assert compared(both, changed(drawn(3), subject="one"), allow_missing=True).pairs == (("one", "one"),)


# ---------------------------------------------------------------------------------------------------------------------
# Measured on a fake subject


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Results of three fake studies."""
    root = tmp_path_factory.mktemp("compare")
    output = {"output_tokens": [8, 16], "sampling": {"min_samples": 5, "max_samples": 5}}
    return {
        "a": results_of(root / "a", seed=1, output=output),
        "again": results_of(root / "again", seed=2, output=output),
        "slow": results_of(root / "slow", seed=3, slowdown=1.05, output=output),
    }


def test_a_slowdown_of_a_fake_subject_is_found_in_all_that_it_slowed(folders: dict[str, Path]) -> None:
    from vlmeter.compare.baseline import read_runs

    comparison = compared(read_runs(folders["a"]), read_runs(folders["slow"]))
    assert overall(comparison).ratio == pytest.approx(1.05, abs=0.005)
    by_name = {found.name: found.overall[0].effect for found in comparison.quantities}
    for name in ("total", "hooks llm_blocks device", "hooks decode device", "vision total wall"):
        assert by_name[name].ratio == pytest.approx(1.05, abs=0.01), name
    for name in ("busy", "inputs preprocess device"):
        assert (by_name[name].ratio, by_name[name].verdict) == (1, "same"), "that was not slowed"
    scopes = [part.scope for part in comparison.of(TOTAL_NAME)[0].overall]
    assert scopes == ["all cells", "output_tokens", "vision_tokens"]


def test_busy_time_stands_beside_the_total(folders: dict[str, Path]) -> None:
    from vlmeter.compare.baseline import read_runs

    comparison = compared(read_runs(folders["a"]), read_runs(folders["again"]))
    assert comparison.of(BUSY_NAME)
    assert "busy_change" in cell_columns(comparison)
    assert all(row["busy_verdict"] for row in cell_rows(comparison))


def test_a_cell_without_an_uninstrumented_arm_is_compared_with_marks(tmp_path: Path) -> None:
    output = {
        "output_tokens": [8, 16],
        "sampling": {"min_samples": 5, "max_samples": 5},
        "uninstrumented_max_output_tokens": 8,
    }
    runs = [measured(tmp_path / name, output=output, runner=FakeRunner(noise_fraction=0.01, seed=seed))
            for name, seed in (("a", 1), ("b", 2))]  # fmt: skip
    (total,) = compared(*runs).of(TOTAL_NAME)
    timed = {cell.quantity[0] for cell in total.cells}
    assert timed == {"plain", "hooks"}


def test_a_cell_that_only_b_cannot_hold_in_memory_is_named_and_fails_a_limit_on_cells(tmp_path: Path) -> None:
    a = measured(tmp_path / "a")
    cells = [cell.model_copy(update={"status": "oom", "reason": "out of memory", "quantities": []})
             if cell.cell_id == "vision-tiling-3x4" else cell for cell in a.subjects[0].cells]  # fmt: skip
    comparison = compared(a, changed(a, cells=cells))
    (lost,) = comparison.lost
    assert (lost.cell_id, lost.side) == ("vision-tiling-3x4", "B")
    assert beyond(comparison, Limit.parse("any-slower:5%")) == [
        "vision-tiling-3x4 has no time in B only: out of memory"
    ]
    assert beyond(comparison, Limit.parse("slower:5%")) == []


def test_nothing_timed_in_both_is_refused(tmp_path: Path) -> None:
    runner = FakeRunner(fail=dict.fromkeys(("prefill", "generate", "vision"), out_of_memory))
    a = measured(tmp_path / "a")
    with pytest.raises(UserError, match="nothing to compare"):
        compared(a, measured(tmp_path / "b", runner=runner))


# ---------------------------------------------------------------------------------------------------------------------
# Limits


def test_a_limit_is_passed_with_confidence_or_not_at_all() -> None:
    comparison = compared(drawn(1), drawn(2, slower=0.03))
    assert beyond(comparison, Limit.parse("slower:1%"))
    assert not beyond(comparison, Limit.parse("slower:2.9%")), "3 % are beyond, but not with confidence"
    assert not beyond(comparison, Limit.parse("slower:5%"))


def test_a_limit_on_any_cell_sees_the_one_that_the_mean_hides() -> None:
    comparison = compared(drawn(1), drawn(2, slower=np.where(np.arange(12) == 5, 0.1, 0.0)))
    (sentence,) = beyond(comparison, Limit.parse("any-slower:5%"))
    assert sentence.startswith("cell-005 is slower by ")
    assert not beyond(comparison, Limit.parse("slower:5%"))


@pytest.mark.parametrize(
    "text", ["slower", "slower:2", "slower:x%", "slower:-1%", "faster:2%", "any:2%", "slower:nan%"]
)
def test_a_limit_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="legal: slower:N%"):
        Limit.parse(text)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics


def test_the_standard_error_of_a_median_is_that_of_resampling() -> None:
    rng = np.random.default_rng(0)
    for count in (9, 10, 33):
        samples = rng.lognormal(size=count)
        draws = np.median(rng.choice(samples, (20_000, count)), axis=1)
        assert median_standard_error(samples) == pytest.approx(draws.std(), rel=0.12)
    assert math.isnan(median_standard_error(np.array([1.0, 2.0])))


def test_samples_that_resemble_each_other_count_for_less() -> None:
    rng = np.random.default_rng(0)
    rho, count = 0.6, 20
    series = np.empty((4000, count))
    series[:, 0] = rng.normal(size=4000)
    for place in range(1, count):
        series[:, place] = rho * series[:, place - 1] + math.sqrt(1 - rho**2) * rng.normal(size=4000)
    found = pooled_serial_correlation([serial_correlation(one.tolist()) for one in series[:400]], [count] * 400)
    assert found == pytest.approx(rho, abs=0.05)
    independent = np.median(rng.normal(size=(4000, count)), axis=1).var()
    assert median_inflation(rho, count) == pytest.approx(np.median(series, axis=1).var() / independent, rel=0.12)
    assert median_inflation(0.0, count) == 1


def test_short_series_without_correlation_are_told_to_have_none() -> None:
    rng = np.random.default_rng(0)
    series = rng.normal(size=(400, 8))
    assert pooled_serial_correlation([serial_correlation(one.tolist()) for one in series], [8] * 400) < 0.05
    assert pooled_serial_correlation([], []) == 0


def test_degrees_of_freedom_are_those_of_the_part_that_matters() -> None:
    assert add_variances([Variance(1.0, 5), Variance(1e-9, 1)]).freedom == pytest.approx(5, rel=1e-3)
    assert add_variances([Variance(1.0, 5), Variance(1.0, 5)]) == Variance(2.0, 10)
    assert math.isinf(add_variances([Variance(1.0), Variance(2.0)]).freedom)


def test_the_smallest_p_value_counts_for_all_and_the_largest_for_itself() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_what_is_not_known_counts_for_nothing() -> None:
    found = holm([0.02, math.nan, 0.03])
    assert found[0] == 0.04
    assert math.isnan(found[1])


# ---------------------------------------------------------------------------------------------------------------------
# Shown


def test_the_forest_shows_every_cell_with_its_interval_and_verdict() -> None:
    comparison = compared(drawn(1), drawn(2, slower=np.where(np.arange(12) == 5, 0.1, 0.0)))
    figure = forest.draw(comparison)
    (axes,) = figure.axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "cell-005", "the slowest on top"
    assert sorted(labels) == [f"cell-{number:03d}" for number in range(12)]
    effects = {cell.cell_id: cell.effect for cell in comparison.of(TOTAL_NAME)[0].cells}
    points = {round(float(line.get_ydata()[0])): line for line in axes.lines if line.get_marker() in "><so"}
    for place, name in enumerate(labels):
        assert points[place].get_xdata()[0] == pytest.approx(100 * (effects[name].ratio - 1))
        assert points[place].get_color() == forest.MARKS[effects[name].verdict][0]
    assert "%" in axes.xaxis.get_major_formatter()(5.0, None)
    assert "12 cells" in " ".join(text.get_text() for text in figure.findobj(mpl.text.Text))


def test_two_hundred_cells_are_drawn_side_by_side() -> None:
    figure = forest.draw(compared(drawn(1, cells=200), drawn(2, cells=200)))
    drawn_cells = [label.get_text() for axes in figure.axes for label in axes.get_yticklabels() if axes.axison]
    assert len(set(drawn_cells)) == 200
    assert figure.get_size_inches()[1] < 14


def test_verdicts_differ_in_mark_as_well_as_in_colour() -> None:
    assert len({mark for _, mark in forest.MARKS.values()}) == len({colour for colour, _ in forest.MARKS.values()}) == 4


def test_a_figure_is_written_in_the_format_of_its_name(tmp_path: Path) -> None:
    figure = forest.draw(compared(drawn(1), drawn(2)))
    starts = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF"}
    for suffix, start in starts.items():
        assert style.save_as(figure, tmp_path / f"forest.{suffix}").read_bytes().startswith(start)
    with pytest.raises(UserError, match="legal: svg, png, pdf"):
        style.save_as(figure, tmp_path / "forest.gif")


def test_markdown_says_the_verdict_first_and_folds_the_cells_away() -> None:
    comparison = compared(drawn(1), drawn(2, slower=0.05))
    text = as_markdown(comparison, beyond=["drawn is slower by 5 %, beyond slower:2%"])
    lines = text.splitlines()
    assert lines[2].startswith("**drawn: slower by ")
    assert "- :x: drawn is slower by 5 %, beyond slower:2%" in lines
    assert text.count("<details>") == text.count("</details>") == 2
    for table in [line for line in lines if line.startswith("| ")]:
        assert table.endswith(" |")


def test_a_name_cannot_break_the_markdown() -> None:
    odd = [changed(drawn(seed), subject="a|b<script>*") for seed in (1, 2)]
    text = as_markdown(compared(*odd))
    assert "a\\|b\\<script>\\*" in text


def test_json_holds_every_number_unrounded() -> None:
    comparison = compared(drawn(1), drawn(2, slower=0.05))
    data = json.loads(json.dumps(as_data(comparison), allow_nan=False))
    (total,) = [found for found in data["quantities"] if found["name"] == TOTAL_NAME]
    assert total["overall"][0]["ratio"] == overall(comparison).ratio
    assert {"cell_id", "a_median_ms", "b_median_ms", "low_ratio", "high_ratio", "verdict"} <= set(total["cells"][0])


# ---------------------------------------------------------------------------------------------------------------------
# The command


def test_the_command_prints_and_writes_what_it_is_asked_for(run, folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    files = {name: tmp_path / name for name in ("c.md", "c.json", "c.svg")}
    code, out, err = run(
        *("compare", str(folders["a"]), str(folders["slow"]), "--fail-on", "slower:2%", "--accept-one-run"),
        *("--markdown", str(files["c.md"]), "--json", str(files["c.json"]), "--figure", str(files["c.svg"])),
    )
    assert code == 1, err
    assert "fake: slower by 5" in out
    assert "beyond slower:2%" in out
    assert json.loads(files["c.json"].read_text())["beyond_limits"]
    assert ":x:" in files["c.md"].read_text()
    assert files["c.svg"].read_text().startswith("<?xml")


def test_the_command_passes_what_is_within_the_limit(run, folders: dict[str, Path]) -> None:  # noqa: F811
    for against in ("a", "again"):
        limits = ("--fail-on", "slower:2%", "--fail-on", "any-slower:5%", "--session-noise", "0.5%")
        assert run("compare", str(folders["a"]), str(folders[against]), *limits)[0] == 0


def test_the_command_compares_with_a_baseline(run, folders: dict[str, Path], tmp_path: Path) -> None:  # noqa: F811
    baseline = tmp_path / "baseline.json"
    code, out, _ = run("baseline", str(folders["a"]), "-o", str(baseline))
    assert code == 0
    assert "12 cells" in out or "cells of 1 run" in out
    code, out, _ = run("compare", str(baseline), str(folders["slow"] / "table.parquet"), "--format", "json")
    assert code == 0
    assert json.loads(out)["quantities"][0]["overall"][0]["verdict"] == "slower"


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nowhere", "a"), "nowhere does not exist"),
        (("a", "a", "--fail-on", "slower"), "legal: slower:N%"),
        (("a", "a", "--margin", "1"), "--margin: '1'"),
        (("a", "a", "--session-noise", "x%"), "--session-noise"),
        (("a", "a", "--subjects", "fake"), "NAME_A:NAME_B"),
        (("a", "a", "--subjects", "fake:other"), "no subject 'other'"),
        (("a", "a", "--format", "xml"), "legal: table, csv, json"),
        (("a", "a", "--figure", "c.gif"), "legal: svg, png, pdf"),
        (("a",), "B is missing"),
        (("a", "--plan", "1%"), "--plan: a change of 1 % counts as none, since the margin is 1 %"),
        (("a", "--plan", "3"), "--plan: '3'"),
    ],
)
def test_the_command_refuses_with_one_sentence(run, folders, arguments: tuple[str, ...], named: str) -> None:  # noqa: F811
    paths = [str(folders.get(argument, argument)) for argument in arguments]
    assert named in refused(run("compare", *paths))


def test_the_benchmark_says_how_often_several_runs_err_and_find() -> None:
    found = several_runs(3, 1)
    lines = several_as_text(found).splitlines()
    assert [line.split("  ")[0] for line in lines[1:]] == [f"sessions {n} % apart" for n in ("0.4", "1", "2", "5")]
    near, far = found[0.004], found[0.05]
    assert far.said_power < 0.2 < 0.8 < near.said_power
    assert near.said_runs is not None
    assert near.false_alarms[1] == pytest.approx(1 - 0.025 ** (1 / 3)), "none of three: Clopper and Pearson's upper end"


def test_the_benchmark_says_its_rates() -> None:
    found = tally(repeats=2, plan=Plan(cells=4), noise=replace(QUIET, tail_share=0.1), seed=1)
    text = as_text({"a question": found})
    assert "a question" in text
    assert "any cell" in text


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_a_mean_over_runs_is_as_sure_as_so_many_medians(correlation: float) -> None:
    quantity = drawn(1).subjects[0].cells[0].quantities[0]
    inflation = median_inflation(correlation, quantity.count)
    one = _level([quantity], correlation)
    error = median_standard_error(np.log(quantity.samples_ms), count=quantity.count)
    assert one.sampling == Variance(pytest.approx(error**2 * inflation), pytest.approx(quantity.count / inflation - 1))
    several = _level([quantity] * 3, correlation)
    assert several.log_ms == pytest.approx(one.log_ms)
    assert several.sampling.value == pytest.approx(one.sampling.value / 3)
    assert several.sampling.freedom == pytest.approx(3 * one.sampling.freedom)
    assert several.samples == 3 * quantity.count


def test_every_cell_of_a_planted_slowdown_is_found_by_three_runs_a_side() -> None:
    before, after = (
        [drawn(seed, cells=4, slower=slower, name=f"s{seed}") for seed in seeds]
        for slower, seeds in ((0.0, (1, 2, 3)), (0.1, (4, 5, 6)))
    )
    assert set(verdicts(compared(before, after)).values()) == {"slower"}


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [
        (0.05, "slower"),
        (-0.05, "faster"),
        (0.0, "same"),
        (0.018, "cannot tell"),
        (0.0197, "slower"),
        (0.0195, "cannot tell"),
    ],
)
def test_a_verdict_is_one_of_five_percent_at_two_standard_errors(difference: float, verdict: str) -> None:
    """Of a ratio whose standard error of 1 % is known; one that is the same is within a margin of 1.65 %."""
    effect = effect_of(difference, Variance(0.01**2), 0.0167 if difference == 0 else 0.001)
    reach = 1.959964 * 0.01
    assert (effect.low, effect.high) == pytest.approx((math.exp(difference - reach), math.exp(difference + reach)))
    assert judge_effects([effect])[0].verdict == verdict


def test_a_slowdown_to_more_than_twice_the_time_is_said_whole() -> None:
    comparison = compared(drawn(1, cells=4), drawn(2, cells=4, slower=1.5))
    (sentence,) = beyond(comparison, Limit.parse("slower:5%"))
    said = re.search(r"slower by ([0-9.]+) %", sentence)
    assert said is not None
    assert float(said[1]) == pytest.approx(150, abs=5)


def test_two_runs_of_one_side_are_enough_to_know_how_far_runs_lie_apart() -> None:
    first, second, other = (drawn(seed, cells=4, name=f"s{seed}") for seed in (1, 2, 3))
    assert compared([first, second], other).assumed == (None,), "measured, and not assumed"
    assert compared(first, other).assumed[0] > 0


def test_a_plan_says_in_percent_how_likely_so_many_runs_are_to_find_the_change() -> None:
    noise = RunNoise("s", Estimate(0.01, 0.007, 0.02), 6, "from 6 runs")
    chances = [100 * chance_to_find(0.03, 0.01, runs) for runs in (2, 3, 5)]
    first, least, more, chance = plan_in_words(noise, 0.03)
    assert first == "s: whole runs err by 1 % (standard deviation; from 6 runs, 0.7 % to 2 %)"
    assert least == f"s: {runs_to_find(0.03, 0.01)} runs a side find a change of 3 % with 90 % power"
    assert more == f"s: {runs_to_find(0.03, 0.02)} runs a side if they err by 2 %"
    assert chance == "s: chance to find it with 2 runs {:.0f} %, 3 runs {:.0f} %, 5 runs {:.0f} %".format(*chances)


def test_a_change_is_said_with_its_sign_on_either_side_of_none() -> None:
    faster = effect_of(math.log(0.5), Variance(0.01**2), 0.01)
    slower = effect_of(math.log(3.0), Variance(0.01**2), 0.01)
    assert (change(faster), interval(faster)) == ("-50.00 %", "-50.97 to -49.01 %")
    assert (change(slower), interval(slower)) == ("+200.00 %", "+194.18 to +205.94 %")
    assert (change(effect_of(0.0, Variance(math.nan), 0.01)), interval(effect_of(0.0, Variance(math.nan), 0.01))) == (
        "0.00 %",
        "no interval",
    )
