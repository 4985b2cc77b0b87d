"""Tables of FLOPs, of models of latency, and of predictions."""

from __future__ import annotations

import pandas as pd

from vlmeter.analysis import flops, held_out
from vlmeter.analysis.reading import Unknown, estimate_in
from vlmeter.analysis.roofline import beside
from vlmeter.analysis.runs import runs_of
from vlmeter.analysis.spread import misgivings_in, misgivings_of_requests
from vlmeter.numbers.units import duration, metric, percent
from vlmeter.report.grids import Grid, Value, count_value, estimate_value, word_value
from vlmeter.table.quantities import QUANTITIES


def flops_grids(table: pd.DataFrame, roofline: pd.DataFrame | None, name: str) -> list[Grid]:
    """Tables of the section on FLOPs; empty without counted work and ceilings."""
    points = Unknown("") if roofline is None else flops.points(beside(table, roofline))
    if isinstance(points, Unknown):
        return []
    grids = [_relations_grid(flops.relations(points), name, modes=misgivings_in(points))]
    models = flops.compare_models(points)
    return grids if isinstance(models, Unknown) else [*grids, _models_grid(models, name)]


def _entitled(title: str, modes: str) -> str:
    """A title, with what has two modes behind its numbers."""
    return f"{title}; {modes}" if modes else title


def _relations_grid(relations: pd.DataFrame, name: str, *, modes: str) -> Grid:
    columns = [
        ("phase", "what was timed; all of these: the phases together, which share no time"),
        ("points", "phases of cells behind the row"),
        ("cells", "cells behind the row; they are resampled whole"),
        ("FLOPs", "smallest to largest"),
        *((_RELATION_HEADINGS[quantity], meaning) for quantity, meaning in flops.RELATION_QUANTITIES.items()),
    ]
    rows = [
        [
            word_value(flops.NAMES[row["phase"]]),
            count_value(row["points"]),
            count_value(row["cells"]),
            word_value(_flops_range(row["smallest_flops"], row["largest_flops"])),
            *(estimate_value(estimate_in(row, quantity, ""), "") for quantity in flops.RELATION_QUANTITIES),
        ]
        for row in relations.to_dict("records")
    ]
    title = _entitled("FLOPs and latency, with 95 % intervals over cells", modes)
    return Grid(f"flops-{name}", title, columns, rows)


_RELATION_HEADINGS = {
    "pearson": "linear correlation",
    "spearman": "rank correlation",
    "slope": "slope in log-log",
    "r_squared": "R² in log-log",
}


def _flops_range(low: float, high: float) -> str:
    return metric(low) if low == high else f"{metric(low)} to {metric(high)}"


def _models_grid(models: flops.Models, name: str) -> Grid:
    columns = [
        ("model", "what log latency is said to be; fitted to all phases together"),
        (
            "all phases",
            "median error for cells that were left out, half and double both 100 %, every phase counting once",
        ),
        *((flops.NAMES[phase], "median error for cells that were left out") for phase in models.by_phase),
    ]
    rows = [
        [
            word_value(label),
            estimate_value(models.errors[model], "fraction"),
            *(Value(percent(errors[model]), errors[model]) for errors in models.by_phase.values()),
        ]
        for model, label in flops.MODELS.items()
    ]
    title = _entitled("How far predictions of left-out cells are off", misgivings_in(models.frame))
    return Grid(f"models-{name}", title, columns, rows)


def held_out_grid(table: pd.DataFrame, name: str) -> Grid:
    """The table of predictions for cells that were left out."""
    columns = [
        ("held out", "what was left out of the study: an image size, or an image with all its lengths"),
        ("predicted", "what of it"),
        ("output tokens", "tokens generated; 1 is the prefill alone"),
        ("prediction", "with its 95 % interval" + (f"; {held_out.OF_RUNS}" if len(runs_of(table)) > 1 else "")),
        ("measured", "median"),
        ("error", "predicted over measured, minus 1"),
        ("interval holds", "whether the measurement lies within it"),
    ]
    found = held_out.held_out(table)
    rows = (
        []
        if isinstance(found, Unknown)
        else [
            [
                word_value(row["group"]),
                word_value(QUANTITIES[row["quantity"]].label),
                count_value(row["output_tokens"]),
                estimate_value(estimate_in(row, "predicted"), "ms"),
                Value(duration(row["measured_ms"]), row["measured_ms"]),
                Value(percent(row["error_fraction"]), row["error_fraction"]),
                word_value("yes" if row["inside"] else "no"),
            ]
            for row in found.to_dict("records")
        ]
    )
    title = _entitled("Requests predicted from a study without them", misgivings_of_requests(table))
    return Grid(f"held-out-{name}", title, columns, rows)
