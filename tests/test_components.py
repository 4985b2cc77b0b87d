"""Components: shares that add up, of a mean request, and what is not known left unsaid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.support.fakes import FakeRunner
from tests.support.roofline import with_floors
from tests.support.tables import records_of, rewrite, table_of
from vlmeter.analysis import components
from vlmeter.analysis.components import Profile, disagreement, energy_parts, profile
from vlmeter.analysis.distribution import requests
from vlmeter.analysis.reading import Unknown
from vlmeter.models.families.base import PREFILL_PHASES
from vlmeter.table.build import build_table

LATENCY = {"samples": 60, "block_samples": 20, "output_tokens": [1, 8, 24]}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return with_floors(table_of(tmp_path_factory.mktemp("parts"), runner=FakeRunner(), latency=LATENCY))


def profiled(table: pd.DataFrame) -> Profile:
    found = profile(table)
    assert not isinstance(found, Unknown), found
    return found


def test_parts_are_those_of_a_mean_request(table: pd.DataFrame) -> None:
    found, own = profiled(table), requests(table)
    assert (found.source, found.count) == ("requests", 60)
    assert list(found.parts["part"]) == list(components.PARTS)
    for row in found.parts.to_dict("records"):
        assert row["time_ms"] == pytest.approx(own[f"{row['part']}_ms"].mean())
    by_part = found.parts.set_index("part")
    assert by_part.loc["vision_encoder", "flops"] == pytest.approx(1e8 * own["crops"].mean())
    assert by_part.loc["decode", "traffic_bytes"] > 1e9 * (own["generated_tokens"] - 1).mean()


def test_shares_add_up(table: pd.DataFrame) -> None:
    found = profiled(table)
    for quantity in components.SHARES_OF:
        assert sum(found.share(quantity).values()) == pytest.approx(1)
    for shares in (found.time_share, found.prefill_share):
        assert sum(one.value for one in shares.values()) == pytest.approx(1)
        assert all(one.low <= one.value <= one.high for one in shares.values())


def test_parameters_are_those_of_the_loaded_model_and_decode_adds_none(table: pd.DataFrame) -> None:
    shares = profiled(table).share("parameters")
    counted = FakeRunner().parameters
    assert shares == pytest.approx(
        {
            "vision_encoder": 1000 / 6100,
            "projector": 100 / 6100,
            "merge": counted["embedding"] / 6100,
            "llm_blocks": 4000 / 6100,
            "head": 500 / 6100,
        }
    )


def test_without_requests_the_generations_are_profiled_and_without_these_the_prefills(tmp_path: Path) -> None:
    generations = profiled(table_of(tmp_path / "a"))
    assert (generations.source, generations.has_decode) == ("generations", True)
    prefills = profiled(table_of(tmp_path / "b", output=None))
    assert (prefills.source, prefills.count, prefills.has_decode) == ("prefills of dummy images", 12, False)
    assert set(prefills.parts["part"]) == set(PREFILL_PHASES)
    assert isinstance(profile(build_table([])), Unknown)


def test_without_the_roofline_there_are_neither_flops_nor_traffic(table: pd.DataFrame) -> None:
    plain = table.drop(columns=["flops", "weight_bytes", "cache_bytes"])
    found = profiled(plain)
    assert found.share("flops") == {}
    assert found.share("traffic_bytes") == {}
    assert len(found.share("time_ms")) == 6
    unknown = disagreement(found, "flops")
    assert isinstance(unknown, Unknown)
    assert unknown.reason == "FLOPs of the components are not known"


def test_one_cell_that_lacks_a_phase_does_not_take_it_from_all(tmp_path: Path) -> None:
    paths = records_of(tmp_path, vision=None)

    def drop_head(data: dict[str, Any]) -> None:
        data["series"] = [series for series in data["series"] if series["phase"] != "head"]

    rewrite(paths[0], drop_head)
    found = profiled(build_table(paths))
    assert "head" in set(found.parts["part"])
    assert found.count == len(paths) - 1


def test_the_part_whose_shares_differ_most_is_found(table: pd.DataFrame) -> None:
    found = profiled(table)
    apart = disagreement(found, "parameters")
    assert not isinstance(apart, Unknown)
    shares, times = found.share("parameters"), found.prefill_share
    distances = {part: times[part].value - share for part, share in shares.items()}
    assert apart.distance.value == max(distances.values(), key=abs)


def test_energy_is_told_apart_where_it_was_read_and_unknown_elsewhere(tmp_path: Path) -> None:
    (path,) = records_of(tmp_path, vision=None, output=None, latency={"samples": 8, "block_samples": 8})
    assert profiled(build_table([path])).joules == {}
    assert energy_parts(profiled(build_table([path]))) == {}
    spent = [("request", 80.0, 8), ("prefill", 30.0, 10), ("vision", 10.0, 10)]

    def put(data: dict[str, Any]) -> None:
        data["energy"] = [
            {"what": what, "joules": joules, "span_s": 2.0, "repeats": repeats} for what, joules, repeats in spent
        ]

    rewrite(path, put)
    found = profiled(build_table([path]))
    assert found.joules == {"whole_request": 10.0, "prefill": 3.0, "vision": 1.0}
    assert energy_parts(found) == {"vision": 1.0, "language": 2.0, "decode": 7.0}


def test_peak_memory_is_that_of_the_phase(table: pd.DataFrame) -> None:
    peaks = profiled(table).parts.set_index("part")["peak_bytes"]
    assert peaks["llm_blocks"] == 1 << 20
    assert pd.isna(peaks["decode"])
