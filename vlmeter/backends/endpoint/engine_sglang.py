"""SGLang: 0.5.23 as its code has it; its streams are played in the tests, it was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vlmeter.backends.endpoint.capabilities import ANY_SERVER
from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.engine import (
    QUIET,
    Engine,
    Launch,
    Said,
    Setup,
    check_options,
    growth,
    said_between,
    total,
    version_at,
)
from vlmeter.backends.endpoint.metrics import Metrics
from vlmeter.backends.endpoint.stream import Answer
from vlmeter.common.errors import UserError

#: sglang/srt/observability/metrics_collector.py.
PROMETHEUS: Mapping[str, str] = {
    "sglang:time_to_first_token_seconds": "from the request's arrival at the tokenizer manager to the first token",
    "sglang:queue_time_seconds": "in the scheduler's queue",
    "sglang:e2e_request_latency_seconds": "from the request's arrival at the tokenizer manager to the last token",
}


class SglangEngine:
    """SGLang's server; see `Engine`."""

    name = "sglang"
    wanted: Sequence[str] = ANY_SERVER
    salts = True
    picture_hits: str | None = None
    ready_paths: Sequence[str] = ("/ready", "/v1/models")
    idle_path = "/v1/models"  # its /health generates a token
    metrics_path: str | None = "/metrics"
    card_options: Sequence[tuple[str, ...]] = (
        ("--tensor-parallel-size", "--tp-size", "--tp"),
        ("--pipeline-parallel-size", "--pp-size", "--pp"),
        ("--data-parallel-size", "--dp-size", "--dp"),
    )

    def launch(self, setup: Setup, port: int) -> Launch:
        """Start the server as a module."""
        check_options(setup.options)
        if setup.marks:
            raise UserError("engine: sglang has no way in for marks; its phases are seen from outside only")
        argv = [str(setup.program), "-m", "sglang.launch_server", "--model-path", str(setup.checkpoint)]
        argv += ["--served-model-name", setup.model, "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--dtype", setup.dtype, "--enable-cache-report", "--enable-metrics"]
        if setup.device == "cpu":
            argv += ["--device", "cpu"]
        env = dict(QUIET)
        if not setup.caches:
            argv += ["--disable-radix-cache", "--mm-preprocess-cache-size-mb", "0"]
            env["SGLANG_VLM_CACHE_SIZE_MB"] = "0"
        if setup.made_up_weights:
            argv += ["--load-format", "dummy"]
        return Launch((*argv, *setup.options), env)

    def model_name(self, setup: Setup) -> str:
        """Return the name that it is told to serve under."""
        return setup.model

    def version(self, client: Client) -> str | None:
        """Ask for the version."""
        return version_at(client, "/get_server_info", lambda found: found["version"])

    def said(self, answer: Answer, before: Metrics | None, after: Metrics | None) -> list[Said]:
        """Collect its histograms."""
        return said_between(before, after, PROMETHEUS)

    def busy(self, metrics: Metrics) -> int | None:
        """Count running and waiting requests."""
        return total(metrics, ("sglang:num_running_reqs", "sglang:num_queue_reqs"))

    def cache_hits(self, before: Metrics, after: Metrics) -> dict[str, float]:
        """Return the growth of tokens found in the cache."""
        return growth(before, after, ("sglang:cached_tokens_total",))


ENGINE: Engine = SglangEngine()
