"""Addresses and ports as ranges of integers: one bisection finds the sets of a value.

A set of ranges is a sorted list of borders; every second one ends a range. `Ranges` tells whether a value is in one
set, `Steps` in which of many. The rules of both sides of the link (rules/engine.py, exit/egress_policy.py) use them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, Final, NamedTuple

type IPNetwork = IPv4Network | IPv6Network

LAST_PORT: Final = 65535
_PORTS: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


class Face(NamedTuple):
    """An address for rules. `version` is 4 or 6."""

    version: int
    value: int


def borders(ranges: Iterable[tuple[int, int]]) -> list[int]:
    """Ranges (first, last) merged: ascending, each first value followed by the value after the last."""
    found: list[int] = []
    for first, last in sorted(ranges):
        if found and first <= found[-1]:
            found[-1] = max(found[-1], last + 1)
        else:
            found += first, last + 1
    return found


def spans(networks: Iterable[IPNetwork], version: int) -> list[tuple[int, int]]:
    """First and last address of each network of one version."""
    return [
        (int(network.network_address), int(network.broadcast_address))
        for network in networks
        if network.version == version
    ]


class Ranges:
    """Networks of one version."""

    __slots__ = ("_borders",)

    def __init__(self, ranges: Iterable[tuple[int, int]]) -> None:
        self._borders = borders(ranges)

    def __contains__(self, value: int) -> bool:
        return bisect_right(self._borders, value) & 1 == 1


class AddressSet:
    """Networks of both versions."""

    __slots__ = ("v4", "v6")

    def __init__(self, networks: Iterable[IPNetwork]) -> None:
        networks = list(networks)
        self.v4 = Ranges(spans(networks, 4))
        self.v6 = Ranges(spans(networks, 6))

    def __contains__(self, face: Face) -> bool:
        return face.value in (self.v4 if face.version == 4 else self.v6)


class Steps:
    """Many sets of ranges at once: gives the bit mask of the sets that hold a value.

    Made of a bit and the ranges of each set. Equal masks share one object: many ranges have few combinations.
    """

    __slots__ = ("_borders", "_masks")

    def __init__(self, sets: Iterable[tuple[int, Iterable[tuple[int, int]]]]) -> None:
        changes: dict[int, int] = {}
        for bit, ranges in sets:
            for border in borders(ranges):
                changes[border] = changes.get(border, 0) ^ bit
        self._borders = sorted(changes)
        self._masks = [0]
        mask, same = 0, {0: 0}
        for border in self._borders:
            mask ^= changes[border]
            self._masks.append(same.setdefault(mask, mask))

    def __getitem__(self, value: int) -> int:
        return self._masks[bisect_right(self._borders, value)]


def without(networks: Iterable[IPNetwork], holes: Iterable[IPNetwork]) -> list[IPNetwork]:
    """What is left of the networks outside of the holes."""
    left = list(networks)
    for hole in holes:
        left = [rest for network in left for rest in _outside(network, hole)]
    return left


def _outside(network: Any, hole: IPNetwork) -> Iterable[IPNetwork]:
    """Of two prefixes that overlap, one is inside of the other."""
    if network.version != hole.version or not network.overlaps(hole):
        return [network]
    return network.address_exclude(hole) if network.prefixlen < hole.prefixlen else []


def parse_ports(text: str) -> tuple[int, int]:
    """Read "443" or "6000-6100": the first and the last port. Raises ValueError with a text for a person."""
    match = _PORTS.fullmatch(text)
    if not match:
        raise ValueError("a port is a number, a range two numbers with a hyphen")
    first = int(match[1])
    last = int(match[2] or match[1])
    if not 1 <= first <= last <= LAST_PORT:
        raise ValueError("ports go from 1 to 65535, and a range begins with the lower one")
    return first, last


def parse_network(text: str) -> IPNetwork:
    """Read a CIDR or a single address without brackets. Raises ValueError with a text for a person."""
    address, slash, length = text.partition("/")
    if "%" in address:
        raise ValueError("an address here has no zone")
    if slash and not (length.isascii() and length.isdecimal()):
        raise ValueError("a CIDR ends in a number of bits")
    if address.isdecimal():
        raise ValueError("an address has dots or colons")
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        wider = ip_network(text, strict=False)
    except ValueError:
        raise ValueError("no valid IP address or CIDR") from None
    raise ValueError(f"it has bits set behind its prefix; write {wider}")
