"""Tables of many requests: percentiles, and the slowest ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd
from markupsafe import Markup, escape

from vlmeter.analysis import distribution
from vlmeter.numbers.units import duration
from vlmeter.report.cells import photograph
from vlmeter.report.grids import Grid, Value, count_value, estimate_value, word_value
from vlmeter.table.quantities import DECODE, FIRST_TOKEN, LONGEST_STEP, WHOLE_REQUEST


def percentile_grid(sample: distribution.Sample, name: str) -> Grid:
    """The table of percentiles."""
    columns = [
        ("time", "what was timed"),
        ("requests", "requests behind the row"),
        *((f"P{100 * part:.0f}", "with its 95 % interval between order statistics") for part in distribution.FRACTIONS),
        ("longest", "the slowest request"),
        ("absent", "why a percentile is not told"),
    ]
    rows = []
    for quantity in distribution.DURATIONS:
        values = sample.requests[quantity.column].dropna().to_numpy(dtype=float)
        if not len(values) or values.max() <= 0:
            continue
        found = distribution.percentiles(*sample.by_run(quantity))
        missing = [distribution.too_few(part, len(values)) for part, one in found.items() if one is None]
        rows.append(
            [
                word_value(quantity.words),
                count_value(len(values)),
                *(Value("", math.nan) if one is None else estimate_value(one, "ms") for one in found.values()),
                Value(duration(float(values.max())), float(values.max())),
                word_value("; ".join(missing)),
            ]
        )
    return Grid(f"percentiles-{name}", "Percentiles over requests, each measured once", columns, rows)


def slowest_grid(sample: distribution.Sample, thumbnails: Mapping[int, str], name: str) -> Grid:
    """The table of the slowest requests, with their photographs."""
    columns = [
        ("photograph", "in small; its place in the dataset, as in the plan, and its id there"),
        ("question", "what the model was asked"),
        ("latency", "from the opened picture to the last token"),
        ("expected", "what output tokens, prompt tokens, crops and pixels let one expect (the fit above)"),
        ("to the first token", "preprocessing, copy and prefill"),
        (DECODE.label, DECODE.words),
        (LONGEST_STEP.label, LONGEST_STEP.words),
        ("size", "of the photograph, width x height"),
        ("crops", "pieces of the image that the vision encoder sees, the whole image in small among them"),
        ("prompt tokens", "all tokens of the prompt; counted in the model's input"),
        ("output tokens", "tokens generated"),
        ("disturbed by", "what else went on; empty: nothing that was seen"),
    ]
    times = (WHOLE_REQUEST.column, "fitted_ms", *(one.column for one in (FIRST_TOKEN, DECODE, LONGEST_STEP)))
    rows = [
        [
            Value(str(photograph(row, of_a_size=False)), float(row["image_index"]), _picture(row, thumbnails)),
            word_value(row["question"]),
            *(Value("" if pd.isna(row[time]) else duration(row[time]), float(row[time])) for time in times),
            Value(f"{row['width_px']} x {row['height_px']} px", float(row["image_px"])),
            *(count_value(row[count]) for count in ("crops", "prompt_tokens", "generated_tokens")),
            word_value(row["disturbances"]),
        ]
        for row in distribution.slowest(sample).to_dict("records")
    ]
    return Grid(f"slowest-{name}", "The slowest requests, the slowest first", columns, rows).where_cut()


def _picture(row: Any, thumbnails: Mapping[int, str]) -> Markup | None:
    uri = thumbnails.get(int(row["image_index"]), "")
    return Markup(escape(uri)) if uri.startswith("data:image/jpeg;base64,") else None
