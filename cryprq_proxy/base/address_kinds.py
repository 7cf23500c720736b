"""Kinds of addresses by their reach: is one of them as near as another?

An address that somebody else names may lead into the network of whoever connects to it. Where both ends of a link know
an address of one kind, another of that kind leads nowhere that the first does not.
"""

from __future__ import annotations

from enum import Enum
from ipaddress import ip_address, ip_network
from typing import Final

from ..rules.ranges import AddressSet, Face


class AddressKind(Enum):
    """How far an address reaches."""

    GLOBAL = "global"
    LOOPBACK = "loopback"
    LINK_LOCAL = "link-local"
    PRIVATE = "private"
    SPECIAL = "special"
    """One host, for documentation, benchmarks and the like (RFC 6890)."""
    NO_HOST = "no host"
    """Unspecified, broadcast, multicast, reserved; or an IPv6 address that holds one of IPv4."""


def _set(*networks: str) -> AddressSet:
    return AddressSet(map(ip_network, networks))


_KINDS: Final = (
    (AddressKind.LOOPBACK, _set("127.0.0.0/8", "::1/128")),
    (AddressKind.LINK_LOCAL, _set("169.254.0.0/16", "fe80::/10")),
    (
        AddressKind.PRIVATE,
        _set(
            "10.0.0.0/8",  # RFC 1918
            "100.64.0.0/10",  # RFC 6598, shared with the provider
            "172.16.0.0/12",
            "192.168.0.0/16",
            "fc00::/7",  # RFC 4193, unique local
            "fec0::/10",  # RFC 3879, site-local, deprecated
        ),
    ),
    (
        AddressKind.NO_HOST,
        _set(
            "0.0.0.0/8",
            "224.0.0.0/3",  # multicast, reserved and broadcast
            # Only 2000::/3 is global unicast (RFC 4291). The rest has v4-mapped addresses and NAT64 too.
            "::/3",
            "4000::/2",
            "8000::/1",
            "2001::/32",  # RFC 4380, Teredo
            "2002::/16",  # RFC 3056, 6to4
        ),
    ),
)
"""The first one counts."""


def kind_of(host: str) -> AddressKind:
    """The kind of an address literal, which may have a zone. Raises ValueError for other text."""
    address = ip_address(host)
    face = Face(address.version, int(address))
    for kind, addresses in _KINDS:
        if face in addresses:
            return kind
    return AddressKind.GLOBAL if address.is_global else AddressKind.SPECIAL
