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
    from sympy import Matrix  # takes a third of a second, which only counting has to spare

    _, pivots = Matrix([_terms(*key) for key in keys]).T.rref()
    return [keys[place] for place in pivots]


def law_through(points: Mapping[Key, int]) -> tuple[Fraction, ...]:
    """Solve for the coefficients of the terms, exactly, from as many independent points as there are terms."""
    from sympy import Matrix

    terms = Matrix([_terms(*key) for key in points])
    return tuple(Fraction(int(found.p), int(found.q)) for found in terms.LUsolve(Matrix(list(points.values()))))


def extend(keys: Sequence[Key], count: Callable[[Key], PassWork]) -> dict[Key, PassWork]:
    """Count every key, most of them by the law through a few; by themselves where that law does not hold."""
    keys = sorted(set(keys), key=lambda key: (key[1], key[0]))
    # Far apart, so that the law is tried inside the range rather than far beyond it: ends, middle, then the others.
    ordered = [keys[i] for i in dict.fromkeys([0, len(keys) - 1, len(keys) // 2, len(keys) // 4, *range(len(keys))])]
    basis = independent(ordered)
    tests = [key for key in ordered if key not in basis][:2]
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
