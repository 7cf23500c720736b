"""What the kernel has, at one look: rules, routes, devices and addresses, and what follows from them for both roles."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from socket import AF_INET, AF_INET6, AF_UNSPEC
from typing import Any, Final

from pyroute2 import NetlinkDumpInterrupted, NetlinkError

from cryprq_proxy.base.linux_marks import EXIT_PROTOCOL, RULE_PROTOCOL
from cryprq_proxy.base.rtnetlink import TABLE_SECONDS, rtnetlink
from cryprq_proxy.errors import ConfigError, CryprqError, reason_of

from ...routing.address_pool import Occupied
from ...routing.lan import Lan, Uplink
from . import networks as network
from .foreign_rules import ForeignRule, read_foreign_rule
from .networks import KernelRoute, NetlinkMessage, NetworkDevice
from .route_rules import FIRST, LAST, RoutingRule, read_rule
from .table_routes import TableRoute, read_table_route

FAMILIES: Final[Mapping[int, int]] = {4: AF_INET, 6: AF_INET6}
_DUMPS: Final = 5
"""Tries to read a table that changes while it is read."""
_FIRST_NAMESPACE: Final = Path("/proc/sys/net/core/netdev_max_backlog")
"""A sysctl that the kernel shows in its first network namespace only: with another one, this machine is a container."""


@dataclass(frozen=True, slots=True)
class KernelState:
    """The kernel's rules, routes and devices at one look."""

    versions: tuple[int, ...]
    """The families that this kernel has."""
    rules: list[tuple[RoutingRule, int]]
    foreign: list[ForeignRule]
    routes: list[KernelRoute]
    links: list[NetworkDevice]
    addresses: list[network.DeviceAddress]
    table: list[TableRoute]
    """All that stands in our table."""

    def our_rules(self, version: int) -> list[RoutingRule]:
        return [
            rule
            for rule, protocol in self.rules
            if rule.version == version and protocol == RULE_PROTOCOL and FIRST <= rule.priority <= LAST
        ]

    def table_routes(self, version: int) -> list[TableRoute]:
        return [route for route in self.table if route.version == version]

    def device(self, name: str) -> int | None:
        """The index of a device that is up."""
        return next((link.device for link in self.links if link.name == name and link.up), None)

    def lan(self, own: str) -> Lan:
        lan = network.find_lan(self.routes, self.links, own, container=not _FIRST_NAMESPACE.exists())
        return replace(lan, attached=network.find_attached(lan, self.addresses, self.links, own))

    def uplink(self, version: int, own: str) -> Uplink | None:
        return network.find_uplink(version, self.routes, self.links, self.addresses, own)


@asynccontextmanager
async def open_kernel() -> AsyncIterator[Any]:
    """An AsyncIPRoute whose errors become sentences: CryprqError."""
    try:
        async with rtnetlink(TABLE_SECONDS) as kernel:
            yield kernel
    except NetlinkError as error:
        raise refused("routing table", error) from error
    except OSError as error:
        raise CryprqError(f"the kernel's routing tables cannot be reached: {reason_of(error)}") from error


def in_own_loop[T](work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What `work` returns, in a loop and thread of its own; blocks. The thread has this one's network namespace."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work()).result()


def refused(what: str, error: NetlinkError) -> CryprqError:
    if error.code == errno.EPERM:
        return ConfigError(f"changing the {what} needs root (CAP_NET_ADMIN)")
    return CryprqError(f"the kernel refused to change the {what}: {reason_of(OSError(error.code, ''))}")


async def _dump(method: Any, family: int) -> list[NetlinkMessage]:
    for _ in range(_DUMPS):
        with contextlib.suppress(NetlinkDumpInterrupted):
            return [message async for message in await method("dump", family=family)]
    raise CryprqError(
        "the kernel's routing tables change faster than they can be read; trying again may help"
    )


async def look_at(kernel: Any) -> KernelState:
    rules: list[tuple[RoutingRule, int]] = []
    foreign: list[ForeignRule] = []
    routes: list[KernelRoute] = []
    table: list[TableRoute] = []
    versions = _versions()
    for version in versions:
        family = FAMILIES[version]
        for message in await _dump(kernel.rule, family):
            rule, protocol = read_rule(message)
            rules.append((rule, protocol))
            if protocol != RULE_PROTOCOL:
                foreign.append(read_foreign_rule(message))
        for message in await _dump(kernel.route, family):
            if (route := network.read_route(message)) is not None:
                routes.append(route)
            if (in_table := read_table_route(message)) is not None:
                table.append(in_table)
    links = [network.read_link(message) for message in await _dump(kernel.link, AF_UNSPEC)]
    addresses = [network.read_address(message) for message in await _dump(kernel.addr, AF_UNSPEC)]
    return KernelState(versions, rules, foreign, routes, links, addresses, table)


def _versions() -> tuple[int, ...]:
    """The families that this kernel has. With IPv6 switched off it has no IPv6 traffic."""
    try:
        socket.socket(AF_INET6, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC).close()
    except OSError as error:
        if error.errno != errno.EAFNOSUPPORT:
            raise
        return (4,)
    return (4, 6)


async def read_lan(own: str) -> Lan:
    """The local networks of this machine; `own` is the TUN device, which may be missing. Raises CryprqError."""
    async with open_kernel() as kernel:
        state = await look_at(kernel)
    return state.lan(own)


async def read_uplinks(own: str) -> dict[int, Uplink | None]:
    """The uplink of each IP version past the tunnel, whose device is `own`. Raises CryprqError."""
    async with open_kernel() as kernel:
        state = await look_at(kernel)
    return {version: state.uplink(version, own) for version in FAMILIES}


async def read_occupied(own: str) -> Occupied:
    """What addresses are in use on and around this machine, but for the device `own` and the exit's routes. Raises
    CryprqError."""
    async with open_kernel() as kernel:
        state = await look_at(kernel)
    ours = {link.device for link in state.links if link.name == own}
    return Occupied(
        tuple(address.interface.network for address in state.addresses if address.device not in ours),
        tuple(
            route.prefix
            for route in state.routes
            if route.protocol != EXIT_PROTOCOL and not ours & {hop.device for hop in route.hops}
        ),
    )
