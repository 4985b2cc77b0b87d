"""Verifying finds a wrong model, and says what is wrong with a case file."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlmeter.common.errors import UserError
from vlmeter.models.molmo1.verify import CaseResult, relative_error, verify

from .support.molmo import GOLDEN

CASE = GOLDEN["7B-D"] / "case_1x1.npz"


def test_the_checkpoint_that_made_a_case_passes_it() -> None:
    (result,) = verify(GOLDEN["7B-D"], [CASE])
    assert result.passed
    assert result.case == CASE


def test_a_changed_weight_fails_the_case(tmp_path: Path) -> None:
    shutil.copy(GOLDEN["7B-D"] / "config.json", tmp_path)
    tensors = load_file(GOLDEN["7B-D"] / "model.safetensors")
    name = "model.transformer.blocks.2.ff_out.weight"
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, tmp_path / "model.safetensors")
    (result,) = verify(tmp_path, [CASE])
    assert result.features_error < 1e-4 < result.logits_error
    assert not result.passed


def test_one_wrong_token_fails_a_case() -> None:
    right = CaseResult(CASE, 1e-6, 1e-6, True, True, tolerance=1e-4)
    wrong = CaseResult(CASE, 1e-6, 1e-6, True, False, tolerance=1e-4)
    assert right.passed
    assert not wrong.passed


def test_something_not_finite_or_of_another_shape_is_infinitely_wrong() -> None:
    assert relative_error(torch.tensor([1.0, float("nan")]), np.ones(2)) == float("inf")
    assert relative_error(torch.ones(3), np.ones(2)) == float("inf")
    assert relative_error(torch.full((2,), 1.1), np.ones(2)) == pytest.approx(0.1)


def test_an_unusable_case_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        verify(GOLDEN["7B-D"], [tmp_path / "none.npz"])
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match="not a readable"):
        verify(GOLDEN["7B-D"], [tmp_path / "text.npz"])
    np.savez(tmp_path / "partial.npz", input_ids=np.zeros(1))
    with pytest.raises(UserError, match="has no array images"):
        verify(GOLDEN["7B-D"], [tmp_path / "partial.npz"])
