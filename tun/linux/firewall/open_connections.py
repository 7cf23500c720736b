"""The connections of this moment that came in from outside, by the kernel's tables (proc_net_tcp(5))."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from ...firewall.inbound import DEFAULT_PORTS, MOST, Address, Inbound, InboundConnection

_ESTABLISHED: Final = 0x01  # include/net/tcp_states.h
_LISTEN: Final = 0x0A
# Of the calling thread: its network namespace may not be that of the process.
_TABLES: Final = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
_PORTS: Final = "/proc/sys/net/ipv4/ip_local_port_range"


def _endpoint(text: str) -> tuple[Address, int]:
    """`0100007F:0016`: the address as 32-bit words in the machine's byte order, and the port."""
    words, _, port = text.partition(":")
    packed = b"".join(struct.pack("=I", int(words[at : at + 8], 16)) for at in range(0, len(words), 8))
    if len(packed) == 4:
        return IPv4Address(packed), int(port, 16)
    address = IPv6Address(packed)
    return address.ipv4_mapped or address, int(port, 16)


def connections(lines: Iterable[str], ephemeral: tuple[int, int]) -> frozenset[InboundConnection]:
    """Reads the lines of /proc/net/tcp and tcp6 (proc_net_tcp(5)); lines that do not look like it are passed over.

    `ephemeral` are the first and the last port that the kernel gives to sockets which ask for none.
    """
    listening: set[int] = set()
    established: list[InboundConnection] = []
    for line in lines:
        fields = line.split()
        try:
            local, port = _endpoint(fields[1])
            remote, remote_port = _endpoint(fields[2])
            state = int(fields[3], 16)
        except (LookupError, ValueError, struct.error):
            continue
        if state == _LISTEN:
            listening.add(port)
        elif state == _ESTABLISHED and not remote.is_loopback:
            established.append(InboundConnection(local, port, remote, remote_port))
    low, high = ephemeral

    def came_in(connection: InboundConnection) -> bool:
        port = connection.local_port
        return port in listening or (not low <= port <= high and connection.remote_port >= low)

    return frozenset([connection for connection in established if came_in(connection)][:MOST])


def observe() -> Inbound:
    """The connections of this moment in the network namespace of the calling thread."""
    lines: list[str] = []
    for path in _TABLES:
        try:
            lines += Path(path).read_text(encoding="ascii", errors="replace").splitlines()
        except OSError:
            # A kernel without IPv6.
            continue
    try:
        low, high = map(int, Path(_PORTS).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        low, high = DEFAULT_PORTS
    return Inbound(connections(lines, (low, high)), (low, high))
