"""Which connections came in from outside, for `--inbound keep`.

Once the tunnel stands, a reply to a client that connected to this machine (ssh) would go into the tunnel and be lost.
The filter marks connections that come in from then on. Those that are already open have to be found beforehand:
they are the established TCP connections of a port on which something listens, and those of a service that has ended
and left its sessions: from a port that the kernel gives to clients, to one that it does not. All others began here, and
moving them into the tunnel is what the tunnel is for.

Between this look and the filter lies a moment; a connection that comes in just then is cut.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple

from ..routing.lan import Lan
from ..settings import TunnelSettings

type Address = IPv4Address | IPv6Address

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
