"""The one-way street: a package imports only what stands to its left, and nothing heavy before a model has to run."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.support.imports import ROOT, all_imports, closure, imports, module_names, source_of
from tools.architecture import STAGES

#: What reads the table, and may not reach, even by way of others, what runs and times a model.
READERS = ("analysis", "compare", "claims", "figures", "report")
RUNNERS = ("backends", "inputs", "measure")

#: Modules that need a model, and may import torch at once.
NEED_A_MODEL = (
    "vlmeter.backends.compiled.captured",
    "vlmeter.backends.compiled.captured_runner",
    "vlmeter.backends.compiled.compiled_runner",
    "vlmeter.backends.compiled.constants",
    "vlmeter.backends.compiled.decode_attention",
    "vlmeter.backends.compiled.static_cache",
    "vlmeter.backends.compiled.vector_product",
    "vlmeter.backends.compiled.wide_attention",
    "vlmeter.backends.compiled.windows",
    "vlmeter.backends.eager_runner",
    "vlmeter.measure.count_pass",
    "vlmeter.measure.count_work",
    "vlmeter.models.attention",
    "vlmeter.models.meta_device",
    "vlmeter.models.molmo1.attention",
    "vlmeter.models.molmo1.configuration",
    "vlmeter.models.molmo1.language",
    "vlmeter.models.molmo1.modeling",
    "vlmeter.models.molmo1.vision",
)

#: Lines of a module beyond which it is two.
MOST_LINES = 500


def stage(name: str) -> str:
    """The package of a module; empty for vlmeter itself."""
    return name.split(".")[1] if "." in name else ""


@pytest.mark.parametrize("name", module_names())
def test_a_module_imports_only_of_its_own_stage_and_of_those_to_the_left(name: str) -> None:
    known = STAGES[: STAGES.index(stage(name)) + 1] if stage(name) in STAGES else STAGES
    assert {other for other in imports(name) if stage(other) and stage(other) not in known} == set()


def test_every_folder_is_a_stage_and_only_entry_points_lie_beside_them() -> None:
    assert {stage(name) for name in module_names()} - {""} == {*STAGES, "__main__"} & {
        stage(name) for name in module_names()
    }
    assert [stage for stage in STAGES if not (ROOT / "vlmeter" / stage / "__init__.py").exists()] == []


@pytest.mark.parametrize("name", [name for name in module_names() if stage(name) in READERS])
def test_what_reads_the_table_never_reaches_what_runs_a_model(name: str) -> None:
    assert {other for other in closure({name}) if stage(other) in RUNNERS} == set()


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    for name in module_names():
        below = {each for other in imports(name) for each in closure({other}) if each.count(".") > 1}
        packages = {name.rpartition(".")[0]}
        assert name not in below - packages, f"{name} imports itself by way of others"


@pytest.mark.parametrize("name", module_names())
def test_no_module_is_longer_than_one_can_read(name: str) -> None:
    assert len(source_of(name).read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("name", module_names())
def test_the_library_imports_nothing_of_the_workflow(name: str) -> None:
    assert not {other for other in all_imports(name) if other.partition(".")[0] in ("snakemake", "scripts", "tests")}


def test_the_tests_see_imports_wherever_they_stand() -> None:
    """At the top of a file and inside a function, but not those that are for the type checker alone."""
    assert "vlmeter.models.molmo1.checkpoint" in imports("vlmeter.models.families.molmo"), "inside load()"
    assert "vlmeter.common.errors" in imports("vlmeter.models.families.molmo")
    assert "vlmeter.inputs.manifest" not in imports("vlmeter.inputs.looks"), "under TYPE_CHECKING"


def heavy_after_importing(names: list[str], heavy: tuple[str, ...]) -> dict[str, list[str]]:
    """Import modules one after the other in a new process; tell which of them brought in what."""
    script = (
        "import importlib, json, sys\n"
        "names, heavy = json.loads(sys.argv[1]), set(json.loads(sys.argv[2]))\n"
        "found = {}\n"
        "for name in names:\n"
        "    before = heavy & set(sys.modules)\n"
        "    importlib.import_module(name)\n"
        "    if new := heavy & set(sys.modules) - before:\n"
        "        found[name] = sorted(new)\n"
        "print(json.dumps(found))\n"
    )
    arguments = [json.dumps(names), json.dumps(heavy)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = json.loads(done.stdout)
    return found


def test_only_what_needs_a_model_imports_torch() -> None:
    light = [name for name in module_names() if name not in NEED_A_MODEL and not name.endswith("__main__")]
    assert heavy_after_importing(light, ("torch", "transformers", "datasets", "snakemake")) == {}


def test_looking_at_a_study_imports_nothing_that_takes_time() -> None:
    """`vlmeter tokens`, `plan` and `--help` answer at once."""
    names = [
        "vlmeter.cli.main",
        "vlmeter.study.loader",
        "vlmeter.study.plan",
        "vlmeter.models.families.molmo",
        "vlmeter.study.layout",
    ]
    slow = ("torch", "transformers", "datasets", "snakemake", "matplotlib", "scipy", "pandas", "numpy", "PIL")
    assert heavy_after_importing(names, slow) == {}


def test_a_study_is_measured_without_what_draws_it() -> None:
    names = [
        "vlmeter.measure.session",
        "vlmeter.measure.devices",
        "vlmeter.measure.environment",
        "vlmeter.inputs.dataset",
        "vlmeter.measure.subject",
    ]
    assert heavy_after_importing(names, ("matplotlib", "scipy", "pandas", "jinja2")) == {}


def test_the_list_of_modules_that_need_a_model_is_not_longer_than_it_has_to_be() -> None:
    for name in NEED_A_MODEL:
        text = source_of(name).read_text()
        assert "\nimport torch" in text or "\nfrom transformers" in text or imports(name) & set(NEED_A_MODEL), name
