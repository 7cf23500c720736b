"""What the kernel takes for this machine itself: asked by netlink, which needs no privileges.

    addresses of all devices  +  the routing table `local`: whole prefixes, broadcasts and anycasts too

Of a new address the kernel tells before its route stands, so both are read.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from typing import Final

from ..rules.ranges import IPNetwork
from .netlink import DUMP, ROUTE, NetlinkSocket, attributes

ADDRESS_GROUPS: Final = (
    0x10  # IPv4 addresses
    | 0x40  # IPv4 routes
    | 0x100  # IPv6 addresses
    | 0x400  # IPv6 routes
)
"""The groups of netlink_watch.Changes that tell of changes."""

# rtnetlink(7) and the headers of the kernel.
_NEW_ADDRESS: Final = 20
_GET_ADDRESS: Final = 22
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_NEW_ROUTE: Final = 24
_GET_ROUTE: Final = 26
_RTA_DST: Final = 1
_LOCAL_TABLE: Final = 255
_FOR_THIS_MACHINE: Final = frozenset({2, 3, 4})
"""RTN_LOCAL, RTN_BROADCAST, RTN_ANYCAST."""
_FAMILIES: Final = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}
"""Those that count -> the size of an address."""


def local_networks() -> frozenset[IPNetwork]:
    """Addresses and prefixes, as networks. Raises OSError where the kernel cannot be asked."""
    with NetlinkSocket(ROUTE, strict=True) as kernel:
        found = set(_addresses(kernel))
        for family in _FAMILIES:
            # A kernel without this family, or without the table, says that there is none.
            with suppress(FileNotFoundError):
                found.update(_routes(kernel, family))
        return frozenset(found)


def own_addresses(before: frozenset[str] = frozenset()) -> frozenset[str]:
    """This machine's addresses as CIDRs. Never raises. It never finds the public address of a NAT router.

    Where the kernel cannot be asked, `before` and what the machine's own name resolves to.
    """
    try:
        return frozenset(map(str, local_networks()))
    except OSError:
        return before | _addresses_of_own_name()


def _addresses(kernel: NetlinkSocket) -> Iterator[IPNetwork]:
    for kind, body in kernel.ask(_GET_ADDRESS, DUMP, bytes(8)):
        parts = attributes(body[8:]) if kind == _NEW_ADDRESS else {}
        # Of a point-to-point link, IFA_ADDRESS is the other end's.
        packed = parts.get(_IFA_LOCAL, parts.get(_IFA_ADDRESS, b""))
        if len(packed) in _FAMILIES.values():
            yield ip_network(ip_address(packed))


def _routes(kernel: NetlinkSocket, family: int) -> Iterator[IPNetwork]:
    question = bytes((family, 0, 0, 0, _LOCAL_TABLE)) + bytes(7)
    for kind, body in kernel.ask(_GET_ROUTE, DUMP, question):
        # A kernel may ignore the table that was asked for.
        if (
            kind != _NEW_ROUTE
            or len(body) < 12
            or body[4] != _LOCAL_TABLE
            or body[7] not in _FOR_THIS_MACHINE
        ):
            continue
        size = _FAMILIES.get(body[0], 0)
        packed = attributes(body[12:]).get(_RTA_DST, bytes(size))
        if len(packed) == size and body[1] <= size * 8:
            yield ip_network((packed, body[1]), strict=False)


def _addresses_of_own_name() -> frozenset[str]:
    try:
        return frozenset(str(info[4][0]) for info in socket.getaddrinfo(socket.gethostname(), None))
    except OSError:
        return frozenset()
