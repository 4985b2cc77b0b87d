"""What would a request cost that was not measured? Laws learnt from a study's cells, and what they are worth.

A request is an image (crops and tokens, by the family's own geometry), a question and a number of output tokens. Its
time is the sum of three parts, each with a law of its own:

- inputs: preprocessing and copy, a cost per crop; photographs are resized first, dummy images of exact sizes are not,
  so that the two have their own cost;
- prefill: a cost per crop and one per prompt token (two factors). Where some cells are launch-bound, the plane is that
  of the device's busy time, and no prefill, however small, takes less time than the host needs for its launches;
- decode: a constant per step (weights read, or launches) and a cost per token of context (keys and values read).

Every law is fitted by relative least squares, and again with each cell left out (of many, several at once). How much
those fits differ at the request is the error of the fit (the jackknife; Efron and Stein, Ann. Stat. 9(3), 1981); how
far a left-out cell lies from what the others predict is the spread of a single request. The interval of a prediction
holds both, so it widens away from what was measured. The same leaving out says what the predictions are worth:
`held_out`.
Of several runs, how far the predictions of each by itself lie apart is in the interval too: a request comes in one run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vlmeter.analysis import reading
from vlmeter.analysis.conditions import trust
from vlmeter.analysis.held_out import PREDICTED, Accuracy, accuracy, held_out
from vlmeter.analysis.prediction_model import Query, learn
from vlmeter.analysis.reading import Unknown, is_served
from vlmeter.analysis.runs import runs_of
from vlmeter.analysis.spread import misgivings_of_requests
from vlmeter.common.errors import UserError
from vlmeter.models.families.base import ImageOptions, ImageTokens, SubjectSpec
from vlmeter.models.families.registry import get_family
from vlmeter.numbers.units import duration
from vlmeter.numbers.words import plural
from vlmeter.table import kinds
from vlmeter.table.quantities import DECODE, FIRST_TOKEN, INPUTS, PREFILL_SUM, WAIT, WHOLE_REQUEST, Quantity

#: Text tokens of the prompt of a request of which nobody says how many.
QUESTION_TOKENS = 32

#: What is predicted of a request, by the name under which it is told.
TOLD: Mapping[str, Quantity] = {
    "preprocess_and_copy": INPUTS,
    "prefill": WAIT,
    "time_to_first_token": FIRST_TOKEN,
    "decode": DECODE,
    "total": WHOLE_REQUEST,
}


def image_tokens(table: pd.DataFrame, *, width_px: int, height_px: int, max_crops: int | None) -> ImageTokens:
    """Ask the subject's family what an image becomes; `table` holds the subject's rows.

    A hub checkpoint is that of the revision that was measured.
    """
    first = table.iloc[0]
    spec = SubjectSpec(
        preset=None if pd.isna(first["preset"]) else str(first["preset"]),
        weights=str(first["weights"]),
        revision=None if pd.isna(first["revision"]) else str(first["revision"]),
        dtype=str(first["dtype"]),
        attention=str(first["attention"]),
        seed=0,
        trust_remote_code=bool(first["trust_remote_code"]) if pd.notna(first["trust_remote_code"]) else False,
    )
    geometry = get_family(str(first["family"])).geometry(spec)
    return geometry.image_tokens(width_px, height_px, options=ImageOptions(max_crops=max_crops))


def crop_limit(table: pd.DataFrame) -> int | None:
    """The study's own limit of crops; None where it has none, or several."""
    limits = table["max_crops"].dropna().unique()
    return int(limits[0]) if len(limits) == 1 else None


def choose_subject(table: pd.DataFrame, subject: str | None) -> pd.DataFrame:
    """Return the rows of a subject; without a name, of the only one. Raises UserError."""
    names = reading.subjects_of(table)
    if subject is None and len(names) != 1:
        raise UserError(f"--subject: the study has several subjects; legal: {', '.join(names)}")
    if subject is not None and subject not in names:
        raise UserError(f"--subject: {subject!r} is not in the study; legal: {', '.join(names)}")
    return reading.of_subject(table, subject or names[0])


def predict(
    table: pd.DataFrame,
    *,
    width_px: int,
    height_px: int,
    output_tokens: int,
    question_tokens: int,
    max_crops: int | None = None,
) -> dict[str, Any]:
    """Predict one request from a subject's rows.

    question_tokens: all text tokens of the prompt. max_crops: None is the study's own limit. Returns what is to be
    shown: subject, device, the image's counts, predictions with their 95 % intervals in ms, notes, and how well
    held-out cells of the study were predicted. Raises UserError where the study says too little, or the request is too
    far from it.
    """
    model = learn(table)
    if isinstance(model, Unknown):
        raise UserError(f"--study: nothing can be predicted from this table: {model.reason}")
    if max_crops is None:
        max_crops = crop_limit(table)
    image = image_tokens(table, width_px=width_px, height_px=height_px, max_crops=max_crops)
    dummies = table[(table["kind"] == kinds.PREFILL) & table["width_px"].notna()]
    sizes = set(zip(dummies["width_px"], dummies["height_px"], strict=True))
    prompt = image.image_tokens + question_tokens
    query = Query(image.crops, prompt, output_tokens, photograph=(width_px, height_px) not in sizes)
    if (reason := model.refusal(query)) is not None:
        raise UserError(f"--image {width_px}x{height_px}, --output-tokens {output_tokens}: {reason}")
    notes = model.notes(query)
    if query.photograph and not (model.inputs.seen.features["photograph"] > 0).any():
        notes.append("the study's images needed no resizing, so preprocessing will take longer than predicted")
    pixels = dummies["width_px"] * dummies["height_px"]
    if query.photograph and len(pixels) and width_px * height_px > int(pixels.max()):
        notes.append(
            f"preprocessing is predicted from crops, and {width_px * height_px / 1e6:.1f} megapixels take longer to "
            f"read than the study's dummy images, which have up to {int(pixels.max()) / 1e6:.1f}"
        )
    if served := is_served(table):
        notes.append(
            "a server: preprocessing and copy are the client's, which encodes the picture; the wait for the first "
            "token holds upload, the server's own work on the inputs, the prefill and the way back"
        )
    if len(runs_of(table)) > 1 and not model.by_run:
        notes.append("a run by itself does not tell all of this: intervals do not hold what differs between runs")
    if said := misgivings_of_requests(table):
        notes.append(said)
    if (conditions := trust(table)).verdict != "quiet":
        notes.append(f"conditions of the study were {conditions.verdict}: {conditions.reasons[0]}")
    forecasts = {
        INPUTS: model.inputs_of(query),
        WAIT: model.prefill_of(query),
        FIRST_TOKEN: model.first_token_of(query),
        DECODE: model.decode_of(query),
        WHOLE_REQUEST: model.total_of(query),
    }
    tested = held_out(table)
    worth = {} if isinstance(tested, Unknown) else {quantity: accuracy(tested, quantity) for quantity in PREDICTED}
    first = table.iloc[0]
    return {
        "study": str(first["study"]),
        "subject": str(first["subject"]),
        "device": None if pd.isna(first["device_model"]) else str(first["device_model"]),
        "random_weights": bool(first["random_weights"]),
        "served": served,
        "image": {
            "width_px": width_px,
            "height_px": height_px,
            "crops": image.crops,
            "vision_tokens": image.vision_tokens,
            "special_tokens": image.special_tokens,
        },
        "question_tokens": question_tokens,
        "prompt_tokens": prompt,
        "output_tokens": output_tokens,
        "predictions": {
            name: {"predicted_ms": found.value, "low_ms": found.low, "high_ms": found.high}
            for name, found in ((name, forecasts[quantity].interval) for name, quantity in TOLD.items())
        },
        "notes": notes,
        "held_out": {
            name: {
                "predictions": found.count,
                "median_error_fraction": found.error.value,
                "inside_fraction": found.coverage.value,
                "said": found.said(),
            }
            for name, quantity in TOLD.items()
            if isinstance(found := worth.get(quantity), Accuracy)
        },
    }


def prediction_rows(found: Mapping[str, Any], *, form: str) -> list[dict[str, Any]]:
    """Lay the predictions of `predict` out as rows: in ms for a program, rounded in the unit that suits for people."""
    rows = []
    for name, values in found["predictions"].items():
        if form == "table":
            said = {key.removesuffix("_ms"): duration(value) for key, value in values.items()}
            quantity = PREFILL_SUM if TOLD[name] is WAIT and not found["served"] else TOLD[name]
            rows.append({"quantity": quantity.label, **said})
        else:
            rows.append({"quantity": name, **values})
    return rows


@dataclass(frozen=True)
class Example:
    """A request that a study's laws predict."""

    width_px: int
    height_px: int
    output_tokens: int


def example_of(table: pd.DataFrame, sizes_px: Sequence[tuple[int, int]]) -> Example | None:
    """Find a request that `predict` grants of a subject's rows, with the largest of some image sizes; None without.

    Its output is as long as the longest that was measured.
    """
    model = learn(table)
    if isinstance(model, Unknown):
        return None
    longest = model.ranges.get("output_tokens")
    output_tokens = 1 if longest is None else int(longest.high)
    for width_px, height_px in reversed(sizes_px):
        try:
            image = image_tokens(table, width_px=width_px, height_px=height_px, max_crops=crop_limit(table))
        except UserError:
            return None  # the checkpoint's configuration is not at hand
        if model.refusal(Query(image.crops, image.image_tokens + QUESTION_TOKENS, output_tokens)) is None:
            return Example(width_px, height_px, output_tokens)
    return None


def in_words(found: Mapping[str, Any]) -> str:
    """Say for what the predictions of `predict` are made."""
    image = found["image"]
    device = f" on {found['device']}" if found["device"] else ""
    weights = ", random weights" if found["random_weights"] else ""
    cut = f"{plural(image['crops'], 'crop')}, " if image["crops"] > 1 else ""  # of one piece nothing is cut
    return (
        f"{found['subject']}{device}{weights} (study {found['study']})\n"
        f"image {image['width_px']}x{image['height_px']}: {cut}"
        f"{plural(image['vision_tokens'], 'vision token')}; prompt of {found['prompt_tokens']:,} tokens, "
        f"{plural(found['output_tokens'], 'output token')}\n"
    )
