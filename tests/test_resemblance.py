"""What rounds resemble the ones before them by, the cells of a session say together; a median's interval is as wide."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.coverage_noise import correlated
from vlmeter.numbers.medians import median_estimate
from vlmeter.numbers.resemblance import (
    ALONE,
    Resemblance,
    median_ends,
    median_in_a_row,
    resemblance_in,
    resemblance_of,
    widening,
)


def session(rho: float, *, rounds: int = 15, cells: int = 30, seed: int = 1) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [np.exp(correlated(rng, rounds, correlation=rho, spread=0.02)) for _ in range(cells)]


@pytest.mark.parametrize("rho", [0.0, 0.3, 0.6])
def test_the_cells_of_a_session_tell_their_correlation_together(rho: float) -> None:
    assert resemblance_in(session(rho, cells=200)).pooled == pytest.approx(rho, abs=0.06)


@pytest.mark.parametrize("rounds", [5, 10, 15])
def test_intervals_of_correlated_rounds_hold_what_they_promise_in_a_session_and_not_each_by_itself(rounds: int) -> None:
    shared, alone, found = 0, 0, 0
    for seed in range(40):
        cells = session(0.6, rounds=rounds, seed=seed)
        like = resemblance_in(cells)
        for own in cells:
            found += 1
            shared += median_in_a_row(own.tolist(), like=like).contains(1.0)
            alone += median_estimate(own.tolist(), in_order=True).contains(1.0)
    assert 0.93 <= shared / found <= 0.98
    assert alone / found < 0.90


def test_independent_rounds_have_the_interval_of_independent_rounds() -> None:
    like = Resemblance(0.0, 0.0)
    for own in session(0.0, cells=5):
        assert median_in_a_row(own.tolist(), like=like) == median_estimate(own.tolist())


def test_a_cell_is_never_taken_for_less_correlated_than_its_session() -> None:
    like = Resemblance(0.5, 0.05)
    assert like.of(-0.4, 15) == pytest.approx(0.5)
    assert 0.5 < like.of(0.8, 15) < ALONE.of(0.8, 15)
    assert Resemblance(0.5, 0.0).of(0.8, 15) == pytest.approx(0.5), "cells differ by no more than chance"


def test_cells_that_differ_in_truth_keep_more_of_their_own() -> None:
    like = resemblance_in([*session(0.0, rounds=40), *session(0.8, rounds=40, seed=2)])
    assert like.between > 10 * resemblance_in(session(0.4, rounds=40, cells=60)).between
    assert like.of(0.7, 40) > like.pooled + 0.2


def test_one_cell_has_nothing_beside_it_and_few_rounds_of_it_tell_nothing() -> None:
    assert resemblance_in(session(0.6, cells=1)) == ALONE
    assert resemblance_of([math.nan, 0.5], [15, 15]) == ALONE, "a cell that does not vary tells nothing"
    assert ALONE.of(0.5, 8) == 0.0
    assert ALONE.of(0.5, 9) > 0.5


def test_a_cell_far_beyond_the_others_is_told_by_how_far() -> None:
    like = Resemblance(0.1, 0.0)
    assert like.beyond(0.05, 20) == pytest.approx(0.0, abs=0.2)
    assert like.beyond(0.75, 20) > 3
    assert like.beyond(0.75, 8) == like.beyond(math.nan, 20) == 0.0


def test_what_chance_leaves_of_a_correlation_is_seldom_called_more() -> None:
    called = [
        resemblance_in(cells).beyond(float(np.corrcoef(own[1:], own[:-1])[0, 1]), len(own)) > 2.33
        for cells in (session(0.3, rounds=20, seed=seed) for seed in range(60))
        for own in cells
    ]
    assert np.mean(called) < 0.02


def test_an_interval_grows_with_the_correlation_and_not_below_zero() -> None:
    ordered = np.sort(np.abs(np.random.default_rng(3).standard_normal((1, 12)))) + 0.01
    ends = [median_ends(ordered, rho) for rho in (0.0, 0.3, 0.6, 0.9)]
    assert all(one[0] >= other[0] >= 0 and one[1] <= other[1] for one, other in pairwise(ends))
    assert median_ends(ordered - 0.5, 0.9)[0] < 0, "a difference may be negative"


def test_few_correlated_rounds_know_little_of_their_scatter() -> None:
    assert widening(0.0, 10) == widening(0.6, 4) == 1.0
    assert widening(0.6, 10) > widening(0.6, 40) > widening(0.3, 40) > 1.0
    assert widening(0.6, 4000) == pytest.approx(1.0, abs=0.01)
