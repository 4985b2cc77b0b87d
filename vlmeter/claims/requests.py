"""Claims about the latency of many requests."""

from __future__ import annotations

import math

from vlmeter.analysis import distribution
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.base import Data, Evidence, Finding, cannot_tell, listed, within
from vlmeter.numbers.units import percent
from vlmeter.numbers.words import plural, with_interval

#: A tail is called short up to twice the median: a user who waits for twice as long notices.
TAIL_RATIO = 2.0


#: Most of something is more than half of it.
MOST_OF_IT = 0.5


#: Latency is called explained if nine tenths of its variance are.
EXPLAINED_FRACTION = 0.9


def tail_within_twice_the_middle(data: Data) -> Finding:
    """One request in a hundred may take longer than the median, but not much."""
    ratio = distribution.tail_over_middle(*data.requests.by_run())
    if isinstance(ratio, Unknown):
        return cannot_tell(ratio.reason)
    verdict = within(ratio, 0.0, TAIL_RATIO)
    start = {
        "holds": f"P99 is within {TAIL_RATIO:g} times the median",
        "does not hold": f"P99 is more than {TAIL_RATIO:g} times the median",
        "cannot tell": f"Whether P99 is within {TAIL_RATIO:g} times the median cannot be told",
    }
    said = f"{with_interval(ratio, '')} times over {plural(data.requests.size, 'request')}"
    return Finding(verdict, f"{start[verdict]}: {said}.", (Evidence.of("P99 over P50", ratio, "times"),))


def tail_is_output_length(data: Data) -> Finding:
    """Slow requests are slow because they write more."""
    found = data.explanation
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
    if "generated_tokens" in found.fixed:
        reason = found.fixed["generated_tokens"]
        return Finding("does not hold", f"The tail is not made by output length, since {reason}.")
    share = found.gap["generated_tokens"]
    evidence = (
        Evidence.of("gap between the slowest requests and the middle", found.gap_ms, "ms"),
        *(
            Evidence.of(f"share of {distribution.FACTORS.get(name, 'nothing known')}", one, "fraction")
            for name, one in found.gap.items()
        ),
    )
    verdict = within(share, MOST_OF_IT, math.inf)
    start = {
        "holds": "Most of the tail is made by output length",
        "does not hold": "Most of the tail is not made by output length",
        "cannot tell": "Whether most of the tail is made by output length cannot be told",
    }
    said = (
        f"it accounts for {with_interval(share, 'fraction')} of the {with_interval(found.gap_ms, 'ms')} by which the "
        f"slowest {percent(found.tail_fraction, 1)} of the requests take longer than those in the middle"
    )
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def requests_explain_their_latency(data: Data) -> Finding:
    """Output tokens, prompt tokens, crops and pixels tell how long a request takes."""
    found = data.explanation
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
    rest = found.variance["rest"]
    evidence = tuple(
        Evidence.of(f"share of {distribution.FACTORS.get(name, 'nothing known')}", one, "fraction")
        for name, one in found.variance.items()
    )
    verdict = within(rest, -math.inf, 1 - EXPLAINED_FRACTION)
    limit = percent(EXPLAINED_FRACTION, 2)
    start = {
        "holds": f"What a request is explains {limit} of the variance of its latency or more",
        "does not hold": f"What a request is explains less than {limit} of the variance of its latency",
        "cannot tell": f"Whether what a request is explains {limit} of the variance of its latency cannot be told",
    }
    said = f"{with_interval(rest, 'fraction')} is accounted for by none of {listed(found.factors)}"
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)
