"""A subject as the page shows it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from vlmeter.analysis import components, conditions, decode_runs, distribution, prefill_cells
from vlmeter.analysis.answers import Answers
from vlmeter.analysis.distances import distances_of
from vlmeter.analysis.reading import Unknown
from vlmeter.analysis.roofline import beside
from vlmeter.claims.base import Claim
from vlmeter.models.families.registry import FAMILIES, get_family
from vlmeter.numbers.units import size
from vlmeter.numbers.words import plural
from vlmeter.report.answers import Bar, Card, card_of, share_bars
from vlmeter.report.cells import (
    first_token_grid,
    flags_of,
    left_out_grid,
    modes_of,
    output_grid,
    photograph_grid,
    vision_grid,
)
from vlmeter.report.components import component_grid, energy_sentence
from vlmeter.report.grids import Grid
from vlmeter.report.limits import distances_grid
from vlmeter.report.models import flops_grids, held_out_grid
from vlmeter.report.pictures import FigureFiles, FigureView, figure_views
from vlmeter.report.requests import percentile_grid, slowest_grid
from vlmeter.report.software import preparation_sentence
from vlmeter.table import kinds

#: What a verdict of `analysis.trust` means to a reader.
TRUST = {
    "quiet": "The machine was quiet while this was measured.",
    "disturbed": "The machine was disturbed: small differences may not be real.",
    "unusable": "Do not rely on these numbers.",
}


@dataclass(frozen=True)
class SubjectView:
    """A subject as the page shows it."""

    name: str
    family: str
    piece: str
    model: str
    device: str
    prepared: str
    random_weights: bool
    trust: str
    trust_sentence: str
    trust_reasons: Sequence[str]
    runs: str
    answers: Sequence[Card]
    topics: frozenset[str]
    first_token: Grid
    bars: Sequence[Bar]
    limits_grid: Grid | None
    flops_grids: Sequence[Grid]
    held_out: Grid
    figures: Sequence[FigureView]
    claims: Sequence[Mapping[str, Any]]
    verdicts: Mapping[str, int]
    vision: Grid
    output: Grid
    percentiles: Grid | None
    slowest: Grid | None
    conditions: str
    components: Grid | None
    energy: str
    photographs: Grid
    left_out: Grid
    missing: Sequence[str]
    environments: Sequence[Mapping[str, Any]]


def subject_view(
    config: Mapping[str, Any],
    table: pd.DataFrame,
    *,
    name: str,
    answers: Answers,
    figures: Mapping[str, FigureFiles],
    claims: Sequence[Claim],
    environments: Sequence[Mapping[str, Any]],
    roofline: pd.DataFrame | None,
    thumbnails: Mapping[int, str],
) -> SubjectView:
    """Everything that the page shows of one subject."""
    cells, runs = prefill_cells.vision_cells(table), decode_runs.decode(table)
    trust, flags, modes = conditions.trust(table), flags_of(table), modes_of(table)
    whole = table if roofline is None else beside(table, roofline)
    distances = [] if roofline is None else distances_of(whole)
    drawn = figure_views(figures)
    asked_claims = [claim for claim in claims if claim.concerns]
    left_out = left_out_grid(table, name)
    sample = distribution.sample_of(table)
    profile = components.profile(whole)
    family = str(config["family"])
    piece = get_family(family).piece if family in FAMILIES else "crop"
    missing = []
    asked = set(table["kind"].dropna())
    if cells.empty and kinds.PREFILL in asked:
        missing.append("No image of an exact size was measured.")
    if runs.empty and kinds.GENERATION in asked:
        missing.append("No generation of two tokens or more was measured, so nothing is said about output tokens.")
    if left_out.rows:
        missing.append(f"{plural(len(left_out.rows), 'cell')} could not be measured; they are listed with the reason.")
    if not distances:
        missing.append("The device's limits were not measured, so the distance to them is not known.")
    if not environments:
        missing.append("The environment was not handed to this page.")
    return SubjectView(
        name=name,
        family=family,
        piece=piece,
        model=_model(config),
        device=", ".join(sorted(set(table["device_model"].dropna()))) or "device not known",
        prepared=preparation_sentence(table),
        random_weights=config.get("weights", "random") == "random",
        trust=trust.verdict,
        trust_sentence=TRUST[trust.verdict],
        trust_reasons=trust.reasons,
        runs=conditions.runs_in_words(table),
        answers=[card_of(answer, piece=piece) for answer in answers.values()],
        topics=frozenset(answer.topic for answer in answers.values()),
        first_token=first_token_grid(cells, name),
        bars=share_bars(cells, runs),
        limits_grid=distances_grid(distances, name) if distances else None,
        flops_grids=flops_grids(table, roofline, name),
        held_out=held_out_grid(table, name),
        figures=drawn,
        claims=[claim_view(claim, drawn) for claim in asked_claims],
        verdicts={verdict: sum(claim.verdict == verdict for claim in asked_claims) for verdict in VERDICTS},
        vision=vision_grid(cells, flags, name, modes=modes),
        output=output_grid(runs, flags, name, modes=modes),
        percentiles=percentile_grid(sample, name) if sample.size else None,
        slowest=slowest_grid(sample, thumbnails, name) if sample.size else None,
        conditions=distribution.conditions(sample).strip(),
        components=None if isinstance(profile, Unknown) else component_grid(profile, name),
        energy="" if isinstance(profile, Unknown) else energy_sentence(profile),
        photographs=photograph_grid(table, name),
        left_out=left_out,
        missing=missing,
        environments=[{"cells": found["cells"], "facts": list(_facts(found["environment"]))} for found in environments],
    )


VERDICTS = ("holds", "does not hold", "cannot tell")


def claim_view(claim: Claim, figures: Sequence[FigureView]) -> dict[str, Any]:
    """A judged claim as the page shows it."""
    shown = {figure.name: figure.title for figure in figures if figure.src is not None}
    evidence = [(item.name, said) for item in claim.evidence if (said := item.said) is not None]
    return {
        "name": claim.name,
        "claim": claim.claim,
        "statement": claim.statement,
        "verdict": claim.verdict,
        "evidence": evidence,
        "figures": [(name, shown[name]) for name in claim.figures if name in shown],
    }


#: Attention whose key is also the name of a backend, in words of its own.
_ATTENTION = {"eager": "attention in matrix products"}


def _model(config: Mapping[str, Any]) -> str:
    """Say what was run, in words that name what each of them is."""
    random = config.get("weights", "random") == "random"
    parts = [
        f"{config['family']}" + (f" ({config['preset']})" if config.get("preset") else ""),
        "random weights" if random else f"weights {config['weights']}",
        str(config.get("dtype", "")),
        _ATTENTION.get(config["attention"], f"{config['attention']} attention") if config.get("attention") else "",
        f"backend {config.get('backend', 'eager')}",
        # the key is there, with its default, whatever the backend
        f"compile mode {config['compile_mode']}" if config.get("compile_mode", "default") != "default" else "",
        f"vision attention in {config['vision_attention_dtype']}" if config.get("vision_attention_dtype") else "",
    ]
    return ", ".join(part for part in parts if part)


def _facts(found: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    """Flatten an environment into (name, value); what is absent is left out."""
    for name, value in found.items():
        label = f"{prefix}{name}".replace("_bytes", "").replace("_", " ")
        if isinstance(value, Mapping):
            yield from _facts(value, f"{label}: ")
        elif isinstance(value, list):
            yield label, ", ".join(map(str, value))
        elif value is not None:
            yield label, size(value) if name.endswith("_bytes") else str(value)
