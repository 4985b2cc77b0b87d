"""Claims about predictions."""

from __future__ import annotations

from vlmeter.analysis import held_out
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.base import Data, Evidence, Finding, Verdict, cannot_tell, sentence, within
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import plural, with_interval

#: Predictions are good if a held-out cell is off by 10 % in the median.
PREDICTION_FRACTION = 0.1


#: Intervals hold if nine of ten do at least: nominally 95 % do, and the share itself is known from few cells.
COVERED_FRACTION = 0.9


def held_out_predicted(data: Data) -> Finding:
    """A request that was not measured is predicted within a tenth."""
    if isinstance(data.held_out, Unknown):
        return cannot_tell(data.held_out.reason)
    worth = {quantity: held_out.accuracy(data.held_out, quantity) for quantity in held_out.PREDICTED}
    known = {quantity: found for quantity, found in worth.items() if not isinstance(found, Unknown)}
    limit = percent(PREDICTION_FRACTION, 1)
    verdicts = [within(found.error, 0.0, PREDICTION_FRACTION) for found in known.values()]
    verdict: Verdict = "cannot tell"
    if all(found == "holds" for found in verdicts):
        verdict = "holds"
    elif "does not hold" in verdicts:
        verdict = "does not hold"
    evidence = tuple(
        Evidence.of(f"{quantity.label}: median error", found.error, "fraction") for quantity, found in known.items()
    )
    said = "; ".join(
        f"{quantity.label} off by {with_interval(found.error, 'fraction')} in the median of "
        f"{plural(found.count, 'prediction')}"
        for quantity, found in known.items()
    )
    start = {
        "holds": f"Held-out cells are predicted within {limit}",
        "does not hold": f"Held-out cells are not predicted within {limit}",
        "cannot tell": f"Whether held-out cells are predicted within {limit} cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {said}.{sentence(data.modes_of_requests)}", evidence)


def prediction_intervals_hold(data: Data) -> Finding:
    """The 95 % intervals of predictions hold what is measured."""
    if isinstance(data.held_out, Unknown):
        return cannot_tell(data.held_out.reason)
    worth = held_out.accuracy(data.held_out)
    assert not isinstance(worth, Unknown)
    evidence = (Evidence.of("share of intervals that hold", worth.coverage, "fraction"),)
    verdict = within(worth.coverage, COVERED_FRACTION, 1.0)
    limit = percent(COVERED_FRACTION, 2)
    start = {
        "holds": f"At least {limit} of the prediction intervals hold",
        "does not hold": f"Fewer than {limit} of the prediction intervals hold",
        "cannot tell": f"Whether {limit} of the prediction intervals hold cannot be told",
    }
    said = f"{worth.inside} of {worth.count}, {with_interval(worth.coverage, 'fraction')}; nominally 95 %"
    return Finding(verdict, f"{start[verdict]}: {said}.{sentence(data.modes_of_requests)}", evidence)
