"""What the kernel takes for this machine itself: asked by netlink, which needs no privileges. On macOS, the
addresses of its interfaces.

    addresses of all devices  +  the routing table `local`: whole prefixes, broadcasts and anycasts too
                              +  prefixes (AnyIP) that a route of type `local` has in the tables `main` and `default`

Each look-up comes to these three tables. To other ones it comes only by a rule of somebody: there a transparent proxy
has a local route for everything, which is no address of this machine.

Of a new address the kernel tells before its route stands, so both are read.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_address, ip_network
from itertools import product
from typing import Final

from ..rules.ranges import IPNetwork
from .interface_addresses import interface_addresses
from .netlink import DUMP, ROUTE, NetlinkSocket, attributes

# rtnetlink(7) and the headers of the kernel.
_NEW_ADDRESS: Final = 20
_GET_ADDRESS: Final = 22
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_NEW_ROUTE: Final = 24
_GET_ROUTE: Final = 26
_RTA_DST: Final = 1
_RTN_LOCAL: Final = 2
_LOCAL: Final = 255
_TABLES: Final = {
    _LOCAL: frozenset({_RTN_LOCAL, 3, 4}),  # and RTN_BROADCAST and RTN_ANYCAST
    254: frozenset({_RTN_LOCAL}),  # main
    253: frozenset({_RTN_LOCAL}),  # default
}
"""The tables, and the types of their routes that count."""
_FAMILIES: Final = {int(socket.AF_INET): 4, int(socket.AF_INET6): 16}
"""Those that count -> the size of an address."""


def local_networks() -> frozenset[IPNetwork]:
    """Addresses and prefixes, as networks. Raises OSError where the kernel cannot be asked."""
    if sys.platform == "darwin":
        return interface_addresses()
    with NetlinkSocket(ROUTE, strict=True) as kernel:
        found = set(_addresses(kernel))
        for table, family in product(_TABLES, _FAMILIES):
            # A kernel without this family, or without the table, says that there is none. One that does not filter by
            # type may have too many routes to tell: what `local` has counts nonetheless.
            with suppress(FileNotFoundError if table == _LOCAL else OSError):
                found.update(_routes(kernel, family, table))
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


def _routes(kernel: NetlinkSocket, family: int, table: int) -> Iterator[IPNetwork]:
    types = _TABLES[table]
    # One type is filtered by the kernel: `main` may have a million routes.
    only = next(iter(types)) if len(types) == 1 else 0
    question = bytes((family, 0, 0, 0, table, 0, 0, only)) + bytes(4)
    for kind, body in kernel.ask(_GET_ROUTE, DUMP, question):
        # A kernel may ignore the table and the type that were asked for.
        if kind != _NEW_ROUTE or len(body) < 12 or body[4] != table or body[7] not in types:
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
