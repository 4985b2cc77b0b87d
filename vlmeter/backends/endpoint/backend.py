"""A served model: an OpenAI-compatible server that runs, or one that the session starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmeter.backends.base import Backend, Execution, Loading, Needs, Runner
from vlmeter.backends.device import Device
from vlmeter.backends.endpoint.engine import cards_in
from vlmeter.backends.endpoint.engines import get_engine
from vlmeter.backends.endpoint.keys import Endpoint, Keys
from vlmeter.backends.endpoint.request import Address
from vlmeter.models.encoding import Encoding

#: A server's memory is its own affair.
_PLENTY_BYTES = 1 << 50

#: An engine is a server of requests, an engine core and workers, each with torch in it.
_ENGINE_PROCESSES = 3


def check(own: Mapping[str, Any]) -> str | None:
    """Say what is missing in a subject's keys."""
    if own.get("endpoint") is None:
        return (
            "endpoint is missing: backend endpoint wants to know where the server is (url) or how to start it (engine)"
        )
    return None


def devices(wish: str, own: Mapping[str, Any]) -> tuple[Device, ...] | None:
    """Find what a session holds: the address of a server that runs; else the machine's own device, for the one started.

    Two studies never speak to one server at once, so it has a lock of its own, by whatever name a study calls it.
    """
    endpoint: Endpoint = own["endpoint"]
    if endpoint.url is None:
        return None
    from vlmeter.backends.endpoint.whereabouts import server_at

    address = Address.parse(endpoint.url)
    return (
        Device(
            name=f"server {address.netloc}",
            model=f"server at {address}",
            uuid=f"server at {server_at(address)}",
            driver=None,
            memory_bytes=_PLENTY_BYTES,
            free_bytes=_PLENTY_BYTES,
        ),
    )


def needs(own: Mapping[str, Any]) -> Needs:
    """Say what a session asks of its machine: next to nothing where the server runs already."""
    endpoint: Endpoint | None = own["endpoint"]
    if endpoint is None or endpoint.engine is None:
        return Needs(gpus=0)
    gpus = cards_in(endpoint.options, get_engine(endpoint.engine).card_options)
    return Needs(gpus=gpus, processes=_ENGINE_PROCESSES, loading_s=endpoint.ready_seconds, weights_pass=True)


def encoding(own: Mapping[str, Any]) -> Encoding | None:
    """Say how pictures are sent."""
    endpoint: Endpoint | None = own["endpoint"]
    return endpoint.encoding if endpoint else None


def has_limits(family: str | None, preset: str | None, own: Mapping[str, Any]) -> bool:
    """Say whether what a session starts runs on one card of its own, with the very shapes that the plan knows.

    A server at a url runs who knows where; a toy's heads are widened for engines, so that its work is another.
    """
    endpoint: Endpoint | None = own["endpoint"]
    if endpoint is None or endpoint.engine is None or needs(own).gpus > 1:
        return False
    if preset is None:
        return True
    from vlmeter.models.served_checkpoint import is_served_as_it_is

    return is_served_as_it_is(str(family), preset)


def load(asked: Loading) -> Runner:
    """Start or find the server, and ask what it takes."""
    from vlmeter.backends.endpoint.loading import load_runner

    return load_runner(asked)


BACKEND = Backend(
    name="endpoint",
    about="a served model, behind an OpenAI-compatible API",
    load=load,
    takes=frozenset({"revision"}),
    keys=Keys,
    check=check,
    in_process=False,
    has_limits=has_limits,
    devices=devices,
    needs=needs,
    execution=lambda device: Execution(launches="unseen", kernels="unseen"),
    encoding=encoding,
)
