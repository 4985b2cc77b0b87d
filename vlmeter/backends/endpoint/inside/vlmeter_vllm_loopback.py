"""Keeps what a vLLM worker listens on to the machine: torch's meeting point of workers.

Workers find each other at a store of torch's. Where vLLM asks for one at 127.0.0.1, torch's still listens on every
address of the machine, and whoever reaches its port can write into it. Here the store gets a socket that is bound to
the address that was asked for. (vLLM 0.26 asks for such a store even for a single worker; 0.32 takes a file then.)

Like `vlmeter_vllm_marks`, this file runs in the server's environment and imports nothing of vlmeter. vLLM imports it
with the class that it is told to give its workers, before they meet.
"""

from __future__ import annotations

import importlib
import socket
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlparse

LOOPBACK = ("127.0.0.1", "localhost")


class OnLoopback:
    """What vLLM gives its workers when no marks are wanted: nothing."""


def stay_on_loopback() -> bool:
    """Let stores at the loopback address listen there alone; returns False for a torch that is built otherwise."""
    try:
        rendezvous: Any = importlib.import_module("torch.distributed.rendezvous")
        store_class = importlib.import_module("torch.distributed").TCPStore
        handlers, usual = rendezvous._rendezvous_handlers, rendezvous._rendezvous_handlers["tcp"]
    except (ImportError, AttributeError, KeyError):
        return False
    if getattr(usual, "vlmeter", False):
        return True

    def meet(url: str, timeout: timedelta = timedelta(minutes=30), **kwargs: Any) -> Iterator[tuple[Any, int, int]]:
        parts = urlparse(url)
        query = {name: int(values[0]) for name, values in parse_qs(parts.query).items() if values[0].isdigit()}
        if parts.hostname not in LOOPBACK or not parts.port or query.get("rank") != 0 or "world_size" not in query:
            yield from usual(url, timeout=timeout, **kwargs)
            return
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", parts.port))
        store = store_class(
            "127.0.0.1", parts.port, query["world_size"], True, timeout, master_listen_fd=bound.detach()
        )
        yield store, 0, query["world_size"]
        raise RuntimeError("workers meet once")

    meet.vlmeter = True  # type: ignore[attr-defined]
    handlers["tcp"] = meet
    return True


if "torch" in sys.modules:  # as in every worker; whoever only looks at this file is spared it
    stay_on_loopback()
