"""The addresses that an exit hands out to this client, one of each family at most."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import NamedTuple, Self

from .lan import Lan, Network


class TunnelAddresses(NamedTuple):
    """The addresses of this machine inside the tunnel. None for a family that the exit does not carry."""

    ipv4: IPv4Address | None = None
    """None only before an exit has handed out addresses, and from an exit that carries no packets."""
    ipv6: IPv6Address | None = None

    @classmethod
    def of(cls, ipv4: bytes, ipv6: bytes) -> Self:
        """From 4 and 16 bytes of the link; zeros for a family that is not carried."""
        return cls(
            IPv4Address(ipv4) if any(ipv4) else None,
            IPv6Address(ipv6) if any(ipv6) else None,
        )

    @property
    def versions(self) -> frozenset[int]:
        """The families that enter the tunnel."""
        return frozenset({4} if self.ipv6 is None else {4, 6})

    def interfaces(self) -> list[IPv4Interface | IPv6Interface]:
        """Each address as an interface."""
        four = [] if self.ipv4 is None else [IPv4Interface((self.ipv4, 32))]
        six = [] if self.ipv6 is None else [IPv6Interface((self.ipv6, 128))]
        return [*four, *six]

    def held_by(self, lan: Lan) -> tuple[Network, ...]:
        """The networks around this machine in which one of them lies."""
        networks = (*lan.prefixes, *lan.attached)
        return tuple(net for net in networks if any(own.ip in net for own in self.interfaces()))

    def without_ipv6(self) -> TunnelAddresses:
        return TunnelAddresses(self.ipv4)
