"""The exit's routes to its clients: each pool leads into the exit's device, and nowhere without it.

    pool -> device        the kernel's own, which comes and goes with the device's address
    pool -> unreachable   ours, with the last metric: it needs neither address nor device nor process

Without the second one, answers for clients would follow the default route whenever the first one is gone, decrypted and
past the device. Both stand in the main table; ours has the exit's protocol number.

A route of another program to a part of the pool wins over both. It belongs to somebody, so it is named and not deleted;
the filter drops what follows it (exit_table.py).
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple

from pyroute2 import NetlinkError

from cryprq_proxy.base.linux_marks import EXIT_PROTOCOL
from cryprq_proxy.base.netlink_watch import netlink_changes
from cryprq_proxy.errors import CryprqError

from ...journal import Entry, Record, Undoer
from ...reconciler import Fact
from ...routing.lan import Network
from ...settings import ExitNetworkSettings
from ..firewall import conntrack
from .kernel_state import FAMILIES, KernelState, in_own_loop, look_at, open_kernel, refused
from .networks import MAIN, UNICAST, KernelRoute
from .route_rules import UNREACHABLE
from .routes import OpenKernel
from .table_routes import LAST_RESORT

KIND: Final = "pool_routes"
"""The kind of our entry in the journal: one for all of our routes, found by their number."""
_KERNEL: Final = 2
"""RTPROT_KERNEL: with it, the kernel deletes the route together with the address."""
_LINK_SCOPE: Final = 253
_DIRECT_METRIC: Final = {4: 0, 6: 256}
"""IP version -> the metric of the kernel's own routes to the network of an address."""
_GONE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV})
_NAMED: Final = 3
"""Routes of other programs that one sentence names."""


class PoolRoute(NamedTuple):
    """One of the two routes of a pool: into a device, or unreachable."""

    pool: Network
    source: str
    """The exit's own address in the pool."""
    device: int | None

    def __str__(self) -> str:
        return f"the {'unreachable route of' if self.device is None else 'route to'} {self.pool}"

    def arguments(self) -> dict[str, Any]:
        """The arguments of `AsyncIPRoute.route`."""
        version = self.pool.version
        arguments = {"family": FAMILIES[version], "dst": str(self.pool), "table": MAIN}
        if self.device is None:
            last_resort = {"type": "unreachable", "priority": LAST_RESORT, "proto": EXIT_PROTOCOL}
            return arguments | last_resort
        arguments |= {"oif": self.device, "proto": _KERNEL}
        if version == 4:
            return arguments | {"prefsrc": self.source, "scope": _LINK_SCOPE}
        return arguments | {"priority": _DIRECT_METRIC[6]}

    def is_among(self, routes: list[KernelRoute]) -> bool:
        return any(self._is(route) for route in routes if route.prefix == self.pool and route.table == MAIN)

    def _is(self, route: KernelRoute) -> bool:
        if self.device is None:
            return _is_ours(route) and route.metric == LAST_RESORT
        return route.kind == UNICAST and _leads_into(route, self.device)


class PoolRoutes(Fact):
    """The routes of one exit in this thread's network namespace, from `apply` on."""

    changes = staticmethod(netlink_changes)
    name = "routes to clients"

    def __init__(self, settings: ExitNetworkSettings, kernel: OpenKernel = open_kernel) -> None:
        """`kernel` reaches the routing tables."""
        self._settings = settings
        self._kernel = kernel
        self._versions = frozenset({4})

    async def apply(self, record: Record, *, ours: bool) -> None:
        """Set the unreachable routes. `ours`: the journal has the entry already. Raises CryprqError."""
        if not ours:
            record({"kind": KIND})
        async with self._kernel() as kernel:
            await self._repair(kernel, await look_at(kernel))

    def carry(self, *, ipv6: bool) -> None:
        """From now on the device has an IPv6 address too, or none."""
        self._versions = frozenset({4, 6} if ipv6 else {4})

    async def look(self) -> str:
        async with self._kernel() as kernel:
            found = self._found(await look_at(kernel))
            if found:
                # The address may just have come, and its route has come after the look at the routes.
                found = self._found(await look_at(kernel))
        return ", ".join(found)

    async def put_back(self) -> None:
        async with self._kernel() as kernel:
            await self._repair(kernel, await look_at(kernel))
            foreign = list(self._foreign(await look_at(kernel)))
        if foreign:
            raise CryprqError(
                f"another program has {_listed(foreign)}: clients there get no answers; delete it (ip route), "
                "or choose another pool"
            )

    def _found(self, state: KernelState) -> list[str]:
        found = [f"{route} was removed" for route in self._wanted(state) if not route.is_among(state.routes)]
        if foreign := list(self._foreign(state)):
            found.append(f"there was {_listed(foreign)}")
        return found

    def _wanted(self, state: KernelState) -> Iterator[PoolRoute]:
        device = state.device(self._settings.device)
        for route in unreachable_routes(self._settings, state.versions):
            yield route
            addressed = any(
                address.device == device and str(address.interface.ip) == route.source
                for address in state.addresses
            )
            # Without device or address the kernel takes no such route, and makes it with them.
            if device is not None and addressed and route.pool.version in self._versions:
                yield route._replace(device=device)

    def _foreign(self, state: KernelState) -> Iterator[KernelRoute]:
        """Routes of other programs that win over the device's, for a pool that is carried."""
        device = state.device(self._settings.device)
        if device is None:
            return
        for pool in (self._settings.pool4, self._settings.pool6):
            if pool.version not in self._versions:
                continue
            inside = [
                route
                for route in state.routes
                if route.table == MAIN and route.version == pool.version and route.prefix.subnet_of(pool)  # type: ignore[arg-type]
            ]
            # The kernel lists routes of one prefix and metric in the order in which it asks them.
            whole = sorted(
                (route for route in inside if route.prefix == pool), key=lambda route: route.metric
            )
            first = [*whole[:1], *(route for route in inside if route.prefix != pool)]
            yield from (route for route in first if not _is_ours(route) and not _leads_into(route, device))

    async def _repair(self, kernel: Any, state: KernelState) -> None:
        """Add what is missing, and delete what an earlier exit with another pool has left. Raises CryprqError."""
        wanted = list(self._wanted(state))
        for route in wanted:
            if not route.is_among(state.routes):
                await _change(kernel, "replace", route.arguments())
        pools = {route.pool for route in wanted}
        for left in state.routes:
            if _is_ours(left) and left.prefix not in pools:
                await _change(kernel, "del", _found_arguments(left))


def unreachable_routes(settings: ExitNetworkSettings, versions: Collection[int]) -> list[PoolRoute]:
    """Ours, in a kernel that has these IP versions."""
    pools = ((settings.pool4, settings.own4), (settings.pool6, settings.own6))
    return [PoolRoute(pool, str(own), None) for pool, own in pools if pool.version in versions]


def _is_ours(route: KernelRoute) -> bool:
    return route.protocol == EXIT_PROTOCOL and route.table == MAIN and route.kind == UNREACHABLE


def _leads_into(route: KernelRoute, device: int) -> bool:
    return [(hop.device, hop.gateway) for hop in route.hops] == [(device, None)]


def _listed(routes: list[KernelRoute]) -> str:
    more = f" and {len(routes) - _NAMED} more" if len(routes) > _NAMED else ""
    return f"a route to {', '.join(str(route.prefix) for route in routes[:_NAMED])}{more} past the device"


def _found_arguments(route: KernelRoute) -> dict[str, Any]:
    return {
        "family": FAMILIES[route.version],
        "dst": str(route.prefix),
        "table": route.table,
        "type": "unreachable",
        "priority": route.metric,
        "proto": route.protocol,
    }


async def _change(kernel: Any, command: str, arguments: dict[str, Any]) -> None:
    try:
        await kernel.route(command, **arguments)
    except NetlinkError as error:
        if command != "del" or error.code not in _GONE:
            raise refused("routes to clients", error) from error


def delete_pool_routes() -> bool:
    """Delete all that is ours, by the number, and what conntrack knows of connections from the pools: NAT would still
    set back the address of their answers, which then leave by the default route.

    Returns whether there was any. May be called in a thread with a running loop; it blocks for some milliseconds.
    Raises CryprqError.
    """

    async def ours() -> list[KernelRoute]:
        async with open_kernel() as kernel:
            return [route for route in (await look_at(kernel)).routes if _is_ours(route)]

    async def delete() -> None:
        async with open_kernel() as kernel:
            for route in found:
                await _change(kernel, "del", _found_arguments(route))

    if found := in_own_loop(ours):
        pools = [route.prefix for route in found]
        conntrack.delete(lambda entry: any(entry.original.source in pool for pool in pools))
        in_own_loop(delete)
    return bool(found)


def _undo(_: Entry) -> None:
    delete_pool_routes()


UNDO: Final[dict[str, Undoer]] = {KIND: _undo}
