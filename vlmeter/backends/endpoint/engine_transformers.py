"""`transformers serve`: 5.24 was run. It caches nothing between requests and says nothing of its times."""

from __future__ import annotations

from collections.abc import Sequence

from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.engine import QUIET, Engine, Launch, Said, Setup, check_options
from vlmeter.backends.endpoint.metrics import Metrics
from vlmeter.backends.endpoint.stream import Answer
from vlmeter.common.errors import UserError


class TransformersEngine:
    """The server of transformers; see `Engine`."""

    name = "transformers"
    #: an unknown field of a request is refused; the length is forced through the generation's own settings
    wanted: Sequence[str] = ("usage", "max_tokens", "greedy", "generation_config")
    salts = False
    picture_hits: str | None = None
    ready_paths: Sequence[str] = ("/health",)
    idle_path = "/health"
    metrics_path: str | None = None
    card_options: Sequence[tuple[str, ...]] = ()

    def launch(self, setup: Setup, port: int) -> Launch:
        """Start the server as a module, pinned to the checkpoint, which it loads before it is ready."""
        check_options(setup.options)
        if setup.marks:
            raise UserError("engine: transformers has no way in for marks; its phases are seen from outside only")
        if setup.made_up_weights:
            raise UserError("engine: transformers makes up no weights; write them into the checkpoint")
        argv = [str(setup.program), "-c", "from transformers.cli.transformers import main; main()", "serve"]
        argv += [str(setup.checkpoint), "--host", "127.0.0.1", "--port", str(port), "--dtype", setup.dtype]
        argv += ["--device", setup.device]
        return Launch((*argv, *setup.options), dict(QUIET))

    def model_name(self, setup: Setup) -> str:
        """Return the checkpoint's folder: it knows its model by no other name."""
        return str(setup.checkpoint)

    def version(self, client: Client) -> str | None:
        """It does not say."""
        return None

    def said(self, answer: Answer, before: Metrics | None, after: Metrics | None) -> list[Said]:
        """It says nothing."""
        return []

    def busy(self, metrics: Metrics) -> int | None:
        """It does not say."""
        return None

    def cache_hits(self, before: Metrics, after: Metrics) -> dict[str, float]:
        """It has no cache."""
        return {}


ENGINE: Engine = TransformersEngine()
