"""A line that somebody changes in an installed library makes the cells stale that it ran for, and says which file."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.fakes import FakeRunner
from tests.support.studies import machine_of, run_fake, study_of
from vlmeter.common.errors import Unsupported
from vlmeter.records import installed
from vlmeter.records.installed import changed_files, keep_listing, loaded_files, packages_here
from vlmeter.records.record import read_record
from vlmeter.records.states import cell_states, on_other_code, states_in_words
from vlmeter.records.store import Journal, State, some_of
from vlmeter.study.layout import Layout
from vlmeter.study.plan import build_plan

STUDY = study_of(experiments={"vision_tokens": {"tilings": ["1x1", "1x2"]}})


@pytest.fixture(autouse=True)
def _fresh_caches() -> Iterator[None]:
    """Files are read once per process, and these tests change them."""
    caches = (
        installed.changed_files,
        installed._digest_first_seen,
        installed._places_of,
        installed._version_of,
    )
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def forget_caches() -> None:
    installed.changed_files.cache_clear()
    installed._places_of.cache_clear()


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that counts as one that runs models, put in front by PYTHONPATH, with torch beside it."""
    folder = tmp_path / "site" / "flash_attn"
    (folder / "layers").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "layers" / "__init__.py").write_text("")
    (folder / "layers" / "rotary.py").write_text("SPEED = 1\n")
    (folder / "unused.py").write_text("SPEED = 1\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.setitem(sys.modules, "torch", sys.modules.get("torch", ModuleType("torch")))
    for name in ("flash_attn", "flash_attn.layers", "flash_attn.layers.rotary"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.import_module("flash_attn.layers.rotary")
    return folder


def own(listing: Mapping[str, str]) -> set[str]:
    return {name for name in listing if name.startswith("flash_attn/")}


# --- the listing ------------------------------------------------------------------------------------


def test_the_files_that_were_loaded_are_listed_and_no_others(library: Path) -> None:
    expected = {"flash_attn/__init__.py", "flash_attn/layers/__init__.py", "flash_attn/layers/rotary.py"}
    assert own(loaded_files()) == expected
    assert installed.TORCH_VERSION in loaded_files()


def test_where_torch_is_not_loaded_no_model_runs_and_nothing_is_listed(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    assert loaded_files() == {}


def test_a_changed_file_is_named_and_one_that_was_not_loaded_is_none_of_it(library: Path, tmp_path: Path) -> None:
    digest = keep_listing(tmp_path, loaded_files())
    (library / "unused.py").write_text("SPEED = 2\n")
    assert changed_files(tmp_path, digest) == ()
    forget_caches()
    (library / "layers" / "rotary.py").write_text("import time; time.sleep(0.01)\n")
    assert changed_files(tmp_path, digest) == ("flash_attn/layers/rotary.py",)
    forget_caches()
    (library / "__init__.py").unlink()
    assert changed_files(tmp_path, digest) == ("flash_attn/__init__.py", "flash_attn/layers/rotary.py")


def test_a_file_that_is_changed_after_it_was_loaded_is_listed_as_it_was_loaded(library: Path, tmp_path: Path) -> None:
    loaded_files()
    (library / "layers" / "rotary.py").write_text("SPEED = 2\n")
    assert changed_files(tmp_path, keep_listing(tmp_path, loaded_files())) == ("flash_attn/layers/rotary.py",)


def test_another_copy_that_comes_first_counts(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PYTHONPATH and an editable installation put one there."""
    digest = keep_listing(tmp_path, loaded_files())
    other = tmp_path / "first" / "flash_attn"
    (other / "layers").mkdir(parents=True)
    for name in ("__init__.py", "layers/__init__.py", "layers/rotary.py"):
        (other / name).write_text((library / name).read_text())
    monkeypatch.syspath_prepend(str(other.parent))
    for name in ("flash_attn", "flash_attn.layers", "flash_attn.layers.rotary"):
        monkeypatch.delitem(sys.modules, name)
    assert changed_files(tmp_path, digest) == (), "the same bytes are the same code, wherever they lie"
    forget_caches()
    (other / "layers" / "rotary.py").write_text("SPEED = 3\n")
    assert changed_files(tmp_path, digest) == ("flash_attn/layers/rotary.py",)


def test_a_package_that_is_gone_is_gone_with_all_its_files(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = keep_listing(tmp_path, {name: was for name, was in loaded_files().items() if name.startswith("flash")})
    monkeypatch.setattr(installed.util, "find_spec", lambda name: None)
    assert len(changed_files(tmp_path, digest)) == 3


def test_copied_code_of_a_checkpoint_that_is_gone_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is copied again from the checkpoint, which is a part of the fingerprint by itself."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path))
    copy = tmp_path / "transformers_modules" / "abc" / "modeling.py"
    copy.parent.mkdir(parents=True)
    copy.write_text("SPEED = 1\n")
    digest = keep_listing(tmp_path, {"transformers_modules/abc/modeling.py": installed.digest_of(copy.read_bytes())})
    assert changed_files(tmp_path, digest) == ()
    copy.write_text("SPEED = 2\n")
    forget_caches()
    assert changed_files(tmp_path, digest) == ("transformers_modules/abc/modeling.py",)
    copy.unlink()
    forget_caches()
    assert changed_files(tmp_path, digest) == ()


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b'{"a/b.py": 1}', b"\xff"])
def test_a_listing_that_cannot_be_read_vouches_for_nothing(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "abc.json").write_bytes(content)
    assert changed_files(tmp_path, "abc") == ("no listing abc.json",)


def test_a_listing_lies_under_its_own_digest_and_is_mended(tmp_path: Path) -> None:
    digest = keep_listing(tmp_path, {"b": "2", "a": "1"})
    assert keep_listing(tmp_path, {"a": "1", "b": "2"}) == digest
    (tmp_path / f"{digest}.json").write_text("")
    keep_listing(tmp_path, {"a": "1", "b": "2"})
    assert json.loads((tmp_path / f"{digest}.json").read_text()) == {"a": "1", "b": "2"}


def test_comparing_imports_nothing(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from vlmeter.records.installed import changed_files, keep_listing; "
        "names = ['transformers/__init__.py', 'PIL/Image.py', 'torch/version.py']; "
        "digest = keep_listing(Path(sys.argv[1]), dict.fromkeys(names, 'other')); "
        "print(changed_files(Path(sys.argv[1]), digest) == tuple(sorted(names)), "
        "{'torch', 'transformers', 'PIL'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True set()"


def test_a_folder_of_a_packages_name_is_no_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "awq").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert packages_here()["awq"] == installed.ABSENT


# --- through sessions -------------------------------------------------------------------------------


def states(results: Path) -> list[State]:
    forget_caches()
    return [state for _, state in cell_states(STUDY, Layout(STUDY.study, results))]


def measure(results: Path, listing: Mapping[str, str]) -> int:
    machine = replace(machine_of(FakeRunner()), installed=lambda: listing)
    return run_fake(STUDY, results, machine=machine).measured


def test_changed_code_makes_the_cells_stale_and_a_session_measures_them_again(library: Path, tmp_path: Path) -> None:
    assert measure(tmp_path, loaded_files()) == 2
    assert all("installed" not in state.reasons for state in states(tmp_path))
    assert measure(tmp_path, loaded_files()) == 0
    (library / "layers" / "rotary.py").write_text("SPEED = 2\n")
    found = states(tmp_path)
    assert [state.files for state in found] == [("flash_attn/layers/rotary.py",)] * 2
    assert "installed (flash_attn/layers/rotary.py)" in found[0].words()
    pairs = cell_states(STUDY, Layout(STUDY.study, tmp_path))
    assert len(on_other_code(pairs)) == 2
    assert "2 stale: " in (said := states_in_words(pairs, "fake"))
    assert "installed (flash_attn/layers/rotary.py)" in said
    installed._digest_first_seen.cache_clear()  # a new session is a new process
    assert measure(tmp_path, loaded_files()) == 2
    assert all("installed" not in state.reasons for state in states(tmp_path))


def test_a_machine_that_runs_no_model_has_no_such_part(tmp_path: Path) -> None:
    run_fake(STUDY, tmp_path)
    layout = Layout(STUDY.study, tmp_path)
    assert all("installed" not in read_record(layout.record(cell)).fingerprint for cell in build_plan(STUDY))
    assert not layout.installed.exists()


def test_a_crashed_sessions_records_are_not_taken_back_onto_other_code(library: Path, tmp_path: Path) -> None:
    measure(tmp_path, loaded_files())
    layout = Layout(STUDY.study, tmp_path)
    journal = Journal(tmp_path, STUDY.study, "fake")
    (library / "layers" / "rotary.py").write_text("SPEED = 2\n")
    for cell in build_plan(STUDY):
        journal.keep(read_record(layout.record(cell)))
        layout.record(cell).unlink()
    forget_caches()
    installed._digest_first_seen.cache_clear()
    assert measure(tmp_path, loaded_files()) == 2


def test_what_could_not_run_for_want_of_a_package_is_tried_again_once_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load() -> FakeRunner:
        raise Unsupported("needs mamba_ssm, which is not installed")

    assert run_fake(STUDY, tmp_path, machine=machine_of(FakeRunner(), load=load)).unsupported == 2
    assert all("installed" not in state.reasons for state in states(tmp_path))
    package = tmp_path / "site" / "mamba_ssm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(package.parent))
    installed._version_of.cache_clear()
    assert [state.files for state in states(tmp_path)] == [("mamba_ssm",)] * 2


def test_three_files_are_named_and_the_others_counted() -> None:
    assert some_of(["a", "b", "c"]) == "a, b, c"
    assert some_of(["a", "b", "c", "d", "e"]) == "a, b, c, 2 more"
