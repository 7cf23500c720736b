"""The client's system-wide mode: from the first rule of the filter to the last thing undone.

    journal: undo what a killed process left, but for the filter
    filter up                        nothing gets out any more but the link and the LAN
    exits' names resolved            through the filter's narrow opening
    link up, addresses from the exit
    device -> routes -> forwarder -> system resolver
    ready; then watch what others do to all of it

Each change stands in the journal before it is made. A clean stop undoes the journal, as `cleanup` and the next start do
after a crash: there is one way back. The filter was first in, so it is the last out. An end that nobody asked for
leaves the filter in place, as a crash does; so does a start that fails where an earlier end had left it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_network
from typing import Any, Final, Protocol

from cryprq_proxy.address import Destination
from cryprq_proxy.base.tasks import spawn
from cryprq_proxy.base.text import reason_of
from cryprq_proxy.carriers.lane.carrier import flush_packets
from cryprq_proxy.errors import ConfigError, CryprqError
from cryprq_proxy.lane.slices import Run, Shape
from cryprq_proxy.outbound.bytestream import ByteStream
from cryprq_proxy.rules.engine import EVERYTHING, RuleSet

from . import sysctl
from .device.coalesce import UdpJoiner
from .device.linux import MIN_MTU, Tun
from .dns.blocklist import load
from .dns.forwarder import Forwarder
from .dns.server import DnsServer
from .dns.setup import build, check
from .firewall import nft
from .firewall.filter_settings import FilterSettings
from .firewall.kill_switch import Filter
from .firewall.policy import Policy, contradiction
from .journal import Entry, Journal, Undoer, undo
from .resolver import choose as resolver
from .resolver.bootstrap import Bootstrap
from .resolver.choose import SystemResolver
from .routing import routes
from .routing.exit_endpoints import ExitEndpoints
from .routing.lan import Lan
from .routing.routes import Routes, RouteSettings, read_lan
from .settings import CLIENT_JOURNAL, MTU, RESOLVER4, RESOLVER6, SLICE_OVERHEAD, TunnelSettings

_log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 2.0
"""How often it is looked whether another program has removed the filter."""
RESOLVING_SECONDS: Final = 20.0


def undoers(settings: TunnelSettings) -> dict[str, Undoer]:
    """How each kind of entry in the client's journal is undone."""
    return {**nft.UNDO, **sysctl.UNDO, **routes.UNDO, **resolver.undoers(state=settings.state)}


class Link(Protocol):
    """What carries the packets: a Client, or several exits that look like one (client/exits.py)."""

    send_packet: Callable[[memoryview, int, int, Shape], None]

    @property
    def lane_size(self) -> int | None: ...
    async def open(self, destination: Destination) -> ByteStream: ...
    async def open_resolver(self) -> ByteStream: ...
    def redial(self) -> None: ...


class Tunnel:
    """The ClientNetwork of system-wide mode (packet_ports.py). `exits` are all places where the link may be dialled.

    `prepare`, then give it to the Client, then `run`, then `lost`; `close` in any case, if it is not for an exception
    of `prepare`. Raises ConfigError for settings that make no sense, and for rules that cannot be kept.
    """

    def __init__(
        self, settings: TunnelSettings, exits: Sequence[Destination], rules: RuleSet = EVERYTHING
    ) -> None:
        self._settings = settings
        self.mark = settings.mark
        self._exits = ExitEndpoints(exits)
        self._policy = self._checked(rules)
        self._loop = asyncio.get_running_loop()
        self._addressed: asyncio.Future[None] = self._loop.create_future()
        self._offered = self._addresses = bytes(4), bytes(16)
        self._device: Tun | None = None
        self._routes: Routes | None = None
        self._forwarder: Forwarder | None = None
        self._servers: list[DnsServer] = []
        self._client: Link | None = None
        self._upstreams: Callable[[], tuple[str, ...]] = tuple
        self._lan = Lan()
        self._watchers: list[asyncio.Task[Any]] = []
        self._changing = asyncio.Lock()
        self._open = False
        self._ipv6_here = True
        self._resizing = asyncio.Lock()
        self._readdressing = asyncio.Lock()
        self._asked_at: list[str] = []
        self._stack = AsyncExitStack()
        self._gone: asyncio.Future[OSError] = self._loop.create_future()
        self.confirmed = asyncio.Event()
        self.fail_closed = False
        self._route_settings()
        check(settings.dns)

    # --- before the link -------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Close the filter. Raises ConfigError, with nothing changed, where this machine lacks something."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            journal = self._journal = Journal(settings.state / CLIENT_JOURNAL)
            stack.callback(journal.close)
            left = journal.entries()
            ours = any(entry["kind"] == nft.KIND for entry in left)
            self.fail_closed = ours and nft.exists(nft.CLIENT)
            Tun.open(settings.device, mtu=MTU, offload="auto" if settings.offload else False).close()
            self._lan = await read_lan(settings.device)
            stack.push(self._undo)
            self._filter = Filter.up(
                self._filter_settings(), journal.record, ours=ours, keep_inbound=settings.keep_inbound
            )
            self._open = True
            stack.callback(self._shut)
            _undo_all_but_the_filter(journal, undoers(settings))
            self._resolver: SystemResolver = await resolver.choose(state=settings.state)
            self._upstreams = self._resolver.upstreams
            self._bootstrap = Bootstrap(self._resolver.upstreams, self._opening, mark=settings.mark)
            await self._update_filter()
            self._stack = stack.pop_all()

    async def resolve(self, name: str) -> Sequence[str]:
        """The Resolve of the link: an exit's name, asked for past the tunnel. Raises CryprqError."""
        async with asyncio.timeout(RESOLVING_SECONDS):
            addresses = await self._bootstrap.resolve(name)
        self._exits.learn(name, addresses)
        await self._update_filter()
        return addresses

    @asynccontextmanager
    async def _opening(self, resolvers: Sequence[str]) -> AsyncIterator[None]:
        """The filter lets the link's own questions for the exit's name through."""
        opening = self._filter.resolving([ip_address(address.partition("%")[0]) for address in resolvers])
        entered = False

        def enter() -> None:
            nonlocal entered
            opening.__enter__()
            entered = True

        try:
            await self._change(enter)
            yield
        finally:
            if entered:
                await self._change(opening.__exit__, None, None, None)

    async def _change[*A](self, change: Callable[[*A], object], *arguments: *A) -> None:
        """Change the filter, on a thread and one at a time. Also who is cancelled meanwhile waits for the end of it: no
        change may come after the filter was taken away."""
        async with self._changing:
            if not self._open:
                raise CryprqError("system-wide mode is just being set up or undone; try again in a moment")
            changed = self._loop.run_in_executor(None, change, *arguments)
            try:
                await asyncio.shield(changed)
            except asyncio.CancelledError:
                await asyncio.wait([changed])
                raise

    def _shut(self) -> None:
        self._open = False

    def _checked(self, rules: RuleSet) -> Policy:
        """Raises ConfigError."""
        policy = Policy(rules)
        wrong = contradiction(rules, lan=self._settings.lan, include=bool(self._settings.include))
        if wrong:
            raise ConfigError(wrong)
        return policy

    def _filter_settings(self) -> FilterSettings:
        settings, lan = self._settings, self._lan
        ipv4, ipv6 = self._addresses
        listening = [address for server in self._servers for address in server.addresses]
        return FilterSettings(
            tun=settings.device,
            mark=settings.mark,
            exits=self._exits.known(),
            tunnel4=IPv4Address(ipv4) if any(ipv4) else None,
            tunnel6=IPv6Address(ipv6) if any(ipv6) else None,
            dns_port=listening[0][1] if listening else None,
            lan=frozenset(lan.prefixes),
            lan_allowed=settings.lan,
            guests=frozenset(lan.guests),
            uplinks=lan.uplinks,
            excluded=frozenset(settings.exclude),
            included=frozenset(settings.include),
            excluded_uids=frozenset(
                uid for first, last in settings.exclude_uids for uid in range(first, last + 1)
            ),
            kill_switch=settings.kill_switch,
            rules=self._policy.filter,
            portal_resolvers=self._portal_resolvers(),
        )

    def _portal_resolvers(self) -> tuple[IPv4Address | IPv6Address, ...]:
        """Those from before, but for link-local ones: nft cannot send packets to an address with a zone."""
        found = [ip_address(each) for each in self._upstreams()]
        return tuple(address for address in found if not address.is_link_local)

    async def _update_filter(self) -> None:
        await self._change(lambda: self._filter.update(self._filter_settings()))

    # --- the link --------------------------------------------------------------------------------------------------

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        if self._device is not None:
            self._device.write_run(buffer, start, end, run)

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        if self._device is not None and not any(ipv4):
            _log.error("the exit carries no packets any more; its log says why")
            return
        self._offered = ipv4, ipv6
        if not self._addressed.done():
            self._addressed.set_result(None)
        elif self._device is not None:
            self._spawn("tunnel addresses", self._readdress)

    def link_changed(self, up: bool) -> None:
        if self._forwarder is None:
            return
        if up:
            self._forwarder.link_restored()
        else:
            self._forwarder.link_lost()

    def lane_changed(self) -> None:
        if self._device is not None:
            self._spawn("tunnel MTU", self._follow_lane, self._device)

    async def _follow_lane(self, device: Tun) -> None:
        """Packets as large as the lane takes them whole; smaller than MIN_MTU they are cut instead."""
        async with self._resizing:
            size = None if self._client is None else self._client.lane_size
            mtu = MTU if size is None else max(MIN_MTU, min(MTU, size - SLICE_OVERHEAD))
            if mtu != device.mtu:
                await device.set_mtu(mtu)

    # --- system-wide -----------------------------------------------------------------------------------------------

    async def run(self, client: Link) -> None:
        """Route everything into the tunnel, as soon as the exit has handed out addresses. Raises CryprqError."""
        self._client = client
        await self._addressed
        self._addresses = self._offered
        if not any(self._addresses[0]):
            raise CryprqError("the exit carries no packets at the moment; its log says why")
        settings = self._settings
        device = Tun.open(settings.device, mtu=MTU, offload="auto" if settings.offload else False)
        self._stack.callback(device.close)
        configured = await device.configure(self._interfaces())
        if len(configured) < len(self._interfaces()):
            self._ipv6_here = False
            self._addresses = self._addresses[0], bytes(16)
        await self._start_forwarder(client)
        await self._update_filter()
        self._routes = Routes(self._route_settings(), self._journal.record)
        await self._routes.apply()
        self._device = device
        joiner = UdpJoiner(client.send_packet)

        def drained() -> None:
            joiner.flush()
            flush_packets()

        device.start(self._loop, joiner.packet, drained, self._gone.set_result)
        await self._set_resolver()
        self.lane_changed()
        self._spawn("routes", self._routes.watch, self._lan_changed, self._default_changed)
        self._spawn("system resolver", self._resolver.watch)
        self._spawn("kill switch", self._watch_filter)
        self._spawn("tunnel addresses", self._readdress)  # others may have come meanwhile

    def _interfaces(self) -> list[IPv4Interface | IPv6Interface]:
        ipv4, ipv6 = self._addresses
        interfaces: list[IPv4Interface | IPv6Interface] = [IPv4Interface((ipv4, 32))]
        if any(ipv6):
            interfaces.append(IPv6Interface((ipv6, 128)))
        return interfaces

    def _route_settings(self) -> RouteSettings:
        settings = self._settings
        return RouteSettings(
            device=settings.device,
            mark=settings.mark,
            versions=frozenset({4, 6} if any(self._addresses[1]) else {4}),
            tunnel=tuple(ip_network(f"{address}") for address in (RESOLVER4, RESOLVER6)),
            lan=settings.lan,
            exclude=settings.exclude,
            include=settings.include,
            exclude_uids=settings.exclude_uids,
        )

    async def _set_resolver(self) -> None:
        """The system asks us for names, over each family that the exit carries."""
        addresses = [str(RESOLVER4), *([str(RESOLVER6)] if any(self._addresses[1]) else [])]
        if addresses != self._asked_at:
            device = self._settings.device
            await self._resolver.set(addresses, socket.if_nametoindex(device), device, self._journal.record)
            self._asked_at = addresses

    async def _start_forwarder(self, client: Link) -> None:
        settings = replace(self._settings.dns, ipv6=self._settings.dns.ipv6 and any(self._addresses[1]))
        blocklist = await self._loop.run_in_executor(
            None, load, settings.blocklists, settings.block, settings.allow
        )
        for problem in blocklist.problems:
            _log.warning("blocklist: %s", problem)

        async def connect(destination: Destination) -> ByteStream:
            return await client.open(destination)

        self._forwarder = build(
            settings,
            resolver=client.open_resolver,
            connect=connect,
            blocklist=blocklist,
            also_blocks=lambda name: self._policy.blocks(name),
        )
        self._stack.callback(self._forwarder.close)
        self._stack.callback(self._close_servers)
        await self._listen(self._forwarder)

    async def _listen(self, forwarder: Forwarder) -> None:
        """Questions reach the forwarder on each address of the tunnel, on a port that is free."""
        port = 0
        for interface in self._interfaces():
            server = await DnsServer.listen(forwarder, [(str(interface.ip), port)])
            self._servers.append(server)
            port = server.addresses[0][1]

    def _close_servers(self) -> None:
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def _readdress(self) -> None:
        """Another exit, or one that was started anew with another pool, hands out other addresses."""
        assert self._device is not None and self._forwarder is not None and self._routes is not None
        async with self._readdressing:
            ipv4, ipv6 = self._offered
            offered = ipv4, ipv6 if self._ipv6_here else bytes(16)
            if offered == self._addresses:
                return
            self._addresses = offered
            self._close_servers()
            self._forwarder.offer_ipv6(any(self._addresses[1]))
            self._routes.settings = self._route_settings()
            await self._device.configure(self._interfaces())
            await self._listen(self._forwarder)
            await self._update_filter()
            await self._set_resolver()
        _log.warning("the exit handed out other addresses: connections through the tunnel end")

    # --- what others do --------------------------------------------------------------------------------------------

    async def _lan_changed(self, lan: Lan) -> None:
        self._lan = lan
        try:
            await self._update_filter()
        except CryprqError as error:
            _log.warning("the filter does not know the local networks of now yet: %s", error)

    async def _default_changed(self, version: int) -> None:
        if self._client is not None:
            self._client.redial()

    async def _watch_filter(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            try:
                await self._change(self._look_after_filter)
            except CryprqError as error:
                _log.warning("the kill switch could not be looked after: %s", error)

    def _look_after_filter(self) -> None:
        if not self._filter.standing():
            _log.warning("another program removed the kill switch; it is put back")
            self._filter.restore()
        self._filter.update(self._filter_settings())

    async def lost(self) -> None:
        """Runs for as long as there is a device. Raises CryprqError when somebody has removed it."""
        error = await self._gone
        stays = "; the kill switch stands until then" if self._settings.kill_switch else ""
        raise CryprqError(
            f"another program removed the device {self._settings.device} ({reason_of(error)}); "
            f"start cryprq-proxy --tun again{stays}"
        )

    def _spawn[*A](self, name: str, work: Callable[[*A], Awaitable[None]], *arguments: *A) -> None:
        async def guarded() -> None:
            try:
                await work(*arguments)
            except CryprqError as error:
                _log.error("%s: %s", name, error)

        self._watchers = [task for task in self._watchers if not task.done()]
        self._watchers.append(spawn(guarded(), name))

    # --- commands --------------------------------------------------------------------------------------------------

    async def apply_rules(self, rules: RuleSet) -> None:
        """Other rules, for connections and questions from now on. Raises CryprqError; then those from before stay."""
        policy = self._checked(rules)
        before, self._policy = self._policy, policy
        try:
            await self._update_filter()
        except BaseException:
            self._policy = before
            raise

    async def pause(self, seconds: int) -> None:
        """Let this machine past the tunnel for so long. Raises CryprqError."""
        await self._change(lambda: self._filter.pause(seconds))

    async def status(self) -> dict[str, Any]:
        """What `cryprq-proxy status` shows, and `cryprq-proxy leaktest` must know. Empty while nothing stands."""
        if not self._open:
            return {}
        settings, lan, forwarder = self._settings, self._lan, self._forwarder
        return {
            "device": None if self._device is None else asdict(self._device.status()),
            "addresses": [str(interface.ip) for interface in self._interfaces()]
            if any(self._addresses[0])
            else [],
            "ipv6": any(self._addresses[1]),
            "kill_switch": {"on": settings.kill_switch}
            | await self._loop.run_in_executor(None, self._filter_status),
            "dns": {}
            if forwarder is None
            else {
                "resolver": self._resolver.kind,
                "repairs": self._resolver.repairs,
                **asdict(forwarder.status()),
            },
            "repairs": 0 if self._routes is None else self._routes.repairs,
            "exits": sorted([str(exit.address), exit.port] for exit in self._exits.known()),
            "uplinks": sorted(lan.uplinks),
            "lan": [str(prefix) for prefix in lan.prefixes] if settings.lan else [],
            "exclude": [str(prefix) for prefix in settings.exclude],
            "include": [str(prefix) for prefix in settings.include],
            "exclude_uids": settings.exclude_uids,
            "rules": self._policy.status(),
        }

    def _filter_status(self) -> dict[str, Any]:
        """Asks nft, which takes some milliseconds."""
        return {
            "standing": self._filter.standing(),
            "paused": self._filter.paused(),
            "kept_in": {cause: count.packets for cause, count in self._filter.counters().items()},
        }

    async def close(self, *failure: Any) -> None:
        """As __aexit__: undo everything, in reverse; with an exception, all but the kill switch if `fail_closed` is so.

        Raises CryprqError for what could not be undone.
        """
        for task in self._watchers:
            task.cancel()
        if self._watchers:
            await asyncio.wait(self._watchers)
        async with self._changing:
            await self._stack.__aexit__(*failure)

    def _undo(self, *failure: Any) -> None:
        """What the journal holds, on the way out."""
        ways = undoers(self._settings)
        if failure[0] is None or not self.fail_closed or not self._settings.kill_switch:
            undo(self._journal, ways)
            return
        _undo_all_but_the_filter(self._journal, ways)
        _log.warning(
            "the kill switch stands: nothing gets out until cryprq-proxy --tun runs again, or cryprq-proxy cleanup"
        )


def _undo_all_but_the_filter(journal: Journal, ways: Mapping[str, Undoer]) -> None:
    """What a killed process left, behind the filter that is up again already."""
    kept: list[Entry] = []
    for entry in reversed(journal.entries()):
        if entry["kind"] == nft.KIND:
            kept.append(entry)
            continue
        try:
            ways[entry["kind"]](entry)
        except (CryprqError, KeyError) as error:
            _log.warning("what an earlier run changed could not be undone: %s", error)
            kept.append(entry)
    journal.keep(kept[::-1])
