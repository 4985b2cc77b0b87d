"""Nobody but the families knows a family by its name: what code wants to know of one, the family says of itself."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.imports import ROOT, module_names, source_of
from vlmeter.common.code import digest_of
from vlmeter.models.families import preset_data
from vlmeter.models.families.preset_data import FOLDER, preset_digest, read_presets
from vlmeter.models.families.registry import FAMILIES, closest_family, family_of, get_family
from vlmeter.study.subject import Subject

#: Where a family's name may stand: its own package, and the native port of the first Molmo.
AT_HOME = ("vlmeter.models.families", "vlmeter.models.molmo1")

NAMES = re.compile(rf"\b(?:{'|'.join(FAMILIES)})\b")


def docstrings(tree: ast.AST) -> set[int]:
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.add(id(first.value))
    return found


def names_in(text: str) -> Iterator[str]:
    """Names of families in strings, identifiers and imports, docstrings and comments left out."""
    tree = ast.parse(text)
    silent = docstrings(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield from NAMES.findall(node.value)
        elif isinstance(node, ast.Name):
            yield from NAMES.findall(node.id)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "vlmeter.models.families":
                yield from (alias.name for alias in node.names if alias.name in FAMILIES)
            elif node.module.removeprefix("vlmeter.models.families.") in FAMILIES:
                yield node.module


@pytest.mark.parametrize("name", [name for name in module_names() if not name.startswith(AT_HOME)])
def test_no_module_outside_of_the_families_names_one(name: str) -> None:
    assert list(names_in(source_of(name).read_text(encoding="utf-8"))) == []


def test_a_name_is_seen_wherever_it_stands_in_code() -> None:
    assert list(names_in('"""molmo"""\nif family == "molmo": print(f"family generic of {x}")')) == ["molmo", "generic"]
    assert list(names_in("from vlmeter.models.families.pixtral import FAMILY")) == ["vlmeter.models.families.pixtral"]
    assert list(names_in("from vlmeter.models.families import gemma3")) == ["gemma3"]
    assert list(names_in("weights = 'allenai/Molmo-7B-D-0924'")) == []


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_is_a_file_a_line_and_its_presets(name: str) -> None:
    family = get_family(name)
    assert family.name == name
    assert list(family.presets) == list(read_presets(name))
    assert next(iter(family.presets)) == "nano"
    for preset, entry in read_presets(name).items():
        assert entry["about"], preset
        assert entry["source"], preset
        assert entry["config"]["model_type"], preset


def test_every_file_of_presets_is_a_familys() -> None:
    assert sorted(path.stem for path in FOLDER.glob("*")) == sorted(FAMILIES)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_preset_is_read_by_its_own_family(name: str) -> None:
    for entry in read_presets(name).values():
        read_by = family_of(entry["config"])
        assert read_by == (None if get_family(name).takes_any_checkpoint else name)


def test_exactly_one_family_takes_any_checkpoint() -> None:
    assert [name for name in FAMILIES if get_family(name).takes_any_checkpoint] == ["generic"]
    assert [name for name in FAMILIES if not get_family(name).loads_by_transformers] == ["molmo"]


def test_what_a_preset_holds_makes_its_cells_stale_and_words_for_people_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = preset_digest("pixtral", "nano")
    monkeypatch.setattr(preset_data, "FOLDER", tmp_path)
    entries = json.loads((FOLDER / "pixtral.json").read_text())

    def digest(**changes: object) -> str | None:
        read_presets.cache_clear()
        (tmp_path / "pixtral.json").write_text(json.dumps({"nano": {**entries["nano"], **changes}}))
        return preset_digest("pixtral", "nano")

    try:
        assert digest(about="something else", source="nobody") == known
        assert digest(processor_arguments={"patch_size": 8}) not in (known, None)
        assert preset_digest("pixtral", "12b") is None
    finally:
        read_presets.cache_clear()
    assert digest_of(b"") != known


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("qwen2.5-vl", "qwen2_5_vl"),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "qwen2_5_vl"),
        ("Qwen3-VL", "qwen3_vl"),
        ("mulmo", "molmo"),
        ("InternVL3", "internvl"),
        ("llava-next", "llava_next"),
        ("llava_one_vision", "llava_onevision"),
        ("SmolVLM2", "smolvlm"),
        ("qwen", None),
        ("spoon", None),
    ],
)
def test_a_name_that_is_near_a_familys_is_said_to_mean_it(written: str, meant: str | None) -> None:
    assert closest_family(written) == meant
    hint = f"did you mean {meant}" if meant else "is not known; legal"
    with pytest.raises(ValueError, match=hint):
        Subject(family=written, preset="nano")


def test_the_presets_are_a_part_of_the_package() -> None:
    assert '"**/*.json"' in (ROOT / "pyproject.toml").read_text()
