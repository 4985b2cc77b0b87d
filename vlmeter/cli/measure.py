"""The command that goes from a model to an answer in one line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vlmeter.cli.drafts import fitting_dtype, name_of, subject_keys, write_new
from vlmeter.cli.run import run_study
from vlmeter.cli.show import AsJson
from vlmeter.common.errors import UserError

#: What an `--image` is that names no file.
SIZE = re.compile(r"\d+x\d+")

#: Sizes of made images through which the cost of a crop and of a token may be told, in px; and how many are taken.
COST_SIZES = ("224x224", "336x336", "336x672", "448x448", "672x448", "672x672", "896x896", "672x1344", "1344x1344")
FEWEST_SIZES, MOST_SIZES = 3, 5

#: How carefully: nine samples have an interval that holds what it says, and nobody waits long for a first answer.
SAMPLING: Mapping[str, Any] = {
    "min_samples": 9,
    "max_samples": 25,
    "relative_half_width_fraction": 0.01,
    "max_seconds_per_cell": 10,
}

OPENING = (
    "Written by `vlmeter measure`. Go on from here: edit it, then `vlmeter run` it; what still holds is not measured "
    "again. Give it another name under `study` to keep these results apart."
)


def measure(
    model: Annotated[
        str | None,
        typer.Argument(help="a hub id such as Qwen/Qwen2.5-VL-7B-Instruct, or a checkpoint's folder", metavar="MODEL"),
    ] = None,
    image: Annotated[
        list[str] | None,
        typer.Option("--image", help="a size such as 1344x1344, or an image file; repeatable", metavar="WxH|FILE"),
    ] = None,
    output_tokens: Annotated[
        list[int] | None,
        typer.Option("--output-tokens", metavar="N", min=1, help="length of the answer; repeatable; default 128"),
    ] = None,
    question: Annotated[
        list[str] | None,
        typer.Option("--question", metavar="TEXT", help="what is asked; repeatable; default: 32 tokens of text"),
    ] = None,
    backend: Annotated[str | None, typer.Option("--backend", help="way of running the model; default eager")] = None,
    url: Annotated[
        str | None, typer.Option("--url", help="a server that runs, such as http://127.0.0.1:8000/v1")
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="random weights, with --family and --preset; latency depends on shapes")
    ] = False,
    family: Annotated[
        str | None, typer.Option("--family", help="model family; default: that of the checkpoint")
    ] = None,
    preset: Annotated[str | None, typer.Option("--preset", help="architecture of random weights, such as nano")] = None,
    revision: Annotated[str | None, typer.Option("--revision", help="branch, tag or commit of a hub id")] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="number format; default: bfloat16 on a GPU, float32 on a processor")
    ] = None,
    device: Annotated[str, typer.Option("--device", help="auto, cpu, cuda, or cuda:0")] = "auto",
    costs: Annotated[
        bool,
        typer.Option("--costs/--no-costs", help="measure some more image sizes, for the cost of a crop and a token"),
    ] = True,
    runs: Annotated[
        int | None,
        typer.Option("--runs", min=1, help="sessions, each in a process of its own; intervals hold how they differ"),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="name of the study; default: made of the model and what is asked")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure one model on your images in one line: phases, costs, distance to the floor, trust.

    Writes a study into results/, runs it through the same workflow as every study, and says where the report is and
    which file to go on from. The same line again shows what is there.
    """
    from vlmeter.study.draft import study_text
    from vlmeter.study.loader import parse_study
    from vlmeter.study.plan import build_plan

    subject = subject_keys(model, random=random, family=family, preset=preset, revision=revision)
    subject |= _way(backend, url)
    subject |= {"dtype": dtype or fitting_dtype(device), "device": device}
    asked = _requests(image or ["1344x1344"], output_tokens or [128], question or [])
    content: dict[str, Any] = {"study": "draft"}
    content |= {} if runs is None else {"runs": runs}
    content["subjects"] = {name_of(subject): subject}
    content["experiments"] = {"requests": asked}
    content["sampling"] = dict(SAMPLING)
    study = parse_study(content, source="measure")
    build_plan(study)
    if costs and (sizes := _cost_sizes(content)):
        content["experiments"]["vision_tokens"] = {"image_sizes": sizes, "text_tokens": 32}
    content["study"] = name or f"{name_of(subject)}-{_digest(content)}"
    build_plan(parse_study(content, source="--name" if name else "measure"))
    path = Path("results") / content["study"] / "study.yaml"
    write_new(path, study_text(content, opening=OPENING))
    run_study(path, written_for_this=True, as_json=as_json)


def _way(backend: str | None, url: str | None) -> dict[str, Any]:
    """How it is run: a backend, or the one that speaks to a server."""
    if url is None:
        return {} if backend is None else {"backend": backend}
    from vlmeter.backends.registry import BACKENDS, get_backend

    speakers = [name for name in BACKENDS if (keys := get_backend(name).keys) and "endpoint" in keys.model_fields]
    if backend not in (None, *speakers):
        raise UserError(f"--url: a server runs the model by itself, and --backend is {backend}; give one of them")
    return {"backend": speakers[0], "endpoint": {"url": url}}


def _requests(images: Sequence[str], output_tokens: Sequence[int], questions: Sequence[str]) -> dict[str, Any]:
    """The keys of the experiment that asks for these images with these lengths."""
    sizes = [image for image in images if SIZE.fullmatch(image)]
    pictures = [image for image in images if image not in sizes]
    given: dict[str, list[Any]] = {
        "image_sizes": sizes,
        "pictures": pictures,
        "output_tokens": [*output_tokens],
        "questions": [*questions],
    }
    return {key: list(dict.fromkeys(values)) for key, values in given.items() if values}


def _cost_sizes(content: Mapping[str, Any]) -> list[str]:
    """A few of COST_SIZES that the model takes, evenly spread, where they differ in tokens at all; else none."""
    from vlmeter.study.loader import parse_study
    from vlmeter.study.plan import build_plan

    found: dict[int, str] = {}
    for size in COST_SIZES:
        alone = {**content, "experiments": {"vision_tokens": {"image_sizes": [size]}}}
        try:
            (cell,) = build_plan(parse_study(alone, source="measure"))
        except UserError:
            continue
        found.setdefault(cell.expected.prompt_tokens or 0, size)
    sizes = [found[tokens] for tokens in sorted(found)]
    if len(sizes) <= MOST_SIZES:
        return sizes if len(sizes) >= FEWEST_SIZES else []
    return [sizes[round(place * (len(sizes) - 1) / (MOST_SIZES - 1))] for place in range(MOST_SIZES)]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:6]
