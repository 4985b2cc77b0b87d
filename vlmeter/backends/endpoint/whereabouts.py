"""Which server an address leads to: one machine has many names, and two of them may be one server."""

from __future__ import annotations

import ipaddress
import socket

import psutil

from vlmeter.backends.endpoint.request import Address

_Ip = ipaddress.IPv4Address | ipaddress.IPv6Address


def addresses_of(host: str) -> set[_Ip]:
    """Find the addresses that a name or an address in text stands for; empty where nobody knows it."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {_plain(str(entry[4][0])) for entry in found}


def _plain(text: str) -> _Ip:
    """An address without its interface, and as IPv4 where it is that in the form of IPv6."""
    made = ipaddress.ip_address(text.partition("%")[0])
    return getattr(made, "ipv4_mapped", None) or made


def is_here(host: str) -> bool:
    """Whether a host is this machine: a loopback address, or one of its own."""
    own = {
        _plain(entry.address)
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6)
    }
    return any(found.is_loopback or found.is_unspecified or found in own for found in addresses_of(host))


def server_at(address: Address) -> str:
    """Name the server that answers at an address, the same for all addresses of it: the machine and the port.

    A path and a scheme are left out, since what answers at one port of a machine is one server.
    """
    if is_here(address.host):
        return f"this machine, port {address.port}"
    known = sorted(map(str, addresses_of(address.host)))
    return f"{known[0] if known else address.host.lower()}, port {address.port}"
