"""Extend counted passes to shapes that were not counted: work is a polynomial in crops and tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from vlmeter.records.work import PhaseWork, StepWork


@dataclass(frozen=True)
class PassWork:
    """Work of one prefill and of the decode steps behind it."""

    prefill: tuple[PhaseWork, ...]
    step: StepWork


def _terms(crops: int, tokens: int) -> tuple[int, ...]:
    """What a count may depend on."""
    return (1, crops, tokens, tokens * tokens)


Key = tuple[int, int]  # crops, prompt tokens


def independent(keys: Sequence[Key]) -> list[Key]:
    """Choose keys, in the order given, whose terms are linearly independent: four at most."""
    chosen: list[Key] = []
    reduced: list[list[Fraction]] = []
    for key in keys:
        row = [Fraction(term) for term in _terms(*key)]
        for known in reduced:
            pivot = next(i for i, value in enumerate(known) if value)
            factor = row[pivot] / known[pivot]
            row = [a - factor * b for a, b in zip(row, known, strict=True)]
        if any(row):
            chosen.append(key)
            reduced.append(row)
    return chosen


def law_through(points: Mapping[Key, int]) -> tuple[Fraction, ...]:
    """Solve for the coefficients of the terms, exactly, from as many independent points as there are terms."""
    rows = [[Fraction(term) for term in (*_terms(*key), value)] for key, value in points.items()]
    size = len(rows)
    for column in range(size):
        pivot = next(i for i in range(column, size) if rows[i][column])
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = [value / rows[column][column] for value in rows[column]]
        for i in range(size):
            if i != column:
                factor = rows[i][column]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[column], strict=True)]
    return tuple(row[-1] for row in rows)


def extend(keys: Sequence[Key], count: Callable[[Key], PassWork]) -> dict[Key, PassWork]:
    """Count every key, most of them by the law through a few; by themselves where that law does not hold."""
    keys = sorted(set(keys), key=lambda key: (key[1], key[0]))
    # Spread out, so that the law is tried inside the range rather than far beyond it: ends, middle, then the others.
    spread = [keys[i] for i in dict.fromkeys([0, len(keys) - 1, len(keys) // 2, len(keys) // 4, *range(len(keys))])]
    basis = independent(spread)
    tests = [key for key in spread if key not in basis][:2]
    counted = {key: count(key) for key in (*basis, *tests)}
    if len(basis) == len(_terms(0, 0)) and len(tests) == 2:
        laws = _laws({key: counted[key] for key in basis})
        sample = counted[basis[0]]
        if all(_predict(laws, sample, key) == counted[key] for key in tests):
            return {key: counted.get(key) or _predict(laws, sample, key) or count(key) for key in keys}
    return {key: counted.get(key) or count(key) for key in keys}


def _numbers(work: PassWork) -> dict[str, int]:
    found = {}
    for phase in work.prefill:
        for name in ("flops", "weight_bytes", "cache_bytes"):
            found[f"{phase.phase}/{name}"] = getattr(phase, name)
    return found


def _laws(points: Mapping[Key, PassWork]) -> dict[str, tuple[Fraction, ...]]:
    numbers = {key: _numbers(work) for key, work in points.items()}
    names = next(iter(numbers.values()))
    return {name: law_through({key: found[name] for key, found in numbers.items()}) for name in names}


def _predict(laws: Mapping[str, tuple[Fraction, ...]], sample: PassWork, key: Key) -> PassWork | None:
    """Work at a key by the laws, in the shape of `sample`; None if a law gives no whole number there."""
    values = {
        name: sum((a * b for a, b in zip(law, _terms(*key), strict=True)), Fraction(0)) for name, law in laws.items()
    }
    if any(value.denominator != 1 for value in values.values()):
        return None
    prefill = tuple(
        PhaseWork(
            phase=phase.phase,
            flops=int(values[f"{phase.phase}/flops"]),
            weight_bytes=int(values[f"{phase.phase}/weight_bytes"]),
            cache_bytes=int(values[f"{phase.phase}/cache_bytes"]),
        )
        for phase in sample.prefill
    )
    return PassWork(prefill, sample.step)
