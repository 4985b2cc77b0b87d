"""`compare` says its verdict first, then the answers of both sides as they were computed, then what changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.comparisons import changed, compared, drawn, measured, results_of
from tests.support.imports import ROOT
from tests.test_cli import refused, run  # noqa: F401
from vlmeter.analysis.answer_files import answers_beside, read_answers, write_answers
from vlmeter.analysis.answers import Answers, all_answers
from vlmeter.analysis.reading import Unknown
from vlmeter.compare.answers import pair_answers, side_answers
from vlmeter.compare.baseline import read_runs, write_baseline
from vlmeter.compare.comparison import PREFILL_NAME
from vlmeter.compare.rendering import as_data, as_markdown, telling_cells, telling_rows
from vlmeter.numbers.medians import Estimate
from vlmeter.numbers.words import with_interval
from vlmeter.table.files import read_table


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Results of two fake studies, the second with the answers that the workflow writes beside its table."""
    root = tmp_path_factory.mktemp("answers")
    output = {"output_tokens": [8, 16], "sampling": {"min_samples": 5, "max_samples": 5}}
    found = {
        "a": results_of(root / "a", seed=1, output=output),
        "slow": results_of(root / "slow", seed=3, slowdown=1.05, output=output),
    }
    write_answers(found["slow"] / "answers.json", all_answers(read_table(found["slow"] / "table.parquet")))
    return found


def own_answers(folder: Path) -> Answers:
    return all_answers(read_table(folder / "table.parquet"))["fake"]


def test_the_verdict_comes_first_and_then_the_answers_of_both_sides(run, folders: Mapping[str, Path]) -> None:  # noqa: F811
    code, out, _ = run("compare", str(folders["a"]), str(folders["slow"]))
    lines = out.splitlines()
    assert code == 0
    assert lines[0].startswith("fake: slower by ")
    assert lines[2].split() == ["answer", "A", "B"]
    one, other = (own_answers(folders[name]) for name in ("a", "slow"))
    for name in ("crop", "vision_token", "output_token", "first_token_336x336"):
        (line,) = (line for line in lines if line.startswith(f"{one[name].question}  "))
        found = [own[name].found for own in (one, other)]
        said = [with_interval(one, "ms") for one in found if isinstance(one, Estimate)]
        assert line.removeprefix(one[name].question).split("  ")[-1].strip() == said[1]
        assert said[0] in line
    (size,) = (line for line in lines if "640 x 480 px" in line)
    assert size.count(", predicted") == 2


def test_json_and_markdown_hold_the_same_answers(folders: Mapping[str, Path]) -> None:
    sides = [side_answers([folders[name]]) for name in ("a", "slow")]
    comparison = replace(
        compared(read_runs(folders["a"]), read_runs(folders["slow"])),
        answers=tuple(pair_answers(*sides, [("fake", "fake")])),
    )
    one, other = (own_answers(folders[name]) for name in ("a", "slow"))
    data = {
        answer["name"]: answer for answer in json.loads(json.dumps(as_data(comparison), allow_nan=False))["answers"]
    }
    crop = one["crop"].found
    assert isinstance(crop, Estimate)
    assert (data["crop"]["a"]["value"], data["crop"]["a"]["low"]) == (crop.value, crop.low)
    assert data["crop"]["b"]["said"] == other["crop"].said()
    lines = as_markdown(comparison).splitlines()
    assert f"| one more crop | {one['crop'].said()} | {other['crop'].said()} |" in lines
    assert lines.index("| answer | A | B |") < lines.index("<details><summary>All 18 cells</summary>")


def test_answers_are_read_and_not_computed_where_the_study_has_them(tmp_path: Path) -> None:
    folder = results_of(tmp_path)
    told = all_answers(read_table(folder / "table.parquet"))
    planted = {"fake": {**told["fake"], "crop": replace(told["fake"]["crop"], found=Estimate(7.77, 7.66, 7.88))}}
    write_answers(folder / "answers.json", planted)
    assert answers_beside(folder / "table.parquet") == read_answers(folder / "answers.json") == planted
    sides = side_answers([folder])
    assert not isinstance(sides, Unknown)
    assert sides["fake"]["crop"].found == Estimate(7.77, 7.66, 7.88)


def test_what_is_not_known_or_was_not_asked_is_said_in_words(tmp_path: Path) -> None:
    own = all_answers(read_table(results_of(tmp_path) / "table.parquet"))
    unknown = {"fake": {**own["fake"], "crop": replace(own["fake"]["crop"], found=Unknown("too few sizes", "more"))}}
    bare = {"fake": {name: answer for name, answer in own["fake"].items() if name != "vision_token"}}
    comparison = replace(compared(drawn(1), drawn(2)), answers=tuple(pair_answers(unknown, bare, [("fake", "fake")])))
    lines = as_markdown(comparison).splitlines()
    assert f"| one more crop | not known: too few sizes | {own['fake']['crop'].said()} |" in lines
    assert any(line.endswith("| not measured |") for line in lines if line.startswith("| one more vision token"))


def test_a_size_that_one_side_alone_has_is_left_out(tmp_path: Path) -> None:
    own = all_answers(read_table(results_of(tmp_path) / "table.parquet"))["fake"]
    fewer = {name: answer for name, answer in own.items() if name != "first_token_336x336"}
    names = {pair.told.name for pair in pair_answers({"s": own}, {"s": fewer}, [("s", "s")])}
    assert "first_token_336x336" not in names
    assert {"crop", "first_token_640x480"} <= names


def test_a_baseline_keeps_the_answers_of_its_study(run, folders: Mapping[str, Path], tmp_path: Path) -> None:  # noqa: F811
    path = tmp_path / "baseline.json.gz"
    assert run("baseline", str(folders["slow"]), "-o", str(path))[0] == 0
    kept = side_answers([path])
    assert not isinstance(kept, Unknown)
    assert kept["fake"]["crop"] == own_answers(folders["slow"])["crop"]


def test_without_answers_a_side_says_why(run, folders: Mapping[str, Path], tmp_path: Path) -> None:  # noqa: F811
    write_baseline(tmp_path / "b.json", read_runs(folders["a"]))
    code, out, _ = run("compare", str(tmp_path / "b.json"), str(folders["slow"]))
    assert code == 0
    assert "note: no answers are shown, since A has none: its baseline holds none" in out
    several = side_answers([folders["a"], folders["slow"]])
    assert isinstance(several, Unknown)
    assert "2 results" in several.reason


def test_a_baseline_of_the_version_before_is_read(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    write_baseline(path, [drawn(1)])
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 1}))
    assert read_runs(path) == [drawn(1)]


def test_only_cells_that_changed_or_are_not_known_are_listed(run, folders: Mapping[str, Path]) -> None:  # noqa: F811
    same = ("compare", str(folders["a"]), str(folders["a"]))
    _, out, _ = run(*same)
    assert "18 cells: 18 same; --all lists them" in out
    assert "vision-tiling-1x1" not in out
    _, out, _ = run(*same, "--all")
    assert "vision-tiling-1x1" in out
    assert "--all" not in out
    unsure = compared(drawn(1, cells=40), drawn(2, cells=40), session_noise_fraction=0.2)
    rows, left = telling_cells(unsure)
    assert (len(rows), left) == (10, {"cannot tell": 30})


def test_of_clocks_that_tell_the_same_one_is_shown(folders: Mapping[str, Path]) -> None:
    comparison = compared(read_runs(folders["a"]), read_runs(folders["slow"]))
    shown = {row["quantity"] for row in telling_rows(comparison)[0]}
    every = {found.name for found in comparison.quantities}
    assert {"hooks total wall", "hooks total device"} <= every
    assert len({"hooks total wall", "hooks total device", "hooks total launch"} & shown) == 1
    assert "plain total wall" not in shown, "it is the total"


def test_the_prefill_is_compared_as_a_whole(tmp_path: Path) -> None:
    """It is the sum of its phases in each round, of images and of generations alike."""
    output = {"output_tokens": [8], "sampling": {"min_samples": 5, "max_samples": 5}}
    run_a = measured(tmp_path, output=output)
    (prefill,) = compared(run_a, run_a).of(PREFILL_NAME)
    assert {cell.experiment for cell in prefill.cells} == {"vision_tokens", "output_tokens"}
    phases = {q.phase: q for q in run_a.subjects[0].by_id[prefill.cells[0].cell_id].quantities if q.arm == "hooks"}
    parts = [phases[name].samples_ms for name in ("vision_encoder", "projector", "merge", "llm_blocks", "head")]
    summed = sorted(map(sum, zip(*parts, strict=True)))
    assert prefill.cells[0].a_ms == pytest.approx(summed[len(summed) // 2], rel=0.01)


def test_one_experiment_can_be_compared_by_itself(run, folders: Mapping[str, Path]) -> None:  # noqa: F811
    both = (str(folders["a"]), str(folders["slow"]))
    _, out, _ = run("compare", *both, "--experiment", "vision_tokens", "--format", "json")
    data = json.loads(out)
    cells = {cell["experiment"] for found in data["quantities"] for cell in found["cells"]}
    assert cells == {"vision_tokens"}
    assert {"crop", "vision_token"} <= {answer["name"] for answer in data["answers"]}
    assert "output_token" not in {answer["name"] for answer in data["answers"]}
    error = refused(run("compare", *both, "--experiment", "vision"))
    assert "has no cell of 'vision'; legal: output_tokens, vision_tokens" in error


def test_commits_are_noted_where_they_differ() -> None:
    same = compared(changed(drawn(1), facts={"commit": "abc"}), changed(drawn(2), facts={"commit": "abc"}))
    assert not any("commit" in note for note in same.notes)


def test_the_committed_baseline_has_the_gallerys_answers() -> None:
    gallery = ROOT / "docs" / "gallery"
    assert side_answers([gallery / "baseline.json.gz"]) == read_answers(gallery / "answers.json")
