"""The client's system-wide mode: from the first rule of the filter to the last thing undone.

    journal: undo what a killed process left, but for the filter
    filter up                        nothing gets out any more but the link and the LAN
    exit's name resolved             through the filter's narrow opening
    link up, addresses from the exit
    device -> routes -> forwarder -> system resolver
    ready; then watch what others do to all of it

Each change stands in the journal before it is made. A clean stop undoes the journal, as `cleanup` and the next start do
after a crash: there is one way back. The filter was first in, so it is the last out.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Coroutine, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, replace
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface, ip_address, ip_network
from typing import Any, Final

from cryprq_proxy.address import Destination
from cryprq_proxy.errors import CryprqError
from cryprq_proxy.roles.bytestream import ByteStream
from cryprq_proxy.roles.client import Client
from cryprq_proxy.session.slices import Run
from cryprq_proxy.tasks import spawn

from . import nft, resolver, routes, sysctl
from .bootstrap import Bootstrap
from .dns.blocklist import load
from .dns.forwarder import Forwarder
from .dns.server import DnsServer
from .dns.setup import build
from .filter import Endpoint, Filter, FilterSettings
from .journal import Entry, Journal, Undoer, undo
from .lan import Lan
from .linux_device import MIN_MTU, Tun
from .resolver import SystemResolver
from .routes import Routes, RouteSettings, read_lan
from .settings import CLIENT_JOURNAL, MTU, RESOLVER4, RESOLVER6, SLICE_OVERHEAD, TunnelSettings

_log = logging.getLogger(__name__)

CHECK_SECONDS: Final = 2.0
"""How often it is looked whether another program has removed the filter."""
RESOLVING_SECONDS: Final = 20.0


def undoers(settings: TunnelSettings) -> dict[str, Undoer]:
    """How each kind of entry in the client's journal is undone."""
    return {**nft.UNDO, **sysctl.UNDO, **routes.UNDO, **resolver.undoers(state=settings.state)}


class Tunnel:
    """The ClientNetwork of system-wide mode (roles/client.py).

    `prepare`, then give it to the Client, then `run`; `close` in any case.
    """

    def __init__(self, settings: TunnelSettings, exit: Destination) -> None:
        self._settings = settings
        self.mark = settings.mark
        self._exit = exit
        self._loop = asyncio.get_running_loop()
        self._addressed: asyncio.Future[None] = self._loop.create_future()
        self._addresses = bytes(4), bytes(16)
        self._device: Tun | None = None
        self._routes: Routes | None = None
        self._forwarder: Forwarder | None = None
        self._server: DnsServer | None = None
        self._client: Client | None = None
        self._exits: frozenset[Endpoint] = frozenset()
        self._lan = Lan()
        self._watchers: list[asyncio.Task[Any]] = []
        self._changing = asyncio.Lock()
        self._stack = AsyncExitStack()
        self.confirmed = asyncio.Event()

    # --- before the link -------------------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """Close the filter. Raises ConfigError, with nothing changed, where this machine lacks something."""
        settings = self._settings
        async with AsyncExitStack() as stack:
            journal = self._journal = Journal(settings.state / CLIENT_JOURNAL)
            stack.callback(journal.close)
            left = journal.entries()
            ours = any(entry["kind"] == nft.KIND for entry in left)
            Tun.open(settings.device, mtu=MTU, offload="auto" if settings.offload else False).close()
            self._lan = await read_lan(settings.device)
            self._filter = Filter(
                self._filter_settings(), journal.record, ours=ours, keep_inbound=settings.keep_inbound
            )
            self._filter.up()
            stack.callback(undo, journal, undoers(settings))
            _undo_all_but_the_filter(journal, undoers(settings))
            self._resolver: SystemResolver = await resolver.choose(state=settings.state)
            self._bootstrap = Bootstrap(self._resolver.upstreams, self._opening, mark=settings.mark)
            if self._exit.is_ip:
                await self._set_exits([self._exit.host])
            self._stack = stack.pop_all()

    async def resolve(self, name: str) -> Sequence[str]:
        """The Resolve of the link: the exit's name, asked for past the tunnel. Raises CryprqError."""
        async with asyncio.timeout(RESOLVING_SECONDS):
            addresses = await self._bootstrap.resolve(name)
        await self._set_exits(addresses)
        return addresses

    @asynccontextmanager
    async def _opening(self, resolvers: Sequence[str]) -> AsyncIterator[None]:
        """The filter lets the link's own questions for the exit's name through."""
        opening = self._filter.resolving([ip_address(address.partition("%")[0]) for address in resolvers])
        async with self._changing:
            await self._loop.run_in_executor(None, opening.__enter__)
        try:
            yield
        finally:
            async with self._changing:
                await self._loop.run_in_executor(None, opening.__exit__, None, None, None)

    async def _set_exits(self, addresses: Iterable[str]) -> None:
        self._exits = frozenset(Endpoint(ip_address(address), self._exit.port) for address in addresses)
        await self._update_filter()

    def _filter_settings(self) -> FilterSettings:
        settings, lan = self._settings, self._lan
        ipv4, ipv6 = self._addresses
        server = self._server
        return FilterSettings(
            tun=settings.device,
            mark=settings.mark,
            exits=self._exits,
            tunnel4=IPv4Address(ipv4) if any(ipv4) else None,
            tunnel6=IPv6Address(ipv6) if any(ipv6) else None,
            dns_port=server.addresses[0][1] if server is not None and server.addresses else None,
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
        )

    async def _update_filter(self) -> None:
        async with self._changing:
            await self._loop.run_in_executor(None, self._filter.update, self._filter_settings())

    # --- the link --------------------------------------------------------------------------------------------------

    def received(self, buffer: memoryview, start: int, end: int, run: Run) -> None:
        if self._device is not None:
            self._device.write_run(buffer, start, end, run)

    def addressed(self, ipv4: bytes, ipv6: bytes) -> None:
        before, self._addresses = self._addresses, (ipv4, ipv6)
        if not self._addressed.done():
            self._addressed.set_result(None)
        elif before != self._addresses and self._device is not None:
            if self._forwarder is not None:
                self._forwarder.offer_ipv6(any(ipv6))
            self._spawn(self._readdress(), "tunnel addresses")

    def link_changed(self, up: bool) -> None:
        if self._forwarder is None:
            return
        if up:
            self._forwarder.link_restored()
        else:
            self._forwarder.link_lost()

    def lane_changed(self) -> None:
        if self._device is not None:
            self._spawn(self._follow_lane(self._device), "tunnel MTU")

    async def _follow_lane(self, device: Tun) -> None:
        """Packets as large as the lane takes them whole; smaller than MIN_MTU they are cut instead."""
        size = None if self._client is None else self._client.lane_size
        mtu = MTU if size is None else max(MIN_MTU, min(MTU, size - SLICE_OVERHEAD))
        if mtu != device.mtu:
            await device.set_mtu(mtu)

    # --- system-wide -----------------------------------------------------------------------------------------------

    async def run(self, client: Client) -> None:
        """Route everything into the tunnel, as soon as the exit has handed out addresses. Raises CryprqError."""
        self._client = client
        await self._addressed
        if not any(self._addresses[0]):
            raise CryprqError("the exit carries no packets at the moment; its log says why")
        settings = self._settings
        device = Tun.open(settings.device, mtu=MTU, offload="auto" if settings.offload else False)
        self._stack.callback(device.close)
        await device.configure(self._interfaces())
        await self._start_forwarder(client)
        await self._update_filter()
        self._routes = Routes(self._route_settings(), self._journal.record)
        await self._routes.apply()
        self._device = device
        device.start(self._loop, client.send_packet, _nothing, self._device_lost)
        await self._resolver.set(
            [str(address) for address in self._resolver_addresses()],
            socket.if_nametoindex(settings.device),
            settings.device,
            self._journal.record,
        )
        self.lane_changed()
        self._spawn(self._routes.watch(self._lan_changed, self._default_changed), "routes")
        self._spawn(self._resolver.watch(), "system resolver")
        self._spawn(self._watch_filter(), "kill switch")

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

    def _resolver_addresses(self) -> list[IPv4Address | IPv6Address]:
        return [RESOLVER4, RESOLVER6] if any(self._addresses[1]) else [RESOLVER4]

    async def _start_forwarder(self, client: Client) -> None:
        settings = replace(self._settings.dns, ipv6=self._settings.dns.ipv6 and any(self._addresses[1]))
        blocklist = await self._loop.run_in_executor(
            None, load, settings.blocklists, settings.block, settings.allow
        )
        for problem in blocklist.problems:
            _log.warning("blocklist: %s", problem)

        async def connect(destination: Destination) -> ByteStream:
            return await client.open(destination)

        self._forwarder = build(settings, resolver=client.open_resolver, connect=connect, blocklist=blocklist)
        self._stack.callback(self._forwarder.close)
        hosts = [str(interface.ip) for interface in self._interfaces()]
        self._server = DnsServer(self._forwarder, [(hosts[0], 0)])
        self._stack.callback(self._server.close)
        await self._server.start()
        port = self._server.addresses[0][1]
        if hosts[1:]:
            second = DnsServer(self._forwarder, [(hosts[1], port)])
            self._stack.callback(second.close)
            await second.start()

    async def _readdress(self) -> None:
        """The exit, started anew with another pool, hands out other addresses."""
        assert self._device is not None and self._routes is not None
        _log.warning("the exit hands out other addresses: connections through the tunnel end")
        await self._device.configure(self._interfaces())
        await self._update_filter()

    # --- what others do --------------------------------------------------------------------------------------------

    async def _lan_changed(self, lan: Lan) -> None:
        self._lan = lan
        await self._update_filter()

    async def _default_changed(self, version: int) -> None:
        if self._client is not None:
            self._client.redial()

    async def _watch_filter(self) -> None:
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            async with self._changing:
                if not await self._loop.run_in_executor(None, self._filter.standing):
                    _log.warning("another program removed the kill switch; it is put back")
                    await self._loop.run_in_executor(None, self._filter.restore)

    def _device_lost(self, error: OSError) -> None:
        _log.error(
            "the device %s is gone (%s): start cryprq-proxy --tun again",
            self._settings.device,
            error.strerror,
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        async def guarded() -> None:
            try:
                await work
            except CryprqError as error:
                _log.error("%s: %s", name, error)

        self._watchers = [task for task in self._watchers if not task.done()]
        self._watchers.append(spawn(guarded(), name))

    # --- commands --------------------------------------------------------------------------------------------------

    async def pause(self, seconds: int) -> None:
        """Let this machine past the tunnel for so long. Raises CryprqError."""
        async with self._changing:
            await self._loop.run_in_executor(None, self._filter.pause, seconds)

    def status(self) -> dict[str, Any]:
        """What `cryprq-proxy status` shows."""
        ipv4, ipv6 = self._addresses
        filter = self._filter.counters()
        return {
            "device": None if self._device is None else asdict(self._device.status()),
            "addresses": [str(interface.ip) for interface in self._interfaces()] if any(ipv4) else [],
            "ipv6": any(ipv6),
            "kill_switch": {
                "on": self._settings.kill_switch,
                "standing": self._filter.standing(),
                "paused": self._filter.paused(),
                "kept_in": {cause: count.packets for cause, count in filter.items()},
            },
            "dns": {
                "resolver": self._resolver.kind,
                "repairs": self._resolver.repairs,
                **({} if self._forwarder is None else asdict(self._forwarder.status())),
            },
            "repairs": 0 if self._routes is None else self._routes.repairs,
        }

    async def close(self) -> None:
        """Undo everything, in reverse. Raises CryprqError for what could not be undone."""
        for task in self._watchers:
            task.cancel()
        if self._watchers:
            await asyncio.wait(self._watchers)
        await self._stack.aclose()


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


def _nothing() -> None:
    """What was read is sent already."""
