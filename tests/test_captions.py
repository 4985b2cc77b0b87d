"""A caption says the numbers of the analysis, in words: those that the figure beside it shows."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd
import pytest

from tests.support.fakes import FakeRunner
from tests.support.roofline import with_floors
from tests.support.tables import LATENCY, OF_SERVERS, table_of
from vlmeter.analysis import (
    components,
    conditions,
    decode_runs,
    distribution,
    flops,
    held_out,
    prefill_cells,
    reading,
    step_times,
    waits,
)
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.reading import Unknown
from vlmeter.figures.registry import FIGURES, get_figure
from vlmeter.numbers.units import duration, duration_range, percent, r_squared, significant
from vlmeter.numbers.words import plural, with_interval
from vlmeter.table import kinds
from vlmeter.table.quantities import (
    DECODE,
    FIRST_TOKEN,
    GENERATED,
    HEAD,
    LLM_BLOCKS,
    METHOD_DIFFERENCE_WALL,
    OF_DECODE,
    PLAIN_WALL,
    PREFILL_SUM,
    PROJECTOR,
    QUANTITIES,
    SHARE,
    VISION,
    VISION_ENCODER,
    WHOLE_REQUEST,
)

Said = Callable[[pd.DataFrame], list[str]]

#: What the caption of each figure has to say of a table, by the figure's name.
SAID: dict[str, Said] = {}


def says(said: Said) -> Said:
    """Take a function as what the figure of its name says."""
    SAID[said.__name__] = said
    return said


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    runner = FakeRunner(noise_fraction=0.01, launch_ms={"vision_encoder": 4.0})
    return with_floors(table_of(tmp_path_factory.mktemp("captions"), runner=runner, latency=LATENCY))


@says
def vision_by_tokens(table: pd.DataFrame) -> list[str]:
    cells = prefill_cells.vision_cells(table)
    first, last = cells.iloc[0], cells.iloc[-1]
    top = prefill_cells.phase_shares(cells).sort_values("median_fraction").iloc[-1]
    return [
        f"From {first['vision_tokens']:,} to {last['vision_tokens']:,} vision tokens",
        duration_range(first[PLAIN_WALL.column], last[PLAIN_WALL.column]),
        f"{QUANTITIES[top['phase']].label}, with {percent(top['smallest_fraction'])}",
        " and ".join(f"{tokens:,}" for tokens in prefill_cells.repeated_counts(cells)),
    ]


@says
def vision_by_crops(table: pd.DataFrame) -> list[str]:
    cells = prefill_cells.vision_cells(table)
    medians = cells.groupby("crops")[[part.column for part in VISION.parts]].median().sum(axis=1)
    ends = f"{duration(float(medians.iloc[0]))} to {duration(float(medians.iloc[-1]))}"
    whole = cells.groupby("crops")[PLAIN_WALL.column]
    return ["From 2 crops to 13 the", ends, duration(float((whole.max() - whole.min()).max()))]


@says
def two_methods(table: pd.DataFrame) -> list[str]:
    cells = prefill_cells.vision_cells(table)
    apart = prefill_cells.pooled(cells, METHOD_DIFFERENCE_WALL)
    assert not isinstance(apart, Unknown)
    return [f"is {with_interval(apart, 'ms')} in the median over {len(cells)} cells", "By hooks it falls nowhere"]


@says
def three_clocks(table: pd.DataFrame) -> list[str]:
    found = prefill_cells.crossover(prefill_cells.vision_cells(table))
    assert not isinstance(found, Unknown)
    last, first = found.last_launch_bound_tokens, found.first_device_bound_tokens
    return [
        f"{found.launch_bound_cells} of 12 cells are launch-bound and {found.device_bound_cells} device-bound",
        f"Up to {last} prompt tokens the host sets the pace, from {first} on the device does",
    ]


@says
def first_token_by_size(table: pd.DataFrame) -> list[str]:
    sizes = waits.by_size(prefill_cells.vision_cells(table))
    first, last = (reading.estimate_of(sizes.iloc[place], FIRST_TOKEN) for place in (0, -1))
    return [f"336 x 336 px {with_interval(first, 'ms')}", f"px {with_interval(last, 'ms')}. The largest part is"]


@says
def two_factors(table: pd.DataFrame) -> list[str]:
    found = answers_of(table)
    return [f"One more crop costs {found['crop'].said()}", f"one more vision token {found['vision_token'].said()}"]


@says
def notes_series(table: pd.DataFrame) -> list[str]:
    return ["never become 3, 6, 9 or 12 crops", "this study measured cells with 3, 6 or 9 crops"]


def law_of(table: pd.DataFrame) -> decode_runs.DecodeLaw:
    law = decode_runs.decode_law(decode_runs.decode(table))
    assert not isinstance(law, Unknown)
    return law


@says
def decode_log(table: pd.DataFrame) -> list[str]:
    law = law_of(table)
    return [
        f"time per output token is {with_interval(law.line['per_token'], 'ms')}",
        f"{with_interval(law.power['slope'], '')} over decode steps",
        f"{with_interval(law.power_tokens['slope'], '')} over output tokens",
        f"{with_interval(law.curvature, 'fraction')} of the time at 64 tokens",
    ]


@says
def decode_linear(table: pd.DataFrame) -> list[str]:
    law = law_of(table)
    return [
        f"at most {percent(law.line.largest_residual_fraction)}",
        f"R² is {r_squared(law.line.r_squared)}",
        f"the bend is {with_interval(law.curvature, 'fraction')}",
    ]


@says
def decode_zoom(table: pd.DataFrame) -> list[str]:
    runs = decode_runs.decode(table)
    prefill, decode = (decode_runs.by_length(runs, one)["value"].iloc[0] for one in (PREFILL_SUM, DECODE))
    assert decode < prefill
    return [f"At 8 tokens the prefill takes {duration(prefill)} and decode {duration(decode)}", "From 16 tokens on"]


@says
def prefill_and_decode(table: pd.DataFrame) -> list[str]:
    runs = decode_runs.decode(table)
    prefill = runs.loc[runs["direct"], PREFILL_SUM.column]
    decode = decode_runs.by_length(runs, DECODE)["value"]
    return [
        f"{duration(float(prefill.min()))} to {duration(float(prefill.max()))} depending on the image",
        f"{duration(decode.iloc[0])} at 8 and {duration(decode.iloc[-1])} at 64 output tokens",
    ]


@says
def prefill_share(table: pd.DataFrame) -> list[str]:
    runs = decode_runs.decode(table)
    share, ratio = (decode_runs.by_length(runs, one)["value"] for one in (SHARE, OF_DECODE))
    return [
        f"At 8 output tokens the prefill is {percent(share.iloc[0])} of the time ({percent(ratio.iloc[0])} of the",
        f"at 64 it is {percent(share.iloc[-1])} ({percent(ratio.iloc[-1])} of the decode time)",
    ]


@says
def total_by_length(table: pd.DataFrame) -> list[str]:
    total = decode_runs.by_length(decode_runs.decode(table), GENERATED)["value"]
    return [f"8 output tokens take {duration(total.iloc[0])}", f"64 take {duration(total.iloc[-1])}"]


@says
def decode_steps(table: pd.DataFrame) -> list[str]:
    law = step_times.step_law(table)
    assert not isinstance(law, Unknown)
    per_thousand = reading.scaled(law.fit["per_context_token"], 1000)
    return [
        "Longest run of 6 photographs",
        f"costs {with_interval(law.fit['constant'], 'ms')} whatever the context",
        f"{with_interval(per_thousand, 'ms')} per 1,000 tokens of context",
    ]


@says
def inter_token(table: pd.DataFrame) -> list[str]:
    samples = step_times.inter_token(table)
    found = step_times.inter_token_percentiles(samples)
    percentiles = [f"P{100 * part:.0f} {with_interval(one, 'ms')}" for part, one in found.items() if one is not None]
    assert len(percentiles) == 3
    return [f"{len(samples):,} decode steps of the longest runs", *percentiles]


def totals(table: pd.DataFrame) -> pd.Series:
    return distribution.sample_of(table).requests[WHOLE_REQUEST.column]


@says
def latency_histogram(table: pd.DataFrame) -> list[str]:
    found = distribution.percentiles(totals(table).to_numpy())
    percentiles = [f"P{100 * part:.0f} {with_interval(one, 'ms')}" for part, one in found.items() if one is not None]
    assert len(percentiles) == 4
    return ["320 requests, each measured once", *percentiles, "6 pairs of photograph and question"]


@says
def latency_cdf(table: pd.DataFrame) -> list[str]:
    ratio = distribution.tail_over_middle(totals(table).to_numpy())
    assert not isinstance(ratio, Unknown)
    return ["320 requests", f"One in a hundred takes {with_interval(ratio, '')} times as long as the middle one"]


@says
def latency_tail(table: pd.DataFrame) -> list[str]:
    found = distribution.explain(distribution.sample_of(table))
    assert not isinstance(found, Unknown)
    return [
        f"({found.tail_requests}) take {with_interval(found.gap_ms, 'ms')} longer",
        f"Output tokens account for {with_interval(found.gap['generated_tokens'], 'fraction')}",
        f"{with_interval(found.gap['rest'], 'fraction')} is accounted for by nothing",
        "Intervals of shares are rough: in simulated studies 91 to 100 of 100 held the truth",
        f"The slowest request took {duration(float(totals(table).max()))}",
    ]


@says
def component_profile(table: pd.DataFrame) -> list[str]:
    found = components.profile(table)
    assert not isinstance(found, Unknown)
    said = [f"A mean over {found.count} requests"]
    for quantity, words in components.SHARES_OF.items():
        apart = components.disagreement(found, quantity)
        if quantity in ("parameters", "flops"):
            assert not isinstance(apart, Unknown)
            said.append(f"{percent(apart.share)} of the {words}, {with_interval(apart.time_share, 'fraction')} of the")
    return said


def points_of(table: pd.DataFrame) -> pd.DataFrame:
    points = flops.points(table)
    assert not isinstance(points, Unknown)
    return points


@says
def flops_latency(table: pd.DataFrame) -> list[str]:
    points = points_of(table)
    over_all = flops.relations(points).set_index("phase").loc["parts"]
    equal = flops.equal_flops(points)
    assert not isinstance(equal, Unknown)
    return [
        f"({points['phase'].isin(flops.PARTS).sum()} points)",
        f"R² is {with_interval(reading.estimate_in(over_all, 'r_squared', ''), '')}",
        f"rank correlation {with_interval(reading.estimate_in(over_all, 'spearman', ''), '')}",
        f"decoding takes {with_interval(equal.times, '')} times as long",
    ]


@says
def flops_or_roofline(table: pd.DataFrame) -> list[str]:
    models = flops.compare_models(points_of(table))
    assert not isinstance(models, Unknown)
    worst = max(models.by_phase, key=lambda phase: models.by_phase[phase]["roofline"])
    return [
        f"{with_interval(models.errors['flops'], 'fraction')} by FLOPs",
        f"{with_interval(models.errors['roofline'], 'fraction')} by the roofline",
        f"the roofline for {flops.NAMES[worst]} ({percent(models.by_phase[worst]['roofline'])})",
    ]


@says
def token_costs(table: pd.DataFrame) -> list[str]:
    found = answers_of(table)
    said = [f"{found[name].question[1:]} {found[name].said()}" for name in ("vision_token", "output_token")]
    return [*said, f"costs as much as {found['output_over_vision'].said()} vision tokens"]


@says
def held_out_(table: pd.DataFrame) -> list[str]:
    found = held_out.held_out(table)
    assert not isinstance(found, Unknown)
    said = []
    for quantity in held_out.PREDICTED:
        worth = held_out.accuracy(found, quantity)
        assert not isinstance(worth, Unknown)
        said.append(f"{quantity.label[1:]}: {plural(worth.count, 'prediction')}, {worth.said()}")
    return said


@says
def limits(table: pd.DataFrame) -> list[str]:
    cells = table.loc[table["floor_ms"].notna() & (table["kind"] == kinds.PREFILL)]
    cells = cells.drop_duplicates("cell_id").sort_values(["prompt_tokens", "cell_id"])["cell_id"]
    middle = table[table["cell_id"] == cells.iloc[len(cells) // 2]]
    times = {}
    for quantity in (VISION_ENCODER, PROJECTOR, LLM_BLOCKS, HEAD, PLAIN_WALL):
        row = reading.rows_of(middle, quantity, kind=kinds.PREFILL).iloc[0]
        times[quantity.label] = row["median_ms"] / row["floor_ms"]
    nearest, farthest = min(times, key=lambda name: times[name]), max(times, key=lambda name: times[name])
    return [
        f"Below, at {middle['prompt_tokens'].iloc[0]:,} prompt tokens, nearest to it is {nearest}, "
        f"{significant(times[nearest], 2)} times the floor; farthest is {farthest}, "
        f"{significant(times[farthest], 2)} times",
    ]


@says
def sentinel(table: pd.DataFrame) -> list[str]:
    visits = conditions.sentinel(table)
    return [
        f"{len(visits)} visits",
        f"the farthest is {percent(float(visits['fraction'].abs().max()))} away",
        "No cell",
    ]


SAID["held_out"] = SAID.pop("held_out_")  # the module has that name


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in OF_SERVERS])
def test_a_caption_says_what_the_analysis_found(table: pd.DataFrame, name: str) -> None:
    caption = get_figure(name).caption(table)
    said = SAID[name](table)
    assert said
    assert [part for part in said if part not in caption] == []
