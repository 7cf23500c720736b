"""IPv4 addresses from a network that has IPv6 only, by its NAT64 (RFC 6052).

Such a network's DNS server makes IPv6 addresses of IPv4 ones. What it makes of a name that has no IPv6 address, and
whose IPv4 addresses are known to all, tells the prefix (RFC 7050).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address
from typing import Final

WELL_KNOWN_NAME: Final = "ipv4only.arpa"
_WELL_KNOWN: Final = frozenset({IPv4Address("192.0.0.170").packed, IPv4Address("192.0.0.171").packed})
_PREFIX_BYTES: Final = (12, 8, 7, 6, 5, 4)
_UNUSED: Final = 8
"""The byte that is always 0 (RFC 6052 section 2.2)."""


def translated(address: IPv4Address, answers: Iterable[str]) -> tuple[str, ...]:
    """`address` as the network's NAT64 has it, by the addresses of `WELL_KNOWN_NAME`; empty if there is no NAT64."""
    prefixes = dict.fromkeys(prefix for answer in answers if (prefix := _prefix(answer)) is not None)
    return tuple(_insert(prefix, address) for prefix in prefixes)


def _positions(size: int) -> list[int]:
    """The bytes behind a prefix of `size` bytes that hold the IPv4 address."""
    return [at for at in range(size, 16) if at != _UNUSED][:4]


def _prefix(answer: str) -> bytes | None:
    try:
        packed = IPv6Address(answer).packed
    except ValueError:
        return None
    sizes = (size for size in _PREFIX_BYTES if bytes(packed[at] for at in _positions(size)) in _WELL_KNOWN)
    size = next(sizes, None)
    return None if size is None else packed[:size]


def _insert(prefix: bytes, address: IPv4Address) -> str:
    whole = bytearray(prefix.ljust(16, b"\0"))
    for at, byte in zip(_positions(len(prefix)), address.packed, strict=True):
        whole[at] = byte
    return str(IPv6Address(bytes(whole)))
