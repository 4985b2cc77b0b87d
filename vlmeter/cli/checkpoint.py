"""Command that writes a preset as a folder which a serving engine can run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from vlmeter.cli.app import say
from vlmeter.common.errors import UserError


def checkpoint(
    folder: Annotated[Path, typer.Argument(help="folder to write; absent, or empty", metavar="FOLDER")],
    family: Annotated[str, typer.Option("--family", help="model family; a wrong name is answered with all of them")],
    preset: Annotated[str, typer.Option("--preset", help="which of the family's presets, such as 7b")],
    weights: Annotated[bool, typer.Option("--weights", help="write random weights too (a 7b takes 15 GB)")] = False,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="number format of the weights")
    ] = "bfloat16",
    seed: Annotated[int, typer.Option("--seed", help="of the random weights")] = 0,
) -> None:
    """Write a preset as a checkpoint: configuration, tokenizer, processor and chat template.

    A serving engine can run it, with weights of its own making (vLLM, SGLang: --load-format dummy) or with --weights.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; name a folder that is absent or empty")
    if folder.is_dir() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty, and nothing is written over; name a folder that is absent or empty")
    from vlmeter.models.served_checkpoint import write_checkpoint

    write_checkpoint(folder, family=family, preset=preset, weights=weights, dtype=dtype, seed=seed)
    written = "with random weights" if weights else "without weights"
    say(f"{folder} holds {family} {preset} in {dtype}, {written}")
