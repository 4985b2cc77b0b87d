"""The benchmark of the tests names what there is, and believes no tests that fail anyhow."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from benchmarks import mutants, mutants_run

wants_libraries = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("cosmic_ray", "coverage")),
    reason="needs cosmic-ray and coverage, which the locks leave out",
)


def test_every_module_of_the_five_packages_is_tried_or_is_said_to_make_no_number() -> None:
    there = {
        file.relative_to(mutants.ROOT).as_posix()
        for area in mutants.AREAS
        for file in (mutants.ROOT / "vlmeter" / area).glob("*.py")
        if file.name != "__init__.py"
    }
    tried = {module for area in mutants.AREAS for module in mutants.modules_of(area)}
    assert tried | set(mutants.OTHERS) == there
    assert not tried & set(mutants.OTHERS)


@pytest.mark.parametrize("area", sorted(mutants.AREAS))
def test_the_tests_that_should_notice_are_there(area: str) -> None:
    assert [name for name in mutants.tests_of(area) if not (mutants.ROOT / name).is_file()] == []


def test_every_known_survivor_has_a_reason_and_is_a_change_of_code_that_there_is() -> None:
    for (module, operator, change), (_, why) in mutants.known_survivors().items():
        before = change.partition(" -> ")[0]
        code = " ".join((mutants.ROOT / module).read_text(encoding="utf-8").split())
        assert before in code, f"{module} has no more: {before}"
        assert operator
        assert why.endswith(".")


@pytest.mark.needs("git")
def test_tests_run_in_a_copy_of_what_git_knows(tmp_path: Path) -> None:
    mutants.copy_of_repository(tmp_path)
    for module in mutants.modules_of("numbers"):
        assert (tmp_path / module).read_bytes() == (mutants.ROOT / module).read_bytes()
    assert not (tmp_path / ".git").exists()


def test_a_file_too_slow_for_its_budget_leaves_the_rest_to_quicker_ones() -> None:
    def each(name: str, took_s: float) -> mutants.Test:
        return mutants.Test(name, took_s, 0.0, {})

    tests = [*(each(f"own.py::{place}", 4.0) for place in range(4)), each("quick.py::a", 1.0), each("dear.py::a", 9.0)]
    assert mutants.chosen(tests, budget_s=10, first="own.py") == ["own.py::0", "own.py::1", "quick.py::a"]


def test_types_and_guards_mean_nothing_and_numbers_do() -> None:
    before = "def f(x: int | None) -> float:\n    return sum(a + b for a, b in zip(x, x, strict=True))\n"
    same = before.replace("int | None", "int ^ None").replace("strict=True", "strict=False")
    assert mutants.meaning(before) == mutants.meaning(same)
    assert mutants.meaning(before) != mutants.meaning(before.replace("a + b", "a - b"))


def test_a_change_is_said_on_one_line() -> None:
    assert (
        mutants.said("def f():\n    return a + b\n", "def f():\n    return a - b\n") == "return a + b -> return a - b"
    )


def test_a_line_belongs_to_the_smallest_statement_around_it_and_to_the_head_of_one_with_a_body() -> None:
    source = "for x in (\n    1,\n    2,\n):\n    y = (\n        x\n    )\n"
    assert list(mutants.statement_of(source, 2)) == [1, 2, 3, 4]
    assert list(mutants.statement_of(source, 6)) == [5, 6, 7]


def test_the_quickest_tests_that_run_a_line_come_first_and_then_those_of_its_module() -> None:
    module = "vlmeter/numbers/pairs.py"
    runs, others = {module: frozenset({14})}, {module: frozenset({1})}
    tests = [
        mutants.Test("a.py::slow", 1.5, 0.0, runs),
        mutants.Test("a.py::quick", 1.0, 0.0, runs),
        mutants.Test("b.py::elsewhere", 0.5, 0.0, others),
        mutants.Test("c.py::endless", 1000.0, 0.0, runs),
        mutants.Test("d.py::of_another_module", 0.1, 0.0, {"vlmeter/numbers/units.py": frozenset({14})}),
    ]
    mutant = mutants.Mutant(module, "NumberReplacer", 14, "", "")
    assert mutants.stages(mutant, tests) == [
        ["a.py::quick", "a.py::slow"],
        ["b.py::elsewhere", "a.py::quick", "a.py::slow"],
    ]


def test_what_a_fixture_of_the_file_runs_every_test_of_it_runs() -> None:
    pairs, units = "vlmeter/numbers/pairs.py", "vlmeter/numbers/units.py"
    inside = max(mutants.lines_of_functions(pairs))
    traced = {
        "tests": {"a.py::one": {"took_s": 1.0, "lines": {}}, "a.py::two": {"took_s": 1.0, "lines": {units: [9]}}},
        "shared": {"took_s": 2.0, "lines": {pairs: [1, inside], units: [1]}},
    }
    one, two = mutants.tests_in(traced)
    assert one.lines == {pairs: {1, inside}}, "units was imported, and nothing of it is used"
    assert two.lines == {pairs: {1, inside}, units: {1, 9}}


def test_equivalent_mutants_are_no_part_of_the_share_and_every_one_is_of_the_other() -> None:
    survivors = [mutants.Survivor("m.py", 1, "o", "a -> b", equivalent=each, why="") for each in (True, True, False)]
    outcome = mutants.Outcome("numbers", mutants=90, tried=22, killed=19, survivors=survivors).summary()
    assert outcome["killed_fraction"][0] == 19 / 20
    assert outcome["killed_fraction_of_all"][0] == 19 / 22
    low, high = outcome["killed_fraction"][1:]
    assert (round(low, 3), round(high, 3)) == (0.764, 0.991)  # Wilson's, by hand


def test_a_changed_module_is_imported_in_place_of_its_file(tmp_path: Path) -> None:
    place = tmp_path / "number_of_it.py"
    place.write_text("NUMBER = 1\n", encoding="utf-8")
    (tmp_path / "test_it.py").write_text(
        "import number_of_it\n\ndef test_it():\n    assert number_of_it.NUMBER == 1\n", encoding="utf-8"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")

    def work(source: str) -> int | None:
        def run(_: object) -> None:
            sys.path.insert(0, str(tmp_path))
            sys.meta_path.insert(0, mutants_run.Finder("number_of_it", place, source))
            sys.exit(mutants_run.run_tests([f"{tmp_path}/test_it.py::test_it"]))

        return mutants_run.forked(run, cpu_s=60)[0]

    assert work("NUMBER = 1\n") == 0
    assert work("NUMBER = 2\n") == 1
    assert work("while True:\n    import os; os.kill(os.getpid(), 9)\n") is None, "ended, so noticed"
    assert place.read_text(encoding="utf-8") == "NUMBER = 1\n"


@wants_libraries
def test_mutants_are_the_same_ones_for_the_same_seed_and_differ_from_the_module() -> None:
    module = "vlmeter/numbers/pairs.py"
    found, there, _ = mutants.mutants_of(module, share=0.2, seed=1)
    assert 5 < len(found) < there
    assert found == mutants.mutants_of(module, share=0.2, seed=1)[0]
    assert found != mutants.mutants_of(module, share=0.2, seed=2)[0]
    source = (mutants.ROOT / module).read_text(encoding="utf-8")
    assert all(mutants.meaning_or_nothing(mutant.source) != mutants.meaning(source) for mutant in found)


def test_tests_that_fail_without_a_mutant_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every mutant would seem to be noticed."""
    module = "vlmeter/numbers/pairs.py"
    traced = {
        "tests": {"tests/test_x.py::test_it": {"took_s": 0.1, "lines": {module: [1]}}},
        "shared": {"took_s": 0.0, "lines": {}},
    }
    monkeypatch.setattr(mutants, "traces", lambda files, folder: {"tests/test_x.py": traced})
    monkeypatch.setattr(mutants, "mutants_of", lambda module, share, seed: ([], 10, 0))
    monkeypatch.setattr(mutants, "answers", lambda jobs, folder: [{"module": module, "change": -1, "code": 1}])
    with pytest.raises(SystemExit, match=r"the tests of .*pairs\.py fail without any mutant"):
        mutants.try_area("numbers", modules=[module], folder=tmp_path, sample=1, seed=1, load=9.0)


def test_a_module_that_is_not_there_is_refused_with_the_legal_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mutants.main(["--only", "nothing"])
    assert "legal: vlmeter/numbers/clusters.py" in capsys.readouterr().err
