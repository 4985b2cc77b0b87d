"""`vlmeter checkpoint`: a preset as files that an engine can run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vlmeter.cli import main  # noqa: F401, registers the commands
from vlmeter.cli.app import app
from vlmeter.common.errors import UserError

NANO = ("--family", "llava_next", "--preset", "nano")


def run(*arguments: str) -> str:
    """Run the command; returns what it says."""
    return CliRunner().invoke(app, ["checkpoint", *arguments], catch_exceptions=False).stdout


def test_a_published_preset_is_written_as_published_and_without_weights(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "here"
    said = run("--family", "qwen2_5_vl", "--preset", "7b", str(folder))
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert (config["dtype"], config["text_config"]["hidden_size"]) == ("bfloat16", 3584)
    wanted = {"tokenizer.json", "preprocessor_config.json", "chat_template.jinja", "generation_config.json"}
    assert wanted <= {path.name for path in folder.iterdir()}
    assert not list(folder.glob("*.safetensors"))
    assert said == f"{folder} holds qwen2_5_vl 7b in bfloat16, without weights\n"


def test_weights_are_written_in_the_format_that_was_asked_for(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    said = run(*NANO, "--weights", "--dtype", "float16", str(tmp_path / "made"))
    weights = load_file(tmp_path / "made" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    assert said.endswith("holds llava_next nano in float16, with random weights\n")


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    run(*NANO, str(tmp_path))
    assert (tmp_path / "config.json").exists()


def test_nothing_is_written_over(tmp_path: Path) -> None:
    kept = tmp_path / "config.json"
    kept.write_text("{}")
    with pytest.raises(UserError, match="is not empty, and nothing is written over"):
        run(*NANO, str(tmp_path))
    with pytest.raises(UserError, match="is a file"):
        run(*NANO, str(kept))
    assert kept.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [kept]


def test_a_preset_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="legal for llava_next: nano, 7b"):
        run("--family", "llava_next", "--preset", "70b", str(tmp_path / "made"))
    assert not (tmp_path / "made").exists()
