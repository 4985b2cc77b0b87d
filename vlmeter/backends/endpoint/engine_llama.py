"""llama.cpp's llama-server: 0c1e570 was run; the model and its vision part are two GGUF files in one folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.engine import (
    QUIET,
    Engine,
    Launch,
    Said,
    Setup,
    check_options,
    said_in,
    total,
    version_at,
)
from vlmeter.backends.endpoint.metrics import Metrics
from vlmeter.backends.endpoint.stream import Answer
from vlmeter.common.errors import UserError

#: tools/server: result_timings; tokens are sampled within both.
TIMINGS: Mapping[str, str] = {
    "prompt_ms": "the prompt, encoding of the image included, decoding of its file not",
    "predicted_ms": "from the end of the prompt to the last token",
    "predicted_per_token_ms": "the time above by the tokens of the answer",
}


class LlamaEngine:
    """llama-server; see `Engine`."""

    name = "llama.cpp"
    wanted: Sequence[str] = ("usage", "timings_per_token", "max_tokens", "greedy", "ignore_eos", "no_prompt_cache")
    salts = False
    picture_hits: str | None = None
    ready_paths: Sequence[str] = ("/health",)
    idle_path = "/health"
    metrics_path: str | None = "/metrics"
    card_options: Sequence[tuple[str, ...]] = ()

    def launch(self, setup: Setup, port: int) -> Launch:
        """Start the program on the checkpoint's two files."""
        check_options(setup.options)
        if setup.marks:
            raise UserError("engine: llama.cpp has no way in for marks; its phases are seen from outside only")
        if setup.made_up_weights:
            raise UserError("engine: llama.cpp makes up no weights; write them into its GGUF files")
        model, vision = gguf_files(setup.checkpoint)
        argv = [str(setup.program), "-m", str(model), "--mmproj", str(vision), "--alias", setup.model]
        argv += ["--host", "127.0.0.1", "--port", str(port), "--jinja", "--metrics", "--parallel", "1"]
        if not setup.caches:
            argv += ["--cache-ram", "0"]
        if setup.device == "cpu":
            argv += ["--device", "none"]
        return Launch((*argv, *setup.options), dict(QUIET))

    def model_name(self, setup: Setup) -> str:
        """Return the name that it is told to serve under."""
        return setup.model

    def version(self, client: Client) -> str | None:
        """Ask for the build."""
        return version_at(client, "/props", lambda found: found["build_info"])

    def said(self, answer: Answer, before: Metrics | None, after: Metrics | None) -> list[Said]:
        """Collect the timings of its last chunk."""
        return said_in(answer.extras.get("timings"), "llama.cpp.timings.", TIMINGS)

    def busy(self, metrics: Metrics) -> int | None:
        """Count running and waiting requests."""
        return total(metrics, ("llamacpp:requests_processing", "llamacpp:requests_deferred"))

    def cache_hits(self, before: Metrics, after: Metrics) -> dict[str, float]:
        """Its metrics count none; the answer's usage and timings do."""
        return {}


def gguf_files(folder: Path) -> tuple[Path, Path]:
    """Find the two files; raises UserError unless there is one of each."""
    files = sorted(folder.glob("*.gguf"))
    vision = [file for file in files if "mmproj" in file.name]
    model = [file for file in files if "mmproj" not in file.name]
    if len(vision) != 1 or len(model) != 1:
        raise UserError(f"weights: {folder} must hold one .gguf file and one *mmproj*.gguf file")
    return model[0], vision[0]


ENGINE: Engine = LlamaEngine()
