"""The answers of a study: each computed here, once, and taken from here by whoever shows one.

An answer has a name, a value with its interval, the clock on which it was read and the cells behind it. Where the data
do not give it, it is not known, and the answer says why and what would make it known: a cost whose interval holds 0 is
not one. Only what a study has measured is answered: without generations there is no answer about output tokens.

A crop is work for the vision side and a token for the language side, so each has the price that its own side tells
(`prefill_cells.part_costs`). Where images are not cut, a vision token brings its piece of the image along, and its
price is that of the whole prefill; a text token is then cheaper, and has a price of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from vlmeter.analysis import distances, distribution, prediction, reading
from vlmeter.analysis.by_run import median_over, of_few
from vlmeter.analysis.decode_runs import decode, decode_law, pictures_in_words
from vlmeter.analysis.prediction_model import Query, learn
from vlmeter.analysis.prefill_cells import (
    CostClock,
    outside_share,
    over,
    part_costs,
    text_token_cost,
    vision_cells,
)
from vlmeter.analysis.reading import Unknown, is_served, of_subject
from vlmeter.analysis.roofline import beside
from vlmeter.analysis.spread import Mixed, misgivings_of, mixed_cells, modes_in_words
from vlmeter.analysis.step_times import served_token
from vlmeter.common.errors import UserError
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import duration
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    DECODE,
    DEVICE_STEP,
    FIRST_TOKEN,
    LANGUAGE,
    OUTSIDE,
    OUTSIDE_SHARE,
    PLAIN_WALL,
    PREFILL_SUM,
    QUANTITIES,
    VISION,
    WHOLE_REQUEST,
    Quantity,
)

#: What an answer is about: what a user waits for, what one more of something costs, how far it is from the least.
Topic = Literal["wait", "cost", "limit"]

#: How an answer came about: read off cells, fitted through cells, or told by laws for what was not measured.
Source = Literal["measured", "fitted", "predicted"]

#: Image sizes that people ask for, in pixels: a vision encoder's own, an old screen, a square of a megapixel, full HD.
ASKED_SIZES_PX = ((336, 336), (640, 480), (1024, 1024), (1920, 1080))

#: A prediction is an answer where the lower end of its interval is at least so much of it.
LEAST_KNOWN = 0.5

#: What is set beside its floor on a first screen.
LIMITS = (PLAIN_WALL, DECODE)

#: What is in a time to first token, of a model alone and at a server.
_UP_TO_IT = {
    False: "preprocessing, copy and prefill",
    True: "encoding the picture at the client, and the wait from the request to the token",
}

_MORE_IMAGES = "measure three image sizes or more that are far apart (experiments.vision_tokens)"
_MORE_ROUNDS = "measure more rounds, or sizes farther apart (sampling.min_samples, experiments)"
_MORE_OUTPUT = "measure more rounds, or output lengths farther apart (sampling.min_samples, experiments.output_tokens)"


@dataclass(frozen=True)
class Answer:
    """One answer about one subject.

    question: in words, such as "one more crop". found: the value with its 95 % interval (NaN: too few samples for one),
    or why it is not known. unit: ms, fraction, times or tokens. quantity, clock: what was timed, and by which clock.
    cells: ids of the cells behind it. note: what else a reader should know. mixed: those of the cells whose median, of
    which the answer is made, lies between two modes.
    """

    name: str
    question: str
    found: Estimate | Unknown
    unit: str
    quantity: str
    clock: str
    topic: Topic
    source: Source
    cells: tuple[str, ...] = ()
    note: str = ""
    mixed: tuple[Mixed, ...] = ()

    @property
    def is_known(self) -> bool:
        """Whether there is a value."""
        return isinstance(self.found, Estimate)

    def said(self) -> str:
        """Say the value with its interval and the modes behind it, or that it is not known and why."""
        if isinstance(self.found, Unknown):
            return f"not known: {self.found.reason}"
        number = with_interval(self.found, "" if self.unit in ("times", "tokens") else self.unit)
        return f"{number} ({self.modes})" if self.mixed else number

    @property
    def modes(self) -> str:
        """What has two modes behind it, in few words; empty if nothing has."""
        return modes_in_words(self.mixed, len(self.cells))

    def misgivings(self) -> str:
        """Say of how many of the cells behind it the median is the time of no run; empty without such cells."""
        return misgivings_of(self.mixed, len(self.cells))


#: Answers of one subject by name.
Answers = Mapping[str, Answer]


def estimate_in(answers: Answers, name: str) -> Estimate | Unknown:
    """Value of an answer; Unknown also where nobody asked."""
    return answers[name].found if name in answers else Unknown("nothing that was measured tells it")


def answers_of(table: pd.DataFrame, subject: str | None = None, *, roofline: pd.DataFrame | None = None) -> Answers:
    """Answer what the cells of a subject can answer, in the order of a first screen.

    roofline: the study's table of floors, for the distance to the limit; without it that is not asked.
    """
    rows = of_subject(table, subject)
    asked = set(rows["kind"].dropna())
    cells, runs = vision_cells(rows), decode(rows)
    found: list[Answer] = []
    if kinds.PREFILL in asked:
        found += _first_token_by_size(rows, cells)
    served = is_served(rows)
    if kinds.GENERATION in asked:
        found += [_first_token_of_photographs(runs, served=served), _output_token(runs), *_device_step(rows)]
    if kinds.PREFILL in asked and served:
        found += _outside(cells)
    if kinds.REQUESTS in asked:
        found += _slow_request(distribution.sample_of(rows))
    if kinds.PREFILL in asked:
        found += _prices(cells)
    found = [_with_mixed(answer, rows) for answer in found]
    by_name = {answer.name: answer for answer in found}
    if {"vision_token", "output_token"} <= set(by_name):
        found.append(_output_over_vision(by_name["output_token"], by_name["vision_token"]))
    if roofline is not None:
        own = rows if "floor_ms" in rows else beside(rows, roofline)
        found += [_with_mixed(answer, rows) for answer in _limits(own)]
    return {answer.name: answer for answer in found}


def _with_mixed(answer: Answer, rows: pd.DataFrame) -> Answer:
    """Name the cells of two modes among those that an answer is made of.

    They stay in: one of two modes left out would be a choice, and a cell less makes a slope worse than a cell between.
    """
    return replace(answer, mixed=mixed_cells(rows, set(answer.cells), QUANTITIES[answer.quantity]))


def all_answers(table: pd.DataFrame, *, roofline: pd.DataFrame | None = None) -> dict[str, Answers]:
    """Answers of every subject of a table by its name; no number of two subjects is ever pooled."""
    return {name: answers_of(table, name, roofline=roofline) for name in reading.subjects_of(table)}


def _seen(cost: Estimate | Unknown, remedy: str) -> Estimate | Unknown:
    """A cost that is told from nothing; else say that it is not known, and what would make it known."""
    if isinstance(cost, Unknown):
        return cost if cost.remedy else replace(cost, remedy=remedy)
    if not math.isnan(cost.low) and cost.low <= 0:
        said = with_interval(cost, "ms").partition(" (")[2].removesuffix(")")
        unit = with_interval(cost, "ms").partition(" (")[0].partition(" ")[2]
        return Unknown(f"its 95 % interval holds 0 ({said} {unit})", remedy)
    return cost


# ---------------------------------------------------------------------------------------------------------------------
# What a user waits for


def _first_token_by_size(rows: pd.DataFrame, cells: pd.DataFrame) -> list[Answer]:
    """Time to first token of the sizes that people ask for, measured or predicted; fewer than four, of its own ends."""
    timed = cells[cells[FIRST_TOKEN.column].notna() & ~cells["forced_tiling"].fillna(value=False).astype(bool)]
    measured = {
        (int(cell["width_px"]), int(cell["height_px"])): cell
        for cell in reversed(timed.dropna(subset=["width_px", "height_px"]).to_dict("records"))
    }
    found = {size: _measured_size(size, measured[size]) for size in ASKED_SIZES_PX if size in measured}
    model = learn(rows) if len(timed) else Unknown("")
    for size in ASKED_SIZES_PX:
        if size in found or isinstance(model, Unknown):
            continue
        try:
            image = prediction.image_tokens(
                rows, width_px=size[0], height_px=size[1], max_crops=prediction.crop_limit(rows)
            )
        except UserError:
            continue  # the checkpoint's configuration is not at hand
        text = timed["text_tokens"].dropna()
        prompt = image.image_tokens + (int(text.median()) if len(text) else prediction.QUESTION_TOKENS)
        query = Query(image.crops, prompt, 1)
        if model.refusal(query) is None:
            notes = ["predicted, not measured", *model.notes(query)]
            forecast = model.first_token_of(query).interval
            if not forecast.low > LEAST_KNOWN * forecast.value:
                continue  # from so few cells it may be nearly anything
            used = tuple(timed["cell_id"])
            found[size] = _of_size(size, forecast, "predicted", used, image.vision_tokens, "; ".join(notes))
    by_pixels = sorted(set(measured) - set(found), key=lambda size: size[0] * size[1])
    for size in dict.fromkeys([*by_pixels[:1], *by_pixels[-1:]]):
        if len(found) < len(ASKED_SIZES_PX):
            found[size] = _measured_size(size, measured[size])
    return [found[size] for size in sorted(found, key=lambda size: size[0] * size[1])]


def _measured_size(size: tuple[int, int], cell: Mapping[str, object]) -> Answer:
    found = reading.estimate_of(cell, FIRST_TOKEN)
    return _of_size(size, found, "measured", (str(cell["cell_id"]),), int(str(cell["vision_tokens"])), "")


def _of_size(
    size: tuple[int, int], found: Estimate, source: Source, cells: tuple[str, ...], vision_tokens: int, note: str
) -> Answer:
    width_px, height_px = size
    return Answer(
        name=f"{FIRST_TOKEN}_{width_px}x{height_px}",
        question=f"{FIRST_TOKEN.label}, {width_px} x {height_px} px",
        found=found,
        unit=FIRST_TOKEN.unit,
        quantity=FIRST_TOKEN.name,
        clock="wall time",
        topic="wait",
        source=source,
        cells=cells,
        note="; ".join(part for part in (plural(vision_tokens, "vision token"), note) if part),
    )


def _first_token_of_photographs(runs: pd.DataFrame, *, served: bool) -> Answer:
    first = runs.drop_duplicates("image_index").dropna(subset=[FIRST_TOKEN.column])
    looked_at = pictures_in_words(first) if len(first) else ""
    found: Estimate | Unknown = Unknown("no generation was measured", "see the cells without numbers")
    if len(first):
        found = median_over(first, FIRST_TOKEN)
    return Answer(
        name=FIRST_TOKEN.name,
        question=f"{FIRST_TOKEN.label}, {looked_at.partition(' ')[2]}" if looked_at else FIRST_TOKEN.label,
        found=found,
        unit=FIRST_TOKEN.unit,
        quantity=FIRST_TOKEN.name,
        clock="wall time up to the pass, device events in it",
        topic="wait",
        source="measured",
        cells=tuple(first["cell_id"]),
        note=f"median over {looked_at}{of_few(found, first)}; {_UP_TO_IT[served]}" if looked_at else "",
    )


def _output_token(runs: pd.DataFrame) -> Answer:
    """Time per output token: of two lengths or more the slope over steps, of one the mean step."""
    law = decode_law(runs)
    found: Estimate | Unknown
    note = ""
    if not isinstance(law, Unknown):
        found, source = _seen(law.line["per_token"], _MORE_OUTPUT), "fitted"
        note = f"slope over the steps of {law.longest_tokens:,} output tokens"
        if runs.loc[runs["direct"], "steps"].nunique() > 1:
            note = f"slope from {law.shortest_tokens:,} to {law.longest_tokens:,} output tokens"
    elif len(runs):
        found, source = median_over(runs, DECODE, per="steps"), "measured"
        tokens = int(runs["steps"].iloc[0]) + 1
        note = f"mean over the steps behind the first of {plural(tokens, 'output token')}{of_few(found, runs)}"
    else:
        found, source = Unknown("no generation of two tokens or more was measured", _MORE_OUTPUT), "measured"
    return Answer(
        name="output_token",
        question="time per output token",
        found=found,
        unit="ms",
        quantity=DECODE.name,
        clock="device events, gaps between steps included",
        topic="wait",
        source="fitted" if source == "fitted" else "measured",
        cells=tuple(dict.fromkeys(runs["cell_id"])),
        note=note,
    )


def _device_step(rows: pd.DataFrame) -> list[Answer]:
    """What of a served output token is the device's step; nothing where no server's device was looked at."""
    token = served_token(rows)
    if isinstance(token, Unknown):
        return []
    return [
        Answer(
            name=DEVICE_STEP.name,
            question="of an output token, the device's step",
            found=token.step,
            unit=DEVICE_STEP.unit,
            quantity=DEVICE_STEP.name,
            clock="device events",
            topic="wait",
            source="measured",
            note=f"of {with_interval(token.token, 'ms')} at the client, median over "
            f"{plural(token.cells, 'generation')}; {with_interval(token.between, 'ms')} lie between two steps: "
            "scheduling, messages, the way back",
        )
    ]


def _outside(cells: pd.DataFrame) -> list[Answer]:
    share = outside_share(cells)
    known = cells[cells[OUTSIDE_SHARE.column].notna()]
    if isinstance(share, Unknown):
        share = replace(share, remedy="measure a server that vlmeter starts itself (docs/served.md)")
    note = f"of the {FIRST_TOKEN.label}, median over {plural(len(known), 'image size')}; {OUTSIDE.words}"
    return [
        Answer(
            name=OUTSIDE.name,
            question=OUTSIDE.label,
            found=share,
            unit=OUTSIDE_SHARE.unit,
            quantity=OUTSIDE_SHARE.name,
            clock="wall time",
            topic="wait",
            source="measured",
            cells=tuple(known["cell_id"]),
            note=note,
        )
    ]


def _slow_request(sample: distribution.Sample) -> list[Answer]:
    """The time that 99 of 100 requests stay below, or as many as can be told."""
    if not sample.size:
        return []
    requests = sample.requests
    percentiles = distribution.percentiles(*sample.by_run())
    known = {fraction: one for fraction, one in percentiles.items() if one is not None}
    question, note = "a slow request", ""
    found: Estimate | Unknown = Unknown(
        distribution.too_few(0.5, sample.size), "measure more requests (experiments.latency_distribution.samples)"
    )
    if known:
        last = max(known)
        question, found = f"a slow request, P{100 * last:.0f}", known[last]
        tokens = int(requests["generated_tokens"].median())
        note = f"of {plural(sample.size, 'request')} with {tokens} output tokens in the median; half of them stay "
        note += f"below {duration(known[0.5].value)}"
    return [
        Answer(
            name="slow_request",
            question=question,
            found=found,
            unit="ms",
            quantity=WHOLE_REQUEST.name,
            clock="wall time",
            topic="wait",
            source="measured",
            cells=tuple(dict.fromkeys(requests["cell_id"])) if "cell_id" in requests else (),
            note=note,
        )
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What one more costs


def _prices(cells: pd.DataFrame) -> list[Answer]:
    """Prices of a crop and of a vision token, and of a text token where it has another than a vision token."""
    if cells.empty:
        return []
    costs = part_costs(cells)
    is_cut = cells["crops"].max() > 1
    varied = cells["crops"].nunique() > 1
    found = []
    if is_cut:
        found.append(_price("crop", "one more crop", costs.crop, VISION, cells, costs.clock, "the vision side"))
    note = "in an image of as many crops; a text token costs the same" if varied else "with its piece of the image"
    quantity = LANGUAGE if varied else PREFILL_SUM
    part = costs.token_is_of
    token = _price("vision_token", "one more vision token", costs.token, quantity, cells, costs.clock, part)
    found.append(replace(token, note=f"{note}; {token.note}"))
    if not varied:
        text = text_token_cost(cells)
        found.append(
            _price("text_token", "one more text token", text, LANGUAGE, cells, costs.clock, "the language side")
        )
    return found


def _price(
    name: str,
    question: str,
    cost: Estimate | Unknown,
    quantity: Quantity,
    cells: pd.DataFrame,
    clock: CostClock,
    part: str,
) -> Answer:
    remedy = _MORE_IMAGES if isinstance(cost, Unknown) else _MORE_ROUNDS
    return Answer(
        name=name,
        question=question,
        found=_seen(cost, remedy),
        unit="ms",
        quantity=quantity.name,
        clock=clock.parts_name,
        topic="cost",
        source="fitted",
        cells=tuple(cells["cell_id"]),
        note=f"of {part}, in {clock.parts_name}{f'; {clock.why}' if clock.why else ''}",
    )


def _output_over_vision(output: Answer, vision: Answer) -> Answer:
    ratio: Estimate | Unknown
    if isinstance(output.found, Estimate) and isinstance(vision.found, Estimate):
        ratio = over(output.found, vision.found)
    else:
        unknown = vision.found if isinstance(vision.found, Unknown) else output.found
        assert isinstance(unknown, Unknown)
        which = vision.question if unknown is vision.found else output.question
        ratio = Unknown(f"the cost of {which} is not known", unknown.remedy)
    return Answer(
        name="output_over_vision",
        question="vision tokens that cost as much as one output token",
        found=ratio,
        unit="tokens",
        quantity=output.quantity,
        clock=f"{output.clock}, over {vision.clock}",
        topic="cost",
        source="fitted",
        cells=(*output.cells, *vision.cells),
        mixed=(*output.mixed, *vision.mixed),
    )


# ---------------------------------------------------------------------------------------------------------------------
# How far from the limit


def _limits(table: pd.DataFrame) -> list[Answer]:
    """Measured times over their floors; the table has floors beside it."""
    return [
        Answer(
            name=f"limit_{distance.quantity}",
            question=f"{distance.quantity.label} over its floor",
            found=distance.times,
            unit="times",
            quantity=distance.quantity.name,
            clock=distance.quantity.clock,
            topic="limit",
            source="measured",
            cells=distance.cells,
            note=f"{distance.quantity.words}; median over {plural(len(distance.cells), 'cell')}"
            f"{distance.interval_of}; the floor is the least time the device could take",
        )
        for distance in distances.distances_of(table)
        if distance.quantity in LIMITS
    ]


def known_of(answers: Mapping[str, Answers], name: str) -> dict[str, Estimate | Unknown]:
    """One answer of several subjects."""
    return {subject: estimate_in(own, name) for subject, own in answers.items()}
