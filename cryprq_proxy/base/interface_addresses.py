"""The addresses of this machine's interfaces by getifaddrs(3), where there is no netlink: on macOS."""

from __future__ import annotations

import ctypes
import os
import socket
import sys
from ipaddress import ip_address, ip_network
from typing import Final

from ..rules.ranges import IPNetwork

_LONGEST: Final = 28
"""Bytes of struct sockaddr_in6, of which an address is read."""
_SIZES: Final = {int(socket.AF_INET): (16, 4, 8), int(socket.AF_INET6): (_LONGEST, 8, 24)}
"""Family -> size of its sockaddr, and where the address begins and ends."""


class _Interface(ctypes.Structure):
    """struct ifaddrs, as far as it is the same everywhere."""


_Interface._fields_ = [
    ("next", ctypes.POINTER(_Interface)),
    ("name", ctypes.c_char_p),
    ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p),
]


def interface_addresses() -> frozenset[IPNetwork]:
    """All of them, as networks of one address. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    first = ctypes.POINTER(_Interface)()
    if library.getifaddrs(ctypes.byref(first)):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    found = set()
    try:
        at = first
        while at:
            place = at.contents.address
            if place:
                # The family says how long it is.
                family = family_of(ctypes.string_at(place, 2))
                if family in _SIZES:
                    found.add(address_of(ctypes.string_at(place, _SIZES[family][0])))
            at = at.contents.next
    finally:
        library.freeifaddrs(first)
    return frozenset(found)


def family_of(head: bytes) -> int:
    """Of the first two bytes of a sockaddr: on macOS the first one is its length."""
    return head[1] if sys.platform == "darwin" else int.from_bytes(head, sys.byteorder)


def address_of(sockaddr: bytes) -> IPNetwork:
    """The address in a sockaddr of a family that is known."""
    _, begin, end = _SIZES[family_of(sockaddr[:2])]
    packed = sockaddr[begin:end]
    if sys.platform == "darwin" and packed[0] == 0xFE and packed[1] & 0xC0 == 0x80 and len(packed) == 16:
        # The kernel keeps the interface's number inside of a link-local address.
        packed = packed[:2] + bytes(2) + packed[4:]
    return ip_network(ip_address(packed))
