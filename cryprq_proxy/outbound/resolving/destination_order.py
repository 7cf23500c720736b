"""The order of the addresses of a name: destination address selection, RFC 6724 section 6.

Rules 3, 4 and 7 ask for what a socket does not tell: addresses that are deprecated, mobile or in a tunnel. Rule 9,
the longest matching prefix, is for IPv6 only: among IPv4 addresses it would undo the server's own turns.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import Final

_POLICY: Final = tuple(
    (int(network.network_address) >> 128 - network.prefixlen, 128 - network.prefixlen, precedence, label)
    for network, precedence, label in (
        (ipaddress.IPv6Network(text), precedence, label)
        for text, precedence, label in (
            ("::1/128", 50, 0),
            ("::ffff:0:0/96", 35, 4),
            ("::/96", 1, 3),
            ("2001::/32", 5, 5),
            ("2002::/16", 30, 2),
            ("3ffe::/16", 1, 12),
            ("fec0::/10", 1, 11),
            ("fc00::/7", 3, 13),
            ("::/0", 40, 1),
        )
    )
)
"""Prefix, bits behind it, precedence and label: RFC 6724 section 2.1, the longest prefixes first."""

LINK_LOCAL, SITE_LOCAL, GLOBAL = 2, 5, 14

type SourceOf = Callable[[str], str | None]
"""The address that this machine would send from to an address; None without a route."""


def by_preference(addresses: Iterable[str]) -> tuple[str, ...]:
    """The addresses, the best first. Connects datagram sockets, which sends nothing."""
    found = tuple(addresses)
    if len(found) < 2:
        return found
    with ExitStack() as stack:
        return sort_addresses(found, Sources(stack).of)


def sort_addresses(addresses: Iterable[str], source_of: SourceOf) -> tuple[str, ...]:
    return tuple(sorted(addresses, key=lambda address: _rank(address, source_of(address))))


class Sources:
    """Asks the kernel for sources, with one socket for each family."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._sockets: dict[int, socket.socket] = {}

    def of(self, address: str) -> str | None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            sock = self._sockets.get(family)
            if sock is None:
                sock = self._sockets[family] = self._stack.enter_context(
                    socket.socket(family, socket.SOCK_DGRAM)
                )
            sock.connect((address, 53))
            return str(sock.getsockname()[0])
        except OSError:
            return None


def _rank(address: str, source: str | None) -> tuple[int, ...]:
    """Smaller is better; one number a rule."""
    number = _number(address)
    scope, (precedence, label) = _scope(number), _policy(number)
    if source is None:
        return 1, 0, 0, -precedence, scope, 0
    from_number = _number(source)
    same = 128 - (number ^ from_number).bit_length() if ":" in address else 0
    return (
        0,
        scope != _scope(from_number),
        label != _policy(from_number)[1],
        -precedence,
        scope,
        -same,
    )


def _number(address: str) -> int:
    found = ipaddress.ip_address(address.partition("%")[0])
    return int(found) if found.version == 6 else 0xFFFF << 32 | int(found)


def _policy(number: int) -> tuple[int, int]:
    return next(
        (precedence, label) for prefix, bits, precedence, label in _POLICY if number >> bits == prefix
    )


def _scope(number: int) -> int:
    if number >> 32 == 0xFFFF:
        # Section 3.2: private addresses are global ones.
        return LINK_LOCAL if number >> 24 & 0xFF == 127 or number >> 16 & 0xFFFF == 0xA9FE else GLOBAL
    if number == 1 or number >> 118 == 0xFE80 >> 6:
        return LINK_LOCAL
    return SITE_LOCAL if number >> 118 == 0xFEC0 >> 6 else GLOBAL
