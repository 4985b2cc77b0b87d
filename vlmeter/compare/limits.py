"""Limits for `--fail-on`: which differences are beyond them, with confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass

from vlmeter.common.errors import UserError
from vlmeter.compare.comparison import ALPHA, TOTAL_NAME, Comparison, Effect
from vlmeter.numbers.intervals import holm


@dataclass(frozen=True)
class Limit:
    """What must not be: B slower than A by more than a fraction, as a whole or in any cell."""

    any_cell: bool
    fraction: float

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Read `slower:2%` or `any-slower:5%`; raises UserError on anything else."""
        kind, _, amount = text.partition(":")
        try:
            fraction = float(amount.removesuffix("%")) / 100
        except ValueError:
            fraction = math.nan
        if kind not in ("slower", "any-slower") or not amount.endswith("%") or not 0 <= fraction < math.inf:
            raise UserError(
                f"--fail-on: {text!r} is not known; legal: slower:N% (as a whole) and any-slower:N% (in any cell), "
                "with N from 0, such as slower:2%"
            )
        return cls(kind == "any-slower", fraction)

    def __str__(self) -> str:
        return f"{'any-slower' if self.any_cell else 'slower'}:{100 * self.fraction:g}%"


def refuse_assumptions(comparison: Comparison) -> None:
    """Refuse to judge limits where the offset of sessions is merely assumed; raises UserError."""
    assumed = [fraction for fraction in comparison.assumed if fraction is not None]
    if assumed:
        raise UserError(
            "--fail-on: with one run a side nothing tells a change from the offset of a session, so that nothing can "
            "fail for it; legal: several runs (`runs: 3` in the study, --more-a, --more-b), --session-noise N%, or "
            f"--accept-one-run, which assumes that a whole session errs by {100 * max(assumed):.2g} %"
        )


def beyond(comparison: Comparison, limit: Limit) -> list[str]:
    """Say what is beyond a limit with confidence (95 %, corrected for how many were looked at); empty if nothing is.

    A cell that ran out of memory in B only, or could not be run there, is beyond any limit on cells.
    """
    named: list[tuple[str, Effect]] = []
    for total in comparison.of(TOTAL_NAME):
        who = f"{total.subject_b} " if len(comparison.pairs) > 1 else ""
        if limit.any_cell:
            named += [(f"{who}{cell.cell_id}", cell.effect) for cell in total.cells]
        else:
            named.append((total.subject_b, total.overall[0].effect))
    chances = holm([effect.chance_beyond(1 + limit.fraction) for _, effect in named])
    found = [
        f"{name} is slower by {100 * (effect.ratio - 1):.2f} %, beyond {limit}"
        for (name, effect), chance in zip(named, chances, strict=True)
        if chance <= ALPHA / 2
    ]
    if limit.any_cell:
        found += [
            f"{lost.cell_id} has no time in B only: {lost.reason}" for lost in comparison.lost if lost.side == "B"
        ]
    return found
