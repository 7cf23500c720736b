"""Where the link may be dialled: all endpoints of all exits, as names become addresses.

The filter lets the link's sockets reach these addresses and ports, and no others. Answers about one name change nothing
of another. The newest addresses are dialled; older ones of the same name stay in the filter, since another link may be
up at one of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from ipaddress import ip_address
from typing import Final

from cryprq_proxy.address import Destination

from ..firewall.filter_settings import ExitEndpoint

MAX_ADDRESSES: Final = 32
"""Of one name; the newest stay."""


class ExitEndpoints:
    """The endpoints of the exits as far as their addresses are known."""

    def __init__(self, exits: Iterable[Destination]) -> None:
        self._exits = tuple(dict.fromkeys(exits))
        self._known: dict[str, tuple[str, ...]] = {
            exit.host: (exit.host,) for exit in self._exits if exit.is_ip
        }

    def learn(self, name: str, addresses: Sequence[str]) -> None:
        """The newest answer about one of the names, as IP literals."""
        known = dict.fromkeys((*addresses, *self._known.get(name, ())))
        self._known[name] = tuple(known)[:MAX_ADDRESSES]

    def known(self) -> frozenset[ExitEndpoint]:
        """Each address that one of the names has had, with each port that goes with the name."""
        return frozenset(
            ExitEndpoint(ip_address(address), exit.port)
            for exit in self._exits
            for address in self._known.get(exit.host, ())
        )
