"""Claims about FLOPs, parameters and time."""

from __future__ import annotations

import math

from vlmeter.analysis import components, flops, reading
from vlmeter.analysis.reading import Unknown
from vlmeter.claims.base import Data, Evidence, Finding, Verdict, cannot_tell, ends_of, sentence, within
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import percent, significant
from vlmeter.numbers.words import with_interval
from vlmeter.table.quantities import QUANTITIES

#: A model predicts latency if it is off by 20 % in the median, over all phases: good enough to choose a device by.
PREDICTS_FRACTION = 0.2


#: Equal FLOPs take equal time if decoding and prefill differ by less than a tenth.
EQUAL_TIME_FRACTION = 0.1


#: Two shares are called the same up to ten points of a hundred.
SHARE_TOLERANCE = 0.1


def parameters_are_not_time(data: Data) -> Finding:
    """A component's share of the parameters is not its share of the time."""
    return _shares_differ(data, "parameters", "of the prefill's time")


def flops_are_not_time(data: Data) -> Finding:
    """A component's share of the arithmetic is not its share of the time."""
    return _shares_differ(data, "flops", "of the time")


def _shares_differ(data: Data, quantity: str, whole: str) -> Finding:
    found = data.profile
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
    apart = components.disagreement(found, quantity)
    if isinstance(apart, Unknown):
        return cannot_tell(apart.reason)
    name = components.SHARES_OF[quantity]
    distance = apart.distance
    evidence = (
        Evidence("share of the " + name, apart.share, None, None, "fraction"),
        Evidence.of(f"share {whole}", apart.time_share, "fraction"),
    )
    near = within(distance, -SHARE_TOLERANCE, SHARE_TOLERANCE)
    said = (
        f"{QUANTITIES[apart.part].noun} has {percent(apart.share)} of the {name} and "
        f"{with_interval(apart.time_share, 'fraction')} {whole}"
    )
    if near == "does not hold":
        return Finding("holds", f"Share of {name} is not share of time: {said}.", evidence)
    if near == "holds":
        return Finding("does not hold", f"Share of {name} is share of time, nearly: at most, {said}.", evidence)
    return Finding("cannot tell", f"Whether share of {name} is share of time cannot be told: {said}.", evidence)


def flops_predict_latency(data: Data) -> Finding:
    """FLOPs, at one rate for all phases or to a power, say how long a phase takes."""
    points, models = data.points, data.models
    if isinstance(points, Unknown):
        return cannot_tell(points.reason)
    if isinstance(models, Unknown):
        return cannot_tell(models.reason)
    relations = flops.relations(points).set_index("phase")
    known = {
        label: reading.estimate_in(relations.loc["parts"], name, "")
        for name, label in (("r_squared", "R² over all phases"), ("spearman", "rank correlation over all phases"))
    }
    known = {label: estimate for label, estimate in known.items() if not math.isnan(estimate.value)}
    error = models.errors[models.best_flops]
    evidence = (
        Evidence.of("error of FLOPs at one rate", models.errors["flops"], "fraction"),
        Evidence.of("error of a power of FLOPs", models.errors["flops_power"], "fraction"),
        *(Evidence.of(label, estimate, "") for label, estimate in known.items()),
    )
    verdict = within(error, 0.0, PREDICTS_FRACTION)
    limit = percent(PREDICTS_FRACTION, 1)
    start = {
        "holds": f"FLOPs predict latency within {limit}",
        "does not hold": f"FLOPs do not predict latency within {limit}",
        "cannot tell": f"Whether FLOPs predict latency within {limit} cannot be told",
    }
    inside = relations.loc[[name for name in flops.PARTS if name in relations.index], "r_squared"].dropna()
    said = f"a cell that was left out is off by {with_interval(error, 'fraction')} in the median over all phases"
    details = [f"{label} {with_interval(estimate, '')}" for label, estimate in known.items()]
    said += f" ({'; '.join([flops.MODELS[models.best_flops], *details])})"
    if len(inside):
        said += f", although within a phase R² reaches {significant(float(inside.max()), 3)}"
    return Finding(verdict, f"{start[verdict]}: {said}.{sentence(data.modes_over_flops)}", evidence)


def roofline_beats_flops(data: Data) -> Finding:
    """The roofline's floor predicts latency better than FLOPs do, with as many numbers fitted."""
    models = data.models
    if isinstance(models, Unknown):
        return cannot_tell(models.reason)
    errors = {model: with_interval(error, "fraction") for model, error in models.errors.items()}
    evidence = (
        *(Evidence.of(f"error of {flops.MODELS[name]}", models.errors[name], "fraction") for name in errors),
        Evidence.of("error of FLOPs less that of the roofline, the better of each", models.gain, "fraction"),
    )
    said = (
        f"{errors[models.best_roofline]} by the roofline and {errors[models.best_flops]} by FLOPs, each at its best; "
        f"with a single number fitted {errors['roofline']} and {errors['flops']}"
    )
    said += f".{sentence(data.modes_over_flops)}"
    low, high = ends_of(models.gain)
    if low > 0:
        return Finding("holds", f"The roofline predicts cells that were left out better: off by {said}", evidence)
    if high < 0:
        return Finding("does not hold", f"FLOPs predict cells that were left out better: off by {said}", evidence)
    return Finding("cannot tell", f"Which predicts better cannot be told from these cells: off by {said}", evidence)


def equal_flops_equal_time(data: Data) -> Finding:
    """A FLOP takes the same time in decoding as in a prefill's LLM blocks."""
    points = data.points
    if isinstance(points, Unknown):
        return cannot_tell(points.reason)
    found = flops.equal_flops(points)
    if isinstance(found, Unknown):
        return cannot_tell(found.reason)
    evidence: tuple[Evidence, ...] = (
        Evidence.of("decoding over LLM blocks of a prefill, same FLOPs", found.times, "times"),
        Evidence("the same of their floors", found.floor_times, None, None, "times"),
    )
    verdict = within(found.times, 1 - EQUAL_TIME_FRACTION, 1 + EQUAL_TIME_FRACTION)
    how = "for the same FLOPs" if found.matched else "FLOP by FLOP (no decode run has as many as a prefill)"
    said = (
        f"decoding takes {with_interval(found.times, '')} times as long as the LLM blocks of a prefill, {how}; "
        f"{significant(found.floor_times, 2)} times would be what memory and arithmetic alone explain, since a step "
        "reads every weight for a single token"
    )
    pace = flops.pace_cost(points)
    if not isinstance(pace, Unknown):
        evidence += (Evidence.of("prefill: launch-bound over device-bound, per FLOP", pace.times, "times"),)
        said += f". In launch-bound prefills a FLOP takes {with_interval(pace.times, '')} times as long as in others"
    start = {
        "holds": "Equal FLOPs take equal time",
        "does not hold": "Equal FLOPs do not take equal time",
        "cannot tell": "Whether equal FLOPs take equal time cannot be told",
    }
    return Finding(verdict, f"{start[verdict]}: {said}.{sentence(data.modes_over_flops)}", evidence)


def output_token_costs_more(data: Data) -> Finding:
    """One more output token costs more than one more vision token."""
    output, vision, times = (data.answer(name) for name in ("output_token", "vision_token", "output_over_vision"))
    if "output_over_vision" not in data.answers:
        return cannot_tell("vision tokens and output tokens were not both measured")
    said = f"{data.answers['output_token'].said()} for an output token"
    said += f", {data.answers['vision_token'].said()} for a vision token"
    evidence = tuple(
        Evidence.of(data.answers[name].question, found, "ms")
        for name, found in (("output_token", output), ("vision_token", vision))
        if isinstance(found, Estimate)
    )
    if isinstance(times, Unknown):
        return Finding("cannot tell", f"Whether an output token costs more cannot be told: {said}.", evidence)
    evidence += (Evidence.of("output token over vision token", times, "times"),)
    low, high = ends_of(times)
    if low > 1:
        text = f"An output token costs as much as {with_interval(times, '')} vision tokens: {said}."
        return Finding("holds", text, evidence)
    verdict: Verdict = "does not hold" if high < 1 else "cannot tell"
    text = f"An output token is not seen to cost more: {with_interval(times, '')} vision tokens, {said}."
    return Finding(verdict, text, evidence)
