"""The addresses of clients inside the tunnel: a pool that is free, and a peer keeps its address, also after a restart.

The pool is the first free one of a fixed list, so that it is the same at each start. The address is computed from the
peer's id. If two ids give the same address, the second peer gets the next free one, and keeps it while the earlier
peers are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final, NamedTuple

from cryprq_proxy.crypto.identity import PeerId
from cryprq_proxy.errors import ConfigError, CryprqError

from ..settings import POOLS4, POOLS6, ExitNetworkSettings
from .lan import Network

MOST_OF_ONE_PEER: Final = 4
"""Addresses that one peer can have by refusing others."""


class Occupied(NamedTuple):
    """What is in use on a machine: the networks of its addresses, and the prefixes of its routes."""

    attached: tuple[Network, ...]
    routed: tuple[Network, ...]

    def holds(self, pool: Network) -> Network | None:
        """What keeps `pool` from working: a network that overlaps it, or a route that is at least as narrow."""
        for network in self.attached:
            if _overlap(network, pool):
                return network
        inside = (route for route in self.routed if _overlap(route, pool))
        return next((route for route in inside if route.prefixlen >= pool.prefixlen), None)

    def touches(self, pool: Network) -> bool:
        """Whether any route but a default one covers a part of it."""
        return any(route.prefixlen and _overlap(route, pool) for route in self.routed)


def _overlap(one: Network, other: Network) -> bool:
    return one.version == other.version and one.overlaps(other)


def free_pools(settings: ExitNetworkSettings, occupied: Occupied) -> ExitNetworkSettings:
    """The settings with pools that are free. One that a person has chosen stays. Raises ConfigError."""
    for version, pool in ((4, settings.pool4), (6, settings.pool6)):
        if version in settings.fixed and (found := occupied.holds(pool)) is not None:
            raise ConfigError(
                f"the pool {pool} is in use on this machine ({found}): choose another one for tun.pool{version}"
            )
    pool4 = settings.pool4 if 4 in settings.fixed else _first_free(POOLS4, occupied)
    pool6 = settings.pool6 if 6 in settings.fixed else _first_free(POOLS6, occupied)
    return replace(settings, pool4=pool4, pool6=pool6)


def _first_free[N: (IPv4Network, IPv6Network)](candidates: Iterable[N], occupied: Occupied) -> N:
    """One that no route touches, else one that wider routes cover only. Raises ConfigError."""
    usable = [pool for pool in candidates if occupied.holds(pool) is None]
    if not usable:
        version = next(iter(candidates)).version
        raise ConfigError(
            f"all addresses that clients may get are in use on this machine: set tun.pool{version} to a free prefix"
        )
    return next((pool for pool in usable if not occupied.touches(pool)), usable[0])


class AddressPool[A: (IPv4Address, IPv6Address)]:
    """Addresses from `own`, the exit's, up to the end of the network, without `reserved`."""

    def __init__(self, network: IPv4Network | IPv6Network, own: A, reserved: A) -> None:
        self.network = network
        self.own: A = own
        self._reserved: A = reserved
        self._given: dict[PeerId, list[A]] = {}
        self._taken: set[A] = set()

    def address(self, peer: PeerId, avoid: Sequence[Network] = ()) -> A:
        """The address of `peer`, or another one of it outside of `avoid`. Raises CryprqError when there is none."""
        known = self._given.setdefault(peer, [])
        for address in known:
            if _holding(avoid, address) is None:
                return address
        if len(known) < MOST_OF_ONE_PEER:
            found = self._search(peer, avoid)
            if found is not None:
                known.append(found)
                self._taken.add(found)
                return found
        if avoid:
            raise CryprqError(f"the pool {self.network} has no address for it outside of {_listed(avoid)}")
        raise CryprqError(f"the pool {self.network} has no address left: give the exit a larger one")

    def _search(self, peer: PeerId, avoid: Sequence[Network]) -> A | None:
        # Without the network's own, the exit's and the broadcast address.
        usable = self.network.num_addresses - 3
        place = int.from_bytes(hashlib.sha256(b"cryprq/1 address" + peer.raw).digest()[:16]) % usable
        # Each step meets another taken address, or jumps over a whole prefix, which may lie at both ends.
        for _ in range(min(usable, len(self._taken) + 2 + 2 * len(avoid))):
            candidate = self.own + (1 + place)
            prefix = _holding(avoid, candidate)
            if prefix is not None:
                behind = int(prefix[-1]) - int(self.own)
                place = behind if behind < usable else 0
            elif candidate in self._taken or candidate == self._reserved:
                place = (place + 1) % usable
            else:
                return candidate
        return None


def _holding(networks: Iterable[Network], address: IPv4Address | IPv6Address) -> Network | None:
    return next((network for network in networks if address in network), None)


def _listed(networks: Iterable[Network]) -> str:
    return ", ".join(map(str, networks))
