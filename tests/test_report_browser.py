"""The report in a real browser with the network cut: it is quiet, everything shows, what can be done works."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import WIDTHS_PX, chromium, opened, outside
from tests.support.fakes import FakeRunner
from tests.support.reports import inputs_of, roofline_of
from tests.support.tables import LATENCY, OF_SERVERS, CpuLikeRunner, table_of
from vlmeter.analysis import prefill_cells
from vlmeter.figures import style
from vlmeter.figures.registry import FIGURES
from vlmeter.report.page import write
from vlmeter.report.pictures import DARK_COLOURS
from vlmeter.table.columns import COLUMNS
from vlmeter.table.kinds import OTHERWISE, PREFILL

OF_MODELS = [name for name in FIGURES if name not in OF_SERVERS]

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.xdist_group("browser")]

#: What a report with every figure may weigh; mail servers take ten.
LARGEST_BYTES = 8e6

#: Widths at which people read the page, in CSS px.
READ_AT_PX = (390, 1000, 1400)

#: Smallest letters of a figure (tests/test_figure_looks.py).
LEAST_POINTS = 7.0


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    runner = FakeRunner(noise_fraction=0.01, launch_ms={"vision_encoder": 4.0})
    return table_of(tmp_path_factory.mktemp("records"), runner=runner, latency=LATENCY)


@pytest.fixture(scope="module")
def report(table: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every figure drawn."""
    folder = tmp_path_factory.mktemp("report")
    environment = {"device_model": "fake device", "versions": {"torch": "2"}}
    inputs = inputs_of(folder, table, draw=True, environment=environment, roofline=roofline_of(table))
    write(inputs, folder / "report.html")
    return folder / "report.html"


@pytest.fixture
def page(browser: Browser, report: Path) -> Iterator[Page]:
    with opened(browser, report) as (page, witness):
        yield page
        assert witness.complaints == []
        assert outside(witness, report) == []


def chart(page: Page) -> Any:
    """Wait for the chart, and return what it shows; on a phone its section is unfolded first."""
    page.locator("#explore").scroll_into_view_if_needed()
    if page.locator("#explore.folded").count():
        page.locator("#explore .fold").click()
    expect(page.locator("#chart .main-svg").first).to_be_visible(timeout=20_000)
    return page.evaluate("({data: chart.data, layout: chart.layout})")


def downloaded(page: Page, button: str) -> tuple[str, str]:
    with page.expect_download() as download:
        page.locator(button).click()
    return download.value.suggested_filename, Path(download.value.path()).read_text(encoding="utf-8")


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width_px", WIDTHS_PX)
def test_the_page_fits_is_quiet_and_asks_for_nothing(
    browser: Browser, report: Path, width_px: int, scheme: str
) -> None:
    with opened(browser, report, width_px=width_px, color_scheme=scheme) as (page, witness):
        chart(page)
        assert page.evaluate("document.documentElement.scrollWidth") == width_px, "nothing sticks out to the right"
        assert witness.complaints == []
        assert outside(witness, report) == []


def test_nothing_can_be_fetched_even_with_a_network(browser: Browser, report: Path) -> None:
    with opened(browser, report) as (page, witness):
        page.context.set_offline(False)
        refused = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'fetched', (error) => error.message)")
        assert refused == "Failed to fetch"
        assert any("Content Security Policy" in complaint for complaint in witness.complaints)


def test_the_report_can_be_sent_by_mail(report: Path) -> None:
    assert report.stat().st_size < LARGEST_BYTES


def test_every_figure_shows(page: Page) -> None:
    assert page.locator("figure").count() == len(OF_MODELS)
    for name in OF_MODELS:
        image = page.locator(f"#fake-{name} img")
        image.scroll_into_view_if_needed()
        expect(image).to_be_visible()
        assert image.evaluate("image => image.complete && image.naturalWidth > 100"), name
        assert image.bounding_box()["width"] > 600, f"{name} is large enough to read"  # type: ignore[index]


def test_the_answers_are_on_the_first_screen(page: Page) -> None:
    cards = page.locator(".card")
    assert cards.count() == 12
    for place in range(4):
        box = cards.nth(place).bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= 900
    assert len({cards.nth(place).bounding_box()["y"] for place in range(4)}) == 1, "four in a row"  # type: ignore[index]
    expect(page.locator(".what")).to_contain_text("random weights")
    expect(page.locator("#fake-first_token_by_size")).to_be_in_viewport()


@pytest.mark.parametrize("width_px", READ_AT_PX)
def test_figures_have_their_real_size_and_so_do_their_letters(browser: Browser, report: Path, width_px: int) -> None:
    """As wide as they were drawn and not much wider; what is wider than its column lies in a frame that scrolls."""
    with opened(browser, report, width_px=width_px) as (page, _):
        page.evaluate("document.querySelectorAll('.folded').forEach((part) => fold(part, false))")
        shown = page.evaluate(
            """() => [...document.querySelectorAll("figure")].map((figure) => {
                const [image, frame] = [figure.querySelector("img"), figure.querySelector(".frame")];
                return [figure.id, image.getBoundingClientRect().width, frame.getBoundingClientRect().width,
                    figure.getBoundingClientRect().width, getComputedStyle(frame).overflowX];
            })"""
        )
    assert len(shown) == len(OF_MODELS)
    drawn_px = 96 * style.WIDTH_IN
    for name, image_px, frame_px, column_px, overflow in shown:
        least_letters_px = LEAST_POINTS * 96 / 72 * image_px / drawn_px
        assert least_letters_px >= 9, f"{name} is {image_px} px wide"
        assert image_px <= 1.1 * drawn_px, name
        assert frame_px <= column_px <= width_px, name
        assert image_px <= frame_px + 1 or overflow == "auto", name


#: Boxes of the words that are seen, by the elements whose own they are; what scrolls is looked at by itself.
BOXES_JS = """() => {
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const own = node.parentElement;
        if (!node.textContent.trim() || !own.checkVisibility({ visibilityProperty: true })) continue;
        if (own.closest("script, style, option, .scroll, pre, .skip, #chart")) continue;
        const range = document.createRange();
        range.selectNodeContents(node);
        for (const box of range.getClientRects())
            found.push({ text: node.textContent.trim().slice(0, 40), left: box.left, right: box.right,
                top: box.top + scrollY, bottom: box.bottom + scrollY });
    }
    return found;
}"""


@pytest.mark.parametrize("width_px", READ_AT_PX)
def test_no_words_of_the_page_overlap_or_lie_beside_the_screen(browser: Browser, report: Path, width_px: int) -> None:
    with opened(browser, report, width_px=width_px) as (page, _):
        page.evaluate("document.querySelectorAll('.folded').forEach((part) => fold(part, false))")
        page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        page.wait_for_timeout(300)
        boxes = sorted(page.evaluate(BOXES_JS), key=lambda box: box["top"])
    assert len(boxes) > 500
    assert [box["text"] for box in boxes if box["left"] < 0 or box["right"] > width_px + 0.5] == []
    over = []
    for place, one in enumerate(boxes):
        for other in boxes[place + 1 :]:
            if other["top"] > one["bottom"] - 3:
                break  # lines may be a little closer than the letters are high
            if min(one["right"], other["right"]) - max(one["left"], other["left"]) > 1:
                over.append((one["text"], other["text"]))
    assert over == []


def test_code_in_a_sentence_is_code_and_a_size_stays_in_one_line(page: Page) -> None:
    assert page.locator("main").evaluate("main => main.innerText.includes('`')") is False
    assert page.locator("main p code, main li code, main figcaption code, main td code").count() > 0
    sizes = page.locator(".card .size")
    assert sizes.count() > 0
    assert {sizes.nth(place).evaluate("size => size.getClientRects().length") for place in range(sizes.count())} == {1}


def test_every_series_of_the_chart_has_a_mark_of_its_own(page: Page) -> None:
    shown = chart(page)["data"]
    for box in page.locator("#controls [name=phase]").all():
        box.check()
    shown = chart(page)["data"]
    marks = [trace["marker"]["symbol"] for trace in shown]
    assert len(set(marks)) == len(marks) > 5
    glyphs = page.locator("#controls .mark").all_inner_texts()
    assert len(set(glyphs)) == len(glyphs) == page.locator("#controls [name=phase]").count()


@pytest.mark.parametrize("width_px", READ_AT_PX)
def test_no_word_of_menu_cards_and_headings_is_cut(browser: Browser, report: Path, width_px: int) -> None:
    """Text boxes lie inside the window and inside what holds them, and the menu shows all of its links."""
    with opened(browser, report, width_px=width_px) as (page, _):
        cut = page.evaluate(
            """() => [...document.querySelectorAll("nav a, .card > *, h1, h2, h3, h4, .key li")]
                .filter((part) => part.getClientRects().length)
                .filter((part) => {
                    const box = part.getBoundingClientRect();
                    return box.left < 0 || box.right > innerWidth || part.scrollWidth > part.clientWidth + 1
                        && getComputedStyle(part).display !== "inline";
                })
                .map((part) => part.textContent.trim())"""
        )
        assert cut == []


@pytest.mark.parametrize("width_px", [390, 1000])
def test_what_is_wider_than_the_page_says_that_it_scrolls(browser: Browser, report: Path, width_px: int) -> None:
    with opened(browser, report, width_px=width_px) as (page, _):
        page.evaluate("document.querySelectorAll('.folded').forEach((part) => fold(part, false))")
        page.wait_for_function(
            """() => [...document.querySelectorAll(".scroll, .frame")].filter((part) => part.checkVisibility())
                .every((part) => part.scrollWidth > part.clientWidth + 1 === !part.previousElementSibling.hidden)""",
            timeout=20_000,
        )
        says = page.locator(".hint:visible").count()
        assert says > 0 if width_px == 390 else says >= 0


def test_on_a_phone_sections_are_folded_and_a_link_or_a_tap_opens_them(browser: Browser, report: Path) -> None:
    with opened(browser, report, width_px=390) as (page, _):
        assert page.evaluate("document.documentElement.scrollHeight") < 8000
        expect(page.locator(".answers .card").first).to_be_visible()
        expect(page.locator("#claims .claims")).to_be_hidden()
        page.locator("nav a[href='#claims']").click()
        expect(page.locator("#claims .claims").first).to_be_visible()
        button = page.locator("#vision .fold")
        assert button.get_attribute("aria-expanded") == "false"
        button.click()
        assert button.get_attribute("aria-expanded") == "true"
        expect(page.locator("#fake-vision_by_tokens")).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_from_their_ground(browser: Browser, report: Path, scheme: str) -> None:
    """WCAG 2.2 asks for 4.5 to 1."""
    with opened(browser, report, color_scheme=scheme) as (page, _):
        found = page.evaluate(
            """() => {
                const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
                const light = ([r, g, b]) => [r, g, b].map((part) => part / 255)
                    .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
                    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
                const ground = (part) => {
                    for (; part; part = part.parentElement) {
                        const colour = rgb(getComputedStyle(part).backgroundColor);
                        if (colour.length < 4 || colour[3] > 0) return colour;
                    }
                    return [255, 255, 255];
                };
                const own = (part) => [...part.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
                return [...document.querySelectorAll("body *")]
                    .filter((part) => own(part) && part.checkVisibility() && !part.closest("#chart, script, .mark"))
                    .map((part) => {
                        const both = [light(rgb(getComputedStyle(part).color)), light(ground(part))];
                        const ends = both.sort((a, b) => b - a);
                        return [(ends[0] + 0.05) / (ends[1] + 0.05), part.className || part.tagName];
                    }).filter(([ratio]) => ratio < 4.5);
            }"""
        )
        assert found == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_have_the_ground_of_the_page(browser: Browser, report: Path, scheme: str) -> None:
    with opened(browser, report, color_scheme=scheme) as (page, _):
        colour = page.locator("#fake-two_methods img").evaluate(
            """image => {
                const canvas = document.createElement("canvas");
                const pen = canvas.getContext("2d");
                pen.drawImage(image, 0, 0);
                return [...pen.getImageData(2, 2, 1, 1).data].slice(0, 3);
            }"""
        )
    wanted = "#ffffff" if scheme == "light" else DARK_COLOURS["#ffffff"]
    assert "#" + "".join(f"{part:02x}" for part in colour) == wanted


def test_scales_switch_between_linear_and_logarithmic(page: Page) -> None:
    assert [chart(page)["layout"][f"{axis}axis"]["type"] for axis in "xy"] == ["linear", "linear"]
    page.locator("#controls [name=y][value=log]").check()
    page.locator("#controls [name=x][value=log]").check()
    assert [chart(page)["layout"][f"{axis}axis"]["type"] for axis in "xy"] == ["log", "log"]


def test_the_chart_draws_the_tables_medians_and_intervals(page: Page, table: pd.DataFrame) -> None:
    drawn = {trace["name"]: trace for trace in chart(page)["data"]}
    rows = table[(table["kind"] == "prefill") & (table["arm"] == "plain")]
    rows = rows[(rows["phase"] == "total") & (rows["clock"] == "wall")].sort_values("vision_tokens", kind="stable")
    trace = drawn["whole prefill, as a user waits"]
    assert trace["x"] == rows["vision_tokens"].tolist()
    assert trace["y"] == rows["median_ms"].tolist()
    upper = [value + length for value, length in zip(trace["y"], trace["error_y"]["array"], strict=True)]
    assert upper == pytest.approx(rows["high_ms"].tolist())


def test_a_chart_of_one_count_has_its_tick_there_and_offers_what_was_measured(browser: Browser, tmp_path: Path) -> None:
    table = table_of(tmp_path / "records", vision={"tilings": ["2x2"]}, output=None, runner=CpuLikeRunner())
    write(inputs_of(tmp_path, table), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as (page, _):
        shown = chart(page)
        tokens = int(table["vision_tokens"].dropna().iloc[0])
        assert shown["layout"]["xaxis"]["tickvals"] == [tokens]
        low, high = shown["layout"]["xaxis"]["range"]
        assert low < tokens < high
        offered = page.locator("#controls .phases label").all_inner_texts()
        assert len(offered) > 4
        assert not any("busy" in name for name in offered), "a processor has no busy time"


def test_a_printed_table_has_headings_of_the_size_of_its_numbers(browser: Browser, report: Path) -> None:
    with opened(browser, report) as (page, _):
        page.emulate_media(media="print")
        sizes = page.evaluate(
            """() => ["th", "th button", "td"]
                .map((part) => getComputedStyle(document.querySelector(`.grid ${part}`)).fontSize)"""
        )
        assert len(set(sizes)) == 1


def test_a_long_remark_does_not_make_a_row_many_lines_high(
    browser: Browser, table: pd.DataFrame, tmp_path: Path
) -> None:
    disturbed = table.assign(drifted=True, remeasured=True, disturbed_samples=3, warmup_settled=False)
    disturbed["stop_reason"] = disturbed["stop_reason"].mask(disturbed["stop_reason"].notna(), "time_cap")
    write(inputs_of(tmp_path, disturbed), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html", width_px=1400) as (page, _):
        lines = page.evaluate(
            """() => [...document.querySelectorAll("[data-grid=vision-fake] tbody tr")]
                .map((row) => row.clientHeight / parseFloat(getComputedStyle(row).lineHeight))"""
        )
    assert len(lines) == 12
    assert max(lines) < 4


def test_the_chart_leaves_out_prefills_whose_pictures_were_sent_otherwise(
    browser: Browser, table: pd.DataFrame, tmp_path: Path
) -> None:
    prefills = sorted(table.loc[table["kind"] == PREFILL, "cell_id"].unique())
    otherwise = table["cell_id"].isin(prefills[:3])  # the first row of the experiment among them
    write(inputs_of(tmp_path, table.assign(kind=table["kind"].mask(otherwise, OTHERWISE))), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as (page, _):
        drawn = chart(page)["data"][0]
    assert drawn["name"] == "whole prefill, as a user waits"
    assert len(drawn["x"]) == len(prefills) - 3


def test_phases_experiments_and_axes_can_be_chosen(page: Page) -> None:
    assert [trace["name"] for trace in chart(page)["data"]] == [
        "whole prefill, as a user waits",
        "vision encoder",
        "LLM blocks",
    ]
    page.get_by_label("projector").check()
    page.get_by_label("LLM blocks").uncheck()
    names = [trace["name"] for trace in chart(page)["data"]]
    assert names == ["whole prefill, as a user waits", "vision encoder", "projector"]
    page.get_by_label("show the floor").check()
    assert [trace["name"] for trace in chart(page)["data"]][1] == "floor of whole prefill, as a user waits"
    page.get_by_label("Horizontal axis").select_option("crops")
    assert chart(page)["layout"]["xaxis"]["title"]["text"] == "crops"
    page.get_by_label("Experiment").select_option("output_tokens")
    shown = chart(page)
    assert shown["layout"]["xaxis"]["title"]["text"] == "output tokens"
    assert shown["data"][0]["name"] == "decode, all steps"
    assert set(shown["data"][0]["x"]) == {8, 16, 32, 64}


def test_a_point_tells_its_number_with_interval_counts_and_samples(page: Page) -> None:
    chart(page)
    page.evaluate("Plotly.Fx.hover('chart', [{curveNumber: 0, pointNumber: 2}])")
    told = page.locator("#chart .hoverlayer").text_content() or ""
    for part in ("whole prefill, as a user waits", " ms (", " to ", "crops", "vision tokens", "tiling", "9 samples"):
        assert part in told


def test_a_table_sorts_both_ways_by_number(page: Page, table: pd.DataFrame) -> None:
    grid = page.locator("[data-grid=vision-fake]")
    heading = grid.get_by_role("button", name="whole prefill")
    medians = prefill_cells.vision_cells(table)["plain_wall_ms"]

    def shown() -> list[float]:
        return grid.locator("tbody tr td:nth-child(5)").evaluate_all("cells => cells.map(c => Number(c.dataset.key))")

    heading.click()
    assert shown() == sorted(medians)
    assert grid.locator("th[aria-sort=ascending]").count() == 1
    heading.press("Enter")
    assert shown() == sorted(medians, reverse=True)
    assert grid.locator("th[aria-sort=descending]").inner_text().startswith("whole prefill")


def test_a_table_filters_by_words_and_gives_what_it_shows(page: Page) -> None:
    grid = page.locator("[data-grid=output-fake]")
    grid.get_by_label("Filter").fill("1003 by itself")
    expect(grid.locator("output")).to_have_text("4 of 24 rows")
    assert grid.locator("tbody tr:visible").count() == 4
    name, text = downloaded(page, "[data-grid=output-fake] [data-csv]")
    assert name == "output-fake.csv"
    rows = read_csv(text)
    assert {row["image"] for row in rows} == {"photograph 3, id 1003"}
    assert [row["output tokens"] for row in rows] == ["8", "16", "32", "64"]


def test_the_table_downloads_as_csv_and_as_json(page: Page, table: pd.DataFrame) -> None:
    names = [column.name for column in COLUMNS if column.dtype != "list"]
    name, text = downloaded(page, "#table-csv")
    rows = read_csv(text)
    assert name == "table.csv"
    assert list(rows[0]) == names
    assert [float(row["median_ms"]) for row in rows] == table["median_ms"].tolist()
    assert [row["question"] for row in rows] == table["question"].fillna("").tolist()
    name, text = downloaded(page, "#table-json")
    assert name == "table.json"
    assert [row["median_ms"] for row in json.loads(text)] == table["median_ms"].tolist()


def test_a_figure_downloads_as_it_was_drawn(page: Page, report: Path) -> None:
    name, text = downloaded(page, "#fake-decode_log [data-svg]")
    assert name == "fake-decode_log.svg"
    assert "var(" not in text
    assert "prefers-color-scheme" not in text
    drawn = ElementTree.parse(report.parent / "figures" / "fake" / "decode_log" / "decode_log.svg").getroot()
    count = sum(1 for element in drawn.iter() if element.tag.endswith(("}path", "}use", "}g")))
    found = ElementTree.fromstring(text)
    assert sum(1 for element in found.iter() if element.tag.endswith(("}path", "}use", "}g"))) == count


def test_the_chart_downloads_as_a_vector_picture(page: Page) -> None:
    chart(page)
    name, text = downloaded(page, "#chart-svg")
    assert name == "chart.svg"
    assert ElementTree.fromstring(text).tag == "{http://www.w3.org/2000/svg}svg"


def test_claims_can_be_looked_at_by_verdict(page: Page) -> None:
    claims = page.locator("ul.claims > li")
    every = claims.count()
    page.locator("[data-verdicts] [data-verdict=holds]").click()
    visible = page.locator("ul.claims > li:visible")
    assert 0 < visible.count() < every
    assert visible.count() == page.locator("ul.claims > li[data-verdict=holds]").count()
    page.locator("[data-verdicts] [data-verdict='']").click()
    assert page.locator("ul.claims > li:visible").count() == every


def test_evidence_leads_to_the_figure_behind_it(page: Page) -> None:
    item = page.locator("ul.claims > li").filter(has=page.locator("a[href='#fake-two_methods']")).first
    item.get_by_text("Evidence").click()
    item.locator("a[href='#fake-two_methods']").click()
    expect(page.locator("#fake-two_methods img")).to_be_in_viewport()


def test_the_keyboard_reaches_the_answers_first(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_on_paper_everything_is_unfolded_and_nothing_to_click_is_left(page: Page) -> None:
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator("details:not([open])").count() == 0
    for selector in ("nav", "#explore", "[data-svg]", ".tools"):
        assert page.locator(f"{selector}:visible").count() == 0, selector
    assert page.locator("figure img:visible").count() == len(OF_MODELS)
    assert page.locator(".scroll").first.evaluate("part => getComputedStyle(part).overflowY") == "visible"


def test_without_scripts_numbers_figures_and_tables_are_there(browser: Browser, report: Path) -> None:
    with opened(browser, report, java_script_enabled=False) as (page, _):
        expect(page.locator(".card").first).to_be_visible()
        expect(page.get_by_text("a browser that runs scripts")).to_be_visible()
        assert page.locator("figure img:visible").count() == len(OF_MODELS)
        assert page.locator("[data-grid=vision-fake] tbody tr:visible").count() > 0
        assert page.locator("button:visible").count() == 0, "no button that does nothing"


def test_one_of_several_subjects_can_be_looked_at_alone(browser: Browser, table: pd.DataFrame, tmp_path: Path) -> None:
    second = table.assign(subject="other")
    study = {"study": "two", "subjects": {name: {"family": "molmo", "preset": "nano"} for name in ("fake", "other")}}
    both = pd.concat([table, second], ignore_index=True)
    write(inputs_of(tmp_path, both, study=study), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as (page, witness):
        assert page.locator("section.answers[data-subject]:visible").count() == 2
        page.locator("#subject").select_option("other")
        assert page.locator("[data-subject=fake]:visible").count() == 0
        assert page.locator("[data-subject=other]:visible").count() > 3
        chart(page)
        page.locator("#controls [name=subject]").select_option("other")
        assert chart(page)["data"][0]["y"]
        assert witness.complaints == []


def test_a_page_with_nothing_measured_says_so_instead_of_a_chart(
    browser: Browser, table: pd.DataFrame, tmp_path: Path
) -> None:
    empty = table.assign(status="oom", arm=pd.NA, phase=pd.NA, clock=pd.NA, median_ms=float("nan"))
    write(inputs_of(tmp_path, empty.drop_duplicates("cell_id")), tmp_path / "report.html")
    with opened(browser, tmp_path / "report.html") as (page, witness):
        page.locator("#explore").scroll_into_view_if_needed()
        expect(page.locator("#chart")).to_contain_text("Nothing was measured")
        assert witness.complaints == []
