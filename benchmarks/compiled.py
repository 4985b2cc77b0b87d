"""What the software costs: one model run eagerly, captured and compiled, in one process, beside the floor.

    python -m benchmarks.compiled --family molmo --preset 7b-d --dtype bfloat16 --images 1344x1008
    python -m benchmarks.compiled --same-tokens          # every family's toy: do all backends choose eager's tokens?

All backends share one set of weights. In every round each of them runs, in random order, a prefill without hooks, one
with marks, vision alone, and a generation. A step's wall time is that of a generation less that of a prefill, over its
steps. Busy times are those of graphs replayed. The floor is the work of each phase at the ceilings of the very device,
measured just before. Results are written after every backend's turn, so that a time limit leaves what was reached.

A backend is named as in a configuration, with its mode behind a colon: eager, cudagraph, compile, compile:max-autotune.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.compiled_checks import float32_errors, kernel_errors, logit_gaps
from vlmeter.backends.base import OpenedRequest
from vlmeter.common.files import write_atomically
from vlmeter.models.families.base import ImageOptions
from vlmeter.models.families.registry import FAMILIES
from vlmeter.study.subject import Subject, loading

#: A toy's picture and text, of a length that every family's prompt can be filled to.
TOY_IMAGE, TOY_TEXT_TOKENS, TOY_OUTPUT_TOKENS = (500, 380), 40, 12

BACKENDS = ("eager", "cudagraph", "compile")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark, print its table, write it as JSON; 1 if a backend chose other tokens than eager."""
    options = _parser().parse_args(arguments)
    result = same_tokens(options) if options.same_tokens else measure(options)
    _write(options, result)
    print(as_text(result))
    return int(bool(result.get("different")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compiled", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--family", default="molmo")
    parser.add_argument("--preset", default="nano", help="architecture, with random weights")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--vision-attention-dtype", choices=["float32", "weights"])
    parser.add_argument("--images", nargs="+", default=["500x380"], metavar="WxH")
    parser.add_argument("--text-tokens", type=int, default=TOY_TEXT_TOKENS)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--backends", nargs="+", default=list(BACKENDS))
    parser.add_argument("--same-tokens", action="store_true", help="compare the tokens of every family's toy instead")
    parser.add_argument("--families", nargs="+", default=sorted(set(FAMILIES) - {"generic"}))
    parser.add_argument("--stages", nargs="+", default=["prefill", "step"], help="what is compiled of the toys")
    parser.add_argument(
        "--float32", action="store_true", help="compare logits with those of the same weights in float32"
    )
    parser.add_argument("--output", type=Path, default=Path("results/benchmarks/compiled.json"))
    return parser


def _write(options: argparse.Namespace, result: Mapping[str, Any]) -> None:
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(options.output, (json.dumps(result, indent=1) + "\n").encode())


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _subject(family: str, preset: str, dtype: str, device: str, vision_attention_dtype: str | None = None) -> Subject:
    return Subject(
        family=family,
        preset=preset,
        dtype=dtype,  # type: ignore[arg-type]
        device=device,
        vision_attention_dtype=vision_attention_dtype,  # type: ignore[arg-type]
    )


def _runner(eager: Any, backend: str, *, stages: Sequence[str] = ("prefill", "step")) -> Any:
    """A runner of this backend for the weights that the eager one has loaded."""
    name, _, mode = backend.partition(":")
    parts = {"loaded": eager.loaded, "device": eager.device, "clock": eager.clock}
    if name == "eager":
        return eager
    if name == "cudagraph":
        from vlmeter.backends.compiled.captured_runner import CapturedRunner

        return CapturedRunner(**parts)
    from vlmeter.backends.compiled.compiled_runner import CompiledRunner

    return CompiledRunner(**parts, compile_mode=mode or "default", stages=tuple(stages))  # type: ignore[arg-type]


def _possible(backends: Sequence[str], device: str) -> list[str]:
    return [name for name in backends if device.startswith("cuda") or name != "cudagraph"]


# ------------------------------------------------------------------------------------------------------ same tokens


def same_tokens(options: argparse.Namespace) -> dict[str, Any]:
    """Generate with every backend from every family's toy, in float32, and compare the tokens."""
    from vlmeter.backends.eager_runner import load_runner
    from vlmeter.common.errors import UserError
    from vlmeter.inputs.images import dummy_image
    from vlmeter.measure.devices import resolve_device

    device = resolve_device(options.device)
    result: dict[str, Any] = {"environment": _environment(device), "families": {}, "different": []}
    if device.name.startswith("cuda"):
        result["kernel_errors"] = kernel_errors(device.name)
        _tell(json.dumps(result["kernel_errors"], indent=1))
    pictures = [dummy_image(*TOY_IMAGE, seed=seed) for seed in range(2)]
    for family in options.families:
        found: dict[str, Any] = {}
        try:
            eager = load_runner(loading(_subject(family, "nano", "float32", device.name), device=device.name))
        except UserError as error:
            result["families"][family] = {"eager": {"error": str(error)}}
            continue
        wanted: list[Any] = []
        for backend in _possible(options.backends, device.name):
            begin_s = time.monotonic()
            try:
                runner = _runner(eager, backend, stages=options.stages)
                runs = [_tokens(runner, picture) for picture in pictures]
                wanted = wanted or runs
                found[backend] = {
                    "same": runs == wanted,
                    "tokens": runs[0][0],
                    "notes": list(runner.notes),
                    "phases": runs[0][1],
                    "preparations": [vars(made) for made in getattr(runner, "preparations", ())],
                }
            except Exception as error:  # a family's failure must not hide the others'
                traceback.print_exc()
                found[backend] = {"same": False, "error": repr(error)[:500]}
            found[backend]["seconds"] = time.monotonic() - begin_s
            if not found[backend]["same"]:
                result["different"].append([family, backend])
            _tell(f"{family:>16} {backend:<10} {found[backend]['same']} {found[backend].get('error', '')}")
        result["families"][family] = found
        _write(options, result)
    return result


def _tokens(runner: Any, picture: Any) -> tuple[list[int], list[str]]:
    prompt = runner.prepare(OpenedRequest((picture,), None, TOY_TEXT_TOKENS, ImageOptions()))
    marks: list[str] = []
    with runner.hooks():
        tokens = runner.generate(
            prompt, output_tokens=TOY_OUTPUT_TOKENS, stop="length", mark=lambda phase: marks.append(str(phase))
        )
    return [int(token) for token in tokens], marks


# ----------------------------------------------------------------------------------------------------------- timing


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time every backend on every picture."""
    import torch

    from vlmeter.backends.eager_runner import load_runner
    from vlmeter.measure.ceilings import measure_ceilings
    from vlmeter.measure.devices import device_lock, resolve_device

    device = resolve_device(options.device)
    subject = _subject(options.family, options.preset, options.dtype, device.name, options.vision_attention_dtype)
    result: dict[str, Any] = {"subject": subject.model_dump(), "environment": _environment(device), "cells": []}
    with device_lock(device, purpose="benchmark", tell=_tell):
        begin_s = time.monotonic()
        eager = load_runner(loading(subject, device=device.name))
        ceilings = measure_ceilings(device, dtype=options.dtype, clock=eager.clock)
        result["ceilings"] = {
            "copy_bytes_per_s": ceilings.copy_bytes_per_s.value,
            "matrix_flops_per_s": ceilings.matrix_flops_per_s.value,
            "launch_ms": ceilings.launch_ms.value,
        }
        _tell(f"{time.monotonic() - begin_s:5.0f} s  loaded; {result['ceilings']}")
        backends = _possible(options.backends, device.name)
        runners = {backend: _runner(eager, backend) for backend in backends}
        for size in options.images:
            cell = _Cell(options, subject, size, ceilings)
            result["cells"].append(cell.found)
            for backend, runner in runners.items():
                begin_s = time.monotonic()
                try:
                    cell.make_ready(backend, runner)
                except Exception as error:
                    traceback.print_exc()
                    cell.found["backends"][backend] = {"error": repr(error)[:500]}
                _tell(f"{time.monotonic() - begin_s:5.1f} s  {size} {backend} ready")
                _write(options, result)
            if options.float32:
                cell.found["float32_errors"] = float32_errors(cell.runners, cell.prompts)
            cell.take_rounds(options.rounds)
            _write(options, result)
            if device.name.startswith("cuda"):
                result["memory_allocated_bytes"] = torch.cuda.max_memory_allocated()
    return result


class _Cell:
    """One picture and what every backend takes for it."""

    def __init__(self, options: argparse.Namespace, subject: Subject, size: str, ceilings: Any) -> None:
        from vlmeter.inputs.images import dummy_image

        width, height = map(int, size.split("x"))
        self._options, self._subject, self._ceilings = options, subject, ceilings
        self._picture = dummy_image(width, height, seed=0)
        self.runners: dict[str, Any] = {}
        self.prompts: dict[str, Any] = {}
        self.found: dict[str, Any] = {"image": size, "backends": {}}

    def make_ready(self, backend: str, runner: Any) -> None:
        """Prepare the prompt, compile and capture, run once."""
        prompt = runner.prepare(OpenedRequest((self._picture,), None, self._options.text_tokens, ImageOptions()))
        if "floor_ms" not in self.found:
            self.found.update(vars(prompt.counts))
            self.found["floor_ms"] = self._floor(runner)
        ready = getattr(runner, "ready", None)
        if ready is not None:
            ready(prompt, output_tokens=self._options.output_tokens)
        tokens = [int(token) for token in self._generate(runner, prompt, None)]
        found: dict[str, Any] = {"tokens": tokens, "samples_ms": {}, "phases_ms": []}
        if "eager" in self.runners:
            found["gaps"] = logit_gaps(self.runners["eager"], self.prompts["eager"], tokens)
        self.found["backends"][backend] = found
        self.runners[backend], self.prompts[backend] = runner, prompt
        if backend == "eager":
            found["gaps"] = logit_gaps(runner, prompt, tokens)

    def _generate(self, runner: Any, prompt: Any, mark: Any, output_tokens: int | None = None) -> Any:
        count = output_tokens or self._options.output_tokens
        return runner.generate(prompt, output_tokens=count, stop="length", mark=mark)

    def _floor(self, runner: Any) -> dict[str, float]:
        """Floors of phases, prefill, vision side and a step half way through the generation."""
        from vlmeter.analysis.roofline import floor_of
        from vlmeter.measure.count_pass import count_pass
        from vlmeter.measure.count_work import shapes_of

        inputs = runner.loaded.prepare(
            self._picture, None, text_tokens=self._options.text_tokens, options=ImageOptions()
        )
        work = count_pass(shapes_of(self._subject), inputs.tensors)
        floors = {part.phase: floor_of(part, self._ceilings).floor_ms for part in work.prefill}
        context = inputs.counts.prompt_tokens + self._options.output_tokens // 2
        return {
            **floors,
            "prefill": sum(floors.values()),
            "vision": floors.get("vision_encoder", 0.0) + floors.get("projector", 0.0),
            "decode_step": floor_of(work.step.at(context), self._ceilings).floor_ms,
        }

    def _calls(self, runner: Any, prompt: Any) -> dict[str, Callable[[Any], Any]]:
        return {
            "prefill": lambda marks: self._generate(runner, prompt, None, 1),
            "vision": lambda marks: runner.vision(prompt),
            "generation": lambda marks: self._generate(runner, prompt, None),
        }

    def take_rounds(self, rounds: int) -> None:
        """Run everything in random order, again and again; then the busy times."""
        from vlmeter.backends.clock import time_call, total_by_phase

        rng = random.Random(0)
        for number in range(-1, rounds):  # the first is for warming up
            order = list(self.runners)
            rng.shuffle(order)
            for backend in order:
                runner, prompt = self.runners[backend], self.prompts[backend]
                samples = self.found["backends"][backend]["samples_ms"]
                calls = self._calls(runner, prompt)
                timings = {}
                for name, call in calls.items():
                    timings[name] = time_call(runner.clock, call)
                    capture = _capture_of(runner, prompt, name)
                    if capture is not None and number >= 0:
                        # Beside the wall time, since a card's clock follows what it did just before.
                        busy = runner._time_replays(capture, lambda: None, 1)
                        self.found["backends"][backend].setdefault("busy_samples_ms", {}).setdefault(name, []).extend(
                            busy
                        )
                with runner.hooks():
                    marked = time_call(runner.clock, partial(self._generate, runner, prompt))
                if number < 0:
                    continue
                device = self.found["backends"][backend].setdefault("device_samples_ms", {})
                for name, timing in timings.items():
                    samples.setdefault(name, []).append(timing.wall_ms)
                    device.setdefault(name, []).append(timing.device_ms)
                steps = self._options.output_tokens - 1
                step_ms = (timings["generation"].wall_ms - timings["prefill"].wall_ms) / steps
                samples.setdefault("decode_step", []).append(step_ms)
                phases = total_by_phase(marked.spans)
                phases["decode_step"] = phases.get("decode_step", 0.0) / steps
                self.found["backends"][backend]["phases_ms"].append(phases)
        for backend, runner in self.runners.items():
            self._look_further(backend, runner)

    def _look_further(self, backend: str, runner: Any) -> None:
        found, prompt = self.found["backends"][backend], self.prompts[backend]
        busy, found["busy_reason"] = runner.busy(prompt, repeats=5)
        step, reason = runner.busy_step(prompt, repeats=10)
        found["busy_reason"] = found["busy_reason"] or reason
        found["busy_ms"] = {item.phase: median(item.samples_ms) for item in (*busy, *step)}
        for name, samples in found.get("busy_samples_ms", {}).items():
            found["busy_ms"][name] = median(samples)
        found["busy_source"] = {item.phase: item.source for item in (*busy, *step)}
        found["median_ms"] = {name: median(samples) for name, samples in found["samples_ms"].items()}
        found["median_device_ms"] = {name: median(samples) for name, samples in found["device_samples_ms"].items()}
        found["median_phases_ms"] = {
            phase: median([phases[phase] for phases in found["phases_ms"]]) for phase in found["phases_ms"][0]
        }
        found["notes"] = list(runner.notes)
        found["preparations"] = [vars(made) for made in getattr(runner, "preparations", ())]


def _capture_of(runner: Any, prompt: Any, name: str) -> Any:
    """The graphs behind a call, if it is replayed."""
    if name not in ("prefill", "vision") or not hasattr(runner, "_shape_for"):
        return None
    return getattr(runner._shape_for(prompt, 1), name)


def median(values: Sequence[float]) -> float:
    """Middle value."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def _environment(device: Any) -> dict[str, Any]:
    import torch  # noqa: F401 - so that the snapshot finds it

    from vlmeter.measure.environment import snapshot

    return {"device_identity": device.identity, **snapshot(device)}


# ------------------------------------------------------------------------------------------------------------- text


def as_text(result: Mapping[str, Any]) -> str:
    """Write the result as tables."""
    environment = result["environment"]
    lines = [
        f"{environment['device']}, torch {environment['versions'].get('torch')}, "
        f"transformers {environment['versions'].get('transformers')}, commit {environment['commit'] or 'none'}"
    ]
    if "families" in result:
        for family, found in result["families"].items():
            for backend, one in found.items():
                verdict = one.get("error") or ("same tokens" if one["same"] else "OTHER TOKENS")
                lines.append(f"{family:>16}  {backend:<10} {verdict}; {'; '.join(one.get('notes', ()))}")
        return "\n".join(lines)
    ceilings = result["ceilings"]
    lines.append(
        f"copy {ceilings['copy_bytes_per_s'] / 1e12:.2f} TB/s, "
        f"matrix {ceilings['matrix_flops_per_s'] / 1e12:.0f} TFLOP/s"
    )
    for cell in result["cells"]:
        lines += _cell_lines(cell)
    return "\n".join(lines)


def _cell_lines(cell: Mapping[str, Any]) -> list[str]:
    floor = cell.get("floor_ms", {})
    lines = [
        "",
        f"{cell['image']}: {cell.get('crops')} crops, {cell.get('vision_tokens')} vision tokens, "
        f"{cell.get('prompt_tokens')} prompt tokens; floor of prefill {floor.get('prefill', 0):.2f} ms, "
        f"vision {floor.get('vision', 0):.2f} ms, decode step {floor.get('decode_step', 0):.3f} ms",
        f"{'backend':<22} {'what':<12} {'wall ms':>9} {'busy ms':>9} {'wall/busy':>9} {'wall/device':>11} "
        f"{'x floor':>8} {'eager/this':>10}",
    ]
    for backend, errors in cell.get("float32_errors", {}).items():
        lines.insert(2, f"logits of {backend} against float32: " + ", ".join(f"{k} {v:.2e}" for k, v in errors.items()))
    eager = cell["backends"].get("eager", {}).get("median_ms", {})
    wanted = cell["backends"].get("eager", {}).get("tokens")
    for backend, found in cell["backends"].items():
        if "median_ms" not in found:
            lines.append(f"{backend:<22} {found.get('error', 'not measured')}")
            continue
        for what in ("vision", "prefill", "decode_step"):
            wall, busy = found["median_ms"][what], found["busy_ms"].get(what)
            ratio = f"{wall / busy:9.3f}" if busy else f"{'-':>9}"
            device = found["median_device_ms"].get(what)
            beside = f"{wall / device:11.3f}" if device else f"{'-':>11}"
            lines.append(
                f"{backend:<22} {what:<12} {wall:9.3f} {(f'{busy:9.3f}' if busy else '-'):>9} {ratio} {beside} "
                f"{wall / floor[what]:8.2f} {(f'{eager[what] / wall:10.2f}' if eager else '-'):>10}"
            )
        phases = ", ".join(f"{name} {value:.3f}" for name, value in found["median_phases_ms"].items())
        made = found["preparations"][-1:] or [{"compile_s": 0.0, "capture_s": 0.0}]
        gaps = found.get("gaps") or [0.0]
        agree = sum(a == b for a, b in zip(found["tokens"], wanted or (), strict=False))
        lines.append(
            f"    marks: {phases}; compiled {made[0]['compile_s']:.1f} s, captured {made[0]['capture_s']:.1f} s; "
            f"{agree} of {len(found['tokens'])} tokens are eager's; after the same tokens its choices are at most "
            f"{max(gaps):.0f} (mean {sum(gaps) / len(gaps):.2f}) "
            "steps of the number format below eager's best"
        )
        lines += [f"    {note}" for note in found["notes"]]
    return lines


if __name__ == "__main__":
    sys.exit(main())
