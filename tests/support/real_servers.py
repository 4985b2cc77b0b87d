"""Real servers for tests: made by `tools/servers.py`, started on a nano checkpoint."""

from __future__ import annotations

import io
import os
import random
from pathlib import Path

import pytest
from PIL import Image

from tests.support.gguf import write_gguf
from tools import servers
from vlmeter.backends.endpoint.engine import Engine, Setup
from vlmeter.backends.endpoint.engines import get_engine
from vlmeter.backends.endpoint.request import Picture
from vlmeter.backends.endpoint.server import Server, start
from vlmeter.models.families.base import ImageOptions, SubjectSpec
from vlmeter.models.families.registry import get_family
from vlmeter.models.served_checkpoint import write_checkpoint

#: Long enough for vLLM on two busy cores.
LIMIT_S = 300.0

#: vLLM: no compilation, and room for the largest prompt of these tests in two chunks. llama.cpp: room for it, and the
#: limits of an image's size, which no GGUF file holds.
OPTIONS = {
    "vllm": ("--max-model-len", "4096", "--enforce-eager", "--max-num-batched-tokens", "2048"),
    "llama.cpp": ("--ctx-size", "4096", "--image-min-tokens", "4", "--image-max-tokens", "1280"),
}

SPEC = SubjectSpec(preset="nano", weights="random", revision=None, dtype="bfloat16", attention="sdpa", seed=0)


def program_of(engine: str) -> Path:
    """The program of a real server; skips the test where it was not made, and fails it where CI is set."""
    found = servers.made(engine)
    if found is None and os.environ.get("CI"):
        pytest.fail(f"needs `python tools/servers.py {engine}`, which CI has to run", pytrace=False)
    if found is None:
        pytest.skip(f"needs `python tools/servers.py {engine}`")
    return found


def setup_of(engine: str, family: str, folder: Path, *, marks: bool = False, options: tuple[str, ...] = ()) -> Setup:
    """What a server of a nano preset runs; the checkpoint is written."""
    made_up = engine == "vllm"
    checkpoint = checkpoint_for(engine, family, folder / "checkpoint")
    return Setup(
        program_of(engine),
        checkpoint,
        options=(*OPTIONS.get(engine, ()), *options),
        made_up_weights=made_up,
        marks=marks,
        device="cpu",
    )


def checkpoint_for(engine: str, family: str, folder: Path) -> Path:
    """Write a nano preset as an engine reads it, with made-up weights where it makes up none."""
    write_checkpoint(folder, family=family, preset="nano", weights=engine != "vllm")
    return write_gguf(folder, program_of(engine).parent.parent / "converter") if engine == "llama.cpp" else folder


def serve(engine: Engine, setup: Setup, folder: Path) -> Server:
    """Start it, and wait until it is ready."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    return start(
        lambda port: engine.launch(setup, port),
        ready_paths=engine.ready_paths,
        log=folder / "server.log",
        limit_s=LIMIT_S,
        tell=print,
        what=engine.name,
    )


def predicted_tokens(family: str, width_px: int, height_px: int, text: str) -> tuple[int, int]:
    """Prompt tokens and vision tokens that the family predicts."""
    known = get_family(family)
    image = known.geometry(SPEC).image_tokens(width_px, height_px, options=ImageOptions())
    counted = known.text_tokens(SPEC, text)
    assert counted is not None
    return image.image_tokens + counted, image.vision_tokens


def noise(width_px: int, height_px: int, *, seed: int) -> Picture:
    """A picture that no cache has seen."""
    image = Image.frombytes("RGB", (width_px, height_px), random.Random(seed).randbytes(3 * width_px * height_px))
    file = io.BytesIO()
    image.save(file, "PNG")
    return Picture(file.getvalue(), "image/png")


__all__ = ["get_engine", "noise", "predicted_tokens", "program_of", "serve", "setup_of"]
