"""A served model: an OpenAI-compatible server that runs, or one that the session starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlmeter.backends.base import Backend, Loading, Runner
from vlmeter.backends.device import Device
from vlmeter.backends.endpoint.keys import Endpoint, Keys
from vlmeter.backends.endpoint.request import Address

#: A server's memory is its own affair.
_PLENTY_BYTES = 1 << 50


def check(own: Mapping[str, Any]) -> str | None:
    """Say what is missing in a subject's keys."""
    if own.get("endpoint") is None:
        return (
            "endpoint is missing: backend endpoint wants to know where the server is (url) or how to start it (engine)"
        )
    return None


def devices(wish: str, own: Mapping[str, Any]) -> tuple[Device, ...] | None:
    """Find what a session holds: the address of a server that runs; else the machine's own device, for the one started.

    Two studies never speak to one server at once, so its address has a lock of its own.
    """
    endpoint: Endpoint = own["endpoint"]
    if endpoint.url is None:
        return None
    address = Address.parse(endpoint.url)
    return (
        Device(
            name=f"server {address.netloc}",
            model=f"server at {address}",
            uuid=f"server {address}",
            driver=None,
            memory_bytes=_PLENTY_BYTES,
            free_bytes=_PLENTY_BYTES,
        ),
    )


def load(asked: Loading) -> Runner:
    """Start or find the server, and ask what it takes."""
    from vlmeter.backends.endpoint.runner import load_runner

    return load_runner(asked)


BACKEND = Backend(
    name="endpoint",
    about="a served model, behind an OpenAI-compatible API",
    load=load,
    takes=frozenset({"revision"}),
    keys=Keys,
    check=check,
    in_process=False,
    devices=devices,
)
