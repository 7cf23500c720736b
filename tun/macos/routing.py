"""The client's routes on macOS: all traffic goes into the utun device, with exceptions.

The default route stays as it is. Two routes, each of half the address space, are more specific and win; they end with
the device. Exceptions are more specific again: a host route for each address of an exit, for a resolver that is being
asked for an exit's name, and one route for each excluded prefix, all by the gateway of the uplink. LAN needs none: the
route of its interface is more specific. A family that the exit does not carry is refused by the same halves.

Host routes and not sockets bound to the interface: nothing that dials has to know of them, `route get` shows them, and
the packet filter says which programs may use them. What a DHCP server pushes may be more specific than the halves: its
packets go to the uplink, and the packet filter (filter.py) holds them in. Such routes are named (DivertingRoutes).

    apply      look -> refuse what is not ours -> repair
    look       as a Fact: what is gone; follows and reports other networks and uplinks
    put_back   repair
    undo       each route that outlives the device, by its entry in the journal

`_repair` compares the routes with the wanted ones and corrects the difference, exceptions first, so that the link is
never led into its own tunnel.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from cryprq_proxy.base.route_socket import route_changes
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.errors import ConfigError, CryprqError

from ..firewall.filter_settings import ExitEndpoint
from ..journal import Record
from ..reconciler import Fact
from ..routing.lan import Lan, Network, Uplink, within
from ..settings import TunnelSettings
from ..system import LanChanged, Routing
from . import networks
from .networks import Address, Interface, MacRoute, MacState
from .programs import Run, run
from .wanted_routes import Exceptions, WantedRoute, add, delete, into_tunnel, past_tunnel, remove

_log = logging.getLogger(__name__)

MAX_NAMED: Final = 3
"""Routes that one log line names."""
_NOT_FORWARDED: Final[tuple[Network, ...]] = tuple(
    ipaddress.ip_network(text)
    for text in (
        "127.0.0.0/8",
        "::1/128",
        "169.254.0.0/16",  # link-local: RFC 3927
        "fe80::/10",
        "224.0.0.0/4",  # groups
        "ff00::/8",
        "255.255.255.255/32",
    )
)


class MacRoutes(Routing):
    """The routes of one client. All that blocks runs on threads."""

    changes = staticmethod(route_changes)

    def __init__(
        self,
        settings: TunnelSettings,
        versions: frozenset[int],
        record: Record,
        lan_changed: LanChanged,
        run: Run = run,
    ) -> None:
        """As System.routing."""
        self._settings = settings
        self._own = settings.device
        self._versions = versions
        self._record = record
        self.lan_changed = lan_changed
        self.uplink_changed = _nothing
        self._run = run
        self._hosts: frozenset[Address] = settings.dns.lan_servers
        self._exits: frozenset[Address] = frozenset()
        self._asked: Counter[Address] = Counter()
        """Resolvers that are being asked for an exit's name."""
        self._changing = asyncio.Lock()
        self._aside: asyncio.Task[None] | None = None
        self._set: dict[Network, WantedRoute] = {}
        """What we have set, by prefix."""
        self._recorded: set[tuple[str, str, str]] = set()
        """What stands in the journal already: networks that come and go do not fill it."""
        self._sources: dict[int, frozenset[Interface]] = {}
        """The device's addresses when its routes were set, by IP version. A route gives its packets the address that
        the device has when it is added, and goes with that address."""
        self.lan = Lan()
        """The local networks at the last look."""
        self._told = Lan()
        self._uplinks: dict[int, Uplink | None] = {}

    async def apply(self, *, ours: bool = False) -> None:
        async with self._changing:
            state = await self._look()
            if other := networks.refuse_other_tunnel(state, self._own):
                raise ConfigError(f"{other}: end it first, since two tunnels cannot both take all traffic")
            for route in into_tunnel(self._settings, frozenset({4, 6}), self._own):
                there = state.at(route.prefix)
                if there is not None and not _is_idle(there) and there.interface != self._own:
                    raise ConfigError(
                        f"another program has {there}, which is ours: end that VPN first (`netstat -rn`)"
                    )
            self.lan = self._told = state.lan(self._own)
            self._uplinks = self._present_uplinks(state)
            await self._repair(state)

    async def carry(self, versions: frozenset[int]) -> None:
        async with self._changing:
            self._versions = versions
            await self._repair(await self._look())

    async def follow_exits(self, addresses: Collection[IPv4Address | IPv6Address]) -> None:
        async with self._changing:
            if self._exits != frozenset(addresses):
                self._exits = frozenset(addresses)
                await self._repair(await self._look())

    @asynccontextmanager
    async def past(self, addresses: Sequence[str]) -> AsyncIterator[None]:
        asked = [ipaddress.ip_address(address.partition("%")[0]) for address in addresses]
        async with self._changing:
            self._asked.update(asked)
            await self._repair(await self._look())
        try:
            yield
        finally:
            async with self._changing:
                self._asked -= Counter(asked)
                await self._repair(await self._look())

    async def stand_aside(self, seconds: int) -> None:
        async with self._changing:
            if self._aside is not None:
                self._aside.cancel()
            self._aside = spawn(self._stand_again(seconds), "end of the pause of the routes")
            await self._repair(await self._look())

    async def _stand_again(self, seconds: int) -> None:
        await asyncio.sleep(seconds)
        async with self._changing:
            self._aside = None
            try:
                await self._repair(await self._look())
            except CryprqError as error:
                # The reconciler tries again.
                _log.warning("the routes are not back after the pause yet: %s", error)

    async def close(self) -> None:
        if self._aside is not None:
            self._aside.cancel()

    async def look(self) -> str:
        async with self._changing:
            state = await self._look()
            lan, uplinks = state.lan(self._own), self._present_uplinks(state)
            # With the earlier uplinks: routes by a new one are missing, but no program has removed them.
            gone = [
                route
                for route in self._set.values()
                if not any(route.matches(one) for one in state.routes if not one.scoped)
            ]
            moved = {
                version: found
                for version, found in uplinks.items()
                if found is not None and found != self._uplinks.get(version)
            }
            if moved or lan != self.lan:
                # What went away with its network was removed by no program.
                gone = [route for route in gone if route.device]
            gone = [route for route in gone if not route.device or self._has_source(state, route)]
            self.lan = lan
            if not gone:
                await self._repair(state)
            self._uplinks |= moved
        if lan != self._told:
            await self.lan_changed(lan)
            self._told = lan
        if moved:
            self.uplink_changed()
        more = f" and {len(gone) - MAX_NAMED} more" if len(gone) > MAX_NAMED else ""
        return f"{', '.join(map(str, gone[:MAX_NAMED]))}{more} removed" if gone else ""

    async def put_back(self) -> None:
        async with self._changing:
            await self._repair(await self._look())

    def facts(self, exits: Callable[[], Collection[ExitEndpoint]]) -> Sequence[Fact]:
        return (DivertingRoutes(self._own, self.wanted, self._run),)

    def wanted(self, state: MacState) -> list[WantedRoute]:
        """All routes that must stand now, in the order in which they are set."""
        hosts = self._exits | self._hosts | frozenset(self._asked)
        past = past_tunnel(Exceptions(hosts, self._settings.exclude), state, self._own)
        if self._aside is not None:
            return past
        return [*past, *into_tunnel(self._settings, self._versions, self._own)]

    async def _look(self) -> MacState:
        return await asyncio.to_thread(networks.look, self._run)

    def _present_uplinks(self, state: MacState) -> dict[int, Uplink | None]:
        return {version: state.uplink(version, self._own) for version in (4, 6)}

    async def _repair(self, state: MacState) -> None:
        """Set what is missing and delete what is not wanted. Raises CryprqError. A caller that is cancelled waits for
        the end: no change may come after the undo."""
        work = asyncio.get_running_loop().run_in_executor(None, self._repair_now, state, self.wanted(state))
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])
            raise

    def _has_source(self, state: MacState, route: WantedRoute) -> bool:
        version = route.prefix.version
        return self._sources.get(version) == _addresses(state, self._own, version)

    def _repair_now(self, state: MacState, wanted: list[WantedRoute]) -> None:
        first: CryprqError | None = None
        by_prefix = {route.prefix: route for route in wanted}
        for route in wanted:
            there = state.at(route.prefix)
            stands = there is not None and route.matches(there)
            if stands and (not route.device or self._has_source(state, route)):
                self._set[route.prefix] = route
                continue
            try:
                self._set_route(route, there)
            except CryprqError as error:
                # Repair all that does not depend on it.
                first = first or error
        for prefix, old in list(self._set.items()):
            if prefix not in by_prefix:
                there = state.at(prefix)
                try:
                    if there is not None and old.matches(there):
                        remove(old, self._run)
                    del self._set[prefix]
                except CryprqError as error:
                    first = first or error
        if first is not None:
            raise first
        self._sources = {version: _addresses(state, self._own, version) for version in (4, 6)}

    def _set_route(self, route: WantedRoute, there: MacRoute | None) -> None:
        values = str(route.prefix), route.gateway, route.uplink
        if route.outlives and values not in self._recorded:
            self._record(route.entry())
            self._recorded.add(values)
        if there is not None:
            # Of another program, or ours by the gateway of before.
            delete(route.prefix, self._run)
        add(route, self._run)
        self._set[route.prefix] = route


def _nothing() -> None:
    """Before anybody wants to be told of another uplink."""


def _addresses(state: MacState, own: str, version: int) -> frozenset[Interface]:
    """From which packets into the device may come."""
    found = state.interface(own)
    addresses = () if found is None else found.addresses
    return frozenset(one for one in addresses if one.version == version and not one.ip.is_link_local)


def _is_idle(route: MacRoute) -> bool:
    """Whether it refuses, as ours of an earlier run may."""
    return "R" in route.flags


class DivertingRoutes(Fact):
    """Routes of other programs that lead past the tunnel: trouble only, since the packet filter holds their packets in.

    A DHCP server can push any route (CVE-2024-3661).
    """

    name = "routes of others"
    changes = staticmethod(route_changes)

    def __init__(self, own: str, wanted: Callable[[MacState], list[WantedRoute]], run: Run) -> None:
        """`wanted` are ours."""
        self._own = own
        self._wanted = wanted
        self._run = run
        self._found = ""

    async def look(self) -> str:
        state = await asyncio.to_thread(networks.look, self._run)
        found = list(diverting(state, self._wanted(state), self._own))
        more = f" and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
        self._found = (
            f"{', '.join(map(str, found[:MAX_NAMED]))}{more} of another program lead past the tunnel, so what goes "
            "there is held in: remove them (`netstat -rn`), or name the prefixes with --exclude"
            if found
            else ""
        )
        return self._found

    async def put_back(self) -> None:
        raise CryprqError(self._found)


def diverting(state: MacState, wanted: Sequence[WantedRoute], own: str) -> Iterator[MacRoute]:
    """Routes that are more specific than ours into the tunnel, and are none of ours: by a gateway, or on a link with
    no network of theirs."""
    prefixes = {route.prefix for route in wanted}
    tunnelled = [route.prefix for route in wanted if route.device]
    for route in state.routes:
        if route.scoped or route.cloned or route.interface == own or "R" in route.flags:
            continue
        if route.next_hop is None and _is_usual(route, state):
            continue
        if route.prefix in prefixes or not route.prefix.prefixlen:
            continue
        if any(
            route.prefix.version == one.version and route.prefix.subnet_of(one)  # type: ignore[arg-type]
            for one in tunnelled
        ):
            yield route


def _is_usual(route: MacRoute, state: MacState) -> bool:
    """Whether a route without a gateway is one that each Mac has: to a network of its interface's addresses, or to
    what no router forwards. One to another private range is not: its packets are held in as those of any other."""
    interface = state.interface(route.interface)
    nets = () if interface is None else tuple(one.network for one in interface.addresses)
    return within(route.prefix, (*nets, *_NOT_FORWARDED))
