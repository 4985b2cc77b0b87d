"""The report says what the analysis says, needs nothing but itself, and says what is missing."""

from __future__ import annotations

import base64
import gzip
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

import pandas as pd
import pytest

from tests.support.fakes import FakeRunner, out_of_memory
from tests.support.html import Element, parse
from tests.support.reports import DECODE_TIMES, PLAIN_SVG, PREFILL_TIMES, STUDY, inputs_of, roofline_of
from tests.support.tables import LATENCY, CpuLikeRunner, table_of
from vlmeter.analysis import decode_runs, distribution, prefill_cells, reading, waits
from vlmeter.analysis.answers import answers_of
from vlmeter.analysis.reading import rows_of
from vlmeter.analysis.roofline import beside
from vlmeter.claims.registry import judge_all
from vlmeter.common.errors import UserError
from vlmeter.figures import style
from vlmeter.figures.registry import FIGURES, get_figure
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.units import duration, percent
from vlmeter.numbers.words import with_interval
from vlmeter.report.chart import DRAWN, questions
from vlmeter.report.page import PAGE, render, said, write
from vlmeter.report.pictures import DARK_COLOURS, FigureFiles, follow_the_reader
from vlmeter.table.columns import COLUMNS
from vlmeter.table.kinds import GENERATION, PREFILL
from vlmeter.table.quantities import DECODE, PLAIN_WALL

ENVIRONMENT = {"device_model": "fake device", "device_memory_bytes": 2**31, "driver": None, "versions": {"torch": "2"}}


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    runner = FakeRunner(noise_fraction=0.01, launch_ms={"vision_encoder": 4.0})
    return table_of(tmp_path_factory.mktemp("records"), runner=runner)


@pytest.fixture(scope="module")
def page(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Element:
    folder = tmp_path_factory.mktemp("report")
    return parse(render(inputs_of(folder, table, environment=ENVIRONMENT, roofline=roofline_of(table))))


def page_of(folder: Path, table: pd.DataFrame, **options: Any) -> Element:
    return parse(render(inputs_of(folder, table, **options)))


def grid_rows(page: Element, name: str) -> list[list[str]]:
    rows = page.find("div", data_grid=name).find("tbody").find_all("tr")
    return [[field.text for field in row.find_all("td")] for row in rows]


def unpacked(page: Element, name: str) -> str:
    (packed,) = page.find("script", id=name).children
    assert isinstance(packed, str)
    return gzip.decompress(base64.b64decode(packed)).decode()


# What it says


def test_the_first_screen_gives_the_analysis_answers_with_their_intervals(page: Element, table: pd.DataFrame) -> None:
    told = [answer for answer in answers_of(table).values() if answer.unit == "ms"]
    assert {"first_token_336x336", "first_token", "output_token", "crop", "vision_token"} <= {one.name for one in told}
    for answer in told:
        assert isinstance(answer.found, Estimate)
        value, _, interval = with_interval(answer.found, "ms").partition(" (")
        unit = value.split()[1]
        card = page.find("li", data_answer=answer.name)
        assert card.find("p", class_="value").text == value
        if interval != "no interval)":
            assert card.find("p", class_="interval").text == f"95 % interval: {interval.removesuffix(')')} {unit}"


def test_the_first_screen_gives_the_distance_to_the_roofline(page: Element) -> None:
    values = {
        name: page.find("li", data_answer=f"limit_{name}").find("p", class_="value").text.split()
        for name in ("plain_wall", "decode")
    }
    assert float(values["plain_wall"][0]) == PREFILL_TIMES
    assert float(values["decode"][0]) == DECODE_TIMES


def test_shares_fill_their_bars(page: Element, table: pd.DataFrame) -> None:
    bars = page.find_all("div", class_="share")
    titles = [bar.find("h3").text for bar in bars]
    assert ["prefill" in titles[0], "8 output" in titles[1], "64 output" in titles[2]] == [True] * 3
    grown = [[float(match) for match in re.findall(r"flex-grow:([\d.]+)", _styles(bar))] for bar in bars]
    shares = prefill_cells.phase_shares(prefill_cells.vision_cells(table))
    assert grown[0] == pytest.approx((100 * shares["median_fraction"]).tolist(), abs=1e-3)
    assert [sum(parts) for parts in grown[1:]] == pytest.approx([100, 100], abs=0.01)


def _styles(element: Element) -> str:
    return " ".join(each.attributes.get("style", "") for each in element)


def test_random_weights_are_said_plainly_and_real_ones_by_name(table: pd.DataFrame, tmp_path: Path) -> None:
    random = page_of(tmp_path, table)
    assert "Random weights." in random.find("p", class_="banner").text
    real = {**STUDY, "subjects": {"fake": {"family": "molmo", "weights": "allenai/Molmo-7B-D-0924"}}}
    page = page_of(tmp_path, table, study=real)
    assert not page.find_all("p", class_="banner")
    assert "allenai/Molmo-7B-D-0924" in page.find("p", class_="what").text


def test_every_figure_has_its_caption_beneath_it_and_as_its_alternative_text(page: Element) -> None:
    for name in FIGURES:
        figure = page.find("figure", id=f"fake-{name}")
        assert f"What {name} shows." in figure.find("img").attributes["alt"]
        assert f"What {name} shows." in figure.find("figcaption").text
        assert get_figure(name).TITLE in figure.find("figcaption").text


def test_every_section_of_a_figure_is_a_section_of_the_page(page: Element) -> None:
    for name in FIGURES:
        section = get_figure(name).SECTION
        first = section == "first_token"
        own = page.find("section", class_="answers") if first else page.find("section", id=section)
        assert own.find("figure", id=f"fake-{name}")


def test_the_first_screen_tells_the_wait_then_the_costs_then_the_limit_then_trust(page: Element) -> None:
    screen = page.find("section", class_="answers")
    text = screen.text
    order = ["What a user waits for", "Time to first token by image size", "What one more costs", "How far it is from"]
    places = [text.index(part) for part in [*order, "The machine was quiet"]]
    assert places == sorted(places)
    topics = [card.attributes["data-answer"] for card in screen.find_all("li", class_="card")]
    assert topics.index("output_token") < topics.index("crop") < topics.index("limit_decode")


def test_bad_conditions_are_said_before_any_number(table: pd.DataFrame, tmp_path: Path) -> None:
    loaded = table.assign(disturbed_samples=table["samples"], disturbances="other processes on the host")
    text = page_of(tmp_path, loaded).find("section", class_="answers").text
    assert text.index("other processes on the host") < text.index("What a user waits for")


def test_why_conditions_are_bad_is_folded_before_the_answers_unless_they_are_unusable(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    """The reasons of a disturbed machine would fill the first screen of a phone; they stand open under trust."""
    single = table["samples"].where(table.index % 9 == 0, 0).fillna(0).clip(upper=1)
    pages = {
        "disturbed": table.assign(disturbed_samples=single, disturbances="other processes", warmup_settled=False),
        "unusable": table.assign(drifted=True),
    }
    for trust, changed in pages.items():
        (tmp_path / trust).mkdir()
        page = page_of(tmp_path / trust, changed)
        box = page.find("section", class_="answers").find("div", class_="trust")
        assert trust in box.attributes["class"].split()
        assert ("open" in box.find("details").attributes) == (trust == "unusable")
        below = page.find("section", id="session").find("div", class_="trust")
        assert not below.find_all("details")
        assert below.find("ul").text == box.find("ul").text


def test_image_sizes_are_listed_with_the_parts_of_their_wait(page: Element, table: pd.DataFrame) -> None:
    sizes = waits.by_size(prefill_cells.vision_cells(table))
    rows = grid_rows(page, "first-token-fake")
    assert [row[0] for row in rows] == [
        f"{w} x {h}" for w, h in zip(sizes["width_px"], sizes["height_px"], strict=True)
    ]
    for row, (_, size) in zip(rows, sizes.iterrows(), strict=True):
        assert row[2] == with_interval(reading.estimate_in(size, "first_token"), "ms")
        assert row[3] == duration(size["inputs_wall_ms"])


@pytest.mark.parametrize(("family", "word"), [("internvl", "tile"), ("idefics3", "sub-image"), ("molmo", None)])
def test_a_page_says_once_in_its_words_what_a_familys_authors_call_a_crop(
    family: str, word: str | None, table: pd.DataFrame, tmp_path: Path
) -> None:
    study = {"study": "small", "subjects": {"fake": {"family": family, "preset": "nano"}}}
    page = parse(render(inputs_of(tmp_path, table, study=study)))
    meaning = next(dd for dt, dd in zip(page.find_all("dt"), page.find_all("dd"), strict=True) if dt.text == "crop")
    card = page.find("li", data_answer="crop")
    if word is None:
        assert "authors" not in meaning.text + card.text
    else:
        assert f"the authors of {family} call it a {word}" in meaning.text
        assert f"its authors call a crop a {word}" in card.text


@pytest.mark.parametrize(("attention", "said"), [("eager", "attention in matrix products"), ("sdpa", "sdpa attention")])
def test_eager_means_the_backend_alone(attention: str, said: str, table: pd.DataFrame, tmp_path: Path) -> None:
    subject = {"family": "molmo", "preset": "nano", "attention": attention, "backend": "eager"}
    page = parse(render(inputs_of(tmp_path, table, study={"study": "small", "subjects": {"fake": subject}})))
    what = page.find("p", class_="what").text
    assert f"{said}, backend eager" in what
    assert what.count("eager") == 1


def test_a_number_stays_with_its_unit_and_a_size_in_one_line() -> None:
    text = said("336 x 336 px: 37 % to 57 %, 1.70 ms (1.40 to 2.02), 5.17 times in 35 cells of `a 1 s`")
    assert '<span class="size">336 x 336\u00a0px</span>' in text
    for kept in ("37\u00a0%", "57\u00a0%", "1.70\u00a0ms", "5.17\u00a0times"):
        assert kept in text
    assert "<code>a 1 s</code>" in text, "it is for copying"
    assert "in 35 cells" in text, "any other space may be a line's end"


def test_only_claims_about_what_the_subject_is_and_has_are_shown(tmp_path: Path) -> None:
    table = table_of(tmp_path / "records", vision=None)
    text = page_of(tmp_path, table).find("section", id="claims").text
    assert "Doubling the output tokens" in text
    for absent in ("Short prefills are launch-bound", "table of vision tokens", "One request in a hundred", "server"):
        assert absent not in text


def test_claims_stand_there_with_verdict_words_and_numbers(page: Element, table: pd.DataFrame) -> None:
    claims = [claim for claim in judge_all(table, "fake", roofline=roofline_of(table)) if claim.concerns]
    shown = page.find("ul", class_="claims")
    items = [item for item in shown.children if isinstance(item, Element)]
    assert len(items) == len(claims)
    for item, claim in zip(items, claims, strict=True):
        assert item.find("span", class_="badge").text == claim.verdict
        assert claim.statement.split() == item.find_all("p")[0].text.split()
        assert [evidence.name for evidence in claim.evidence if evidence.name not in item.text] == []


def test_cells_are_listed_with_the_analysis_numbers(page: Element, table: pd.DataFrame) -> None:
    cells, runs = prefill_cells.vision_cells(table), decode_runs.decode(table)
    rows = page.find("div", data_grid="vision-fake").find("tbody").find_all("tr")
    assert len(rows) == len(cells)
    for row, (_, cell) in zip(rows, cells.iterrows(), strict=True):
        fields = [field.text for field in row.find_all("td")]
        assert fields[4] == with_interval(reading.estimate_in(cell, "plain_wall"), "ms")
        assert int(fields[1]) == cell["crops"]
    rows = page.find("div", data_grid="output-fake").find("tbody").find_all("tr")
    said = [row.find_all("td")[8].text for row in rows]
    assert said == [with_interval(reading.estimate_in(run, "decode"), "ms") for _, run in runs.iterrows()]


def test_answers_are_the_datasets_and_labelled_so(page: Element) -> None:
    photographs = page.find("div", data_grid="photographs-fake")
    assert "the dataset's answers" in photographs.find("thead").text
    assert "a cup" in photographs.find("tbody").text
    assert re.search(r"photograph 0, id \S", photographs.find("tbody").text), "as plan and predictions call it"
    assert re.search(r"photograph 0, id \S", page.find("div", data_grid="output-fake").find("tbody").text)
    assert "none of them is the model's" in page.find("section", id="output").text


def test_the_data_dictionary_is_the_tables_schema(page: Element) -> None:
    rows = page.find("div", data_grid="dictionary").find("tbody").find_all("tr")
    shown = [[field.text for field in row.find_all("td")] for row in rows]
    assert shown == [
        [column.name, column.dtype, column.unit, " ".join(column.description.split())] for column in COLUMNS
    ]


def test_environment_and_command_are_told(page: Element) -> None:
    text = page.find("section", id="reproduce").text
    for fact in ("2.00 GiB", "versions: torch 2", "snakemake --configfile study.yaml", "requirements.lock", "ab" * 32):
        assert fact in text
    assert "driver" not in text, "what is not known is left out"


def test_the_table_inside_the_page_is_the_table(page: Element, table: pd.DataFrame) -> None:
    found = json.loads(unpacked(page, "table-data"))
    assert list(found["columns"]) == [column.name for column in COLUMNS if column.dtype != "list"]
    kept = pd.Series(found["columns"]["median_ms"], dtype="float64")
    pd.testing.assert_series_equal(kept, table["median_ms"], check_names=False, check_exact=True)
    floors = pd.Series(found["floors_ms"], dtype="float64")
    assert floors.notna().sum() == len(roofline_of(table))
    decode = (table["phase"] == "decode").to_numpy()
    assert (kept[decode] / floors[decode]).tolist() == pytest.approx([DECODE_TIMES] * decode.sum())


def test_what_the_chart_offers_is_in_the_table(page: Element, table: pd.DataFrame) -> None:
    for kind, quantities in DRAWN.items():
        assert [quantity.name for quantity in quantities if rows_of(table, quantity, kind=kind).empty] == []
    series = json.loads("".join(map(str, page.find("script", id="series").children)))
    assert {kind: [one["label"] for one in own] for kind, own in series.items()} == {
        kind: [quantity.words for quantity in quantities] for kind, quantities in DRAWN.items()
    }


def test_the_chart_asks_by_the_words_of_the_experiments(page: Element, table: pd.DataFrame) -> None:
    told = json.loads("".join(map(str, page.find("script", id="questions").children)))
    assert told == [list(pair) for pair in questions()]
    assert set(table["experiment"]) <= {name for name, _ in told}


def test_the_limits_show_each_utilisation_in_its_own_column(page: Element, table: pd.DataFrame) -> None:
    """Of arithmetic (MFU) and of bandwidth (MBU): they differ in every row."""
    worked = beside(table, roofline_of(table))
    rows = {row[0]: row for row in grid_rows(page, "limits-fake")}
    assert {PLAIN_WALL.words, DECODE.words} < set(rows)
    for quantity, kind in ((PLAIN_WALL, PREFILL), (DECODE, GENERATION)):
        own = rows_of(worked, quantity, kind=kind)
        own = own[own["source"] == "measured"]
        mfu, mbu = (percent(float(own[name].median())) for name in ("mfu_fraction", "mbu_fraction"))
        assert mfu != mbu
        assert rows[quantity.words][-2:] == [mfu, mbu]


# What it is made of


def test_nothing_is_loaded_from_anywhere(page: Element) -> None:
    for element in page:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            address = element.attributes.get(name, "#")
            assert address.startswith(("#", "data:image/svg+xml,")), f"{element.tag} {name} {address[:60]}"
    assert not page.find_all("link")
    assert not [match for style in page.find_all("style") for match in re.findall(r"url\(|@import", str(style))]
    policy = page.find("meta", http_equiv="Content-Security-Policy").attributes["content"]
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_links_lead_somewhere_and_names_are_unique(page: Element) -> None:
    names = [element.attributes["id"] for element in page if "id" in element.attributes]
    assert len(names) == len(set(names))
    links = {element.attributes["href"].removeprefix("#") for element in page.find_all("a")}
    assert links - set(names) == set()


def test_a_screen_reader_finds_its_way(page: Element) -> None:
    assert page.find("html").attributes["lang"] == "en"
    assert [len(page.find_all(tag)) for tag in ("h1", "header", "nav", "main", "footer")] == [1] * 5
    first_link = page.find("body").find_all("a")[0]
    assert first_link.attributes == {"class": "skip", "href": "#main"}
    levels = [int(element.tag[1]) for element in page if re.fullmatch(r"h[1-6]", element.tag)]
    assert [later for earlier, later in pairwise(levels) if later > earlier + 1] == [], "no level is left out"
    for region in page.find_all("div", role="region"):
        assert region.attributes["aria-label"]
        assert region.attributes["tabindex"] == "0", "what scrolls can be reached by keyboard"
    inside_labels = {
        id(field) for label in page.find_all("label") for field in label if field.tag in ("input", "select")
    }
    assert {id(field) for field in page if field.tag in ("input", "select")} == inside_labels


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_text_is_readable_on_its_ground_in_light_and_in_dark() -> None:
    """WCAG 2.2, level AA: 4.5 for text, 3 for the colours of a figure."""
    schemes = re.findall(r":root \{(.*?)\}", (PAGE / "report.css").read_text(encoding="utf-8"), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6});", scheme))
        for text in ("text", "soft", "link"):
            assert contrast(colours[text], colours["ground"]) >= 4.5, text
            assert contrast(colours[text], colours["panel"]) >= 4.5, text
        for kind in ("good", "bad", "open"):
            assert contrast(colours[kind], colours[f"{kind}-ground"]) >= 4.5, kind
            assert contrast(colours["text"], colours[f"{kind}-ground"]) >= 4.5, kind
    ground = DARK_COLOURS["#ffffff"]
    for light in {colour.lower() for colour in style.COLOURS.values()}:
        assert contrast(DARK_COLOURS[light], ground) >= 4.5, light


def test_figures_follow_light_and_dark_and_keep_their_own_colours_otherwise() -> None:
    following = follow_the_reader(PLAIN_SVG)
    ElementTree.fromstring(following)
    assert "fill: var(--cffffff,#ffffff)" in following
    assert "fill: var(--c0072b2,#0072b2)" in following
    assert "--c0072b2:" + DARK_COLOURS["#0072b2"] in following
    back = re.sub(r"<style>.*?</style>", "", re.sub(r"var\(--c\w+,(#\w+)\)", r"\1", following))
    assert back.lower() == PLAIN_SVG.lower()


def test_a_figure_survives_being_packed(page: Element) -> None:
    source = page.find("figure", id="fake-two_methods").find("img").attributes["src"]
    svg = ElementTree.fromstring(unquote(source.partition(",")[2]))
    assert [child.tag.rpartition("}")[2] for child in svg] == ["style", "rect", "rect"]


def test_the_same_inputs_give_the_same_page(table: pd.DataFrame, tmp_path: Path) -> None:
    inputs = inputs_of(tmp_path, table)
    assert render(inputs) == render(inputs)
    write(inputs, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(inputs)


def test_the_page_stays_small(table: pd.DataFrame, tmp_path: Path) -> None:
    """Without figures: 2 MB, nearly all of it the packed plotly.js."""
    assert len(render(inputs_of(tmp_path, table))) < 2.5e6


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \"quotes\" 'too' {{ 7 * 7 }}"


def test_html_in_questions_names_answers_and_captions_is_shown_as_text(table: pd.DataFrame, tmp_path: Path) -> None:
    hostile = table.copy()
    photographs = hostile["question"].notna()
    for column in ("question", "image_id", "question_id"):
        hostile.loc[photographs, column] = HOSTILE
    hostile.loc[photographs, "answers"] = json.dumps([HOSTILE])
    hostile["device_model"] = hostile["commit"] = hostile["disturbances"] = HOSTILE
    study = {"study": HOSTILE, "subjects": {"fake": {"family": "molmo", "weights": HOSTILE}}}
    inputs = inputs_of(
        tmp_path,
        hostile,
        study=study,
        environment={"platform": HOSTILE, HOSTILE: 1},
        captions={"two_methods": HOSTILE, "three_clocks": f"Not drawn: {HOSTILE}"},
    )
    claims = json.loads(inputs.claims.read_bytes())
    for claim in claims["fake"]:
        claim["statement"] = claim["claim"] = claim["evidence"] = HOSTILE
        claim["evidence"] = [{"name": HOSTILE, "value": 1.0, "low": None, "high": None, "unit": HOSTILE}]
    inputs.claims.write_text(json.dumps(claims), encoding="utf-8")
    page = parse(render(replace(inputs, reproduction=replace(inputs.reproduction, command=HOSTILE, lock=HOSTILE))))

    ours = {"table-data", "plotly-source", "series", "questions", ""}
    assert {script.attributes.get("id", "") for script in page.find_all("script")} == ours
    assert len(page.find_all("script")) == len(ours)
    assert [element.tag for element in page for name in element.attributes if name.startswith("on")] == []
    assert all(image.attributes["src"].startswith("data:") for image in page.find_all("img"))
    as_text = " ".join(HOSTILE.split())
    for where in ("output", "claims", "reproduce", "vision"):
        assert as_text in page.find("section", id=where).text, where
    assert as_text in page.find("figure", id="fake-two_methods").find("img").attributes["alt"]


# What is missing


def missing_in(page: Element) -> str:
    return page.find("div", class_="missing").text


def test_nothing_is_shown_that_the_study_did_not_ask_for(tmp_path: Path) -> None:
    none = dict.fromkeys(FIGURES, "Not drawn: there is nothing to draw.")
    vision = page_of(tmp_path / "a", table_of(tmp_path / "1", output=None), captions=none)
    assert "output tokens" not in missing_in(vision)
    for absent in ("output_token", "first_token", "slow_request"):
        assert not vision.find_all("li", data_answer=absent)
    sections = {section.attributes.get("id") for section in vision.find_all("section")}
    assert {"vision", "claims", "session"} <= sections
    assert not {"output", "distribution", "limits"} & sections
    linked = {link.attributes["href"] for link in vision.find("nav").find_all("a")}
    assert not {"#output", "#distribution", "#limits"} & linked
    output = page_of(tmp_path / "b", table_of(tmp_path / "2", vision=None), captions=none)
    assert "image" not in missing_in(output)
    assert not output.find_all("li", data_answer="crop")


def test_a_bar_is_of_output_lengths_that_were_run(tmp_path: Path) -> None:
    """A run of 16 tokens tells of 8 as well, and nobody asked for these."""
    output = {"output_tokens": [16], "sampling": {"min_samples": 5, "max_samples": 5}}
    page = page_of(tmp_path, table_of(tmp_path / "records", vision=None, output=output))
    titles = [bar.find("h3").text for bar in page.find_all("div", class_="share")]
    assert ["16 output" in title for title in titles] == [True]


def test_a_study_of_one_cell_is_a_page(tmp_path: Path) -> None:
    table = table_of(tmp_path / "records", runner=CpuLikeRunner(), vision={"tilings": ["2x2"]}, output=None)
    page = page_of(tmp_path, table, draw=True)
    assert "every image is cut into 5 crops" in page.find("li", data_answer="crop").text
    assert len(page.find("div", data_grid="vision-fake").find("tbody").find_all("tr")) == 1
    absent = page.find("section", id="vision").find("details", class_="absent").text
    assert "Prefill = a crops + b tokens + c" in absent
    assert not page.find_all("figure", id="fake-two_factors")


def test_cells_out_of_memory_are_listed_with_their_reason(tmp_path: Path) -> None:
    table = table_of(tmp_path / "records", runner=FakeRunner(fail={"vision": out_of_memory}))
    page = page_of(tmp_path, table)
    rows = page.find("div", data_grid="left-out-fake").find("tbody").find_all("tr")
    lost = reading.left_out(table)
    assert len(rows) == len(lost) > 0
    assert "out of device memory" in rows[0].text
    assert str(lost["reason"].iloc[0]) in rows[0].text
    assert f"{len(lost)} cells could not be measured" in missing_in(page)


def test_a_table_of_failed_cells_alone_is_a_page_that_trusts_nothing(tmp_path: Path) -> None:
    table = table_of(tmp_path / "records", runner=FakeRunner(fail={"vision": out_of_memory}), output=None)
    page = page_of(tmp_path, table)
    assert "Do not rely on these numbers." in page.find("section", class_="answers").text
    assert "no cell was measured" in page.find("section", id="session").text


def test_a_subject_that_was_never_measured_is_named(table: pd.DataFrame, tmp_path: Path) -> None:
    both = {**STUDY["subjects"], "other": {"family": "molmo"}}
    page = page_of(tmp_path, table, study={**STUDY, "subjects": both})
    answers = page.find("section", class_="answers", data_subject="other").text
    assert "device not known" in answers
    assert "no cell was measured" in answers
    assert [option.text for option in page.find("select", id="subject").find_all("option")] == [
        "all 2",
        "fake",
        "other",
    ]
    side_by_side = page.find("div", data_grid="overview").find("tbody").find_all("tr")
    assert [row.find_all("td")[0].text for row in side_by_side] == ["fake", "other"]


def test_numbers_that_are_not_there_are_left_empty(table: pd.DataFrame, tmp_path: Path) -> None:
    gaps = table.copy()
    numbers = ["median_ms", "low_ms", "high_ms"]
    gaps.loc[gaps["arm"] == "busy", numbers] = float("nan")
    page = page_of(tmp_path, gaps, roofline=roofline_of(gaps))
    assert "nan" not in page.find("main").text.lower().split()
    json.loads(unpacked(page, "table-data"), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_a_cost_that_may_be_nothing_is_not_known(tmp_path: Path) -> None:
    """Crops that cost nothing, under noise: the interval holds 0, and the card says what would make the cost known."""
    runner = FakeRunner(noise_fraction=0.2, per_crop_ms={}, per_token_ms={"llm_blocks": 0.02, "decode_step": 0.001})
    table = table_of(tmp_path / "records", runner=runner, output=None)
    card = page_of(tmp_path, table).find("li", data_answer="crop")
    assert card.find("p", class_="value").text == "not known"
    note = card.find("p", class_="note").text
    assert "interval holds 0" in note
    assert "to know it, measure more rounds" in note


def test_flagged_cells_carry_their_flags(table: pd.DataFrame, tmp_path: Path) -> None:
    flagged = table.copy()
    first = flagged["cell_id"] == prefill_cells.vision_cells(table)["cell_id"].iloc[0]
    flagged.loc[first, "drifted"] = True
    flagged.loc[first, "disturbed_samples"] = 2
    page = page_of(tmp_path, flagged)
    rows = page.find("div", data_grid="vision-fake").find("tbody").find_all("tr")
    assert rows[0].find_all("td")[-1].text == "sentinel drifted; 2 of 9 rounds disturbed"
    assert rows[1].find_all("td")[-1].text == ""
    assert "the sentinel had drifted around 1 of" in page.find("section", class_="answers").text


def test_without_limits_environment_and_figures_the_page_says_that_they_are_missing(
    table: pd.DataFrame, tmp_path: Path
) -> None:
    inputs = inputs_of(tmp_path, table)
    gone = FigureFiles(tmp_path / "gone.svg", tmp_path / "gone.txt")
    page = parse(render(replace(inputs, figures={"fake": {"vision_by_tokens": gone}})))
    assert "limits were not measured" in missing_in(page)
    assert "Not known." in page.find("section", id="reproduce").text
    assert not page.find_all("figure")
    assert "this figure was not made" in page.find("section", id="vision").text


@pytest.mark.parametrize("name", ["answers", "claims", "environments", "roofline", "table"])
def test_a_file_that_cannot_be_read_is_named(table: pd.DataFrame, tmp_path: Path, name: str) -> None:
    inputs = inputs_of(tmp_path, table, environment=ENVIRONMENT, roofline=roofline_of(table))
    path: Path = getattr(inputs, name)
    path.write_text("no such thing", encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(path.name)):
        render(inputs)


# Many requests, and the components


@pytest.fixture(scope="module")
def requests_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Element, pd.DataFrame]:
    folder = tmp_path_factory.mktemp("requests")
    table = table_of(
        folder / "records", runner=FakeRunner(noise_fraction=0.01), vision=None, output=None, latency=LATENCY
    )
    thumbnails = folder / "thumbnails.json"
    thumbnails.write_text(json.dumps({"fake": {str(index): THUMBNAIL for index in range(6)}}))
    inputs = inputs_of(folder, table, roofline=roofline_of(table))
    return parse(render(replace(inputs, thumbnails=thumbnails))), table


THUMBNAIL = "data:image/jpeg;base64,/9j/4AAQ"
ODD = THUMBNAIL + '"><b>'


def test_percentiles_stand_there_with_their_intervals(requests_page: tuple[Element, pd.DataFrame]) -> None:
    page, table = requests_page
    values = distribution.sample_of(table).requests["whole_request_ms"].to_numpy()
    found = [with_interval(one, "ms") for one in distribution.percentiles(values).values() if one]
    first = grid_rows(page, "percentiles-fake")[0]
    assert first[1:6] == ["320", *found]


def test_the_slowest_requests_are_shown_with_their_photographs(requests_page: tuple[Element, pd.DataFrame]) -> None:
    page, table = requests_page
    rows = grid_rows(page, "slowest-fake")
    assert len(rows) == 10
    worst = distribution.slowest(distribution.sample_of(table)).iloc[0]
    assert rows[0][0] == f"photograph {worst['image_index']}, id {worst['image_id']}", "as in all other tables"
    assert rows[0][1] == worst["question"]
    assert rows[0][10] == "64"
    pictures = page.find_all("img", class_="thumbnail")
    assert [image.attributes["src"] for image in pictures] == [THUMBNAIL] * 10


def test_only_a_picture_is_taken_for_a_thumbnail(tmp_path: Path) -> None:
    table = table_of(tmp_path / "records", vision=None, output=None, latency={"samples": 12})
    (tmp_path / "t.json").write_text(json.dumps({"fake": {"0": "https://example.org/x.jpg", "1": ODD}}))
    page = parse(render(replace(inputs_of(tmp_path, table), thumbnails=tmp_path / "t.json")))
    sources = {image.attributes["src"] for image in page.find_all("img", class_="thumbnail")}
    assert sources == {ODD}, "one attribute, whatever is in it"


def test_a_question_of_a_slow_request_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.studies.QUESTION", "<script>alert(1)</script>")
    table = table_of(tmp_path / "records", vision=None, output=None, latency={"samples": 12})
    page = parse(render(inputs_of(tmp_path, table)))
    assert grid_rows(page, "slowest-fake")[0][1] == "<script>alert(1)</script>"


def test_components_are_listed_with_their_shares(requests_page: tuple[Element, pd.DataFrame]) -> None:
    page, _ = requests_page
    rows = grid_rows(page, "components-fake")
    assert [row[0] for row in rows] == [
        "vision encoder",
        "projector",
        "embedding, merge",
        "LLM blocks",
        "head",
        "decode",
    ]
    assert rows[0][1:3] == ["1,000", "16 %"]
    assert rows[5][1:3] == ["", ""], "decode has no parameters of its own"
    assert "no energy counter of the device was read" in page.text


def test_a_study_without_requests_says_so(page: Element) -> None:
    assert "No request was measured" in page.find("section", id="distribution").text
