"""What code means, and what it rests on: enough to know what has to be made again, and no more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.imports import closure, module_names
from vlmeter.common import code
from vlmeter.common.code import code_digest, meaning, rests_on


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library of two modules in the place of vlmeter."""
    folder = tmp_path / "vlmeter"
    folder.mkdir()
    (folder / "__init__.py").write_text("__version__ = '1'\n")
    (folder / "top.py").write_text("from vlmeter.base import VALUE\n\nRESULT = VALUE + 1\n")
    (folder / "base.py").write_text('"""Words."""\n\n# a comment\nVALUE = 1\n')
    monkeypatch.setattr(code, "ROOT", tmp_path)
    forget()
    yield folder
    monkeypatch.undo()
    forget()


def forget() -> None:
    for cache in (code._read, code.rests_on, code.code_digest):
        cache.cache_clear()


def digest_after(file: Path, content: str) -> str:
    file.write_text(content)
    forget()
    return code_digest("vlmeter.top")


@pytest.mark.parametrize(
    "content",
    [
        "VALUE = 1\n",
        '"""Other words."""\n\n\nVALUE = 1  # another comment\n',
        '"""Words."""\nfrom typing import TYPE_CHECKING\n'.replace("from typing import TYPE_CHECKING\n", "")
        + "VALUE = (\n    1\n)\n",
    ],
)
def test_comments_docstrings_and_line_breaks_mean_nothing(package: Path, content: str) -> None:
    before = code_digest("vlmeter.top")
    assert digest_after(package / "base.py", content) == before


@pytest.mark.parametrize("content", ["VALUE = 2\n", "VALUE = 1\nOTHER = 1\n", "VALUE = '1'\n"])
def test_any_other_edit_of_a_module_below_is_seen(package: Path, content: str) -> None:
    before = code_digest("vlmeter.top")
    assert digest_after(package / "base.py", content) != before


def test_a_docstring_inside_a_function_means_nothing_and_its_body_does(package: Path) -> None:
    forms = [
        "VALUE = 1\ndef f():\n    'words'\n    return 1\n",
        "VALUE = 1\ndef f():\n    'more words'\n    return 1\n",
        "VALUE = 1\ndef f():\n    return 2\n",
    ]
    first, second, third = (digest_after(package / "base.py", content) for content in forms)
    assert first == second != third


def test_an_import_inside_a_function_counts_and_one_for_types_does_not(package: Path) -> None:
    (package / "other.py").write_text("X = 1\n")
    inside = "def f():\n    from vlmeter.other import X\n    return X\n"
    digest_after(package / "base.py", inside)
    assert rests_on("vlmeter.top") == ("vlmeter.base", "vlmeter.other", "vlmeter.top")
    types = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from vlmeter.other import X\n"
    digest_after(package / "base.py", types)
    assert rests_on("vlmeter.top") == ("vlmeter.base", "vlmeter.top")


def test_another_version_of_vlmeter_is_no_other_code(package: Path) -> None:
    before = code_digest("vlmeter.top")
    assert digest_after(package / "__init__.py", "__version__ = '2'\n") == before


def test_what_a_source_means_is_kept_between_processes(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(code, "_KEPT", code._Kept())
    before = code_digest("vlmeter.top")
    assert list((tmp_path / "cache" / "vlmeter").glob("code-*.json"))
    monkeypatch.setattr(code, "_KEPT", code._Kept())
    monkeypatch.setattr(code, "_parsed", lambda source: pytest.fail("it was parsed again"))
    forget()
    assert code_digest("vlmeter.top") == before


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"[1, 2]"])
def test_a_cache_that_is_damaged_or_cannot_be_written_costs_time_and_nothing_else(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    before = code_digest("vlmeter.top")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = code._Kept()
    kept.path.parent.mkdir(parents=True)
    kept.path.write_bytes(content)
    monkeypatch.setattr(code, "_KEPT", kept)
    forget()
    assert code_digest("vlmeter.top") == before
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(code, "_KEPT", code._Kept())
    forget()
    assert code_digest("vlmeter.top") == before


def test_a_name_that_is_no_module_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vlmeter\.nothing is no module"):
        meaning("vlmeter.nothing")


@pytest.mark.parametrize("name", ["vlmeter.measure.rounds", "vlmeter.report.page", "vlmeter.cli.main"])
def test_modules_rest_on_what_they_really_import(name: str) -> None:
    """Two ways of reading imports agree."""
    assert set(rests_on(name)) == closure({name}) - {"vlmeter"}


def test_every_module_has_a_meaning_of_its_own() -> None:
    busy = [name for name in module_names() if "." in name and not name.endswith("__init__")]
    told = {name: meaning(name) for name in busy}
    packages = {name for name in busy if any(other.startswith(f"{name}.") for other in busy)}
    modules = [told[name] for name in busy if name not in packages]
    assert len(set(modules)) == len(modules)
