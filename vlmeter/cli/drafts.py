"""What the commands share that write a study for a person."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from vlmeter.common.errors import UserError


def subject_keys(
    model: str | None, *, random: bool, family: str | None, preset: str | None, revision: str | None
) -> dict[str, Any]:
    """What is measured: a checkpoint, or random weights of a family's preset."""
    if random == (model is not None):
        raise UserError(
            "give a MODEL (a hub id, or a checkpoint's folder), or --random with --family and --preset; "
            + ("both are given" if random else "neither is")
        )
    if random:
        for option, value in (("--family", family), ("--preset", preset)):
            if value is None:
                raise UserError(f"{option} is missing: random weights need both; a wrong name is answered with all")
        if revision is not None:
            raise UserError("--revision: random weights have none; legal with a hub id")
        return {"family": family, "preset": preset, "weights": "random"}
    if preset is not None:
        raise UserError("--preset: a checkpoint has its own architecture; legal with --random")
    assert model is not None
    found: dict[str, Any] = {"family": family or _family_of(model, revision), "weights": model}
    return found | ({"revision": revision} if revision is not None else {})


def _family_of(model: str, revision: str | None) -> str:
    """Ask a checkpoint's configuration for its family; of a hub id that is fetched, and nothing else of it."""
    from vlmeter.models.checkpoints import open_checkpoint
    from vlmeter.models.families.registry import family_of_checkpoint

    return family_of_checkpoint(open_checkpoint(model, revision=revision, weights=False))


def fitting_dtype(device: str) -> str:
    """The number format that a device is quick at."""
    if device == "auto":
        device = "cuda" if _finds_gpu() else "cpu"
    return "float32" if device == "cpu" else "bfloat16"


def _finds_gpu() -> bool:
    """Whether a session would find a GPU here: asked of the driver, which takes no second and no memory of a device.

    The study keeps `device: auto`, so that this decides a number format and no device.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return False
    try:
        if "+cpu" in metadata.version("torch"):  # a build of PyTorch for processors alone
            return False
        import pynvml

        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount()) > 0
    except Exception:  # no PyTorch, no NVML: there is no GPU to be found, and nothing else depends on it
        return False


def name_of(subject: Mapping[str, Any]) -> str:
    """A name for the subject that a file may bear: of the checkpoint, or family and preset, and how it is run."""
    weights = str(subject["weights"])
    what = f"{subject['family']}-{subject['preset']}" if weights == "random" else Path(weights).name or "model"
    name = "-".join([what, *([subject["backend"]] if "backend" in subject else [])])
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._").lower() or "model"


def write_new(path: Path, text: str) -> None:
    """Write the study, but never over one that says something else."""
    from vlmeter.common.files import write_atomically

    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise UserError(
            f"{path} is there and asks for something else; `vlmeter run {path}` goes on from it, and --name begins "
            "another"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())
