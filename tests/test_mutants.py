"""The benchmark of the tests names what there is, and believes no tests that fail anyhow."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import mutants


@pytest.mark.parametrize("module", sorted(mutants.TARGETS))
def test_every_module_and_the_tests_that_should_notice_are_there(module: str) -> None:
    assert (mutants.ROOT / module).is_file()
    for name in mutants.TARGETS[module]:
        assert (mutants.ROOT / name).is_file()


@pytest.mark.needs("git")
def test_mutants_are_made_in_a_copy_of_what_git_knows(tmp_path: Path) -> None:
    mutants.copy_of_repository(tmp_path)
    for module in mutants.TARGETS:
        assert (tmp_path / module).read_bytes() == (mutants.ROOT / module).read_bytes()
    assert not (tmp_path / ".git").exists()


def test_tests_that_fail_without_a_mutant_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise every mutant would seem to be noticed."""
    (tmp_path / "test_broken.py").write_text("def test_it():\n    assert False\n", encoding="utf-8")
    monkeypatch.setitem(mutants.TARGETS, "module.py", ("test_broken.py",))
    with pytest.raises(SystemExit, match=r"the tests of module\.py fail without any mutant"):
        mutants.try_module("module.py", folder=tmp_path, sample=1, seed=1)


def test_a_change_is_said_on_one_line() -> None:
    diff = "--- mutation diff ---\n--- a/x.py\n+++ b/x.py\n@@ -1 +1 @@\n-    a + b\n+    a - b\n"
    assert mutants._change(diff) == "a + b -> a - b"


def test_a_module_that_is_not_there_is_refused_with_the_legal_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        mutants.main(["--only", "nothing"])
    assert "legal: vlmeter/numbers/medians.py" in capsys.readouterr().err
