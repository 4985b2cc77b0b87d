"""Whoever shows an answer shows the same one: cards, tables, claims, captions, side by side, the terminal, compare."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from tests.support.fakes import FakeRunner
from tests.support.html import Element, parse
from tests.support.reports import inputs_of, roofline_of
from tests.support.subjects import as_model
from tests.support.tables import LATENCY, table_of
from vlmeter.analysis.answer_files import answers_beside
from vlmeter.analysis.answers import LIMITS, Answer, Answers
from vlmeter.analysis.reading import of_subject
from vlmeter.analysis.roofline import beside
from vlmeter.analysis.summary import summaries
from vlmeter.cli.rows import rows_as
from vlmeter.cli.show import print_summaries
from vlmeter.compare.baseline import read_runs
from vlmeter.compare.compare import compare
from vlmeter.compare.comparison import Side
from vlmeter.compare.rendering import answer_columns, answer_rows
from vlmeter.figures.registry import FIGURES, SIDE_BY_SIDE, WITH_ANSWERS, get_figure
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import with_interval
from vlmeter.report.page import ReportInputs, render
from vlmeter.study.layout import ALL_SUBJECTS
from vlmeter.table.files import read_table
from vlmeter.table.quantities import FIRST_TOKEN, WHOLE_REQUEST

NAMES = ("one", "other")

MODEL = {"family": "molmo", "preset": "nano"}

STUDY: Mapping[str, Any] = {"study": "small", "subjects": dict.fromkeys(NAMES, MODEL)}

#: A number with a unit, or a count; and one with its interval behind it.
NUMBER = r"([\d.,]*\d(?: (?:µs|ms|s|times|tokens))?)"
WITH_INTERVAL = rf"{NUMBER} \([^()]*\)"

#: Other words than its question in which an answer is told.
PHRASES: Mapping[str, tuple[str, ...]] = {
    "output_token": (
        rf"{WITH_INTERVAL} per token",
        rf"{WITH_INTERVAL} for an output token",
        rf"cost of a token: {NUMBER}",
    ),
    "vision_token": (rf"{WITH_INTERVAL} for a vision token",),
    "output_over_vision": (rf"costs as much as {WITH_INTERVAL} vision tokens",),
    "limit_decode": (rf"takes {WITH_INTERVAL} times what reading weights",),
}


@dataclass(frozen=True)
class Story:
    """All places of one study that show an answer."""

    page: Element
    answers: Mapping[str, Answers]
    shown: str
    compared: str


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> ReportInputs:
    """What the report of two subjects reads, with every figure's own caption."""
    folder = tmp_path_factory.mktemp("story")
    runner = FakeRunner(noise_fraction=0.01, launch_ms={"vision_encoder": 4.0})
    one = table_of(folder / "records", runner=runner, latency=LATENCY).assign(subject=NAMES[0])
    table = pd.concat([one, as_model(one, NAMES[1], "molmo", slower=1.3, tokens=1.0)], ignore_index=True)
    roofline = roofline_of(table)
    inputs = inputs_of(folder, table, study=STUDY, roofline=roofline)
    answers = answers_beside(inputs.table)
    whole = beside(table, roofline)
    for place in (*NAMES, ALL_SUBJECTS):
        rows = whole if place == ALL_SUBJECTS else of_subject(whole, place)
        for name in SIDE_BY_SIDE if place == ALL_SUBJECTS else FIGURES:
            own = {"answers": answers if place == ALL_SUBJECTS else answers[place]} if name in WITH_ANSWERS else {}
            figure = get_figure(name)
            if figure.needs(rows, **own) is None:
                inputs.figures[place][name].caption.write_text(figure.caption(rows, **own), encoding="utf-8")
    return inputs


@pytest.fixture(scope="module")
def story(inputs: ReportInputs) -> Story:
    """Everything that is said of the study."""
    answers = answers_beside(inputs.table)
    table, terminal = read_table(inputs.table), io.StringIO()
    print_summaries(summaries(table, answers), file=terminal, width=180)
    side = Side("results", read_runs(inputs.table), answers)
    found = compare(side, side, subjects=[NAMES])
    compared = rows_as(answer_rows(found), answer_columns(found), form="table")
    return Story(parse(render(inputs)), answers, terminal.getvalue(), compared)


def values_of(text: str, answer: Answer) -> set[str]:
    """Every number that a text gives for an answer."""
    patterns = (rf"{re.escape(answer.question)}(?: costs| is|:)?\s+{NUMBER}", *PHRASES.get(answer.name, ()))
    found = {value for pattern in patterns for value in re.findall(pattern, text, flags=re.IGNORECASE)}
    return {value.removesuffix(" times").removesuffix(" tokens") for value in found}


def value_of(answer: Answer) -> str:
    return answer.said().partition(" (")[0]


def texts_of(story: Story, subject: str) -> Mapping[str, str]:
    """What each place says of one subject."""
    own = story.page.find_all(data_subject=subject)
    parts = {
        "cards": [card for view in own for card in view.find_all("li", class_="card")],
        "captions": [caption for view in own for caption in view.find_all("figcaption")],
        "claims": [claims for view in own for claims in view.find_all("ul", class_="claims")],
    }
    return {place: " ".join(element.text for element in found) for place, found in parts.items()}


def rows_of(page: Element, name: str) -> list[dict[str, str]]:
    """Rows of a table of the page by heading."""
    table = page.find("div", data_grid=name)
    heads = [head.text for head in table.find_all("th")]
    lines = [[cell.text for cell in row.find_all("td")] for row in table.find("tbody").find_all("tr")]
    return [dict(zip(heads, line, strict=True)) for line in lines]


def sizes_of(answers: Answers) -> Mapping[str, Answer]:
    """Answers about image sizes that were measured, by the size as tables write it."""
    return {
        answer.name.removeprefix(f"{FIRST_TOKEN}_").replace("x", " x "): answer
        for answer in answers.values()
        if answer.name.startswith(f"{FIRST_TOKEN}_") and answer.source == "measured"
    }


@pytest.mark.parametrize("subject", NAMES)
def test_the_page_gives_no_two_values_for_one_name(story: Story, subject: str) -> None:
    texts, seen = texts_of(story, subject), dict.fromkeys(("cards", "captions", "claims"), 0)
    for answer in story.answers[subject].values():
        assert answer.is_known, answer.name
        for place, text in texts.items():
            shown = values_of(text, answer)
            assert shown <= {value_of(answer)}, (answer.name, place)
            seen[place] += len(shown)
    assert seen["cards"] == len(story.answers[subject])
    assert min(seen.values()) > 3, seen


def test_the_tables_give_the_values_of_the_cards(story: Story) -> None:
    for subject, answers in story.answers.items():
        by_size = {row["image"]: row[FIRST_TOKEN.label] for row in rows_of(story.page, f"first-token-{subject}")}
        shared = {
            row["image"].removesuffix(" px"): row[FIRST_TOKEN.label]
            for row in rows_of(story.page, "images")
            if row["subject"] == subject
        }
        assert sizes_of(answers)
        for size, answer in sizes_of(answers).items():
            assert by_size[size] == shared[size] == answer.said(), (subject, size)
        limits = {row["work"]: row["measured over floor"] for row in rows_of(story.page, f"limits-{subject}")}
        for quantity in LIMITS:
            assert limits[quantity.words] == answers[f"limit_{quantity}"].said(), quantity
        (whole,) = (row for row in rows_of(story.page, f"percentiles-{subject}") if row["time"] == WHOLE_REQUEST.words)
        slow = answers["slow_request"]
        assert whole[slow.question.rpartition(" ")[2]] == slow.said()
        (overview,) = (row for row in rows_of(story.page, "overview") if row["subject"] == subject)
        for answer in answers.values():
            assert overview[answer.question].startswith(value_of(answer)), answer.name


def test_what_is_said_side_by_side_is_what_each_subject_says(story: Story) -> None:
    text = story.page.find("section", id="side-by-side").text
    said = re.findall(rf"{WITH_INTERVAL} in ({'|'.join(NAMES)})\b", text)
    assert {subject for _, subject in said} == set(NAMES)
    for value, subject in said:
        assert value == value_of(story.answers[subject]["output_token"]), text


@pytest.mark.parametrize("place", ["shown", "compared"])
def test_the_terminal_gives_the_values_of_the_page(story: Story, place: str) -> None:
    """Both print the subjects side by side, one line an answer."""
    lines = getattr(story, place).splitlines()
    one, other = (story.answers[name] for name in NAMES)
    for name, answer in one.items():
        begins = f"{answer.question}  "[:30]  # a long one goes on in the next line
        found = [line for line in lines if line.strip().startswith(begins)]
        assert len(found) == 1, (name, found)
        said = [with_interval(own[name].found, own[name].unit) for own in (one, other)
                if isinstance(own[name].found, Estimate)]  # fmt: skip
        assert [text for text in said if text in found[0]] == said, name
        assert len(re.findall(WITH_INTERVAL, found[0].replace(answer.question, ""))) == 2, found


def test_the_times_of_an_image_in_the_terminal_are_those_of_its_answer(story: Story) -> None:
    lines = story.shown.splitlines()
    for size, answer in sizes_of(story.answers[NAMES[0]]).items():
        start = next(place for place, line in enumerate(lines) if line.startswith(f"{size.replace(' ', '')} px"))
        line = next(line for line in lines[start:] if line.startswith(f"  {FIRST_TOKEN.label} "))
        assert answer.said() in line


def test_a_price_that_was_computed_elsewhere_is_noticed(story: Story) -> None:
    """The walk itself: a caption with another price fails it."""
    answer = story.answers[NAMES[0]]["crop"]
    assert values_of(f"One more crop costs {answer.said()}, and more.", answer) == {value_of(answer)}
    assert values_of("One more crop costs 9.99 ms (9.9 to 10.0).", answer) == {"9.99 ms"}
    assert values_of("4.2 ms (4 to 5) for an output token", story.answers[NAMES[0]]["output_token"]) == {"4.2 ms"}
