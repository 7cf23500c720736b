"""The endpoints of all exits, with the addresses of their names.

The filter lets the link's sockets reach these addresses and ports, and no others. An answer changes only
its own name. The newest addresses are dialled. Older ones of the name stay in the filter, since another link may use
one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final

from cryprq_proxy.address import Destination

from ..firewall.filter_settings import ExitEndpoint

MAX_ADDRESSES: Final = 32
"""Addresses of one name; the newest stay."""


class ExitEndpoints:
    """The endpoints of the exits whose addresses are known."""

    def __init__(self, exits: Iterable[Destination]) -> None:
        self._exits = tuple(dict.fromkeys(exits))
        self._known: dict[str, tuple[str, ...]] = {
            exit.host: (exit.host,) for exit in self._exits if exit.is_ip
        }

    @property
    def configured(self) -> tuple[Destination, ...]:
        return self._exits

    def follow(self, exits: Iterable[Destination]) -> bool:
        """These in place of the present ones; what is known of their names stays. Returns whether they are others."""
        before, self._exits = self._exits, tuple(dict.fromkeys(exits))
        hosts = {exit.host for exit in self._exits}
        self._known = {host: found for host, found in self._known.items() if host in hosts}
        for exit in self._exits:
            if exit.is_ip:
                self._known.setdefault(exit.host, (exit.host,))
        return set(self._exits) != set(before)

    def learn(self, name: str, addresses: Sequence[str]) -> None:
        """Take the newest answer about one of the names, as IP literals."""
        known = dict.fromkeys((*addresses, *self._known.get(name, ())))
        self._known[name] = tuple(known)[:MAX_ADDRESSES]

    def known_of(self, host: str) -> tuple[str, ...]:
        """The addresses of one host, as far as they are known."""
        return self._known.get(host, ())

    def known(self) -> frozenset[ExitEndpoint]:
        """Each kept address of each name, with each port of the name."""
        return frozenset(
            ExitEndpoint(ip_address(address), exit.port)
            for exit in self._exits
            for address in self._known.get(exit.host, ())
        )
