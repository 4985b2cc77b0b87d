"""What a comparison is made of: ratios with intervals, verdicts, session noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from scipy import special

from vlmeter.analysis.reading import Unknown
from vlmeter.compare.answers import AnswerPair, SideAnswers
from vlmeter.compare.baseline import Run
from vlmeter.numbers.intervals import Variance, holm
from vlmeter.numbers.medians import CONFIDENCE
from vlmeter.numbers.modes import Modes
from vlmeter.table.quantities import DEVICE_ALONE, PREFILL_SUM, WHOLE_CELL, RowKey

Verdict = Literal["slower", "faster", "same", "cannot tell"]


#: Chance of a false verdict that is put up with, over all cells of a quantity together.
ALPHA = 1 - CONFIDENCE


#: A difference below this is none, unless told otherwise.
MARGIN_FRACTION = 0.01


#: ASSUME: variance of the offset over that of the wander within a session. What moves a machine is slow, so that a
#: session sees a part of it, and the next session begins elsewhere.
OFFSET_PER_WANDER = 2.0


#: Scope of what is said of a subject as a whole.
ALL_CELLS = "all cells"


#: Names of the two quantities that are made of the first key that both sides have.
TOTAL_NAME, BUSY_NAME = WHOLE_CELL.name, DEVICE_ALONE.name


#: Name of what is made of all phases of a prefill, whatever the cell goes on to do.
PREFILL_NAME = PREFILL_SUM.name


#: Facts that may differ without a word of warning: they are what a comparison is for.
EXPECTED_FACTS = ("commit", "vlmeter")


@dataclass(frozen=True)
class Effect:
    """A ratio B/A with its 95 % interval, and what it amounts to.

    The two chances are corrected for the number of cells: of seeing so large a difference anywhere where there is none,
    and of seeing so small a one where it is as large as the margin. low and high are those of this ratio alone.
    """

    ratio: float
    low: float
    high: float
    verdict: Verdict
    chance_if_equal: float
    chance_if_unlike: float
    log_variance: float
    freedom: float

    def chance_beyond(self, limit_ratio: float) -> float:
        """Chance of seeing a ratio at least as large if the true one were the limit; not corrected."""
        return _tail(math.log(self.ratio) - math.log(limit_ratio), Variance(self.log_variance, self.freedom))


@dataclass(frozen=True)
class CellComparison:
    """One quantity of one cell on both sides; the modes of a side where a run of it has two, in ms."""

    cell_id: str
    experiment: str
    quantity: RowKey
    a_ms: float
    b_ms: float
    a_samples: int
    b_samples: int
    effect: Effect
    a_modes: Modes | None = None
    b_modes: Modes | None = None


@dataclass(frozen=True)
class Overall:
    """Geometric mean of the ratios of several cells; scope is "all cells" or an experiment."""

    scope: str
    cells: int
    effect: Effect


@dataclass(frozen=True)
class QuantityComparison:
    """One quantity, cell by cell and over all of them."""

    name: str
    subject_a: str
    subject_b: str
    cells: tuple[CellComparison, ...]
    overall: tuple[Overall, ...]


@dataclass(frozen=True)
class Lost:
    """A cell of which one side has no time."""

    subject_a: str
    subject_b: str
    cell_id: str
    side: Literal["A", "B", "both"]
    reason: str


@dataclass(frozen=True)
class SessionNoise:
    """How far a session errs as a whole (offset) and from cell to cell (wander), as variances of the logarithm.

    offsets: of the two sides, each of the mean over its runs; without them the offset follows from the wander: one
    estimate, used twice. measured: whether they were measured on runs, and so hold all that a mean over cells errs by.
    """

    wander: Variance
    words: str
    offsets: tuple[Variance, ...] | None = None
    measured: bool = False

    def parts(self, *, sessions: float, wander: float) -> list[Variance]:
        """Variances of errors that the offsets and so much wander make (a factor of variances).

        sessions: the sum of 1 / runs of the two sides.
        """
        if self.offsets is None:
            return [self.wander.times(OFFSET_PER_WANDER * sessions + wander)]
        return [*self.offsets, self.wander.times(wander)]

    @property
    def assumed_offset_fraction(self) -> float:
        """Standard deviation by which a session is assumed to err where nothing was measured or told."""
        return math.sqrt(OFFSET_PER_WANDER * self.wander.value)


#: Answers of a side that nobody asked for.
NOT_ASKED = Unknown("nobody asked for them")


@dataclass(frozen=True)
class Side:
    """One side: where it came from, its runs, and its answers or why there are none."""

    label: str
    runs: Sequence[Run]
    answers: SideAnswers = NOT_ASKED


@dataclass(frozen=True)
class Comparison:
    """Everything that two sides say about each other.

    assumed: for each pair, the standard deviation by which a whole session is assumed to err, as a fraction; None where
    it was measured on several runs, or told.
    """

    a: str
    b: str
    pairs: tuple[tuple[str, str], ...]
    assumed: tuple[float | None, ...]
    margin_fraction: float
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    lost: tuple[Lost, ...]
    quantities: tuple[QuantityComparison, ...]
    answers: tuple[AnswerPair, ...] = ()

    def of(self, name: str) -> list[QuantityComparison]:
        """The comparisons of a quantity, one per pair of subjects."""
        return [found for found in self.quantities if found.name == name]


def _tail(difference: float, variance: Variance) -> float:
    """Chance that an error alone is at least so large."""
    if math.isnan(variance.value):
        return math.nan
    if variance.value == 0:
        return 0.0 if difference > 0 else 1.0
    score = difference / math.sqrt(variance.value)
    return float(special.ndtr(-score) if math.isinf(variance.freedom) else special.stdtr(variance.freedom, -score))


def _both_sides(chance: float) -> float:
    """A two-sided chance of a one-sided one; NaN stays."""
    return chance if math.isnan(chance) else min(1.0, 2 * chance)


def effect_of(difference: float, variance: Variance, margin_fraction: float) -> Effect:
    """An effect that is not judged yet: both chances are its own."""
    reach = math.nan
    if not math.isnan(variance.value):
        known = math.isinf(variance.freedom)
        factor = special.ndtri(1 - ALPHA / 2) if known else special.stdtrit(variance.freedom, 1 - ALPHA / 2)
        reach = float(factor) * math.sqrt(variance.value)
    return Effect(
        ratio=math.exp(difference),
        low=math.exp(difference - reach),
        high=math.exp(difference + reach),
        verdict="cannot tell",
        chance_if_equal=_both_sides(_tail(abs(difference), variance)),
        chance_if_unlike=_tail(math.log1p(margin_fraction) - abs(difference), variance),
        log_variance=variance.value,
        freedom=variance.freedom,
    )


def judge_effects(effects: Sequence[Effect]) -> list[Effect]:
    """Give verdicts, with both chances corrected for the number of effects.

    What is shown to be within the margin is the same, even if it is shown to differ by a hair as well.
    """
    equal = holm([effect.chance_if_equal for effect in effects])
    unlike = holm([effect.chance_if_unlike for effect in effects])
    judged = []
    for effect, if_equal, if_unlike in zip(effects, equal, unlike, strict=True):
        verdict: Verdict = "cannot tell"
        if if_unlike <= ALPHA:
            verdict = "same"
        elif if_equal <= ALPHA:
            verdict = "slower" if effect.ratio > 1 else "faster"
        judged.append(replace(effect, verdict=verdict, chance_if_equal=if_equal, chance_if_unlike=if_unlike))
    return judged
