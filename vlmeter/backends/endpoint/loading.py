"""Start a server, or find the one that runs, and ask what it takes."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from vlmeter.backends.base import Loading
from vlmeter.backends.endpoint.caching import CachingRunner
from vlmeter.backends.endpoint.capabilities import ANY_SERVER, probe
from vlmeter.backends.endpoint.client import Client
from vlmeter.backends.endpoint.engine import Engine, Launch, Setup, visible_cards
from vlmeter.backends.endpoint.engines import ENGINES, get_engine
from vlmeter.backends.endpoint.faults import Refusal, ServerFault
from vlmeter.backends.endpoint.keys import Endpoint
from vlmeter.backends.endpoint.runner import EndpointRunner
from vlmeter.backends.endpoint.server import Server, start
from vlmeter.common.errors import UserError
from vlmeter.models.families.registry import get_family


def load_runner(asked: Loading) -> EndpointRunner:
    """Start the server, or find the one that runs, and ask what it takes."""
    endpoint: Endpoint = asked.own["endpoint"]
    loaded = get_family(asked.family).load(asked.spec, device="meta")
    server, engine = None, None
    if endpoint.engine is not None:
        engine = get_engine(endpoint.engine)
        server, model = _start(engine, endpoint, asked)
        url = server.url
    else:
        url, model = str(endpoint.url), endpoint.model or ""
    client = Client(url, api_key_env=endpoint.api_key_env, timeout_s=endpoint.answer_seconds)
    try:
        engine = engine or _engine_of(client)
        if not model:
            model = next(iter(client.models()), "")
        client.require_model(model)
        taken = probe(client, model, wanted=engine.wanted if engine else ANY_SERVER)
        kind = CachingRunner if _keeps(endpoint, engine, client) else EndpointRunner
        return kind(loaded, client, model, taken, endpoint=endpoint, engine=engine, server=server)
    except ServerFault as fault:
        _end(client, server)
        if isinstance(fault, Refusal):
            raise
        raise UserError(f"endpoint: {fault}") from None
    except BaseException:
        _end(client, server)
        raise


def _keeps(endpoint: Endpoint, engine: Engine | None, client: Client) -> bool:
    """Whether a server is to have caches, and says when it answers from them; raises UserError if it cannot have them.

    One that takes no salt would answer requests from its caches that nobody meant to be, unseen.
    """
    if not endpoint.caches:
        return False
    if engine is None or not engine.salts:
        name = engine.name if engine else "a server that does not say what it is"
        raise UserError(f"endpoint.caches: true is given, and {name} takes no cache_salt: at {client.address}")
    return engine.picture_hits is not None


def _end(client: Client, server: Server | None) -> None:
    client.close()
    if server is not None:
        server.stop()


def _start(engine: Engine, endpoint: Endpoint, asked: Loading) -> tuple[Server, str]:
    if asked.folder is None:
        raise UserError("endpoint: a server is started by a session alone, which has a folder for its log")
    folder = asked.folder
    checkpoint, made_up = _checkpoint(engine, asked, folder)
    setup = Setup(
        program=Path(endpoint.python or sys.executable).absolute(),
        checkpoint=checkpoint,
        model=endpoint.model or "model",
        options=tuple(endpoint.options),
        made_up_weights=made_up,
        caches=endpoint.caches,
        marks=endpoint.marks and engine.name == "vllm",
        device=asked.device.partition(":")[0],
        dtype=asked.spec.dtype,
    )
    log = folder / "server.log"
    seen = visible_cards(_cards(asked), os.environ)
    asked.tell(f"the {engine.name} server starts; its log is {log}")
    server = start(
        lambda port: _with(engine.launch(setup, port), seen),
        ready_paths=engine.ready_paths,
        log=log,
        limit_s=endpoint.ready_seconds,
        tell=asked.tell,
        what=f"the {engine.name} server",
    )
    if beyond := server.listens_beyond():
        server.stop()
        raise UserError(f"endpoint: the {engine.name} server listens on {', '.join(beyond)}, beyond this machine")
    return server, engine.model_name(setup)


def _cards(asked: Loading) -> tuple[int, ...] | None:
    """The numbers of the cards that the session holds; None on a processor, or where it is not known which."""
    names = (asked.device, *asked.beside)
    return tuple(int(name.partition(":")[2]) for name in names) if all(":" in name for name in names) else None


def _with(launch: Launch, env: Mapping[str, str]) -> Launch:
    return replace(launch, env={**launch.env, **env})


def _checkpoint(engine: Engine, asked: Loading, folder: Path) -> tuple[Path, bool]:
    """The folder that the engine reads, and whether it is to make up weights by itself."""
    if asked.spec.weights != "random":
        return Path(asked.spec.weights), False
    from vlmeter.models.served_checkpoint import write_checkpoint

    makes_up = engine.name in ("vllm", "sglang")
    return (
        write_checkpoint(
            folder / "checkpoint",
            family=asked.family,
            preset=str(asked.spec.preset),
            weights=not makes_up,
            dtype=asked.spec.dtype,
            seed=asked.spec.seed,
        ),
        makes_up,
    )


def _engine_of(client: Client) -> Engine | None:
    """Find out which engine answers, by what each says of its version; None for one that is not known."""
    for name in ENGINES:
        engine = get_engine(name)
        try:
            if engine.version(client) is not None:
                return engine
        except ServerFault:
            continue
    return None
