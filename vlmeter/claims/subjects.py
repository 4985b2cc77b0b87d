"""Statements about several subjects of one study, each judged by the data like those about one.

A subject that was measured under unusable conditions has no part in a statement about time.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import pandas as pd

from vlmeter.analysis import conditions, reading, subjects
from vlmeter.analysis.answers import Answers, known_of
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.remembered import remembering
from vlmeter.claims.base import Claim, Data, Evidence, Finding, Verdict
from vlmeter.claims.registry import Entry
from vlmeter.claims.software import decode_within_floor, left_is_kernels, same_tokens
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import duration, percent, significant
from vlmeter.numbers.words import plural, with_interval

#: Costs are called the same up to a tenth: less than what a choice of model is made for.
SAME_COST_FRACTION = 0.1


def _unknown(reason: str) -> Finding:
    return Finding("cannot tell", f"Cannot be told: {reason}.")


def _same(apart: subjects.Extremes) -> Verdict:
    """Judge whether least and most are the same up to SAME_COST_FRACTION, with the interval as far as it is known."""
    limit = 1 + SAME_COST_FRACTION
    low, high = apart.times.low, apart.times.high
    if low > limit:
        return "does not hold"
    return "holds" if high <= limit else "cannot tell"


def same_image_same_tokens(data: Data) -> Finding:
    """The same image becomes as many vision tokens everywhere."""
    shared = subjects.shared_images(data.table)
    if shared.empty:
        return _unknown("no image was measured in two subjects or more")
    ends = shared.groupby("image")["vision_tokens"].agg(["min", "max"])
    unlike = ends[ends["min"] != ends["max"]]
    evidence = (Evidence("images with unlike counts", len(unlike), None, None, f"of {len(ends)}"),)
    if unlike.empty:
        said = f"Each of {plural(len(ends), 'image')} becomes as many vision tokens in every subject that measured it."
        return Finding("holds", said, evidence)
    widest = (unlike["max"] / unlike["min"]).astype(float).idxmax()
    rows = shared[shared["image"] == widest].sort_values("vision_tokens")
    least, most = rows.iloc[0], rows.iloc[-1]
    return Finding(
        "does not hold",
        f"{len(unlike)} of {plural(len(ends), 'image')} {'becomes' if len(unlike) == 1 else 'become'} unlike numbers "
        f"of vision tokens; {widest} becomes {least['vision_tokens']:,} in {least['subject']} and "
        f"{most['vision_tokens']:,} in {most['subject']}.",
        evidence,
    )


def same_image_same_cost(data: Data) -> Finding:
    """The same image costs as much everywhere."""
    shared = subjects.shared_images(data.table)
    found = {
        str(image): apart
        for image, rows in shared.groupby("image", sort=False)
        if not isinstance(apart := subjects.extremes(subjects.estimates_of(rows)), Unknown)
    }
    if not found:
        return _unknown("no image was measured in two subjects or more")
    verdicts = {image: _same(apart) for image, apart in found.items()}
    worst = max(found, key=lambda image: found[image].times.value)
    apart = found[worst]
    evidence = (
        Evidence.of(f"{worst}: time to first token, longest over shortest", apart.times, "times"),
        Evidence(
            "images whose cost differs",
            sum(v == "does not hold" for v in verdicts.values()),
            None,
            None,
            f"of {len(found)}",
        ),
    )
    times = subjects.estimates_of(shared[shared["image"] == worst])
    said = (
        f"{worst} takes {duration(times[apart.least].value)} to the first token in {apart.least} and "
        f"{duration(times[apart.most].value)} in {apart.most}, {significant(apart.times.value, 3)} times as long"
    )
    if "does not hold" in verdicts.values():
        return Finding("does not hold", f"The same image does not cost as much everywhere: {said}.", evidence)
    limit = percent(SAME_COST_FRACTION, 2)
    if set(verdicts.values()) == {"holds"}:
        return Finding("holds", f"The same image costs as much everywhere, within {limit}: at most, {said}.", evidence)
    said = f"Whether the same image costs as much everywhere, within {limit}, cannot be told: {said}."
    return Finding("cannot tell", said, evidence)


def fewer_tokens_sooner(data: Data) -> Finding:
    """Of two subjects, the one that makes fewer vision tokens of an image answers sooner."""
    shared = subjects.shared_images(data.table)
    agree, against, worst = 0, 0, ""
    for image, rows in shared.groupby("image", sort=False):
        tokens = dict(zip(rows["subject"], rows["vision_tokens"], strict=True))
        times = subjects.estimates_of(rows)
        for one, other in combinations(times, 2):
            fewer, more = (one, other) if tokens[one] < tokens[other] else (other, one)
            if tokens[fewer] == tokens[more]:
                continue
            if _top(times[fewer]) < _bottom(times[more]):
                agree += 1
            elif _bottom(times[fewer]) > _top(times[more]):
                against += 1
                worst = worst or (
                    f"{image} becomes {tokens[fewer]:,} vision tokens in {fewer} and takes "
                    f"{duration(times[fewer].value)}; in {more} it becomes {tokens[more]:,} and takes "
                    f"{duration(times[more].value)}"
                )
    evidence = (
        Evidence("pairs in which fewer tokens are sooner", agree, None, None, ""),
        Evidence("pairs in which fewer tokens are later", against, None, None, ""),
    )
    if not agree and not against:
        return _unknown("no image becomes unlike numbers of tokens in subjects whose times can be told apart")
    if against:
        pairs = f"in {against} of {plural(agree + against, 'pair')} of subjects and images"
        return Finding("does not hold", f"Fewer vision tokens do not mean a sooner answer {pairs}: {worst}.", evidence)
    said = (
        f"In all {plural(agree, 'pair')} of subjects and images that can be told apart, fewer vision tokens are sooner."
    )
    return Finding("holds", said, evidence)


def same_cost_per_output_token(data: Data) -> Finding:
    """An output token costs as much everywhere."""
    answers = known_of(data.by_subject, "output_token")
    apart = subjects.extremes(answers)
    if isinstance(apart, Unknown):
        return _unknown("fewer than two subjects have a cost per output token")
    least, most = answers[apart.least], answers[apart.most]
    assert isinstance(least, Estimate)
    assert isinstance(most, Estimate)
    evidence = (Evidence.of("cost of an output token, largest over least", apart.times, "times"),)
    said = f"{with_interval(least, 'ms')} in {apart.least}, {with_interval(most, 'ms')} in {apart.most}"
    start = {
        "holds": f"An output token costs as much everywhere, within {percent(SAME_COST_FRACTION, 2)}",
        "does not hold": f"An output token costs up to {significant(apart.times.value, 3)} times as much",
        "cannot tell": "Whether an output token costs as much everywhere cannot be told",
    }
    verdict = _same(apart)
    return Finding(verdict, f"{start[verdict]}: {said}.", evidence)


def _bottom(estimate: Estimate) -> float:
    return estimate.low if estimate.low == estimate.low else estimate.value


def _top(estimate: Estimate) -> float:
    return estimate.high if estimate.high == estimate.high else estimate.value


#: The claims about subjects side by side, in the order of the report.
SIDE_BY_SIDE_CLAIMS: Mapping[str, Entry] = {
    "same_image_same_tokens": Entry(
        "The same image becomes as many vision tokens in every subject",
        same_image_same_tokens,
        ("side_by_side_images",),
        timed=False,
    ),
    "same_image_same_cost": Entry(
        "The same image costs as much in every subject", same_image_same_cost, ("side_by_side_images",)
    ),
    "fewer_tokens_sooner": Entry(
        "The subject that makes fewer vision tokens of an image answers sooner",
        fewer_tokens_sooner,
        ("side_by_side_images", "side_by_side_first_token"),
    ),
    "same_cost_per_output_token": Entry(
        "An output token costs as much in every subject",
        same_cost_per_output_token,
        ("side_by_side_decode", "side_by_side_costs"),
    ),
    "ways_same_tokens": Entry(
        "Every way of running a model chooses the same tokens", same_tokens, ("side_by_side_software",), timed=False
    ),
    "ways_near_floor": Entry(
        "Run in the fastest way, decode is near its floor", decode_within_floor, ("side_by_side_software",)
    ),
    "ways_left_is_kernels": Entry(
        "What the fastest way leaves above the floor are kernels, not launches",
        left_is_kernels,
        ("side_by_side_software",),
    ),
}


def judge_side_by_side(
    table: pd.DataFrame, *, roofline: pd.DataFrame | None = None, answers: Mapping[str, Answers] | None = None
) -> list[Claim]:
    """Judge every claim about the subjects of a table side by side; none where there are fewer than two.

    roofline: the roofline table, for the claims about limits. answers: of every subject, which claims about prices
    take; made from the table where they are not given.
    """
    names = reading.subjects_of(table)
    if len(names) < 2:
        return []
    measured = set(table.loc[table["arm"].notna(), "subject"])
    bad = [name for name in names if name in measured and conditions.trust(table, name).verdict == "unusable"]
    usable = table[~table["subject"].isin(bad)]
    judged = []
    with remembering():
        findings = {
            name: entry.judge(Data(usable if entry.timed else table, roofline, by_subject=answers))
            for name, entry in SIDE_BY_SIDE_CLAIMS.items()
        }
    for name, entry in SIDE_BY_SIDE_CLAIMS.items():
        found = findings[name]
        left_out = f" Left out, since its numbers cannot be relied on: {', '.join(bad)}." if entry.timed and bad else ""
        judged.append(
            Claim(name, entry.claim, found.verdict, found.statement + left_out, found.evidence, entry.figures)
        )
    return judged
