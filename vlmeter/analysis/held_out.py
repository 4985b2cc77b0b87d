"""Test predictions on cells that were left out of the study."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from scipy.stats import binomtest

from vlmeter.analysis import decode_runs, prefill_cells, reading
from vlmeter.analysis.prediction_laws import Learnt
from vlmeter.analysis.prediction_model import Model, Query, learn, photograph_group, photograph_runs, size_group
from vlmeter.analysis.reading import Unknown
from vlmeter.numbers.medians import CONFIDENCE, Estimate, median_estimate
from vlmeter.numbers.units import percent
from vlmeter.table.quantities import DECODE, FIRST_TOKEN, INPUTS_WALL, PLAIN_WALL, WHOLE_REQUEST, Quantity

#: What is said beside held-out predictions of several runs.
OF_RUNS = (
    "means over the runs: what differs between runs is not in these intervals, as it is in those of `vlmeter predict`"
)

#: What is predicted for cells that were held out.
PREDICTED = (FIRST_TOKEN, WHOLE_REQUEST)


def held_out(table: pd.DataFrame, subject: str | None = None) -> pd.DataFrame | Unknown:
    """Predict every image size and every photograph from a study without it, and set the measurement beside.

    Columns: group (what was held out), picture (dummy or photograph), quantity (name of one of PREDICTED), crops,
    prompt_tokens, output_tokens, predicted_ms with its interval (predicted_low_ms, predicted_high_ms), measured_ms,
    error_fraction (predicted over measured, minus 1) and inside (whether the interval holds the measurement). Of
    several runs both are of means over them (`OF_RUNS`).
    """
    rows = reading.of_subject(table, subject)
    model = learn(rows)
    if isinstance(model, Unknown):
        return model
    found = []
    kept: dict[str, Model | None] = {}
    for group, picture, quantity, query, measured_ms in _measured(rows, model):
        if group not in kept:
            kept[group] = model.without(group)
        own = kept[group]
        if own is None or not _enough(own, quantity):
            continue
        forecast = own.first_token_of(query) if quantity is FIRST_TOKEN else own.total_of(query)
        predicted = forecast.interval
        found.append(
            {
                "group": group,
                "picture": picture,
                "quantity": quantity.name,
                "crops": query.crops,
                "prompt_tokens": query.prompt_tokens,
                "output_tokens": query.output_tokens,
                "predicted_ms": predicted.value,
                "predicted_low_ms": predicted.low,
                "predicted_high_ms": predicted.high,
                "measured_ms": measured_ms,
                "error_fraction": predicted.value / measured_ms - 1,
                "inside": predicted.low <= measured_ms <= predicted.high,
            }
        )
    if not found:
        return Unknown("too few cells were measured to hold one of them out")
    return pd.DataFrame(found)


def can_be_held_out(table: pd.DataFrame, model: Model) -> bool:
    """Whether `held_out` has anything to say of the table that a model was learnt from, without predicting."""
    return any(_enough(model.without(group), quantity) for group, _, quantity, _, _ in _measured(table, model))


def _enough(model: Model | None, quantity: Quantity) -> bool:
    return model is not None and not (quantity is WHOLE_REQUEST and isinstance(model.decode, Unknown))


def _measured(rows: pd.DataFrame, model: Model) -> list[tuple[str, str, Quantity, Query, float]]:
    """What held-out predictions are compared with: group, picture, quantity, query, time in ms."""
    cells, runs = prefill_cells.vision_cells(rows), decode_runs.decode(rows)
    found: list[tuple[str, str, Quantity, Query, float]] = []
    dummies = cells.dropna(subset=[INPUTS_WALL.column, PLAIN_WALL.column])
    for group, row in zip(size_group(dummies), dummies.to_dict("records"), strict=True):
        query = Query(int(row["crops"]), int(row["prompt_tokens"]), 1, photograph=False)
        measured_ms = float(row[INPUTS_WALL.column] + row[PLAIN_WALL.column])
        found.append((str(group), "dummy", FIRST_TOKEN, query, measured_ms))
    photographs = photograph_runs(runs, FIRST_TOKEN)
    for group, row in zip(photograph_group(photographs), photographs.to_dict("records"), strict=True):
        query = Query(int(row["crops"]), int(row["prompt_tokens"]), 1)
        found.append((str(group), "photograph", FIRST_TOKEN, query, float(row[FIRST_TOKEN.column])))
    direct = runs[runs["direct"]].dropna(subset=[FIRST_TOKEN.column, DECODE.column])
    if isinstance(model.decode, Learnt):
        for group, row in zip(photograph_group(direct), direct.to_dict("records"), strict=True):
            query = Query(int(row["crops"]), int(row["prompt_tokens"]), int(row["steps"]) + 1)
            measured_ms = float(row[FIRST_TOKEN.column] + row[DECODE.column])
            found.append((str(group), "photograph", WHOLE_REQUEST, query, measured_ms))
    return found


@dataclass(frozen=True)
class Accuracy:
    """How good held-out predictions were: median absolute relative error, and how many intervals held."""

    error: Estimate
    coverage: Estimate
    count: int
    inside: int

    def said(self) -> str:
        """In words, such as 'median error 2.1 %, and 37 of 39 intervals hold'."""
        return f"median error {percent(self.error.value)}, and {self.inside} of {self.count} intervals hold"


def accuracy(found: pd.DataFrame, quantity: Quantity | None = None) -> Accuracy | Unknown:
    """Summarise `held_out`, all of it or one quantity.

    The error's interval is over groups (lengths of one photograph err together); that of the coverage is the exact
    binomial one (Clopper and Pearson, Biometrika 26, 1934).
    """
    own = found if quantity is None else found[found["quantity"] == quantity.name]
    if own.empty:
        return Unknown(f"no {quantity.label if quantity else 'cell'} was held out")
    errors = own["error_fraction"].abs()
    by_group = median_estimate(errors.groupby(own["group"]).median().tolist())
    count, inside = len(own), int(own["inside"].sum())
    interval = binomtest(inside, count).proportion_ci(confidence_level=CONFIDENCE, method="exact")
    coverage = Estimate(inside / count, float(interval.low), float(interval.high))
    return Accuracy(by_group, coverage, count, inside)
