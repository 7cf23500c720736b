"""The addresses of clients inside the tunnel: a peer keeps its address, also after a restart.

The address is computed from the peer's id. If two ids give the same address, the second peer gets the next free one,
and keeps it while the earlier peers are the same.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import CryprqError


class AddressPool[A: (IPv4Address, IPv6Address)]:
    """Addresses from `own`, the exit's, up to the end of the network, without `reserved`."""

    def __init__(self, network: IPv4Network | IPv6Network, own: A, reserved: A) -> None:
        self.network = network
        self.own: A = own
        self._reserved: A = reserved
        self._given: dict[PeerId, A] = {}
        self._taken: set[A] = set()

    def address(self, peer: PeerId) -> A:
        """The address of `peer`. Raises CryprqError when there is none left."""
        known = self._given.get(peer)
        if known is not None:
            return known
        # Without the network's own, the exit's and the broadcast address.
        usable = self.network.num_addresses - 3
        first = int.from_bytes(hashlib.sha256(b"cryprq/1 address" + peer.raw).digest()[:16]) % usable
        for step in range(min(usable, len(self._taken) + 2)):
            candidate = self.own + (1 + (first + step) % usable)
            if candidate not in self._taken and candidate != self._reserved:
                self._given[peer] = candidate
                self._taken.add(candidate)
                return candidate
        raise CryprqError(f"the pool {self.network} has no address left: give the exit a larger one")
