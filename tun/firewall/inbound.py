"""Which connections came in from outside, for `--inbound keep`.

Once the tunnel stands, a reply to a client that connected to this machine (ssh) would go into the tunnel and be lost.
The filter marks connections that come in from then on. Those that are already open have to be found beforehand:
they are the established TCP connections of a port on which something listens, and those of a service that has ended
and left its sessions: from a port that the kernel gives to clients, to one that it does not. All others began here, and
moving them into the tunnel is what the tunnel is for.

Between this look and the filter lies a moment; a connection that comes in just then is cut.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final, NamedTuple

from ..routing.lan import Lan
from ..settings import TunnelSettings

type Address = IPv4Address | IPv6Address

_ESTABLISHED: Final = 0x01  # include/net/tcp_states.h
_LISTEN: Final = 0x0A
# Of the calling thread: its network namespace may not be that of the process.
_TABLES: Final = ("/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6")
_PORTS: Final = "/proc/sys/net/ipv4/ip_local_port_range"
DEFAULT_PORTS: Final = (32768, 60999)
MOST: Final = 4096
"""Connections that are kept at most."""


class InboundConnection(NamedTuple):
    """A TCP connection as this machine sees it."""

    local: Address
    local_port: int
    remote: Address
    remote_port: int


@dataclass(frozen=True, slots=True)
class Inbound:
    """What the filter needs to know to keep connections from outside."""

    connections: frozenset[InboundConnection] = field(default=frozenset())
    """Those that are open already."""
    ephemeral: tuple[int, int] = DEFAULT_PORTS
    """First and last port that the kernel gives to sockets which ask for none: UDP to these is no new conversation
    from outside, but an answer to one that was begun here before the tunnel stood. The same goes for UDP from a
    port below 1024."""
    keep: bool = True
    """False: the filter keeps none."""


NOT_KEPT: Final = Inbound(keep=False)


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


def cut_connections(settings: TunnelSettings, lan: Lan, found: Iterable[InboundConnection]) -> list[Address]:
    """The other ends of those connections from outside that a start with these settings ends."""
    if settings.keep_inbound:
        return []
    direct = (*settings.exclude, *(lan.prefixes if settings.lan else lan.guests))

    def stays(remote: Address) -> bool:
        if any(remote in network for network in direct):
            return True
        tunnelled = not settings.include or any(remote in network for network in settings.include)
        return not tunnelled and not any(remote in network for network in lan.prefixes)

    ends = {one.remote for one in found if one.remote != one.local and not stays(one.remote)}
    return sorted(ends, key=str)
