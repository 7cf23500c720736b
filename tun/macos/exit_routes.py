"""The exit's routes to its clients on macOS: each pool leads into the exit's device, and nowhere without it.

    half of the pool -> device   ours, two for each pool; they go with the device
    pool -> refused              ours, with an entry in the journal: it needs neither device nor process

macOS has no second route to one prefix with a later metric, so the halves are more specific instead. Without the
refusing one, answers for clients would follow the default route whenever the device is gone.

A route of another program to a part of the pool wins over both. It belongs to somebody, so it is named and not deleted;
the filter drops what follows it (exit_rules.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

from cryprq_proxy.base.route_socket import route_changes
from cryprq_proxy.errors import CryprqError

from ..journal import Record
from ..reconciler import Fact
from ..routing.lan import Network
from ..settings import POOLS4, POOLS6, ExitNetworkSettings
from . import networks
from .networks import MacRoute, MacState
from .programs import Run, run
from .wanted_routes import WantedRoute, add, remove

_NAMED: Final = 3
"""Routes of other programs that one sentence names."""


class MacPoolRoutes(Fact):
    """The routes of one exit, from `apply` on. The journal's undo is that of routing.py."""

    name = "routes to clients"
    polled = True
    changes = staticmethod(route_changes)

    def __init__(self, settings: ExitNetworkSettings, record: Record, run: Run = run) -> None:
        self._settings = settings
        self._record = record
        self._run = run
        self._versions = frozenset({4})
        self._recorded: set[WantedRoute] = set()

    async def apply(self) -> None:
        """Set the routes that refuse. Raises CryprqError."""
        state = await asyncio.to_thread(networks.look, self._run)
        await asyncio.to_thread(self._repair, state, into_device=False)

    async def carry(self, *, ipv6: bool) -> None:
        """From now on the device has an IPv6 address too, or none. Raises CryprqError."""
        self._versions = frozenset({4, 6} if ipv6 else {4})
        await self.put_back()

    async def look(self) -> str:
        state = await asyncio.to_thread(networks.look, self._run)
        found = [f"{route} was removed" for route in self._wanted() if not _stands(route, state)]
        if foreign := list(self._foreign(state)):
            found.append(f"there was {_listed(foreign)}")
        return ", ".join(found)

    async def put_back(self) -> None:
        state = await asyncio.to_thread(networks.look, self._run)
        await asyncio.to_thread(self._repair, state)
        if foreign := list(self._foreign(state)):
            raise CryprqError(
                f"another program has {_listed(foreign)}: clients there get no answers; delete it (route delete), "
                "or choose another pool"
            )

    def _wanted(self, *, into_device: bool = True) -> Iterator[WantedRoute]:
        for pool in (self._settings.pool4, self._settings.pool6):
            yield WantedRoute(pool)
            if into_device and pool.version in self._versions:
                yield from (WantedRoute(half, self._settings.device) for half in pool.subnets())

    def _foreign(self, state: MacState) -> Iterator[MacRoute]:
        """Routes of other programs that win over the device's, for a pool that is carried."""
        ours = {route.prefix for route in self._wanted()}
        pools = [
            pool for pool in (self._settings.pool4, self._settings.pool6) if pool.version in self._versions
        ]
        for route in state.routes:
            if route.scoped or route.cloned or route.interface in (self._settings.device, "lo0"):
                continue
            inside = any(
                route.prefix.version == pool.version and route.prefix.subnet_of(pool)  # type: ignore[arg-type]
                for pool in pools
            )
            if inside and route.prefix not in ours:
                yield route

    def _repair(self, state: MacState, *, into_device: bool = True) -> None:
        for route in self._wanted(into_device=into_device):
            if _stands(route, state):
                continue
            if (there := state.at(route.prefix)) is not None:
                # Of a device that has another name now, or of another program: two cannot have it.
                remove(WantedRoute(route.prefix, there.interface), self._run)
            if route.outlives and route not in self._recorded:
                self._record(route.entry())
                self._recorded.add(route)
            add(route, self._run)
        if 6 not in self._versions:
            for half in self._settings.pool6.subnets():
                left = WantedRoute(half, self._settings.device)
                if _stands(left, state):
                    remove(left, self._run)


def delete_left(run: Run = run) -> str:
    """Delete routes that refuse a pool which an exit takes by itself, though no journal names them; returns what that
    was, in words. Blocks. Raises CryprqError."""
    state = networks.look(run)
    pools: tuple[Network, ...] = (*POOLS4, *POOLS6)
    left = [route for route in map(WantedRoute, pools) if _stands(route, state)]
    for route in left:
        remove(route, run)
    return "routes to clients" if left else ""


def _stands(route: WantedRoute, state: MacState) -> bool:
    there = state.at(route.prefix)
    return there is not None and route.matches(there)


def _listed(routes: list[MacRoute]) -> str:
    more = f" and {len(routes) - _NAMED} more" if len(routes) > _NAMED else ""
    return f"a route to {', '.join(str(route.prefix) for route in routes[:_NAMED])}{more} past the device"
