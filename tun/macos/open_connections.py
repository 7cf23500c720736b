"""The connections of this moment that came in from outside, by `netstat` (netstat(1)): tun/firewall/inbound.py."""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

from cryprq_proxy.errors import CryprqError

from ..firewall.inbound import MOST, Address, Inbound, InboundConnection
from .programs import Run, ask, run

EPHEMERAL: Final = (49152, 65535)
"""The ports that macOS gives to sockets which ask for none, unless somebody has changed them."""
NETSTAT: Final = ("netstat", "-anW", "-p", "tcp")
_END: Final = re.compile(r"(.+)\.(\d{1,5}|\*)")


def _endpoint(text: str) -> tuple[Address | None, int]:
    """`192.168.1.5.22`, `fe80::1%en0.22` or `*.22`: without an address, and with port 0, for a star."""
    match = _END.fullmatch(text)
    if match is None:
        raise ValueError(text)
    port = 0 if match[2] == "*" else int(match[2])
    if match[1] == "*":
        return None, port
    address = ip_address(match[1].partition("%")[0])
    if isinstance(address, IPv6Address):
        mapped: IPv4Address | None = address.ipv4_mapped
        return mapped or address, port
    return address, port


def connections(lines: Iterable[str], ephemeral: tuple[int, int] = EPHEMERAL) -> frozenset[InboundConnection]:
    """Reads what NETSTAT says; lines that do not look like it are passed over."""
    listening: set[int] = set()
    established: list[InboundConnection] = []
    for line in lines:
        fields = line.split()
        if len(fields) < 6 or not fields[0].startswith("tcp"):
            continue
        try:
            (local, port), (remote, remote_port) = _endpoint(fields[3]), _endpoint(fields[4])
        except ValueError:
            continue
        if fields[5] == "LISTEN":
            listening.add(port)
        elif fields[5] == "ESTABLISHED" and local is not None and remote is not None:
            established.append(InboundConnection(local, port, remote, remote_port))
    low, high = ephemeral

    def came_in(connection: InboundConnection) -> bool:
        port = connection.local_port
        if connection.remote.is_loopback:
            return False
        return port in listening or (not low <= port <= high and connection.remote_port >= low)

    return frozenset([connection for connection in established if came_in(connection)][:MOST])


def observe(run: Run = run) -> Inbound:
    """The connections of this moment. Blocks. Raises ProgramError."""
    try:
        names = ("net.inet.ip.portrange.first", "net.inet.ip.portrange.last")
        first, last = (int(ask(run, "sysctl", "-n", name)) for name in names)
    except (CryprqError, ValueError):
        first, last = EPHEMERAL
    return Inbound(connections(ask(run, *NETSTAT).splitlines(), (first, last)), (first, last))
