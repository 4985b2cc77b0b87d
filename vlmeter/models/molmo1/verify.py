"""Does the port compute what the original computes?

A *case* is one prompt that the original (the published remote code, on the last transformers that ran it) has
worked through: its inputs, the features of its vision backbone, the logits of its last positions, and the
tokens that it went on to say. A checkpoint passes a case when features and logits agree within a tolerance,
measured as ||ours - theirs|| / ||theirs|| in float32, and when greedy decoding says the same tokens, with the
KV cache and without.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmeter.common.errors import UserError
from vlmeter.models.molmo1.checkpoint import load_model, open_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

    from vlmeter.models.molmo1.modeling import MolmoForCausalLM

DEFAULT_TOLERANCE = 1e-4
"""Two float32 implementations of one formula differ by about 1e-6; a wrong formula by far more than this."""

_ARRAYS = ("input_ids", "images", "image_masks", "image_input_idx", "features", "logits_last", "generated")


@dataclass(frozen=True)
class CaseResult:
    """How the port fared on one case. The errors are relative, `||ours - theirs|| / ||theirs||`."""

    case: Path
    features_error: float
    logits_error: float
    tokens_equal_with_cache: bool
    tokens_equal_without_cache: bool
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether everything agreed."""
        return (
            self.features_error <= self.tolerance
            and self.logits_error <= self.tolerance
            and self.tokens_equal_with_cache
            and self.tokens_equal_without_cache
        )


def verify(
    checkpoint: str | Path,
    cases: Sequence[Path],
    *,
    tolerance: float = DEFAULT_TOLERANCE,
    device: str = "cpu",
    attn_implementation: str = "sdpa",
) -> list[CaseResult]:
    """Run a checkpoint in float32 on every case (`.npz`) and compare; raise `UserError` for a broken file."""
    import torch

    recorded = [(path, read_case(path)) for path in cases]
    model = load_model(
        open_checkpoint(checkpoint),
        device=device,
        dtype=torch.float32,
        attn_implementation=attn_implementation,
    )
    return [verify_case(model, path, case, tolerance=tolerance) for path, case in recorded]


def read_case(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Read the arrays of a case; raise `UserError` if the file is not one."""
    try:
        with np.load(path) as archive:
            missing = [name for name in _ARRAYS if name not in archive]
            if missing:
                raise UserError(f"{path}: has no array {missing[0]}; a case has {', '.join(_ARRAYS)}")
            return {name: archive[name] for name in _ARRAYS}
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from error


def case_tensors(case: Mapping[str, np.ndarray[Any, Any]], *, device: str = "cpu") -> dict[str, Tensor]:
    """Return a case's inputs as `MolmoForCausalLM.forward` takes them: float32, with a batch dimension."""
    import torch

    inputs = {
        "input_ids": case["input_ids"].astype(np.int64),
        "images": case["images"].astype(np.float32),
        "image_masks": case["image_masks"].astype(np.float32),
        "image_input_idx": case["image_input_idx"].astype(np.int64),
    }
    return {name: torch.from_numpy(array)[None].to(device) for name, array in inputs.items()}


def verify_case(
    model: MolmoForCausalLM, path: Path, case: Mapping[str, np.ndarray[Any, Any]], *, tolerance: float
) -> CaseResult:
    """Compare one case with what `model` (in float32) makes of it.

    The end-of-sequence token is suppressed, as it was for the recorded tokens, if the checkpoint's
    configuration names one (those of the published models do not, and neither do the recorded ones here).
    """
    import torch

    inputs = case_tensors(case, device=str(model.device))
    eos = model.config.architecture.eos_token_id
    suppressed = [] if eos is None else [eos]
    with torch.inference_mode():
        features = model.vision_backbone(inputs["images"], inputs["image_masks"])[0]
        logits = model(**inputs, use_cache=False, logits_to_keep=len(case["logits_last"])).logits[0]
        said = {
            use_cache: greedy_tokens(
                model,
                inputs,
                tokens=len(case["generated"]),
                suppressed=suppressed,
                use_cache=use_cache,
            )
            for use_cache in (True, False)
        }
    return CaseResult(
        case=path,
        features_error=relative_error(features, case["features"]),
        logits_error=relative_error(logits, case["logits_last"]),
        tokens_equal_with_cache=said[True] == case["generated"].tolist(),
        tokens_equal_without_cache=said[False] == case["generated"].tolist(),
        tolerance=tolerance,
    )


def greedy_tokens(
    model: MolmoForCausalLM,
    inputs: Mapping[str, Tensor],
    *,
    tokens: int,
    suppressed: Sequence[int] = (),
    use_cache: bool = True,
    cache: Any = None,
) -> list[int]:
    """Decode `tokens` tokens greedily by plain forward passes, never choosing a suppressed id.

    Without a cache every step runs the whole prompt again, picture included. `cache` (empty) replaces the
    default dynamic one.
    """
    import torch
    from transformers.cache_utils import DynamicCache

    if use_cache and cache is None:
        cache = DynamicCache(config=model.config)
    step = dict(inputs)
    ids = inputs["input_ids"]
    said: list[int] = []
    for _ in range(tokens):
        logits = model(**step, cache=cache, use_cache=use_cache, logits_to_keep=1).logits[0, -1].clone()
        logits[list(suppressed)] = -torch.inf
        token = logits.argmax().view(1, 1)
        said.append(int(token))
        if use_cache:
            step = {"input_ids": token}
        else:
            ids = torch.cat([ids, token], dim=1)
            step = {**inputs, "input_ids": ids}
    return said


def relative_error(ours: Tensor, theirs: np.ndarray[Any, Any]) -> float:
    """Return ||ours - theirs|| / ||theirs||; infinite where the shapes differ or something is not finite."""
    mine = ours.detach().float().cpu().numpy().astype(np.float64)
    if mine.shape != theirs.shape or not np.isfinite(mine).all():
        return float("inf")
    return float(np.linalg.norm(mine - theirs) / np.linalg.norm(theirs.astype(np.float64)))
