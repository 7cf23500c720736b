"""The prefixes of an address, from one customer to a whole network: what strangers are counted by."""

from __future__ import annotations

import socket
from typing import Final

type Prefixes = tuple[bytes, ...]
"""The narrowest first; empty while the address is not known yet."""

_LENGTHS_4: Final = (4, 3, 2)
_LENGTHS_6: Final = (8, 6, 4)
"""In bytes."""
_V4_MAPPED: Final = bytes(10) + b"\xff\xff"


def prefixes_of(ip: str) -> Prefixes:
    """/32, /24 and /16 of an IPv4 address (also if v4-mapped); /64, /48 and /32 of an IPv6 address.

    Each is a key of a few bytes that no other prefix has. Text that is no address gives one empty prefix.
    """
    try:
        if ":" not in ip:
            return _prefixes_4(socket.inet_pton(socket.AF_INET, ip))
        address = socket.inet_pton(socket.AF_INET6, ip.partition("%")[0])
    except (OSError, ValueError):
        return (b"",)
    if address.startswith(_V4_MAPPED):
        return _prefixes_4(address[12:])
    return tuple(b"6" + address[:length] for length in _LENGTHS_6)


def _prefixes_4(address: bytes) -> Prefixes:
    return tuple(b"4" + address[:length] for length in _LENGTHS_4)
