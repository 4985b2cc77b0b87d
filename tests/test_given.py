"""A run's study reaches its jobs as it was read, and the report says how to ask for it again."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.sessions import fake_study
from vlmeter.common.errors import UserError
from vlmeter.study.loader import load_study
from vlmeter.workflow.given import (
    Given,
    check_place,
    command_again,
    given_to_job,
    study_given,
    told_by_main,
    told_to_jobs,
)
from vlmeter.workflow.products import deleted, products_of, to_draw_again, to_print_again


def given(tmp_path: Path, *values: str, **options: Any) -> Given:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(fake_study()))
    return study_given(files=[path], values=values, **options)


# --- what jobs see ----------------------------------------------------------------------------------


def test_a_job_sees_the_study_that_the_main_process_has_read(tmp_path: Path) -> None:
    found = given(tmp_path, 'sampling={"max_samples": 7}', "cell_time_limit_seconds=2e1")
    study, layout = given_to_job(found.for_jobs)
    assert (
        study
        == found.study
        == load_study(tmp_path / "study.yaml", values=["sampling={max_samples: 7}", "cell_time_limit_seconds=20.0"])
    )
    assert (study.sampling.max_samples, study.cell_time_limit_seconds) == (7, 20.0)
    assert layout == found.layout


def test_a_study_that_another_workflow_hands_over_is_taken_instead_of_files(tmp_path: Path) -> None:
    found = given(tmp_path, "seed=1", handed_over=fake_study(seed=5))
    assert found.study.seed == 5
    with pytest.raises(UserError, match="the study that this workflow is given as a module: key sead is not known"):
        given(tmp_path, handed_over=fake_study(sead=5))


def test_results_lie_where_a_modules_prefix_puts_them(tmp_path: Path) -> None:
    found = given(tmp_path, placed=lambda path: f"sub/{path}")
    assert found.layout.table == Path("sub/results/faulty/table.parquet")
    assert given_to_job(found.for_jobs)[1] == found.layout
    with pytest.raises(UserError, match="legal: a prefix of it"):
        given(tmp_path, placed=lambda path: "elsewhere/")


def test_a_job_that_reads_another_study_than_the_main_process_is_refused(tmp_path: Path) -> None:
    found = given(tmp_path)
    told = told_to_jobs(told_to_jobs(None, given(tmp_path, "study=other"), {}), found, {"stale": {"fake": "abc"}})
    assert told_by_main(told, found)["stale"] == {"fake": "abc"}
    assert set(json.loads(told)) == {"results/faulty", "results/other"}, "one workflow may hold several studies"
    with pytest.raises(UserError, match="study faulty was changed while it ran"):
        told_by_main(told, given(tmp_path, "seed=7"))
    with pytest.raises(UserError, match="was changed while it ran"):
        told_by_main("{}", found)
    assert told_by_main(told_to_jobs("no JSON", found, {}), found)["study"] == found.digest


# --- where it can work ------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["/tmp/{x}/vlmeter", "/tmp/a}b", "/tmp/{"])
def test_braces_in_the_folders_path_are_refused(folder: str) -> None:
    with pytest.raises(UserError, match=r"has a [{}] in its name, .* legal: a folder without braces"):
        check_place(Path(folder), container=False)


def test_a_space_in_the_folders_path_matters_to_containers_alone() -> None:
    check_place(Path("/home/me/My Drive/vlmeter"), container=False)
    with pytest.raises(UserError, match="has a space in its name, which no container image may have"):
        check_place(Path("/home/me/My Drive/vlmeter"), container=True)


# --- how to run it again ----------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder of the workflow, with its Makefile."""
    folder = tmp_path / "vlmeter"
    folder.mkdir()
    (folder / "Makefile").touch()
    return folder


def again(base: Path, *files: str, **options: Any) -> str:
    options = {"started_in": base, "snakefile": base / "Snakefile", **options}
    return command_again(base=base, files=[base / file for file in files], **options)


def test_a_run_by_make_is_run_again_by_make(base: Path) -> None:
    assert again(base) == again(base, "config.yaml") == "make run", "two ways to say the same write one page"
    assert again(base, "studies/x.yaml") == "make run STUDY=studies/x.yaml"
    assert again(base, "../mine.yaml") == "make run STUDY=../mine.yaml"
    assert again(base, "/data/a study.yaml") == "make run STUDY='/data/a study.yaml'"


def test_what_make_cannot_say_is_said_to_snakemake(base: Path) -> None:
    profile = "snakemake --profile profiles/default"
    assert again(base, "a.yaml", "b.yaml") == f"{profile} --configfile a.yaml b.yaml"
    assert again(base, values=["seed=1"]) == f"{profile} --config seed=1"
    assert again(base, "$a.yaml") == f"{profile} --configfile '$a.yaml'"
    value = 'sampling={"max_samples": 7}'
    assert shlex.split(again(base, "a.yaml", values=[value]))[-2:] == ["--config", value]
    assert again(base, "a.yaml", directory=base / "out") == f"{profile} --directory out --configfile a.yaml"


def test_from_another_folder_the_command_names_the_workflow(base: Path) -> None:
    here = base.parent / "work"
    said = again(base, "../work/a.yaml", started_in=here)
    assert (
        said == "snakemake --snakefile ../vlmeter/Snakefile --profile ../vlmeter/profiles/default --configfile a.yaml"
    )
    said = again(base, started_in=here, snakefile=here / "Snakefile")
    assert said == "snakemake --cores all", "as a module it is run by whoever imports it"
    (base / "Makefile").unlink()
    assert again(base) == "snakemake --profile profiles/default"


def test_a_workflow_out_of_a_wheel_is_run_again_by_its_command(base: Path) -> None:
    (base / "Makefile").unlink()
    here = base.parent / "work"
    assert again(base, "../work/a.yaml", started_in=here) == "vlmeter run a.yaml"
    said = again(base, "../work/a.yaml", "../work/b.yaml", started_in=here, values=["seed=1"])
    assert said == "vlmeter run a.yaml --configfile b.yaml --config seed=1"


# --- what was deleted -------------------------------------------------------------------------------


def test_every_product_that_is_not_whole_is_asked_for_by_one_of_its_files(tmp_path: Path) -> None:
    layout = given(tmp_path, placed=lambda path: str(tmp_path / path)).layout
    products = products_of(layout, figures={"fake": ["one", "two"]}, on_devices=["fake"], thumbnails=True)
    assert deleted(products) == [], "nothing has been made yet, so nothing was deleted"
    for path in (path for paths in products for path in paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert deleted(products) == []
    folder = layout.figure_folder("fake", "two")
    gone = [layout.table_csv, layout.claims, folder, layout.prints("fake"), layout.report, layout.thumbnails]
    for path in gone:
        path.unlink()
    assert set(deleted(products)) == set(gone)


def test_a_file_that_was_deleted_inside_a_figures_folder_is_missed(tmp_path: Path) -> None:
    """A workflow that declared the folder sees the folder alone."""
    layout = given(tmp_path, placed=lambda path: str(tmp_path / path)).layout
    figures = {"fake": ["drawn", "undrawn"], "other": ["drawn"]}
    assert not to_draw_again(layout, figures), "what was never made is made anyway"
    assert not to_print_again(layout, figures)
    for place, names in figures.items():
        layout.prints(place).mkdir(parents=True)
        for name in names:
            layout.figure_folder(place, name).mkdir(parents=True)
            layout.figure(place, name, "txt").write_text("Not drawn: no image." if name == "undrawn" else "It rises.")
        drawn = [layout.figure(place, "drawn", form) for form in ("svg", "rst")]
        for path in (*drawn, *(layout.printed(place, "drawn", form) for form in ("png", "pdf"))):
            path.touch()
    assert not to_draw_again(layout, figures), "what cannot be drawn has a caption alone"
    assert not to_print_again(layout, figures)
    layout.printed("other", "drawn", "pdf").unlink()
    assert (set(to_draw_again(layout, figures)), set(to_print_again(layout, figures))) == (set(), {"other"})
    for path in (*drawn, layout.figure("fake", "undrawn", "txt")):
        text, place = path.read_bytes(), path.relative_to(layout.root).parts[1]
        path.unlink()
        found = to_draw_again(layout, figures)
        assert set(found) == {place}, path
        os.utime(path.parent, (1, 1))
        assert to_draw_again(layout, figures)[place] != found[place], "what is missed another time has another mark"
        path.write_bytes(text)
    assert not to_draw_again(layout, figures)


def test_all_that_the_documentation_lists_as_results_is_a_product() -> None:
    text = (Path(__file__).parent.parent / "docs" / "reference" / "results.md").read_text()
    layout = given_to_job({"content": fake_study(), "results": "results"})[1]
    products = products_of(layout, figures={"fake": ["one"]}, on_devices=["fake"], thumbnails=True)
    listed = {path.relative_to(layout.root).parts[0] for paths in products for path in paths}
    for name in ("table.parquet", "table.csv", "figures", "prints", "claims.json", "report.html"):
        assert f"`{name}" in text
        assert name in listed
    assert {"environments.json", "roofline.parquet", "ceilings", "work", "thumbnails.json"} <= listed
