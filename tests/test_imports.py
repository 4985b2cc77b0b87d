"""The one-way street: a module imports only what stands to its left, and nothing heavy before a model has to run."""

from __future__ import annotations

import json
import subprocess
import sys
from fnmatch import fnmatchcase
from itertools import pairwise

import pytest

from tests.support.imports import ROOT, all_imports, imports, module_names, source_of

#: Every module of vlmeter, from left to right. A pattern stands for files that a newcomer adds without coming here: one
#: per family, backend or figure, none of which imports another.
ORDER = (
    "vlmeter",
    # words, files, numbers
    "vlmeter.errors",
    "vlmeter.files",
    "vlmeter.locks",
    "vlmeter.lifeline",
    "vlmeter.units",
    "vlmeter.pairs",
    "vlmeter.textual",
    "vlmeter.stats",
    "vlmeter.uncertainty",
    "vlmeter.wording",
    # what a cell looks at, and what is run
    "vlmeter.images",
    "vlmeter.dataset_source",
    "vlmeter.dataset",
    "vlmeter.clock",
    "vlmeter.processors",
    "vlmeter.sdpa",
    "vlmeter.shapes",
    "vlmeter.checkpoints",
    "vlmeter.made_words",
    "vlmeter.molmo1",
    "vlmeter.molmo1.architecture",
    "vlmeter.molmo1.geometry",
    "vlmeter.molmo1.presets",
    "vlmeter.molmo1.configuration",
    "vlmeter.molmo1.modeling",
    "vlmeter.molmo1.tokenizer",
    "vlmeter.molmo1.processing",
    "vlmeter.molmo1.checkpoint",
    "vlmeter.molmo1.verify",
    "vlmeter.families",
    "vlmeter.families.base",
    "vlmeter.families.geometry",
    "vlmeter.families.made_tokenizer",
    "vlmeter.families.anyres",
    "vlmeter.families.patch_rows",
    "vlmeter.families.splitting",
    "vlmeter.families.native",
    "vlmeter.families.qwen",
    "vlmeter.families.*",
    "vlmeter.families.registry",
    "vlmeter.reach",
    "vlmeter.backends",
    "vlmeter.backends.base",
    "vlmeter.backends.registry",
    # study -> plan -> records
    "vlmeter.config",
    "vlmeter.plan",
    "vlmeter.backends.*",
    "vlmeter.counts",
    "vlmeter.fingerprint",
    "vlmeter.device",
    "vlmeter.budget",
    "vlmeter.monitor",
    "vlmeter.measure",
    "vlmeter.block",
    "vlmeter.record",
    "vlmeter.environment",
    "vlmeter.store",
    "vlmeter.session",
    "vlmeter.doctor",
    "vlmeter.ceilings",
    "vlmeter.physics",
    "vlmeter.flops",
    "vlmeter.layout",
    # records -> table -> figures, claims -> report
    "vlmeter.table",
    "vlmeter.analysis",
    "vlmeter.distribution",
    "vlmeter.components",
    "vlmeter.thumbnails",
    "vlmeter.analysis_flops",
    "vlmeter.prediction",
    "vlmeter.baseline",
    "vlmeter.compare",
    "vlmeter.compared",
    "vlmeter.across",
    "vlmeter.figures",
    "vlmeter.figures.style",
    "vlmeter.figures.side_by_side",
    "vlmeter.figures.*",
    "vlmeter.figures.registry",
    "vlmeter.claims",
    "vlmeter.claims_across",
    "vlmeter.report",
    # everything put together, and shown
    "vlmeter.work",
    "vlmeter.worker",
    "vlmeter.supervise",
    "vlmeter.console",
    "vlmeter.cli",
)

#: Modules that need a model, and may import torch at once.
NEED_A_MODEL = (
    "vlmeter.backends.eager",
    "vlmeter.ceilings",
    "vlmeter.flops",
    "vlmeter.molmo1.configuration",
    "vlmeter.molmo1.modeling",
    "vlmeter.sdpa",
    "vlmeter.shapes",
)


def place(name: str) -> int:
    """Place of a module in ORDER; its own line goes before a pattern."""
    if name in ORDER:
        return ORDER.index(name)
    return next((n for n, pattern in enumerate(ORDER) if "*" in pattern and fnmatchcase(name, pattern)), -1)


def test_every_module_has_a_place() -> None:
    assert [name for name in module_names() if place(name) < 0] == [], "give it a line in ORDER"


def test_every_line_of_the_order_stands_for_a_module() -> None:
    assert [line for line in ORDER if not any(fnmatchcase(name, line) for name in module_names())] == []


@pytest.mark.parametrize("name", module_names())
def test_a_module_imports_only_what_stands_to_its_left(name: str) -> None:
    assert {other for other in imports(name) if place(other) >= place(name)} == set()


def test_the_stages_stand_in_the_order_in_which_data_flows() -> None:
    stages = ("config", "plan", "measure", "record", "table", "figures", "claims", "report", "cli")
    assert all(place(f"vlmeter.{left}") < place(f"vlmeter.{right}") for left, right in pairwise(stages))


@pytest.mark.parametrize("right", ["vlmeter.figures.style", "vlmeter.figures.*", "vlmeter.claims", "vlmeter.analysis"])
def test_what_reads_the_table_reads_no_record(right: str) -> None:
    for name in module_names():
        if place(name) == ORDER.index(right):
            assert not imports(name) & {"vlmeter.record", "vlmeter.store", "vlmeter.session", "vlmeter.measure"}, name


@pytest.mark.parametrize("name", module_names())
def test_the_library_imports_nothing_of_the_workflow(name: str) -> None:
    assert not {other for other in all_imports(name) if other.partition(".")[0] in ("snakemake", "scripts", "tests")}


def test_the_tests_see_imports_wherever_they_stand() -> None:
    """At the top of a file and inside a function, but not those that are for the type checker alone."""
    assert "vlmeter.molmo1.checkpoint" in imports("vlmeter.families.molmo"), "inside load()"
    assert "vlmeter.errors" in imports("vlmeter.families.molmo")
    assert "vlmeter.config" not in imports("vlmeter.backends.registry"), "under TYPE_CHECKING"


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
    light = [name for name in module_names() if name not in NEED_A_MODEL]
    assert heavy_after_importing(light, ("torch", "transformers", "datasets", "snakemake")) == {}


def test_looking_at_a_study_imports_nothing_that_takes_time() -> None:
    """`vlmeter tokens`, `plan` and `--help` answer at once."""
    names = ["vlmeter.cli", "vlmeter.config", "vlmeter.plan", "vlmeter.families.molmo", "vlmeter.layout"]
    slow = ("torch", "transformers", "datasets", "snakemake", "matplotlib", "scipy", "pandas", "numpy", "PIL")
    assert heavy_after_importing(names, slow) == {}


def test_a_study_is_measured_without_what_draws_it() -> None:
    names = ["vlmeter.session", "vlmeter.device", "vlmeter.environment", "vlmeter.dataset", "vlmeter.work"]
    assert heavy_after_importing(names, ("matplotlib", "scipy", "pandas", "jinja2")) == {}


def test_the_list_of_modules_that_need_a_model_is_not_longer_than_it_has_to_be() -> None:
    for name in NEED_A_MODEL:
        assert "torch" in source_of(name).read_text() or "transformers" in source_of(name).read_text(), name
